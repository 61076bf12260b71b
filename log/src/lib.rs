//! A log of numbered records on disk: append, sync, cut either end, read by index.
//!
//! It holds a Raft member's entries and hard state. Records are numbered without gaps; beside them
//! there is one small **state** value, of which the newest wins. What it promises:
//!
//! 1. After [`Log::sync`] returned, everything appended, cut or set before survives any crash.
//! 2. After a crash the log is what it was at the last sync, plus some prefix of what came after.
//! 3. A torn tail (never synced) is cut silently; damage before the synced end is a typed error
//!    ([`LogError::Damaged`]), never a shorter log: a member that forgot an entry must not vote.
//!    Damage to the very last group looks like a torn tail until something follows it, which is
//!    what [`Log::seal`] is for.
//! 4. A failed write or sync ends the log ([`LogError::Failed`]); nothing is retried.
//!
//! Everything between two syncs is one **group**: one aligned write and one sync on preallocated
//! space. The file layout is in [`mod@format`]. Calls block; give the log a thread of its own.
//! What it does not do: know Raft, cache entries, compress.

pub mod format;
mod read;
mod recover;
mod segment;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use ashlar_env::disk::{AlignedBuf, Disk, DiskError, IO_ALIGN};

use format::{HEADER_LEN, Kind, RECORD_HEAD, RecordHead};
use segment::Segments;

/// Longest state value in bytes; it must fit into a segment's header block.
pub const STATE_MAX: usize = 2048;

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes per segment; a multiple of 4096, at least 16 KiB. Bounds the longest record.
    pub segment_bytes: u64,
    /// Empty segments kept for reuse: reuse saves the file system's allocation on the way of a
    /// group commit.
    pub spare_segments: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 8 << 20, spare_segments: 2 }
    }
}

/// Why a log call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The disk refused something before anything was changed.
    #[error("the log's disk failed")]
    Disk(#[from] DiskError),
    /// Content that had been synced is gone or changed. The log must not be used; the member is
    /// to be removed and added again under a new id.
    #[error("log segment {segment} is damaged at byte {offset}: {why}")]
    Damaged {
        /// Number of the segment.
        segment: u64,
        /// Where reading stopped.
        offset: u64,
        /// What was found.
        why: &'static str,
    },
    /// Written by a newer release.
    #[error(
        "log segment {segment} has format version {version}; this release reads up to {supported}"
    )]
    NewerVersion {
        /// Number of the segment.
        segment: u64,
        /// Version found.
        version: u32,
        /// Newest version read here.
        supported: u32,
    },
    /// An earlier write or sync failed; the log takes nothing any more until it is opened again.
    #[error("the log failed earlier")]
    Failed,
    /// The record does not follow the last one.
    #[error("record {got} does not follow; {expected} is next")]
    NotNext {
        /// The index that comes next.
        expected: u64,
        /// The index offered.
        got: u64,
    },
    /// No such record.
    #[error("record {index} is not in the log, which holds {first} up to but not {next}")]
    OutOfRange {
        /// The index asked for.
        index: u64,
        /// First index held.
        first: u64,
        /// Index after the last.
        next: u64,
    },
    /// A record or state longer than the log takes.
    #[error("{len} bytes are too long; the limit is {limit}")]
    TooLong {
        /// Bytes offered.
        len: usize,
        /// Limit.
        limit: usize,
    },
    /// Sizes that make no log.
    #[error("segments of {segment_bytes} bytes are not possible")]
    BadOptions {
        /// The configured size.
        segment_bytes: u64,
    },
}

/// What [`Log::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// There was no log: this one is new.
    pub new: bool,
    /// A never-synced tail was cut off.
    pub torn: bool,
}

/// Where a live record is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Not written yet: position in `pending`.
    Pending(usize),
    /// In a segment.
    Stored { segment: u64, offset: u64, len: usize },
}

/// A record waiting for the next sync.
#[derive(Debug)]
struct Waiting {
    kind: Kind,
    index: u64,
    payload: Vec<u8>,
}

/// The log.
pub struct Log {
    segments: Segments,
    places: VecDeque<Place>,
    first: u64,
    state: Option<Vec<u8>>,
    /// State as of the records already written: what a new segment's header must carry.
    written: Base,
    pending: Vec<Waiting>,
    /// CRC of the last record written: the next one names it.
    chain: u32,
    /// Where the next group starts in the last segment.
    end: u64,
    failed: bool,
    /// An intact group behind what was synced last shows that it was synced.
    sealed: bool,
    /// Reused for every group.
    buffer: AlignedBuf,
}

/// What a new segment's header repeats, so that the segments before it can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Base {
    first: u64,
    next: u64,
    state: Option<Vec<u8>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("first", &self.first)
            .field("next", &self.next_index())
            .field("pending", &self.pending.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in `disk`'s folder, creating it if there is none, cutting a torn tail.
    ///
    /// # Errors
    /// `Damaged`, `NewerVersion`, `BadOptions`, `Disk`.
    pub fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Self, Recovered), LogError> {
        recover::open(disk, options)
    }

    /// Index of the first record held; equal to [`Log::next_index`] when there is none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.first
    }

    /// Index that the next record must have.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.first.saturating_add(as_u64(self.places.len()))
    }

    /// The newest state value.
    #[must_use]
    pub fn state(&self) -> Option<&[u8]> {
        self.state.as_deref()
    }

    /// Longest record this log takes, in bytes.
    #[must_use]
    pub fn record_max(&self) -> usize {
        let room = self.segments.segment_bytes().saturating_sub(as_u64(HEADER_LEN + RECORD_HEAD));
        usize::try_from(room).unwrap_or(0)
    }

    /// True when something waits for [`Log::sync`].
    #[must_use]
    pub fn needs_sync(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Adds a record; it is readable at once and durable after [`Log::sync`].
    ///
    /// # Errors
    /// `NotNext`, `TooLong`, `Failed`.
    pub fn append(&mut self, index: u64, payload: &[u8]) -> Result<(), LogError> {
        let expected = self.next_index();
        if index != expected {
            return Err(LogError::NotNext { expected, got: index });
        }
        self.check_len(payload.len(), self.record_max())?;
        self.places.push_back(Place::Pending(self.pending.len()));
        self.pending.push(Waiting { kind: Kind::Entry, index, payload: payload.to_vec() });
        Ok(())
    }

    /// Replaces the state value; durable after [`Log::sync`].
    ///
    /// # Errors
    /// `TooLong`, `Failed`.
    pub fn set_state(&mut self, state: &[u8]) -> Result<(), LogError> {
        self.check_len(state.len(), STATE_MAX)?;
        self.state = Some(state.to_vec());
        self.pending.push(Waiting { kind: Kind::State, index: 0, payload: state.to_vec() });
        Ok(())
    }

    /// Drops all records from `from` on; durable after [`Log::sync`].
    ///
    /// # Errors
    /// `OutOfRange` when `from` is below the first record or above the next, `Failed`.
    pub fn truncate_suffix(&mut self, from: u64) -> Result<(), LogError> {
        self.check_len(0, 0)?;
        self.check_cut(from)?;
        self.places.truncate(as_usize(from - self.first));
        self.pending.push(Waiting { kind: Kind::CutSuffix, index: from, payload: Vec::new() });
        Ok(())
    }

    /// Drops all records below `to`; durable, and the space free, after [`Log::sync`].
    ///
    /// # Errors
    /// `OutOfRange` when `to` is below the first record or above the next, `Failed`.
    pub fn truncate_prefix(&mut self, to: u64) -> Result<(), LogError> {
        self.check_len(0, 0)?;
        self.check_cut(to)?;
        self.places.drain(..as_usize(to - self.first));
        self.first = to;
        self.pending.push(Waiting { kind: Kind::CutPrefix, index: to, payload: Vec::new() });
        Ok(())
    }

    /// Drops every record and continues with `next` (after a snapshot was installed); the state
    /// stays. Durable after [`Log::sync`].
    ///
    /// # Errors
    /// `Failed`.
    pub fn reset(&mut self, next: u64) -> Result<(), LogError> {
        self.check_len(0, 0)?;
        self.places.clear();
        self.first = next;
        self.pending.push(Waiting { kind: Kind::Reset, index: next, payload: Vec::new() });
        Ok(())
    }

    /// Makes everything so far durable: one write and one sync, more only where a segment ends.
    ///
    /// # Errors
    /// `Failed`: what was pending may or may not survive; the log takes nothing any more.
    pub fn sync(&mut self) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError::Failed);
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        self.sealed = false;
        match self.write_pending() {
            Ok(()) => Ok(()),
            Err(e) => {
                tracing::error!(error = %e, "the log failed; it takes nothing any more");
                self.failed = true;
                Err(LogError::Failed)
            }
        }
    }

    /// Writes a group that repeats the state, unless that was the last thing written: damage to
    /// what was synced before it is told from a torn tail from then on. For idle moments; does
    /// nothing while something waits for [`Log::sync`] or there is no state.
    ///
    /// # Errors
    /// `Failed`.
    pub fn seal(&mut self) -> Result<(), LogError> {
        if self.sealed || self.needs_sync() {
            return Ok(());
        }
        let Some(state) = self.state.clone() else { return Ok(()) };
        self.set_state(&state)?;
        self.sync()?;
        self.sealed = true;
        Ok(())
    }

    fn check_len(&self, len: usize, limit: usize) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError::Failed);
        }
        if len > limit { Err(LogError::TooLong { len, limit }) } else { Ok(()) }
    }

    fn check_cut(&self, index: u64) -> Result<(), LogError> {
        let (first, next) = (self.first, self.next_index());
        if (first..=next).contains(&index) {
            Ok(())
        } else {
            Err(LogError::OutOfRange { index, first, next })
        }
    }

    /// Writes what waits, one group per segment touched, and frees segments no longer needed.
    fn write_pending(&mut self) -> Result<(), LogError> {
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some(first) = rest.first() {
            let room = self.segments.last().size.saturating_sub(self.end);
            if as_u64(RECORD_HEAD + first.payload.len()) > room {
                self.roll()?;
                continue;
            }
            let taken = self.write_group(rest, room)?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        let keep = match self.places.front() {
            Some(Place::Stored { segment, .. }) => *segment,
            Some(Place::Pending(_)) | None => self.segments.last().number,
        };
        self.segments.release_before(keep)?;
        Ok(())
    }

    /// Writes as many of `records` as fit into `room`, durably; returns how many.
    fn write_group(&mut self, records: &[Waiting], room: u64) -> Result<usize, LogError> {
        let group_start = self.end;
        let segment = self.segments.last();
        let mut used = 0usize;
        let mut taken = 0usize;
        let mut chain = self.chain;
        let fits = |used: usize, r: &Waiting| as_u64(used + RECORD_HEAD + r.payload.len()) <= room;
        let whole: usize =
            records.iter().map(|r| format::padded(RECORD_HEAD + r.payload.len())).sum();
        let wanted = whole.min(as_usize(room));
        if self.buffer.len() < wanted {
            self.buffer = AlignedBuf::zeroed(wanted);
        }
        for record in records {
            if !fits(used, record) {
                break;
            }
            let head = RecordHead {
                kind: record.kind,
                len: record.payload.len(),
                index: record.index,
                segment: segment.number,
                group_start,
                previous: chain,
            };
            let offset = group_start + as_u64(used);
            let Some(to) = self.buffer.get_mut(used..) else { break };
            chain = format::write_record(to, &head, &record.payload);
            self.written.apply(record);
            if record.kind == Kind::Entry {
                let len = record.payload.len();
                let place = Place::Stored { segment: segment.number, offset, len };
                settle(&mut self.places, self.first, record.index, place);
            }
            used = format::padded(used + RECORD_HEAD + record.payload.len());
            taken += 1;
        }
        let whole = used.next_multiple_of(IO_ALIGN);
        if let Some(rest) = self.buffer.get_mut(used..whole) {
            rest.fill(0);
        }
        let group = self.buffer.get(..whole).unwrap_or_default();
        segment.file.write_durable(group, group_start)?;
        self.chain = chain;
        self.end = group_start + as_u64(whole);
        Ok(taken)
    }

    /// Starts the next segment. Everything before is synced already.
    fn roll(&mut self) -> Result<(), LogError> {
        let base = self.written.clone();
        self.chain = self.segments.add(&base, self.end, self.chain)?;
        self.end = as_u64(HEADER_LEN);
        Ok(())
    }
}

/// Notes where record `index` is now, unless it was cut meanwhile. Of several pending records of
/// one index only the last is live, and it is settled last.
fn settle(places: &mut VecDeque<Place>, first: u64, index: u64, to: Place) {
    if let Some(at) = index.checked_sub(first)
        && let Some(place) = places.get_mut(as_usize(at))
    {
        *place = to;
    }
}

impl Base {
    /// Follows one record.
    fn apply(&mut self, record: &Waiting) {
        match record.kind {
            Kind::Entry => self.next = record.index.saturating_add(1),
            Kind::State => self.state = Some(record.payload.clone()),
            Kind::CutSuffix => self.next = record.index,
            Kind::CutPrefix => self.first = record.index,
            Kind::Reset => (self.first, self.next) = (record.index, record.index),
        }
    }
}

pub(crate) fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Saturates: used for lengths within a segment, which fit.
pub(crate) fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
