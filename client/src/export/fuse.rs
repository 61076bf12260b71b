//! A device as the one file of a FUSE file system.
//!
//! The file is opened for direct I/O (no page cache of its own, so a read sees what the volume
//! has), takes parallel and asynchronous direct I/O, gives space back on punched holes, and is
//! durable on every write; fsync waits for those before it. A loop device over it is how
//! [`crate::mount`] gets a block device where the host offers nothing better.
//!
//! One thread reads requests from the kernel; answers go out from the task of the volume.
//! Path of a write: client 1 of 9 (instead of NBD).

use crate::device::{BlockDevice, Command, Completion, Io, IoError, Sink, Submission};
use bytes::Bytes;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Name of the file.
pub const FILE_NAME: &str = "volume";
/// How the source begins in the mount table; the name of the device follows.
pub const SOURCE_PREFIX: &str = "ashlar-";

/// Largest write of the kernel: one frame's worth of blocks.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Asynchronous requests that the kernel may have open.
const BACKGROUND_MAX: u16 = 256;
/// What the kernel may keep of names and attributes; nothing of it changes but the size, and then it is told.
const KEEP: Duration = Duration::from_secs(3600);

/// Time for the kernel to end the session after the unmount.
const OVER_WITHIN: Duration = Duration::from_secs(2);

const ROOT: INodeNo = INodeNo(1);
const FILE: INodeNo = INodeNo(2);

/// A mounted file. Dropping it unmounts if nothing uses it, without waiting.
#[derive(Debug)]
pub struct FuseFile {
    session: BackgroundSession,
    dir: PathBuf,
}

/// Mounts the file system of one file at `dir`, an existing empty folder.
///
/// # Errors
/// No `/dev/fuse`, no right to mount, or a folder that cannot be mounted on.
pub fn mount(device: BlockDevice, dir: &Path) -> io::Result<FuseFile> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("{SOURCE_PREFIX}{}", device.info.name)),
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if device.info.read_only {
        config.mount_options.push(MountOption::RO);
    }
    config.n_threads = Some(1);
    let replies = Arc::new(Replies::default());
    let file = VolumeFile { device, replies, made: SystemTime::now() };
    let session = Session::new(file, dir, &config)?.spawn()?;
    Ok(FuseFile { session, dir: dir.to_owned() })
}

impl FuseFile {
    /// Unmounts and waits for the end. Blocks: not for an async task. While the file is in use it
    /// gives itself back with the reason, still mounted.
    ///
    /// # Errors
    /// The file is in use, or unmounting failed.
    pub fn unmount(self) -> Result<(), (Self, io::Error)> {
        if !self.is_over() {
            // First by our own call: the session's would give up its handle when it is in use.
            match nix::mount::umount2(&self.dir, nix::mount::MntFlags::empty()) {
                // Not mounted any more, or only the session's helper may unmount it.
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EPERM) => {}
                Err(error) => return Err((self, error.into())),
            }
        }
        // The kernel tells the session a moment later; asked before, it would unmount once more.
        let until = Instant::now() + OVER_WITHIN;
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(error) = self.session.umount_and_join() {
            tracing::info!(%error, "end of the FUSE session");
        }
        Ok(())
    }

    /// For a file that [`crate::mount::abandon`] has taken away: waits for the kernel to end the session.
    /// One that it does not end is left to the end of the process.
    pub fn end_abandoned(self) {
        let until = Instant::now() + OVER_WITHIN;
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.is_over() {
            tracing::warn!("the kernel has not ended the FUSE session");
            std::mem::forget(self);
        } else if let Err(error) = self.session.umount_and_join() {
            tracing::debug!(%error, "end of the FUSE session");
        }
    }

    /// Tells the kernel that the file has another size; what it keeps of it is asked for anew.
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn note_grown(&self) -> io::Result<()> {
        // Before the first byte: the attributes alone.
        self.session.notifier().inval_inode(FILE, -1, 0)
    }

    /// Whether the kernel has ended it (unmounted by somebody else).
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }
}

#[derive(Debug)]
struct VolumeFile {
    device: BlockDevice,
    replies: Arc<Replies>,
    made: SystemTime,
}

/// Answers that the kernel waits for; the tag is the slot.
#[derive(Debug, Default)]
struct Replies {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    slots: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

#[derive(Debug)]
enum Waiting {
    Read(ReplyData),
    Write(ReplyWrite, u32),
    Empty(ReplyEmpty),
}

impl Waiting {
    fn fail(self, error: IoError) {
        let errno = Errno::from_i32(error.errno());
        match self {
            Self::Read(reply) => reply.error(errno),
            Self::Write(reply, _) => reply.error(errno),
            Self::Empty(reply) => reply.error(errno),
        }
    }
}

impl Replies {
    fn insert(&self, waiting: Waiting) -> u64 {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &mut *table;
        if let Some(slot) = table.free.pop()
            && let Some(place) = table.slots.get_mut(slot)
        {
            *place = Some(waiting);
            return slot as u64;
        }
        table.slots.push(Some(waiting));
        (table.slots.len() - 1) as u64
    }

    fn remove(&self, tag: u64) -> Option<Waiting> {
        let slot = usize::try_from(tag).ok()?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = table.slots.get_mut(slot)?.take()?;
        table.free.push(slot);
        Some(waiting)
    }
}

impl Sink for Replies {
    fn complete(&self, completions: &mut Vec<Completion>) {
        for completion in completions.drain(..) {
            let Some(waiting) = self.remove(completion.tag) else { continue };
            match (completion.result, waiting) {
                (Ok(content), Waiting::Read(reply)) => reply.data(&content.into_bytes()),
                (Ok(_), Waiting::Write(reply, len)) => reply.written(len),
                (Ok(_), Waiting::Empty(reply)) => reply.ok(),
                (Err(error), waiting) => waiting.fail(error),
            }
        }
    }
}

impl VolumeFile {
    fn submit(&self, io: Io, waiting: Waiting) {
        let tag = self.replies.insert(waiting);
        let commands = vec![Command { tag, io }];
        let submission = Submission { commands, sink: self.replies.clone() };
        // Waits while the volume has as much to do as it may; the kernel then waits too.
        if self.device.queue.blocking_send(submission).is_err()
            && let Some(waiting) = self.replies.remove(tag)
        {
            // Exports end before the volume does, unless it is given up.
            waiting.fail(IoError::GivenUp);
        }
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, nlink, size) = match ino {
            ROOT => (FileType::Directory, 0o555, 2, 0),
            FILE if self.device.info.read_only => {
                (FileType::RegularFile, 0o400, 1, self.device.size_bytes())
            }
            FILE => (FileType::RegularFile, 0o600, 1, self.device.size_bytes()),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// The part of a range that lies within the file.
    fn within(&self, offset: u64, len: u64) -> u64 {
        self.device.size_bytes().saturating_sub(offset).min(len)
    }
}

impl Filesystem for VolumeFile {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in
            [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_MAX_PAGES]
        {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(?wanted, "not offered by this kernel; slower without it");
            }
        }
        let set = config.set_max_write(WRITE_BYTES_MAX).is_ok()
            && config.set_max_background(BACKGROUND_MAX).is_ok();
        if !set {
            tracing::info!("the kernel keeps its own limits");
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attr) if parent == ROOT && name == FILE_NAME => {
                reply.entry(&KEEP, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attr) => reply.attr(&KEEP, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// The size is that of the volume; times and modes are not kept. Both are no errors, because
    /// tools that prepare a device set them.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attributes(ino) {
            Some(attr) if size.is_none_or(|size| size == attr.size) => reply.attr(&KEEP, &attr),
            Some(_) => reply.error(Errno::EPERM),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino == FILE {
            let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            reply.opened(FileHandle(0), flags);
        } else {
            reply.error(Errno::EISDIR);
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u32::try_from(self.within(offset, u64::from(size))).unwrap_or(size);
        if len == 0 {
            return reply.data(&[]);
        }
        self.submit(Io::Read { offset, len }, Waiting::Read(reply));
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let wanted = data.len();
        let len = self.within(offset, wanted as u64);
        let Some(data) = usize::try_from(len).ok().and_then(|len| data.get(..len)) else {
            return reply.error(Errno::EINVAL);
        };
        if data.is_empty() {
            return if wanted == 0 { reply.written(0) } else { reply.error(Errno::ENOSPC) };
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let data = Bytes::copy_from_slice(data);
        self.submit(Io::Write { offset, data }, Waiting::Write(reply, len));
    }

    /// Closing needs nothing: what is acknowledged is durable.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.submit(Io::Flush, Waiting::Empty(reply));
    }

    /// Punching a hole and zeroing a range both give space back.
    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let zeroes = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        let known =
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let len = self.within(offset, length);
        if mode & !known != 0 {
            reply.error(Errno::EOPNOTSUPP);
        } else if !zeroes {
            // Space is taken when it is written: there is nothing to allocate, and no growing.
            let fits = len == length;
            if fits { reply.ok() } else { reply.error(Errno::EFBIG) }
        } else if len == 0 {
            reply.ok();
        } else {
            self.submit(Io::Zero { offset, len }, Waiting::Empty(reply));
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (ROOT, FileType::Directory, "."),
            (ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (next, (ino, kind, name)) in (1..).zip(entries) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(self.device.size_bytes() / 4096, 0, 0, 2, 0, 4096, 255, 4096);
    }

    /// The kernel's own answer (everything is data) is right.
    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
