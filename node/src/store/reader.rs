//! The read thread's work: reads that need the data file, in batches.

use std::sync::Arc;

use ashlar_env::disk::{AlignedBuf, IoEngine, IoKind, IoOp};
use ashlar_node_core::Line;
use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, Sums};
use bytes::{Bytes, BytesMut};

use super::format::{as_usize, first_bad};
use super::overlay::Content;
use super::shared::{Piece, Shared};
use crate::log_line::log_line;

use super::{ReadDone, ReadError, ReadRequest};

/// A resolved read that needs the disk.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub(crate) request: ReadRequest,
    pub(crate) pieces: Vec<(BlockRange, Piece)>,
    /// See `State::reading`.
    pub(crate) parity: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: IoEngine,
}

impl Reader {
    /// Takes everything that waits.
    pub(crate) fn take(&self) -> Vec<ReadJob> {
        self.shared.lock().reads.drain(..).collect()
    }

    /// Reads, verifies and assembles.
    pub(crate) fn run(&mut self, mut jobs: Vec<ReadJob>) -> Vec<ReadDone> {
        let mut ops = Vec::new();
        for (job, tag) in jobs.iter().zip(0u64..) {
            for (range, piece) in &job.pieces {
                if let Piece::Disk { offset, .. } = piece {
                    let buf = AlignedBuf::zeroed(as_usize(u64::from(range.count)) * BLOCK_SIZE);
                    let mut op = IoOp::new(self.shared.data.clone(), IoKind::Read, *offset, buf);
                    op.tag = (tag << 32) | u64::from(range.first);
                    ops.push(op);
                }
            }
        }
        let mut read = self.engine.run(ops);
        read.sort_by_key(|op| op.tag);
        let mut read = read.into_iter();
        let done = jobs.iter_mut().map(|job| finish(job, &mut read)).collect();
        let mut state = self.shared.lock();
        for job in &jobs {
            if let Some(count) = state.reading.get_mut(job.parity) {
                *count -= 1;
            }
        }
        drop(state);
        self.shared.apply_wake.notify();
        done
    }
}

/// Puts what was read into the job's pieces, which are in the order of `read`.
fn finish(job: &mut ReadJob, read: &mut impl Iterator<Item = IoOp>) -> ReadDone {
    let (chunk, ticket) = (job.request.chunk, job.request.ticket);
    let mut failed = None;
    for (range, piece) in &mut job.pieces {
        let Piece::Disk { sums, .. } = piece else { continue };
        let Some(op) = read.next() else { break };
        if let Err(cause) = op.result {
            failed = failed.or(Some(ReadError::Disk { chunk, range: *range, cause }));
            continue;
        }
        if let Some(bad) = first_bad(&op.buf, sums.iter().copied()) {
            let first = range.first + super::format::as_u32(bad);
            let range = BlockRange::new(first, range.end() - first);
            log_line!(Line::Damaged, %chunk, %range);
            failed = failed.or(Some(ReadError::Damaged { chunk, range }));
            continue;
        }
        let sums = std::mem::take(sums);
        let sums = super::overlay::SumRun::of(&sums);
        *piece = Piece::Memory(Content::Data { sums, bytes: Bytes::from_owner(op.buf) });
    }
    let result = failed.map_or_else(|| Ok(assemble(job.request.range, &job.pieces)), Err);
    ReadDone { ticket, result }
}

/// Joins pieces, all in memory and in order, to the content of the whole range.
pub(crate) fn assemble(range: BlockRange, pieces: &[(BlockRange, Piece)]) -> BlockData {
    let memory = pieces.iter().filter_map(|(range, piece)| match piece {
        Piece::Memory(content) => Some((range, content)),
        Piece::Disk { .. } => None,
    });
    if let [(_, Piece::Memory(Content::Data { sums, bytes }))] = pieces {
        // The usual case: no copy.
        let sums = (0..as_usize(u64::from(range.count))).map(|nth| sums.get(nth)).collect();
        return BlockData { range, sums: Sums::Full(sums), data: bytes.clone() };
    }
    let mut all = Vec::with_capacity(as_usize(u64::from(range.count)));
    let mut data = BytesMut::new();
    for (part, content) in memory {
        match content {
            Content::Hole => all.extend(part.blocks().map(|_| None)),
            // `Piece::of` makes these data, or a read of the disk.
            Content::Placed { .. } => {}
            Content::Data { sums, bytes } => {
                all.extend((0..part.blocks().count()).map(|nth| Some(sums.get(nth))));
                data.extend_from_slice(bytes);
            }
        }
    }
    let sums = if all.iter().all(Option::is_none) {
        Sums::Holes
    } else if all.iter().all(Option::is_some) {
        Sums::Full(all.into_iter().flatten().collect())
    } else {
        Sums::Mixed(all)
    };
    BlockData { range, sums, data: data.freeze() }
}
