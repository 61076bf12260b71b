//! Reading one record back by its index.

use ashlar_env::disk::{AlignedBuf, IO_ALIGN};

use crate::format::{self, Kind, RECORD_HEAD};
use crate::{Log, LogError, Place, as_u64, as_usize};

impl Log {
    /// The payload of record `index`, pending or stored; its checksum is verified.
    ///
    /// # Errors
    /// `OutOfRange`, `Damaged`, `Disk`, `Failed`.
    pub fn read(&self, index: u64) -> Result<Vec<u8>, LogError> {
        if self.failed {
            return Err(LogError::Failed);
        }
        let (first, next) = (self.first, self.next_index());
        let out_of_range = || LogError::OutOfRange { index, first, next };
        let at = index.checked_sub(first).ok_or_else(out_of_range)?;
        match self.places.get(as_usize(at)).ok_or_else(out_of_range)? {
            Place::Pending(nth) => {
                self.pending.get(*nth).map(|w| w.payload.clone()).ok_or_else(out_of_range)
            }
            Place::Stored { segment, offset, len } => {
                self.read_stored(index, *segment, *offset, *len)
            }
        }
    }

    fn read_stored(
        &self,
        index: u64,
        segment: u64,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, LogError> {
        let damaged = |why| LogError::Damaged { segment, offset, why };
        let Some(found) = self.segments.find(segment) else {
            return Err(damaged("the segment of a live record is missing"));
        };
        let into = as_usize(offset % as_u64(IO_ALIGN));
        let mut buf = AlignedBuf::zeroed(into + RECORD_HEAD + len);
        found.file.read_at(&mut buf, offset - as_u64(into))?;
        let record = format::read_record(buf.get(into..).unwrap_or_default());
        let Some((head, payload, _)) = record else {
            return Err(damaged("a record that was synced fails its checksum"));
        };
        if head.kind != Kind::Entry || head.index != index || head.segment != segment {
            return Err(damaged("another record is in the place of this one"));
        }
        Ok(payload.to_vec())
    }
}
