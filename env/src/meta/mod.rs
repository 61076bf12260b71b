//! The metadata store seam: an ordered map of small keys and values with atomic batches.
//!
//! Used for applied state that can be rebuilt from something else (a Raft log and snapshot, a node's
//! journal). It is never the only copy of anything. Two rules for every implementation:
//! a batch is seen whole or not at all, and it carries the **applied index** of the state it leads
//! to, so that state and index cannot part.

mod mem;
mod sled_store;

use std::fmt;
use std::path::PathBuf;

pub use mem::MemStore;
pub use sled_store::{SledOptions, SledStore, SledTuning};

/// Longest key in bytes. Keys are paths like `chunk/<id>`; nothing comes near.
pub const KEY_MAX: usize = 512;

/// Longest value in bytes. Larger ones would leave sled's log for files of their own, which its
/// flush does not cover; whoever needs more splits the value over several keys.
pub const VALUE_MAX: usize = 64 * 1024;

/// Why a metadata call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The engine failed; the store is to be given up and rebuilt. Not worth a retry.
    #[error("the metadata store cannot {what}: {cause}")]
    Engine {
        /// Verb: read, commit, flush, open.
        what: &'static str,
        /// What the engine says.
        cause: String,
    },
    /// A value fails its checksum: rebuild.
    #[error("the value of metadata key {key} is damaged")]
    Damaged {
        /// The key, printable.
        key: String,
    },
    /// A value was written by a newer release.
    #[error(
        "the value of metadata key {key} has version {version}; this release reads up to {supported}"
    )]
    NewerVersion {
        /// The key, printable.
        key: String,
        /// Version found.
        version: u8,
        /// Newest version read here.
        supported: u8,
    },
    /// A key or value beyond [`KEY_MAX`] or [`VALUE_MAX`], or a key of the store's own.
    #[error("metadata key {key} with a value of {len} bytes is refused: {why}")]
    Refused {
        /// The key, printable.
        key: String,
        /// Length of the value.
        len: usize,
        /// Which rule.
        why: &'static str,
    },
    /// The store has reached its size limit; removals still work.
    #[error("the metadata store holds {size} of at most {limit} bytes")]
    Full {
        /// Bytes on disk.
        size: u64,
        /// Configured limit.
        limit: u64,
    },
    /// The applied index of a batch is below the store's.
    #[error("a batch up to index {offered} comes after index {applied}")]
    IndexBack {
        /// Index of the batch.
        offered: u64,
        /// Index of the store.
        applied: u64,
    },
}

/// How the store was found at open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Content of an earlier run.
    Existing,
    /// Nothing: a new, empty store.
    New,
    /// Damage: the old folder was moved aside and an empty store opened. The caller rebuilds.
    Rebuilt {
        /// Where the damaged folder is now.
        moved_to: PathBuf,
        /// What was wrong.
        cause: String,
    },
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOp {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key; removing a missing one is fine.
    Remove(Vec<u8>),
    /// Removes every key that starts with the prefix.
    RemovePrefix(Vec<u8>),
}

/// Changes that become visible together, with the applied index they lead to. Later changes of one
/// key win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaBatch {
    /// Changes in order.
    pub ops: Vec<MetaOp>,
    /// Index of the last command whose effect is in here; never below that of the store.
    pub applied: u64,
}

impl MetaBatch {
    /// An empty batch that leads to `applied`.
    #[must_use]
    pub fn new(applied: u64) -> Self {
        Self { ops: Vec::new(), applied }
    }

    /// Adds a put.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(MetaOp::Put(key.into(), value.into()));
        self
    }

    /// Adds a removal.
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(MetaOp::Remove(key.into()));
        self
    }

    /// Adds the removal of all keys under a prefix.
    pub fn remove_prefix(&mut self, prefix: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(MetaOp::RemovePrefix(prefix.into()));
        self
    }
}

/// A key with its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered map; all calls block and belong on a thread that may.
pub trait MetaStore: Send + Sync + fmt::Debug {
    /// The value of `key`.
    ///
    /// # Errors
    /// `Damaged`, `NewerVersion`, `Engine`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError>;

    /// All keys that start with `prefix`, in order, with their values.
    ///
    /// # Errors
    /// `Damaged`, `NewerVersion`, `Engine`.
    fn scan_prefix(&self, prefix: &[u8]) -> Result<Vec<Pair>, MetaError>;

    /// Makes the batch visible at once, atomically, and sets the applied index. Durable after
    /// [`MetaStore::flush`].
    ///
    /// # Errors
    /// `Refused`, `Full`, `IndexBack`, `Engine`; then nothing of it is visible.
    fn commit(&self, batch: MetaBatch) -> Result<(), MetaError>;

    /// The applied index of the last batch; 0 for an empty store.
    ///
    /// # Errors
    /// `Damaged`, `Engine`.
    fn applied_index(&self) -> Result<u64, MetaError>;

    /// Makes every committed batch durable.
    ///
    /// # Errors
    /// `Engine`; then give the store up.
    fn flush(&self) -> Result<(), MetaError>;
}

/// A key as text for errors.
pub(crate) fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// The rules that every implementation applies before it takes a batch.
pub(crate) fn check_batch(batch: &MetaBatch, applied: u64) -> Result<(), MetaError> {
    if batch.applied < applied {
        return Err(MetaError::IndexBack { offered: batch.applied, applied });
    }
    for op in &batch.ops {
        let (key, len) = match op {
            MetaOp::Put(key, value) => (key, value.len()),
            MetaOp::Remove(key) => (key, 0),
            MetaOp::RemovePrefix(_) => continue,
        };
        let why = if key.is_empty() {
            "the empty key is not allowed"
        } else if key.len() > KEY_MAX {
            "the key is too long"
        } else if len > VALUE_MAX {
            "the value is too long"
        } else {
            continue;
        };
        return Err(MetaError::Refused { key: shown(key), len, why });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
