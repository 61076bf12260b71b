//! Which connection counts, and when one is given up.

use super::super::dial::Sources;
use super::super::{EVENTS_MAX, Net};
use super::*;
use crate::admission::Admission;
use crate::door;
use ashlar_node_core::Identity;
use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, StartNumber, StoreId, Sums};
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

const PEER: NodeId = NodeId(2);

struct Rig {
    table: Table,
    events: mpsc::Receiver<NetEvent>,
    listener: TcpListener,
    /// The far ends, kept open and never read.
    far: Vec<TcpStream>,
}

impl Rig {
    async fn new() -> Self {
        let zone = "t".parse().unwrap();
        let me = Identity { zone, node: NodeId(1), start: StartNumber(1) };
        let (_, stores) = watch::channel(vec![StoreId(5)]);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (guests, _) = crate::beats::guests();
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let sources = Sources { primary: ip, replication: ip };
        let diallers = Diallers::new(
            Net::new(
                me,
                stores,
                (Arc::new(Admission::nobody()), door::door(false, Duration::ZERO).1),
                sender.clone(),
                guests,
            ),
            sources,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { table: Table::new(diallers, sender), events, listener, far: Vec::new() }
    }

    async fn stream(&mut self) -> Arc<TcpStream> {
        let far = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = self.listener.accept().await.unwrap();
        self.far.push(far);
        Arc::new(near)
    }

    fn on(&mut self, event: NetEvent) -> Vec<Input> {
        let mut inputs = Vec::new();
        self.table.on_event(event, &mut inputs);
        inputs
    }

    async fn peer_open(&mut self, number: u64, start: u64) {
        let stream = self.stream().await;
        let process = Process { stores: vec![StoreId(9)], start: StartNumber(start) };
        let (connection, network) = (ConnectionNumber(number), Network::Primary);
        self.on(NetEvent::PeerOpen { connection, stream, node: PEER, network, process });
    }

    fn beat(&mut self, number: u64) -> usize {
        let messages = vec![DataMessage::Beat {
            number: 1,
            adopted: vec![],
            short_of_space: vec![],
            has_control: false,
            behind_millis: 0,
        }];
        self.on(NetEvent::Frames { connection: ConnectionNumber(number), messages }).len()
    }

    /// Starts a dialler and makes its link, as if it had connected.
    async fn linked(&mut self) {
        let address = self.listener.local_addr().unwrap().to_string();
        let peer = PeerAddress {
            node: PEER,
            store: StoreId(9),
            primary_address: address,
            replication_address: "not an address".into(),
        };
        let mut inputs = Vec::new();
        self.table.update_peers(&[peer], &mut inputs);
        let (connection, stream) = (ConnectionNumber(70), self.stream().await);
        let process = Process { stores: vec![StoreId(9)], start: StartNumber(1) };
        let dialler = DiallerNumber(1);
        let inputs = self.on(NetEvent::Linked { dialler, connection, stream, process });
        assert!(matches!(inputs.as_slice(), [Input::LinkUp { node: PEER, .. }]), "{inputs:?}");
    }
}

#[tokio::test]
async fn a_peers_newer_connection_ends_the_older_one_and_what_it_still_says() {
    let mut rig = Rig::new().await;
    rig.peer_open(10, 3).await;
    assert_eq!(rig.beat(10), 1);
    rig.peer_open(11, 3).await;
    assert_eq!((rig.beat(10), rig.beat(11)), (0, 1));
    // A connection of an earlier process arrives late: it does not count.
    rig.peer_open(12, 2).await;
    assert_eq!((rig.beat(11), rig.beat(12)), (1, 0));
    rig.peer_open(13, 4).await;
    assert_eq!((rig.beat(11), rig.beat(13)), (0, 1));
    assert_eq!(rig.table.accepted.len(), 1);
}

#[tokio::test]
async fn the_link_to_a_peer_that_has_left_is_closed_and_its_dialler_counts_no_more() {
    let mut rig = Rig::new().await;
    rig.linked().await;
    let mut inputs = Vec::new();
    rig.table.update_peers(&[], &mut inputs);
    assert!(matches!(inputs.as_slice(), [Input::LinkDown { node: PEER, .. }]), "{inputs:?}");
    let (connection, stream) = (ConnectionNumber(71), rig.stream().await);
    let process = Process { stores: vec![StoreId(9)], start: StartNumber(1) };
    let late = NetEvent::Linked { dialler: DiallerNumber(1), connection, stream, process };
    assert!(rig.on(late).is_empty());
    let failed = NetEvent::DialFailed { dialler: DiallerNumber(1), refused: true };
    assert!(rig.on(failed).is_empty());
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_given_up_when_too_much_waits() {
    let mut rig = Rig::new().await;
    rig.linked().await;
    let blocks = 256_usize;
    let bytes = vec![0; blocks * BLOCK_SIZE];
    let sum = crc32c::crc32c(&bytes[..BLOCK_SIZE]);
    let data = BlockData {
        range: BlockRange::new(0, 256),
        sums: Sums::Full(vec![sum; blocks]),
        data: Bytes::from(bytes),
    };
    let zone = "t".parse().unwrap();
    let volume = ashlar_types::VolumeId { zone, uuid: 1 };
    let chunk = ashlar_types::ChunkId { volume, index: ashlar_types::ChunkIndex(0) };
    let message = DataMessage::Fetched { chunk, term: ashlar_types::Term::default(), data };
    let to = Link::Peer(PEER, Network::Primary);
    let mut inputs = Vec::new();
    let mut sent = 0;
    while inputs.is_empty() {
        rig.table.send(to, &message, &mut inputs);
        rig.table.flush(&mut inputs);
        sent += 1;
        assert!(sent < 400, "the queue has no bound");
    }
    assert!(matches!(inputs.as_slice(), [Input::LinkDown { node: PEER, .. }]), "{inputs:?}");
    assert!(sent * 256 * BLOCK_SIZE > PEER_OUTBOUND_BYTES_MAX);
    // The wait for room ends with the connection.
    while let Some(event) = rig.events.recv().await {
        if matches!(event, NetEvent::Writable { connection: ConnectionNumber(70) }) {
            break;
        }
    }
}
