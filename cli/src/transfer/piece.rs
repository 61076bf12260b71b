//! One piece of content on its way: what of it is data, and where; from a volume, to a volume.

use ashlar_client::Volume;
use ashlar_client::device::IoError;
use bytes::Bytes;
use futures::future::try_join_all;

use super::{PIECE_BYTES, zero_crc};

/// Most bytes of one request.
const REQUEST_BYTES: u64 = 1 << 20;

/// What is written or left out as one: a block of a volume.
const BLOCK_BYTES: usize = 4096;

/// A piece; what lies between its parts reads as zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) len: u64,
    /// Offset in the piece, and bytes; in order, not empty.
    pub(super) parts: Vec<(u64, Bytes)>,
}

impl Piece {
    /// A piece of plain bytes, filled up with zeros to `len`; what is zero of it becomes holes.
    pub(super) fn of(data: &Bytes, len: u64) -> Self {
        let mut parts: Vec<(u64, Bytes)> = Vec::new();
        let mut run: Option<std::ops::Range<usize>> = None;
        let blocks = data.chunks(BLOCK_BYTES).enumerate();
        for (number, block) in blocks {
            let start = number * BLOCK_BYTES;
            let end = start + block.len();
            let is_zero = block.iter().all(|byte| *byte == 0);
            run = match (run.take(), is_zero) {
                (Some(run), false) => Some(run.start..end),
                (None, false) => Some(start..end),
                (Some(run), true) => {
                    parts.push((run.start as u64, data.slice(run)));
                    None
                }
                (None, true) => None,
            };
        }
        parts.extend(run.map(|run| (run.start as u64, data.slice(run))));
        Self { len, parts }
    }

    /// CRC32C of the whole piece.
    pub(super) fn crc(&self) -> u32 {
        let (mut crc, mut at) = (0, 0);
        let zeros = |crc: u32, len: u64| {
            let count = usize::try_from(len).unwrap_or(usize::MAX);
            if len == 0 { crc } else { crc32c::crc32c_combine(crc, zero_crc(len), count) }
        };
        for (offset, data) in &self.parts {
            crc = zeros(crc, offset.saturating_sub(at));
            crc = crc32c::crc32c_append(crc, data);
            at = offset + data.len() as u64;
        }
        zeros(crc, self.len.saturating_sub(at))
    }

    /// Bytes that are not holes.
    pub(super) fn data_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, data)| data.len() as u64).sum()
    }

    /// All bytes in one row.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(usize::try_from(self.len).unwrap_or(0));
        for (offset, data) in &self.parts {
            all.resize(usize::try_from(*offset).unwrap_or(0), 0);
            all.extend_from_slice(data);
        }
        all.resize(usize::try_from(self.len).unwrap_or(0), 0);
        all
    }

    /// Reads the piece of that number.
    pub(super) async fn read(volume: &Volume, number: u64, len: u64) -> Result<Self, IoError> {
        let start = number * PIECE_BYTES;
        let offsets = (0..len).step_by(usize::try_from(REQUEST_BYTES).unwrap_or(1 << 20));
        let reads = offsets.map(|offset| {
            let bytes = u32::try_from(REQUEST_BYTES.min(len - offset)).unwrap_or(u32::MAX);
            async move {
                let content = volume.read_content(start + offset, bytes).await;
                content.map(|content| (offset, content))
            }
        });
        let mut parts = Vec::new();
        for (mut at, content) in try_join_all(reads).await? {
            for part in content.pieces {
                if let Some(data) = part.data {
                    parts.push((at, data));
                }
                at += u64::from(part.len);
            }
        }
        Ok(Self { len, parts })
    }

    /// Writes what is not zero; the rest of a new volume is zero already.
    pub(super) async fn write(&self, volume: &Volume, number: u64) -> Result<(), IoError> {
        let start = number * PIECE_BYTES;
        let request = usize::try_from(REQUEST_BYTES).unwrap_or(1 << 20);
        let writes = self.parts.iter().flat_map(|(offset, data)| {
            (0..data.len()).step_by(request).map(move |from| {
                let part = data.slice(from..data.len().min(from + request));
                volume.write(start + offset + from as u64, part)
            })
        });
        try_join_all(writes).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_become_holes_and_the_sum_is_that_of_the_bytes() {
        let mut bytes = vec![0; 5 * BLOCK_BYTES + 100];
        bytes[2 * BLOCK_BYTES] = 7;
        bytes[3 * BLOCK_BYTES + 9] = 8;
        bytes[5 * BLOCK_BYTES + 99] = 9;
        let piece = Piece::of(&Bytes::from(bytes.clone()), 6 * 4096);
        let places: Vec<(u64, usize)> = piece.parts.iter().map(|(at, d)| (*at, d.len())).collect();
        assert_eq!(places, [(2 * 4096, 2 * 4096), (5 * 4096, 100)]);
        bytes.resize(6 * BLOCK_BYTES, 0);
        assert_eq!(piece.to_vec(), bytes);
        assert_eq!(piece.crc(), crc32c::crc32c(&bytes));
        assert_eq!(piece.data_bytes(), 2 * 4096 + 100);
        let hole = Piece { len: 4096, parts: Vec::new() };
        assert_eq!(hole.crc(), crc32c::crc32c(&[0; 4096]));
    }
}
