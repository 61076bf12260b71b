//! A zone of real processes in a folder of its own, as `ashlar dev` runs it.
//!
//! Clusters run one at a time in a test binary: two cores cannot carry two of them and still meet
//! times that the tests judge. A cluster that is dropped is killed, mounts are taken off, and when
//! the test failed its logs are kept and their place is printed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Netns;
use crate::{binary, wait};

/// One cluster at a time.
static TURN: Mutex<()> = Mutex::new(());

/// How long a cluster may take to be ready. Far above the goal (5 s), which has its own test.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long an orderly stop may take.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A running, or just stopped, cluster.
#[derive(Debug)]
pub struct Cluster {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    /// Where its processes run, if not in the network of the test.
    netns: Option<Netns>,
    dev: Option<Dev>,
    _turn: MutexGuard<'static, ()>,
}

/// The supervising process and what it said.
#[derive(Debug)]
struct Dev {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Cluster {
    /// Starts a new cluster of one zone with further `arguments` to `ashlar dev`, and waits until
    /// it is ready.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(None, arguments)
    }

    /// The same with as many zones as `arguments` say, three if they say nothing.
    #[must_use]
    pub fn start_region(arguments: &[&str]) -> Self {
        Self::start_zones(None, arguments)
    }

    /// The same in a network of its own.
    #[must_use]
    pub fn start_in(netns: Option<Netns>, arguments: &[&str]) -> Self {
        Self::start_zones(netns, &[&["--zones", "1"], arguments].concat())
    }

    fn start_zones(netns: Option<Netns>, arguments: &[&str]) -> Self {
        // A test that failed with its turn has ended its processes: the next may go on.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("ashlar-test-").tempdir().expect("a folder");
        let mut cluster = Self {
            folder,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            netns,
            dev: None,
            _turn: turn,
        };
        cluster.start_again();
        cluster
    }

    /// Starts the stopped cluster again in its folder; gives the time until it was ready.
    pub fn start_again(&mut self) -> Duration {
        assert!(self.dev.is_none(), "the cluster is running");
        let began = Instant::now();
        let mut child = self
            .command()
            .args(["dev", "--dir"])
            .arg(self.folder())
            .args(&self.arguments)
            .env("NO_COLOR", "1")
            // A test run that is killed leaves no cluster behind.
            .env("ASHLAR_DIE_WITH_PARENT", std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("start ashlar dev");
        let lines = read_lines(child.stdout.take().expect("its output"));
        let mut dev = Dev { child, lines, said: Vec::new() };
        dev.wait_for("Ctrl-C stops everything", READY_WITHIN);
        self.dev = Some(dev);
        began.elapsed()
    }

    /// The binary, to be run where the cluster's processes run.
    fn command(&self) -> Command {
        match &self.netns {
            Some(netns) => netns.command(binary::ashlar()),
            None => Command::new(binary::ashlar()),
        }
    }

    /// The network that the cluster has for itself.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        self.netns.as_ref().expect("the cluster was started in a network of its own")
    }

    /// `ashlar volume status` of a volume.
    #[must_use]
    pub fn chunks(&self, volume: &str) -> Vec<Value> {
        let output = self.must(&["volume", "status", volume, "-o", "json"]);
        let status: Value = serde_json::from_str(&output).expect("it is JSON");
        status["chunks"].as_array().expect("a list of chunks").clone()
    }

    /// The file that gives an attached volume's content.
    #[must_use]
    pub fn fuse_file(&self, volume: &str) -> PathBuf {
        let status = self.status().expect("a status");
        let here = status["attached_here"].as_array().expect("what is attached here");
        let attached = here.iter().find(|attached| attached["name"] == volume);
        PathBuf::from(attached.expect("it is attached")["fuse_file"].as_str().expect("a file"))
    }

    /// The cluster's folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// Where the demo volume is mounted.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.folder().join("mnt/demo")
    }

    /// The NBD socket of the demo volume.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join("run/demo.sock")
    }

    /// Everything that `dev` has printed in this run.
    pub fn said(&mut self) -> String {
        let dev = self.dev.as_mut().expect("the cluster runs");
        dev.said.extend(dev.lines.try_iter());
        dev.said.join("\n")
    }

    /// Runs a command against this cluster; gives exit code, standard output and standard error.
    #[must_use]
    pub fn ashlar(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self
            .command()
            .args(arguments)
            .env("ASHLAR_DEV_DIR", self.folder())
            .env("NO_COLOR", "1")
            .output()
            .expect("run a command");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let (code, output, error) = self.ashlar(arguments);
        assert_eq!(code, 0, "ashlar {}: {error}", arguments.join(" "));
        output
    }

    /// `ashlar status -o json`; none while no control plane can answer.
    #[must_use]
    pub fn region_status(&self) -> Option<Value> {
        let (code, output, _) = self.ashlar(&["status", "-o", "json"]);
        (code == 0).then(|| serde_json::from_str(&output).expect("status is JSON"))
    }

    /// The part of the first zone, with what is attached here; none while it cannot answer.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let region = self.region_status()?;
        let mut zone = region["zones"].get(0)?.clone();
        zone["attached_here"] = region["attached_here"].clone();
        Some(zone)
    }

    /// Waits until every node is up and every chunk has all its copies.
    pub fn wait_whole(&self, within: Duration) {
        wait::until("every chunk to be whole", within, || {
            let status = self.status()?;
            let chunks = status.get("chunks")?;
            let nodes_up =
                status.get("nodes")?.as_array()?.iter().all(|node| node["state"] == "up");
            (nodes_up && chunks["whole"] == chunks["total"]).then_some(())
        });
    }

    /// Number of a process of the cluster; none while it is not running.
    #[must_use]
    pub fn pid(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.folder().join(format!("run/{name}.pid"))).ok()?;
        text.trim().parse().ok().map(Pid::from_raw)
    }

    /// Kills a process (-9); the supervisor starts it again by itself.
    pub fn kill(&self, name: &str) {
        let pid = wait::until(&format!("{name} to run"), READY_WITHIN, || self.pid(name));
        kill(pid, Signal::SIGKILL).ok();
    }

    /// Stops a process from running (SIGSTOP) or lets it go on (SIGCONT).
    pub fn signal(&self, name: &str, signal: Signal) {
        wait::until(&format!("{name} to run"), READY_WITHIN, || {
            self.pid(name).filter(|pid| kill(*pid, signal).is_ok())
        });
    }

    /// Stops the cluster as a user does, and checks that it ended well.
    pub fn stop(&mut self) {
        let status = self.end();
        assert!(status.success(), "dev ended with {status}");
    }

    /// Stops the cluster as a user does, however well that goes; gives how `dev` ended.
    pub fn end(&mut self) -> ExitStatus {
        let mut dev = self.dev.take().expect("the cluster runs");
        send(&dev.child, Signal::SIGTERM);
        let status = wait::until("dev to stop", STOP_WITHIN, || dev.child.try_wait().unwrap());
        assert!(!is_mounted(&self.mount_point()), "dev left its mount behind");
        status
    }

    /// The power is gone: every process dies at once (all of them die with `dev`).
    pub fn power_off(&mut self) {
        let pids = self.all_pids();
        let mut dev = self.dev.take().expect("the cluster runs");
        send(&dev.child, Signal::SIGKILL);
        dev.child.wait().expect("dev ends");
        wait::until("every process to be gone", STOP_WITHIN, || {
            pids.iter().all(|pid| !is_alive(*pid)).then_some(())
        });
    }

    /// The daemons of volumes that a test has attached itself: they outlive `dev`.
    fn attached_pids(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir(self.folder().join("attach")) else { return Vec::new() };
        let sockets = entries.filter_map(|entry| Some(entry.ok()?.path().join("control.sock")));
        sockets
            .filter_map(|socket| {
                let stream = UnixStream::connect(socket).ok()?;
                let peer = getsockopt(&stream, PeerCredentials).ok()?;
                Some(Pid::from_raw(peer.pid()))
            })
            .collect()
    }

    fn all_pids(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir(self.folder().join("run")) else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                self.pid(name.strip_suffix(".pid")?)
            })
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dev.is_some() {
            self.power_off();
        }
        let attached = self.attached_pids();
        for pid in &attached {
            kill(*pid, Signal::SIGKILL).ok();
        }
        let gone = || attached.iter().all(|pid| !is_alive(*pid)).then_some(());
        wait::until("every attached daemon to be gone", STOP_WITHIN, gone);
        // Also after a power-off: the mounts of a dead daemon stay until they are taken off.
        let folder = self.folder();
        for mount_point in mounts().iter().rev().filter(|path| path.starts_with(&folder)) {
            Command::new("umount").args(["-l"]).arg(mount_point).status().ok();
        }
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("ashlar-failed-{}", std::process::id()));
            Command::new("cp").arg("-r").arg(self.folder().join("log")).arg(&kept).status().ok();
            eprintln!("logs of the failed cluster: {}", kept.display());
        }
    }
}

impl Dev {
    fn wait_for(&mut self, wanted: &str, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = line.contains(wanted);
                    self.said.push(line);
                    if found {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("dev did not say `{wanted}` in time; it said:\n{}", self.said.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait();
                    panic!("dev ended ({status:?}); it said:\n{}", self.said.join("\n"))
                }
            }
        }
    }
}

fn read_lines(output: std::process::ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).ok();
}

/// A zombie whose parent died is reaped by the host's first process, which may take a moment.
fn is_alive(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// Whether something is mounted exactly there.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    mounts().iter().any(|mount_point| mount_point == path)
}

/// Where something is mounted, in the order of mounting.
fn mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().filter_map(|line| Some(line.split(' ').nth(1)?.into())).collect()
}
