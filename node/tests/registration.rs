//! A node and its zone's control plane: it finds the leader, and takes no for an answer.

mod zone;

use ashlar_node::RunError;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_types::message::data::DataMessage;
use ashlar_types::{BlockRange, ChunkConfig, NodeId};
use std::time::Duration;
use zone::client::{Client, filled};
use zone::control::ControlPlane;
use zone::{Node, Zone, free_address, lone_config, until};

#[test]
fn a_node_follows_a_member_that_points_at_the_leader() {
    let leader = ControlPlane::start();
    let follower = ControlPlane::follower_of(&leader);
    let folder = tempfile::tempdir().unwrap();
    // The leader is not in its list: it can only get there by the pointer.
    let mut node = Node::start(lone_config(21, folder.path(), &[follower.address()]));
    until("the first heartbeat", || leader.heartbeat(NodeId(1)));
    assert_eq!(leader.registration(NodeId(1)).unwrap().start.0, 1);
    let heartbeat = leader.heartbeat(NodeId(1)).unwrap();
    assert!(heartbeat.stores[0].capacity_bytes >= 255 << 20, "{heartbeat:?}");
    node.stop().unwrap();
}

#[test]
fn a_node_finds_the_member_that_answers_and_a_control_plane_that_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let gone = free_address("127.0.0.1").to_string();
    let first = ControlPlane::start();
    let second = ControlPlane::start();
    let members = [gone, first.address(), second.address()];
    let mut node = Node::start(lone_config(22, folder.path(), &members));
    until("a registration", || {
        first.registration(NodeId(1)).or_else(|| second.registration(NodeId(1)))
    });
    let (used, other) =
        if first.registration(NodeId(1)).is_some() { (first, second) } else { (second, first) };
    drop(used);
    until("a registration with the other", || other.registration(NodeId(1)));
    node.stop().unwrap();
}

#[test]
fn a_leader_that_was_replaced_is_not_listened_to() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (ControlPlane::start(), ControlPlane::start());
    one.speak_for(5);
    two.speak_for(5);
    let members = [one.address(), two.address()];
    let mut node = Node::start(lone_config(25, folder.path(), &members));
    until("a heartbeat", || one.heartbeat(NodeId(1)).or_else(|| two.heartbeat(NodeId(1))));
    let (leader, former) = if one.heartbeat(NodeId(1)).is_some() { (one, two) } else { (two, one) };
    former.speak_for(4);
    let before = former.calls();
    drop(leader);
    until("two tries", || (former.calls() >= before + 2).then_some(()));
    assert_eq!(former.heartbeat(NodeId(1)), None, "it speaks for term 4");
    former.speak_for(6);
    until("a heartbeat", || former.heartbeat(NodeId(1)));
    node.stop().unwrap();
}

#[test]
fn a_node_whose_number_is_taken_ends_and_says_so() {
    let control = ControlPlane::start();
    control.refuse(ApiError::new(Reason::NodeIdTaken, "node-1 is bound to another store"));
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start(lone_config(23, folder.path(), &[control.address()]));
    match node.join() {
        Err(RunError::Refused(refusal)) => assert_eq!(refusal.reason, Reason::NodeIdTaken),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_whose_store_is_revoked_ends_although_it_serves_and_never_opens_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (ControlPlane::start(), ControlPlane::start());
    let settings = lone_config(26, folder.path(), &[one.address(), two.address()]);
    let mut node = Node::start(settings.clone());
    let known = until("a registration", || {
        one.registration(NodeId(1)).or_else(|| two.registration(NodeId(1)))
    });
    let (leader, next) =
        if one.registration(NodeId(1)).is_some() { (one, two) } else { (two, one) };
    let refusal = ApiError::new(Reason::StoreRevoked, "a salvage went on without it");
    next.refuse(refusal.with("store", known.stores[0].to_string()));
    drop(leader);
    match node.join() {
        Err(RunError::Refused(refusal)) => assert_eq!(refusal.reason, Reason::StoreRevoked),
        other => panic!("{other:?}"),
    }
    // Before it asks anybody: whoever is alone in sync would serve from its start on.
    let asked = next.calls();
    match Node::start(settings.clone()).join() {
        Err(RunError::Revoked { folder }) => {
            assert_eq!(*folder, *settings.stores[0].display().to_string())
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next.calls(), asked);
    // With an empty folder it is another store.
    std::fs::remove_dir_all(&settings.stores[0]).unwrap();
    let control = ControlPlane::start();
    let settings = lone_config(26, folder.path(), &[control.address()]);
    let mut node = Node::start(settings);
    let anew = until("a registration", || control.registration(NodeId(1)));
    assert_ne!(anew.stores, known.stores);
    node.stop().unwrap();
}

#[test]
fn an_address_in_use_and_a_foreign_store_are_refused_by_name() {
    let control = ControlPlane::start();
    let folder = tempfile::tempdir().unwrap();
    let settings = lone_config(24, folder.path(), &[control.address()]);
    let holder = std::net::TcpListener::bind(settings.replication_address).unwrap();
    match Node::start(settings.clone()).join() {
        Err(RunError::Listen { address, network: "replication", .. }) => {
            assert_eq!(address, settings.replication_address);
        }
        other => panic!("{other:?}"),
    }
    drop(holder);
    let mut other = settings.clone();
    other.node = NodeId(2);
    match Node::start(other).join() {
        Err(RunError::Store { cause: ashlar_node::store::OpenError::Foreign { .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// A node with a replica that is alone in sync, and a byte in it.
fn alone_in_sync(test: u8) -> (Zone, ChunkConfig) {
    let zone = Zone::start_with(test, 1, "hears_first_seconds = 60");
    let mut config = zone.members(0, 1, &[1]);
    (config.copies_wanted, config.copies_min) = (1, 1);
    zone.configure(&config);
    zone.client(1).must_write(1, filled(0, 1, 7));
    (zone, config)
}

/// Starts node 1 again under a control plane that takes its call and does not answer; a client that
/// has come to it asks for the byte.
fn reader_before_the_first_word(zone: &mut Zone, config: &ChunkConfig) -> Client {
    let asked = zone.control().calls();
    zone.control().be_silent(true);
    zone.start_node(1);
    until("the node to ask", || (zone.control().calls() > asked).then_some(()));
    let mut client = zone.client(1);
    client.send_read(config.epoch.0, BlockRange::new(0, 1));
    client
}

#[test]
fn who_was_alone_in_sync_lets_nobody_in_before_the_control_plane_has_spoken() {
    let (mut zone, config) = alone_in_sync(27);
    zone.stop_node(1);
    let mut client = reader_before_the_first_word(&mut zone, &config);
    client.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = client.stream.peek(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nobody has spoken: {error}");
    client.stream.set_read_timeout(Some(zone::PATIENCE)).unwrap();
    zone.control().be_silent(false);
    match client.message() {
        DataMessage::ReadDone { .. } => {}
        other => panic!("the read was not answered: {other:?}"),
    }
}

#[test]
fn who_was_alone_in_sync_and_is_revoked_while_it_was_down_serves_nobody() {
    let (mut zone, config) = alone_in_sync(28);
    let store = zone.registration(1).stores[0];
    zone.stop_node(1);
    let refusal = ApiError::new(Reason::StoreRevoked, "a salvage went on without it");
    zone.control().refuse(refusal.with("store", store.to_string()));
    let mut client = reader_before_the_first_word(&mut zone, &config);
    zone.control().be_silent(false);
    assert!(client.receive().is_none(), "a client of before was answered");
    let ended = zone.nodes.get_mut(&1).unwrap().join();
    assert!(matches!(ended, Err(RunError::Refused(_))), "{ended:?}");
}
