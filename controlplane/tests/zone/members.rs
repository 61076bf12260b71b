//! Members come and go over real gRPC: joining, refusal by name, losses that are told.

use super::harness::{Zone, reason};
use ashlar_controlplane::{Config, RunError};
use ashlar_proto::reason::Reason;
use ashlar_proto::v1;
use std::path::PathBuf;

fn add(address: &str) -> v1::AddMemberRequest {
    v1::AddMemberRequest {
        address: address.into(),
        client_token: format!("add-{address}"),
        ..Default::default()
    }
}

fn remove(member: u64) -> v1::RemoveMemberRequest {
    v1::RemoveMemberRequest {
        member,
        client_token: format!("remove-{member}"),
        ..Default::default()
    }
}

/// Adds a member at a new address; gives its configuration.
async fn added(zone: &mut Zone, through: u64) -> Config {
    let address = zone.new_address();
    let added = zone.cluster(through).add_member(add(&address)).await.unwrap().into_inner();
    assert_eq!(added.address, address);
    zone.note_address(added.member, &address);
    Config {
        member: added.member,
        data_dir: zone.folder(added.member),
        listen: address,
        peers: Default::default(),
        join: added.join,
        bootstrap: false,
        ..zone.config(1)
    }
}

async fn until_it_votes(zone: &Zone, id: u64) {
    zone.until("the new member votes", |status| {
        let is = |m: &&v1::Member| m.id == id && m.role() == v1::MemberRole::Voter && m.reachable;
        status.members.iter().any(|member| is(&member))
    })
    .await;
}

fn log_of(config: &Config) -> PathBuf {
    config.data_dir.join("log")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_is_replaced_and_those_that_are_removed_say_so_and_end() {
    let mut zone = Zone::start(3, 3).await;
    let mut last = 1;
    for old in 1..=3 {
        let config = added(&mut zone, last.max(old)).await;
        let id = config.member;
        zone.run(config);
        until_it_votes(&zone, id).await;
        // Through any member, also the one that goes, also the leader.
        zone.cluster(id).remove_member(remove(old)).await.unwrap();
        let ended = zone.ended(old).await;
        let text = ended.unwrap_err().to_string();
        assert!(text.contains(&format!("member {old} was removed from zone a")), "{text}");
        last = id;
    }
    zone.until("nodes have found the new members", |status| {
        status.nodes.iter().all(|node| node.state() == v1::NodeState::Up)
    })
    .await;
    let status = zone.status().await;
    assert!(status.members.len() == 3 && status.members.iter().all(|m| m.id > 100));
    // One that comes back is refused by name.
    let again = Config { bootstrap: false, ..zone.config(1) };
    let old = again.member;
    zone.run(again);
    assert!(matches!(zone.ended(old).await, Err(RunError::Member(_))));
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_member_starts_again_on_its_folder_and_never_without_it() {
    let mut zone = Zone::start(3, 0).await;
    let config = added(&mut zone, 1).await;
    let id = config.member;
    zone.run(config.clone());
    until_it_votes(&zone, id).await;
    zone.stop_member(id).await;
    zone.run(config.clone());
    until_it_votes(&zone, id).await;
    zone.stop_member(id).await;

    // Its log alone is gone: it knows that it has run.
    std::fs::remove_dir_all(log_of(&config)).unwrap();
    zone.run(config.clone());
    let text = zone.ended(id).await.unwrap_err().to_string();
    assert!(text.contains("must not vote"), "{text}");
    zone.until("it is shown as forgetful", |status| {
        let shown = status.members.iter().find(|member| member.id == id);
        shown.is_some_and(|m| m.forgetful.contains("must not vote") && !m.remedy.is_empty())
    })
    .await;
    // All of its folder is gone: the zone knows.
    std::fs::remove_dir_all(&config.data_dir).unwrap();
    zone.run(config.clone());
    match zone.ended(id).await {
        Err(RunError::Refused(error)) => assert_eq!(error.reason, Reason::MemberRanBefore),
        other => panic!("{other:?}"),
    }
    // Under a number that nobody was given.
    let nobody = Config { member: 9_999, data_dir: zone.folder(9_999), ..config };
    zone.run(nobody);
    match zone.ended(9_999).await {
        Err(RunError::Refused(error)) => assert_eq!(error.reason, Reason::MemberNotFound),
        other => panic!("{other:?}"),
    }
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_at_risk_is_refused_by_name_and_dry_runs_change_nothing() {
    let mut zone = Zone::start(3, 0).await;
    let leader = zone.status().await.leader;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let there = (1..=3).find(|id| *id != leader && *id != away).unwrap();
    zone.stop_member(away).await;
    zone.until("it is missed", |status| {
        status.members.iter().any(|member| member.id == away && !member.reachable)
    })
    .await;
    let refused = zone.cluster(there).remove_member(remove(there)).await;
    assert_eq!(reason(refused), Reason::QuorumAtRisk);
    let dry = v1::RemoveMemberRequest { dry_run: true, ..remove(away) };
    assert!(zone.cluster(there).remove_member(dry).await.unwrap().into_inner().dry_run);
    let nowhere = zone.cluster(there).add_member(add("nowhere")).await;
    assert_eq!(reason(nowhere), Reason::InvalidParameter);
    let list = zone.cluster(there).list_members(v1::ListMembersRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().members.len(), 3);
    zone.stop().await;
}
