//! Finds the `ashlar` binary under test, building it once if need be.
//!
//! `ASHLAR_BIN` names another one (a release build, say). Without it cargo builds the binary in the
//! profile of the tests, with the features of the whole workspace so that nothing is compiled
//! twice.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The binary under test.
pub fn ashlar() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("ASHLAR_BIN") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

/// Runs the binary with `arguments` and gives what it printed.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(ashlar()).args(arguments).env("NO_COLOR", "1").output().expect("run the binary")
}

fn build() -> PathBuf {
    let root = repository();
    let output = Command::new(env!("CARGO"))
        .current_dir(&root)
        .args(["build", "--quiet", "--workspace", "--bin", "ashlar"])
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "build: {}", String::from_utf8_lossy(&output.stderr));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    root.join(target).join("debug/ashlar")
}

/// The root of the repository: a real file tree to copy about.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}
