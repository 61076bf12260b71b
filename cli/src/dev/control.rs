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
    for name in &whole_names(&layout, names)? {
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
    for name in &whole_names(&layout, names)? {
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

/// The names of the processes that are meant. Nothing is done if one of them is not clear.
fn whole_names(layout: &Layout, names: &[String]) -> Result<Vec<String>, Failure> {
    let known = layout.processes();
    names.iter().map(|name| whole_name(&known, name, layout.root())).collect()
}

/// `a-node-1` is meant by its whole name, and by `node-1` if no other zone has one.
fn whole_name(known: &[String], name: &str, root: &Path) -> Result<String, Failure> {
    if known.iter().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    let is_meant = |known: &&String| {
        known.split_once('-').is_some_and(|(_zone, rest)| rest == name && rest.contains('-'))
    };
    let meant: Vec<&String> = known.iter().filter(is_meant).collect();
    match meant.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::new(Kind::NotFound, format!("find process {name}"))
            .because(format!("{} has no process of that name", root.display()))
            .try_next(format!("one of {}", known.join(", ")))),
        several => {
            let several: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
            Err(Failure::new(Kind::Usage, format!("find process {name}"))
                .because("several zones have a process of that name")
                .try_next(format!("one of {}", several.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(known: &[&str], name: &str) -> Result<String, Kind> {
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        whole_name(&known, name, Path::new("here")).map_err(|failure| failure.kind())
    }

    #[test]
    fn a_short_name_is_enough_while_one_zone_has_it() {
        let region = ["a-node-1", "b-node-1", "b-node-2", "attach-demo"];
        assert_eq!(find(&region, "b-node-1").as_deref(), Ok("b-node-1"));
        assert_eq!(find(&region, "node-2").as_deref(), Ok("b-node-2"));
        assert_eq!(find(&region, "node-1"), Err(Kind::Usage));
        assert_eq!(find(&region, "node-9"), Err(Kind::NotFound));
        assert_eq!(find(&region, "demo"), Err(Kind::NotFound));
        assert_eq!(find(&["node-1", "member-1"], "node-1").as_deref(), Ok("node-1"));
        assert_eq!(find(&["node-1", "member-1"], "1"), Err(Kind::NotFound));
    }
}
