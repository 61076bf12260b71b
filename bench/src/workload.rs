//! What a measurement does: which operations, where, how many at a time, for how long.
//!
//! Offsets come from a seed, so that two runs touch the same blocks in the same order.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Where the next operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Anywhere, uniformly.
    Random,
    /// One after the other, from the start, round and round.
    Sequential,
}

/// What one operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// A measurement's load.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Workload {
    /// Where operations go.
    pub pattern: Pattern,
    /// Of 100 operations, how many are reads.
    pub read_percent: u8,
    /// Bytes of one operation, a multiple of 4096.
    pub block_bytes: u32,
    /// Operations in flight.
    pub depth: u32,
    /// How long operations are started.
    pub duration: Duration,
    /// Bytes of the device that are used, from its start.
    pub span_bytes: u64,
    /// Decides offsets and the order of reads and writes.
    pub seed: u64,
}

/// The sequence of operations of a workload.
#[derive(Debug)]
pub(crate) struct Sequence {
    dice: SmallRng,
    pattern: Pattern,
    read_percent: u8,
    block_bytes: u64,
    blocks: u64,
    next: u64,
}

impl Sequence {
    /// From the start of `workload`; `None` when its span holds no block.
    pub(crate) fn new(workload: &Workload) -> Option<Self> {
        let block_bytes = u64::from(workload.block_bytes);
        let blocks = workload.span_bytes.checked_div(block_bytes)?;
        (blocks > 0).then(|| Self {
            dice: SmallRng::seed_from_u64(workload.seed),
            pattern: workload.pattern,
            read_percent: workload.read_percent,
            block_bytes,
            blocks,
            next: 0,
        })
    }

    /// The next operation and its offset in bytes.
    pub(crate) fn draw(&mut self) -> (Operation, u64) {
        let block = match self.pattern {
            Pattern::Random => self.dice.random_range(0..self.blocks),
            Pattern::Sequential => {
                let block = self.next;
                self.next = (self.next + 1) % self.blocks;
                block
            }
        };
        let read = self.dice.random_range(0..100_u8) < self.read_percent;
        let operation = if read { Operation::Read } else { Operation::Write };
        (operation, block * self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pattern: Pattern, read_percent: u8) -> Workload {
        Workload {
            pattern,
            read_percent,
            block_bytes: 4096,
            depth: 1,
            duration: Duration::from_secs(1),
            span_bytes: 16 * 4096,
            seed: 7,
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_sequence_within_the_span() {
        let draw = || {
            let mut sequence = Sequence::new(&workload(Pattern::Random, 50)).unwrap();
            (0..1000).map(|_| sequence.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        assert!(draw().iter().all(|(_, offset)| offset % 4096 == 0 && *offset < 16 * 4096));
        let reads = draw().iter().filter(|(operation, _)| *operation == Operation::Read).count();
        assert!((400..600).contains(&reads), "{reads}");
    }

    #[test]
    fn a_sequential_walk_goes_round() {
        let mut sequence = Sequence::new(&workload(Pattern::Sequential, 0)).unwrap();
        let offsets: Vec<u64> = (0..17).map(|_| sequence.draw().1).collect();
        assert_eq!((offsets[0], offsets[15], offsets[16]), (0, 15 * 4096, 0));
    }

    #[test]
    fn a_span_without_a_block_is_no_workload() {
        let mut small = workload(Pattern::Random, 0);
        small.span_bytes = 4095;
        assert!(Sequence::new(&small).is_none());
        small.block_bytes = 0;
        assert!(Sequence::new(&small).is_none());
    }
}
