//! Numbered crash points: a load is recorded once, and power goes at each of its operations.
//!
//! At every operation (each write, sync, creation, rename, removal) the store is opened on what a
//! power cut can leave: nothing of what was not synced, everything, everything with a torn sector, and
//! random subsets of sectors ([`ashlar_env::disk::mem::record`]). What is found must be what some
//! prefix of the records leads to, as one value of blocks and state, and that prefix holds at least
//! what was reported durable by then. So an acknowledged write is there, none is torn, others are old
//! or new; an erased replica stays erased; an adopted epoch and a start number never go back. A
//! second opening finds the same even if nothing survives that the first has not synced, whether it
//! came after a power cut or after a kill; an opening may itself be cut off anywhere.
//!
//! A few seconds; with `ASHLAR_NIGHTLY` set longer loads, and more of them.

use std::collections::BTreeSet;

use ashlar_env::disk::Disk;
use ashlar_env::disk::mem::Survivors;
use ashlar_env::disk::mem::record::{Point, Recorder};
use ashlar_env::{dice::Dice, disk::mem::record::Replay};
use ashlar_types::message::data::Uncommitted;
use ashlar_types::{Lsn, Term};

use super::*;

/// Takes several large records, should they be journalled; small, as each opening reads all of it.
const RING: StoreOptions = StoreOptions {
    journal_bytes: 512 << 10,
    capacity_bytes: 24 << 20,
    engine: EngineChoice::Inline,
    ..SMALL
};

/// What somebody rests on at some moment.
#[derive(Clone, Copy, Debug)]
struct Promise {
    /// Records that are durable.
    durable: usize,
    /// Of the process that runs.
    start: StartNumber,
}

/// A load that was recorded.
struct Recording {
    recorder: Recorder,
    /// `history[k]` after k records.
    history: Vec<Model>,
    promises: Vec<Promise>,
}

/// Runs a load step by step.
struct Load {
    disk: MemDisk,
    rig: Rig,
    dice: SeededDice,
    /// Records that were durable when this process began.
    base: usize,
    made: Recording,
}

fn nightly<T>(few: T, many: T) -> T {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { many } else { few }
}

fn small(dice: &mut SeededDice, bound: u32) -> u32 {
    u32::try_from(dice.below(u64::from(bound))).unwrap()
}

/// A record that a core could hand over after everything before.
fn any_record(dice: &mut SeededDice, model: &Model, mark: u8) -> Record {
    let n = small(dice, 3);
    let chunk = chunk(n);
    let known = model.state.get(chunk);
    let pick = dice.below(100);
    let range = match dice.below(8) {
        0..4 => (small(dice, 6), 1 + small(dice, 3)),
        // Across the border of two slots.
        4 => (252 + small(dice, 4), 1 + small(dice, 6)),
        _ => (small(dice, CHUNK_BLOCKS - 8), 1 + small(dice, 4)),
    };
    let large = (small(dice, 15) * 16 + small(dice, 3), 16 + small(dice, 4));
    let Some(replica) = known else {
        let erased = model.state.erased().find(|(erased, _)| *erased == chunk);
        let epoch = erased.map_or(1, |(_, epoch)| epoch.0 + 1);
        return match pick {
            0..60 => adopt(n, epoch, epoch),
            60..64 => Record::Refuse { chunk, upto: Epoch(epoch + 1) },
            _ => fill(n, range.0, range.1, mark),
        };
    };
    let (last, epoch) = (replica.last, replica.config.epoch.0);
    let later = Term { elected: replica.term.elected, start: replica.term.start.next() };
    let write = |(first, count), mixed| Record::Write {
        chunk,
        lsn: last.next(),
        committed: if mark.is_multiple_of(3) { replica.committed } else { last },
        data: content(first, count, mark, mixed),
    };
    match pick {
        0..30 => write(range, false),
        30..36 => write(range, true),
        36..50 => write(large, false),
        50..60 => Record::Fill { chunk, data: content(range.0, range.1, mark, false) },
        60..64 => fill(n, large.0, large.1, mark),
        64..70 => zero(n, range.0, range.1 * 8),
        70..72 => zero(n, small(dice, 512), 512),
        72..78 => adopt(n, epoch + 1, replica.replica.incarnation.0),
        78..80 => adopt(n, epoch + 1, epoch + 1),
        80..83 => Record::Erase { chunk },
        83..85 => Record::Suspect { chunk },
        85..88 => Record::Committed { chunk, lsn: last },
        88..90 => Record::FollowTerm { chunk, term: later },
        90..92 => {
            let (first, count) = range;
            let entry = Uncommitted { lsn: last.next(), range: BlockRange::new(first, count) };
            Record::TakeOver { chunk, ranges: vec![entry] }
        }
        92..95 => {
            let overwrite = vec![BlockRange::new(range.0, range.1), BlockRange::new(7, 1)];
            Record::OpenTerm { chunk, term: later, base: last, overwrite }
        }
        95..97 => Record::OpenFill { chunk, base: last.max(Lsn::opening(replica.term)) },
        _ => {
            let learner = ReplicaId { node: NodeId(3), ..replica.replica };
            Record::ProposePromotion { chunk, epoch: Epoch(epoch), learner }
        }
    }
}

impl Load {
    fn new(seed: u64) -> Self {
        let (disk, recorder) = (MemDisk::new(), Recorder::new());
        recorder.watch(&disk);
        let first = Promise { durable: 0, start: StartNumber(0) };
        let made = Recording { recorder, history: vec![Model::default()], promises: vec![first] };
        let rig = Rig::try_open(&disk, &RING).unwrap();
        let dice = SeededDice::stream(seed, "points");
        let mut load = Self { disk, rig, dice, base: 0, made };
        load.promise();
        load
    }

    /// Notes what is durable by now.
    fn promise(&mut self) {
        let durable = self.base + usize::try_from(self.rig.durable()).unwrap();
        let start = self.rig.parts.superblock.start;
        self.made.promise(Promise { durable, start });
    }

    fn append(&mut self, count: u64) {
        let mut records = Vec::new();
        for _ in 0..count {
            let model = self.made.history.last().unwrap();
            let mark = u8::try_from(self.made.history.len() % 250).unwrap() + 1;
            let record = any_record(&mut self.dice, model, mark);
            self.made.follow(&record);
            records.push(record);
        }
        self.rig.append(records).unwrap();
    }

    /// One thing that a store does.
    fn go_on(&mut self) {
        match self.dice.below(100) {
            0..45 => {
                let count = if self.dice.chance(1, 4) { 1 + self.dice.below(4) } else { 1 };
                self.append(count);
            }
            45..80 => drop(self.rig.step().unwrap()),
            80..86 => drop(self.rig.apply().unwrap()),
            86..91 => self.rig.parts.committer.seal().unwrap(),
            91..95 => self.rig.checkpoint().unwrap(),
            95..98 => self.rig.parts.shared.lock().verify_at = Some(0),
            _ => {
                self.rig.settle().unwrap();
                self.promise();
                self.rig = Rig::try_open(&self.disk, &RING).unwrap();
                self.base = self.made.history.len() - 1;
            }
        }
        while self.rig.parts.shared.lock().verify_at.is_some() {
            self.rig.parts.applier.verify_some().unwrap();
        }
        self.rig.check_slots();
        self.promise();
    }
}

impl Recording {
    fn promise(&mut self, promise: Promise) {
        self.recorder.note(self.promises.len() as u64);
        self.promises.push(promise);
    }

    fn follow(&mut self, record: &Record) {
        let mut next = self.history.last().unwrap().clone();
        next.apply(record);
        self.history.push(next);
    }

    fn replay(&self) -> Replay {
        self.recorder.replay()
    }

    fn promised(&self, point: &Point<'_>) -> Promise {
        self.promises[usize::try_from(point.noted).unwrap()]
    }

    /// Says in what the content differs from each that was allowed.
    fn explain(&self, promise: Promise, found: &Model) -> ! {
        for (nth, model) in self.history.iter().enumerate().skip(promise.durable) {
            let differs = |key: &&(u32, u32)| model.blocks.get(key) != found.blocks.get(key);
            let all: BTreeSet<_> = model.blocks.keys().chain(found.blocks.keys()).collect();
            let blocks: Vec<_> = all.into_iter().filter(differs).collect();
            let ids = (0..3).map(chunk);
            let states: Vec<_> =
                ids.filter(|id| model.state.get(*id) != found.state.get(*id)).collect();
            eprintln!("after {nth} records: states {states:?}, blocks {blocks:?} differ");
        }
        let before = self.history.iter().position(|model| model == found);
        panic!(
            "{} of {} records are durable; found is what {before:?} of them lead to",
            promise.durable,
            self.history.len() - 1
        );
    }

    /// Opens the store on an image and judges it: which prefix of the records was found.
    fn judge(&self, disk: &MemDisk, promise: Promise) -> (Rig, usize) {
        let mut rig = Rig::try_open(disk, &RING).unwrap();
        let names = disk.list().unwrap();
        assert!(!names.iter().any(|name| name.contains("damaged")), "{names:?}");
        assert!(rig.parts.superblock.start > promise.start, "the start number goes back");
        rig.check_slots();
        let blocks = rig.blocks().unwrap();
        let found = Model { blocks, state: rig.parts.state.clone() };
        let durable = promise.durable;
        let after = self.history.iter().skip(durable).position(|model| *model == found);
        let Some(after) = after else { self.explain(promise, &found) };
        (rig, durable + after)
    }
}

/// What was tried.
#[derive(Debug, Default)]
struct Tried {
    operations: usize,
    /// Different ones; those that were looked at already are left out.
    images: usize,
    openings: usize,
}

/// How thoroughly images are looked at: every how many of them.
#[derive(Clone, Copy)]
struct Depth {
    /// The opening is recorded too, and cut off at each of its operations.
    opening: usize,
    /// The store goes on from there.
    going_on: usize,
}

/// Power goes at every operation of the recording.
fn crash_everywhere(made: &Recording, depth: Depth) -> Tried {
    let mut tried = Tried::default();
    let mut replay = made.replay();
    // A sync that is under way has left what the write before it did, often enough.
    let mut seen = BTreeSet::new();
    while let Some(point) = replay.next_point() {
        tried.operations += 1;
        let promise = made.promised(&point);
        let fates = point.fates(8).into_iter().map(Some);
        for fate in fates.chain([None]) {
            let disks = fate.map_or_else(|| point.after_kill(), |fate| point.after_power_cut(fate));
            let image = one(disks);
            if !seen.insert((image.fingerprint(), promise.durable, promise.start)) {
                continue;
            }
            tried.images += 1;
            let what = format!("operation {}, {}: {fate:?}", point.number, point.what);
            let whole = tried.images.is_multiple_of(depth.opening);
            let again = tried.images.is_multiple_of(depth.going_on);
            tried.openings += guarded(&what, || look(made, &image, promise, whole, again));
        }
    }
    tried
}

fn one(disks: Vec<MemDisk>) -> MemDisk {
    let [disk] = <[MemDisk; 1]>::try_from(disks).unwrap();
    disk
}

/// Names the image in what a failed check says.
fn guarded<T>(what: &str, check: impl FnOnce() -> T) -> T {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    outcome.unwrap_or_else(|cause| {
        eprintln!("at {what}");
        std::panic::resume_unwind(cause)
    })
}

/// One image: opened, opened again, and more if asked for. Returns the openings.
fn look(made: &Recording, image: &MemDisk, promise: Promise, whole: bool, again: bool) -> usize {
    let before = image.fork();
    let (mut rig, found) = made.judge(image, promise);
    let opened = Promise { durable: found, start: rig.parts.superblock.start };
    // What the first opening has found is promised from then on, and nothing else may appear.
    let second = image.fork();
    second.crash_with(Survivors::Nothing, &mut SeededDice::new(0));
    let (_, same) = made.judge(&second, opened);
    assert!(same == found || made.history[same] == made.history[found], "another content");
    if again {
        rig.append([fill(1, 3, 2, 255)]).unwrap();
        rig.append([fill(1, 240, 16, 253), zero(1, 4, 300), adopt(2, 1_000, 1_000)]).unwrap();
        let mut after = made.history[found].clone();
        after.apply(&fill(1, 3, 2, 255));
        after.apply(&fill(1, 240, 16, 253));
        after.apply(&zero(1, 4, 300));
        after.apply(&adopt(2, 1_000, 1_000));
        rig.checkpoint().unwrap();
        rig.check_slots();
        assert_eq!(rig.blocks().unwrap(), after.blocks);
        image.crash_with(Survivors::Nothing, &mut SeededDice::new(0));
        let mut rig = Rig::try_open(image, &RING).unwrap();
        let found = Model { blocks: rig.blocks().unwrap(), state: rig.parts.state.clone() };
        assert!(found == after, "what was written after the crash is not there");
    }
    2 + usize::from(again) + if whole { cut_off_openings(made, &before, promise) } else { 0 }
}

/// The opening itself is cut off at each of its operations.
fn cut_off_openings(made: &Recording, image: &MemDisk, promise: Promise) -> usize {
    let recorder = Recorder::new();
    recorder.watch(image);
    let rig = Rig::try_open(image, &RING).unwrap();
    recorder.note(rig.parts.superblock.start.0);
    let (mut replay, mut openings) = (recorder.replay(), 0);
    while let Some(point) = replay.next_point() {
        let start = promise.start.max(StartNumber(point.noted));
        for fate in point.fates(1) {
            openings += 1;
            let image = one(point.after_power_cut(fate));
            let what =
                format!("operation {} of the opening, {}: {fate:?}", point.number, point.what);
            guarded(&what, || made.judge(&image, Promise { start, ..promise }));
        }
    }
    openings
}

fn report(what: &str, tried: &Tried, began: std::time::Instant) {
    let Tried { operations, images, openings } = tried;
    println!(
        "{what}: {operations} operations, {images} images, {openings} openings, {:.1} s",
        began.elapsed().as_secs_f32()
    );
}

#[test]
fn power_may_go_at_every_operation() {
    let depth = Depth { opening: nightly(97, 11), going_on: nightly(13, 5) };
    for seed in 0..nightly(2, 40) {
        let began = std::time::Instant::now();
        let mut load = Load::new(seed);
        for _ in 0..nightly(70, 300) {
            load.go_on();
        }
        let tried = crash_everywhere(&load.made, depth);
        assert!(tried.operations > 80, "{tried:?}");
        report(&format!("crash points, load {seed}"), &tried, began);
    }
}

#[test]
fn a_store_whose_maker_was_killed_before_it_synced_the_folder_stays() {
    let disk = MemDisk::new();
    let recorder = Recorder::new();
    recorder.watch(&disk);
    drop(Rig::open(&disk));
    let mut replay = recorder.replay();
    let mut seen = false;
    while let Some(point) = replay.next_point() {
        let image = one(point.after_kill());
        // It has its name, which no sync of the folder has made durable yet.
        seen |= image.list().unwrap().contains(&"super".to_owned());
        let mut rig = Rig::open(&image);
        rig.append([adopt(0, 1, 1)]).unwrap();
        rig.settle().unwrap();
        image.crash_with(Survivors::Nothing, &mut SeededDice::new(0));
        let rig = Rig::open(&image);
        assert!(rig.parts.state.get(chunk(0)).is_some(), "operation {}", point.number);
    }
    assert!(seen);
}

#[test]
fn a_torn_group_behind_an_unfinished_checkpoint_is_not_taken_for_a_gap_later() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append([adopt(0, 1, 1)]).unwrap();
    while rig.step().unwrap() == Step::Wrote {}
    rig.parts.shared.lock().checkpoint_wanted = true;
    // Written to the journal, and not applied.
    while rig.step().unwrap() == Step::Wrote {}
    let recorder = Recorder::new();
    recorder.watch(&disk);
    rig.append([fill(0, 0, 3, 9)]).unwrap();
    rig.step().unwrap();
    let mut replay = recorder.replay();
    let point = replay.next_point().unwrap();
    let image = one(point.after_power_cut((Survivors::Torn, 0)));
    for opening in 1..4 {
        let rig = Rig::open(&image);
        let suspect = rig.parts.state.get(chunk(0)).unwrap().suspect;
        assert!(!suspect && !rig.parts.state.has_gaps(), "opening {opening}, {}", point.what);
    }
}
