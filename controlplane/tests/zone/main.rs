//! Three members over real gRPC with nodes that only talk: what clients and nodes can rely on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, wherever its code stands"
)]

mod harness;
mod members;
mod region;

use ashlar_controlplane::Timing;
use ashlar_proto::convert::NodeMessage;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use harness::{Zone, reason};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn create(name: &str, token: &str) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        name: name.into(),
        size_bytes: 256 * MIB,
        client_token: token.into(),
        ..Default::default()
    }
}

fn attach(volume: &str, client: &str, force: bool, token: &str) -> v1::AttachVolumeRequest {
    v1::AttachVolumeRequest {
        volume: volume.into(),
        client_name: client.into(),
        force,
        client_token: token.into(),
        ..Default::default()
    }
}

fn named(volume: &str) -> v1::GetVolumeRequest {
    v1::GetVolumeRequest { volume: volume.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_lives_from_creation_to_erasure_through_any_member() {
    let mut zone = Zone::start(3, 4).await;
    for member in 1..=3 {
        let name = format!("v{member}");
        let made = zone.volumes(member).create_volume(create(&name, &name)).await.unwrap();
        let made = made.into_inner();
        assert_eq!(made.nodes, [1, 2, 3, 4]);
        zone.available(&name).await;
    }
    let page = v1::ListVolumesRequest { page_size: 2, ..Default::default() };
    let first = zone.volumes(2).list_volumes(page).await.unwrap().into_inner();
    assert_eq!(first.volumes.len(), 2);
    let page = v1::ListVolumesRequest {
        page_size: 2,
        page_token: first.next_page_token,
        ..Default::default()
    };
    let second = zone.volumes(1).list_volumes(page).await.unwrap().into_inner();
    assert_eq!((second.volumes.len(), second.next_page_token.as_str()), (1, ""));

    let attached = zone.volumes(3).attach_volume(attach("v1", "one", false, "a")).await.unwrap();
    let map = attached.into_inner().map.unwrap();
    assert_eq!((map.generation, map.chunks.len(), map.nodes.len()), (1, 4, 4));
    assert!(map.chunks.iter().all(|chunk| chunk.generation == 1 && chunk.in_sync.len() == 3));
    let refused = zone.volumes(2).attach_volume(attach("v1", "two", false, "b")).await;
    assert_eq!(reason(refused), Reason::VolumeInUse);
    let forced = zone.volumes(2).attach_volume(attach("v1", "two", true, "c")).await.unwrap();
    assert_eq!(forced.into_inner().map.unwrap().generation, 2);
    let busy = v1::DeleteVolumeRequest { volume: "v1".into(), ..Default::default() };
    assert_eq!(reason(zone.volumes(1).delete_volume(busy).await), Reason::VolumeInUse);
    let detach = |generation| v1::DetachVolumeRequest {
        volume: "v1".into(),
        generation,
        ..Default::default()
    };
    assert_eq!(reason(zone.volumes(1).detach_volume(detach(1)).await), Reason::Fenced);
    let detached = zone.volumes(1).detach_volume(detach(2)).await.unwrap().into_inner();
    assert_eq!(detached.volume.unwrap().generation, 3);

    for name in ["v1", "v2", "v3"] {
        let delete = v1::DeleteVolumeRequest { volume: name.into(), ..Default::default() };
        zone.volumes(2).delete_volume(delete).await.unwrap();
        assert_eq!(reason(zone.volumes(3).get_volume(named(name)).await), Reason::VolumeNotFound);
    }
    zone.until("erased everywhere", |status| status.erasing_replicas == 0).await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_answers_again_and_refuses_another_request() {
    let mut zone = Zone::start(1, 3).await;
    let first = zone.volumes(1).create_volume(create("v", "t")).await.unwrap().into_inner();
    let again = zone.volumes(1).create_volume(create("v", "t")).await.unwrap().into_inner();
    assert_eq!(first.volume.unwrap().id, again.volume.unwrap().id);
    let other = zone.volumes(1).create_volume(create("w", "t")).await;
    assert_eq!(reason(other), Reason::IdempotentParameterMismatch);
    let other = zone.volumes(1).attach_volume(attach("v", "c", false, "t")).await;
    assert_eq!(reason(other), Reason::IdempotentParameterMismatch);
    let one = zone.volumes(1).attach_volume(attach("v", "c", false, "u")).await.unwrap();
    // The client died before the answer came, and asks again as another process.
    let two = zone.volumes(1).attach_volume(attach("v", "c again", true, "u")).await.unwrap();
    let generation = |reply: tonic::Response<v1::AttachVolumeResponse>| {
        reply.into_inner().map.unwrap().generation
    };
    assert_eq!((generation(one), generation(two)), (1, 1));
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_gets_a_typed_error_that_names_the_field() {
    let mut zone = Zone::start(1, 3).await;
    let good = create("v", "");
    for (request, wanted, field) in [
        (
            v1::CreateVolumeRequest { size_bytes: 0, ..good.clone() },
            Reason::UnsupportedSize,
            "size_bytes",
        ),
        (
            v1::CreateVolumeRequest { size_bytes: u64::MAX, ..good.clone() },
            Reason::UnsupportedSize,
            "size_bytes",
        ),
        (
            v1::CreateVolumeRequest { chunk_bytes: 5, ..good.clone() },
            Reason::InvalidParameter,
            "chunk_bytes",
        ),
        (
            // Nothing else is wrong with it.
            v1::CreateVolumeRequest { chunk_bytes: 32 << 20, ..good.clone() },
            Reason::InvalidParameter,
            "chunk_bytes",
        ),
        (v1::CreateVolumeRequest { copies: 9, ..good.clone() }, Reason::InvalidParameter, "copies"),
        (
            v1::CreateVolumeRequest { name: "a b".into(), ..good.clone() },
            Reason::InvalidParameter,
            "name",
        ),
        (
            v1::CreateVolumeRequest { name: "vol-x".into(), ..good.clone() },
            Reason::InvalidParameter,
            "name",
        ),
        (
            v1::CreateVolumeRequest { client_token: "x".repeat(65), ..good.clone() },
            Reason::InvalidParameter,
            "client_token",
        ),
        (
            v1::CreateVolumeRequest { client_token: "é".into(), ..good.clone() },
            Reason::InvalidParameter,
            "client_token",
        ),
    ] {
        let status = zone.volumes(1).create_volume(request).await.unwrap_err();
        let error = ApiError::from_status(&status).unwrap();
        assert_eq!((error.reason, error.fields[0].0.as_str()), (wanted, field));
    }
    let huge = v1::CreateVolumeRequest { size_bytes: 1 << 40, ..good };
    let started = std::time::Instant::now();
    let status = zone.volumes(1).create_volume(huge).await.unwrap_err();
    let error = ApiError::from_status(&status).unwrap();
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(error.reason, Reason::InsufficientVolumeCapacity);
    assert!(error.metadata["node-1"].contains("bytes free"), "{error:?}");
    assert!(error.retry_after.is_some() && !error.quotas.is_empty());
    let foreign = "vol-zzz-00000000000000000000000000000001";
    assert_eq!(reason(zone.volumes(1).get_volume(named(foreign)).await), Reason::UnknownZone);
    assert_eq!(reason(zone.volumes(1).get_volume(named("")).await), Reason::InvalidParameter);
    assert_eq!(reason(zone.volumes(1).get_volume(named("x")).await), Reason::VolumeNotFound);
    let page = v1::ListVolumesRequest { page_token: "?".into(), ..Default::default() };
    assert_eq!(reason(zone.volumes(1).list_volumes(page).await), Reason::InvalidParameter);
    let dry = v1::CreateVolumeRequest { dry_run: true, ..create("dry", "") };
    assert!(zone.volumes(1).create_volume(dry).await.unwrap().into_inner().dry_run);
    assert_eq!(reason(zone.volumes(1).get_volume(named("dry")).await), Reason::VolumeNotFound);
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_requests_wait_is_within_bounds_and_shown_and_part_of_the_call() {
    let mut zone = Zone::start(1, 3).await;
    let with = |error_after_millis, token: &str| v1::CreateVolumeRequest {
        error_after_millis,
        ..create("v", token)
    };
    for millis in [1, 4_999, 86_400_001, u64::MAX] {
        let status = zone.volumes(1).create_volume(with(millis, "")).await.unwrap_err();
        let error = ApiError::from_status(&status).unwrap();
        assert_eq!(error.reason, Reason::InvalidParameter);
        assert_eq!(error.fields[0].0, "error_after_millis");
    }
    let made = zone.volumes(1).create_volume(with(5_000, "t")).await.unwrap().into_inner();
    assert_eq!(made.volume.unwrap().error_after_millis, 5_000);
    let shown = zone.volumes(1).get_volume(named("v")).await.unwrap().into_inner();
    assert_eq!(shown.volume.unwrap().error_after_millis, 5_000);
    let other = zone.volumes(1).create_volume(with(6_000, "t")).await;
    assert_eq!(reason(other), Reason::IdempotentParameterMismatch);
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_zone_outlives_its_leader_and_a_restart_of_all() {
    let mut zone = Zone::start(3, 4).await;
    zone.volumes(1).create_volume(create("kept", "k")).await.unwrap();
    zone.available("kept").await;
    let leader = zone.status().await.leader;
    zone.stop_member(leader).await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    zone.volumes(other).create_volume(create("after", "l")).await.unwrap();
    zone.start_member(leader);
    // Through the member that was away: it forwards, or caught up.
    zone.available_through(leader, "after").await;
    for id in 1..=3 {
        zone.stop_member(id).await;
    }
    for id in 1..=3 {
        zone.start_member(id);
    }
    for name in ["kept", "after"] {
        zone.available(name).await;
    }
    let again = zone.volumes(2).create_volume(create("kept", "k")).await.unwrap().into_inner();
    assert_eq!(again.volume.unwrap().name, "kept", "tokens outlive restarts too");
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_takes_over_a_snapshot() {
    let timing = Timing { compact_after_entries: 16, ..Timing::default() };
    let mut zone = Zone::start_with(3, 4, timing).await;
    let leader = zone.status().await.leader;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    zone.stop_member(away).await;
    for number in 0..30 {
        let name = format!("v{number}");
        zone.volumes(leader).create_volume(create(&name, &name)).await.unwrap();
    }
    zone.start_member(away);
    zone.until("it has everything", |status| {
        let member = status.members.iter().find(|member| member.id == away).unwrap();
        member.reachable && member.matched_index >= status.applied_index
    })
    .await;
    // And starts again from what it took over.
    zone.stop_member(away).await;
    zone.start_member(away);
    zone.available_through(away, "v29").await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_ports_refuse_loses_its_primaries_within_a_second() {
    let mut zone = Zone::start(3, 4).await;
    zone.volumes(1).create_volume(create("v", "t")).await.unwrap();
    zone.available("v").await;
    let started = std::time::Instant::now();
    zone.kill_node(1).await;
    zone.until("others took over", |status| {
        status.nodes.iter().any(|node| node.id == 1 && node.primaries == 0)
    })
    .await;
    let pause = started.elapsed();
    assert!(pause < Duration::from_secs(3), "{pause:?}");
    let status = zone.status().await;
    let node = status.nodes.iter().find(|node| node.id == 1).unwrap();
    assert_eq!(node.state(), v1::NodeState::Dead, "{node:?}");
    let map = v1::GetVolumeMapRequest { volume: "v".into(), ..Default::default() };
    let map = zone.volumes(2).get_volume_map(map).await.unwrap().into_inner().map.unwrap();
    assert!(map.chunks.iter().all(|chunk| chunk.primary.as_ref().unwrap().node != 1));
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_s_token_is_renewed_for_its_bearer_and_for_nobody_after_it() {
    let mut zone = Zone::start(3, 3).await;
    zone.volumes(1).create_volume(create("v", "t")).await.unwrap();
    zone.available("v").await;
    let first = zone.volumes(1).attach_volume(attach("v", "c", false, "a")).await.unwrap();
    let first = first.into_inner().token;
    assert!(first.len() > 64, "signed");
    let renew = |token: &[u8]| v1::GetVolumeMapRequest { volume: "v".into(), token: token.into() };
    let renewed = zone.volumes(2).get_volume_map(renew(&first)).await.unwrap().into_inner().token;
    // All but the expiry, which is behind everything else that is signed, stays.
    let said = first.len() - 64 - 8;
    assert_eq!(renewed[..said], first[..said]);
    let mut forged = first.clone();
    forged[said] ^= 1;
    let answer = zone.volumes(2).get_volume_map(renew(&forged)).await.unwrap().into_inner();
    assert!(answer.token.is_empty() && answer.map.is_some());
    zone.volumes(3).attach_volume(attach("v", "d", true, "b")).await.unwrap();
    let answer = zone.volumes(2).get_volume_map(renew(&first)).await.unwrap().into_inner();
    assert!(answer.token.is_empty(), "the attachment is over");
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_that_nobody_adopts_says_on_whom_it_waits() {
    let mut zone = Zone::start(1, 3).await;
    zone.volumes(1).create_volume(create("v", "t")).await.unwrap();
    zone.available("v").await;
    zone.hush_nodes();
    let mut request = tonic::Request::new(attach("v", "c", false, "a"));
    request.set_timeout(Duration::from_secs(2));
    let status = zone.volumes(1).attach_volume(request).await.unwrap_err();
    let error = ApiError::from_status(&status).unwrap_or_else(|| panic!("untyped: {status:?}"));
    assert_eq!(error.reason, Reason::AdoptionPending);
    assert!(error.metadata["blocked_on"].contains("node-2"), "{error:?}");
    let waits = |volume: v1::Volume| volume.attachment.unwrap().waits;
    let shown = zone.volumes(1).get_volume(named("v")).await.unwrap().into_inner();
    let shown = waits(shown.volume.unwrap()).expect("the volume says so as well");
    assert!(shown.cause.contains("confirmed generation 1"), "{shown:?}");
    assert!(shown.blocked_on.contains(&2) && shown.since_millis >= 1_000, "{shown:?}");
    assert!(shown.next_action.contains("--old-client-fenced"), "{shown:?}");
    let listed = zone.status().await.volumes;
    assert!(listed.into_iter().all(|volume| waits(volume).is_some()));
    zone.unhush_nodes();
    let map = zone.volumes(1).attach_volume(attach("v", "c", false, "a")).await.unwrap();
    assert_eq!(map.into_inner().map.unwrap().generation, 1);
    let shown = zone.volumes(1).get_volume(named("v")).await.unwrap().into_inner();
    assert_eq!(waits(shown.volume.unwrap()), None);
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_word_that_the_client_before_is_fenced_ends_the_wait() {
    let mut zone = Zone::start(3, 3).await;
    zone.volumes(1).create_volume(create("v", "t")).await.unwrap();
    zone.available("v").await;
    zone.volumes(1).attach_volume(attach("v", "lost", false, "a")).await.unwrap();
    zone.hush_nodes();
    let mut request = tonic::Request::new(attach("v", "next", true, "b"));
    request.set_timeout(Duration::from_secs(2));
    assert_eq!(reason(zone.volumes(1).attach_volume(request).await), Reason::AdoptionPending);
    // The same call again, with the word: by nobody it is none.
    let stated = |operator: &str| v1::AttachVolumeRequest {
        old_client_fenced: true,
        operator: operator.into(),
        ..attach("v", "next", true, "b")
    };
    assert_eq!(reason(zone.volumes(1).attach_volume(stated("")).await), Reason::InvalidParameter);
    let map = zone.volumes(1).attach_volume(stated("ada")).await.unwrap().into_inner().map;
    assert_eq!(map.unwrap().generation, 2);
    let shown = zone.volumes(2).get_volume(named("v")).await.unwrap().into_inner();
    let attachment = shown.volume.unwrap().attachment.unwrap();
    assert_eq!((attachment.waits, attachment.old_client_fenced_by.as_str()), (None, "ada"));
    // It was about that attachment: the next one waits again, unless it is said again.
    let mut request = tonic::Request::new(attach("v", "third", true, "c"));
    request.set_timeout(Duration::from_secs(2));
    assert_eq!(reason(zone.volumes(1).attach_volume(request).await), Reason::AdoptionPending);
    let anew = v1::AttachVolumeRequest {
        old_client_fenced: true,
        operator: "ada".into(),
        ..attach("v", "fourth", true, "d")
    };
    let map = zone.volumes(1).attach_volume(anew).await.unwrap().into_inner().map;
    assert_eq!(map.unwrap().generation, 4);
    zone.unhush_nodes();
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_introduce_themselves_wrongly_are_told_why() {
    let mut zone = Zone::start(3, 3).await;
    let leader = zone.status().await.leader;
    let good = zone.registration(7);
    for (registration, wanted) in [
        (v1::Registration { version: 9, ..good.clone() }, Reason::UnsupportedVersion),
        (v1::Registration { zone: "b".into(), ..good.clone() }, Reason::InvalidRegistration),
        (v1::Registration { node: 0, ..good.clone() }, Reason::InvalidRegistration),
        (
            v1::Registration { primary_address: "x".into(), ..good.clone() },
            Reason::InvalidRegistration,
        ),
        (
            v1::Registration { stores: zone.registration(1).stores, ..good.clone() },
            Reason::NodeIdTaken,
        ),
    ] {
        assert_eq!(zone.refusal_of(leader, registration).await.reason, wanted);
    }
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let redirect = zone.refusal_of(follower, good).await;
    assert_eq!(redirect.reason, Reason::NotLeader);
    assert_eq!(redirect.metadata["leader"], leader.to_string());
    assert_eq!(redirect.metadata["leader_address"], zone.address(leader));
    // What a node must not say first is refused too.
    assert!(NodeMessage::try_from(&v1::NodeUp { message: None }).is_err());
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_reflection_and_unknown_services_answer() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let mut zone = Zone::start(1, 0).await;
    let channel = zone.channel(1);
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest { service: "ashlar.v1.VolumeService".into() })
        .await
        .unwrap();
    assert_eq!(health.into_inner().status, 1);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    assert!(list.service.iter().any(|service| service.name == "ashlar.v1.NodeService"));
    drop(answers);
    zone.stop().await;
}
