//! Where replicas go: distinct nodes, the stores with most free space first, the same for the same
//! input. Two stores of one node die together when the node does, so a chunk has at most one of them.
//!
//! Space is counted by what is promised, not by what is written: volumes are thin, and a promise
//! that cannot be kept would surface as a full disk under somebody's file system.

use crate::command::{Place, Placement};
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

/// Free bytes of the stores that can take replicas, less what was claimed meanwhile.
#[derive(Clone, Debug)]
pub struct Space {
    free: BTreeMap<Place, u64>,
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
                Some(_) if state.is_draining(*node) => {
                    space.unusable.push(Rejected { node: *node, why: "it is drained".into() });
                }
                Some(view) if verdict.is_usable() => {
                    let stores = state.node(*node).map(|record| record.stores.as_slice());
                    for store in stores.unwrap_or_default() {
                        // A store of which nothing was heard yet has no room.
                        let known =
                            view.store(*store).map_or((0, 0), |s| (s.capacity_bytes, s.used_bytes));
                        let taken = state.allocated_on(*node, *store).max(known.1);
                        let place = Place { node: *node, store: *store };
                        space.free.insert(place, known.0.saturating_sub(taken));
                    }
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

    /// The stores with the most free space of those that have at least `bytes`, one of a node.
    fn best(&self, bytes: u64, count: usize, not: &[NodeId]) -> Vec<Place> {
        let mut fitting: Vec<_> = self
            .free
            .iter()
            .filter(|(place, free)| **free >= bytes && !not.contains(&place.node))
            .map(|(place, free)| (Reverse(*free), *place))
            .collect();
        fitting.sort_unstable();
        let mut chosen: Vec<Place> = Vec::with_capacity(count);
        for (_, place) in fitting {
            let held = chosen.iter().any(|other| other.node == place.node);
            if chosen.len() < count && !held {
                chosen.push(place);
            }
        }
        chosen
    }

    fn claim(&mut self, place: Place, bytes: u64) {
        if let Some(free) = self.free.get_mut(&place) {
            *free = free.saturating_sub(bytes);
        }
    }

    /// Whether there is a place for one more replica on none of `not`.
    #[must_use]
    pub fn fits(&self, bytes: u64, not: &[NodeId]) -> bool {
        !self.best(bytes, 1, not).is_empty()
    }

    /// A place for one more replica, which is claimed; on none of `not`.
    pub fn take_one(&mut self, bytes: u64, not: &[NodeId]) -> Option<Place> {
        let place = self.best(bytes, 1, not).first().copied()?;
        self.claim(place, bytes);
        Some(place)
    }

    /// A place on one node, which is claimed.
    pub fn take_on(&mut self, node: NodeId, bytes: u64) -> Option<Place> {
        let on_node =
            self.free.iter().filter(|(place, free)| place.node == node && **free >= bytes);
        let place =
            on_node.max_by_key(|(place, free)| (**free, Reverse(**place))).map(|(p, _)| *p)?;
        self.claim(place, bytes);
        Some(place)
    }

    /// Why each node does not qualify for `bytes` more.
    #[must_use]
    pub fn rejected(&self, bytes: u64, not: &[NodeId]) -> Vec<Rejected> {
        let mut rejected = self.unusable.clone();
        // The most that a store of the node has.
        let mut most: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (place, free) in &self.free {
            let known = most.entry(place.node).or_default();
            *known = (*known).max(*free);
        }
        for (node, free) in most {
            if not.contains(&node) {
                rejected.push(Rejected {
                    node,
                    why: "holds a replica of the chunk, or its primary does not reach it".into(),
                });
            } else if free < bytes {
                let why = format!("{free} bytes free, {bytes} needed for the next chunk");
                rejected.push(Rejected { node, why });
            }
        }
        rejected.sort_unstable_by_key(|rejected| rejected.node);
        rejected
    }
}

/// Places for every chunk of a new volume, primary first: the one of the chosen whose node is primary
/// of the fewest chunks.
///
/// # Errors
/// If a chunk finds too few nodes, with the reason for each candidate.
pub fn place_volume(
    geometry: Geometry,
    copies: usize,
    mut space: Space,
    state: &ZoneState,
) -> Result<Placement, NoPlacement> {
    let mut primaries: BTreeMap<NodeId, u32> =
        state.nodes().map(|record| (record.node, state.primaries_on(record.node))).collect();
    let mut placement = Vec::with_capacity(geometry.chunk_count() as usize);
    for index in (0..geometry.chunk_count()).map(ChunkIndex) {
        let bytes = ZoneState::chunk_bytes(geometry, index);
        let mut places = space.best(bytes, copies, &[]);
        if places.len() < copies {
            return Err(NoPlacement {
                chunk: index,
                chunks: geometry.chunk_count(),
                found: places.len(),
                wanted: copies,
                candidates: space.rejected(bytes, &[]),
            });
        }
        let load = |place: &Place| primaries.get(&place.node).copied().unwrap_or(0);
        places.sort_unstable_by_key(|place| (load(place), *place));
        if let Some(primary) = places.first() {
            *primaries.entry(primary.node).or_default() += 1;
        }
        places.iter().for_each(|place| space.claim(*place, bytes));
        placement.push(places);
    }
    Ok(Placement(placement))
}
