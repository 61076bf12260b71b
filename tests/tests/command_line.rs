//! The command line as scripts and terminals meet it: exit codes, formats, pipes, refusals.
#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::{binary, needs};

/// How long a process may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Runs a command whose standard output nobody reads from the start.
fn assert_quiet_on_a_closed_pipe(command: &mut Command) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "", "{command:?}");
    // SIGPIPE, as the shell's own tools end; help has succeeded either way.
    let ended = output.status.success() || output.status.signal() == Some(13);
    assert!(ended, "{command:?}: {}", output.status);
}

#[test]
fn a_closed_pipe_ends_a_command_without_noise() {
    for arguments in [
        &["--help"][..],
        &["dev", "--help"],
        &["--version"],
        &["reference"],
        &["completions", "bash"],
        &["sim", "scenarios"],
        &["sim", "run", "--storm", "10ms"],
    ] {
        assert_quiet_on_a_closed_pipe(Command::new(binary::ashlar()).args(arguments));
    }
}

#[test]
fn what_cannot_be_written_and_who_does_not_answer_have_codes_of_their_own() {
    // Nobody makes folders in /proc, root neither.
    let (code, error) = alone(&["man", "/proc/none/man"]);
    assert_eq!(code, 1, "{error}");
    let (code, error) = alone(&["umount", "/no/such/folder"]);
    assert_eq!(code, 3, "{error}");
    // Connections are taken by the host; nobody ever answers on them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let (code, error) = alone(&["volume", "list", "--timeout", "1", "--endpoint", &endpoint]);
    assert_eq!(code, 7, "{error}");
}

/// The disk with the logs is full: lines are lost, and nothing else.
#[test]
fn a_log_that_cannot_be_written_ends_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let mut daemon = Command::new(binary::ashlar())
        .args(["attach", "none", "--foreground", "--endpoint", &endpoint])
        .env("ASHLAR_LOG", "trace")
        .env("ASHLAR_ATTACH_DIR", folder.path())
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .spawn()
        .unwrap();
    // It has logged a lot by the time at which it calls.
    let (called, calls) = std::sync::mpsc::channel();
    std::thread::spawn(move || called.send(listener.accept().is_ok()));
    let has_called = calls.recv_timeout(PATIENCE);
    daemon.kill().unwrap();
    assert_eq!(daemon.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(has_called, Ok(true));
}

#[test]
fn man_pages_are_written_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("man1");
    let (code, error) = alone(&["man", place.to_str().unwrap()]);
    assert_eq!(code, 0, "{error}");
    for page in ["ashlar.1", "ashlar-volume-create.1", "ashlar-controlplane-add.1"] {
        let text = std::fs::read_to_string(place.join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}: {text}");
    }
    assert!(!place.join("ashlar-reference.1").exists(), "it is hidden");
    let top = std::fs::read_to_string(place.join("ashlar.1")).unwrap();
    assert!(top.contains("no answer in time"), "exit codes are missing: {top}");
}

/// What bash offers for a line whose last word is being typed.
fn bash_offers(cluster: &Cluster, line: &[&str]) -> Vec<String> {
    let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(\"$0\" completions bash); COMP_WORDS=({}); COMP_CWORD={}; COMP_TYPE=9; \
         _clap_complete_ashlar ashlar {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        line.len() - 1,
        words.last().unwrap(),
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .arg(binary::ashlar())
        .env("ASHLAR_DEV_DIR", cluster.folder())
        .env_remove("ASHLAR_ENDPOINT")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "", "{line:?}");
    let offers = String::from_utf8_lossy(&output.stdout).into_owned();
    offers.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_what_there_is_and_conflicts_and_no_room_have_codes() {
    let mut cluster = Cluster::start(&["--no-mount", "--members", "1", "--nodes", "3"]);
    let create = ["volume", "create", "day-book", "--size", "64MiB"];
    cluster.must(&create);
    let (code, _, error) = cluster.ashlar(&create);
    assert_eq!(code, 4, "{error}");
    let (code, _, error) =
        cluster.ashlar(&["volume", "create", "many", "--size", "1MiB", "--copies", "5"]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("[INSUFFICIENT_VOLUME_CAPACITY]"), "{error}");
    let (code, _, error) = cluster.ashlar(&["volume", "show", "nothing"]);
    assert_eq!(code, 3, "{error}");
    let made = ["volume", "create", "waited", "--size", "64MiB", "--wait", "-o", "json"];
    assert!(cluster.must(&made).contains("\"state\": \"available\""));
    let dry = cluster.must(&["volume", "delete", "waited", "--dry-run"]);
    assert!(dry.starts_with("dry run: vol-a-"), "{dry}");
    cluster.must(&["volume", "show", "waited"]);
    let gone = cluster.must(&["volume", "delete", "waited"]);
    assert!(gone.starts_with("deleted vol-a-"), "{gone}");
    let mut list = Command::new(binary::ashlar());
    list.args(["volume", "list"]).env("ASHLAR_DEV_DIR", cluster.folder());
    assert_quiet_on_a_closed_pipe(&mut list);

    if needs::has_all("completions", &[needs::Need::Tool("bash")]) {
        assert_eq!(bash_offers(&cluster, &["ashlar", "volume", "cr"]), ["create"]);
        assert_eq!(bash_offers(&cluster, &["ashlar", "volume", "show", "day"]), ["day-book"]);
        let ids = bash_offers(&cluster, &["ashlar", "volume", "delete", "vol-"]);
        assert_eq!(ids.len(), 2, "{ids:?}");
        assert_eq!(bash_offers(&cluster, &["ashlar", "volume", "list", "--zone", ""]), ["a"]);
        let nodes = bash_offers(&cluster, &["ashlar", "node", "show", "node-"]);
        assert_eq!(nodes, ["node-1", "node-2", "node-3"]);
        assert_eq!(bash_offers(&cluster, &["ashlar", "dev", "kill", "member"]), ["member-1"]);
        let elsewhere = ["ashlar", "--endpoint", "127.9.9.9:1", "volume", "show", "d"];
        assert!(bash_offers(&cluster, &elsewhere).is_empty(), "nobody is there");
    }
    cluster.stop();
}
