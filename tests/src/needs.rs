//! What a test needs from its host, and what happens where the host lacks it.

use std::path::Path;
use std::process::{Command, Stdio};

/// Something that not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The rights of root.
    Root,
    /// `/dev/fuse`.
    Fuse,
    /// Loop devices.
    Loop,
    /// A program in the path.
    Tool(&'static str),
}

impl Need {
    /// What is missing, if it is.
    fn missing(self) -> Option<String> {
        match self {
            Need::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned()),
            Need::Fuse => missing_path("/dev/fuse"),
            Need::Loop => missing_path("/dev/loop-control"),
            Need::Tool(name) => (!has_tool(name)).then(|| format!("no {name} in the path")),
        }
    }
}

fn missing_path(path: &str) -> Option<String> {
    (!Path::new(path).exists()).then(|| format!("no {path}"))
}

fn has_tool(name: &str) -> bool {
    Command::new("sh")
        .args(["-c", "command -v \"$0\"", name])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Everything that a mounted file system needs.
pub const MOUNT: &[Need] =
    &[Need::Root, Need::Fuse, Need::Loop, Need::Tool("losetup"), Need::Tool("mount")];

/// Everything that a network of its own with rules of its own needs.
pub const NETWORK: &[Need] =
    &[Need::Root, Need::Tool("ip"), Need::Tool("ss"), Need::Tool("nft"), Need::Tool("nsenter")];

/// True when the host has it all. Otherwise says what is missing, which in CI is a failure.
#[must_use]
pub fn has_all(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return true;
    }
    let reason = missing.join(", ");
    assert!(std::env::var_os("ASHLAR_CI").is_none(), "{test} cannot run in CI: {reason}");
    eprintln!("SKIP {test}: {reason}");
    false
}
