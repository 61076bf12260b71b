//! What a start finds on the stores, brought together: of each chunk one replica at most.
//!
//! Two stores may both know a replica of one chunk: one was given up while its store was away, or the
//! process died between the record that made the later one and the erasure of the earlier. The later
//! configuration decides: it names one replica of a node at most, so the other was given up by a
//! committed change, and its name never comes back (docs/decisions/0006).

use crate::durable::{DurableState, ReplicaDurable, note_erased};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::{ChunkId, Epoch, StoreId};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) replicas: BTreeMap<ChunkId, ReplicaDurable>,
    /// Up to which epoch incarnations of chunks are refused, because they were erased.
    pub(crate) erased: BTreeMap<ChunkId, Epoch>,
    /// Replicas that gave way, with their stores: to be erased there.
    pub(crate) left_over: Vec<(ChunkId, StoreId)>,
}

impl Found {
    /// Takes in what one store knows.
    pub(crate) fn take(&mut self, store: StoreId, state: DurableState) {
        for (chunk, epoch) in state.erased() {
            note_erased(&mut self.erased, chunk, epoch);
        }
        for (chunk, found) in state.into_replicas() {
            // Nothing but a defect puts another store's replica there: it is left as it is.
            if found.replica.store != store {
                continue;
            }
            let given_up = match self.replicas.remove(&chunk) {
                None => None,
                Some(known) if stays(&known, &found) => {
                    let given_up = (found.replica.store, found.refused_once_erased());
                    self.replicas.insert(chunk, known);
                    self.give_up(chunk, given_up);
                    continue;
                }
                Some(known) => Some((known.replica.store, known.refused_once_erased())),
            };
            self.replicas.insert(chunk, found);
            given_up.into_iter().for_each(|given_up| self.give_up(chunk, given_up));
        }
    }

    fn give_up(&mut self, chunk: ChunkId, (store, epoch): (StoreId, Epoch)) {
        self.left_over.push((chunk, store));
        note_erased(&mut self.erased, chunk, epoch);
    }
}

/// Whether `one` is the replica to be held, and `other` gave way to it: whichever of them the later
/// configuration names; if that names neither, the one that knows it.
fn stays(one: &ReplicaDurable, other: &ReplicaDurable) -> bool {
    let latest = if one.config.epoch >= other.config.epoch { one } else { other };
    let names = |replica: &ReplicaDurable| latest.config.replicas().any(|r| r == replica.replica);
    match (names(one), names(other)) {
        (true, false) => true,
        (false, true) => false,
        _neither => one.config.epoch >= other.config.epoch,
    }
}
