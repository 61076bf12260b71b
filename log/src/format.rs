//! The bytes of a log segment. All numbers little-endian.
//!
//! A segment is a file `seg-<number, 16 hex digits>` of fixed size; numbers have no gaps. Files
//! `spare-<n>` are empty segments kept for reuse. A segment starts with a header block:
//! ```text
//!    0  magic         8 bytes "ASHLOG\0\0"
//!    8  version       u32 (1)
//!   12  header crc    u32   CRC32C of the block with this field zero
//!   16  number        u64   of this segment
//!   24  previous end  u64   byte at which the groups of segment number-1 end (0: none before)
//!   32  previous crc  u32   CRC of the last record of segment number-1
//!   36  state length  u32   0xffff_ffff: no state yet
//!   40  first index   u64   of the log when this segment was started
//!   48  next index    u64   of the log when this segment was started
//!   56  size          u64   of this segment in bytes
//!   64  state         up to 2048 bytes
//! 4096  groups
//! ```
//! A group (everything of one sync) starts at a multiple of 4096 and is zero-padded to the next, so
//! that no synced block is ever written again. It holds records, each at a multiple of 8:
//! ```text
//!    0  magic         u32   "ALGR"
//!    4  crc           u32   CRC32C of bytes 8..40 and the payload
//!    8  payload len   u32
//!   12  kind          u32   1 entry, 2 state, 3 cut suffix, 4 cut prefix, 5 reset
//!   16  index         u64   of the entry or of the cut
//!   24  segment       u64   number of the segment: a reused file's old records do not count
//!   32  group start   u32   byte in the segment where this record's group starts
//!   36  previous crc  u32   of the record before; of the header block for a segment's first
//!   40  payload
//! ```
//! A group is written only after everything before it was synced. So if reading stops at byte p and
//! some group that starts behind p is intact, synced content is gone: damage. If none is, what is
//! missing was never synced: a torn tail. So that damage to the last group is not taken for one, an
//! idle log is sealed with a group that only repeats the state. The header block is durable before the file gets its
//! name, so a `seg-` file with a bad header is always damage.

use ashlar_env::disk::{AlignedBuf, IO_ALIGN};

use crate::{Base, LogError, STATE_MAX, as_u64, as_usize};

/// Newest version read and written here.
pub const VERSION: u32 = 1;
/// Bytes of the header block.
pub const HEADER_LEN: usize = IO_ALIGN;
/// Bytes before a record's payload.
pub const RECORD_HEAD: usize = 40;

const SEGMENT_MAGIC: [u8; 8] = *b"ASHLOG\0\0";
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"ALGR");
const NO_STATE: u32 = u32::MAX;
const STATE_AT: usize = 64;

const _: () = assert!(STATE_AT + STATE_MAX <= HEADER_LEN);

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry,
    State,
    CutSuffix,
    CutPrefix,
    Reset,
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Self::Entry => 1,
            Self::State => 2,
            Self::CutSuffix => 3,
            Self::CutPrefix => 4,
            Self::Reset => 5,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Entry, Self::State, Self::CutSuffix, Self::CutPrefix, Self::Reset]
            .into_iter()
            .find(|k| k.code() == code)
    }
}

/// A record without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) kind: Kind,
    pub(crate) len: usize,
    pub(crate) index: u64,
    pub(crate) segment: u64,
    pub(crate) group_start: u64,
    pub(crate) previous: u32,
}

/// A segment's header block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) previous_end: u64,
    pub(crate) previous_crc: u32,
    pub(crate) base: Base,
}

/// Rounds up to where the next record may start.
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(8)
}

fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = buf.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn get_u32(buf: &[u8], at: usize) -> Option<u32> {
    buf.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn get_u64(buf: &[u8], at: usize) -> Option<u64> {
    buf.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

/// Writes a record and its padding to the start of `to`, which must have room; returns its CRC.
pub(crate) fn write_record(to: &mut [u8], head: &RecordHead, payload: &[u8]) -> u32 {
    // Lengths and offsets are below the segment size, which is checked to fit.
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    put(to, 0, &RECORD_MAGIC.to_le_bytes());
    put(to, 8, &small(as_u64(head.len)));
    put(to, 12, &head.kind.code().to_le_bytes());
    put(to, 16, &head.index.to_le_bytes());
    put(to, 24, &head.segment.to_le_bytes());
    put(to, 32, &small(head.group_start));
    put(to, 36, &head.previous.to_le_bytes());
    put(to, RECORD_HEAD, payload);
    let end = RECORD_HEAD + payload.len();
    if let Some(padding) = to.get_mut(end..padded(end)) {
        padding.fill(0);
    }
    let crc = crc32c::crc32c(to.get(8..end).unwrap_or_default());
    put(to, 4, &crc.to_le_bytes());
    crc
}

/// Reads the record at the start of `from`: head, payload and CRC; `None` when there is none.
pub(crate) fn read_record(from: &[u8]) -> Option<(RecordHead, &[u8], u32)> {
    if get_u32(from, 0)? != RECORD_MAGIC {
        return None;
    }
    let crc = get_u32(from, 4)?;
    let len = usize::try_from(get_u32(from, 8)?).ok()?;
    let end = RECORD_HEAD.checked_add(len)?;
    if crc32c::crc32c(from.get(8..end)?) != crc {
        return None;
    }
    let head = RecordHead {
        kind: Kind::from_code(get_u32(from, 12)?)?,
        len,
        index: get_u64(from, 16)?,
        segment: get_u64(from, 24)?,
        group_start: u64::from(get_u32(from, 32)?),
        previous: get_u32(from, 36)?,
    };
    Some((head, from.get(RECORD_HEAD..end)?, crc))
}

/// Builds a header block; returns it with its CRC.
pub(crate) fn write_header(header: &Header) -> (AlignedBuf, u32) {
    let mut block = AlignedBuf::zeroed(HEADER_LEN);
    let state = header.base.state.as_deref();
    let state_len = state.map_or(NO_STATE, |s| u32::try_from(s.len()).unwrap_or(NO_STATE));
    put(&mut block, 0, &SEGMENT_MAGIC);
    put(&mut block, 8, &VERSION.to_le_bytes());
    put(&mut block, 16, &header.number.to_le_bytes());
    put(&mut block, 24, &header.previous_end.to_le_bytes());
    put(&mut block, 32, &header.previous_crc.to_le_bytes());
    put(&mut block, 36, &state_len.to_le_bytes());
    put(&mut block, 40, &header.base.first.to_le_bytes());
    put(&mut block, 48, &header.base.next.to_le_bytes());
    put(&mut block, 56, &header.size.to_le_bytes());
    put(&mut block, STATE_AT, state.unwrap_or_default());
    let crc = crc32c::crc32c(&block);
    put(&mut block, 12, &crc.to_le_bytes());
    (block, crc)
}

/// Reads the header block of segment `number`; returns it with its CRC.
pub(crate) fn read_header(number: u64, block: &[u8]) -> Result<(Header, u32), LogError> {
    let damaged = |why| LogError::Damaged { segment: number, offset: 0, why };
    let short = || damaged("the header is cut off");
    if block.first_chunk() != Some(&SEGMENT_MAGIC) {
        return Err(damaged("the header is not one of a log segment"));
    }
    let version = get_u32(block, 8).ok_or_else(short)?;
    let crc = get_u32(block, 12).ok_or_else(short)?;
    let mut zeroed = block.get(..HEADER_LEN).ok_or_else(short)?.to_vec();
    put(&mut zeroed, 12, &[0; 4]);
    if crc32c::crc32c(&zeroed) != crc {
        return Err(damaged("the header fails its checksum"));
    }
    if version > VERSION {
        return Err(LogError::NewerVersion { segment: number, version, supported: VERSION });
    }
    if version != VERSION {
        return Err(damaged("the header has a version that never was"));
    }
    if get_u64(block, 16) != Some(number) {
        return Err(damaged("the header is of another segment"));
    }
    let state_len = get_u32(block, 36).ok_or_else(short)?;
    let state = if state_len == NO_STATE {
        None
    } else {
        let end = STATE_AT.saturating_add(as_usize(u64::from(state_len)));
        Some(block.get(STATE_AT..end).ok_or_else(short)?.to_vec())
    };
    let header = Header {
        number,
        size: get_u64(block, 56).ok_or_else(short)?,
        previous_end: get_u64(block, 24).ok_or_else(short)?,
        previous_crc: get_u32(block, 32).ok_or_else(short)?,
        base: Base {
            first: get_u64(block, 40).ok_or_else(short)?,
            next: get_u64(block, 48).ok_or_else(short)?,
            state,
        },
    };
    Ok((header, crc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_any_flipped_byte_is_noticed() {
        let head = RecordHead {
            kind: Kind::Entry,
            len: 5,
            index: 9,
            segment: 3,
            group_start: 8192,
            previous: 77,
        };
        let mut buf = [0xff; 64];
        let crc = write_record(&mut buf, &head, b"hello");
        assert_eq!(read_record(&buf), Some((head, &b"hello"[..], crc)));
        assert_eq!(buf[45..48], [0; 3], "padding is zero");
        for at in 0..45 {
            let mut bad = buf;
            bad[at] ^= 1;
            assert_eq!(read_record(&bad), None, "byte {at}");
        }
        for len in 0..45 {
            assert_eq!(read_record(&buf[..len]), None);
        }
    }

    #[test]
    fn a_header_reads_back_a_newer_one_is_refused_by_name() {
        let base = Base { first: 4, next: 6, state: Some(b"s".to_vec()) };
        let header = Header { number: 2, size: 1 << 20, previous_end: 4096, previous_crc: 5, base };
        let (block, crc) = write_header(&header);
        assert_eq!(read_header(2, &block), Ok((header, crc)));
        assert!(matches!(read_header(3, &block), Err(LogError::Damaged { .. })));
        let mut newer = block.to_vec();
        newer[8] = 2;
        newer[12..16].fill(0);
        let crc = crc32c::crc32c(&newer);
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        let refused = LogError::NewerVersion { segment: 2, version: 2, supported: 1 };
        assert_eq!(read_header(2, &newer), Err(refused));
    }
}
