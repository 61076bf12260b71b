//! The apply thread's work: one checkpoint, from the oldest layer to a new superblock.
//!
//! Large writes are in their places already: a checkpoint only moves the map to them. A part that
//! lies in several slots is so brought together as far as it is written anyway: small writes go to
//! the slot that has most of it.
//!
//! Order, each step durable before the next: blocks into the data file, sorted and merged, 32 at a
//! time; changed map pages, each over the older of its two copies; the superblock, which names the
//! place where replay begins and the number of this checkpoint. A crash before the last step leaves
//! the old superblock, the old copy of every page, and every block of the layer in the journal.
//!
//! Reads that were resolved before the apply began may still be reading the places it overwrites;
//! it waits for them. Reads resolved later find these blocks in the layer, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use ashlar_env::disk::{AlignedBuf, DiskError, DiskFile, IoEngine, IoKind, IoOp};
use ashlar_types::{BLOCK_SIZE, BlockRange, ChunkId};

use super::format::{PAGE, SLOT_BLOCKS, SLOT_BYTES, SlotBlocks, Superblock, as_u64, as_usize, put};
use super::map::{PageState, SlotChange, SlotMap, digest_of, slots_of};
use super::overlay::{ChunkLayer, Content, SumRun};
use super::place::{Bits, Claims};
use super::shared::{ApplyJob, Shared, State};
use super::{Reporter, StoreEvent, StoreFailure};

/// Operations given to the engine at once: enough to keep it busy, few enough to report progress.
const BATCH_OPS: usize = 256;

/// Memory for blocks on their way to the data file.
const BATCH_BYTES: usize = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) shared: Arc<Shared>,
    pub(crate) super_file: Arc<dyn DiskFile>,
    pub(crate) superblock: Superblock,
    pub(crate) engine: IoEngine,
    /// Buffers of one block, to be used again.
    pub(crate) spare: Vec<AlignedBuf>,
    pub(crate) reporter: Reporter,
}

/// What happens to one slot.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) change: SlotChange,
    pub(crate) writes: Vec<(BlockRange, Content)>,
}

/// A part of a chunk while it is planned.
#[derive(Debug, Default)]
struct Part {
    slots: Vec<Touched>,
    /// What is to be written to one of the slots.
    writes: Vec<(BlockRange, Content)>,
}

/// A slot of the part.
#[derive(Debug)]
struct Touched {
    slot: u32,
    blocks: SlotBlocks,
    changed: bool,
}

impl Part {
    /// What the map says of it.
    fn known(map: &SlotMap, chunk: ChunkId, index: u32) -> Self {
        let slots = map.get(chunk, index).iter();
        let slots =
            slots.map(|m| Touched { slot: m.slot, blocks: m.blocks.clone(), changed: false });
        Self { slots: slots.collect(), writes: Vec::new() }
    }

    /// The slot of this number.
    fn slot(&mut self, slot: u32) -> Option<&mut Touched> {
        if !self.slots.iter().any(|t| t.slot == slot) {
            self.slots.push(Touched { slot, blocks: SlotBlocks::default(), changed: false });
        }
        self.slots.iter_mut().find(|t| t.slot == slot)
    }

    /// No slot has the blocks any more.
    fn drop_blocks(&mut self, range: BlockRange) {
        let bits = Bits::of(range);
        for slot in self.slots.iter_mut().filter(|t| t.blocks.present().meets(bits)) {
            slot.changed = true;
            range.blocks().for_each(|block| slot.blocks.set(block, None));
        }
    }

    /// The slot has the blocks now, and no other.
    fn put(&mut self, slot: u32, range: BlockRange, sums: &SumRun) {
        self.drop_blocks(range);
        let Some(touched) = self.slot(slot) else { return };
        touched.changed = true;
        for (nth, block) in range.blocks().enumerate() {
            touched.blocks.set(block, Some(sums.get(nth)));
        }
    }

    /// Gives the blocks that are to be written to the slot that has most of the part, a new one if
    /// there is none. Blocks of it that a later large write has claimed are never among them: it
    /// claims nothing where blocks wait to be written (`place.rs`).
    fn finish(
        mut self,
        map: &mut SlotMap,
        (chunk, index): (ChunkId, u32),
        out: &mut Vec<Work>,
    ) -> Result<(), StoreFailure> {
        let mut writes = std::mem::take(&mut self.writes);
        let most = self.slots.iter().max_by_key(|t| t.blocks.count()).map(|t| t.slot);
        if !writes.is_empty() {
            let slot = match most {
                Some(slot) => slot,
                None => map.take().ok_or(StoreFailure::SlotsExhausted)?,
            };
            for (range, content) in &writes {
                if let Content::Data { sums, .. } = content {
                    self.put(slot, *range, sums);
                }
            }
        }
        for Touched { slot, blocks, .. } in self.slots.into_iter().filter(|t| t.changed) {
            let change = SlotChange { chunk, index, slot, blocks };
            let writes = if most.is_none_or(|most| most == slot) {
                std::mem::take(&mut writes)
            } else {
                Vec::new()
            };
            out.push(Work { change, writes });
        }
        Ok(())
    }
}

impl Applier {
    /// Takes the waiting job, if there is one and no earlier read is under way.
    pub(crate) fn take_job(&self) -> Option<ApplyJob> {
        let mut state = self.shared.lock();
        let job = state.job.take()?;
        state.applying = true;
        state.progress = 0;
        state.parity ^= 1;
        Some(job)
    }

    /// True when no read resolved before the job was taken is under way.
    pub(crate) fn earlier_reads_done(state: &State) -> bool {
        state.reading.get(state.parity ^ 1).is_none_or(|n| *n == 0)
    }

    /// Carries the job out. Call only after [`Applier::earlier_reads_done`].
    pub(crate) fn run(&mut self, job: &ApplyJob) -> Result<(), StoreFailure> {
        let mut work = self.plan(job)?;
        self.merge(&mut work);
        self.write_data(&work)?;
        let pages = self.write_map(&work)?;
        let mut digest = self.superblock.map_digest;
        let used = {
            let state = self.shared.lock();
            for (work, page) in work.iter().zip(&pages) {
                let slot = work.change.slot;
                let old = state.map.page(slot).map_or(0, |old| digest_of(slot, old.crc));
                digest = digest.wrapping_sub(old).wrapping_add(digest_of(slot, page.crc));
            }
            // Slots that are claimed only have no page, and the file may end before it.
            let changed = work.iter().map(|work| work.change.slot + 1);
            changed.fold(state.map.written(), u32::max)
        };
        let superblock = Superblock {
            sequence: self.superblock.sequence + 1,
            tail: job.mark.end,
            tail_number: job.mark.number,
            tail_chain: job.mark.chain,
            checkpoint: self.superblock.checkpoint + 1,
            slots_used: used,
            map_digest: digest,
            // The checkpoint holds the marks.
            doubt: self.superblock.doubt.settled(),
            ..self.superblock
        };
        write_superblock(&*self.super_file, &superblock)?;
        self.superblock = superblock;
        self.finish(job, work, pages);
        Ok(())
    }

    /// Decides, under the lock, what becomes of every slot that the layer touches.
    fn plan(&self, job: &ApplyJob) -> Result<Vec<Work>, StoreFailure> {
        let mut state = self.shared.lock();
        // What began to read before the last checkpoint was complete has ended.
        state.map.cooled();
        let mut out = Vec::new();
        for (chunk, layer) in &job.layer.chunks {
            plan_chunk(&mut state.map, *chunk, layer, &mut out)?;
        }
        Ok(out)
    }

    /// Writes all blocks and makes them durable.
    fn write_data(&mut self, work: &[Work]) -> Result<(), DiskError> {
        // Data is counted as three quarters of the work, map pages as the rest.
        let of = work.len() * 4 / 3;
        let mut ops = Vec::new();
        let mut bytes = 0;
        let mut any = false;
        for (nth, work) in work.iter().enumerate() {
            let base = u64::from(work.change.slot) * SLOT_BYTES;
            let adjacent =
                |a: &(BlockRange, Content), b: &(BlockRange, Content)| a.0.end() == b.0.first;
            for run in work.writes.chunk_by(adjacent) {
                let Some((first, _)) = run.first() else { continue };
                let buf = self.gather(run);
                let offset = base + u64::from(first.first) * as_u64(BLOCK_SIZE);
                bytes += buf.len();
                any = true;
                ops.push(IoOp::new(self.shared.data.clone(), IoKind::Write, offset, buf));
                if bytes >= BATCH_BYTES || ops.len() >= BATCH_OPS {
                    self.run_batch(std::mem::take(&mut ops))?;
                    bytes = 0;
                    self.report_progress(nth, of);
                }
            }
        }
        self.run_batch(ops)?;
        if any { self.shared.data.sync_data() } else { Ok(()) }
    }

    /// Writes the changed map pages and makes them durable.
    fn write_map(&mut self, work: &[Work]) -> Result<Vec<PageState>, DiskError> {
        let (store, number) = (self.superblock.store, self.superblock.checkpoint + 1);
        let mut pages = Vec::with_capacity(work.len());
        let mut ops = Vec::with_capacity(work.len());
        self.report_progress(3, 4);
        for work in work {
            let slot = work.change.slot;
            let old = self.shared.lock().map.page(slot);
            let copy = old.map_or(0, |old| old.copy ^ 1);
            let page = work.change.page(number, store);
            let crc = page.get(8..12).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
            pages.push(PageState { copy, crc: u32::from_le_bytes(crc), checkpoint: number });
            let offset = (u64::from(slot) * 2 + u64::from(copy)) * as_u64(PAGE);
            ops.push(IoOp::new(self.shared.map_file.clone(), IoKind::Write, offset, page));
        }
        self.run_batch(ops)?;
        if !work.is_empty() {
            self.shared.map_file.sync_data()?;
        }
        Ok(pages)
    }

    /// Lets the journal thread go on as far as this apply has come.
    fn report_progress(&self, done: usize, of: usize) {
        self.shared.lock().progress = as_u64(done * 1000 / of.max(1));
        self.shared.journal_wake.notify();
    }

    fn run_batch(&mut self, ops: Vec<IoOp>) -> Result<(), DiskError> {
        for op in self.engine.run(ops) {
            op.result?;
            if op.buf.len() == BLOCK_SIZE && self.spare.len() < BATCH_OPS {
                self.spare.push(op.buf);
            }
        }
        Ok(())
    }

    /// Copies adjacent contents into one aligned buffer.
    fn gather(&mut self, run: &[(BlockRange, Content)]) -> AlignedBuf {
        let blocks: usize = run.iter().map(|(range, _)| as_usize(u64::from(range.count))).sum();
        let spare = if blocks == 1 { self.spare.pop() } else { None };
        let mut buf = spare.unwrap_or_else(|| AlignedBuf::zeroed(blocks * BLOCK_SIZE));
        let mut at = 0;
        for (range, content) in run {
            if let Content::Data { bytes, .. } = content {
                put(&mut buf, at, bytes);
            }
            at += as_usize(u64::from(range.count)) * BLOCK_SIZE;
        }
        buf
    }

    /// Shows the outcome: map, reservations, one layer less, room in the journal.
    fn finish(&self, job: &ApplyJob, work: Vec<Work>, pages: Vec<PageState>) {
        let mut state = self.shared.lock();
        let mut emptied = Vec::new();
        for (work, page) in work.into_iter().zip(pages) {
            let slot = work.change.slot;
            if state.map.install(work.change, page) {
                emptied.push(slot);
            }
        }
        debug_assert_eq!(state.map.digest(), self.superblock.map_digest);
        let claims = state.periods.pop_front().map_or_else(Claims::new, |period| period.claims);
        state.end_claims(&claims, emptied);
        let reserved = state.reservations();
        state.map.set_reserved(reserved);
        state.applying = false;
        state.done = Some(job.mark);
        let space = state.space();
        drop(state);
        self.shared.journal_wake.notify();
        self.reporter.report(StoreEvent::Space(space));
    }
}

/// Plans one chunk; slots that are freed come first.
fn plan_chunk(
    map: &mut SlotMap,
    chunk: ChunkId,
    layer: &ChunkLayer,
    out: &mut Vec<Work>,
) -> Result<(), StoreFailure> {
    if layer.cleared {
        for (index, mapped) in map.of_chunk(chunk) {
            let blocks = SlotBlocks::default();
            let change = SlotChange { chunk, index, slot: mapped.slot, blocks };
            out.push(Work { change, writes: Vec::new() });
        }
    }
    // By number of the part in the chunk.
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    let known = |map: &SlotMap, index| {
        if layer.cleared { Part::default() } else { Part::known(map, chunk, index) }
    };
    for (first, extent) in &layer.extents {
        let range = BlockRange::new(*first, extent.end - first);
        let indices = range.first / SLOT_BLOCKS..range.end().div_ceil(SLOT_BLOCKS);
        if matches!(extent.content, Content::Hole) {
            // A trim may span a whole chunk: look only at parts that exist.
            let mapped = map.in_chunk(chunk, indices.start, indices.end);
            let mapped: Vec<u32> = mapped
                .filter(|_| !layer.cleared)
                .chain(parts.range(indices).map(|(index, _)| *index))
                .collect();
            for index in mapped {
                let part = parts.entry(index).or_insert_with(|| known(map, index));
                let whole = BlockRange::new(index * SLOT_BLOCKS, SLOT_BLOCKS);
                if let Some(gone) = whole.intersection(range) {
                    part.drop_blocks(BlockRange::new(gone.first - whole.first, gone.count));
                }
            }
            continue;
        }
        for (index, within) in slots_of(range) {
            let part = parts.entry(index).or_insert_with(|| known(map, index));
            let skip = index * SLOT_BLOCKS + within.first - range.first;
            match extent.content.part(skip, within.count) {
                Content::Placed { sums, at, .. } => {
                    let slot = at / u64::from(SLOT_BLOCKS);
                    part.put(u32::try_from(slot).unwrap_or(u32::MAX), within, &sums);
                }
                content => part.writes.push((within, content)),
            }
        }
    }
    parts.into_iter().try_for_each(|(index, part)| part.finish(map, (chunk, index), out))
}

/// Writes a superblock over the older copy; durable on return.
pub(crate) fn write_superblock(file: &dyn DiskFile, sb: &Superblock) -> Result<(), DiskError> {
    file.write_durable(&sb.encode(), (sb.sequence % 2) * as_u64(PAGE))
}
