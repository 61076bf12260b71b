//! Each check of a zone on a zone that is well, and on one that is not.

use super::super::Outcome::{self, Failure, Ok as Fine, Warning};
use super::*;

fn zone() -> Zone {
    Zone { about: "zone a".to_owned() }
}

fn node(id: u32) -> v1::Node {
    v1::Node {
        id,
        state: v1::NodeState::Up.into(),
        primary_address: format!("10.1.0.{id}:7"),
        replication_address: format!("10.2.0.{id}:7"),
        capacity_bytes: 1000,
        used_bytes: 100,
        stores: vec![v1::Store {
            id: "0".repeat(32),
            capacity_bytes: 1000,
            used_bytes: 100,
            scrub: Some(v1::Scrub { cycles: 0, done_permille: 10, bytes_per_second: 1 << 20 }),
            replicas: 1,
        }],
        ..Default::default()
    }
}

fn member(id: u64) -> v1::Member {
    v1::Member { id, reachable: true, leader: id == 1, matched_index: 50_000, ..Default::default() }
}

fn well() -> v1::GetStatusResponse {
    v1::GetStatusResponse {
        zone: "a".to_owned(),
        leader: 1,
        members: (1..=3).map(member).collect(),
        nodes: (1..=4).map(node).collect(),
        chunks: Some(v1::ChunkCounts { total: 2, whole: 2, degraded: 0, stuck: 0 }),
        volumes: vec![v1::Volume {
            copies_wanted: 3,
            state: v1::VolumeState::Available.into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The outcome of one check after `change`.
fn after(code: &str, change: impl FnOnce(&mut v1::GetStatusResponse)) -> Outcome {
    let mut status = well();
    change(&mut status);
    let checks = zone().all(&status, &Configs::default());
    checks.iter().find(|check| check.code == code).unwrap().outcome()
}

#[test]
fn a_zone_that_is_well_passes_every_check_that_asks_nobody_else() {
    for check in zone().all(&well(), &Configs::default()) {
        let asks_nodes = check.code == "ZONE_REACHED_FROM_HERE";
        assert!(asks_nodes || check.outcome() == Fine, "{check:?}");
    }
}

#[test]
fn members_that_are_missing_forgetful_behind_or_even_are_found() {
    assert_eq!(after("ZONE_QUORUM", |s| s.members[2].reachable = false), Warning);
    assert_eq!(after("ZONE_QUORUM", |s| s.members.truncate(1)), Warning);
    assert_eq!(after("ZONE_QUORUM", |s| s.members.push(member(4))), Warning);
    assert_eq!(after("ZONE_MEMBERS", |s| s.members[2].reachable = false), Warning);
    assert_eq!(after("ZONE_MEMBERS", |s| s.members[1].forgetful = "its log".to_owned()), Warning);
    assert_eq!(after("ZONE_MEMBERS_LEVEL", |s| s.members[1].matched_index = 9), Warning);
}

#[test]
fn nodes_that_are_away_late_or_too_few_are_found() {
    let dead = |s: &mut v1::GetStatusResponse, at: usize| {
        s.nodes[at].state = v1::NodeState::Dead.into();
    };
    assert_eq!(after("ZONE_NODES_UP", |s| dead(s, 0)), Warning);
    assert_eq!(after("ZONE_SPARE_NODE", |s| dead(s, 0)), Warning);
    assert_eq!(after("ZONE_SPARE_NODE", |s| (0..2).for_each(|at| dead(s, at))), Failure);
    assert_eq!(after("ZONE_HEARTBEATS", |s| s.nodes[0].heartbeat_millis_ago = 9_000), Warning);
    assert_eq!(after("ZONE_STORES", |s| s.nodes[0].stores.clear()), Warning);
    let same = |s: &mut v1::GetStatusResponse| {
        s.nodes[0].replication_address = "10.1.0.1:8".to_owned();
    };
    assert_eq!(after("ZONE_NETWORKS_DIFFER", same), Warning);
}

#[test]
fn a_store_that_its_configuration_has_and_the_node_has_not_is_found() {
    let text = "zone = \"a\"\nnode = 1\ndata_dir = \"/d\"\nstores = [\"/1\", \"/2\"]\n\
                capacity_bytes = 1073741824\nprimary_address = \"10.1.0.1:7\"\n\
                replication_address = \"10.2.0.1:7\"\ncontrol = [\"http://10.0.0.1:7\"]\n";
    let named =
        super::super::files::Named { name: "node-1".to_owned(), config: text.parse().unwrap() };
    let configs = Configs { nodes: vec![named], members: Vec::new() };
    let check = zone().stores(&well(), &configs);
    assert_eq!(check.found, "node-1: 1 of 2 stores work");
}

#[test]
fn little_room_and_no_headroom_are_found() {
    let used = |percent: u64| {
        move |s: &mut v1::GetStatusResponse| s.nodes[0].stores[0].used_bytes = percent * 10
    };
    assert_eq!(after("ZONE_ROOM", used(79)), Fine);
    assert_eq!(after("ZONE_ROOM", used(85)), Warning);
    assert_eq!(after("ZONE_ROOM", used(96)), Failure);
    let full = |s: &mut v1::GetStatusResponse| s.nodes.iter_mut().for_each(|n| n.used_bytes = 800);
    assert_eq!(after("ZONE_HEADROOM", full), Warning);
}

#[test]
fn chunks_and_volumes_in_trouble_are_found() {
    let degraded = v1::ChunkCounts { total: 2, whole: 1, degraded: 1, stuck: 0 };
    assert_eq!(after("ZONE_CHUNKS_WHOLE", |s| s.chunks = Some(degraded)), Warning);
    let stuck = v1::ChunkCounts { total: 2, whole: 1, degraded: 0, stuck: 1 };
    assert_eq!(after("ZONE_CHUNKS_STUCK", |s| s.chunks = Some(stuck)), Failure);
    let on = v1::Interruption { on: true, lost: 3, ..Default::default() };
    assert_eq!(after("ZONE_INTERRUPTION", |s| s.interruption = Some(on)), Warning);
    assert_eq!(after("ZONE_ERASED", |s| s.erasing_replicas = 2), Warning);
    let slow =
        |s: &mut v1::GetStatusResponse| s.volumes[0].state = v1::VolumeState::Creating.into();
    assert_eq!(after("ZONE_VOLUMES_MADE", slow), Warning);
    let off = |s: &mut v1::GetStatusResponse| s.nodes[0].stores[0].scrub = None;
    assert_eq!(after("ZONE_SCRUB", off), Warning);
}

#[test]
fn a_stuck_chunk_comes_with_its_cause_and_next_action() {
    let mut status = well();
    status.stuck.push(v1::StuckChunk {
        chunk: Some(v1::ChunkId { volume: "vol-a-1".to_owned(), index: 3 }),
        cause: "one copy left".to_owned(),
        since_millis: 2500,
        blocked_on: vec![2],
        next_action: "node-2 comes back".to_owned(),
    });
    let check = zone().stuck(&status);
    assert_eq!(check.found, "writes of 1 chunks wait: vol-a-1/3 for 2 s: one copy left");
    assert_eq!(check.remedy.as_deref(), Some("node-2 comes back"));
}

#[test]
fn a_node_that_this_host_does_not_reach_is_found() {
    let refused = |_| Err(std::io::ErrorKind::ConnectionRefused.into());
    assert_eq!(zone().reached(&well(), refused).outcome(), Failure);
    assert_eq!(zone().reached(&well(), |_| Ok(())).outcome(), Fine);
}
