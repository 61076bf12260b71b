//! Members come and go by entries of the log, one at a time: a damaged one is replaced by a new one
//! under a number that was never used.

use super::*;

fn driver(group: &mut Group, id: u64) -> &mut Driver {
    group.members.get_mut(&id).unwrap().driver.as_mut().unwrap()
}

fn voters(group: &Group, id: u64) -> Vec<u64> {
    let mut voters = group.members[&id].driver.as_ref().unwrap().voters().to_vec();
    voters.sort_unstable();
    voters
}

fn follower(group: &Group) -> u64 {
    (1..=3).find(|id| Some(*id) != group.leader()).unwrap()
}

/// Proposes a new member and starts it, empty.
fn add(group: &mut Group) -> u64 {
    let leader = group.leader().unwrap();
    let (id, _, _) = driver(group, leader).propose_add(|_| Vec::new()).unwrap();
    group.collect(leader);
    group.members.insert(id, Member::new(id));
    group.start(id);
    group.until("it is a member", |group| {
        voters(group, leader).contains(&id) && voters(group, id).contains(&id)
    });
    id
}

fn remove(group: &mut Group, id: u64) {
    let leader = group.leader().unwrap();
    driver(group, leader).propose_remove(id, false, Vec::new()).unwrap();
    group.collect(leader);
    group.until("it is no member", |group| !voters(group, leader).contains(&id));
}

#[test]
fn a_lost_member_is_replaced_under_a_new_number() {
    for compacted in [false, true] {
        let mut group = Group::new(21);
        for _ in 0..if compacted { 70 } else { 5 } {
            group.commit();
        }
        let lost = follower(&group);
        group.crash(lost);
        remove(&mut group, lost);
        group.members.remove(&lost);
        let new = add(&mut group);
        assert!(new > 100, "{new} could be one of the first members");
        group.commit();
        assert_eq!(group.members[&new].state, group.members[&group.leader().unwrap()].state);
        // It counts: with one of the old members gone as well, the zone goes on.
        let old = (1..=3).find(|id| *id != lost && Some(*id) != group.leader()).unwrap();
        group.crash(old);
        group.commit();
        group.start(old);
        group.commit();
        let all: Vec<Vec<u64>> = group.members.keys().map(|id| voters(&group, *id)).collect();
        assert!(all.iter().all(|known| *known == all[0] && known.len() == 3), "{all:?}");
    }
}

#[test]
fn who_votes_outlives_crashes_of_all() {
    let mut group = Group::new(22);
    group.commit();
    let new = add(&mut group);
    let gone = follower(&group);
    remove(&mut group, gone);
    group.members.remove(&gone);
    for _ in 0..40 {
        group.commit();
    }
    let ids: Vec<u64> = group.members.keys().copied().collect();
    ids.iter().for_each(|id| group.crash(*id));
    group.wire.clear();
    ids.iter().for_each(|id| group.start(*id));
    group.commit();
    for id in ids {
        assert_eq!(voters(&group, id).len(), 3, "{id}");
        assert!(voters(&group, id).contains(&new) && !voters(&group, id).contains(&gone));
    }
}

#[test]
fn a_member_that_has_joined_votes_only_when_it_knows_who_does() {
    let mut group = Group::new(23);
    group.commit();
    let mut alone = Member::new(150);
    alone.start(1);
    for _ in 0..200 {
        alone.driver.as_mut().unwrap().tick();
        assert!(alone.settle().is_empty(), "it asks to be elected, or votes");
    }
    assert!(!alone.driver.as_ref().unwrap().is_leader());
    // Started a second time it has a store, empty as it is.
    alone.driver = None;
    alone.start(2);
    assert!(alone.settle().is_empty());
}

#[test]
fn changes_that_cannot_be_are_refused_by_name() {
    let mut group = Group::new(24);
    group.commit();
    let leader = group.leader().unwrap();
    let other = follower(&group);
    assert_eq!(
        driver(&mut group, leader).propose_remove(77, false, Vec::new()),
        Err(ChangeError::Unknown(77))
    );
    assert_eq!(
        driver(&mut group, leader).propose_remove(leader, false, Vec::new()),
        Err(ChangeError::Leads(leader))
    );
    assert_eq!(
        driver(&mut group, other).propose_add(|_| Vec::new()),
        Err(ChangeError::Propose(ProposeError::NotLeader))
    );
    driver(&mut group, leader).propose_add(|_| Vec::new()).unwrap();
    assert_eq!(driver(&mut group, leader).propose_add(|_| Vec::new()), Err(ChangeError::Pending));
}

#[test]
fn a_member_that_is_there_is_not_removed_when_the_others_are_no_majority() {
    let mut group = Group::new(25);
    group.commit();
    let leader = group.leader().unwrap();
    let lost = follower(&group);
    group.crash(lost);
    (0..30).for_each(|_| group.tick());
    assert_eq!(group.leader(), Some(leader));
    let there = (1..=3).find(|id| *id != leader && *id != lost).unwrap();
    let refused = driver(&mut group, leader).propose_remove(there, false, Vec::new());
    assert_eq!(refused, Err(ChangeError::NoMajority { heard: 1, left: 2 }));
    remove(&mut group, lost);
    group.members.remove(&lost);
    group.commit();
}

#[test]
fn a_new_member_votes_only_when_it_is_filled() {
    let mut group = Group::new(26);
    group.commit();
    let leader = group.leader().unwrap();
    let (id, _, _) = driver(&mut group, leader).propose_add(|_| b"words".to_vec()).unwrap();
    group.collect(leader);
    group.until("it is a learner", |group| driver(group, leader).status().learners == [id]);
    assert!(group.members[&leader].state.contains(&Bytes::from_static(b"words")));
    // Nobody has heard of it: it stays one, and counts for nothing.
    (0..100).for_each(|_| group.tick());
    assert!(!voters(&group, leader).contains(&id));
    let other = follower(&group);
    group.crash(other);
    group.commit();
    group.start(other);
    group.members.insert(id, Member::new(id));
    group.cut = vec![id];
    group.start(id);
    (0..100).for_each(|_| group.tick());
    assert!(!voters(&group, leader).contains(&id), "it votes with an empty log");
    group.cut.clear();
    group.until("it votes", |group| voters(group, id).contains(&id));
}

#[test]
fn a_learner_that_was_never_filled_is_removed_and_the_last_voter_never() {
    let mut group = Group::new(27);
    group.commit();
    let leader = group.leader().unwrap();
    let (id, _, _) = driver(&mut group, leader).propose_add(|_| Vec::new()).unwrap();
    group.collect(leader);
    group.until("it is a learner", |group| driver(group, leader).status().learners == [id]);
    driver(&mut group, leader).propose_remove(id, false, Vec::new()).unwrap();
    group.collect(leader);
    group.until("it is none", |group| driver(group, leader).status().learners.is_empty());
    for gone in (1..=3).filter(|id| *id != leader) {
        remove(&mut group, gone);
    }
    assert_eq!(
        driver(&mut group, leader).check_remove(leader, true),
        Err(ChangeError::Last(leader))
    );
}

#[test]
fn the_lead_is_handed_over_to_who_is_heard_and_the_leader_then_removed() {
    let mut group = Group::new(28);
    group.commit();
    let old = group.leader().unwrap();
    assert!(driver(&mut group, old).hand_over());
    group.collect(old);
    group.until("another leads", |group| group.leader().is_some_and(|id| id != old));
    remove(&mut group, old);
    group.members.remove(&old);
    group.commit();
}

#[test]
fn what_a_member_remembers_of_version_1_is_read() {
    use crate::storage::RaftStorage;
    // term 3, vote 2, commit 1, base (1, 1), voters 1 to 3: as the release before wrote it.
    let mut old = vec![1_u8];
    [3_u64, 2, 1, 1, 1, 1, 2, 3].iter().for_each(|number| old.extend(number.to_le_bytes()));
    let disk = Arc::new(MemDisk::new());
    let log_options = options(1, false).log;
    let (mut log, _) = ashlar_log::Log::open(disk.clone(), log_options).unwrap();
    log.set_state(&old).unwrap();
    log.sync().unwrap();
    drop(log);
    let snapshots = Arc::new(MemDisk::new());
    let storage = RaftStorage::open(disk, snapshots, log_options, &[], Start::Again).unwrap();
    assert_eq!(storage.voters(), [1, 2, 3]);
    assert!(storage.learners().is_empty());
    assert_eq!((storage.promises().0, storage.promises().1), (3, 2));
}
