//! A disk that is put into another node (N52).
//!
//! The node that it came from comes back with an empty one in its place: to the zone an exchanged disk.
//! The node that it was put into does not start: a store names its node in its superblock, and another
//! node refuses it (`node/src/store`, whose own tests hold that), tries again, and starts when it is
//! taken out. Then it goes back to where it belongs, beside the disk that was there meanwhile: what it
//! holds is of the past, and the zone brings it up to date or gives it up.

use crate::faults::Fault;
use crate::net::Host;
use crate::node::{End, SimNode};
use crate::scenario::Step;
use crate::store::SimStore;
use crate::world::{Event, World};
use ashlar_env::dice::Dice;
use ashlar_types::{NodeId, StartNumber, StoreId};
use std::time::Duration;

/// After which a process that could not start is started again, and one whose disk was taken is.
const RESTART: Duration = Duration::from_secs(1);

/// One of them.
#[derive(Debug)]
struct Disk {
    store: SimStore,
    home: NodeId,
    /// The last start that it has seen.
    start: StartNumber,
    into: NodeId,
}

/// Disks that are in the wrong node.
#[derive(Debug, Default)]
pub(crate) struct Misplaced {
    disks: Vec<Disk>,
}

impl World {
    /// What a step of a scenario means: the disk of its first target, in a node of the other side.
    pub(crate) fn disk_put(&self, step: &Step, targets: &[Host]) -> Vec<Fault> {
        let is_up = |node: NodeId| self.nodes.get(&node).is_some_and(SimNode::is_up);
        let node = |host: &Host| match host {
            Host::Node(node) if is_up(*node) => Some(*node),
            _no_node => None,
        };
        let Some(from) = targets.first().and_then(node) else { return Vec::new() };
        let others = self.aim(step.from, 0);
        let into = others.iter().filter_map(node).find(|into| *into != from);
        into.map(|into| Fault::PutDisk { from, into, length: step.length }).into_iter().collect()
    }

    /// The disk with the first chunk moves from one node to another, whose process is started again.
    pub(crate) fn put_disk(&mut self, from: NodeId, into: NodeId, length: Duration) {
        self.end_node(from, End::Killed);
        self.end_node(into, End::Stopped);
        let chunk = self.control.configs().next().map(|config| config.chunk);
        let id = StoreId(self.fault_dice.next_u128());
        let Some(home) = self.nodes.get_mut(&from) else { return };
        let (at, start) = (home.struck(chunk), home.identity.start);
        let store = home.exchange_disk(at, SimStore::new(id));
        let disk = store.map(|store| Disk { store, home: from, start, into });
        self.misplaced.disks.extend(disk);
        self.schedule_in(RESTART, Event::Start { node: from });
        self.schedule_in(Duration::ZERO, Event::Start { node: into });
        self.schedule_in(length, Event::Fault(Fault::TakeDiskOut { node: into }));
    }

    /// Whether a node that would start finds a disk that says whose it is: it refuses, and is started
    /// again later.
    pub(crate) fn disks_keep_it_down(&mut self, node: NodeId) -> bool {
        let Some(disk) = self.misplaced.disks.iter().find(|disk| disk.into == node) else {
            return false;
        };
        let (home, store) = (disk.home, disk.store.id);
        self.tally.note("starts refused with another node's disk");
        let text = format!("ERROR the store {store} belongs to {home}, not to {node}");
        self.logged(Host::Node(node), &text);
        self.schedule_in(RESTART, Event::Start { node });
        true
    }

    /// Disks of others go back where they belong, and both nodes are started.
    pub(crate) fn take_disk_out(&mut self, node: NodeId) {
        let disks = core::mem::take(&mut self.misplaced.disks);
        for disk in disks {
            if disk.into != node {
                self.misplaced.disks.push(disk);
                continue;
            }
            let Disk { store, home, start, .. } = disk;
            self.end_node(home, End::Stopped);
            if let Some(home) = self.nodes.get_mut(&home) {
                home.stores.push(store);
                // Above all that any of its stores has seen.
                home.identity.start = home.identity.start.max(start);
            }
            self.tally.note("disks back where they belong");
            self.schedule_in(RESTART, Event::Start { node: home });
            self.schedule_in(Duration::ZERO, Event::Start { node });
        }
    }

    /// All of them go back.
    pub(crate) fn take_all_disks_out(&mut self) {
        let nodes: Vec<NodeId> = self.misplaced.disks.iter().map(|disk| disk.into).collect();
        for node in nodes {
            self.take_disk_out(node);
        }
    }
}
