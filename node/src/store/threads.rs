//! The handle and the threads behind it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ashlar_env::dice::Dice;
use ashlar_env::disk::{Disk, RealDisk};
use ashlar_node_core::Line;

use crate::log_line::log_line;
use crate::seam::{JoinHandle, spawn_thread};

use super::apply::Applier;
use super::commit::{Committer, Step};
use super::growth::grow_thread;
use super::open::{self, Parts};
use super::reader::Reader;
use super::shared::{PATIENCE, Resolved, Shared};
use super::{
    Events, NoSpace, Numbered, OpenError, Opened, Owner, ReadDone, ReadRequest, Reporter, Space,
    StoreEvent, StoreFailure, StoreOptions,
};

/// Between two parts of a verification, so that it leaves the disk to others: at most 80 MiB/s.
const VERIFY_PAUSE: Duration = Duration::from_millis(50);

/// How long nothing comes before the journal is sealed: long beside the gaps between the writes of a
/// busy client, which pay no second sync, and short beside the time in which a disk rots.
const SEAL_AFTER: Duration = Duration::from_millis(200);

/// A running store. Dropping it writes what was handed over, then stops the threads.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Holds the folder's lock.
    _disk: Arc<dyn Disk>,
}

impl Store {
    /// Opens or makes the store in a folder of the file system.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_folder(
        folder: &Path,
        options: StoreOptions,
        owner: Owner,
        dice: &mut dyn Dice,
        events: Events,
    ) -> Result<Opened, OpenError> {
        let disk = Arc::new(RealDisk::open(folder)?);
        Self::open(disk, options, owner, dice, events)
    }

    /// Opens or makes the store on `disk`. `dice` draw the id of a new one.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        owner: Owner,
        dice: &mut dyn Dice,
        events: Events,
    ) -> Result<Opened, OpenError> {
        let reporter = Reporter(events);
        let parts = open::open(&*disk, &options, owner, dice, &reporter)?;
        let Parts { shared, committer, applier, reader, state, superblock, new } = parts;
        let mut store = Self { shared: shared.clone(), threads: Vec::new(), _disk: disk };
        let r = reporter.clone();
        store.start("store-journal", move || journal_thread(committer, &r))?;
        let r = reporter.clone();
        store.start("store-apply", move || apply_thread(applier, &r))?;
        let (grower, r) = (shared, reporter.clone());
        store.start("store-grow", move || grow_thread(&grower, &r))?;
        store.start("store-read", move || read_thread(reader, &reporter))?;
        let (id, start) = (superblock.store, superblock.start);
        Ok(Opened { store, state, id, start, new })
    }

    fn start(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = spawn_thread(name, body).map_err(|e| OpenError::Thread(e.to_string()))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Hands records over, numbered without gaps from 1. They are readable on return and durable
    /// when [`StoreEvent::Durable`] names them or a later one. Never waits for the disk.
    ///
    /// # Errors
    /// [`NoSpace`]: nothing was taken, `records` is as before. Otherwise it is empty.
    pub fn append(&self, records: &mut Vec<Numbered>) -> Result<(), NoSpace> {
        if records.is_empty() { Ok(()) } else { self.shared.append(records, false) }
    }

    /// The same for records that an erasure waits behind: they may use what is kept back for them.
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn append_before_erasure(&self, records: &mut Vec<Numbered>) -> Result<(), NoSpace> {
        if records.is_empty() { Ok(()) } else { self.shared.append(records, true) }
    }

    /// Starts reads, which see every record appended before. What memory alone can answer is
    /// returned at once; the rest comes as [`StoreEvent::Read`].
    #[must_use]
    pub fn read(&self, requests: Vec<ReadRequest>) -> Vec<ReadDone> {
        let mut done = Vec::new();
        let mut waiting = false;
        let mut state = self.shared.lock();
        for request in requests {
            match Shared::begin_read(&mut state, request) {
                Resolved::Memory(data) => {
                    done.push(ReadDone { ticket: request.ticket, result: Ok(data) });
                }
                Resolved::Disk(job) => {
                    waiting = true;
                    state.reads.push_back(job);
                }
            }
        }
        drop(state);
        if waiting {
            self.shared.read_wake.notify();
        }
        done
    }

    /// Room for data.
    #[must_use]
    pub fn space(&self) -> Space {
        self.shared.lock().space()
    }

    /// Begins to verify what the store keeps for itself (map, superblock) and to write anew what has
    /// rotted; nothing happens if that is under way. Blocks are verified by reading them.
    pub fn verify(&self) {
        self.shared.lock().verify_at.get_or_insert(0);
        self.shared.apply_wake.notify();
    }

    /// Journal bytes that wait to be written: the measure of back pressure. A caller that goes on
    /// above a few MiB only grows memory and delays.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.shared.lock().queue_bytes()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.journal_wake.notify();
        for thread in self.threads.drain(..) {
            // A panic there has ended the process.
            let _ended = thread.join();
        }
    }
}

/// Notes the failure and reports it, once.
fn fail(shared: &Shared, reporter: &Reporter, failure: StoreFailure) {
    let mut state = shared.lock();
    if state.failed.is_some() {
        return;
    }
    log_line!(Line::StoreEnds, error = %failure);
    state.failed = Some(failure.clone());
    drop(state);
    shared.journal_wake.notify();
    shared.apply_wake.notify();
    shared.grow_wake.notify();
    reporter.report(StoreEvent::Failed(failure));
}

fn journal_thread(mut committer: Committer, reporter: &Reporter) {
    let shared = committer.shared().clone();
    while shared.lock().failed.is_none() {
        match committer.step() {
            Ok(Step::Wrote) => {}
            Ok(Step::Idle) => match idle(&mut committer, &shared) {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => fail(&shared, reporter, failure),
            },
            Ok(Step::NeedsApply) => {
                let mut state = shared.lock();
                let seen = state.progress;
                while state.done.is_none() && state.failed.is_none() && state.progress == seen {
                    state = shared.journal_wake.wait(state);
                }
            }
            Err(failure) => fail(&shared, reporter, failure),
        }
    }
    // The others end after the journal, so that it never waits for them in vain.
    shared.lock().finished = true;
    shared.apply_wake.notify();
    shared.read_wake.notify();
    shared.grow_wake.notify();
}

/// Waits for work of the journal thread, and seals the journal if none comes for a while; false when
/// there will be none any more.
fn idle(committer: &mut Committer, shared: &Shared) -> Result<bool, StoreFailure> {
    let mut state = shared.lock();
    while !state.journal_has_work() {
        let (after, passed) = match (state.queue.is_empty(), committer.is_sealed()) {
            (true, true) => (shared.journal_wake.wait(state), false),
            (true, false) => shared.journal_wake.wait_for(state, SEAL_AFTER),
            (false, _) => shared.journal_wake.wait_for(state, PATIENCE),
        };
        state = after;
        if passed && state.queue.is_empty() {
            drop(state);
            committer.seal()?;
            state = shared.lock();
        } else {
            state.overdue |= passed;
        }
    }
    if state.stopping && state.queue.is_empty() {
        drop(state);
        committer.seal()?;
        return Ok(false);
    }
    Ok(true)
}

fn apply_thread(mut applier: Applier, reporter: &Reporter) {
    let shared = applier.shared.clone();
    loop {
        let mut state = shared.lock();
        while state.job.is_none() && !state.finished && state.failed.is_none() {
            if state.verify_at.is_none() {
                state = shared.apply_wake.wait(state);
                continue;
            }
            drop(state);
            if let Err(failure) = applier.verify_some() {
                fail(&shared, reporter, failure);
            }
            state = shared.lock();
            // A job may have come meanwhile: whoever brought it found nobody waiting.
            if state.job.is_none() && !state.finished && state.failed.is_none() {
                state = shared.apply_wake.wait_for(state, VERIFY_PAUSE).0;
            }
        }
        if state.failed.is_some() || state.job.is_none() {
            return;
        }
        drop(state);
        let Some(job) = applier.take_job() else { continue };
        let mut state = shared.lock();
        while !Applier::earlier_reads_done(&state) {
            state = shared.apply_wake.wait(state);
        }
        drop(state);
        if let Err(failure) = applier.run(&job) {
            fail(&shared, reporter, failure);
        }
    }
}

fn read_thread(mut reader: Reader, reporter: &Reporter) {
    let shared = reader.shared.clone();
    loop {
        let mut state = shared.lock();
        while state.reads.is_empty() && !state.finished {
            state = shared.read_wake.wait(state);
        }
        if state.reads.is_empty() {
            return;
        }
        drop(state);
        let jobs = reader.take();
        let done = reader.run(jobs);
        reporter.report(StoreEvent::Read(done));
    }
}
