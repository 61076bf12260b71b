//! `ashlar dev stop`, `kill` and `start`: one process of a running cluster down, and up again.
//!
//! For trying what happens when a part fails. The hold file is written before the process is
//! ended, so that the supervisor cannot start it again in between.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::Layout;
use crate::failure::{Failure, Kind};

/// Sends `signal` to processes and keeps them down once they have ended.
///
/// # Errors
/// Not found when the cluster has no such process; unavailable when no `dev` runs in the folder.
pub(crate) fn stop(root: &Path, names: &[String], signal: Signal) -> Result<(), Failure> {
    let layout = Layout::new(root);
    if !layout.is_held() {
        return Err(Failure::new(Kind::Unavailable, format!("stop {}", names.join(", ")))
            .because(format!("no `ashlar dev` runs in {}", root.display()))
            .try_next("start it, or name its folder by --dir"));
    }
    for name in names {
        check_name(&layout, name)?;
        fs::write(layout.hold(name), "")
            .map_err(|error| Failure::new(Kind::Error, format!("hold {name}")).because(error))?;
        let pid = fs::read_to_string(layout.pid(name)).ok();
        if let Some(pid) = pid.and_then(|text| text.trim().parse().ok()) {
            // Ended by itself in the meantime: what was asked for is true.
            kill(Pid::from_raw(pid), signal).ok();
        }
    }
    Ok(())
}

/// Lets processes run again; the supervisor starts them at its next look.
///
/// # Errors
/// Not found when the cluster has no such process.
pub(crate) fn start(root: &Path, names: &[String]) -> Result<(), Failure> {
    let layout = Layout::new(root);
    for name in names {
        check_name(&layout, name)?;
        match fs::remove_file(layout.hold(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Failure::new(Kind::Error, format!("release {name}")).because(error));
            }
        }
    }
    Ok(())
}

/// A process is known by its log: each one has written to it.
fn check_name(layout: &Layout, name: &str) -> Result<(), Failure> {
    let plain = !name.is_empty() && !name.contains(['/', '.']);
    if plain && layout.log(name).exists() {
        return Ok(());
    }
    Err(Failure::new(Kind::NotFound, format!("find process {name}"))
        .because(format!("{} has no process of that name", layout.root().display()))
        .try_next("names are those of the files in its log folder, such as node-1 and member-1"))
}
