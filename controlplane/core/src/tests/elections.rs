//! Elections: which come first, and what they wait for.

use super::*;
use crate::command::Evidence;
use alloc::vec;

/// Chunks to elect for, as (volume, index), in order.
fn order(zone: &Zone) -> Vec<(u128, u32)> {
    let name = |change: &ChunkChange| (change.chunk.volume.uuid, change.chunk.index.0);
    zone.elections().iter().map(name).collect()
}

/// Node 1 is gone for good.
fn without_node_1(zone: &mut Zone) {
    zone.stop(1);
    zone.probe(1, [ProbeResult::Refused; 2]);
}

#[test]
fn attached_volumes_come_first_then_what_has_waited_for_longest() {
    let mut zone = Zone::new();
    for name in ["a", "b", "c"] {
        zone.create(None, name).unwrap();
    }
    let action = Action::Attach {
        token: None,
        volume: volume_id(3),
        client_name: "client".into(),
        force: false,
    };
    zone.apply(action).answer.unwrap();
    without_node_1(&mut zone);
    let usual = order(&zone);
    assert_eq!(usual.iter().map(|(volume, _)| *volume).collect::<Vec<_>>(), [3, 1, 2]);
    // A chunk of the second volume was found stuck before the node was heard of last.
    let stuck = ChunkId { volume: volume_id(2), index: ChunkIndex(usual[2].1) };
    zone.seen.note_stuck(Time::from_millis(10_000), &[stuck].into());
    assert_eq!(order(&zone), [usual[0], usual[2], usual[1]]);
}

#[test]
fn an_election_waits_for_no_other_change_of_its_chunk() {
    let mut zone = Zone::with_volume();
    let lost = zone.config(0).primary;
    zone.stop(lost.node.0);
    zone.probe(lost.node.0, [ProbeResult::Refused; 2]);
    let epoch = zone.config(0).epoch;
    zone.seen.on_proposed(zone.now, chunk(0), epoch);
    assert_eq!(order(&zone), [(1, 0)], "another change is on its way");
    zone.seen.on_electing(zone.now, chunk(0), epoch);
    assert_eq!(order(&zone), vec![], "it is on its way itself");
    assert!(zone.seen.is_proposed(chunk(0), epoch), "other changes wait for it");
    // The other change was committed first: the election is made again.
    let replica = zone.config(0).secondaries().next().unwrap();
    let evidence = Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer: lost, replica, evidence }).unwrap();
    assert_eq!(order(&zone), [(1, 0)]);
}
