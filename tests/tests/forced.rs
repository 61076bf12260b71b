//! A volume that is stuck, with a writer that waits, comes off its host: in good order it says what
//! waits, by force it ends in a bounded time, fenced, and leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ashlar_tests::cluster::{Cluster, is_mounted};
use ashlar_tests::needs::{self, Need};
use ashlar_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Two of the three nodes: one copy is left, two are needed.
const STOPPED: [&str; 2] = ["node-2", "node-3"];
const WITHIN: Duration = Duration::from_secs(90);
/// The bound of an end by force is 10 s; the rest is for a loaded host that starts the command.
const FORCED_WITHIN: Duration = Duration::from_secs(15);
/// The same for a plain end: 10 s of waiting by default.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const KEPT: &[u8] = b"acknowledged by a flush";

/// An attach daemon, which is no child of the cluster's: one that a failed test leaves is killed.
struct Daemon(Option<Pid>);

impl Daemon {
    fn of(attached: &Value) -> Self {
        let pid = i32::try_from(attached["pid"].as_u64().unwrap()).unwrap();
        Self(Some(Pid::from_raw(pid)))
    }

    fn wait_gone(&mut self) {
        let Some(pid) = self.0 else { return };
        let process = PathBuf::from(format!("/proc/{pid}/exe"));
        wait::until("the daemon to end", FORCED_WITHIN, || {
            fs::read_link(&process).is_err().then_some(())
        });
        self.0 = None;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            kill(pid, Signal::SIGKILL).ok();
        }
    }
}

/// A volume with a writer that waits.
struct Scene {
    cluster: Cluster,
    folder: PathBuf,
    device: String,
    daemon: Daemon,
    writer: Child,
}

impl Scene {
    fn mounted() -> Option<Self> {
        if !needs::has_all("a forced end", &[needs::MOUNT, &[Need::Tool("dd")]].concat()) {
            return None;
        }
        let cluster = Cluster::start(&["--no-mount", "--nodes", "3"]);
        cluster.must(&["volume", "create", "stuck", "--size", "64MiB"]);
        let folder = cluster.folder().join("mnt/stuck");
        let place = folder.to_str().unwrap().to_owned();
        let mounted = cluster.must(&["mount", "stuck", &place, "--mkfs", "ext4", "-o", "json"]);
        let mounted: Value = serde_json::from_str(&mounted).unwrap();
        let mut kept = fs::File::create(folder.join("kept")).unwrap();
        kept.write_all(KEPT).unwrap();
        kept.sync_all().unwrap();
        fs::File::open(&folder).unwrap().sync_all().unwrap();
        drop(kept);
        let daemon = Daemon::of(&attached(&cluster, "stuck"));
        STOPPED.iter().for_each(|node| cluster.signal(node, Signal::SIGSTOP));
        let writer = write_lost(&folder);
        let device = mounted["device"].as_str().unwrap().to_owned();
        let scene = Self { cluster, folder, device, daemon, writer };
        wait_stuck(&scene.cluster, "stuck");
        Some(scene)
    }

    /// Nothing of it is on this host any more, and its writer was told.
    fn judge_gone(&mut self) {
        let status =
            wait::until("the writer to end", FORCED_WITHIN, || self.writer.try_wait().unwrap());
        let mut said = String::new();
        self.writer.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!status.success() && said.contains("Input/output error"), "{status}: {said}");
        assert!(!is_mounted(&self.folder));
        let name = Path::new(&self.device).file_name().unwrap().to_owned();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        wait::until("the loop device to be free", FORCED_WITHIN, || {
            let file = fs::read_to_string(&backing).unwrap_or_default();
            let ours = file.starts_with("/volume") || file.contains("/attach/stuck/");
            (!ours).then_some(())
        });
        self.daemon.wait_gone();
    }

    /// With its nodes back, the volume is attached anew with everything that was acknowledged.
    fn judge_kept(mut self) {
        STOPPED.iter().for_each(|node| self.cluster.signal(node, Signal::SIGCONT));
        self.cluster.wait_whole(WITHIN);
        let place = self.folder.to_str().unwrap().to_owned();
        self.cluster.must(&["mount", "stuck", &place]);
        assert_eq!(fs::read(self.folder.join("kept")).unwrap(), KEPT);
        self.cluster.must(&["umount", &place]);
        self.cluster.must(&["detach", "stuck"]);
        self.cluster.stop();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // After a failure. It ends when the kernel lets it: nobody waits for that here.
        self.writer.kill().ok();
    }
}

/// A writer of more than the volume takes. A process of its own, as it may be beyond all signals.
fn write_lost(folder: &Path) -> Child {
    Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=8", "conv=fsync"])
        .arg(format!("of={}", folder.join("lost").display()))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn attached(cluster: &Cluster, volume: &str) -> Value {
    let status = cluster.status().unwrap();
    let here = status["attached_here"].as_array().unwrap();
    here.iter().find(|attached| attached["name"] == volume).unwrap().clone()
}

fn wait_stuck(cluster: &Cluster, volume: &str) {
    wait::until("requests to wait", WITHIN, || {
        let millis = attached(cluster, volume)["waiting_millis"].as_u64()?;
        (millis > 1_000).then_some(())
    });
}

/// A plain end is refused in time, says what waits and what to do, and changes nothing.
fn refused(cluster: &Cluster, arguments: &[&str]) {
    let began = Instant::now();
    let (code, _, said) = cluster.ashlar(arguments);
    let took = began.elapsed();
    eprintln!("ashlar {}: {took:?}\n{said}", arguments.join(" "));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("VOLUME_STUCK") && said.contains("requests wait"), "{said}");
    assert!(said.contains("--force"), "{said}");
    assert!(took < REFUSED_WITHIN, "{took:?}");
}

fn forced(cluster: &Cluster, arguments: &[&str]) {
    let began = Instant::now();
    cluster.must(arguments);
    let took = began.elapsed();
    eprintln!("ashlar {}: {took:?}", arguments.join(" "));
    assert!(took < FORCED_WITHIN, "{took:?}");
}

#[test]
fn a_stuck_mount_is_detached_by_force() {
    let Some(mut scene) = Scene::mounted() else { return };
    let place = scene.folder.to_str().unwrap().to_owned();
    refused(&scene.cluster, &["umount", &place, "--timeout", "3"]);
    assert!(is_mounted(&scene.folder), "a refused unmount changes nothing");
    refused(&scene.cluster, &["detach", "stuck"]);
    forced(&scene.cluster, &["detach", "stuck", "--force"]);
    scene.judge_gone();
    scene.judge_kept();
}

#[test]
fn a_stuck_mount_is_unmounted_by_force() {
    let Some(mut scene) = Scene::mounted() else { return };
    let place = scene.folder.to_str().unwrap().to_owned();
    forced(&scene.cluster, &["umount", &place, "--force"]);
    scene.judge_gone();
    scene.judge_kept();
}

#[test]
fn a_stuck_nbd_export_is_detached_by_force() {
    if !needs::has_all("a forced end of NBD", &[Need::Tool("qemu-io")]) {
        return;
    }
    let mut cluster = Cluster::start(&["--no-mount", "--nodes", "3"]);
    cluster.must(&["volume", "create", "stuck", "--size", "64MiB"]);
    let attach = ["attach", "stuck", "--no-fuse", "-o", "json"];
    let begun: Value = serde_json::from_str(&cluster.must(&attach)).unwrap();
    let mut daemon = Daemon::of(&begun);
    let uri = format!("nbd+unix:///?socket={}", begun["nbd_socket"].as_str().unwrap());
    let qemu_io = |command: &str| {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw", "-t", "none", "-c", command, &uri]);
        qemu_io.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        qemu_io.spawn().unwrap()
    };
    let kept = qemu_io("write -f -P 0xa7 0 64k").wait_with_output().unwrap();
    assert!(kept.status.success(), "{kept:?}");
    STOPPED.iter().for_each(|node| cluster.signal(node, Signal::SIGSTOP));
    let writer = qemu_io("write -P 0x11 1M 64k");
    wait_stuck(&cluster, "stuck");
    refused(&cluster, &["detach", "stuck"]);
    forced(&cluster, &["detach", "stuck", "--force"]);
    daemon.wait_gone();
    let told = writer.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
    assert!(said.contains("Input/output error"), "{said}");
    STOPPED.iter().for_each(|node| cluster.signal(node, Signal::SIGCONT));
    cluster.wait_whole(WITHIN);
    cluster.must(&attach);
    let read = qemu_io("read -P 0xa7 0 64k").wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(read.status.success() && !said.contains("failed"), "{said}");
    cluster.must(&["detach", "stuck"]);
    cluster.stop();
}

#[test]
fn a_cluster_ends_although_its_mounted_volume_is_stuck() {
    if !needs::has_all("the end of dev", &[needs::MOUNT, &[Need::Tool("dd")]].concat()) {
        return;
    }
    let mut cluster = Cluster::start(&["--nodes", "3"]);
    STOPPED.iter().for_each(|node| cluster.signal(node, Signal::SIGSTOP));
    let mut writer = write_lost(&cluster.mount_point());
    wait_stuck(&cluster, "demo");
    let began = Instant::now();
    let status = cluster.end();
    eprintln!("dev ended after {:?}", began.elapsed());
    assert_eq!(status.code(), Some(4), "it says that something was lost");
    let told = wait::until("the writer to end", FORCED_WITHIN, || writer.try_wait().unwrap());
    assert!(!told.success());
}
