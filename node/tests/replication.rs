//! Nodes over real sockets: writes reach all of them, a lost one is noticed, I/O needs no control
//! plane.

mod zone;

use ashlar_types::BlockRange;
use ashlar_types::message::cluster::{Change, PathState, RemovalReason};
use ashlar_types::message::data::{DataMessage, Refusal};
use zone::client::filled;
use zone::{Zone, until};

#[test]
fn a_write_is_acknowledged_by_three_nodes_and_outlives_its_primary() {
    let mut zone = Zone::start(1, 3);
    zone.configure(&zone.members(0, 1, &[1, 2, 3]));
    let mut client = zone.client(1);
    for number in 0..64_u8 {
        client.must_write(1, filled(u32::from(number) * 3, 2, number + 1));
    }
    assert_eq!(client.must_read(1, BlockRange::new(3, 3)), [2, 2, 0]);
    until("a heartbeat with the space taken", || {
        let heartbeat = zone.control().heartbeat(ashlar_types::NodeId(2))?;
        heartbeat.stores.iter().all(|store| store.used_bytes > 0).then_some(())
    });

    let registrations: Vec<_> = (1..=3).map(|node| zone.registration(node)).collect();
    zone.stop_node(1);
    zone.wait_evidence(2, 1, |path| path == PathState::Refused);
    let mut next = zone.members(0, 2, &[2, 3]);
    let lost = zone::chunk(0);
    next.stale = vec![(
        ashlar_types::ReplicaId {
            node: registrations[0].node,
            store: registrations[0].stores[0],
            incarnation: ashlar_types::Incarnation(1),
        },
        ashlar_types::StaleInfo { last_in_sync: ashlar_types::Epoch(1), suspect: false },
    )];
    assert_eq!(next.chunk, lost);
    zone.configure(&next);
    let mut client = zone.client(2);
    for number in 0..64_u8 {
        let range = BlockRange::new(u32::from(number) * 3, 1);
        assert_eq!(client.must_read(2, range), [number + 1]);
    }
    match client.write(1, filled(0, 1, 9)) {
        DataMessage::Refused { refusal: Refusal::WrongEpoch(config), .. } => {
            assert_eq!(*config, next);
        }
        other => panic!("{other:?}"),
    }
    client.must_write(2, filled(0, 1, 9));
}

#[test]
fn a_killed_secondary_is_reported_refused_and_proposed_for_removal() {
    let mut zone = Zone::start(2, 2);
    zone.configure(&zone.members(0, 1, &[1, 2]));
    zone.client(1).must_write(1, filled(0, 1, 1));
    zone.wait_evidence(1, 2, |path| path == PathState::Up);
    zone.stop_node(2);
    // A write that cannot be completed; it is not acknowledged.
    let mut client = zone.client(1);
    client.send_write(1, filled(0, 1, 2));
    zone.wait_evidence(1, 2, |path| path == PathState::Refused);
    until("the proposal", || {
        zone.control().proposals().into_iter().find(|proposal| {
            matches!(
                proposal.change,
                Change::RemoveSecondary { reason: RemovalReason::Refused, .. }
            )
        })
    });
    // The secondary comes back: the write is sent again and completed.
    zone.start_node(2);
    assert!(matches!(client.message(), DataMessage::WriteDone { .. }));
    zone.wait_evidence(1, 2, |path| path == PathState::Up);
}

#[test]
fn nodes_that_start_without_a_control_plane_find_each_other_and_serve() {
    let mut zone = Zone::start(3, 3);
    zone.configure(&zone.members(0, 1, &[1, 2, 3]));
    zone.client(1).must_write(1, filled(5, 1, 7));
    zone.control = None;
    // Serves on without one ...
    zone.client(1).must_write(1, filled(6, 1, 8));
    // ... and after all nodes have started again.
    for node in 1..=3 {
        zone.stop_node(node);
    }
    for node in 1..=3 {
        zone.start_node(node);
    }
    let mut client = until("a node that listens", || {
        let address = zone.config(1).primary_address;
        std::net::TcpStream::connect(address).ok().map(|_| zone.client(1))
    });
    until("the primary to serve", || {
        client.send_read(1, BlockRange::new(5, 2));
        match client.message() {
            DataMessage::ReadDone { data, .. } => {
                let bytes: Vec<u8> = data.iter().map(|(_, b)| b.unwrap().1[0]).collect();
                assert_eq!(bytes, [7, 8]);
                Some(())
            }
            DataMessage::Refused { refusal: Refusal::NotReady(_), .. } => None,
            other => panic!("{other:?}"),
        }
    });
    client.must_write(1, filled(6, 1, 9));
}
