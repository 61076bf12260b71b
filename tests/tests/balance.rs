//! A node is added to a zone under load, by real processes: copies move to it until all nodes are filled
//! alike, and nothing that was acknowledged is lost.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::time::{Duration, Instant};

use ashlar_tests::cluster::Cluster;
use ashlar_tests::writer::{self, Writer};
use ashlar_tests::{needs, wait};
use serde_json::Value;

/// Blocks of a chunk of the smallest size that the command line takes, 64 MiB.
const CHUNK_BLOCKS: u64 = 16 << 10;
/// Chunks of the volume: 5 GiB, three copies, of four times 16 GiB a bit less than a quarter.
const CHUNKS: u64 = 80;
const WITHIN: Duration = Duration::from_secs(240);

/// How full nodes are, in hundredths of a percent.
fn levels(nodes: &[Value]) -> Vec<u64> {
    let number = |node: &Value, field: &str| node[field].as_u64().unwrap();
    let level =
        |node| number(node, "promised_bytes") * 10_000 / number(node, "capacity_bytes").max(1);
    nodes.iter().map(level).collect()
}

#[test]
fn a_node_that_is_added_under_load_is_filled_until_all_are_filled_alike() {
    if !needs::has_all("balance", &[needs::Need::Fuse]) {
        return;
    }
    let cluster = Cluster::start(&["--no-mount", "--nodes", "5"]);
    // As if it were not there yet: it holds nothing, of the demo volume either.
    cluster.must(&["node", "drain", "node-5", "--wait"]);
    cluster.must(&["dev", "stop", "node-5"]);
    cluster.must(&["node", "drain", "node-5", "--cancel"]);
    wait::until("the zone to know that it is away", WITHIN, || {
        let nodes = cluster.status()?["nodes"].as_array()?.clone();
        nodes.iter().any(|node| node["id"] == "node-5" && node["state"] != "up").then_some(())
    });
    cluster.must(&["volume", "create", "spread", "--size", "5GiB", "--chunk-size", "64MiB"]);
    cluster.must(&["attach", "spread"]);
    let file = cluster.fuse_file("spread");
    let writer = Writer::start_apart(&file, CHUNKS, CHUNK_BLOCKS);
    wait::until("the writer to write", WITHIN, || (writer.count() > 400).then_some(()));

    let began = Instant::now();
    let before = writer.count();
    cluster.must(&["dev", "start", "node-5"]);
    let mut told = 0;
    let nodes = wait::until("all nodes to be filled alike", WITHIN, || {
        let status = cluster.status()?;
        // Every copy is in sync elsewhere before it leaves: no chunk is ever degraded.
        assert_eq!(status["chunks"]["degraded"], 0, "{status:#}");
        let nodes = status["nodes"].as_array()?.clone();
        let at_rest = nodes.iter().all(|node| node["balance"].is_null() && node["state"] == "up");
        told += usize::from(!nodes.iter().all(|node| node["balance"].is_null()));
        let levels = levels(&nodes);
        let spread = levels.iter().max()? - levels.iter().min()?;
        (at_rest && spread <= 1_000).then_some(nodes)
    });
    let took = began.elapsed();
    let added = nodes.iter().find(|node| node["id"] == "node-5").unwrap();
    assert!(added["replicas"].as_u64().unwrap() >= 20, "{added:#}");
    assert!(told > 0, "the status says what moves");
    for chunk in cluster.chunks("spread") {
        assert_eq!(chunk["in_sync"].as_array().unwrap().len(), 3, "{chunk:#}");
    }
    let written = writer.count() - before;
    assert!(written > 0, "writes went on");
    let seen = writer.finish();
    assert_eq!(seen.error, None);
    writer::assert_there(&file, &seen);
    eprintln!(
        "balanced in {} ms: {:?}, {written} writes meanwhile, the longest {} ms",
        took.as_millis(),
        levels(&nodes),
        seen.longest_since(began).as_millis()
    );
}
