//! Nodes that lose each other, or the control plane, and nothing else.
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
         counter clients_primary {{ }}; counter clients_replication {{ }}; \
         chain cut {{ type filter hook input priority 0; }}; \
         chain count {{ type filter hook input priority 10; {primary} {replication} \
         {} {} }}; }}",
        of_clients(1, "clients_primary"),
        of_clients(2, "clients_replication"),
    ));
}

/// Rules that count what nodes send to and get from anybody who is no node, on one network: only what
/// has content (probes of the control plane connect and leave). Nodes use their own addresses there.
fn of_clients(role: u32, name: &str) -> String {
    let nodes = format!("127.{role}.0.0/16");
    format!(
        "ip saddr {nodes} ip daddr != {nodes} tcp flags & psh == psh counter name {name}; \
         ip saddr != {nodes} ip daddr {nodes} tcp flags & psh == psh counter name {name};"
    )
}

/// A node that is primary of some chunk, and a secondary of that chunk, by their numbers.
fn some_pair(cluster: &Cluster) -> (String, String) {
    let (primary, mut secondaries) = first_chunk(cluster);
    (primary, secondaries.remove(0))
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
    assert!(netns.counted("clients_primary") > MIRRORED, "the rules do not see a client");
    assert_eq!(netns.counted("clients_replication"), 0, "a client's bytes on the wrong network");
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
    assert_eq!(netns.counted("clients_replication"), 0, "a client's bytes on the wrong network");
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

/// The configuration of the first chunk: primary, and the numbers of its other replicas in sync.
fn first_chunk(cluster: &Cluster) -> (String, Vec<String>) {
    let chunk = cluster.chunks("paired").remove(0);
    let number =
        |name: &serde_json::Value| name.as_str().unwrap().trim_start_matches("node-").to_owned();
    let primary = number(&chunk["primary"]);
    let in_sync = chunk["in_sync"].as_array().unwrap().iter().map(number);
    let others = in_sync.filter(|node| *node != primary).collect();
    (primary, others)
}

/// A node that only the control plane does not reach goes on as primary, and what it has to ask goes
/// through a peer (design.md sections 5 and 6, N18).
#[test]
fn a_primary_hidden_from_the_control_plane_goes_on_and_loses_a_secondary_through_a_peer() {
    let needs = [needs::NETWORK, &[needs::Need::Fuse]].concat();
    if !needs::has_all("networks", &needs) {
        return;
    }
    let mut cluster = Cluster::start_in(Some(Netns::new()), &["--no-mount"]);
    // One chunk: every write is the hidden primary's.
    cluster.must(&["volume", "create", "paired", "--size", "64MiB", "--chunk-size", "64MiB"]);
    cluster.must(&["attach", "paired"]);
    let file = cluster.fuse_file("paired");
    let writer = Writer::start(&file, CHUNK_BLOCKS);
    wait::until("the writer to write", WITHIN, || (writer.count() > 200).then_some(()));

    let (primary, secondaries) = first_chunk(&cluster);
    let hidden = format!("127.1.1.{primary}");
    cluster.netns().nft(&format!(
        "table ip ashlar {{ chain cut {{ type filter hook input priority 0; \
         ip saddr {hidden} ip daddr 127.3.1.0/24 counter drop; \
         ip saddr 127.3.1.0/24 ip daddr {hidden} counter drop; }}; }}"
    ));
    // Longer than any patience: of a node that is silent, and of a stream that nothing comes on.
    let began = writer.count();
    let cut = Instant::now();
    wait::until("five seconds of writes", WITHIN, || {
        (cut.elapsed() > Duration::from_secs(5)).then_some(())
    });
    assert_eq!(
        first_chunk(&cluster).0,
        primary,
        "a primary that everybody else hears was replaced"
    );
    assert!(writer.count() > began, "no write went on");

    let lost = &secondaries[0];
    cluster.kill(&format!("node-{lost}"));
    wait::until("the removal of the killed secondary", WITHIN, || {
        (!first_chunk(&cluster).1.contains(lost)).then_some(())
    });
    assert_eq!(first_chunk(&cluster).0, primary);
    let without = writer.count();
    wait::until("writes without it", WITHIN, || (writer.count() > without + 50).then_some(()));

    cluster.netns().nft("flush chain ip ashlar cut");
    let seen = writer.finish();
    assert_eq!(seen.error, None);
    eprintln!("networks: longest write {:?} by a hidden primary", seen.longest_since(cut));
    writer::assert_there(&file, &seen);
    cluster.must(&["detach", "paired"]);
    cluster.stop();
}
