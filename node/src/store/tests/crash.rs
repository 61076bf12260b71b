//! Crashes anywhere: what was durable is there, and nothing else than what was handed over.

use ashlar_types::{Epoch, Lsn};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Fill {
        n: u32,
        first: u32,
        count: u32,
        mixed: bool,
    },
    Write {
        n: u32,
        first: u32,
        count: u32,
    },
    Zero {
        n: u32,
        first: u32,
        count: u32,
    },
    /// Large enough for places of its own.
    Large {
        n: u32,
        first: u32,
        count: u32,
    },
    Adopt {
        n: u32,
        again: bool,
    },
    Erase {
        n: u32,
    },
    Step,
    Apply,
    Seal,
    Checkpoint,
    Reopen,
}

/// A ring that takes several large records, should they be journalled.
const WIDE: StoreOptions = StoreOptions { journal_bytes: 2 << 20, ..SMALL };

/// As [`arbitrary_op`], half of the writes large: few places, many times.
fn arbitrary_large_op() -> impl Strategy<Value = Op> {
    let range = prop_oneof![
        4 => (0u32..4, 1u32..5).prop_map(|(at, count)| (at * 64, count * 16)),
        1 => Just((0, 256)),
        2 => (230u32..250, 26u32..60),
        1 => (0u32..900, 16u32..80),
    ];
    let large = (0u32..3, range).prop_map(|(n, (first, count))| Op::Large { n, first, count });
    prop_oneof![1 => large, 2 => arbitrary_op()]
}

fn arbitrary_op() -> impl Strategy<Value = Op> {
    let n = 0u32..3;
    let range = prop_oneof![
        6 => (0u32..CHUNK_BLOCKS - 8, 1u32..4),
        // Few blocks many times: overwriting must work too.
        4 => (0u32..6, 1u32..3),
        // Across the border of two slots. No record is above a sixteenth of the ring.
        1 => (252u32..258, 1u32..4),
    ];
    let zeroed = prop_oneof![
        (0u32..CHUNK_BLOCKS - 8, 1u32..8),
        (0u32..512, 256u32..512),
        Just((0, CHUNK_BLOCKS)),
    ];
    prop_oneof![
        10 => (n.clone(), range.clone(), any::<bool>())
            .prop_map(|(n, (first, count), mixed)| Op::Fill { n, first, count, mixed }),
        10 => (n.clone(), range).prop_map(|(n, (first, count))| Op::Write { n, first, count }),
        4 => (n.clone(), zeroed).prop_map(|(n, (first, count))| Op::Zero { n, first, count }),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, again)| Op::Adopt { n, again }),
        1 => n.prop_map(|n| Op::Erase { n }),
        10 => Just(Op::Step),
        4 => Just(Op::Apply),
        2 => Just(Op::Seal),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
    ]
}

/// Makes the record of an operation, as a core would: valid after everything before.
fn record(op: &Op, model: &Model, mark: u8) -> Option<Record> {
    let known = |n: u32| model.state.get(chunk(n));
    Some(match *op {
        Op::Fill { n, first, count, mixed } => {
            Record::Fill { chunk: chunk(n), data: content(first, count, mark, mixed) }
        }
        Op::Zero { n, first, count } => zero(n, first, count),
        // In order where there is a replica, else a copy.
        Op::Large { n, first, count } => match known(n) {
            None => fill(n, first, count, mark),
            Some(replica) => Record::Write {
                chunk: chunk(n),
                lsn: replica.last.next(),
                committed: replica.last,
                data: content(first, count, mark, false),
            },
        },
        Op::Write { n, first, count } => {
            let replica = known(n)?;
            Record::Write {
                chunk: chunk(n),
                lsn: replica.last.next(),
                committed: if mark.is_multiple_of(2) { replica.last } else { Lsn::ZERO },
                data: content(first, count, mark, false),
            }
        }
        Op::Adopt { n, again } => {
            let (epoch, incarnation) =
                known(n).map_or((1, 1), |r| (r.config.epoch.0, r.replica.incarnation.0));
            adopt(n, Epoch(epoch).next().0, if again { incarnation } else { incarnation + 1 })
        }
        Op::Erase { n } => Record::Erase { chunk: chunk(n) },
        Op::Step | Op::Apply | Op::Seal | Op::Checkpoint | Op::Reopen => return None,
    })
}

/// The store as it may be found: `history[k]` after k records, of which `durable` are promised.
struct Run {
    options: StoreOptions,
    rig: Rig,
    history: Vec<Model>,
}

impl Run {
    fn model(&self) -> &Model {
        self.history.last().unwrap()
    }

    fn perform(&mut self, op: &Op, mark: u8, disk: &MemDisk) -> Result<(), StoreFailure> {
        if let Some(record) = record(op, self.model(), mark) {
            let mut next = self.model().clone();
            next.apply(&record);
            let mut taken = self.rig.append([record.clone()]);
            if taken == Err(NoSpace::Growing) {
                // The thread that makes the file longer, when it is asked to.
                self.rig.grow();
                taken = self.rig.append([record]);
            }
            if let Err(full) = taken {
                // The data file could not grow.
                assert!(disk.is_powered_off(), "{full}");
                return Err(DiskError::PoweredOff.into());
            }
            self.history.push(next);
            return Ok(());
        }
        match op {
            Op::Step => self.rig.step().map(|_| ()),
            Op::Apply => self.rig.apply().map(|_| ()),
            Op::Seal => self.rig.parts.committer.seal(),
            Op::Checkpoint => self.rig.checkpoint(),
            Op::Reopen => {
                self.rig.settle()?;
                match Rig::try_open(disk, &self.options) {
                    Ok(rig) => {
                        self.history = vec![self.model().clone()];
                        self.rig = rig;
                    }
                    Err(OpenError::Disk(e)) => return Err(e.into()),
                    Err(e) => panic!("{e:?}"),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Runs, loses power at change `stop`, reopens, compares. True when power went before the end.
/// Reads everything after each `look`-th operation too.
fn run(
    ops: &[Op],
    stop: u64,
    seed: u64,
    disk: &MemDisk,
    look: usize,
) -> Result<bool, TestCaseError> {
    run_with(SMALL, ops, stop, seed, disk, look)
}

fn run_with(
    options: StoreOptions,
    ops: &[Op],
    stop: u64,
    seed: u64,
    disk: &MemDisk,
    look: usize,
) -> Result<bool, TestCaseError> {
    let rig = Rig::try_open(disk, &options).unwrap();
    let mut run = Run { options, rig, history: vec![Model::default()] };
    disk.stop_after(stop);
    for (nth, op) in ops.iter().enumerate() {
        let mark = u8::try_from(nth % 250).unwrap() + 1;
        if run.perform(op, mark, disk).is_err() {
            break;
        }
        run.rig.check_slots();
        if nth % look == look - 1 {
            let blocks = run.rig.blocks();
            if disk.is_powered_off() {
                break;
            }
            prop_assert_eq!(&blocks.unwrap(), &run.model().blocks);
        }
    }
    let stopped = disk.is_powered_off();
    for round in 0..2u64 {
        disk.crash(&mut SeededDice::new(seed ^ round));
        let durable = usize::try_from(run.rig.durable()).unwrap();
        let start = run.rig.parts.superblock.start;
        let mut rig = Rig::try_open(disk, &options)
            .map_err(|e| TestCaseError::fail(format!("round {round}: {e:?}")))?;
        prop_assert!(rig.parts.superblock.start > start, "start number goes back");
        let blocks = rig.blocks().map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
        let found = Model { blocks, state: rig.parts.state.clone() };
        let at = run.history.iter().skip(durable).position(|m| *m == found);
        let suspects = found.state.iter().filter(|(_, replica)| replica.suspect).count();
        prop_assert!(
            at.is_some(),
            "durable {durable} of {}, round {round}, {suspects} suspect: {} blocks: {:?}",
            run.history.len() - 1,
            found.blocks.len(),
            found.state
        );
        // It goes on, and what is written then survives the next cut.
        run = Run { options, rig, history: vec![found] };
        run.rig.check_slots();
        run.perform(&Op::Fill { n: 1, first: 3, count: 2, mixed: false }, 255, disk).unwrap();
        run.rig.checkpoint().unwrap();
        if options.journal_bytes == WIDE.journal_bytes {
            run.perform(&Op::Large { n: 1, first: 240, count: 40 }, 253, disk).unwrap();
        }
        run.perform(&Op::Zero { n: 1, first: 4, count: 300 }, 254, disk).unwrap();
        run.rig.settle().unwrap();
        prop_assert_eq!(&run.rig.blocks().unwrap(), &run.model().blocks);
    }
    Ok(stopped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn nothing_durable_is_lost_wherever_power_goes(
        ops in prop::collection::vec(arbitrary_op(), 1..120),
        stop in 1u64..400,
        seed in any::<u64>(),
    ) {
        run(&ops, stop, seed, &MemDisk::new(), 7)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn nothing_large_is_lost_torn_or_leaked_wherever_power_goes(
        ops in prop::collection::vec(arbitrary_large_op(), 1..100),
        stop in 1u64..400,
        seed in any::<u64>(),
    ) {
        run_with(WIDE, &ops, stop, seed, &MemDisk::new(), 7)?;
    }
}

/// Large writes over each other, over small ones and under them, trims between, a replica anew.
fn everything_large() -> Vec<Op> {
    let mut ops = vec![Op::Adopt { n: 0, again: true }, Op::Adopt { n: 1, again: true }];
    for round in 0..2u32 {
        for i in 0..3 {
            ops.push(Op::Large { n: i % 2, first: 0, count: 256 });
            ops.push(Op::Large { n: i % 2, first: 64 * i, count: 32 + 16 * round });
            ops.push(Op::Write { n: i % 2, first: i * 31, count: 1 + i % 3 });
            ops.push(Op::Large { n: 2, first: 240, count: 40 });
            ops.extend([Op::Step, Op::Step]);
            if i == 2 {
                ops.push(Op::Apply);
            }
        }
        ops.extend([Op::Zero { n: 0, first: round * 100, count: 300 }, Op::Step, Op::Checkpoint]);
        if round == 0 {
            ops.extend([Op::Large { n: 1, first: 16, count: 100 }, Op::Erase { n: 2 }]);
            ops.extend([
                Op::Adopt { n: 1, again: false },
                Op::Large { n: 1, first: 0, count: 200 },
            ]);
        }
    }
    ops.extend([Op::Large { n: 0, first: 1, count: 64 }, Op::Step]);
    ops
}

#[test]
fn every_single_change_may_be_the_last_of_large_writes() {
    let ops = everything_large();
    let mut stop = 1;
    while run_with(WIDE, &ops, stop, stop, &MemDisk::new(), ops.len()).unwrap() {
        stop += 1;
    }
    assert!(stop > 60, "the run has only {stop} changes");
}

/// A run that touches everything: several rounds of the ring, overwrites, trims, erasure.
fn everything() -> Vec<Op> {
    let mut ops = vec![Op::Adopt { n: 0, again: true }, Op::Adopt { n: 1, again: true }];
    for round in 0..4u32 {
        for i in 0..10 {
            ops.push(Op::Write { n: i % 2, first: (round * 97 + i * 31) % 900, count: 1 + i % 3 });
            ops.push(Op::Fill { n: 2, first: i * 3, count: 2, mixed: true });
            ops.extend([Op::Step, Op::Step]);
            if i % 3 == 0 {
                ops.push(Op::Seal);
            }
            if i == 5 {
                ops.push(Op::Apply);
            }
        }
        ops.extend([Op::Zero { n: 0, first: round * 100, count: 300 }, Op::Step, Op::Apply]);
        if round == 2 {
            ops.extend([Op::Erase { n: 2 }, Op::Checkpoint, Op::Adopt { n: 1, again: false }]);
        }
    }
    ops.extend([Op::Checkpoint, Op::Fill { n: 0, first: 1, count: 1, mixed: false }, Op::Step]);
    ops
}

#[test]
fn every_single_change_may_be_the_last() {
    let ops = everything();
    let mut stop = 1;
    while run(&ops, stop, stop, &MemDisk::new(), ops.len()).unwrap() {
        stop += 1;
    }
    assert!(stop > 60, "the run has only {stop} changes");
}

/// Whether crashing at some change of the run is noticed with syncs of `file` skipped.
fn noticed_without_sync_of(file: &str) -> bool {
    let ops = everything();
    (1..60u64).map(|n| n * 3).any(|stop| {
        let disk = MemDisk::new();
        // The making of the store is not what is tested.
        drop(Rig::open(&disk));
        disk.lie_about_sync(file);
        let outcome = std::panic::catch_unwind(|| run(&ops, stop, stop, &disk, ops.len()));
        !matches!(outcome, Ok(Ok(_)))
    })
}

#[test]
fn with_every_sync_nothing_is_noticed() {
    assert!(!noticed_without_sync_of("no such file"));
}

#[test]
fn a_journal_that_is_not_synced_is_noticed() {
    assert!(noticed_without_sync_of("journal"));
}

#[test]
fn moving_the_tail_before_the_blocks_are_synced_is_noticed() {
    assert!(noticed_without_sync_of("data"));
}

#[test]
fn moving_the_tail_before_the_map_is_synced_is_noticed() {
    assert!(noticed_without_sync_of("map"));
}

#[test]
fn a_superblock_that_is_not_synced_is_noticed() {
    assert!(noticed_without_sync_of("super"));
}

#[test]
fn a_process_that_dies_in_every_start_does_not_brick_the_store() {
    let disk = MemDisk::new();
    let mut rig = Rig::open(&disk);
    rig.append([adopt(0, 1, 1)]).unwrap();
    let mut model = Model::default();
    model.apply(&adopt(0, 1, 1));
    // Fill the ring as far as it goes without any apply.
    for i in 0.. {
        let record = fill(0, i % 900, 1, 7);
        model.apply(&record);
        rig.append([record]).unwrap();
        while rig.step().unwrap() == Step::Wrote {}
        if rig.durable() < rig.next - 1 {
            break;
        }
    }
    let durable = rig.durable();
    for seed in 0..40 {
        // Each start writes its checkpoint into the ring and dies before it is applied.
        disk.crash(&mut SeededDice::new(seed));
        rig = Rig::open(&disk);
        while rig.step().unwrap() == Step::Wrote {}
    }
    disk.crash(&mut SeededDice::new(99));
    rig = Rig::open(&disk);
    rig.checkpoint().unwrap();
    assert!(rig.blocks().unwrap().len() as u64 >= durable - 1);
    assert!(rig.parts.state.get(chunk(0)).is_some());
}
