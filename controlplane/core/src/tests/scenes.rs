//! Failures as they happen, and what the planner makes of them.

use super::*;
use crate::command::Evidence;
use crate::describe;
use crate::verdict::Verdict;
use ashlar_types::message::cluster::RemovalReason;

const REFUSED: [ProbeResult; 2] = [ProbeResult::Refused, ProbeResult::Refused];

fn elected(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| matches!(c.kind, ChangeKind::Elect { .. })).count()
}

fn primaries_of(zone: &Zone, node: u32) -> Vec<u32> {
    zone.state
        .configs()
        .filter(|config| config.primary.node == NodeId(node))
        .map(|config| config.chunk.index.0)
        .collect()
}

#[test]
fn primaries_and_copies_spread_over_the_nodes() {
    let zone = Zone::with_volume();
    for node in 1..=4 {
        assert_eq!(primaries_of(&zone, node).len(), 1);
        assert_eq!(zone.state.replicas_on(NodeId(node)), 3);
        assert_eq!(zone.state.allocated_on(NodeId(node), StoreId(node.into())), 3 * 64 * MIB);
    }
}

#[test]
fn refusing_ports_on_both_networks_elect_at_once_one_does_not() {
    let mut zone = Zone::with_volume();
    let lost = primaries_of(&zone, 1);
    zone.stop(1);
    zone.probe(1, [ProbeResult::Refused, ProbeResult::NoAnswer]);
    assert_eq!(elected(&zone.plan()), 0);
    zone.probe(1, REFUSED);
    let plan = zone.carry_out();
    assert_eq!(elected(&plan), lost.len());
    assert!(primaries_of(&zone, 1).is_empty());
    for index in lost {
        assert!(zone.config(index).is_stale(ReplicaId { node: NodeId(1), ..replica_of(1) }));
    }
    assert!(zone.plan().changes.is_empty(), "nothing is elected twice");
}

fn replica_of(node: u32) -> ReplicaId {
    ReplicaId {
        node: NodeId(node),
        store: StoreId(u128::from(node)),
        incarnation: ashlar_types::Incarnation(1),
    }
}

#[test]
fn refusals_from_before_the_node_came_back_are_no_evidence() {
    let mut zone = Zone::with_volume();
    zone.stop(1);
    zone.probe(1, REFUSED);
    zone.run(100);
    zone.seen.on_connected(zone.now, NodeId(1));
    zone.stop(1);
    assert_eq!(elected(&zone.plan()), 0);
}

#[test]
fn two_peers_that_find_the_ports_closed_are_enough_one_is_not() {
    let mut zone = Zone::with_volume();
    zone.stop(1);
    zone.down.push((2, 1, PathState::Refused));
    zone.beat();
    assert_eq!(elected(&zone.plan()), 0);
    zone.down.push((3, 1, PathState::Refused));
    zone.beat();
    assert_eq!(elected(&zone.plan()), 1);
}

#[test]
fn silence_elects_after_one_and_a_half_seconds_and_not_before() {
    let mut zone = Zone::with_volume();
    let unknown = PathState::Unknown;
    zone.down.extend([(2, 1, unknown), (3, 1, unknown), (4, 1, unknown)]);
    zone.beating.remove(&1);
    zone.run(1_100);
    assert_eq!(elected(&zone.plan()), 0);
    zone.run(500);
    assert_eq!(elected(&zone.plan()), 1);
}

#[test]
fn a_node_that_only_the_control_plane_cannot_reach_stays_primary() {
    let mut zone = Zone::with_volume();
    zone.stop(1);
    zone.run(5_000);
    assert_eq!(elected(&zone.plan()), 0);
    // Two voices of three: the peers still outweigh one peer that lost it too.
    zone.down.push((2, 1, PathState::Silent { millis: 3_000 }));
    zone.run(300);
    assert_eq!(elected(&zone.plan()), 0);
    zone.down.push((3, 1, PathState::Silent { millis: 3_000 }));
    zone.run(300);
    assert_eq!(elected(&zone.plan()), 1);
}

#[test]
fn without_a_living_in_sync_member_nobody_is_elected() {
    let mut zone = Zone::with_volume();
    let holders: Vec<u32> = zone.config(0).in_sync.iter().map(|r| r.node.0).collect();
    for node in holders {
        zone.stop(node);
        zone.probe(node, REFUSED);
    }
    assert!(zone.plan().changes.iter().all(|change| change.chunk != chunk(0)));
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let health = describe::health(&zone.config(0), &zone.state, &zone.seen, &verdicts);
    let describe::Health::Stuck(stuck) = health else { panic!("{health:?}") };
    assert_eq!(stuck.blocked_on.len(), 3);
}

#[test]
fn a_chunk_whose_stores_are_nearly_full_is_stuck_and_says_which() {
    let mut zone = Zone::with_volume();
    let second = zone.config(0).in_sync[1].node;
    let beat = |used_bytes| beat_of(second.0, used_bytes);
    let health = |zone: &Zone| {
        let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
        describe::health(&zone.config(0), &zone.state, &zone.seen, &verdicts)
    };
    zone.seen.on_heartbeat(zone.now, second, beat((1 << 30) - (1 << 24)));
    let describe::Health::Stuck(stuck) = health(&zone) else { panic!("{:?}", health(&zone)) };
    assert!(stuck.cause.starts_with("no space"), "{}", stuck.cause);
    assert_eq!(stuck.blocked_on, [second]);
    zone.seen.on_heartbeat(zone.now, second, beat(1 << 29));
    assert_eq!(health(&zone), describe::Health::Whole);
}

#[test]
fn a_new_leader_listens_for_two_heartbeats_before_it_judges() {
    let mut zone = Zone::with_volume();
    let old = zone.now;
    zone.seen = Observations::new(zone.now);
    zone.beating.remove(&1);
    for node in 2..=4 {
        zone.seen.on_connected(old, NodeId(node));
    }
    zone.beat();
    zone.now = zone.now + core::time::Duration::from_millis(1);
    zone.probe(1, REFUSED);
    zone.run(500);
    assert_eq!(elected(&zone.plan()), 0);
    zone.run(200);
    assert_eq!(elected(&zone.plan()), 1);
}

#[test]
fn peers_that_have_just_come_to_a_new_leader_are_heard_before_the_others_are_dead() {
    let mut zone = Zone::with_volume();
    // All nodes still hold on to the former leader, which stands still.
    zone.seen = Observations::new(zone.now);
    zone.beating.clear();
    zone.run(2_500);
    zone.seen.on_connected(zone.now, NodeId(2));
    assert_eq!(elected(&zone.plan()), 0, "the first to come has not said whom it sees");
    zone.beating.insert(2);
    zone.beat();
    assert_eq!(elected(&zone.plan()), 0, "it sees them all");
    zone.down.extend([1, 3, 4].map(|node| (2, node, PathState::Silent { millis: 2_000 })));
    zone.beat();
    assert!(elected(&zone.plan()) > 0, "it sees none of them");
}

/// 1 and 2 lose 3 and 4; a new leader hears from 1, 2 and 3 first.
fn halves_at_a_new_leader() -> Zone {
    let mut zone = Zone::with_volume();
    let silent = PathState::Silent { millis: 2_000 };
    for (one, other) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
        zone.down.extend([(one, other, silent), (other, one, silent)]);
    }
    zone.seen = Observations::new(zone.now);
    zone.beating = [1, 2, 3].into();
    for node in 1..=3 {
        zone.seen.on_connected(zone.now, NodeId(node));
    }
    zone.beat();
    zone
}

fn is_cut(zone: &Zone, node: u32) -> bool {
    judge_all(zone.now, &zone.state, &zone.seen)[&NodeId(node)] == Verdict::Up { cut: true }
}

#[test]
fn a_node_that_is_up_is_not_cut_by_those_who_reach_a_new_leader_first() {
    let mut zone = halves_at_a_new_leader();
    assert!(!is_cut(&zone, 3), "the leader has not listened");
    zone.run(700);
    assert!(!is_cut(&zone, 3), "4 may still come");
    zone.seen.on_connected(zone.now, NodeId(4));
    assert!(!is_cut(&zone, 3), "4 has not said whom it reaches");
    zone.beating.insert(4);
    zone.run(2_000);
    assert!(!is_cut(&zone, 3), "4 reaches it");
    assert!(zone.elections().is_empty());
}

#[test]
fn a_node_that_nobody_is_left_to_speak_for_is_cut_once_the_others_count_as_silent() {
    let mut zone = halves_at_a_new_leader();
    zone.run(1_400);
    assert!(!is_cut(&zone, 3));
    zone.run(200);
    assert!(is_cut(&zone, 3));
}

#[test]
fn a_leader_that_stood_still_hears_all_again_before_one_that_is_up_is_cut() {
    let mut zone = Zone::with_volume();
    let silent = PathState::Silent { millis: 2_000 };
    zone.down.extend([(1, 3, silent), (2, 3, silent), (4, 3, silent)]);
    zone.beat();
    assert!(is_cut(&zone, 3));
    zone.now = zone.now + core::time::Duration::from_millis(400);
    zone.seen.on_tick(zone.now);
    assert!(!is_cut(&zone, 3), "what it heard is old");
    zone.run(700);
    assert!(is_cut(&zone, 3));
}

#[test]
fn an_accusation_waits_until_a_new_leader_has_listened() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    zone.seen = Observations::new(zone.now);
    zone.seen.on_connected(zone.now, config.primary.node);
    let replica = config.secondaries().next().unwrap();
    let reason = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    let plan = zone.carry_out();
    assert!(plan.changes.is_empty() && plan.judged.is_empty(), "{plan:?}");
    // The secondary comes, and with the others says that it is the primary that fails.
    let silent = PathState::Silent { millis: 1_000 };
    for peer in (1..=4).filter(|peer| *peer != config.primary.node.0) {
        zone.seen.on_connected(zone.now, NodeId(peer));
        zone.down.push((peer, config.primary.node.0, silent));
    }
    zone.run(700);
    zone.carry_out();
    assert!(zone.config(0).is_in_sync(replica));
}

#[test]
fn a_node_that_the_primary_does_not_reach_is_no_new_home() {
    let mut zone = Zone::with_volume();
    let primary = zone.config(0).primary.node.0;
    let replica = zone.config(0).secondaries().next().unwrap();
    let away = (1..=4).find(|node| zone.config(0).replicas().all(|r| r.node.0 != *node)).unwrap();
    zone.stop(replica.node.0);
    zone.probe(replica.node.0, REFUSED);
    zone.propose(0, Change::RemoveSecondary { replica, reason: RemovalReason::Refused });
    zone.carry_out();
    zone.down.push((primary, away, PathState::Silent { millis: 2_000 }));
    zone.beat();
    zone.propose(0, Change::SeekLearner);
    let plan = zone.plan();
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    zone.down.clear();
    zone.beat();
    zone.propose(0, Change::SeekLearner);
    assert_eq!(zone.plan().changes.len(), 1);
}

#[test]
fn a_leader_that_stood_still_listens_again() {
    let mut zone = Zone::with_volume();
    zone.stop(1);
    zone.beating.clear();
    zone.now = zone.now + core::time::Duration::from_secs(10);
    zone.seen.on_tick(zone.now);
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    assert!(verdicts.values().all(|verdict| !verdict.is_dead()), "{verdicts:?}");
    zone.beating.extend([2, 3, 4]);
    zone.run(700);
    assert!(!judge_all(zone.now, &zone.state, &zone.seen)[&NodeId(1)].is_dead());
}

#[test]
fn a_silent_secondary_is_removed_on_the_word_of_its_primary() {
    let mut zone = Zone::with_volume();
    let replica = zone.config(0).secondaries().next().unwrap();
    let reason = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    zone.carry_out();
    assert!(zone.config(0).is_stale(replica));
    // The next one would leave one copy, and its node is alive.
    let replica = zone.config(0).secondaries().next().unwrap();
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("not declared dead"), "{plan:?}");
    zone.stop(replica.node.0);
    zone.probe(replica.node.0, REFUSED);
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    zone.carry_out();
    assert_eq!(zone.config(0).in_sync.len(), 1);
}

#[test]
fn a_primary_cut_off_from_its_peers_cannot_accuse_them_and_is_replaced() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let primary = config.primary.node.0;
    let silent = PathState::Silent { millis: 1_000 };
    for peer in (1..=4).filter(|peer| *peer != primary) {
        zone.down.extend([(peer, primary, silent), (primary, peer, silent)]);
    }
    zone.run(300);
    let replica = config.secondaries().next().unwrap();
    let reason = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    let plan = zone.plan();
    assert_eq!(elected(&plan), 1, "{plan:?}");
    let evidence = Evidence::Unreachable {};
    assert!(plan.changes.iter().any(|c| matches!(
        c.kind, ChangeKind::Elect { evidence: e, .. } if e == evidence
    )));
    assert!(!plan.changes.iter().any(|c| matches!(c.kind, ChangeKind::RemoveSecondary { .. })));
}

#[test]
fn a_primary_that_others_see_fail_too_cannot_accuse_even_if_it_is_not_cut_off() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (primary, replica) = (config.primary.node.0, config.secondaries().next().unwrap());
    let third = config.secondaries().nth(1).unwrap().node.0;
    let silent = PathState::Silent { millis: 1_000 };
    // The fourth node still reaches the primary.
    let accused = replica.node.0;
    zone.down.extend([(primary, accused, silent), (accused, primary, silent)]);
    zone.down.push((third, primary, silent));
    zone.run(300);
    let reason = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    let plan = zone.carry_out();
    assert!(plan.changes.is_empty(), "{plan:?}");
    assert!(plan.refused[0].1.contains("peers see"), "{plan:?}");
}

#[test]
fn a_living_primary_is_not_replaced_at_the_price_of_a_copy_that_writes_need() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (proposer, replica) = (config.primary, config.secondaries().next().unwrap());
    let evidence = Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer, replica, evidence }).unwrap();
    let primary = config.primary.node.0;
    let silent = PathState::Silent { millis: 1_000 };
    for peer in (1..=4).filter(|peer| *peer != primary) {
        zone.down.push((peer, primary, silent));
    }
    zone.run(300);
    assert!(zone.plan().changes.iter().all(|change| change.chunk != chunk(0)));
}

#[test]
fn a_node_that_stalls_for_a_moment_keeps_its_primaries() {
    let mut zone = Zone::with_volume();
    let silent = PathState::Silent { millis: 900 };
    zone.down.extend([(2, 1, silent), (3, 1, silent), (4, 1, silent)]);
    zone.run(300);
    assert_eq!(elected(&zone.plan()), 0);
}

#[test]
fn a_chunk_is_not_stuck_because_the_leader_is_new() {
    let mut zone = Zone::with_volume();
    zone.seen = Observations::new(zone.now);
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    assert_eq!(describe::stuck_chunks(&zone.state, &zone.seen, &verdicts).len(), 0);
}

#[test]
fn when_each_accuses_the_other_and_nobody_else_knows_the_primary_is_kept() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (primary, replica) = (config.primary.node.0, config.secondaries().next().unwrap());
    let silent = PathState::Silent { millis: 1_000 };
    zone.down.extend([(primary, replica.node.0, silent), (replica.node.0, primary, silent)]);
    zone.run(300);
    let reason = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    zone.carry_out();
    assert!(zone.config(0).is_stale(replica));
}

#[test]
fn a_primary_whose_replica_turned_stale_is_replaced() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    zone.report(0, config.primary, ReplicaState::Stale);
    let secondary = config.secondaries().next().unwrap();
    zone.report(0, secondary, ReplicaState::Stale);
    zone.carry_out();
    let next = zone.config(0);
    assert!(next.primary != config.primary && next.primary != secondary);
}

#[test]
fn when_every_in_sync_replica_has_lost_part_nobody_is_elected_and_the_chunk_says_why() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    for replica in config.in_sync.clone() {
        zone.report(0, replica, ReplicaState::Stale);
    }
    zone.carry_out();
    assert_eq!(zone.config(0), config, "a replica that proves nothing was elected");
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let describe::Health::Stuck(stuck) =
        describe::health(&config, &zone.state, &zone.seen, &verdicts)
    else {
        panic!("not stuck");
    };
    assert!(stuck.cause.contains("all others in sync"), "{}", stuck.cause);
    assert_eq!(stuck.blocked_on.len(), config.in_sync.len());
}

#[test]
fn a_missing_copy_finds_a_node_with_space_that_holds_none_and_comes_back_by_promotion() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let lost = config.secondaries().next().unwrap();
    zone.propose(0, Change::SeekLearner);
    assert!(zone.carry_out().refused[0].1.contains("already"));
    zone.propose(0, Change::RemoveSecondary { replica: lost, reason: RemovalReason::Refused });
    zone.carry_out();
    zone.propose(0, Change::SeekLearner);
    zone.carry_out();
    let learner = zone.config(0).learners[0];
    assert!(config.replicas().all(|r| r.node != learner.node));
    zone.propose(0, Change::PromoteLearner { replica: learner, durable: FILLED });
    zone.carry_out();
    assert_eq!(zone.config(0).in_sync.len(), 3);
}

#[test]
fn a_primary_that_steps_down_is_followed_by_a_secondary_while_enough_remain() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    zone.propose(0, Change::StepDown { millis: 1_500 });
    zone.carry_out();
    let next = zone.config(0);
    assert!(config.secondaries().any(|replica| replica == next.primary));
    assert!(next.is_stale(config.primary));
    zone.propose(0, Change::StepDown { millis: 1_500 });
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("are needed"), "{plan:?}");
    assert_eq!(zone.config(0), next);
}

#[test]
fn one_node_at_a_time_may_be_taken_for_slow() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let [first, second] = config.secondaries().collect::<Vec<_>>()[..] else { panic!() };
    let slow = RemovalReason::Slow { millis: 1_500 };
    zone.propose(0, Change::RemoveSecondary { replica: first, reason: slow });
    zone.carry_out();
    assert!(zone.config(0).is_stale(first));
    zone.propose(0, Change::ReadoptStale { replica: first });
    zone.carry_out();
    let learner = zone.config(0).learners[0];
    zone.propose(0, Change::PromoteLearner { replica: learner, durable: FILLED });
    zone.carry_out();
    zone.propose(0, Change::RemoveSecondary { replica: second, reason: slow });
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("count as slow already"), "{plan:?}");
    zone.propose(0, Change::StepDown { millis: 1_500 });
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("count as slow already"), "{plan:?}");
    // The same node again: it is one.
    zone.propose(0, Change::RemoveSecondary { replica: first, reason: slow });
    zone.carry_out();
    assert!(zone.config(0).is_stale(first));
}

#[test]
fn a_node_loses_a_bounded_number_of_replicas_to_slowness() {
    let mut zone = Zone::with_volume();
    let replica = zone.config(0).secondaries().next().unwrap();
    let lost =
        |zone: &mut Zone, times| zone.seen.note_slow(zone.now, &alloc::vec![replica.node; times]);
    lost(&mut zone, 64);
    let reason = RemovalReason::Slow { millis: 1_500 };
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("64 replicas"), "{plan:?}");
    // Silence is another matter.
    let silent = RemovalReason::Silent { millis: 1_000 };
    zone.propose(0, Change::RemoveSecondary { replica, reason: silent });
    assert_eq!(zone.plan().changes.len(), 1);
    zone.run(301_000);
    lost(&mut zone, 63);
    zone.propose(0, Change::RemoveSecondary { replica, reason });
    zone.carry_out();
    assert!(zone.config(0).is_stale(replica));
    // Those of one plan count together.
    let other = (1..4).find(|at| zone.config(*at).secondaries().any(|r| r == replica)).unwrap();
    zone.propose(other, Change::RemoveSecondary { replica, reason });
    assert!(zone.plan().refused[0].1.contains("64 replicas"));
}

fn retired(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| matches!(c.kind, ChangeKind::Retire { .. })).count()
}

#[test]
fn a_stale_replica_is_retired_once_every_later_owner_has_recorded_that_it_is_one() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let lost = config.secondaries().next().unwrap();
    // What they have recorded until now is that they own it under this epoch.
    config.in_sync.iter().for_each(|owner| zone.report(0, *owner, ReplicaState::Following));
    zone.propose(0, Change::RemoveSecondary { replica: lost, reason: RemovalReason::Refused });
    zone.carry_out();
    zone.propose(0, Change::SeekLearner);
    zone.carry_out();
    let learner = zone.config(0).learners[0];
    zone.propose(0, Change::PromoteLearner { replica: learner, durable: FILLED });
    zone.carry_out();
    let owners = zone.config(0).in_sync;
    for owner in owners.iter().rev() {
        assert_eq!(retired(&zone.plan()), 0, "an owner has not recorded it");
        zone.report(0, *owner, ReplicaState::Following);
    }
    assert_eq!(retired(&zone.carry_out()), 1);
    assert!(zone.config(0).stale.is_empty());
    assert!(zone.state.is_erasure(chunk(0), lost));
    assert_eq!(retired(&zone.plan()), 0);
}

#[test]
fn an_exchanged_disk_loses_its_primaries_and_its_replicas_and_can_be_filled_again() {
    let mut zone = Zone::with_volume();
    let index = primaries_of(&zone, 1)[0];
    let old = zone.config(index).primary;
    let node = NodeRecord { stores: alloc::vec![StoreId(77)], ..record(1) };
    zone.apply(Action::RegisterNode { node }).answer.unwrap();
    let plan = zone.carry_out();
    assert_eq!(elected(&plan), 1, "its process is up, but not with that store");
    assert!(zone.config(index).is_stale(old));
    // Chunks in which it was a secondary: their primaries say so, and are believed.
    let other = zone.state.configs().find(|c| c.secondaries().any(|r| r == old)).cloned().unwrap();
    let index_of_other = other.chunk.index.0;
    let gone = Change::RemoveSecondary { replica: old, reason: RemovalReason::ReportedGone };
    zone.propose(index_of_other, gone);
    zone.carry_out();
    let stale = zone.config(index_of_other).stale;
    assert!(stale.iter().any(|(r, info)| *r == old && !info.suspect), "the disk may come back");
    assert_eq!(retired(&zone.plan()), 0, "it may be the best that is left");
    // It is not asked to take part while it is away.
    zone.propose(index, Change::ReadoptStale { replica: old });
    assert!(zone.carry_out().refused[0].1.contains("does not have that store"));
    // A node that holds none is preferred to the one that comes without it.
    let holders: Vec<_> = zone.config(index).replicas().map(|r| r.node).collect();
    let spare = (1..=4).map(NodeId).find(|node| !holders.contains(node)).unwrap();
    zone.propose(index, Change::SeekLearner);
    assert_eq!(learner_of(&zone.plan()), Some((spare, None)));
    zone.stop(spare.0);
    zone.probe(spare.0, REFUSED);
    zone.run(300);
    assert_eq!(learner_of(&zone.carry_out()), Some((NodeId(1), Some(old))));
    assert_eq!(zone.config(index).learners[0].store, StoreId(77));
    assert!(zone.state.is_erasure(chunk(index), old), "if its disk comes back");
    assert!(zone.plan().erased.is_empty());
    // That order keeps the node from nothing; one that it can carry out does.
    let replica = zone.config(index).learners[0];
    zone.propose(index, Change::RemoveLearner { replica });
    zone.carry_out();
    zone.propose(index, Change::SeekLearner);
    assert_eq!(learner_of(&zone.plan()), None);
    zone.apply(Action::Forget { replicas: [(chunk(index), replica)].into() }).answer.unwrap();
    assert_eq!(learner_of(&zone.plan()), Some((NodeId(1), None)));
}

/// Where a learner is planned, and what is given up for it.
fn learner_of(plan: &Plan) -> Option<(NodeId, Option<ReplicaId>)> {
    plan.changes.iter().find_map(|change| match change.kind {
        ChangeKind::AddLearnerOn { place, .. } => Some((place.node, None)),
        ChangeKind::AddLearnerInstead { place, away, .. } => Some((place.node, Some(away))),
        _ => None,
    })
}

/// The disks of both secondaries of chunk 0 are not there when their nodes start.
fn two_away() -> (Zone, [ReplicaId; 2]) {
    let mut zone = Zone::with_volume();
    let away = [0, 1].map(|at| zone.config(0).secondaries().nth(at).unwrap());
    for (replica, store) in away.into_iter().zip([77, 78]) {
        let node = NodeRecord { stores: alloc::vec![StoreId(store)], ..record(replica.node.0) };
        zone.apply(Action::RegisterNode { node }).answer.unwrap();
        let reason = RemovalReason::ReportedGone;
        zone.propose(0, Change::RemoveSecondary { replica, reason });
        zone.carry_out();
    }
    assert_eq!(zone.config(0).in_sync.len(), 1);
    zone.run(900);
    (zone, away)
}

#[test]
fn disks_that_are_missing_for_one_start_are_candidates_for_salvage_when_they_return() {
    let (mut zone, away) = two_away();
    assert_eq!(zone.plan().changes.iter().filter(|c| c.chunk == chunk(0)).count(), 0);
    for replica in away {
        zone.apply(Action::RegisterNode { node: record(replica.node.0) }).answer.unwrap();
    }
    // The last one in sync fails now: each of them was whole up to when it left.
    let candidates = zone.state.salvage_candidates(&zone.config(0));
    assert_eq!(candidates.len(), 2);
    assert!(candidates.iter().all(|one| one.unfit.is_none()), "{candidates:?}");
    // Or they are filled again, under their own names.
    zone.propose(0, Change::ReadoptStale { replica: away[0] });
    zone.carry_out();
    assert_eq!(zone.config(0).learners, [away[0]]);
}

#[test]
fn with_one_copy_in_sync_not_all_that_is_away_is_given_up_at_once() {
    let (mut zone, away) = two_away();
    let spare = (1..=4).map(NodeId).find(|n| zone.config(0).replicas().all(|r| r.node != *n));
    zone.stop(spare.unwrap().0);
    zone.probe(spare.unwrap().0, REFUSED);
    zone.propose(0, Change::SeekLearner);
    assert_eq!(learner_of(&zone.carry_out()), Some((away[0].node, Some(away[0]))), "lost most");
    zone.propose(0, Change::SeekLearner);
    let plan = zone.carry_out();
    assert_eq!(learner_of(&plan), None);
    assert!(plan.refused[0].1.contains("no node can take another replica"), "{plan:?}");
    let replica = zone.config(0).learners[0];
    zone.propose(0, Change::PromoteLearner { replica, durable: FILLED });
    zone.carry_out();
    zone.propose(0, Change::SeekLearner);
    assert_eq!(learner_of(&zone.carry_out()), Some((away[1].node, Some(away[1]))));
}

#[test]
fn a_process_that_has_just_started_says_which_stores_it_has_before_one_counts_as_empty() {
    let mut zone = Zone::with_volume();
    let replica = zone.config(0).secondaries().next().unwrap();
    let second = zone.config(0).secondaries().nth(1).unwrap();
    let gone = |replica| Change::RemoveSecondary { replica, reason: RemovalReason::ReportedGone };
    zone.stop(second.node.0);
    zone.probe(second.node.0, REFUSED);
    zone.propose(0, gone(second));
    zone.carry_out();
    // Its peers met the new process before the control plane has: it does not hold the replica.
    zone.stop(replica.node.0);
    zone.propose(0, gone(replica));
    let plan = zone.carry_out();
    assert!(plan.refused[0].1.contains("not declared dead"), "{plan:?}");
    let node = NodeRecord { stores: alloc::vec![StoreId(77)], ..record(replica.node.0) };
    zone.apply(Action::RegisterNode { node }).answer.unwrap();
    zone.propose(0, gone(replica));
    zone.carry_out();
    let stale = zone.config(0).stale;
    assert!(stale.iter().any(|(r, info)| *r == replica && !info.suspect), "{stale:?}");
}

#[test]
fn without_space_a_search_is_refused_with_the_reason_for_each_node() {
    let mut zone = Zone::with_volume();
    let lost = zone.config(0).secondaries().next().unwrap();
    zone.propose(0, Change::RemoveSecondary { replica: lost, reason: RemovalReason::Refused });
    zone.carry_out();
    let holders: Vec<_> = zone.config(0).replicas().map(|r| r.node).collect();
    let spare = (1..=4).map(NodeId).find(|node| !holders.contains(node)).unwrap();
    zone.seen.on_heartbeat(zone.now, spare, beat_of(spare.0, 1 << 30));
    zone.propose(0, Change::SeekLearner);
    let refused = zone.plan().refused;
    assert!(refused[0].1.contains("0 bytes free"), "{}", refused[0].1);
    assert!(refused[0].1.contains("holds a replica"), "{}", refused[0].1);
}

#[test]
fn proposals_of_others_and_of_old_epochs_are_refused() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let other = config.secondaries().next().unwrap();
    let proposal = |proposer: ReplicaId, epoch| Proposal {
        chunk: chunk(0),
        epoch,
        proposer,
        change: Change::RemoveSecondary { replica: other, reason: RemovalReason::Refused },
    };
    for (proposal, word) in [
        (proposal(other, config.epoch), "not the primary"),
        (proposal(config.primary, Epoch(7)), "is current"),
    ] {
        let node = proposal.proposer.node;
        zone.seen.on_proposals(&zone.state, node, [proposal].into());
        let plan = zone.carry_out();
        assert!(plan.refused[0].1.contains(word), "{plan:?}");
    }
    assert_eq!(zone.config(0), config);
}

#[test]
fn an_attachment_waits_for_one_in_sync_replica_of_every_chunk() {
    let mut zone = Zone::with_volume();
    let volume = zone.attach("one", false).unwrap();
    let blocked =
        |zone: &Zone| describe::attach_blocked_on(&volume, Generation(1), &zone.state, &zone.seen);
    assert_eq!(blocked(&zone).len(), 4);
    for index in 0..4 {
        assert!(!blocked(&zone).is_empty());
        // A stale or foreign replica's word does not count.
        let adopter = zone.config(index).secondaries().next().unwrap();
        zone.report(index, adopter, ReplicaState::Following);
    }
    assert!(blocked(&zone).is_empty());
    let member = zone.config(0).secondaries().next().unwrap();
    let proposer = zone.config(0).primary;
    let evidence = Evidence::Unreachable {};
    zone.change(0, ChangeKind::RemoveSecondary { proposer, replica: member, evidence }).unwrap();
    assert!(!blocked(&zone).is_empty(), "the adopter is no longer in sync");
}

#[test]
fn a_volume_too_large_names_every_candidate() {
    let mut zone = Zone::new();
    zone.stop(4);
    zone.probe(4, REFUSED);
    let geometry = Geometry::for_new_volume(8 << 30).unwrap();
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let space = crate::place::Space::of(&zone.state, &zone.seen, &verdicts);
    let error = crate::place::place_volume(geometry, 3, space).unwrap_err();
    assert_eq!((error.found, error.wanted), (0, 3));
    assert_eq!(error.candidates.len(), 4);
    assert!(error.candidates[3].why.contains("ports refuse"), "{:?}", error.candidates);
}

#[test]
fn the_living_are_tried_never_the_dead_at_intervals() {
    let mut zone = Zone::with_volume();
    assert!(zone.plan().probes.is_empty());
    zone.stop(2);
    assert_eq!(zone.plan().probes, [NodeId(2)]);
    zone.seen.on_probe_asked(zone.now, NodeId(2));
    assert!(zone.plan().probes.is_empty());
    zone.run(300);
    assert_eq!(zone.plan().probes, [NodeId(2)]);
    assert!(matches!(
        judge_all(zone.now, &zone.state, &zone.seen)[&NodeId(2)],
        Verdict::Unknown { .. }
    ));
}
