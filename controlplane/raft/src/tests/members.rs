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
    let (id, _, _) = driver(group, leader).propose_add().unwrap();
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
    driver(group, leader).propose_remove(id).unwrap();
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
    assert_eq!(driver(&mut group, leader).propose_remove(77), Err(ChangeError::Unknown(77)));
    assert_eq!(driver(&mut group, leader).propose_remove(leader), Err(ChangeError::Leads(leader)));
    assert_eq!(
        driver(&mut group, other).propose_add(),
        Err(ChangeError::Propose(ProposeError::NotLeader))
    );
    driver(&mut group, leader).propose_add().unwrap();
    assert_eq!(driver(&mut group, leader).propose_add(), Err(ChangeError::Pending));
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
    let refused = driver(&mut group, leader).propose_remove(there);
    assert_eq!(refused, Err(ChangeError::NoMajority { heard: 1, left: 2 }));
    remove(&mut group, lost);
    group.members.remove(&lost);
    group.commit();
}
