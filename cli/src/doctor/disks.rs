//! The folders of nodes' stores: on which file systems, with how much room, how fast to stable media.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{self, FsType, statfs};

use super::Check;
use super::files::{Configs, judge};
use crate::size;

/// File that is written to time the disk, and taken away again.
const PROBE: &str = "ashlar-doctor.tmp";

/// Times that it is written: a median of fewer moves with every other writer.
const PROBES: u32 = 9;

/// A disk that takes longer makes every write of a volume take longer.
const SYNC_MAX: Duration = Duration::from_millis(20);

/// No medium that outlives a power cut is faster: the write went to memory only.
const SYNC_MIN: Duration = Duration::from_micros(3);

/// Of a file system that must stay free; a journal that cannot grow its files stops the store.
const FREE_MIN_PERCENT: u64 = 5;

/// What one file system looks like.
#[derive(Debug, Clone, Copy)]
struct Place {
    device: u64,
    kind: FsType,
    total: u64,
    available: u64,
}

/// A store of a node.
#[derive(Debug)]
struct Store<'a> {
    node: &'a str,
    folder: &'a Path,
    capacity: u64,
    place: Place,
}

/// All checks of stores' folders.
pub(super) fn checks(configs: &Configs) -> Vec<Check> {
    if configs.nodes.is_empty() {
        return Vec::new();
    }
    let mut missing = Vec::new();
    let mut stores = Vec::new();
    for node in &configs.nodes {
        for folder in &node.config.stores {
            match place_of(folder) {
                Ok(place) => {
                    let capacity = node.config.capacity_bytes;
                    stores.push(Store { node: &node.name, folder, capacity, place });
                }
                Err(error) => missing.push(format!("{}: {}: {error}", node.name, folder.display())),
            }
        }
    }
    vec![
        judge(
            "DISK_FOLDERS",
            &missing,
            format!("{} folders of stores can be looked at", stores.len()),
            "make the folder, mount its disk, or run as the node's user",
            Check::failure,
        ),
        file_systems(&stores),
        disks_apart(&stores),
        room(&stores),
        free(&stores),
        synced(&stores, sync_time),
    ]
}

/// Of the folder, or of the nearest one above that is there: the node makes the rest at its start.
fn place_of(folder: &Path) -> io::Result<Place> {
    let mut there: PathBuf = std::path::absolute(folder)?;
    while !there.exists() {
        if !there.pop() {
            break;
        }
    }
    let found = statfs(&there).map_err(io::Error::from)?;
    let block = u64::try_from(found.block_size()).unwrap_or(0);
    Ok(Place {
        device: fs::metadata(&there)?.dev(),
        kind: found.filesystem_type(),
        total: found.blocks().saturating_mul(block),
        available: found.blocks_available().saturating_mul(block),
    })
}

fn file_systems(stores: &[Store<'_>]) -> Check {
    let doubtful = |kind: FsType| match kind {
        statfs::TMPFS_MAGIC => Some("is in memory (tmpfs): a power cut takes it"),
        statfs::NFS_SUPER_MAGIC | statfs::SMB_SUPER_MAGIC => {
            Some("is on another host: its network is one more thing to fail")
        }
        statfs::OVERLAYFS_SUPER_MAGIC => Some("is in a container's own layer: it goes with it"),
        statfs::FUSE_SUPER_MAGIC => Some("is on FUSE: it may not keep what was synced"),
        _ => None,
    };
    let doubts: Vec<String> = stores
        .iter()
        .filter_map(|store| Some((store, doubtful(store.place.kind)?)))
        .map(|(store, doubt)| format!("{}: {} {doubt}", store.node, store.folder.display()))
        .collect();
    let remedy = "keep stores on ext4 or xfs on disks of this host";
    let fine = "no store is in memory or on another host".to_owned();
    judge("DISK_FILE_SYSTEM", &doubts, fine, remedy, Check::warning)
}

/// Stores are for disks: two on one disk fail together, and are counted as two.
fn disks_apart(stores: &[Store<'_>]) -> Check {
    let mut shared: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for store in stores {
        *shared.entry((store.node, store.place.device)).or_default() += 1;
    }
    let shared: Vec<String> = shared
        .into_iter()
        .filter(|(_, count)| *count > 1)
        .map(|((node, _), count)| format!("{node} has {count} stores on one file system"))
        .collect();
    let remedy = "one store for each disk: more of them on one disk only take turns";
    let fine = "every store of a node has a file system of its own".to_owned();
    judge("DISK_STORES_APART", &shared, fine, remedy, Check::warning)
}

/// By file system: what its stores offer together, and what it has.
fn room(stores: &[Store<'_>]) -> Check {
    let mut offered: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for store in stores {
        let entry = offered.entry(store.place.device).or_insert((0, store.place.total));
        entry.0 = entry.0.saturating_add(store.capacity);
    }
    let over: Vec<String> = offered
        .values()
        .filter(|(offered, total)| offered > total)
        .map(|(offered, total)| {
            format!(
                "stores offer {} on a file system of {}",
                size::show(*offered),
                size::show(*total)
            )
        })
        .collect();
    let remedy = "lower capacity_bytes: a zone places chunks by what stores offer, and their writes \
                  would wait for room that does not come";
    let fine = "file systems are as large as what their stores offer".to_owned();
    judge("DISK_ROOM", &over, fine, remedy, Check::warning)
}

fn free(stores: &[Store<'_>]) -> Check {
    let mut full: BTreeMap<u64, String> = BTreeMap::new();
    for Store { place, folder, .. } in stores {
        if place.available.saturating_mul(100) < place.total.saturating_mul(FREE_MIN_PERCENT) {
            let left = size::show(place.available);
            full.entry(place.device).or_insert(format!("{left} left at {}", folder.display()));
        }
    }
    let full: Vec<String> = full.into_values().collect();
    let remedy = "make room on the file system; a store that cannot write leaves its node";
    let fine = format!("at least {FREE_MIN_PERCENT} % is free everywhere");
    judge("DISK_FREE", &full, fine, remedy, Check::failure)
}

/// By file system: the median time to write a block and have it on stable media.
fn synced(stores: &[Store<'_>], time: impl Fn(&Path) -> io::Result<Duration>) -> Check {
    let code = "DISK_SYNC";
    let mut timed = BTreeMap::new();
    for store in stores.iter().filter(|store| store.place.kind != statfs::TMPFS_MAGIC) {
        timed.entry(store.place.device).or_insert_with(|| (store.folder, time(store.folder)));
    }
    let (mut faults, mut fine) = (Vec::new(), Vec::new());
    for (folder, outcome) in timed.values() {
        let place = folder.display();
        match outcome {
            Ok(took) if *took > SYNC_MAX => {
                faults.push(format!("{place}: {} ms for a write to be stable", took.as_millis()));
            }
            Ok(took) if *took < SYNC_MIN => faults.push(format!(
                "{place}: {} ns: no disk is that fast, so what was synced may be in memory only",
                took.as_nanos()
            )),
            Ok(took) => fine.push(format!("{place}: {} µs", took.as_micros())),
            Err(_not_there_or_not_ours) => {}
        }
    }
    if faults.is_empty() && fine.is_empty() {
        let why = "no store on a disk can be written by this user";
        return Check::skipped(code, "configuration", why);
    }
    let remedy = "use a disk with power-loss protection, and let no layer below ignore flushes";
    judge(code, &faults, format!("written and stable: {}", fine.join(", ")), remedy, Check::warning)
}

fn sync_time(folder: &Path) -> io::Result<Duration> {
    let path = folder.join(PROBE);
    let file = File::create_new(&path)?;
    let mut times = Vec::new();
    let outcome = (0..PROBES).try_for_each(|turn| {
        let began = Instant::now();
        file.write_all_at(&[u8::try_from(turn).unwrap_or(0); 4096], 0)?;
        file.sync_data()?;
        times.push(began.elapsed());
        Ok(())
    });
    fs::remove_file(&path)?;
    outcome.and_then(|()| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().ok_or_else(|| io::Error::other("nothing was timed"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{Failure, Ok as Fine, Skipped, Warning};
    use super::*;

    fn place(device: u64, kind: FsType, total: u64, available: u64) -> Place {
        Place { device, kind, total, available }
    }

    fn store(node: &'static str, capacity: u64, place: Place) -> Store<'static> {
        Store { node, folder: Path::new("/d"), capacity, place }
    }

    #[test]
    fn file_systems_are_judged_by_what_they_keep() {
        let of = |kind| file_systems(&[store("n", 1, place(1, kind, 100, 50))]).outcome();
        assert_eq!(of(statfs::EXT4_SUPER_MAGIC), Fine);
        assert_eq!(of(statfs::TMPFS_MAGIC), Warning);
        assert_eq!(of(statfs::NFS_SUPER_MAGIC), Warning);
    }

    #[test]
    fn stores_on_one_disk_that_offer_more_than_it_has_are_found() {
        let ext4 = statfs::EXT4_SUPER_MAGIC;
        let one = store("n", 60, place(1, ext4, 100, 50));
        let same = store("n", 60, place(1, ext4, 100, 50));
        let other = store("n", 60, place(2, ext4, 100, 4));
        assert_eq!(disks_apart(&[one, other]).outcome(), Fine);
        let one = store("n", 60, place(1, ext4, 100, 50));
        let both = [one, same];
        assert_eq!((disks_apart(&both).outcome(), room(&both).outcome()), (Warning, Warning));
        assert_eq!(free(&both).outcome(), Fine);
        let full = [store("n", 60, place(2, ext4, 100, 4))];
        assert_eq!((room(&full).outcome(), free(&full).outcome()), (Fine, Failure));
    }

    #[test]
    fn a_disk_that_is_slow_or_too_fast_to_be_true_is_found() {
        let stores = [store("n", 1, place(1, statfs::EXT4_SUPER_MAGIC, 100, 50))];
        let of = |micros| synced(&stores, |_| Ok(Duration::from_micros(micros))).outcome();
        assert_eq!((of(120), of(50_000), of(1)), (Fine, Warning, Warning));
        let nobody = synced(&stores, |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(nobody.outcome(), Skipped);
    }

    #[test]
    fn timing_a_disk_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        assert!(sync_time(folder.path()).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(place_of(&folder.path().join("not/there/yet")).unwrap().total > 0);
    }
}
