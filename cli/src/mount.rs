//! `ashlar mount` and `ashlar umount`: a volume's file system in a folder of this host.
//!
//! `mount` attaches the volume first if this host has not; `umount` leaves it attached, since
//! others may use it by NBD (`ashlar detach` gives it back). How a file becomes a mount is in
//! `client/src/mount.rs`.

use std::fs;
use std::path::PathBuf;

use ashlar_client::mount::{self, FileSystem, MountError};
use serde::Serialize;

use crate::attach::{self, Attach, Place};
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show};
use crate::{Global, completion, logging, process};

/// What to mount where.
#[derive(Debug, clap::Args)]
pub(crate) struct Mount {
    /// Id or name of the volume.
    #[arg(add = completion::volumes())]
    volume: String,
    /// Folder to mount on; made if it is not there.
    folder: PathBuf,
    /// Make this file system first, on an empty volume only.
    #[arg(long, value_enum)]
    mkfs: Option<MakeFileSystem>,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    place: Place,
}

/// File systems that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MakeFileSystem {
    /// The file system of most Linux installations.
    Ext4,
    /// The file system for large files and parallel work.
    Xfs,
}

/// What to unmount.
#[derive(Debug, clap::Args)]
pub(crate) struct Unmount {
    /// The folder.
    folder: PathBuf,
}

/// Mounts a volume.
///
/// # Errors
/// What the control plane or the host refused.
pub(crate) fn mount(arguments: &Mount, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    logging::start("warn");
    let what = || format!("mount volume {} on {}", arguments.volume, arguments.folder.display());
    // Before anything is attached: a host that cannot mount should be left as it was.
    mount::possible().map_err(|error| from_mount(&what(), &error))?;
    let attach = Attach::plain(&arguments.volume, &arguments.place, arguments.read_only);
    let status = attach::ensure(&attach, global)?;
    let Some(file) = status.fuse_file else {
        return Err(Failure::new(Kind::Conflict, what())
            .because("it is attached without a file to mount (--no-fuse)")
            .try_next(format!("ashlar detach {}, then mount it", arguments.volume)));
    };
    fs::create_dir_all(&arguments.folder)
        .map_err(|error| Failure::new(Kind::Error, what()).because(error))?;
    let mkfs = arguments.mkfs.map(|wanted| match wanted {
        MakeFileSystem::Ext4 => FileSystem::Ext4,
        MakeFileSystem::Xfs => FileSystem::Xfs,
    });
    let mounted = mount::mount(&file, &arguments.folder, mkfs, arguments.read_only)
        .map_err(|error| from_mount(&what(), &error))?;
    output.show(&MountedView {
        volume: arguments.volume.clone(),
        folder: mounted.dir,
        device: mounted.device,
        file_system: mounted.file_system.name(),
    })
}

/// Unmounts a folder.
///
/// # Errors
/// Nothing of ours is mounted there, or it is in use.
pub(crate) fn unmount(arguments: &Unmount, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    logging::start("warn");
    let what = || format!("unmount {}", arguments.folder.display());
    let folder = arguments
        .folder
        .canonicalize()
        .map_err(|error| Failure::new(Kind::NotFound, what()).because(error))?;
    mount::umount(&folder).map_err(|error| from_mount(&what(), &error))?;
    output.show(&UnmountedView { folder })
}

/// What an error of mounting means to the user of a command.
fn from_mount(what: &str, error: &MountError) -> Failure {
    let kind = match error {
        MountError::NotMounted(_) => Kind::NotFound,
        MountError::NotEmpty(_)
        | MountError::Empty
        | MountError::Foreign(_)
        | MountError::Mounted(..)
        | MountError::InUse(_) => Kind::Conflict,
        MountError::NotRoot
        | MountError::File { .. }
        | MountError::NoLoop(_)
        | MountError::NoDirectIo(_)
        | MountError::Detach { .. }
        | MountError::NoProgram { .. }
        | MountError::Program { .. }
        | MountError::Mount { .. }
        | MountError::Unmount { .. }
        | MountError::Folder { .. } => Kind::Error,
    };
    Failure::new(kind, what.to_owned()).because(error)
}

#[derive(Debug, Serialize)]
struct MountedView {
    volume: String,
    folder: PathBuf,
    device: PathBuf,
    file_system: &'static str,
}

impl Show for MountedView {
    fn table(&self) -> String {
        format!(
            "{} is mounted on {} ({}, {})",
            self.volume,
            self.folder.display(),
            self.file_system,
            self.device.display()
        )
    }
}

#[derive(Debug, Serialize)]
struct UnmountedView {
    folder: PathBuf,
}

impl Show for UnmountedView {
    fn table(&self) -> String {
        format!("unmounted {}", self.folder.display())
    }
}
