//! Processes that get no further file descriptor (N37): what is open goes on, nobody is replaced, and what
//! could not be opened can be as soon as there are descriptors again.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends by a panic and speaks"
)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::needs::{self, Need};
use ashlar_tests::wait;
use ashlar_tests::writer::{self, Writer};
use serde_json::Value;

/// Blocks of the volume.
const BLOCKS: u64 = 16 << 10;
const WITHIN: Duration = Duration::from_secs(60);
/// How long a process goes without: longer than every time-out of a node or a member.
const WITHOUT: Duration = Duration::from_secs(4);

/// A process that gets no further descriptor; as before when dropped.
struct Starved {
    pid: i64,
}

impl Starved {
    fn new(pid: i64) -> Self {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let numbers: BTreeSet<u64> = open
            .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().ok())
            .collect();
        // New ones are given below the limit only; those above it stay open.
        limit(pid, (0..).find(|number| !numbers.contains(number)).unwrap());
        Self { pid }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        limit(self.pid, 4096);
    }
}

/// Sets the soft limit alone.
fn limit(pid: i64, count: u64) {
    let (pid, count) = (format!("--pid={pid}"), format!("--nofile={count}:"));
    assert!(Command::new("prlimit").args([pid, count]).status().unwrap().success());
}

/// Addresses that a process of the zone listens on.
fn address(status: &Value, list: &str, id: u64, field: &str) -> String {
    let all = status[list].as_array().unwrap();
    let of = |item: &&Value| item["id"].as_u64() == Some(id) || item["node"].as_u64() == Some(id);
    let found = all.iter().find(of);
    found.map(|item| item[field].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// Connections that it cannot accept: more than it may have free numbers for.
fn crowd(address: &str) -> Vec<TcpStream> {
    let address = address.trim_start_matches("http://");
    (0..64).map(|_| TcpStream::connect(address).unwrap()).collect()
}

#[test]
fn a_zone_whose_processes_get_no_descriptor_goes_on_and_they_recover() {
    let needs = [Need::Root, Need::Fuse, Need::Tool("prlimit")];
    if !needs::has_all("descriptors", &needs) {
        return;
    }
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.must(&["volume", "create", "written", "--size", "64MiB"]);
    let attached = cluster.must(&["attach", "written", "-o", "json"]);
    let attached: Value = serde_json::from_str(&attached).unwrap();
    let daemon = attached["pid"].as_i64().unwrap();
    let file: PathBuf = cluster.fuse_file("written");
    let writer = Writer::start(&file, BLOCKS);
    wait::until("the writer to write", WITHIN, || (writer.count() > 100).then_some(()));
    let primary = || cluster.chunks("written")[0]["primary"].as_str().unwrap().to_owned();
    let first = primary();
    let status = cluster.status().unwrap();
    let leader = status["leader"].as_u64().unwrap();
    let member = address(&status, "members", leader, "address");
    let pid = |name: &str| i64::from(cluster.pid(name).unwrap().as_raw());

    // The leading member, with connections that it cannot accept.
    let starved = Starved::new(pid(&format!("member-{leader}")));
    let waiting = crowd(&member);
    let before = writer.count();
    wait::throughout(WITHOUT, || None);
    assert!(writer.count() > before + 20, "writes wait for a member");
    drop((starved, waiting));
    wait::until("the member to answer", WITHIN, || cluster.status());

    // The primary: the streams that it has go on.
    let starved = Starved::new(pid(&first));
    let before = writer.count();
    wait::throughout(WITHOUT, || None);
    assert!(writer.count() > before + 20, "writes wait");
    assert_eq!(primary(), first, "a primary that only lacks descriptors was replaced");
    drop(starved);

    // The daemon: whoever asks it waits in vain, and it hears of the next one.
    let starved = Starved::new(daemon);
    let socket = file_of_control_socket(&cluster);
    let waiting: Vec<_> = (0..64).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    let before = writer.count();
    wait::throughout(Duration::from_secs(1), || None);
    assert!(writer.count() > before, "writes wait for the control socket");
    drop((starved, waiting));
    let answer = ask(&socket);
    assert!(answer.contains("written"), "the daemon's control socket: {answer}");

    let seen = writer.finish();
    assert_eq!(seen.error, None);
    writer::assert_there(&file, &seen);
    cluster.wait_whole(WITHIN);
    cluster.must(&["detach", "written"]);
    cluster.stop();
}

/// What the daemon answers to a question for its state.
fn ask(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream.write_all(b"{\"ask\":\"status\"}\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Where the daemon of the volume listens.
fn file_of_control_socket(cluster: &Cluster) -> PathBuf {
    let found = Command::new("find")
        .arg(cluster.folder())
        .args(["-type", "s", "-path", "*/written/control*"])
        .output()
        .unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    PathBuf::from(text.lines().next().unwrap())
}
