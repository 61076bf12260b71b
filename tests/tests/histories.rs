//! Histories of concurrent reads and writes are linearizable, whatever is killed or stopped.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ashlar_env::dice::{Dice, SeededDice};
use ashlar_tests::cluster::Cluster;
use ashlar_tests::history::{self, Event};
use ashlar_tests::{needs, sized, wait};
use nix::sys::signal::Signal;

const BLOCK: usize = 4096;
/// Few, so that reads and writes meet; spread over the chunks.
const BLOCKS: u64 = 24;
/// Blocks from one to the next: four chunks of 64 MiB hold six each.
const STRIDE: u64 = (4 << 14) / BLOCKS;
const WORKERS: u64 = 6;
const WITHIN: Duration = Duration::from_secs(120);
/// Stops shorter and longer than every time-out: lease 400 ms, silence 1 s, heartbeats 1.5 s.
const STOPS_MILLIS: [u64; 5] = [60, 300, 700, 1_800, 6_000];

#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Several threads that read and write, and what they saw.
struct Workers {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<Event>>>,
}

impl Workers {
    fn start(path: &Path, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        // The last version of each block; whoever holds the lock writes it.
        let versions: Arc<Vec<Mutex<u64>>> = Arc::new((0..BLOCKS).map(|_| Mutex::new(0)).collect());
        let threads = (0..WORKERS)
            .map(|worker| {
                let (stop, count, versions) = (stop.clone(), count.clone(), versions.clone());
                let file = open(path);
                let dice = SeededDice::stream(seed, &format!("worker {worker}"));
                std::thread::spawn(move || work(&file, dice, &versions, &stop, &count))
            })
            .collect();
        Self { stop, count, threads }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn finish(self) -> Vec<Event> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

fn work(
    file: &File,
    mut dice: SeededDice,
    versions: &[Mutex<u64>],
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Vec<Event> {
    let mut events = Vec::new();
    let mut buffer = Box::new(Aligned([0; BLOCK]));
    while !stop.load(Ordering::Relaxed) {
        let block = dice.below(BLOCKS);
        let offset = block * STRIDE * BLOCK as u64;
        let write = dice.chance(1, 2);
        let mut turn = None;
        if write {
            // Somebody else writes it: take another.
            let Ok(locked) = versions[usize::try_from(block).unwrap()].try_lock() else { continue };
            turn = Some(locked);
        }
        let began;
        let version;
        if let Some(last) = &mut turn {
            version = **last + 1;
            for word in buffer.0.chunks_exact_mut(8) {
                word.copy_from_slice(&(version << 8 | block).to_le_bytes());
            }
            began = Instant::now();
            file.write_all_at(&buffer.0, offset).unwrap();
            **last = version;
        } else {
            began = Instant::now();
            file.read_exact_at(&mut buffer.0, offset).unwrap();
            version = version_of(&buffer.0, block);
        }
        events.push(Event { block, version, write, began, ended: Instant::now() });
        count.fetch_add(1, Ordering::Relaxed);
    }
    events
}

/// The version that a block holds: all its words say the same.
fn version_of(bytes: &[u8; BLOCK], block: u64) -> u64 {
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert!(words.iter().all(|word| *word == words[0]), "block {block} is torn");
    assert!(words[0] == 0 || words[0] & 0xff == block, "block {block} holds another's bytes");
    words[0] >> 8
}

/// One thing that goes wrong, and heals.
fn hurt(cluster: &Cluster, dice: &mut SeededDice) -> String {
    let node = format!("node-{}", 1 + dice.below(4));
    let leader = cluster.status().and_then(|status| status["leader"].as_u64()).unwrap_or(1);
    let member = format!("member-{}", if dice.chance(2, 3) { leader } else { 1 + dice.below(3) });
    let name = if dice.chance(2, 3) { node } else { member };
    if dice.chance(1, 2) {
        cluster.kill(&name);
        return format!("{name} killed");
    }
    let millis = STOPS_MILLIS[usize::try_from(dice.below(STOPS_MILLIS.len() as u64)).unwrap()];
    cluster.signal(&name, Signal::SIGSTOP);
    // The time is the fault.
    wait::throughout(Duration::from_millis(millis), || None);
    cluster.signal(&name, Signal::SIGCONT);
    format!("{name} stopped for {millis} ms")
}

/// A zone with a volume, and workers on it.
struct Scene {
    seed: u64,
    cluster: Cluster,
    workers: Workers,
    faults: Vec<String>,
}

impl Scene {
    fn start() -> Self {
        let seed = std::env::var("ASHLAR_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(1);
        let cluster = Cluster::start(&["--no-mount"]);
        cluster.must(&["volume", "create", "blocks", "--size", "256MiB", "--chunk-size", "64MiB"]);
        cluster.must(&["attach", "blocks"]);
        let workers = Workers::start(&cluster.fuse_file("blocks"), seed);
        Self { seed, cluster, workers, faults: Vec::new() }
    }

    /// One fault, and then so many requests.
    fn endure(&mut self, requests: u64, fault: impl FnOnce(&Cluster) -> String) {
        let before = self.workers.count();
        self.faults.push(fault(&self.cluster));
        wait::until(&format!("requests to go on ({:?})", self.faults.last()), WITHIN, || {
            (self.workers.count() > before + requests).then_some(())
        });
    }

    /// What was seen has one order, and at its end every block holds its last write.
    fn judge(self, what: &str) {
        let Self { seed, mut cluster, workers, faults } = self;
        let mut events = workers.finish();
        let file = open(&cluster.fuse_file("blocks"));
        let mut buffer = Box::new(Aligned([0; BLOCK]));
        for block in 0..BLOCKS {
            let began = Instant::now();
            file.read_exact_at(&mut buffer.0, block * STRIDE * BLOCK as u64).unwrap();
            let version = version_of(&buffer.0, block);
            events.push(Event { block, version, write: false, began, ended: Instant::now() });
        }
        drop(file);
        let violations = history::judge(&events);
        assert!(violations.is_empty(), "seed {seed}: {violations:?}; {faults:?}");
        assert_is_noticed(&events, seed);
        let reads = events.iter().filter(|event| !event.write).count();
        eprintln!(
            "{what}: seed {seed}, {} faults, {} writes and {reads} reads, all in one order",
            faults.len(),
            events.len() - reads
        );
        cluster.wait_whole(WITHIN);
        cluster.must(&["detach", "blocks"]);
        cluster.stop();
    }
}

/// The judge would have noticed: the same history with one answer turned into one that must not be.
fn assert_is_noticed(events: &[Event], seed: u64) {
    let mut dice = SeededDice::stream(seed, "falsified");
    // The first from some place on: to ask of each takes a look at all, and there are many.
    let mut any = |wanted: &dyn Fn(&Event) -> bool| {
        let from = usize::try_from(dice.below(events.len() as u64)).unwrap();
        let found = (from..events.len()).chain(0..from).find(|at| wanted(&events[*at]));
        found.unwrap()
    };
    let falsified = |at: usize, version: u64| {
        let mut events = events.to_vec();
        events[at].version = version;
        history::judge(&events)
    };
    let settled = |read: &Event| {
        let before = |e: &&Event| e.block == read.block && e.ended < read.began;
        events.iter().filter(before).map(|e| e.version).max().unwrap_or(0)
    };
    // A stale read: what was there before the last write that had been acknowledged.
    let stale = any(&|event| !event.write && settled(event) > 1);
    let found = falsified(stale, settled(&events[stale]) - 1);
    assert!(found.iter().any(|v| v.block == events[stale].block), "a stale read passed");
    // A lost write: nobody sees it, and the last reads find what was there before.
    let mut last_write: BTreeMap<u64, u64> = BTreeMap::new();
    for event in events.iter().filter(|event| event.write) {
        *last_write.entry(event.block).or_default() += 1;
    }
    let lost = any(&|event| event.write && last_write.get(&event.block) == Some(&event.version));
    let write = events[lost];
    let unseen = events.iter().map(|event| {
        let sees = !event.write && event.block == write.block && event.version == write.version;
        Event { version: event.version - u64::from(sees), ..*event }
    });
    let found = history::judge(&unseen.collect::<Vec<_>>());
    assert!(found.iter().any(|v| v.block == write.block), "a lost write passed");
}

#[test]
fn histories_under_kills_and_stops_are_linearizable() {
    if !needs::has_all("histories", &[needs::Need::Root, needs::Need::Fuse]) {
        return;
    }
    let mut scene = Scene::start();
    let mut dice = SeededDice::stream(scene.seed, "faults");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(sized(300, 3_600)) {
        scene.endure(200, |cluster| hurt(cluster, &mut dice));
        if dice.chance(1, 3) {
            scene.cluster.wait_whole(WITHIN);
        }
    }
    scene.judge("histories");
}

#[test]
fn kills_in_a_loop_tear_no_block_and_lose_none() {
    if !needs::has_all("kills in a loop", &[needs::Need::Root, needs::Need::Fuse]) {
        return;
    }
    let mut scene = Scene::start();
    let mut dice = SeededDice::stream(scene.seed, "kills");
    for _ in 0..sized(100, 1_000) {
        scene.endure(20, |cluster| {
            let name = format!("node-{}", 1 + dice.below(4));
            cluster.kill(&name);
            format!("{name} killed")
        });
    }
    scene.judge("kills in a loop");
}
