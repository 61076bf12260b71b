//! Nodes with several stores: where replicas go, and what a store that fails takes with it.

use super::*;
use crate::change::ChangeRefusal;
use crate::command::{Place, Placement};
use alloc::vec;
use ashlar_types::codec::{self, Wire};

/// The stores of a node: its number, and that and a hundred.
fn two_stores(node: u32) -> NodeRecord {
    let stores = vec![StoreId(node.into()), StoreId(u128::from(node) + 100)];
    NodeRecord { stores, ..record(node) }
}

/// Four nodes with two stores of 1 GiB each.
fn zone() -> Zone {
    let mut zone = Zone::new();
    for node in 1..=4 {
        zone.apply(Action::RegisterNode { node: two_stores(node) }).answer.unwrap();
    }
    zone.run(900);
    zone
}

fn lose(zone: &mut Zone, store: ReplicaId) {
    let known = zone.state.node(store.node).unwrap().clone();
    let stores = known.stores.iter().copied().filter(|id| *id != store.store).collect();
    zone.apply(Action::RegisterNode { node: NodeRecord { stores, ..known } }).answer.unwrap();
    zone.run(900);
}

#[test]
fn chunks_spread_over_all_stores_and_no_node_has_two_replicas_of_one() {
    let mut zone = zone();
    // 12 chunks of three copies, 64 MiB each: the eight stores get four or five each.
    for name in ["a", "b", "c"] {
        zone.create(None, name).unwrap();
    }
    let configs: Vec<ChunkConfig> = zone.state.configs().cloned().collect();
    assert_eq!(configs.len(), 12);
    for config in &configs {
        let nodes: BTreeSet<NodeId> = config.in_sync.iter().map(|replica| replica.node).collect();
        assert_eq!(nodes.len(), 3);
    }
    for node in 1..=4 {
        for store in two_stores(node).stores {
            let held = zone.state.replicas_on_store(NodeId(node), store);
            assert!((4..=5).contains(&held), "{store} of node {node} holds {held}");
            let bytes = zone.state.allocated_on(NodeId(node), store);
            assert_eq!(bytes, held as u64 * 64 * MIB);
        }
    }
}

#[test]
fn a_store_without_room_takes_nothing_while_the_other_one_does() {
    let mut zone = zone();
    for node in 1..=4 {
        let mut beat = beat_of(node, 1 << 30);
        beat.stores.push(store_state(StoreId(u128::from(node) + 100), 0));
        zone.seen.on_heartbeat(zone.now, NodeId(node), beat);
    }
    zone.create(None, "v").unwrap();
    let on_second = |replica: &ReplicaId| replica.store.0 > 100;
    assert!(zone.state.configs().all(|config| config.in_sync.iter().all(on_second)));
    // A store that no heartbeat has told of has no room either.
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let mut unheard = Zone::new();
    unheard.apply(Action::RegisterNode { node: two_stores(1) }).answer.unwrap();
    let mut space = crate::place::Space::of(&unheard.state, &unheard.seen, &verdicts);
    let not: Vec<NodeId> = (2..=4).map(NodeId).collect();
    let wanted = crate::place::Wanted { bytes: 1, not, ..Default::default() };
    assert_eq!(space.take_one(&wanted), Some(Place { node: NodeId(1), store: StoreId(1) }));
}

#[test]
fn a_store_that_fails_loses_its_replicas_and_its_node_holds_them_on_the_other_one() {
    let mut zone = zone();
    zone.create(None, "v").unwrap();
    let config = zone.config(0);
    let lost = config.primary;
    let others: Vec<ReplicaId> = zone
        .state
        .configs()
        .flat_map(|config| config.in_sync.clone())
        .filter(|replica| replica.node == lost.node && replica.store != lost.store)
        .collect();
    assert!(!others.is_empty());
    lose(&mut zone, lost);
    assert!(zone.state.is_store_gone(lost));
    assert!(others.iter().all(|replica| !zone.state.is_store_gone(*replica)));
    // Its primaries are elected anew although the process is up; nothing of the other store moves.
    zone.carry_out();
    assert_ne!(zone.config(0).primary, lost);
    let still = |replica: &ReplicaId| zone.state.configs().any(|c| c.is_in_sync(*replica));
    assert!(others.iter().all(still));
    // What it held may come back; the node may hold the chunk in its place, on what it has left.
    zone.carry_out();
    assert!(zone.config(0).is_stale(lost));
    let (proposer, node) = (zone.config(0).primary, lost.node);
    let place = Place { node, store: lost.store };
    let instead = |place| ChangeKind::AddLearnerInstead { proposer, place, away: lost };
    let refused = zone.change(0, instead(place));
    assert_eq!(refused, Err(alloc::string::ToString::to_string(&ChangeRefusal::UnknownStore)));
    let left = zone.state.node(node).unwrap().stores[0];
    let place = Place { node, store: left };
    zone.change(0, instead(place)).unwrap();
    assert_eq!(zone.config(0).learners[0].store, left);
    // Nor does it hold another beside it, on whichever store.
    let again = zone.change(0, ChangeKind::AddLearnerOn { proposer, place });
    let holds = alloc::string::ToString::to_string(&ChangeRefusal::HoldsReplica);
    assert_eq!(again, Err(holds));
}

#[test]
fn a_number_is_one_process_and_a_store_one_nodes() {
    let zone = zone();
    let other = NodeRecord { stores: vec![StoreId(77), StoreId(103)], ..record(9) };
    assert!(matches!(
        zone.state.check_registration(&other),
        Err(Refusal::StoreTaken { node: NodeId(3) })
    ));
    let back = NodeRecord { stores: vec![StoreId(101)], start: StartNumber(0), ..record(1) };
    assert!(matches!(zone.state.check_registration(&back), Err(Refusal::StartBack { .. })));
}

#[test]
fn what_was_committed_when_nodes_had_one_store_reads_as_before() {
    // A node as version 1 of its value had it.
    let node = record(7);
    let mut old = Vec::new();
    node.node.put(&mut old);
    node.stores[0].put(&mut old);
    node.start.put(&mut old);
    node.primary_address.put(&mut old);
    node.replication_address.put(&mut old);
    assert_eq!(codec::decode::<NodeRecord>(&old), Ok(node));
    // A placement as command version 3 had it: nodes alone, each with its only store.
    let nodes: Vec<Vec<NodeId>> = vec![vec![NodeId(1), NodeId(2)], vec![NodeId(3)]];
    let placement: Placement = codec::decode(&codec::encode(&nodes)).unwrap();
    let only = |node| Place { node: NodeId(node), store: StoreId(0) };
    assert_eq!(placement, Placement(vec![vec![only(1), only(2)], vec![only(3)]]));
    let mut zone = Zone::new();
    let mut volume = zone.creation("v");
    if let Action::CreateVolume { placement, .. } = &mut volume {
        placement.0.iter_mut().flatten().for_each(|place| place.store = StoreId(0));
    }
    zone.apply(volume).answer.unwrap();
    assert!(zone.config(0).in_sync.iter().all(|r| r.store == StoreId(r.node.0.into())));
}

#[test]
fn a_chunk_whose_stores_are_all_gone_is_stuck_and_says_so_though_their_nodes_are_up() {
    let mut zone = zone();
    zone.create(None, "v").unwrap();
    let config = zone.config(0);
    let in_sync = config.in_sync.clone();
    in_sync.iter().for_each(|replica| lose(&mut zone, *replica));
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let health = crate::describe::health(&zone.config(0), &zone.state, &zone.seen, &verdicts);
    let crate::describe::Health::Stuck(stuck) = health else { panic!("{health:?}") };
    assert!(stuck.cause.contains("has lost all of the chunk"), "{}", stuck.cause);
    assert_eq!(stuck.blocked_on.len(), in_sync.len());
    assert!(stuck.next_action.contains("operator"), "{}", stuck.next_action);
}
