//! Requests and replies after the handshake.

use super::{Export, NbdErrno, NbdError, PAYLOAD_BYTES_MAX};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const REQUEST_BYTES: usize = 28;

const FLAG_FUA: u16 = 1;
/// Do not leave a hole: nothing here needs to differ for it.
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAGS_KNOWN: u16 = FLAG_FUA | FLAG_NO_HOLE | FLAG_DF;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_TRIM: u16 = 4;
const COMMAND_WRITE_ZEROES: u16 = 6;

const CHUNK_DONE: u16 = 1;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// Bytes of a simple reply.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes in front of the data of a structured data chunk.
pub const DATA_HEAD_BYTES: usize = 28;
/// Bytes of a structured hole chunk.
pub const HOLE_BYTES: usize = 32;

/// A request that is to be carried out; within the export, lengths not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdRequest {
    /// To be sent back with the reply.
    pub cookie: u64,
    /// What is asked for.
    pub command: NbdCommand,
}

/// What a client asks for. Offsets and lengths in bytes. FUA needs nothing: every write is on
/// stable media when it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdCommand {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Answer in one data chunk, holes filled with zeroes.
        one_piece: bool,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Discard, or write zeroes: the range reads as zero afterwards.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Everything acknowledged before is on stable media when this is.
    Flush,
    /// The client is leaving; no reply.
    Disconnect,
}

/// What stood at the front of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// To be carried out.
    Request(NbdRequest),
    /// To be answered with this error, by [`error_reply`].
    Refuse {
        /// To be sent back.
        cookie: u64,
        /// The error.
        errno: NbdErrno,
        /// It was a read, so a structured error is due where structured replies are agreed.
        read: bool,
    },
}

/// Takes the next request off the front of `input`, if it is there whole.
///
/// # Errors
/// The connection cannot go on.
pub fn next_request(input: &mut BytesMut, export: &Export) -> Result<Option<Parsed>, NbdError> {
    let mut head: &[u8] = input;
    if head.len() < REQUEST_BYTES {
        return Ok(None);
    }
    if head.get_u32() != REQUEST_MAGIC {
        return Err(NbdError::Magic("request"));
    }
    let (flags, command) = (head.get_u16(), head.get_u16());
    let (cookie, offset, len) = (head.get_u64(), head.get_u64(), head.get_u32());
    let mut payload = Bytes::new();
    if command == COMMAND_WRITE {
        if len > PAYLOAD_BYTES_MAX {
            return Err(NbdError::PayloadTooLarge(len));
        }
        let whole = REQUEST_BYTES + usize::try_from(len).unwrap_or(usize::MAX);
        if input.len() < whole {
            // One allocation for the whole request instead of a doubling for each read.
            input.reserve(whole - input.len());
            return Ok(None);
        }
        input.advance(REQUEST_BYTES);
        payload = input.split_to(whole - REQUEST_BYTES).freeze();
    } else {
        input.advance(REQUEST_BYTES);
    }
    let read = command == COMMAND_READ;
    let command = match command {
        COMMAND_READ => NbdCommand::Read { offset, len, one_piece: flags & FLAG_DF != 0 },
        COMMAND_WRITE => NbdCommand::Write { offset, data: payload },
        COMMAND_TRIM | COMMAND_WRITE_ZEROES => NbdCommand::Zero { offset, len },
        COMMAND_FLUSH => NbdCommand::Flush,
        COMMAND_DISCONNECT => NbdCommand::Disconnect,
        _ => return Ok(Some(Parsed::Refuse { cookie, errno: NbdErrno::NotSupported, read })),
    };
    Ok(Some(match refusal(&command, flags, offset, len, export) {
        Some(errno) => Parsed::Refuse { cookie, errno, read },
        None => Parsed::Request(NbdRequest { cookie, command }),
    }))
}

fn refusal(
    command: &NbdCommand,
    flags: u16,
    offset: u64,
    len: u32,
    export: &Export,
) -> Option<NbdErrno> {
    let writes = match command {
        NbdCommand::Flush | NbdCommand::Disconnect => return None,
        NbdCommand::Read { .. } => false,
        NbdCommand::Write { .. } | NbdCommand::Zero { .. } => true,
    };
    if writes && export.read_only {
        return Some(NbdErrno::Perm);
    }
    // What an unknown flag asks for cannot be kept; served without it, a client would rely on it.
    if len == 0 || flags & !FLAGS_KNOWN != 0 || (flags & FLAG_FUA != 0 && !writes) {
        return Some(NbdErrno::Invalid);
    }
    if !writes && len > PAYLOAD_BYTES_MAX {
        return Some(NbdErrno::Overflow);
    }
    let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= export.size_bytes);
    match (inside, writes) {
        (true, _) => None,
        (false, true) => Some(NbdErrno::NoSpace),
        (false, false) => Some(NbdErrno::Invalid),
    }
}

/// A reply without data; `errno` 0 is success.
#[must_use]
pub fn simple_reply(cookie: u64, errno: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    let mut out: &mut [u8] = &mut bytes;
    out.put_u32(SIMPLE_MAGIC);
    out.put_u32(errno);
    out.put_u64(cookie);
    bytes
}

/// The answer to a refused request.
pub fn error_reply(out: &mut BytesMut, cookie: u64, errno: NbdErrno, read_structured: bool) {
    if read_structured {
        out.put_slice(&read_error_chunk(cookie, errno));
    } else {
        out.put_slice(&simple_reply(cookie, errno as u32));
    }
}

/// What comes in front of `len` bytes of data read at `offset`.
#[must_use]
pub fn data_head(cookie: u64, offset: u64, len: u32, last: bool) -> [u8; DATA_HEAD_BYTES] {
    let mut bytes = [0; DATA_HEAD_BYTES];
    let mut out: &mut [u8] = &mut bytes;
    chunk_head(&mut out, last, CHUNK_DATA, cookie, len + 8);
    out.put_u64(offset);
    bytes
}

/// A range that reads as zero.
#[must_use]
pub fn hole_chunk(cookie: u64, offset: u64, len: u32, last: bool) -> [u8; HOLE_BYTES] {
    let mut bytes = [0; HOLE_BYTES];
    let mut out: &mut [u8] = &mut bytes;
    chunk_head(&mut out, last, CHUNK_HOLE, cookie, 12);
    out.put_u64(offset);
    out.put_u32(len);
    bytes
}

/// A read that failed.
#[must_use]
pub fn read_error_chunk(cookie: u64, errno: NbdErrno) -> [u8; 26] {
    let mut bytes = [0; 26];
    let mut out: &mut [u8] = &mut bytes;
    chunk_head(&mut out, true, CHUNK_ERROR, cookie, 6);
    out.put_u32(errno as u32);
    out.put_u16(0);
    bytes
}

fn chunk_head(out: &mut &mut [u8], last: bool, kind: u16, cookie: u64, len: u32) {
    out.put_u32(STRUCTURED_MAGIC);
    out.put_u16(if last { CHUNK_DONE } else { 0 });
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(len);
}
