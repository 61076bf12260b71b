//! Orders of threads that a machine seldom tries: the store and the mailbox over the locks of `shuttle`.
//!
//! `shuttle` runs all threads of a test on one, and at every lock, condition and atomic decides by
//! chance who goes on; it finds a lost wake-up as a deadlock, and replays what failed. The sources are
//! those of the crate, compiled once more over another `seam`: nothing is copied or imitated. What
//! each test covers stands in `docs/races.md`. Why not `loom`: it tries all orders, which for the whole
//! store are too many; here some thousands are drawn, of which most differ.
//!
//! A few seconds; with `ASHLAR_NIGHTLY` set a hundred times as many orders.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "sources of the crate, of which a part is used here; its own tests are none here"
)]
#![allow(clippy::print_stdout, reason = "what was tried is the product of a test without harness")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

#[path = "../src/log_line.rs"]
mod log_line;
#[path = "../src/mailbox.rs"]
mod mailbox;
#[path = "../src/store/mod.rs"]
mod store;

/// The seam of these sources: see `src/seam.rs`.
mod seam {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use shuttle::thread::JoinHandle;
    pub(crate) use std::sync::PoisonError;

    pub(crate) fn spawn_thread(
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        shuttle::thread::Builder::new().name(name.to_owned()).spawn(body)
    }
}

use ashlar_env::dice::SeededDice;
use ashlar_env::disk::EngineChoice;
use ashlar_env::disk::mem::{FaultOn, MemDisk};
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkId, ChunkIndex, NodeId, StartNumber, Sums, VolumeId,
};
use bytes::Bytes;
use mailbox::Mailbox;
use seam::{Condvar, Mutex};
use std::sync::Arc;
use store::{Opened, Owner, ReadRequest, Store, StoreEvent, StoreOptions};

const OPTIONS: StoreOptions = StoreOptions {
    journal_bytes: 256 << 10,
    capacity_bytes: 24 << 20,
    engine: EngineChoice::Inline,
    start_above: StartNumber(0),
};

fn chunk() -> ChunkId {
    let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
    ChunkId { volume, index: ChunkIndex(0) }
}

fn fill(first: u32, count: u32, mark: u8) -> Record {
    let bytes = vec![mark; BLOCK_SIZE * usize::try_from(count).unwrap()];
    let sum = crc32c::crc32c(&[mark; BLOCK_SIZE]);
    let sums = Sums::Full((0..count).map(|_| sum).collect());
    let data = BlockData { range: BlockRange::new(first, count), sums, data: Bytes::from(bytes) };
    Record::Fill { chunk: chunk(), data }
}

/// What the store has reported.
#[derive(Debug, Default)]
struct Heard {
    durable: u64,
    /// Answered reads: ticket and the first byte.
    reads: Vec<(u64, Option<u8>)>,
    failures: u32,
}

#[derive(Debug, Default)]
struct Ear {
    heard: Mutex<Heard>,
    more: Condvar,
}

impl Ear {
    fn take(&self, event: StoreEvent) {
        let mut heard = self.heard.lock().unwrap();
        match event {
            StoreEvent::Durable(JournalSeq(seq)) => {
                assert!(seq > heard.durable, "durable numbers rise");
                heard.durable = seq;
            }
            StoreEvent::Read(done) => {
                heard.reads.extend(done.into_iter().map(|d| (d.ticket, first_byte(d.result))));
            }
            StoreEvent::Space(_) => {}
            StoreEvent::Failed(_) => heard.failures += 1,
        }
        drop(heard);
        self.more.notify_all();
    }

    /// Waits for what must come: a wake-up that is lost on the way is a deadlock.
    fn until(&self, there: impl Fn(&Heard) -> bool) {
        let mut heard = self.heard.lock().unwrap();
        while !there(&heard) {
            heard = self.more.wait(heard).unwrap();
        }
    }
}

impl Ear {
    fn answer(&self, ticket: u64) -> Option<u8> {
        let mine = |(of, _): &&(u64, Option<u8>)| *of == ticket;
        self.until(|heard| heard.reads.iter().any(|read| mine(&read)));
        let heard = self.heard.lock().unwrap();
        heard.reads.iter().find(mine).and_then(|(_, byte)| *byte)
    }
}

fn first_byte(result: Result<BlockData, store::ReadError>) -> Option<u8> {
    result.expect("a read").data.first().copied()
}

fn open(disk: &MemDisk) -> (Opened, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let (events, disk) = (ear.clone(), Arc::new(disk.clone()));
    let owner = Owner { zone: "a".parse().unwrap(), node: NodeId(1) };
    let sink = Arc::new(move |event| events.take(event));
    let opened = Store::open(disk, OPTIONS, owner, &mut SeededDice::new(1), sink).unwrap();
    (opened, ear)
}

/// A store that was made, has moved a part of its blocks to their places, and ended in order: what
/// every order begins with.
fn made() -> MemDisk {
    let disk = MemDisk::new();
    let kept = disk.clone();
    let make = move || {
        let (opened, ear) = open(&kept);
        for seq in 1..20 {
            let record = fill(place(seq), 3, 1);
            opened.store.append(&mut vec![(JournalSeq(u64::from(seq)), record)]).unwrap();
        }
        ear.until(|heard| heard.durable == 19);
    };
    shuttle::Runner::new(shuttle::scheduler::RandomScheduler::new(1), config()).run(make);
    disk
}

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    // The store's own threads have the usual stacks.
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(1_000_000);
    config
}

/// The block's content at the end, as another process finds it.
fn found(disk: &MemDisk, block: u32) -> Option<u8> {
    let (opened, ear) = open(disk);
    let range = BlockRange::new(block, 1);
    let asked = opened.store.read(vec![ReadRequest { ticket: 9, chunk: chunk(), range }]);
    if let Some(done) = asked.into_iter().next() {
        return first_byte(done.result);
    }
    ear.answer(9)
}

/// Blocks that the writer goes round in, far from each other.
const PLACES: u32 = 8;

const fn place(nth: u32) -> u32 {
    nth % PLACES * 30
}

/// A writer over several checkpoints, readers and a verification beside it, and the end: what a read
/// begun after another gives is no older, what it looks at is not overwritten meanwhile, and whatever
/// was handed over is there afterwards.
fn reads_and_checkpoints(made: &MemDisk) {
    let disk = made.fork();
    let (opened, ear) = open(&disk);
    let store = Arc::new(opened.store);
    let reader = |number: u64| {
        let (store, ear) = (store.clone(), ear.clone());
        shuttle::thread::spawn(move || {
            let mut seen = [1; 2];
            for ticket in number * 10..number * 10 + 6 {
                let which = usize::try_from(ticket % 2).unwrap();
                let block = place(u32::try_from(3 * number + ticket % 2).unwrap());
                let (chunk, range) = (chunk(), BlockRange::new(block, 1));
                let byte = match store.read(vec![ReadRequest { ticket, chunk, range }]).pop() {
                    Some(done) => first_byte(done.result),
                    None => ear.answer(ticket),
                };
                let byte = byte.expect("it was never a hole");
                assert!(byte >= seen[which], "{byte} after {} was seen", seen[which]);
                seen[which] = byte;
                if ticket % 3 == 0 {
                    store.verify();
                }
            }
        })
    };
    let readers = [reader(1), reader(2)];
    let mut last = 0;
    for mark in 2..32_u8 {
        last += 1;
        // Every fifth is large: it goes to a place of its own.
        let count = if mark.is_multiple_of(5) { 16 } else { 3 };
        let record = fill(place(u32::from(mark)), count, mark);
        store.append(&mut vec![(JournalSeq(last), record)]).unwrap();
    }
    ear.until(|heard| heard.durable == last);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    drop(Arc::into_inner(store).expect("the readers have ended"));
    assert_eq!(ear.heard.lock().unwrap().failures, 0);
    assert_eq!(found(&disk, place(31)), Some(31));
}

/// The handle is dropped while records are queued and reads are under way: both are finished.
fn the_end_finishes_what_was_handed_over(made: &MemDisk) {
    let disk = made.fork();
    let (opened, ear) = open(&disk);
    let requests = (1..4).map(|ticket| {
        let range = BlockRange::new(0, 1);
        ReadRequest { ticket, chunk: chunk(), range }
    });
    let at_once = opened.store.read(requests.collect()).len();
    let mut records: Vec<_> =
        (1..9).map(|seq| (JournalSeq(u64::from(seq)), fill(0, 2, seq + 1))).collect();
    opened.store.append(&mut records).unwrap();
    drop(opened.store);
    let heard = ear.heard.lock().unwrap();
    assert_eq!((heard.durable, heard.reads.len() + at_once, heard.failures), (8, 3, 0));
    drop(heard);
    assert_eq!(found(&disk, 1), Some(9));
}

/// A sync fails somewhere: that is reported once, and the end waits for nobody in vain.
fn a_failed_sync_ends_all_threads(made: &MemDisk, file: &str) {
    let disk = made.fork();
    let (opened, ear) = open(&disk);
    disk.fail(FaultOn::Sync, file, 2, 5);
    for seq in 1..26 {
        opened.store.append(&mut vec![(JournalSeq(seq), fill(0, 3, 7))]).unwrap();
    }
    ear.until(|heard| heard.failures == 1);
    opened.store.append(&mut vec![(JournalSeq(26), fill(0, 1, 8))]).unwrap();
    drop(opened.store);
    let heard = ear.heard.lock().unwrap();
    assert_eq!(heard.failures, 1, "reported once");
    assert!(heard.durable < 26, "nothing counts after it");
}

/// Threads of two stores put in while the machine's task empties the box: nothing is left in it.
fn no_mail_is_lost() {
    let mailbox = Arc::new(Mailbox::default());
    let putters: Vec<_> = (0..2)
        .flat_map(|store| [(store, 1), (store, 2)])
        .map(|(store, seq)| {
            let mailbox = mailbox.clone();
            shuttle::thread::spawn(move || mailbox.put(store, StoreEvent::Durable(JournalSeq(seq))))
        })
        .collect();
    let mut durable = [0; 2];
    shuttle::future::block_on(async {
        while durable != [2, 2] {
            mailbox.came().await;
            for (store, mail) in mailbox.take() {
                let known = durable.get_mut(store).unwrap();
                *known = mail.durable.map_or(*known, |JournalSeq(seq)| seq.max(*known));
            }
        }
    });
    putters.into_iter().for_each(|putter| putter.join().unwrap());
}

/// Tries so many orders by chance, and a tenth of them by priorities that change at few places, which
/// finds what needs an unlikely delay of one thread.
fn try_orders(name: &str, orders: usize, body: impl Fn() + Send + Sync + 'static) {
    let orders = if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 100 * orders } else { orders };
    let body = Arc::new(body);
    let again = body.clone();
    let random = shuttle::scheduler::RandomScheduler::new(orders);
    shuttle::Runner::new(random, config()).run(move || body());
    let few_changes = shuttle::scheduler::PctScheduler::new(3, orders.div_ceil(10));
    shuttle::Runner::new(few_changes, config()).run(move || again());
    println!("test {name} ... ok ({} orders)", orders + orders.div_ceil(10));
}

fn main() {
    type Test = (&'static str, fn(MemDisk));
    let tests: [Test; 5] = [
        ("reads_and_checkpoints", |disk| {
            try_orders("reads_and_checkpoints", 150, move || reads_and_checkpoints(&disk));
        }),
        ("the_end_finishes_what_was_handed_over", |disk| {
            let name = "the_end_finishes_what_was_handed_over";
            try_orders(name, 200, move || the_end_finishes_what_was_handed_over(&disk));
        }),
        ("a_failed_sync_of_the_journal_ends_all_threads", |disk| {
            let name = "a_failed_sync_of_the_journal_ends_all_threads";
            try_orders(name, 80, move || a_failed_sync_ends_all_threads(&disk, "journal"));
        }),
        ("a_failed_sync_of_the_map_ends_all_threads", |disk| {
            let name = "a_failed_sync_of_the_map_ends_all_threads";
            try_orders(name, 40, move || a_failed_sync_ends_all_threads(&disk, "map"));
        }),
        ("no_mail_is_lost", |_| try_orders("no_mail_is_lost", 1_000, no_mail_is_lost)),
    ];
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let lists = arguments.iter().any(|argument| argument == "--list");
    let wanted = |name: &str| {
        let mut words = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        words.peek().is_none() || words.any(|word| name.contains(word.as_str()))
    };
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        if lists {
            println!("{name}: test");
        } else {
            test(made());
        }
    }
}
