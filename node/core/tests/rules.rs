//! Each safety rule of replication, on one node alone: fed by hand, its effects looked at.
//!
//! Each test fails when its rule is taken out. Rules that need several nodes to show are judged in
//! `sim/`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::Record;
use ashlar_types::message::cluster::{Change, ControlDown, ReplicaState};
use ashlar_types::message::data::{DataMessage, History, PeerRefusal, Refusal, Stamp, Uncommitted};
use ashlar_types::{
    BlockData, BlockRange, ChunkConfig, Epoch, Generation, Incarnation, Lsn, NodeId, ReplicaId,
    RequestId, SessionId, StartNumber, Term,
};
use common::*;
use std::time::Duration;

#[test]
fn a_member_acknowledges_only_what_is_on_stable_media() {
    let (mut hands, of) = following();
    let sent = hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    assert_eq!(acked(&sent), None, "acknowledged before the journal had it");
    assert_eq!(acked(&hands.sync()), Some(lsn(of, 1)));
}

#[test]
fn nothing_waits_for_a_record_that_may_itself_wait() {
    let (mut hands, of) = following();
    hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    hands.sync();
    let told = DataMessage::Committed { chunk: chunk(), epoch: Epoch(1), lsn: lsn(of, 1) };
    hands.peer_says(1, told);
    assert!(matches!(hands.journal.last(), Some(Record::Committed { .. })));
    let again = hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    assert_eq!(acked(&again), Some(lsn(of, 1)), "held behind a mark that is never flushed alone");
}

#[test]
fn a_member_acknowledges_one_prefix_for_a_whole_group() {
    let (mut hands, of) = following();
    for counter in 1..=5 {
        hands.peer_says(1, mirror(1, lsn(of, counter), block(0, 1)));
    }
    let sent = hands.sync();
    assert_eq!(sent.len(), 1);
    assert_eq!(acked(&sent), Some(lsn(of, 5)));
}

#[test]
fn a_member_refuses_a_gap_and_takes_a_repetition_once() {
    let (mut hands, of) = following();
    let sent = hands.peer_says(1, mirror(1, lsn(of, 2), block(0, 1)));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::Gap(_))));
    hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    hands.sync();
    let journalled = hands.journal.len();
    let again = hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    assert_eq!(hands.journal.len(), journalled, "a repeated write was applied twice");
    assert_eq!(acked(&again), Some(lsn(of, 1)));
}

#[test]
fn a_member_refuses_a_lower_epoch_and_one_that_it_has_not_adopted() {
    let (mut hands, of) = following();
    hands.feed(order(ControlDown::Configs(vec![config(2)])));
    let sent = hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    assert!(
        matches!(refusal(&sent), Some(PeerRefusal::LowerEpoch(known)) if known.epoch == Epoch(2))
    );
    let sent = hands.peer_says(1, mirror(3, lsn(of, 1), block(0, 1)));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::NotAdopted(Epoch(2)))));
    let confirm = DataMessage::Confirm { chunk: chunk(), epoch: Epoch(1), term: of, round: 1 };
    assert!(refusal(&hands.peer_says(1, confirm)).is_some(), "a deposed primary may read");
}

#[test]
fn a_member_refuses_a_lower_term_also_after_a_restart() {
    let (mut hands, _) = following();
    let later = term(1, 2);
    hands.peer_says(1, DataMessage::Collect { config: Box::new(config(1)), term: later });
    hands.sync();
    let sent = hands.peer_says(1, mirror(1, lsn(term(1, 1), 1), block(0, 1)));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::LowerTerm(t)) if *t == later));
    let (mut hands, _) = Hands::new(2, 2, hands.crash());
    let sent = hands.peer_says(1, mirror(1, lsn(term(1, 1), 1), block(0, 1)));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::LowerTerm(_))));
}

#[test]
fn a_member_promises_a_term_only_when_the_promise_is_durable() {
    let (mut hands, _) = following();
    let message = DataMessage::Collect { config: Box::new(config(1)), term: term(1, 2) };
    assert!(hands.peer_says(1, message).is_empty());
    assert!(matches!(hands.sync().as_slice(), [(_, DataMessage::Collected { .. })]));
}

#[test]
fn an_opening_is_refused_by_a_member_that_is_not_complete_to_its_base() {
    let (mut hands, of) = following();
    let later = term(1, 2);
    hands.peer_says(1, mirror(1, lsn(of, 1), block(3, 1)));
    hands.peer_says(1, DataMessage::Collect { config: Box::new(config(1)), term: later });
    let open = |base, overwrite| DataMessage::OpenTerm {
        chunk: chunk(),
        epoch: Epoch(1),
        term: later,
        base,
        overwrite,
    };
    let sent = hands.peer_says(1, open(lsn(of, 2), vec![BlockRange::new(3, 1)]));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::Gap(_))), "writes are missing here");
    let sent = hands.peer_says(1, open(lsn(of, 0), vec![]));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::Gap(_))), "block 3 would stay different");
    let sent = hands.peer_says(1, open(lsn(of, 0), vec![BlockRange::new(3, 1)]));
    assert!(refusal(&sent).is_none());
    let kept = &hands.core.durable(chunk()).unwrap().uncommitted;
    let expected = Uncommitted { lsn: lsn(later, 1), range: BlockRange::new(3, 1) };
    assert_eq!(kept.as_slice(), [expected]);
}

#[test]
fn a_write_is_acknowledged_only_when_every_in_sync_replica_has_it_on_stable_media() {
    let mut hands = serving(config(1));
    let of = term(1, 1);
    let sent = hands.client_says(write(1, 1, block(0, 1)));
    let mirrored = sent.iter().filter(|(_, m)| matches!(m, DataMessage::Mirror { .. })).count();
    assert_eq!(mirrored, 2, "mirrors leave before the journal's own write is done");
    assert!(!is_done(&sent, 1));
    assert!(!is_done(&hands.ack(2, lsn(of, 1)), 1));
    assert!(!is_done(&hands.ack(3, lsn(of, 1)), 1), "not durable here yet");
    assert!(is_done(&hands.sync(), 1));
    hands.client_says(write(2, 1, block(0, 2)));
    assert!(!is_done(&hands.sync(), 2), "no secondary has it");
    assert!(!is_done(&hands.ack(2, lsn(of, 2)), 2), "one secondary lacks it");
    assert!(is_done(&hands.ack(3, lsn(of, 2)), 2));
}

#[test]
fn with_fewer_than_copies_min_in_sync_writes_wait() {
    let alone = ChunkConfig {
        in_sync: vec![replica(1)],
        stale: vec![(replica(2), Default::default()), (replica(3), Default::default())],
        ..config(1)
    };
    let mut hands = serving(alone);
    let sent = hands.client_says(write(1, 1, block(0, 1)));
    assert!(sent.is_empty() && hands.sync().is_empty(), "acknowledged with a single copy");
}

#[test]
fn a_write_committed_with_too_few_copies_is_acknowledged_only_when_there_are_enough() {
    let mut hands = serving(config(1));
    hands.client_says(write(1, 1, block(0, 1)));
    hands.sync();
    let shrunk = ChunkConfig {
        in_sync: vec![replica(1)],
        stale: vec![(replica(2), Default::default()), (replica(3), Default::default())],
        ..config(2)
    };
    let sent = hands.feed(order(ControlDown::Configs(vec![shrunk])));
    assert!(!is_done(&sent, 1) && !is_done(&hands.sync(), 1));
}

#[test]
fn wrong_epochs_generations_and_sessions_are_refused_with_the_reason() {
    let mut hands = serving(config(3));
    let of = |sent: Vec<(NodeId, DataMessage)>| match sent.into_iter().next() {
        Some((_, DataMessage::Refused { refusal, .. })) => Some(refusal),
        _ => None,
    };
    let refused = of(hands.client_says(write(1, 2, block(0, 1))));
    assert!(matches!(refused, Some(Refusal::WrongEpoch(known)) if known.epoch == Epoch(3)));
    let old = Stamp { generation: Generation(0), ..stamp(3) };
    let message = DataMessage::Write { id: RequestId(2), stamp: old, data: block(0, 1) };
    assert_eq!(
        of(hands.client_says(message)),
        Some(Refusal::WrongGeneration { current: Generation(1) })
    );
    let newer = Stamp { session: SessionId(2), ..stamp(3) };
    hands.client_says(DataMessage::Write { id: RequestId(3), stamp: newer, data: block(0, 1) });
    assert_eq!(of(hands.client_says(write(4, 3, block(0, 1)))), Some(Refusal::SessionEnded));
    let outside = DataMessage::Write { id: RequestId(5), stamp: newer, data: block(16, 1) };
    assert_eq!(of(hands.client_says(outside)), Some(Refusal::BadRequest));
}

#[test]
fn a_read_needs_a_confirmation_asked_after_it_arrived() {
    let mut hands = serving(config(1));
    let of = term(1, 1);
    let read =
        |id| DataMessage::Read { id: RequestId(id), stamp: stamp(1), range: BlockRange::new(0, 1) };
    let confirmed = |round| DataMessage::Confirmed { chunk: chunk(), term: of, round };
    let asked = hands.client_says(read(1));
    let questions = asked.iter().filter(|(_, m)| matches!(m, DataMessage::Confirm { .. })).count();
    assert_eq!(questions, 2);
    assert!(hands.answer_reads(7).is_empty(), "answered without a confirmation");
    hands.client_says(read(2));
    hands.answer_reads(7);
    assert!(hands.peer_says(2, confirmed(1)).is_empty());
    let sent = hands.peer_says(3, confirmed(1));
    let answered: Vec<u64> = sent
        .iter()
        .filter_map(|(_, m)| match m {
            DataMessage::ReadDone { id, .. } => Some(id.0),
            _ => None,
        })
        .collect();
    assert_eq!(answered, [1], "the second read arrived after the question was asked");
}

#[test]
fn a_read_does_not_show_a_write_before_it_is_committed() {
    let mut hands = serving(config(1));
    let of = term(1, 1);
    hands.client_says(write(1, 1, block(0, 9)));
    hands.sync();
    hands.client_says(DataMessage::Read {
        id: RequestId(2),
        stamp: stamp(1),
        range: BlockRange::new(0, 1),
    });
    hands.answer_reads(9);
    for peer in [2, 3] {
        let sent =
            hands.peer_says(peer, DataMessage::Confirmed { chunk: chunk(), term: of, round: 1 });
        assert!(sent.is_empty(), "shown while a secondary lacks it");
    }
    hands.ack(2, lsn(of, 1));
    let sent = hands.ack(3, lsn(of, 1));
    assert!(sent.iter().any(|(_, m)| matches!(m, DataMessage::ReadDone { .. })));
}

#[test]
fn a_restarted_primary_overwrites_what_it_does_not_know_to_be_committed_before_it_serves() {
    let mut hands = serving(config(1));
    hands.client_says(write(1, 1, block(5, 1)));
    hands.sync();
    let (mut hands, sent) = Hands::new(1, 2, hands.crash());
    assert!(sent.is_empty(), "nothing may leave before the new term is durable");
    let of = term(1, 2);
    hands.link_up(2, 1);
    hands.link_up(3, 1);
    hands.sync();
    let elsewhere = Uncommitted { lsn: lsn(term(1, 1), 1), range: BlockRange::new(7, 1) };
    let known =
        History { last: lsn(term(1, 1), 1), committed: Lsn::ZERO, uncommitted: vec![elsewhere] };
    hands.collected(2, of, known);
    hands.collected(3, of, History { last: Lsn::opening(term(1, 1)), ..History::default() });
    let opened = hands.sync();
    let ranges = opened.iter().find_map(|(_, m)| match m {
        DataMessage::OpenTerm { overwrite, .. } => Some(overwrite.clone()),
        _ => None,
    });
    assert_eq!(ranges, Some(vec![BlockRange::new(5, 1), BlockRange::new(7, 1)]));
    hands.ack(2, Lsn::opening(of));
    hands.ack(3, Lsn::opening(of));
    assert_eq!(hands.state(), ReplicaState::Opening);
    hands.answer_reads(1);
    hands.answer_reads(2);
    hands.sync();
    hands.ack(2, lsn(of, 2));
    assert_eq!(hands.state(), ReplicaState::Opening, "an overwrite is not committed yet");
    hands.ack(3, lsn(of, 2));
    assert_eq!(hands.state(), ReplicaState::Serving);
}

#[test]
fn a_new_primary_takes_over_the_longest_history_as_uncommitted_first() {
    let elected = ChunkConfig {
        elected: Epoch(2),
        primary: replica(2),
        in_sync: vec![replica(2), replica(3)],
        stale: vec![(replica(1), Default::default())],
        ..config(2)
    };
    let (mut hands, of) = following();
    // Long enough after its start: no lease of an earlier process stands.
    hands.tick_after(Duration::from_secs(1));
    hands.feed(order(ControlDown::Configs(vec![elected])));
    hands.sync();
    let ours = term(2, 1);
    let longer = History {
        last: lsn(of, 1),
        committed: Lsn::ZERO,
        uncommitted: vec![Uncommitted { lsn: lsn(of, 1), range: BlockRange::new(4, 1) }],
    };
    hands.collected(3, ours, longer);
    let sent = hands.sync();
    assert!(matches!(sent.as_slice(), [(NodeId(3), DataMessage::Fetch { .. })]));
    hands.peer_says(3, DataMessage::Fetched { chunk: chunk(), term: ours, data: block(4, 8) });
    let kinds: Vec<bool> =
        hands.journal.iter().rev().take(3).map(|r| matches!(r, Record::Fill { .. })).collect();
    assert_eq!(kinds, [false, true, false], "taken over, filled, opened, in this order");
    assert!(hands.journal.iter().any(|r| matches!(r, Record::TakeOver { .. })));
}

#[test]
fn a_primary_that_lacks_committed_writes_says_so_and_does_not_serve() {
    let (mut hands, _) = Hands::with(1, config(1));
    let of = term(1, 1);
    let before = lsn(term(1, 0), 7);
    hands.collected(2, of, History { last: before, committed: before, ..History::default() });
    hands.collected(3, of, History { last: before, ..History::default() });
    hands.sync();
    assert_eq!(hands.alarms, 1);
    assert_eq!(hands.state(), ReplicaState::Stale, "the control plane would not elect another");
    let sent = hands.client_says(write(1, 1, block(0, 1)));
    assert!(
        sent.is_empty()
            && hands
                .tick_after(Duration::from_secs(1))
                .iter()
                .all(|(_, m)| { !matches!(m, DataMessage::OpenTerm { .. }) })
    );
}

fn with_learner(epoch: u64) -> ChunkConfig {
    ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        learners: vec![replica(4)],
        stale: vec![(replica(3), Default::default())],
        ..config(epoch)
    }
}

#[test]
fn a_learner_keeps_what_a_later_write_put_and_takes_no_copy_for_another_process() {
    let (mut hands, _) = Hands::with(4, with_learner(2));
    let of = term(1, 1);
    let base = lsn(of, 5);
    let open = DataMessage::OpenLearner {
        config: Box::new(with_learner(2)),
        base,
        learner_start: StartNumber(1),
    };
    hands.peer_says(1, open);
    assert_eq!(acked(&hands.sync()), Some(base));
    hands.peer_says(1, mirror(2, lsn(of, 6), block(3, 6)));
    let copy = |learner_start, read_at| DataMessage::Copy {
        chunk: chunk(),
        epoch: Epoch(2),
        read_at,
        learner_start: StartNumber(learner_start),
        number: 1,
        data: BlockData::holes(BlockRange::new(2, 3)),
    };
    let sent = hands.peer_says(1, copy(9, base));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::OtherStart(StartNumber(1)))));
    hands.peer_says(1, copy(1, base));
    let filled: Vec<BlockRange> = hands
        .journal
        .iter()
        .filter_map(|r| match r {
            Record::Fill { data, .. } => Some(data.range),
            _ => None,
        })
        .collect();
    assert_eq!(filled, [BlockRange::new(2, 1), BlockRange::new(4, 1)], "block 3 is newer here");
}

/// Node 1 with learner 4, filled but for the acknowledgement of its last copy.
fn almost_filled() -> (Hands, Term) {
    let mut hands = serving(with_learner(2));
    let of = term(1, 1);
    hands.ack_of(4, Lsn::opening(of), Some(Lsn::opening(of)));
    let sent = hands.answer_reads(0);
    assert!(sent.iter().any(|(to, m)| *to == NodeId(4) && matches!(m, DataMessage::Copy { .. })));
    (hands, of)
}

fn copy_ack(of: Term) -> DataMessage {
    DataMessage::CopyAck { chunk: chunk(), term: of, learner_start: StartNumber(1), number: 1 }
}

#[test]
fn a_promotion_is_proposed_only_when_every_block_is_copied_and_the_proposal_is_durable() {
    let (mut hands, of) = almost_filled();
    hands.tick_after(Duration::from_millis(300));
    assert!(hands.proposed.is_empty(), "proposed with a copy missing");
    hands.peer_says(4, copy_ack(of));
    assert!(hands.proposed.is_empty(), "proposed before the proposal was journalled");
    hands.sync();
    assert!(matches!(hands.proposed.as_slice(), [Change::PromoteLearner { .. }]));
}

#[test]
fn from_its_proposal_on_a_learner_counts_as_in_sync_also_after_a_restart() {
    let (mut hands, of) = almost_filled();
    hands.peer_says(4, copy_ack(of));
    hands.sync();
    hands.client_says(write(1, 2, block(0, 1)));
    hands.sync();
    assert!(!is_done(&hands.ack(2, lsn(of, 1)), 1), "acknowledged without the learner");
    assert!(is_done(&hands.ack(4, lsn(of, 1)), 1));
    let (mut hands, _) = Hands::new(1, 2, hands.crash());
    for peer in [2, 4] {
        hands.link_up(peer, 1);
    }
    let asked: Vec<NodeId> = hands.sync().iter().map(|(to, _)| *to).collect();
    assert!(asked.contains(&NodeId(4)), "the learner's promotion may have been committed");
    hands.collected(2, term(1, 2), History { last: lsn(of, 1), ..History::default() });
    assert_eq!(hands.state(), ReplicaState::Opening, "opened without the learner's history");
}

#[test]
fn a_learner_that_restarts_is_filled_from_the_beginning() {
    let (mut hands, of) = almost_filled();
    hands.link_up(4, 2);
    hands.peer_says(4, copy_ack(of));
    hands.sync();
    hands.tick_after(Duration::from_millis(300));
    assert!(hands.proposed.is_empty(), "proposed although its process was lost in mid-fill");
}

#[test]
fn an_adoption_is_reported_only_when_it_is_durable() {
    let (mut hands, _) = following();
    let attached = ChunkConfig { generation: Generation(2), ..config(2) };
    hands.feed(order(ControlDown::Configs(vec![attached])));
    let report = hands.core.reports().next().unwrap();
    assert_eq!((report.adopted, report.generation), (Epoch(1), Generation(1)));
    hands.sync();
    let report = hands.core.reports().next().unwrap();
    assert_eq!((report.adopted, report.generation), (Epoch(2), Generation(2)));
}

#[test]
fn a_replica_is_erased_by_its_full_name_only() {
    let (mut hands, _) = following();
    let other = ReplicaId { incarnation: Incarnation(2), ..replica(2) };
    hands.feed(order(ControlDown::Erase(vec![(chunk(), other)])));
    assert!(hands.core.durable(chunk()).is_some(), "another incarnation's order erased it");
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    assert!(hands.core.durable(chunk()).is_none());
    assert!(matches!(hands.journal.last(), Some(Record::Erase { .. })));
    assert_eq!(hands.node, 2);
}

#[test]
fn a_silent_secondary_is_proposed_for_removal_and_never_removed_alone() {
    let mut hands = serving(config(1));
    hands.client_says(write(1, 1, block(0, 1)));
    hands.sync();
    hands.ack(2, lsn(term(1, 1), 1));
    for _ in 0..12 {
        hands.peer_says(2, beat());
        let sent = hands.tick_after(Duration::from_millis(100));
        assert!(!is_done(&sent, 1), "the primary went on without a committed removal");
    }
    assert!(matches!(
        hands.proposed.first(),
        Some(Change::RemoveSecondary { replica: lost, .. }) if *lost == replica(3)
    ));
    let removed = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        stale: vec![(replica(3), Default::default())],
        ..config(2)
    };
    let sent = hands.feed(order(ControlDown::Configs(vec![removed])));
    assert!(is_done(&sent, 1) || is_done(&hands.sync(), 1));
}

#[test]
fn a_node_that_was_not_listening_accuses_nobody_before_it_has_listened_again() {
    let mut hands = serving(config(1));
    hands.tick_after(Duration::from_secs(5));
    assert!(hands.proposed.is_empty(), "took its own pause for the silence of others");
    for _ in 0..9 {
        hands.tick_after(Duration::from_millis(100));
    }
    assert!(hands.proposed.is_empty(), "accused before it had listened for long enough");
    hands.tick_after(Duration::from_millis(100));
    assert!(matches!(hands.proposed.first(), Some(Change::RemoveSecondary { .. })));
}

#[test]
fn a_committed_mark_counts_under_the_adopted_epoch_only() {
    let (mut hands, of) = following();
    hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    hands.sync();
    let told =
        |epoch| DataMessage::Committed { chunk: chunk(), epoch: Epoch(epoch), lsn: lsn(of, 1) };
    hands.peer_says(1, told(2));
    assert!(hands.core.durable(chunk()).unwrap().committed < lsn(of, 1), "epoch 2 is not adopted");
    hands.peer_says(1, told(1));
    assert_eq!(hands.core.durable(chunk()).unwrap().committed, lsn(of, 1));
}

#[test]
fn nobody_but_the_primary_of_the_epoch_writes_to_its_members() {
    let (mut hands, of) = following();
    let sent = hands.peer_says(3, mirror(1, lsn(of, 1), block(0, 1)));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::LowerEpoch(_))), "{sent:?}");
    assert_eq!(hands.core.durable(chunk()).unwrap().last, Lsn::opening(of));
}

#[test]
fn a_fill_that_was_meant_for_an_earlier_process_of_the_learner_is_refused() {
    let learning =
        ChunkConfig { in_sync: vec![replica(1)], learners: vec![replica(2)], ..config(2) };
    let (mut hands, _) = Hands::with(2, learning.clone());
    let open = |start| DataMessage::OpenLearner {
        config: Box::new(learning.clone()),
        base: lsn(term(1, 1), 3),
        learner_start: StartNumber(start),
    };
    let sent = hands.peer_says(1, open(7));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::OtherStart(StartNumber(1)))), "{sent:?}");
    let begun = |hands: &Hands| hands.journal.iter().any(|r| matches!(r, Record::OpenFill { .. }));
    assert!(!begun(&hands));
    hands.peer_says(1, open(1));
    assert!(begun(&hands));
}
