//! What this node sees of the others: links, signs of life, refusals, over both networks.
//!
//! Evidence only: who is dead is the control plane's decision (design.md section 6). What this file
//! does decide is the network that a pair of nodes uses (section 5): the primary one, and the
//! replication network while beats on the primary one are not answered and there they are.

use crate::timing::Timing;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{PathState, PeerEvidence, RemovalReason};
use ashlar_types::message::data::Network;
use ashlar_types::{NodeId, ReplicaId, StartNumber, StoreId, Time};
use core::time::Duration;

/// Beats in a row without an answer after which a network does not count as working.
const BEATS_UNANSWERED_MAX: u32 = 3;

/// One network towards one peer.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    /// The connection that this node dialled is up.
    linked: bool,
    /// The last attempt to dial found no listener.
    refused: bool,
    /// Last frame from the peer over this network, or when watching began.
    heard: Time,
    /// Last answer to a beat over this network, or when the connection was made: both directions
    /// worked then.
    answered: Time,
}

impl Path {
    /// Whether beats over it are answered; silence counts from `since` on at the earliest.
    fn works(&self, now: Time, since: Time, timing: &Timing) -> bool {
        let patience = timing.beat.saturating_mul(BEATS_UNANSWERED_MAX);
        self.linked && now.since(self.answered.max(since)) <= patience
    }
}

/// Which network the pair uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Primary,
    /// The primary network has been good again since then.
    Replication {
        good_since: Option<Time>,
    },
}

/// A process of another node, as its hello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its stores.
    pub stores: Vec<StoreId>,
    /// Its start number.
    pub start: StartNumber,
}

impl Process {
    /// Whether it can hold a replica: the replica's store is one of its.
    #[must_use]
    pub fn has_store_of(&self, replica: ReplicaId) -> bool {
        self.stores.contains(&replica.store)
    }
}

#[derive(Clone, Debug)]
struct Peer {
    /// The process at the other end, from its hello.
    process: Option<Process>,
    primary: Path,
    replication: Path,
    route: Route,
    /// Stores of which its last beat said that they have little room left.
    short_of_space: Vec<StoreId>,
    /// Its last beat said that its stream to the control plane is open.
    has_control: bool,
}

impl Default for Peer {
    fn default() -> Self {
        let (primary, replication) = (Path::default(), Path::default());
        Self {
            process: None,
            primary,
            replication,
            route: Route::Primary,
            short_of_space: Vec::new(),
            has_control: false,
        }
    }
}

impl Peer {
    const fn via(&self) -> Network {
        match self.route {
            Route::Primary => Network::Primary,
            Route::Replication { .. } => Network::Replication,
        }
    }

    const fn used_path(&self) -> &Path {
        match self.route {
            Route::Primary => &self.primary,
            Route::Replication { .. } => &self.replication,
        }
    }

    const fn path(&mut self, network: Network) -> &mut Path {
        match network {
            Network::Primary => &mut self.primary,
            Network::Replication => &mut self.replication,
        }
    }
}

/// All peers of this node.
#[derive(Debug, Default)]
pub struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    /// No silence is counted from before: this node was not listening then.
    listening_since: Time,
    /// Some peer is short of space.
    any_short: bool,
}

impl Peers {
    /// This node notices a gap in its own time: whatever its peers said meanwhile may still wait to
    /// be read, so their silence counts from now on only (design.md section 6).
    pub fn listen_again(&mut self, now: Time) {
        self.listening_since = now;
    }

    /// Since when this node has been listening without a gap.
    #[must_use]
    pub const fn listening_since(&self) -> Time {
        self.listening_since
    }

    /// How long a path has been silent, as far as this node can tell.
    fn quiet(&self, now: Time, heard: Time) -> Duration {
        now.since(heard.max(self.listening_since))
    }

    /// Starts watching a peer; a known one stays as it is.
    pub fn watch(&mut self, now: Time, node: NodeId) {
        let path = Path { heard: now, ..Path::default() };
        let peer = Peer { primary: path, replication: path, ..Peer::default() };
        self.peers.entry(node).or_insert(peer);
    }

    /// A dialled connection is up.
    pub fn linked(&mut self, now: Time, node: NodeId, network: Network, process: Process) {
        self.watch(now, node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.process = Some(process);
            *peer.path(network) = Path { linked: true, refused: false, heard: now, answered: now };
        }
    }

    /// A dialled connection broke, or could not be made (`refused`: nobody listens).
    pub fn unlinked(&mut self, now: Time, node: NodeId, network: Network, refused: bool) {
        self.watch(now, node);
        if let Some(peer) = self.peers.get_mut(&node) {
            let path = peer.path(network);
            path.linked = false;
            path.refused = refused;
        }
    }

    /// A frame came from the peer.
    pub fn heard(&mut self, now: Time, node: NodeId, network: Network) {
        if let Some(peer) = self.peers.get_mut(&node) {
            let path = peer.path(network);
            // News of beats may come after frames that were read before them.
            path.heard = path.heard.max(now);
            path.refused = false;
        }
    }

    /// The peer has answered a beat.
    pub fn answered(&mut self, now: Time, node: NodeId, network: Network) {
        if let Some(peer) = self.peers.get_mut(&node) {
            let path = peer.path(network);
            path.answered = path.answered.max(now);
        }
    }

    /// The peer says which of its stores have little room left.
    pub fn says_space(&mut self, node: NodeId, short: &[StoreId]) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.short_of_space != short
        {
            peer.short_of_space = short.to_vec();
            self.any_short = self.peers.values().any(|peer| !peer.short_of_space.is_empty());
        }
    }

    /// The peer says whether its stream to the control plane is open.
    pub fn says_control(&mut self, node: NodeId, open: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.has_control = open;
        }
    }

    /// Whether the peer can be asked to relay: it has a stream, and answers.
    #[must_use]
    pub fn can_relay(&self, now: Time, node: NodeId, timing: &Timing) -> bool {
        self.peers.get(&node).is_some_and(|peer| {
            peer.has_control && peer.used_path().works(now, self.listening_since, timing)
        })
    }

    /// Peers that can be asked to relay.
    pub fn relays(&self, now: Time, timing: &Timing) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied().filter(move |node| self.can_relay(now, *node, timing))
    }

    /// Whether the store of a peer's replica had little room left when the peer said so last.
    #[must_use]
    pub fn is_short_of_space(&self, replica: ReplicaId) -> bool {
        // Nearly always nobody is, and every write asks.
        self.any_short
            && self
                .peers
                .get(&replica.node)
                .is_some_and(|peer| peer.short_of_space.contains(&replica.store))
    }

    /// The network that messages to the peer take.
    #[must_use]
    pub fn via(&self, node: NodeId) -> Network {
        self.peers.get(&node).map_or(Network::Primary, Peer::via)
    }

    /// Whether messages can be sent to the peer, over the network that the pair uses.
    #[must_use]
    pub fn reachable(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| match peer.via() {
            Network::Primary => peer.primary.linked,
            Network::Replication => peer.replication.linked,
        })
    }

    /// Chooses the network of each pair anew; gives the peers for which it has changed.
    pub fn choose_routes(&mut self, now: Time, timing: &Timing) -> Vec<NodeId> {
        let since = self.listening_since;
        let works = |path: &Path| path.works(now, since, timing);
        let mut changed = Vec::new();
        for (node, peer) in &mut self.peers {
            let (primary, replication) = (works(&peer.primary), works(&peer.replication));
            let before = peer.via();
            peer.route = match peer.route {
                Route::Primary if !primary && replication => {
                    Route::Replication { good_since: None }
                }
                Route::Replication { .. } if primary && !replication => Route::Primary,
                Route::Replication { good_since: Some(since) }
                    if primary && now.since(since) >= timing.return_to_primary =>
                {
                    Route::Primary
                }
                Route::Replication { good_since } => {
                    let good_since = primary.then_some(good_since.unwrap_or(now));
                    Route::Replication { good_since }
                }
                Route::Primary => Route::Primary,
            };
            if peer.via() != before {
                changed.push(*node);
            }
        }
        changed
    }

    /// The peer's process as of its last hello.
    #[must_use]
    pub fn process(&self, node: NodeId) -> Option<&Process> {
        self.peers.get(&node).and_then(|peer| peer.process.as_ref())
    }

    /// Why the peer counts as unresponsive, if it does: refused on both networks, or silent on
    /// both for at least `silence`.
    #[must_use]
    pub fn unresponsive(
        &self,
        now: Time,
        node: NodeId,
        silence: Duration,
    ) -> Option<RemovalReason> {
        let peer = self.peers.get(&node)?;
        if peer.primary.refused && peer.replication.refused {
            return Some(RemovalReason::Refused);
        }
        let quiet = self.quiet(now, peer.primary.heard.max(peer.replication.heard));
        (quiet >= silence).then(|| RemovalReason::Silent { millis: millis(quiet) })
    }

    /// Dialled connections that are up.
    pub fn links(&self) -> impl Iterator<Item = (NodeId, Network)> + '_ {
        self.peers.iter().flat_map(|(node, peer)| {
            let primary = peer.primary.linked.then_some((*node, Network::Primary));
            let replication = peer.replication.linked.then_some((*node, Network::Replication));
            primary.into_iter().chain(replication)
        })
    }

    /// The evidence as it goes into a heartbeat.
    #[must_use]
    pub fn evidence(&self, now: Time, beat: Duration) -> Vec<PeerEvidence> {
        let state = |path: &Path| {
            let quiet = self.quiet(now, path.heard);
            if path.refused {
                PathState::Refused
            } else if path.linked && quiet <= beat.saturating_mul(3) {
                PathState::Up
            } else {
                PathState::Silent { millis: millis(quiet) }
            }
        };
        self.peers
            .iter()
            .map(|(node, peer)| PeerEvidence {
                node: *node,
                primary_net: state(&peer.primary),
                replication_net: state(&peer.replication),
            })
            .collect()
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
