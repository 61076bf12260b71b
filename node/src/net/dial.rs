//! Links to the peers: one task per peer and network dials, and dials again.
//!
//! All messages of this node to a peer leave on the link that it dialled itself, so each direction
//! of a pair is one ordered stream. A link that breaks is dialled again at once: a process that is
//! gone shows itself by refusing within a moment; then with backoff. A peer that dials us is
//! there, so that ends the wait.

use super::connection::read_to_end;
use super::hello::{self, HelloError};
use super::{DiallerNumber, Net, NetEvent, name, tune};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::task::{Task, spawn_named};
use ashlar_node_core::Process;
use ashlar_types::NodeId;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_types::message::cluster::PeerAddress;
use ashlar_types::message::data::Network;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Waits between attempts. A restarted peer is found within a second; the jitter keeps all of its
/// peers from arriving together.
const REDIAL: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(50), max: Duration::from_secs(1) };
/// How long a connection may take to be made: one lost packet is sent again after a second.
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);
/// A link that lived as long as this was a good one: the next attempts start over without a wait.
const GOOD_LINK: Duration = Duration::from_secs(1);

/// The addresses that this node's own links start from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources {
    pub(crate) primary: IpAddr,
    pub(crate) replication: IpAddr,
}

/// All diallers of a node.
#[derive(Debug)]
pub(crate) struct Diallers {
    net: Net,
    sources: Sources,
    last: u64,
    running: BTreeMap<(NodeId, Network), Dialler>,
}

#[derive(Debug)]
struct Dialler {
    number: DiallerNumber,
    address: SocketAddr,
    hurry: Arc<Notify>,
    _task: Task<()>,
}

impl Diallers {
    pub(crate) fn new(net: Net, sources: Sources) -> Self {
        Self { net, sources, last: 0, running: BTreeMap::new() }
    }

    /// Takes the zone's list of nodes: starts, moves and ends diallers. Gives the links that must
    /// be closed because their peer has moved or left.
    pub(crate) fn update(&mut self, peers: &[PeerAddress]) -> Vec<(NodeId, Network)> {
        let mut wanted = BTreeMap::new();
        for peer in peers.iter().filter(|peer| peer.node != self.net.me.node) {
            let pair = [
                (Network::Primary, &peer.primary_address),
                (Network::Replication, &peer.replication_address),
            ];
            for (network, text) in pair {
                match text.parse::<SocketAddr>() {
                    Ok(address) => {
                        wanted.insert((peer.node, network), address);
                    }
                    Err(_) => tracing::warn!(
                        node = peer.node.0,
                        network = name(network),
                        address = %text,
                        "the peer's address cannot be dialled"
                    ),
                }
            }
        }
        let ended: Vec<_> = self
            .running
            .iter()
            .filter(|(key, dialler)| wanted.get(key) != Some(&dialler.address))
            .map(|(key, _)| *key)
            .collect();
        for key in &ended {
            self.running.remove(key);
        }
        for (key, address) in wanted {
            if !self.running.contains_key(&key) {
                let dialler = self.start(key, address);
                self.running.insert(key, dialler);
            }
        }
        ended
    }

    fn start(&mut self, (peer, network): (NodeId, Network), address: SocketAddr) -> Dialler {
        self.last += 1;
        let number = DiallerNumber(self.last);
        let hurry = Arc::new(Notify::new());
        let source = match network {
            Network::Primary => self.sources.primary,
            Network::Replication => self.sources.replication,
        };
        let target = Target { number, peer, network, address, source };
        let task = spawn_named("dial", keep_linked(self.net.clone(), target, Arc::clone(&hurry)));
        Dialler { number, address, hurry, _task: task.abort_on_drop() }
    }

    /// The peer and network of a dialler, if it is still the one that counts.
    pub(crate) fn whose(&self, number: DiallerNumber) -> Option<(NodeId, Network)> {
        self.running.iter().find(|(_, dialler)| dialler.number == number).map(|(key, _)| *key)
    }

    /// The peer has shown itself: dial it without further waiting.
    pub(crate) fn hurry(&self, peer: NodeId, network: Network) {
        if let Some(dialler) = self.running.get(&(peer, network)) {
            dialler.hurry.notify_one();
        }
    }
}

/// What a dialler dials.
#[derive(Clone, Copy, Debug)]
struct Target {
    number: DiallerNumber,
    peer: NodeId,
    network: Network,
    address: SocketAddr,
    source: IpAddr,
}

async fn keep_linked(net: Net, target: Target, hurry: Arc<Notify>) {
    let mut backoff = Backoff::new(REDIAL);
    let mut dice = SeededDice::system();
    let mut last_error = None;
    loop {
        let number = target.number;
        match link(&net, target).await {
            Ok((stream, process)) => {
                let (connection, began) = (net.number(), Instant::now());
                if last_error.take().is_some() {
                    let (node, network) = (target.peer.0, name(target.network));
                    tracing::info!(node, network, "a peer is linked again");
                }
                let linked = NetEvent::Linked {
                    dialler: number,
                    connection,
                    stream: Arc::clone(&stream),
                    process,
                };
                if net.events.send(linked).await.is_err() {
                    return;
                }
                let end = read_to_end(&stream).await;
                tell_end(target, &end.to_string());
                if net.events.send(NetEvent::Closed { connection }).await.is_err() {
                    return;
                }
                if began.elapsed() >= GOOD_LINK {
                    backoff.reset();
                    continue;
                }
            }
            Err(error) => {
                tell_failure(target, &error, &mut last_error);
                let failed = NetEvent::DialFailed { dialler: number, refused: error.is_refused() };
                if net.events.send(failed).await.is_err() {
                    return;
                }
            }
        }
        let wait = backoff.next_wait(dice.next_u64());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = hurry.notified() => {}
        }
    }
}

/// Why a link could not be made.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no answer within {} ms", CONNECT_WITHIN.as_millis())]
    Silent,
    #[error("{0}")]
    Hello(#[from] HelloError),
}

impl LinkError {
    /// Nobody listens there.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

async fn link(net: &Net, target: Target) -> Result<(Arc<TcpStream>, Process), LinkError> {
    let socket = if target.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        .map_err(LinkError::Connect)?;
    // From this node's own address on that network, so that the host routes it there and a cut of
    // one network is a cut of its links.
    socket.bind(SocketAddr::new(target.source, 0)).map_err(LinkError::Connect)?;
    let stream = timeout(CONNECT_WITHIN, socket.connect(target.address))
        .await
        .map_err(|_elapsed| LinkError::Silent)?
        .map_err(LinkError::Connect)?;
    tune(&stream);
    let process = hello::introduce(&stream, net, target.peer, target.network).await?;
    Ok((Arc::new(stream), process))
}

fn tell_end(target: Target, end: &str) {
    tracing::info!(
        node = target.peer.0,
        network = name(target.network),
        end,
        "the link to a peer ended"
    );
}

/// One line when the failure is a new one, not one per attempt.
fn tell_failure(target: Target, error: &LinkError, last: &mut Option<String>) {
    let text = error.to_string();
    if last.as_ref() != Some(&text) {
        tracing::info!(
            node = target.peer.0,
            network = name(target.network),
            address = %target.address,
            error = %text,
            "a peer cannot be reached"
        );
        *last = Some(text);
    }
}
