//! Members are added, start, vote, and are removed; whatever cannot be is refused by name.

use super::*;

impl World {
    fn list(&mut self) -> Vec<v1::Member> {
        match self.ask(&Request::ListMembers(v1::ListMembersRequest::default())) {
            Ok(Reply::ListMembers(list)) => list.members,
            other => panic!("{other:?}"),
        }
    }

    fn is_voter(&mut self, id: u64) -> bool {
        self.list().iter().any(|m| m.id == id && m.role() == v1::MemberRole::Voter)
    }

    fn add(&mut self, token: &str, address: &str) -> Result<v1::AddMemberResponse, ApiError> {
        match self.ask(&add(token, address))? {
            Reply::AddMember(added) => Ok(added),
            other => panic!("{other:?}"),
        }
    }

    fn remove(&mut self, member: u64, force: bool) -> Result<(), ApiError> {
        self.ask(&remove(&format!("remove-{member}"), member, force)).map(|_| ())
    }

    fn join(&mut self, member: u64, store: u128) -> Result<Reply, ApiError> {
        self.ask(&Request::JoinMember(v1::JoinMemberRequest {
            zone: "a".into(),
            member,
            store: format!("{store:032x}"),
        }))
    }

    /// Adds a member, lets it join and waits until it votes.
    fn add_and_join(&mut self, address: &str) -> u64 {
        let id = self.add(address, address).unwrap().member;
        self.join(id, u128::from(id)).unwrap();
        self.host(id);
        self.start(id);
        self.until("it votes", |world| world.is_voter(id));
        id
    }

    fn leader(&self) -> u64 {
        self.serving().unwrap()
    }

    fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.hosts.iter().find(|(id, h)| **id != leader && h.member.is_some()).unwrap().0
    }
}

fn add(token: &str, address: &str) -> Request {
    Request::AddMember(v1::AddMemberRequest {
        address: address.into(),
        client_token: token.into(),
        ..Default::default()
    })
}

fn remove(token: &str, member: u64, force: bool) -> Request {
    let client_token = token.into();
    Request::RemoveMember(v1::RemoveMemberRequest {
        member,
        force,
        client_token,
        ..Default::default()
    })
}

#[test]
fn all_members_are_replaced_one_after_another_and_the_zone_goes_on() {
    let mut world = World::new(61);
    world.compact_after = 20;
    world.settle();
    world.create("before").unwrap();
    for old in 1..=3 {
        // The leader too: it hands over first.
        world.remove(old, false).unwrap();
        world.until("it has ended", |world| world.hosts[&old].member.is_none());
        assert!(world.removed.contains(&old), "it ended without a word");
        world.add_and_join(&format!("127.0.1.{old}:1"));
    }
    world.settle();
    world.create("after").unwrap();
    let ids: Vec<u64> = world.list().iter().map(|member| member.id).collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id > 100), "{ids:?}");
    // Everything outlives a power cut of all of them.
    ids.iter().for_each(|id| world.crash(*id));
    world.wire.clear();
    ids.iter().for_each(|id| world.start(*id));
    world.settle();
    match world.ask(&Request::ListVolumes(v1::ListVolumesRequest::default())) {
        Ok(Reply::ListVolumes(list)) => assert_eq!(list.volumes.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nodes_and_clients_are_told_where_the_members_are() {
    let mut world = World::new(62);
    world.settle();
    world.create("v").unwrap();
    let map = |world: &mut World| {
        let request = v1::GetVolumeMapRequest { volume: "v".into(), ..Default::default() };
        match world.ask(&Request::GetVolumeMap(request)) {
            Ok(Reply::GetVolumeMap(reply)) => reply.map.unwrap().members,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(map(&mut world), ["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"]);
    assert!(world.nodes.values().all(|node| node.members.is_empty()), "nothing has changed yet");
    let gone = world.follower();
    world.remove(gone, false).unwrap();
    world.add_and_join("127.0.1.1:1");
    let now = map(&mut world);
    assert!(now.contains(&"127.0.1.1:1".to_owned()) && now.len() == 3, "{now:?}");
    assert!(world.nodes.values().all(|node| node.members == now));
}

#[test]
fn one_that_joins_hears_everybody_until_it_knows_the_zone() {
    let known = |joining| Members {
        addresses: [(2, "127.0.0.2:1".to_owned())].into(),
        removed: [3].into(),
        joining,
    };
    let admitted = |members: &Members| [1, 2, 3, 107].map(|peer| members.admits(peer));
    // A follower may have spoken first: the leader must be heard all the same.
    assert_eq!(admitted(&known(true)), [true, true, false, true]);
    assert_eq!(admitted(&known(false)), [false, true, false, true]);
}

#[test]
fn adding_twice_with_one_token_adds_one_member() {
    let mut world = World::new(63);
    world.settle();
    let first = world.add("t", "127.0.1.1:1").unwrap();
    let again = world.add("t", "127.0.1.1:1").unwrap();
    assert_eq!(first.member, again.member);
    assert_eq!(first.join, ["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"]);
    assert_eq!(world.list().len(), 4);
    let reason = |result: Result<v1::AddMemberResponse, ApiError>| result.unwrap_err().reason;
    assert_eq!(reason(world.add("t", "127.0.1.2:1")), Reason::IdempotentParameterMismatch);
    assert_eq!(reason(world.add("u", "127.0.1.1:1")), Reason::MemberExists);
    assert_eq!(reason(world.add("v", "127.0.0.1:1")), Reason::MemberExists);
    for wrong in ["here", "127.0.0.9", "0.0.0.0:7", "127.0.0.9:0"] {
        assert_eq!(reason(world.add("w", wrong)), Reason::InvalidParameter, "{wrong}");
    }
    for more in 2..=4 {
        world.add(&format!("more {more}").replace(' ', "-"), &format!("127.0.1.{more}:1")).unwrap();
    }
    let full = world.try_ask(add("x", "127.0.1.9:1")).unwrap();
    assert_eq!(full.unwrap_err().reason, Reason::MemberLimitExceeded);
    let id = first.member;
    world.remove(id, false).unwrap();
    world.remove(id, false).unwrap();
    let other = world.ask(&remove("other-token", id, false));
    assert_eq!(other.unwrap_err().reason, Reason::MemberRemoved);
    let unknown = world.ask(&remove("unknown", 77, false));
    assert_eq!(unknown.unwrap_err().reason, Reason::MemberNotFound);
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut world = World::new(64);
    world.settle();
    let (leader, before) = (world.leader(), world.list());
    for member in 1..=3 {
        let request = v1::RemoveMemberRequest { member, dry_run: true, ..Default::default() };
        world.ask(&Request::RemoveMember(request)).unwrap();
    }
    let request =
        v1::AddMemberRequest { address: "127.0.1.1:1".into(), dry_run: true, ..Default::default() };
    world.ask(&Request::AddMember(request)).unwrap();
    (0..40).for_each(|_| world.tick());
    assert_eq!((world.leader(), world.list().len()), (leader, before.len()));
}

#[test]
fn a_number_starts_with_one_store_only() {
    let mut world = World::new(65);
    world.settle();
    let reason = |result: Result<Reply, ApiError>| result.unwrap_err().reason;
    assert_eq!(reason(world.join(107, 5)), Reason::MemberNotFound);
    // The first ones have voted since the zone began, whether the state names them yet or not.
    assert_eq!(reason(world.join(1, 5)), Reason::MemberRanBefore);
    let id = world.add("t", "127.0.1.1:1").unwrap().member;
    world.join(id, 5).unwrap();
    world.join(id, 5).unwrap();
    assert_eq!(reason(world.join(id, 6)), Reason::MemberRanBefore);
    assert_eq!(reason(world.join(2, 5)), Reason::MemberRanBefore);
    assert_eq!(reason(world.join(id, 0)), Reason::InvalidParameter);
}

#[test]
fn removal_that_risks_the_quorum_is_refused_unless_forced() {
    let mut world = World::new(66);
    world.settle();
    let leader = world.leader();
    let away = world.follower();
    let there = (1..=3).find(|id| *id != leader && *id != away).unwrap();
    world.crash(away);
    (0..40).for_each(|_| world.tick());
    let reason = |result: Result<(), ApiError>| result.unwrap_err().reason;
    assert_eq!(reason(world.remove(there, false)), Reason::QuorumAtRisk);
    assert_eq!(reason(world.remove(leader, false)), Reason::QuorumAtRisk);
    // The one that is away may go: the others are a majority of what is left.
    world.remove(away, false).unwrap();
    assert_eq!(world.list().len(), 2);
    world.crash(there);
    (0..10).for_each(|_| world.tick());
    // Forced, it is up to the entry to be committed: the one that is left cannot alone.
    if let Some(leader) = world.serving() {
        let forced = remove("forced", there, true);
        let call = world.call(leader, forced, 1_000);
        (0..60).for_each(|_| world.tick());
        let answer = world.answers.remove(&call).unwrap();
        assert_ne!(answer.unwrap_err().reason, Reason::QuorumAtRisk);
    }
}

#[test]
fn a_member_that_was_away_finds_the_members_that_came_meanwhile() {
    let mut world = World::new(67);
    world.compact_after = 20;
    world.settle();
    let away = world.follower();
    world.crash(away);
    let others: Vec<u64> = (1..=3).filter(|id| *id != away).collect();
    world.add_and_join("127.0.1.1:1");
    world.add_and_join("127.0.1.2:1");
    for gone in others {
        world.remove(gone, false).unwrap();
        world.until("it has ended", |world| world.hosts[&gone].member.is_none());
    }
    for number in 0..40 {
        world.create(&format!("v{number}")).unwrap();
    }
    // Nobody that it knows is there any more.
    world.start(away);
    let leader = world.leader();
    world.until("it has caught up", |world| {
        let applied = |id: u64| world.hosts[&id].member.as_ref().map(Member::applied_index);
        applied(away) == applied(leader)
    });
}

#[test]
fn a_lost_member_is_shown_with_the_remedy_until_it_is_heard_again() {
    let mut world = World::new(68);
    world.settle();
    let lost = world.follower();
    world.crash(lost);
    (0..40).for_each(|_| world.tick());
    let report = |zone: &str, member| {
        Request::ReportLostMember(v1::ReportLostMemberRequest {
            zone: zone.into(),
            member,
            cause: "its log is damaged".into(),
        })
    };
    world.ask(&report("a", lost)).unwrap();
    let shown = |world: &mut World| world.list().into_iter().find(|m| m.id == lost).unwrap();
    let view = shown(&mut world);
    assert_eq!(view.forgetful, "its log is damaged");
    assert!(view.remedy.contains(&format!("controlplane remove {lost}")), "{}", view.remedy);
    assert_eq!(world.ask(&report("b", lost)).unwrap_err().reason, Reason::UnknownZone);
    assert_eq!(world.ask(&report("a", 77)).unwrap_err().reason, Reason::MemberNotFound);
    world.start(lost);
    world.until("it takes part again", |world| shown(world).forgetful.is_empty());
}

#[test]
fn what_a_removed_member_says_counts_no_more() {
    let mut world = World::new(69);
    world.settle();
    let gone = world.follower();
    let leader = world.leader();
    // It never hears of its removal.
    world.deaf.push(gone);
    world.remove(gone, false).unwrap();
    let term = world.status(leader).term;
    // Without pre-vote it would raise the term of the others, again and again.
    let mut vote = raft_vote(gone, leader, term + 5);
    world.feed(leader, Input::Raft { peer: gone, bytes: std::mem::take(&mut vote) });
    (0..40).for_each(|_| world.tick());
    assert_eq!((world.leader(), world.status(leader).term), (leader, term));
}

/// A request for a vote, as the wire has it: kind 5, to, from, term.
fn raft_vote(from: u64, to: u64, term: u64) -> Bytes {
    let mut out = vec![0x08, 5];
    for (tag, number) in [(0x10, to), (0x18, from), (0x20, term)] {
        out.push(tag);
        assert!(number < 128, "one byte of a varint");
        out.push(u8::try_from(number).unwrap());
    }
    // Nothing is as new as its log: last index and term as high as one byte goes.
    out.extend([0x28, 127, 0x30, 127]);
    // Raft's lease keeps a leader safe from votes; one that hands over has none. Its context says
    // that it is such a request.
    out.extend([0x72, 16]);
    out.extend(b"CampaignTransfer");
    Bytes::from(out)
}
