//! Bad input of every kind gets a typed error or a closed connection; nothing panics, hangs, grows.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ashlar_tests::cluster::Cluster;

/// How long a port may take to close a connection that makes no sense, or to answer.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);

/// How much a process may grow over the whole test. A believed 4 GiB length would be far above.
const GROWTH_MAX_KIB: u64 = 64 << 10;

/// CRC32C, bit by bit: the header of a frame with an absurd length must be right otherwise.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// A frame header that is right but for its lengths (layout: `proto/src/frame.rs`).
fn absurd_frame() -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(0x4D4C_4841_u32.to_le_bytes());
    header.extend([1, 0, 0, 0]);
    header.extend(u32::MAX.to_le_bytes());
    header.extend(u32::MAX.to_le_bytes());
    header.extend(0_u32.to_le_bytes());
    header.extend(crc32c(&header).to_le_bytes());
    header
}

fn garbage(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..8192)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// Sends `bytes` and reads until the other side closes; false when it keeps the connection.
fn is_closed_after(stream: &mut (impl Read + Write), bytes: &[u8]) -> bool {
    // The other side may close while this is still writing.
    stream.write_all(bytes).ok();
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
            }
        }
    }
}

fn dial(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(CLOSED_WITHIN)).unwrap();
    stream
}

fn resident_kib(cluster: &Cluster, name: &str) -> u64 {
    let pid = cluster.pid(name).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn commands_that_make_no_sense_get_typed_errors() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    let elsewhere = cluster.folder().join("elsewhere");
    let elsewhere = elsewhere.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["volume", "show", "nobody"], 3, "VOLUME_NOT_FOUND"),
        (&["volume", "delete", "nobody"], 3, "VOLUME_NOT_FOUND"),
        (&["volume", "create", "empty", "--size", "0"], 2, "UNSUPPORTED_SIZE"),
        (&["volume", "create", "vast", "--size", "8191PiB"], 2, ""),
        (&["volume", "create", "large", "--size", "60TiB"], 5, "INSUFFICIENT_VOLUME_CAPACITY"),
        (&["volume", "create", "bad/name", "--size", "1GiB"], 2, "INVALID_PARAMETER"),
        (&["volume", "create", "demo", "--size", "2GiB"], 4, "VOLUME_EXISTS"),
        (&["attach", "nobody"], 3, "VOLUME_NOT_FOUND"),
        (&["attach", "demo", "--state", elsewhere], 4, "VOLUME_IN_USE"),
    ];
    for (arguments, code, reason) in cases {
        let (found, _, error) = cluster.ashlar(arguments);
        assert_eq!(found, *code, "{arguments:?}: {error}");
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
    let create = |size| {
        ["volume", "create", "once", "--size", size, "--client-token", "token-1", "-o", "json"]
    };
    // The state of the new volume moves on between the calls; which volume it is does not.
    let id_of = |text: String| {
        let volume: serde_json::Value = serde_json::from_str(&text).unwrap();
        volume["id"].as_str().unwrap().to_owned()
    };
    let first = id_of(cluster.must(&create("64MiB")));
    let again = id_of(cluster.must(&create("64MiB")));
    assert_eq!(first, again, "the same call has the same answer");
    let (code, _, error) = cluster.ashlar(&create("128MiB"));
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("IDEMPOTENT_PARAMETER_MISMATCH"), "{error}");
    cluster.stop();
}

#[test]
fn garbage_and_absurd_lengths_close_the_connection_and_nothing_else() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.wait_whole(Duration::from_secs(60));
    let status = cluster.status().unwrap();
    let mut ports = Vec::new();
    for node in status["nodes"].as_array().unwrap() {
        for network in ["primary_address", "replication_address"] {
            ports.push((node["id"].as_str().unwrap().to_owned(), node[network].clone()));
        }
    }
    for member in status["members"].as_array().unwrap() {
        ports.push((format!("member-{}", member["id"]), member["address"].clone()));
    }
    let mut names: Vec<String> = ports.iter().map(|(name, _)| name.clone()).collect();
    names.dedup();
    let before: Vec<(_, _)> =
        names.iter().map(|name| (cluster.pid(name), resident_kib(&cluster, name))).collect();
    for (name, address) in &ports {
        let address = address.as_str().unwrap();
        for (what, bytes) in [("garbage", garbage(7)), ("an absurd length", absurd_frame())] {
            for _ in 0..8 {
                let closed = is_closed_after(&mut dial(address), &bytes);
                assert!(closed, "{name} at {address} keeps a connection that sent {what}");
            }
        }
    }
    let mut nbd = UnixStream::connect(cluster.socket()).unwrap();
    nbd.set_read_timeout(Some(CLOSED_WITHIN)).unwrap();
    assert!(is_closed_after(&mut nbd, &garbage(9)), "NBD keeps a connection that sent garbage");
    for (name, (pid, resident)) in names.iter().zip(&before) {
        assert_eq!(cluster.pid(name), *pid, "{name} ended");
        let now = resident_kib(&cluster, name);
        assert!(now < resident + GROWTH_MAX_KIB, "{name} grew from {resident} to {now} KiB");
    }
    cluster.wait_whole(Duration::from_secs(10));
    cluster.stop();
}
