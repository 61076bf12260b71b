//! What Raft remembers: entries and hard state in our log, the newest snapshot as a file.
//!
//! The log's state value holds the hard state and the **base**: the position before the first
//! entry, which the newest snapshot stands for or lies behind.
//!
//! ```text
//! byte 0      version of the state value
//! byte 1..9   term       9..17  vote       17..25  commit
//! byte 25..33 base index 33..41 base term  41..49 how many voters
//! byte 49..   the voters, then the learners, 8 bytes each (version 1: the voters from byte 41)
//! ```
//!
//! Order that makes every crash harmless: a snapshot file is durable before the base moves, the
//! state value is written before the entries that it makes superfluous are cut. What a crash left
//! half-done is finished at the next open. A log damaged before its synced end is an error: a
//! member that forgot a vote or an entry must not take part any more. Damage to the last group is
//! told from a torn one once the log was sealed, which every tick does.

use crate::message::{self, MessageError, WireSnapshot};
use crate::snapshot::SnapshotFiles;
use ashlar_env::disk::{Disk, DiskError};
use ashlar_log::{Log, LogError, LogOptions};
use raft::prelude::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use thiserror::Error;

const STATE_VERSION: u8 = 2;
/// Everybody starts from the same imagined entry, so that nobody needs a first snapshot.
const FIRST_BASE: (u64, u64) = (1, 1);

/// Why a member's memory is unusable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StorageError {
    /// The log failed or is damaged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A snapshot file is damaged.
    #[error("snapshot file {name}: {why}")]
    Snapshot {
        /// File name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The log's state value is damaged or of a newer version.
    #[error("the raft state value is {0}")]
    State(&'static str),
    /// An entry of the log cannot be read.
    #[error("entry {index} of the raft log: {cause}")]
    Entry {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        cause: MessageError,
    },
    /// The log is new, and this member was not told that the zone is new too.
    #[error(
        "the raft log is empty: a member that lost its store must not vote; start with bootstrap \
         only when the zone itself is new"
    )]
    Empty,
    /// The applied state is ahead of the log.
    #[error("state is applied up to {applied}, but the log ends at {last}")]
    AppliedAhead {
        /// Index of the applied state.
        applied: u64,
        /// Last entry of the log.
        last: u64,
    },
    /// The applied state ends before the log begins.
    #[error("state is applied up to {applied}, but the log begins after {base}")]
    AppliedBehind {
        /// Index of the applied state.
        applied: u64,
        /// Position before the first entry.
        base: u64,
    },
}

/// Why an empty log may be no loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// It would be one: the member has run before.
    #[default]
    Again,
    /// The zone is new.
    Bootstrap,
    /// The member is new, under a number that was given to it and never used before.
    Join,
}

impl Start {
    /// The first start in a new zone, or another one.
    #[must_use]
    pub const fn bootstrap_if(new: bool) -> Self {
        if new { Self::Bootstrap } else { Self::Again }
    }
}

/// What the log's state value holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Remembered {
    term: u64,
    vote: u64,
    commit: u64,
    base: (u64, u64),
    voters: Vec<u64>,
    /// Members that are filled and do not vote.
    learners: Vec<u64>,
}

impl Remembered {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![STATE_VERSION];
        let (base, voters) = (self.base, self.voters.len() as u64);
        let fixed = [self.term, self.vote, self.commit, base.0, base.1, voters];
        let members = self.voters.iter().chain(&self.learners);
        fixed.iter().chain(members).for_each(|number| out.extend(number.to_le_bytes()));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        match bytes.split_first() {
            Some((version @ (1 | &STATE_VERSION), rest)) => {
                let (numbers, left) = rest.as_chunks::<8>();
                let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
                let mut next = || numbers.next().ok_or(StorageError::State("too short"));
                let (term, vote, commit) = (next()?, next()?, next()?);
                let base = (next()?, next()?);
                let count = if *version == 1 { None } else { Some(next()?) };
                let mut voters: Vec<u64> = numbers.collect();
                let count = count.unwrap_or(voters.len() as u64);
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                if count > voters.len() {
                    return Err(StorageError::State("damaged"));
                }
                let learners = voters.split_off(count);
                // Nobody votes in the memory of a member that has joined and not heard yet.
                if !left.is_empty() {
                    return Err(StorageError::State("damaged"));
                }
                Ok(Self { term, vote, commit, base, voters, learners })
            }
            Some(_) => Err(StorageError::State("of a version that this release does not read")),
            None => Err(StorageError::State("empty")),
        }
    }
}

/// Raft's memory.
#[derive(Debug)]
pub(crate) struct RaftStorage {
    log: Log,
    files: SnapshotFiles,
    remembered: Remembered,
    /// All entries after the base; bounded by compaction.
    entries: VecDeque<Entry>,
    /// Raft asked for a newer snapshot than there is.
    snapshot_wanted: Cell<bool>,
}

impl RaftStorage {
    /// Opens or creates a member's memory.
    pub(crate) fn open(
        log_disk: Arc<dyn Disk>,
        snapshot_disk: Arc<dyn Disk>,
        log_options: LogOptions,
        voters: &[u64],
        start: Start,
    ) -> Result<Self, StorageError> {
        let (log, found) = Log::open(log_disk, log_options)?;
        let files = SnapshotFiles::new(snapshot_disk);
        let remembered = match log.state() {
            Some(state) => Remembered::decode(state)?,
            None if found.new || log.first_index() == log.next_index() => match start {
                Start::Bootstrap => Remembered {
                    term: FIRST_BASE.1,
                    vote: 0,
                    commit: FIRST_BASE.0,
                    base: FIRST_BASE,
                    voters: voters.to_vec(),
                    learners: Vec::new(),
                },
                // Below everybody's first entry, so that a snapshot comes first: it says who votes.
                Start::Join => Remembered {
                    term: 0,
                    vote: 0,
                    commit: 0,
                    base: (0, 0),
                    voters: Vec::new(),
                    learners: Vec::new(),
                },
                Start::Again => return Err(StorageError::Empty),
            },
            None => return Err(StorageError::Empty),
        };
        let entries = VecDeque::new();
        let snapshot_wanted = Cell::new(false);
        let mut storage = Self { log, files, remembered, entries, snapshot_wanted };
        storage.recover()?;
        Ok(storage)
    }

    /// Finishes what a crash left half-done, and reads the entries.
    fn recover(&mut self) -> Result<(), StorageError> {
        if let Some(newest) = self.files.newest()? {
            let known = self.term_in_log(newest.index)?;
            if newest.index > self.remembered.base.0 && known != Some(newest.term) {
                // A process that was killed may have left its name in memory only.
                self.files.sync_names()?;
                self.start_after(&newest);
            }
        }
        let (base, base_term) = self.remembered.base;
        self.log.set_state(&self.remembered.encode())?;
        if self.log.first_index() > base + 1
            || self.log.next_index() <= base
            || self.term_in_log(base)?.is_some_and(|term| term != base_term)
        {
            self.log.reset(base + 1)?;
        } else if self.log.first_index() <= base {
            self.log.truncate_prefix(base + 1)?;
        }
        self.log.sync()?;
        for index in self.log.first_index()..self.log.next_index() {
            let entry = self.read_entry(index)?;
            self.entries.push_back(entry);
        }
        Ok(())
    }

    fn read_entry(&self, index: u64) -> Result<Entry, StorageError> {
        let bytes = self.log.read(index)?;
        message::decode_entry(&bytes).map_err(|cause| StorageError::Entry { index, cause })
    }

    fn term_in_log(&self, index: u64) -> Result<Option<u64>, StorageError> {
        let held = self.log.first_index()..self.log.next_index();
        held.contains(&index).then(|| self.read_entry(index).map(|entry| entry.term)).transpose()
    }

    /// The commit index may have been remembered late; what is applied is committed.
    pub(crate) fn check_applied(&mut self, applied: u64) -> Result<(), StorageError> {
        let (base, last) = (self.remembered.base.0, self.last());
        if applied > last {
            return Err(StorageError::AppliedAhead { applied, last });
        }
        if applied < base {
            return Err(StorageError::AppliedBehind { applied, base });
        }
        self.remembered.commit = self.remembered.commit.max(applied).min(last);
        Ok(())
    }

    fn start_after(&mut self, snapshot: &WireSnapshot) {
        self.remembered.base = (snapshot.index, snapshot.term);
        self.remembered.commit = self.remembered.commit.max(snapshot.index);
        if snapshot.term > self.remembered.term {
            (self.remembered.term, self.remembered.vote) = (snapshot.term, 0);
        }
        self.remembered.voters.clone_from(&snapshot.voters);
        self.remembered.learners.clone_from(&snapshot.learners);
    }

    fn last(&self) -> u64 {
        self.remembered.base.0 + self.entries.len() as u64
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.remembered.base.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Position before the first entry.
    pub(crate) fn base_index(&self) -> u64 {
        self.remembered.base.0
    }

    /// Entries held in memory and in the log.
    pub(crate) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Members that vote.
    pub(crate) fn voters(&self) -> &[u64] {
        &self.remembered.voters
    }

    /// Members that are filled and do not vote.
    pub(crate) fn learners(&self) -> &[u64] {
        &self.remembered.learners
    }

    /// The newest snapshot's state, to start from.
    pub(crate) fn newest_snapshot(&self) -> Result<Option<WireSnapshot>, StorageError> {
        self.files.newest()
    }

    /// Whether Raft waits for a newer snapshot than there is.
    pub(crate) fn snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.get()
    }

    /// Takes over who the members are from an entry that was applied; durable on return.
    pub(crate) fn set_members(
        &mut self,
        voters: Vec<u64>,
        learners: Vec<u64>,
    ) -> Result<(), StorageError> {
        self.remembered.voters = voters;
        self.remembered.learners = learners;
        self.log.set_state(&self.remembered.encode())?;
        self.sync()
    }

    /// Takes entries, of which the first may replace a suffix. Durable after [`Self::sync`].
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<(), StorageError> {
        let Some(first) = entries.first().map(|entry| entry.index) else { return Ok(()) };
        if first < self.log.next_index() {
            self.log.truncate_suffix(first)?;
            let keep = first.saturating_sub(self.remembered.base.0 + 1);
            self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        }
        for entry in entries {
            self.log.append(entry.index, &message::encode_entry(&entry))?;
            self.entries.push_back(entry);
        }
        Ok(())
    }

    /// Takes the hard state. Durable after [`Self::sync`].
    pub(crate) fn set_hard_state(&mut self, hard: &HardState) -> Result<(), StorageError> {
        assert!(hard.term >= self.remembered.term, "raft's term goes back");
        self.remembered.term = hard.term;
        self.remembered.vote = hard.vote;
        self.remembered.commit = hard.commit;
        Ok(self.log.set_state(&self.remembered.encode())?)
    }

    /// Takes a new commit index, which may be lost: it is found out again.
    pub(crate) fn set_commit(&mut self, commit: u64) {
        self.remembered.commit = self.remembered.commit.max(commit);
    }

    /// Makes everything taken so far durable.
    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        Ok(self.log.sync()?)
    }

    /// In an idle moment: from here on damage to what was synced last is noticed at the next open.
    pub(crate) fn seal(&mut self) -> Result<(), StorageError> {
        // What was not worth a sync (a commit index) follows what was, so it seals it.
        if self.log.needs_sync() { self.sync() } else { Ok(self.log.seal()?) }
    }

    /// Installs a snapshot from the leader in place of everything; durable on return.
    pub(crate) fn install(&mut self, snapshot: &WireSnapshot) -> Result<(), StorageError> {
        self.files.write(snapshot)?;
        self.start_after(snapshot);
        self.log.set_state(&self.remembered.encode())?;
        self.log.reset(snapshot.index + 1)?;
        self.entries.clear();
        self.sync()
    }

    /// Keeps a snapshot of the state at `index` and drops entries up to `keep_from`, exclusive.
    pub(crate) fn compact(
        &mut self,
        index: u64,
        data: Vec<u8>,
        keep_from: u64,
    ) -> Result<(), StorageError> {
        let Some(term) = self.at(index).map(|entry| entry.term) else { return Ok(()) };
        let Remembered { voters, learners, .. } = self.remembered.clone();
        self.files.write(&WireSnapshot { index, term, voters, learners, data: data.into() })?;
        self.snapshot_wanted.set(false);
        let base = keep_from.min(index + 1).saturating_sub(1);
        let Some(base_term) = self.at(base).map(|entry| entry.term) else { return Ok(()) };
        let dropped = base - self.remembered.base.0;
        self.remembered.base = (base, base_term);
        self.log.set_state(&self.remembered.encode())?;
        self.log.truncate_prefix(base + 1)?;
        self.sync()?;
        self.entries.drain(..usize::try_from(dropped).unwrap_or(0).min(self.entries.len()));
        Ok(())
    }
}

#[cfg(test)]
impl RaftStorage {
    /// Term, vote, and every entry: what a member must never forget.
    pub(crate) fn promises(&self) -> (u64, u64, Vec<(u64, u64, bytes::Bytes)>) {
        let entries = self.entries.iter().map(|e| (e.index, e.term, e.data.clone())).collect();
        (self.remembered.term, self.remembered.vote, entries)
    }

    /// Where the memory ends.
    pub(crate) fn last_index_term(&self) -> (u64, u64) {
        self.entries.back().map_or(self.remembered.base, |entry| (entry.index, entry.term))
    }
}

impl Storage for RaftStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let Remembered { term, vote, commit, .. } = self.remembered;
        let hard = HardState { term, vote, commit, ..HardState::default() };
        let mut members = ConfState::default();
        members.voters.clone_from(&self.remembered.voters);
        members.learners.clone_from(&self.remembered.learners);
        Ok(RaftState::new(hard, members))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.remembered.base.0 {
            return Err(raft::Error::Store(raft::StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(raft::StorageError::Unavailable));
        }
        let mut entries: Vec<Entry> =
            (low..high).filter_map(|index| self.at(index).cloned()).collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let (base, base_term) = self.remembered.base;
        if index == base {
            return Ok(base_term);
        }
        let missing = if index < base {
            raft::StorageError::Compacted
        } else {
            raft::StorageError::Unavailable
        };
        self.at(index).map(|entry| entry.term).ok_or(raft::Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.remembered.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        let unavailable = raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable);
        match self.files.newest() {
            // One from before a change of members does not say who votes now.
            Ok(Some(newest))
                if newest.index >= request_index.max(self.remembered.base.0)
                    && newest.voters == self.remembered.voters
                    && newest.learners == self.remembered.learners =>
            {
                Ok(newest.into())
            }
            Ok(_) => {
                self.snapshot_wanted.set(true);
                Err(unavailable)
            }
            Err(error) => {
                tracing::error!(%error, "the newest snapshot cannot be read; another is made");
                self.snapshot_wanted.set(true);
                Err(unavailable)
            }
        }
    }
}
