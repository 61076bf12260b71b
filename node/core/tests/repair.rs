//! Blocks that cannot be read: repaired by an ordered write of committed content, or said to be lost.
//!
//! Each test fails when its rule is taken out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Input, Record};
use ashlar_types::message::cluster::{ControlDown, ReplicaState};
use ashlar_types::message::data::{
    DataMessage, History, Network, PeerRefusal, Refusal, Uncommitted,
};
use ashlar_types::{BlockData, BlockRange, ChunkConfig, Epoch, Lsn, NodeId, RequestId, Sums};
use bytes::Bytes;
use common::*;
use std::time::Duration;

type Sent = Vec<(NodeId, DataMessage)>;

/// Longer than the wait before a question is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// The store answers: whatever touches a bad block cannot be read, all else is filled with 9.
fn answer(hands: &mut Hands, bad: &[u32]) -> Sent {
    let mut sent = vec![];
    for _ in 0..64 {
        let reads = std::mem::take(&mut hands.reads);
        if reads.is_empty() {
            return sent;
        }
        for (ticket, range) in reads {
            let readable = !range.blocks().any(|block| bad.contains(&block));
            let content = readable.then(|| filled(range, 9));
            sent.extend(hands.feed(Input::BlocksRead { ticket, content }));
        }
    }
    panic!("it reads for ever");
}

fn filled(range: BlockRange, fill: u8) -> BlockData {
    let count = range.count as usize;
    let data = Bytes::from(vec![fill; count * ashlar_types::BLOCK_SIZE]);
    BlockData { range, sums: Sums::Full(vec![u32::from(fill); count]), data }
}

fn read(id: u64, first: u32, count: u32) -> DataMessage {
    let range = BlockRange::new(first, count);
    DataMessage::Read { id: RequestId(id), stamp: stamp(1), range }
}

fn recalls(sent: &Sent) -> Vec<(u32, Lsn, BlockRange)> {
    let recall = |(to, message): &(NodeId, DataMessage)| match message {
        DataMessage::Recall { at, range, .. } => Some((to.0, *at, *range)),
        _ => None,
    };
    sent.iter().filter_map(recall).collect()
}

fn recalled(at: Lsn, first: u32, fill: u8) -> DataMessage {
    let data = filled(BlockRange::new(first, 1), fill);
    DataMessage::Recalled { chunk: chunk(), at, data }
}

fn damaged(first: u32, count: u32) -> DataMessage {
    let refusal = PeerRefusal::Damaged(BlockRange::new(first, count));
    DataMessage::PeerRefused { chunk: chunk(), refusal }
}

fn unreadable(sent: &Sent) -> Option<BlockRange> {
    sent.iter().find_map(|(_, message)| match message {
        DataMessage::Refused { refusal: Refusal::Unreadable(range), .. } => Some(*range),
        _ => None,
    })
}

fn read_done(sent: &Sent) -> bool {
    sent.iter().any(|(_, message)| matches!(message, DataMessage::ReadDone { .. }))
}

/// Position, blocks and first byte of the newest write in the journal.
fn newest_write(hands: &Hands) -> (Lsn, BlockRange, u8) {
    let write = hands.journal.iter().rev().find_map(|record| match record {
        Record::Write { lsn, data, .. } => Some((*lsn, data.range, data.data.first().copied()?)),
        _ => None,
    });
    write.unwrap()
}

fn writes(hands: &Hands) -> usize {
    hands.journal.iter().filter(|record| matches!(record, Record::Write { .. })).count()
}

/// Everybody has what was written up to `counter`; reads are confirmed.
fn settle(hands: &mut Hands, counter: u64) -> Sent {
    let at = lsn(term(1, 1), counter);
    let mut sent = hands.sync();
    sent.extend(hands.ack(2, at));
    sent.extend(hands.ack(3, at));
    for round in 1..=12 {
        for peer in [2, 3] {
            let (chunk, term) = (chunk(), term(1, 1));
            sent.extend(hands.peer_says(peer, DataMessage::Confirmed { chunk, term, round }));
        }
    }
    sent
}

#[test]
fn a_block_that_cannot_be_read_is_recalled_written_anew_and_the_read_answered() {
    let mut hands = serving(config(1));
    hands.client_says(read(1, 0, 8));
    let sent = answer(&mut hands, &[5]);
    let at = Lsn::opening(term(1, 1));
    assert_eq!(recalls(&sent), [(2, at, BlockRange::new(5, 1))], "only what is damaged");
    let sent = hands.peer_says(2, recalled(at, 5, 9));
    assert_eq!(newest_write(&hands), (lsn(term(1, 1), 1), BlockRange::new(5, 1), 9));
    let mirrors = sent.iter().filter(|(_, m)| matches!(m, DataMessage::Mirror { .. })).count();
    assert_eq!(mirrors, 2, "an ordered write like any other");
    answer(&mut hands, &[]);
    let sent = settle(&mut hands, 1);
    assert!(read_done(&sent) && unreadable(&sent).is_none());
}

#[test]
fn a_read_is_not_answered_before_the_repair_is_committed() {
    let mut hands = serving(config(1));
    hands.client_says(read(1, 5, 1));
    answer(&mut hands, &[5]);
    hands.peer_says(2, recalled(Lsn::opening(term(1, 1)), 5, 9));
    assert!(!read_done(&answer(&mut hands, &[])));
    assert!(!read_done(&settle(&mut hands, 0)), "shown before every replica has it");
    assert!(read_done(&settle(&mut hands, 1)));
}

#[test]
fn no_write_over_a_block_gets_a_position_while_it_is_repaired_and_all_others_do() {
    let mut hands = serving(config(1));
    hands.client_says(read(1, 5, 1));
    answer(&mut hands, &[5]);
    hands.client_says(write(2, 1, block(5, 7)));
    assert_eq!(writes(&hands), 0, "the repair would undo it");
    hands.client_says(write(3, 1, block(6, 7)));
    assert_eq!(newest_write(&hands), (lsn(term(1, 1), 1), BlockRange::new(6, 1), 7));
    hands.peer_says(2, recalled(Lsn::opening(term(1, 1)), 5, 9));
    assert_eq!(writes(&hands), 3, "it goes on behind the repair");
    assert_eq!(newest_write(&hands), (lsn(term(1, 1), 3), BlockRange::new(5, 1), 7));
}

#[test]
fn a_member_is_asked_only_when_every_write_over_the_block_is_committed() {
    let mut hands = serving(config(1));
    hands.client_says(write(1, 1, block(5, 7)));
    hands.client_says(write(2, 1, block(6, 7)));
    hands.client_says(read(3, 5, 1));
    let sent = answer(&mut hands, &[5]);
    assert!(recalls(&sent).is_empty(), "the member may not have the write yet");
    let sent = settle(&mut hands, 1);
    assert_eq!(recalls(&sent), [(2, lsn(term(1, 1), 1), BlockRange::new(5, 1))]);
}

#[test]
fn a_block_under_one_repair_keeps_no_reads_of_another_waiting() {
    let mut hands = serving(config(1));
    hands.client_says(read(1, 5, 1));
    hands.client_says(read(2, 9, 1));
    answer(&mut hands, &[5, 9]);
    hands.peer_says(2, recalled(Lsn::opening(term(1, 1)), 5, 9));
    let sent = answer(&mut hands, &[9]);
    let asked = [(2, Lsn::opening(term(1, 1)), BlockRange::new(9, 1))];
    assert_eq!(recalls(&sent), asked, "the second repair begins");
    assert!(read_done(&settle(&mut hands, 1)), "block 5 can be read");
}

#[test]
fn an_answer_to_an_earlier_question_does_not_undo_a_later_write() {
    let mut hands = serving(config(1));
    let first = Lsn::opening(term(1, 1));
    hands.client_says(read(1, 5, 1));
    answer(&mut hands, &[5]);
    // Node 2 does not answer: node 3 is asked.
    let (node, network, refused) = (NodeId(2), Network::Primary, false);
    hands.feed(Input::LinkDown { node, network, refused });
    let sent = hands.tick_after(Duration::from_millis(250));
    assert_eq!(recalls(&sent), [(3, first, BlockRange::new(5, 1))]);
    hands.peer_says(3, recalled(first, 5, 9));
    hands.link_up(2, 1);
    hands.client_says(write(2, 1, block(5, 7)));
    answer(&mut hands, &[]);
    settle(&mut hands, 2);
    // The block rots again; now node 2's first answer comes.
    hands.client_says(read(3, 5, 1));
    let sent = answer(&mut hands, &[5]);
    assert_eq!(recalls(&sent), [(2, lsn(term(1, 1), 2), BlockRange::new(5, 1))]);
    let before = writes(&hands);
    hands.peer_says(2, recalled(first, 5, 9));
    assert_eq!(writes(&hands), before, "content from before the write was taken");
    hands.peer_says(2, recalled(lsn(term(1, 1), 2), 5, 7));
    assert_eq!(newest_write(&hands), (lsn(term(1, 1), 3), BlockRange::new(5, 1), 7));
}

#[test]
fn a_block_that_nobody_can_read_is_an_error_that_names_it_and_holds_nothing_up() {
    let mut hands = serving(config(1));
    hands.client_says(read(1, 4, 4));
    answer(&mut hands, &[5]);
    hands.client_says(write(2, 1, block(1, 7)));
    let sent = hands.peer_says(2, damaged(5, 1));
    assert_eq!(recalls(&sent).first().map(|recall| recall.0), Some(3), "the next one is asked");
    let sent = hands.peer_says(3, damaged(5, 1));
    assert_eq!(unreadable(&sent), None, "last looks at the own store are to come");
    let mut looks = 0;
    let lost = loop {
        assert!(hands.reads.is_empty(), "not at once");
        hands.tick_after(RETRY);
        looks += 1;
        if let Some(lost) = unreadable(&answer(&mut hands, &[5])) {
            break lost;
        }
    };
    assert_eq!((looks, lost), (5, BlockRange::new(5, 1)));
    assert_eq!(newest_write(&hands).1, BlockRange::new(1, 1), "writes go on");
    hands.client_says(read(3, 6, 2));
    answer(&mut hands, &[5]);
    assert!(read_done(&settle(&mut hands, 1)), "its neighbours can be read");
    // Who asks for it again holds nothing up: it is looked at once, wherever it may be.
    hands.client_says(read(4, 5, 1));
    answer(&mut hands, &[5]);
    hands.peer_says(2, damaged(5, 1));
    hands.peer_says(3, damaged(5, 1));
    assert_eq!(unreadable(&answer(&mut hands, &[5])), Some(BlockRange::new(5, 1)));
}

/// Seeds 60 and 628 of the simulation: the secondaries are away, and the error passes after a while.
#[test]
fn an_error_of_the_disk_that_passes_loses_no_block_when_nobody_else_has_it() {
    let alone = ChunkConfig { in_sync: vec![replica(1)], copies_min: 1, ..config(1) };
    let mut hands = serving(alone);
    hands.client_says(read(1, 5, 1));
    // The read, the one that begins the repair, and four looks; then the disk has recovered.
    let mut sent = answer(&mut hands, &[5]);
    for _ in 0..4 {
        sent.extend(hands.tick_after(RETRY));
        sent.extend(answer(&mut hands, &[5]));
    }
    sent.extend(hands.tick_after(RETRY));
    sent.extend(answer(&mut hands, &[]));
    assert!(read_done(&sent) && unreadable(&sent).is_none(), "{sent:?}");
    assert_eq!(hands.alarms, 6, "it could not be read six times, and is not lost");
}

#[test]
fn a_read_that_fails_again_after_a_repair_ends() {
    let mut hands = serving(config(1));
    hands.client_says(read(1, 5, 1));
    answer(&mut hands, &[5]);
    hands.peer_says(2, recalled(Lsn::opening(term(1, 1)), 5, 9));
    assert_eq!(unreadable(&answer(&mut hands, &[5])), Some(BlockRange::new(5, 1)));
}

#[test]
fn what_a_member_cannot_read_is_written_anew_with_the_content_here() {
    let mut hands = serving(config(1));
    hands.peer_says(3, damaged(4, 4));
    answer(&mut hands, &[]);
    assert_eq!(newest_write(&hands), (lsn(term(1, 1), 1), BlockRange::new(4, 4), 9));
    // Half of it is damaged here too: that half comes from the third.
    settle(&mut hands, 1);
    hands.peer_says(3, damaged(4, 4));
    let sent = answer(&mut hands, &[6]);
    let written = |range| {
        hands.journal.iter().any(
        |record| matches!(record, Record::Write { lsn, data, .. } if data.range == range && lsn.counter > 1),
    )
    };
    assert!(written(BlockRange::new(4, 2)));
    assert_eq!(recalls(&sent).first().map(|recall| recall.2), Some(BlockRange::new(6, 1)));
}

#[test]
fn only_an_in_sync_member_is_listened_to_and_only_inside_the_chunk() {
    let learning = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        learners: vec![replica(4)],
        stale: vec![(replica(3), Default::default())],
        ..config(2)
    };
    let mut hands = serving(learning);
    hands.reads.clear();
    hands.peer_says(4, damaged(4, 4));
    hands.peer_says(2, damaged(14, 4));
    hands.peer_says(2, damaged(3, 0));
    assert!(hands.reads.is_empty());
}

#[test]
fn a_fill_that_meets_an_unreadable_block_begins_again_after_its_repair() {
    let learning = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        learners: vec![replica(4)],
        stale: vec![(replica(3), Default::default())],
        ..config(2)
    };
    let mut hands = serving(learning);
    let at = Lsn::opening(term(1, 1));
    hands.ack_of(4, at, Some(at));
    let sent = answer(&mut hands, &[5]);
    assert_eq!(recalls(&sent), [(2, at, BlockRange::new(5, 1))]);
    hands.peer_says(2, recalled(at, 5, 9));
    answer(&mut hands, &[]);
    hands.sync();
    hands.ack(2, lsn(term(1, 1), 1));
    let sent = hands.tick_after(Duration::from_millis(100));
    let opened =
        |(to, m): &(NodeId, DataMessage)| to.0 == 4 && matches!(m, DataMessage::OpenLearner { .. });
    assert!(sent.iter().any(opened), "{sent:?}");
}

#[test]
fn a_member_gives_content_only_in_sync_and_not_before_it_has_the_position_asked_for() {
    let (mut hands, of) = following();
    hands.peer_says(1, mirror(1, lsn(of, 1), block(5, 9)));
    hands.sync();
    let recall = |epoch, at| DataMessage::Recall {
        chunk: chunk(),
        epoch: Epoch(epoch),
        at,
        range: BlockRange::new(5, 1),
    };
    for at in [lsn(of, 2), Lsn::opening(term(1, 2))] {
        let sent = hands.peer_says(1, recall(1, at));
        assert!(matches!(refusal(&sent), Some(PeerRefusal::Gap(_))), "asked at {at}");
    }
    assert!(refusal(&hands.peer_says(1, recall(2, lsn(of, 1)))).is_some());
    assert!(hands.reads.is_empty());
    assert!(hands.peer_says(1, recall(1, lsn(of, 1))).is_empty());
    let sent = answer(&mut hands, &[]);
    assert!(matches!(sent.as_slice(), [(NodeId(1), DataMessage::Recalled { .. })]), "{sent:?}");
    hands.peer_says(1, recall(1, lsn(of, 1)));
    let sent = answer(&mut hands, &[5]);
    assert!(matches!(refusal(&sent), Some(PeerRefusal::Damaged(_))));
    let learning = ChunkConfig {
        in_sync: vec![replica(1), replica(3)],
        learners: vec![replica(2)],
        ..config(2)
    };
    hands.feed(order(ControlDown::Configs(vec![learning])));
    assert!(refusal(&hands.peer_says(1, recall(2, lsn(of, 1)))).is_some(), "it is being filled");
}

/// A restarted node 1 that has to overwrite block 5, whose content it cannot read.
fn opening() -> (Hands, Sent) {
    let mut hands = serving(config(1));
    hands.client_says(write(1, 1, block(5, 1)));
    hands.sync();
    let (mut hands, _) = Hands::new(1, 2, hands.crash());
    let of = term(1, 2);
    hands.link_up(2, 1);
    hands.link_up(3, 1);
    hands.sync();
    for peer in [2, 3] {
        let last = Lsn::opening(term(1, 1));
        hands.collected(peer, of, History { last, ..History::default() });
    }
    hands.sync();
    for peer in [2, 3] {
        hands.ack(peer, Lsn::opening(of));
    }
    let sent = answer(&mut hands, &[5]);
    (hands, sent)
}

fn fetches(sent: &Sent) -> Vec<u32> {
    let fetch = |(_, m): &&(NodeId, DataMessage)| matches!(m, DataMessage::Fetch { .. });
    sent.iter().filter(fetch).map(|(to, _)| to.0).collect()
}

#[test]
fn an_opening_takes_what_it_cannot_read_from_a_member() {
    let (mut hands, sent) = opening();
    let of = term(1, 2);
    assert_eq!(fetches(&sent), [2]);
    let fetched = |term| DataMessage::Fetched { chunk: chunk(), term, data: block(5, 9) };
    hands.peer_says(3, fetched(of));
    assert_eq!(writes(&hands), 0, "node 3 was not asked");
    assert_eq!(fetches(&hands.peer_says(2, damaged(5, 1))), [3], "the next one is");
    hands.peer_says(3, fetched(of));
    assert_eq!(newest_write(&hands), (lsn(of, 1), BlockRange::new(5, 1), 9));
    hands.sync();
    for peer in [2, 3] {
        hands.ack(peer, lsn(of, 1));
    }
    assert_eq!(hands.state(), ReplicaState::Serving);
}

#[test]
fn an_opening_that_nobody_can_help_asks_again_and_does_not_serve() {
    let (mut hands, _) = opening();
    hands.peer_says(2, damaged(5, 1));
    hands.peer_says(3, damaged(5, 1));
    hands.tick_after(Duration::from_millis(250));
    assert_eq!(hands.state(), ReplicaState::Opening);
    assert_eq!(fetches(&answer(&mut hands, &[5])), [2]);
}

/// Seed 30663 of the simulation: nobody else is in sync, and the disk fails for a moment.
#[test]
fn an_opening_that_has_nobody_to_ask_reads_its_own_disk_again() {
    let alone = ChunkConfig { in_sync: vec![replica(1)], copies_min: 1, ..config(1) };
    let mut hands = serving(alone);
    hands.client_says(write(1, 1, block(5, 1)));
    let (mut hands, _) = Hands::new(1, 2, hands.crash());
    hands.sync();
    hands.tick_after(Duration::from_secs(1));
    hands.sync();
    answer(&mut hands, &[5]);
    assert_eq!(hands.state(), ReplicaState::Opening);
    hands.tick_after(RETRY);
    answer(&mut hands, &[]);
    hands.sync();
    assert_eq!(hands.state(), ReplicaState::Serving);
}

#[test]
fn a_write_that_only_one_member_has_and_cannot_read_is_dropped() {
    let elected = ChunkConfig {
        elected: Epoch(2),
        primary: replica(2),
        in_sync: vec![replica(2), replica(3)],
        stale: vec![(replica(1), Default::default())],
        ..config(2)
    };
    let (mut hands, of) = following();
    hands.feed(order(ControlDown::Configs(vec![elected])));
    hands.sync();
    hands.tick_after(Duration::from_secs(1));
    let ours = term(2, 1);
    let uncommitted = vec![Uncommitted { lsn: lsn(of, 1), range: BlockRange::new(4, 1) }];
    let longer = History { last: lsn(of, 1), committed: Lsn::ZERO, uncommitted };
    hands.collected(3, ours, longer);
    hands.sync();
    hands.peer_says(3, damaged(4, 1));
    let opened = |record: &Record| match record {
        Record::OpenTerm { term, overwrite, .. } if *term == ours => Some(overwrite.clone()),
        _ => None,
    };
    let overwritten: Vec<_> = hands.journal.iter().filter_map(opened).collect();
    assert_eq!(overwritten, [vec![BlockRange::new(4, 1)]], "all get the same content there");
}
