//! Draining: an operator wants a node empty (decisions/0014).
//!
//! What is committed is a mark, and nothing else: the node takes no new replicas, and the leader moves
//! away what it holds, one copy at a time (`moves.rs`). There is no list of steps that could be lost: how
//! far it is stands in the configurations, so a leader that is elected in the middle goes on where the
//! last one was. The mark stays until an operator cancels it, also while the node holds nothing.
//!
//! Before it is set, the leader refuses what could not end well ([`check`]): a chunk that would have fewer
//! than `copies_min` in sync without the node, and copies for which no other node has room.

use crate::apply::{Answer, Refusal};
use crate::moves::{self, Stage};
use crate::observe::Observations;
use crate::place::{Rejected, Space, Wanted};
use crate::state::{Key, ZoneState};
use crate::verdict::Verdicts;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, ChunkId, NodeId, ReplicaId, wire_struct};
use thiserror::Error;

/// Most chunks that are named with the reason why they do not move.
const BLOCKED_NAMED_MAX: usize = 100;

/// A node that is being drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainRecord {
    /// The node.
    pub node: NodeId,
    /// Since when, milliseconds since 1970.
    pub since_millis: u64,
}

wire_struct! { DrainRecord { node, since_millis } }

/// Why a node is not drained.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DrainRefusal {
    /// Too few would be in sync without it.
    #[error(
        "chunk {chunk} has {in_sync} of its {copies_wanted} copies in sync, one of them on {node}: without \
         it fewer than the {copies_min} that writes need would remain"
    )]
    BelowMinimum {
        /// The node.
        node: NodeId,
        /// The first such chunk.
        chunk: ChunkId,
        /// Replicas in sync now.
        in_sync: usize,
        /// Replicas that are wanted.
        copies_wanted: u8,
        /// Replicas that writes need.
        copies_min: u8,
    },
    /// No other node can take its copies, or those that are missing.
    #[error("without {node} there is no home for a copy of chunk {chunk} ({bytes} bytes)")]
    NoHome {
        /// The node.
        node: NodeId,
        /// The first chunk that finds no place.
        chunk: ChunkId,
        /// What it needs.
        bytes: u64,
        /// Why each node does not qualify.
        candidates: Vec<Rejected>,
    },
}

/// What a drain will move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Copies that need another home.
    pub copies: u32,
    /// Bytes that these can hold.
    pub bytes: u64,
}

/// A copy that does not move now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Its chunk.
    pub chunk: ChunkId,
    /// Why, and what will let it move.
    pub cause: alloc::string::String,
}

/// How far the drain of a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Replicas of every kind that it still holds.
    pub replicas: u32,
    /// Of these: being copied elsewhere, or about to leave.
    pub moving: u32,
    /// Of these: they cannot move now.
    pub blocked: u32,
    /// The first of those, with the reasons.
    pub named: Vec<Blocked>,
    /// Replicas given up, on stores that work, that it has not confirmed to have erased.
    pub erasing: u32,
}

impl ZoneState {
    /// Whether a node is being drained, or is drained.
    #[must_use]
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.draining.contains_key(&node)
    }

    /// Nodes that are being drained, in order.
    pub fn draining(&self) -> impl Iterator<Item = &DrainRecord> {
        self.draining.values()
    }

    /// Marks a node, or takes the mark away. Marked twice it has been drained since the first time.
    pub(crate) fn drain(
        &mut self,
        node: NodeId,
        cancel: bool,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::UnknownNode(node));
        }
        if cancel {
            if self.draining.remove(&node).is_some() {
                changed.insert(Key::Draining(node));
            }
        } else if !self.is_draining(node) {
            let since_millis = self.clock_millis;
            self.draining.insert(node, DrainRecord { node, since_millis });
            changed.insert(Key::Draining(node));
        }
        Ok(Answer::Done {})
    }
}

/// Whether a node can be drained, as this leader sees it: `space` is what it knows of all nodes. Chunks on
/// those that are drained already, and those that lack a copy, must find what they need without it: it may
/// be the home that they wait for.
///
/// # Errors
/// The first chunk that stands against it.
pub fn check(
    node: NodeId,
    state: &ZoneState,
    mut space: Space<'_>,
) -> Result<Expected, DrainRefusal> {
    let mut expected = Expected::default();
    for config in state.configs() {
        let holds = config.in_sync.iter().any(|replica| replica.node == node);
        let remaining = config.in_sync.len() - usize::from(holds);
        if holds && !config.is_whole() && remaining < usize::from(config.copies_min) {
            return Err(DrainRefusal::BelowMinimum {
                node,
                chunk: config.chunk,
                in_sync: config.in_sync.len(),
                copies_wanted: config.copies_wanted,
                copies_min: config.copies_min,
            });
        }
        let homes = homes_needed(config, node, state);
        if homes == 0 {
            continue;
        }
        let (chunk, bytes) = (config.chunk, state.bytes_of(config.chunk));
        let not = moves::holders(config, state).into_iter().chain([node]).collect();
        let mut wanted = Wanted { bytes, not, ..Wanted::default() };
        for _ in 0..homes {
            let Some(place) = space.take_one(&wanted) else {
                let candidates = space.rejected(bytes, &wanted.not);
                return Err(DrainRefusal::NoHome { node, chunk, bytes, candidates });
            };
            wanted.not.push(place.node);
        }
        if config.replicas().any(|replica| replica.node == node) {
            expected.copies += 1;
            expected.bytes += bytes;
        }
    }
    Ok(expected)
}

/// How many new homes a chunk needs, so that it can do without a node and without those that are drained
/// already: as many as it wants copies beyond those on other nodes, whatever state they are in (who is away
/// may come back).
fn homes_needed(config: &ChunkConfig, node: NodeId, state: &ZoneState) -> usize {
    let stays = config.replicas().filter(|r| r.node != node && !state.is_draining(r.node)).count();
    usize::from(config.copies_wanted).saturating_sub(stays)
}

/// How far a node's drain is.
#[must_use]
pub fn progress(
    node: NodeId,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Progress {
    let space = Space::of(state, seen, verdicts);
    let mut progress = Progress::default();
    for config in state.configs_of_node(node) {
        progress.replicas += 1;
        match moves::stage(config, node, state, seen, verdicts, &space) {
            Stage::Due => {}
            Stage::Moving => progress.moving += 1,
            Stage::Blocked(cause) => {
                progress.blocked += 1;
                if progress.named.len() < BLOCKED_NAMED_MAX {
                    progress.named.push(Blocked { chunk: config.chunk, cause });
                }
            }
        }
    }
    // What is away with a store that does not work is not there to be erased.
    let is_here = |replica: &ReplicaId| replica.node == node && !state.is_store_gone(*replica);
    let erasing = state.erasures().filter(|(_, replica)| is_here(replica)).count();
    progress.erasing = u32::try_from(erasing).unwrap_or(u32::MAX);
    progress
}
