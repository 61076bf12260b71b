//! A member's memory with flipped bits, and cut in the middle of an install: refused, or all there.

use super::*;
use crate::message::WireSnapshot;
use crate::storage::{RaftStorage, Start, StorageError};
use ashlar_env::disk::{Disk, OpenHow};
use raft::prelude::{Entry, HardState};

const PAGE: usize = 4096;

fn flips() -> u64 {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 1_000 } else { 60 }
}

fn content(disk: &MemDisk, name: &str) -> Vec<u8> {
    let file = disk.open(name, OpenHow::EXISTING).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Another disk with the same files.
fn copy(disk: &MemDisk) -> MemDisk {
    let other = MemDisk::new();
    for name in disk.list().unwrap() {
        let file = other.open(&name, OpenHow::CREATE).unwrap();
        file.write_at(&content(disk, &name), 0).unwrap();
        file.sync_data().unwrap();
    }
    other.sync_dir().unwrap();
    other
}

/// A byte of a file, by chance, where something was ever written.
fn live_byte(disk: &MemDisk, dice: &mut SeededDice) -> (String, u64) {
    let names: Vec<String> =
        disk.list().unwrap().into_iter().filter(|name| !name.starts_with("spare")).collect();
    loop {
        let name = &names[usize::try_from(dice.below(names.len() as u64)).unwrap()];
        let bytes = content(disk, name);
        let pages: Vec<usize> = (0..bytes.len().div_ceil(PAGE))
            .filter(|page| bytes.iter().skip(page * PAGE).take(PAGE).any(|byte| *byte != 0))
            .collect();
        if pages.is_empty() {
            continue;
        }
        let page = pages[usize::try_from(dice.below(pages.len() as u64)).unwrap()];
        let used = bytes.iter().skip(page * PAGE).take(PAGE).rposition(|byte| *byte != 0);
        let within = dice.below(used.unwrap_or(0) as u64 + 1);
        return (name.clone(), page as u64 * PAGE as u64 + within);
    }
}

fn open(log: &MemDisk, snapshots: &MemDisk) -> Result<RaftStorage, StorageError> {
    let (log, snapshots) = (Arc::new(log.clone()), Arc::new(snapshots.clone()));
    RaftStorage::open(log, snapshots, options(2, false).log, &[1, 2, 3], Start::Again)
}

/// Votes, entries and snapshots of a while, all members stopped after an idle moment.
fn lived_in() -> Group {
    let mut group = Group::new(7);
    for round in 0..60 {
        group.commit();
        if round % 20 == 19 {
            let leader = group.leader().unwrap();
            group.crash(leader);
            group.until("another leader", |group| group.leader().is_some());
            group.start(leader);
            group.commit();
        }
    }
    (0..5).for_each(|_| group.tick());
    group.members.values_mut().for_each(|member| member.driver = None);
    group
}

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing_that_was_promised() {
    let group = lived_in();
    let mut dice = SeededDice::new(45);
    let mut refused = 0;
    for flip in 0..flips() {
        let member = &group.members[&(1 + flip % 3)];
        let whole = open(&copy(&member.log), &copy(&member.snapshots)).unwrap();
        let (log, snapshots) = (copy(&member.log), copy(&member.snapshots));
        let disk = if flip % 4 == 3 { &snapshots } else { &log };
        let (name, offset) = live_byte(disk, &mut dice);
        disk.flip(&name, offset).unwrap();
        match open(&log, &snapshots) {
            Err(_) => refused += 1,
            Ok(found) => assert!(
                found.promises() == whole.promises(),
                "byte {offset} of {name}: a vote or an entry is forgotten"
            ),
        }
    }
    assert!(refused * 2 > flips(), "only {refused} of {} flips were noticed", flips());
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: Bytes::from(vec![7; 700]), ..Entry::default() }
}

#[test]
fn an_install_cut_at_any_step_leaves_the_old_log_or_the_whole_snapshot() {
    let snapshot = WireSnapshot {
        index: 500,
        term: 3,
        voters: vec![1, 2, 3],
        learners: vec![],
        data: vec![9; 9_000].into(),
    };
    let mut outcomes = [0, 0];
    for stop in 1..40 {
        let (log, snapshots) = (MemDisk::new(), MemDisk::new());
        let disks = (Arc::new(log.clone()), Arc::new(snapshots.clone()));
        let mut storage =
            RaftStorage::open(disks.0, disks.1, options(2, true).log, &[1, 2, 3], Start::Bootstrap)
                .unwrap();
        storage.append((2..30).map(|index| entry(index, 2)).collect()).unwrap();
        let hard = HardState { term: 2, vote: 1, commit: 20, ..HardState::default() };
        storage.set_hard_state(&hard).unwrap();
        storage.sync().unwrap();
        let before = storage.promises();
        // Power goes in the file's steps first, then in the log's.
        if stop <= 12 {
            snapshots.stop_after(stop);
        } else {
            log.stop_after(stop - 12);
        }
        let done = storage.install(&snapshot).is_ok();
        let mut dice = SeededDice::new(stop);
        log.crash(&mut dice);
        snapshots.crash(&mut dice);
        let found = open(&log, &snapshots).unwrap();
        let installed = found.base_index() == 500;
        assert!(installed || (!done && found.promises() == before), "stop {stop}");
        if installed {
            assert_eq!((found.entry_count(), found.last_index_term()), (0, (500, 3)));
            assert_eq!(found.newest_snapshot().unwrap(), Some(snapshot.clone()));
        }
        outcomes[usize::from(installed)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 3), "{outcomes:?}");
}

#[test]
fn what_waits_for_no_sync_does_not_keep_the_last_vote_and_entry_unsealed() {
    let (log, snapshots) = (MemDisk::new(), MemDisk::new());
    let disks = (Arc::new(log.clone()), Arc::new(snapshots.clone()));
    let mut storage =
        RaftStorage::open(disks.0, disks.1, options(2, true).log, &[1, 2, 3], Start::Bootstrap)
            .unwrap();
    storage.append(vec![entry(2, 2)]).unwrap();
    let mut hard = HardState { term: 2, vote: 1, commit: 1, ..HardState::default() };
    storage.set_hard_state(&hard).unwrap();
    storage.sync().unwrap();
    // Raft lets a commit index wait for the next thing that must be synced.
    hard.commit = 2;
    storage.set_hard_state(&hard).unwrap();
    storage.seal().unwrap();
    let whole = storage.promises();
    let name = log.list().unwrap().into_iter().find(|name| name.starts_with("seg")).unwrap();
    let bytes = content(&log, &name);
    let live = |page: &usize| bytes.iter().skip(page * PAGE).take(PAGE).any(|byte| *byte != 0);
    let pages: Vec<usize> = (0..bytes.len() / PAGE).filter(live).collect();
    let (seal, promised) = pages.split_last().unwrap();
    for page in promised {
        let damaged = copy(&log);
        damaged.flip(&name, (page * PAGE + 50) as u64).unwrap();
        assert!(open(&damaged, &snapshots).is_err(), "page {page} of {pages:?}");
    }
    let damaged = copy(&log);
    damaged.flip(&name, (seal * PAGE + 50) as u64).unwrap();
    assert_eq!(open(&damaged, &snapshots).unwrap().promises(), whole);
}

/// A disk that lost its last writes says so to nobody: the log is whole, and shorter than what was
/// acknowledged. The leader sees it by the answers.
#[test]
fn a_member_whose_log_has_lost_its_end_is_noticed_by_the_leader_and_filled_again() {
    let mut group = Group::new(9);
    for _ in 0..10 {
        group.commit();
    }
    let victim = (1..=3).find(|id| Some(*id) != group.leader()).unwrap();
    (0..3).for_each(|_| group.tick());
    let member = group.members.get_mut(&victim).unwrap();
    let earlier = (copy(&member.log), copy(&member.snapshots));
    for _ in 0..4 {
        group.commit();
    }
    (0..3).for_each(|_| group.tick());
    let leader = group.leader().unwrap();
    let whole = group.members[&leader].state.clone();
    let member = group.members.get_mut(&victim).unwrap();
    member.driver = None;
    (member.log, member.snapshots) = earlier;
    group.wire.clear();
    group.start(victim);
    group.until("filled again", |group| group.members[&victim].state.len() >= whole.len());
    assert_eq!(group.members[&victim].state, whole);
    let status = group.members[&leader].driver.as_ref().unwrap().status();
    assert!(status.is_leader, "the leader stayed");
    assert_eq!(status.forgetful, [victim], "and says who has forgotten something");
    group.commit();
}
