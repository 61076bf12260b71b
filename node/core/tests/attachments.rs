//! An attachment that has ended: nothing is acknowledged to its client any more (design.md 4.8).

mod common;

use ashlar_node_core::Input;
use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::{DataMessage, Refusal};
use ashlar_types::{ChunkConfig, Generation, NodeId, RequestId};
use common::{block, config, is_done, lsn, serving, term, write};

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
    let mut sent = hands.feed(Input::Control(ControlDown::Configs(vec![newer])));
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
    let mut sent = hands.feed(Input::Control(ControlDown::Configs(vec![config(2)])));
    for peer in [2, 3] {
        sent.extend(hands.ack(peer, lsn(term(1, 1), 1)));
    }
    sent.extend(hands.sync());
    assert!(is_done(&sent, 7));
}
