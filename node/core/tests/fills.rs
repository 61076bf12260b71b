//! Fills of learners when messages overtake each other and processes restart in the middle: what
//! `model/` found. Each test fails when its rule is taken out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Record, Timing};
use ashlar_types::message::cluster::{Change, ControlDown};
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{BlockRange, ChunkConfig, ChunkId, ChunkIndex, Epoch, Lsn, NodeId, StartNumber};
use common::{
    Hands, block, chunk, config, lsn, mirror, order, refusal, replica, serving, term, write,
};
use std::time::Duration;

type Sent = Vec<(NodeId, DataMessage)>;

/// Node 1 alone in sync, node 4 being filled; one block, so that one copy is everything.
fn one_block() -> ChunkConfig {
    ChunkConfig {
        blocks: 1,
        in_sync: vec![replica(1)],
        learners: vec![replica(4)],
        copies_min: 1,
        ..config(2)
    }
}

/// Hands over what was sent to a node; gives what it answers, also after its group commit.
fn relay(sent: Sent, from: u32, to: &mut Hands) -> Sent {
    let name = to.node;
    let mut answers = vec![];
    for (_, message) in sent.into_iter().filter(|(node, _)| node.0 == name) {
        answers.extend(to.peer_says(from, message));
    }
    answers.extend(to.sync());
    answers
}

fn opens_a_fill(sent: &Sent) -> bool {
    sent.iter().any(|(_, message)| matches!(message, DataMessage::OpenLearner { .. }))
}

/// First byte of the one block, as the journal leaves it.
fn content(hands: &Hands) -> Option<u8> {
    hands.journal.iter().rev().find_map(|record| match record {
        Record::Write { data, .. } | Record::Fill { data, .. } => {
            Some(data.data.first().copied().unwrap_or_default())
        }
        _ => None,
    })
}

/// A primary whose learner is being filled, has the first write, and restarts.
fn learner_restarts_with_one_write() -> (Hands, Hands) {
    let mut primary = serving(one_block());
    let (mut learner, _) = Hands::with(4, one_block());
    let again = primary.tick_after(Duration::from_millis(600));
    assert!(opens_a_fill(&again), "the opening is sent again");
    let answers = relay(again, 1, &mut learner);
    relay(answers, 4, &mut primary);
    primary.reads.clear();
    let mirrors = primary.client_says(write(1, 2, block(0, 1)));
    let answers = relay(mirrors, 1, &mut learner);
    relay(answers, 4, &mut primary);
    let (learner, _) = Hands::new(4, 2, learner.crash());
    primary.link_up(4, 2);
    primary.sync();
    (primary, learner)
}

#[test]
fn a_write_that_overtakes_the_opening_of_a_fill_is_not_lost() {
    let (mut primary, mut learner) = learner_restarts_with_one_write();
    // Another chunk keeps the journal busy: what waits for it is overtaken by mirrors.
    let other = ChunkId { index: ChunkIndex(1), ..chunk() };
    let elsewhere = ChunkConfig { chunk: other, primary: replica(2), ..config(1) };
    primary.feed(order(ControlDown::Configs(vec![elsewhere])));
    assert!(!opens_a_fill(&primary.tick_after(Duration::from_millis(50))), "it waits");
    // The learner says again what it has, before it has heard of the fill.
    let mut to_primary = learner.link_up(1, 1);
    to_primary.extend(learner.sync());
    let mut late = vec![];
    for (_, message) in to_primary.into_iter().filter(|(node, _)| node.0 == 1) {
        late.extend(primary.peer_says(4, message));
    }
    late.extend(primary.answer_reads(1));
    let mirrors = primary.client_says(write(2, 2, block(0, 2)));
    let early = relay(mirrors, 1, &mut learner);
    for (_, message) in early.into_iter().filter(|(node, _)| node.0 == 1) {
        primary.peer_says(4, message);
    }
    let opening = primary.sync();
    assert!(opens_a_fill(&opening));
    let mut to_primary = relay(opening, 1, &mut learner);
    to_primary.extend(relay(late, 1, &mut learner));
    for _ in 0..8 {
        let mut to_learner = relay(to_primary, 4, &mut primary);
        to_learner.extend(primary.answer_reads(2));
        to_learner.extend(primary.tick_after(Duration::from_millis(100)));
        to_primary = relay(to_learner, 1, &mut learner);
    }
    let promoted = |change: &Change| matches!(change, Change::PromoteLearner { .. });
    assert!(primary.proposed.iter().any(promoted), "the fill ends");
    assert_eq!(content(&learner), Some(2), "promoted without the second write");
}

fn open_learner(base: Lsn) -> DataMessage {
    let config = Box::new(one_block());
    DataMessage::OpenLearner { config, base, learner_start: StartNumber(1) }
}

/// A learner whose fill began at position 2, with the write after it.
fn learner_from_two() -> Hands {
    let of = term(1, 1);
    let (mut learner, _) = Hands::with(4, one_block());
    learner.peer_says(1, open_learner(lsn(of, 2)));
    learner.peer_says(1, mirror(2, lsn(of, 3), block(0, 3)));
    learner.sync();
    learner
}

#[test]
fn an_older_opening_that_arrives_late_does_not_take_a_learner_back() {
    let mut learner = learner_from_two();
    learner.peer_says(1, open_learner(lsn(term(1, 1), 1)));
    learner.sync();
    assert_eq!(learner.core.durable(chunk()).unwrap().last, lsn(term(1, 1), 3));
}

#[test]
fn a_copy_read_before_the_fill_began_is_refused() {
    let of = term(1, 1);
    let (mut learner, _) = Hands::with(4, one_block());
    learner.peer_says(1, open_learner(lsn(of, 2)));
    learner.sync();
    let copy = |read_at| DataMessage::Copy {
        chunk: chunk(),
        epoch: Epoch(2),
        read_at,
        learner_start: StartNumber(1),
        number: 1,
        data: block(0, 1),
    };
    let sent = learner.peer_says(1, copy(lsn(of, 1)));
    assert!(matches!(refusal(&sent), Some(PeerRefusal::Gap(_))));
    assert_eq!(content(&learner), None, "a write in between may not have come here");
    learner.peer_says(1, copy(lsn(of, 2)));
    assert_eq!(content(&learner), Some(1));
}

/// Numbers of the copies among what was sent.
fn copies(sent: &Sent) -> Vec<u64> {
    let number = |message: &DataMessage| match message {
        DataMessage::Copy { number, data, .. } => {
            assert_eq!(data.range, BlockRange::new(0, 1));
            Some(*number)
        }
        _ => None,
    };
    sent.iter().filter_map(|(_, message)| number(message)).collect()
}

#[test]
fn an_answer_to_a_copy_of_an_earlier_fill_ends_none_of_the_next() {
    let mut primary = serving(one_block());
    let base = Lsn::opening(term(1, 1));
    primary.ack_of(4, base, Some(base));
    let first = copies(&primary.answer_reads(1));
    assert_eq!(first.len(), 1);
    // The learner is given up and added again: the same process, the same term, the same base.
    let without = ChunkConfig {
        learners: vec![],
        stale: vec![(replica(4), Default::default())],
        ..ChunkConfig { epoch: Epoch(3), ..one_block() }
    };
    let again = ChunkConfig { epoch: Epoch(4), ..one_block() };
    primary.feed(order(ControlDown::Configs(vec![without])));
    primary.feed(order(ControlDown::Configs(vec![again])));
    primary.tick_after(Duration::from_millis(50));
    primary.sync();
    primary.ack_of(4, base, Some(base));
    let second = copies(&primary.answer_reads(1));
    assert_eq!(second.len(), 1);
    for number in [&first, &second] {
        let before = primary.journal.len();
        primary.peer_says(
            4,
            DataMessage::CopyAck {
                chunk: chunk(),
                term: term(1, 1),
                learner_start: StartNumber(1),
                number: number[0],
            },
        );
        let proposed = primary.journal[before..]
            .iter()
            .any(|record| matches!(record, Record::ProposePromotion { .. }));
        assert_eq!(proposed, number == &second, "only its own copy completes a fill");
    }
}

#[test]
fn an_acknowledgement_from_outside_the_fill_does_not_open_it() {
    let mut primary = serving(one_block());
    let base = Lsn::opening(term(1, 1));
    primary.ack_of(4, base, None);
    assert!(primary.reads.is_empty(), "it may not have heard of the fill");
    let mirrored = |sent: &Sent| sent.iter().any(|(_, m)| matches!(m, DataMessage::Mirror { .. }));
    assert!(!mirrored(&primary.client_says(write(1, 2, block(0, 1)))));
    primary.ack_of(4, base, Some(base));
    assert!(!primary.reads.is_empty());
}

/// The chunk of another number, being filled like [`one_block`].
fn another(index: u32) -> ChunkConfig {
    ChunkConfig { chunk: ChunkId { index: ChunkIndex(index), ..chunk() }, ..one_block() }
}

#[test]
fn a_primary_that_is_erased_in_the_middle_of_a_fill_leaves_its_place_to_others() {
    let fills = u32::try_from(Timing::default().fills_max).unwrap();
    let (mut hands, _) = Hands::with(1, another(0));
    let chunks: Vec<_> = (0..fills).map(another).collect();
    hands.feed(order(ControlDown::Configs(chunks.clone())));
    hands.sync();
    let last = order(ControlDown::Configs(vec![another(fills)]));
    hands.feed(last);
    let waits = hands.sync();
    assert!(!opens_a_fill(&waits), "as many fills as the node may have");
    let orders = chunks.iter().map(|config| (config.chunk, replica(1))).collect();
    hands.feed(order(ControlDown::Erase(orders)));
    hands.sync();
    assert!(opens_a_fill(&hands.tick_after(Duration::from_millis(50))));
}

#[test]
fn a_client_of_a_primary_that_is_erased_is_told() {
    let mut primary = serving(one_block());
    primary.client_says(write(7, 2, block(0, 1)));
    let told = primary.feed(order(ControlDown::Erase(vec![(chunk(), replica(1))])));
    let refused =
        |message: &DataMessage| matches!(message, DataMessage::Refused { id, .. } if id.0 == 7);
    assert!(told.iter().any(|(_, message)| refused(message)), "{told:?}");
}

#[test]
fn a_learner_that_was_promoted_keeps_nothing_of_its_fill() {
    let mut learner = learner_from_two();
    let of = term(1, 1);
    let promoted = ChunkConfig {
        in_sync: vec![replica(1), replica(4)],
        learners: vec![],
        ..ChunkConfig { epoch: Epoch(3), ..one_block() }
    };
    learner.feed(order(ControlDown::Configs(vec![promoted])));
    let mut sent = learner.peer_says(1, mirror(3, lsn(of, 4), block(0, 4)));
    sent.extend(learner.sync());
    let fill = |message: &DataMessage| match message {
        DataMessage::MirrorAck { lsn: at, fill, .. } if *at == lsn(of, 4) => Some(*fill),
        _ => None,
    };
    assert_eq!(sent.iter().find_map(|(_, message)| fill(message)), Some(None));
    // A copy that was sent twice, and comes late, changes nothing.
    let before = learner.journal.len();
    learner.peer_says(
        1,
        DataMessage::Copy {
            chunk: chunk(),
            epoch: Epoch(3),
            read_at: lsn(of, 2),
            learner_start: StartNumber(1),
            number: 1,
            data: block(0, 1),
        },
    );
    assert_eq!(learner.journal.len(), before);
}
