//! A store with little room left: writes wait before they have a position, trims and reads go on
//! (design.md section 8).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Input, Record};
use ashlar_types::message::data::{DataMessage, History};
use ashlar_types::{BlockData, BlockRange, ChunkConfig, Lsn, NodeId, RequestId, StoreId};
use common::*;
use std::time::Duration;

const CAPACITY: u64 = 1 << 30;

fn room(hands: &mut Hands, free_bytes: u64) {
    let (capacity_bytes, used_bytes) = (CAPACITY, CAPACITY - free_bytes);
    let store = StoreId(u128::from(hands.node));
    hands.feed(Input::Space { store, capacity_bytes, used_bytes });
}

fn says_short(hands: &mut Hands, peer: u32, short: bool) {
    // Another store of the peer is short in any case: that is nothing to this chunk.
    let mut short_of_space = vec![StoreId(77)];
    short_of_space.extend(short.then_some(StoreId(u128::from(peer))));
    hands.peer_says(
        peer,
        DataMessage::Beat {
            number: 1,
            adopted: vec![],
            short_of_space,
            has_control: false,
            behind_millis: 0,
        },
    );
}

fn mirrored(sent: &[(NodeId, DataMessage)]) -> Vec<u64> {
    let mirror = |(to, message): &(NodeId, DataMessage)| match message {
        DataMessage::Mirror { lsn, .. } if *to == NodeId(2) => Some(lsn.counter),
        _ => None,
    };
    sent.iter().filter_map(mirror).collect()
}

fn trim(id: u64, at: u32) -> DataMessage {
    write(id, 1, BlockData::holes(BlockRange::new(at, 1)))
}

#[test]
fn writes_wait_for_the_own_store_while_trims_and_reads_pass_them() {
    let mut hands = serving(config(1));
    room(&mut hands, CAPACITY / 64);
    assert!(mirrored(&hands.client_says(write(1, 1, block(0, 1)))).is_empty());
    assert!(mirrored(&hands.client_says(write(2, 1, block(1, 1)))).is_empty());
    assert_eq!(mirrored(&hands.client_says(trim(3, 2))), [1], "it passes what waits");
    let range = BlockRange::new(0, 1);
    hands.client_says(DataMessage::Read { id: RequestId(4), stamp: stamp(1), range });
    assert_eq!(hands.reads.len(), 1, "so does a read");
    hands.sync();
    hands.ack(2, lsn(term(1, 1), 1));
    assert!(is_done(&hands.ack(3, lsn(term(1, 1), 1)), 3));
    hands.tick_after(Duration::from_millis(100));
    assert_eq!(
        hands.journal.iter().filter(|r| matches!(r, Record::Write { .. })).count(),
        1,
        "still no room"
    );
    room(&mut hands, CAPACITY / 2);
    let sent = hands.tick_after(Duration::from_millis(100));
    assert_eq!(mirrored(&sent), [2, 3], "in the order in which they came");
}

#[test]
fn writes_wait_for_the_store_of_every_replica_that_they_need_and_no_other() {
    let stale = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        stale: vec![(replica(3), Default::default())],
        ..config(1)
    };
    let mut hands = serving(stale);
    says_short(&mut hands, 3, true);
    assert_eq!(mirrored(&hands.client_says(write(1, 1, block(0, 1)))), [1], "it is not waited for");
    says_short(&mut hands, 2, true);
    assert!(mirrored(&hands.client_says(write(2, 1, block(1, 1)))).is_empty());
    says_short(&mut hands, 2, false);
    assert_eq!(mirrored(&hands.tick_after(Duration::from_millis(100))), [2]);
}

#[test]
fn a_learner_is_not_filled_to_the_brim() {
    let filling = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        learners: vec![replica(3)],
        ..config(1)
    };
    let (mut hands, _) = Hands::with(1, filling);
    let of = term(1, 1);
    hands.collected(2, of, History::default());
    hands.sync();
    hands.ack(2, Lsn::opening(of));
    hands.tick_after(Duration::from_millis(100));
    says_short(&mut hands, 3, true);
    let base = Lsn::opening(of);
    hands.ack_of(3, base, Some(base));
    assert!(hands.reads.is_empty(), "no piece is read for it");
    says_short(&mut hands, 3, false);
    hands.tick_after(Duration::from_millis(100));
    assert!(!hands.reads.is_empty());
}
