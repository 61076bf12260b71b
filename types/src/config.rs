//! The configuration of a chunk: who holds it, who may write, under which epoch.
//!
//! Committed in the zone's Raft; every change is a compare-and-set on the epoch and gives
//! epoch + 1 (design.md section 3). A node never decides any of it: it proposes and adopts.

use crate::epoch::{Epoch, Generation};
use crate::id::{ChunkId, ReplicaId};
use crate::limit::REPLICAS_PER_CHUNK_MAX;
use alloc::vec::Vec;
use thiserror::Error;

/// What is remembered of a replica that left the in-sync set; its data is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaleInfo {
    /// The last epoch in which it was in sync.
    pub last_in_sync: Epoch,
    /// Its store reported damage, so its old content is not a base for a delta.
    pub suspect: bool,
}

/// Who holds a chunk and who may write it, under one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkConfig {
    /// The chunk.
    pub chunk: ChunkId,
    /// Blocks of the chunk: all chunks of a volume have the same power of two.
    pub blocks: u32,
    /// Number of this configuration.
    pub epoch: Epoch,
    /// Epoch in which `primary` was elected: first half of its term.
    pub elected: Epoch,
    /// Attachment that may write.
    pub generation: Generation,
    /// The single replica that may acknowledge writes; always a member of `in_sync`.
    pub primary: ReplicaId,
    /// Replicas that have every acknowledged write; in order of joining.
    pub in_sync: Vec<ReplicaId>,
    /// Replicas being filled.
    pub learners: Vec<ReplicaId>,
    /// Replicas that left the in-sync set and may come back.
    pub stale: Vec<(ReplicaId, StaleInfo)>,
    /// In-sync replicas that re-mirroring aims for.
    pub copies_wanted: u8,
    /// In-sync replicas below which writes wait.
    pub copies_min: u8,
}

/// Why a configuration contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The primary is not in sync (invariant 4).
    #[error("the primary is not a member of the in-sync set")]
    PrimaryNotInSync,
    /// A node appears twice.
    #[error("a node holds two replicas of one chunk")]
    NodeTwice,
    /// Too many replicas.
    #[error("more than {REPLICAS_PER_CHUNK_MAX} replicas of one chunk")]
    TooMany,
    /// An epoch of zero, or an election later than the epoch.
    #[error("epoch is zero or below the epoch of election")]
    Epoch,
    /// No copies wanted, or more needed than wanted.
    #[error("copies_min must be at least 1 and at most copies_wanted")]
    Copies,
    /// A chunk without blocks or with a size that is no power of two.
    #[error("the chunk size is not a power of two of blocks")]
    Size,
}

impl ChunkConfig {
    /// All replicas of every kind, in-sync first.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.in_sync
            .iter()
            .chain(&self.learners)
            .copied()
            .chain(self.stale.iter().map(|(replica, _)| *replica))
    }

    /// In-sync replicas but the primary.
    pub fn secondaries(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let primary = self.primary;
        self.in_sync.iter().copied().filter(move |r| *r != primary)
    }

    /// Whether the replica has every acknowledged write.
    #[must_use]
    pub fn is_in_sync(&self, replica: ReplicaId) -> bool {
        self.in_sync.contains(&replica)
    }

    /// Whether the replica is being filled.
    #[must_use]
    pub fn is_learner(&self, replica: ReplicaId) -> bool {
        self.learners.contains(&replica)
    }

    /// Whether the replica is remembered as stale.
    #[must_use]
    pub fn is_stale(&self, replica: ReplicaId) -> bool {
        self.stale.iter().any(|(r, _)| *r == replica)
    }

    /// Whether as many replicas are in sync as are wanted.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.in_sync.len() >= usize::from(self.copies_wanted)
    }

    /// Whether enough replicas are in sync to acknowledge writes.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        self.in_sync.len() >= usize::from(self.copies_min)
    }

    /// Checks every rule that a configuration alone can break.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.epoch == Epoch(0) || self.elected > self.epoch || self.elected == Epoch(0) {
            return Err(ConfigError::Epoch);
        }
        if !self.blocks.is_power_of_two() {
            return Err(ConfigError::Size);
        }
        if self.copies_min == 0 || self.copies_min > self.copies_wanted {
            return Err(ConfigError::Copies);
        }
        if !self.is_in_sync(self.primary) {
            return Err(ConfigError::PrimaryNotInSync);
        }
        let mut nodes: Vec<_> = self.replicas().map(|r| r.node).collect();
        if nodes.len() > REPLICAS_PER_CHUNK_MAX {
            return Err(ConfigError::TooMany);
        }
        nodes.sort_unstable();
        if nodes.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(ConfigError::NodeTwice);
        }
        Ok(())
    }
}
