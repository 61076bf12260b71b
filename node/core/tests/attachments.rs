//! An attachment that has ended: nothing is acknowledged to its client any more (design.md 4.8).

mod common;

use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::{DataMessage, Refusal, Stamp};
use ashlar_types::{ChunkConfig, Generation, NodeId, RequestId, SessionId};
use common::{block, chunk, config, is_done, lsn, order, replica, serving, stamp, term, write};

/// The number of the newer generation that a client is told of.
fn told(sent: &[(NodeId, DataMessage)], request: u64) -> Option<Generation> {
    sent.iter().find_map(|(_, message)| match message {
        DataMessage::Refused { id, refusal: Refusal::WrongGeneration { current } } => {
            (*id == RequestId(request)).then_some(*current)
        }
        _ => None,
    })
}

#[test]
fn a_primary_that_hears_of_a_newer_attachment_late_acknowledges_nothing_of_the_former() {
    let mut hands = serving(config(1));
    hands.client_says(write(7, 1, block(3, 1)));
    hands.sync();
    let newer = ChunkConfig { generation: Generation(2), ..config(2) };
    let mut sent = hands.feed(order(ControlDown::Configs(vec![newer])));
    assert_eq!(told(&sent, 7), Some(Generation(2)));
    sent.clear();
    // The write has its place: the members take it under the new epoch.
    for peer in [2, 3] {
        sent.extend(hands.ack(peer, lsn(term(1, 1), 1)));
    }
    sent.extend(hands.sync());
    assert!(!is_done(&sent, 7), "the volume is another's by now");
}

#[test]
fn the_same_attachment_under_a_later_epoch_is_answered() {
    let mut hands = serving(config(1));
    hands.client_says(write(7, 1, block(3, 1)));
    hands.sync();
    let mut sent = hands.feed(order(ControlDown::Configs(vec![config(2)])));
    for peer in [2, 3] {
        sent.extend(hands.ack(peer, lsn(term(1, 1), 1)));
    }
    sent.extend(hands.sync());
    assert!(is_done(&sent, 7));
}

fn session_has_ended(sent: &[(NodeId, DataMessage)], request: u64) -> bool {
    sent.iter().any(|(_, message)| {
        matches!(message, DataMessage::Refused { id, refusal: Refusal::SessionEnded }
            if *id == RequestId(request))
    })
}

#[test]
fn what_waits_for_an_older_session_is_refused_before_a_newer_one_is_admitted() {
    // Fewer in sync than `copies_min`: writes wait.
    let alone = ChunkConfig { in_sync: vec![replica(1)], ..config(1) };
    let mut hands = serving(alone);
    assert!(hands.client_says(write(7, 1, block(3, 1))).is_empty(), "it waits");
    let newer = Stamp { session: SessionId(2), ..stamp(1) };
    let sent =
        hands.client_says(DataMessage::Write { id: RequestId(8), stamp: newer, data: block(3, 2) });
    assert!(session_has_ended(&sent, 7), "{sent:?}");
    assert!(!session_has_ended(&sent, 8), "the newer one waits");
    let sent = hands.client_says(write(9, 1, block(3, 3)));
    assert!(session_has_ended(&sent, 9), "the older one has ended for good");
    assert_eq!(hands.core.durable(chunk()).unwrap().last, lsn(term(1, 1), 0));
}

#[test]
fn what_an_older_session_has_a_position_for_keeps_it() {
    let mut hands = serving(config(1));
    hands.client_says(write(7, 1, block(3, 1)));
    let stamp = Stamp { session: SessionId(2), ..stamp(1) };
    hands.client_says(DataMessage::Write { id: RequestId(8), stamp, data: block(3, 2) });
    let mut sent = hands.sync();
    for peer in [2, 3] {
        sent.extend(hands.ack(peer, lsn(term(1, 1), 2)));
    }
    assert!(is_done(&sent, 8));
    assert_eq!(hands.core.durable(chunk()).unwrap().last, lsn(term(1, 1), 2));
}
