//! A client whose volume was taken writes nothing any more (design.md 4.8): one that is awake, one that
//! sleeps through it, and one whose primary sleeps through it and through its own replacement.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends by a panic and speaks"
)]

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::needs::{self, Need};
use ashlar_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What the first client writes again and again until it gets an error, and the second one after it.
const BYTES: usize = 1 << 20;
const WRITES: &str = "while dd if=/dev/zero of=\"$0\" bs=4096 count=256 oflag=direct conv=notrunc; \
                      do echo round; done";
/// Content of the second client's.
const TAKEN: u8 = 0xb5;
const WITHIN: Duration = Duration::from_secs(90);

struct Scene {
    cluster: Cluster,
    /// Writes to the first client's file. A process of its own: one that holds a file of a daemon which
    /// sleeps cannot start others, as closing the file in them waits for the daemon.
    writer: Child,
    /// The first client's daemon, until it is detached.
    daemon: Option<Pid>,
    /// Where the second one keeps its attachment: as if on another host.
    elsewhere: PathBuf,
}

impl Scene {
    fn start() -> Option<Self> {
        if !needs::has_all("fencing", &[Need::Root, Need::Fuse]) {
            return None;
        }
        let cluster = Cluster::start(&["--no-mount"]);
        cluster.must(&["volume", "create", "taken", "--size", "64MiB"]);
        let attached: Value =
            serde_json::from_str(&cluster.must(&["attach", "taken", "-o", "json"])).unwrap();
        let pid = i32::try_from(attached["pid"].as_u64().unwrap()).unwrap();
        let daemon = Some(Pid::from_raw(pid));
        let mut writer = Command::new("sh")
            .args(["-c", WRITES])
            .arg(cluster.fuse_file("taken"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = [0; 6];
        writer.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(first, *b"round\n");
        let elsewhere = cluster.folder().join("elsewhere");
        Some(Self { cluster, writer, daemon, elsewhere })
    }

    fn daemon_gets(&self, signal: Signal) {
        if let Some(daemon) = self.daemon {
            kill(daemon, signal).ok();
        }
    }

    fn primary(&self) -> String {
        self.cluster.chunks("taken")[0]["primary"].as_str().unwrap().to_owned()
    }

    /// Another client takes the volume and writes all that the first one writes; gives its file.
    fn take(&self) -> PathBuf {
        let state = self.elsewhere.to_str().unwrap();
        let attach = ["attach", "taken", "--force", "--state", state, "-o", "json"];
        let taken: Value = serde_json::from_str(&self.cluster.must(&attach)).unwrap();
        let file = PathBuf::from(taken["fuse_file"].as_str().unwrap());
        let device = OpenOptions::new().write(true).open(&file).unwrap();
        device.write_all_at(&[TAKEN; BYTES], 0).unwrap();
        device.sync_all().unwrap();
        file
    }

    /// The first client was told, and nothing of the second one's was written over.
    fn judge(mut self, file: &Path) {
        wait::until("the first client to be told", WITHIN, || self.writer.try_wait().unwrap());
        self.cluster.wait_whole(WITHIN);
        let mut content = vec![0; BYTES];
        OpenOptions::new().read(true).open(file).unwrap().read_exact_at(&mut content, 0).unwrap();
        let foreign = content.iter().position(|byte| *byte != TAKEN);
        assert_eq!(foreign, None, "written by a client that had lost the volume");
        let state = self.elsewhere.to_str().unwrap();
        self.cluster.must(&["detach", "taken", "--state", state]);
        self.cluster.must(&["detach", "taken"]);
        self.daemon = None;
        self.cluster.stop();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // After a failure: neither is a child of the cluster's.
        self.daemon_gets(Signal::SIGKILL);
        self.writer.kill().ok();
        self.writer.wait().ok();
    }
}

#[test]
fn a_client_that_is_awake() {
    let Some(scene) = Scene::start() else { return };
    let file = scene.take();
    scene.judge(&file);
}

#[test]
fn a_client_that_sleeps_through_it() {
    let Some(scene) = Scene::start() else { return };
    scene.daemon_gets(Signal::SIGSTOP);
    let file = scene.take();
    scene.daemon_gets(Signal::SIGCONT);
    scene.judge(&file);
}

#[test]
fn a_client_whose_primary_sleeps_through_it_and_through_its_own_replacement() {
    let Some(scene) = Scene::start() else { return };
    let former = scene.primary();
    scene.daemon_gets(Signal::SIGSTOP);
    scene.cluster.signal(&former, Signal::SIGSTOP);
    wait::until("another primary", WITHIN, || (scene.primary() != former).then_some(()));
    let file = scene.take();
    // Both wake together: the client's requests lie in the former primary's socket.
    scene.cluster.signal(&former, Signal::SIGCONT);
    scene.daemon_gets(Signal::SIGCONT);
    scene.judge(&file);
}
