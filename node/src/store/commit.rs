//! The journal thread's work: groups of records, and the checkpoint between two periods.
//!
//! One call of [`Committer::step`] writes at most one group. It never waits by itself, so that tests
//! drive it step by step; `threads.rs` waits where it says so. The room in the ring is sized so that
//! waiting for the apply thread always ends: a period takes at most three eighths of the ring until
//! it is closed, plus a quarter that may be queued by then; applying the one before needs no room.
//! While a period is applied the next one fills only as fast as the apply proceeds, past a head
//! start: many short delays instead of one long one at the end.

use std::sync::Arc;

use ashlar_env::disk::{DiskFile, IoEngine};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::record::{JournalSeq, Record};

use super::format::{ENTRY_HEAD, GROUP_HEAD, GroupKind, PAGE, as_u32, as_u64};
use super::journal::{GROUP_BYTES, Journal, Staged};
use super::place::{Queued, write_placed};
use super::shared::{ApplyJob, Shared};
use super::{Reporter, StoreEvent, StoreFailure};

/// Bytes of replica states in one checkpoint group.
const CHECKPOINT_PART: usize = 256 << 10;

/// Thousandths of a period that may be written before the one before it is applied at all.
const HEAD_START: u64 = 400;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something was written; there may be more.
    Wrote,
    /// Nothing to do.
    Idle,
    /// Nothing can be done before the running checkpoint is complete.
    NeedsApply,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    journal: Journal,
    data: Arc<dyn DiskFile>,
    engine: IoEngine,
    /// The state as of the last record written.
    state: DurableState,
    reporter: Reporter,
    /// Taken and not yet written.
    batch: Vec<Queued>,
    batch_last: JournalSeq,
    /// What the batch has outside of the journal is durable.
    batch_placed: bool,
    /// Last record written.
    written: JournalSeq,
    /// Where this period began in the ring.
    period_start: u64,
    /// Upper bound of the bytes of a checkpoint written now.
    checkpoint_bound: u64,
}

impl Committer {
    /// `data` is a descriptor of its own, see [`write_placed`].
    pub(crate) fn new(
        shared: Arc<Shared>,
        journal: Journal,
        (data, engine): (Arc<dyn DiskFile>, IoEngine),
        state: DurableState,
        reporter: Reporter,
    ) -> Self {
        // What replay brought back counts as part of the first period.
        let period_start = journal.cursor().end - journal.used();
        let mut committer = Self {
            shared,
            journal,
            data,
            engine,
            state,
            reporter,
            batch: Vec::new(),
            batch_last: JournalSeq(0),
            batch_placed: false,
            written: JournalSeq(0),
            period_start,
            checkpoint_bound: 0,
        };
        committer.checkpoint_bound =
            checkpoint_bytes(&committer.state.encode().collect::<Vec<_>>());
        committer
    }

    /// Writes one group or one checkpoint, if there is something to write.
    pub(crate) fn step(&mut self) -> Result<Step, StoreFailure> {
        self.see_done();
        if self.batch.is_empty() {
            if let Some(boundary) = self.boundary() {
                return self.checkpoint(boundary);
            }
            if !self.take() {
                return Ok(Step::Idle);
            }
        }
        if self.is_ahead() {
            return Ok(Step::NeedsApply);
        }
        let staged = self.journal.stage_records(&self.batch);
        if !self.has_room(&staged) {
            return self.wait_for_room();
        }
        if !self.batch_placed {
            // Durable before the group that names their places: a record never outlives its content.
            write_placed(&self.data, &mut self.engine, &self.batch)?;
            self.batch_placed = true;
        }
        self.journal.write(&staged)?;
        for Queued { record, .. } in &self.batch {
            self.state.apply(record);
            // The state grows by less than four times the fields of a record.
            self.checkpoint_bound += 4 * as_u64(record_fields(record));
        }
        self.settle_placed();
        self.batch.clear();
        self.batch_placed = false;
        self.written = self.batch_last;
        self.reporter.report(StoreEvent::Durable(self.written));
        Ok(Step::Wrote)
    }

    /// Nothing comes any more, for now: a group without entries says that the one before it was
    /// durable. Does nothing if that is said already, or while the ring has no room: the checkpoint
    /// that makes room says it too.
    pub(crate) fn seal(&mut self) -> Result<(), StoreFailure> {
        self.see_done();
        if self.journal.is_sealed() || !self.batch.is_empty() || self.is_ahead() {
            return Ok(());
        }
        let seal = self.journal.stage_records(&[]);
        if self.has_room(&seal) {
            self.journal.write(&seal)?;
        }
        Ok(())
    }

    /// See [`Journal::is_sealed`].
    pub(crate) fn is_sealed(&self) -> bool {
        self.journal.is_sealed()
    }

    /// Bytes of the journal in use.
    #[cfg(test)]
    pub(crate) fn journalled(&self) -> u64 {
        self.journal.used()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Large content that is durable in its place need not be kept in memory.
    fn settle_placed(&self) {
        if self.batch.iter().all(|queued| queued.slots.is_empty()) {
            return;
        }
        let mut state = self.shared.lock();
        for Queued { record, slots, .. } in self.batch.iter().filter(|q| !q.slots.is_empty()) {
            if let Some(content) = record.content() {
                state.settle(record.chunk(), content.range, slots);
            }
        }
    }

    /// Gives back the room of a checkpoint that is complete.
    fn see_done(&mut self) {
        if let Some(mark) = self.shared.lock().done.take() {
            self.journal.release(mark.end);
        }
    }

    /// Ends the period when the ring is filling up or somebody wants space; true once everything
    /// of a closed period is written.
    fn boundary(&mut self) -> Option<JournalSeq> {
        let mut state = self.shared.lock();
        let first = usize::from(state.applying || state.job.is_some());
        let filling = self.period_bytes() > self.period_limit();
        let wanted = state.checkpoint_wanted && first == 0;
        if (filling || wanted) && state.periods.len() == first + 1 {
            state.checkpoint_wanted = false;
            state.close_period();
        }
        let end = state.periods.get(first).and_then(|p| p.closed_at)?;
        // Records of an earlier process number from 1 too: an empty first period ends at 0.
        (end <= self.written).then_some(end)
    }

    fn period_bytes(&self) -> u64 {
        self.journal.cursor().end - self.period_start
    }

    fn period_limit(&self) -> u64 {
        self.journal.size() / 8 * 3
    }

    /// True when this period has filled further than the apply of the one before has come.
    fn is_ahead(&self) -> bool {
        let state = self.shared.lock();
        let filled = self.period_bytes() * 1000 / self.period_limit();
        (state.applying || state.job.is_some()) && filled > state.progress + HEAD_START
    }

    /// Takes the next records; false when there are none that cannot wait.
    fn take(&mut self) -> bool {
        let limit = as_u64(GROUP_BYTES).min(self.journal.size() / 16);
        let mut state = self.shared.lock();
        if !state.must_write() {
            return false;
        }
        match state.take(limit, &mut self.batch) {
            Some(last) => {
                self.batch_last = last;
                true
            }
            None => false,
        }
    }

    fn has_room(&self, staged: &Staged) -> bool {
        // The checkpoint after this group must fit too, on either side of the ring's end.
        self.journal.fits(staged)
            && self.journal.room_after(staged) >= 2 * self.checkpoint_bound + 2 * as_u64(PAGE)
    }

    fn wait_for_room(&self) -> Result<Step, StoreFailure> {
        let state = self.shared.lock();
        if state.applying || state.job.is_some() || state.done.is_some() {
            return Ok(Step::NeedsApply);
        }
        Err(StoreFailure::JournalTooSmall { bytes: self.checkpoint_bound })
    }

    /// Writes the state of all replicas and hands the period to the apply thread.
    fn checkpoint(&mut self, boundary: JournalSeq) -> Result<Step, StoreFailure> {
        {
            let state = self.shared.lock();
            if state.applying || state.job.is_some() {
                return Ok(Step::NeedsApply);
            }
        }
        self.see_done();
        debug_assert!(boundary <= self.written);
        let mark = self.journal.cursor();
        let replicas: Vec<Vec<u8>> = self.state.encode().collect();
        let parts = cut(&replicas);
        for (part, nth) in parts.iter().zip(0u32..) {
            let kind = GroupKind::Checkpoint { part: nth, parts: as_u32(parts.len()) };
            let staged = self.journal.stage_checkpoint(part, kind);
            if !self.journal.fits(&staged) {
                return Err(StoreFailure::JournalTooSmall { bytes: checkpoint_bytes(&replicas) });
            }
            self.journal.write(&staged)?;
        }
        self.period_start = mark.end;
        self.checkpoint_bound = checkpoint_bytes(&replicas);
        let mut state = self.shared.lock();
        if let Some(oldest) = state.periods.front() {
            let layer = oldest.layer.clone();
            state.job = Some(ApplyJob { layer, mark });
        }
        self.shared.apply_wake.notify();
        Ok(Step::Wrote)
    }
}

/// Bytes that a checkpoint of these replicas takes in the ring, at most.
fn checkpoint_bytes(replicas: &[Vec<u8>]) -> u64 {
    let whole: usize = replicas.iter().map(|r| r.len() + ENTRY_HEAD).sum();
    let groups = whole / CHECKPOINT_PART + 1;
    as_u64(whole + groups * (GROUP_HEAD + PAGE))
}

/// Bytes of the fields of a record; blocks are not part of the state.
fn record_fields(record: &Record) -> usize {
    // Writes, by far the most, have a known size; anything else is measured.
    if let Some(content) = record.content() {
        return 128 + content.data_blocks() * 4;
    }
    let mut fields = Vec::new();
    record.put_fields(&mut fields);
    fields.len()
}

/// Cuts replica states into groups; at least one, as an empty checkpoint is a checkpoint too.
fn cut(replicas: &[Vec<u8>]) -> Vec<&[Vec<u8>]> {
    let mut parts = Vec::new();
    let (mut from, mut size) = (0, 0);
    for (at, bytes) in replicas.iter().enumerate() {
        if size > 0 && size + bytes.len() > CHECKPOINT_PART {
            parts.push(replicas.get(from..at).unwrap_or_default());
            (from, size) = (at, 0);
        }
        size += bytes.len();
    }
    parts.push(replicas.get(from..).unwrap_or_default());
    parts
}
