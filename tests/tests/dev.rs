//! `ashlar dev` as the README promises it: ready at once, and the same data next time.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::time::Duration;

use ashlar_tests::cluster::{Cluster, is_mounted};
use ashlar_tests::{binary, needs, tree, wait};

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
fn three_zones_start_together_and_one_that_is_off_is_named() {
    let mut cluster = Cluster::start_region(&["--members", "1", "--nodes", "3", "--no-mount"]);
    let status = cluster.region_status().unwrap();
    let zones = status["zones"].as_array().unwrap();
    let names: Vec<_> = zones.iter().map(|zone| zone["zone"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(zones.iter().all(|zone| zone["nodes"].as_array().unwrap().len() == 3), "{status:#}");

    // A volume of zone b, made and shown through whichever member answers.
    cluster.must(&["volume", "create", "second", "--zone", "b", "--size", "64MiB"]);
    let shown = cluster.must(&["volume", "show", "second", "-o", "json"]);
    assert!(shown.contains("\"vol-b-"), "{shown}");
    let (code, _, error) = cluster.ashlar(&["dev", "kill", "node-1"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("a-node-1, b-node-1, c-node-1"), "{error}");

    cluster.must(&["dev", "kill", "b-member-1"]);
    let listed = wait::until("zone b to be missing", Duration::from_secs(30), || {
        let list = cluster.must(&["volume", "list"]);
        list.contains("zone b is missing").then_some(list)
    });
    assert!(listed.contains("demo") && !listed.contains("second"), "{listed}");
    cluster.must(&["volume", "create", "third", "--zone", "c", "--size", "64MiB"]);
    let (code, _, error) =
        cluster.ashlar(&["volume", "create", "x", "--zone", "b", "--size", "1MiB"]);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("ZONE_UNREACHABLE"), "{error}");
    cluster.must(&["dev", "start", "b-member-1"]);
    wait::until("zone b to be back", Duration::from_secs(60), || {
        let (code, list, _) = cluster.ashlar(&["volume", "list"]);
        (code == 0 && list.contains("second") && !list.contains("missing")).then_some(())
    });
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
    assert!(cluster.must(&["status", "-o", "yaml"]).contains("zone: a"));
    assert!(cluster.must(&["node", "list"]).contains("node-4"));
    cluster.stop();
}
