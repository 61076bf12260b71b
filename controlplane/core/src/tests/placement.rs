//! Where replicas go: racks apart, few sharing nodes, room that is promised once.

use super::*;
use crate::command::{Place, Placement};
use crate::place::{Space, place_volume, placing};
use crate::sharing::PEERS_PER_NODE_MAX;
use alloc::collections::BTreeMap;

fn in_rack(node: u32, rack: &str) -> NodeRecord {
    NodeRecord { rack: rack.into(), ..record(node) }
}

/// Nodes in racks, each in the next one.
fn racks(nodes: u32, labels: &[&str]) -> Zone {
    let rack = |node: u32| labels[node as usize % labels.len()];
    Zone::of((1..=nodes).map(|node| in_rack(node, rack(node))))
}

/// A zone's nodes with much room, heard of just now.
fn heard(zone: &mut Zone, capacity_bytes: u64) {
    let nodes: Vec<NodeRecord> = zone.state.nodes().cloned().collect();
    for node in nodes.iter().filter(|node| zone.beating.contains(&node.node.0)) {
        let store = |id: &StoreId| StoreState { capacity_bytes, ..store_state(*id, 0) };
        let stores = node.stores.iter().map(store).collect();
        zone.seen.on_heartbeat(zone.now, node.node, Heartbeat { stores, peers: Vec::new() });
    }
}

fn space(zone: &Zone) -> Space<'_> {
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    Space::of(&zone.state, &zone.seen, &verdicts)
}

fn volume(zone: &Zone, chunks: u64, copies: usize) -> (Geometry, Placement) {
    let geometry = Geometry::new(chunks * 64 * MIB, 64 * MIB).unwrap();
    (geometry, place_volume(geometry, copies, space(zone)).unwrap())
}

fn creation(zone: &Zone, chunks: u64, copies: u8) -> Action {
    let (geometry, placement) = volume(zone, chunks, usize::from(copies));
    let number = zone.state.volumes().count() as u128 + 1;
    Action::CreateVolume {
        token: None,
        volume: volume_id(number),
        name: format!("v{number}"),
        geometry,
        copies_wanted: copies,
        copies_min: copies.min(2),
        placement,
        error_after: ErrorAfter::default(),
    }
}

/// Commits without what [`Zone::apply`] checks on the way, which takes long in a large zone.
fn commit(zone: &mut Zone, action: Action) {
    zone.state.apply(&Command { at_millis: 1, action }).answer.unwrap();
}

fn racks_of(zone: &Zone, config: &ChunkConfig) -> BTreeSet<String> {
    let rack = |replica: &ReplicaId| zone.state.node(replica.node).unwrap().rack.clone();
    config.in_sync.iter().chain(&config.learners).map(rack).collect()
}

fn most_peers(zone: &Zone) -> usize {
    zone.state.nodes().map(|node| zone.state.peers_of(node.node)).max().unwrap()
}

/// Bytes promised on the emptiest and on the fullest node.
fn spread(zone: &Zone) -> (u64, u64) {
    let on = |node: &NodeRecord| zone.state.allocated_on(node.node, node.stores[0]);
    (zone.state.nodes().map(on).min().unwrap(), zone.state.nodes().map(on).max().unwrap())
}

#[test]
fn the_copies_of_a_chunk_are_in_different_racks() {
    // Most room is in one rack: it takes one copy of each chunk all the same.
    let mut zone = racks(9, &["x", "y", "z"]);
    for node in zone.beating.clone() {
        let used = if node % 3 == 0 { 0 } else { 512 * MIB };
        zone.seen.on_heartbeat(zone.now, NodeId(node), beat_of(node, used));
    }
    let action = creation(&zone, 12, 3);
    zone.apply(action).answer.unwrap();
    for config in zone.state.configs() {
        assert_eq!(racks_of(&zone, config).len(), 3, "{config:?}");
    }
}

#[test]
fn a_rack_is_shared_where_no_other_has_room_and_nodes_without_label_are_racks_of_their_own() {
    let mut zone = racks(4, &["x", "y"]);
    let action = creation(&zone, 4, 3);
    zone.apply(action).answer.unwrap();
    assert!(zone.state.configs().all(|config| racks_of(&zone, config).len() == 2));
    // Two in rack x, and one that says nothing: the latter is in every chunk.
    let mut zone = Zone::of([in_rack(1, "x"), in_rack(2, "x"), record(3), record(4)]);
    let action = creation(&zone, 8, 3);
    zone.apply(action).answer.unwrap();
    for config in zone.state.configs() {
        let in_x = config.in_sync.iter().filter(|replica| replica.node.0 <= 2).count();
        assert_eq!(in_x, 1, "{config:?}");
    }
}

#[test]
fn a_new_home_is_in_a_rack_without_a_copy_if_one_has_room_whichever_has_most() {
    let mut zone = racks(6, &["x", "y", "z"]);
    let action = creation(&zone, 1, 3);
    zone.apply(action).answer.unwrap();
    let config = zone.config(0);
    let lost = config.secondaries().next().unwrap();
    let proposer = config.primary;
    let rack = |node: NodeId| zone.state.node(node).unwrap().rack.clone();
    let same = zone.state.nodes().find(|n| n.node != lost.node && n.rack == rack(lost.node));
    let same = same.unwrap().node;
    let evidence = crate::command::Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer, replica: lost, evidence }).unwrap();
    zone.propose(0, Change::SeekLearner);
    // Less room there than anywhere else.
    zone.seen.on_heartbeat(zone.now, same, beat_of(same.0, 900 * MIB));
    let plan = zone.plan();
    let [ChunkChange { kind: ChangeKind::AddLearnerOn { place, .. }, .. }] = &plan.changes[..]
    else {
        panic!("{plan:?}")
    };
    assert_eq!(place.node, same);
    // With none at all, a rack is shared: the copy comes first.
    zone.seen.on_heartbeat(zone.now, same, beat_of(same.0, 1 << 30));
    let place = match &zone.plan().changes[..] {
        [ChunkChange { kind: ChangeKind::AddLearnerOn { place, .. }, .. }] => *place,
        other => panic!("{other:?}"),
    };
    assert!(place.node != same && place.node != lost.node);
}

#[test]
fn a_node_that_comes_with_another_label_is_in_that_rack_from_then_on() {
    let mut zone = racks(4, &["x", "y", "z"]);
    zone.apply(Action::RegisterNode { node: in_rack(4, "w") }).answer.unwrap();
    assert_eq!(zone.state.node(NodeId(4)).unwrap().rack, "w");
    zone.apply(Action::RegisterNode { node: record(4) }).answer.unwrap();
    assert_eq!(zone.state.node(NodeId(4)).unwrap().rack, "");
}

#[test]
fn in_a_zone_of_a_hundred_nodes_none_shares_with_more_than_the_bound_and_all_are_as_full() {
    let mut zone = racks(100, &["a", "b", "c", "d", "e", "f", "g"]);
    heard(&mut zone, 1 << 40);
    for _ in 0..12 {
        let action = creation(&zone, 1_024, 3);
        commit(&mut zone, action);
    }
    assert!(most_peers(&zone) <= PEERS_PER_NODE_MAX, "{}", most_peers(&zone));
    // Recovery is spread: a node shares with many, not with a few.
    let fewest = zone.state.nodes().map(|node| zone.state.peers_of(node.node)).min().unwrap();
    assert!(fewest >= 8, "{fewest}");
    let (least, most) = spread(&zone);
    let mean = 12 * 1_024 * 3 * 64 * MIB / 100;
    assert!(most - least <= mean / 20, "{least} to {most} of {mean}");
    assert!(zone.state.configs().all(|config| racks_of(&zone, config).len() == 3));
}

#[test]
fn a_node_that_comes_alone_into_full_groups_takes_nothing_until_others_come_with_it() {
    let mut zone = Zone::of((1..=33).map(record));
    let come = |zone: &mut Zone, node: u32| {
        zone.apply(Action::RegisterNode { node: record(node) }).answer.unwrap();
        zone.seen.on_connected(zone.now, NodeId(node));
        zone.beating.insert(node);
        heard(zone, 1 << 40);
    };
    heard(&mut zone, 1 << 40);
    let action = creation(&zone, 1_024, 3);
    commit(&mut zone, action);
    // All share with all: nobody may share with one more.
    assert_eq!(most_peers(&zone), PEERS_PER_NODE_MAX);
    come(&mut zone, 34);
    let action = creation(&zone, 128, 3);
    commit(&mut zone, action);
    assert_eq!(most_peers(&zone), PEERS_PER_NODE_MAX);
    assert_eq!(zone.state.replicas_on(NodeId(34)), 0);
    (35..=36).for_each(|node| come(&mut zone, node));
    let action = creation(&zone, 128, 3);
    commit(&mut zone, action);
    assert_eq!(most_peers(&zone), PEERS_PER_NODE_MAX);
    assert!(zone.state.replicas_on(NodeId(34)) > 0);
}

#[test]
fn after_a_death_new_homes_are_spread_over_the_peers_and_the_bound_holds() {
    let mut zone = racks(100, &["a", "b", "c", "d", "e"]);
    heard(&mut zone, 1 << 40);
    for _ in 0..4 {
        let action = creation(&zone, 1_024, 3);
        commit(&mut zone, action);
    }
    let dead = NodeId(50);
    let of_dead: Vec<ChunkConfig> = zone.state.configs_of_node(dead).cloned().collect();
    assert!(of_dead.len() > 100);
    let mut homes: BTreeMap<NodeId, usize> = BTreeMap::new();
    for config in &of_dead {
        let place = replace(&mut zone, config, dead);
        *homes.entry(place.node).or_default() += 1;
    }
    assert!(most_peers(&zone) <= PEERS_PER_NODE_MAX, "{}", most_peers(&zone));
    assert!(zone.state.configs().all(|config| racks_of(&zone, config).len() == 3));
    let most = homes.values().max().unwrap();
    assert!(homes.len() >= 8, "{homes:?}");
    assert!(*most <= of_dead.len() * 2 / homes.len() + 1, "{homes:?}");
}

/// A chunk loses the replica of a dead node, and another is filled in its place.
fn replace(zone: &mut Zone, config: &ChunkConfig, dead: NodeId) -> Place {
    let (chunk, evidence) = (config.chunk, crate::command::Evidence::NodeDead {});
    let replica = *config.in_sync.iter().find(|replica| replica.node == dead).unwrap();
    let other = *config.in_sync.iter().find(|replica| replica.node != dead).unwrap();
    let leaves = if replica == config.primary {
        ChangeKind::Elect { primary: other, evidence }
    } else {
        ChangeKind::RemoveSecondary { proposer: config.primary, replica, evidence }
    };
    let change =
        |epoch, kind| Action::Change { changes: [ChunkChange { chunk, epoch, kind }].into() };
    commit(zone, change(config.epoch, leaves));
    let mut verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    verdicts.insert(dead, crate::verdict::Verdict::Dead { cause: "dead".into() });
    let config = zone.state.config(chunk).unwrap().clone();
    let wanted = crate::moves::wanted(&config, &zone.state, &zone.seen);
    let place = Space::of(&zone.state, &zone.seen, &verdicts).take_one(&wanted).unwrap();
    let kind = ChangeKind::AddLearnerOn { proposer: config.primary, place };
    commit(zone, change(config.epoch, kind));
    assert!(zone.state.config(chunk).unwrap().learners.iter().any(|r| r.node == place.node));
    place
}

#[test]
fn a_bound_that_cannot_be_kept_keeps_no_copy_from_being_made() {
    // Groups of six at most, of seven nodes: one of three, one of four.
    let mut zone = Zone::of((1..=7).map(record));
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let geometry = Geometry::new(20 * 64 * MIB, 64 * MIB).unwrap();
    let space = Space::of(&zone.state, &zone.seen, &verdicts).with_peers_max(5);
    let placement = place_volume(geometry, 3, space).unwrap();
    let action = Action::CreateVolume {
        token: None,
        volume: volume_id(1),
        name: "v".into(),
        geometry,
        copies_wanted: 3,
        copies_min: 2,
        placement,
        error_after: ErrorAfter::default(),
    };
    zone.apply(action).answer.unwrap();
    let mut groups: BTreeSet<usize> = BTreeSet::new();
    for config in zone.state.configs() {
        let wanted = crate::moves::wanted(config, &zone.state, &zone.seen);
        let mut space = Space::of(&zone.state, &zone.seen, &verdicts).with_peers_max(5);
        let place = space.take_one(&wanted).unwrap();
        let peers = zone.state.peers_of(config.primary.node);
        groups.insert(peers);
        // The fourth of the group; or, where there is none, whoever has room.
        let mut nodes = zone.state.configs_of_node(place.node);
        let shares = nodes.any(|other| other.replicas().any(|r| r.node == config.primary.node));
        assert_eq!(shares, peers == 3, "{place:?} for {config:?}");
    }
    assert_eq!(groups, BTreeSet::from([2, 3]));
}

#[test]
fn what_is_on_its_way_to_be_committed_is_taken() {
    // Room for three chunks on each of three nodes, and a volume of three is on its way.
    let mut zone = Zone::of((1..=3).map(record));
    for node in 1..=3 {
        zone.seen.on_heartbeat(zone.now, NodeId(node), beat_of(node, (1 << 30) - 3 * 64 * MIB));
    }
    let action = creation(&zone, 3, 3);
    zone.seen.on_placing(7, placing(&action, &zone.state));
    let geometry = Geometry::new(64 * MIB, 64 * MIB).unwrap();
    let refused = place_volume(geometry, 3, space(&zone)).unwrap_err();
    assert_eq!(refused.found, 0);
    assert!(refused.candidates.iter().all(|node| node.why.contains("bytes free")), "{refused:?}");
    // It is not committed after all: the room is there again.
    zone.seen.on_entry_applied(7);
    assert!(place_volume(geometry, 3, space(&zone)).is_ok());
}

#[test]
fn learners_that_are_proposed_do_not_take_the_same_room_twice() {
    let mut zone = Zone::of((1..=5).map(record));
    let action = creation(&zone, 4, 3);
    zone.apply(action).answer.unwrap();
    for index in 0..4 {
        let config = zone.config(index);
        let (proposer, lost) = (config.primary, config.secondaries().next().unwrap());
        let evidence = crate::command::Evidence::Unreachable {};
        zone.change(index, ChangeKind::RemoveSecondary { proposer, replica: lost, evidence })
            .unwrap();
    }
    // Each node has room for one copy more.
    for node in 1..=5 {
        zone.seen.on_heartbeat(zone.now, NodeId(node), beat_of(node, (1 << 30) - 64 * MIB));
    }
    let mut places: Vec<Place> = Vec::new();
    for index in 0..4 {
        zone.propose(index, Change::SeekLearner);
        let plan = zone.plan();
        for change in &plan.changes {
            let ChangeKind::AddLearnerOn { place, .. } = change.kind else { panic!("{plan:?}") };
            places.push(place);
            zone.seen.on_proposed(zone.now, change.chunk, change.epoch);
        }
        let action = Action::Change { changes: plan.changes.clone() };
        zone.seen.on_placing(u64::from(index), placing(&action, &zone.state));
        zone.seen.forget_proposals(&plan.judged);
    }
    let distinct: BTreeSet<Place> = places.iter().copied().collect();
    assert!(!places.is_empty() && distinct.len() == places.len(), "{places:?}");
}

#[test]
fn who_is_away_shares_as_others_do_and_the_count_is_the_same_however_the_state_came_about() {
    let mut zone = Zone::new();
    let action = creation(&zone, 1, 3);
    zone.apply(action).answer.unwrap();
    let config = zone.config(0);
    let (proposer, lost) = (config.primary, config.secondaries().next().unwrap());
    let evidence = crate::command::Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer, replica: lost, evidence }).unwrap();
    assert!(config.in_sync.iter().all(|replica| zone.state.peers_of(replica.node) == 2));
    let again = ZoneState::from_snapshot(zone_id(), &zone.state.to_snapshot()).unwrap();
    assert_eq!(again, zone.state);
    let volume = volume_id(1);
    zone.apply(Action::DeleteVolume { token: None, volume, force: true }).answer.unwrap();
    assert!(zone.state.nodes().all(|node| zone.state.peers_of(node.node) == 0));
}

#[test]
fn a_copy_leaves_a_rack_that_has_another_once_one_elsewhere_has_room_and_only_then() {
    // Racks x and y only; then a node of a third comes.
    let mut zone = racks(4, &["x", "y"]);
    let action = creation(&zone, 1, 3);
    zone.apply(action).answer.unwrap();
    let crowded = |zone: &mut Zone| {
        let crowded = crate::moves::crowded_chunks(&zone.state);
        zone.seen.note_crowded(crowded.clone());
        crowded.len()
    };
    assert_eq!(crowded(&mut zone), 1);
    assert!(zone.plan().changes.is_empty(), "nobody of another rack is there");
    let before = zone.config(0);
    zone.apply(Action::RegisterNode { node: in_rack(5, "z") }).answer.unwrap();
    zone.seen.on_connected(zone.now, NodeId(5));
    zone.beating.insert(5);
    zone.run(900);
    let plan = zone.carry_out();
    let [ChunkChange { kind: ChangeKind::AddSpare { place }, .. }] = &plan.changes[..] else {
        panic!("{plan:?}")
    };
    assert_eq!(place.node, NodeId(5));
    let (proposer, replica) = (before.primary, zone.config(0).learners[0]);
    zone.change(0, ChangeKind::PromoteLearner { proposer, replica, durable: FILLED }).unwrap();
    // One of the two that share leaves, never the primary, nor the one that has just come.
    for replica in zone.config(0).in_sync {
        zone.report(0, replica, ReplicaState::Following);
    }
    zone.carry_out();
    let after = zone.config(0);
    assert_eq!(racks_of(&zone, &after).len(), 3, "{after:?}");
    assert_eq!(after.primary, before.primary);
    assert_eq!(crowded(&mut zone), 0);
}
