//! Volume offsets and chunks: which chunk a byte lies in, and how a request splits.

use crate::blocks::{BLOCK_SIZE, BlockRange};
use crate::id::ChunkIndex;
use crate::limit::{
    CHUNK_BYTES_FLOOR, CHUNK_BYTES_MIN, CHUNKS_AT_CREATION_MAX, CHUNKS_MAX, VOLUME_BYTES_MAX,
};
use thiserror::Error;

/// Why a size or a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// Size zero.
    #[error("size must be at least 1 byte")]
    Empty,
    /// Above [`VOLUME_BYTES_MAX`].
    #[error("size must be at most {VOLUME_BYTES_MAX} bytes (64 TiB)")]
    TooLarge,
    /// The chunk size is no power of two or out of bounds for this volume.
    #[error(
        "chunk size must be a power of two of at least {CHUNK_BYTES_FLOOR} bytes that gives at most {CHUNKS_MAX} chunks"
    )]
    ChunkSize,
    /// A request that reaches past the end.
    #[error("the request ends beyond the volume")]
    OutOfRange,
}

/// Size of a volume and of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
    chunk_bytes: u64,
}

/// The part of a request that falls into one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPart {
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Blocks within the chunk.
    pub range: BlockRange,
    /// Blocks from the start of the request to the start of this part.
    pub skipped_blocks: u32,
}

impl Geometry {
    /// The geometry of a new volume: the size rounded up to whole blocks, and the smallest chunk
    /// size that starts it with at most [`CHUNKS_AT_CREATION_MAX`] chunks.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn for_new_volume(size_bytes: u64) -> Result<Self, GeometryError> {
        if size_bytes == 0 {
            return Err(GeometryError::Empty);
        }
        if size_bytes > VOLUME_BYTES_MAX {
            return Err(GeometryError::TooLarge);
        }
        let least = size_bytes.div_ceil(CHUNKS_AT_CREATION_MAX).next_power_of_two();
        Self::new(size_bytes, least.max(CHUNK_BYTES_MIN))
    }

    /// A geometry with a chosen chunk size.
    ///
    /// # Errors
    /// If either size is out of bounds.
    pub fn new(size_bytes: u64, chunk_bytes: u64) -> Result<Self, GeometryError> {
        if size_bytes == 0 {
            return Err(GeometryError::Empty);
        }
        if size_bytes > VOLUME_BYTES_MAX {
            return Err(GeometryError::TooLarge);
        }
        let fits = chunk_bytes.is_power_of_two()
            && chunk_bytes >= CHUNK_BYTES_FLOOR
            && chunk_bytes / (BLOCK_SIZE as u64) <= u64::from(u32::MAX)
            && size_bytes.div_ceil(chunk_bytes) <= CHUNKS_MAX;
        if !fits {
            return Err(GeometryError::ChunkSize);
        }
        Ok(Self { size_bytes: size_bytes.next_multiple_of(BLOCK_SIZE as u64), chunk_bytes })
    }

    /// Bytes of the volume, a multiple of the block size.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    /// Bytes of a chunk.
    #[must_use]
    pub const fn chunk_bytes(self) -> u64 {
        self.chunk_bytes
    }

    /// Blocks of a chunk.
    #[must_use]
    pub fn chunk_blocks(self) -> u32 {
        u32::try_from(self.chunk_bytes / BLOCK_SIZE as u64).unwrap_or(u32::MAX)
    }

    /// How many chunks the volume has; the last one may reach past the end of the volume.
    #[must_use]
    pub fn chunk_count(self) -> u32 {
        u32::try_from(self.size_bytes.div_ceil(self.chunk_bytes)).unwrap_or(u32::MAX)
    }

    /// Splits a run of blocks of the volume over chunks, in order.
    ///
    /// # Errors
    /// [`GeometryError::OutOfRange`] if it ends beyond the volume, [`GeometryError::Empty`] if it
    /// has no blocks.
    pub fn split(
        self,
        first_block: u64,
        count: u32,
    ) -> Result<impl Iterator<Item = ChunkPart>, GeometryError> {
        if count == 0 {
            return Err(GeometryError::Empty);
        }
        let end = first_block.checked_add(u64::from(count)).ok_or(GeometryError::OutOfRange)?;
        if end > self.size_bytes / BLOCK_SIZE as u64 {
            return Err(GeometryError::OutOfRange);
        }
        let per_chunk = u64::from(self.chunk_blocks());
        let mut at = first_block;
        Ok(core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let within = at % per_chunk;
            let blocks = (per_chunk - within).min(end - at);
            let part = ChunkPart {
                chunk: ChunkIndex(u32::try_from(at / per_chunk).ok()?),
                range: BlockRange::new(u32::try_from(within).ok()?, u32::try_from(blocks).ok()?),
                skipped_blocks: u32::try_from(at - first_block).ok()?,
            };
            at += blocks;
            Some(part)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_new_volume_starts_with_at_most_1024_chunks() {
        let demo = Geometry::for_new_volume(1 << 30).unwrap();
        assert_eq!((demo.chunk_bytes(), demo.chunk_count()), (64 << 20, 16));
        let large = Geometry::for_new_volume(1 << 40).unwrap();
        assert_eq!((large.chunk_bytes(), large.chunk_count()), (1 << 30, 1024));
        assert_eq!(Geometry::for_new_volume(0), Err(GeometryError::Empty));
        assert_eq!(Geometry::for_new_volume(u64::MAX), Err(GeometryError::TooLarge));
    }

    #[test]
    fn requests_split_at_chunk_borders_and_never_leave_the_volume() {
        let g = Geometry::new(4 * 65_536, 65_536).unwrap();
        let parts: Vec<_> = g.split(15, 18).unwrap().collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.iter().map(|p| p.range.count).sum::<u32>(), 18);
        assert_eq!(parts[1].range, BlockRange::new(0, 16));
        assert_eq!(parts[2].skipped_blocks, 17);
        assert!(matches!(g.split(63, 2).map(|_| ()), Err(GeometryError::OutOfRange)));
        assert!(matches!(g.split(u64::MAX, 1).map(|_| ()), Err(GeometryError::OutOfRange)));
    }
}
