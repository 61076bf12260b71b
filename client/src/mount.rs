//! A volume's FUSE file as a mounted file system: loop device, file system, mount; and back.
//!
//! [`mount`] and [`umount`] work on the file that an attach daemon presents; they are plain
//! blocking functions for a command. Each step is undone if a later one fails, and [`umount`]
//! takes apart whatever part is there. What is mounted is looked up in the kernel's own tables,
//! not remembered.

mod filesystem;
mod loopdev;

use crate::export::fuse;
use filesystem::Found;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

pub use filesystem::FileSystem;

/// Time for programs to see the errors of a file that is taken away, and for the kernel to free devices.
const FREE_WITHIN: Duration = Duration::from_secs(2);

/// Why a volume cannot be mounted or unmounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// Mounting needs it.
    #[error("mounting needs root")]
    NotRoot,
    /// The volume's file is not there or cannot be opened.
    #[error("cannot open {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
    /// No loop devices here.
    #[error("this host gives no loop device: {0}")]
    NoLoop(io::Error),
    /// The kernel does not do direct I/O on the file; without it the device would keep a second
    /// cache and cost four times as much.
    #[error("{} does no direct I/O, which is needed", .0.display())]
    NoDirectIo(PathBuf),
    /// A loop device cannot be taken from its file.
    #[error("cannot detach {}: {cause}", device.display())]
    Detach {
        /// The device.
        device: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
    /// A file system was asked for where there is something already.
    #[error("the volume already has {0}: not making another file system over it")]
    NotEmpty(&'static str),
    /// There is no file system, and none was asked for.
    #[error("the volume has no file system; pass --mkfs ext4 or --mkfs xfs to make one")]
    Empty,
    /// What is on the volume cannot be mounted here.
    #[error("the volume has {0}, which is not mounted by this command")]
    Foreign(&'static str),
    /// A program that makes file systems is missing.
    #[error("cannot run {program}: {cause}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// What the host says.
        cause: io::Error,
    },
    /// It failed.
    #[error("{program} failed ({status}): {said}")]
    Program {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// Its words.
        said: String,
    },
    /// The mount itself failed.
    #[error("cannot mount {} as {kind} at {}: {cause}", device.display(), dir.display())]
    Mount {
        /// File system.
        kind: &'static str,
        /// Device.
        device: PathBuf,
        /// Folder.
        dir: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
    /// Something is mounted there already.
    #[error("{} is mounted at {} already", .0.display(), .1.display())]
    Mounted(PathBuf, PathBuf),
    /// Programs use it.
    #[error("{} is in use; close what uses it and try again", .0.display())]
    InUse(PathBuf),
    /// Unmounting failed.
    #[error("cannot unmount {}: {cause}", dir.display())]
    Unmount {
        /// Folder.
        dir: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
    /// No volume of ours is mounted there.
    #[error("no volume is mounted at {}", .0.display())]
    NotMounted(PathBuf),
    /// The folder to mount on is not there.
    #[error("cannot mount on {}: {cause}", dir.display())]
    Folder {
        /// Folder.
        dir: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
}

/// A file system that is mounted from a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub dir: PathBuf,
    /// The loop device under it.
    pub device: PathBuf,
    /// The volume's file under that.
    pub file: PathBuf,
    /// Its type.
    pub file_system: FileSystem,
}

/// Why mounting cannot work on this host, if so: for `ashlar dev`, which then says so and offers
/// the NBD socket instead.
///
/// # Errors
/// What is missing.
pub fn possible() -> Result<(), MountError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(MountError::NotRoot);
    }
    for path in ["/dev/fuse", "/dev/loop-control"] {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|cause| MountError::File { path: path.into(), cause })?;
    }
    Ok(())
}

/// Mounts a volume's file at `dir`. With `mkfs`, makes that file system first, on an empty volume
/// only; if the volume already has that very file system from an earlier call, that is refused
/// too, so pass it on the first mount alone.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn mount(
    file: &Path,
    dir: &Path,
    mkfs: Option<FileSystem>,
    read_only: bool,
) -> Result<Mounted, MountError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(MountError::NotRoot);
    }
    let opened = |cause| MountError::File { path: file.to_owned(), cause };
    let file = file.canonicalize().map_err(opened)?;
    let dir =
        dir.canonicalize().map_err(|cause| MountError::Folder { dir: dir.to_owned(), cause })?;
    if let Some((source, _)) = filesystem::mounted_at(&dir) {
        return Err(MountError::Mounted(source, dir));
    }
    let found = filesystem::look(&file).map_err(opened)?;
    let file_system = match (found, mkfs) {
        (Found::Nothing, Some(kind)) | (Found::Mountable(kind), None) => kind,
        (Found::Nothing, None) => return Err(MountError::Empty),
        (Found::Mountable(kind), Some(_)) => return Err(MountError::NotEmpty(kind.name())),
        (Found::Other(what), Some(_)) => return Err(MountError::NotEmpty(what)),
        (Found::Other(what), None) => return Err(MountError::Foreign(what)),
    };
    let device = loopdev::attach(&file, read_only)?;
    let mounted = mkfs
        .map_or(Ok(()), |kind| filesystem::make(kind, &device))
        .and_then(|()| filesystem::mount(file_system, &device, &dir, read_only));
    if let Err(error) = mounted {
        if let Err(left) = loopdev::detach(&device) {
            tracing::warn!(%left, "left behind after a failed mount");
        }
        return Err(error);
    }
    Ok(Mounted { dir, device, file, file_system })
}

/// What of ours is mounted at `dir`, if anything: also when the daemon under it is dead and its
/// FUSE file is gone.
#[must_use]
pub fn find(dir: &Path) -> Option<Mounted> {
    let (device, kind) = filesystem::mounted_at(dir)?;
    let file_system = match kind.as_str() {
        "ext4" => FileSystem::Ext4,
        "xfs" => FileSystem::Xfs,
        _ => return None,
    };
    let file = loopdev::backing_file(&device)?;
    let over_fuse = file.parent().and_then(filesystem::mounted_at).is_some_and(|(source, kind)| {
        kind.starts_with("fuse") && source.to_string_lossy().starts_with(fuse::SOURCE_PREFIX)
    });
    // The kernel names a file whose mount is gone by its path within that mount: nothing is there.
    let ours = file.file_name()? == fuse::FILE_NAME && (over_fuse || !file.exists());
    ours.then(|| Mounted { dir: dir.to_owned(), device, file, file_system })
}

/// What is mounted from a volume's file, anywhere.
#[must_use]
pub fn mounts_of(file: &Path) -> Vec<PathBuf> {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let devices = loopdev::devices_over(file);
    let points = table.lines().filter_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        let source = rest.split(' ').nth(1)?;
        let ours = devices.iter().any(|device| device == Path::new(source));
        ours.then(|| PathBuf::from(place.split(' ').nth(4).unwrap_or_default()))
    });
    points.collect()
}

/// A volume's file has become larger: the loop devices over it become so too. File systems on them do
/// not: that is for whoever mounted them (`resize2fs`, `xfs_growfs`). Gives what became larger, and what
/// could not.
#[must_use]
pub fn grown(file: &Path) -> Vec<(PathBuf, io::Result<()>)> {
    // The kernel knows the new size of the file once it was asked for it.
    if let Err(error) = std::fs::metadata(file) {
        return vec![(file.to_owned(), Err(error))];
    }
    let devices = loopdev::devices_over(file).into_iter();
    devices.map(|device| (device.clone(), loopdev::take_size(&device))).collect()
}

/// Unmounts `dir` and takes its loop device away. Returns the volume's file: the daemon that
/// presents it can be stopped next.
///
/// # Errors
/// Nothing of ours is there, or it is in use.
pub fn umount(dir: &Path) -> Result<PathBuf, MountError> {
    let mounted = find(dir).ok_or_else(|| MountError::NotMounted(dir.to_owned()))?;
    filesystem::unmount(&mounted.dir)?;
    loopdev::detach(&mounted.device)?;
    Ok(mounted.file)
}

/// Writes out what file systems on a volume's file hold in memory. Waits as long as the volume does.
pub fn flush(file: &Path) {
    for dir in mounts_of(file) {
        if let Err(error) = filesystem::sync(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "not everything is written");
        }
    }
}

/// Takes a volume's file away, whoever uses it and whatever waits: requests of it fail, file systems on
/// it leave their folders, loop devices are freed. Never waits for the volume. Gives the devices that
/// programs still hold; the kernel frees each when the last of them closes it.
#[must_use]
pub fn abandon(file: &Path) -> Vec<PathBuf> {
    // Before the file goes: afterwards the kernel calls it by another name.
    let (mounts, devices) = (mounts_of(file), loopdev::devices_over(file));
    // First the connection to the daemon: then nothing of what follows can wait for it.
    let source = file.parent().filter(|dir| filesystem::is_mounted(dir));
    for dir in source.into_iter().chain(mounts.iter().map(PathBuf::as_path)) {
        if let Err(error) = filesystem::unmount_by_force(dir) {
            tracing::warn!(dir = %dir.display(), %error, "not unmounted");
        }
    }
    let until = Instant::now() + FREE_WITHIN;
    let mut held = devices;
    loop {
        held.retain(|device| !loopdev::free(device));
        if held.is_empty() || Instant::now() >= until {
            return held;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Takes away everything that keeps a volume's file in use: mounts first, then loop devices. For
/// what a killed command left behind; nothing there is no error.
///
/// # Errors
/// Something is in use.
pub fn release(file: &Path) -> Result<(), MountError> {
    for dir in mounts_of(file) {
        filesystem::unmount(&dir)?;
    }
    for device in loopdev::devices_over(file) {
        loopdev::detach(&device)?;
    }
    Ok(())
}
