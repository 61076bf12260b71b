//! The storage engine of a node: one store is one folder of one disk.
//!
//! ```text
//!  append -> queue + overlay (at once readable) -> journal thread: one write, one sync -> Durable
//!                     |                                   |  when a third of the ring is full
//!                     v                                   v
//!  read  <- overlay, else data file <---- apply thread: data, sync, map, sync, superblock
//! ```
//! What it promises: a record reported [`StoreEvent::Durable`] survives any crash; a read sees every
//! record appended before it and is checked against its checksums; damage is an error, never other
//! content; a failed write or sync is reported once and ends the store ([`StoreEvent::Failed`]).
//! What it does not decide: whether a record is right, or what is committed (`ashlar_node_core`).
//!
//! Four threads of its own (journal, apply, read, grow), nothing per request; completions come in
//! batches through one callback, which must not block. Files and bytes: `docs/disk.md`.

mod apply;
mod commit;
mod doubt;
pub mod format;
mod growth;
mod journal;
mod map;
mod merge;
mod open;
mod overlay;
mod place;
mod reader;
mod rot;
mod shared;
mod threads;
mod verify;

use std::fmt;
use std::sync::Arc;

use ashlar_env::disk::{DiskError, EngineChoice};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{BlockData, BlockRange, ChunkId, NodeId, StartNumber, StoreId, ZoneId};

pub use threads::Store;

/// Sizes and choices of a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of the journal; fixed when the store is made. Replay reads all of it, at about
    /// 1 GiB/s; a multiple of 64 KiB from 16 MiB to 1 GiB.
    pub journal_bytes: u64,
    /// Most bytes of data; the file grows towards it in steps.
    pub capacity_bytes: u64,
    /// How the data file is read and written.
    pub engine: EngineChoice,
    /// The start number will be above this one, and above what the store has seen itself.
    pub start_above: StartNumber,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            journal_bytes: 32 << 20,
            capacity_bytes: 16 << 30,
            engine: EngineChoice::Auto,
            start_above: StartNumber(0),
        }
    }
}

/// Whose store it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The zone.
    pub zone: ZoneId,
    /// The node.
    pub node: NodeId,
}

/// What an open store starts with.
#[derive(Debug)]
pub struct Opened {
    /// The handle.
    pub store: Store,
    /// What the journal's records come to.
    pub state: DurableState,
    /// Random id of the store.
    pub id: StoreId,
    /// Number of this start; durable.
    pub start: StartNumber,
    /// True when the folder was empty and the store was made now.
    pub new: bool,
}

/// Why a store cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The disk refuses.
    #[error("{0}")]
    Disk(#[from] DiskError),
    /// The store belongs to another node.
    #[error("the store belongs to {found_node} of zone {found_zone}, not to {node} of zone {zone}")]
    Foreign {
        /// Zone in the superblock.
        found_zone: ZoneId,
        /// Node in the superblock.
        found_node: NodeId,
        /// Zone of this process.
        zone: ZoneId,
        /// Node of this process.
        node: NodeId,
    },
    /// Made by a newer release.
    #[error("the store has format version {version}; this release reads up to {supported}")]
    NewerVersion {
        /// Version found.
        version: u32,
        /// Newest version read here.
        supported: u32,
    },
    /// Damage that leaves no names: what this store held cannot be said, so nothing can be marked.
    /// Opening sets such a store aside and begins another; this is what it says of it.
    #[error("the store's {what} is damaged at {at}: {why}")]
    Damaged {
        /// superblock, journal, map or data.
        what: &'static str,
        /// Position in it.
        at: u64,
        /// What was found.
        why: &'static str,
    },
    /// Sizes that make no store.
    #[error("{what} of {bytes} bytes is not possible")]
    BadSize {
        /// Which option.
        what: &'static str,
        /// Its value.
        bytes: u64,
    },
    /// A thread could not be started.
    #[error("cannot start a thread of the store: {0}")]
    Thread(String),
}

/// The store cannot take the records: nothing of them was taken. Erasing and zeroing still work in a
/// full one; freed space counts after the next checkpoint, which has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSpace {
    /// There is no room.
    #[error("the store is full: {needed} slots of 1 MiB more are needed, {room} are left")]
    Full {
        /// Slots that the records would need.
        needed: u32,
        /// Slots left.
        room: u32,
    },
    /// There will be in a moment: its file is being made longer. [`StoreEvent::Space`] follows.
    #[error("the store's file is being made longer")]
    Growing,
}

/// Why the store ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFailure {
    /// A write or sync failed; it is not retried, as nothing is known after it.
    #[error("the store's disk failed: {0}")]
    Disk(#[from] DiskError),
    /// The state of the replicas does not fit the journal.
    #[error("a checkpoint of {bytes} bytes does not fit the journal; it must be larger")]
    JournalTooSmall {
        /// Bytes of the checkpoint.
        bytes: u64,
    },
    /// The map and the reservations disagree: a defect.
    #[error("no slot is left for content that was promised one")]
    SlotsExhausted,
}

/// Room in slots of 1 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All that may ever be used.
    pub total_slots: u32,
    /// In use or promised to content in memory.
    pub used_slots: u32,
}

/// A read of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Comes back with the answer.
    pub ticket: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// The blocks.
    pub range: BlockRange,
}

/// The answer to a read.
#[derive(Clone, Debug)]
pub struct ReadDone {
    /// Of the request.
    pub ticket: u64,
    /// The content with its checksums; holes have no bytes.
    pub result: Result<BlockData, ReadError>,
}

/// Why blocks cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Blocks at rest fail their checksum: repair from a peer.
    #[error("{chunk}, {range}: damaged at rest")]
    Damaged {
        /// The chunk.
        chunk: ChunkId,
        /// The first damaged block and how many were read with it.
        range: BlockRange,
    },
    /// The disk refuses.
    #[error("{chunk}, {range}: the disk failed: {cause}")]
    Disk {
        /// The chunk.
        chunk: ChunkId,
        /// The blocks of the failed read.
        range: BlockRange,
        /// What it says.
        cause: DiskError,
    },
}

/// What the store reports, from its own threads.
#[derive(Debug)]
pub enum StoreEvent {
    /// All records up to this one are on stable media.
    Durable(JournalSeq),
    /// Reads that needed the disk.
    Read(Vec<ReadDone>),
    /// Space was freed or taken for good.
    Space(Space),
    /// The store ended; reported once. Records not reported durable may or may not survive.
    Failed(StoreFailure),
}

/// Takes events; called from the store's threads, must not block for long.
pub type Events = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// A record with its number, as the core hands it out.
pub type Numbered = (JournalSeq, Record);

/// Hides the callback from `Debug`.
#[derive(Clone)]
pub(crate) struct Reporter(pub(crate) Events);

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Reporter {
    pub(crate) fn report(&self, event: StoreEvent) {
        (self.0)(event);
    }
}

#[cfg(test)]
mod tests;
