//! Where replicas go: distinct nodes, distinct racks where labels allow, few sharing nodes, the stores with
//! most free space first; the same for the same input. Two stores of one node die together when the node
//! does, so a chunk has at most one of them.
//!
//! What is preferred, in this order (decisions/0015):
//! - racks apart: one is shared only if no node of another has room. A node without a label is a rack of
//!   its own;
//! - the bound on sharing nodes (`sharing.rs`);
//! - room, counted in chunks of the size to be placed, and of equals whoever shares least with the
//!   others of the chunk: so the copies of one node are spread over all of its peers.
//!
//! Space is counted by what is promised, not by what is written: volumes are thin, and a promise
//! that cannot be kept would surface as a full disk under somebody's file system. Promised is what a
//! configuration names, learners and stale replicas too, and what this leader has handed to Raft and not
//! seen applied yet: a replica in a configuration is its own reservation.

use crate::command::{Action, ChangeKind, ChunkChange, Place, Placement};
use crate::observe::Observations;
use crate::sharing::{Bound, Circle, PEERS_PER_NODE_MAX, Sharing};
use crate::state::{Volume, ZoneState};
use crate::verdict::Verdicts;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::{ChunkId, ChunkIndex, Geometry, NodeId, StoreId, VolumeId};
use core::cmp::Reverse;
use thiserror::Error;

/// Nodes that are tried for one place of a chunk before the choice before it is given up: what does not
/// fit with the first few rarely fits with the next.
const TRIES_MAX: usize = 4;

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

/// Replicas that are placed by a command on its way: nothing committed names them yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing {
    /// Where, each to hold `bytes`.
    pub places: Vec<Place>,
    /// What each of them can hold.
    pub bytes: u64,
    /// Nodes that hold the chunk already.
    pub holders: Vec<NodeId>,
}

/// One more replica of a chunk.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What it can hold.
    pub bytes: u64,
    /// Nodes that cannot take it.
    pub not: Vec<NodeId>,
    /// Nodes that hold the chunk, in whichever role.
    pub holders: Vec<NodeId>,
    /// Nodes whose racks should have no second copy.
    pub apart: Vec<NodeId>,
}

/// A node as a home.
#[derive(Clone, Debug)]
struct Home {
    node: NodeId,
    /// Stands for its label.
    rack: usize,
    /// Stores that can take replicas, with what is free.
    stores: Vec<(StoreId, u64)>,
    /// The one with most of it.
    best: Option<(StoreId, u64)>,
}

impl Home {
    fn fits(&self, bytes: u64) -> bool {
        self.best.is_some_and(|(_, free)| free >= bytes)
    }

    fn claim(&mut self, store: StoreId, bytes: u64) {
        for (_, free) in self.stores.iter_mut().filter(|(id, _)| *id == store) {
            *free = free.saturating_sub(bytes);
        }
        self.note_best();
    }

    fn note_best(&mut self) {
        self.best = self.stores.iter().copied().max_by_key(|(id, free)| (*free, Reverse(*id)));
    }
}

/// Room on the nodes of a zone, less what was claimed meanwhile.
#[derive(Clone, Debug)]
pub struct Space<'a> {
    state: &'a ZoneState,
    /// All nodes of the zone, in order; those that are not usable without stores.
    homes: Vec<Home>,
    unusable: Vec<Rejected>,
    peers_max: usize,
    /// On its way, and not in `sharing` yet.
    placing: Vec<&'a Placing>,
    sharing: Option<Sharing>,
}

impl<'a> Space<'a> {
    /// The space that this leader knows of.
    #[must_use]
    pub fn of(state: &'a ZoneState, seen: &'a Observations, verdicts: &Verdicts) -> Self {
        let (mut homes, mut unusable) = (Vec::new(), Vec::new());
        let mut racks: BTreeMap<&str, usize> = BTreeMap::new();
        for (number, record) in state.nodes().enumerate() {
            let rack = match record.rack.as_str() {
                "" => number,
                label => *racks.entry(label).or_insert(number),
            };
            let node = record.node;
            let mut home = Home { node, rack, stores: Vec::new(), best: None };
            match why_unusable(node, state, seen, verdicts) {
                Some(why) => unusable.push(Rejected { node, why }),
                None => home.stores = free_stores(node, state, seen),
            }
            home.note_best();
            homes.push(home);
        }
        let placing = seen.placing().collect();
        let peers_max = PEERS_PER_NODE_MAX;
        let mut space = Self { state, homes, unusable, peers_max, placing, sharing: None };
        for one in seen.placing() {
            one.places.iter().for_each(|place| space.claim(*place, one.bytes));
        }
        space
    }

    /// The same under another bound than [`PEERS_PER_NODE_MAX`].
    #[must_use]
    pub fn with_peers_max(self, peers_max: usize) -> Self {
        Self { peers_max, ..self }
    }

    /// Who shares with whom, found out when first needed.
    fn sharing(&mut self) -> Sharing {
        if let Some(sharing) = self.sharing.take() {
            return sharing;
        }
        let nodes = self.homes.iter().map(|home| home.node).collect();
        let mut sharing = Sharing::of(self.state, nodes, self.peers_max);
        for one in core::mem::take(&mut self.placing) {
            let nodes = one.places.iter().map(|place| place.node);
            let circle =
                circle_of(&mut sharing, self.state, one.holders.iter().copied().chain(nodes));
            sharing.place(&circle, self.state);
        }
        sharing
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.homes.binary_search_by_key(&node, |home| home.node).ok()
    }

    fn claim(&mut self, place: Place, bytes: u64) {
        let at = self.position(place.node);
        if let Some(home) = at.and_then(|at| self.homes.get_mut(at)) {
            home.claim(place.store, bytes);
        }
    }

    /// Why a store that is there cannot hold so much more.
    fn short_of(&self, place: Place, bytes: u64) -> Option<Rejected> {
        let home = self.homes.get(self.position(place.node)?)?;
        let (_, free) = home.stores.iter().find(|(id, _)| *id == place.store)?;
        let why = || format!("{free} bytes free, {bytes} needed for the last chunk");
        (*free < bytes).then(|| Rejected { node: place.node, why: why() })
    }

    /// Whether there is a place for one more replica on none of `not`.
    #[must_use]
    pub fn fits(&self, bytes: u64, not: &[NodeId]) -> bool {
        self.homes.iter().any(|home| home.fits(bytes) && !not.contains(&home.node))
    }

    /// A place for one more replica, which is claimed. There is one whenever a node has room.
    pub fn take_one(&mut self, wanted: &Wanted) -> Option<Place> {
        self.take(wanted, &RULES)
    }

    /// The same, but in a rack of its own or nowhere.
    pub fn take_apart(&mut self, wanted: &Wanted) -> Option<Place> {
        self.take(wanted, RULES.get(..Bound::ALL.len()).unwrap_or_default())
    }

    fn take(&mut self, wanted: &Wanted, rules: &[Rule]) -> Option<Place> {
        let mut sharing = self.sharing();
        let holders = wanted.holders.iter().copied();
        let mut chosen =
            Chosen { circle: circle_of(&mut sharing, self.state, holders), ..Chosen::default() };
        let racks = wanted.apart.iter().filter_map(|node| self.position(*node));
        chosen.racks = racks.filter_map(|at| self.homes.get(at)).map(|home| home.rack).collect();
        let skip = |at: usize| self.homes.get(at).is_none_or(|h| wanted.not.contains(&h.node));
        let next = |rule: &Rule| self.next(&sharing, &chosen, *rule, wanted.bytes, &skip);
        let found = rules.iter().find_map(next);
        let place = found.and_then(|at| self.widen(&mut chosen, at, &mut sharing));
        if let Some(place) = place {
            sharing.place(&chosen.circle, self.state);
            self.claim(place, wanted.bytes);
        }
        self.sharing = Some(sharing);
        place
    }

    /// A place on that very node for one more replica, which is claimed; none, if it would not keep the
    /// bound on sharing nodes.
    pub(crate) fn take_there(&mut self, node: NodeId, wanted: &Wanted) -> Option<Place> {
        let at = self.position(node)?;
        let (store, _) = self.homes.get(at)?.best.filter(|(_, free)| *free >= wanted.bytes)?;
        let mut sharing = self.sharing();
        let mut circle = circle_of(&mut sharing, self.state, wanted.holders.iter().copied());
        let keeps = |bound: &Bound| *bound != Bound::None && sharing.allows(*bound, &circle, at);
        let may = Bound::ALL.iter().any(keeps);
        if may {
            sharing.widen(&mut circle, at, self.state);
            sharing.place(&circle, self.state);
        }
        self.sharing = Some(sharing);
        let place = Place { node, store };
        may.then(|| self.claim(place, wanted.bytes))?;
        Some(place)
    }

    /// A place on one node that holds the chunk already, which is claimed.
    pub fn take_on(&mut self, node: NodeId, bytes: u64) -> Option<Place> {
        let at = self.position(node)?;
        let (store, _) = self.homes.get(at)?.best.filter(|(_, free)| *free >= bytes)?;
        let place = Place { node, store };
        self.claim(place, bytes);
        Some(place)
    }

    /// The best node for one more replica of a chunk under a rule.
    fn next(
        &self,
        sharing: &Sharing,
        chosen: &Chosen,
        (apart, bound): Rule,
        bytes: u64,
        skip: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let may = |(at, home): &(usize, &Home)| {
            home.fits(bytes)
                && !skip(*at)
                && !(apart && chosen.racks.contains(&home.rack))
                && sharing.allows(bound, &chosen.circle, *at)
        };
        let key = |(at, home): &(usize, &Home)| {
            let room = home.best.map_or(0, |(_, free)| free / bytes.max(1));
            (room, Reverse(sharing.shared(&chosen.circle, *at)), Reverse(*at))
        };
        self.homes.iter().enumerate().filter(may).max_by_key(key).map(|(at, _)| at)
    }

    /// Adds a node to what is chosen for a chunk.
    fn widen(&self, chosen: &mut Chosen, at: usize, sharing: &mut Sharing) -> Option<Place> {
        let home = self.homes.get(at)?;
        let (store, _) = home.best?;
        let place = Place { node: home.node, store };
        chosen.homes.push(at);
        chosen.places.push(place);
        chosen.racks.push(home.rack);
        sharing.widen(&mut chosen.circle, at, self.state);
        Some(place)
    }

    /// Chooses the rest of a chunk's homes under a rule; false: what is chosen leads nowhere.
    fn complete(
        &self,
        chosen: &mut Chosen,
        rule: Rule,
        (bytes, copies): (u64, usize),
        sharing: &mut Sharing,
    ) -> bool {
        if chosen.homes.len() >= copies {
            return true;
        }
        let mut tried = chosen.homes.clone();
        for _ in 0..TRIES_MAX {
            let skip = |at: usize| tried.contains(&at);
            let Some(at) = self.next(sharing, chosen, rule, bytes, &skip) else { return false };
            let mut wider = chosen.clone();
            self.widen(&mut wider, at, sharing);
            if self.complete(&mut wider, rule, (bytes, copies), sharing) {
                *chosen = wider;
                return true;
            }
            tried.push(at);
        }
        false
    }

    /// Why each node does not qualify for `bytes` more.
    #[must_use]
    pub fn rejected(&self, bytes: u64, not: &[NodeId]) -> Vec<Rejected> {
        let mut rejected = self.unusable.clone();
        for home in &self.homes {
            let (node, Some((_, free))) = (home.node, home.best) else { continue };
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

/// Whether racks are kept apart, and how strictly the bound on sharing nodes is kept.
type Rule = (bool, Bound);

/// From the strictest on: each is used where the one before it finds nothing.
const RULES: [Rule; 8] = [
    (true, Bound::Group),
    (true, Bound::Largest),
    (true, Bound::Pairs),
    (true, Bound::None),
    (false, Bound::Group),
    (false, Bound::Largest),
    (false, Bound::Pairs),
    (false, Bound::None),
];

/// What is chosen for one chunk so far.
#[derive(Clone, Debug, Default)]
struct Chosen {
    homes: Vec<usize>,
    places: Vec<Place>,
    racks: Vec<usize>,
    circle: Circle,
}

fn circle_of(
    sharing: &mut Sharing,
    state: &ZoneState,
    nodes: impl Iterator<Item = NodeId>,
) -> Circle {
    let mut circle = Circle::default();
    for node in nodes {
        if let Some(at) = sharing.position(node) {
            sharing.widen(&mut circle, at, state);
        }
    }
    circle
}

fn why_unusable(
    node: NodeId,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Option<String> {
    let Some(verdict) = verdicts.get(&node) else { return Some("it never registered".into()) };
    let heard = seen.node(node).is_some_and(|view| view.last_beat.is_some());
    if heard && state.is_draining(node) {
        return Some("it is drained".into());
    }
    match verdict.cause() {
        "" if heard => None,
        "" => Some("no heartbeat has come yet".into()),
        cause => Some(cause.into()),
    }
}

/// What is free on each store of a node. One of which nothing was heard yet has no room.
fn free_stores(node: NodeId, state: &ZoneState, seen: &Observations) -> Vec<(StoreId, u64)> {
    let stores = state.node(node).map(|record| record.stores.as_slice()).unwrap_or_default();
    let free = |store: &StoreId| {
        let told = seen.node(node).and_then(|view| view.store(*store));
        let (capacity, used) = told.map_or((0, 0), |s| (s.capacity_bytes, s.used_bytes));
        (*store, capacity.saturating_sub(state.allocated_on(node, *store).max(used)))
    };
    stores.iter().map(free).collect()
}

/// The replicas that a command places, of chunks as they are now.
#[must_use]
pub fn placing(action: &Action, state: &ZoneState) -> Vec<Placing> {
    if let Action::CreateVolume { geometry, placement, .. } = action {
        let each = (0..).map(ChunkIndex).zip(&placement.0);
        return each
            .map(|(index, places)| Placing {
                places: places.clone(),
                bytes: ZoneState::chunk_bytes(*geometry, index),
                holders: Vec::new(),
            })
            .collect();
    }
    if let Action::GrowVolume { volume, size_bytes, placement, .. } = action {
        return placing_growth(*volume, *size_bytes, placement, state);
    }
    let Action::Change { changes } = action else { return Vec::new() };
    let of = |change: &ChunkChange| {
        let (ChangeKind::AddLearnerOn { place, .. }
        | ChangeKind::AddLearnerInstead { place, .. }
        | ChangeKind::AddSpare { place }) = &change.kind
        else {
            return None;
        };
        let holders = state.config(change.chunk)?.replicas().map(|replica| replica.node).collect();
        Some(Placing { places: vec![*place], bytes: state.bytes_of(change.chunk), holders })
    };
    changes.iter().filter_map(of).collect()
}

/// The same of a growth: its new chunks, and what more the last one can hold.
fn placing_growth(
    volume: VolumeId,
    size_bytes: u64,
    placement: &Placement,
    state: &ZoneState,
) -> Vec<Placing> {
    let Some(volume) = state.volume(volume) else { return Vec::new() };
    let to = Geometry::new(size_bytes, volume.geometry.chunk_bytes());
    let Ok(to) = to else { return Vec::new() };
    let each = (volume.geometry.chunk_count()..).map(ChunkIndex).zip(&placement.0);
    let new = each.map(|(index, places)| Placing {
        places: places.clone(),
        bytes: ZoneState::chunk_bytes(to, index),
        holders: Vec::new(),
    });
    let (places, bytes) = widened(volume, to, state);
    let last = Placing { places, bytes, holders: Vec::new() };
    new.chain((bytes > 0).then_some(last)).collect()
}

/// Who holds the last chunk of a volume, and how much more it can hold at another size.
fn widened(volume: &Volume, to: Geometry, state: &ZoneState) -> (Vec<Place>, u64) {
    let index = ChunkIndex(volume.geometry.chunk_count().saturating_sub(1));
    let chunk = ChunkId { volume: volume.id, index };
    let places = state.config(chunk).map(|config| config.replicas().map(Place::of).collect());
    let now = ZoneState::chunk_bytes(volume.geometry, index);
    (places.unwrap_or_default(), ZoneState::chunk_bytes(to, index).saturating_sub(now))
}

/// How far the placement of a volume had to give way.
#[derive(Debug)]
struct Run {
    bytes: u64,
    copies: usize,
    /// The rule in use, of [`RULES`].
    rule: usize,
    /// Nodes with which no chunk can begin under that rule: what is placed makes it no better.
    barren: Vec<bool>,
}

impl Run {
    fn of(space: &Space<'_>, bytes: u64, copies: usize) -> Self {
        // With fewer racks than copies they cannot be kept apart, which need not be tried node by node.
        let mut racks: Vec<usize> =
            space.homes.iter().filter(|home| home.fits(bytes)).map(|home| home.rack).collect();
        racks.sort_unstable();
        racks.dedup();
        let rule = if racks.len() < copies { Bound::ALL.len() } else { 0 };
        Self { bytes, copies, rule, barren: vec![false; space.homes.len()] }
    }

    fn chunk(&mut self, space: &Space<'_>, sharing: &mut Sharing) -> Option<Chosen> {
        while let Some(rule) = RULES.get(self.rule) {
            let barren = &mut self.barren;
            let start = Chosen::default();
            while let Some(first) = {
                let skip = |at: usize| barren.get(at).copied().unwrap_or(true);
                space.next(sharing, &start, *rule, self.bytes, &skip)
            } {
                let mut chosen = Chosen::default();
                space.widen(&mut chosen, first, sharing);
                let size = (self.bytes, self.copies);
                if space.complete(&mut chosen, *rule, size, sharing) {
                    return Some(chosen);
                }
                // Its group is too small, or it has none: the bound is kept if it joins a larger one.
                if rule.1 == Bound::Group
                    && space.complete(&mut chosen, (rule.0, Bound::Largest), size, sharing)
                {
                    return Some(chosen);
                }
                if let Some(barren) = barren.get_mut(first) {
                    *barren = true;
                }
            }
            self.rule += 1;
            self.barren.fill(false);
        }
        None
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
    space: Space<'_>,
) -> Result<Placement, NoPlacement> {
    place_chunks(0, geometry, copies, space)
}

/// The same for the new chunks of a volume that grows. Those who hold its last chunk must have room for
/// what more it can hold then.
///
/// # Errors
/// If a chunk finds too few nodes, or a holder of the last one lacks room.
pub fn place_growth(
    volume: &Volume,
    to: Geometry,
    mut space: Space<'_>,
) -> Result<Placement, NoPlacement> {
    let (places, bytes) = widened(volume, to, space.state);
    // A holder that is away is no reason: it has its promise, and is made up for elsewhere if it stays so.
    let short: Vec<Rejected> =
        places.iter().filter_map(|place| space.short_of(*place, bytes)).collect();
    let had = volume.geometry.chunk_count();
    if !short.is_empty() {
        return Err(NoPlacement {
            chunk: ChunkIndex(had.saturating_sub(1)),
            chunks: to.chunk_count(),
            found: places.len().saturating_sub(short.len()),
            wanted: places.len(),
            candidates: short,
        });
    }
    places.iter().for_each(|place| space.claim(*place, bytes));
    place_chunks(had, to, usize::from(volume.copies_wanted), space)
}

fn place_chunks(
    first: u32,
    geometry: Geometry,
    copies: usize,
    mut space: Space<'_>,
) -> Result<Placement, NoPlacement> {
    let state = space.state;
    let mut primaries: BTreeMap<NodeId, u32> =
        state.nodes().map(|record| (record.node, state.primaries_on(record.node))).collect();
    let mut sharing = space.sharing();
    let mut run = Run::of(&space, 0, copies);
    let mut placement = Vec::new();
    for index in (first..geometry.chunk_count()).map(ChunkIndex) {
        let bytes = ZoneState::chunk_bytes(geometry, index);
        if bytes != run.bytes {
            run = Run::of(&space, bytes, copies);
        }
        let found = space.homes.iter().filter(|home| home.fits(bytes)).take(copies).count();
        let chosen = if found == copies { run.chunk(&space, &mut sharing) } else { None };
        let Some(Chosen { mut places, circle, .. }) = chosen else {
            return Err(NoPlacement {
                chunk: index,
                chunks: geometry.chunk_count(),
                found,
                wanted: copies,
                candidates: space.rejected(bytes, &[]),
            });
        };
        sharing.place(&circle, state);
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
