//! `ashlar doctor` on a zone of real processes: nothing wrong at first, then what was broken by hand.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends by a panic"
)]

use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::wait;
use serde_json::Value;

/// Exit code and report.
fn doctor(cluster: &Cluster) -> (i32, Value) {
    let (code, report, error) = cluster.ashlar(&["doctor", "-o", "json"]);
    let report = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{report}{error}"));
    (code, report)
}

/// Outcome and words of the check of that name.
fn check<'a>(report: &'a Value, code: &str) -> (&'a str, &'a str) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["code"] == code);
    let check = check.unwrap_or_else(|| panic!("no check {code}: {report:#}"));
    (check["outcome"].as_str().unwrap(), check["found"].as_str().unwrap())
}

#[test]
fn what_is_broken_in_a_zone_is_found_with_its_remedy() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.wait_whole(Duration::from_secs(60));
    let (code, report) = doctor(&cluster);
    assert_eq!(code, 0, "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 50, "{}", checks.len());
    // What depends on this host alone may be a warning; the zone's own state is not.
    for check in checks.iter().filter(|check| check["about"] == "zone a") {
        let late = check["code"] == "ZONE_HEARTBEATS";
        assert!(late || check["outcome"] == "ok", "{check}");
    }

    let health = cluster.must(&["health", "-o", "json"]);
    let health: Value = serde_json::from_str(&health).unwrap();
    assert!(health["health"] == "ok" || !health["checks"].as_array().unwrap().is_empty());

    cluster.must(&["dev", "kill", "node-4", "attach-demo"]);
    let leader = cluster.status().unwrap()["leader"].as_u64().unwrap();
    let follower = format!("member-{}", leader % 3 + 1);
    cluster.must(&["dev", "kill", &follower]);
    let report = wait::until("the doctor to see it", Duration::from_secs(30), || {
        let (code, report) = doctor(&cluster);
        let seen = check(&report, "ZONE_NODES_UP").0 == "warning"
            && check(&report, "ZONE_QUORUM").0 == "warning"
            && check(&report, "ATTACHED_DAEMON").0 == "failure";
        (seen && code == 1).then_some(report)
    });
    assert!(check(&report, "ZONE_NODES_UP").1.contains("node-4"), "{report:#}");
    assert_eq!(check(&report, "REGION_MEMBERS_ANSWER").0, "warning", "{report:#}");
    assert_eq!(check(&report, "ZONE_SPARE_NODE").0, "warning", "{report:#}");
    for check in report["checks"].as_array().unwrap() {
        let is_bad = check["outcome"] == "warning" || check["outcome"] == "failure";
        let remedy = check["remedy"].as_str().unwrap_or_default();
        assert_eq!(is_bad, !remedy.is_empty(), "{check}");
    }
    let (code, table, error) = cluster.ashlar(&["doctor"]);
    assert_eq!(code, 1, "{table}");
    assert!(table.contains("ATTACHED_DAEMON of volume demo: ashlar attach demo"), "{table}");
    assert!(error.contains("ATTACHED_DAEMON of volume demo"), "{error}");

    let (code, words, _) = cluster.ashlar(&["health"]);
    assert_eq!(code, 0, "{words}");
    assert!(words.starts_with("warning\n") && words.contains("ZONE_NODES_UP"), "{words}");

    // With no control plane left the host's own checks are still made.
    cluster.must(&["dev", "kill", "member-1", "member-2", "member-3"]);
    let (code, report) = doctor(&cluster);
    assert_eq!(code, 1);
    assert_eq!(check(&report, "REGION_MEMBERS_ANSWER").0, "failure", "{report:#}");
    assert_eq!(check(&report, "CONFIG_FILES").0, "ok", "{report:#}");
    cluster.stop();
}
