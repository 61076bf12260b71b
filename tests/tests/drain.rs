//! A node is drained under load, by real processes: everything moves, the node can be stopped, nothing
//! that was acknowledged is lost; and what cannot be done is refused by name.
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
/// Chunks of the volume: each node of four holds some as primary, and some as secondary.
const CHUNKS: u64 = 8;
const WITHIN: Duration = Duration::from_secs(120);

/// Nodes that a chunk names, in whatever part.
fn holders(chunk: &Value) -> Vec<String> {
    let lists = ["in_sync", "learners", "stale"];
    let named = lists.iter().filter_map(|list| chunk[list].as_array()).flatten();
    named.map(|node| node.as_str().unwrap().to_owned()).collect()
}

fn drain(cluster: &Cluster, node: &str, more: &[&str]) -> Value {
    let arguments = [&["node", "drain", node, "-o", "json"], more].concat();
    serde_json::from_str(&cluster.must(&arguments)).unwrap()
}

fn refused(cluster: &Cluster, node: &str) -> (String, String) {
    let (code, _, error) = cluster.ashlar(&["node", "drain", node, "-o", "json"]);
    let said: Value = serde_json::from_str(&error).unwrap();
    let reason = said["error"]["reason"].as_str().unwrap_or_default().to_owned();
    assert_ne!(code, 0, "{error}");
    (reason, error)
}

#[test]
fn a_node_is_drained_under_load_stopped_and_put_to_use_again() {
    if !needs::has_all("drain", &[needs::Need::Fuse]) {
        return;
    }
    let cluster = Cluster::start(&["--no-mount", "--nodes", "4"]);
    cluster.must(&["volume", "create", "moved", "--size", "512MiB", "--chunk-size", "64MiB"]);
    cluster.must(&["attach", "moved"]);
    let file = cluster.fuse_file("moved");
    let writer = Writer::start_apart(&file, CHUNKS, CHUNK_BLOCKS);
    wait::until("the writer to write", WITHIN, || (writer.count() > 200).then_some(()));
    let node = cluster.chunks("moved")[0]["primary"].as_str().unwrap().to_owned();

    let planned = drain(&cluster, &node, &["--dry-run"]);
    assert!(planned["copies"].as_u64().unwrap() > 0, "{planned:#}");
    assert!(planned["node"]["drain"].is_null(), "a dry run changes nothing: {planned:#}");
    let began = Instant::now();
    let before = writer.count();
    // Every copy is in sync elsewhere before it leaves: no chunk is ever degraded.
    drain(&cluster, &node, &["--client-token", "drain-it"]);
    let drained = wait::until("the node to be drained", WITHIN, || {
        let status = cluster.status()?;
        let chunks = &status["chunks"];
        assert_eq!(chunks["degraded"], 0, "{status:#}");
        let nodes = status["nodes"].as_array()?.clone();
        nodes.into_iter().find(|one| one["id"] == *node && one["drain"]["done"] == true)
    });
    let took = began.elapsed();
    assert_eq!((&drained["replicas"], &drained["primaries"]), (&0.into(), &0.into()));
    for chunk in cluster.chunks("moved") {
        assert!(!holders(&chunk).contains(&node), "{chunk:#}");
        assert_eq!(chunk["in_sync"].as_array().unwrap().len(), 3, "{chunk:#}");
    }
    let written = writer.count() - before;
    assert!(written > 0, "writes went on");
    // The same call again is the same drain; waiting for it returns at once.
    drain(&cluster, &node, &["--client-token", "drain-it"]);
    drain(&cluster, &node, &["--wait"]);

    // The three that are left hold everything: none of them can go.
    let others = (1..=4).map(|number| format!("node-{number}"));
    for other in others.filter(|other| *other != node) {
        let (reason, words) = refused(&cluster, &other);
        assert_eq!(reason, "NO_NEW_HOME", "{words}");
        assert!(words.contains("vol-") && words.contains("add a node"), "{words}");
    }
    assert_eq!(refused(&cluster, "node-9").0, "", "named before anybody is asked");

    // It can be stopped, and nobody misses it.
    cluster.must(&["dev", "stop", &node]);
    let stopped = writer.count();
    wait::until("writes without it", WITHIN, || (writer.count() > stopped + 200).then_some(()));
    let seen = writer.finish();
    assert_eq!(seen.error, None);
    writer::assert_there(&file, &seen);
    let longest = seen.longest_since(began).as_millis();
    eprintln!(
        "drained in {} ms, {written} writes meanwhile, the longest {longest} ms",
        took.as_millis()
    );

    cluster.must(&["dev", "start", &node]);
    let back = drain(&cluster, &node, &["--cancel"]);
    assert!(back["node"]["drain"].is_null(), "{back:#}");
    wait::until("a new volume to use it", WITHIN, || {
        let made = ["volume", "create", "new", "--size", "512MiB", "--chunk-size", "64MiB"];
        if cluster.ashlar(&made).0 != 0 {
            return None;
        }
        let uses = cluster.chunks("new").iter().any(|chunk| holders(chunk).contains(&node));
        cluster.must(&["volume", "delete", "new"]);
        uses.then_some(())
    });
}
