//! The files of a log: naming, creation, reuse, removal.
//!
//! Order matters: a segment's header is durable before the file gets its `seg-` name, and the name
//! is durable before a group is written into it; segments are dropped oldest first, only after the
//! records that make them needless are synced.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_env::disk::{Disk, DiskError, DiskFile, OpenHow, write_zeros};

use crate::format::{self, HEADER_LEN, Header};
use crate::{Base, LogError, LogOptions, as_u64};

/// One open segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// All segments, oldest first; never empty once the log is open.
#[derive(Debug)]
pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    older: VecDeque<Segment>,
    last: Segment,
}

/// `seg-` and 16 hex digits.
pub(crate) fn segment_name(number: u64) -> String {
    format!("seg-{number:016x}")
}

/// The number in a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    name.strip_prefix("seg-")
        .filter(|hex| hex.len() == 16)
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
}

fn spare_name(n: usize) -> String {
    format!("spare-{n}")
}

fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

impl Segments {
    /// Checks sizes.
    pub(crate) fn check(options: &LogOptions) -> Result<(), LogError> {
        let segment_bytes = options.segment_bytes;
        // Offsets in a segment travel as u32.
        let possible = (16 << 10)..=(1 << 31);
        if possible.contains(&segment_bytes) && segment_bytes.is_multiple_of(as_u64(HEADER_LEN)) {
            Ok(())
        } else {
            Err(LogError::BadOptions { segment_bytes })
        }
    }

    /// Over the existing `segments`, oldest first.
    pub(crate) fn existing(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        older: VecDeque<Segment>,
        last: Segment,
    ) -> Self {
        Self { disk, options, older, last }
    }

    /// Starts a log: its first segment, on an empty folder. Returns the chain's start.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        base: &Base,
    ) -> Result<(Self, u32), LogError> {
        let (last, chain) = new_segment(&*disk, &options, 1, base, 0, 0)?;
        Ok((Self { disk, options, older: VecDeque::new(), last }, chain))
    }

    /// Size of a segment that would be started now.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes
    }

    /// The segment that takes groups.
    pub(crate) fn last(&self) -> &Segment {
        &self.last
    }

    pub(crate) fn find(&self, number: u64) -> Option<&Segment> {
        if self.last.number == number {
            return Some(&self.last);
        }
        self.older.iter().find(|s| s.number == number)
    }

    /// Adds the next segment; the last one's groups end at `end` with CRC `chain`.
    pub(crate) fn add(&mut self, base: &Base, end: u64, chain: u32) -> Result<u32, LogError> {
        let number = self.last.number + 1;
        let (segment, crc) = new_segment(&*self.disk, &self.options, number, base, end, chain)?;
        self.older.push_back(std::mem::replace(&mut self.last, segment));
        Ok(crc)
    }

    /// Drops or keeps for reuse every segment below `number`.
    pub(crate) fn release_before(&mut self, number: u64) -> Result<(), LogError> {
        while let Some(oldest) = self.older.front()
            && oldest.number < number
        {
            let name = segment_name(oldest.number);
            let spares: Vec<_> = self.disk.list()?.into_iter().filter(|n| is_spare(n)).collect();
            let free = (0..self.options.spare_segments).map(spare_name);
            match free.into_iter().find(|n| !spares.contains(n)) {
                Some(spare) => self.disk.rename(&name, &spare)?,
                None => self.disk.remove(&name)?,
            }
            self.older.pop_front();
        }
        Ok(())
    }
}

/// Makes segment `number` durable under its name.
fn new_segment(
    disk: &dyn Disk,
    options: &LogOptions,
    number: u64,
    base: &Base,
    previous_end: u64,
    previous_crc: u32,
) -> Result<(Segment, u32), LogError> {
    let spare = match disk.list()?.into_iter().find(|n| is_spare(n)) {
        Some(name) => name,
        None => {
            let name = spare_name(0);
            disk.open(&name, OpenHow::CREATE)?;
            name
        }
    };
    // A crash must not give the file its old segment's name back once it is written over.
    disk.sync_dir()?;
    let file = disk.open(&spare, OpenHow::EXISTING.direct())?;
    fill_up(&*file, options.segment_bytes)?;
    let (base, size) = (base.clone(), options.segment_bytes);
    let header = Header { number, size, previous_end, previous_crc, base };
    let (block, crc) = format::write_header(&header);
    file.write_at(&block, 0)?;
    file.sync_data()?;
    let name = segment_name(number);
    disk.rename(&spare, &name)?;
    disk.sync_dir()?;
    // Opened anew so that errors name the segment.
    let file = disk.open(&name, OpenHow::EXISTING.direct())?;
    Ok((Segment { number, size, file }, crc))
}

/// Writes the file once up to its full size: later writes then touch no file-system metadata.
fn fill_up(file: &dyn DiskFile, size: u64) -> Result<(), DiskError> {
    let now = file.size()?;
    if now < size {
        file.preallocate(size)?;
        write_zeros(file, 0, size)?;
    }
    Ok(())
}
