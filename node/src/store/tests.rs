//! Tests of the whole store: a rig that drives it step by step over the in-memory disk.

mod crash;
mod damage;
mod faults;
mod large;
mod points;
mod running;
mod stored;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ashlar_env::dice::SeededDice;
use ashlar_env::disk::mem::MemDisk;
use ashlar_types::{
    BLOCK_SIZE, ChunkConfig, ChunkIndex, Epoch, Generation, Incarnation, ReplicaId, Sums, VolumeId,
};
use bytes::Bytes;

use super::commit::Step;
use super::open::{self, Parts};
use super::shared::{Resolved, Shared};
use super::*;

/// Blocks of a chunk here: four slots.
const CHUNK_BLOCKS: u32 = 1024;

pub(super) const SMALL: StoreOptions = StoreOptions {
    journal_bytes: 256 << 10,
    capacity_bytes: 64 << 20,
    engine: EngineChoice::Threads,
    start_above: StartNumber(0),
};

pub(super) fn owner() -> Owner {
    Owner { zone: "a".parse().unwrap(), node: NodeId(1) }
}

pub(super) fn chunk(n: u32) -> ChunkId {
    let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
    ChunkId { volume, index: ChunkIndex(n) }
}

/// A content whose every block is filled with `mark`; each third block is a hole if `mixed`.
pub(super) fn content(first: u32, count: u32, mark: u8, mixed: bool) -> BlockData {
    let range = BlockRange::new(first, count);
    let sum = crc32c::crc32c(&[mark; BLOCK_SIZE]);
    let sums: Vec<_> =
        range.blocks().map(|b| (!(mixed && b.is_multiple_of(3))).then_some(sum)).collect();
    let blocks = sums.iter().flatten().count();
    let data = Bytes::from(vec![mark; blocks * BLOCK_SIZE]);
    let sums = if blocks == 0 {
        Sums::Holes
    } else if blocks == sums.len() {
        Sums::Full(sums.into_iter().flatten().collect())
    } else {
        Sums::Mixed(sums)
    };
    BlockData { range, sums, data }
}

pub(super) fn fill(n: u32, first: u32, count: u32, mark: u8) -> Record {
    Record::Fill { chunk: chunk(n), data: content(first, count, mark, false) }
}

pub(super) fn zero(n: u32, first: u32, count: u32) -> Record {
    let data = BlockData::holes(BlockRange::new(first, count));
    Record::Fill { chunk: chunk(n), data }
}

pub(super) fn adopt(n: u32, epoch: u64, incarnation: u64) -> Record {
    let replica =
        ReplicaId { node: NodeId(1), store: StoreId(7), incarnation: Incarnation(incarnation) };
    let config = ChunkConfig {
        chunk: chunk(n),
        blocks: CHUNK_BLOCKS,
        epoch: Epoch(epoch),
        elected: Epoch(1),
        generation: Generation(1),
        primary: replica,
        in_sync: vec![replica],
        learners: vec![],
        stale: vec![],
        copies_wanted: 3,
        copies_min: 2,
    };
    Record::Adopt { replica, config }
}

/// Chunk and block to mark; holes are absent.
type Blocks = BTreeMap<(u32, u32), u8>;

/// What a store contains, as a value.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    blocks: Blocks,
    state: DurableState,
}

impl Model {
    fn apply(&mut self, record: &Record) {
        let n = record.chunk().index.0;
        let gone = match record {
            Record::Erase { .. } => true,
            Record::Adopt { replica, .. } => {
                self.state.get(chunk(n)).is_none_or(|r| r.replica != *replica)
            }
            _ => false,
        };
        if gone {
            self.blocks.retain(|(c, _), _| *c != n);
        }
        for (block, bytes) in record.content().iter().flat_map(|data| data.iter()) {
            match bytes {
                None => self.blocks.remove(&(n, block)),
                Some((_, bytes)) => self.blocks.insert((n, block), bytes[0]),
            };
        }
        self.state.apply(record);
    }
}

/// An open store without its threads.
struct Rig {
    parts: Parts,
    events: Arc<Mutex<Vec<StoreEvent>>>,
    next: u64,
}

impl Rig {
    fn try_open(disk: &MemDisk, options: &StoreOptions) -> Result<Self, OpenError> {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let reporter = Reporter(Arc::new(move |e| sink.lock().unwrap().push(e)));
        let mut dice = SeededDice::new(1);
        let parts = open::open(disk, options, owner(), &mut dice, &reporter)?;
        Ok(Self { parts, events, next: 1 })
    }

    fn open(disk: &MemDisk) -> Self {
        Self::try_open(disk, &SMALL).unwrap()
    }

    fn append(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), NoSpace> {
        let mut numbered: Vec<_> =
            (self.next..).zip(records).map(|(seq, record)| (JournalSeq(seq), record)).collect();
        let count = numbered.len() as u64;
        self.parts.shared.append(&mut numbered, false)?;
        self.next += count;
        Ok(())
    }

    fn step(&mut self) -> Result<Step, StoreFailure> {
        self.parts.committer.step()
    }

    /// Every slot ever given out is free, or somebody has it: never both, never neither.
    fn check_slots(&self) {
        let state = self.parts.shared.lock();
        let claimed = |slot: u32| state.has_claim(slot);
        for (slot, free, mapped) in state.map.census() {
            let held = u32::from(mapped > 0 || claimed(slot)) + u32::from(free);
            assert_eq!(held, 1, "slot {slot}: free {free}, mapped {mapped}, {}", claimed(slot));
            assert!(mapped < 2, "slot {slot} belongs to {mapped} parts");
        }
    }

    /// Makes the data file longer if that is wanted.
    fn grow(&mut self) -> bool {
        let sink = self.events.clone();
        let reporter = Reporter(Arc::new(move |e| sink.lock().unwrap().push(e)));
        self.parts.shared.grow_as_wanted(&reporter)
    }

    /// Carries out a waiting checkpoint.
    fn apply(&mut self) -> Result<bool, StoreFailure> {
        let Some(job) = self.parts.applier.take_job() else { return Ok(false) };
        self.parts.applier.run(&job)?;
        Ok(true)
    }

    /// Writes and applies until there is nothing to do.
    fn settle(&mut self) -> Result<(), StoreFailure> {
        loop {
            if self.step()? == Step::Wrote || self.apply()? {
                continue;
            }
            return Ok(());
        }
    }

    /// Asks for a checkpoint and carries everything out.
    fn checkpoint(&mut self) -> Result<(), StoreFailure> {
        self.settle()?;
        self.parts.shared.lock().checkpoint_wanted = true;
        self.settle()
    }

    fn durable(&self) -> u64 {
        let seqs = self.events.lock().unwrap();
        let seqs = seqs.iter().filter_map(|e| match e {
            StoreEvent::Durable(seq) => Some(seq.0),
            _ => None,
        });
        seqs.max().unwrap_or(0)
    }

    fn read(&mut self, n: u32, first: u32, count: u32) -> Result<BlockData, ReadError> {
        let range = BlockRange::new(first, count);
        let request = ReadRequest { ticket: 5, chunk: chunk(n), range };
        let resolved = Shared::begin_read(&mut self.parts.shared.lock(), request);
        let data = match resolved {
            Resolved::Memory(data) => data,
            Resolved::Disk(job) => self.parts.reader.run(vec![job]).remove(0).result?,
        };
        assert_eq!(data.range, range);
        assert_eq!(data.check(), Ok(()));
        Ok(data)
    }

    /// All blocks of three chunks; checks every checksum.
    fn blocks(&mut self) -> Result<Blocks, ReadError> {
        let mut out = Blocks::new();
        for n in 0..3 {
            for first in (0..CHUNK_BLOCKS).step_by(256) {
                let data = self.read(n, first, 256)?;
                for (block, bytes) in data.iter() {
                    let Some((sum, bytes)) = bytes else { continue };
                    assert_eq!(crc32c::crc32c(&bytes), sum);
                    // As slices: byte by byte takes most of a test's time.
                    assert!(bytes[1..] == bytes[..BLOCK_SIZE - 1], "a torn block");
                    out.insert((n, block), bytes[0]);
                }
            }
        }
        Ok(out)
    }
}
