//! File systems on a device: what is there, making one, mounting it.

use super::MountError;
use nix::mount::{MntFlags, MsFlags};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// File systems that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, by `mkfs.ext4`.
    Ext4,
    /// XFS, by `mkfs.xfs`.
    Xfs,
}

impl FileSystem {
    /// The name that `mount` knows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the start of a device looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Mountable(FileSystem),
    /// Something that must not be overwritten.
    Other(&'static str),
}

/// Bytes looked at: the superblock of btrfs is the furthest.
const LOOK_BYTES: usize = 68 << 10;

/// Looks for the marks of file systems and partition tables.
pub(super) fn look(path: &Path) -> io::Result<Found> {
    let file = File::open(path)?;
    let mut start = vec![0; LOOK_BYTES];
    let mut filled = 0;
    while let Some(rest) = start.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(recognise(&start))
}

fn recognise(start: &[u8]) -> Found {
    let marks: [(usize, &[u8], Found); 8] = [
        (0, b"XFSB", Found::Mountable(FileSystem::Xfs)),
        (1080, b"\x53\xef", Found::Mountable(FileSystem::Ext4)),
        (65_600, b"_BHRfS_M", Found::Other("btrfs")),
        (0, b"LUKS\xba\xbe", Found::Other("LUKS")),
        (4086, b"SWAPSPACE2", Found::Other("swap")),
        (4096, b"EFI PART", Found::Other("a GUID partition table")),
        (512, b"EFI PART", Found::Other("a GUID partition table")),
        (510, b"\x55\xaa", Found::Other("a partition table")),
    ];
    let is_there = |at: usize, mark: &[u8]| start.get(at..at + mark.len()) == Some(mark);
    marks
        .into_iter()
        .find(|(at, mark, _)| is_there(*at, mark))
        .map_or(Found::Nothing, |(_, _, found)| found)
}

/// Makes a file system on an empty device.
pub(super) fn make(kind: FileSystem, device: &Path) -> Result<(), MountError> {
    let (program, arguments): (_, &[&str]) = match kind {
        FileSystem::Ext4 => ("mkfs.ext4", &["-q", "-b", "4096"]),
        FileSystem::Xfs => ("mkfs.xfs", &["-q"]),
    };
    let ran = find_program(program)
        .and_then(|path| Command::new(path).args(arguments).arg(device).output());
    let output = ran.map_err(|cause| MountError::NoProgram { program, cause })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(MountError::Program { program, status: output.status.to_string(), said })
}

/// The program, also where the search path leaves the administrator's folders out.
fn find_program(name: &str) -> io::Result<PathBuf> {
    let searched = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&searched)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub(super) fn mount(
    kind: FileSystem,
    device: &Path,
    dir: &Path,
    read_only: bool,
) -> Result<(), MountError> {
    let mut flags = MsFlags::MS_NOATIME;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    nix::mount::mount(Some(device), dir, Some(kind.name()), flags, None::<&str>).map_err(|errno| {
        let (device, dir) = (device.to_owned(), dir.to_owned());
        MountError::Mount { kind: kind.name(), device, dir, cause: errno.into() }
    })
}

/// Unmounts; not being mounted is no error.
pub(super) fn unmount(dir: &Path) -> Result<(), MountError> {
    match nix::mount::umount2(dir, MntFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(nix::errno::Errno::EBUSY) => Err(MountError::InUse(dir.to_owned())),
        Err(errno) => Err(MountError::Unmount { dir: dir.to_owned(), cause: errno.into() }),
    }
}

/// Unmounts whatever uses it; a FUSE file system loses the connection to its daemon, so that nothing
/// waits for it any more. Not being mounted is no error.
pub(super) fn unmount_by_force(dir: &Path) -> io::Result<()> {
    match nix::mount::umount2(dir, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        // Without root, only the helper that mounted it may take it away.
        Err(nix::errno::Errno::EPERM) => {
            let status = Command::new("fusermount3").args(["-u", "-z"]).arg(dir).status()?;
            if status.success() { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Writes out what the file system holds in memory.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(dir)?)?)
}

/// Whether something is mounted at a folder, by its whole name: asks nobody who could be stuck.
pub(super) fn is_mounted(dir: &Path) -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|table| find_mount(&table, dir).is_some())
}

/// What is mounted at a folder: (source, type), the topmost.
pub(super) fn mounted_at(dir: &Path) -> Option<(PathBuf, String)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    find_mount(&table, &dir)
}

fn find_mount(table: &str, dir: &Path) -> Option<(PathBuf, String)> {
    table.lines().rev().find_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        let point = unescape(place.split(' ').nth(4)?);
        let mut rest = rest.split(' ');
        let (kind, source) = (rest.next()?, rest.next()?);
        (Path::new(&point) == dir).then(|| (PathBuf::from(unescape(source)), kind.to_owned()))
    })
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    ["\\040:\u{20}", "\\011:\t", "\\012:\n", "\\134:\\"]
        .iter()
        .fold(text.to_owned(), |text, pair| {
            pair.split_once(':').map_or(text.clone(), |(from, to)| text.replace(from, to))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_what_must_not_be_overwritten_are_seen() {
        let mut start = vec![0; LOOK_BYTES];
        assert_eq!(recognise(&start), Found::Nothing);
        assert_eq!(recognise(&[]), Found::Nothing);
        start[65_600..65_608].copy_from_slice(b"_BHRfS_M");
        assert_eq!(recognise(&start), Found::Other("btrfs"));
        start[1080] = 0x53;
        start[1081] = 0xef;
        assert_eq!(recognise(&start), Found::Mountable(FileSystem::Ext4));
        start[..4].copy_from_slice(b"XFSB");
        assert_eq!(recognise(&start), Found::Mountable(FileSystem::Xfs));
    }

    #[test]
    fn the_topmost_mount_of_a_folder_is_found_blanks_included() {
        let table = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 7:0 / /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/loop0 rw
31 22 7:1 / /mnt/a\\040b rw - xfs /dev/loop1 rw
";
        let found = find_mount(table, Path::new("/mnt/a b")).unwrap();
        assert_eq!(found, (PathBuf::from("/dev/loop1"), "xfs".to_owned()));
        assert_eq!(find_mount(table, Path::new("/mnt")), None);
    }
}
