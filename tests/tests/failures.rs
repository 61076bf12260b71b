//! A mounted file system outlives its primaries, its control plane, and a power cut.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ashlar_tests::cluster::Cluster;
use ashlar_tests::writer::{self, Seen, Writer};
use ashlar_tests::{needs, sized, tree, wait};

/// Blocks that the writer goes round in.
const BLOCKS: u64 = 256;

/// How long a killed node may take to be back with everything whole.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// Bound of a pause that fails the test. The goal is a median of 1 s; this leaves room for a
/// loaded host and still tells a hang from a fail-over.
const PAUSE_MAX: Duration = Duration::from_secs(20);

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn no_error(seen: &Seen) {
    assert_eq!(seen.error, None, "the writer saw an error");
}

/// Kills each node in turn, `kills` times in all, while `writer` writes; gives the pause after each.
fn kill_nodes(cluster: &Cluster, writer: &Writer, kills: usize) -> Vec<Instant> {
    let mut moments = Vec::new();
    for kill in 0..kills {
        let name = format!("node-{}", kill % 4 + 1);
        let killed = cluster.pid(&name);
        moments.push(Instant::now());
        cluster.kill(&name);
        wait::until("another process", WHOLE_WITHIN, || {
            let now = cluster.pid(&name);
            (now.is_some() && now != killed).then_some(())
        });
        let before = writer.count();
        wait::until("writes to go on", PAUSE_MAX, || (writer.count() > before + 20).then_some(()));
        cluster.wait_whole(WHOLE_WITHIN);
    }
    moments
}

/// The longest write between each moment and the next.
fn pauses(seen: &Seen, moments: &[Instant]) -> Vec<Duration> {
    let far = Duration::from_secs(3600);
    moments
        .iter()
        .enumerate()
        .map(|(at, moment)| {
            let until = moments.get(at + 1).copied().unwrap_or(*moment + far);
            seen.times
                .iter()
                .filter(|(began, took)| *began + *took >= *moment && *began <= until)
                .map(|(_, took)| *took)
                .max()
                .unwrap_or_default()
        })
        .collect()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{error}");
    text
}

/// Lets the file system's own checker look at the unmounted volume.
fn check(cluster: &Cluster, file_system: &str) {
    let status = cluster.status().unwrap();
    let here = status["attached_here"].as_array().unwrap();
    let attached = here.iter().find(|attached| attached["name"] == file_system).unwrap();
    let file = attached["fuse_file"].as_str().unwrap();
    match file_system {
        "xfs" => run("xfs_repair", &["-n", file]),
        _ => run("e2fsck", &["-f", "-n", file]),
    };
}

/// Fills, kills, unmounts, mounts, compares; the file system is on a volume of its own.
fn survives_kills(file_system: &str, kills: usize) {
    let mut cluster = Cluster::start(&["--no-mount"]);
    let place = cluster.folder().join("place");
    let place = place.to_str().unwrap();
    cluster.must(&["volume", "create", file_system, "--size", "1GiB"]);
    cluster.must(&["mount", file_system, place, "--mkfs", file_system]);
    let blocks = Path::new(place).join("blocks");
    writer::prepare(&blocks, BLOCKS);
    let writer = Writer::start(&blocks, BLOCKS);
    let wanted = tree::generate(7, sized(1000, 5000));
    let filling = {
        let (wanted, place) = (wanted.clone(), Path::new(place).join("files"));
        std::thread::spawn(move || tree::write(&place, &wanted))
    };
    let moments = kill_nodes(&cluster, &writer, kills);
    filling.join().unwrap();
    let seen = writer.finish();
    no_error(&seen);
    let pauses = pauses(&seen, &moments);
    eprintln!(
        "{file_system}: {kills} kills, pause of a 4 KiB writer: median {:?}, longest {:?}: {:?}",
        median(pauses.clone()),
        pauses.iter().max().unwrap(),
        pauses
    );
    cluster.must(&["umount", place]);
    check(&cluster, file_system);
    cluster.must(&["mount", file_system, place]);
    tree::assert_same(&wanted, &tree::read(&Path::new(place).join("files")));
    writer::assert_there(&blocks, &seen);
    cluster.must(&["umount", place]);
    cluster.must(&["detach", file_system]);
    cluster.stop();
}

#[test]
fn ext4_outlives_killed_nodes() {
    let tools =
        [needs::MOUNT, &[needs::Need::Tool("mkfs.ext4"), needs::Need::Tool("e2fsck")]].concat();
    if needs::has_all("ext4", &tools) {
        survives_kills("ext4", sized(6, 25));
    }
}

#[test]
fn xfs_outlives_killed_nodes() {
    let tools =
        [needs::MOUNT, &[needs::Need::Tool("mkfs.xfs"), needs::Need::Tool("xfs_repair")]].concat();
    if needs::has_all("xfs", &tools) {
        survives_kills("xfs", sized(4, 25));
    }
}

#[test]
fn writes_go_on_while_the_whole_control_plane_is_away() {
    if !needs::has_all("control plane away", needs::MOUNT) {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let file = cluster.mount_point().join("blocks");
    writer::prepare(&file, BLOCKS);
    let writer = Writer::start(&file, BLOCKS);
    let members = ["member-1", "member-2", "member-3"];
    cluster.must(&[&["dev", "kill"], &members[..]].concat());
    wait::until("the control plane to be gone", Duration::from_secs(10), || {
        members.iter().all(|name| cluster.pid(name).is_none()).then_some(())
    });
    let (mut last, mut progress) = (writer.count(), Instant::now());
    wait::throughout(Duration::from_secs(sized(30, 120)), || {
        if writer.count() > last {
            (last, progress) = (writer.count(), Instant::now());
        }
        (progress.elapsed() > Duration::from_secs(2)).then(|| "writes stopped".to_owned())
    });
    cluster.must(&[&["dev", "start"], &members[..]].concat());
    cluster.wait_whole(WHOLE_WITHIN);
    let seen = writer.finish();
    no_error(&seen);
    writer::assert_there(&file, &seen);
    cluster.stop();
}

#[test]
fn everything_acknowledged_is_there_after_all_processes_died_at_once() {
    if !needs::has_all("power off", needs::MOUNT) {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let file = cluster.mount_point().join("blocks");
    for _ in 0..sized(2, 10) {
        writer::prepare(&file, BLOCKS);
        let writer = Writer::start(&file, BLOCKS);
        wait::until("some writes", WHOLE_WITHIN, || (writer.count() > 500).then_some(()));
        cluster.power_off();
        let seen = writer.finish();
        cluster.start_again();
        writer::assert_there(&file, &seen);
    }
    let device = run("findmnt", &["-n", "-o", "SOURCE", cluster.mount_point().to_str().unwrap()]);
    eprintln!("mounted again from {}", device.trim());
    cluster.stop();
}
