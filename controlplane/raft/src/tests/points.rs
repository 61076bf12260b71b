//! Numbered crash points of a member's memory: power goes at each operation of a recorded load.
//!
//! The load does to log and snapshot files what Raft asks for: entries, cuts of a suffix that a new
//! leader replaces, votes and terms, compaction, snapshots of the leader, seals, restarts. At every
//! operation of either folder the memory is opened on what a power cut can leave
//! ([`ashlar_env::disk::mem::record`]). What is found must be what some prefix of the load leads to,
//! with everything that was synced by then: no vote, term or entry is forgotten, none comes back that
//! was cut, and the newest snapshot is whole and reaches the log. A second opening finds the same even
//! if nothing survives that the first has not synced; an opening may itself be cut off anywhere.
//!
//! A few seconds; with `ASHLAR_NIGHTLY` set longer loads, and more of them.

use super::*;
use crate::message::WireSnapshot;
use crate::storage::{RaftStorage, Start, StorageError};
use ashlar_env::disk::mem::Survivors;
use ashlar_env::disk::mem::record::Recorder;
use raft::prelude::{Entry, HardState};
use std::collections::BTreeSet;

const LOG: LogOptions = LogOptions { segment_bytes: 16 << 10, spare_segments: 1 };

fn nightly<T>(few: T, many: T) -> T {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { many } else { few }
}

fn open(disks: &[MemDisk], start: Start) -> Result<RaftStorage, StorageError> {
    let [log, snapshots] = disks else { panic!("two folders") };
    let (log, snapshots) = (Arc::new(log.clone()), Arc::new(snapshots.clone()));
    RaftStorage::open(log, snapshots, LOG, &[1, 2, 3], start)
}

/// What a member remembers, as a value.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    term: u64,
    vote: u64,
    base: u64,
    entries: Vec<(u64, u64, Bytes)>,
    voters: Vec<u64>,
}

impl Model {
    fn of(storage: &RaftStorage) -> Self {
        let (term, vote, entries) = storage.promises();
        let voters = storage.voters().to_vec();
        Self { term, vote, base: storage.base_index(), entries, voters }
    }

    fn last(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn cut(&mut self, from: u64) {
        self.entries.retain(|(index, _, _)| *index < from);
    }

    fn drop_to(&mut self, base: u64) {
        self.entries.retain(|(index, _, _)| *index > base);
        self.base = base;
    }
}

/// What was synced at some moment.
#[derive(Clone, Copy, Debug)]
struct Promise {
    /// Position in the history.
    at: usize,
    /// Index of the newest snapshot.
    snapshot: u64,
}

struct Load {
    disks: Vec<MemDisk>,
    recorder: Recorder,
    storage: RaftStorage,
    dice: SeededDice,
    history: Vec<Model>,
    promises: Vec<Promise>,
    snapshot: u64,
    /// Nothing up to here is ever cut from behind: it counts as committed.
    committed: u64,
}

/// A snapshot's content follows from its index.
fn data(index: u64) -> Bytes {
    Bytes::from(vec![u8::try_from(index % 251).unwrap(); 3_000])
}

impl Load {
    fn new(seed: u64) -> Self {
        let (disks, recorder) = (vec![MemDisk::new(), MemDisk::new()], Recorder::new());
        disks.iter().for_each(|disk| recorder.watch(disk));
        let storage = open(&disks, Start::Bootstrap).unwrap();
        let history = vec![Model::of(&storage)];
        let promises = vec![Promise { at: 0, snapshot: 0 }];
        let dice = SeededDice::stream(seed, "points");
        let (snapshot, committed) = (0, 1);
        let mut load =
            Self { disks, recorder, storage, dice, history, promises, snapshot, committed };
        load.promise();
        load
    }

    fn promise(&mut self) {
        self.recorder.note(self.promises.len() as u64);
        self.promises.push(Promise { at: self.history.len() - 1, snapshot: self.snapshot });
    }

    fn now(&self) -> Model {
        self.history.last().unwrap().clone()
    }

    fn step(&mut self, change: impl FnOnce(&mut Model)) {
        let mut next = self.now();
        change(&mut next);
        self.history.push(next);
    }

    /// Entries, perhaps in place of a suffix, under a term that may be new; synced.
    fn append(&mut self) {
        let now = self.now();
        let new_leader = self.dice.chance(1, 3);
        let term = now.term + u64::from(new_leader);
        let from = if new_leader {
            self.committed + 1 + self.dice.below(now.last() - self.committed + 1)
        } else {
            now.last() + 1
        };
        if from <= now.last() {
            self.step(|model| model.cut(from));
        }
        let mut entries = Vec::new();
        for index in from..from + 1 + self.dice.below(4) {
            let size = if self.dice.chance(1, 4) { 5_000 } else { 40 };
            let bytes = vec![u8::try_from(self.history.len() % 251).unwrap(); size];
            let mut entry = Entry { index, term, ..Entry::default() };
            entry.data = bytes.clone().into();
            self.step(|model| model.entries.push((index, term, bytes.into())));
            entries.push(entry);
        }
        self.storage.append(entries).unwrap();
        if new_leader {
            self.vote(term);
        }
        self.storage.sync().unwrap();
        self.promise();
    }

    fn vote(&mut self, term: u64) {
        let vote = if self.dice.chance(1, 2) { 1 + self.dice.below(3) } else { 0 };
        let hard = HardState { term, vote, commit: self.committed, ..HardState::default() };
        self.storage.set_hard_state(&hard).unwrap();
        self.step(|model| (model.term, model.vote) = (term, vote));
    }

    fn compact(&mut self) {
        let now = self.now();
        let nth = usize::try_from(self.dice.below(8)).unwrap();
        let Some(applied) = now.entries.get(nth).map(|entry| entry.0) else { return };
        let keep_from = (applied + 1).saturating_sub(self.dice.below(4));
        self.committed = self.committed.max(applied);
        let base = keep_from.min(applied + 1).saturating_sub(1);
        if applied <= self.snapshot || base <= now.base {
            return;
        }
        self.storage.compact(applied, data(applied).to_vec(), keep_from).unwrap();
        self.snapshot = applied;
        self.step(|model| model.drop_to(base));
        self.promise();
    }

    fn install(&mut self) {
        let now = self.now();
        let index = self.committed + 1 + self.dice.below(12);
        let term = now.term + 1;
        let voters = vec![1, 2, 3 + self.dice.below(5)];
        if index <= self.snapshot {
            return;
        }
        let learners = Vec::new();
        let snapshot =
            WireSnapshot { index, term, voters: voters.clone(), learners, data: data(index) };
        self.storage.install(&snapshot).unwrap();
        (self.committed, self.snapshot) = (index, index);
        self.step(|model| {
            model.entries.clear();
            (model.base, model.term, model.vote, model.voters) = (index, term, 0, voters);
        });
        self.promise();
    }

    fn go_on(&mut self) {
        match self.dice.below(20) {
            0..10 => self.append(),
            10..13 => {
                let term = self.now().term + 1;
                self.vote(term);
                self.storage.sync().unwrap();
                self.promise();
            }
            13..16 => self.compact(),
            16 => self.install(),
            17..19 => self.storage.seal().unwrap(),
            _ => {
                self.storage = open(&self.disks, Start::Again).unwrap();
                assert_eq!(Model::of(&self.storage), self.now());
            }
        }
        assert_eq!(Model::of(&self.storage), self.now());
    }

    /// Opens the memory on an image and judges it; gives its place in the history.
    fn judge(&self, image: &[MemDisk], noted: u64) -> (RaftStorage, usize) {
        // A member that was promised nothing yet may have to begin anew.
        let start = if noted == 0 { Start::Bootstrap } else { Start::Again };
        let storage = open(image, start).unwrap();
        let found = Model::of(&storage);
        let promise = self.promises[usize::try_from(noted).unwrap()];
        let place = self.history.iter().skip(promise.at).position(|model| *model == found);
        let Some(place) = place else {
            let known = self.history.iter().position(|model| *model == found);
            panic!("synced: {promise:?}; found is {known:?} of the history: {found:?}");
        };
        let newest = storage.newest_snapshot().unwrap();
        let index = newest.as_ref().map_or(0, |snapshot| snapshot.index);
        assert!(index >= promise.snapshot, "{index} is older than the promised snapshot");
        assert!(found.base <= 1 || index >= found.base, "no snapshot reaches the log");
        assert!(newest.is_none_or(|snapshot| snapshot.data == data(index)), "another content");
        (storage, promise.at + place)
    }
}

fn guarded<T>(what: &str, check: impl FnOnce() -> T) -> T {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    outcome.unwrap_or_else(|cause| {
        eprintln!("at {what}");
        std::panic::resume_unwind(cause)
    })
}

fn fork(disks: &[MemDisk]) -> Vec<MemDisk> {
    disks.iter().map(MemDisk::fork).collect()
}

/// One image: opened, opened again, carried on; returns the openings.
fn look(load: &Load, image: &[MemDisk], noted: u64, whole: bool) -> usize {
    let before = fork(image);
    let (mut storage, place) = load.judge(image, noted);
    // What the first opening has found is what a power cut at once must leave.
    let second = fork(image);
    second.iter().for_each(|d| d.crash_with(Survivors::Nothing, &mut SeededDice::new(0)));
    let again = open(&second, Start::Again).unwrap();
    assert_eq!(Model::of(&again), load.history[place], "the second opening found another content");
    let mut entry = Entry { index: storage.last_index_term().0 + 1, ..Entry::default() };
    entry.term = load.history[place].term + 1;
    storage.append(vec![entry]).unwrap();
    storage.sync().unwrap();
    let after = Model::of(&storage);
    image.iter().for_each(|d| d.crash_with(Survivors::Nothing, &mut SeededDice::new(0)));
    assert_eq!(Model::of(&open(image, Start::Again).unwrap()), after);
    3 + if whole { cut_off_openings(load, &before, noted) } else { 0 }
}

fn cut_off_openings(load: &Load, image: &[MemDisk], noted: u64) -> usize {
    let recorder = Recorder::new();
    image.iter().for_each(|disk| recorder.watch(disk));
    let start = if noted == 0 { Start::Bootstrap } else { Start::Again };
    open(image, start).unwrap();
    let (mut replay, mut openings) = (recorder.replay(), 0);
    while let Some(point) = replay.next_point() {
        for fate in point.fates(1) {
            openings += 1;
            let what = format!("operation {} of the opening, {fate:?}", point.number);
            guarded(&what, || load.judge(&point.after_power_cut(fate), noted));
        }
    }
    openings
}

#[test]
fn power_may_go_at_every_operation() {
    for seed in 0..nightly(3, 60) {
        let mut load = Load::new(seed);
        for _ in 0..nightly(60, 250) {
            load.go_on();
        }
        let (mut operations, mut images, mut openings) = (0, 0, 0);
        let mut seen = BTreeSet::new();
        let mut replay = load.recorder.replay();
        while let Some(point) = replay.next_point() {
            operations += 1;
            let fates = point.fates(8).into_iter().map(Some);
            for fate in fates.chain([None]) {
                let image =
                    fate.map_or_else(|| point.after_kill(), |fate| point.after_power_cut(fate));
                let prints: Vec<u64> = image.iter().map(MemDisk::fingerprint).collect();
                if !seen.insert((prints, point.noted)) {
                    continue;
                }
                images += 1;
                let what = format!("operation {}, {}: {fate:?}", point.number, point.what);
                let whole = images % nightly(31, 7) == 0;
                openings += guarded(&what, || look(&load, &image, point.noted, whole));
            }
        }
        assert!(operations > 100, "the load has {operations} operations");
        println!(
            "crash points of a member's memory, load {seed}: {operations} operations, {images} \
             images, {openings} openings"
        );
    }
}

#[test]
fn a_snapshot_whose_writer_was_killed_before_it_synced_the_folder_stays() {
    let disks = [MemDisk::new(), MemDisk::new()];
    let mut storage = open(&disks, Start::Bootstrap).unwrap();
    let recorder = Recorder::new();
    disks.iter().for_each(|disk| recorder.watch(disk));
    let (voters, learners) = (vec![1, 2, 3], Vec::new());
    let snapshot = WireSnapshot { index: 40, term: 3, voters, learners, data: data(40) };
    storage.install(&snapshot).unwrap();
    let (mut replay, mut taken_over) = (recorder.replay(), 0);
    while let Some(point) = replay.next_point() {
        let image = point.after_kill();
        let base = open(&image, Start::Again).unwrap().base_index();
        image.iter().for_each(|d| d.crash_with(Survivors::Nothing, &mut SeededDice::new(0)));
        let storage = open(&image, Start::Again).unwrap();
        let newest = storage.newest_snapshot().unwrap().map_or(1, |snapshot| snapshot.index);
        assert!(storage.base_index() >= base && newest >= base, "{}: {newest}", point.what);
        taken_over += u32::from(base == 40);
    }
    assert!(taken_over > 1);
}
