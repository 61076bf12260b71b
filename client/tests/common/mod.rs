//! A device in memory behind the same queue as a volume, and helpers for tests with real tools.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "test support"
)]

use ashlar_client::device::{
    BlockDevice, Completion, Content, DeviceInfo, Io, IoError, Piece, Submission,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const BLOCK: u64 = 4096;

/// A server in a thread of its own: an in-memory device and what exports it.
pub(crate) struct Server {
    pub(crate) device: BlockDevice,
    pub(crate) dir: tempfile::TempDir,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(size_bytes: u64, read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut submissions) = tokio::sync::mpsc::channel::<Submission>(64);
        let info = DeviceInfo { name: "demo".to_owned(), read_only };
        let (_, size) = tokio::sync::watch::channel(size_bytes);
        let device = BlockDevice { info: Arc::new(info), size, queue };
        let stop = CancellationToken::new();
        let (stopped, exported, socket) =
            (stop.clone(), device.clone(), dir.path().join("nbd.sock"));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let memory = async move {
                    let mut memory = Memory { size_bytes, blocks: BTreeMap::new() };
                    while let Some(submission) = submissions.recv().await {
                        let mut done = vec![];
                        for command in submission.commands {
                            let result = memory.carry_out(command.io);
                            done.push(Completion { tag: command.tag, result });
                        }
                        submission.sink.complete(&mut done);
                    }
                };
                let serve = ashlar_client::export::nbd::serve(exported, &socket, stopped.clone());
                tokio::select! {
                    () = memory => {}
                    served = serve => served.unwrap(),
                }
            });
        });
        let server = Self { device, dir, stop, thread: Some(thread) };
        wait_for("the NBD socket", || server.socket().exists());
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///demo?socket={}", self.socket().display())
    }

    pub(crate) fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Memory {
    size_bytes: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Memory {
    fn carry_out(&mut self, io: Io) -> Result<Content, IoError> {
        match io {
            Io::Flush => {}
            Io::Read { offset, len } => return self.read(offset, len),
            Io::Write { offset, data } => {
                self.check(offset, data.len() as u64)?;
                let mut rest = &data[..];
                let mut at = offset;
                while !rest.is_empty() {
                    let from = usize::try_from(at % BLOCK).unwrap();
                    let (piece, behind) = rest.split_at(rest.len().min(4096 - from));
                    let block = self.blocks.entry(at / BLOCK).or_insert_with(|| vec![0; 4096]);
                    block[from..from + piece.len()].copy_from_slice(piece);
                    at += piece.len() as u64;
                    rest = behind;
                }
            }
            Io::Zero { offset, len } => {
                self.check(offset, len)?;
                let end = offset + len;
                let whole = offset.div_ceil(BLOCK)..end / BLOCK;
                if !whole.is_empty() {
                    let gone: Vec<_> = self.blocks.range(whole).map(|(b, _)| *b).collect();
                    gone.iter().for_each(|block| drop(self.blocks.remove(block)));
                }
                for edge in [offset / BLOCK, end / BLOCK] {
                    let Some(block) = self.blocks.get_mut(&edge) else { continue };
                    let base = edge * BLOCK;
                    let from = usize::try_from(offset.max(base) - base).unwrap();
                    let to = usize::try_from(end.min(base + BLOCK).max(base) - base).unwrap();
                    if from < to {
                        block[from..to].fill(0);
                    }
                }
            }
        }
        Ok(Content::default())
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size_bytes && len > 0);
        end.map(|_| ()).ok_or(IoError::OutOfRange)
    }

    fn read(&self, offset: u64, len: u32) -> Result<Content, IoError> {
        self.check(offset, u64::from(len))?;
        let end = offset + u64::from(len);
        let mut pieces = vec![];
        let mut at = offset;
        while at < end {
            let next = end.min((at / BLOCK + 1) * BLOCK);
            let from = usize::try_from(at % BLOCK).unwrap();
            let len = u32::try_from(next - at).unwrap();
            let data = self
                .blocks
                .get(&(at / BLOCK))
                .map(|b| Bytes::copy_from_slice(&b[from..from + len as usize]));
            pieces.push(Piece { len, data });
            at = next;
        }
        Ok(Content { pieces })
    }
}

/// Waits for a condition, bounded.
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Whether the tools and rights are here. If not: SKIP with the reason, or failure in CI.
pub(crate) fn have(needs: &[&str]) -> bool {
    for need in needs {
        let there = match *need {
            "root" => nix_is_root(),
            "/dev/fuse" | "/dev/loop-control" => Path::new(need).exists(),
            tool => std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path).any(|dir| dir.join(tool).exists())
            }),
        };
        if !there {
            assert!(std::env::var_os("ASHLAR_CI").is_none(), "CI must have {need}");
            println!("SKIP: {need} is absent");
            return false;
        }
    }
    true
}

fn nix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Runs a tool to its end, which must be good; gives what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a tool to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Bytes that look random, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
