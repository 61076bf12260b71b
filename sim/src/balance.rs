//! Nodes that come to a zone later, and whether all are filled alike in the end.

use crate::world::World;
use ashlar_controlplane_core::balance::SPREAD_MAX;
use ashlar_types::NodeId;

/// What each store can hold, if nothing is said: so much that no run fills a tenth of it.
pub(crate) const ROOM_USUAL: u64 = 1 << 40;

impl World {
    /// A node that was not there at first is started.
    pub(crate) fn join(&mut self, node: NodeId) {
        self.late.remove(&node);
        self.tally.note("nodes added");
        self.start_node(node);
    }

    /// Whether what is promised on the nodes differs by a tenth of what they can hold at most, where that is
    /// little enough to be filled.
    pub(crate) fn is_balanced(&self) -> bool {
        let Some(state) = self.control.state().filter(|_| self.room_bytes < ROOM_USUAL) else {
            return true;
        };
        let promised = || {
            state.nodes().map(|node| {
                let stores = node.stores.iter();
                stores.map(|store| state.allocated_on(node.node, *store)).sum::<u64>()
            })
        };
        let room = self.room_bytes * u64::from(self.stores_each);
        let (most, least) = (promised().max().unwrap_or(0), promised().min().unwrap_or(0));
        (most - least) * 1_000_000 <= room * SPREAD_MAX
    }
}
