//! A volume grows while a writer writes to it, by real processes: no write waits long, nothing that was
//! acknowledged is lost, the new range is there without a new attachment, and what cannot be done is
//! refused by name.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ashlar_tests::cluster::Cluster;
use ashlar_tests::writer::{self, Writer};
use ashlar_tests::{needs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Blocks of a chunk of the smallest size that the command line takes, 64 MiB.
const CHUNK_BLOCKS: u64 = 16 << 10;
const MIB: u64 = 1 << 20;
const WITHIN: Duration = Duration::from_secs(120);
/// Bound of a write that fails the test: not the goal (100 ms), but a hang.
const PAUSE_MAX: Duration = Duration::from_secs(10);

fn grow(cluster: &Cluster, size: &str, more: &[&str]) -> Value {
    let arguments = [&["volume", "grow", "grown", size, "-o", "json"], more].concat();
    serde_json::from_str(&cluster.must(&arguments)).unwrap()
}

fn refused(cluster: &Cluster, volume: &str, size: &str) -> (String, String) {
    let (code, _, error) = cluster.ashlar(&["volume", "grow", volume, size, "-o", "json"]);
    assert_ne!(code, 0, "{error}");
    let said: Value = serde_json::from_str(&error).unwrap_or_default();
    (said["error"]["reason"].as_str().unwrap_or_default().to_owned(), error)
}

fn size(cluster: &Cluster) -> Value {
    let shown = cluster.must(&["volume", "show", "grown", "-o", "json"]);
    serde_json::from_str::<Value>(&shown).unwrap()["size_bytes"].clone()
}

/// What is attached on this host.
fn attached(cluster: &Cluster) -> Value {
    let here = cluster.status().unwrap()["attached_here"].clone();
    here.as_array().unwrap().iter().find(|one| one["name"] == "grown").unwrap().clone()
}

/// The size that an NBD server tells a new client (fixed newstyle, `NBD_OPT_EXPORT_NAME`).
fn nbd_size(socket: &str) -> u64 {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let name = b"grown";
    let flags = 3_u32.to_be_bytes();
    let head = [&b"IHAVEOPT"[..], &1_u32.to_be_bytes(), &5_u32.to_be_bytes(), name].concat();
    stream.write_all(&[&flags[..], &head].concat()).unwrap();
    let mut size = [0; 8];
    stream.read_exact(&mut size).unwrap();
    u64::from_be_bytes(size)
}

/// Waits until the file that the daemon presents has this size.
fn wait_for_size(file: &Path, bytes: u64) {
    wait::until("the file to have grown", WITHIN, || {
        (fs::metadata(file).unwrap().len() == bytes).then_some(())
    });
}

#[test]
fn a_volume_grows_under_load_and_its_client_follows() {
    if !needs::has_all("grow", &[needs::Need::Fuse]) {
        return;
    }
    let cluster = Cluster::start(&["--no-mount"]);
    let create = ["volume", "create", "grown", "--size", "128MiB", "--chunk-size", "64MiB"];
    cluster.must(&[&create[..], &["--wait"]].concat());
    cluster.must(&["attach", "grown"]);
    let file = cluster.fuse_file("grown");
    let writer = Writer::start_apart(&file, 3, CHUNK_BLOCKS - 1);
    wait::until("the writer to write", WITHIN, || (writer.count() > 200).then_some(()));

    let planned = grow(&cluster, "512MiB", &["--dry-run"]);
    assert_eq!(planned["volume"]["size_bytes"], 512 * MIB, "{planned:#}");
    assert_eq!((&planned["chunks_added"], &planned["dry_run"]), (&6.into(), &true.into()));
    assert_eq!(size(&cluster), 128 * MIB, "a dry run changes nothing");

    let began = Instant::now();
    let grown = grow(&cluster, "512MiB", &["--wait", "--client-token", "grow-it"]);
    let told = began.elapsed();
    assert_eq!(grown["chunks_added"], 6, "{grown:#}");
    assert_eq!(grown["volume"]["size_bytes"], 512 * MIB, "{grown:#}");
    assert_eq!(grown["volume"]["growing_to_bytes"], 0, "{grown:#}");
    wait_for_size(&file, 512 * MIB);
    let followed = began.elapsed();
    // A new NBD connection is told of the size.
    let socket = attached(&cluster)["nbd_socket"].as_str().unwrap().to_owned();
    assert_eq!(nbd_size(&socket), 512 * MIB);
    // The new range is written and read without a new attachment.
    let far = Writer::start_apart(&file, 8, CHUNK_BLOCKS);
    wait::until("writes in the new range", WITHIN, || (far.count() > 80).then_some(()));
    let (mut seen, mut far) = (writer.finish(), far.finish());
    assert_eq!((&seen.error, &far.error), (&None, &None));
    assert_eq!(cluster.chunks("grown").len(), 8);
    // The one block that both of them write.
    for both in [&mut seen, &mut far] {
        both.acknowledged.remove(&0);
    }
    writer::assert_there(&file, &seen);
    writer::assert_there(&file, &far);
    let longest = seen.longest_since(began);
    eprintln!(
        "grown in {} ms, the client followed after {} ms, the longest write {} ms",
        told.as_millis(),
        followed.as_millis(),
        longest.as_millis()
    );
    assert!(longest < PAUSE_MAX, "a write waited for {longest:?}");

    // The same call is the same growth, and the size that it has is none.
    grow(&cluster, "512MiB", &["--client-token", "grow-it"]);
    assert_eq!(grow(&cluster, "512MiB", &[])["chunks_added"], 0);
    refuse_what_cannot_be(&cluster);

    // A daemon that was killed goes on with its attachment, the size, and what was written.
    let pid = attached(&cluster)["pid"].as_i64().unwrap();
    let generation = attached(&cluster)["generation"].clone();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    wait::until("the daemon to be gone", WITHIN, || {
        (cluster.ashlar(&["attach", "grown"]).0 == 0).then_some(())
    });
    assert_eq!(attached(&cluster)["generation"], generation);
    let file = cluster.fuse_file("grown");
    assert_eq!(fs::metadata(&file).unwrap().len(), 512 * MIB);
    writer::assert_there(&file, &seen);
    writer::assert_there(&file, &far);
}

/// Runs a tool that must succeed.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_mounted_file_system_grows_with_its_volume() {
    let needed =
        [needs::Need::Root, needs::Need::Fuse, needs::Need::Loop, needs::Need::Tool("resize2fs")];
    if !needs::has_all("grow-mounted", &needed) {
        return;
    }
    let cluster = Cluster::start(&[]);
    let dir = cluster.mount_point();
    let text = dir.to_str().unwrap();
    let block_bytes = |device: &str| -> u64 {
        tool("blockdev", &["--getsize64", device]).trim().parse().unwrap()
    };
    let device = tool("findmnt", &["-n", "-o", "SOURCE", text]).trim().to_owned();
    let had = block_bytes(&device);
    fs::write(dir.join("before"), b"before").unwrap();
    let wanted = had + 128 * MIB;
    cluster.must(&["volume", "grow", "demo", &wanted.to_string(), "--wait"]);
    wait::until("the device to have grown", WITHIN, || {
        (block_bytes(&device) == wanted).then_some(())
    });
    // Where the file system does not reach yet.
    let end = fs::OpenOptions::new().read(true).write(true).open(&device).unwrap();
    let (mut back, content) = (vec![0; 1 << 20], vec![9; 1 << 20]);
    end.write_all_at(&content, wanted - MIB).unwrap();
    end.sync_all().unwrap();
    end.read_exact_at(&mut back, wanted - MIB).unwrap();
    assert_eq!(back, content);
    let resized = Command::new("resize2fs").arg(&device).output().unwrap();
    if String::from_utf8_lossy(&resized.stderr).contains("Permission denied") {
        eprintln!("SKIP grow-file-system: resize2fs of what is mounted needs CAP_SYS_RESOURCE");
    } else {
        assert!(resized.status.success(), "{resized:?}");
        let room = nix::sys::statvfs::statvfs(&dir).unwrap();
        assert!(room.blocks() * room.fragment_size() > had, "the file system has the new room");
    }
    fs::write(dir.join("after"), &content).unwrap();
    tool("sync", &["-f", text]);
    assert_eq!(fs::read(dir.join("before")).unwrap(), b"before");
    assert_eq!(fs::read(dir.join("after")).unwrap(), content);
}

fn refuse_what_cannot_be(cluster: &Cluster) {
    for (wanted, reason, words) in [
        ("256MiB", "UNSUPPORTED_SIZE", "do not shrink"),
        ("0", "UNSUPPORTED_SIZE", "at least 1 byte"),
        ("100TiB", "UNSUPPORTED_SIZE", "64 TiB"),
        ("8TiB", "UNSUPPORTED_SIZE", "65536 chunks"),
        ("1TiB", "UNSUPPORTED_SIZE", "4096 chunks at a time"),
        ("200GiB", "INSUFFICIENT_VOLUME_CAPACITY", "cannot hold the volume"),
    ] {
        let (found, error) = refused(cluster, "grown", wanted);
        assert_eq!(found, reason, "{wanted}: {error}");
        assert!(error.contains(words), "{wanted}: {error}");
    }
    assert_eq!(refused(cluster, "nobody", "1GiB").0, "VOLUME_NOT_FOUND");
    for nonsense in ["", "-1", "1.5GiB", "1 parsec", "many"] {
        assert_eq!(refused(cluster, "grown", nonsense).0, "", "{nonsense:?} is no size");
    }
    assert_eq!(size(cluster), 512 * MIB);
}
