//! Bits that flip at rest under running nodes: each is found by a read or within a cycle of the scrub,
//! repaired, and never believed. In the end all replicas are equal, right, and none is suspect.
//!
//! Forty flips; a thousand with `ASHLAR_NIGHTLY` set.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod zone;

use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node::store::{Opened, Owner, ReadRequest, Store, StoreEvent, StoreOptions};
use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, NodeId};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use zone::client::filled;
use zone::{BLOCKS, PATIENCE, Zone, chunk, until};

/// A cycle of a second; a rate at which it takes a small part of that.
const SCRUB: &str = "scrub_cycle_seconds = 1\nscrub_bytes_per_second = 67108864";

/// Blocks with content: some of each slot, so that there are holes too.
fn written(block: u32) -> bool {
    block % 7 != 3
}

fn mark(block: u32) -> u8 {
    (block % 251) as u8 + 1
}

fn flips() -> u64 {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 1_000 } else { 40 }
}

fn open(folder: &Path, name: &str) -> File {
    OpenOptions::new().read(true).write(true).open(folder.join(name)).unwrap()
}

fn byte(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

/// Number of the last complete checkpoint, from the newer superblock; 0 while both are being written.
fn checkpoint(folder: &Path) -> u64 {
    let file = open(folder, "super");
    let copy = |at: u64| {
        let mut page = vec![0; 4096];
        file.read_exact_at(&mut page, at).unwrap();
        let stored = u32::from_le_bytes(page[8..12].try_into().unwrap());
        page[8..12].fill(0);
        let number = u64::from_le_bytes(page[88..96].try_into().unwrap());
        if crc32c::crc32c(&page) == stored { number } else { 0 }
    };
    copy(0).max(copy(4096))
}

/// Two verifications have come and gone since: whatever was there before was seen.
fn wait_verified(folder: &Path) {
    let before = until("a superblock", || Some(checkpoint(folder)).filter(|number| *number > 0));
    until("two checkpoints", || (checkpoint(folder) >= before + 2).then_some(()));
}

/// Places of the data file that hold blocks, and what is there.
fn live_blocks(folder: &Path) -> Vec<u64> {
    let file = open(folder, "data");
    let blocks = file.metadata().unwrap().len() / BLOCK_SIZE as u64;
    let mut found = Vec::new();
    let mut block = vec![0; BLOCK_SIZE];
    for nth in 0..blocks.min(u64::from(BLOCKS)) {
        file.read_exact_at(&mut block, nth * BLOCK_SIZE as u64).unwrap();
        if block[0] != 0 {
            found.push(nth * BLOCK_SIZE as u64);
        }
    }
    found
}

fn serving(test: u8) -> Zone {
    let zone = Zone::start_with(test, 3, SCRUB);
    zone.configure(&zone.members(0, 1, &[1, 2, 3]));
    let mut client = zone.client(1);
    for block in (0..BLOCKS).filter(|block| written(*block)) {
        client.must_write(1, filled(block, 1, mark(block)));
    }
    for node in 1..=3 {
        wait_verified(&zone.store(node));
    }
    zone
}

/// What a stopped node has on its disk.
fn read_offline(folder: &Path, node: u32) -> (bool, BTreeMap<u32, u8>) {
    let (tx, events) = channel();
    let owner = Owner { zone: "t".parse().unwrap(), node: NodeId(node) };
    let sink = Arc::new(move |event| drop(tx.send(event)));
    let options = StoreOptions { journal_bytes: 16 << 20, ..StoreOptions::default() };
    let mut dice = SeededDice::new(1);
    let Opened { store, state, .. } =
        Store::open_folder(folder, options, owner, &mut dice, sink).unwrap();
    let suspect = state.has_gaps() || state.iter().any(|(_, replica)| replica.suspect);
    let mut content = BTreeMap::new();
    for first in (0..BLOCKS).step_by(64) {
        let range = BlockRange::new(first, 64);
        let mut done = store.read(vec![ReadRequest { ticket: 1, chunk: chunk(0), range }]);
        while done.is_empty() {
            if let StoreEvent::Read(read) = events.recv_timeout(PATIENCE).unwrap() {
                done = read;
            }
        }
        let data: BlockData = done.remove(0).result.unwrap();
        for (block, bytes) in data.iter() {
            if let Some((_, bytes)) = bytes {
                content.insert(block, bytes[0]);
            }
        }
    }
    (suspect, content)
}

fn judge(zone: &mut Zone) {
    for node in 1..=3 {
        zone.stop_node(node);
    }
    for node in 1..=3 {
        let (suspect, content) = read_offline(&zone.store(node), node);
        assert!(!suspect, "node {node} does not believe its store");
        for block in 0..BLOCKS {
            let expected = written(block).then(|| mark(block));
            assert_eq!(content.get(&block).copied(), expected, "node {node}, block {block}");
        }
    }
}

#[test]
fn every_bit_that_flips_in_one_replica_is_found_and_repaired() {
    let mut zone = serving(4);
    let mut dice = SeededDice::system();
    let mut client = zone.client(1);
    // A handful at a time in one node, the primary or a secondary.
    for round in 0..flips().div_ceil(8) {
        let folder = zone.store(1 + (round % 3) as u32);
        let data = open(&folder, "data");
        let live = live_blocks(&folder);
        let mut flipped = BTreeMap::new();
        while flipped.len() < 8 {
            let at = live[dice.below(live.len() as u64) as usize] + dice.below(4096);
            let was = byte(&data, at);
            data.write_all_at(&[was ^ (1 << dice.below(8))], at).unwrap();
            flipped.entry(at).or_insert(was);
        }
        // A read in the middle of it never shows a wrong byte.
        let block = dice.below(u64::from(BLOCKS)) as u32;
        let expected = if written(block) { mark(block) } else { 0 };
        assert_eq!(client.must_read(1, BlockRange::new(block, 1)), [expected]);
        for (at, was) in flipped {
            until("a repaired byte", || (byte(&data, at) == was).then_some(()));
        }
    }
    judge(&mut zone);
}

#[test]
fn what_a_store_keeps_for_itself_is_written_anew_when_it_rots() {
    let mut zone = serving(5);
    let mut dice = SeededDice::system();
    for _ in 0..flips() / 10 {
        let folder = zone.store(1 + dice.below(3) as u32);
        // Map pages of the slots in use, both superblocks, the journal's first megabytes.
        let (name, size) = match dice.below(3) {
            0 => ("map", 4 * 2 * 4096),
            1 => ("super", 2 * 4096),
            _ => ("journal", 4 << 20),
        };
        let file = open(&folder, name);
        let at = dice.below(size);
        file.write_all_at(&[byte(&file, at) ^ (1 << dice.below(8))], at).unwrap();
        wait_verified(&folder);
    }
    judge(&mut zone);
}
