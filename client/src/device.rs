//! A block device as the exports see it: a bounded queue of batches, and completions in batches.
//!
//! NBD, FUSE and the load generator hand over what they have parsed in one go and are told of
//! what is done in one go; nothing is spawned, timed or allocated per request on the way. The
//! queue is what bounds them: a full one makes the submitter wait.

use ashlar_client_core::{Fence, OpError};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

/// Batches that may wait for the task of a volume. A batch holds what one reading of a socket
/// gave.
pub const SUBMISSIONS_MAX: usize = 256;

/// A block device: what it is, and where requests go.
#[derive(Clone, Debug)]
pub struct BlockDevice {
    /// What it is.
    pub info: Arc<DeviceInfo>,
    /// Bytes, a multiple of 4096; it may grow.
    pub size: watch::Receiver<u64>,
    /// Where requests go. Closed once the device is gone.
    pub queue: mpsc::Sender<Submission>,
}

impl BlockDevice {
    /// Bytes that it has now.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        *self.size.borrow()
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name for exports: the volume's name, or its id.
    pub name: String,
    /// Writes are refused.
    pub read_only: bool,
}

/// Requests that arrived together, and where their completions go.
#[derive(Debug)]
pub struct Submission {
    /// The requests.
    pub commands: Vec<Command>,
    /// Told of each of them exactly once.
    pub sink: Arc<dyn Sink>,
}

/// Takes completions. Called from the task of the volume, so it must not block.
pub trait Sink: Send + Sync + fmt::Debug {
    /// These requests are over. Leaves the list empty.
    fn complete(&self, completions: &mut Vec<Completion>);
}

/// One request.
#[derive(Clone, Debug)]
pub struct Command {
    /// The submitter's name for it; comes back in the completion.
    pub tag: u64,
    /// What to do.
    pub io: Io,
}

/// What to do. Offsets and lengths are in bytes and need no alignment: what is not whole blocks
/// is read, modified and written in order with everything that overlaps it.
#[derive(Clone, Debug)]
pub enum Io {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u32,
    },
    /// Write; durable when complete.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes, not empty.
        data: Bytes,
    },
    /// Make a range read as zero and give its space back: discard and write-zeroes alike.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
    },
    /// Complete when every write submitted before is.
    Flush,
}

/// A request that is over.
#[derive(Debug)]
pub struct Completion {
    /// The submitter's name for it.
    pub tag: u64,
    /// Its outcome.
    pub result: Result<Content, IoError>,
}

/// What a read brought; empty for everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Pieces in order, without gaps.
    pub pieces: Vec<Piece>,
}

/// Part of what a read brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes.
    pub len: u32,
    /// The bytes; `None` reads as zero.
    pub data: Option<Bytes>,
}

impl Content {
    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len as usize).sum()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Everything in one piece; copies only where there are several, or holes.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        if let [Piece { data: Some(data), .. }] = self.pieces.as_slice() {
            return data.clone();
        }
        let mut whole = Vec::with_capacity(self.len());
        for piece in self.pieces {
            match piece.data {
                Some(data) => whole.extend_from_slice(&data),
                None => whole.resize(whole.len() + piece.len as usize, 0),
            }
        }
        Bytes::from(whole)
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IoError {
    /// The right to use the volume is gone: attach again.
    #[error("fenced: {0}")]
    Fenced(Fence),
    /// Outside the device, or empty.
    #[error("the request is empty or lies outside the device")]
    OutOfRange,
    /// A write to a read-only device.
    #[error("the device is read-only")]
    ReadOnly,
    /// Damaged beyond what the nodes could repair in time.
    #[error("the data is damaged and could not be repaired in time")]
    Damaged,
    /// The policy of the volume asks for an error after so long.
    #[error("no answer within the time that the volume's policy allows")]
    TimedOut,
    /// The device is being closed.
    #[error("the device is closed")]
    Closed,
    /// The attachment is ended by force: what waited is given up. It may have happened or not.
    #[error("given up: the attachment is ended by force")]
    GivenUp,
    /// A defect of ours: the machine or a node refused a request as malformed.
    #[error("the request was refused as malformed")]
    Internal,
}

impl IoError {
    /// The error number that a host understands.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::OutOfRange => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            Self::Closed => libc::ESHUTDOWN,
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Fenced(_) | Self::Damaged | Self::GivenUp | Self::Internal => libc::EIO,
        }
    }
}

impl From<OpError> for IoError {
    fn from(error: OpError) -> Self {
        match error {
            OpError::Fenced(fence) => Self::Fenced(fence),
            OpError::Range(_) => Self::OutOfRange,
            OpError::Unreadable(_) => Self::Damaged,
            OpError::TimedOut => Self::TimedOut,
            OpError::TooLarge | OpError::Full | OpError::Content | OpError::Refused => {
                Self::Internal
            }
        }
    }
}

/// Completions as batches of a bounded channel. The submitter keeps at most `requests_max`
/// requests open, so the channel never is full.
#[derive(Debug)]
pub struct ChannelSink {
    sender: mpsc::Sender<Vec<Completion>>,
}

impl ChannelSink {
    /// A sink for at most `requests_max` open requests, and where its completions arrive.
    #[must_use]
    pub fn new(requests_max: usize) -> (Arc<Self>, mpsc::Receiver<Vec<Completion>>) {
        let (sender, receiver) = mpsc::channel(requests_max.max(1));
        (Arc::new(Self { sender }), receiver)
    }
}

impl Sink for ChannelSink {
    fn complete(&self, completions: &mut Vec<Completion>) {
        let batch = std::mem::take(completions);
        if let Err(error) = self.sender.try_send(batch) {
            // Closed: the submitter is gone and wants no answers. Full cannot be (see above).
            tracing::debug!(%error, "completions of a submitter that is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_read_as_zero_and_one_piece_is_not_copied() {
        let data = Bytes::from(vec![7; 8]);
        let one = Content { pieces: vec![Piece { len: 8, data: Some(data.clone()) }] };
        assert_eq!(one.into_bytes().as_ptr(), data.as_ptr());
        let hole = Piece { len: 2, data: None };
        let two = Content { pieces: vec![Piece { len: 8, data: Some(data) }, hole] };
        assert_eq!(&two.into_bytes()[..], [7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
    }
}
