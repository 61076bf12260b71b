//! Stores as former versions left them, byte for byte: read, written on, and read again.
//!
//! `stored/version-N.zst` holds the files of a store after [`applied`], a checkpoint and [`journalled`],
//! written by the code of that version: for each file the length of its name (1 byte), the name, its
//! size (8 bytes) and how many of its pages are not zero (4 bytes), then those pages, each behind its
//! offset (8 bytes); numbers are little-endian, the whole is compressed with zstd. A version that is
//! read is never taken from this list, and a new one adds its own.

use super::super::format::{Superblock, VERSION};
use super::*;
use ashlar_env::disk::{Disk, OpenHow};

const PAGE: usize = 4096;

const STORED: [(u32, &[u8]); 4] = [
    (1, include_bytes!("stored/version-1.zst")),
    (2, include_bytes!("stored/version-2.zst")),
    (3, include_bytes!("stored/version-3.zst")),
    (4, include_bytes!("stored/version-4.zst")),
];

fn applied() -> Vec<Record> {
    vec![
        adopt(0, 1, 1),
        adopt(1, 1, 2),
        adopt(2, 2, 3),
        fill(0, 0, 3, 1),
        fill(0, 300, 2, 2),
        fill(1, 5, 4, 3),
        zero(0, 1, 1),
        fill(2, 0, 1, 4),
        Record::Erase { chunk: chunk(2) },
    ]
}

fn journalled() -> Vec<Record> {
    vec![fill(0, 2, 2, 5), fill(1, 700, 1, 6), zero(1, 6, 1), adopt(0, 3, 1), fill(1, 256, 40, 7)]
}

fn expected() -> Model {
    let mut model = Model::default();
    applied().iter().chain(&journalled()).for_each(|record| model.apply(record));
    model
}

/// Takes so many bytes off the front.
fn taken<const N: usize>(from: &mut &[u8]) -> [u8; N] {
    let (front, rest) = from.split_first_chunk().unwrap();
    *from = rest;
    *front
}

fn disk_of(packed: &[u8]) -> MemDisk {
    let bytes = zstd::decode_all(packed).unwrap();
    let (disk, mut left) = (MemDisk::new(), bytes.as_slice());
    while !left.is_empty() {
        let [length] = taken::<1>(&mut left);
        let (name, rest) = left.split_at(usize::from(length));
        left = rest;
        let file = disk.open(std::str::from_utf8(name).unwrap(), OpenHow::CREATE).unwrap();
        file.truncate(u64::from_le_bytes(taken(&mut left))).unwrap();
        for _ in 0..u32::from_le_bytes(taken(&mut left)) {
            let at = u64::from_le_bytes(taken(&mut left));
            file.write_at(&taken::<PAGE>(&mut left), at).unwrap();
        }
        file.sync_data().unwrap();
    }
    disk.sync_dir().unwrap();
    disk
}

/// The version that the superblock of a store names.
fn version(disk: &MemDisk) -> u32 {
    let newest = |at| {
        let mut page = vec![0; PAGE];
        disk.open("super", OpenHow::EXISTING).unwrap().read_at(&mut page, at).unwrap();
        Superblock::decode(&page).ok().map(|block| (block.sequence, page))
    };
    let pages = [newest(0), newest(PAGE as u64)];
    let (_, page) = pages.into_iter().flatten().max_by_key(|(sequence, _)| *sequence).unwrap();
    u32::from_le_bytes(*page[12..].first_chunk().unwrap())
}

#[test]
fn stores_of_all_versions_are_read_and_written_on() {
    for (number, packed) in STORED {
        let disk = disk_of(packed);
        assert_eq!(version(&disk), number);
        let mut rig = Rig::open(&disk);
        let mut model = expected();
        assert!(rig.parts.state.iter().eq(model.state.iter()), "version {number}");
        // Up to which epoch what was erased stays erased was not kept before.
        let erased = rig.parts.state.erased().count();
        assert_eq!(erased, usize::from(number > 2), "version {number}");
        assert_eq!(rig.blocks().unwrap(), model.blocks, "version {number}");
        rig.check_slots();
        for record in [fill(0, 301, 1, 8), zero(1, 256, 20), fill(1, 9, 1, 9)] {
            model.apply(&record);
            rig.append([record]).unwrap();
        }
        rig.checkpoint().unwrap();
        drop(rig);
        let mut rig = Rig::open(&disk);
        assert!(rig.parts.state.iter().eq(model.state.iter()), "version {number}, written on");
        assert_eq!(rig.blocks().unwrap(), model.blocks, "version {number}, written on");
        assert_eq!(version(&disk), VERSION);
    }
}

/// Writes the files of today's version to `$ASHLAR_STORED`, uncompressed: for the day that it is a
/// former one. Compares them with those that are kept: what today's code writes is what it must read
/// for ever.
#[test]
fn todays_version_is_kept() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append(applied()).unwrap();
    rig.checkpoint().unwrap();
    rig.append(journalled()).unwrap();
    rig.settle().unwrap();
    drop(rig);
    let bytes = packed(&disk);
    if let Some(path) = std::env::var_os("ASHLAR_STORED") {
        std::fs::write(path, &bytes).unwrap();
    }
    let (number, kept) = STORED.last().unwrap();
    assert_eq!(*number, VERSION, "the new version is not kept");
    assert!(
        packed(&disk_of(kept)) == bytes,
        "what is written has changed: raise the version, or keep the new bytes if it is no change of format"
    );
}

fn packed(disk: &MemDisk) -> Vec<u8> {
    let mut out = Vec::new();
    for name in disk.list().unwrap() {
        let file = disk.open(&name, OpenHow::EXISTING).unwrap();
        let size = file.size().unwrap();
        let mut pages = Vec::new();
        for at in (0..size).step_by(PAGE) {
            let mut page = vec![0; PAGE];
            file.read_at(&mut page, at).unwrap();
            if page.iter().any(|byte| *byte != 0) {
                pages.push((at, page));
            }
        }
        out.push(u8::try_from(name.len()).unwrap());
        out.extend(name.bytes());
        out.extend(size.to_le_bytes());
        out.extend(u32::try_from(pages.len()).unwrap().to_le_bytes());
        for (at, page) in pages {
            out.extend(at.to_le_bytes());
            out.extend(page);
        }
    }
    out
}
