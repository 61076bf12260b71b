//! The NBD protocol, server side: bytes in, requests out; results in, bytes out. Pure.
//!
//! Fixed newstyle handshake and transmission as in the protocol text of the NetworkBlockDevice
//! project (`doc/proto.md`): [`Handshake`] first, then [`next_request`] and the reply encoders.
//! Built: GO, INFO, LIST, EXPORT_NAME, ABORT, structured replies with holes, FLUSH, FUA, TRIM,
//! WRITE_ZEROES, DF. Refused by their proper error: TLS, extended headers. Metadata contexts are
//! answered with "none": what is a hole is seen in reads.
//!
//! Bounds: no length of the other side is allocated before it is checked; an option is at most
//! [`OPTION_BYTES_MAX`], a payload [`PAYLOAD_BYTES_MAX`]. Whatever breaks them or the protocol
//! ends the connection with an [`NbdError`].

mod handshake;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test data is small")]
mod tests;
mod transmission;

use alloc::string::String;
use thiserror::Error;

pub use handshake::{Handshake, Step};
pub use transmission::{
    DATA_HEAD_BYTES, HOLE_BYTES, NbdCommand, NbdRequest, Parsed, SIMPLE_REPLY_BYTES, data_head,
    error_reply, hole_chunk, next_request, read_error_chunk, simple_reply,
};

/// Largest option that a client may send: four times the longest name.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Largest payload of a request, and the largest read: what every NBD client may expect.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Longest name of an export.
pub const NAME_BYTES_MAX: usize = 4_096;

/// What is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name; the empty name finds it too.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Export {
    /// Transmission flags: what the export can do.
    #[must_use]
    pub const fn flags(&self) -> u16 {
        const HAS_FLAGS: u16 = 1;
        const READ_ONLY: u16 = 1 << 1;
        const SEND_FLUSH: u16 = 1 << 2;
        const SEND_FUA: u16 = 1 << 3;
        const SEND_TRIM: u16 = 1 << 5;
        const SEND_WRITE_ZEROES: u16 = 1 << 6;
        const SEND_DF: u16 = 1 << 7;
        // A write is on stable media before it is acknowledged, so a flush on one connection
        // covers what others had acknowledged.
        const CAN_MULTI_CONN: u16 = 1 << 8;
        let flags = HAS_FLAGS | SEND_FLUSH | SEND_DF | CAN_MULTI_CONN;
        if self.read_only {
            flags | READ_ONLY
        } else {
            flags | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES
        }
    }
}

/// Error numbers that the protocol knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdErrno {
    /// Not permitted: a write to a read-only export.
    Perm = 1,
    /// Input or output failed.
    Io = 5,
    /// The request is malformed.
    Invalid = 22,
    /// A write beyond the end.
    NoSpace = 28,
    /// More than the limit.
    Overflow = 75,
    /// Not built.
    NotSupported = 95,
    /// The server is going away.
    Shutdown = 108,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NbdError {
    /// The client does not speak the fixed newstyle handshake.
    #[error("the client's handshake flags {0:#x} are not those of fixed newstyle")]
    ClientFlags(u32),
    /// An option or request does not start with its magic number.
    #[error("not an NBD {0}")]
    Magic(&'static str),
    /// An option is larger than any that makes sense.
    #[error("an option of {0} bytes; at most {OPTION_BYTES_MAX} are taken")]
    OptionTooLarge(u32),
    /// A write's payload is larger than the limit that was announced.
    #[error("a payload of {0} bytes; at most {PAYLOAD_BYTES_MAX} are taken")]
    PayloadTooLarge(u32),
    /// EXPORT_NAME, which cannot be answered with an error, named an unknown export.
    #[error("unknown export")]
    UnknownExport,
}
