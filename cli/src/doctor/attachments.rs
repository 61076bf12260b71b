//! Volumes attached to this host: do their daemons live, do they get on.

use std::fs;

use ashlar_client::daemon::{self, DaemonStatus};

use super::Check;
use crate::{Global, attach};

/// All checks of attachments.
pub(super) fn checks(global: &Global) -> Vec<Check> {
    let kept = attach::kept(global);
    if kept.is_empty() {
        return vec![Check::skipped("ATTACHED_DAEMON", "host", "no volume is attached here")];
    }
    let mut checks = Vec::new();
    for (folder, volume, name) in kept {
        let name = if name.is_empty() { volume } else { name };
        let about = format!("volume {name}");
        match daemon::status(&folder) {
            Ok(status) => {
                let memory = fs::read_to_string(format!("/proc/{}/status", status.pid));
                checks.extend(of_daemon(&about, &status, &memory.unwrap_or_default()));
            }
            Err(error) => checks.push(Check::failure(
                "ATTACHED_DAEMON",
                &about,
                error.to_string(),
                format!("ashlar attach {name} to go on with it, or ashlar detach {name}"),
            )),
        }
    }
    checks
}

fn of_daemon(about: &str, status: &DaemonStatus, memory: &str) -> Vec<Check> {
    vec![
        Check::ok("ATTACHED_DAEMON", about, format!("process {} serves it", status.pid)),
        fenced(about, status),
        connected(about, status),
        stuck(about, status),
        locked(about, memory),
    ]
}

fn fenced(about: &str, status: &DaemonStatus) -> Check {
    let code = "ATTACHED_RIGHT";
    match &status.fenced {
        None => Check::ok(code, about, format!("generation {}", status.generation)),
        Some(why) => Check::failure(
            code,
            about,
            format!("its right to the volume is gone: {why}"),
            "unmount and detach it here; attach it again where it is to be used",
        ),
    }
}

fn connected(about: &str, status: &DaemonStatus) -> Check {
    let code = "ATTACHED_CONNECTIONS";
    if status.nodes_down.is_empty() {
        let found = format!("connected to {} nodes", status.nodes_up.len());
        return Check::ok(code, about, found);
    }
    let down: Vec<String> = status.nodes_down.iter().map(|node| format!("node-{node}")).collect();
    let remedy =
        "start the nodes, or open the way to the primary network; the others serve meanwhile";
    Check::warning(code, about, format!("no connection to {}", down.join(", ")), remedy)
}

fn stuck(about: &str, status: &DaemonStatus) -> Check {
    let code = "ATTACHED_STUCK";
    if status.stuck_chunks.is_empty() {
        return Check::ok(code, about, format!("{} requests in progress", status.requests));
    }
    let chunks: Vec<String> = status.stuck_chunks.iter().map(ToString::to_string).collect();
    let found = format!(
        "{} requests in progress; the primary of chunks {} is looked for",
        status.requests,
        chunks.join(", ")
    );
    let remedy = "ashlar status says what the chunks wait for";
    Check::failure(code, about, found, remedy)
}

/// `VmLck:     12 kB` in the daemon's own status.
fn locked(about: &str, memory: &str) -> Check {
    let code = "ATTACHED_MEMORY_LOCKED";
    let line = memory.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let Some(kibibytes) = line.and_then(|line| line.trim().strip_suffix(" kB")) else {
        return Check::skipped(code, about, "the process does not let itself be looked at");
    };
    if kibibytes.trim() != "0" {
        return Check::ok(code, about, format!("{kibibytes} KiB are locked"));
    }
    Check::warning(
        code,
        about,
        "its memory is not locked: a host short of memory can wait for a daemon that waits for memory",
        "run it with ulimit -l unlimited (LimitMEMLOCK=infinity), then detach and attach",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{Failure, Ok as Fine, Skipped, Warning};
    use super::*;

    fn well() -> DaemonStatus {
        DaemonStatus { generation: 3, pid: 7, nodes_up: vec![1, 2], ..DaemonStatus::default() }
    }

    #[test]
    fn a_daemon_that_gets_on_is_fine() {
        for check in of_daemon("volume v", &well(), "VmLck:\t    128 kB\n") {
            assert_eq!(check.outcome(), Fine, "{check:?}");
        }
    }

    #[test]
    fn each_trouble_of_a_daemon_is_found() {
        let trouble = DaemonStatus {
            nodes_down: vec![3],
            stuck_chunks: vec![0],
            fenced: Some("attached elsewhere".to_owned()),
            ..well()
        };
        assert_eq!(fenced("v", &trouble).outcome(), Failure);
        assert_eq!(connected("v", &trouble).outcome(), Warning);
        assert_eq!(stuck("v", &trouble).outcome(), Failure);
        assert_eq!(locked("v", "VmLck:\t       0 kB\n").outcome(), Warning);
        assert_eq!(locked("v", "").outcome(), Skipped);
    }
}
