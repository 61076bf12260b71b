//! The background scrub: every block of every replica is read once in a cycle (design.md section 8).
//!
//! Reading verifies the checksums; what cannot be read is repaired (`primary/repair.rs`). A primary
//! also has its secondaries compare what they hold with what it has read: two replicas that differ
//! although both have good checksums are made equal by an ordered write of the primary's content.
//!
//! Pace: an idle node scrubs at its full rate; one with work to do only as fast as the cycle needs. A
//! cycle that is done early rests until the next is due. One read is under way at a time.

use crate::timing::Timing;
use ashlar_types::message::cluster::ScrubState;
use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, ChunkId, Time};

/// Blocks of one read: one frame's worth would delay a client's read behind it by as much.
pub(crate) const SCRUB_BLOCKS: u32 = 64;
/// What a read costs besides its bytes, so that the scrub of a thin chunk is paced too.
const READ_COST: u64 = BLOCK_SIZE as u64;

/// Where the scrub is, and how much it may read.
#[derive(Debug)]
pub(crate) struct Scrub {
    /// The next blocks to be read; `None` at rest between two cycles.
    at: Option<(Option<ChunkId>, u32)>,
    reading: bool,
    began: Time,
    last_tick: Time,
    /// Bytes that may be read; a read is begun with any, so what it takes beyond is owed.
    budget: u64,
    owed: u64,
    /// Records and reads of the node as of the last tick: work that is not the scrub's own.
    seen_work: u64,
    cycles: u64,
    /// Bytes in a second that were earned last.
    rate: u64,
    /// Bytes of content that this cycle has read, and the store's as of the last tick.
    done: u64,
    used: u64,
}

impl Scrub {
    pub(crate) const fn new(now: Time) -> Self {
        let at = Some((None, 0));
        Self {
            at,
            reading: false,
            began: now,
            last_tick: now,
            budget: 0,
            owed: 0,
            seen_work: 0,
            cycles: 0,
            rate: 0,
            done: 0,
            used: 0,
        }
    }

    /// Complete cycles of this process.
    pub(crate) const fn cycles(&self) -> u64 {
        self.cycles
    }

    /// For status. What is read is held against what the store has in use, so that the share is close
    /// and not exact: between two cycles it is the whole.
    pub(crate) fn state(&self) -> ScrubState {
        let share = self.done.saturating_mul(1_000) / self.used.max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX).min(999);
        let done_permille = if self.at.is_none() { 1_000 } else { share };
        ScrubState { cycles: self.cycles, done_permille, bytes_per_second: self.rate }
    }

    /// Time passes: `work` counts what the node has done for others, `used` are the store's bytes.
    pub(crate) fn on_tick(&mut self, now: Time, work: u64, used: u64, timing: &Timing) {
        let passed = now.since(self.last_tick);
        self.last_tick = now;
        let idle = work == self.seen_work;
        self.seen_work = work;
        let cycle = timing.scrub_cycle.as_secs().max(1);
        // As much again for what is read twice, and for cycles that began late.
        let needed = (used / cycle).saturating_mul(2).max(READ_COST);
        let full = timing.scrub_bytes_per_second;
        let rate = if idle { full } else { needed.min(full) };
        self.rate = rate;
        self.used = used;
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let earned = rate.saturating_mul(millis) / 1_000;
        // No more than a second's worth: a node that was away does not make up for it at once.
        let paid = earned.min(self.owed);
        self.owed -= paid;
        self.budget = self.budget.saturating_add(earned - paid).min(full);
        if self.at.is_none() && now.since(self.began) >= timing.scrub_cycle {
            self.began = now;
            self.at = Some((None, 0));
            self.done = 0;
        }
    }

    /// What to read now, if anything: `next` gives the first chunk behind the given one, or the
    /// first of all, with its blocks.
    pub(crate) fn take(
        &mut self,
        next: impl Fn(Option<ChunkId>) -> Option<(ChunkId, u32)>,
        blocks_of: impl Fn(ChunkId) -> Option<u32>,
    ) -> Option<(ChunkId, BlockRange)> {
        if self.reading || self.budget < READ_COST {
            return None;
        }
        let (chunk, first) = self.at?;
        let inside = chunk.and_then(|chunk| {
            let blocks = blocks_of(chunk).filter(|blocks| first < *blocks)?;
            Some((chunk, first, blocks))
        });
        let found = inside.or_else(|| next(chunk).map(|(chunk, blocks)| (chunk, 0, blocks)));
        let Some((chunk, first, blocks)) = found else {
            self.at = None;
            self.cycles += 1;
            return None;
        };
        let count = SCRUB_BLOCKS.min(blocks - first);
        self.at = Some((Some(chunk), first + count));
        self.reading = true;
        Some((chunk, BlockRange::new(first, count)))
    }

    /// The read has been answered.
    pub(crate) fn on_read(&mut self, content: Option<&BlockData>) {
        self.reading = false;
        let bytes = content.map_or(0, |data| u64::try_from(data.data.len()).unwrap_or(u64::MAX));
        let cost = READ_COST.saturating_add(bytes);
        self.done = self.done.saturating_add(bytes);
        self.owed = self.owed.saturating_add(cost.saturating_sub(self.budget));
        self.budget = self.budget.saturating_sub(cost);
    }
}

/// A number that two contents of a range share only if they are equal: made of the checksums, holes
/// told from zeros (FNV-1a).
pub(crate) fn digest(data: &BlockData) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, (_, content)| {
        let there = step(hash, u8::from(content.is_some()));
        let sum = content.map_or(0, |(sum, _)| sum);
        sum.to_le_bytes().into_iter().fold(there, step)
    })
}
