//! Requests in bytes over a machine that knows blocks: alignment, read-modify-write, long zeroes.
//!
//! An unaligned write reserves its blocks in the machine's order of writes, reads the blocks at
//! its two ends when its turn has come, and fills the reservation: nothing that overlaps is in
//! flight meanwhile, so no other write is lost. A long zeroing runs in steps, one at a time.
//! Lives in the task of the volume; spawns nothing.

use crate::device::{Command, Completion, Content, Io, IoError, Piece, Sink};
use ashlar_client_core::{Done, Input, OpError, OpId, Payload, ReadPiece, Request};
use ashlar_types::{BLOCK_SIZE, BlockData, Geometry, Sums};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Chunks that one step of a long zeroing covers: far below the parts that one request may have.
const ZERO_STEP_CHUNKS: u64 = 64;

/// Who asked, and what it costs in memory.
#[derive(Debug)]
struct Asker {
    tag: u64,
    sink: Arc<dyn Sink>,
    bytes: usize,
}

/// A request to the machine, and what it is part of.
#[derive(Debug)]
enum Work {
    /// A read: bytes to leave out at the front, bytes wanted.
    Read { asker: Asker, skip: usize, len: usize },
    /// A write of whole blocks, or a flush.
    Plain { asker: Asker },
    /// Blocks that are reserved for an unaligned write.
    Modify { asker: Asker, change: Change, front: Option<Bytes>, back: Option<Bytes>, missing: u8 },
    /// One end of a reservation is being read.
    End { of: OpId, back: bool },
}

/// An unaligned write: bytes, or zeroes, from `skip` bytes into the reserved blocks.
#[derive(Debug)]
struct Change {
    first: u64,
    count: u32,
    skip: usize,
    fill: Fill,
}

#[derive(Debug)]
enum Fill {
    Data(Bytes),
    /// These zeroes, then a zeroing that goes on from there to its end.
    Zeroes {
        len: usize,
        next: u64,
        end: u64,
    },
}

/// All byte requests of a volume that are in progress.
#[derive(Debug)]
pub(crate) struct Bytewise {
    geometry: Geometry,
    read_only: bool,
    next: u64,
    work: BTreeMap<OpId, Work>,
    /// Zeroings with a step in progress: the rest of each.
    zeroings: BTreeMap<OpId, (u64, u64)>,
    /// Bytes of content held for requests in progress.
    bytes: usize,
}

/// What a call leads to: inputs for the machine, and completions for submitters.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) inputs: Vec<Input>,
    pub(crate) completions: Vec<(Arc<dyn Sink>, Completion)>,
}

impl Out {
    fn complete(&mut self, asker: Asker, result: Result<Content, IoError>) {
        self.completions.push((asker.sink, Completion { tag: asker.tag, result }));
    }

    fn submit(&mut self, op: OpId, request: Request) {
        self.inputs.push(Input::Submit { op, request });
    }
}

impl Bytewise {
    pub(crate) const fn new(geometry: Geometry, read_only: bool) -> Self {
        Self {
            geometry,
            read_only,
            next: 1,
            work: BTreeMap::new(),
            zeroings: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// The volume is larger now.
    pub(crate) const fn grow(&mut self, geometry: Geometry) {
        self.geometry = geometry;
    }

    /// Bytes of content held for requests in progress.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    fn begin(&mut self, work: Work) -> OpId {
        let op = OpId(self.next);
        self.next += 1;
        self.work.insert(op, work);
        op
    }

    /// A submitter asks for something.
    pub(crate) fn submit(&mut self, command: Command, sink: &Arc<dyn Sink>, out: &mut Out) {
        let (range, writes, bytes) = match &command.io {
            Io::Read { offset, len } => (Some((*offset, u64::from(*len))), false, *len as usize),
            Io::Write { offset, data } => (Some((*offset, data.len() as u64)), true, data.len()),
            Io::Zero { offset, len } => (Some((*offset, *len)), true, 0),
            Io::Flush => (None, false, 0),
        };
        let mut asker = Asker { tag: command.tag, sink: sink.clone(), bytes: 0 };
        if let Some((offset, len)) = range {
            let end = offset.checked_add(len).filter(|end| *end <= self.geometry.size_bytes());
            if len == 0 || end.is_none() {
                return out.complete(asker, Err(IoError::OutOfRange));
            }
        }
        if writes && self.read_only {
            return out.complete(asker, Err(IoError::ReadOnly));
        }
        asker.bytes = bytes;
        self.bytes += bytes;
        match command.io {
            Io::Read { offset, len } => {
                let (first, count, skip) = blocks(offset, u64::from(len));
                let op = self.begin(Work::Read { asker, skip, len: len as usize });
                out.submit(op, Request::Read { first, count });
            }
            Io::Write { offset, data } => self.write(asker, offset, data, out),
            Io::Zero { offset, len } => self.zero(asker, offset, offset + len, out),
            Io::Flush => {
                let op = self.begin(Work::Plain { asker });
                out.submit(op, Request::Flush);
            }
        }
    }

    fn write(&mut self, asker: Asker, offset: u64, data: Bytes, out: &mut Out) {
        if offset.is_multiple_of(BLOCK) && data.len().is_multiple_of(BLOCK_SIZE) {
            let op = self.begin(Work::Plain { asker });
            let request = Request::Write { first: offset / BLOCK, payload: payload(data) };
            return out.submit(op, request);
        }
        let (first, count, skip) = blocks(offset, data.len() as u64);
        self.modify(asker, Change { first, count, skip, fill: Fill::Data(data) }, out);
    }

    /// The next step of making `at..end` zero.
    fn zero(&mut self, asker: Asker, at: u64, end: u64, out: &mut Out) {
        let step = ZERO_STEP_CHUNKS.saturating_mul(self.geometry.chunk_bytes());
        if at.is_multiple_of(BLOCK) && end - at >= BLOCK {
            let whole = (end - at) / BLOCK * BLOCK;
            // Up to a border of chunks, so that a step never has more parts than chunks.
            let to_border = step - at % self.geometry.chunk_bytes();
            let len = whole.min(to_border).min(u64::from(u32::MAX) * BLOCK);
            let op = self.begin(Work::Plain { asker });
            if at + len < end {
                self.zeroings.insert(op, (at + len, end));
            }
            let count = u32::try_from(len / BLOCK).unwrap_or(u32::MAX);
            return out.submit(op, Request::Zero { first: at / BLOCK, count });
        }
        let next = end.min((at / BLOCK + 1) * BLOCK);
        let len = usize::try_from(next - at).unwrap_or(BLOCK_SIZE);
        let (first, count, skip) = blocks(at, next - at);
        let fill = Fill::Zeroes { len, next, end };
        self.modify(asker, Change { first, count, skip, fill }, out);
    }

    fn modify(&mut self, asker: Asker, change: Change, out: &mut Out) {
        let (first, count) = (change.first, change.count);
        let op = self.begin(Work::Modify { asker, change, front: None, back: None, missing: 0 });
        out.submit(op, Request::Reserve { first, count });
    }

    /// The turn of a reservation has come: read the blocks at its ends that are not overwritten
    /// whole.
    pub(crate) fn on_turn(&mut self, op: OpId, out: &mut Out) {
        let Some(Work::Modify { change, missing, .. }) = self.work.get_mut(&op) else { return };
        let last = change.first + u64::from(change.count) - 1;
        let end = change.skip + change.fill_len();
        let cut_front = change.skip > 0;
        let cut_back = !end.is_multiple_of(BLOCK_SIZE);
        let mut reads = Vec::with_capacity(2);
        if cut_front || (cut_back && change.count == 1) {
            reads.push((change.first, false));
        }
        if cut_back && change.count > 1 {
            reads.push((last, true));
        }
        *missing = u8::try_from(reads.len()).unwrap_or(0);
        for (block, back) in reads {
            let read = self.begin(Work::End { of: op, back });
            out.submit(read, Request::Read { first: block, count: 1 });
        }
    }

    /// The machine has finished a request.
    pub(crate) fn on_complete(&mut self, op: OpId, result: Result<Done, OpError>, out: &mut Out) {
        let Some(work) = self.work.remove(&op) else { return };
        match work {
            Work::Read { asker, skip, len } => {
                let content = match result {
                    Ok(Done::Read(pieces)) => Ok(cut(pieces, skip, len)),
                    Ok(Done::Written | Done::Flushed) => Err(IoError::Internal),
                    Err(error) => Err(error.into()),
                };
                self.end(asker, content, out);
            }
            Work::Plain { asker } => {
                let rest = self.zeroings.remove(&op);
                match (result, rest) {
                    (Ok(_), Some((at, end))) => self.zero(asker, at, end, out),
                    (result, _) => self.end(asker, outcome(result), out),
                }
            }
            Work::Modify { asker, change, .. } => match (result, change.fill) {
                (Ok(_), Fill::Zeroes { next, end, .. }) if next < end => {
                    self.zero(asker, next, end, out);
                }
                (result, _) => self.end(asker, outcome(result), out),
            },
            Work::End { of, back } => self.on_end_read(of, back, result, out),
        }
    }

    fn on_end_read(
        &mut self,
        of: OpId,
        is_back: bool,
        result: Result<Done, OpError>,
        out: &mut Out,
    ) {
        let Some(Work::Modify { change, front, back, missing, .. }) = self.work.get_mut(&of) else {
            return; // The reservation has failed already (fenced, timed out).
        };
        let pieces = match result {
            Ok(Done::Read(pieces)) => pieces,
            Ok(Done::Written | Done::Flushed) => Vec::new(),
            Err(error) => {
                // What cannot be read cannot be modified. The machine drops the reservation; the
                // submitter hears why.
                let work = self.work.remove(&of);
                out.inputs.push(Input::Abandon { op: of });
                if let Some(Work::Modify { asker, .. }) = work {
                    self.end(asker, Err(error.into()), out);
                }
                return;
            }
        };
        let bytes = cut(pieces, 0, BLOCK_SIZE).into_bytes();
        if is_back {
            *back = Some(bytes);
        } else {
            *front = Some(bytes);
        }
        *missing = missing.saturating_sub(1);
        if *missing == 0 {
            let merged = change.merge(front.take(), back.take());
            out.inputs.push(Input::Fill { op: of, payload: payload(merged) });
        }
    }

    fn end(&mut self, asker: Asker, result: Result<Content, IoError>, out: &mut Out) {
        self.bytes = self.bytes.saturating_sub(asker.bytes);
        out.complete(asker, result);
    }

    /// Everything in progress fails: the volume is closed.
    pub(crate) fn fail_all(&mut self, error: IoError, out: &mut Out) {
        for (_, work) in std::mem::take(&mut self.work) {
            match work {
                Work::Read { asker, .. } | Work::Plain { asker } | Work::Modify { asker, .. } => {
                    self.end(asker, Err(error), out);
                }
                Work::End { .. } => {}
            }
        }
        self.zeroings.clear();
    }
}

impl Change {
    fn fill_len(&self) -> usize {
        match &self.fill {
            Fill::Data(data) => data.len(),
            Fill::Zeroes { len, .. } => *len,
        }
    }

    fn merge(&self, front: Option<Bytes>, back: Option<Bytes>) -> Bytes {
        let total = self.count as usize * BLOCK_SIZE;
        let mut whole = BytesMut::with_capacity(total);
        if let Some(front) = &front {
            whole.extend_from_slice(front.get(..self.skip).unwrap_or_default());
        }
        whole.resize(self.skip, 0);
        match &self.fill {
            Fill::Data(data) => whole.extend_from_slice(data),
            Fill::Zeroes { len, .. } => whole.resize(self.skip + len, 0),
        }
        // With one block, the block read as front holds the bytes behind the change too.
        let behind = whole.len() - (self.count as usize - 1) * BLOCK_SIZE;
        let kept = if self.count == 1 { front } else { back };
        if let Some(kept) = kept {
            whole.extend_from_slice(kept.get(behind..).unwrap_or_default());
        }
        whole.resize(total, 0);
        whole.freeze()
    }
}

/// First block, number of blocks, and bytes from the start of the first one.
fn blocks(offset: u64, len: u64) -> (u64, u32, usize) {
    let first = offset / BLOCK;
    let end = (offset + len).div_ceil(BLOCK);
    let skip = usize::try_from(offset % BLOCK).unwrap_or(0);
    (first, u32::try_from(end - first).unwrap_or(u32::MAX), skip)
}

/// The one place where content is summed: these checksums go to the disk.
fn payload(data: Bytes) -> Payload {
    let sums = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
    Payload { sums, data }
}

fn outcome(result: Result<Done, OpError>) -> Result<Content, IoError> {
    result.map(|_| Content::default()).map_err(IoError::from)
}

/// The bytes `skip..skip + len` of what was read.
fn cut(pieces: Vec<ReadPiece>, mut skip: usize, mut len: usize) -> Content {
    let mut content = Content { pieces: Vec::with_capacity(pieces.len()) };
    for piece in pieces {
        runs(&piece.data, &mut |bytes, data| {
            let from = skip.min(bytes);
            skip -= from;
            let take = (bytes - from).min(len);
            if take == 0 {
                return;
            }
            len -= take;
            let data = data.map(|data| data.slice(from..from + take));
            let take = u32::try_from(take).unwrap_or(u32::MAX);
            content.push(Piece { len: take, data });
        });
    }
    content
}

impl Content {
    /// Appends, and joins holes that meet.
    fn push(&mut self, piece: Piece) {
        match (self.pieces.last_mut(), &piece.data) {
            (Some(last), None) if last.data.is_none() => last.len += piece.len,
            _ => self.pieces.push(piece),
        }
    }
}

/// Calls for each run of blocks with data, or of holes, with its length in bytes.
fn runs(data: &BlockData, each: &mut dyn FnMut(usize, Option<Bytes>)) {
    let count = data.range.count as usize;
    match &data.sums {
        Sums::Holes => each(count * BLOCK_SIZE, None),
        Sums::Full(_) => each(count * BLOCK_SIZE, Some(data.data.clone())),
        Sums::Mixed(sums) => {
            let mut at = 0;
            for run in sums.chunk_by(|a, b| a.is_some() == b.is_some()) {
                let bytes = run.len() * BLOCK_SIZE;
                if matches!(run.first(), Some(Some(_))) {
                    each(bytes, Some(data.data.slice(at..at + bytes)));
                    at += bytes;
                } else {
                    each(bytes, None);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "test data is small, and every other message is a failure"
)]
mod tests;
