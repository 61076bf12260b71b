//! Who counts as lost, and what is planned while many are.

use super::*;
use crate::interruption::lost_nodes;
use ashlar_types::message::cluster::RemovalReason;

const SILENT: PathState = PathState::Silent { millis: 1_000 };

fn lost(zone: &Zone) -> Vec<u32> {
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    lost_nodes(zone.now, &zone.state, &zone.seen, &verdicts).iter().map(|node| node.0).collect()
}

#[test]
fn the_dead_and_those_that_half_of_their_peers_miss_are_lost_others_are_not() {
    let mut zone = Zone::with_volume();
    assert_eq!(lost(&zone), []);
    zone.stop(1);
    zone.run(3_000);
    assert_eq!(lost(&zone), [], "only the control plane has lost it");
    zone.probe(1, [ProbeResult::Refused; 2]);
    assert_eq!(lost(&zone), [1]);
    // 2 and 3 lose 4 and it loses them: two voices of three about 4, one about each of them.
    zone.down.extend([(2, 4, SILENT), (3, 4, SILENT), (4, 2, SILENT), (4, 3, SILENT)]);
    zone.run(600);
    assert_eq!(lost(&zone), [1, 4]);
    zone.seen = Observations::new(zone.now);
    assert_eq!(lost(&zone), [], "the leader has just begun to listen");
}

#[test]
fn a_node_that_holds_nothing_is_no_loss() {
    let mut zone = Zone::new();
    zone.stop(1);
    zone.probe(1, [ProbeResult::Refused; 2]);
    assert_eq!(lost(&zone), []);
}

#[test]
fn a_search_waits_for_the_end_of_a_large_interruption_unless_one_copy_is_left() {
    let mut zone = Zone::with_volume();
    zone.search = SearchBudget { only_urgent: true, per_second: 1 };
    let replica = zone.config(0).secondaries().next().unwrap();
    let reason = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    zone.carry_out();
    zone.propose(0, Change::SeekLearner);
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("large interruption"), "{plan:?}");
    let replica = zone.config(0).secondaries().next().unwrap();
    zone.stop(replica.node.0);
    zone.probe(replica.node.0, [ProbeResult::Refused; 2]);
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    zone.carry_out();
    zone.propose(0, Change::SeekLearner);
    zone.carry_out();
    assert_eq!(zone.config(0).learners.len(), 1);
}
