//! Power cuts on a real file system: what was acknowledged is there after one.
//!
//! A writer works on a file system in an image in memory; at a random moment it is stopped, the
//! image as it is then is copied, the copy mounted and judged. What sat in the page cache is lost, as
//! at a power cut; a process kill would never show that. Judged are the three things that promise
//! durability: the metadata store (sled with our own syncs), the log, the node's store.
//!
//! The harness shows something only if the same judgement fails without a single sync. So these must lose,
//! each within a few cuts (`controls.rs`): sled opened as it is, the log without the fdatasync of its
//! segments, the store without that of its journal, its data, its map, its superblock.
//!
//! Needs the right to mount a loop device; without it the test says so and judges nothing.
//! Thirty cuts of the store, 750 with `ASHLAR_NIGHTLY` set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod controls;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::disk::{Disk, EngineChoice, RealDisk};
use ashlar_env::meta::{Found, MetaBatch, MetaStore, SledOptions, SledStore, SledTuning};
use ashlar_log::{Log, LogOptions};
use ashlar_node::store::{Events, Opened, Owner, ReadRequest, Store, StoreEvent, StoreOptions};
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkId, ChunkIndex, NodeId, Sums, VolumeId,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const SUBJECT: &str = "ASHLAR_POWER_CUT_SUBJECT";
const FOLDER: &str = "ASHLAR_POWER_CUT_FOLDER";
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks that the store's writer uses, round and round.
const BLOCKS: u64 = 1500;

/// Blocks of its large writes, which pass by the journal; every fourth is one.
const LARGE_BLOCKS: u32 = 64;

#[test]
fn the_metadata_store_keeps_what_was_flushed() {
    judge("sled", sized(3, 30));
}

#[test]
fn the_log_keeps_what_was_synced() {
    judge("log", sized(3, 30));
}

#[test]
fn the_store_keeps_what_was_reported_durable() {
    judge("store", sized(30, 750));
}

fn sized(ci: usize, nightly: usize) -> usize {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { nightly } else { ci }
}

/// Cuts power several times while `subject` writes, and expects no loss.
fn judge(subject: &str, cuts: usize) {
    let mut dice = SeededDice::system();
    let mut lost = Vec::new();
    for cut in 0..cuts {
        let Some(outcome) = judged(subject, cut, &mut dice) else { return };
        lost.extend(outcome.err());
    }
    assert!(lost.is_empty(), "{lost:?}");
}

/// One cut, on each of the file systems in turn: how much was kept, or what was lost; nothing where it
/// cannot be tried.
fn judged(subject: &str, cut: usize, dice: &mut SeededDice) -> Option<Result<u64, String>> {
    let file_system = if cut.is_multiple_of(2) { "ext4" } else { "xfs" };
    match cut_once(subject, file_system, dice) {
        Cut::NotPossible(why) => {
            let ci = std::env::var_os("ASHLAR_CI").is_some();
            assert!(!ci, "not judged, where it must be: {why}");
            eprintln!("SKIP: {why}");
            None
        }
        Cut::Judged(Ok(acknowledged)) => {
            eprintln!("{subject}, {file_system}: {acknowledged} kept");
            Some(Ok(acknowledged))
        }
        Cut::Judged(Err(what)) => Some(Err(format!("{subject}, {file_system}: {what}"))),
    }
}

enum Cut {
    NotPossible(String),
    /// Number of acknowledged writes found again, or what is missing.
    Judged(Result<u64, String>),
}

/// A mounted image; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path, file_system: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        // No periodic commit of ext4's own may do the writer's work.
        let options = if file_system == "ext4" { "loop,commit=300" } else { "loop,nouuid" };
        run(Command::new("mount").args(["-o", options]).arg(image).arg(at))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let now = run(Command::new("umount").arg(&self.0));
        // Something may still be letting go of it.
        if let Err(e) = now.or_else(|_| run(Command::new("umount").arg("-l").arg(&self.0))) {
            eprintln!("{e}");
        }
    }
}

/// The writer's process; killed when dropped.
struct Writer {
    child: Child,
    acknowledged: Receiver<u64>,
}

impl Writer {
    fn start(subject: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(SUBJECT, subject)
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tx, acknowledged) = channel();
        std::thread::spawn(move || {
            let numbers = lines.map_while(Result::ok);
            for n in numbers.filter_map(|l| l.strip_prefix("acknowledged ")?.parse().ok()) {
                if tx.send(n).is_err() {
                    return;
                }
            }
        });
        Self { child, acknowledged }
    }

    /// Waits for about `count` acknowledgements, then stops the process where it is.
    fn stop_after(&self, count: u64) -> u64 {
        let began = Instant::now();
        let mut last = 0;
        while last < count && began.elapsed() < PATIENCE {
            match self.acknowledged.recv_timeout(PATIENCE) {
                Ok(n) => last = n,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(id, Signal::SIGSTOP).unwrap();
        // The signal stops the threads one after the other; a thread that still ran while the image
        // is copied would be half before the cut and half after it.
        let stopped = waitpid(id, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        // What was said before the copy is made counts too.
        self.acknowledged.try_iter().last().unwrap_or(last)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("{command:?}: {e}")),
    }
}

fn cut_once(subject: &str, file_system: &str, dice: &mut SeededDice) -> Cut {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    // xfs refuses less than 300 MB.
    std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let made = run(Command::new(format!("mkfs.{file_system}")).arg("-q").arg(&image));
    let mounted = made.and_then(|()| Mounted::new(&image, &dir.path().join("live"), file_system));
    let mounted = match mounted {
        Ok(mounted) => mounted,
        Err(why) => return Cut::NotPossible(why),
    };
    let writer = Writer::start(subject, &mounted.0);
    let acknowledged = writer.stop_after(100 + dice.below(3000));
    run(Command::new("cp").arg("--sparse=always").arg(&image).arg(&copy)).unwrap();
    drop(writer);
    drop(mounted);
    let after = match Mounted::new(&copy, &dir.path().join("after"), file_system) {
        Ok(after) => after,
        Err(e) => panic!("the copy of a file system cannot be mounted: {e}"),
    };
    assert!(acknowledged > 0, "the writer did nothing");
    let outcome = match subject {
        "sled" => find_in_sled(&after.0, acknowledged),
        "log" | "log without a sync" => find_in_log(&after.0, acknowledged),
        "sled as it is" => controls::find_in_raw_sled(&after.0, acknowledged),
        _store => find_in_store(&after.0, acknowledged),
    };
    Cut::Judged(outcome.map(|()| acknowledged))
}

/// The writing process: this test does nothing unless the harness starts it.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = PathBuf::from(folder);
    match std::env::var(SUBJECT).unwrap().as_str() {
        "sled" => write_sled(&folder),
        "log" => write_log(open_log(&folder).unwrap()),
        "log without a sync" => write_log(controls::open_unsynced_log(&folder)),
        "sled as it is" => controls::write_raw_sled(&folder),
        store => write_store(store, &folder),
    }
}

fn acknowledge(n: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "acknowledged {n}").and_then(|()| out.flush()).unwrap();
}

fn value(n: u64) -> Vec<u8> {
    format!("value {n} ").into_bytes().repeat(1 + usize::try_from(n % 60).unwrap())
}

fn open_sled(folder: &Path) -> (SledStore, Found) {
    let options = SledOptions { folder: folder.join("meta"), tuning: SledTuning::default() };
    SledStore::open(&options).unwrap()
}

fn write_sled(folder: &Path) {
    let (store, _) = open_sled(folder);
    for n in 1.. {
        let mut batch = MetaBatch::new(n);
        batch.put(format!("key {n:08}"), value(n));
        store.commit(batch).unwrap();
        store.flush().unwrap();
        acknowledge(n);
    }
}

fn find_in_sled(folder: &Path, acknowledged: u64) -> Result<(), String> {
    let (store, found) = open_sled(folder);
    if found != Found::Existing {
        return Err(format!("{found:?}"));
    }
    let applied = store.applied_index().unwrap();
    for n in 1..=acknowledged {
        let key = format!("key {n:08}");
        if store.get(key.as_bytes()).unwrap() != Some(value(n)) {
            return Err(format!("{key} of {acknowledged} is missing, applied {applied}"));
        }
    }
    if applied < acknowledged { Err(format!("{applied} < {acknowledged}")) } else { Ok(()) }
}

fn open_log(folder: &Path) -> Result<Log, String> {
    open_log_on(Arc::new(RealDisk::open(&folder.join("log")).unwrap()))
}

fn open_log_on(disk: Arc<dyn Disk>) -> Result<Log, String> {
    let options = LogOptions { segment_bytes: 256 << 10, spare_segments: 2 };
    Log::open(disk, options).map(|(log, _)| log).map_err(|error| error.to_string())
}

fn write_log(mut log: Log) {
    for n in 1.. {
        log.append(n, &value(n)).unwrap();
        if n % 500 == 0 {
            log.truncate_prefix(n - 300).unwrap();
        }
        log.set_state(&n.to_le_bytes()).unwrap();
        log.sync().unwrap();
        acknowledge(n);
    }
}

fn find_in_log(folder: &Path, acknowledged: u64) -> Result<(), String> {
    let log = open_log(folder)?;
    if log.next_index() <= acknowledged {
        return Err(format!("the log ends at {}, not {acknowledged}", log.next_index()));
    }
    let state = log.state().map(|s| u64::from_le_bytes(s.try_into().unwrap()));
    if state < Some(acknowledged) {
        return Err(format!("state {state:?}, not {acknowledged}"));
    }
    for n in log.first_index()..log.next_index() {
        if log.read(n).map_err(|error| error.to_string())? != value(n) {
            return Err(format!("record {n}"));
        }
    }
    Ok(())
}

fn open_store(disk: Arc<dyn Disk>, events: Events) -> Result<Opened, String> {
    let owner = Owner { zone: "a".parse().unwrap(), node: NodeId(1) };
    let options = StoreOptions {
        journal_bytes: 16 << 20,
        capacity_bytes: 32 << 20,
        engine: EngineChoice::Auto,
        ..StoreOptions::default()
    };
    let mut dice = SeededDice::new(1);
    Store::open(disk, options, owner, &mut dice, events).map_err(|error| error.to_string())
}

fn chunk() -> ChunkId {
    let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
    ChunkId { volume, index: ChunkIndex(0) }
}

/// Which blocks write `n` goes to.
fn range_of(n: u64) -> BlockRange {
    let block = u32::try_from(n * 7919 % BLOCKS).unwrap();
    if n.is_multiple_of(4) {
        BlockRange::new(block / 32 * 32, LARGE_BLOCKS)
    } else {
        BlockRange::new(block, 1)
    }
}

fn covers(n: u64, block: u32) -> bool {
    range_of(n).blocks().any(|b| b == block)
}

fn write_store(subject: &str, folder: &Path) {
    let (tx, events) = channel();
    let sink: Events = Arc::new(move |event| drop(tx.send(event)));
    let opened = open_store(controls::store_disk(subject, folder), sink).unwrap();
    if controls::leaves_out_a_sync(subject) {
        controls::settle(folder);
    }
    let (mut n, mut durable) = (0u64, 0);
    loop {
        let mut records = Vec::new();
        while n < durable + 8 {
            n += 1;
            let mut bytes = n.to_le_bytes().to_vec();
            bytes.resize(BLOCK_SIZE, 7);
            let range = range_of(n);
            let count = range.blocks().count();
            let sums = Sums::Full(vec![crc32c::crc32c(&bytes); count]);
            let bytes = bytes.repeat(count);
            let data = BlockData { range, sums, data: bytes.into() };
            records.push((JournalSeq(n), Record::Fill { chunk: chunk(), data }));
        }
        opened.store.append(&mut records).unwrap();
        match events.recv().unwrap() {
            StoreEvent::Durable(seq) => {
                durable = seq.0;
                acknowledge(durable);
            }
            StoreEvent::Failed(e) => panic!("{e}"),
            StoreEvent::Read(_) | StoreEvent::Space(_) => {}
        }
    }
}

fn find_in_store(folder: &Path, acknowledged: u64) -> Result<(), String> {
    let (tx, events) = channel();
    let sink: Events = Arc::new(move |event| drop(tx.send(event)));
    let opened = open_store(controls::store_disk("store", folder), sink)?;
    let mut all = Vec::new();
    for block in 0..u32::try_from(BLOCKS).unwrap() {
        let range = BlockRange::new(block, 1);
        let request = ReadRequest { ticket: 1, chunk: chunk(), range };
        let mut done = opened.store.read(vec![request]);
        while done.is_empty() {
            if let StoreEvent::Read(read) = events.recv_timeout(PATIENCE).unwrap() {
                done = read;
            }
        }
        let data = done.remove(0).result.map_err(|e| e.to_string())?.data;
        let found = data.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
        let expected = (1..=acknowledged).rev().find(|n| covers(*n, block)).unwrap_or(0);
        let fits = found == expected || (found > acknowledged && covers(found, block));
        if !fits {
            return Err(format!("block {block} has write {found}, not {expected} or later"));
        }
        all.push((block, found));
    }
    // Whole or not at all, also of what was not acknowledged: what has one block of a write has all
    // of them, or later ones.
    let newest = all.iter().map(|(_, found)| *found).max().unwrap_or(0);
    let torn = all.iter().find(|(block, found)| {
        (found + 1..=newest).any(|n| covers(n, *block) && all.iter().any(|(_, f)| *f == n))
    });
    match torn {
        Some((block, found)) => {
            Err(format!("block {block} has {found}, others a later write of it"))
        }
        None => Ok(()),
    }
}
