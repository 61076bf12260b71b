//! Three members in one thread: loss, restarts, crashes, leader changes, snapshots.

mod damage;
mod members;
mod points;

use super::*;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::disk::mem::MemDisk;
use ashlar_log::LogOptions;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// One member with a state of its own: the list of what was applied.
struct Member {
    id: u64,
    driver: Option<Driver>,
    log: MemDisk,
    snapshots: MemDisk,
    applied: u64,
    state: Vec<Bytes>,
    starts: u64,
    /// Was added to a zone that exists.
    joins: bool,
}

/// The state as a snapshot: the entries, each with its length.
fn pack(state: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in state {
        out.push(u8::try_from(item.len()).unwrap());
        out.extend(item);
    }
    out
}

fn unpack(bytes: &[u8]) -> Vec<Bytes> {
    let (mut state, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let len = usize::from(bytes[at]);
        state.push(Bytes::copy_from_slice(&bytes[at + 1..at + 1 + len]));
        at += 1 + len;
    }
    state
}

impl Member {
    fn new(id: u64) -> Self {
        Self {
            id,
            driver: None,
            log: MemDisk::new(),
            snapshots: MemDisk::new(),
            applied: 0,
            state: Vec::new(),
            starts: 0,
            joins: id > 3,
        }
    }

    /// Starts from disk: its own state is in memory only, so all of it is rebuilt.
    fn start(&mut self, seed: u64) {
        let mut options = options(self.id, self.starts == 0);
        if self.starts == 0 && self.joins {
            options.start = Start::Join;
        }
        self.starts += 1;
        let memory =
            Memory::open(&options, Arc::new(self.log.clone()), Arc::new(self.snapshots.clone()))
                .unwrap();
        let newest = memory.newest_snapshot().unwrap();
        (self.applied, self.state) = match newest {
            Some((index, data)) => (index, unpack(&data)),
            None => (memory.base_index(), Vec::new()),
        };
        let dice = SeededDice::stream(seed, &format!("{} {}", self.id, self.starts));
        let driver = Driver::start(&options, memory, self.applied, Box::new(dice)).unwrap();
        self.driver = Some(driver);
    }

    fn settle(&mut self) -> Vec<(u64, Bytes)> {
        let Some(driver) = &mut self.driver else { return Vec::new() };
        let mut out = Outbox::default();
        driver.settle(&mut out).unwrap();
        if let Some((index, data)) = out.snapshot {
            (self.applied, self.state) = (index, unpack(&data));
        }
        for entry in out.committed {
            assert_eq!(entry.index, self.applied + 1, "entries come in order, none twice");
            self.applied = entry.index;
            if !entry.data.is_empty() {
                self.state.push(entry.data);
            }
        }
        if driver.entry_count() > 30 || driver.snapshot_wanted() {
            driver.compact(self.applied, pack(&self.state), 5).unwrap();
        }
        out.messages
    }
}

fn options(id: u64, bootstrap: bool) -> RaftOptions {
    RaftOptions {
        id,
        voters: vec![1, 2, 3],
        start: Start::bootstrap_if(bootstrap),
        heartbeat_ticks: 2,
        election_ticks: 10,
        log: LogOptions { segment_bytes: 64 << 10, spare_segments: 1 },
    }
}

struct Group {
    members: BTreeMap<u64, Member>,
    wire: VecDeque<(u64, u64, Bytes)>,
    dice: SeededDice,
    seed: u64,
    loss_percent: u64,
    /// Nothing goes to or from these.
    cut: Vec<u64>,
    proposed: u64,
    trace: Vec<u8>,
}

impl Group {
    fn new(seed: u64) -> Self {
        let mut members: BTreeMap<u64, Member> = (1..=3).map(|id| (id, Member::new(id))).collect();
        members.values_mut().for_each(|member| member.start(seed));
        Self {
            members,
            wire: VecDeque::new(),
            dice: SeededDice::stream(seed, "wire"),
            seed,
            loss_percent: 0,
            cut: Vec::new(),
            proposed: 0,
            trace: Vec::new(),
        }
    }

    fn collect(&mut self, id: u64) {
        let messages = self.members.get_mut(&id).unwrap().settle();
        for (to, bytes) in messages {
            self.trace.extend(&bytes);
            let lost = self.dice.chance(self.loss_percent, 100);
            if !lost && !self.cut.contains(&id) && !self.cut.contains(&to) {
                self.wire.push_back((id, to, bytes));
            }
        }
    }

    fn tick(&mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            if let Some(driver) = &mut self.members.get_mut(&id).unwrap().driver {
                driver.tick();
            }
            self.collect(id);
        }
        for _ in 0..1_000 {
            let Some((from, to, bytes)) = self.wire.pop_front() else { break };
            let Some(member) = self.members.get_mut(&to) else { continue };
            if let Some(driver) = &mut member.driver {
                driver.step(from, bytes).unwrap();
            }
            self.collect(to);
        }
        self.check();
    }

    /// What was applied anywhere is a prefix of what was applied elsewhere.
    fn check(&self) {
        let longest = self.members.values().max_by_key(|member| member.state.len()).unwrap();
        for member in self.members.values() {
            assert_eq!(member.state[..], longest.state[..member.state.len()], "seed {}", self.seed);
        }
        let leaders = self
            .members
            .values()
            .filter_map(|member| member.driver.as_ref())
            .filter(|driver| driver.is_leader())
            .map(Driver::term);
        let mut terms: Vec<u64> = leaders.collect();
        terms.sort_unstable();
        assert!(terms.windows(2).all(|pair| pair[0] != pair[1]), "two leaders in one term");
    }

    fn leader(&self) -> Option<u64> {
        self.members
            .values()
            .filter(|member| !self.cut.contains(&member.id))
            .filter_map(|member| member.driver.as_ref())
            .filter(|driver| driver.is_leader())
            .max_by_key(|driver| driver.term())
            .map(|driver| driver.status().id)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..5_000 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("never: {what}, seed {}", self.seed);
    }

    /// Proposes one entry and waits until every running member has applied it.
    fn commit(&mut self) {
        self.proposed += 1;
        let data = Bytes::from(format!("entry {}", self.proposed));
        self.until("commit", |group| {
            let there = |member: &Member| {
                member.driver.is_none()
                    || group.cut.contains(&member.id)
                    || member.state.contains(&data)
            };
            if group.members.values().all(there) {
                return true;
            }
            let somewhere = group.members.values().any(|member| member.state.contains(&data));
            if let Some(leader) = group.leader().filter(|_| !somewhere) {
                let driver = group.members.get_mut(&leader).unwrap().driver.as_mut().unwrap();
                // May be taken more than once: this test has no tokens.
                driver.propose(data.to_vec()).ok();
                group.collect(leader);
            }
            false
        });
    }

    fn crash(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        member.driver = None;
        member.log.crash(&mut self.dice);
        member.snapshots.crash(&mut self.dice);
    }

    fn start(&mut self, id: u64) {
        let seed = self.seed;
        self.members.get_mut(&id).unwrap().start(seed);
    }
}

#[test]
fn a_leader_is_elected_and_entries_reach_everybody() {
    let mut group = Group::new(1);
    for _ in 0..5 {
        group.commit();
    }
    assert!(group.members.values().all(|member| member.state.len() >= 5));
}

#[test]
fn committed_entries_outlive_loss_crashes_and_leader_changes() {
    for seed in 0..20 {
        let mut group = Group::new(seed);
        group.loss_percent = 10;
        for round in 0..12 {
            group.commit();
            let victim = match round % 3 {
                0 => group.leader().unwrap_or(1),
                _ => 1 + group.dice.below(3),
            };
            group.crash(victim);
            group.commit();
            group.start(victim);
        }
        group.commit();
        let distinct: std::collections::BTreeSet<_> =
            group.members[&1].state.iter().cloned().collect();
        assert_eq!(distinct.len(), 25, "seed {seed}: every entry, on a restarted member too");
    }
}

#[test]
fn all_members_crash_at_once_and_nothing_committed_is_lost() {
    for seed in 0..10 {
        let mut group = Group::new(seed);
        for _ in 0..3 {
            for _ in 0..15 {
                group.commit();
            }
            let before = group.members[&1].state.clone();
            (1..=3).for_each(|id| group.crash(id));
            group.wire.clear();
            (1..=3).for_each(|id| group.start(id));
            group.commit();
            assert!(group.members[&1].state.starts_with(&before), "seed {seed}");
        }
    }
}

#[test]
fn a_member_that_was_away_for_long_gets_a_snapshot_even_if_it_is_lost_at_first() {
    let mut group = Group::new(3);
    group.commit();
    let away = (1..=3).find(|id| Some(*id) != group.leader()).unwrap();
    group.crash(away);
    for _ in 0..60 {
        group.commit();
    }
    let leader = group.leader().unwrap();
    let base = group.members[&leader].driver.as_ref().unwrap().base_index();
    assert!(base > 20, "the log was compacted: {base}");
    group.start(away);
    group.loss_percent = 60;
    for _ in 0..100 {
        group.tick();
    }
    group.loss_percent = 0;
    group.commit();
    assert!(group.members[&away].state.len() >= 60);
    // And it starts from that snapshot.
    group.crash(away);
    group.start(away);
    group.commit();
}

#[test]
fn a_cut_off_leader_steps_down_and_its_entries_give_way() {
    let mut group = Group::new(4);
    group.commit();
    let old = group.leader().unwrap();
    group.cut.push(old);
    let driver = group.members.get_mut(&old).unwrap().driver.as_mut().unwrap();
    driver.propose(b"never".to_vec()).unwrap();
    group.collect(old);
    group.until("another leader", |group| group.leader().is_some_and(|id| id != old));
    group.commit();
    group.until("the old one steps down", |group| {
        !group.members[&old].driver.as_ref().unwrap().is_leader()
    });
    let term = group.members[&group.leader().unwrap()].driver.as_ref().unwrap().term();
    group.cut.clear();
    group.commit();
    assert!(group.members.values().all(|m| !m.state.contains(&Bytes::from_static(b"never"))));
    // Thanks to pre-vote its return disturbs nobody.
    assert_eq!(group.members[&group.leader().unwrap()].driver.as_ref().unwrap().term(), term);
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = |seed| {
        let mut group = Group::new(seed);
        group.loss_percent = 20;
        for round in 1..=6 {
            group.commit();
            group.crash(1 + round % 3);
            group.commit();
            group.start(1 + round % 3);
        }
        group.trace
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_leader_knows_who_is_there() {
    let mut group = Group::new(6);
    group.commit();
    let leader = group.leader().unwrap();
    let heard = |group: &Group| -> Vec<bool> {
        let status = group.members[&leader].driver.as_ref().unwrap().status();
        status.members.values().map(|(_, heard)| *heard).collect()
    };
    // Never a flicker: Raft forgets at every election time-out.
    for _ in 0..50 {
        group.tick();
        assert_eq!(heard(&group), [true; 3]);
    }
    let away = (1..=3).find(|id| *id != leader).unwrap();
    group.crash(away);
    for _ in 0..12 {
        group.tick();
    }
    assert_eq!(heard(&group).iter().filter(|heard| **heard).count(), 2);
}

#[test]
fn an_empty_log_without_bootstrap_is_refused() {
    let memory =
        Memory::open(&options(1, false), Arc::new(MemDisk::new()), Arc::new(MemDisk::new()));
    assert!(matches!(memory, Err(StorageError::Empty)));
}

#[test]
fn followers_refuse_proposals_and_garbage_changes_nothing() {
    let mut group = Group::new(5);
    group.commit();
    let follower = (1..=3).find(|id| Some(*id) != group.leader()).unwrap();
    let peer = group.leader().unwrap();
    let driver = group.members.get_mut(&follower).unwrap().driver.as_mut().unwrap();
    assert_eq!(driver.propose(b"x".to_vec()), Err(ProposeError::NotLeader));
    let before = driver.status();
    for garbage in [&b""[..], &[0xff; 100], b"\x08\x03\x10\x01"] {
        assert!(driver.step(peer, Bytes::copy_from_slice(garbage)).is_err());
    }
    assert_eq!(driver.status(), before);
    let leader = group.members.get_mut(&peer).unwrap().driver.as_mut().unwrap();
    let long = vec![0; driver::ENTRY_BYTES_MAX + 1];
    assert!(matches!(leader.propose(long), Err(ProposeError::TooLong(_))));
}

#[test]
fn room_is_kept_for_what_must_not_wait_behind_others() {
    let mut group = Group::new(5);
    group.commit();
    let leader = group.leader().unwrap();
    let driver = group.members.get_mut(&leader).unwrap().driver.as_mut().unwrap();
    // Nothing is committed meanwhile: no message passes.
    let longest = || vec![0; driver::ENTRY_BYTES_MAX];
    let taken = (0..64).take_while(|_| driver.propose(longest()).is_ok()).count();
    assert!((1..64).contains(&taken), "{taken} were taken");
    assert_eq!(driver.propose(longest()), Err(ProposeError::Busy));
    driver.propose_urgent(longest()).unwrap();
    assert_eq!(driver.propose(longest()), Err(ProposeError::Busy));
}
