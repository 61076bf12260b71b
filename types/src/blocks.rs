//! Blocks: the 4 KiB unit of the data path, ranges of them, and their content with checksums.

use crate::limit::IO_BLOCKS_MAX;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use thiserror::Error;

/// Bytes of a block. Checksums are per block from the client to the disk.
pub const BLOCK_SIZE: usize = 4096;

/// A run of blocks within one chunk. Never empty once validated by a geometry or a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block, counted from the start of the chunk.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl BlockRange {
    /// A range from its first block and length.
    #[must_use]
    pub const fn new(first: u32, count: u32) -> Self {
        Self { first, count }
    }

    /// The block after the last one.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }

    /// Whether both have a block in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Whether `block` lies within.
    #[must_use]
    pub const fn contains(self, block: u32) -> bool {
        self.first <= block && block < self.end()
    }

    /// The common part, if there is one.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        (first < end).then(|| Self::new(first, end - first))
    }

    /// The blocks, in order.
    pub fn blocks(self) -> impl Iterator<Item = u32> + Clone {
        self.first..self.end()
    }

    /// Pieces of at most `count_max` blocks, in order.
    pub fn pieces(self, count_max: u32) -> impl Iterator<Item = Self> {
        let step = count_max.max(1);
        (0..self.count.div_ceil(step)).map(move |i| {
            let first = self.first + i * step;
            Self::new(first, step.min(self.end() - first))
        })
    }
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.first, self.count)
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}+{}", self.first, self.count)
    }
}

/// CRC32C of each block of a range; a hole is a block that reads as zero and has no stored bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sums {
    /// Every block is a hole: a trim, a write of zeroes, an unwritten range.
    Holes,
    /// Every block has data, one checksum each.
    Full(Vec<u32>),
    /// One entry for each block of the range; `None` is a hole.
    Mixed(Vec<Option<u32>>),
}

/// Content of a range: what a write carries, a read returns, a mirror and a copy send.
///
/// `data` holds only the blocks that are not holes, one after the other.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockData {
    /// Where it belongs in the chunk.
    pub range: BlockRange,
    /// A checksum for each block that is not a hole.
    pub sums: Sums,
    /// The bytes of the blocks that are not holes.
    pub data: Bytes,
}

/// Why a content is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockDataError {
    /// An empty range, or one whose end does not fit 32 bits.
    #[error("the range of blocks is empty or too far out")]
    Range,
    /// More blocks with data than a frame may carry.
    #[error("more than {IO_BLOCKS_MAX} blocks with data in one request")]
    TooLarge,
    /// The number of checksums or bytes does not fit the range.
    #[error("checksums or data do not fit the range")]
    Length,
}

impl BlockData {
    /// A range without bytes: reads as zero.
    #[must_use]
    pub const fn holes(range: BlockRange) -> Self {
        Self { range, sums: Sums::Holes, data: Bytes::new() }
    }

    /// Blocks that have data.
    #[must_use]
    pub fn data_blocks(&self) -> usize {
        match &self.sums {
            Sums::Holes => 0,
            Sums::Full(sums) => sums.len(),
            Sums::Mixed(sums) => sums.iter().flatten().count(),
        }
    }

    /// Checks that range, checksums and bytes fit each other and the limits. Checksums themselves
    /// are verified where the bytes arrive.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), BlockDataError> {
        let count = self.range.count as usize;
        if count == 0 || self.range.first.checked_add(self.range.count).is_none() {
            return Err(BlockDataError::Range);
        }
        let listed = match &self.sums {
            Sums::Holes => count,
            Sums::Full(sums) => sums.len(),
            Sums::Mixed(sums) => sums.len(),
        };
        if listed != count || self.data.len() != self.data_blocks() * BLOCK_SIZE {
            return Err(BlockDataError::Length);
        }
        if self.data_blocks() > IO_BLOCKS_MAX as usize {
            return Err(BlockDataError::TooLarge);
        }
        Ok(())
    }

    /// Each block with its checksum and bytes (`None` for a hole), in order. Cheap: the bytes are
    /// shared, not copied. Ends early on content that [`Self::check`] would refuse.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Option<(u32, Bytes)>)> + '_ {
        let mut offset = 0_usize;
        self.range.blocks().enumerate().map_while(move |(i, block)| {
            let sum = match &self.sums {
                Sums::Holes => None,
                Sums::Full(sums) => Some(*sums.get(i)?),
                Sums::Mixed(sums) => *sums.get(i)?,
            };
            let Some(sum) = sum else { return Some((block, None)) };
            let end = offset + BLOCK_SIZE;
            if end > self.data.len() {
                return None;
            }
            let bytes = self.data.slice(offset..end);
            offset = end;
            Some((block, Some((sum, bytes))))
        })
    }
}

impl fmt::Debug for BlockData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {} bytes", self.range, self.data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn ranges_meet_only_where_they_share_a_block() {
        let a = BlockRange::new(4, 4);
        assert!(!a.overlaps(BlockRange::new(8, 1)));
        assert!(!a.overlaps(BlockRange::new(0, 4)));
        assert_eq!(a.intersection(BlockRange::new(6, 9)), Some(BlockRange::new(6, 2)));
        let pieces: Vec<_> = BlockRange::new(1, 5).pieces(2).collect();
        assert_eq!(pieces, [BlockRange::new(1, 2), BlockRange::new(3, 2), BlockRange::new(5, 1)]);
    }

    #[test]
    fn content_that_does_not_fit_its_range_is_refused() {
        let range = BlockRange::new(0, 2);
        let good = BlockData {
            range,
            sums: Sums::Mixed(vec![None, Some(7)]),
            data: Bytes::from(vec![1; BLOCK_SIZE]),
        };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.iter().count(), 2);
        let short = BlockData { data: Bytes::new(), ..good.clone() };
        assert_eq!(short.check(), Err(BlockDataError::Length));
        let few = BlockData { sums: Sums::Full(vec![1]), ..good };
        assert_eq!(few.check(), Err(BlockDataError::Length));
        assert_eq!(
            BlockData::holes(BlockRange::new(u32::MAX, 2)).check(),
            Err(BlockDataError::Range)
        );
        assert_eq!(BlockData::holes(BlockRange::new(0, 1 << 20)).check(), Ok(()));
    }
}
