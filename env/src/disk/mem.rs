//! A disk in memory that forgets what was not synced: for tests and simulation.
//!
//! What it models at a power cut ([`MemDisk::crash`]): of the writes since a file's last sync any
//! subset of 512-byte sectors survives, in any combination; of the folder's changes since the last
//! `sync_dir` a prefix survives (file systems journal them in order). What it can be told: stop at
//! the n-th change, fail the n-th read, write or sync, be full, lie about syncs (to prove that a
//! test would notice), flip bits at rest. Clones share one disk.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskError, DiskFile, OpenHow, check_aligned, check_name};
use crate::dice::Dice;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

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

#[derive(Debug)]
struct Fault {
    on: FaultOn,
    /// Part of the file name; empty hits all.
    name: String,
    /// Calls to let pass first.
    skip: u64,
    errno: i32,
}

type Pages = BTreeMap<u64, Arc<[u8; PAGE]>>;

#[derive(Debug, Default)]
struct Inode {
    now: Pages,
    durable: Pages,
    size: u64,
    durable_size: u64,
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Write { offset: u64, bytes: Vec<u8> },
    Cut { size: u64 },
}

#[derive(Clone, Debug)]
enum FolderChange {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug, Default)]
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
    lying_syncs: Vec<String>,
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

    /// A power cut, now, and power back: unsynced changes survive as `dice` falls, all faults are
    /// cleared, handles opened before are dead.
    pub fn crash(&self, dice: &mut dyn Dice) {
        let mut s = self.lock();
        let survivors = dice.below(count(s.pending_names.len()) + 1);
        let changes = std::mem::take(&mut s.pending_names);
        for change in changes.iter().take(usize::try_from(survivors).unwrap_or(0)) {
            apply_name(&mut s.durable_names, change);
        }
        s.names = s.durable_names.clone();
        let kept: Vec<u64> = s.names.values().copied().collect();
        s.inodes.retain(|id, _| kept.contains(id));
        for inode in s.inodes.values_mut() {
            inode.crash(dice);
        }
        s.cycle += 1;
        s.powered_off = false;
        s.stop_at = None;
        s.faults.clear();
    }
}

impl Inode {
    /// Settles the pending changes as `dice` falls; durable and current content are equal then.
    fn crash(&mut self, dice: &mut dyn Dice) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Pending::Write { offset, bytes } => {
                    // Mostly mixed fates, but whole and nothing must be seen often too.
                    let mode = dice.below(4);
                    let mut at = offset;
                    for sector in sectors(offset, &bytes) {
                        if mode == 0 || (mode > 1 && dice.chance(1, 2)) {
                            write_pages(&mut self.durable, at, sector);
                            self.durable_size = self.durable_size.max(at + count(sector.len()));
                        }
                        at += count(sector.len());
                    }
                }
                Pending::Cut { size } => {
                    if dice.chance(1, 2) {
                        cut_pages(&mut self.durable, size);
                        self.durable_size = size;
                    }
                }
            }
        }
        self.now = self.durable.clone();
        self.size = self.durable_size;
    }

    fn sync(&mut self) {
        let cut = self.pending.iter().any(|p| matches!(p, Pending::Cut { .. }));
        if cut {
            self.durable = self.now.clone();
            self.pending.clear();
        }
        for change in self.pending.drain(..) {
            if let Pending::Write { offset, bytes } = change {
                let last = (offset + count(bytes.len())).saturating_sub(1) / count(PAGE);
                for page in offset / count(PAGE)..=last {
                    if let Some(content) = self.now.get(&page) {
                        self.durable.insert(page, content.clone());
                    }
                }
            }
        }
        self.durable_size = self.size;
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
        let exists = s.names.contains_key(name);
        if how.creates() {
            if exists {
                return Err(DiskError::AlreadyExists { name: name.to_owned() });
            }
            s.fault(FaultOn::Folder, name, "create")?;
            s.change()?;
            let id = s.next_inode;
            s.next_inode += 1;
            s.inodes.insert(id, Inode::default());
            s.change_names(FolderChange::Create(name.to_owned(), id));
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
        s.durable_names = s.names.clone();
        s.pending_names.clear();
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
        if let Some(inode) = s.inodes.get_mut(&self.inode) {
            if size < inode.size {
                cut_pages(&mut inode.now, size);
                inode.pending.push(Pending::Cut { size });
            }
            inode.size = size;
        }
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
        if let Some(inode) = s.inodes.get_mut(&self.inode) {
            // A write that power interrupts may still reach the medium in part.
            inode.pending.push(Pending::Write { offset, bytes: buf.to_vec() });
            write_pages(&mut inode.now, offset, buf);
            inode.size = inode.size.max(end);
        }
        power
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        let mut s = self.live()?;
        let fault = s.fault(FaultOn::Sync, &self.name, "sync");
        s.change()?;
        let lying = s.lying_syncs.iter().any(|part| self.name.contains(part));
        if let Some(inode) = s.inodes.get_mut(&self.inode) {
            if fault.is_err() {
                // The kernel marks the pages clean: every second write is gone for good.
                let mut nth = 0u32;
                inode.pending.retain(|_| {
                    nth += 1;
                    nth.is_multiple_of(2)
                });
                let dropped = std::mem::take(&mut inode.pending);
                for change in dropped {
                    if let Pending::Write { offset, bytes } = change {
                        write_pages(&mut inode.durable, offset, &bytes);
                    }
                }
            } else if !lying {
                inode.sync();
            }
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

/// The pieces of `bytes` that lie in one sector each.
fn sectors(offset: u64, bytes: &[u8]) -> Vec<&[u8]> {
    let into = usize::try_from(offset % count(SECTOR)).unwrap_or(0);
    let (head, rest) = bytes.split_at((SECTOR - into).min(bytes.len()));
    std::iter::once(head).chain(rest.chunks(SECTOR)).filter(|s| !s.is_empty()).collect()
}

/// Calls `each(page number, range in page, range in buffer)` for every page that is touched.
fn for_pages(offset: u64, len: usize, mut each: impl FnMut(u64, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(count(done));
        let into = usize::try_from(at % count(PAGE)).unwrap_or(0);
        let step = (PAGE - into).min(len - done);
        each(at / count(PAGE), into, done, step);
        done += step;
    }
}

fn read_pages(pages: &Pages, offset: u64, buf: &mut [u8]) {
    let len = buf.len();
    for_pages(offset, len, |page, into, done, step| {
        let Some(to) = buf.get_mut(done..done + step) else { return };
        match pages.get(&page).and_then(|p| p.get(into..into + step)) {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(0),
        }
    });
}

fn write_pages(pages: &mut Pages, offset: u64, buf: &[u8]) {
    for_pages(offset, buf.len(), |page, into, done, step| {
        let content = pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
        if let (Some(to), Some(from)) =
            (Arc::make_mut(content).get_mut(into..into + step), buf.get(done..done + step))
        {
            to.copy_from_slice(from);
        }
    });
}

fn cut_pages(pages: &mut Pages, size: u64) {
    let first_gone = size.div_ceil(count(PAGE));
    pages.retain(|page, _| *page < first_gone);
    let into = usize::try_from(size % count(PAGE)).unwrap_or(0);
    if into != 0
        && let Some(content) = pages.get_mut(&(size / count(PAGE)))
        && let Some(tail) = Arc::make_mut(content).get_mut(into..)
    {
        tail.fill(0);
    }
}

#[cfg(test)]
mod tests;
