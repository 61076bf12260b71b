//! Several zones, one member each: any of them answers for all, and none needs another one.

use crate::harness::{Zone, reason};
use crate::{attach, create, named};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::region_service_client::RegionServiceClient;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tonic::{Request, Status};

/// An answer that waited for nobody: far below the second that a zone is waited for, far above
/// what a loaded host needs.
const AT_ONCE: Duration = Duration::from_millis(700);

fn in_zone(zone: &str, name: &str) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest { zone: zone.into(), ..create(name, &format!("{zone}-{name}")) }
}

fn page(size: u32, token: &str) -> v1::ListVolumesRequest {
    v1::ListVolumesRequest { page_size: size, page_token: token.into(), zone: String::new() }
}

fn delete(volume: &str) -> v1::DeleteVolumeRequest {
    v1::DeleteVolumeRequest {
        volume: volume.into(),
        client_token: format!("delete-{volume}"),
        ..Default::default()
    }
}

/// A call with a deadline, as every client of ours sends it.
fn within<T>(seconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(seconds));
    request
}

fn typed(status: &Status) -> ApiError {
    ApiError::from_status(status).unwrap_or_else(|| panic!("untyped: {status:?}"))
}

async fn make(through: &Zone, zone: &str, name: &str) -> String {
    let made = through.volumes(1).create_volume(in_zone(zone, name)).await.unwrap();
    made.into_inner().volume.unwrap().id
}

async fn stop_all(zones: &mut [Zone]) {
    for zone in zones {
        zone.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_every_zone_are_reached_through_any_member() {
    let mut zones = Zone::region(&["a", "b", "c"], 3).await;
    let (a, b, c) = (&zones[0], &zones[1], &zones[2]);
    let in_b = make(a, "b", "vb").await;
    let in_a = make(c, "a", "va").await;
    assert!(in_b.starts_with("vol-b-") && in_a.starts_with("vol-a-"), "{in_a} {in_b}");
    b.available("vb").await;
    assert_eq!(b.status().await.volumes.len(), 1, "it is in its zone and in no other");

    // A call that changes something and could be repeated elsewhere names its zone.
    let unnamed = a.volumes(1).create_volume(create("v", "t")).await;
    assert_eq!(reason(unnamed), Reason::InvalidParameter);
    assert_eq!(reason(a.volumes(1).create_volume(in_zone("x", "v")).await), Reason::UnknownZone);

    let first = c.volumes(1).list_volumes(page(1, "")).await.unwrap().into_inner();
    assert_eq!((first.volumes[0].id.clone(), first.next_page_token.clone()), (in_a.clone(), in_a));
    let token = first.next_page_token;
    let second = b.volumes(1).list_volumes(page(1, &token)).await.unwrap().into_inner();
    assert_eq!((&second.volumes[0].id, second.next_page_token.as_str()), (&in_b, ""));
    assert!(second.unreachable_zones.is_empty());

    let nodes = a.cluster(1).list_nodes(v1::ListNodesRequest::default()).await.unwrap();
    let nodes: Vec<_> = nodes.into_inner().nodes.iter().map(|n| (n.zone.clone(), n.id)).collect();
    assert_eq!(nodes.len(), 9, "{nodes:?}");
    assert_eq!((&nodes[0], &nodes[8]), (&("a".into(), 1), &("c".into(), 3)));
    let status = v1::GetStatusRequest { zone: "c".into() };
    assert_eq!(a.cluster(1).get_status(status).await.unwrap().into_inner().zone, "c");
    let known = RegionServiceClient::new(a.channel(1)).list_zones(v1::ListZonesRequest {}).await;
    let known = known.unwrap().into_inner();
    assert_eq!((known.zone.as_str(), known.zones.len()), ("a", 3));
    assert_eq!(known.release, env!("CARGO_PKG_VERSION"));
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    assert!(here.abs_diff(known.now_unix_millis.into()) < 60_000, "{known:?}");
    assert!(known.zones.iter().all(|zone| zone.reachable), "{known:?}");

    // By name, from a zone that has nothing to do with it.
    let map = c.volumes(1).attach_volume(attach("vb", "one", false, "t")).await.unwrap();
    let map = map.into_inner().map.unwrap();
    assert_eq!((map.generation, map.members), (1, vec![b.address(1)]));
    let busy = a.volumes(1).delete_volume(delete("vb")).await;
    assert_eq!(reason(busy), Reason::VolumeInUse);
    let detach = v1::DetachVolumeRequest { volume: in_b, generation: 1, ..Default::default() };
    a.volumes(1).detach_volume(detach).await.unwrap();
    let gone = a.volumes(1).delete_volume(delete("vb")).await.unwrap().into_inner();
    // The name is gone, but the call that took it away keeps its answer.
    let again = c.volumes(1).delete_volume(delete("vb")).await.unwrap().into_inner();
    assert_eq!(gone, again);
    assert_eq!(reason(c.volumes(1).get_volume(named("vb")).await), Reason::VolumeNotFound);
    stop_all(&mut zones).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_two_zones_have_is_refused_with_both_ids() {
    let mut zones = Zone::region(&["a", "b"], 3).await;
    let in_a = make(&zones[0], "a", "twin").await;
    let in_b = make(&zones[0], "b", "twin").await;
    let refused = zones[1].volumes(1).delete_volume(delete("twin")).await.unwrap_err();
    let error = typed(&refused);
    assert_eq!(error.reason, Reason::VolumeNameAmbiguous);
    assert_eq!(error.metadata["volume_ids"], format!("{in_a}, {in_b}"));
    zones[1].volumes(1).delete_volume(delete(&in_a)).await.unwrap();
    let left = zones[0].volumes(1).get_volume(named("twin")).await.unwrap().into_inner();
    assert_eq!(left.volume.unwrap().id, in_b);
    stop_all(&mut zones).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_is_off_is_named_and_the_others_go_on() {
    let mut zones = Zone::region(&["a", "b"], 3).await;
    let in_a = make(&zones[0], "a", "va").await;
    let in_b = make(&zones[0], "b", "vb").await;
    zones[1].stop_member(1).await;
    let a = &zones[0];
    let list = a.volumes(1).list_volumes(page(0, "")).await.unwrap().into_inner();
    assert_eq!((list.volumes.len(), list.volumes[0].id.as_str()), (1, in_a.as_str()));
    assert_eq!(list.unreachable_zones[0].zone, "b");
    let refused = a.volumes(1).get_volume(within(2, named(&in_b))).await.unwrap_err();
    let error = typed(&refused);
    assert_eq!(error.reason, Reason::ZoneUnreachable);
    assert!(error.retry_after.is_some());
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));

    // The name is found, and the answer says whom it could not ask.
    let found = a.volumes(1).get_volume(named("va")).await.unwrap().into_inner();
    assert_eq!(found.volume.unwrap().id, in_a);
    assert_eq!(found.unreachable_zones[0].zone, "b");
    // What cannot be undone wants the id while another zone may have the name.
    let refused = a.volumes(1).delete_volume(delete("va")).await;
    assert_eq!(reason(refused), Reason::ZoneUnreachable);
    a.volumes(1).delete_volume(delete(&in_a)).await.unwrap();
    make(a, "a", "new").await;

    zones[1].start_member(1);
    let whole = async {
        loop {
            let list = zones[0].volumes(1).list_volumes(page(0, "")).await.unwrap().into_inner();
            if list.unreachable_zones.is_empty() && list.volumes.len() == 2 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), whole).await.expect("b is found again");
    stop_all(&mut zones).await;
}

/// A member that accepts and never answers.
async fn hanging() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::task::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_hangs_costs_the_others_nothing() {
    let mut zone = Zone::prepare("a", 1);
    let map = BTreeMap::from([("b".to_owned(), vec![hanging().await])]);
    zone.knows(map);
    zone.go(3).await;
    let in_b = format!("vol-b-{:032x}", 7);
    let in_a = make(&zone, "a", "va").await;

    // Many more calls for the zone than may run and wait. Their callers would wait for long; the
    // gateway does not, so that what it says arrives before their own clocks cut them off.
    let began = Instant::now();
    let client = zone.volumes(1);
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (mut client, ask) = (client.clone(), within(20, named(&in_b)));
            tokio::task::spawn(async move { client.get_volume(ask).await.unwrap_err() })
        })
        .collect();
    while !calls.iter().any(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Meanwhile the own zone answers as ever.
    for _ in 0..20 {
        let asked = Instant::now();
        zone.volumes(1).get_volume(named(&in_a)).await.unwrap();
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    }
    assert!(began.elapsed() < Duration::from_secs(3), "the calls were under way");
    let mut shed = 0;
    for call in calls {
        let error = typed(&call.await.unwrap());
        assert!(matches!(error.reason, Reason::ZoneShedding | Reason::ZoneUnreachable));
        shed += usize::from(error.reason == Reason::ZoneShedding);
        assert!(error.retry_after.is_some(), "{error:?}");
    }
    assert_eq!(shed, 200 - 128, "what neither runs nor waits is refused at once");

    // The breaker is open: whoever asks now waits for nobody.
    let asked = Instant::now();
    let refused = zone.volumes(1).get_volume(within(3, named(&in_b))).await.unwrap_err();
    assert_eq!(typed(&refused).reason, Reason::ZoneUnreachable);
    let list = zone.volumes(1).list_volumes(page(0, "")).await.unwrap().into_inner();
    assert_eq!((list.volumes.len(), list.unreachable_zones.len()), (1, 1));
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    let known = RegionServiceClient::new(zone.channel(1)).list_zones(v1::ListZonesRequest {}).await;
    let known = known.unwrap().into_inner();
    assert!(!known.zones[1].reachable && known.zones[1].cause.contains("not answered"));
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_map_sends_no_call_in_circles() {
    let mut zone = Zone::prepare("a", 1);
    zone.knows(BTreeMap::from([("b".to_owned(), vec![zone.address(1)])]));
    zone.go(1).await;
    let in_b = format!("vol-b-{:032x}", 7);
    assert_eq!(reason(zone.volumes(1).get_volume(named(&in_b)).await), Reason::UnknownZone);
    zone.stop().await;
}
