//! `ashlar mount` and `ashlar umount`: a volume's file system in a folder of this host.
//!
//! `mount` attaches the volume first if this host has not; `umount` leaves it attached, since
//! others may use it by NBD (`ashlar detach` gives it back), unless it is forced. How a file becomes a mount is in
//! `client/src/mount.rs`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ashlar_client::mount::{self, FileSystem, MountError};
use serde::Serialize;

use crate::attach::{self, Attach, Place};
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show};
use crate::{Global, completion, detach, logging, process};

/// Between two looks at the process that unmounts.
const LOOK_EVERY: Duration = Duration::from_millis(10);

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
    /// Finish whatever waits or uses it: what waits fails, and the attachment ends with it, fenced, so
    /// that nothing of it can come late.
    #[arg(long)]
    force: bool,
    /// Unmount in this process, however long that takes.
    #[arg(long, hide = true)]
    here: bool,
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
pub(crate) fn unmount(
    arguments: &Unmount,
    global: &Global,
    output: &Output,
) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    logging::start("warn");
    let what = || format!("unmount {}", arguments.folder.display());
    let folder = arguments
        .folder
        .canonicalize()
        .map_err(|error| Failure::new(Kind::NotFound, what()).because(error))?;
    let mounted = mount::find(&folder).ok_or(MountError::NotMounted(folder.clone()));
    let mounted = mounted.map_err(|error| from_mount(&what(), &error))?;
    if arguments.here {
        process::die_with_parent();
        // Written out while it still is mounted: when that never ends, nothing has changed.
        mount::flush(&mounted.file);
        return mount::umount(&folder).map(drop).map_err(|error| from_mount(&what(), &error));
    }
    if arguments.force {
        detach::by_force(&what(), &mounted.file, global)?;
    } else {
        unmount_within(&what(), &folder, &mounted.file, global)?;
    }
    output.show(&UnmountedView { folder })
}

/// Has a process of its own unmount the folder: the kernel lets nobody leave who waits for a volume
/// that is stuck, and this command must end.
fn unmount_within(what: &str, folder: &Path, file: &Path, global: &Global) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Kind::Error, what).because(error);
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(["umount", "--here", "--output", "json"])
        .arg(folder)
        .env(process::PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + Duration::from_secs(global.timeout);
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return ended(what, status, child.stderr.take());
        }
        if Instant::now() >= deadline {
            // It ends as soon as the kernel lets it, before it takes another step.
            child.kill().map_err(failed)?;
            return Err(detach::stuck(what, file, global.timeout));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What the process said that was to unmount.
fn ended(what: &str, status: ExitStatus, said: Option<ChildStderr>) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    if let Some(mut said) = said {
        said.read_to_string(&mut text)
            .map_err(|error| Failure::new(Kind::Error, what).because(error))?;
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let failure = Failure::new(Kind::from_exit_code(code), what);
    let line = text.lines().last().unwrap_or_default();
    let told: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let why = told.pointer("/error/why").and_then(|why| why.as_array()).cloned();
    let why = why.unwrap_or_default();
    let why = why.iter().filter_map(|why| why.as_str());
    Err(why.fold(failure, Failure::because))
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
