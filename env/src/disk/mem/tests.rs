//! What the in-memory disk promises: nothing for unsynced writes, everything for synced ones.

use super::*;
use crate::dice::SeededDice;

const EIO: i32 = 5;

fn read(file: &dyn DiskFile, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    file.read_at(&mut buf, offset).unwrap();
    buf
}

#[test]
fn synced_writes_survive_unsynced_ones_may_be_torn_by_sector() {
    let mut fates = [false; 3];
    for seed in 0..200 {
        let disk = MemDisk::new();
        let file = disk.open("f", OpenHow::CREATE).unwrap();
        disk.sync_dir().unwrap();
        file.write_at(&[1; 1024], 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(&[2; 1024], 0).unwrap();
        disk.crash(&mut SeededDice::new(seed));
        assert_eq!(file.sync_data(), Err(DiskError::PoweredOff));
        let file = disk.open("f", OpenHow::EXISTING).unwrap();
        let back = read(&*file, 0, 1024);
        for sector in back.chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]) && (1..=2).contains(&sector[0]));
        }
        match (back[0], back[512]) {
            (1, 1) => fates[0] = true,
            (2, 2) => fates[1] = true,
            _ => fates[2] = true,
        }
    }
    assert_eq!(fates, [true; 3], "lost, kept and torn all occur");
}

#[test]
fn folder_changes_survive_in_order_or_after_sync_dir() {
    let mut seen_without = false;
    for seed in 0..50 {
        let disk = MemDisk::new();
        disk.open("a", OpenHow::CREATE).unwrap();
        disk.sync_dir().unwrap();
        disk.open("b", OpenHow::CREATE).unwrap();
        disk.rename("b", "c").unwrap();
        disk.crash(&mut SeededDice::new(seed));
        let names = disk.list().unwrap();
        assert!(names.contains(&"a".to_owned()));
        assert!(["a", "a b", "a c"].contains(&&*names.join(" ")), "{names:?}");
        seen_without |= names.len() == 1;
    }
    assert!(seen_without);
}

#[test]
fn a_lying_sync_loses_data() {
    let lost = (0..50).any(|seed| {
        let disk = MemDisk::new();
        disk.lie_about_sync("");
        let file = disk.open("f", OpenHow::CREATE).unwrap();
        disk.sync_dir().unwrap();
        file.preallocate(512).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        file.sync_data().unwrap();
        disk.crash(&mut SeededDice::new(seed));
        let file = disk.open("f", OpenHow::EXISTING).unwrap();
        file.size().unwrap() == 0 || read(&*file, 0, 512) == [0; 512]
    });
    assert!(lost);
}

#[test]
fn power_goes_at_the_chosen_change_and_faults_hit_the_chosen_call() {
    let disk = MemDisk::new();
    let file = disk.open("f", OpenHow::CREATE).unwrap();
    disk.fail(FaultOn::Write, "f", 1, EIO);
    file.write_at(&[1], 0).unwrap();
    let failed = file.write_at(&[1], 0);
    assert!(matches!(failed, Err(DiskError::Io { what: "write", errno: EIO, .. })), "{failed:?}");
    disk.stop_after(2);
    file.write_at(&[1], 0).unwrap();
    assert_eq!(file.sync_data(), Err(DiskError::PoweredOff));
    assert!(disk.is_powered_off());
    assert_eq!(file.size(), Err(DiskError::PoweredOff));
}

#[test]
fn writes_dropped_by_a_failed_sync_do_not_come_back_with_the_next() {
    let disk = MemDisk::new();
    let file = disk.open("f", OpenHow::CREATE).unwrap();
    disk.sync_dir().unwrap();
    file.preallocate(4096).unwrap();
    file.sync_data().unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    disk.fail(FaultOn::Sync, "", 0, EIO);
    assert!(file.sync_data().is_err());
    assert_eq!(file.sync_data(), Ok(()));
    assert_eq!(read(&*file, 0, 1), [1], "the page cache still shows it");
    disk.crash(&mut SeededDice::new(1));
    let file = disk.open("f", OpenHow::EXISTING).unwrap();
    assert_eq!(read(&*file, 0, 1), [0], "the medium never had it");
}

#[test]
fn a_full_disk_says_no_space_and_a_cut_makes_room() {
    let disk = MemDisk::new();
    disk.set_capacity(Some(8192));
    let file = disk.open("f", OpenHow::CREATE).unwrap();
    file.preallocate(8192).unwrap();
    let full = file.write_at(&[1], 8192);
    assert!(matches!(full, Err(DiskError::NoSpace { .. })), "{full:?}");
    file.write_at(&[7; 8192], 0).unwrap();
    file.truncate(100).unwrap();
    file.preallocate(200).unwrap();
    assert_eq!(read(&*file, 99, 2), [7, 0], "what was cut off reads as zero");
}

#[test]
fn flipped_bits_are_read_back_flipped() {
    let disk = MemDisk::new();
    let file = disk.open("f", OpenHow::CREATE).unwrap();
    file.write_at(&[0xf0], 3).unwrap();
    disk.flip("f", 3).unwrap();
    assert_eq!(read(&*file, 3, 1), [0x0f]);
}
