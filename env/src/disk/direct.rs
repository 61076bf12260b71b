//! The real disk: a folder of the file system, O_DIRECT where it is allowed.
//!
//! Where the file system refuses O_DIRECT (tmpfs on older kernels), files are opened buffered and
//! the reason is logged once; the durability rules hold either way, as every sync is fdatasync.
//! The folder is locked for the life of the value: two processes on one store would destroy it.
#![allow(unsafe_code, reason = "pwritev2 has no safe wrapper with RWF_DSYNC")]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};

use super::{Disk, DiskError, DiskFile, OpenHow, check_aligned, check_name};

const LOCK_NAME: &str = ".lock";
/// How long the process before this one may take to be gone. A store in regular use is refused then.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// A folder. Dropping it releases the lock.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    handle: File,
    _lock: File,
    refused_direct: AtomicBool,
}

impl RealDisk {
    /// Opens `folder`, creating it (and its parents) durably if it is missing, and locks it.
    ///
    /// # Errors
    /// `Locked` when another process has it open, or what the operating system says.
    pub fn open(folder: &Path) -> Result<Self, DiskError> {
        let shown = folder.display().to_string();
        create_folder(folder).map_err(|e| io_error("create", &shown, &e))?;
        let handle = File::open(folder).map_err(|e| io_error("open", &shown, &e))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK_NAME))
            .map_err(|e| io_error("open the lock of", &shown, &e))?;
        take_lock(&lock, &shown)?;
        Ok(Self {
            folder: folder.to_owned(),
            handle,
            _lock: lock,
            refused_direct: AtomicBool::new(false),
        })
    }

    /// The folder's path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn open_file(&self, name: &str, how: OpenHow) -> io::Result<(File, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(how.creates()).mode(0o640);
        let path = self.folder.join(name);
        if how.is_direct() && !self.refused_direct.load(Ordering::Relaxed) {
            match options.clone().custom_flags(libc::O_DIRECT).open(&path) {
                Ok(file) => return Ok((file, true)),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    tracing::info!(
                        folder = %self.folder.display(),
                        "the file system refuses O_DIRECT; using buffered files with fdatasync"
                    );
                    self.refused_direct.store(true, Ordering::Relaxed);
                    // Linux creates the file before it refuses the flag.
                    return options.create_new(false).create(true).open(&path).map(|f| (f, false));
                }
                Err(e) => return Err(e),
            }
        }
        options.open(&path).map(|f| (f, false))
    }
}

/// Creates the missing part of `folder` and syncs every parent it changed.
/// Takes the lock of a folder. A process that was killed holds it until the kernel has taken the
/// process apart, which may be after its successor has started: so the lock is waited for, a while.
fn take_lock(lock: &File, shown: &str) -> Result<(), DiskError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(DiskError::Locked { folder: shown.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(io_error("lock", shown, &e)),
        }
    }
}

fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    match std::fs::create_dir(folder) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(e),
    }
    match folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        check_name(name)?;
        let (file, direct) = self.open_file(name, how).map_err(|e| io_error("open", name, &e))?;
        Ok(Arc::new(RealFile { name: name.to_owned(), file, direct }))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        check_name(name)?;
        std::fs::remove_file(self.folder.join(name)).map_err(|e| io_error("remove", name, &e))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        check_name(from)?;
        check_name(to)?;
        std::fs::rename(self.folder.join(from), self.folder.join(to))
            .map_err(|e| io_error("rename", from, &e))
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        self.handle.sync_all().map_err(|e| io_error("sync", &self.folder.display().to_string(), &e))
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let shown = || self.folder.display().to_string();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(|e| io_error("list", &shown(), &e))? {
            let entry = entry.map_err(|e| io_error("list", &shown(), &e))?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
                && entry.file_type().is_ok_and(|t| t.is_file())
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
struct RealFile {
    name: String,
    file: File,
    direct: bool,
}

impl RealFile {
    fn check(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        if self.direct { check_aligned(&self.name, buf, offset) } else { Ok(()) }
    }
}

impl DiskFile for RealFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.file.metadata().map(|m| m.len()).map_err(|e| io_error("size", &self.name, &e))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.check(buf, offset)?;
        self.file.read_exact_at(buf, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                DiskError::PastEnd { name: self.name.clone(), offset, len: buf.len() }
            } else {
                io_error("read", &self.name, &e)
            }
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.check(buf, offset)?;
        self.file.write_all_at(buf, offset).map_err(|e| io_error("write", &self.name, &e))
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|e| io_error("sync", &self.name, &e))
    }

    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.check(buf, offset)?;
        // One call instead of two saves a sixth of the latency of a group commit.
        match pwrite_dsync(&self.file, buf, offset) {
            Ok(n) if n == buf.len() => Ok(()),
            // A short write, or a file system without the flag: the plain pair.
            Ok(_) => self.write_at(buf, offset).and_then(|()| self.sync_data()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINTR)) => {
                self.write_at(buf, offset).and_then(|()| self.sync_data())
            }
            Err(e) => Err(io_error("write", &self.name, &e)),
        }
    }

    fn preallocate(&self, size: u64) -> Result<(), DiskError> {
        let now = self.size()?;
        if now >= size {
            return Ok(());
        }
        let out_of_range =
            || DiskError::Io { what: "preallocate", name: self.name.clone(), errno: libc::EFBIG };
        let from = i64::try_from(now).map_err(|_| out_of_range())?;
        let len = i64::try_from(size - now).map_err(|_| out_of_range())?;
        match fallocate(&self.file, FallocateFlags::empty(), from, len) {
            Ok(()) => Ok(()),
            // Without fallocate the space is allocated at the first write instead.
            Err(nix::errno::Errno::EOPNOTSUPP) => self.truncate(size),
            Err(e) => {
                // What there was room for is given back: others need it, and a part is of no use.
                let _stays = self.file.set_len(now);
                Err(io_error("preallocate", &self.name, &io::Error::from_raw_os_error(e as i32)))
            }
        }
    }

    fn truncate(&self, size: u64) -> Result<(), DiskError> {
        self.file.set_len(size).map_err(|e| io_error("truncate", &self.name, &e))
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// pwritev2 with RWF_DSYNC: the bytes are durable on return.
fn pwrite_dsync(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `part` describes `buf`, which outlives the call and is only read by it.
    let n =
        unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_DSYNC) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sorts an operating-system error into our cases.
pub(super) fn io_error(what: &'static str, name: &str, e: &io::Error) -> DiskError {
    use io::ErrorKind::{AlreadyExists, NotFound, QuotaExceeded, StorageFull};
    let (name, kind) = (name.to_owned(), e.kind());
    if kind == NotFound {
        DiskError::NotFound { name }
    } else if kind == AlreadyExists {
        DiskError::AlreadyExists { name }
    } else if kind == StorageFull || kind == QuotaExceeded {
        DiskError::NoSpace { name }
    } else {
        DiskError::Io { what, name, errno: e.raw_os_error().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AlignedBuf, write_zeros};
    use super::*;

    #[test]
    fn files_are_created_written_listed_renamed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(&dir.path().join("a/b")).unwrap();
        let file = disk.open("one", OpenHow::CREATE.direct()).unwrap();
        file.preallocate(1 << 20).unwrap();
        assert_eq!(file.size().unwrap(), 1 << 20);
        write_zeros(&*file, 0, 1 << 20).unwrap();
        file.write_durable(&AlignedBuf::copied(b"hello"), 4096).unwrap();
        let mut back = AlignedBuf::zeroed(4096);
        file.read_at(&mut back, 4096).unwrap();
        assert_eq!(&back[..5], b"hello");
        assert!(matches!(
            file.read_at(&mut back, 1 << 20),
            Err(DiskError::PastEnd { offset: 1_048_576, .. })
        ));
        disk.rename("one", "two").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["two"]);
        assert!(matches!(disk.open("one", OpenHow::EXISTING), Err(DiskError::NotFound { .. })));
        assert!(matches!(disk.open("two", OpenHow::CREATE), Err(DiskError::AlreadyExists { .. })));
        disk.remove("two").unwrap();
        assert!(disk.list().unwrap().is_empty());
        assert!(matches!(disk.open("../x", OpenHow::CREATE), Err(DiskError::BadName { .. })));
    }

    #[test]
    fn a_direct_file_refuses_unaligned_access() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let file = disk.open("f", OpenHow::CREATE.direct()).unwrap();
        if file.is_direct() {
            assert!(matches!(file.write_at(&[0; 100], 0), Err(DiskError::Misaligned { .. })));
        }
    }

    #[test]
    fn a_second_owner_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = RealDisk::open(dir.path()).unwrap();
        assert!(matches!(RealDisk::open(dir.path()), Err(DiskError::Locked { .. })));
        drop(first);
        RealDisk::open(dir.path()).unwrap();
    }
}
