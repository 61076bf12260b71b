//! The command line as scripts and terminals meet it: exit codes, formats, pipes, refusals.
#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::process::{Command, Stdio};

use ashlar_tests::binary;

/// Exit code and standard error of a command that has no cluster to talk to.
fn alone(arguments: &[&str]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(binary::ashlar())
        .args(arguments)
        .env_remove("ASHLAR_ENDPOINT")
        .env("ASHLAR_DEV_DIR", folder.path().join("none"))
        .output()
        .unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn help_and_version_succeed_and_nonsense_is_a_usage_error() {
    assert_eq!(alone(&["--help"]).0, 0);
    assert_eq!(alone(&["--version"]).0, 0);
    for wrong in [
        &["frobnicate"][..],
        &["volume", "create", "x", "--size", "many"],
        &["volume", "create", "x"],
        &["dev", "--zones", "4"],
        &["dev", "--members", "2"],
        &["dev", "--nodes", "0"],
        &["status", "-o", "xml"],
        &["status", "--endpoint", "http://["],
    ] {
        assert_eq!(alone(wrong).0, 2, "{wrong:?}");
    }
}

#[test]
fn without_a_cluster_a_command_says_what_to_do() {
    let (code, error) = alone(&["status"]);
    assert_eq!(code, 2);
    assert!(error.contains("try: ashlar dev"), "{error}");
}

#[test]
fn a_process_of_no_cluster_cannot_be_stopped() {
    let (code, error) = alone(&["dev", "kill", "node-1"]);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("no `ashlar dev` runs"), "{error}");
}

#[test]
fn nobody_at_the_endpoint_is_unavailable_in_words_and_in_json() {
    // Port 1 of a loopback address that nothing uses: refused at once.
    let endpoint = "127.9.9.9:1";
    let list = ["volume", "list", "--timeout", "1", "--endpoint", endpoint];
    let (code, error) = alone(&list);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("try: "), "{error}");
    let (code, error) = alone(&[&list[..], &["-o", "json"]].concat());
    let value: serde_json::Value = serde_json::from_str(&error).unwrap();
    assert_eq!((code, &value["exit_code"]), (6, &serde_json::json!(6)));
}

#[test]
fn a_closed_pipe_ends_a_command_without_noise() {
    let mut child = Command::new(binary::ashlar())
        .args(["dev", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("panicked"), "{error}");
}
