//! One store of a simulated node: a journal, blocks, and a disk with faults.
//!
//! The journal is a list of records with a durable prefix; a crash keeps the prefix and any part
//! of what followed it, in order, as a torn journal would. The store's own recovery code is tested
//! over its own simulated disk (`node/src/store`).

use crate::blocks::Blocks;
use crate::disk::DiskFaults;
use crate::node::{End, ReadFault};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{JournalSeq, Record};
use ashlar_types::{BlockData, BlockRange, ChunkId, StoreId, Time};
use std::collections::VecDeque;

/// What a store keeps through a crash.
#[derive(Debug, Default)]
struct Media {
    state: DurableState,
    blocks: Blocks,
}

impl Media {
    fn apply(&mut self, record: &Record) {
        self.state.apply(record);
        self.blocks.apply(record);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SimStore {
    pub(crate) id: StoreId,
    media: Media,
    /// Records handed to the journal and not yet durable.
    tail: VecDeque<(JournalSeq, Record)>,
    /// Records that find no room on the disk, and those behind them.
    waiting: VecDeque<(JournalSeq, Record)>,
    /// Replicas of which records were lost since the last start.
    lost_parts: Vec<ChunkId>,
    /// What the process sees: media and tail.
    pub(crate) live: Blocks,
    pub(crate) disk: DiskFaults,
    /// It has failed in this process, which goes on without it.
    pub(crate) failed: bool,
}

impl SimStore {
    pub(crate) fn new(id: StoreId) -> Self {
        Self {
            id,
            media: Media::default(),
            tail: VecDeque::new(),
            waiting: VecDeque::new(),
            lost_parts: Vec::new(),
            live: Blocks::default(),
            disk: DiskFaults::default(),
            failed: false,
        }
    }

    /// What a process finds that starts now.
    pub(crate) fn open(&mut self) -> DurableState {
        self.failed = false;
        self.live = self.media.blocks.clone();
        self.media.state.clone()
    }

    /// Whether anything is recorded of a chunk.
    pub(crate) fn knows(&self, chunk: ChunkId) -> bool {
        self.media.state.get(chunk).is_some()
    }

    /// The process ends, or goes on without it. Gives how many records were lost that were not synced.
    pub(crate) fn end(&mut self, how: End, dice: &mut SeededDice) -> u64 {
        self.waiting.clear();
        let waiting = self.tail.len() as u64;
        let arrived = match how {
            End::Killed => dice.below(waiting + 1),
            End::Stopped => waiting,
            End::PowerCut => 0,
            End::Torn => waiting.saturating_sub(1),
        };
        for _ in 0..arrived {
            if let Some((_, record)) = self.tail.pop_front() {
                self.media.apply(&record);
            }
        }
        self.tail.clear();
        waiting - arrived
    }

    /// Another disk is in its place, an empty one.
    pub(crate) fn replace(&mut self, id: StoreId) {
        self.id = id;
        self.media = Media::default();
        self.tail.clear();
        self.disk = DiskFaults::default();
    }

    /// What the disk gives for a range, held against the checksums as the store does.
    pub(crate) fn read(
        &self,
        now: Time,
        chunk: ChunkId,
        range: BlockRange,
    ) -> Result<BlockData, ReadFault> {
        if now < self.disk.unreadable_until {
            return Err(ReadFault::Failed);
        }
        if !self.disk.fits(now, chunk, range, &self.live) {
            return Err(ReadFault::Damaged);
        }
        Ok(self.live.read(chunk, range))
    }

    /// What the disk gives, with checksums of whatever that is: a store that does not look.
    pub(crate) fn read_unchecked(&self, chunk: ChunkId, range: BlockRange) -> BlockData {
        let mut shown = self.live.clone();
        for (block, bytes) in range.blocks().filter_map(|b| Some((b, self.disk.given(chunk, b)?))) {
            shown.put(chunk, block, (crc32c::crc32c(&bytes), bytes));
        }
        shown.read(chunk, range)
    }

    /// Lets a written block of a chunk rot; false if it has none.
    pub(crate) fn rot(&mut self, chunk: ChunkId, dice: &mut SeededDice) -> bool {
        let written: Vec<u32> = self.live.sums(chunk).into_keys().collect();
        let at = usize::try_from(dice.below(written.len() as u64)).unwrap_or(0);
        written.get(at).is_some_and(|block| self.disk.rot(chunk, *block, &self.live))
    }

    /// Lets one block of a chunk rot; false if it was never written.
    pub(crate) fn rot_block(&mut self, chunk: ChunkId, block: u32) -> bool {
        self.disk.rot(chunk, block, &self.live)
    }

    /// Until then reads get what is there now.
    pub(crate) fn show_old(&mut self, until: Time) {
        self.disk.show_old(until, &self.live);
    }

    /// A written block of a chunk has the content of another one, and its checksum: what a replica
    /// holds of which a write was lost before its record. False if fewer than two are written.
    pub(crate) fn differ(&mut self, chunk: ChunkId) -> bool {
        let written: Vec<u32> = self.live.sums(chunk).into_keys().collect();
        let [.., other, last] = written.as_slice() else { return false };
        let Some(content) = self.live.get(chunk, *other).cloned() else { return false };
        self.live.put(chunk, *last, content.clone());
        self.media.blocks.put(chunk, *last, content);
        true
    }

    /// The journal has a gap that the store finds at the next start: it cannot know whose records
    /// stood there.
    pub(crate) fn lose_records(&mut self) {
        self.media.state.note_gaps();
        let held: Vec<ChunkId> = self.media.state.iter().map(|(chunk, _)| *chunk).collect();
        for chunk in &held {
            self.media.state.apply(&Record::Suspect { chunk: *chunk });
        }
        self.lost_parts = held;
    }

    /// Replicas that the store finds to have lost part of at its start.
    pub(crate) fn take_lost_parts(&mut self) -> Vec<ChunkId> {
        core::mem::take(&mut self.lost_parts)
    }

    /// Whether a record finds no room, or waits behind one that does not.
    pub(crate) fn must_wait(&self, now: Time, record: &Record) -> bool {
        let content = record.content().is_some_and(|data| data.data_blocks() > 0);
        !self.waiting.is_empty() || (content && now < self.disk.full_until)
    }

    /// Keeps a record that finds no room; true for the first.
    pub(crate) fn wait_for_room(&mut self, seq: JournalSeq, record: Record) -> bool {
        self.waiting.push_back((seq, record));
        self.waiting.len() == 1
    }

    /// Whether a read of a chunk must wait: it has to see every record before it.
    pub(crate) fn reads_wait(&self, chunk: ChunkId) -> bool {
        self.waiting.iter().any(|(_, record)| record.chunk() == chunk)
    }

    /// The records that find room now: all, or those up to an erasure, for which room is kept.
    pub(crate) fn take_room(&mut self, now: Time) -> Vec<(JournalSeq, Record)> {
        let erases = |(_, record): &(JournalSeq, Record)| matches!(record, Record::Erase { .. });
        let until = match self.waiting.iter().rposition(erases) {
            _ if now >= self.disk.full_until => self.waiting.len(),
            Some(last) => last + 1,
            None => 0,
        };
        self.waiting.drain(..until).collect()
    }

    /// Takes a record for the journal; true if the disk does something else than it should with it.
    pub(crate) fn append(
        &mut self,
        seq: JournalSeq,
        record: Record,
        dice: &mut SeededDice,
    ) -> bool {
        let mut spoiled = false;
        if let Some(data) = record.content() {
            spoiled = self.disk.on_write(record.chunk(), data, &self.live, dice);
        }
        if let Record::Erase { chunk } = &record {
            self.disk.forget(*chunk);
        }
        self.live.apply(&record);
        self.tail.push_back((seq, record));
        spoiled
    }

    /// Records handed to the journal that are not durable.
    pub(crate) fn unsynced(&self) -> usize {
        self.tail.len()
    }

    /// The newest record handed to the journal, if any is not durable.
    pub(crate) fn newest_appended(&self) -> Option<JournalSeq> {
        self.tail.back().map(|(seq, _)| *seq)
    }

    /// The journal's group up to `seq` is on the media.
    pub(crate) fn synced(&mut self, seq: JournalSeq) {
        while let Some((_, record)) = self.tail.pop_front_if(|(at, _)| *at <= seq) {
            self.media.apply(&record);
        }
    }
}
