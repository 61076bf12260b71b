//! A pair of nodes loses its primary network: it goes on over the replication network, and returns.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::time::{Duration, Instant};

use ashlar_tests::cluster::Cluster;
use ashlar_tests::netns::Netns;
use ashlar_tests::writer::{self, Writer};
use ashlar_tests::{needs, wait};

/// Blocks of a chunk of the smallest size that the command line takes, 64 MiB.
const CHUNK_BLOCKS: u64 = 16 << 10;
/// Chunks of the volume: enough that every pair of nodes shares some.
const CHUNKS: u64 = 16;
/// Bytes that show that a network carries mirrored writes, and not beats alone: the beats of a pair
/// take less than 5 kB/s.
const MIRRORED: u64 = 4 << 20;
const WITHIN: Duration = Duration::from_secs(60);

/// Counts what one pair of nodes sends each other on both networks; chain `cut` is empty.
fn count_pair(netns: &Netns, a: &str, b: &str) {
    let way = |role: u32, name: &str| {
        let (a, b) = (format!("127.{role}.1.{a}"), format!("127.{role}.1.{b}"));
        format!(
            "ip saddr {a} ip daddr {b} counter name {name}; \
             ip saddr {b} ip daddr {a} counter name {name};"
        )
    };
    let (primary, replication) = (way(1, "primary"), way(2, "replication"));
    netns.nft(&format!(
        "table ip ashlar {{ counter primary {{ }}; counter replication {{ }}; \
         chain cut {{ type filter hook input priority 0; }}; \
         chain count {{ type filter hook input priority 10; {primary} {replication} }}; }}"
    ));
}

/// A node that is primary of some chunk, and a secondary of that chunk, by their numbers.
fn some_pair(cluster: &Cluster) -> (String, String) {
    let chunks = cluster.chunks("paired");
    let number =
        |name: &serde_json::Value| name.as_str().unwrap().trim_start_matches("node-").to_owned();
    let primary = number(&chunks[0]["primary"]);
    let in_sync: Vec<String> =
        chunks[0]["in_sync"].as_array().unwrap().iter().map(number).collect();
    let secondary = in_sync.iter().find(|name| **name != primary).unwrap().clone();
    (primary, secondary)
}

#[test]
fn a_pair_without_its_primary_network_goes_on_over_the_other_one() {
    let needs = [needs::NETWORK, &[needs::Need::Fuse]].concat();
    if !needs::has_all("networks", &needs) {
        return;
    }
    let mut cluster = Cluster::start_in(Some(Netns::new()), &["--no-mount"]);
    cluster.must(&["volume", "create", "paired", "--size", "1GiB", "--chunk-size", "64MiB"]);
    cluster.must(&["attach", "paired"]);
    let file = cluster.fuse_file("paired");
    let writer = Writer::start_apart(&file, CHUNKS, CHUNK_BLOCKS);
    wait::until("the writer to write", WITHIN, || (writer.count() > 200).then_some(()));

    let (a, b) = some_pair(&cluster);
    count_pair(cluster.netns(), &a, &b);
    let netns = cluster.netns();
    wait::until("mirrors on the primary network", WITHIN, || {
        (netns.counted("primary") > MIRRORED).then_some(())
    });
    assert!(netns.counted("replication") < MIRRORED / 4, "mirrors where only beats belong");

    let cut = Instant::now();
    netns.nft(&format!("add rule ip ashlar cut ip saddr 127.1.1.{a} ip daddr 127.1.1.{b} drop"));
    netns.nft(&format!("add rule ip ashlar cut ip saddr 127.1.1.{b} ip daddr 127.1.1.{a} drop"));
    wait::until("mirrors on the replication network", WITHIN, || {
        (netns.counted("replication") > MIRRORED).then_some(())
    });
    // Nobody was declared lost for it, and no client came over.
    let status = cluster.status().unwrap();
    assert_eq!(status["chunks"]["whole"], status["chunks"]["total"], "{status:#}");
    // Nodes dial from their own address of the network; probes of the control plane come and go.
    let sockets = netns.run("ss", &["-tnH", "state", "established", "dst", "127.2.0.0/16"]);
    let from = |line: &str| line.split_whitespace().nth(2).map(str::to_owned);
    let client = sockets.lines().filter_map(from).find(|local| !local.starts_with("127.2.1."));
    assert_eq!(client, None, "a client on the replication network");

    netns.nft("flush chain ip ashlar cut");
    let healed = Instant::now();
    let before = netns.counted("primary");
    wait::until("mirrors on the primary network again", WITHIN, || {
        (netns.counted("primary") > before + MIRRORED).then_some(())
    });
    let seen = writer.finish();
    assert_eq!(seen.error, None);
    let pause_between = |from: Instant, to: Instant| {
        let within = seen.times.iter().filter(|(at, took)| *at + *took >= from && *at <= to);
        within.map(|(_, took)| *took).max().unwrap_or_default()
    };
    eprintln!(
        "networks: longest write {:?} at the cut, {:?} at its end",
        pause_between(cut, healed),
        pause_between(healed, Instant::now())
    );
    writer::assert_there(&file, &seen);
    cluster.must(&["detach", "paired"]);
    cluster.stop();
}
