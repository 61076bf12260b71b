//! `ashlar dev` as the README promises it: ready at once, and the same data next time.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::time::Duration;

use ashlar_tests::cluster::{Cluster, is_mounted};
use ashlar_tests::{binary, needs, tree};

/// The goal is 5 s on two idle cores and a release build; tests share cores with the compiler.
const READY_WITHIN: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 5 });

#[test]
fn the_demo_volume_keeps_a_file_tree_through_a_stop_and_a_start() {
    if !needs::has_all("dev", needs::MOUNT) {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    assert!(is_mounted(&cluster.mount_point()), "{}", cluster.said());
    let wanted = tree::read(&binary::repository());
    assert!(wanted.len() > 50, "the repository has {} files", wanted.len());
    let copy = cluster.mount_point().join("repository");
    tree::write(&copy, &wanted);
    cluster.stop();

    let ready = cluster.start_again();
    eprintln!("dev was ready again, with the volume mounted, after {ready:?}");
    assert!(ready < READY_WITHIN, "ready after {ready:?}");
    assert!(is_mounted(&cluster.mount_point()), "{}", cluster.said());
    tree::assert_same(&wanted, &tree::read(&copy));
    let volumes: serde_json::Value =
        serde_json::from_str(&cluster.must(&["volume", "list", "-o", "json"])).unwrap();
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 1, "{volumes}");
    cluster.stop();
}

#[test]
fn a_second_dev_in_the_same_folder_is_refused() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    let folder = cluster.folder();
    let output = binary::run(&["dev", "--dir", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("another `ashlar dev` is running"), "{error}");
    cluster.stop();
}

#[test]
fn status_shows_the_zone_in_every_format() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.wait_whole(Duration::from_secs(60));
    let table = cluster.must(&["status"]);
    assert!(table.contains("zone a: ok"), "{table}");
    assert!(table.contains("demo"), "{table}");
    let status = cluster.status().unwrap();
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 4);
    assert!(cluster.must(&["status", "-o", "yaml"]).starts_with("zone: a"));
    assert!(cluster.must(&["node", "list"]).contains("node-4"));
    cluster.stop();
}
