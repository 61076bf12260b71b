//! An operator's salvage: asked for as a command is, and what may be older after it.
//!
//! The operator sees which processes are down and states that those are fenced that keep a chunk from
//! being served. What may be lost is known here to the block: when a replica leaves the in-sync set, all
//! that was settled in its chunk by then is in it. If it takes over by a salvage, a read may return as
//! little, in that chunk and in no other.

use crate::client::SimClient;
use crate::node::{End, SimNode};
use crate::run::Sabotage;
use crate::world::{Event, World};
use ashlar_controlplane::member::{Reply, Request};
use ashlar_controlplane_core::state::ZoneState;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::{ChunkConfig, ChunkId, NodeId, ReplicaId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between an answer, or none, and the next call.
const NEXT_CALL: Duration = Duration::from_millis(300);
/// How long the client that had the volume before goes on writing.
const FORMER_WRITES_FOR: Duration = Duration::from_secs(1);
/// After which a node whose store was revoked comes back with an empty disk.
const DISK_EXCHANGED: Duration = Duration::from_secs(1);

/// What an operator does, and what the judge must know of it.
#[derive(Debug, Default)]
pub(crate) struct Salvages {
    asking: bool,
    /// What was settled in each block of a chunk when a replica left its in-sync set.
    had: BTreeMap<(ChunkId, ReplicaId), Vec<u64>>,
}

impl World {
    /// The operator asks, until there is an answer that asking again does not change.
    pub(crate) fn begin_salvage(&mut self) {
        self.salvages.asking = true;
        if let Some(client) = &mut self.client {
            client.may_be_fenced = true;
        }
        self.salvage_again();
    }

    /// Nodes that are down and keep a chunk from being served.
    fn lost_nodes(&self) -> BTreeSet<NodeId> {
        let is_up = |node| self.nodes.get(&node).is_some_and(SimNode::is_up);
        let is_lost = |config: &&ChunkConfig| config.in_sync.iter().all(|r| !is_up(r.node));
        let lost = self.control.configs().filter(is_lost);
        lost.flat_map(|config| config.in_sync.iter().map(|replica| replica.node)).collect()
    }

    pub(crate) fn salvage_again(&mut self) {
        if !self.salvages.asking {
            return;
        }
        let fenced_nodes: Vec<u32> = self.lost_nodes().into_iter().map(|node| node.0).collect();
        let names: Vec<String> = fenced_nodes.iter().map(u32::to_string).collect();
        let request = v1::SalvageVolumeRequest {
            volume: "demo".into(),
            operator: "operator".into(),
            client_token: format!("salvage-{}", names.join("-")),
            fenced_nodes,
            ..Default::default()
        };
        self.control.find_leader();
        self.ask(Request::SalvageVolume(request));
    }

    /// A call has an answer; true if it was the operator's.
    pub(crate) fn salvage_answered(
        &mut self,
        request: &Request,
        result: &Result<Reply, ApiError>,
    ) -> bool {
        let Request::SalvageVolume(_) = request else { return false };
        match result {
            Ok(_) => {
                self.tally.note("salvages");
                self.salvages.asking = false;
                // Who had the volume before goes on writing, and must not be heard.
                self.reattach(FORMER_WRITES_FOR);
            }
            Err(error) if error.reason == Reason::NothingToSalvage => {
                self.tally.note("salvages refused");
                self.salvages.asking = false;
            }
            Err(_) => self.schedule_in(NEXT_CALL, Event::SalvageAgain),
        }
        true
    }

    /// A committed configuration has changed.
    pub(crate) fn note_for_salvage(&mut self, known: &ChunkConfig, config: &ChunkConfig) {
        let chunk = config.chunk;
        let Some(blocks) = self.client.as_ref().map(SimClient::chunk_blocks) else { return };
        let first = u64::from(chunk.index.0) * blocks;
        let was_stale = |replica| known.stale.iter().any(|(stale, _)| *stale == replica);
        for (replica, _) in config.stale.iter().filter(|(replica, _)| !was_stale(*replica)) {
            let settled = (first..first + blocks).map(|block| self.judge.read_floor(block));
            self.salvages.had.insert((chunk, *replica), settled.collect());
        }
        if self.is_salvaged(config) {
            self.tally.note("chunks salvaged");
            let had = self.salvages.had.get(&(chunk, config.primary));
            for (block, floor) in (first..first + blocks).zip(had.into_iter().flatten()) {
                if self.sabotage != Sabotage::ExpectNoLoss && self.judge.may_be_older(block, *floor)
                {
                    self.tally.note("blocks that may be older");
                }
            }
        }
    }

    /// Whether a configuration is what a salvage has made.
    pub(crate) fn is_salvaged(&self, config: &ChunkConfig) -> bool {
        let of = |state: &ZoneState| {
            let mut risks = state.at_risk(config.chunk.volume);
            risks.any(|(chunk, risk)| chunk == config.chunk && risk.epoch == config.epoch)
        };
        self.control.state().is_some_and(of)
    }

    /// A node is told that one of its stores is revoked: its process ends, and does not open that store
    /// again. Its operator gives it an empty disk.
    pub(crate) fn node_is_revoked(&mut self, id: NodeId, store: Option<StoreId>) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_up()) else { return };
        let at = node.stores.iter().position(|known| Some(known.id) == store);
        self.tally.note("revoked stores refused");
        self.end_node(id, End::Killed);
        if let (Some(at), Some(node)) = (at, self.nodes.get_mut(&id)) {
            node.replace_disk(at, &mut self.fault_dice);
        }
        self.schedule_in(DISK_EXCHANGED, Event::Start { node: id });
    }
}
