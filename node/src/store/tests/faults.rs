//! Faults that must be said, not hidden: damage, foreign stores, full and failing disks.

use ashlar_env::disk::mem::FaultOn;
use ashlar_env::disk::{Disk, OpenHow};

use super::super::growth::GROW_SLOTS;
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn refused(disk: &MemDisk) -> OpenError {
    Rig::try_open(disk, &SMALL).map(|_| ()).unwrap_err()
}

/// A store with `n` groups of one block each in its journal.
fn groups(n: u32) -> MemDisk {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    for i in 0..n {
        rig.append([fill(0, i, 1, 9)]).unwrap();
        rig.settle().unwrap();
    }
    disk
}

#[test]
fn damage_at_rest_is_found_by_the_read_and_names_the_block() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append([fill(0, 0, 3, 9), fill(1, 0, 1, 8)]).unwrap();
    rig.checkpoint().unwrap();
    disk.flip("data", 4096 + 17).unwrap();
    let range = BlockRange::new(1, 2);
    assert_eq!(rig.read(0, 0, 3), Err(ReadError::Damaged { chunk: chunk(0), range }));
    assert_eq!(rig.read(0, 0, 1).unwrap().data_blocks(), 1);
    assert_eq!(rig.read(1, 0, 1).unwrap().data_blocks(), 1);
    // Written anew it is whole again.
    rig.append([fill(0, 1, 1, 7)]).unwrap();
    rig.checkpoint().unwrap();
    assert_eq!(rig.read(0, 0, 3).unwrap().data_blocks(), 3);
}

#[test]
fn a_failing_read_is_reported_for_its_range() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append([fill(0, 0, 1, 9)]).unwrap();
    rig.checkpoint().unwrap();
    disk.fail(FaultOn::Read, "data", 0, EIO);
    assert!(matches!(rig.read(0, 0, 1), Err(ReadError::Disk { .. })));
    rig.read(0, 0, 1).unwrap();
}

#[test]
fn one_damaged_superblock_is_survived_and_the_start_number_does_not_go_back() {
    for copy in 0..2 {
        let disk = groups(1);
        let start = Rig::open(&disk).parts.superblock.start;
        disk.flip("super", copy * 4096 + 60).unwrap();
        let rig = Rig::open(&disk);
        assert!(rig.parts.superblock.start > start);
    }
}

#[test]
fn a_store_of_another_node_or_of_a_newer_release_is_refused_by_name() {
    let disk = groups(1);
    let reporter = Reporter(Arc::new(|_| {}));
    for foreign in
        [Owner { node: NodeId(2), ..owner() }, Owner { zone: "b".parse().unwrap(), ..owner() }]
    {
        let mut dice = SeededDice::new(1);
        let opened = open::open(&disk, &SMALL, foreign, &mut dice, &reporter).map(|_| ());
        assert!(matches!(opened, Err(OpenError::Foreign { .. })), "{opened:?}");
    }
    let file = disk.open("super", OpenHow::EXISTING).unwrap();
    let mut page = vec![0; 4096];
    file.read_at(&mut page, 0).unwrap();
    page[12] = 9;
    page[8..12].fill(0);
    let crc = crc32c::crc32c(&page);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&page, 0).unwrap();
    assert_eq!(refused(&disk), OpenError::NewerVersion { version: 9, supported: 4 });
}

#[test]
fn sizes_that_make_no_store_are_refused() {
    for options in [
        StoreOptions { journal_bytes: 1000, ..SMALL },
        StoreOptions { journal_bytes: (256 << 10) + 4096, ..SMALL },
        StoreOptions { capacity_bytes: 1000, ..SMALL },
    ] {
        let opened = Rig::try_open(&MemDisk::new(), &options).map(|_| ());
        assert!(matches!(opened, Err(OpenError::BadSize { .. })), "{opened:?}");
    }
}

#[test]
fn a_failed_write_or_sync_ends_the_store_and_what_was_durable_stays() {
    for on in [FaultOn::Write, FaultOn::Sync] {
        for (file, at_apply) in [("journal", false), ("data", true), ("map", true), ("super", true)]
        {
            let disk = groups(1);
            let mut rig = Rig::open(&disk);
            disk.fail(on, file, 0, EIO);
            rig.append([fill(0, 5, 1, 3)]).unwrap();
            let failed = if at_apply { rig.checkpoint() } else { rig.settle() };
            assert!(matches!(failed, Err(StoreFailure::Disk(_))), "{on:?} {file}: {failed:?}");
            assert_eq!(rig.durable(), u64::from(at_apply));
            disk.crash(&mut SeededDice::new(3));
            let found = Rig::open(&disk).blocks().unwrap();
            assert!(found.contains_key(&(0, 0)), "{on:?} {file}");
            assert!(!at_apply || found.contains_key(&(0, 5)), "{on:?} {file}");
        }
    }
}

#[test]
fn a_full_store_refuses_data_whole_and_still_takes_zeroes_and_erasure() {
    let options = StoreOptions { capacity_bytes: 2 << 20, ..SMALL };
    let disk = MemDisk::new();
    let mut rig = Rig::try_open(&disk, &options).unwrap();
    assert_eq!(rig.parts.shared.lock().map.space(), Space { total_slots: 2, used_slots: 0 });
    rig.append([adopt(0, 1, 1), fill(0, 0, 1, 1), fill(0, 256, 1, 2)]).unwrap();
    let full = rig.append([fill(0, 1, 1, 3), fill(0, 512, 1, 3)]);
    assert_eq!(full, Err(NoSpace::Full { needed: 1, room: 0 }));
    rig.checkpoint().unwrap();
    assert_eq!(rig.append([fill(0, 512, 1, 3)]), Err(NoSpace::Full { needed: 1, room: 0 }));
    // Blocks of slots that are there can be written; nothing of the refused batch is to be seen.
    rig.append([fill(0, 2, 1, 4)]).unwrap();
    assert_eq!(rig.read(0, 1, 1).unwrap().data_blocks(), 0);
    // A whole slot zeroed is free after the next checkpoint.
    rig.append([zero(0, 0, 256)]).unwrap();
    rig.checkpoint().unwrap();
    rig.append([fill(0, 512, 1, 3)]).unwrap();
    rig.append([Record::Erase { chunk: chunk(0) }]).unwrap();
    assert!(rig.append([fill(1, 0, 300, 5)]).is_err());
    rig.settle().unwrap();
    rig.append([fill(1, 0, 4, 5)]).unwrap();
    rig.settle().unwrap();
    rig.append([fill(1, 256, 4, 5)]).unwrap();
    rig.checkpoint().unwrap();
    let before = rig.blocks().unwrap();
    assert_eq!(before.len(), 8);
    assert_eq!(Rig::try_open(&disk, &options).unwrap().blocks().unwrap(), before);
}

#[test]
fn the_last_slots_are_kept_for_what_an_erasure_waits_behind() {
    let options = StoreOptions { capacity_bytes: 32 << 20, ..SMALL };
    let disk = MemDisk::new();
    let mut rig = Rig::try_open(&disk, &options).unwrap();
    let slot = |nth: u32| fill(nth / 4, nth % 4 * 256, 1, 1);
    rig.append((0..30).map(slot)).unwrap();
    assert_eq!(rig.append([slot(30)]), Err(NoSpace::Full { needed: 1, room: 0 }));
    let mut records = vec![
        (JournalSeq(rig.next), slot(30)),
        (JournalSeq(rig.next + 1), slot(31)),
        (JournalSeq(rig.next + 2), Record::Erase { chunk: chunk(0) }),
    ];
    rig.parts.shared.append(&mut records, true).unwrap();
    rig.next += 3;
    let more = &mut vec![(JournalSeq(rig.next), slot(32))];
    assert_eq!(rig.parts.shared.append(more, true), Err(NoSpace::Full { needed: 1, room: 0 }));
    rig.checkpoint().unwrap();
    // Four slots are free again, and two of them are kept back.
    rig.append([slot(32), slot(33)]).unwrap();
    assert!(rig.append([slot(34)]).is_err());
}

/// A store of 1 GiB whose file has its first step, and as many records as that has room for.
fn with_its_first_step(disk: &MemDisk) -> Rig {
    let options = StoreOptions { capacity_bytes: 1 << 30, ..SMALL };
    let mut rig = Rig::try_open(disk, &options).unwrap();
    rig.append((0..GROW_SLOTS).map(slot)).unwrap();
    assert_eq!(rig.parts.shared.lock().map.grown(), GROW_SLOTS);
    rig
}

fn slot(nth: u32) -> Record {
    fill(nth / 4, nth % 4 * 256, 1, 1)
}

#[test]
fn whoever_hands_records_over_does_not_wait_for_a_longer_file() {
    let disk = MemDisk::new();
    let mut rig = with_its_first_step(&disk);
    // Whatever makes the file longer would fail: nothing of it is tried here.
    disk.set_capacity(Some(1 << 20));
    assert_eq!(rig.append([slot(GROW_SLOTS)]), Err(NoSpace::Growing));
    assert_eq!(rig.append([slot(GROW_SLOTS)]), Err(NoSpace::Growing));
    disk.set_capacity(None);
    assert!(rig.grow());
    assert!(matches!(rig.events.lock().unwrap().last(), Some(StoreEvent::Space(_))));
    rig.append([slot(GROW_SLOTS)]).unwrap();
    assert!(!rig.grow(), "two steps for one");
    // And ahead of need, once half a step is left.
    rig.append((0..GROW_SLOTS / 2).map(|nth| slot(GROW_SLOTS + 1 + nth))).unwrap();
    assert!(rig.grow());
    assert_eq!(rig.parts.shared.lock().map.grown(), 3 * GROW_SLOTS);
}

#[test]
fn a_file_that_cannot_be_made_longer_is_a_full_store_until_it_can() {
    let disk = MemDisk::new();
    let mut rig = with_its_first_step(&disk);
    disk.set_capacity(Some(1 << 20));
    assert_eq!(rig.append([slot(GROW_SLOTS)]), Err(NoSpace::Growing));
    assert!(rig.grow());
    assert!(matches!(rig.append([slot(GROW_SLOTS)]), Err(NoSpace::Full { needed: 1, .. })));
    // Others are told, and what needs no slot is taken.
    let space = rig.parts.shared.lock().space();
    assert_eq!(space, Space { total_slots: GROW_SLOTS, used_slots: GROW_SLOTS });
    rig.append([zero(0, 0, 256)]).unwrap();
    assert!(rig.grow(), "it is not tried again");
    disk.set_capacity(None);
    assert!(matches!(rig.append([slot(GROW_SLOTS)]), Err(NoSpace::Full { .. })));
    assert!(rig.grow());
    assert_eq!(rig.parts.shared.lock().space().total_slots, 1 << 10);
    rig.append([slot(GROW_SLOTS)]).unwrap();
    let more = (1..=GROW_SLOTS).map(|nth| slot(GROW_SLOTS + nth));
    assert_eq!(rig.append(more), Err(NoSpace::Growing));
}

#[test]
fn a_full_file_system_is_said_at_once_and_not_at_the_checkpoint() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    disk.set_capacity(Some(1 << 20));
    assert!(matches!(rig.append([fill(0, 0, 1, 1)]), Err(NoSpace::Full { needed: 1, .. })));
    disk.set_capacity(None);
    disk.fail(FaultOn::Write, "data", 0, ENOSPC);
    assert!(rig.append([fill(0, 0, 1, 1)]).is_err());
    rig.append([fill(0, 0, 1, 1)]).unwrap();
    rig.checkpoint().unwrap();
}

#[test]
fn a_state_that_does_not_fit_the_journal_is_an_error_with_a_name() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    let failed = (0..2000).find_map(|n| {
        rig.append([adopt(n, 1, 1)]).unwrap();
        rig.settle().err()
    });
    assert!(matches!(failed, Some(StoreFailure::JournalTooSmall { .. })), "{failed:?}");
}

#[test]
fn what_may_wait_is_written_with_the_next_group() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append([adopt(0, 1, 1)]).unwrap();
    rig.settle().unwrap();
    let lsn = ashlar_types::Lsn::ZERO.next();
    rig.append([Record::Committed { chunk: chunk(0), lsn }]).unwrap();
    assert_eq!(rig.step(), Ok(Step::Idle));
    assert_eq!(rig.durable(), 1);
    rig.append([fill(0, 0, 1, 1)]).unwrap();
    assert_eq!(rig.step(), Ok(Step::Wrote));
    assert_eq!(rig.durable(), 3);
}

#[test]
fn pages_of_a_checkpoint_that_was_never_completed_do_not_count_later() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append([fill(0, 0, 1, 1)]).unwrap();
    rig.checkpoint().unwrap();
    rig.append([Record::Erase { chunk: chunk(0) }]).unwrap();
    rig.checkpoint().unwrap();
    // The freed slot is taken, its page written, and the superblock not.
    rig.append([fill(1, 0, 1, 2)]).unwrap();
    disk.fail(FaultOn::Write, "super", 0, EIO);
    assert!(rig.checkpoint().is_err());
    // The next checkpoint has the same number and no use for that slot.
    let mut rig = Rig::open(&disk);
    rig.append([Record::Erase { chunk: chunk(1) }]).unwrap();
    rig.checkpoint().unwrap();
    assert!(Rig::open(&disk).blocks().unwrap().is_empty());
}
