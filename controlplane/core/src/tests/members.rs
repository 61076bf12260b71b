//! The members of the control plane in the committed state.

use super::*;
use crate::command::{MemberRecord, request_hash};
use alloc::vec;

fn before() -> Vec<(u64, String)> {
    (1..=3).map(|id| (id, format!("127.0.0.{id}:1"))).collect()
}

fn add(zone: &mut Zone, member: u64) -> Result<Answer, Refusal> {
    let address = format!("127.0.0.9:{member}");
    zone.apply(Action::AddMember { token: None, member, address, before: before() }).answer
}

fn remove(zone: &mut Zone, member: u64) {
    let action = Action::RemoveMember { token: None, member, before: before() };
    zone.apply(action).answer.unwrap();
}

fn start(zone: &mut Zone, member: u64, store: u128) -> Result<Answer, Refusal> {
    zone.apply(Action::StartMember { member, store }).answer
}

#[test]
fn the_first_change_brings_in_the_members_that_were_configured() {
    let mut zone = Zone::new();
    assert_eq!(zone.state.members().count(), 0);
    add(&mut zone, 107).unwrap();
    let known: Vec<(u64, &str)> =
        zone.state.members().map(|m| (m.member, m.address.as_str())).collect();
    let first = [(1, "127.0.0.1:1"), (2, "127.0.0.2:1"), (3, "127.0.0.3:1")];
    assert_eq!(known, [&first[..], &[(107, "127.0.0.9:107")]].concat());
    // A later leader's configuration may still name them; it does not bring them back.
    remove(&mut zone, 2);
    add(&mut zone, 110).unwrap();
    assert!(zone.state.is_removed(2));
    let bytes = zone.state.to_snapshot();
    assert_eq!(ZoneState::from_snapshot(zone_id(), &bytes).as_ref(), Ok(&zone.state));
}

#[test]
fn a_member_starts_with_one_store_only_and_the_first_ones_with_none() {
    let mut zone = Zone::new();
    assert_eq!(start(&mut zone, 107, 5), Err(Refusal::UnknownMember(107)));
    add(&mut zone, 107).unwrap();
    start(&mut zone, 107, 5).unwrap();
    // A lost answer is asked for again.
    start(&mut zone, 107, 5).unwrap();
    assert_eq!(start(&mut zone, 107, 6), Err(Refusal::MemberRan(107)), "it forgot its votes");
    assert_eq!(start(&mut zone, 1, 6), Err(Refusal::MemberRan(1)), "it has voted since the start");
    remove(&mut zone, 107);
    assert_eq!(start(&mut zone, 107, 5), Err(Refusal::RemovedMember(107)));
}

#[test]
fn a_lost_member_is_noted_until_it_takes_part_again() {
    let mut zone = Zone::new();
    let note = |zone: &mut Zone, member, cause: &str| {
        let (cause, before) = (cause.into(), before());
        zone.apply(Action::NoteLost { member, cause, before }).answer
    };
    let lost = |zone: &Zone| zone.state.member(2).map(|member| member.lost.clone()).unwrap();
    note(&mut zone, 2, &"damaged \u{e9}".repeat(100)).unwrap();
    assert!(lost(&zone).starts_with("damaged") && lost(&zone).len() <= 256);
    note(&mut zone, 2, "").unwrap();
    assert_eq!(lost(&zone), "");
    assert_eq!(note(&mut zone, 9, "x"), Err(Refusal::UnknownMember(9)));
    remove(&mut zone, 2);
    assert_eq!(note(&mut zone, 2, "x"), Err(Refusal::RemovedMember(2)));
}

#[test]
fn a_repeated_call_to_add_gets_the_number_given_first() {
    let mut zone = Zone::new();
    let token = TokenUse { token: "t".into(), request_hash: request_hash(9, &[b"x"]) };
    let answer = zone.apply(Action::AddMember {
        token: Some(token.clone()),
        member: 107,
        address: "127.0.0.9:1".into(),
        before: before(),
    });
    assert_eq!(zone.state.replay(Some(&token)), Ok(answer.answer.as_ref().ok()));
    let other = TokenUse { request_hash: request_hash(9, &[b"y"]), ..token };
    assert_eq!(zone.state.replay(Some(&other)), Err(Refusal::TokenMismatch));
}

#[test]
fn commands_about_members_survive_the_log() {
    for action in [
        Action::AddMember { token: None, member: 107, address: "a".into(), before: before() },
        Action::RemoveMember { token: None, member: 2, before: vec![] },
        Action::StartMember { member: 107, store: 1 << 100 },
        Action::NoteLost { member: 2, cause: "c".into(), before: before() },
    ] {
        let command = Command { at_millis: 5, action };
        assert_eq!(Command::decode(&command.encode()), Ok(command));
    }
    // What the release before wrote is read: version 1, then the same bytes.
    let command =
        Command { at_millis: 5, action: Action::MarkReady { volumes: vec![volume_id(1)] } };
    let mut old = command.encode();
    old[..2].copy_from_slice(&1_u16.to_le_bytes());
    assert_eq!(Command::decode(&old), Ok(command));
    let record = MemberRecord {
        member: 107,
        address: "a".into(),
        removed: true,
        store: Some(7),
        lost: "l".into(),
    };
    let bytes = ashlar_types::codec::encode(&record);
    assert_eq!(ashlar_types::codec::decode(&bytes), Ok(record));
}
