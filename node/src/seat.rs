//! One store at the machine's table: what is on its way to it, and what waits for room there.
//!
//! Decides nothing: records go to the store in the order that the core gave them, and wait in that
//! order, reads of their chunks behind them, while the store is full. A full store holds up nothing of
//! another one.

use crate::log_line::log_line;
use crate::store::{NoSpace, Numbered, ReadDone, ReadRequest, Space};
use crate::task::Storage;
use ashlar_node_core::{DataCore, Input, Line, ReadTicket, Record};
use ashlar_types::{BlockData, ChunkId, StoreId};
use std::collections::{BTreeSet, VecDeque};

/// Bytes of a slot of the store.
const SLOT_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Seat<S> {
    /// Its number in this process.
    pub(crate) number: usize,
    pub(crate) id: StoreId,
    pub(crate) store: S,
    /// Room as the core was told last.
    space: Option<Space>,
    /// Cycles of the scrub after which the store was told to verify its own part.
    scrubbed: u64,
    pub(crate) records: Vec<Numbered>,
    pub(crate) reads: Vec<ReadRequest>,
    /// Records that the store has no room for, in order, and reads that must come after them.
    pub(crate) full: Full,
}

#[derive(Debug, Default)]
pub(crate) struct Full {
    pub(crate) records: VecDeque<Numbered>,
    chunks: BTreeSet<ChunkId>,
    reads: Vec<ReadRequest>,
    /// The log says so: once, and not of a store whose file is being made longer.
    is_told: bool,
}

impl Full {
    /// A replica is erased by what comes next: the content that waits for it needs no room. It is
    /// named by no configuration any more, so nobody rests on what it acknowledges meanwhile.
    fn forget_content(&mut self, chunk: ChunkId) {
        for (_, record) in self.records.iter_mut().filter(|(_, record)| record.chunk() == chunk) {
            if let Record::Write { data, .. } | Record::Fill { data, .. } = record {
                *data = BlockData::holes(data.range);
            }
        }
    }
}

impl<S: Storage> Seat<S> {
    pub(crate) fn new(number: usize, id: StoreId, store: S) -> Self {
        Self {
            number,
            id,
            store,
            space: None,
            scrubbed: 0,
            records: Vec::new(),
            reads: Vec::new(),
            full: Full::default(),
        }
    }

    /// Hands what the core wants journalled to the store.
    pub(crate) fn append(&mut self, inputs: &mut Vec<Input>) {
        if self.records.is_empty() {
            return;
        }
        if self.full.records.is_empty() {
            match self.store.append(&mut self.records) {
                Ok(()) => return,
                Err(full) => self.tell_full(full),
            }
        }
        // The order of records is fixed, so all of them wait behind the one that finds no room.
        self.full.chunks.extend(self.records.iter().map(|(_, record)| record.chunk()));
        for (seq, record) in self.records.drain(..) {
            if let Record::Erase { chunk } = &record {
                self.full.forget_content(*chunk);
            }
            self.full.records.push_back((seq, record));
        }
        self.retry_full(inputs);
    }

    fn tell_full(&mut self, full: NoSpace) {
        if full != NoSpace::Growing && !core::mem::replace(&mut self.full.is_told, true) {
            log_line!(Line::Full, store = %self.id, %full);
        }
    }

    /// Offers waiting records again, one by one, up to the first that still finds no room.
    pub(crate) fn retry_full(&mut self, inputs: &mut Vec<Input>) {
        if self.full.records.is_empty() {
            return;
        }
        let mut one = Vec::with_capacity(1);
        while let Some(record) = self.full.records.pop_front() {
            one.push(record);
            let frees = |(_, record): &Numbered| matches!(record, Record::Erase { .. });
            let taken = if one.iter().chain(&self.full.records).any(frees) {
                self.store.append_before_erasure(&mut one)
            } else {
                self.store.append(&mut one)
            };
            if let Err(full) = taken {
                self.full.records.extend(one.drain(..));
                self.full.records.rotate_right(1);
                self.tell_full(full);
                return;
            }
        }
        if core::mem::take(&mut self.full.is_told) {
            tracing::info!(store = %self.id, "the store has room again");
        }
        self.full.chunks.clear();
        self.reads.append(&mut self.full.reads);
        self.read(inputs);
    }

    /// Has the store read what the core wants.
    pub(crate) fn read(&mut self, inputs: &mut Vec<Input>) {
        if self.reads.is_empty() {
            return;
        }
        let mut reads = core::mem::take(&mut self.reads);
        if !self.full.chunks.is_empty() {
            // A read must see every record before it, and these are not in the store yet.
            let chunks = &self.full.chunks;
            let waits = |read: &mut ReadRequest| chunks.contains(&read.chunk);
            self.full.reads.extend(reads.extract_if(.., waits));
        }
        let done = self.store.read(reads);
        take_reads(done, inputs);
    }

    /// Tells the core what room there is, if that has changed: its heartbeats carry it.
    pub(crate) fn look_at_space(&mut self, inputs: &mut Vec<Input>) {
        let space = self.store.space();
        if self.space != Some(space) {
            self.space = Some(space);
            inputs.push(Input::Space {
                store: self.id,
                capacity_bytes: u64::from(space.total_slots) * SLOT_BYTES,
                used_bytes: u64::from(space.used_slots) * SLOT_BYTES,
            });
        }
    }

    /// Has the store verify its own part once for each cycle of its scrub.
    pub(crate) fn look_at_scrub(&mut self, core: &DataCore) {
        let cycles = core.scrub_cycles(self.id);
        if self.scrubbed < cycles {
            self.scrubbed = cycles;
            tracing::debug!(
                store = %self.id, cycles, "every block was scrubbed; the store verifies its map"
            );
            self.store.verify();
        }
    }
}

/// Hands answers of a store to the core.
pub(crate) fn take_reads(done: Vec<ReadDone>, inputs: &mut Vec<Input>) {
    inputs.extend(done.into_iter().map(|ReadDone { ticket, result }| {
        let content = result.inspect_err(|error| log_line!(Line::ReadFailed, %error)).ok();
        Input::BlocksRead { ticket: ReadTicket(ticket), content }
    }));
}
