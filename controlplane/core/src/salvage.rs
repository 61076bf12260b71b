//! Salvage: a stale replica takes over, on an operator's word, because nobody in sync is left
//! (design.md section 3, decisions/0011).
//!
//! The only way in which a replica that was not in sync becomes primary. What was acknowledged after
//! it left the in-sync set is lost by it, so:
//! - every replica that was in sync is out of the way first: its store is revoked (the operator states
//!   that the node is fenced), gone (its node came without it), or it says itself that it is no use;
//! - a store that is gone is revoked with it: it may be found again, with a primary that knows nothing
//!   of what happened and needs nobody's consent;
//! - a revoked store is never admitted again, whoever brings it, and so never serves;
//! - the replica that takes over is stale and not suspect: what it holds is what the chunk was;
//! - the generation goes up in the whole volume: nobody goes on writing who may have read what is
//!   lost; who uses the volume attaches it anew, and starts from what is left;
//! - what is at risk stays on record until an operator acknowledges it;
//! - one command salvages all chunks that it names, or none.

use crate::apply::{Answer, Refusal};
use crate::change;
use crate::command::{Action, ChunkSalvage, NodeRecord, Place};
use crate::state::{Chunk, Key, ZoneState};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, NodeId, ReplicaId, StaleInfo, StoreId,
    VolumeId, wire_struct,
};
use thiserror::Error;

/// Why a chunk cannot be salvaged as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SalvageRefusal {
    /// It does not belong to the volume, or is named twice.
    #[error("it is not one of the volume's chunks, each named once")]
    UnknownChunk,
    /// The compare-and-set failed.
    #[error("epoch {current} is current; look again")]
    OtherEpoch {
        /// The current epoch.
        current: Epoch,
    },
    /// A replica in sync may still serve.
    #[error(
        "the replica on {node}, store {store}, is in sync and may still serve: bring it back, or make \
         sure that it never runs again and state that it is fenced"
    )]
    NotFenced {
        /// Its node.
        node: NodeId,
        /// Its store.
        store: StoreId,
    },
    /// The replica that should take over is not stale.
    #[error("the replica on {node} is not one of its stale replicas")]
    NotStale {
        /// Its node.
        node: NodeId,
    },
    /// It has lost part of what it held, or is a mixture.
    #[error("the replica on {node} is suspect: its store has lost part of it; name another one")]
    Suspect {
        /// Its node.
        node: NodeId,
    },
    /// Its store is revoked, or not there any more.
    #[error("the store of the replica on {node} is gone or revoked; name another one")]
    Gone {
        /// Its node.
        node: NodeId,
    },
}

/// What the salvage of a chunk may have lost: all of it may miss what was acknowledged from one epoch
/// on, as nobody who is left knows which blocks were written since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtRisk {
    /// The epoch that the salvage made.
    pub epoch: Epoch,
    /// The replica that took over.
    pub primary: ReplicaId,
    /// The last epoch in which it had every acknowledged write. Of several salvages, the first of all.
    pub complete_to: Epoch,
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// Who asked for it.
    pub by: String,
}

wire_struct! {
    AtRisk { epoch, primary, complete_to, at_millis, by }
}

/// A stale replica that could take over, or could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The replica.
    pub replica: ReplicaId,
    /// The last epoch in which it had every acknowledged write.
    pub complete_to: Epoch,
    /// Why it cannot; none: it can.
    pub unfit: Option<SalvageRefusal>,
}

impl ZoneState {
    /// Whether an operator has stated that a store is fenced.
    #[must_use]
    pub fn is_revoked(&self, node: NodeId, store: StoreId) -> bool {
        self.revoked.contains(&Place { node, store })
    }

    /// What salvages of a volume may have lost, and nobody has acknowledged.
    pub fn at_risk(&self, volume: VolumeId) -> impl Iterator<Item = (ChunkId, &AtRisk)> {
        let at = |index| ChunkId { volume, index: ChunkIndex(index) };
        self.salvaged.range(at(0)..=at(u32::MAX)).map(|(chunk, risk)| (*chunk, risk))
    }

    /// The stale replicas of a chunk, the one that lost least first.
    #[must_use]
    pub fn salvage_candidates(&self, config: &ChunkConfig) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = config
            .stale
            .iter()
            .map(|(replica, info)| Candidate {
                replica: *replica,
                complete_to: info.last_in_sync,
                unfit: self.complete_to(config, *replica, &BTreeSet::new()).err(),
            })
            .collect();
        all.sort_by_key(|one| (one.unfit.is_some(), core::cmp::Reverse(one.complete_to)));
        all
    }

    /// A store that is revoked may not come back, whatever node brings it.
    ///
    /// # Errors
    /// The first of the node's stores that is.
    pub fn check_revoked(&self, node: &NodeRecord) -> Result<(), Refusal> {
        let revoked = self.revoked.iter().find(|place| node.stores.contains(&place.store));
        revoked.map_or(Ok(()), |place| {
            Err(Refusal::StoreRevoked { node: place.node, store: place.store })
        })
    }

    pub(crate) fn salvage(
        &mut self,
        action: &Action,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let Action::Salvage { volume: id, chunks, fenced, by, .. } = action else {
            return Ok(Answer::Done {});
        };
        let volume = self.volumes.get(id).ok_or(Refusal::VolumeNotFound(*id))?;
        let generation = volume.generation.next();
        if chunks.is_empty() {
            return Err(Refusal::NothingToSalvage);
        }
        let fenced: BTreeSet<Place> = fenced.iter().copied().collect();
        let mut named = BTreeSet::new();
        let mut salvaged = Vec::with_capacity(chunks.len());
        for one in chunks {
            let refused = |cause| Refusal::Salvage { chunk: one.chunk, cause };
            let is_first = one.chunk.volume == *id && named.insert(one.chunk);
            let known = self.chunks.get(&one.chunk).filter(|_| is_first);
            let chunk = known.ok_or_else(|| refused(SalvageRefusal::UnknownChunk))?;
            salvaged.push(self.salvage_chunk(chunk, one, &fenced, generation).map_err(refused)?);
        }
        // Nothing is refused from here on.
        let answer = self.raise_generation(*id, None, changed)?;
        let out_of_the_way = salvaged.iter().flat_map(|one| one.out_of_the_way.iter().copied());
        for place in fenced.into_iter().chain(out_of_the_way) {
            changed.insert(Key::Revoked(place));
            self.revoked.insert(place);
        }
        self.forget_erasures_of_revoked_stores(changed);
        for one in salvaged {
            self.put_salvaged(one, by, changed);
        }
        Ok(answer)
    }

    /// The last epoch in which a replica that is to take over had everything.
    fn complete_to(
        &self,
        config: &ChunkConfig,
        replica: ReplicaId,
        fenced: &BTreeSet<Place>,
    ) -> Result<Epoch, SalvageRefusal> {
        let node = replica.node;
        let known = config.stale.iter().find(|(stale, _)| *stale == replica);
        let (_, info) = known.ok_or(SalvageRefusal::NotStale { node })?;
        if info.suspect {
            return Err(SalvageRefusal::Suspect { node });
        }
        if self.is_out_of_the_way(replica, fenced) {
            return Err(SalvageRefusal::Gone { node });
        }
        Ok(info.last_in_sync)
    }

    /// Whether a replica can never serve again: its store is revoked, is about to be, or is gone.
    fn is_out_of_the_way(&self, replica: ReplicaId, fenced: &BTreeSet<Place>) -> bool {
        fenced.contains(&Place::of(replica)) || self.is_store_gone(replica)
    }

    fn salvage_chunk(
        &self,
        chunk: &Chunk,
        wanted: &ChunkSalvage,
        fenced: &BTreeSet<Place>,
        generation: Generation,
    ) -> Result<Salvaged, SalvageRefusal> {
        let old = &chunk.config;
        if wanted.epoch != old.epoch {
            return Err(SalvageRefusal::OtherEpoch { current: old.epoch });
        }
        let complete_to = self.complete_to(old, wanted.primary, fenced)?;
        let may_serve = |replica: &&ReplicaId| {
            !self.is_out_of_the_way(**replica, fenced) && !wanted.confirmed.contains(replica)
        };
        if let Some(replica) = old.in_sync.iter().find(may_serve) {
            let (node, store) = (replica.node, replica.store);
            return Err(SalvageRefusal::NotFenced { node, store });
        }
        let is_left = |replica: &ReplicaId| !self.is_out_of_the_way(*replica, fenced);
        // Learners were filled from what is no more. Whoever was in sync keeps its data, as any stale
        // replica; it comes back under another name, from nothing.
        let forgotten = old.learners.clone();
        let mut config = change::with_generation(chunk, generation).config;
        // A stale replica whose store is away stays: it may come back with more than this one has.
        let never =
            |r: &ReplicaId| fenced.contains(&Place::of(*r)) || self.is_revoked(r.node, r.store);
        config.stale.retain(|(replica, _)| *replica != wanted.primary && !never(replica));
        let info = StaleInfo { last_in_sync: old.epoch, suspect: true };
        config.stale.extend(old.in_sync.iter().filter(|r| is_left(r)).map(|r| (*r, info)));
        config.in_sync = [wanted.primary].into();
        config.learners.clear();
        config.primary = wanted.primary;
        config.elected = config.epoch;
        assert!(config.check().is_ok(), "{}: salvaged into a contradiction", config.chunk);
        let left = old.in_sync.iter().filter(|replica| !is_left(replica));
        let out_of_the_way = left.map(|replica| Place::of(*replica)).collect();
        let chunk = Chunk { config, readopting: Vec::new() };
        Ok(Salvaged { chunk, forgotten, out_of_the_way, complete_to })
    }

    fn put_salvaged(&mut self, salvaged: Salvaged, by: &str, changed: &mut BTreeSet<Key>) {
        let Salvaged { chunk, forgotten, complete_to, .. } = salvaged;
        let (id, epoch, primary) = (chunk.config.chunk, chunk.config.epoch, chunk.config.primary);
        for replica in forgotten {
            self.erase(id, replica, changed);
        }
        let before = self.salvaged.get(&id).map_or(complete_to, |risk| risk.complete_to);
        let complete_to = before.min(complete_to);
        let (at_millis, by) = (self.clock_millis, by.into());
        self.salvaged.insert(id, AtRisk { epoch, primary, complete_to, at_millis, by });
        changed.insert(Key::Salvaged(id));
        self.put_chunk(chunk);
        changed.insert(Key::Chunk(id));
    }

    pub(crate) fn acknowledge_salvage(
        &mut self,
        id: VolumeId,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?.clone();
        self.forget_salvages(id, changed);
        Ok(Answer::Volume { volume })
    }

    /// Nobody needs to know any more what salvages of a volume may have lost.
    pub(crate) fn forget_salvages(&mut self, volume: VolumeId, changed: &mut BTreeSet<Key>) {
        let chunks: Vec<ChunkId> = self.at_risk(volume).map(|(chunk, _)| chunk).collect();
        for chunk in chunks {
            self.salvaged.remove(&chunk);
            changed.insert(Key::Salvaged(chunk));
        }
    }
}

/// A chunk after its salvage.
struct Salvaged {
    chunk: Chunk,
    /// Replicas that are no longer named and must be erased by their holders.
    forgotten: Vec<ReplicaId>,
    /// Where replicas were in sync and never will be again.
    out_of_the_way: Vec<Place>,
    complete_to: Epoch,
}
