//! A stale replica that an operator's salvage makes the only one in sync: it opens a term alone, and
//! serves what it holds. Nothing of this is special to the node: the committed configuration decides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_types::message::cluster::{ControlDown, ReplicaState};
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{BlockRange, ChunkConfig, Epoch, Generation, Lsn, RequestId, StaleInfo};
use common::*;
use std::time::Duration;

/// Node 2 has left the in-sync set after epoch 1, with two writes: one known to be committed, one not.
fn stale() -> Hands {
    let (mut hands, of) = following();
    hands.peer_says(1, mirror(1, lsn(of, 1), block(0, 1)));
    hands.peer_says(1, mirror(1, lsn(of, 2), block(3, 2)));
    hands.sync();
    let told = DataMessage::Committed { chunk: chunk(), epoch: Epoch(1), lsn: lsn(of, 1) };
    hands.peer_says(1, told);
    hands.feed(order(ControlDown::Configs(vec![left()])));
    hands.sync();
    assert_eq!(hands.state(), ReplicaState::Stale);
    hands
}

fn left() -> ChunkConfig {
    let info = StaleInfo { last_in_sync: Epoch(1), suspect: false };
    let in_sync = vec![replica(1), replica(3)];
    ChunkConfig { in_sync, stale: vec![(replica(2), info)], ..config(2) }
}

/// What the salvage commits.
fn salvaged() -> ChunkConfig {
    ChunkConfig {
        epoch: Epoch(3),
        elected: Epoch(3),
        generation: Generation(2),
        primary: replica(2),
        in_sync: vec![replica(2)],
        copies_min: 1,
        ..config(3)
    }
}

#[test]
fn a_stale_replica_opens_a_term_alone_after_a_salvage_and_serves_what_it_holds() {
    let mut hands = stale();
    let mut sent = hands.feed(order(ControlDown::Configs(vec![salvaged()])));
    sent.extend(hands.sync());
    // What it does not know to be committed is given anew, with its own content, before it serves.
    sent.extend(hands.answer_reads(2));
    sent.extend(hands.sync());
    for _ in 0..10 {
        sent.extend(hands.tick_after(Duration::from_millis(100)));
        sent.extend(hands.answer_reads(2));
        sent.extend(hands.sync());
    }
    assert_eq!(hands.state(), ReplicaState::Serving);
    let asked = |message: &DataMessage| matches!(message, DataMessage::Collect { .. });
    assert!(!sent.iter().any(|(_, message)| asked(message)), "it waits for those that are gone");
    let durable = hands.core.durable(chunk()).unwrap();
    assert_eq!((durable.term.elected, durable.config.generation), (Epoch(3), Generation(2)));
    assert!(durable.last > Lsn::opening(term(3, 1)) || durable.uncommitted.is_empty());

    // A client of the new attachment reads and writes.
    let stamp = ashlar_types::message::data::Stamp { generation: Generation(2), ..stamp(3) };
    let read = DataMessage::Read { id: RequestId(7), stamp, range: BlockRange::new(3, 1) };
    hands.client_says(read);
    let answered = hands.answer_reads(2);
    let is_read = |message: &DataMessage| matches!(message, DataMessage::ReadDone { .. });
    assert!(answered.iter().any(|(_, message)| is_read(message)), "{answered:?}");
    hands.client_says(DataMessage::Write { id: RequestId(8), stamp, data: block(0, 9) });
    let written = hands.sync();
    assert!(is_done(&written, 8), "{written:?}");
    // One of the attachment that ended does neither.
    let refused = hands.client_says(write(9, 3, block(0, 8)));
    assert!(!is_done(&refused, 9) && !is_done(&hands.sync(), 9));
}

#[test]
fn who_was_in_sync_before_a_salvage_is_refused_by_the_one_that_took_over() {
    let mut hands = stale();
    hands.feed(order(ControlDown::Configs(vec![salvaged()])));
    hands.sync();
    let of = term(1, 2);
    let collect = DataMessage::Collect { config: Box::new(left()), term: of };
    let sent = hands.peer_says(1, collect);
    let refused = refusal(&sent);
    let knows = |refusal: &PeerRefusal| matches!(refusal, PeerRefusal::LowerEpoch(known) if known.epoch == Epoch(3));
    assert!(refused.is_some_and(knows), "{sent:?}");
}
