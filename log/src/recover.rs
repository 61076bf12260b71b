//! Opening: read every segment, follow the chain, cut a torn tail, refuse damage.
//!
//! The rule that tells the two apart is in [`crate::format`].

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_env::disk::{AlignedBuf, Disk, DiskFile, IO_ALIGN, OpenHow};

use crate::format::{self, HEADER_LEN, Header, Kind, RECORD_HEAD, RecordHead};
use crate::segment::{Segment, Segments, segment_name, segment_number};
use crate::{Base, Log, LogError, LogOptions, Place, Recovered, as_u64, as_usize};

/// See [`Log::open`].
pub(crate) fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Log, Recovered), LogError> {
    Segments::check(&options)?;
    let mut numbers: Vec<u64> = disk.list()?.iter().filter_map(|n| segment_number(n)).collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        return create(disk, options);
    }
    let mut replay = Replay::default();
    let mut open = VecDeque::new();
    let mut torn = false;
    let last = *numbers.last().unwrap_or(&0);
    for number in numbers {
        let file = disk.open(&segment_name(number), OpenHow::EXISTING.direct())?;
        let content = read_whole(number, &*file)?;
        let (header, crc) = format::read_header(number, &content)?;
        if as_u64(content.len()) < header.size {
            let why = "the file is cut off";
            return Err(LogError::Damaged { segment: number, offset: as_u64(content.len()), why });
        }
        replay.enter(&header, crc)?;
        torn |= replay.segment(number, &content, number == last)?;
        open.push_back(Segment { number, size: header.size, file });
    }
    let Some(last) = open.pop_back() else { return create(disk, options) };
    // What is accepted now must not vanish later: it may sit in a volatile cache so far.
    last.file.sync_data()?;
    disk.sync_dir()?;
    let log = Log {
        segments: Segments::existing(disk, options, open, last),
        places: replay.places,
        first: replay.base.first,
        state: replay.base.state.clone(),
        written: replay.base,
        pending: Vec::new(),
        chain: replay.chain,
        end: replay.end,
        failed: false,
        sealed: false,
        buffer: AlignedBuf::zeroed(IO_ALIGN),
    };
    Ok((log, Recovered { new: false, torn }))
}

/// The whole content of a segment's file.
fn read_whole(segment: u64, file: &dyn DiskFile) -> Result<AlignedBuf, LogError> {
    let size = file.size()?;
    if size == 0 || !size.is_multiple_of(as_u64(IO_ALIGN)) {
        return Err(LogError::Damaged { segment, offset: size, why: "the file is cut off" });
    }
    let mut content = AlignedBuf::zeroed(as_usize(size));
    file.read_at(&mut content, 0)?;
    Ok(content)
}

fn create(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Log, Recovered), LogError> {
    let base = Base { first: 1, next: 1, state: None };
    let (segments, chain) = Segments::create(disk, options, &base)?;
    let log = Log {
        segments,
        places: VecDeque::new(),
        first: base.first,
        state: None,
        written: base,
        pending: Vec::new(),
        chain,
        end: as_u64(HEADER_LEN),
        failed: false,
        sealed: false,
        buffer: AlignedBuf::zeroed(IO_ALIGN),
    };
    Ok((log, Recovered { new: true, torn: false }))
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Replay {
    started: bool,
    number: u64,
    places: VecDeque<Place>,
    base: Base,
    chain: u32,
    /// Where the next group would start.
    end: u64,
}

impl Replay {
    /// Starts a segment: it must follow the one before it.
    fn enter(&mut self, header: &Header, crc: u32) -> Result<(), LogError> {
        let damaged = |segment, offset, why| Err(LogError::Damaged { segment, offset, why });
        if self.started {
            if header.number != self.number + 1 {
                return damaged(self.number + 1, 0, "the segment is missing");
            }
            if header.previous_end != self.end || header.previous_crc != self.chain {
                return damaged(self.number, self.end, "the segment ends before its synced end");
            }
            if header.base != self.base {
                return damaged(header.number, 0, "the header contradicts the records before it");
            }
        } else {
            self.base = header.base.clone();
            // Records of dropped segments below `first` of a later cut are never asked for; the
            // places before this segment's first record stay unknown until that cut is read.
            let missing = self.base.next.saturating_sub(self.base.first);
            self.places.extend((0..missing).map(|_| Place::Pending(usize::MAX)));
        }
        (self.started, self.number) = (true, header.number);
        (self.chain, self.end) = (crc, as_u64(HEADER_LEN));
        Ok(())
    }

    /// Reads all groups of a segment. True when something torn was cut from the last one.
    fn segment(&mut self, number: u64, content: &[u8], last: bool) -> Result<bool, LogError> {
        loop {
            let start = self.end;
            let after = self.group(number, content, start)?;
            if after == start {
                break;
            }
            self.end = after.next_multiple_of(as_u64(IO_ALIGN));
        }
        if let Some(later) = intact_group_after(number, content, self.end) {
            tracing::error!(segment = number, stopped = self.end, later, "the log is damaged");
            let why = "records that were synced are unreadable; later ones are intact";
            return Err(LogError::Damaged { segment: number, offset: self.end, why });
        }
        if last {
            self.check_whole(number)?;
        }
        let rest = content.get(as_usize(self.end)..).unwrap_or_default();
        Ok(last && has_own_record(number, rest))
    }

    /// Reads records of one group from `start` on; returns where they end.
    fn group(&mut self, number: u64, content: &[u8], start: u64) -> Result<u64, LogError> {
        let mut at = start;
        loop {
            let from = content.get(as_usize(at)..).unwrap_or_default();
            let Some((head, payload, crc)) = format::read_record(from) else { return Ok(at) };
            let belongs =
                head.segment == number && head.group_start == start && head.previous == self.chain;
            if !belongs {
                return Ok(at);
            }
            self.record(&head, payload, at)?;
            self.chain = crc;
            at += as_u64(format::padded(RECORD_HEAD + head.len));
        }
    }

    /// Follows one record.
    fn record(&mut self, head: &RecordHead, payload: &[u8], offset: u64) -> Result<(), LogError> {
        let (segment, index) = (head.segment, head.index);
        let damaged = |why| LogError::Damaged { segment, offset, why };
        let cut_ok = (self.base.first..=self.base.next).contains(&index);
        match head.kind {
            Kind::Entry => {
                if index != self.base.next {
                    return Err(damaged("a record does not follow the one before"));
                }
                self.places.push_back(Place::Stored { segment, offset, len: head.len });
                self.base.next = index.saturating_add(1);
            }
            Kind::State => self.base.state = Some(payload.to_vec()),
            Kind::CutSuffix | Kind::CutPrefix if !cut_ok => {
                return Err(damaged("a cut lies outside of the log"));
            }
            Kind::CutSuffix => {
                self.places.truncate(as_usize(index - self.base.first));
                self.base.next = index;
            }
            Kind::CutPrefix => {
                self.places.drain(..as_usize(index - self.base.first));
                self.base.first = index;
            }
            Kind::Reset => {
                self.places.clear();
                (self.base.first, self.base.next) = (index, index);
            }
        }
        Ok(())
    }

    /// Every live record must have a place in a segment that exists.
    fn check_whole(&self, number: u64) -> Result<(), LogError> {
        if self.places.iter().any(|p| matches!(p, Place::Pending(_))) {
            let why = "an earlier segment is missing";
            return Err(LogError::Damaged { segment: number, offset: 0, why });
        }
        Ok(())
    }
}

/// Start of an intact group at `from` or behind. The one at `from` does not continue the chain, or it
/// would have been read: what it continues is gone.
fn intact_group_after(number: u64, content: &[u8], from: u64) -> Option<u64> {
    let mut at = from;
    while let Some(block) = content.get(as_usize(at)..).filter(|b| !b.is_empty()) {
        if let Some((head, _, _)) = format::read_record(block)
            && head.segment == number
            && head.group_start == at
        {
            return Some(at);
        }
        at += as_u64(IO_ALIGN);
    }
    None
}

/// True when a block of `rest` starts with a record of this segment: left-overs of a torn group.
fn has_own_record(number: u64, rest: &[u8]) -> bool {
    rest.chunks(8).enumerate().any(|(nth, _)| {
        let at = rest.get(nth * 8..).unwrap_or_default();
        at.starts_with(b"ALGR")
            && format::read_record(at).is_some_and(|(head, _, _)| head.segment == number)
    })
}
