//! Damage that names its victims: the store opens, and whoever is concerned is never believed again.

use ashlar_env::disk::{Disk, OpenHow};

use super::*;

/// Two replicas with a block each, one group for each record: adopt, adopt, fill, fill.
///
/// A group is a page of head and a page for each block.
fn two_replicas() -> MemDisk {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    for record in [adopt(0, 1, 1), adopt(1, 1, 1), fill(0, 0, 1, 9), fill(1, 0, 1, 8)] {
        rig.append([record]).unwrap();
        rig.settle().unwrap();
    }
    disk
}

/// Chunks of the replicas that are marked.
fn suspects(rig: &Rig) -> Vec<u32> {
    let replicas = rig.parts.state.iter().filter(|(_, replica)| replica.suspect);
    replicas.map(|(chunk, _)| chunk.index.0).collect()
}

fn map_page(disk: &MemDisk, slot: u64, copy: u64) -> u64 {
    let at = (slot * 2 + copy) * 4096;
    let mut page = vec![0; 4096];
    disk.open("map", OpenHow::EXISTING).unwrap().read_at(&mut page, at).unwrap();
    assert!(page.iter().any(|byte| *byte != 0), "nothing was written there");
    at
}

#[test]
fn damage_to_a_head_ends_the_replay_there_and_no_replica_is_believed() {
    for (at, blocks, known) in [(0, 0, 0), (4096 + 30, 0, 1), (2 * 4096 + 100, 0, 2)] {
        let disk = two_replicas();
        disk.flip("journal", at).unwrap();
        let mut rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), (0..known).collect::<Vec<_>>(), "{at}");
        assert!(rig.parts.state.has_gaps(), "{at}: it knows all that it ever held");
        assert_eq!(rig.blocks().unwrap().len(), blocks);
        // It goes on from there, and what followed the damage is not taken for damage again.
        let opened = Record::OpenFill { chunk: chunk(2), base: ashlar_types::Lsn::ZERO.next() };
        rig.append([adopt(2, 1, 1), opened, fill(2, 5, 1, 7)]).unwrap();
        rig.checkpoint().unwrap();
        let mut rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), (0..known).collect::<Vec<_>>(), "{at}: the new one is whole");
        assert!(rig.parts.state.has_gaps(), "gaps stay");
        // One that would be in sync from nothing may be one that was forgotten.
        rig.append([adopt(1, 9, 9)]).unwrap();
        rig.checkpoint().unwrap();
        assert!(suspects(&Rig::open(&disk)).contains(&1), "{at}");
    }
}

#[test]
fn the_last_group_cannot_be_told_from_a_torn_one() {
    for at in [4 * 4096 + 3, 5 * 4096 + 9] {
        let disk = two_replicas();
        disk.flip("journal", at).unwrap();
        let mut rig = Rig::open(&disk);
        assert_eq!(rig.blocks().unwrap().len(), 1);
        assert_eq!(suspects(&rig), [0; 0]);
        assert!(!rig.parts.state.has_gaps());
    }
}

/// [`two_replicas`], and then nothing came for a while.
fn two_replicas_at_rest() -> MemDisk {
    let disk = two_replicas();
    let mut rig = Rig::open(&disk);
    rig.parts.committer.seal().unwrap();
    let written = disk.changes();
    rig.parts.committer.seal().unwrap();
    assert_eq!(disk.changes(), written, "one seal is enough");
    disk
}

#[test]
fn the_last_group_of_a_sealed_journal_is_told_from_a_torn_one() {
    // The blocks of the last record; its head.
    for (at, suspected, gaps) in [(5 * 4096 + 9, vec![1], false), (4 * 4096 + 3, vec![0, 1], true)]
    {
        let disk = two_replicas_at_rest();
        disk.flip("journal", at).unwrap();
        let rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), suspected, "{at}");
        assert_eq!(rig.parts.state.has_gaps(), gaps, "{at}");
    }
}

#[test]
fn a_damaged_seal_costs_nothing() {
    let disk = two_replicas_at_rest();
    disk.flip("journal", 6 * 4096 + 3).unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(suspects(&rig), [0; 0]);
    assert_eq!(rig.blocks().unwrap().len(), 2);
    // It is sealed again, in the same place.
    rig.parts.committer.seal().unwrap();
    disk.flip("journal", 5 * 4096 + 9).unwrap();
    assert_eq!(suspects(&Rig::open(&disk)), [1]);
}

#[test]
fn seals_of_one_start_after_another_do_not_fill_the_ring() {
    let disk = two_replicas();
    for start in 0..200 {
        let mut rig = Rig::open(&disk);
        rig.settle().unwrap();
        rig.parts.committer.seal().unwrap();
        assert!(rig.parts.committer.journalled() < 128 << 10, "start {start}");
        assert_eq!(rig.blocks().unwrap().len(), 2, "start {start}");
    }
}

#[test]
fn damage_to_blocks_concerns_their_replica_alone_and_what_follows_is_kept() {
    let disk = two_replicas();
    disk.flip("journal", 3 * 4096 + 17).unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(suspects(&rig), [0]);
    assert!(!rig.parts.state.has_gaps());
    assert_eq!(rig.blocks().unwrap().into_iter().collect::<Vec<_>>(), [((1, 0), 8)]);
    rig.checkpoint().unwrap();
    assert_eq!(suspects(&Rig::open(&disk)), [0], "the mark is in the checkpoint");
}

#[test]
fn another_incarnation_is_not_marked() {
    let disk = two_replicas();
    disk.flip("journal", 3 * 4096 + 17).unwrap();
    let mut rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    rig.append([adopt(0, 7, 7), fill(0, 3, 1, 5)]).unwrap();
    rig.settle().unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(suspects(&rig), [0; 0]);
    assert_eq!(rig.read(0, 0, 1).unwrap().data_blocks(), 0, "what the former one held is gone");
    assert_eq!(rig.read(0, 3, 1).unwrap().data_blocks(), 1);
}

#[test]
fn doubt_outlives_a_crash_at_every_change() {
    // A head in the middle; blocks.
    for (file, at, expected) in
        [("journal", 2 * 4096 + 30, vec![0, 1]), ("journal", 3 * 4096 + 17, vec![0])]
    {
        let mut stop = 1;
        loop {
            let disk = two_replicas();
            disk.flip(file, at).unwrap();
            disk.stop_after(stop);
            if let Ok(mut rig) = Rig::try_open(&disk, &SMALL) {
                let _ended = rig.checkpoint();
            }
            let stopped = disk.is_powered_off();
            disk.crash(&mut SeededDice::new(stop));
            let rig = Rig::open(&disk);
            assert_eq!(suspects(&rig), expected, "{file}, change {stop}");
            assert_eq!(rig.parts.state.has_gaps(), expected.len() > 1, "{file}, change {stop}");
            if !stopped {
                break;
            }
            stop += 1;
        }
        assert!(stop > 6, "the run has only {stop} changes");
    }
}

/// Opens with dice of its own: a store that is made now has another id.
fn open_anew(disk: &MemDisk) -> Result<Parts, OpenError> {
    let reporter = Reporter(Arc::new(|_| {}));
    open::open(disk, &SMALL, owner(), &mut SeededDice::new(77), &reporter)
}

fn bytes_of(disk: &MemDisk, name: &str) -> Option<Vec<u8>> {
    let file = disk.open(name, OpenHow::EXISTING).ok()?;
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

const PARTS: [&str; 4] = ["super", "journal", "map", "data"];

/// The files of a store, or of one that was set aside.
fn files(disk: &MemDisk, ending: &str) -> Vec<Option<Vec<u8>>> {
    PARTS.map(|name| bytes_of(disk, &format!("{name}{ending}"))).to_vec()
}

/// Stores that cannot say what they held.
fn nameless(nth: u32) -> MemDisk {
    let disk = two_replicas();
    let mut rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    match nth {
        0 => {
            let tail = rig.parts.applier.superblock.tail;
            assert!(tail > 0);
            disk.flip("journal", tail + 30).unwrap();
        }
        1 => [60, 4096 + 60].iter().for_each(|at| disk.flip("super", *at).unwrap()),
        2 => disk.remove("super").unwrap(),
        _ => disk.remove("journal").unwrap(),
    }
    disk.sync_dir().unwrap();
    disk
}

#[test]
fn a_store_that_cannot_name_what_it_held_is_kept_aside_and_another_begun() {
    for nth in 0..4 {
        let disk = nameless(nth);
        let before = files(&disk, "");
        let parts = open_anew(&disk).unwrap();
        assert!(parts.new && parts.state.is_empty(), "damage {nth}");
        assert_ne!(parts.superblock.store, Rig::open(&MemDisk::new()).parts.superblock.store);
        assert!(files(&disk, ".damaged-1") == before, "damage {nth}: something of it is gone");
        drop(parts);
        let mut rig = Rig::open(&disk);
        assert!(!rig.parts.new, "damage {nth}: the new one stays");
        rig.append([adopt(0, 9, 9), fill(0, 0, 1, 3)]).unwrap();
        rig.checkpoint().unwrap();
        // The next one gets the next number.
        disk.remove("super").unwrap();
        assert!(open_anew(&disk).unwrap().new);
        assert!(files(&disk, ".damaged-1") == before, "damage {nth}");
        assert!(bytes_of(&disk, "data.damaged-2").is_some());
    }
}

#[test]
fn setting_a_store_aside_may_be_cut_off_anywhere() {
    for nth in 0..4 {
        let mut stop = 1;
        loop {
            let disk = nameless(nth);
            let before = files(&disk, "");
            disk.stop_after(stop);
            let cut = open_anew(&disk).is_err();
            disk.crash(&mut SeededDice::new(stop));
            let parts = open_anew(&disk).unwrap();
            assert!(parts.state.is_empty());
            let kept = files(&disk, ".damaged-1") == before;
            assert!(kept, "damage {nth}, change {stop}: something is gone");
            assert!(bytes_of(&disk, "data.damaged-2").is_none(), "damage {nth}, change {stop}");
            if !cut {
                break;
            }
            stop += 1;
        }
        assert!(stop > 8, "damage {nth}: only {stop} changes");
    }
}

#[test]
fn a_damaged_page_of_the_map_concerns_the_owner_that_its_older_copy_names() {
    // A checksum, the page's own checksum.
    for byte in [200, 9] {
        let disk = two_replicas();
        let mut rig = Rig::open(&disk);
        rig.checkpoint().unwrap();
        rig.append([fill(0, 1, 1, 7)]).unwrap();
        rig.checkpoint().unwrap();
        // Slot 0 is chunk 0's, written twice; the second time into copy 1.
        disk.flip("map", map_page(&disk, 0, 1) + byte).unwrap();
        let mut rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), [0], "byte {byte}");
        assert_eq!(rig.read(1, 0, 1).unwrap().data_blocks(), 1, "the other is whole");
        rig.append([fill(1, 1, 1, 3)]).unwrap();
        rig.checkpoint().unwrap();
        let mut rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), [0], "byte {byte}");
        assert_eq!(rig.read(1, 0, 2).unwrap().data_blocks(), 2);
    }
}

#[test]
fn a_damaged_page_of_the_map_without_an_older_owner_concerns_all() {
    let disk = two_replicas();
    let mut rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    disk.flip("map", map_page(&disk, 1, 0) + 100).unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(suspects(&rig), [0, 1]);
    assert!(!rig.parts.state.has_gaps(), "the records are all there");
    rig.checkpoint().unwrap();
    assert_eq!(suspects(&Rig::open(&disk)), [0, 1]);
}

#[test]
fn two_damaged_pages_are_not_pinned_on_one() {
    let disk = two_replicas();
    let mut rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    rig.append([fill(0, 1, 1, 7), fill(1, 1, 1, 7)]).unwrap();
    rig.checkpoint().unwrap();
    for slot in 0..2 {
        disk.flip("map", map_page(&disk, slot, 1) + 100).unwrap();
    }
    assert_eq!(suspects(&Rig::open(&disk)), [0, 1]);
}

#[test]
fn a_slot_that_damage_brings_back_does_not_take_the_place_of_a_later_one() {
    let disk = two_replicas();
    let mut rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    for n in [0, 1] {
        rig.append([Record::Erase { chunk: chunk(n) }]).unwrap();
    }
    rig.checkpoint().unwrap();
    rig.append([adopt(1, 3, 3), fill(1, 0, 1, 4)]).unwrap();
    rig.checkpoint().unwrap();
    // Chunk 1 is in slot 0 now; the page that says that slot 1 is free rots away.
    disk.flip("map", map_page(&disk, 1, 1) + 100).unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(suspects(&rig), [1]);
    assert_eq!(rig.read(1, 0, 1).unwrap().data.first(), Some(&4));
    rig.append([adopt(1, 5, 5), fill(1, 0, 1, 6)]).unwrap();
    rig.checkpoint().unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(suspects(&rig), [0; 0], "it is doubted once");
    assert_eq!(rig.read(1, 0, 1).unwrap().data.first(), Some(&6));
}

#[test]
fn a_store_of_an_earlier_format_opens_and_becomes_todays() {
    let disk = two_replicas();
    let mut rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    let file = disk.open("super", OpenHow::EXISTING).unwrap();
    let version = |set: Option<u8>| -> Vec<u8> {
        (0..2u64)
            .map(|copy| {
                let mut page = vec![0; 4096];
                file.read_at(&mut page, copy * 4096).unwrap();
                if let Some(version) = set {
                    page[12] = version;
                    page[8..12].fill(0);
                    let crc = crc32c::crc32c(&page);
                    page[8..12].copy_from_slice(&crc.to_le_bytes());
                    file.write_at(&page, copy * 4096).unwrap();
                }
                page[12]
            })
            .collect()
    };
    assert_eq!(version(None), [4, 4]);
    for earlier in [1, 2, 3] {
        version(Some(earlier));
        let mut rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), [0; 0]);
        assert_eq!(rig.blocks().unwrap().len(), 2);
        assert_eq!(version(None), [4, 4]);
    }
}

/// Verifies everything and carries out what follows.
fn verify(rig: &mut Rig) -> Result<(), StoreFailure> {
    rig.parts.shared.lock().verify_at = Some(0);
    while rig.parts.shared.lock().verify_at.is_some() {
        rig.parts.applier.verify_some()?;
    }
    rig.settle()
}

/// Two replicas in the data file, a freed slot, and records behind the checkpoint.
fn used(disk: &MemDisk) -> Rig {
    let mut rig = Rig::open(disk);
    rig.append([fill(2, 0, 1, 1)]).unwrap();
    rig.checkpoint().unwrap();
    rig.append([Record::Erase { chunk: chunk(2) }, fill(0, 1, 1, 7)]).unwrap();
    rig.checkpoint().unwrap();
    rig.append([fill(1, 3, 1, 5)]).unwrap();
    rig.settle().unwrap();
    rig
}

/// A byte of everything that a start relies on: current pages of the map (of a slot in use, of a
/// freed one), both superblocks, the checkpoint that replay begins with, a record behind it.
fn relied_upon(disk: &MemDisk, rig: &Rig) -> Vec<(&'static str, u64)> {
    let tail = rig.parts.applier.superblock.tail % SMALL.journal_bytes;
    vec![
        ("map", map_page(disk, 0, 1) + 200),
        ("map", map_page(disk, 1, 0) + 9),
        ("map", map_page(disk, 2, 1) + 50),
        ("super", 70),
        ("super", 4096 + 70),
        ("journal", tail + 120),
        ("journal", tail + 4096 + 120),
        ("journal", tail + 2 * 4096 + 7),
    ]
}

#[test]
fn whatever_rots_while_the_store_runs_is_found_by_a_verification_and_written_anew() {
    for nth in 0..8 {
        let disk = two_replicas();
        let mut rig = used(&disk);
        let expected = rig.blocks().unwrap();
        let (file, at) = relied_upon(&disk, &rig)[nth];
        disk.flip(file, at).unwrap();
        verify(&mut rig).unwrap();
        let mut rig = Rig::open(&disk);
        assert_eq!(suspects(&rig), [0; 0], "{file} at {at}");
        assert!(!rig.parts.state.has_gaps());
        assert_eq!(rig.blocks().unwrap(), expected, "{file} at {at}");
        // It goes on as if nothing had been.
        rig.append([fill(0, 2, 1, 4)]).unwrap();
        rig.checkpoint().unwrap();
        assert_eq!(suspects(&Rig::open(&disk)), [0; 0]);
    }
}

#[test]
fn without_a_verification_the_same_damage_shows_at_the_next_start() {
    let damaged = (0..8).filter(|nth| {
        let disk = two_replicas();
        let rig = used(&disk);
        let (file, at) = relied_upon(&disk, &rig)[*nth];
        disk.flip(file, at).unwrap();
        let rig = Rig::open(&disk);
        rig.parts.new || !suspects(&rig).is_empty()
    });
    // One superblock is enough; a freed slot is nobody's; the last group looks like a torn one.
    assert_eq!(damaged.collect::<Vec<_>>(), [0, 1, 5]);
}

#[test]
fn a_verification_may_be_cut_off_anywhere() {
    let mut stop = 1;
    loop {
        let disk = two_replicas();
        let mut rig = used(&disk);
        let expected = rig.blocks().unwrap();
        disk.flip("map", map_page(&disk, 0, 1) + 200).unwrap();
        disk.flip("super", 70).unwrap();
        disk.stop_after(stop);
        let cut = verify(&mut rig).is_err();
        disk.crash(&mut SeededDice::new(stop));
        let mut rig = Rig::open(&disk);
        let marked = suspects(&rig);
        assert!(marked.is_empty() || (cut && marked == [0]), "change {stop}: {marked:?}");
        if marked.is_empty() {
            assert_eq!(rig.blocks().unwrap(), expected, "change {stop}");
        }
        if !cut {
            break;
        }
        stop += 1;
    }
    assert!(stop > 4, "the verification has only {stop} changes");
}
