//! `docker-compose.yml` as the README promises it: a zone in containers, and a client that mounts.
//!
//! Runs where a Docker engine and `docker-compose` are, in CI too; elsewhere it says SKIP. Builds
//! its image from this host (`docker/offline.sh`), so it needs no network.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends by a panic and speaks")]

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ashlar_tests::{binary, wait};

/// From nothing to a mounted volume; the issue wants 60 s on a quiet host.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// One zone under a name of its own, on networks that nobody else should have.
struct Project(String);

impl Project {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(binary::repository())
            .env("COMPOSE_PROJECT_NAME", &self.0)
            .env("COMPOSE_PROFILES", "none")
            .env("ASHLAR_IMAGE", format!("{}:test", self.0))
            .env("ASHLAR_ZONES", "a")
            .env("ASHLAR_PRIMARY", "10.213")
            .env("ASHLAR_REPLICATION", "10.214")
            .env("ASHLAR_SIZE", "256MiB")
            .stdin(Stdio::null());
        command
    }

    fn compose(&self, arguments: &[&str]) -> Output {
        self.command("docker-compose").args(arguments).output().unwrap()
    }

    fn must(&self, arguments: &[&str]) -> String {
        let output = self.compose(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker-compose {}: {said}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn in_client(&self, script: &str) -> String {
        self.must(&["exec", "-T", "client", "/bin/sh", "-c", script])
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.compose(&["logs", "--tail", "20"]);
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        self.compose(&["down", "-v", "-t", "10"]);
        let image = format!("{}:test", self.0);
        Command::new("docker").args(["rmi", "-f", &image]).output().ok();
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_zone_in_containers_mounts_a_volume_and_finds_it_again() {
    if !succeeds("docker-compose", &["version"]) {
        eprintln!("SKIP compose: no docker-compose in the path");
        return;
    }
    let project = Project(format!("ashlar-test-{}", std::process::id()));
    project.must(&["config", "-q"]);
    if !succeeds("docker", &["info"]) {
        eprintln!("SKIP compose: no Docker engine answers; the file itself is in order");
        return;
    }
    let image =
        project.command("docker/offline.sh").env("ASHLAR_BIN", binary::ashlar()).output().unwrap();
    assert!(image.status.success(), "{}", String::from_utf8_lossy(&image.stderr));

    project.must(&["up", "-d", "--no-build"]);
    let is_ready = || {
        let looked =
            project.compose(&["exec", "-T", "client", "/bin/sh", "-c", "[ -e /run/ashlar-ready ]"]);
        looked.status.success().then_some(())
    };
    wait::until("the client to be ready", READY_WITHIN, is_ready);
    // The client needs a majority and enough nodes; the last ones may come a moment later.
    let status = wait::until("the whole zone to be up", READY_WITHIN, || {
        let status = project.in_client("/bin/sh /usr/share/ashlar/entry.sh status");
        status.contains("zone a: ok").then_some(status)
    });
    let served = ["mounted on /mnt/demo", "/run/demo.sock"];
    assert!(served.iter().any(|place| status.contains(place)), "{status}");

    let mounted = status.contains("mounted on /mnt/demo");
    if mounted {
        project.in_client("echo kept >/mnt/demo/note");
    }
    project.must(&["restart", "-t", "20", "client"]);
    wait::until("the client to be ready again", READY_WITHIN, is_ready);
    if mounted {
        let note = project.in_client("read -r line </mnt/demo/note && echo $line");
        assert_eq!(note.trim(), "kept");
    }
}
