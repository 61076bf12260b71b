//! The background scrub: what nobody reads is read, and replicas that differ are made equal.
//!
//! Each test fails when its rule is taken out.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Input, Record, Timing};
use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkConfig, Epoch, Lsn, NodeId, StoreId, Sums,
};
use bytes::Bytes;
use common::*;
use std::time::Duration;

type Sent = Vec<(NodeId, DataMessage)>;

const MIB: u64 = 1 << 20;

fn filled(range: BlockRange, fill: u8) -> BlockData {
    let count = range.count as usize;
    let data = Bytes::from(vec![fill; count * BLOCK_SIZE]);
    BlockData { range, sums: Sums::Full(vec![u32::from(fill); count]), data }
}

/// The store answers all reads; `None`: damaged.
fn answer(hands: &mut Hands, fill: Option<u8>) -> Sent {
    let mut sent = vec![];
    for (ticket, range) in std::mem::take(&mut hands.reads) {
        let content = fill.map(|fill| filled(range, fill));
        sent.extend(hands.feed(Input::BlocksRead { ticket, content }));
    }
    sent
}

fn compares(sent: &Sent) -> Vec<(u32, Lsn, BlockRange, u64)> {
    let compare = |(to, message): &(NodeId, DataMessage)| match message {
        DataMessage::Compare { at, range, digest, .. } => Some((to.0, *at, *range, *digest)),
        _ => None,
    };
    sent.iter().filter_map(compare).collect()
}

fn damaged(sent: &Sent) -> Option<BlockRange> {
    match refusal(sent) {
        Some(PeerRefusal::Damaged(range)) => Some(*range),
        _ => None,
    }
}

/// A chunk of 128 blocks: two reads of the scrub.
fn large(epoch: u64) -> ChunkConfig {
    ChunkConfig { blocks: 128, ..config(epoch) }
}

fn scrub_at(bytes_per_second: u64, cycle: Duration) {
    let scrub = Timing {
        scrub_bytes_per_second: bytes_per_second,
        scrub_cycle: cycle,
        ..Timing::default()
    };
    TIMING.set(Some(scrub));
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The ranges that the store is asked for.
fn asked(hands: &Hands) -> Vec<BlockRange> {
    hands.reads.iter().map(|(_, range)| *range).collect()
}

fn newest_write(hands: &Hands) -> Option<(BlockRange, Lsn)> {
    hands.journal.iter().rev().find_map(|record| match record {
        Record::Write { lsn, data, .. } => Some((data.range, *lsn)),
        _ => None,
    })
}

#[test]
fn an_idle_node_reads_everything_once_in_a_cycle_and_then_rests() {
    scrub_at(MIB, Duration::from_secs(60));
    let mut hands = serving(large(1));
    hands.tick_after(millis(1_000));
    hands.tick_after(millis(1_000));
    assert_eq!(asked(&hands), [BlockRange::new(0, 64)], "one read at a time");
    answer(&mut hands, Some(0));
    assert_eq!(asked(&hands), [BlockRange::new(64, 64)]);
    answer(&mut hands, Some(0));
    assert_eq!(hands.core.scrub_cycles(StoreId(u128::from(hands.node))), 1);
    for _ in 0..200 {
        hands.tick_after(millis(250));
        assert!(asked(&hands).is_empty(), "the next cycle is not due");
    }
    for _ in 0..60 {
        hands.tick_after(millis(250));
    }
    assert_eq!(asked(&hands), [BlockRange::new(0, 64)]);
}

#[test]
fn the_scrub_keeps_to_its_rate() {
    scrub_at(MIB, Duration::from_secs(60));
    let mut hands = serving(ChunkConfig { blocks: 4_096, ..config(1) });
    let mut blocks = 0;
    for _ in 0..40 {
        hands.tick_after(millis(100));
        while !hands.reads.is_empty() {
            blocks += asked(&hands).iter().map(|range| range.count).sum::<u32>();
            answer(&mut hands, Some(0));
        }
    }
    // 4 s at 1 MiB/s, one second's worth more or less.
    assert!((768..=1_280).contains(&blocks), "{blocks} blocks");
}

#[test]
fn a_node_with_work_scrubs_only_as_fast_as_the_cycle_needs() {
    scrub_at(64 * MIB, Duration::from_secs(1_000));
    let mut hands = serving(ChunkConfig { blocks: 1 << 16, ..config(1) });
    let store = StoreId(u128::from(hands.node));
    hands.feed(Input::Space { store, capacity_bytes: 1 << 40, used_bytes: 500 * MIB });
    let mut blocks = 0;
    for id in 0..100 {
        hands.client_says(write(id, 1, block(9, 1)));
        hands.sync();
        hands.tick_after(millis(100));
        while !hands.reads.is_empty() {
            blocks += asked(&hands).iter().map(|range| range.count).sum::<u32>();
            answer(&mut hands, Some(0));
        }
    }
    // 10 s at twice 500 MiB in 1,000 s.
    assert!((2_000..=2_700).contains(&blocks), "{blocks} blocks");
}

#[test]
fn a_scrub_that_is_off_reads_nothing() {
    scrub_at(0, Duration::from_secs(60));
    let mut hands = serving(config(1));
    for _ in 0..100 {
        hands.tick_after(millis(1_000));
    }
    assert!(hands.reads.is_empty());
}

#[test]
fn what_the_scrub_of_a_primary_cannot_read_is_repaired() {
    scrub_at(MIB, Duration::from_secs(60));
    let mut hands = serving(ChunkConfig { blocks: 1, ..config(1) });
    hands.tick_after(millis(1_000));
    answer(&mut hands, None);
    let sent = answer(&mut hands, None);
    let recall = |(_, m): &(NodeId, DataMessage)| matches!(m, DataMessage::Recall { .. });
    assert!(sent.iter().any(recall), "{sent:?}");
}

#[test]
fn what_the_scrub_of_a_secondary_cannot_read_its_primary_hears() {
    scrub_at(MIB, Duration::from_secs(60));
    let (mut hands, _) = following();
    hands.tick_after(millis(1_000));
    assert_eq!(asked(&hands), [BlockRange::new(0, 16)]);
    assert_eq!(damaged(&answer(&mut hands, None)), Some(BlockRange::new(0, 16)));
    // And what it can read is nobody's business.
    for _ in 0..61 {
        hands.tick_after(millis(1_000));
    }
    assert_eq!(asked(&hands).len(), 1);
    assert!(answer(&mut hands, Some(3)).is_empty());
}

#[test]
fn neither_learners_nor_stale_replicas_are_scrubbed() {
    scrub_at(MIB, Duration::from_secs(60));
    let (in_sync, learners) = (vec![replica(1), replica(3)], vec![replica(2)]);
    let learning = ChunkConfig { in_sync, learners, ..config(2) };
    let stale = ChunkConfig {
        learners: vec![],
        stale: vec![(replica(2), Default::default())],
        ..learning.clone()
    };
    for config in [learning, stale] {
        let (mut hands, _) = following();
        hands.feed(order(ControlDown::Configs(vec![config])));
        hands.tick_after(millis(1_000));
        assert!(hands.reads.is_empty());
    }
}

#[test]
fn secondaries_compare_what_the_primary_has_read() {
    scrub_at(MIB, Duration::from_secs(60));
    let of = term(1, 1);
    let mut primary = serving(config(1));
    primary.tick_after(millis(1_000));
    let sent = answer(&mut primary, Some(7));
    let compared = compares(&sent);
    let to: Vec<u32> = compared.iter().map(|compare| compare.0).collect();
    assert_eq!(to, [2, 3]);
    let (_, at, range, digest) = compared[0];
    assert_eq!((at, range), (Lsn::opening(of), BlockRange::new(0, 16)));
    let compare = |epoch, at, range| DataMessage::Compare {
        chunk: chunk(),
        epoch: Epoch(epoch),
        at,
        range,
        digest,
    };
    for (content, differs) in [(Some(7), false), (Some(8), true), (None, true)] {
        TIMING.set(None);
        let (mut member, _) = following();
        assert!(member.peer_says(1, compare(1, at, range)).is_empty());
        assert_eq!(damaged(&answer(&mut member, content)), differs.then_some(range));
        // At another position it holds other content rightly.
        member.peer_says(1, mirror(1, lsn(of, 1), block(3, 1)));
        member.peer_says(1, compare(1, at, range));
        member.peer_says(1, compare(1, lsn(of, 1), BlockRange::new(8, 16)));
        assert!(member.reads.is_empty(), "compared with what was before a write");
        assert!(refusal(&member.peer_says(1, compare(2, lsn(of, 1), range))).is_some());
    }
}

#[test]
fn replicas_that_differ_with_good_checksums_get_the_content_of_the_primary() {
    let mut hands = serving(config(1));
    let range = BlockRange::new(0, 16);
    let refusal = PeerRefusal::Damaged(range);
    hands.peer_says(3, DataMessage::PeerRefused { chunk: chunk(), refusal });
    answer(&mut hands, Some(7));
    assert_eq!(newest_write(&hands), Some((range, lsn(term(1, 1), 1))));
}

#[test]
fn content_that_a_write_may_have_changed_meanwhile_is_not_compared() {
    scrub_at(MIB, Duration::from_secs(60));
    let mut hands = serving(config(1));
    hands.tick_after(millis(1_000));
    hands.client_says(write(1, 1, block(3, 1)));
    assert!(compares(&answer(&mut hands, Some(7))).is_empty());
    // A write elsewhere in the chunk changes nothing of it.
    scrub_at(MIB, Duration::from_secs(60));
    let mut hands = serving(large(1));
    hands.tick_after(millis(1_000));
    hands.client_says(write(1, 1, block(100, 1)));
    let at = lsn(term(1, 1), 1);
    assert_eq!(compares(&answer(&mut hands, Some(7))).first().map(|c| c.1), Some(at));
}

#[test]
fn holes_and_zeros_are_different_contents() {
    scrub_at(MIB, Duration::from_secs(60));
    let digests: Vec<u64> =
        [BlockData::holes(BlockRange::new(0, 16)), filled(BlockRange::new(0, 16), 0)]
            .into_iter()
            .map(|content| {
                let mut hands = serving(config(1));
                hands.tick_after(millis(1_000));
                let (ticket, _) = hands.reads.remove(0);
                let sent = hands.feed(Input::BlocksRead { ticket, content: Some(content) });
                compares(&sent)[0].3
            })
            .collect();
    assert_ne!(digests[0], digests[1]);
}
