//! The stores of this node, each one disk: a journal, room and a scrub of its own (design.md section 8).
//!
//! A replica lives on one store, and everything that is said about it rests on that store's journal
//! alone: a slow disk holds up its own replicas and no others. A store that fails is taken out, and
//! with it everything that was held behind its journal: none of that is ever said.

use crate::gate::Gate;
use crate::outbox::{Effect, Outbox};
use crate::record::Record;
use crate::scrub::Scrub;
use alloc::vec::Vec;
use ashlar_types::limit::is_short_of_space;
use ashlar_types::message::cluster::StoreState;
use ashlar_types::{ChunkId, Epoch, StoreId, Time};

/// One store.
#[derive(Debug)]
pub(crate) struct StorePart {
    pub(crate) id: StoreId,
    pub(crate) gate: Gate,
    pub(crate) scrub: Scrub,
    /// What it can hold and what is taken, in bytes.
    pub(crate) space: (u64, u64),
    /// It has lost records: a chunk that it does not know may be one of them.
    pub(crate) has_gaps: bool,
}

impl StorePart {
    /// Has the replica of a chunk erased.
    pub(crate) fn erase(&mut self, chunk: ChunkId, out: &mut Outbox) {
        let (store, seq) = (self.id, self.gate.number(false));
        out.push(Effect::Persist { store, seq, record: Record::Erase { chunk } });
    }

    /// Has it remembered that a replica of a chunk was to be erased that is not held.
    pub(crate) fn refuse(&mut self, chunk: ChunkId, upto: Epoch, out: &mut Outbox) {
        let (store, seq) = (self.id, self.gate.number(false));
        out.push(Effect::Persist { store, seq, record: Record::Refuse { chunk, upto } });
    }

    pub(crate) const fn is_short_of_space(&self) -> bool {
        is_short_of_space(self.space.0, self.space.1)
    }
}

/// The stores that work. A few, so they are looked through.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    parts: Vec<StorePart>,
}

impl Stores {
    pub(crate) fn add(&mut self, now: Time, id: StoreId, has_gaps: bool) {
        let (gate, scrub) = (Gate::default(), Scrub::new(now));
        self.parts.push(StorePart { id, gate, scrub, space: (0, 0), has_gaps });
    }

    /// Takes a store out: it has failed.
    pub(crate) fn remove(&mut self, id: StoreId) {
        self.parts.retain(|part| part.id != id);
    }

    pub(crate) fn has(&self, id: StoreId) -> bool {
        self.get(id).is_some()
    }

    pub(crate) fn get(&self, id: StoreId) -> Option<&StorePart> {
        self.parts.iter().find(|part| part.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: StoreId) -> Option<&mut StorePart> {
        self.parts.iter_mut().find(|part| part.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &StorePart> {
        self.parts.iter()
    }

    /// One of them, whichever: it tells this node from another under its number.
    pub(crate) fn first(&self) -> Option<StoreId> {
        self.parts.first().map(|part| part.id)
    }

    pub(crate) fn ids(&self) -> Vec<StoreId> {
        self.parts.iter().map(|part| part.id).collect()
    }

    /// Those that have little room left.
    pub(crate) fn short_of_space(&self) -> Vec<StoreId> {
        let short = self.parts.iter().filter(|part| part.is_short_of_space());
        short.map(|part| part.id).collect()
    }

    /// All of them as a heartbeat tells.
    pub(crate) fn states(&self) -> Vec<StoreState> {
        let state = |part: &StorePart| StoreState {
            store: part.id,
            capacity_bytes: part.space.0,
            used_bytes: part.space.1,
            scrub: part.scrub.state(),
        };
        self.parts.iter().map(state).collect()
    }
}
