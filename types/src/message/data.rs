//! What clients and nodes, and nodes and nodes, say to each other over TCP frames.
//!
//! | message | from | to | answered by |
//! |---|---|---|---|
//! | `Read`, `Write`, `FindConfig` | client | primary (or any member) | `ReadDone`, `WriteDone`, `ConfigIs`, `Refused` |
//! | `Beat` | node | node | `BeatReply` |
//! | `Adopt` | primary | member | nothing, or `PeerRefused` |
//! | `Collect` | primary of a new term | member | `Collected`, `PeerRefused` |
//! | `Fetch` | primary of a new term | member with the longest history | `Fetched` |
//! | `OpenTerm` | primary of a new term | member | `MirrorAck` of the opening, `PeerRefused` |
//! | `OpenLearner` | primary | learner | `MirrorAck` of the base, `PeerRefused` |
//! | `Mirror` | primary | member | `MirrorAck`, `PeerRefused` |
//! | `Committed` | primary | member | nothing |
//! | `Confirm` | primary | secondary | `Confirmed`, `PeerRefused` |
//! | `Copy` | primary | learner | `CopyAck` |
//! | `Recall` | primary | in-sync secondary | `Recalled`, `PeerRefused` |
//! | `Compare` | primary | in-sync secondary | nothing, or `PeerRefused` |
//! | `Relay` | node without a stream to the control plane | node with one | nothing |
//! | `Relayed` | that node | the one that asked | nothing |
//!
//! A node sends every message to a peer on the connection that it dialled itself, answers too; so
//! each direction of a pair is one ordered stream. Beats and their answers have connections of their
//! own ([`Lane`]).

use crate::blocks::{BlockData, BlockRange};
use crate::config::ChunkConfig;
use crate::epoch::{Epoch, Generation, Lsn, SessionId, StartNumber, Term};
use crate::id::{ChunkId, NodeId, RequestId, StoreId, VolumeId, ZoneId};
use crate::message::cluster::{ControlUp, Order};
use crate::time::Time;
use alloc::boxed::Box;
use alloc::vec::Vec;
use thiserror::Error;

/// Version of the frames that this build speaks; raised when a message changes shape.
pub const DATA_PROTOCOL_VERSION: u16 = 5;

/// Which of a node's two networks a connection runs over (design.md section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// Client I/O, mirroring, control traffic.
    Primary,
    /// Beats, and mirroring when the primary network of a pair is gone. Never client I/O.
    Replication,
}

/// What a connection between two nodes carries. Each has connections of its own, so that no beat ever
/// waits behind data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Everything but beats.
    Data,
    /// Beats and their answers, nothing else.
    Beats,
}

/// First frame of the side that dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`DATA_PROTOCOL_VERSION`] of the dialling side; another one is refused by name.
    pub version: u16,
    /// The zone that the dialling side believes it talks to.
    pub zone: ZoneId,
    /// Who dials.
    pub role: HelloRole,
}

/// Who dials a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloRole {
    /// A client that has attached (or reads) a volume.
    Client {
        /// The volume.
        volume: VolumeId,
        /// Generation of its attachment.
        generation: Generation,
        /// Number of this connection within the attachment.
        session: SessionId,
        /// Signed right to use the volume (`proto/src/token.rs`).
        token: Vec<u8>,
    },
    /// Another node of the zone.
    Node {
        /// The dialling node.
        node: NodeId,
        /// Its stores.
        stores: Vec<StoreId>,
        /// Start number of its process.
        start: StartNumber,
        /// The network it dialled over.
        network: Network,
        /// What the connection is for.
        lane: Lane,
    },
}

/// First frame of the side that accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloReply {
    /// Go on.
    Welcome {
        /// Version of the accepting side.
        version: u16,
        /// The accepting node.
        node: NodeId,
        /// Its stores.
        stores: Vec<StoreId>,
        /// Start number of its process.
        start: StartNumber,
    },
    /// The connection is closed after this.
    Refused(HelloRefusal),
}

/// Why a hello is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HelloRefusal {
    /// The other side speaks another version.
    #[error("protocol version {theirs} is not spoken here; this node speaks {ours}")]
    Version {
        /// Version of the accepting side.
        ours: u16,
        /// Version of the dialling side.
        theirs: u16,
    },
    /// Dialled into another zone.
    #[error("this node belongs to another zone")]
    Zone,
    /// Client I/O is not carried by the replication network.
    #[error("clients are served on the primary network only")]
    Network,
    /// Too many connections are open.
    #[error("too many connections; try again later")]
    Full,
    /// The client's token does not admit it.
    #[error("the token of this attachment does not admit it: {0}")]
    Token(TokenRefusal),
}

/// Why a token admits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenRefusal {
    /// There is none.
    #[error("it is missing; attach the volume")]
    Missing,
    /// Not the bytes of a token.
    #[error("it is malformed; attach the volume again")]
    Malformed,
    /// Written by a newer release.
    #[error("it has a version that this node does not read; upgrade the node")]
    Version,
    /// The zone has not signed it.
    #[error("this zone has not signed it; attach the volume in this zone")]
    Signature,
    /// It is for another volume or attachment than the hello names.
    #[error("it is for another volume or attachment than the hello names")]
    OtherAttachment,
    /// Too old for an attachment that this node has not seen yet.
    #[error(
        "it has expired, and this node has not admitted the attachment before; ask for another"
    )]
    Expired,
    /// The node has admitted a later attachment.
    #[error("a later attachment of the volume has been admitted; attach the volume again")]
    Superseded,
    /// The control plane has not told this node the zone's key yet.
    #[error("this node does not know the zone's key yet; try again later")]
    NoKey,
}

/// What a client's request is valid under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Chunk that the request touches.
    pub chunk: ChunkId,
    /// Epoch of the configuration that the client knows.
    pub epoch: Epoch,
    /// Generation of the client's attachment.
    pub generation: Generation,
    /// Number of its connection.
    pub session: SessionId,
}

/// Everything that crosses a data connection after the hellos.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataMessage {
    /// Client asks for committed content of a range.
    Read {
        /// Number of the request.
        id: RequestId,
        /// What it is valid under.
        stamp: Stamp,
        /// What to read.
        range: BlockRange,
    },
    /// Client writes, trims (holes) or zeroes (holes) a range.
    Write {
        /// Number of the request.
        id: RequestId,
        /// What it is valid under.
        stamp: Stamp,
        /// The content.
        data: BlockData,
    },
    /// Client asks for the newest configuration that this node knows.
    FindConfig {
        /// Number of the request.
        id: RequestId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The committed content.
    ReadDone {
        /// Number of the request.
        id: RequestId,
        /// The content of the whole range.
        data: BlockData,
    },
    /// The write is on stable media at every in-sync replica, at least `copies_min` of them.
    WriteDone {
        /// Number of the request.
        id: RequestId,
    },
    /// The newest configuration known here.
    ConfigIs {
        /// Number of the request.
        id: RequestId,
        /// The configuration.
        config: Box<ChunkConfig>,
    },
    /// The request was not carried out.
    Refused {
        /// Number of the request.
        id: RequestId,
        /// Why.
        refusal: Refusal,
    },

    /// Numbered sign of life, over each network every 150 ms; asks for a read lease (design.md 4.4).
    Beat {
        /// Counts up in the process that sends it.
        number: u64,
        /// Chunks that the receiver excepted, with the epochs that the sender has adopted since.
        adopted: Vec<(ChunkId, Epoch)>,
        /// Stores of the sender that have little room left: primaries hold writes that they would
        /// have to find room for (design.md section 8).
        short_of_space: Vec<StoreId>,
        /// The sender's stream to the control plane is open: it can relay.
        has_control: bool,
        /// For how long the sender's data core has not moved, in milliseconds: beats have a thread of
        /// their own, so that one beats proves nothing of the other.
        behind_millis: u32,
    },
    /// Answer to a beat, with its number: the only thing that renews a lease.
    BeatReply {
        /// The number of the beat.
        number: u64,
        /// The process that grants.
        start: StartNumber,
        /// What the granter's clock showed: tells whether it runs faster than leases allow for.
        clock: Time,
        /// Whether the lease is renewed: from the receipt of the beat on.
        granted: bool,
        /// Chunks that it does not cover: under these epochs another is primary.
        except: Vec<(ChunkId, Epoch)>,
    },
    /// A committed configuration, handed on in band.
    Adopt {
        /// The configuration.
        config: Box<ChunkConfig>,
    },
    /// A primary that opens a term asks what the member has; the member adopts the configuration
    /// and refuses lower terms from then on.
    Collect {
        /// The configuration that the term runs under.
        config: Box<ChunkConfig>,
        /// The new term.
        term: Term,
    },
    /// What the member has.
    Collected {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the collect that this answers.
        epoch: Epoch,
        /// Term of the collect that this answers.
        term: Term,
        /// The member's history.
        history: History,
    },
    /// A primary that takes over reads a range it lacks from the longest history.
    Fetch {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the primary.
        epoch: Epoch,
        /// The new term.
        term: Term,
        /// At most [`crate::limit::IO_BLOCKS_MAX`] blocks.
        range: BlockRange,
    },
    /// The member's content of the range, committed or not.
    Fetched {
        /// The chunk.
        chunk: ChunkId,
        /// Term of the fetch that this answers.
        term: Term,
        /// The content.
        data: BlockData,
    },
    /// Opens a term at a member: what it rests on and what it will overwrite.
    OpenTerm {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch that the term is opened under.
        epoch: Epoch,
        /// The new term.
        term: Term,
        /// Every member must be complete up to here.
        base: Lsn,
        /// All ranges that may differ between members; overwritten first.
        overwrite: Vec<BlockRange>,
    },
    /// Starts filling a learner: live writes after `base` follow, copies of all blocks too.
    OpenLearner {
        /// The configuration that names the learner.
        config: Box<ChunkConfig>,
        /// Last position assigned before the learner's stream starts.
        base: Lsn,
        /// The learner's process that is filled; another one answers with its own number.
        learner_start: StartNumber,
    },
    /// One write of the chunk, in order.
    Mirror {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch that the primary writes under.
        epoch: Epoch,
        /// Position of the write.
        lsn: Lsn,
        /// Everything up to here is committed.
        committed: Lsn,
        /// The content.
        data: BlockData,
    },
    /// All writes up to `lsn` of its term are on stable media at the sender, without a gap.
    MirrorAck {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch that the sender has adopted.
        epoch: Epoch,
        /// Contiguous durable prefix.
        lsn: Lsn,
        /// Start number of the sender's process.
        start: StartNumber,
        /// Base of the fill whose stream the sender has received; none outside of a fill.
        fill: Option<Lsn>,
    },
    /// Everything up to `lsn` is committed.
    Committed {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch that the primary writes under.
        epoch: Epoch,
        /// The committed position.
        lsn: Lsn,
    },
    /// A primary without a read lease asks whether it still is the primary (design.md 4.4).
    Confirm {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the primary.
        epoch: Epoch,
        /// Term of the primary.
        term: Term,
        /// Number of the question; one question serves all waiting reads.
        round: u64,
    },
    /// At the time of this answer the sender knew no later epoch or term.
    Confirmed {
        /// The chunk.
        chunk: ChunkId,
        /// Term of the question.
        term: Term,
        /// Number of the question.
        round: u64,
    },
    /// Committed blocks for a learner.
    Copy {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the primary.
        epoch: Epoch,
        /// Position that the blocks were read at: a later write at the learner wins.
        read_at: Lsn,
        /// The learner's process that this copy is for; void for any other.
        learner_start: StartNumber,
        /// Number of the copy within this fill.
        number: u64,
        /// The content, holes included.
        data: BlockData,
    },
    /// The copy with this number is on stable media.
    CopyAck {
        /// The chunk.
        chunk: ChunkId,
        /// Term of the fill.
        term: Term,
        /// The learner's process.
        learner_start: StartNumber,
        /// Number of the copy.
        number: u64,
    },
    /// A primary that cannot read a block asks for its content at `at` or later: it lets no write over
    /// the block pass meanwhile.
    Recall {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the primary.
        epoch: Epoch,
        /// A committed position, at or above the last write over the block.
        at: Lsn,
        /// The blocks.
        range: BlockRange,
    },
    /// The content at that position.
    Recalled {
        /// The chunk.
        chunk: ChunkId,
        /// Position of the question.
        at: Lsn,
        /// The content.
        data: BlockData,
    },
    /// What the primary holds of a range at a position: a secondary that holds something else there
    /// says that it is damaged.
    Compare {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the primary.
        epoch: Epoch,
        /// End of the primary's prefix.
        at: Lsn,
        /// The blocks.
        range: BlockRange,
        /// Made of the blocks' checksums.
        digest: u64,
    },
    /// For the control plane, from a node whose stream to it is gone, to a peer that has one.
    Relay {
        /// One of the sender's stores.
        store: StoreId,
        /// What it says.
        message: Box<ControlUp>,
    },
    /// What the control plane says, handed on by a peer.
    Relayed {
        /// With the term of the leader that says it.
        order: Box<Order>,
    },
    /// The sender cannot follow the primary's last message about the chunk.
    PeerRefused {
        /// The chunk.
        chunk: ChunkId,
        /// Why.
        refusal: PeerRefusal,
    },
}

/// What one member knows of a chunk's writes, all of it durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// End of the contiguous prefix.
    pub last: Lsn,
    /// Everything up to here is known to be committed.
    pub committed: Lsn,
    /// Writes not known to be committed, in order, and ranges named by an opening and not yet
    /// overwritten (these carry the opening's position).
    pub uncommitted: Vec<Uncommitted>,
}

/// A range whose content may differ between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncommitted {
    /// Position of the write.
    pub lsn: Lsn,
    /// Its blocks.
    pub range: BlockRange,
}

/// Why a client's request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The client's epoch is not the current one; here is the current configuration.
    #[error("the chunk's configuration has changed")]
    WrongEpoch(Box<ChunkConfig>),
    /// This node is not the primary; here is the newest configuration it knows.
    #[error("this node is not the primary of the chunk")]
    NotPrimary(Box<ChunkConfig>),
    /// Another attachment has the right to write: final for this client.
    #[error("the attachment has ended: generation {current} is attached now")]
    WrongGeneration {
        /// The generation that is attached.
        current: Generation,
    },
    /// A newer connection of the same attachment has taken over: final for this connection.
    #[error("a newer session of this attachment has taken over")]
    SessionEnded,
    /// The node holds no replica of the chunk.
    #[error("this node holds no replica of the chunk")]
    UnknownChunk,
    /// The primary is opening its term or waits for copies; ask again later.
    #[error("the chunk is not ready: {0}")]
    NotReady(NotReady),
    /// The request breaks a limit or lies outside the chunk: final for this request.
    #[error("the request is malformed: outside the chunk, too large, or too many in flight")]
    BadRequest,
    /// Every reachable copy of the range fails its checksum or cannot be read.
    #[error("{0} cannot be read: damaged on this node")]
    Unreadable(BlockRange),
}

/// What a chunk that exists waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// The new term's members have not all answered.
    #[error("the primary is taking over")]
    OpeningTerm,
    /// The queue of waiting requests is full.
    #[error("too many requests wait for this chunk")]
    QueueFull,
}

/// Why a member does not follow.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerRefusal {
    /// The member has adopted a later epoch: here is its configuration.
    #[error("a later epoch is adopted here")]
    LowerEpoch(Box<ChunkConfig>),
    /// The member follows a later term.
    #[error("term {0} is followed here")]
    LowerTerm(Term),
    /// The member has not adopted the epoch that the message was sent under.
    #[error("epoch {0} is adopted here, the message is from a later one")]
    NotAdopted(Epoch),
    /// Writes are missing between the member's prefix and the message.
    #[error("writes after {0} are missing here")]
    Gap(Lsn),
    /// The member's process is another than the one being filled.
    #[error("the process being filled is gone; the present one is start {0}")]
    OtherStart(StartNumber),
    /// The member holds no such replica (any more).
    #[error("no such replica is held here")]
    NotHeld,
    /// The range cannot be read here, or holds other content than at the primary.
    #[error("{0} is damaged here")]
    Damaged(BlockRange),
}

impl DataMessage {
    /// The chunk that a message between nodes is about; `None` for beats and client messages.
    #[must_use]
    pub fn peer_chunk(&self) -> Option<ChunkId> {
        match self {
            Self::Adopt { config }
            | Self::Collect { config, .. }
            | Self::OpenLearner { config, .. } => Some(config.chunk),
            Self::Collected { chunk, .. }
            | Self::Fetch { chunk, .. }
            | Self::Fetched { chunk, .. }
            | Self::OpenTerm { chunk, .. }
            | Self::Mirror { chunk, .. }
            | Self::MirrorAck { chunk, .. }
            | Self::Committed { chunk, .. }
            | Self::Confirm { chunk, .. }
            | Self::Confirmed { chunk, .. }
            | Self::Copy { chunk, .. }
            | Self::CopyAck { chunk, .. }
            | Self::Recall { chunk, .. }
            | Self::Recalled { chunk, .. }
            | Self::Compare { chunk, .. }
            | Self::PeerRefused { chunk, .. } => Some(*chunk),
            Self::Read { .. }
            | Self::Write { .. }
            | Self::FindConfig { .. }
            | Self::ReadDone { .. }
            | Self::WriteDone { .. }
            | Self::ConfigIs { .. }
            | Self::Refused { .. }
            | Self::Beat { .. }
            | Self::BeatReply { .. }
            | Self::Relay { .. }
            | Self::Relayed { .. } => None,
        }
    }
}
