//! Balance: what moves from full nodes to empty ones, what stands against it, and that it ends.

use super::drain::{mark, round, spares};
use super::*;
use crate::balance::{self, BALANCE_MOVES_MAX, Levels, SPREAD_MAX, Share};
use crate::command::{Evidence, Place, Placement};
use crate::moves::MOVES_PER_NODE_MAX;
use crate::place::{Space, place_volume};
use crate::sharing::PEERS_PER_NODE_MAX;
use alloc::collections::BTreeMap;

const CHUNK: u64 = 8 * MIB;

fn in_rack(node: u32, rack: &str) -> NodeRecord {
    NodeRecord { rack: rack.into(), ..record(node) }
}

/// A volume of so many chunks of a size, three copies, placed as volumes are, or so.
fn fill(zone: &mut Zone, chunks: u64, chunk_bytes: u64, so: Option<&[u32]>) {
    let geometry = Geometry::new(chunks * chunk_bytes, chunk_bytes).unwrap();
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let space = Space::of(&zone.state, &zone.seen, &verdicts);
    let place = |node: &u32| Place { node: NodeId(*node), store: StoreId(u128::from(*node)) };
    let placement = match so {
        None => place_volume(geometry, 3, space).unwrap(),
        Some(nodes) => {
            let places: Vec<Place> = nodes.iter().map(place).collect();
            Placement((0..chunks).map(|_| places.clone()).collect())
        }
    };
    let number = zone.state.volumes().count() as u128 + 1;
    let action = Action::CreateVolume {
        token: None,
        volume: volume_id(number),
        name: format!("v{number}"),
        geometry,
        copies_wanted: 3,
        copies_min: 2,
        placement,
        error_after: ErrorAfter::default(),
    };
    zone.apply(action).answer.unwrap();
}

fn join(zone: &mut Zone, node: NodeRecord) {
    let number = node.node;
    zone.apply(Action::RegisterNode { node }).answer.unwrap();
    zone.seen.on_connected(zone.now, number);
    zone.beating.insert(number.0);
    zone.run(900);
}

/// Four nodes filled to 35 %, and a fifth that has just been added.
fn with_fifth() -> Zone {
    let mut zone = Zone::new();
    fill(&mut zone, 60, CHUNK, None);
    join(&mut zone, record(5));
    zone
}

fn levels(zone: &Zone) -> Vec<u64> {
    let levels = Levels::of(&zone.state, &zone.seen);
    zone.state.nodes().map(|node| levels.level(node.node).ppm()).collect()
}

fn spread(zone: &Zone) -> u64 {
    let levels = levels(zone);
    levels.iter().max().unwrap() - levels.iter().min().unwrap()
}

fn shares(zone: &Zone) -> BTreeMap<NodeId, Share> {
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    balance::shares(zone.now, &zone.state, &zone.seen, &verdicts)
}

/// In how many racks the copies in sync of each chunk are, as far as three copies can be.
fn racks_of(zone: &Zone) -> Vec<usize> {
    let rack = |replica: &ReplicaId| match zone.state.node(replica.node).unwrap().rack.as_str() {
        "" => format!("{}", replica.node),
        label => label.into(),
    };
    let racks = |config: &ChunkConfig| {
        let racks: BTreeSet<String> = config.in_sync.iter().map(rack).collect();
        racks.len().min(3)
    };
    zone.state.configs().map(racks).collect()
}

/// How many moves are under way, and the most at one node.
fn under_way(zone: &Zone) -> (usize, usize) {
    let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
    for config in zone.state.configs_in_motion().filter(|config| !config.learners.is_empty()) {
        *busy.entry(config.primary.node).or_default() += 1;
        *busy.entry(config.learners[0].node).or_default() += 1;
    }
    (zone.state.configs_in_motion().count(), busy.values().copied().max().unwrap_or(0))
}

/// Lets everything move until nothing does for long; gives how many moves began. On the way no chunk lacks a
/// copy, none loses a rack, and the pace is kept.
fn settle(zone: &mut Zone) -> usize {
    let (mut begun, mut quiet) = (0, 0);
    for _ in 0..600 {
        let before = racks_of(zone);
        let plan = round(zone);
        begun += spares(&plan);
        assert!(zone.state.configs().all(ChunkConfig::is_whole));
        assert!(zone.state.configs().all(|config| config.in_sync.len() <= 4));
        assert!(before.iter().zip(racks_of(zone)).all(|(before, after)| after >= *before));
        let (all, at_one) = under_way(zone);
        assert!(all <= BALANCE_MOVES_MAX && at_one <= MOVES_PER_NODE_MAX, "{all} {at_one}");
        let moves = zone.state.configs_in_motion().count() + zone.state.erasures().count();
        quiet = if spares(&plan) + moves == 0 { quiet + 1 } else { 0 };
        if quiet > 40 {
            return begun;
        }
    }
    panic!("it does not end: {:?}", levels(zone));
}

#[test]
fn a_node_that_is_added_is_filled_until_all_differ_by_a_tenth_at_most() {
    let mut zone = with_fifth();
    assert!(spread(&zone) > 3 * SPREAD_MAX);
    let due = shares(&zone);
    let coming = due[&NodeId(5)].due_in;
    assert_eq!(due.values().map(|share| share.due_out).sum::<u32>(), coming);
    let begun = settle(&mut zone);
    assert!(spread(&zone) <= SPREAD_MAX, "{:?}", levels(&zone));
    // 27 chunks bring it within a tenth; hardly more are moved.
    assert!((27..=30).contains(&begun) && coming == 27, "{begun} {coming}");
    assert!(shares(&zone).is_empty());
    for config in zone.state.configs() {
        assert_eq!((config.in_sync.len(), config.learners.len(), config.stale.len()), (3, 0, 0));
    }
}

#[test]
fn balance_ends_whatever_the_nodes_are_like_keeps_racks_apart_and_leaves_the_bound() {
    for seed in 0..24_u32 {
        let racks = ["", "x", "y", "z"];
        let rack = |node: u32| match seed % 4 {
            0 => "",
            1 => racks[1 + (node % 3) as usize],
            2 => racks[1 + (node % 2) as usize],
            _ => racks[((node * 7 + seed) % 4) as usize],
        };
        let nodes = 4 + seed % 3;
        // Every fifth has two stores, and so twice the capacity.
        let known = |node: u32| {
            let stores = (0..1 + u128::from(node.is_multiple_of(5)))
                .map(|n| StoreId(u128::from(node) + 100 * n));
            NodeRecord { stores: stores.collect(), ..in_rack(node, rack(node)) }
        };
        let mut zone = Zone::of((1..=nodes).map(known));
        fill(&mut zone, u64::from(50 + seed), CHUNK, None);
        for node in nodes + 1..=nodes + 1 + seed % 2 {
            join(&mut zone, known(node));
        }
        settle(&mut zone);
        let most = zone.state.nodes().map(|node| zone.state.peers_of(node.node)).max().unwrap();
        assert!(most <= PEERS_PER_NODE_MAX);
        if seed % 4 == 0 {
            assert!(spread(&zone) <= SPREAD_MAX, "{seed}: {:?}", levels(&zone));
        }
    }
}

#[test]
fn a_difference_that_one_chunk_makes_is_left_alone() {
    let mut zone = Zone::new();
    fill(&mut zone, 4, 256 * MIB, None);
    join(&mut zone, record(5));
    settle(&mut zone);
    let mut left = levels(&zone);
    left.sort_unstable();
    assert_eq!(left, [500_000, 500_000, 500_000, 750_000, 750_000]);
    // Nor is anything moved for less than a tenth.
    let mut zone = Zone::new();
    fill(&mut zone, 12, CHUNK, Some(&[1, 2, 3]));
    assert!(spread(&zone) > SPREAD_MAX * 9 / 10 && spread(&zone) <= SPREAD_MAX);
    assert_eq!((settle(&mut zone), shares(&zone).len()), (0, 0));
}

#[test]
fn a_node_that_is_primary_of_all_that_it_holds_gives_some_away() {
    let mut zone = Zone::of((1..=3).map(record));
    fill(&mut zone, 80, CHUNK, Some(&[1, 2, 3]));
    assert_eq!(zone.state.primaries_on(NodeId(1)), 80);
    join(&mut zone, record(4));
    settle(&mut zone);
    assert!(spread(&zone) <= SPREAD_MAX, "{:?}", levels(&zone));
    assert!(zone.state.primaries_on(NodeId(1)) > 40, "secondaries move first");
}

#[test]
fn nothing_moves_for_balance_while_something_is_more_urgent() {
    assert_ne!(spares(&with_fifth().plan()), 0);
    // A copy is missing somewhere.
    let mut zone = with_fifth();
    let config = zone.config(0);
    let (proposer, replica) = (config.primary, config.secondaries().next().unwrap());
    let evidence = Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer, replica, evidence }).unwrap();
    assert_eq!(spares(&zone.plan()), 0);
    // A drained node holds something: only that moves.
    let mut zone = with_fifth();
    mark(&mut zone, 2, false).unwrap();
    let plan = zone.plan();
    let off = |change: &ChunkChange| {
        zone.state.config(change.chunk).unwrap().replicas().any(|r| r.node == NodeId(2))
    };
    assert!(plan.moves > 0 && plan.changes.iter().all(off), "{plan:?}");
    // Also while none of that can begin to move.
    let held: Vec<_> =
        zone.state.configs_of_node(NodeId(2)).map(|config| (config.chunk, config.epoch)).collect();
    assert!(held.len() < zone.state.configs().count());
    for (chunk, epoch) in held {
        zone.seen.on_proposed(zone.now, chunk, epoch);
    }
    assert_eq!(spares(&zone.plan()), 0);
    // Searches are bounded after a large interruption.
    let mut zone = with_fifth();
    zone.search = SearchBudget { only_urgent: false, per_second: 64 };
    assert_eq!(spares(&zone.plan()), 0);
    // A move is on its way through Raft.
    let mut zone = with_fifth();
    let action = Action::Change { changes: zone.plan().changes };
    zone.seen.on_placing(7, crate::place::placing(&action, &zone.state));
    assert_eq!(spares(&zone.plan()), 0);
    zone.seen.on_entry_applied(7);
    assert_ne!(spares(&zone.plan()), 0);
}

#[test]
fn only_nodes_that_are_well_give_or_take() {
    // Who would take is silent, slow, or drained.
    let mut zone = with_fifth();
    zone.stop(5);
    zone.run(3_000);
    assert_eq!(spares(&zone.plan()), 0);
    let mut zone = with_fifth();
    zone.seen.note_slow(zone.now, &[NodeId(5)]);
    assert_eq!(spares(&zone.plan()), 0);
    let mut zone = with_fifth();
    mark(&mut zone, 5, false).unwrap();
    assert_eq!(spares(&zone.plan()), 0);
    // A chunk with a copy on a node that is slow, or silent, stays as it is; others move.
    let mut slow = with_fifth();
    slow.seen.note_slow(slow.now, &[NodeId(1)]);
    let mut silent = with_fifth();
    silent.stop(1);
    silent.run(900);
    for zone in [slow, silent] {
        let plan = zone.plan();
        assert!(plan.moves > 0);
        let moved = plan.changes.iter().filter(|c| matches!(c.kind, ChangeKind::AddSpare { .. }));
        for change in moved {
            let config = zone.state.config(change.chunk).unwrap();
            assert!(config.replicas().all(|replica| replica.node != NodeId(1)), "{config:?}");
        }
    }
}

#[test]
fn a_move_that_is_under_way_counts_as_done() {
    let mut zone = Zone::new();
    for nodes in [[2, 1, 3], [3, 1, 4], [4, 1, 2], [2, 1, 3], [3, 1, 4]] {
        fill(&mut zone, 1, 32 * MIB, Some(&nodes));
    }
    join(&mut zone, record(5));
    assert_eq!(spares(&zone.carry_out()), 1);
    // Nothing is copied yet, and both nodes could take part in one more.
    for _ in 0..20 {
        zone.run(900);
        assert_eq!(spares(&zone.carry_out()), 0, "{:?}", levels(&zone));
    }
}

#[test]
fn many_nodes_that_are_added_at_once_are_filled_at_the_pace_of_the_zone() {
    let mut zone = Zone::of((1..=6).map(record));
    fill(&mut zone, 100, CHUNK, None);
    for node in 7..=12 {
        join(&mut zone, record(node));
    }
    assert_eq!(spares(&zone.plan()), BALANCE_MOVES_MAX);
    settle(&mut zone);
    assert!(spread(&zone) <= SPREAD_MAX, "{:?}", levels(&zone));
}

#[test]
fn another_leader_goes_on_with_what_is_under_way() {
    let mut zone = with_fifth();
    for turn in 0..30 {
        round(&mut zone);
        if turn % 5 == 0 {
            zone.seen = Observations::new(zone.now);
            for node in 1..=5 {
                zone.seen.on_connected(zone.now, NodeId(node));
            }
            zone.run(900);
        }
    }
    settle(&mut zone);
    assert!(spread(&zone) <= SPREAD_MAX, "{:?}", levels(&zone));
}

#[test]
fn looks_are_paced_and_rest_longer_after_one_that_finds_nothing() {
    let mut zone = with_fifth();
    zone.carry_out();
    assert_eq!(zone.plan().balance, None, "not twice in one moment");
    // Two racks; everything of the fullest stands beside what the emptiest could take.
    let mut zone = Zone::of([in_rack(1, "x"), in_rack(2, "y"), in_rack(3, "z")]);
    fill(&mut zone, 60, CHUNK, None);
    join(&mut zone, in_rack(4, "x"));
    mark(&mut zone, 4, true).unwrap();
    assert_eq!(zone.plan().balance, Some(balance::BALANCE_EVERY));
    let mut zone = Zone::of((1..=3).map(record));
    fill(&mut zone, 60, CHUNK, None);
    let sick = zone.beating.clone();
    join(&mut zone, record(4));
    for node in sick {
        zone.seen.note_slow(zone.now, &[NodeId(node)]);
    }
    assert_eq!(zone.plan().balance, Some(balance::BALANCE_EVERY), "one node alone is balanced");
}
