//! The metadata store in memory: for tests and simulation.
//!
//! With [`MemStore::crash`] it goes back to what was flushed, as the real one does at worst.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::{MetaBatch, MetaError, MetaOp, MetaStore, Pair, check_batch};

/// See the module.
#[derive(Debug, Default)]
pub struct MemStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: Content,
    flushed: Content,
}

#[derive(Clone, Debug, Default)]
struct Content {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: u64,
}

impl MemStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets every batch since the last flush.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.now = state.flushed.clone();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data, changed only by whole batches after all checks.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl MetaStore for MemStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        Ok(self.lock().now.map.get(key).cloned())
    }

    fn scan_prefix(&self, prefix: &[u8]) -> Result<Vec<Pair>, MetaError> {
        let state = self.lock();
        let from = state.now.map.range(prefix.to_vec()..);
        Ok(from
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }

    fn commit(&self, batch: MetaBatch) -> Result<(), MetaError> {
        let mut state = self.lock();
        check_batch(&batch, state.now.applied)?;
        for op in batch.ops {
            match op {
                MetaOp::Put(key, value) => {
                    state.now.map.insert(key, value);
                }
                MetaOp::Remove(key) => {
                    state.now.map.remove(&key);
                }
                MetaOp::RemovePrefix(prefix) => {
                    state.now.map.retain(|k, _| !k.starts_with(&prefix));
                }
            }
        }
        state.now.applied = batch.applied;
        Ok(())
    }

    fn applied_index(&self) -> Result<u64, MetaError> {
        Ok(self.lock().now.applied)
    }

    fn flush(&self) -> Result<(), MetaError> {
        let mut state = self.lock();
        state.flushed = state.now.clone();
        Ok(())
    }
}
