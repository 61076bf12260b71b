//! What the store's threads and its callers share, behind one lock held only for memory work.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ashlar_env::disk::DiskFile;
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, ChunkId, ReplicaId, Sums};

use super::format::{PAGE, as_u64};
use super::growth::Growth;
use super::journal::{Mark, entry_len};
use super::map::{SlotMap, slots_of};
use super::overlay::{Content, Layer, resolve};
use super::place::{Claims, Made, PLACED_BYTES, Queued, void_claims};
use super::reader::ReadJob;
use super::{NoSpace, Numbered, ReadRequest, StoreFailure};
use crate::seam::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, PoisonError};

/// Records that may wait are written without company once so many bytes of them have gathered.
const PATIENCE_BYTES: u64 = 4 << 20;

/// Longest that a record waits for company. What is sent later is held behind its number, so it must
/// not wait for ever; by then a busy store has written it with others.
pub(crate) const PATIENCE: Duration = Duration::from_millis(5);

/// Shared by all threads of a store.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something for the journal thread: records, a finished checkpoint, the end.
    pub(crate) journal_wake: Wake,
    /// Something for the apply thread: a job, the last old read done, the end.
    pub(crate) apply_wake: Wake,
    /// Something for the read thread.
    pub(crate) read_wake: Wake,
    /// More slots are wanted, or the end.
    pub(super) grow_wake: Wake,
    pub(crate) data: Arc<dyn DiskFile>,
    pub(crate) map_file: Arc<dyn DiskFile>,
    /// Worst-case journal bytes of queued records at which the newest layer is closed.
    queue_limit: u64,
}

/// Wakes the one thread that waits here; costs no system call while that thread is busy.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    condition: Condvar,
    waiting: AtomicBool,
}

impl Wake {
    /// Waits for [`Wake::notify`]; may return early.
    pub(crate) fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        // Set under the lock under which the waited-for change is made: the other side sees it.
        self.waiting.store(true, Ordering::Relaxed);
        let state = self.condition.wait(state).unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::Relaxed);
        state
    }

    /// [`Wake::wait`], but no longer than `time`; true when that has passed.
    pub(crate) fn wait_for<'s>(
        &self,
        state: MutexGuard<'s, State>,
        time: Duration,
    ) -> (MutexGuard<'s, State>, bool) {
        self.waiting.store(true, Ordering::Relaxed);
        let waited = self.condition.wait_timeout(state, time);
        let (state, outcome) = waited.unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::Relaxed);
        (state, outcome.timed_out())
    }

    /// Call after the change that is waited for was made under the lock.
    pub(crate) fn notify(&self) {
        if self.waiting.load(Ordering::Relaxed) {
            self.condition.notify_one();
        }
    }
}

/// A layer with the number of its last record once it is closed.
#[derive(Debug)]
pub(crate) struct Period {
    pub(crate) layer: Arc<Layer>,
    pub(crate) closed_at: Option<JournalSeq>,
    /// Blocks of the data file that its large writes have taken.
    pub(crate) claims: Claims,
}

/// A checkpoint to be carried out: the oldest layer is to be applied.
#[derive(Clone, Debug)]
pub(crate) struct ApplyJob {
    pub(crate) layer: Arc<Layer>,
    /// Replay begins here once the job is done.
    pub(crate) mark: Mark,
}

/// See [`Shared`].
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) queue: VecDeque<Queued>,
    /// Worst-case journal bytes of the queue; of those that must not wait.
    queue_bytes: u64,
    urgent_bytes: u64,
    /// What may wait has waited long enough.
    pub(crate) overdue: bool,
    /// Queued bytes of the newest period.
    newest_bytes: u64,
    pub(crate) last: JournalSeq,
    /// Oldest first; the last one takes writes.
    pub(crate) periods: VecDeque<Period>,
    pub(crate) map: SlotMap,
    pub(super) growth: Growth,
    /// Replicas as of the last record handed over: another incarnation starts empty.
    replicas: BTreeMap<ChunkId, ReplicaId>,
    pub(crate) job: Option<ApplyJob>,
    /// Mark of the job that was completed last, until the journal thread has seen it.
    pub(crate) done: Option<Mark>,
    pub(crate) applying: bool,
    /// How far the running apply is, in thousandths.
    pub(crate) progress: u64,
    pub(crate) checkpoint_wanted: bool,
    /// The slot whose page is verified next, while a verification is under way.
    pub(crate) verify_at: Option<u32>,
    pub(crate) failed: Option<StoreFailure>,
    /// The handle was dropped: write what was handed over, then end.
    pub(crate) stopping: bool,
    /// The journal thread has ended.
    pub(crate) finished: bool,
    pub(crate) reads: VecDeque<ReadJob>,
    /// Reads of the data file under way, by parity of the apply they must precede.
    pub(crate) reading: [usize; 2],
    pub(crate) parity: usize,
}

/// Worst-case bytes of a record in the journal: alone in a group.
fn journal_cost(record: &Record, slots: &[u32]) -> u64 {
    as_u64(PAGE + entry_len(record, slots).next_multiple_of(PAGE))
}

impl Shared {
    pub(crate) fn new(
        data: Arc<dyn DiskFile>,
        map_file: Arc<dyn DiskFile>,
        map: SlotMap,
        replicas: BTreeMap<ChunkId, ReplicaId>,
        (layer, claims): (Layer, Claims),
        journal_bytes: u64,
    ) -> Self {
        let period = Period { layer: Arc::new(layer), closed_at: None, claims };
        let state = State {
            queue: VecDeque::new(),
            queue_bytes: 0,
            urgent_bytes: 0,
            overdue: false,
            newest_bytes: 0,
            last: JournalSeq(0),
            periods: VecDeque::from([period]),
            map,
            growth: Growth::default(),
            replicas,
            job: None,
            done: None,
            applying: false,
            progress: 0,
            checkpoint_wanted: false,
            verify_at: None,
            failed: None,
            stopping: false,
            finished: false,
            reads: VecDeque::new(),
            reading: [0; 2],
            parity: 0,
        };
        Self {
            state: Mutex::new(state),
            journal_wake: Wake::default(),
            apply_wake: Wake::default(),
            read_wake: Wake::default(),
            grow_wake: Wake::default(),
            data,
            map_file,
            queue_limit: journal_bytes / 4,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held ends the process (`env::task`).
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands records over: readable at once, durable later. All or none.
    pub(crate) fn append(
        &self,
        records: &mut Vec<Numbered>,
        before_erasure: bool,
    ) -> Result<(), NoSpace> {
        let mut state = self.lock();
        let state = &mut *state;
        if state.failed.is_some() {
            // Reported already; nothing that comes after counts.
            records.clear();
            return Ok(());
        }
        let used = state.map.used();
        let (mut places, made) = self.place(state, records);
        if let Err(full) = self.reserve(state, records, &places, before_erasure) {
            state.unclaim(made, used);
            // A checkpoint frees what was erased or zeroed since the last one, if anything was.
            if full != NoSpace::Growing {
                state.checkpoint_wanted |= state.periods.iter().any(|p| !p.layer.chunks.is_empty());
                self.journal_wake.notify();
            }
            return Err(full);
        }
        let was_empty = state.queue.is_empty();
        let mut urgent = false;
        for ((seq, record), slots) in records.drain(..).zip(places.drain(..)) {
            state.note(&record, &slots);
            let cost = journal_cost(&record, &slots);
            let may_wait = record.may_wait();
            urgent |= !may_wait;
            state.queue_bytes += cost;
            state.newest_bytes += cost;
            if !may_wait {
                state.urgent_bytes += cost;
            }
            state.last = seq;
            state.queue.push_back(Queued { seq, record, slots });
            // Claims are the newest period's: it lasts until their records are in it.
            if state.newest_bytes > self.queue_limit && made.is_empty() {
                state.close_period();
            }
        }
        if state.newest_bytes > self.queue_limit || state.claims_enough() {
            state.close_period();
        }
        self.grow_ahead(state);
        // The first record that may wait starts the journal thread's patience.
        if urgent || was_empty || state.queue_bytes > PATIENCE_BYTES {
            self.journal_wake.notify();
        }
        Ok(())
    }

    /// Claims places for the large ones of the records, which are handed over together.
    fn place(&self, state: &mut State, records: &[Numbered]) -> (Vec<Vec<u32>>, Vec<Made>) {
        let (used, mut made) = (state.map.used(), Vec::new());
        // Whose slots may be used depends on which replica it is: not decided in the middle of that.
        let replaces =
            |(_, record): &Numbered| matches!(record, Record::Adopt { .. } | Record::Erase { .. });
        if records.iter().any(replaces) {
            return (vec![Vec::new(); records.len()], made);
        }
        let mut cost = 0;
        let mut places = Vec::with_capacity(records.len());
        for (_, record) in records {
            let slots = state.place(record, &mut made).unwrap_or_default();
            cost += journal_cost(record, &slots);
            places.push(slots);
        }
        // A period that holds places is not ended before its last record, so it must not be much
        // longer than others.
        if !made.is_empty() && cost > self.queue_limit / 4 {
            state.unclaim(std::mem::take(&mut made), used);
            places.iter_mut().for_each(Vec::clear);
        }
        (places, made)
    }

    /// Reserves the slots that the records need which have no places, if the data file has them.
    fn reserve(
        &self,
        state: &mut State,
        records: &[Numbered],
        places: &[Vec<u32>],
        before_erasure: bool,
    ) -> Result<(), NoSpace> {
        let mut new = BTreeSet::new();
        let journalled = records.iter().zip(places).filter(|(_, slots)| slots.is_empty());
        for ((_, record), _) in journalled {
            let Some(content) = record.content() else { continue };
            let chunk = record.chunk();
            for range in data_ranges(content) {
                let cleared = state.periods.iter().any(|p| p.layer.is_cleared(chunk));
                let missing = state.map.missing(chunk, range, cleared);
                new.extend(missing.into_iter().map(|index| (chunk, index)));
            }
        }
        if new.is_empty() && places.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let (needed, room) = (super::format::as_u32(new.len()), state.map.room(before_erasure));
        let full = NoSpace::Full { needed, room };
        if needed > 0 && needed > room {
            return Err(full);
        }
        self.make_room(state, needed)?;
        for (chunk, index) in new {
            state.map.reserve(chunk, [index]);
        }
        Ok(())
    }

    /// Resolves a read. Either its content, from memory alone, or a job for the read thread.
    pub(crate) fn begin_read(state: &mut State, request: ReadRequest) -> Resolved {
        let mut parts = Vec::new();
        let layers = state.periods.iter().rev().map(|p| &*p.layer);
        resolve(layers, request.chunk, request.range, &mut parts);
        let mut pieces = Vec::with_capacity(parts.len());
        for (range, content) in parts {
            match content {
                Some(content) => pieces.push((range, Piece::of(content, range))),
                None => state.look_below(request.chunk, range, &mut pieces),
            }
        }
        if pieces.iter().any(|(_, piece)| matches!(piece, Piece::Disk { .. })) {
            let parity = state.parity;
            if let Some(count) = state.reading.get_mut(parity) {
                *count += 1;
            }
            return Resolved::Disk(ReadJob { request, pieces, parity });
        }
        Resolved::Memory(super::reader::assemble(request.range, &pieces))
    }
}

/// Outcome of [`Shared::begin_read`].
#[derive(Debug)]
pub(crate) enum Resolved {
    Memory(BlockData),
    Disk(ReadJob),
}

/// A part of a read.
#[derive(Debug)]
pub(crate) enum Piece {
    /// In memory.
    Memory(Content),
    /// At `offset` of the data file, one checksum per block.
    Disk { offset: u64, sums: Vec<u32> },
}

impl Piece {
    /// Where the content of a layer is to be had.
    fn of(content: Content, range: BlockRange) -> Self {
        match content {
            Content::Placed { sums, bytes: Some(bytes), .. } => {
                Self::Memory(Content::Data { sums, bytes })
            }
            Content::Placed { sums, at, bytes: None } => {
                let sums = (0..range.blocks().count()).map(|nth| sums.get(nth)).collect();
                Self::Disk { offset: at * as_u64(BLOCK_SIZE), sums }
            }
            content @ (Content::Hole | Content::Data { .. }) => Self::Memory(content),
        }
    }
}

impl State {
    /// Worst-case journal bytes of everything that waits to be journalled.
    pub(crate) fn queue_bytes(&self) -> u64 {
        self.queue_bytes
    }

    /// True when the journal thread has to write, not only may.
    pub(crate) fn must_write(&self) -> bool {
        self.urgent_bytes > 0
            || (!self.queue.is_empty() && (self.stopping || self.queue_bytes > PATIENCE_BYTES))
            || (!self.queue.is_empty() && (self.overdue || self.periods.len() > 1))
    }

    /// True when the journal thread has a reason to look.
    pub(crate) fn journal_has_work(&self) -> bool {
        let may_checkpoint = self.checkpoint_wanted && !self.applying && self.job.is_none();
        self.must_write()
            || may_checkpoint
            || self.done.is_some()
            || self.stopping
            || self.failed.is_some()
    }

    /// Shows a record to readers.
    pub(crate) fn note(&mut self, record: &Record, slots: &[u32]) {
        let Some(newest) = self.periods.back_mut() else { return };
        let clears = matches!(record, Record::Adopt { .. } | Record::Erase { .. });
        note_record(Arc::make_mut(&mut newest.layer), &mut self.replicas, record, slots);
        if clears && newest.layer.is_cleared(record.chunk()) {
            self.periods.iter_mut().for_each(|p| void_claims(&mut p.claims, record.chunk()));
        }
    }

    /// Large content is durable in its place.
    pub(crate) fn settle(&mut self, chunk: ChunkId, range: BlockRange, slots: &[u32]) {
        for period in &mut self.periods {
            // A layer that is being applied is settled.
            if let Some(layer) = Arc::get_mut(&mut period.layer) {
                layer.settle(chunk, range, slots);
            }
        }
    }

    /// Ends the newest period with the last record handed over and begins another.
    pub(crate) fn close_period(&mut self) {
        if let Some(newest) = self.periods.back_mut() {
            newest.closed_at = Some(self.last);
        }
        let claims = Claims::new();
        self.periods.push_back(Period { layer: Arc::default(), closed_at: None, claims });
        self.newest_bytes = 0;
    }

    /// Takes records for one group: up to `limit` bytes, not past the end of a period.
    pub(crate) fn take(&mut self, limit: u64, out: &mut Vec<Queued>) -> Option<JournalSeq> {
        // Of the periods that are not yet being applied, the oldest.
        let first = usize::from(self.applying || self.job.is_some());
        let boundary = self.periods.get(first).and_then(|p| p.closed_at);
        self.overdue = false;
        // The newest period begins after the end of the one before.
        let newest_after = self.periods.iter().rev().nth(1).and_then(|p| p.closed_at);
        let (mut taken, mut placed) = (0, 0);
        let mut last = None;
        while let Some(queued) = self.queue.front() {
            if boundary.is_some_and(|end| queued.seq > end) {
                break;
            }
            let cost = journal_cost(&queued.record, &queued.slots);
            let size = as_u64(entry_len(&queued.record, &queued.slots));
            placed += queued.placed_bytes();
            if last.is_some() && (taken + size > limit || placed > PLACED_BYTES) {
                break;
            }
            taken += size;
            self.queue_bytes -= cost;
            if !queued.record.may_wait() {
                self.urgent_bytes -= cost;
            }
            if Some(queued.seq) > newest_after {
                self.newest_bytes = self.newest_bytes.saturating_sub(cost);
            }
            last = Some(queued.seq);
            out.extend(self.queue.pop_front());
        }
        last
    }

    /// Adds the parts of `range` that are in the data file, and the holes between them.
    fn look_below(&self, chunk: ChunkId, range: BlockRange, out: &mut Vec<(BlockRange, Piece)>) {
        for (index, part) in slots_of(range) {
            let start = index * super::format::SLOT_BLOCKS;
            let mapped = self.map.get(chunk, index);
            if mapped.is_empty() {
                let hole = BlockRange::new(start + part.first, part.count);
                out.push((hole, Piece::Memory(Content::Hole)));
                continue;
            }
            // Block, the slot that has it, its checksum.
            let found = |b| mapped.iter().find_map(|m| Some((m.slot, m.blocks.get(b)?)));
            let blocks: Vec<_> = part.blocks().map(|b| (b, found(b))).collect();
            for run in blocks.chunk_by(|(_, a), (_, b)| a.map(|a| a.0) == b.map(|b| b.0)) {
                let Some((first, found)) = run.first() else { continue };
                let count = super::format::as_u32(run.len());
                let piece = if let Some((slot, _)) = found {
                    let block = u64::from(*slot) * u64::from(super::format::SLOT_BLOCKS)
                        + u64::from(*first);
                    let sums = run.iter().filter_map(|(_, found)| Some((*found)?.1)).collect();
                    Piece::Disk { offset: block * as_u64(BLOCK_SIZE), sums }
                } else {
                    Piece::Memory(Content::Hole)
                };
                out.push((BlockRange::new(start + first, count), piece));
            }
        }
    }

    /// Slots that the layers still in memory will need.
    pub(crate) fn reservations(&self) -> BTreeSet<(ChunkId, u32)> {
        let mut out = BTreeSet::new();
        let mut cleared = BTreeSet::new();
        for period in &self.periods {
            for (chunk, layer) in &period.layer.chunks {
                if layer.cleared {
                    cleared.insert(*chunk);
                }
                for (first, extent) in &layer.extents {
                    if !matches!(extent.content, Content::Data { .. }) {
                        continue;
                    }
                    let range = BlockRange::new(*first, extent.end - first);
                    let needed = slots_of(range).map(|(index, _)| index).filter(|index| {
                        cleared.contains(chunk) || self.map.get(*chunk, *index).is_empty()
                    });
                    out.extend(needed.map(|index| (*chunk, index)));
                }
            }
        }
        out
    }
}

/// Follows one record in a layer: content, erasure, a new incarnation.
pub(crate) fn note_record(
    layer: &mut Layer,
    replicas: &mut BTreeMap<ChunkId, ReplicaId>,
    record: &Record,
    slots: &[u32],
) {
    match record {
        Record::Write { chunk, data, .. } | Record::Fill { chunk, data } if slots.is_empty() => {
            layer.write(*chunk, data);
        }
        Record::Write { chunk, data, .. } | Record::Fill { chunk, data } => {
            layer.place(*chunk, data, slots);
        }
        Record::Adopt { replica, config } => {
            if replicas.insert(config.chunk, *replica) != Some(*replica) {
                layer.clear(config.chunk);
            }
        }
        Record::Erase { chunk } => {
            replicas.remove(chunk);
            layer.clear(*chunk);
        }
        Record::FollowTerm { .. }
        | Record::TakeOver { .. }
        | Record::OpenTerm { .. }
        | Record::OpenFill { .. }
        | Record::Committed { .. }
        | Record::ProposePromotion { .. }
        | Record::Refuse { .. }
        | Record::Suspect { .. } => {}
    }
}

/// The parts of a content that have data.
fn data_ranges(content: &BlockData) -> Vec<BlockRange> {
    match &content.sums {
        Sums::Holes => Vec::new(),
        Sums::Full(_) => vec![content.range],
        Sums::Mixed(sums) => content
            .range
            .blocks()
            .zip(sums)
            .filter(|(_, sum)| sum.is_some())
            .map(|(block, _)| BlockRange::new(block, 1))
            .collect(),
    }
}
