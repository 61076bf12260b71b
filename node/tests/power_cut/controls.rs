//! Writers that leave out one sync, or a wrapper: each must lose something that it has acknowledged, or
//! the harness shows nothing of that sync.
//!
//! Their files pass through the page cache, as on a file system that refuses O_DIRECT: what is written past
//! it is in the image at once, synced or not. The same store with all of its syncs must keep everything
//! there too.

use super::{PATIENCE, acknowledge, judge, judged, open_log_on, sized, value};
use ashlar_env::dice::SeededDice;
use ashlar_env::disk::{Disk, RealDisk, Unsynced};
use ashlar_log::Log;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Cuts within which a missing sync must show. Nearly all show it at the first one; one that matters at
/// checkpoints only needs a cut behind one.
const CUTS_MAX: usize = 12;

/// Cuts power until something is lost.
fn must_lose(subject: &str) {
    let mut dice = SeededDice::system();
    for cut in 0..CUTS_MAX {
        let Some(outcome) = judged(subject, cut, &mut dice) else { return };
        if let Err(lost) = outcome {
            eprintln!("as it must, at cut {}: {lost}", cut + 1);
            return;
        }
    }
    panic!("{subject}: {CUTS_MAX} cuts, and nothing is lost");
}

#[test]
fn the_store_keeps_as_much_through_the_page_cache() {
    judge("store through the page cache", sized(4, 30));
}

#[test]
fn a_store_without_the_sync_of_its_journal_loses_something() {
    must_lose("store without journal");
}

#[test]
fn a_store_without_the_sync_of_its_data_loses_something() {
    must_lose("store without data");
}

#[test]
fn a_store_without_the_sync_of_its_map_loses_something() {
    must_lose("store without map");
}

#[test]
fn a_store_without_the_sync_of_its_superblock_loses_something() {
    must_lose("store without super");
}

#[test]
fn a_log_without_the_sync_of_its_segments_loses_something() {
    must_lose("log without a sync");
}

#[test]
fn sled_as_it_is_loses_something() {
    must_lose("sled as it is");
}

/// The disk that a store's writer works on.
pub(super) fn store_disk(subject: &str, folder: &Path) -> Arc<dyn Disk> {
    let disk = Arc::new(RealDisk::open(&folder.join("store")).unwrap());
    match subject {
        "store" => disk,
        "store through the page cache" => Arc::new(Unsynced::none(disk)),
        without => Arc::new(Unsynced::files(disk, without.strip_prefix("store without ").unwrap())),
    }
}

pub(super) fn leaves_out_a_sync(subject: &str) -> bool {
    subject.starts_with("store without ")
}

/// Everything so far is durable: that something was made is not what is to be lost.
pub(super) fn settle(folder: &Path) {
    nix::unistd::syncfs(std::fs::File::open(folder).unwrap()).unwrap();
}

pub(super) fn open_unsynced_log(folder: &Path) -> Log {
    let disk = Arc::new(RealDisk::open(&folder.join("log")).unwrap());
    let log = open_log_on(Arc::new(Unsynced::files(disk, ""))).unwrap();
    settle(folder);
    log
}

fn open_raw_sled(folder: &Path) -> sled::Db {
    sled::Config::new().path(folder.join("meta")).flush_every_ms(None).open().unwrap()
}

/// What the metadata store does, without what it adds: sled says that it has flushed.
pub(super) fn write_raw_sled(folder: &Path) {
    let db = open_raw_sled(folder);
    settle(folder);
    for n in 1.. {
        db.insert(format!("key {n:08}"), value(n)).unwrap();
        db.flush().unwrap();
        acknowledge(n);
    }
}

pub(super) fn find_in_raw_sled(folder: &Path, acknowledged: u64) -> Result<(), String> {
    // Damaged files make it panic, or wait for ever.
    let (tx, found) = channel();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        let db = open_raw_sled(&folder);
        let missing = (1..=acknowledged)
            .find(|n| db.get(format!("key {n:08}")).unwrap().as_deref() != Some(&value(*n)[..]));
        tx.send(missing).unwrap();
    });
    match found.recv_timeout(PATIENCE) {
        Ok(None) => Ok(()),
        Ok(Some(n)) => Err(format!("key {n} of {acknowledged} is missing")),
        Err(ended) => Err(format!("sled cannot open what it has flushed: {ended}")),
    }
}
