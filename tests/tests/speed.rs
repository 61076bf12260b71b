//! 4 KiB random writes and reads, by `ashlar bench` and by fio through NBD, with the CPU time of all
//! processes per operation.
//!
//! Prints and judges no time: a loaded host would fail it for nothing. Figures of a debug build mean
//! nothing either; name a release build by `ASHLAR_BIN`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::process::Command;
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::needs::{self, Need};
use ashlar_tests::sized;
use serde_json::Value;

fn seconds() -> u64 {
    sized(4, 60)
}

/// The workloads: reads in percent, depth.
const LOADS: [(u8, u32); 4] = [(0, 1), (0, 32), (100, 1), (100, 32)];

fn name(reads: u8) -> &'static str {
    if reads == 0 { "write" } else { "read" }
}

#[test]
fn every_workload_runs_through_the_library_and_reports_its_cost() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.must(&["volume", "create", "scratch", "--size", "256MiB"]);
    cluster.wait_whole(Duration::from_secs(60));
    for (reads, depth) in LOADS {
        let text = cluster.must(&[
            "bench",
            "scratch",
            "--overwrite",
            "--reads",
            &reads.to_string(),
            "--depth",
            &depth.to_string(),
            "--seconds",
            &seconds().to_string(),
            "-o",
            "json",
        ]);
        let report: Value = serde_json::from_str(&text).unwrap();
        let cpu = report["cpu_micros_per_operation"].as_f64().unwrap();
        assert!(report["operations"].as_u64() > Some(0), "nothing was done: {text}");
        eprintln!(
            "library, 4 KiB random {} depth {depth}: {:.0}/s, p50 {:.0} µs, p99 {:.0} µs, cpu \
             {cpu:.0} µs",
            name(reads),
            report["iops"].as_f64().unwrap(),
            report["latency"]["p50_micros"].as_f64().unwrap(),
            report["latency"]["p99_micros"].as_f64().unwrap(),
        );
    }
    cluster.stop();
}

#[test]
fn fio_through_nbd_writes_reads_and_verifies() {
    if !needs::has_all("fio through NBD", &[Need::Tool("fio")]) {
        return;
    }
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.wait_whole(Duration::from_secs(60));
    let uri = format!("--uri=nbd+unix:///?socket={}", cluster.socket().display());
    for (reads, depth) in LOADS {
        let report = fio(&[
            &uri,
            &format!("--rw=rand{}", name(reads)),
            &format!("--iodepth={depth}"),
            &format!("--runtime={}", seconds()),
            "--time_based",
        ]);
        let side = &report["jobs"][0][name(reads)];
        eprintln!(
            "fio by NBD, 4 KiB random {} depth {depth}: {:.0}/s, p50 {:.0} µs",
            name(reads),
            side["iops"].as_f64().unwrap(),
            side["clat_ns"]["percentile"]["50.000000"].as_f64().unwrap_or(0.0) / 1000.0,
        );
        assert!(side["total_ios"].as_u64().unwrap() > 0);
    }
    let verified = fio(&[&uri, "--rw=randwrite", "--iodepth=32", "--verify=crc32c", "--size=16m"]);
    assert_eq!(verified["jobs"][0]["error"], 0);
    cluster.stop();
}

fn fio(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("fio")
        // It leaves its verification state in the folder it runs in.
        .current_dir(folder.path())
        .args(["--name=speed", "--ioengine=nbd", "--bs=4k", "--size=256m", "--output-format=json"])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let json = text.get(text.find('{').unwrap()..).unwrap();
    serde_json::from_str(json).unwrap()
}
