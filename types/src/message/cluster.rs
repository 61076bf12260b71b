//! What a node and its zone's control plane say to each other.
//!
//! Level-triggered: configurations and reports carry the whole present state of a chunk, newest
//! wins, so a lost or repeated message costs nothing (design.md section 9).

use crate::config::ChunkConfig;
use crate::epoch::{ControlTerm, Epoch, Generation, Lsn, StartNumber};
use crate::id::{ChunkId, NodeId, ReplicaId, StoreId, ZoneId};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// Version of the node stream that this build speaks.
pub const CLUSTER_PROTOCOL_VERSION: u32 = 4;

/// How a node introduces itself when its stream opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// [`CLUSTER_PROTOCOL_VERSION`] of the node.
    pub version: u32,
    /// Zone of the node.
    pub zone: ZoneId,
    /// The node.
    pub node: NodeId,
    /// Its stores that work, at least one. What it held on others is gone for as long. A number whose
    /// process is up with none of these is refused.
    pub stores: Vec<StoreId>,
    /// Start number of its process.
    pub start: StartNumber,
    /// `ip:port` of its listener on the primary network.
    pub primary_address: String,
    /// `ip:port` of its listener on the replication network.
    pub replication_address: String,
    /// What fails with it: power, a switch. Empty: nothing that is known.
    pub rack: String,
}

/// Messages from a node to the control plane, after its registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlUp {
    /// Sign of life, every 300 ms.
    Heartbeat(Heartbeat),
    /// State of replicas: all of them after the stream opens, then what has changed.
    Replicas(Vec<ReplicaReport>),
    /// Changes that a primary asks for.
    Propose(Vec<Proposal>),
    /// What another node says, whose stream is gone (design.md section 5). Never relayed itself.
    Relayed(Relayed),
}

/// What a node says through another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Who says it.
    pub node: NodeId,
    /// One of its stores.
    pub store: StoreId,
    /// What it says.
    pub message: Box<ControlUp>,
}

/// Sign of life with what the node sees of its peers and its own stores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its stores that work.
    pub stores: Vec<StoreState>,
    /// Evidence about each peer that shares chunks with this node.
    pub peers: Vec<PeerEvidence>,
}

/// A store as its node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreState {
    /// Which.
    pub store: StoreId,
    /// Bytes that it can hold.
    pub capacity_bytes: u64,
    /// Bytes taken by replicas.
    pub used_bytes: u64,
    /// What its scrub does.
    pub scrub: ScrubState,
}

/// How far the background scrub of a store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubState {
    /// Times that it has read every block since the process started.
    pub cycles: u64,
    /// How much of the present cycle is done, in thousandths; all of it between two cycles.
    pub done_permille: u32,
    /// Bytes that it may read in a second at present.
    pub bytes_per_second: u64,
}

/// What one node sees of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEvidence {
    /// The peer.
    pub node: NodeId,
    /// Over the primary network.
    pub primary_net: PathState,
    /// Over the replication network.
    pub replication_net: PathState,
}

/// State of one path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathState {
    /// Not tried yet.
    #[default]
    Unknown,
    /// Answers beats.
    Up,
    /// No answer for so many milliseconds.
    Silent {
        /// Since the last answer.
        millis: u32,
    },
    /// The port refuses connections: no process listens.
    Refused,
}

/// State of one replica at its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The chunk.
    pub chunk: ChunkId,
    /// The replica.
    pub replica: ReplicaId,
    /// Epoch that it has durably adopted.
    pub adopted: Epoch,
    /// Generation that it has durably adopted.
    pub generation: Generation,
    /// What it is doing.
    pub state: ReplicaState,
}

/// What a replica is doing, as its holder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Primary that serves reads and writes.
    Serving,
    /// Primary that has not opened its term yet.
    Opening,
    /// In-sync secondary.
    Following,
    /// Being filled: this many of the chunk's blocks are copied.
    Filling {
        /// Blocks copied so far.
        blocks_done: u32,
    },
    /// Out of the in-sync set.
    Stale,
    /// Its store has lost part of it: it takes no part, and what is left proves nothing.
    Suspect,
    /// Deleted on order: nothing is left of it.
    Gone,
}

/// A change of a chunk's configuration that its primary asks for. Each is a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The chunk.
    pub chunk: ChunkId,
    /// The epoch that the proposer has adopted; void if it is not the current one.
    pub epoch: Epoch,
    /// The proposer, which must be the primary.
    pub proposer: ReplicaId,
    /// The change.
    pub change: Change,
}

/// What a primary may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An in-sync secondary does not answer; it becomes stale.
    RemoveSecondary {
        /// The secondary.
        replica: ReplicaId,
        /// How it fails to answer.
        reason: RemovalReason,
    },
    /// Fill a replica that was in sync once and is reachable again.
    ReadoptStale {
        /// The stale replica.
        replica: ReplicaId,
    },
    /// Copies are missing and no stale replica is reachable: find a node with space.
    SeekLearner,
    /// A learner does not answer; it becomes stale (or is forgotten if it never was in sync).
    RemoveLearner {
        /// The learner.
        replica: ReplicaId,
    },
    /// The primary's own disk is slower than its secondaries': another should be primary.
    StepDown {
        /// How long writes have waited for it.
        millis: u32,
    },
    /// Asked by the control plane ([`ControlDown::AskToFollow`]): the primary agrees that another
    /// in-sync replica is elected in its place, and stays in sync as its secondary.
    Follow,
    /// A learner has everything; it becomes in sync.
    PromoteLearner {
        /// The learner.
        replica: ReplicaId,
        /// Its contiguous durable prefix when this was proposed.
        durable: Lsn,
    },
}

/// Evidence behind a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    /// No acknowledgement and no beat on either network for so many milliseconds.
    Silent {
        /// Since the last sign.
        millis: u32,
    },
    /// Its ports refuse connections on both networks.
    Refused,
    /// It says itself that it is stale, gone, or does not hold the replica.
    ReportedGone,
    /// It answers, but all others have waited so many milliseconds for it alone.
    Slow {
        /// For one write.
        millis: u32,
    },
}

/// A message of the control plane with the term of the leader that sent it. A node refuses it if it
/// has seen a later one (design.md section 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Whose it is.
    pub term: ControlTerm,
    /// What it says.
    pub message: ControlDown,
}

/// Messages from the control plane to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlDown {
    /// Newest committed configurations of chunks that the node is a member of.
    Configs(Vec<ChunkConfig>),
    /// The nodes of the zone and their addresses; replaces the former list.
    Peers(Vec<PeerAddress>),
    /// `ip:port` of the members of the control plane, once they have changed; replaces the former
    /// list. For the shell, which dials them.
    Members(Vec<String>),
    /// Volumes are deleted: each replica named may be erased. Confirmed by [`ReplicaState::Gone`].
    Erase(Vec<(ChunkId, ReplicaId)>),
    /// Public key of the zone: tokens of attachments are signed by it (`proto/src/token.rs`).
    ZoneKey([u8; 32]),
    /// How much may be searched for from now on.
    Search(SearchBudget),
    /// The primary of each chunk, at that epoch: clients or peers do not reach it, and another should
    /// take over. It agrees ([`Change::Follow`]) if it can be of use as a secondary.
    AskToFollow(Vec<(ChunkId, Epoch)>),
    /// To be handed on to another node, whose stream is gone. Never relayed itself.
    Relay {
        /// For whom.
        to: NodeId,
        /// What.
        message: Box<ControlDown>,
    },
    /// A proposal was not carried out; the reason is for logs and status.
    ProposalRefused {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch of the proposal.
        epoch: Epoch,
        /// Why, in words.
        reason: String,
    },
}

/// What a node may search new homes for, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchBudget {
    /// A large interruption: only chunks with a single copy left, or whose writes wait, search.
    pub only_urgent: bool,
    /// Searches of one node in a second; at least 1.
    pub per_second: u32,
}

impl SearchBudget {
    /// Nothing is wrong (design.md section 7).
    pub const FULL: Self = Self { only_urgent: false, per_second: 100 };
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The node.
    pub node: NodeId,
    /// The first of its stores.
    pub store: StoreId,
    /// `ip:port` on the primary network.
    pub primary_address: String,
    /// `ip:port` on the replication network.
    pub replication_address: String,
}
