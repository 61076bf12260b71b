//! A disk in memory that forgets what was not synced: for tests and simulation.
//!
//! What it models at a power cut ([`MemDisk::crash`]): of the writes since a file's last sync any
//! subset of 512-byte sectors survives, in any combination; of the folder's changes since the last
//! `sync_dir` a prefix survives (file systems journal them in order). What it can be told: stop at
//! the n-th change, fail the n-th read, write or sync, be full, lie about syncs (to prove that a
//! test would notice), flip bits at rest. [`record`] writes down what is done to it, and makes the
//! folders that a power cut could leave at any moment of that. Clones share one disk.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskError, DiskFile, OpenHow, check_aligned, check_name};
use crate::dice::Dice;

mod inode;
pub mod record;

use inode::{Inode, read_pages, write_pages};
use record::{Operation, Tap};

/// The disk. A clone is another handle to the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    shared: Arc<Mutex<Shared>>,
}

/// Which calls a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultOn {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `sync_data`.
    Sync,
    /// Creations, removals, renames, `sync_dir`.
    Folder,
}

/// What a power cut leaves of the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survivors {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// All, but the last sector of each file's last write only to its half.
    Torn,
    /// Any: each sector by itself, of the folder's changes a prefix.
    Any,
}

#[derive(Clone, Debug)]
struct Fault {
    on: FaultOn,
    /// Part of the file name; empty hits all.
    name: String,
    /// Calls to let pass first.
    skip: u64,
    errno: i32,
}

#[derive(Clone, Debug)]
enum FolderChange {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Clone, Debug, Default)]
struct Shared {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<FolderChange>,
    /// Power cycles so far; handles of an earlier one are dead.
    cycle: u64,
    powered_off: bool,
    changes: u64,
    stop_at: Option<u64>,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    refuses_files: bool,
    lying_syncs: Vec<String>,
    /// Writes down what is done.
    tap: Option<Tap>,
}

impl MemDisk {
    /// An empty disk without limits or faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Plain data: a panic of another holder leaves nothing half-done that matters to a test.
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Number of changing calls (writes, syncs, folder changes) carried out so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Power goes off during the `n`-th changing call from now (1: the very next): it fails, as does
    /// everything after it, until [`MemDisk::crash`]. A write hit so may survive in part.
    pub fn stop_after(&self, n: u64) {
        let mut s = self.lock();
        s.stop_at = Some(s.changes.saturating_add(n));
    }

    /// True once the stop of [`MemDisk::stop_after`] has happened.
    #[must_use]
    pub fn is_powered_off(&self) -> bool {
        self.lock().powered_off
    }

    /// Lets `skip` calls of this kind on files whose name contains `name` pass, then fails one with
    /// `errno`. After a failed sync the unsynced writes survive in any subset and later syncs do
    /// not bring them back, as on Linux.
    pub fn fail(&self, on: FaultOn, name: &str, skip: u64, errno: i32) {
        self.lock().faults.push(Fault { on, name: name.to_owned(), skip, errno });
    }

    /// Limits the sum of file sizes to `bytes` (`None`: no limit).
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Opens and creates no file any more, as for a process without file descriptors, until it is told
    /// otherwise; what is open goes on.
    pub fn refuse_files(&self, refused: bool) {
        self.lock().refuses_files = refused;
    }

    /// Makes `sync_data` of files whose name contains `name` do nothing while reporting success,
    /// for good. A crash test that still passes with this set tests nothing.
    pub fn lie_about_sync(&self, name: &str) {
        self.lock().lying_syncs.push(name.to_owned());
    }

    /// Flips all bits of one byte at rest.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn flip(&self, name: &str, offset: u64) -> Result<(), DiskError> {
        let mut s = self.lock();
        let id = s.find(name)?;
        if let Some(inode) = s.inodes.get_mut(&id) {
            for pages in [&mut inode.now, &mut inode.durable] {
                let mut byte = [0];
                read_pages(pages, offset, &mut byte);
                write_pages(pages, offset, &[!byte[0]]);
            }
        }
        Ok(())
    }

    /// Another disk of the same content, with the same changes not yet synced. Handles stay with
    /// this one, faults and a recorder too.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut shared = self.lock().clone();
        (shared.tap, shared.powered_off, shared.stop_at) = (None, false, None);
        shared.faults.clear();
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A number of its names and contents, of what is durable and what is not: two disks with
    /// different ones differ, and hardly ever two with the same.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let s = self.lock();
        let mut hasher = std::hash::DefaultHasher::new();
        for names in [&s.names, &s.durable_names] {
            for (name, inode) in names {
                name.hash(&mut hasher);
                if let Some(inode) = s.inodes.get(inode) {
                    inode.hash_into(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    /// True when a power cut could lose something.
    fn is_unsynced(&self) -> bool {
        let s = self.lock();
        !s.pending_names.is_empty() || s.inodes.values().any(Inode::is_unsynced)
    }

    /// A power cut, now, and power back: unsynced changes survive as `dice` falls, all faults are
    /// cleared, handles opened before are dead.
    pub fn crash(&self, dice: &mut dyn Dice) {
        self.crash_with(Survivors::Any, dice);
    }

    /// [`MemDisk::crash`], with the survivors chosen.
    pub fn crash_with(&self, fate: Survivors, dice: &mut dyn Dice) {
        let mut s = self.lock();
        let all = count(s.pending_names.len());
        let survivors = match fate {
            Survivors::Nothing => 0,
            Survivors::Everything | Survivors::Torn => all,
            Survivors::Any => dice.below(all + 1),
        };
        let changes = std::mem::take(&mut s.pending_names);
        for change in changes.iter().take(usize::try_from(survivors).unwrap_or(0)) {
            apply_name(&mut s.durable_names, change);
        }
        s.names = s.durable_names.clone();
        let kept: Vec<u64> = s.names.values().copied().collect();
        s.inodes.retain(|id, _| kept.contains(id));
        for inode in s.inodes.values_mut() {
            inode.crash(fate, dice);
        }
        s.cycle += 1;
        s.powered_off = false;
        s.stop_at = None;
        s.faults.clear();
    }
}

impl Shared {
    fn find(&self, name: &str) -> Result<u64, DiskError> {
        let missing = || DiskError::NotFound { name: name.to_owned() };
        self.names.get(name).copied().ok_or_else(missing)
    }

    /// Counts a changing call; fails it when power goes.
    fn change(&mut self) -> Result<(), DiskError> {
        if self.powered_off {
            return Err(DiskError::PoweredOff);
        }
        self.changes += 1;
        if self.stop_at.is_some_and(|at| self.changes >= at) {
            self.powered_off = true;
            return Err(DiskError::PoweredOff);
        }
        Ok(())
    }

    fn fault(&mut self, on: FaultOn, name: &str, what: &'static str) -> Result<(), DiskError> {
        let hit = |f: &&mut Fault| f.on == on && name.contains(&f.name);
        let mut due = None;
        for (index, fault) in self.faults.iter_mut().enumerate() {
            if !hit(&fault) {
                continue;
            }
            if fault.skip == 0 {
                due = Some((index, fault.errno));
                break;
            }
            fault.skip -= 1;
        }
        match due {
            None => Ok(()),
            Some((index, errno)) => {
                self.faults.remove(index);
                Err(super::direct::io_error(what, name, &std::io::Error::from_raw_os_error(errno)))
            }
        }
    }

    /// Tells whoever writes down what is done to the disk.
    fn record(&self, operation: impl FnOnce() -> Operation) {
        if let Some(tap) = &self.tap {
            tap.note(operation());
        }
    }

    fn create(&mut self, name: &str) {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Inode::default());
        self.change_names(FolderChange::Create(name.to_owned(), id));
    }

    fn sync_names(&mut self) {
        self.record(|| Operation::SyncFolder);
        self.durable_names = self.names.clone();
        self.pending_names.clear();
    }

    fn write(&mut self, id: u64, offset: u64, bytes: &[u8]) {
        self.record(|| Operation::Write { file: id, offset, bytes: bytes.into() });
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.write(offset, bytes);
        }
    }

    fn set_size(&mut self, id: u64, size: u64) {
        self.record(|| Operation::Size { file: id, size });
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.set_size(size);
        }
    }

    fn sync(&mut self, id: u64) {
        self.record(|| Operation::Sync { file: id });
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.sync();
        }
    }

    fn room_for(&self, growth: u64, name: &str) -> Result<(), DiskError> {
        let used: u64 =
            self.names.values().filter_map(|id| self.inodes.get(id)).map(|i| i.size).sum();
        match self.capacity {
            Some(capacity) if used.saturating_add(growth) > capacity => {
                Err(DiskError::NoSpace { name: name.to_owned() })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn change_names(&mut self, change: FolderChange) {
        self.record(|| Operation::Folder(change.clone()));
        apply_name(&mut self.names, &change);
        self.pending_names.push(change);
    }
}

impl Disk for MemDisk {
    fn open(&self, name: &str, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        check_name(name)?;
        let mut s = self.lock();
        if s.powered_off {
            return Err(DiskError::PoweredOff);
        }
        if s.refuses_files {
            let none_left = std::io::Error::from_raw_os_error(libc::EMFILE);
            return Err(super::direct::io_error("open", name, &none_left));
        }
        let exists = s.names.contains_key(name);
        if how.creates() {
            if exists {
                return Err(DiskError::AlreadyExists { name: name.to_owned() });
            }
            s.fault(FaultOn::Folder, name, "create")?;
            s.change()?;
            s.create(name);
        }
        let inode = s.find(name)?;
        let cycle = s.cycle;
        drop(s);
        let direct = how.is_direct();
        Ok(Arc::new(MemFile { disk: self.clone(), name: name.to_owned(), inode, cycle, direct }))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let mut s = self.lock();
        s.find(name)?;
        s.fault(FaultOn::Folder, name, "remove")?;
        s.change()?;
        s.change_names(FolderChange::Remove(name.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        check_name(to)?;
        let mut s = self.lock();
        s.find(from)?;
        s.fault(FaultOn::Folder, from, "rename")?;
        s.change()?;
        s.change_names(FolderChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        let mut s = self.lock();
        s.fault(FaultOn::Folder, "", "sync")?;
        s.change()?;
        s.sync_names();
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let s = self.lock();
        if s.powered_off {
            return Err(DiskError::PoweredOff);
        }
        Ok(s.names.keys().cloned().collect())
    }
}

/// A handle to a file of a [`MemDisk`].
#[derive(Debug)]
struct MemFile {
    disk: MemDisk,
    name: String,
    inode: u64,
    cycle: u64,
    direct: bool,
}

impl MemFile {
    /// The disk, if this handle is still alive.
    fn live(&self) -> Result<MutexGuard<'_, Shared>, DiskError> {
        let s = self.disk.lock();
        if s.powered_off || s.cycle != self.cycle || !s.inodes.contains_key(&self.inode) {
            return Err(DiskError::PoweredOff);
        }
        Ok(s)
    }

    fn check(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        if self.direct { check_aligned(&self.name, buf, offset) } else { Ok(()) }
    }

    fn set_size(&self, size: u64) -> Result<(), DiskError> {
        let mut s = self.live()?;
        s.fault(FaultOn::Write, &self.name, "truncate")?;
        s.change()?;
        let now = s.inodes.get(&self.inode).map_or(0, |i| i.size);
        s.room_for(size.saturating_sub(now), &self.name)?;
        s.set_size(self.inode, size);
        Ok(())
    }
}

impl DiskFile for MemFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> Result<u64, DiskError> {
        Ok(self.live()?.inodes.get(&self.inode).map_or(0, |i| i.size))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.check(buf, offset)?;
        let mut s = self.live()?;
        s.fault(FaultOn::Read, &self.name, "read")?;
        let past = || DiskError::PastEnd { name: self.name.clone(), offset, len: buf.len() };
        let inode = s.inodes.get(&self.inode).ok_or(DiskError::PoweredOff)?;
        if offset.saturating_add(count(buf.len())) > inode.size {
            return Err(past());
        }
        read_pages(&inode.now, offset, buf);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.check(buf, offset)?;
        let mut s = self.live()?;
        s.fault(FaultOn::Write, &self.name, "write")?;
        let end = offset.saturating_add(count(buf.len()));
        let now = s.inodes.get(&self.inode).map_or(0, |i| i.size);
        s.room_for(end.saturating_sub(now), &self.name)?;
        let power = s.change();
        // A write that power interrupts may still reach the medium in part.
        s.write(self.inode, offset, buf);
        power
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        let mut s = self.live()?;
        let fault = s.fault(FaultOn::Sync, &self.name, "sync");
        s.change()?;
        let lying = s.lying_syncs.iter().any(|part| self.name.contains(part));
        if fault.is_err() {
            if let Some(inode) = s.inodes.get_mut(&self.inode) {
                inode.lose_half();
            }
        } else if !lying {
            s.sync(self.inode);
        }
        fault
    }

    fn preallocate(&self, size: u64) -> Result<(), DiskError> {
        if self.size()? >= size { Ok(()) } else { self.set_size(size) }
    }

    fn truncate(&self, size: u64) -> Result<(), DiskError> {
        self.set_size(size)
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: &FolderChange) {
    match change {
        FolderChange::Create(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        FolderChange::Remove(name) => {
            names.remove(name);
        }
        FolderChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

#[cfg(test)]
mod tests;
