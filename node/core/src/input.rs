//! What can happen to the data core of a node.

use crate::beats::BeatNews;
use crate::outbox::{ConnectionId, Link, ReadTicket};
use crate::peers::Process;
use crate::record::JournalSeq;
use ashlar_types::message::cluster::Order;
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{BlockData, NodeId, StoreId};

/// Everything that can happen to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time passes; every 50 ms or so. More often is harmless.
    Tick,
    /// A frame arrived. A peer's network is the one that it came over.
    Frame {
        /// From whom.
        from: Link,
        /// What.
        message: DataMessage,
    },
    /// All frames that were waiting have been handled: questions gathered on the way leave now.
    BatchEnd,
    /// A connection that this node dialled is up, hellos exchanged.
    LinkUp {
        /// The peer.
        node: NodeId,
        /// Over which network.
        network: Network,
        /// The process at the other end.
        process: Process,
    },
    /// A dialled connection broke or could not be made.
    LinkDown {
        /// The peer.
        node: NodeId,
        /// Over which network.
        network: Network,
        /// Nobody listens at its port.
        refused: bool,
    },
    /// A client's connection ended.
    ClientGone {
        /// Which.
        connection: ConnectionId,
    },
    /// All records of a store up to this one are on stable media.
    Durable {
        /// The store.
        store: StoreId,
        /// The last of them.
        seq: JournalSeq,
    },
    /// A store has failed: nothing is known about what its disk has of what was not durable.
    StoreFailed {
        /// The store.
        store: StoreId,
    },
    /// The store has answered a read; `None`: the range cannot be read.
    BlocksRead {
        /// The read.
        ticket: ReadTicket,
        /// Content of the whole range.
        content: Option<BlockData>,
    },
    /// What the other half of the node has learned from beats.
    Beats(BeatNews),
    /// The stream to the control plane is open (again): it must be told everything.
    ControlUp,
    /// That stream is gone.
    ControlLost,
    /// A message of the control plane.
    Control(Order),
    /// Room in a store.
    Space {
        /// The store.
        store: StoreId,
        /// What it can hold, in bytes.
        capacity_bytes: u64,
        /// What is taken, in bytes.
        used_bytes: u64,
    },
}
