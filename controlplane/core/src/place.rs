//! Where replicas go: distinct nodes, most free space first, the same for the same input.
//!
//! Space is counted by what is promised, not by what is written: volumes are thin, and a promise
//! that cannot be kept would surface as a full disk under somebody's file system.

use crate::observe::Observations;
use crate::state::ZoneState;
use crate::verdict::Verdicts;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::{ChunkIndex, Geometry, NodeId};
use core::cmp::Reverse;
use thiserror::Error;

/// A node that did not qualify, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The node.
    pub node: NodeId,
    /// In words.
    pub why: String,
}

/// There is no placement.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("chunk {} of {chunks} finds {found} of the {wanted} nodes it needs", chunk.0)]
pub struct NoPlacement {
    /// The first chunk that found no place.
    pub chunk: ChunkIndex,
    /// How many chunks the volume has.
    pub chunks: u32,
    /// Nodes with space for it.
    pub found: usize,
    /// Nodes that it needs.
    pub wanted: usize,
    /// Every node that did not qualify.
    pub candidates: Vec<Rejected>,
}

/// Free bytes of the nodes that can take replicas, less what was claimed meanwhile.
#[derive(Clone, Debug)]
pub struct Space {
    free: BTreeMap<NodeId, u64>,
    unusable: Vec<Rejected>,
}

impl Space {
    /// The space that this leader knows of.
    #[must_use]
    pub fn of(state: &ZoneState, seen: &Observations, verdicts: &Verdicts) -> Self {
        let mut space = Self { free: BTreeMap::new(), unusable: Vec::new() };
        for (node, verdict) in verdicts {
            let view = seen.node(*node).filter(|view| view.last_beat.is_some());
            match view {
                Some(view) if verdict.is_usable() => {
                    let taken = state.allocated_on(*node).max(view.used_bytes);
                    space.free.insert(*node, view.capacity_bytes.saturating_sub(taken));
                }
                Some(_) | None => {
                    let why = match verdict.cause() {
                        "" => "no heartbeat has come yet".into(),
                        cause => cause.into(),
                    };
                    space.unusable.push(Rejected { node: *node, why });
                }
            }
        }
        space
    }

    /// The nodes with the most free space of those that have at least `bytes`.
    fn best(&self, bytes: u64, count: usize, not: &[NodeId]) -> Vec<NodeId> {
        let mut fitting: Vec<_> = self
            .free
            .iter()
            .filter(|(node, free)| **free >= bytes && !not.contains(node))
            .map(|(node, free)| (Reverse(*free), *node))
            .collect();
        fitting.sort_unstable();
        fitting.into_iter().take(count).map(|(_, node)| node).collect()
    }

    fn claim(&mut self, node: NodeId, bytes: u64) {
        if let Some(free) = self.free.get_mut(&node) {
            *free = free.saturating_sub(bytes);
        }
    }

    /// A node for one more replica, which is claimed; none of `not`.
    pub fn take_one(&mut self, bytes: u64, not: &[NodeId]) -> Option<NodeId> {
        let node = self.best(bytes, 1, not).first().copied()?;
        self.claim(node, bytes);
        Some(node)
    }

    /// Why each node does not qualify for `bytes` more.
    #[must_use]
    pub fn rejected(&self, bytes: u64, not: &[NodeId]) -> Vec<Rejected> {
        let mut rejected = self.unusable.clone();
        for (node, free) in &self.free {
            if not.contains(node) {
                rejected.push(Rejected {
                    node: *node,
                    why: "holds a replica of the chunk, or its primary does not reach it".into(),
                });
            } else if *free < bytes {
                let why = format!("{free} bytes free, {bytes} needed for the next chunk");
                rejected.push(Rejected { node: *node, why });
            }
        }
        rejected.sort_unstable_by_key(|rejected| rejected.node);
        rejected
    }
}

/// Nodes for every chunk of a new volume, primary first: the one of the chosen that is primary of
/// the fewest chunks.
///
/// # Errors
/// If a chunk finds too few nodes, with the reason for each candidate.
pub fn place_volume(
    geometry: Geometry,
    copies: usize,
    mut space: Space,
    state: &ZoneState,
) -> Result<Vec<Vec<NodeId>>, NoPlacement> {
    let mut primaries: BTreeMap<NodeId, u32> =
        state.nodes().map(|record| (record.node, state.primaries_on(record.node))).collect();
    let mut placement = Vec::with_capacity(geometry.chunk_count() as usize);
    for index in (0..geometry.chunk_count()).map(ChunkIndex) {
        let bytes = ZoneState::chunk_bytes(geometry, index);
        let mut nodes = space.best(bytes, copies, &[]);
        if nodes.len() < copies {
            return Err(NoPlacement {
                chunk: index,
                chunks: geometry.chunk_count(),
                found: nodes.len(),
                wanted: copies,
                candidates: space.rejected(bytes, &[]),
            });
        }
        nodes.sort_unstable_by_key(|node| (primaries.get(node).copied().unwrap_or(0), *node));
        if let Some(primary) = nodes.first() {
            *primaries.entry(*primary).or_default() += 1;
        }
        nodes.iter().for_each(|node| space.claim(*node, bytes));
        placement.push(nodes);
    }
    Ok(placement)
}
