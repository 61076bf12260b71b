//! What a replica may use while it handles one input: the time, the peers, and ways to act.

use crate::durable::ReplicaDurable;
use crate::gate::{Acknowledge, Gate};
use crate::lease::Leases;
use crate::outbox::{Effect, Link, Outbox, ReadTicket};
use crate::peers::Peers;
use crate::record::{JournalSeq, Record};
use crate::search::Searches;
use crate::stores::Stores;
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
    /// Number of this start of its process, durable in each of its stores before the core exists.
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

/// A read as it was asked: of which store, what, and what for.
type Asked = (StoreId, ChunkId, BlockRange, ReadFor);

/// Reads asked of the stores and not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    last: ReadTicket,
    open: BTreeMap<ReadTicket, Asked>,
    /// Of all reads, those of the scrub.
    scrubbed: u64,
}

impl Tickets {
    /// Reads that were not the scrub's.
    pub(crate) const fn foreground(&self) -> u64 {
        self.last.0 - self.scrubbed
    }

    /// Takes the ticket of an answer back.
    pub(crate) fn redeem(&mut self, ticket: ReadTicket) -> Option<Asked> {
        self.open.remove(&ticket)
    }

    /// A store has failed: what it was asked is not answered.
    pub(crate) fn forget(&mut self, store: StoreId) {
        self.open.retain(|_, (of, ..)| *of != store);
    }
}

/// What the replicas of this node have in common, for the time of one input.
#[derive(Debug)]
pub(crate) struct Desk<'a> {
    pub(crate) now: Time,
    pub(crate) me: Identity,
    pub(crate) timing: &'a Timing,
    pub(crate) peers: &'a Peers,
    pub(crate) leases: &'a mut Leases,
    pub(crate) stores: &'a mut Stores,
    pub(crate) tickets: &'a mut Tickets,
    pub(crate) dirty: &'a mut BTreeSet<ChunkId>,
    pub(crate) fills: &'a mut usize,
    pub(crate) searches: &'a mut Searches,
    pub(crate) out: &'a mut Outbox,
}

impl Desk<'_> {
    /// What a replica on that store may use: the store's journal and no other, so that nothing it says
    /// can rest on another one. `None` if the store has failed.
    pub(crate) fn at(&mut self, store: StoreId) -> Option<Context<'_>> {
        let part = self.stores.get_mut(store)?;
        Some(Context {
            now: self.now,
            me: self.me,
            store,
            timing: self.timing,
            peers: self.peers,
            leases: self.leases,
            short_of_space: part.is_short_of_space(),
            gate: &mut part.gate,
            tickets: self.tickets,
            dirty: self.dirty,
            fills: self.fills,
            searches: self.searches,
            out: self.out,
        })
    }
}

/// Handed to a replica for the time of one input.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Time,
    pub(crate) me: Identity,
    /// The replica's store.
    pub(crate) store: StoreId,
    pub(crate) timing: &'a Timing,
    pub(crate) peers: &'a Peers,
    pub(crate) leases: &'a mut Leases,
    /// Of that store.
    pub(crate) gate: &'a mut Gate,
    pub(crate) tickets: &'a mut Tickets,
    /// Replicas whose report to the control plane has changed.
    pub(crate) dirty: &'a mut BTreeSet<ChunkId>,
    /// Fills in progress on this node, as primary.
    pub(crate) fills: &'a mut usize,
    /// That store has little room left.
    pub(crate) short_of_space: bool,
    /// How many more new homes may be searched for.
    pub(crate) searches: &'a mut Searches,
    pub(crate) out: &'a mut Outbox,
}

impl Context<'_> {
    /// Journals a fact: in effect at once in memory, durable before anything sent behind it.
    pub(crate) fn persist(&mut self, durable: &mut ReplicaDurable, record: Record) -> JournalSeq {
        durable.apply(&record);
        assert!(durable.replica.store == self.store, "a record for the journal of another store");
        let (store, seq) = (self.store, self.gate.number(record.may_wait()));
        self.out.push(Effect::Persist { store, seq, record });
        seq
    }

    /// Journals the adoption of a configuration and notes it for the control plane.
    pub(crate) fn persist_adoption(&mut self, durable: &mut ReplicaDurable, config: ChunkConfig) {
        let (chunk, replica) = (config.chunk, durable.replica);
        let (epoch, generation) = (config.epoch, config.generation);
        self.persist(durable, Record::Adopt { replica, config });
        self.gate.note_adopted(chunk, epoch, generation);
    }

    /// Whether the store of another node's replica has little room left.
    pub(crate) fn is_short_of_space(&self, replica: ReplicaId) -> bool {
        self.peers.is_short_of_space(replica)
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
        let store = self.store;
        self.tickets.open.insert(ticket, (store, chunk, range, purpose));
        self.out.push(Effect::Read { store, ticket, chunk, range });
    }

    /// Answers a client.
    pub(crate) fn reply(&mut self, to: crate::outbox::ConnectionId, message: DataMessage) {
        self.out.push(Effect::Send { to: Link::Client(to), message });
    }
}
