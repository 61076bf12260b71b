//! Who comes to a node's ports: what is no visitor is turned away and costs nothing.

mod zone;

use ashlar_proto::frame::Frame;
use ashlar_proto::token::{Grant, Rights, Signs};
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, DataMessage, HelloRefusal, HelloReply, HelloRole, Lane, Network,
    Refusal, Stamp, TokenRefusal,
};
use ashlar_types::{
    BlockRange, ChunkId, Generation, NodeId, RequestId, SessionId, StartNumber, StoreId, VolumeId,
};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use zone::client::{Client, as_client, as_node, filled, hello, zone_signs};
use zone::{Zone, chunk, resident, until};

/// Tests of this file measure the memory of the process that they share: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A header whose checksum is right and whose lengths are not.
fn four_gigabytes() -> Vec<u8> {
    let mut header = vec![0x41, 0x48, 0x4C, 0x4D, 17, 0, 0, 0];
    header.extend_from_slice(&[0xFF; 8]);
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    header
}

fn ports(zone: &Zone) -> [SocketAddr; 2] {
    [zone.config(1).primary_address, zone.config(1).replication_address]
}

#[test]
fn garbage_closes_the_connection_and_the_next_client_is_served() {
    let _alone = alone();
    let zone = Zone::start(11, 2);
    zone.configure(&zone.members(0, 1, &[1, 2]));
    let before = resident();
    let junk: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0] ^ 0x5A).collect();
    for round in 0..50 {
        for address in ports(&zone) {
            for bytes in [&junk[..], &four_gigabytes()[..]] {
                // At the door, and after a hello.
                let mut client = Client::connect(address);
                // The node may close before it has taken everything.
                client.stream.write_all(bytes).ok();
                assert_eq!(client.receive(), None, "round {round}");
                let mut client = Client::connect(address);
                let network = if address == zone.config(1).primary_address {
                    Network::Primary
                } else {
                    Network::Replication
                };
                let reply = client.greet(&hello(as_node(40, network)));
                assert!(matches!(reply, HelloReply::Welcome { .. }));
                client.stream.write_all(bytes).ok();
                assert_eq!(client.receive(), None, "round {round}");
            }
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
    let mut client = zone.client(1);
    client.must_write(1, filled(0, 1, 3));
    assert_eq!(client.must_read(1, BlockRange::new(0, 1)), [3]);
}

#[test]
fn a_hello_is_refused_by_the_name_of_what_is_wrong() {
    let _alone = alone();
    let zone = Zone::start(12, 1);
    let [primary, replication] = ports(&zone);
    let refused = |address, hello| match Client::connect(address).greet(&hello) {
        HelloReply::Refused(refusal) => refusal,
        HelloReply::Welcome { .. } => panic!("let in"),
    };
    let mut newer = hello(as_client(1));
    newer.version = DATA_PROTOCOL_VERSION + 1;
    let version =
        HelloRefusal::Version { ours: DATA_PROTOCOL_VERSION, theirs: DATA_PROTOCOL_VERSION + 1 };
    assert_eq!(refused(primary, newer.clone()), version);
    assert_eq!(refused(replication, newer), version);
    let mut foreign = hello(as_client(1));
    foreign.zone = "other".parse().unwrap();
    assert_eq!(refused(primary, foreign), HelloRefusal::Zone);
    assert_eq!(refused(replication, hello(as_client(1))), HelloRefusal::Network);
    // A peer that says it came over the other network, one with this node's own number, one without a
    // store, one with more than any node has.
    let with_stores = |count: u128| {
        let stores = (1..=count).map(StoreId).collect();
        HelloRole::Node {
            node: NodeId(9),
            stores,
            start: StartNumber(1),
            network: Network::Primary,
            lane: Lane::Data,
        }
    };
    let (other, own) = (as_node(9, Network::Replication), as_node(1, Network::Primary));
    for absurd in [other, own, with_stores(0), with_stores(65)] {
        let mut peer = Client::connect(primary);
        peer.send(&Frame::Hello(hello(absurd)));
        assert_eq!(peer.receive(), None);
    }
}

#[test]
fn a_client_is_admitted_by_the_token_of_its_attachment_alone() {
    let _alone = alone();
    let zone = Zone::start(17, 1);
    drop(zone.client(1));
    let address = zone.config(1).primary_address;
    let refused = |token: Vec<u8>| {
        let HelloRole::Client { volume, generation, session, .. } = as_client(1) else { panic!() };
        let role = HelloRole::Client { volume, generation, session, token };
        match Client::connect(address).greet(&hello(role)) {
            HelloReply::Refused(HelloRefusal::Token(refusal)) => Some(refusal),
            HelloReply::Refused(other) => panic!("{other}"),
            HelloReply::Welcome { .. } => None,
        }
    };
    let of = |generation, expires| Grant {
        volume: chunk(0).volume,
        generation: Generation(generation),
        rights: Rights::ReadWrite,
        expires,
    };
    assert_eq!(refused(Vec::new()), Some(TokenRefusal::Missing));
    assert_eq!(refused(vec![7; 40]), Some(TokenRefusal::Malformed));
    let foreign = Signs::from_secret(&[8; 32]).sign(&of(1, u64::MAX));
    assert_eq!(refused(foreign), Some(TokenRefusal::Signature));
    assert_eq!(refused(zone_signs().sign(&of(2, u64::MAX))), Some(TokenRefusal::OtherAttachment));
    // Admitted once, it may come back when its token is old.
    assert_eq!(refused(zone_signs().sign(&of(1, 1))), None);
}

#[test]
fn an_attachment_may_ask_for_its_own_volume_and_no_more_than_its_token_says() {
    let _alone = alone();
    let zone = Zone::start(18, 2);
    zone.configure(&zone.members(0, 1, &[1, 2]));
    let [primary, _] = ports(&zone);
    let volume = chunk(0).volume;
    let may_read = || {
        let (generation, session) = (Generation(1), SessionId(1));
        let grant = Grant { volume, generation, rights: Rights::Read, expires: u64::MAX };
        let token = zone_signs().sign(&grant);
        let mut client = Client::connect(primary);
        let role = HelloRole::Client { volume, generation, session, token };
        let reply = client.greet(&hello(role));
        assert!(matches!(reply, HelloReply::Welcome { .. }), "{reply:?}");
        client
    };
    drop(zone.client(1));
    assert_eq!(may_read().must_read(1, BlockRange::new(0, 1)), [0]);
    let mut writes = may_read();
    writes.send_write(1, filled(0, 1, 1));
    assert_eq!(writes.receive(), None, "it may read only");
    let elsewhere = ChunkId { volume: VolumeId { uuid: 99, ..volume }, ..chunk(0) };
    for stamp in [
        Stamp { chunk: elsewhere, ..may_read().stamp(0, 1) },
        Stamp { generation: Generation(2), ..may_read().stamp(0, 1) },
        Stamp { session: SessionId(2), ..may_read().stamp(0, 1) },
    ] {
        let mut client = may_read();
        let (id, range) = (RequestId(1), BlockRange::new(0, 1));
        client.send(&Frame::Message(DataMessage::Read { id, stamp, range }));
        assert_eq!(client.receive(), None, "{stamp:?}");
    }
}

#[test]
fn a_client_that_speaks_as_a_node_is_shut_out() {
    let _alone = alone();
    let zone = Zone::start(13, 1);
    let mut client = zone.client(1);
    client.send(&Frame::Message(DataMessage::Beat {
        number: 1,
        adopted: vec![],
        short_of_space: vec![],
        has_control: false,
        behind_millis: 0,
    }));
    assert_eq!(client.receive(), None);
    let mut client = zone.client(1);
    client.send(&Frame::Hello(hello(as_client(2))));
    assert_eq!(client.receive(), None);
}

#[test]
fn a_number_in_use_twice_ends_the_connection() {
    let _alone = alone();
    let zone = Zone::start(14, 2);
    let mut config = zone.members(0, 1, &[1, 2]);
    config.copies_min = 3;
    zone.control().commit(&config);
    let mut client = zone.client(1);
    until("the node to know the chunk", || {
        zone.control().report(config.primary.node, config.chunk)
    });
    // It waits for a third copy, so it stays without an answer.
    let id = client.send_write(1, filled(0, 1, 1));
    let stamp = client.stamp(0, 1);
    client.send(&Frame::Message(DataMessage::Write { id, stamp, data: filled(0, 1, 1) }));
    assert_eq!(client.receive(), None);
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory_and_delays_nobody() {
    let _alone = alone();
    let zone = Zone::start(15, 2);
    zone.configure(&zone.members(0, 1, &[1, 2]));
    let mut client = zone.client(1);
    for first in (0..1024).step_by(256) {
        client.must_write(1, filled(first, 256, 5));
    }
    let before = resident();
    let mut greedy = zone.client(1);
    greedy.session = 1;
    // 900 MiB of answers, none of which is read.
    for number in 0..900_u32 {
        greedy.send_read(1, BlockRange::new(number % 4 * 256, 256));
    }
    for number in 0..200_u8 {
        client.must_write(1, filled(0, 1, number));
        assert_eq!(client.must_read(1, BlockRange::new(0, 1)), [number]);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 160 << 20, "memory grew by {grown} bytes");
    // Once it reads, it gets all of them.
    for _ in 0..900 {
        assert!(matches!(greedy.message(), DataMessage::ReadDone { .. }));
    }
}

#[test]
fn too_many_requests_at_once_are_refused_one_by_one() {
    let _alone = alone();
    let zone = Zone::start(16, 2);
    let mut config = zone.members(0, 1, &[1, 2]);
    config.copies_min = 3;
    zone.control().commit(&config);
    until("the node to know the chunk", || {
        zone.control().report(config.primary.node, config.chunk)
    });
    let mut client = zone.client(1);
    for _ in 0..1_025 {
        client.send_write(1, filled(0, 1, 1));
    }
    match client.message() {
        DataMessage::Refused { refusal: Refusal::BadRequest, id } => assert_eq!(id.0, 1_025),
        other => panic!("{other:?}"),
    }
}
