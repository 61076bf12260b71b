//! All replicas of a volume that were in sync are lost for ever: an operator has the stale one take
//! over. What was acknowledged before it left is there, and what is lost is named; who was in sync
//! comes back with an empty store, or not.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ashlar_tests::cluster::Cluster;
use ashlar_tests::{needs, wait};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(90);
const BLOCK: usize = 4096;
/// Blocks of each of the two parts of the file that are written.
const PART: usize = 64;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Writes a part of the volume; it is acknowledged and flushed when this returns.
fn write(path: &Path, part: usize, byte: u8) {
    let file = open(path);
    file.write_all_at(&vec![byte; PART * BLOCK], (part * PART * BLOCK) as u64).unwrap();
    file.sync_all().unwrap();
}

fn read(path: &Path, part: usize) -> Vec<u8> {
    let mut bytes = vec![0; PART * BLOCK];
    open(path).read_exact_at(&mut bytes, (part * PART * BLOCK) as u64).unwrap();
    bytes
}

fn is_all(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().all(|one| *one == byte)
}

/// Names in a list of the only chunk.
fn named(chunk: &Value, list: &str) -> Vec<String> {
    let names = chunk[list].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn wait_for_state(cluster: &Cluster, node: &str, state: &str) {
    wait::until(&format!("{node} to be {state}"), WITHIN, || {
        let status = cluster.status()?;
        let nodes = status["nodes"].as_array()?;
        nodes.iter().any(|one| one["id"] == node && one["state"] == state).then_some(())
    });
}

/// Kills all holders of the volume's chunk; gives those that were in sync at the end, and the one that
/// became stale first. Of the two that are killed together, one may be elected before it is found dead
/// itself: then that one alone was in sync.
fn lose_all_in_sync(cluster: &Cluster, file: &Path) -> (Vec<String>, String) {
    let chunk = &cluster.chunks("vital")[0];
    let primary = chunk["primary"].as_str().unwrap().to_owned();
    let secondaries = named(chunk, "in_sync").into_iter().filter(|name| *name != primary);
    let [second, stale] = secondaries.collect::<Vec<_>>().try_into().unwrap();
    cluster.must(&["dev", "kill", &stale]);
    // Written when the third is gone already: this is what will be lost.
    write(file, 1, 0x22);
    wait::until("the killed node's copy to be stale", WITHIN, || {
        (named(&cluster.chunks("vital")[0], "stale") == [stale.clone()]).then_some(())
    });
    cluster.must(&["dev", "kill", &primary, &second]);
    wait_for_state(cluster, &primary, "dead");
    wait_for_state(cluster, &second, "dead");
    (named(&cluster.chunks("vital")[0], "in_sync"), stale)
}

/// A refused salvage; gives the stable reason and the words.
fn refused(cluster: &Cluster, more: &[&str]) -> (String, String) {
    let arguments = [&["volume", "salvage", "vital", "-o", "json"], more].concat();
    let (code, _, error) = cluster.ashlar(&arguments);
    assert_eq!(code, 4, "{error}");
    let said: Value = serde_json::from_str(&error).unwrap();
    (said["error"]["reason"].as_str().unwrap().to_owned(), error)
}

fn salvage(cluster: &Cluster, more: &[&str]) -> Value {
    let arguments = [&["volume", "salvage", "vital", "-o", "json"], more].concat();
    serde_json::from_str(&cluster.must(&arguments)).unwrap()
}

#[test]
fn a_stale_copy_serves_again_on_an_operators_word_and_nobody_fenced_comes_back() {
    if !needs::has_all("salvage", &[needs::Need::Fuse]) {
        return;
    }
    let cluster = Cluster::start(&["--no-mount", "--nodes", "5"]);
    cluster.must(&["volume", "create", "vital", "--size", "4MiB"]);
    cluster.must(&["attach", "vital"]);
    let file = cluster.fuse_file("vital");
    write(&file, 0, 0x11);
    write(&file, 1, 0x11);
    let (in_sync, stale) = lose_all_in_sync(&cluster, &file);
    let first = &in_sync[0];
    cluster.must(&["dev", "start", &stale]);
    wait_for_state(&cluster, &stale, "up");

    // Without a word about who was in sync, and against the evidence, nothing is done.
    let (reason, words) = refused(&cluster, &[]);
    assert_eq!(reason, "NODE_NOT_FENCED", "{words}");
    assert!(in_sync.iter().all(|node| words.contains(node)), "{words}");
    let (reason, words) = refused(&cluster, &["--fenced", &stale]);
    assert_eq!(reason, "NODE_LIVES", "{words}");
    let fenced: Vec<&str> = in_sync.iter().flat_map(|node| ["--fenced", node.as_str()]).collect();
    let before = cluster.chunks("vital")[0].clone();
    // Its peers may not have found the one that is back yet.
    let plan = wait::until("somebody who can take over", WITHIN, || {
        let plan = salvage(&cluster, &[&fenced[..], &["--dry-run"]].concat());
        (plan["chunks"][0]["step"] == "takes-over").then_some(plan)
    });
    assert_eq!(plan["chunks"][0]["node"], Value::from(stale.clone()), "{plan:#}");
    assert_eq!(plan["revoked"].as_array().unwrap().len(), in_sync.len(), "{plan:#}");
    assert_eq!(cluster.chunks("vital")[0], before, "a dry run changed something");

    let began = Instant::now();
    let done = salvage(&cluster, &fenced);
    assert_eq!(done["volume"]["attachment"], Value::Null, "{done:#}");
    assert_eq!(done["volume"]["chunks_at_risk"], 1, "{done:#}");
    // Who had the volume has it no more: it gives up what it has, and attaches anew.
    cluster.must(&["detach", "vital"]);
    cluster.must(&["attach", "vital"]);
    let file = cluster.fuse_file("vital");
    assert!(is_all(&read(&file, 0), 0x11), "what was complete before is there");
    let lost = read(&file, 1);
    assert!(is_all(&lost, 0x11), "what was written since is lost, and what was before is there");
    // Writes go on once another node has been filled from it.
    write(&file, 1, 0x33);
    eprintln!("salvage: from the command to the first write {:?}", began.elapsed());
    let chunk = cluster.chunks("vital")[0].clone();
    assert_eq!(chunk["primary"], Value::from(stale.clone()), "{chunk:#}");
    assert!(chunk["complete_to"].as_u64().is_some(), "{chunk:#}");
    let shown = cluster.must(&["volume", "show", "vital"]);
    assert!(shown.contains("at risk: 1 chunks of vital"), "{shown}");
    let status = cluster.must(&["status"]);
    assert!(status.contains("at risk: 1 chunks of vital"), "{status}");

    // One that was fenced runs after all: it is refused by name, ends, and does not start again.
    cluster.must(&["dev", "start", first]);
    let log = cluster.folder().join(format!("log/{first}.log"));
    for words in ["the control plane refuses this node", "the store in"] {
        wait::until("the fenced node to be refused", WITHIN, || {
            fs::read_to_string(&log).ok()?.contains(words).then_some(())
        });
    }
    cluster.must(&["dev", "kill", first]);
    wait_for_state(&cluster, first, "dead");
    // With an empty store it is welcome.
    wait::until("it to have ended", WITHIN, || cluster.pid(first).is_none().then_some(()));
    fs::remove_dir_all(cluster.folder().join(format!("data/{first}"))).unwrap();
    cluster.must(&["dev", "start", first]);
    wait_for_state(&cluster, first, "up");

    cluster.must(&["volume", "salvage", "vital", "--acknowledge"]);
    let shown = cluster.must(&["volume", "show", "vital"]);
    assert!(!shown.contains("at risk"), "{shown}");
    let (reason, words) = refused(&cluster, &[]);
    assert_eq!(reason, "NOTHING_TO_SALVAGE", "{words}");
    assert!(is_all(&read(&file, 1), 0x33));
    cluster.must(&["detach", "vital"]);
}
