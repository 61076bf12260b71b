//! Each rule of apply, by a case that only that rule refuses.

use super::*;
use crate::change::{ChangeRefusal, next};
use crate::command::{CommandError, Evidence};
use crate::state::{StateError, TOKEN_LIFE_MILLIS};

fn remove(zone: &Zone, at: usize, evidence: Evidence) -> ChangeKind {
    let config = zone.config(0);
    ChangeKind::RemoveSecondary {
        proposer: config.primary,
        replica: config.secondaries().nth(at).unwrap(),
        evidence,
    }
}

#[test]
fn a_change_is_a_compare_and_set_on_the_epoch() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    for epoch in [Epoch(0), Epoch(2)] {
        let change = ChunkChange { chunk: chunk(0), epoch, kind: kind.clone() };
        let outcome = zone.apply(Action::Change { changes: [change].into() }).outcomes;
        let refused = ChangeRefusal::OtherEpoch { current: config.epoch };
        assert_eq!(outcome[0].result, Err(refused));
    }
    assert_eq!(zone.config(0), config);
    assert_eq!(zone.change(0, kind), Ok(Epoch(2)));
    assert_eq!(zone.config(0).stale[0].1.last_in_sync, Epoch(1));
}

#[test]
fn only_the_primary_changes_its_secondaries_and_learners() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let other = config.secondaries().next().unwrap();
    let spare = (1..=4).map(NodeId).find(|n| config.replicas().all(|r| r.node != *n)).unwrap();
    for kind in [
        ChangeKind::RemoveSecondary {
            proposer: other,
            replica: config.secondaries().nth(1).unwrap(),
            evidence: Evidence::NodeDead {},
        },
        ChangeKind::AddLearner { proposer: other, node: spare },
        ChangeKind::ReadoptStale { proposer: other, replica: other },
        ChangeKind::RemoveLearner { proposer: other, replica: other },
    ] {
        assert_eq!(zone.change(0, kind), Err("the proposer is not the primary".into()));
    }
    let add = ChangeKind::AddLearner { proposer: config.primary, node: spare };
    zone.change(0, add).unwrap();
    let learner = zone.config(0).learners[0];
    let durable = FILLED;
    let promote = |proposer| ChangeKind::PromoteLearner { proposer, replica: learner, durable };
    assert_eq!(zone.change(0, promote(other)), Err("the proposer is not the primary".into()));
    assert_eq!(zone.change(0, promote(config.primary)), Ok(Epoch(3)));
}

#[test]
fn fewer_than_copies_min_remain_only_if_the_node_is_dead_or_the_replica_says_so() {
    for (evidence, allowed) in [
        (Evidence::Unreachable {}, false),
        (Evidence::NodeDead {}, true),
        (Evidence::ReportedGone {}, true),
    ] {
        let mut zone = Zone::with_volume();
        let first = remove(&zone, 0, Evidence::Unreachable {});
        assert_eq!(zone.change(0, first), Ok(Epoch(2)));
        let second = remove(&zone, 0, evidence);
        assert_eq!(zone.change(0, second).is_ok(), allowed, "{evidence:?}");
        // The same holds for an election, which also takes one replica out.
        let mut zone = Zone::with_volume();
        let first = remove(&zone, 0, Evidence::Unreachable {});
        zone.change(0, first).unwrap();
        let primary = zone.config(0).secondaries().next().unwrap();
        let elect = ChangeKind::Elect { primary, evidence };
        assert_eq!(zone.change(0, elect).is_ok(), allowed, "{evidence:?}");
    }
}

#[test]
fn only_an_in_sync_member_is_elected_and_the_old_primary_becomes_stale() {
    let mut zone = Zone::with_volume();
    let old = zone.config(0);
    let gone = old.secondaries().next().unwrap();
    let first = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, first).unwrap();
    let elect = |primary| ChangeKind::Elect { primary, evidence: Evidence::NodeDead {} };
    assert_eq!(zone.change(0, elect(gone)), Err("the replica is not in sync".into()));
    zone.change(0, ChangeKind::ReadoptStale { proposer: old.primary, replica: gone }).unwrap();
    assert_eq!(zone.change(0, elect(gone)), Err("the replica is not in sync".into()));
    assert_eq!(zone.change(0, elect(old.primary)), Err("the replica is the primary".into()));
    let next = zone.config(0).secondaries().next().unwrap();
    zone.change(0, elect(next)).unwrap();
    let config = zone.config(0);
    assert_eq!((config.primary, config.elected), (next, config.epoch));
    assert!(config.is_stale(old.primary) && !config.is_in_sync(old.primary));
}

#[test]
fn only_learners_are_promoted_and_only_stale_replicas_readopted() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let proposer = config.primary;
    let secondary = config.secondaries().next().unwrap();
    let durable = FILLED;
    let promote = |replica| ChangeKind::PromoteLearner { proposer, replica, durable };
    let readopt = |replica| ChangeKind::ReadoptStale { proposer, replica };
    assert_eq!(zone.change(0, readopt(secondary)), Err("the replica is not known as stale".into()));
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, kind).unwrap();
    assert_eq!(zone.change(0, promote(secondary)), Err("the replica is not a learner".into()));
    zone.change(0, readopt(secondary)).unwrap();
    assert!(!zone.config(0).is_in_sync(secondary));
    zone.change(0, promote(secondary)).unwrap();
    assert!(zone.config(0).is_in_sync(secondary));
}

#[test]
fn a_learner_that_was_filled_under_another_election_is_not_promoted() {
    let mut zone = Zone::with_volume();
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, kind).unwrap();
    let (replica, _) = zone.config(0).stale[0];
    let proposer = zone.config(0).secondaries().next().unwrap();
    let evidence = Evidence::NodeDead {};
    zone.change(0, ChangeKind::Elect { primary: proposer, evidence }).unwrap();
    zone.change(0, ChangeKind::ReadoptStale { proposer, replica }).unwrap();
    let promote = |durable| ChangeKind::PromoteLearner { proposer, replica, durable };
    let refused = Err("what the learner has is of another election than the primary's".into());
    assert_eq!(zone.change(0, promote(FILLED)), refused);
    assert_eq!(zone.change(0, promote(Lsn::ZERO)), refused);
    let elected = zone.config(0).elected;
    let now = Lsn { term: Term { elected, ..FILLED.term }, ..FILLED };
    zone.change(0, promote(now)).unwrap();
}

#[test]
fn a_node_never_holds_two_replicas_of_a_chunk() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    for replica in config.replicas() {
        let add = ChangeKind::AddLearner { proposer: config.primary, node: replica.node };
        assert_eq!(zone.change(0, add), Err("the node holds a replica of the chunk".into()));
    }
}

#[test]
fn a_learner_that_was_never_in_sync_is_forgotten_and_erased() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let proposer = config.primary;
    let spare = (1..=4).map(NodeId).find(|n| config.replicas().all(|r| r.node != *n)).unwrap();
    zone.change(0, ChangeKind::AddLearner { proposer, node: spare }).unwrap();
    let learner = zone.config(0).learners[0];
    assert_eq!(learner.incarnation.0, 2, "a new copy is numbered by its first epoch");
    zone.change(0, ChangeKind::RemoveLearner { proposer, replica: learner }).unwrap();
    assert!(zone.config(0).replicas().all(|r| r != learner));
    assert!(zone.state.is_erasure(chunk(0), learner));
}

#[test]
fn a_readopted_replica_whose_filling_fails_is_stale_again_and_a_base_for_nothing() {
    let mut zone = Zone::with_volume();
    let proposer = zone.config(0).primary;
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, kind).unwrap();
    let remembered = zone.config(0).stale.clone();
    assert!(!remembered[0].1.suspect);
    let replica = remembered[0].0;
    zone.change(0, ChangeKind::ReadoptStale { proposer, replica }).unwrap();
    assert_eq!(zone.config(0).learners, [replica]);
    zone.change(0, ChangeKind::RemoveLearner { proposer, replica }).unwrap();
    let again = zone.config(0).stale.clone();
    assert_eq!(again[0].0, replica);
    assert_eq!(again[0].1.last_in_sync, remembered[0].1.last_in_sync);
    assert!(again[0].1.suspect, "half of it is newer than the other half");
    assert!(!zone.state.is_erasure(chunk(0), replica));
}

#[test]
fn a_replica_that_its_store_has_lost_part_of_comes_back_under_another_name_only() {
    let mut zone = Zone::with_volume();
    let proposer = zone.config(0).primary;
    let kind = remove(&zone, 0, Evidence::ReportedGone {});
    zone.change(0, kind).unwrap();
    let (replica, info) = zone.config(0).stale[0];
    assert!(info.suspect);
    let epoch = zone.change(0, ChangeKind::ReadoptStale { proposer, replica }).unwrap();
    let config = zone.config(0);
    let anew = config.learners[0];
    assert_eq!((anew.node, anew.store), (replica.node, replica.store));
    assert_eq!(anew.incarnation.0, epoch.0, "later than everything that it may have lost");
    assert!(config.replicas().all(|named| named != replica));
    assert!(zone.state.is_erasure(chunk(0), replica));
    zone.change(0, ChangeKind::RemoveLearner { proposer, replica: anew }).unwrap();
    assert!(zone.config(0).stale.is_empty(), "it never was in sync under this name");
    assert!(zone.state.is_erasure(chunk(0), anew));
}

#[test]
fn attach_and_detach_raise_the_generation_and_every_epoch() {
    let mut zone = Zone::with_volume();
    assert_eq!(zone.attach("one", false).unwrap().generation, Generation(1));
    assert!(matches!(zone.attach("two", false), Err(Refusal::Attached { .. })));
    assert_eq!(zone.attach("two", true).unwrap().generation, Generation(2));
    for config in zone.state.configs() {
        assert_eq!((config.epoch, config.generation), (Epoch(3), Generation(2)));
    }
    let detach = |generation, force| Action::Detach {
        token: None,
        volume: volume_id(1),
        generation: Generation(generation),
        force,
    };
    let refused = Refusal::OtherGeneration { current: Generation(2) };
    assert_eq!(zone.apply(detach(1, false)).answer, Err(refused));
    assert!(matches!(zone.apply(detach(0, false)).answer, Err(Refusal::Attached { .. })));
    zone.apply(detach(2, false)).answer.unwrap();
    assert_eq!(zone.config(3).generation, Generation(3));
    assert_eq!(zone.apply(detach(0, true)).answer, Err(Refusal::NotAttached));
}

#[test]
fn an_operators_statement_is_about_the_present_attachment_and_ends_with_it() {
    let mut zone = Zone::with_volume();
    let state = |zone: &mut Zone, generation| {
        let (volume, generation) = (volume_id(1), Generation(generation));
        zone.apply(Action::StateFenced { volume, generation, by: "ada".into() }).answer
    };
    assert_eq!(state(&mut zone, 0), Err(Refusal::NotAttached));
    let volume = zone.attach("one", false).unwrap();
    let blocked = |zone: &Zone, volume: &Volume| {
        let on = crate::describe::attach_blocked_on;
        on(volume, volume.generation, &zone.state, &zone.seen).len()
    };
    assert_eq!(blocked(&zone, &volume), 4);
    let current = Generation(1);
    assert_eq!(state(&mut zone, 2), Err(Refusal::OtherGeneration { current }));
    assert!(crate::describe::attach_stuck(&volume, &zone.state, &zone.seen).is_some());
    state(&mut zone, 1).unwrap();
    assert_eq!(zone.state.fenced(volume_id(1)).unwrap().by, "ada");
    assert_eq!(blocked(&zone, &volume), 0);
    assert_eq!(crate::describe::attach_stuck(&volume, &zone.state, &zone.seen), None);
    let volume = zone.attach("two", true).unwrap();
    assert_eq!((zone.state.fenced(volume_id(1)), blocked(&zone, &volume)), (None, 4));
    state(&mut zone, 2).unwrap();
    let delete = Action::DeleteVolume { token: None, volume: volume_id(1), force: true };
    zone.apply(delete).answer.unwrap();
    assert_eq!(zone.state.fenced(volume_id(1)), None);
}

#[test]
fn a_repeated_request_has_one_effect_and_one_answer_until_its_token_expires() {
    let mut zone = Zone::new();
    let first = zone.create(Some("t"), "v");
    assert_eq!(zone.create(Some("t"), "v"), first);
    assert_eq!(zone.state.volumes().count(), 1);
    assert_eq!(zone.create(Some("t"), "w"), Err(Refusal::TokenMismatch));
    assert_eq!(zone.create(None, "v"), Err(Refusal::NameTaken { by: volume_id(1) }));
    zone.now = zone.now + core::time::Duration::from_millis(TOKEN_LIFE_MILLIS);
    zone.beat();
    assert!(matches!(zone.create(Some("t"), "v"), Err(Refusal::NameTaken { .. })));
}

#[test]
fn a_deleted_volume_leaves_erasures_until_they_are_confirmed() {
    let mut zone = Zone::with_volume();
    zone.attach("one", false).unwrap();
    let delete = |force| Action::DeleteVolume { token: None, volume: volume_id(1), force };
    assert!(matches!(zone.apply(delete(false)).answer, Err(Refusal::Attached { .. })));
    let held: Vec<_> = zone
        .state
        .configs()
        .flat_map(|config| config.replicas().map(|replica| (config.chunk, replica)))
        .collect();
    zone.apply(delete(true)).answer.unwrap();
    assert_eq!(zone.state.configs().count(), 0);
    assert_eq!(zone.state.erasures().count(), held.len());
    assert_eq!(zone.state.allocated_on(NodeId(1), StoreId(1)), 0);
    let (first, replica) = held[0];
    zone.report(first.index.0, replica, ReplicaState::Gone);
    let erased = zone.plan().erased;
    assert_eq!(erased, [(first, replica)]);
    zone.apply(Action::Forget { replicas: erased }).answer.unwrap();
    assert_eq!(zone.state.erasures().count(), held.len() - 1);
}

#[test]
fn a_store_is_bound_to_its_node_and_never_set_back() {
    let zone = Zone::with_volume();
    let foreign = NodeRecord { stores: alloc::vec![StoreId(2)], ..record(9) };
    assert!(matches!(zone.state.check_registration(&foreign), Err(Refusal::StoreTaken { .. })));
    let back = NodeRecord { start: StartNumber(0), ..record(1) };
    assert!(matches!(zone.state.check_registration(&back), Err(Refusal::StartBack { .. })));
}

#[test]
fn a_stale_replica_is_retired_only_while_as_many_as_wanted_are_in_sync() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let member = config.secondaries().next().unwrap();
    let retire = |replica| ChangeKind::Retire { replica };
    assert_eq!(zone.change(0, retire(member)), Err("the replica is not known as stale".into()));
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, kind).unwrap();
    let refused = "fewer than 3 replicas are in sync".into();
    assert_eq!(zone.change(0, retire(member)), Err(refused));
    let spare = (1..=4).map(NodeId).find(|n| config.replicas().all(|r| r.node != *n)).unwrap();
    let proposer = config.primary;
    zone.change(0, ChangeKind::AddLearner { proposer, node: spare }).unwrap();
    let replica = zone.config(0).learners[0];
    let durable = FILLED;
    zone.change(0, ChangeKind::PromoteLearner { proposer, replica, durable }).unwrap();
    zone.change(0, retire(member)).unwrap();
    assert!(zone.config(0).stale.is_empty());
    assert!(zone.state.is_erasure(chunk(0), member), "its holder is told to erase it");
}

/// A node comes with other stores than before.
fn come_with(zone: &mut Zone, node: u32, stores: &[u128]) {
    let stores = stores.iter().map(|store| StoreId(*store)).collect();
    let node = NodeRecord { stores, ..record(node) };
    zone.apply(Action::RegisterNode { node }).answer.unwrap();
}

#[test]
fn that_a_store_is_away_is_no_ones_word_but_what_its_node_registered() {
    let mut zone = Zone::with_volume();
    let refused = Err("the node has the replica's store".into());
    let away = remove(&zone, 0, Evidence::StoreAway {});
    assert_eq!(zone.change(0, away.clone()), refused);
    let config = zone.config(0);
    let (member, other) = (config.secondaries().next().unwrap(), config.secondaries().nth(1));
    let elect = ChangeKind::Elect { primary: member, evidence: Evidence::StoreAway {} };
    assert_eq!(zone.change(0, elect.clone()), refused);
    // Below the minimum it is enough, and what is away may be whole.
    come_with(&mut zone, member.node.0, &[77]);
    zone.change(0, away).unwrap();
    assert_eq!(zone.config(0).stale, [(member, stale_since(1))]);
    come_with(&mut zone, config.primary.node.0, &[78]);
    let primary = other.unwrap();
    let elect = ChangeKind::Elect { primary, evidence: Evidence::StoreAway {} };
    zone.change(0, elect).unwrap();
    assert_eq!(zone.config(0).in_sync, [primary]);
    assert_eq!(zone.config(0).stale[1], (config.primary, stale_since(2)));
}

/// A leader plans by what it hears; what the node registers meanwhile is committed first.
#[test]
fn who_is_gone_with_its_store_is_neither_elected_nor_promoted_nor_counted() {
    let gone = || Err("the node does not have the replica's store any more".into());
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (member, other) = (config.secondaries().next().unwrap(), config.secondaries().nth(1));
    come_with(&mut zone, member.node.0, &[77]);
    let elect = |primary| ChangeKind::Elect { primary, evidence: Evidence::NodeDead {} };
    assert_eq!(zone.change(0, elect(member)), gone());
    zone.change(0, elect(other.unwrap())).unwrap();

    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (proposer, member) = (config.primary, config.secondaries().next().unwrap());
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, kind).unwrap();
    let spare = (1..=4).map(NodeId).find(|n| config.replicas().all(|r| r.node != *n)).unwrap();
    zone.change(0, ChangeKind::AddLearner { proposer, node: spare }).unwrap();
    let replica = zone.config(0).learners[0];
    let promote = ChangeKind::PromoteLearner { proposer, replica, durable: FILLED };
    come_with(&mut zone, spare.0, &[78]);
    assert_eq!(zone.change(0, promote.clone()), gone());
    come_with(&mut zone, spare.0, &[u128::from(spare.0)]);
    zone.change(0, promote).unwrap();
    // Three are in sync, and one of them is not there: nobody is given up.
    come_with(&mut zone, spare.0, &[78]);
    let not_whole = Err("fewer than 3 replicas are in sync".into());
    assert_eq!(zone.change(0, ChangeKind::Retire { replica: member }), not_whole);
    come_with(&mut zone, spare.0, &[u128::from(spare.0)]);
    zone.change(0, ChangeKind::Retire { replica: member }).unwrap();
}

fn stale_since(epoch: u64) -> ashlar_types::StaleInfo {
    ashlar_types::StaleInfo { last_in_sync: Epoch(epoch), suspect: false }
}

#[test]
fn a_replica_that_is_away_gives_way_on_its_own_node_only_and_is_erased_when_it_returns() {
    let mut zone = Zone::with_volume();
    let config = zone.config(0);
    let (proposer, away) = (config.primary, config.secondaries().next().unwrap());
    let kind = remove(&zone, 0, Evidence::Unreachable {});
    zone.change(0, kind).unwrap();
    let spare = (1..=4).map(NodeId).find(|n| config.replicas().all(|r| r.node != *n)).unwrap();
    let on = |node: NodeId, store| crate::command::Place { node, store: StoreId(store) };
    let instead = |place| ChangeKind::AddLearnerInstead { proposer, place, away };
    let own = on(away.node, 77);
    assert_eq!(zone.change(0, instead(own)), Err("the node has the replica's store".into()));
    come_with(&mut zone, away.node.0, &[77]);
    assert!(zone.state.is_store_gone(away));
    assert_eq!(zone.change(0, ChangeKind::Retire { replica: away }), {
        Err("fewer than 3 replicas are in sync".into())
    });
    let other = on(spare, u128::from(spare.0));
    let refused = "the replica is on another node than the one that is to take its place";
    assert_eq!(zone.change(0, instead(other)), Err(refused.into()));
    let beside = ChangeKind::AddLearnerOn { proposer, place: own };
    assert_eq!(zone.change(0, beside), Err("the node holds a replica of the chunk".into()));
    zone.change(0, instead(own)).unwrap();
    let config = zone.config(0);
    assert_eq!((config.learners[0].store, config.stale.len()), (StoreId(77), 0));
    assert!(zone.state.is_erasure(chunk(0), away), "its store may come back");
    assert_eq!(zone.change(0, instead(own)), Err("the replica is not known as stale".into()));
}

#[test]
fn a_volume_that_is_deleted_while_a_store_is_away_is_erased_when_it_comes_back() {
    let mut zone = Zone::with_volume();
    come_with(&mut zone, 1, &[77]);
    let held: Vec<_> = zone
        .state
        .configs()
        .flat_map(|config| config.replicas().map(|replica| (config.chunk, replica)))
        .collect();
    let delete = Action::DeleteVolume { token: None, volume: volume_id(1), force: false };
    zone.apply(delete).answer.unwrap();
    let on_it = |zone: &Zone| zone.state.erasures().filter(|(_, r)| r.node == NodeId(1)).count();
    assert_eq!(on_it(&zone), held.iter().filter(|(_, r)| r.node == NodeId(1)).count());
    assert!(on_it(&zone) > 0);
    come_with(&mut zone, 1, &[77, 1]);
    assert!(on_it(&zone) > 0, "its holder is told now");
    let (first, replica) = held.into_iter().find(|(_, r)| r.node == NodeId(1)).unwrap();
    zone.report(first.index.0, replica, ReplicaState::Gone);
    assert_eq!(zone.plan().erased, [(first, replica)]);
}

#[test]
fn newer_versions_and_foreign_zones_are_refused_by_name() {
    let zone = Zone::with_volume();
    let command = Command { at_millis: 1, action: Action::MarkReady { volumes: Vec::new() } };
    let mut bytes = command.encode();
    let found = crate::command::COMMAND_VERSION + 1;
    bytes[..2].copy_from_slice(&found.to_le_bytes());
    assert_eq!(Command::decode(&bytes), Err(CommandError::NewerVersion { found }));
    assert!(Command::decode(&bytes[..4]).is_err());
    let mut snapshot = zone.state.to_snapshot();
    let foreign = ZoneState::from_snapshot("b".parse().unwrap(), &snapshot);
    assert!(matches!(foreign, Err(StateError::Zone { .. })));
    snapshot[0] = 9;
    let newer = ZoneState::from_snapshot(zone_id(), &snapshot);
    assert!(matches!(newer, Err(StateError::NewerVersion { found: 9, .. })));
}

#[test]
fn damaged_bytes_are_refused_or_read_never_a_panic() {
    let mut zone = Zone::with_volume();
    zone.attach("one", false).unwrap();
    let snapshot = zone.state.to_snapshot();
    let command = Command {
        at_millis: 1,
        action: Action::Change {
            changes: [ChunkChange {
                chunk: chunk(0),
                epoch: Epoch(1),
                kind: remove(&zone, 0, Evidence::NodeDead {}),
            }]
            .into(),
        },
    };
    let command = command.encode();
    for at in 0..snapshot.len() {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 0x41;
        // A changed number may still be a state; what is read holds its own rules.
        if let Ok(state) = ZoneState::from_snapshot(zone_id(), &damaged) {
            assert!(state.configs().all(|config| config.check().is_ok()));
        }
        assert!(ZoneState::from_snapshot(zone_id(), &snapshot[..at]) != Ok(zone.state.clone()));
    }
    for at in 0..command.len() {
        let mut damaged = command.clone();
        damaged[at] ^= 0x41;
        if let Ok(command) = Command::decode(&damaged) {
            zone.state.clone().apply(&command);
        }
        assert!(Command::decode(&command[..at]).is_err());
    }
}

#[test]
fn a_volume_is_ready_once_every_primary_serves() {
    let mut zone = Zone::with_volume();
    for index in 0..4 {
        assert!(zone.plan().ready.is_empty());
        let primary = zone.config(index).primary;
        zone.report(index, primary, ReplicaState::Serving);
    }
    assert_eq!(zone.plan().ready, [volume_id(1)]);
    zone.apply(Action::MarkReady { volumes: [volume_id(1)].into() });
    assert!(zone.state.volume(volume_id(1)).unwrap().ready);
    assert!(zone.plan().ready.is_empty());
}

#[test]
fn unknown_chunks_are_refused() {
    let mut zone = Zone::new();
    let evidence = Evidence::NodeDead {};
    let kind = ChangeKind::Elect { primary: ReplicaId::default(), evidence };
    let change = ChunkChange { chunk: chunk(0), epoch: Epoch(1), kind };
    let outcome = zone.apply(Action::Change { changes: [change].into() }).outcomes;
    assert_eq!(outcome[0].result, Err(ChangeRefusal::UnknownChunk));
}

#[test]
fn a_learner_goes_to_a_known_node_only() {
    let zone = Zone::with_volume();
    let chunk = crate::state::Chunk { config: zone.config(0), readopting: Vec::new() };
    let kind = ChangeKind::AddLearner { proposer: chunk.config.primary, node: NodeId(99) };
    let change = ChunkChange { chunk: chunk.config.chunk, epoch: Epoch(1), kind };
    let result = next(&chunk, &change, |node| zone.state.node(node), |_| false);
    assert_eq!(result, Err(ChangeRefusal::UnknownNode));
}

#[test]
fn how_long_requests_of_a_volume_wait_is_kept_with_it_and_goes_with_it() {
    let mut zone = Zone::new();
    let mut action = zone.creation("v");
    if let Action::CreateVolume { error_after, .. } = &mut action {
        error_after.millis = 30_000;
    }
    zone.apply(action).answer.unwrap();
    let waits = |zone: &Zone, volume| zone.state.error_after_millis(volume);
    assert_eq!(waits(&zone, volume_id(1)), 30_000);
    zone.create(None, "w").unwrap();
    assert_eq!(waits(&zone, volume_id(2)), 0);
    let again = ZoneState::from_snapshot(zone_id(), &zone.state.to_snapshot()).unwrap();
    assert_eq!(again.error_after_millis(volume_id(1)), 30_000);
    let volume = volume_id(1);
    zone.apply(Action::DeleteVolume { token: None, volume, force: false }).answer.unwrap();
    assert_eq!(waits(&zone, volume), 0);
}
