//! Who is meant: roles of the first chunk, members, everyone.

use crate::net::Host;
use crate::world::World;
use ashlar_types::{ChunkConfig, NodeId};
use serde::Deserialize;

/// Target of a step. Roles are those of the first chunk, as committed at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Aim {
    Primary,
    /// The first in-sync secondary.
    Secondary,
    /// The last in-sync secondary.
    OtherSecondary,
    /// A node without a replica of the chunk.
    Outsider,
    /// A replica being filled.
    Learner,
    /// The first node that the zone has agreed to drain.
    Drained,
    /// A node that was not there at first.
    Latecomer,
    /// Every node in the rack of the primary.
    RackOfPrimary,
    /// Every node with a replica in sync.
    Holders,
    Leader,
    /// A member that does not lead.
    Follower,
    Members,
    /// The one of the lowest number that is left.
    FirstMember,
    /// The member that was added last, while it is filled.
    Newcomer,
    /// All nodes in turn, one at each time that the step strikes.
    EachNode,
    Nodes,
    /// A third of the nodes: every third one.
    Third,
    Client,
    /// All nodes and members, not the client.
    Peers,
    /// Everyone.
    Everyone,
}

impl World {
    /// Who is meant at present, when a step strikes for the `turn`-th time; nobody, if there is no
    /// such host now.
    pub(crate) fn aim(&self, aim: Aim, turn: u32) -> Vec<Host> {
        let config = self.control.configs().next();
        let nodes = || self.nodes.keys().copied().map(Host::Node);
        let members = || self.control.ids().into_iter().map(Host::Member);
        let one = |node: Option<NodeId>| node.map(Host::Node).into_iter().collect();
        let of_config = |pick: &dyn Fn(&ChunkConfig) -> Option<NodeId>| one(config.and_then(pick));
        match aim {
            Aim::Primary => of_config(&|config| Some(config.primary.node)),
            Aim::Secondary => of_config(&|config| config.secondaries().next().map(|r| r.node)),
            Aim::OtherSecondary => of_config(&|config| config.secondaries().last().map(|r| r.node)),
            Aim::Learner => of_config(&|config| config.learners.first().map(|r| r.node)),
            Aim::Latecomer => one(self.nodes.keys().next_back().copied()),
            Aim::Drained => one(self.drains.nodes().next()),
            Aim::Outsider => of_config(&|config| self.outsiders(config).first().copied()),
            Aim::RackOfPrimary => {
                config.map(|config| self.beside(config.primary.node)).unwrap_or_default()
            }
            Aim::Holders => config
                .iter()
                .flat_map(|config| config.in_sync.iter().map(|r| Host::Node(r.node)))
                .collect(),
            Aim::Leader => self.control.leader().map(Host::Member).into_iter().collect(),
            Aim::Follower => {
                let leader = self.control.leader();
                members()
                    .find(|m| leader.is_some_and(|l| *m != Host::Member(l)))
                    .into_iter()
                    .collect()
            }
            Aim::Members => members().collect(),
            Aim::FirstMember => members().take(1).collect(),
            Aim::Newcomer => {
                self.control.replacements.newcomer().map(Host::Member).into_iter().collect()
            }
            Aim::EachNode => {
                let count = u32::try_from(self.nodes.len()).unwrap_or(1).max(1);
                nodes().nth(usize::try_from(turn % count).unwrap_or(0)).into_iter().collect()
            }
            Aim::Nodes => nodes().collect(),
            Aim::Third => nodes().step_by(3).collect(),
            Aim::Client => vec![Host::Client],
            Aim::Peers => nodes().chain(members()).collect(),
            Aim::Everyone => nodes().chain(members()).chain([Host::Client]).collect(),
        }
    }

    /// Nodes without a replica of a chunk; first those that hold replicas of others.
    fn outsiders(&self, config: &ChunkConfig) -> Vec<NodeId> {
        let holds = |config: &ChunkConfig, node| config.replicas().any(|r| r.node == node);
        let idle = |node| !self.watch.configs().any(|other| holds(other, node));
        let mut outside: Vec<NodeId> =
            self.nodes.keys().copied().filter(|node| !holds(config, *node)).collect();
        outside.sort_by_key(|node| idle(*node));
        outside
    }
}
