//! Large writes: their content is written once, to fresh places, and nobody else's.

use super::*;
use crate::store::reader::ReadJob;

/// Records of large content need a ring that could take them.
const WIDE: StoreOptions =
    StoreOptions { journal_bytes: 2 << 20, capacity_bytes: 256 << 20, ..SMALL };

fn rig(disk: &MemDisk) -> Rig {
    let mut rig = Rig::try_open(disk, &WIDE).unwrap();
    rig.append([adopt(0, 1, 1)]).unwrap();
    rig.settle().unwrap();
    rig
}

/// Bytes of the journal in use.
fn journalled(rig: &Rig) -> u64 {
    rig.parts.committer.journalled()
}

fn put(rig: &mut Rig, record: Record) -> u64 {
    let before = journalled(rig);
    rig.append([record]).unwrap();
    while rig.step().unwrap() == Step::Wrote {}
    rig.check_slots();
    journalled(rig).saturating_sub(before)
}

fn marks(rig: &mut Rig, first: u32, count: u32) -> Vec<u8> {
    let data = rig.read(0, first, count).unwrap();
    data.iter().map(|(_, found)| found.map_or(0, |(_, bytes)| bytes[0])).collect()
}

#[test]
fn large_content_passes_by_the_journal_and_small_content_does_not() {
    let mut rig = rig(&MemDisk::new());
    assert_eq!(put(&mut rig, fill(0, 0, 256, 1)), 4096, "one page of the journal for 1 MiB");
    assert_eq!(put(&mut rig, fill(0, 0, 16, 2)), 4096);
    assert_eq!(put(&mut rig, fill(0, 250, 64, 3)), 4096, "over the border of two slots");
    assert_eq!(put(&mut rig, fill(0, 0, 15, 4)), 16 * 4096, "the next smaller is journalled");
    let mixed = Record::Fill { chunk: chunk(0), data: content(0, 64, 5, true) };
    assert!(put(&mut rig, mixed) > 40 * 4096, "with holes it is journalled");
}

#[test]
fn large_content_is_kept_in_memory_only_until_it_is_durable() {
    let mut rig = rig(&MemDisk::new());
    rig.append([fill(0, 0, 256, 1)]).unwrap();
    let on_disk = |rig: &Rig| {
        let request = ReadRequest { ticket: 1, chunk: chunk(0), range: BlockRange::new(3, 1) };
        let resolved = Shared::begin_read(&mut rig.parts.shared.lock(), request);
        matches!(resolved, Resolved::Disk(_))
    };
    assert!(!on_disk(&rig), "read from memory before it is written");
    rig.step().unwrap();
    assert!(on_disk(&rig));
    assert_eq!(marks(&mut rig, 0, 256), [1; 256]);
}

#[test]
fn a_part_rewritten_piece_by_piece_moves_to_another_slot_and_back() {
    let disk = MemDisk::new();
    let mut rig = rig(&disk);
    for mark in 1..6 {
        for piece in 0..4 {
            assert_eq!(put(&mut rig, fill(0, piece * 64, 64, mark)), 4096, "not journalled");
        }
        rig.checkpoint().unwrap();
        rig.check_slots();
        // The next checkpoint lets go of what reads may have looked at.
        rig.append([fill(1, 0, 1, mark)]).unwrap();
        rig.checkpoint().unwrap();
        assert_eq!(marks(&mut rig, 0, 256), [mark; 256]);
    }
    let space = rig.parts.shared.lock().map.space();
    assert_eq!(space.used_slots, 2, "one slot for each part");
    let mut rig = Rig::try_open(&disk, &WIDE).unwrap();
    assert_eq!(marks(&mut rig, 0, 256), [5; 256]);
}

#[test]
fn superseded_places_are_free_after_two_checkpoints() {
    let mut rig = rig(&MemDisk::new());
    for mark in 1..20 {
        put(&mut rig, fill(0, 0, 256, mark));
    }
    for mark in 0..2 {
        rig.append([fill(1, 0, 1, mark)]).unwrap();
        rig.checkpoint().unwrap();
    }
    rig.check_slots();
    assert_eq!(rig.parts.shared.lock().map.space().used_slots, 2);
    assert_eq!(marks(&mut rig, 0, 256), [19; 256]);
}

/// A read that has found its places, but not read them yet.
fn begun(rig: &Rig, first: u32, count: u32) -> ReadJob {
    let range = BlockRange::new(first, count);
    let request = ReadRequest { ticket: 9, chunk: chunk(0), range };
    match Shared::begin_read(&mut rig.parts.shared.lock(), request) {
        Resolved::Disk(job) => job,
        Resolved::Memory(_) => panic!("answered from memory"),
    }
}

#[test]
fn a_read_under_way_keeps_its_places_from_large_writes() {
    let mut rig = rig(&MemDisk::new());
    put(&mut rig, fill(0, 0, 256, 1));
    rig.checkpoint().unwrap();
    let job = begun(&rig, 0, 256);
    // The place that it reads is superseded and given up by a checkpoint that need not wait for it.
    put(&mut rig, fill(0, 0, 256, 2));
    rig.parts.shared.lock().checkpoint_wanted = true;
    while rig.step().unwrap() == Step::Wrote {}
    let waits = rig.parts.applier.take_job().expect("a checkpoint");
    rig.parts.applier.run(&waits).unwrap();
    for mark in 3..6 {
        put(&mut rig, fill(0, 0, 256, mark));
        put(&mut rig, fill(1, 0, 256, mark));
    }
    let done = rig.parts.reader.run(vec![job]).remove(0).result.unwrap();
    assert!(done.data.iter().all(|byte| *byte == 1), "another write is in its place");
}

#[test]
fn a_large_write_keeps_out_of_where_small_ones_wait_to_be_applied() {
    let disk = MemDisk::new();
    let mut rig = rig(&disk);
    put(&mut rig, fill(0, 0, 16, 1));
    rig.checkpoint().unwrap();
    // Journalled, in a period that has ended; its blocks will go to the slot of the part.
    put(&mut rig, fill(0, 100, 4, 2));
    rig.parts.shared.lock().close_period();
    assert!(put(&mut rig, fill(0, 96, 16, 3)) > 16 * 4096, "it is journalled too");
    rig.checkpoint().unwrap();
    assert_eq!(marks(&mut rig, 96, 16), [3; 16]);
    let mut rig = Rig::try_open(&disk, &WIDE).unwrap();
    assert_eq!(marks(&mut rig, 96, 16), [3; 16]);
}

#[test]
fn a_new_replica_never_writes_to_places_of_the_former_one() {
    let disk = MemDisk::new();
    let mut rig = rig(&disk);
    put(&mut rig, fill(0, 0, 16, 1));
    rig.checkpoint().unwrap();
    put(&mut rig, fill(0, 64, 64, 2));
    put(&mut rig, adopt(0, 2, 2));
    assert_eq!(put(&mut rig, fill(0, 128, 64, 3)), 4096);
    rig.checkpoint().unwrap();
    rig.check_slots();
    put(&mut rig, fill(1, 0, 256, 9));
    put(&mut rig, fill(2, 0, 256, 9));
    rig.checkpoint().unwrap();
    let expected = [vec![0; 128], vec![3; 64], vec![0; 64]].concat();
    assert_eq!(marks(&mut rig, 0, 256), expected);
    assert_eq!(marks(&mut Rig::try_open(&disk, &WIDE).unwrap(), 0, 256), expected);
}

#[test]
fn split_parts_are_merged_when_room_runs_short() {
    let disk = MemDisk::new();
    let options = StoreOptions { capacity_bytes: 24 << 20, ..WIDE };
    let mut rig = Rig::try_open(&disk, &options).unwrap();
    rig.append([adopt(0, 1, 1)]).unwrap();
    for part in 0..2 {
        put(&mut rig, fill(0, part * 256, 256, 1));
        put(&mut rig, fill(0, part * 256, 64, 2));
        rig.checkpoint().unwrap();
    }
    assert_eq!(rig.parts.shared.lock().map.split_parts(), 2);
    // Other chunks take what is left, block by block, but for what is kept back.
    let mut taken = 0;
    while rig.append([fill(taken / 4 + 1, taken % 4 * 256, 1, 7)]).is_ok() {
        taken += 1;
        rig.settle().unwrap();
    }
    rig.checkpoint().unwrap();
    rig.check_slots();
    assert_eq!(rig.parts.shared.lock().map.split_parts(), 0);
    rig.append([fill(taken / 4 + 1, taken % 4 * 256, 1, 7)]).expect("two slots came back");
    rig.checkpoint().unwrap();
    let expected = [vec![2; 64], vec![1; 192]].concat();
    for mut rig in [rig, Rig::try_open(&disk, &options).unwrap()] {
        for part in 0..2 {
            assert_eq!(marks(&mut rig, part * 256, 256), expected);
        }
    }
}

#[test]
fn damage_to_a_place_is_found_and_never_read() {
    let disk = MemDisk::new();
    let mut rig = rig(&disk);
    put(&mut rig, fill(0, 0, 256, 1));
    disk.flip("data", 5 * 4096 + 17).unwrap();
    for mut rig in [rig, Rig::try_open(&disk, &WIDE).unwrap()] {
        assert!(
            matches!(rig.read(0, 0, 256), Err(ReadError::Damaged { range, .. }) if range.first == 5)
        );
        assert_eq!(rig.read(0, 6, 250).unwrap().data_blocks(), 250);
    }
}
