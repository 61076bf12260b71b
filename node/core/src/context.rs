//! What a replica may use while it handles one input: the time, the peers, and ways to act.

use crate::durable::ReplicaDurable;
use crate::gate::{Acknowledge, Gate};
use crate::lease::Leases;
use crate::outbox::{Effect, Link, Outbox, ReadTicket};
use crate::peers::Peers;
use crate::record::{JournalSeq, Record};
use crate::search::Searches;
use crate::timing::Timing;
use alloc::collections::{BTreeMap, BTreeSet};
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    BlockRange, ChunkConfig, ChunkId, Lsn, NodeId, ReplicaId, StartNumber, StoreId, Term, Time,
    ZoneId,
};

/// Who this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its zone.
    pub zone: ZoneId,
    /// The node.
    pub node: NodeId,
    /// Its store.
    pub store: StoreId,
    /// Number of this start of its process, durable before the core exists.
    pub start: StartNumber,
}

/// What a read of the store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFor {
    /// A client's read, by its number at the primary.
    Client(u64),
    /// The next overwrite of an opening.
    Overwrite(Term),
    /// A piece of a fill: learner and number of the copy.
    Fill(ReplicaId, StartNumber, u64),
    /// Another primary takes this range over.
    Fetch(NodeId, Term),
    /// A range that is being repaired, by the number of the repair at the primary.
    Repair(u64),
    /// A primary cannot read this block; the content at a position is wanted.
    Recall(NodeId, Lsn),
    /// The scrub, with the end of the prefix when it asked.
    Scrub(Lsn),
    /// A primary wants to know whether the content has this digest.
    Compare(NodeId, u64),
}

/// Reads asked of the store and not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    last: ReadTicket,
    open: BTreeMap<ReadTicket, (ChunkId, BlockRange, ReadFor)>,
    /// Of all reads, those of the scrub.
    scrubbed: u64,
}

impl Tickets {
    /// Reads that were not the scrub's.
    pub(crate) const fn foreground(&self) -> u64 {
        self.last.0 - self.scrubbed
    }

    /// Takes the ticket of an answer back.
    pub(crate) fn redeem(&mut self, ticket: ReadTicket) -> Option<(ChunkId, BlockRange, ReadFor)> {
        self.open.remove(&ticket)
    }
}

/// Handed to a replica for the time of one input.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Time,
    pub(crate) me: Identity,
    pub(crate) timing: &'a Timing,
    pub(crate) peers: &'a Peers,
    pub(crate) leases: &'a mut Leases,
    pub(crate) gate: &'a mut Gate,
    pub(crate) tickets: &'a mut Tickets,
    /// Replicas whose report to the control plane has changed.
    pub(crate) dirty: &'a mut BTreeSet<ChunkId>,
    /// Fills in progress on this node, as primary.
    pub(crate) fills: &'a mut usize,
    /// This node's own store has little room left.
    pub(crate) short_of_space: bool,
    /// How many more new homes may be searched for.
    pub(crate) searches: &'a mut Searches,
    pub(crate) out: &'a mut Outbox,
}

impl Context<'_> {
    /// Journals a fact: in effect at once in memory, durable before anything sent behind it.
    pub(crate) fn persist(&mut self, durable: &mut ReplicaDurable, record: Record) -> JournalSeq {
        durable.apply(&record);
        let seq = self.gate.number(record.may_wait());
        self.out.push(Effect::Persist { seq, record });
        seq
    }

    /// Journals the adoption of a configuration and notes it for the control plane.
    pub(crate) fn persist_adoption(&mut self, durable: &mut ReplicaDurable, config: ChunkConfig) {
        let (chunk, replica) = (config.chunk, durable.replica);
        let (epoch, generation) = (config.epoch, config.generation);
        self.persist(durable, Record::Adopt { replica, config });
        self.gate.note_adopted(chunk, epoch, generation);
    }

    /// Whether the store of a node has little room left.
    pub(crate) fn is_short_of_space(&self, node: NodeId) -> bool {
        if node == self.me.node { self.short_of_space } else { self.peers.is_short_of_space(node) }
    }

    /// Sends to a peer once everything journalled so far is durable.
    pub(crate) fn send(&mut self, to: NodeId, message: DataMessage) {
        self.effect(Effect::Send { to: self.peer(to), message });
    }

    /// A peer, over the network that the pair uses.
    fn peer(&self, node: NodeId) -> Link {
        Link::Peer(node, self.peers.via(node))
    }

    /// Any effect, once everything journalled so far is durable.
    pub(crate) fn effect(&mut self, effect: Effect) {
        if let Some(effect) = self.gate.hold(effect) {
            self.out.push(effect);
        }
    }

    /// Sends without waiting for the journal. Allowed only for what promises nothing about this
    /// node's disk: mirrors (the primary counts its own copy separately), questions, refusals.
    pub(crate) fn mirror_eagerly(&mut self, to: NodeId, message: DataMessage) {
        self.out.push(Effect::Send { to: self.peer(to), message });
    }

    /// Acknowledges a prefix to the primary once it is durable.
    pub(crate) fn acknowledge(&mut self, chunk: ChunkId, ack: Acknowledge) {
        if let Some(ack) = self.gate.hold_ack(chunk, ack) {
            self.out.push(self.ack_effect(chunk, ack));
        }
    }

    /// The message of an acknowledgement.
    pub(crate) fn ack_effect(&self, chunk: ChunkId, ack: Acknowledge) -> Effect {
        let Acknowledge { epoch, lsn, fill, .. } = ack;
        let message = DataMessage::MirrorAck { chunk, epoch, lsn, start: self.me.start, fill };
        Effect::Send { to: self.peer(ack.to), message }
    }

    /// Asks the store for blocks.
    pub(crate) fn read(&mut self, chunk: ChunkId, range: BlockRange, purpose: ReadFor) {
        self.tickets.last.0 += 1;
        if matches!(purpose, ReadFor::Scrub(_) | ReadFor::Compare(..)) {
            self.tickets.scrubbed += 1;
        }
        let ticket = self.tickets.last;
        self.tickets.open.insert(ticket, (chunk, range, purpose));
        self.out.push(Effect::Read { ticket, chunk, range });
    }

    /// Answers a client.
    pub(crate) fn reply(&mut self, to: crate::outbox::ConnectionId, message: DataMessage) {
        self.out.push(Effect::Send { to: Link::Client(to), message });
    }
}
