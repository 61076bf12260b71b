//! What a swarm may take while Ashlar keeps its promise: of every chunk one copy in sync with everything
//! in it, awake, and heard by the others.
//!
//! A disk that was lost still counts as in sync until the control plane knows, and a disk with wrong
//! bytes does until somebody reads them. Whoever takes the other copies away before that leaves the
//! zone with a copy that nothing can be served from: that is more than is promised.

use crate::faults::Fault;
use crate::kinds::FaultKind;
use crate::net::Host;
use crate::node::SimNode;
use crate::world::World;
use ashlar_types::{ChunkConfig, NodeId, ReplicaId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest time until a node that is back is taken for one that lives again.
const HEARD_AGAIN: Duration = Duration::from_secs(3);

/// Whom a swarm has struck.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    /// Until when each node is away, or may be held for it.
    away_until: BTreeMap<NodeId, Time>,
    /// The only node whose disk holds wrong bytes.
    pub(crate) bad_disk: Option<NodeId>,
}

impl Fault {
    /// The nodes that it takes from the others, and for how long. (`CrashAll` takes every node.)
    fn takes(&self) -> (Vec<NodeId>, Duration) {
        let node = |host: &Host| match host {
            Host::Node(node) => Some(*node),
            Host::Member(_) | Host::Client => None,
        };
        match self {
            Self::Crash { node, away }
            | Self::Stop { node, away }
            | Self::PowerOff { node, away }
            | Self::Tear { node, away }
            | Self::FailSync { node, away }
            | Self::NewDisk { node, away } => (vec![*node], *away),
            Self::StallDisk { node, length }
            | Self::StallCore { node, length }
            | Self::FailReads { node, length } => (vec![*node], *length),
            Self::Pause { host, length } | Self::Slow { host, length, .. } => {
                (node(host).into_iter().collect(), *length)
            }
            Self::Cut { wires, length } | Self::Clog { wires, length, .. } => {
                let ends = wires.iter().flat_map(|wire| [node(&wire.from), node(&wire.to)]);
                // Of many wires the first ends are all the same one: the others still hear each other.
                let ends = ends.flatten().take(2);
                (ends.collect(), *length)
            }
            _takes_no_node => (Vec::new(), Duration::ZERO),
        }
    }
}

impl World {
    /// Whether the zone promises to survive the loss of a node's disk now: it is the first one, and
    /// each of its chunks has two other copies in sync, on nodes that are up and one of them heard: one
    /// that is away may be about to be removed, and this node be the only one that is left. (Members that run may not
    /// know yet that it is: what was ever committed counts.)
    pub(crate) fn may_lose(&self, node: NodeId) -> bool {
        self.tally.of(FaultKind::NewDisk.name()) == 0
            && self.watch.configs().all(|config| {
                let others = config.in_sync.iter().filter(|replica| replica.node != node);
                others.filter(|replica| self.is_up(replica.node)).count() >= 2
                    && self.leaves_a_copy(config, &[node])
            })
    }

    /// Whether a node's disk may do something else than it should: it is the only one of the run, and
    /// others have what it cannot give.
    pub(crate) fn may_spoil(&self, node: NodeId) -> bool {
        self.lost_nothing()
            && self.promise.bad_disk.is_none_or(|bad| bad == node)
            && self.watch.configs().all(|config| {
                let others = config.in_sync.iter().filter(|replica| replica.node != node);
                others.filter(|r| self.is_up(r.node) && self.is_sound(config, **r)).count() >= 2
                    && self.leaves_a_copy(config, &[node])
            })
    }

    /// Whether a fault leaves a copy with everything of each chunk that counts one without.
    pub(crate) fn may_strike(&self, fault: &Fault) -> bool {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        let taken = match fault {
            Fault::CrashAll { .. } => all,
            _of_some => fault.takes().0,
        };
        let counts_less = |config: &&ChunkConfig| {
            config.in_sync.iter().any(|replica| !self.is_sound(config, *replica))
        };
        !self.lost_nothing()
            || taken.is_empty()
            || self.watch.configs().filter(counts_less).all(|c| self.leaves_a_copy(c, &taken))
    }

    /// A fault has struck: remembers whom it has taken.
    pub(crate) fn note_taken(&mut self, fault: &Fault) {
        let (nodes, length) = fault.takes();
        let until = self.now + length + HEARD_AGAIN;
        for node in nodes {
            let away = self.promise.away_until.entry(node).or_default();
            *away = until.max(*away);
        }
    }

    /// Whether this run loses nothing beyond the promise.
    fn lost_nothing(&self) -> bool {
        !self.lost.is_drawn()
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(SimNode::is_up)
    }

    /// Whether a chunk has a copy in sync with everything, awake and heard, beside those of `taken`.
    fn leaves_a_copy(&self, config: &ChunkConfig, taken: &[NodeId]) -> bool {
        let is_left = |replica: &&ReplicaId| {
            let away = self.promise.away_until.get(&replica.node);
            !taken.contains(&replica.node)
                && self.is_up(replica.node)
                && away.is_none_or(|until| self.now >= *until)
                && self.is_sound(config, **replica)
        };
        config.in_sync.iter().any(|replica| is_left(&replica))
    }

    /// Whether a replica's disk is there and gives what was written to it.
    fn is_sound(&self, config: &ChunkConfig, replica: ReplicaId) -> bool {
        let node = self.nodes.get(&replica.node);
        let store = node.and_then(|node| node.store(replica.store));
        store.is_some_and(|store| !store.disk.gives_wrong(self.now, config.chunk))
    }
}
