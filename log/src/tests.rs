//! The log against a model over a disk that loses and tears what was not synced.

use std::collections::BTreeMap;

use ashlar_env::dice::SeededDice;
use ashlar_env::disk::OpenHow;
use ashlar_env::disk::mem::{FaultOn, MemDisk};
use proptest::prelude::*;

use super::*;

const SMALL: LogOptions = LogOptions { segment_bytes: 16 << 10, spare_segments: 1 };

fn open(disk: &MemDisk) -> Result<(Log, Recovered), LogError> {
    Log::open(Arc::new(disk.clone()), SMALL)
}

/// What a log contains, as a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    first: u64,
    records: BTreeMap<u64, Vec<u8>>,
    state: Option<Vec<u8>>,
    next: u64,
}

impl Model {
    fn new() -> Self {
        Self { first: 1, next: 1, ..Self::default() }
    }

    fn of(log: &Log) -> Self {
        let range = log.first_index()..log.next_index();
        Self {
            first: log.first_index(),
            next: log.next_index(),
            records: range.map(|i| (i, log.read(i).unwrap())).collect(),
            state: log.state().map(<[u8]>::to_vec),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<usize>),
    State(u8),
    CutSuffix(u8),
    CutPrefix(u8),
    Reset(u8),
    Sync,
    Seal,
    Reopen,
}

/// A position within the live range from a byte.
fn pick(log: &Log, byte: u8) -> u64 {
    log.first_index() + (log.next_index() - log.first_index()) * u64::from(byte) / 255
}

/// Applies to the log; on success returns the models after each single step of the operation.
fn apply(log: &mut Log, model: &mut Model, op: &Op, fill: u8) -> Result<Vec<Model>, LogError> {
    let mut steps = Vec::new();
    match op {
        Op::Append(lens) => {
            for len in lens {
                let payload = vec![fill; *len];
                log.append(model.next, &payload)?;
                model.records.insert(model.next, payload);
                model.next += 1;
                steps.push(model.clone());
            }
        }
        Op::State(s) => {
            log.set_state(&[*s; 100])?;
            model.state = Some(vec![*s; 100]);
        }
        Op::CutSuffix(at) => {
            let from = pick(log, *at);
            log.truncate_suffix(from)?;
            model.records.retain(|i, _| *i < from);
            model.next = from;
        }
        Op::CutPrefix(at) => {
            let to = pick(log, *at);
            log.truncate_prefix(to)?;
            model.records.retain(|i, _| *i >= to);
            model.first = to;
        }
        Op::Reset(ahead) => {
            let next = log.next_index() + u64::from(*ahead);
            log.reset(next)?;
            (model.first, model.next) = (next, next);
            model.records.clear();
        }
        Op::Sync | Op::Seal | Op::Reopen => {}
    }
    steps.push(model.clone());
    Ok(steps)
}

fn arbitrary_op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 0usize..300, 1 => 300usize..6000];
    prop_oneof![
        8 => prop::collection::vec(len, 1..8).prop_map(Op::Append),
        2 => any::<u8>().prop_map(Op::State),
        2 => any::<u8>().prop_map(Op::CutSuffix),
        3 => any::<u8>().prop_map(Op::CutPrefix),
        1 => (0u8..20).prop_map(Op::Reset),
        8 => Just(Op::Sync),
        4 => Just(Op::Seal),
        1 => Just(Op::Reopen),
    ]
}

/// Runs `ops`, cutting power at change `stop`, then reopens and compares. Returns whether power went.
fn run(ops: &[Op], stop: u64, seed: u64, disk: &MemDisk) -> Result<bool, TestCaseError> {
    let (mut log, _) = open(disk).unwrap();
    let mut model = Model::new();
    // Every state that may be found after a crash: the last synced one and all since.
    let mut allowed = vec![model.clone()];
    disk.stop_after(stop);
    for (fill, op) in (1u8..).zip(ops) {
        let outcome = match op {
            Op::Sync => log.sync().map(|()| allowed = vec![model.clone()]),
            Op::Seal => log.seal(),
            Op::Reopen => log.sync().and_then(|()| {
                allowed = vec![model.clone()];
                open(disk).map(|(again, recovered)| {
                    assert_eq!(recovered, Recovered { new: false, torn: false });
                    log = again;
                })
            }),
            Op::Append(_) | Op::State(_) | Op::CutSuffix(_) | Op::CutPrefix(_) | Op::Reset(_) => {
                apply(&mut log, &mut model, op, fill).map(|steps| allowed.extend(steps))
            }
        };
        if outcome.is_err() {
            break;
        }
        prop_assert_eq!(&Model::of(&log), &model);
    }
    let stopped = disk.is_powered_off();
    disk.crash(&mut SeededDice::new(seed));
    let (mut log, recovered) = open(disk).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
    prop_assert!(!recovered.new);
    let mut found = Model::of(&log);
    prop_assert!(allowed.contains(&found), "found {found:?}\nallowed {allowed:?}");
    // It goes on as if nothing had happened, through another crash.
    apply(&mut log, &mut found, &Op::Append(vec![5000, 3, 700]), 0xee).unwrap();
    log.sync().unwrap();
    disk.crash(&mut SeededDice::new(seed ^ 1));
    let (log, _) = open(disk).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
    prop_assert_eq!(Model::of(&log), found);
    Ok(stopped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn nothing_synced_is_lost_wherever_power_goes(
        ops in prop::collection::vec(arbitrary_op(), 1..40),
        stop in 1u64..200,
        seed in any::<u64>(),
    ) {
        run(&ops, stop, seed, &MemDisk::new())?;
    }
}

#[test]
fn every_single_change_may_be_the_last() {
    let ops: Vec<Op> = (0..12)
        .flat_map(|n| {
            [Op::Append(vec![40, 5000, 7]), Op::State(n), Op::Sync, Op::CutPrefix(120), Op::Sync]
        })
        .collect();
    let mut stop = 1;
    while run(&ops, stop, stop, &MemDisk::new()).unwrap() {
        stop += 1;
    }
    assert!(stop > 40, "the run has {stop} changes");
}

#[test]
fn without_the_sync_this_test_notices() {
    let lost = (0..50).any(|seed| {
        let disk = MemDisk::new();
        let (mut log, _) = open(&disk).unwrap();
        disk.lie_about_sync("");
        log.append(1, b"acknowledged").unwrap();
        log.sync().unwrap();
        disk.crash(&mut SeededDice::new(seed));
        open(&disk).unwrap().0.next_index() == 1
    });
    assert!(lost);
}

/// A log of `n` synced groups of one record each.
fn groups(n: u64) -> MemDisk {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk).unwrap();
    for i in 1..=n {
        log.append(i, &[1; 100]).unwrap();
        log.sync().unwrap();
    }
    disk
}

#[test]
fn damage_before_the_synced_end_is_an_error_not_a_shorter_log() {
    // Groups at 4096, 8192 and 12288 of segment 1, then segment 2.
    for (records, segment, offset) in
        [(2, 1, 4096 + 50), (3, 1, 8192 + 3), (4, 1, 12_288 + 60), (4, 1, 0), (4, 2, 30), (1, 1, 9)]
    {
        let disk = groups(records);
        disk.flip(&segment::segment_name(segment), offset).unwrap();
        let opened = open(&disk).map(|(log, _)| Model::of(&log));
        assert!(matches!(opened, Err(LogError::Damaged { .. })), "{offset}: {opened:?}");
    }
}

#[test]
fn a_missing_or_cut_segment_is_an_error() {
    let disk = groups(10);
    disk.remove(&segment::segment_name(2)).unwrap();
    let opened = open(&disk).map(|_| ());
    assert!(matches!(opened, Err(LogError::Damaged { segment: 2, .. })), "{opened:?}");

    let disk = groups(10);
    disk.remove(&segment::segment_name(1)).unwrap();
    let opened = open(&disk).map(|_| ());
    assert!(matches!(opened, Err(LogError::Damaged { .. })), "{opened:?}");

    let disk = groups(2);
    let file = disk.open(&segment::segment_name(1), OpenHow::EXISTING).unwrap();
    file.truncate(8192).unwrap();
    let opened = open(&disk).map(|_| ());
    assert!(matches!(opened, Err(LogError::Damaged { .. })), "{opened:?}");
}

#[test]
fn a_damaged_last_group_that_nothing_follows_counts_as_torn() {
    let disk = groups(2);
    disk.flip(&segment::segment_name(1), 8192 + 3).unwrap();
    let (log, recovered) = open(&disk).unwrap();
    assert_eq!(log.next_index(), 2);
    assert!(!recovered.new);
}

#[test]
fn a_sealed_log_tells_damage_of_its_last_group_from_a_torn_tail() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk).unwrap();
    log.set_state(b"voted").unwrap();
    log.append(1, &[1; 100]).unwrap();
    log.sync().unwrap();
    let before = disk.changes();
    log.seal().unwrap();
    let sealed = disk.changes();
    assert!(sealed > before);
    log.seal().unwrap();
    assert_eq!(disk.changes(), sealed, "one seal is enough");
    let whole = Model::of(&log);
    let name = segment::segment_name(1);
    // The seal itself repeats what is known: without it nothing is lost.
    disk.flip(&name, 8192 + 3).unwrap();
    assert_eq!(Model::of(&open(&disk).unwrap().0), whole);
    disk.flip(&name, 8192 + 3).unwrap();
    disk.flip(&name, 4096 + 3).unwrap();
    let opened = open(&disk).map(|(log, _)| Model::of(&log));
    assert!(matches!(opened, Err(LogError::Damaged { .. })), "{opened:?}");
}

#[test]
fn what_waits_for_a_sync_is_not_sealed_as_synced() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk).unwrap();
    log.set_state(b"voted").unwrap();
    let before = disk.changes();
    log.seal().unwrap();
    assert_eq!(disk.changes(), before);
}

#[test]
fn a_record_damaged_after_the_open_is_noticed_at_reading() {
    let disk = groups(2);
    let (log, _) = open(&disk).unwrap();
    disk.flip(&segment::segment_name(1), 4096 + 60).unwrap();
    assert!(matches!(log.read(1), Err(LogError::Damaged { offset: 4096, .. })));
    assert_eq!(log.read(2).unwrap(), [1; 100]);
}

#[test]
fn a_failed_sync_ends_the_log_until_it_is_opened_again() {
    for on in [FaultOn::Sync, FaultOn::Write] {
        let disk = groups(2);
        let (mut log, _) = open(&disk).unwrap();
        log.append(3, b"x").unwrap();
        disk.fail(on, "seg-", 0, 5);
        assert_eq!(log.sync(), Err(LogError::Failed));
        assert_eq!(log.sync(), Err(LogError::Failed));
        assert_eq!(log.append(4, b"x"), Err(LogError::Failed));
        let (log, _) = open(&disk).unwrap();
        assert!((3..=4).contains(&log.next_index()));
    }
}

#[test]
fn wrong_calls_get_typed_errors() {
    let (mut log, recovered) = open(&MemDisk::new()).unwrap();
    assert!(recovered.new);
    assert_eq!(log.append(2, b""), Err(LogError::NotNext { expected: 1, got: 2 }));
    assert_eq!(log.read(1), Err(LogError::OutOfRange { index: 1, first: 1, next: 1 }));
    assert!(matches!(log.truncate_suffix(0), Err(LogError::OutOfRange { .. })));
    assert!(matches!(log.truncate_prefix(2), Err(LogError::OutOfRange { .. })));
    let long = vec![0; log.record_max() + 1];
    assert!(matches!(log.append(1, &long), Err(LogError::TooLong { .. })));
    log.append(1, &long[1..]).unwrap();
    log.sync().unwrap();
    assert_eq!(log.read(1).unwrap().len(), log.record_max());
    assert!(matches!(log.set_state(&[0; STATE_MAX + 1]), Err(LogError::TooLong { .. })));
    let options = LogOptions { segment_bytes: 5000, ..SMALL };
    let opened = Log::open(Arc::new(MemDisk::new()), options).map(|_| ());
    assert_eq!(opened, Err(LogError::BadOptions { segment_bytes: 5000 }));
}

#[test]
fn dropped_segments_are_reused_and_the_folder_stays_small() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk).unwrap();
    for i in 1..200 {
        log.append(i, &[1; 3000]).unwrap();
        if i > 5 {
            log.truncate_prefix(i - 5).unwrap();
        }
        log.sync().unwrap();
    }
    assert!(disk.list().unwrap().len() < 8, "{:?}", disk.list());
}

#[test]
fn works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk = ashlar_env::disk::RealDisk::open(dir.path()).unwrap();
        Log::open(Arc::new(disk), SMALL).unwrap().0
    };
    let mut log = open();
    for i in 1..50 {
        log.append(i, &[7; 1000]).unwrap();
        log.sync().unwrap();
    }
    log.set_state(b"voted").unwrap();
    log.sync().unwrap();
    let before = Model::of(&log);
    drop(log);
    assert_eq!(Model::of(&open()), before);
}
