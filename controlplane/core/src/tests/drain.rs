//! Draining a node: what moves, in which order, what stands against it.

use super::*;
use crate::drain::{self, DrainRefusal};
use crate::moves::MOVES_PER_NODE_MAX;
use crate::place::Space;
use ashlar_types::message::cluster::RemovalReason;
use ashlar_types::{Lsn, Term};

pub(super) fn mark(zone: &mut Zone, node: u32, cancel: bool) -> Result<Answer, Refusal> {
    zone.apply(Action::Drain { token: None, node: NodeId(node), cancel }).answer
}

fn check(zone: &Zone, node: u32) -> Result<drain::Expected, DrainRefusal> {
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    let space = Space::of(&zone.state, &zone.seen, &verdicts);
    drain::check(NodeId(node), &zone.state, space)
}

fn progress(zone: &Zone, node: u32) -> drain::Progress {
    let verdicts = judge_all(zone.now, &zone.state, &zone.seen);
    drain::progress(NodeId(node), &zone.state, &zone.seen, &verdicts)
}

fn kinds(plan: &Plan) -> Vec<ChangeKind> {
    plan.changes.iter().map(|change| change.kind.clone()).collect()
}

pub(super) fn spares(plan: &Plan) -> usize {
    kinds(plan).iter().filter(|kind| matches!(kind, ChangeKind::AddSpare { .. })).count()
}

/// That a learner has everything, as far as anybody but its primary can tell.
fn filled(config: &ChunkConfig) -> Lsn {
    Lsn { term: Term { elected: config.elected, ..FILLED.term }, ..FILLED }
}

/// Every replica in sync says under the present epoch that it is.
fn all_report(zone: &mut Zone) {
    let configs: Vec<ChunkConfig> = zone.state.configs().cloned().collect();
    for config in configs {
        for replica in &config.in_sync {
            let serves = *replica == config.primary;
            let state = if serves { ReplicaState::Serving } else { ReplicaState::Following };
            zone.report(config.chunk.index.0, *replica, state);
        }
    }
}

/// Primaries propose learners that are filled; those that are asked agree to follow.
fn nodes_act(zone: &mut Zone) {
    let configs: Vec<ChunkConfig> = zone.state.configs().cloned().collect();
    for config in configs {
        if let Some(learner) = config.learners.first() {
            let change = Change::PromoteLearner { replica: *learner, durable: filled(&config) };
            zone.propose(config.chunk.index.0, change);
        }
    }
    for (_, asked, _) in zone.elections_and_asks().asks {
        zone.propose(asked.index.0, Change::Follow);
    }
    let erased: Vec<_> = zone.state.erasures().collect();
    for (chunk, replica) in erased {
        zone.report(chunk.index.0, replica, ReplicaState::Gone);
    }
}

/// One round: what is planned is committed, and the nodes do their part.
pub(super) fn round(zone: &mut Zone) -> Plan {
    all_report(zone);
    nodes_act(zone);
    let plan = zone.carry_out();
    zone.seen.note_moves(zone.now, plan.moves, zone.search);
    zone.apply(Action::Forget { replicas: plan.erased.clone() }).answer.unwrap();
    zone.run(300);
    plan
}

#[test]
fn a_drained_node_ends_with_nothing_and_no_chunk_is_ever_short_of_a_copy() {
    let mut zone = Zone::with_volume();
    assert_eq!(check(&zone, 1).map(|expected| expected.copies), Ok(3));
    mark(&mut zone, 1, false).unwrap();
    let mut rounds = 0;
    while zone.state.replicas_on(NodeId(1)) > 0 || zone.state.erasures().count() > 0 {
        round(&mut zone);
        assert!(zone.state.configs().all(ChunkConfig::is_whole));
        rounds += 1;
        assert!(rounds < 60, "{:?}", progress(&zone, 1));
    }
    for config in zone.state.configs() {
        assert_eq!((config.in_sync.len(), config.learners.len(), config.stale.len()), (3, 0, 0));
    }
    assert_eq!(zone.state.primaries_on(NodeId(1)), 0);
    assert_eq!(progress(&zone, 1), drain::Progress::default());
    assert_eq!(spares(&round(&mut zone)), 0, "nothing goes on moving");
}

#[test]
fn two_drains_do_not_count_on_the_same_copy() {
    let mut zone = Zone::with_volume();
    mark(&mut zone, 1, false).unwrap();
    let mut rounds = 0;
    while zone.state.replicas_on(NodeId(1)) > 0 {
        // Also while a chunk has one more in sync than it wants: that is in the place of node 1's.
        let refused = check(&zone, 2);
        assert!(matches!(refused, Err(DrainRefusal::NoHome { .. })), "{rounds}: {refused:?}");
        round(&mut zone);
        rounds += 1;
        assert!(rounds < 60, "{:?}", progress(&zone, 1));
    }
}

#[test]
fn the_last_home_of_what_is_drained_is_not_drained() {
    let mut zone = Zone::with_volume();
    mark(&mut zone, 4, false).unwrap();
    let empty = (0..60).any(|_| {
        round(&mut zone);
        zone.state.replicas_on(NodeId(4)) == 0
    });
    assert!(empty, "{:?}", progress(&zone, 4));
    // It is empty, and the only home for what the next one holds.
    mark(&mut zone, 4, true).unwrap();
    mark(&mut zone, 1, false).unwrap();
    assert!(matches!(check(&zone, 4), Err(DrainRefusal::NoHome { .. })));
    mark(&mut zone, 1, true).unwrap();
    assert_eq!(check(&zone, 4), Ok(drain::Expected::default()));
}

#[test]
fn the_last_home_of_a_copy_that_is_missing_is_not_drained() {
    let mut zone = Zone::with_volume();
    let proposer = zone.config(0).primary;
    let lost = zone.config(0).secondaries().next().unwrap();
    let change = Change::RemoveSecondary { replica: lost, reason: RemovalReason::ReportedGone };
    zone.report(0, lost, ReplicaState::Suspect);
    zone.propose(0, change);
    zone.carry_out();
    // Under another name, which is forgotten when its filling fails.
    zone.change(0, ChangeKind::ReadoptStale { proposer, replica: lost }).unwrap();
    let anew = zone.config(0).learners[0];
    zone.change(0, ChangeKind::RemoveLearner { proposer, replica: anew }).unwrap();
    let config = zone.config(0);
    assert!(config.replicas().count() == 2 && config.replicas().all(|r| r.node != lost.node));
    for index in 1..zone.state.configs().count() {
        let index = u32::try_from(index).unwrap();
        assert!(zone.config(index).is_whole(), "only one lacks a copy");
    }
    // Its third copy may come to either of two, and one of them must stay.
    let spare = (1..=4).map(NodeId).filter(|n| config.replicas().all(|r| r.node != *n));
    let spare: Vec<NodeId> = spare.collect();
    assert_eq!(spare.len(), 2);
    zone.stop(spare[0].0);
    zone.run(3_000);
    assert!(
        matches!(check(&zone, spare[1].0), Err(DrainRefusal::NoHome { chunk: of, .. }) if of == chunk(0))
    );
}

#[test]
fn a_drained_node_takes_no_new_replicas_until_it_is_cancelled() {
    let mut zone = Zone::new();
    mark(&mut zone, 2, false).unwrap();
    zone.create(None, "v").unwrap();
    assert_eq!(zone.state.replicas_on(NodeId(2)), 0);
    mark(&mut zone, 2, true).unwrap();
    zone.create(None, "w").unwrap();
    assert!(zone.state.replicas_on(NodeId(2)) > 0);
    assert_eq!(mark(&mut zone, 9, false), Err(Refusal::UnknownNode(NodeId(9))));
}

#[test]
fn one_leaves_only_when_the_others_have_said_that_they_are_in_sync() {
    let mut zone = Zone::with_volume();
    mark(&mut zone, 1, false).unwrap();
    round(&mut zone);
    nodes_act(&mut zone);
    zone.carry_out();
    let spare = |zone: &Zone| {
        let mut configs = zone.state.configs();
        configs.find(|c| c.in_sync.len() == 4 && c.primary.node != NodeId(1)).cloned()
    };
    let config = spare(&zone).expect("a secondary of node 1 has its successor");
    let released = |zone: &Zone| {
        let plan = zone.plan();
        kinds(&plan).iter().any(|kind| matches!(kind, ChangeKind::Release { .. }))
    };
    assert!(!released(&zone), "they have not reported under this epoch");
    all_report(&mut zone);
    assert!(released(&zone));
    // One of those that would stay says nothing of itself any more.
    let stays = config.secondaries().find(|r| r.node != NodeId(1)).unwrap();
    zone.report(config.chunk.index.0, stays, ReplicaState::Stale);
    let plan = zone.plan();
    let of_chunk = plan.changes.iter().filter(|change| change.chunk == config.chunk);
    assert!(of_chunk.into_iter().all(|c| !matches!(c.kind, ChangeKind::Release { .. })));
}

#[test]
fn a_primary_leaves_by_agreement_only() {
    let mut zone = Zone::with_volume();
    mark(&mut zone, 1, false).unwrap();
    let index = (0..4).find(|at| zone.config(*at).primary.node == NodeId(1)).unwrap();
    assert_eq!(zone.ask(), 0, "it is not asked before another copy is in sync");
    for _ in 0..20 {
        all_report(&mut zone);
        if let Some(learner) = zone.config(index).learners.first().copied() {
            let durable = filled(&zone.config(index));
            zone.propose(index, Change::PromoteLearner { replica: learner, durable });
        }
        let plan = zone.carry_out();
        zone.seen.note_moves(zone.now, plan.moves, zone.search);
        zone.run(300);
    }
    assert_eq!(zone.config(index).in_sync.len(), 4);
    assert_eq!(zone.config(index).primary.node, NodeId(1), "it has not agreed");
    assert!(zone.ask() > 0);
    zone.propose(index, Change::Follow);
    zone.carry_out();
    let config = zone.config(index);
    assert_ne!(config.primary.node, NodeId(1));
    assert!(config.in_sync.iter().any(|replica| replica.node == NodeId(1)), "it stays in sync");
}

#[test]
fn the_rules_of_a_spare_and_of_a_release_are_held_to_when_they_are_applied() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let outsider = (1..=4).find(|n| config.replicas().all(|r| r.node.0 != *n)).unwrap();
    let place =
        |node: u32| crate::command::Place { node: NodeId(node), store: StoreId(node.into()) };
    let release = |replica| ChangeKind::Release { replica };
    let secondary = config.secondaries().next().unwrap();
    let refused = "fewer than 3 replicas are in sync";
    assert_eq!(zone.change(0, release(secondary)), Err(refused.into()));
    let there = ChangeKind::AddSpare { place: place(secondary.node.0) };
    assert_eq!(zone.change(0, there), Err("the node holds a replica of the chunk".into()));
    zone.change(0, ChangeKind::AddSpare { place: place(outsider) }).unwrap();
    assert_eq!(zone.change(0, release(secondary)), Err(refused.into()), "a learner is not in sync");
    zone.apply(Action::RegisterNode { node: record(5) }).answer.unwrap();
    let second = ChangeKind::AddSpare { place: place(5) };
    let text = "more than 3 replicas are in sync or being filled already";
    assert_eq!(zone.change(0, second.clone()), Err(text.into()));
    let (proposer, replica) = (config.primary, zone.config(0).learners[0]);
    let durable = filled(&config);
    zone.change(0, ChangeKind::PromoteLearner { proposer, replica, durable }).unwrap();
    assert_eq!(zone.change(0, second), Err(text.into()));
    assert_eq!(zone.change(0, release(config.primary)), Err("the replica is the primary".into()));
    zone.change(0, release(secondary)).unwrap();
    let config = zone.config(0);
    let (left, info) = config.stale[0];
    assert_eq!((left, info.suspect, config.in_sync.len()), (secondary, false, 3));
    assert_eq!(zone.change(0, release(secondary)), Err("the replica is not in sync".into()));
}

#[test]
fn a_drain_that_leaves_too_few_or_finds_no_room_is_refused_by_name() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let gone = config.secondaries().next().unwrap();
    let reason = RemovalReason::Refused;
    zone.propose(0, Change::RemoveSecondary { replica: gone, reason });
    zone.carry_out();
    let other = config.secondaries().nth(1).unwrap().node;
    let Err(DrainRefusal::BelowMinimum { node, chunk: of, in_sync, .. }) = check(&zone, other.0)
    else {
        panic!("{:?}", check(&zone, other.0));
    };
    assert_eq!((node, of, in_sync), (other, chunk(0), 2));
    // With one node of four away nobody has room for a third copy elsewhere.
    let mut zone = Zone::with_volume();
    zone.stop(4);
    zone.run(3_000);
    let refused = (1..=3).map(|node| check(&zone, node)).find_map(Result::err);
    let Some(DrainRefusal::NoHome { candidates, .. }) = refused else { panic!("{refused:?}") };
    assert!(candidates.iter().any(|one| one.node == NodeId(4)), "{candidates:?}");
}

#[test]
fn moves_begin_at_a_bounded_pace_and_not_in_a_large_interruption() {
    let mut zone = Zone::new();
    for name in ["v", "w", "x", "y"] {
        zone.create(None, name).unwrap();
    }
    mark(&mut zone, 1, false).unwrap();
    zone.search = SearchBudget { only_urgent: true, per_second: 1 };
    assert_eq!(spares(&zone.plan()), 0);
    zone.search = SearchBudget { only_urgent: false, per_second: 1 };
    let plan = zone.carry_out();
    assert_eq!((spares(&plan), plan.moves), (1, 1));
    zone.seen.note_moves(zone.now, plan.moves, zone.search);
    zone.run(900);
    assert_eq!(spares(&zone.plan()), 0, "one a second");
    zone.run(100);
    assert_eq!(spares(&zone.carry_out()), 1);
    zone.search = SearchBudget::FULL;
    for _ in 0..10 {
        zone.carry_out();
    }
    let mut busy: alloc::collections::BTreeMap<NodeId, usize> = Default::default();
    for config in zone.state.configs_in_motion() {
        *busy.entry(config.primary.node).or_default() += 1;
        *busy.entry(config.learners[0].node).or_default() += 1;
    }
    assert!(busy.values().all(|count| *count <= MOVES_PER_NODE_MAX), "{busy:?}");
    assert!(busy.values().any(|count| *count == MOVES_PER_NODE_MAX));
    let told = progress(&zone, 1);
    assert_eq!(told.replicas as usize, zone.state.replicas_on(NodeId(1)));
    assert!(told.moving > 0 && told.blocked == 0, "{told:?}");
}

#[test]
fn a_new_leader_goes_on_and_a_cancelled_drain_keeps_the_old_copy() {
    let mut zone = Zone::with_volume();
    mark(&mut zone, 1, false).unwrap();
    round(&mut zone);
    assert!(zone.state.configs_in_motion().count() > 0);
    zone.seen = Observations::new(zone.now);
    for node in 1..=4 {
        zone.seen.on_connected(zone.now, NodeId(node));
    }
    assert_eq!(spares(&zone.plan()), 0, "it has not listened yet");
    zone.run(900);
    mark(&mut zone, 1, true).unwrap();
    for _ in 0..20 {
        round(&mut zone);
    }
    assert_eq!(zone.state.configs_in_motion().count(), 0);
    assert_eq!(zone.state.replicas_on(NodeId(1)), 3, "who joined last has left");
}

#[test]
fn copies_that_are_missing_come_first_and_a_drained_node_takes_none_back() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let away = config.secondaries().next().unwrap();
    let drained = config.secondaries().nth(1).unwrap();
    let outsider = (1..=4).find(|n| config.replicas().all(|r| r.node.0 != *n)).unwrap();
    zone.propose(0, Change::RemoveSecondary { replica: away, reason: RemovalReason::Refused });
    zone.carry_out();
    mark(&mut zone, drained.node.0, false).unwrap();
    let plan = zone.plan();
    assert!(plan.changes.iter().all(|change| change.chunk != chunk(0)), "{plan:?}");
    let blocked = progress(&zone, drained.node.0);
    assert_eq!((blocked.blocked, blocked.named[0].chunk), (1, chunk(0)));
    assert!(blocked.named[0].cause.contains("2 of 3"), "{blocked:?}");
    // The one that is away is drained as well: what takes its place goes elsewhere.
    mark(&mut zone, drained.node.0, true).unwrap();
    mark(&mut zone, away.node.0, false).unwrap();
    let before = zone.config(0).epoch;
    zone.propose(0, Change::ReadoptStale { replica: away });
    let plan = zone.plan();
    let change = plan.changes.iter().find(|change| change.chunk == chunk(0)).unwrap();
    let place = crate::command::Place { node: NodeId(outsider), store: StoreId(outsider.into()) };
    let proposer = zone.config(0).primary;
    assert_eq!(change.kind, ChangeKind::AddLearnerOn { proposer, place });
    // Nobody proposes anything: it is not waited for either.
    zone.seen.forget_proposals(&[chunk(0)]);
    let plan = zone.carry_out();
    assert_eq!(spares(&plan), plan.moves);
    assert!(zone.config(0).epoch > before && zone.config(0).learners.len() == 1);
}
