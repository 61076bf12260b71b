//! What is wrong with the disk of a simulated node.
//!
//! The store keeps the checksum of every block apart from its bytes (in its journal and map), so
//! what a disk does to the bytes shows when they are read: `wrong` holds the bytes that lie in the
//! place of a block instead of those that were written there, and every read of them is held
//! against the checksum as the store does it. Where they happen to be the same, nothing is wrong.

use crate::blocks::Blocks;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_types::{BlockData, BlockRange, ChunkId, Time};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// What a disk will do to the next write of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteFault {
    /// It says that it has written, and has not.
    Lost,
    /// It writes to the place of another block.
    Misdirected,
}

/// What is wrong with the disk.
#[derive(Debug, Default)]
pub(crate) struct DiskFaults {
    /// Nothing is read or synced until then.
    pub(crate) stalled_until: Time,
    /// Reads fail until then.
    pub(crate) unreadable_until: Time,
    /// No room for content until then.
    pub(crate) full_until: Time,
    /// What lies in the place of a block instead of what was written there; `None`: zeros.
    wrong: BTreeMap<(ChunkId, u32), Option<Bytes>>,
    next_write: Option<WriteFault>,
    /// Until then reads get what the disk held at the beginning of the fault.
    stale: Option<(Time, Blocks)>,
}

impl DiskFaults {
    /// Nothing is read or synced until then.
    pub(crate) fn stall(&mut self, until: Time) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// Reads fail until then.
    pub(crate) fn fail_reads(&mut self, until: Time) {
        self.unreadable_until = self.unreadable_until.max(until);
    }

    /// The next write of content goes wrong.
    pub(crate) fn spoil_next_write(&mut self, how: WriteFault) {
        self.next_write = Some(how);
    }

    /// Until then reads get what is there now.
    pub(crate) fn show_old(&mut self, until: Time, now_there: &Blocks) {
        self.stale = Some((until, now_there.clone()));
    }

    /// One bit of a block turns.
    pub(crate) fn rot(&mut self, chunk: ChunkId, block: u32, there: &Blocks) -> bool {
        let Some((_, bytes)) = there.get(chunk, block) else { return false };
        let mut turned = BytesMut::from(bytes.as_ref());
        if let Some(byte) = turned.last_mut() {
            *byte ^= 1;
        }
        self.wrong.insert((chunk, block), Some(turned.freeze()));
        true
    }

    /// Content is about to be written over what is `there`; true if it goes wrong.
    pub(crate) fn on_write(
        &mut self,
        chunk: ChunkId,
        data: &BlockData,
        there: &Blocks,
        dice: &mut SeededDice,
    ) -> bool {
        let fault = self.next_write.filter(|_| data.data_blocks() > 0);
        if fault.is_some() {
            self.next_write = None;
        }
        for (block, content) in data.iter() {
            match (fault, content) {
                (Some(_), Some(_)) => {
                    let before = self.wrong.get(&(chunk, block)).cloned();
                    let before = before
                        .unwrap_or_else(|| there.get(chunk, block).map(|(_, bytes)| bytes.clone()));
                    self.wrong.insert((chunk, block), before);
                }
                _written_in_its_place => {
                    self.wrong.remove(&(chunk, block));
                }
            }
        }
        if fault == Some(WriteFault::Misdirected) {
            self.misdirect(chunk, data, there, dice);
        }
        fault.is_some()
    }

    /// The first block of a write lands in the place of another one.
    fn misdirect(
        &mut self,
        chunk: ChunkId,
        data: &BlockData,
        there: &Blocks,
        dice: &mut SeededDice,
    ) {
        let others: Vec<u32> = there
            .sums(chunk)
            .into_keys()
            .filter(|b| !data.range.blocks().any(|w| w == *b))
            .collect();
        let at = usize::try_from(dice.below(others.len() as u64)).unwrap_or(0);
        let bytes = data.iter().find_map(|(_, content)| content.map(|(_, bytes)| bytes));
        if let (Some(victim), Some(bytes)) = (others.get(at), bytes) {
            self.wrong.insert((chunk, *victim), Some(bytes));
        }
    }

    /// Whether what the disk gives for a range fits the checksums of what should be there.
    pub(crate) fn fits(&self, now: Time, chunk: ChunkId, range: BlockRange, live: &Blocks) -> bool {
        let stale = self.stale.as_ref().filter(|(until, _)| now < *until).map(|(_, old)| old);
        if self.wrong.is_empty() && stale.is_none() {
            return true;
        }
        range.blocks().all(|block| {
            // A hole is one by the map: the disk is not asked.
            let Some((sum, _)) = live.get(chunk, block) else { return true };
            let given = match (self.wrong.get(&(chunk, block)), stale) {
                (Some(wrong), _) => wrong.as_ref(),
                (None, Some(old)) => old.get(chunk, block).map(|(_, bytes)| bytes),
                (None, None) => return true,
            };
            given.is_some_and(|bytes| crc32c::crc32c(bytes) == *sum)
        })
    }

    /// Whether anything lies in a wrong place of a chunk, or will, or reads get what was there before.
    pub(crate) fn gives_wrong(&self, now: Time, chunk: ChunkId) -> bool {
        let (from, to) = ((chunk, 0), (chunk, u32::MAX));
        self.next_write.is_some()
            || self.wrong.range(from..=to).next().is_some()
            || self.stale.as_ref().is_some_and(|(until, _)| now < *until)
    }

    /// What lies in the place of a block instead of what was written there.
    pub(crate) fn given(&self, chunk: ChunkId, block: u32) -> Option<Bytes> {
        self.wrong.get(&(chunk, block)).cloned().flatten()
    }

    /// A replica is gone, and what lay in its places.
    pub(crate) fn forget(&mut self, chunk: ChunkId) {
        self.wrong.retain(|(of, _), _| *of != chunk);
    }

    /// Every fault ends; what lies in wrong places stays there.
    pub(crate) fn heal(&mut self) {
        self.stalled_until = Time::ZERO;
        self.unreadable_until = Time::ZERO;
        self.full_until = Time::ZERO;
        self.next_write = None;
        self.stale = None;
    }
}
