//! Which replicas this node holds: by what they come and go.

use super::DataCore;
use crate::context::Context;
use crate::durable::{ReplicaDurable, note_erased};
use crate::outbox::{Alarm, Effect, Outbox};
use crate::replica::Replica;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{ControlUp, ReplicaReport, ReplicaState};
use ashlar_types::{ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, ReplicaId, StoreId, Time};

impl DataCore {
    pub(super) fn watch_members(&mut self, now: Time, config: &ChunkConfig) {
        for replica in config.replicas().filter(|replica| replica.node != self.me.node) {
            self.peers.watch(now, replica.node);
        }
    }

    /// The replica that a configuration gives a store of this node, in sync or learning.
    pub(super) fn named_here(&self, config: &ChunkConfig) -> Option<ReplicaId> {
        config
            .in_sync
            .iter()
            .chain(&config.learners)
            .copied()
            .find(|replica| self.is_ours(*replica))
    }

    /// Whether a replica is of a store of this node that works.
    pub(super) fn is_ours(&self, replica: ReplicaId) -> bool {
        replica.node == self.me.node && self.stores.has(replica.store)
    }

    /// Begins to hold a chunk, empty, if a configuration says so. A store that is intact and has
    /// no such replica has never held this incarnation, so empty is what it must be; one that has
    /// lost records cannot know, and does not take part under that name. A learner is empty in any
    /// case.
    pub(super) fn create_if_named(&mut self, now: Time, config: &ChunkConfig, out: &mut Outbox) {
        self.watch_members(now, config);
        let Some(named) = self.named_here(config) else { return };
        let chunk = config.chunk;
        if self.is_erased(chunk, named) {
            return;
        }
        let refused = match self.replicas.get(&chunk) {
            Some(held) if held.durable.replica == named => return,
            Some(held) if held.outlives(named, config) => return,
            Some(held) => !held.gives_way_to(named, config) || config.check().is_err(),
            None => config.check().is_err(),
        };
        if refused {
            out.push(Effect::Alarm(Alarm::ConfigRefused { chunk }));
            return;
        }
        let has_gaps = self.stores.get(named.store).is_some_and(|part| part.has_gaps);
        let may_be_lost = has_gaps && !config.is_learner(named);
        self.with_replica(now, chunk, out, |former, context| former.adopt(config, context));
        self.leave_other_store(chunk, named, out);
        let (_, mut desk) = self.split(now, out);
        let Some(mut context) = desk.at(named.store) else { return };
        let durable = ReplicaDurable::new(named, config.clone());
        let replica = if may_be_lost {
            Replica::created_suspect(durable, &mut context)
        } else {
            Replica::created(durable, &mut context)
        };
        self.replicas.insert(chunk, replica);
        self.dirty.insert(chunk);
    }

    /// Whether a replica was erased, or one that came after it. By its name and not by the epoch of
    /// whoever asks: a primary that sleeps may know a configuration that names it and that it never
    /// heard of, and would find it empty and willing.
    fn is_erased(&self, chunk: ChunkId, named: ReplicaId) -> bool {
        self.erased.get(&chunk).is_some_and(|upto| named.incarnation.0 <= upto.0)
    }

    /// The replica that is held gives way to one on another store: what is left of it is erased.
    pub(super) fn leave_other_store(&mut self, chunk: ChunkId, named: ReplicaId, out: &mut Outbox) {
        let Some(former) = self.replicas.get(&chunk).map(Replica::store) else { return };
        if former != named.store
            && let Some(part) = self.stores.get_mut(former)
        {
            part.erase(chunk, out);
        }
    }

    /// Erases a replica on order of the control plane, by its full name only. The order is repeated
    /// until it is confirmed, so one about a replica that is not held is confirmed again.
    pub(super) fn erase(
        &mut self,
        now: Time,
        chunk: ChunkId,
        replica: ReplicaId,
        out: &mut Outbox,
    ) {
        if !self.is_ours(replica) {
            return;
        }
        let named = |held: &Replica| held.durable.replica == replica;
        // Another incarnation is not what is meant: the one that is meant is not held any more, or not
        // yet. A configuration of before that names it may still be on its way.
        if self.replicas.get(&chunk).is_some_and(named) {
            self.end_replica(now, chunk, out, Replica::leave);
            if let Some(part) = self.stores.get_mut(replica.store) {
                part.erase(chunk, out);
            }
        } else if !self.is_erased(chunk, replica) {
            let upto = Epoch(replica.incarnation.0);
            note_erased(&mut self.erased, chunk, upto);
            if let Some(part) = self.stores.get_mut(replica.store) {
                part.refuse(chunk, upto, out);
            }
        }
        let report = ReplicaReport {
            chunk,
            replica,
            adopted: Epoch(0),
            generation: Generation(0),
            state: ReplicaState::Gone,
        };
        let effect = Effect::Control(ControlUp::Replicas(alloc::vec![report]));
        let part = self.stores.get_mut(replica.store);
        if let Some(effect) = part.and_then(|part| part.gate.hold(effect)) {
            out.push(effect);
        }
    }

    /// A store has failed: its replicas end, at once and without another word that rests on it. Their
    /// primaries are told, as those who wait for them are; the control plane hears it by a
    /// registration without the store (the shell's), which gives them up wherever they are named.
    pub(super) fn on_store_failed(&mut self, now: Time, store: StoreId, out: &mut Outbox) {
        if !self.stores.has(store) {
            return;
        }
        let on_it =
            |(chunk, replica): (&ChunkId, &Replica)| (replica.store() == store).then_some(*chunk);
        let chunks: Vec<ChunkId> = self.replicas.iter().filter_map(on_it).collect();
        for chunk in &chunks {
            self.end_replica(now, *chunk, out, Replica::lost);
        }
        self.stores.remove(store);
        self.tickets.forget(store);
        out.push(Effect::Alarm(Alarm::StoreLost { store, replicas: chunks.len() }));
    }

    /// Holds a chunk no longer, nor what it used of the node's budgets; its epochs stay refused.
    fn end_replica(
        &mut self,
        now: Time,
        chunk: ChunkId,
        out: &mut Outbox,
        last_words: impl FnOnce(&mut Replica, &mut Context<'_>),
    ) {
        self.with_replica(now, chunk, out, last_words);
        let Some(ended) = self.replicas.remove(&chunk) else { return };
        note_erased(&mut self.erased, chunk, ended.durable.refused_once_erased());
        self.dirty.remove(&chunk);
        self.touched.remove(&chunk);
        let volume = chunk.volume;
        let first = ChunkId { volume, index: ChunkIndex(0) };
        if self.replicas.range(first..).next().is_none_or(|(next, _)| next.volume != volume) {
            self.sessions.remove(&volume);
            out.push(Effect::VolumeLeft(volume));
        }
    }
}
