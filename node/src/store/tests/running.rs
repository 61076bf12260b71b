//! The store with its threads on a real disk: order, back pressure, reads during an apply, restart.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ashlar_env::dice::Dice;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn open_in(folder: &std::path::Path, options: StoreOptions) -> (Opened, Receiver<StoreEvent>) {
    let (tx, events) = channel();
    let sink: Events = Arc::new(move |event| drop(tx.send(event)));
    let mut dice = SeededDice::new(1);
    let opened = Store::open_folder(folder, options, owner(), &mut dice, sink).unwrap();
    (opened, events)
}

/// A store under test with what it must contain.
struct Live {
    opened: Opened,
    events: Receiver<StoreEvent>,
    seq: u64,
    durable: u64,
    model: Model,
    answers: BTreeMap<u64, Result<BlockData, ReadError>>,
}

impl Live {
    fn new((opened, events): (Opened, Receiver<StoreEvent>), model: Model) -> Self {
        Self { opened, events, seq: 0, durable: 0, model, answers: BTreeMap::new() }
    }

    fn append(&mut self, record: Record) {
        self.seq += 1;
        self.model.apply(&record);
        let mut records = vec![(JournalSeq(self.seq), record)];
        while let Err(full) = self.opened.store.append(&mut records) {
            assert_eq!(full, NoSpace::Growing);
            self.take_event();
        }
    }

    fn take_event(&mut self) {
        match self.events.recv_timeout(PATIENCE).expect("an event in time") {
            StoreEvent::Durable(seq) => {
                assert!(seq.0 > self.durable, "durable numbers rise");
                self.durable = seq.0;
            }
            StoreEvent::Read(done) => {
                self.answers.extend(done.into_iter().map(|d| (d.ticket, d.result)));
            }
            StoreEvent::Space(_) => {}
            StoreEvent::Failed(e) => panic!("{e}"),
        }
    }

    fn await_durable(&mut self) {
        while self.durable < self.seq {
            self.take_event();
        }
    }

    /// Starts a read; the answer is awaited later, as other writes go on.
    fn begin_read(&mut self, ticket: u64, n: u32, block: u32) {
        let request = ReadRequest { ticket, chunk: chunk(n), range: BlockRange::new(block, 1) };
        for done in self.opened.store.read(vec![request]) {
            self.answers.insert(done.ticket, done.result);
        }
    }

    fn answer(&mut self, ticket: u64) -> Option<u8> {
        loop {
            if let Some(answer) = self.answers.remove(&ticket) {
                return answer.unwrap().data.first().copied();
            }
            self.take_event();
        }
    }
}

fn mixed_load(engine: EngineChoice, rounds: u32) {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { engine, journal_bytes: 1 << 20, ..SMALL };
    let mut live = Live::new(open_in(dir.path(), options), Model::default());
    assert!(live.opened.new);
    let mut dice = SeededDice::new(5);
    live.append(adopt(0, 1, 1));
    let pick = |dice: &mut SeededDice| u32::try_from(dice.below(1000)).unwrap();
    for i in 0..rounds {
        for _ in 0..8 {
            let first = pick(&mut dice);
            live.append(fill(first % 3, first, 1 + first % 2, (i % 250) as u8 + 1));
        }
        // Reads see exactly what was appended before them, whatever the threads are doing, and
        // nothing of what comes after.
        let mut expected = Vec::new();
        for ticket in 0..4 {
            let (n, block) = (pick(&mut dice) % 3, pick(&mut dice));
            expected.push(live.model.blocks.get(&(n, block)).copied());
            live.begin_read(ticket, n, block);
            live.append(fill(n, block, 1, 251));
        }
        for (ticket, expected) in (0..4).zip(expected) {
            assert_eq!(live.answer(ticket), expected, "round {i}");
        }
        if i % 50 == 0 {
            live.append(zero(i % 3, 100, 600));
        }
        if i % 16 == 0 {
            live.await_durable();
        }
    }
    live.await_durable();
    let Live { opened, model, .. } = live;
    let (id, start, state) = (opened.id, opened.start, model.state.clone());
    drop(opened);
    let mut live = Live::new(open_in(dir.path(), options), model);
    assert!(!live.opened.new);
    assert_eq!(live.opened.id, id);
    assert!(live.opened.start > start);
    assert_eq!(live.opened.state, state);
    for n in 0..3 {
        for block in 0..CHUNK_BLOCKS {
            live.begin_read(u64::from(block), n, block);
            let expected = live.model.blocks.get(&(n, block)).copied();
            assert_eq!(live.answer(u64::from(block)), expected, "chunk {n}, block {block}");
        }
    }
}

#[test]
fn a_mixed_load_reads_its_own_writes_and_survives_a_restart_by_threads() {
    mixed_load(EngineChoice::Threads, 200);
}

#[test]
fn a_mixed_load_reads_its_own_writes_and_survives_a_restart_by_the_chosen_engine() {
    mixed_load(EngineChoice::Auto, 200);
}

#[test]
fn a_burst_larger_than_the_journal_waits_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = Live::new(open_in(dir.path(), SMALL), Model::default());
    // 32 MiB through a ring of 256 KiB.
    for i in 0..2000u32 {
        live.append(fill(i % 3, (i * 37) % 1000, 4, (i % 250) as u8 + 1));
    }
    live.await_durable();
    assert_eq!(live.opened.store.queued_bytes(), 0);
}

#[test]
fn a_burst_of_new_slots_is_taken_as_the_file_gets_longer() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { capacity_bytes: 1 << 30, journal_bytes: 1 << 20, ..SMALL };
    let mut live = Live::new(open_in(dir.path(), options), Model::default());
    for nth in 0..300_u32 {
        live.append(fill(nth / 4, nth % 4 * 256, 1, (nth % 250) as u8 + 1));
    }
    live.await_durable();
    for nth in 0..300_u32 {
        live.begin_read(u64::from(nth), nth / 4, nth % 4 * 256);
        assert_eq!(live.answer(u64::from(nth)), Some((nth % 250) as u8 + 1));
    }
}

#[test]
fn a_failure_is_reported_once_and_ends_everything() {
    let disk = MemDisk::new();
    let (tx, events) = channel();
    let sink: Events = Arc::new(move |event| drop(tx.send(event)));
    let mut dice = SeededDice::new(1);
    let opened = Store::open(Arc::new(disk.clone()), SMALL, owner(), &mut dice, sink).unwrap();
    disk.fail(ashlar_env::disk::mem::FaultOn::Sync, "journal", 0, 5);
    for seq in 1..100 {
        opened.store.append(&mut vec![(JournalSeq(seq), fill(0, 0, 1, 1))]).unwrap();
    }
    let first = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(first, StoreEvent::Failed(StoreFailure::Disk(_))), "{first:?}");
    drop(opened);
    assert_eq!(events.try_iter().count(), 0, "nothing after the failure");
}

#[test]
fn dropping_the_store_writes_what_was_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = Live::new(open_in(dir.path(), SMALL), Model::default());
    live.append(adopt(0, 1, 1));
    live.append(fill(0, 7, 1, 42));
    let lsn = ashlar_types::Lsn::ZERO.next();
    live.append(Record::Committed { chunk: chunk(0), lsn });
    let Live { opened, model, .. } = live;
    drop(opened);
    let mut live = Live::new(open_in(dir.path(), SMALL), model);
    assert_eq!(live.opened.state, live.model.state);
    live.begin_read(1, 0, 7);
    assert_eq!(live.answer(1), Some(42));
}

/// A bit of the last block of the journal that is not zero.
fn flip_last_block(folder: &std::path::Path, blocks_behind: usize) {
    let path = folder.join("journal");
    let mut bytes = std::fs::read(&path).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap() / BLOCK_SIZE;
    bytes[(written - blocks_behind) * BLOCK_SIZE + 100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn damage_to_the_last_block_is_noticed_after_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = Live::new(open_in(dir.path(), SMALL), Model::default());
    live.append(adopt(0, 1, 1));
    live.append(fill(0, 7, 1, 42));
    live.await_durable();
    drop(live);
    flip_last_block(dir.path(), 1);
    let (opened, _events) = open_in(dir.path(), SMALL);
    assert!(opened.state.get(chunk(0)).unwrap().suspect);
}

#[test]
fn a_journal_that_falls_idle_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = Live::new(open_in(dir.path(), SMALL), Model::default());
    live.append(fill(0, 7, 1, 42));
    live.await_durable();
    let blocks = || {
        let bytes = std::fs::read(dir.path().join("journal")).unwrap();
        bytes.iter().rposition(|byte| *byte != 0).unwrap() / BLOCK_SIZE
    };
    // The record is a page of head and a block.
    let since = std::time::Instant::now();
    while blocks() < 2 {
        assert!(since.elapsed() < PATIENCE, "no seal came");
        std::thread::yield_now();
    }
}

#[test]
fn a_record_that_may_wait_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = Live::new(open_in(dir.path(), SMALL), Model::default());
    live.append(adopt(0, 1, 1));
    live.await_durable();
    // Nothing comes after it, and what is sent later is held behind its number.
    let lsn = ashlar_types::Lsn::ZERO.next();
    live.append(Record::Committed { chunk: chunk(0), lsn });
    live.await_durable();
}
