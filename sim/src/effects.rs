//! What faults did, counted: a scenario says which of these it wants to have seen, or it has shown
//! nothing (`[expect.at-least]`, `[expect.at-most]`). None of them is a rule.

use crate::client::SimClient;
use crate::net::Host;
use crate::node::{SimNode, WriteMark};
use crate::store::SimStore;
use crate::world::World;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{ChunkId, ChunkIndex, NodeId, ReplicaId, StoreId, Time};
use std::collections::BTreeSet;
use std::time::Duration;

/// What is remembered for the counts; only of a run with a script.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Somebody could take writes of the first chunk before.
    served: bool,
    /// Since when nobody can.
    unserved_since: Option<Time>,
    /// Writes with content that the client has sent.
    sent: BTreeSet<(ChunkId, WriteMark)>,
}

/// What the requests of a client came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answers {
    /// Longest time that one took.
    pub(crate) longest: Duration,
    /// Requests answered.
    pub(crate) all: u64,
    /// Zeroings, as trims are, acknowledged.
    pub(crate) zeroings: u64,
    /// Most of them in progress together.
    pub(crate) most_open: usize,
    /// Requests that reach beyond the size that the volume had at first.
    pub(crate) beyond: u64,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl World {
    /// Somebody can take writes of the first chunk now, and have them acknowledged, or nobody can.
    pub(crate) fn note_service(&mut self, possible: bool) {
        if self.script.is_none() {
            return;
        }
        let effects = &mut self.effects;
        effects.served |= possible;
        match effects.unserved_since {
            None if effects.served && !possible => effects.unserved_since = Some(self.now),
            Some(since) if possible => {
                effects.unserved_since = None;
                self.tally.note("writes possible again");
                self.tally.measure("longest without writes, ms", millis(self.now.since(since)));
            }
            _as_before => {}
        }
    }

    /// A fault strikes: what it strikes into.
    pub(crate) fn note_strike(&mut self) {
        let Some(client) = &self.client else { return };
        let open = client.unfinished() as u64;
        self.tally.measure("most requests open at a strike", open);
        self.tally.measure("most overlapping writes at a strike", client.overlapping_writes());
    }

    /// The client sends a write: for the first time, or once more.
    pub(crate) fn note_sent_again(&mut self, message: &DataMessage, mark: WriteMark) {
        let DataMessage::Write { stamp, data, .. } = message else { return };
        // One zeroing of a range is like another.
        if self.script.is_some()
            && data.data_blocks() > 0
            && !self.effects.sent.insert((stamp.chunk, mark))
        {
            self.tally.note("writes sent again");
        }
    }

    /// A disk of a node syncs records while another one of its disks stands still.
    pub(crate) fn note_synced(&mut self, id: NodeId, store: StoreId) {
        let now = self.now;
        let Some(node) = self.nodes.get(&id) else { return };
        let stalled = |other: &SimStore| other.id != store && now < other.disk.stalled_until;
        if node.stores.iter().any(stalled) {
            self.tally.note("syncs beside a stalled disk");
        }
    }

    /// Of the blocks that the client has zeroed ever, those that are holes in every replica in sync.
    pub(crate) fn note_holes(&mut self) {
        let Some(client) = &self.client else { return };
        let hole = |(chunk, block): &(ChunkIndex, u32)| {
            let config = self.control.configs().find(|config| config.chunk.index == *chunk);
            config.is_some_and(|config| {
                let store = |r: &ReplicaId| self.nodes.get(&r.node)?.store(r.store);
                let mut stores = config.in_sync.iter().filter_map(store);
                stores.all(|store| store.live.get(config.chunk, *block).is_none())
            })
        };
        let holes = client.zeroed_blocks().filter(hole).count() as u64;
        self.tally.measure("zeroed blocks that are holes at the end", holes);
    }

    /// What the client's requests came to.
    pub(crate) fn note_answers(&mut self) {
        let Answers { longest, all, zeroings, most_open, beyond } =
            self.client.as_ref().map(SimClient::answers).unwrap_or_default();
        self.tally.measure("longest request, ms", millis(longest));
        self.tally.measure("requests answered", all);
        self.tally.measure("zeroings acknowledged", zeroings);
        self.tally.measure("most requests in progress", most_open as u64);
        if beyond > 0 {
            self.tally.measure("requests beyond the first size", beyond);
        }
    }

    /// A member cannot start, or cannot go on.
    pub(crate) fn note_member_failed(&mut self, id: u64) {
        if self.has_no_descriptors(Host::Member(id)) {
            self.tally.note("members that could open no file");
        }
    }

    /// How many nodes have a replica of a chunk in sync and are down.
    pub(crate) fn note_holders_down(&mut self) {
        let Some(config) = self.control.configs().next() else { return };
        let is_down = |node: &NodeId| !self.nodes.get(node).is_some_and(SimNode::is_up);
        let down = config.in_sync.iter().filter(|replica| is_down(&replica.node)).count() as u64;
        self.tally.measure("most holders down", down);
    }
}
