//! A network of its own for a cluster: loopback alone, and rules that hurt nobody else.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers the networks of one test process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace, taken down when it is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one, with its loopback up.
    #[must_use]
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Self { name: format!("ashlar-{}-{number}", std::process::id()) };
        run(Command::new("ip").args(["netns", "add", &netns.name]));
        run(Command::new("ip").args(["-n", &netns.name, "link", "set", "lo", "up"]));
        netns
    }

    /// A program, to be run in it. Mounts and files are those of the test.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program.as_ref());
        command
    }

    /// Runs a program in it to its end; gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        run(self.command(program).args(arguments))
    }

    /// Gives `nft` a script.
    pub fn nft(&self, script: &str) {
        run(self.command("nft").arg(script));
    }

    /// Bytes that a named counter of table `ip ashlar` has seen.
    #[must_use]
    pub fn counted(&self, counter: &str) -> u64 {
        let text = self.run("nft", &["-j", "list", "counter", "ip", "ashlar", counter]);
        let parsed: serde_json::Value = serde_json::from_str(&text).expect("nft prints JSON");
        let found = parsed["nftables"].as_array().into_iter().flatten();
        let bytes = found.filter_map(|item| item["counter"]["bytes"].as_u64()).next();
        bytes.expect("the counter is there")
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Its processes may hold it for a moment longer; the name goes at once.
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("run a program");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
