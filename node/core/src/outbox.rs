//! What the core wants done. The shell carries effects out in the order given and decides nothing.

use crate::beats::BeatOrder;
use crate::record::{JournalSeq, Record};
use alloc::vec::Vec;
use ashlar_types::message::cluster::ControlUp;
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{BlockRange, ChunkId, Lsn, NodeId, StoreId, VolumeId};

/// Number of a client's connection, given by the shell; never reused in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Number of a read that the core asked of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTicket(pub u64);

/// The other end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// A client's connection.
    Client(ConnectionId),
    /// A node, over one of the two networks. Sends use the connection that this node dialled.
    Peer(NodeId, Network),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message; if the connection is gone, drop it (the core learns of that by itself).
    Send {
        /// To whom.
        to: Link,
        /// What.
        message: DataMessage,
    },
    /// Append a record to the journal of a store; report [`crate::input::Input::Durable`] when it
    /// and all before it there are on stable media.
    Persist {
        /// The store of the record's replica.
        store: StoreId,
        /// Its number in the store's journal.
        seq: JournalSeq,
        /// The record.
        record: Record,
    },
    /// Read blocks from a store; all records persisted there before this effect must be seen.
    Read {
        /// The store.
        store: StoreId,
        /// Number for the answer.
        ticket: ReadTicket,
        /// The chunk.
        chunk: ChunkId,
        /// The blocks.
        range: BlockRange,
    },
    /// Tell the control plane; if it cannot be reached, drop it.
    Control(ControlUp),
    /// No replica of the volume is left here: what was remembered of its attachments may go.
    VolumeLeft(VolumeId),
    /// Log it: an operator should know.
    Alarm(Alarm),
}

/// What an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// This primary lacks writes that a member knows to be committed: its store lost data. It
    /// does not serve; another must be elected.
    LacksCommitted {
        /// The chunk.
        chunk: ChunkId,
        /// End of this replica's prefix.
        last: Lsn,
        /// What a member knows to be committed.
        committed: Lsn,
    },
    /// A configuration names this node with another incarnation or contradicts itself.
    ConfigRefused {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The store could not read a range.
    Unreadable {
        /// The chunk.
        chunk: ChunkId,
        /// The range.
        range: BlockRange,
    },
    /// As primary: a range that was damaged somewhere is written anew everywhere.
    Repaired {
        /// The chunk.
        chunk: ChunkId,
        /// The range.
        range: BlockRange,
    },
    /// As primary: no in-sync replica can read the range.
    Lost {
        /// The chunk.
        chunk: ChunkId,
        /// The range.
        range: BlockRange,
    },
    /// A store has failed: its replicas are gone from this node, which goes on with its others.
    StoreLost {
        /// The store.
        store: StoreId,
        /// How many replicas it held.
        replicas: usize,
    },
    /// A peer's clock runs faster than leases allow for: its leases are not used, and every read
    /// that needs one is confirmed instead.
    ClockRunsAhead {
        /// The peer.
        node: NodeId,
    },
}

/// Effects in order.
#[derive(Debug, Default)]
pub struct Outbox {
    effects: Vec<Effect>,
    orders: Vec<BeatOrder>,
}

impl Outbox {
    /// Adds an effect.
    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Adds an order to the beats. No effect waits for it: what must, waits for the news that it is
    /// in force.
    pub(crate) fn order(&mut self, order: BeatOrder) {
        self.orders.push(order);
    }

    /// Takes all orders to the beats out, in order.
    pub fn drain_orders(&mut self) -> alloc::vec::Drain<'_, BeatOrder> {
        self.orders.drain(..)
    }

    /// Takes all effects out, in order.
    pub fn drain(&mut self) -> alloc::vec::Drain<'_, Effect> {
        self.effects.drain(..)
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.effects.len()
    }

    /// Those that were added since there were so many.
    pub(crate) fn since(&mut self, len: usize) -> impl Iterator<Item = &mut Effect> {
        self.effects.iter_mut().skip(len)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty() && self.orders.is_empty()
    }
}
