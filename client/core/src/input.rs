//! What goes into the machine of a volume and what comes out.

use alloc::vec::Vec;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    BlockRange, ChunkConfig, Generation, Geometry, GeometryError, NodeId, SessionId, VolumeId,
};
use bytes::Bytes;
use core::time::Duration;
use thiserror::Error;

/// Most parts (pieces of requests, one frame each) that a volume works on at a time. A part holds
/// at most 1 MiB, typically 4 KiB; the shell bounds bytes, this bounds the table.
pub const PARTS_MAX: usize = 4_096;
/// Most parts that one request may split into; larger ones are split by the caller.
pub const PARTS_PER_REQUEST_MAX: usize = 512;

const _: () = assert!(PARTS_PER_REQUEST_MAX < PARTS_MAX && PARTS_MAX < u16::MAX as usize);

/// What a volume is, and the right under which it is used.
#[derive(Clone, Debug)]
pub struct VolumeSettings {
    /// The volume.
    pub volume: VolumeId,
    /// Its size and the size of its chunks.
    pub geometry: Geometry,
    /// Generation of the attachment.
    pub generation: Generation,
    /// Number of the first connection; every later one counts up. Above every number that this
    /// attachment used before (a durable counter of the caller).
    pub first_session: SessionId,
    /// What happens when a request cannot be carried out for a long time.
    pub policy: WaitPolicy,
}

/// What happens when a request cannot be carried out for a long time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Wait until it can: the device never returns an error for a transient fault.
    #[default]
    Wait,
    /// Fail the request with [`OpError::TimedOut`] after so long.
    EioAfter(Duration),
}

/// Name of a request, chosen by the caller and never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Content of a write: one CRC32C for each block, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// CRC32C of each block.
    pub sums: Vec<u32>,
    /// The bytes, a whole number of blocks.
    pub data: Bytes,
}

/// What a user of the volume asks for. Offsets and lengths are in blocks of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read blocks.
    Read {
        /// First block.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Write blocks.
    Write {
        /// First block.
        first: u64,
        /// The content.
        payload: Payload,
    },
    /// Make blocks read as zero, without payload (trim, write-zeroes).
    Zero {
        /// First block.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Wait as a write of the range would, then report [`Effect::Turn`]: the caller reads,
    /// modifies and answers with [`Input::Fill`] or [`Input::Abandon`]. Nothing that overlaps is
    /// in flight meanwhile, so a read-modify-write loses no other write.
    Reserve {
        /// First block.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Done when all writes submitted before are done.
    Flush,
}

/// Everything that the machine reacts to. Repeated or late link events are harmless.
#[derive(Clone, Debug)]
pub enum Input {
    /// A user asks for something.
    Submit {
        /// Name of the request.
        op: OpId,
        /// What is asked for.
        request: Request,
    },
    /// The content for a reserved range whose turn has come.
    Fill {
        /// Name of the reservation.
        op: OpId,
        /// The content of the whole range.
        payload: Payload,
    },
    /// The reserved range will not be written after all.
    Abandon {
        /// Name of the reservation.
        op: OpId,
    },
    /// The connection that [`Effect::Connect`] asked for was admitted by the node.
    LinkUp {
        /// The node.
        node: NodeId,
        /// Number of the connection.
        session: SessionId,
    },
    /// The connection failed or ended.
    LinkDown {
        /// The node.
        node: NodeId,
        /// Number of the connection.
        session: SessionId,
    },
    /// The node sent a message on this connection.
    Message {
        /// The node.
        node: NodeId,
        /// Number of the connection.
        session: SessionId,
        /// The message, checksums verified.
        message: DataMessage,
    },
    /// The answer to [`Effect::RefreshMap`], or configurations from any other source.
    Map {
        /// Newest configurations known there.
        configs: Vec<ChunkConfig>,
    },
    /// [`Effect::RefreshMap`] could not be carried out.
    MapFailed,
    /// The volume has this size now, and the chunks for it serve. It never shrinks: a smaller one is old.
    Grow {
        /// Its size and that of its chunks.
        geometry: Geometry,
    },
    /// Time has passed. Due at [`crate::VolumeCore::next_wake`]; an early tick is harmless.
    Tick,
}

/// What the shell must do.
#[derive(Debug)]
pub enum Effect {
    /// Send on the connection with this number; drop it if that connection is gone.
    Send {
        /// The node.
        node: NodeId,
        /// Number of the connection.
        session: SessionId,
        /// The message.
        message: DataMessage,
    },
    /// Dial the node and say hello with this session number; then [`Input::LinkUp`] or
    /// [`Input::LinkDown`].
    Connect {
        /// The node.
        node: NodeId,
        /// Number of the connection.
        session: SessionId,
    },
    /// Close the connection; no [`Input::LinkDown`] is needed for it.
    Disconnect {
        /// The node.
        node: NodeId,
        /// Number of the connection.
        session: SessionId,
    },
    /// The request is over.
    Complete {
        /// Name of the request.
        op: OpId,
        /// Its outcome.
        result: Result<Done, OpError>,
    },
    /// The reservation has its turn.
    Turn {
        /// Name of the reservation.
        op: OpId,
    },
    /// Ask the control plane for the map; exactly one [`Input::Map`] or [`Input::MapFailed`]
    /// answers.
    RefreshMap,
}

/// Effects in the order in which they were decided.
pub type Outbox = Vec<Effect>;

/// How a request ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Committed content, one piece for each frame, in order of offset.
    Read(Vec<ReadPiece>),
    /// Written, zeroed or (a reservation) abandoned.
    Written,
    /// Everything written before is on stable media.
    Flushed,
}

/// Part of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPiece {
    /// Blocks from the start of the request.
    pub skipped_blocks: u32,
    /// The content; holes read as zero. Its range is counted within the chunk.
    pub data: ashlar_types::BlockData,
}

/// Why a request failed. None is a transient fault unless the policy says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpError {
    /// The right to use the volume is gone for good: attach again.
    #[error("fenced: {0}")]
    Fenced(Fence),
    /// The request lies outside the volume or is empty.
    #[error("request refused: {0}")]
    Range(GeometryError),
    /// The request splits into more parts than are allowed; split it before.
    #[error("the request splits into more than {PARTS_PER_REQUEST_MAX} parts")]
    TooLarge,
    /// [`crate::VolumeCore::has_room`] said no.
    #[error("too many requests are in progress")]
    Full,
    /// Checksums, bytes and range do not fit each other, or there is no such reservation.
    #[error("the content does not fit the request")]
    Content,
    /// A node found the request malformed: a defect of this client.
    #[error("a node refused the request as malformed")]
    Refused,
    /// The range is damaged and could not be repaired in time.
    #[error("damaged: {0} of a chunk cannot be read")]
    Unreadable(BlockRange),
    /// The policy of the volume asks for an error after so long.
    #[error("no answer within the time that the volume's policy allows")]
    TimedOut,
}

/// Why an attachment is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fence {
    /// Another attachment of the volume is newer, or it was detached.
    #[error("generation {current} of the volume is attached now, this is generation {ours}")]
    Generation {
        /// The newer generation.
        current: Generation,
        /// The generation of this attachment.
        ours: Generation,
    },
    /// Another process uses the same attachment.
    #[error("another process has taken over this attachment")]
    Session,
}
