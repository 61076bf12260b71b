//! Racks: which nodes stand together, and whether copies do.

use crate::net::Host;
use crate::world::World;
use ashlar_types::{ChunkConfig, NodeId};
use std::collections::BTreeSet;

impl World {
    /// The label of a node's rack; empty: it has none.
    pub(crate) fn rack_of(&self, node: NodeId) -> String {
        match node.0.checked_rem(self.racks) {
            Some(number) => format!("rack-{number}"),
            None => String::new(),
        }
    }

    /// All nodes in the rack of one.
    pub(crate) fn beside(&self, node: NodeId) -> Vec<Host> {
        let rack = self.rack_of(node);
        let same = |other: &NodeId| !rack.is_empty() && self.rack_of(*other) == rack;
        self.nodes.keys().copied().filter(same).map(Host::Node).collect()
    }

    /// Whether two copies in sync of a chunk stand in one rack.
    pub(crate) fn is_crowded(&self, config: &ChunkConfig) -> bool {
        let racks: BTreeSet<String> =
            config.in_sync.iter().map(|replica| self.rack_of(replica.node)).collect();
        self.racks > 0 && racks.len() < config.in_sync.len()
    }

    /// Whether every chunk has its copies in different racks, where there are as many racks as copies.
    pub(crate) fn is_apart(&self) -> bool {
        let allows = |config: &ChunkConfig| self.racks >= u32::from(config.copies_wanted);
        !self.control.configs().any(|config| allows(config) && self.is_crowded(config))
    }
}
