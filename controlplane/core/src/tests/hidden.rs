//! Primaries that clients cannot reach, and primaries that hear nobody.

use super::*;
use crate::command::Evidence;
use crate::verdict::Verdict;
use alloc::vec;

const SILENT: PathState = PathState::Silent { millis: 1_000 };

fn is_hidden(zone: &Zone, node: u32) -> bool {
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    matches!(verdicts[&NodeId(node)], Verdict::Hidden { .. })
}

/// `node` and each of `peers` do not reach each other by the primary network.
fn part(zone: &mut Zone, node: u32, peers: &[u32]) {
    for peer in peers {
        zone.off.extend([(node, *peer, SILENT), (*peer, node, SILENT)]);
    }
}

#[test]
fn a_node_without_its_primary_network_loses_its_primaries_and_can_be_filled_again() {
    for heard_by_control in [true, false] {
        let mut zone = Zone::with_volume();
        let index = (0..4).find(|index| zone.config(*index).primary.node == NodeId(1)).unwrap();
        part(&mut zone, 1, &[2, 3, 4]);
        if !heard_by_control {
            zone.stop(1);
        }
        zone.run(if heard_by_control { 300 } else { 1_200 });
        assert_eq!(is_hidden(&zone, 1), heard_by_control, "silence counts after 1.5 s");
        zone.run(600);
        assert!(is_hidden(&zone, 1));
        let old = zone.config(index);
        // While its stream is open it is asked to stay in sync, and not waited for.
        assert_eq!(zone.elections().is_empty(), heard_by_control);
        assert_eq!(zone.ask() > 0, heard_by_control);
        zone.run(300);
        let plan = zone.carry_out();
        let evidence = Evidence::Unreachable {};
        assert!(plan.changes.iter().any(|change| {
            change.chunk == chunk(index)
                && matches!(change.kind, ChangeKind::Elect { evidence: e, .. } if e == evidence)
        }));
        assert!(zone.config(index).is_stale(old.primary));
        // Over the replication network it follows, and is no new home meanwhile.
        zone.propose(index, Change::ReadoptStale { replica: old.primary });
        zone.carry_out();
        assert_eq!(zone.config(index).learners.len(), 1);
    }
}

#[test]
fn the_view_of_one_voter_and_a_tie_hide_nobody() {
    let mut zone = Zone::with_volume();
    part(&mut zone, 1, &[2]);
    zone.run(600);
    assert!(!is_hidden(&zone, 1) && !is_hidden(&zone, 2));
    // The control plane has lost it too; one peer still accuses it alone.
    zone.stop(1);
    zone.run(3_000);
    assert!(!is_hidden(&zone, 1));
    // Two voices against one, but one of them is the control plane's.
    zone.stop(3);
    zone.run(3_000);
    assert!(!is_hidden(&zone, 1));
}

#[test]
fn halves_that_lose_each_other_hide_nobody() {
    let mut zone = Zone::with_volume();
    part(&mut zone, 1, &[3, 4]);
    part(&mut zone, 2, &[3, 4]);
    zone.run(600);
    // Two voices against each, and for each its other half and the control plane.
    assert!((1..=4).all(|node| !is_hidden(&zone, node)));
}

#[test]
fn who_has_lost_the_primary_network_itself_accuses_nobody() {
    let mut zone = Zone::with_volume();
    // All have lost it, as in April 2011: nobody can tell who could serve.
    for node in 1..=4 {
        let others: Vec<u32> = (node + 1..=4).collect();
        part(&mut zone, node, &others);
    }
    zone.run(600);
    assert!((1..=4).all(|node| !is_hidden(&zone, node)));
    assert_eq!(zone.elections(), vec![]);
}

#[test]
fn what_was_hidden_a_moment_ago_is_elected_only_if_nobody_else_can_be() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let nodes: Vec<NodeId> = config.secondaries().map(|replica| replica.node).collect();
    zone.stop(config.primary.node.0);
    zone.probe(config.primary.node.0, [ProbeResult::Refused; 2]);
    let elected = |zone: &Zone| {
        zone.elections().iter().filter(|change| change.chunk == chunk(0)).find_map(|change| {
            match change.kind {
                ChangeKind::Elect { primary, .. } => Some(primary.node),
                _ => None,
            }
        })
    };
    let usual = elected(&zone).unwrap();
    let other = nodes.iter().copied().find(|node| *node != usual).unwrap();
    zone.seen.note_hidden(zone.now, [usual].into_iter());
    assert_eq!(elected(&zone), Some(other));
    zone.seen.note_hidden(zone.now, nodes.into_iter());
    assert_eq!(elected(&zone), Some(usual));
    zone.run(5_100);
    assert_eq!(elected(&zone), Some(usual));
}

#[test]
fn a_primary_that_hears_nobody_is_replaced_by_the_votes_of_its_secondaries_alone() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let primary = config.primary.node.0;
    let [first, second] = config.secondaries().map(|r| r.node.0).collect::<Vec<_>>()[..] else {
        panic!("{config:?}")
    };
    let elected = |zone: &Zone| zone.elections().iter().any(|change| change.chunk == chunk(0));
    // Everybody but the first secondary is gone: one voice against it, no majority.
    for node in (1..=4).filter(|node| ![primary, first].contains(node)) {
        zone.stop(node);
        zone.down.push((primary, node, SILENT));
    }
    zone.down.push((primary, first, SILENT));
    zone.run(600);
    assert!(!elected(&zone), "its secondary hears it");
    zone.down.push((first, primary, SILENT));
    zone.run(600);
    assert!(elected(&zone));
    // It hears somebody after all.
    zone.down.retain(|(by, of, _)| (*by, *of) != (primary, second));
    zone.run(600);
    assert!(!elected(&zone));
}

#[test]
fn a_living_primary_whose_copy_is_needed_is_replaced_only_if_it_agrees_to_follow() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (proposer, replica) = (config.primary, config.secondaries().next().unwrap());
    let evidence = Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer, replica, evidence }).unwrap();
    let primary = proposer.node.0;
    let others: Vec<u32> = (1..=4).filter(|node| *node != primary).collect();
    part(&mut zone, primary, &others);
    zone.run(600);
    let is_due = |zone: &Zone| zone.elections().iter().any(|change| change.chunk == chunk(0));
    let asks =
        |zone: &Zone| zone.elections_and_asks().asks.iter().any(|(_, asked, _)| *asked == chunk(0));
    assert!(asks(&zone));
    zone.ask();
    assert!(!asks(&zone), "not twice at once");
    zone.run(5_000);
    assert!(asks(&zone) && !is_due(&zone), "without its word the copy would be lost");
    // A word about another epoch is none.
    let old = Proposal { chunk: chunk(0), epoch: config.epoch, proposer, change: Change::Follow };
    zone.seen.on_proposals(&zone.state, proposer.node, [old].into());
    assert!(!is_due(&zone));
    zone.propose(0, Change::Follow);
    assert!(is_due(&zone));
    let before = zone.config(0);
    zone.carry_out();
    let after = zone.config(0);
    assert!(after.primary != before.primary && after.is_in_sync(before.primary));
    assert_eq!((after.in_sync, after.stale), (before.in_sync, before.stale));
}

#[test]
fn only_the_primary_agrees_for_itself() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let [primary, by] = config.secondaries().collect::<Vec<_>>()[..] else { panic!() };
    let evidence = Evidence::Agreed { by };
    let refused = zone.change(0, ChangeKind::Elect { primary, evidence }).unwrap_err();
    assert!(refused.contains("not the primary"), "{refused}");
    let replica = by;
    let proposer = config.primary;
    zone.change(
        0,
        ChangeKind::RemoveSecondary { proposer, replica, evidence: Evidence::Unreachable {} },
    )
    .unwrap();
    // Agreement is no word about who leaves.
    let evidence = Evidence::Agreed { by: proposer };
    let kind = ChangeKind::RemoveSecondary { proposer, replica: primary, evidence };
    assert!(zone.change(0, kind).unwrap_err().contains("would remain"));
}
