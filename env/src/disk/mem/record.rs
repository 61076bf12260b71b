//! A recording of everything that is done to in-memory disks, and what a power cut at any moment of it
//! could leave: numbered crash points.
//!
//! The load runs once. Every changing call (create, remove, rename, write, change of size, sync of a
//! file or of a folder) of every watched disk is one numbered **operation**, in the order in which
//! they happened, over several disks too. [`Replay`] then carries them out one by one on copies; at
//! each it hands out the disks as they may be found by the next process. An operation that power cuts
//! off is under way: what it writes may survive, what it would sync is not synced yet.
//!
//! What somebody was promised meanwhile is noted between the operations ([`Recorder::note`]), so that
//! whoever judges an image knows what must be in it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{FolderChange, MemDisk, Survivors};
use crate::dice::SeededDice;

/// One changing call; files go by their number on the disk.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Folder(FolderChange),
    SyncFolder,
    Write { file: u64, offset: u64, bytes: Arc<[u8]> },
    Size { file: u64, size: u64 },
    Sync { file: u64 },
}

/// What a disk that is watched tells its recorder.
#[derive(Clone, Debug)]
pub(super) struct Tap {
    recorder: Recorder,
    disk: usize,
}

impl Tap {
    pub(super) fn note(&self, operation: Operation) {
        self.recorder.lock().operations.push((self.disk, operation));
    }
}

/// Writes down what is done to the disks that it watches. A clone is the same recorder.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    shared: Arc<Mutex<Recorded>>,
}

#[derive(Debug, Default)]
struct Recorded {
    /// The disks as they were when watching began.
    before: Vec<MemDisk>,
    operations: Vec<(usize, Operation)>,
    /// Number of the operation that came next, and what was noted.
    notes: Vec<(usize, u64)>,
}

impl Recorder {
    /// A recorder that watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        // Plain lists: a panic of another holder leaves them whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down from now on what is done to `disk`. Images list the disks in the order of these
    /// calls.
    pub fn watch(&self, disk: &MemDisk) {
        let before = disk.fork();
        let mut recorded = self.lock();
        let nth = recorded.before.len();
        recorded.before.push(before);
        drop(recorded);
        disk.lock().tap = Some(Tap { recorder: self.clone(), disk: nth });
    }

    /// From here on somebody rests on `value`: the last one noted before a crash is what the next
    /// process is judged by.
    pub fn note(&self, value: u64) {
        let mut recorded = self.lock();
        let next = recorded.operations.len();
        recorded.notes.push((next, value));
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.lock().operations.len()
    }

    /// What was recorded so far, to be gone through.
    #[must_use]
    pub fn replay(&self) -> Replay {
        let recorded = self.lock();
        Replay {
            disks: recorded.before.iter().map(MemDisk::fork).collect(),
            operations: recorded.operations.clone(),
            notes: recorded.notes.clone(),
            at: 0,
            late: None,
        }
    }
}

/// Goes through a recording; see the module.
#[derive(Debug)]
pub struct Replay {
    disks: Vec<MemDisk>,
    operations: Vec<(usize, Operation)>,
    notes: Vec<(usize, u64)>,
    at: usize,
    /// A sync that was under way at the last point.
    late: Option<(usize, Operation)>,
}

/// A moment of a recording: an operation is under way.
#[derive(Debug)]
pub struct Point<'r> {
    /// Number of the operation, from 1; one more than there are when all of them are done.
    pub number: usize,
    /// The operation in words.
    pub what: String,
    /// What was noted last before it; 0 if nothing was.
    pub noted: u64,
    disks: &'r [MemDisk],
}

impl Replay {
    /// The next operation, and at last the moment after all of them.
    #[must_use]
    pub fn next_point(&mut self) -> Option<Point<'_>> {
        if let Some((disk, operation)) = self.late.take() {
            self.redo(disk, &operation);
        }
        if self.at > self.operations.len() {
            return None;
        }
        let mut what = "all is done".to_owned();
        if let Some((disk, operation)) = self.operations.get(self.at).cloned() {
            what = self.disks.get(disk).map_or_else(String::new, |d| in_words(&operation, d));
            match operation {
                Operation::Sync { .. } | Operation::SyncFolder => {
                    self.late = Some((disk, operation));
                }
                Operation::Folder(_) | Operation::Write { .. } | Operation::Size { .. } => {
                    self.redo(disk, &operation);
                }
            }
        }
        let noted = self.notes.partition_point(|(next, _)| *next <= self.at);
        let noted = noted.checked_sub(1).and_then(|last| self.notes.get(last));
        let noted = noted.map_or(0, |(_, value)| *value);
        self.at += 1;
        Some(Point { number: self.at, what, noted, disks: &self.disks })
    }

    fn redo(&self, disk: usize, operation: &Operation) {
        let Some(disk) = self.disks.get(disk) else { return };
        let mut disk = disk.lock();
        match operation {
            Operation::Folder(FolderChange::Create(name, _)) => disk.create(name),
            Operation::Folder(change) => disk.change_names(change.clone()),
            Operation::SyncFolder => disk.sync_names(),
            Operation::Write { file, offset, bytes } => disk.write(*file, *offset, bytes),
            Operation::Size { file, size } => disk.set_size(*file, *size),
            Operation::Sync { file } => disk.sync(*file),
        }
    }
}

fn in_words(operation: &Operation, disk: &MemDisk) -> String {
    let named = |id: u64| {
        let shared = disk.lock();
        let found = shared.names.iter().find(|(_, file)| **file == id);
        found.map_or_else(|| format!("file {id}"), |(name, _)| name.clone())
    };
    match operation {
        Operation::Folder(change) => format!("{change:?}"),
        Operation::SyncFolder => "sync of the folder".to_owned(),
        Operation::Write { file, offset, bytes } => {
            format!("write of {} bytes at {offset} of {}", bytes.len(), named(*file))
        }
        Operation::Size { file, size } => format!("size {size} of {}", named(*file)),
        Operation::Sync { file } => format!("sync of {}", named(*file)),
    }
}

impl Point<'_> {
    /// The different fates of what is not synced here: nothing, everything and a torn sector once
    /// each, any subset `subsets` times. Only one when everything is synced.
    #[must_use]
    pub fn fates(&self, subsets: u64) -> Vec<(Survivors, u64)> {
        if !self.disks.iter().any(MemDisk::is_unsynced) {
            return vec![(Survivors::Nothing, 0)];
        }
        let once = [Survivors::Nothing, Survivors::Everything, Survivors::Torn];
        let any = (0..subsets).map(|nth| (Survivors::Any, nth));
        once.into_iter().map(|fate| (fate, 0)).chain(any).collect()
    }

    /// The disks after a power cut here. The same point, fate and seed give the same disks.
    #[must_use]
    pub fn after_power_cut(&self, (fate, seed): (Survivors, u64)) -> Vec<MemDisk> {
        let number = u64::try_from(self.number).unwrap_or(0);
        let mut dice = SeededDice::new(number.wrapping_mul(1_000_003).wrapping_add(seed));
        let images: Vec<_> = self.disks.iter().map(MemDisk::fork).collect();
        images.iter().for_each(|disk| disk.crash_with(fate, &mut dice));
        images
    }

    /// The disks after the process alone died here: everything is there, and not yet durable.
    #[must_use]
    pub fn after_kill(&self) -> Vec<MemDisk> {
        self.disks.iter().map(MemDisk::fork).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, OpenHow};

    fn content(disk: &MemDisk, name: &str) -> Option<Vec<u8>> {
        let file = disk.open(name, OpenHow::EXISTING).ok()?;
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    /// One file, made, written and synced, written again, renamed.
    fn recorded() -> (Recorder, MemDisk) {
        let (recorder, disk) = (Recorder::new(), MemDisk::new());
        recorder.watch(&disk);
        let file = disk.open("f", OpenHow::CREATE).unwrap();
        disk.sync_dir().unwrap();
        file.write_at(&[1; 1024], 0).unwrap();
        file.sync_data().unwrap();
        recorder.note(7);
        file.write_at(&[2; 1024], 0).unwrap();
        disk.rename("f", "g").unwrap();
        (recorder, disk)
    }

    #[test]
    fn each_operation_is_a_point_and_what_was_noted_before_it_is_known() {
        let (recorder, _) = recorded();
        assert_eq!(recorder.operations(), 6);
        let mut replay = recorder.replay();
        let mut noted = Vec::new();
        while let Some(point) = replay.next_point() {
            assert_eq!(point.number, noted.len() + 1);
            noted.push(point.noted);
        }
        assert_eq!(noted, [0, 0, 0, 0, 7, 7, 7]);
    }

    #[test]
    fn an_image_holds_what_its_fate_says() {
        let (recorder, disk) = recorded();
        let mut replay = recorder.replay();
        let mut at = |number: usize, fate: Survivors, name: &str| loop {
            let point = replay.next_point().unwrap();
            if point.number == number {
                break content(&point.after_power_cut((fate, 0))[0], name);
            }
        };
        // The first write, and the sync of it that power cuts off.
        assert_eq!(at(3, Survivors::Nothing, "f"), Some(vec![]));
        assert_eq!(at(4, Survivors::Nothing, "f"), Some(vec![]));
        // The second one, on what is durable by now.
        assert_eq!(at(5, Survivors::Nothing, "f"), Some(vec![1; 1024]));
        assert_eq!(at(6, Survivors::Everything, "g"), Some(vec![2; 1024]));
        let mut replay = recorder.replay();
        let fates = |point: &Point<'_>| point.fates(8).len();
        let all: Vec<usize> =
            std::iter::from_fn(|| replay.next_point().map(|point| fates(&point))).collect();
        assert_eq!(all, [11, 11, 11, 11, 11, 11, 11]);
        // The recorded disk itself goes on as if nothing had happened.
        assert_eq!(content(&disk, "g"), Some(vec![2; 1024]));
    }

    #[test]
    fn torn_is_the_last_sector_of_the_last_write_in_its_middle() {
        let (recorder, _) = recorded();
        let mut replay = recorder.replay();
        while let Some(point) = replay.next_point() {
            if point.number == 5 {
                let image = &point.after_power_cut((Survivors::Torn, 0))[0];
                let torn = content(image, "f").unwrap();
                assert!(torn[..768].iter().all(|b| *b == 2) && torn[768..].iter().all(|b| *b == 1));
                let killed = &point.after_kill()[0];
                assert_eq!(content(killed, "f"), Some(vec![2; 1024]));
                killed.crash_with(Survivors::Nothing, &mut SeededDice::new(0));
                assert_eq!(content(killed, "f"), Some(vec![1; 1024]));
                return;
            }
        }
        panic!("there is no fifth operation");
    }

    #[test]
    fn subsets_differ_and_are_the_same_again() {
        let (recorder, _) = recorded();
        let mut replay = recorder.replay();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(point) = replay.next_point() {
            if point.number != 5 {
                continue;
            }
            for seed in 0..8 {
                let image =
                    || content(&point.after_power_cut((Survivors::Any, seed))[0], "f").unwrap();
                assert_eq!(image(), image());
                seen.insert(image());
            }
        }
        assert!(seen.len() > 2, "{} different images", seen.len());
    }
}
