//! The two data networks of a node: listeners, dialled links, connections.
//!
//! Knows frames and hellos, nothing of chunks. Everything that happens here reaches the machine's
//! task as a [`NetEvent`] on one bounded channel; everything that leaves goes through the
//! [`connection::Outbound`] that the machine's task owns. No lock is shared, and no task, timer or
//! channel is made for a request.
//!
//! The primary and the replication network have listeners, links and queues of their own: what
//! fills one leaves the other alone (design.md section 2).
//!
//! Path of a write: client 2 of 9 (primary in), 4 and 6 (mirror out and in).

pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod hello;
pub(crate) mod listen;
pub(crate) mod table;

use crate::admission::Admission;
use crate::door::Door;
use ashlar_node_core::{Identity, Process};
use ashlar_proto::token::Rights;
use ashlar_types::message::data::{DataMessage, Lane, Network};
use ashlar_types::{Generation, NodeId, SessionId, StoreId, VolumeId};
use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use connection::Credit;

/// Events that may wait for the machine's task. Each holds at most what one read gave, so this
/// bounds what was read and not handled yet; a reader that finds the channel full stops reading,
/// and TCP slows the sender down.
pub(crate) const EVENTS_MAX: usize = 64;

/// How long a peer may leave data unacknowledged before its connection is given up. Longer than
/// any pause of a loaded host, short against the patience of clients: after a network comes back,
/// retransmission could sleep longer than a new connection takes.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// Number of a connection in this process, whoever opened it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionNumber(pub(crate) u64);

/// What happens on the networks.
#[derive(Debug)]
pub(crate) enum NetEvent {
    /// A client's connection is open, hellos exchanged.
    ClientOpen {
        connection: ConnectionNumber,
        stream: Arc<TcpStream>,
        credit: Arc<Credit>,
        attachment: Attachment,
    },
    /// Another node has dialled; frames from it follow. Nothing is ever sent on it.
    PeerOpen {
        connection: ConnectionNumber,
        stream: Arc<TcpStream>,
        node: NodeId,
        network: Network,
        process: Process,
    },
    /// Frames of an accepted connection, in order.
    Frames { connection: ConnectionNumber, messages: Vec<DataMessage> },
    /// A connection that took no more bytes takes some again.
    Writable { connection: ConnectionNumber },
    /// A connection has ended, whoever opened it.
    Closed { connection: ConnectionNumber },
    /// A link that this node dialled is up, hellos exchanged.
    Linked {
        dialler: DiallerNumber,
        connection: ConnectionNumber,
        stream: Arc<TcpStream>,
        process: Process,
    },
    /// A link could not be made; `refused`: nobody listens.
    DialFailed { dialler: DiallerNumber, refused: bool },
}

/// In whose name a client's connection speaks, as its hello said and its token proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) volume: VolumeId,
    pub(crate) generation: Generation,
    pub(crate) session: SessionId,
    pub(crate) rights: Rights,
}

/// Who is at the other end of an accepted connection.
#[derive(Debug)]
pub(crate) enum Visitor {
    Client(Attachment),
    Node { node: NodeId, network: Network, lane: Lane, process: Process },
}

/// A connection for beats, on its way from the listener to the thread that has them.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) stream: std::net::TcpStream,
    /// What came behind the hello.
    pub(crate) input: BytesMut,
    pub(crate) node: NodeId,
    pub(crate) network: Network,
    pub(crate) process: Process,
    /// Its place among the open connections.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Number of a dialler in this process; never reused, so that news of an ended one are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DiallerNumber(pub(crate) u64);

/// What every task of the networks needs.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    /// Who this node is.
    pub(crate) me: Identity,
    /// Its stores that work.
    pub(crate) stores: watch::Receiver<Vec<StoreId>>,
    /// Which clients may come in.
    pub(crate) admission: Arc<Admission>,
    /// When they may.
    pub(crate) door: Door,
    /// What its own connections to peers are for.
    pub(crate) lane: Lane,
    /// To whoever has those connections.
    pub(crate) events: mpsc::Sender<NetEvent>,
    /// To the thread that has the connections for beats.
    pub(crate) guests: mpsc::Sender<Guest>,
    numbers: Arc<AtomicU64>,
}

impl Net {
    pub(crate) fn new(
        me: Identity,
        stores: watch::Receiver<Vec<StoreId>>,
        (admission, door): (Arc<Admission>, Door),
        events: mpsc::Sender<NetEvent>,
        guests: mpsc::Sender<Guest>,
    ) -> Self {
        let (lane, numbers) = (Lane::Data, Arc::new(AtomicU64::new(1)));
        Self { me, stores, admission, door, lane, events, guests, numbers }
    }

    /// The same for the thread that beats, which takes the events of its own connections.
    pub(crate) fn for_beats(&self, events: mpsc::Sender<NetEvent>) -> Self {
        Self { lane: Lane::Beats, events, ..self.clone() }
    }

    /// This process, as it introduces itself now.
    pub(crate) fn process(&self) -> Process {
        Process { stores: self.stores.borrow().clone(), start: self.me.start }
    }

    pub(crate) fn number(&self) -> ConnectionNumber {
        ConnectionNumber(self.numbers.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the data path wants of a socket: no delay, and an end when the other side is gone.
fn tune(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(3))
        .with_retries(3);
    let socket = SockRef::from(stream);
    let outcome = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX)));
    if let Err(error) = outcome {
        // The connection works without; only slower, or noticed dead later.
        tracing::debug!(%error, "a socket option was refused");
    }
}

/// The name of a network in logs.
pub(crate) const fn name(network: Network) -> &'static str {
    match network {
        Network::Primary => "primary",
        Network::Replication => "replication",
    }
}
