//! The disk seam: named files in one folder, positioned reads and writes, explicit syncs.
//!
//! Everything that must survive a crash (journal, log, superblock) is written over [`Disk`] and
//! [`DiskFile`], so that the recovery code of the real processes runs in tests and simulation over
//! [`mem::MemDisk`], which loses and tears unsynced writes. The rules both sides keep:
//!
//! 1. A write is durable after a later successful `sync_data` of its file, not before.
//! 2. Creating, removing and renaming are durable after `sync_dir`, and happen in order.
//! 3. After a failed sync nothing is known about what was written since the last good one, and
//!    syncing again proves nothing: the caller gives the file up.
//! 4. A file opened `direct` takes only reads and writes whose memory, offset and length are
//!    multiples of [`IO_ALIGN`].
//!
//! All calls block; they belong on threads of their own, never on a task of the data path.

mod aligned;
mod direct;
mod engine;
pub mod mem;
mod unsynced;
mod uring;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use aligned::AlignedBuf;
pub use direct::RealDisk;
pub use engine::{BATCH_DEPTH, EngineChoice, IoEngine, IoKind, IoOp};
pub use unsynced::Unsynced;

/// Alignment of memory, offset and length for files opened `direct`. 4 KiB is a multiple of every
/// logical sector in use; doubling it would waste half a page per journal header.
pub const IO_ALIGN: usize = 4096;

/// Why a disk call failed. Every case but `NotFound`, `AlreadyExists` and `NoSpace` means: give the
/// file up, do not retry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No file of this name.
    #[error("no file {name}")]
    NotFound {
        /// File name.
        name: String,
    },
    /// The file exists already and was to be created.
    #[error("file {name} exists already")]
    AlreadyExists {
        /// File name.
        name: String,
    },
    /// The file system is full.
    #[error("no space left for {name}")]
    NoSpace {
        /// File name.
        name: String,
    },
    /// A read past the end of the file.
    #[error("read of {len} bytes at {offset} of {name} is past its end")]
    PastEnd {
        /// File name.
        name: String,
        /// Byte offset of the read.
        offset: u64,
        /// Bytes asked for.
        len: usize,
    },
    /// A read or write of a direct file that is not aligned to [`IO_ALIGN`]: a mistake of ours.
    #[error("unaligned access of {len} bytes at {offset} of {name}")]
    Misaligned {
        /// File name.
        name: String,
        /// Byte offset of the access.
        offset: u64,
        /// Bytes asked for.
        len: usize,
    },
    /// A name that is empty, starts with a dot or holds a path separator.
    #[error("{name:?} is not a file name")]
    BadName {
        /// The refused name.
        name: String,
    },
    /// Another process holds the folder.
    #[error("folder {folder} is in use by another process")]
    Locked {
        /// The folder.
        folder: String,
    },
    /// The in-memory disk has lost power (tests and simulation only).
    #[error("the disk has lost power")]
    PoweredOff,
    /// Everything else the operating system says.
    #[error("cannot {what} {name}: {}", std::io::Error::from_raw_os_error(*.errno))]
    Io {
        /// Verb: open, read, write, sync, ...
        what: &'static str,
        /// File or folder.
        name: String,
        /// The operating system's error number (0: none given).
        errno: i32,
    },
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHow {
    create: bool,
    direct: bool,
}

impl OpenHow {
    /// An existing file, buffered.
    pub const EXISTING: Self = Self { create: false, direct: false };
    /// A new file, buffered; refused if it exists.
    pub const CREATE: Self = Self { create: true, direct: false };

    /// The same past the page cache (O_DIRECT), where the file system allows it.
    #[must_use]
    pub const fn direct(self) -> Self {
        Self { create: self.create, direct: true }
    }

    /// True when the file is to be created.
    #[must_use]
    pub const fn creates(self) -> bool {
        self.create
    }

    /// True when the page cache is to be passed by.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.direct
    }
}

/// One folder of files.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens or creates `name`. Creation is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, `BadName`, or what the operating system says.
    fn open(&self, name: &str, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError>;

    /// Removes `name`; open handles stay usable.
    ///
    /// # Errors
    /// `NotFound`, or what the operating system says.
    fn remove(&self, name: &str) -> Result<(), DiskError>;

    /// Renames `from` to `to`, replacing `to` atomically.
    ///
    /// # Errors
    /// `NotFound`, or what the operating system says.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Makes all creations, removals and renames durable.
    ///
    /// # Errors
    /// What the operating system says; then nothing is known about them.
    fn sync_dir(&self) -> Result<(), DiskError>;

    /// All file names, sorted. Names that start with a dot are not listed.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self) -> Result<Vec<String>, DiskError>;
}

/// One open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Its name when it was opened.
    fn name(&self) -> &str;

    /// Its size in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> Result<u64, DiskError>;

    /// Reads exactly `buf.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `PastEnd`, `Misaligned`, or what the operating system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError>;

    /// Writes all of `buf` at `offset`, growing the file where needed.
    ///
    /// # Errors
    /// `NoSpace`, `Misaligned`, or what the operating system says; then any part may be written.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError>;

    /// Makes everything written so far durable, with the size needed to read it.
    ///
    /// # Errors
    /// What the operating system says; then give the file up (rule 3 of the module).
    fn sync_data(&self) -> Result<(), DiskError>;

    /// [`DiskFile::write_at`] and [`DiskFile::sync_data`] of that write in one step: on return the
    /// bytes of this write are durable. Says nothing about earlier unsynced writes.
    ///
    /// # Errors
    /// As for the two.
    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.write_at(buf, offset)?;
        self.sync_data()
    }

    /// Grows the file to at least `size` bytes with space allocated and zero content. Never shrinks.
    ///
    /// # Errors
    /// `NoSpace`, or what the operating system says.
    fn preallocate(&self, size: u64) -> Result<(), DiskError>;

    /// Sets the size, cutting or growing with a hole.
    ///
    /// # Errors
    /// What the operating system says.
    fn truncate(&self, size: u64) -> Result<(), DiskError>;

    /// True when accesses must be aligned to [`IO_ALIGN`].
    fn is_direct(&self) -> bool;

    /// The descriptor for the batch engine; `None` when there is no kernel file behind.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Writes zeros over `from..to` (multiples of [`IO_ALIGN`]), so that later writes there need no
/// file-system metadata. Not synced.
///
/// # Errors
/// As for [`DiskFile::write_at`].
pub fn write_zeros(file: &dyn DiskFile, from: u64, to: u64) -> Result<(), DiskError> {
    const STEP: usize = 1 << 20;
    let zeros = AlignedBuf::zeroed(STEP);
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(STEP).min(STEP);
        file.write_at(zeros.get(..len).unwrap_or_default(), at)?;
        at += u64::try_from(len).unwrap_or(0);
    }
    Ok(())
}

/// Refuses names that could leave the folder or hide from `list`.
pub(crate) fn check_name(name: &str) -> Result<(), DiskError> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') || name.contains('\0') {
        return Err(DiskError::BadName { name: name.to_owned() });
    }
    Ok(())
}

/// Checks rule 4 of the module.
pub(crate) fn check_aligned(name: &str, buf: &[u8], offset: u64) -> Result<(), DiskError> {
    let aligned = |n: usize| n.is_multiple_of(IO_ALIGN);
    // An offset beyond the address space is refused as unaligned.
    let offset_low = usize::try_from(offset).unwrap_or(1);
    if aligned(buf.as_ptr().addr()) && aligned(buf.len()) && aligned(offset_low) {
        return Ok(());
    }
    Err(DiskError::Misaligned { name: name.to_owned(), offset, len: buf.len() })
}
