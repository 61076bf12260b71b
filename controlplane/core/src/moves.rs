//! Moves of copies between nodes that all work (decisions/0014): away from nodes that are drained, out of a
//! rack that has two of one chunk, once another has room (decisions/0015), and from full nodes to empty
//! ones (`balance.rs`).
//!
//! ```text
//! whole --AddSpare--> one is being filled --promoted--> one more in sync than wanted
//!   --(a primary that leaves agrees to follow)--> --Release--> stale --Retire--> erased
//! ```
//! Rules:
//! - the copy comes first: one leaves only while as many as are wanted are in sync without it, and
//!   each of these has said so under the present epoch to this leader;
//! - a chunk has at most one spare at a time, and only one that is whole gets one: missing copies are
//!   restored first. One exception: a copy that is away on a drained node is not waited for;
//! - a primary that is to leave agrees to follow another first (`elect.rs`, decisions/0010);
//! - the pace is bounded: no more moves begin in a second than a node may search, none while only
//!   urgent searches are allowed, and no node takes part in more than [`MOVES_PER_NODE_MAX`] as the one
//!   that copies or the one that is filled. Primaries fill more at a time (`fills_max`), so that moves
//!   never take the last place from a copy that is missing.
//!
//! Nothing here is remembered: what is under way stands in the configurations.

use crate::balance::{self, Levels};
use crate::command::{CHANGES_PER_COMMAND_MAX, ChangeKind, ChunkChange, Place};
use crate::observe::{Observations, SILENT_DOUBT_MILLIS, is_down};
use crate::place::{Space, Wanted};
use crate::plan::{Judge, Plan, owns};
use crate::state::ZoneState;
use crate::verdict::{Verdict, Verdicts};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, ChunkId, NodeId, ReplicaId};

/// Moves under way in which one node copies, or is filled.
pub const MOVES_PER_NODE_MAX: usize = 2;

/// How a place is found for a copy that moves.
type Take<'a> = fn(&mut Space<'a>, &Wanted) -> Option<Place>;

/// How far the move of one copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It can begin, and waits for its turn.
    Due,
    /// It is under way.
    Moving,
    /// It cannot begin, in words.
    Blocked(String),
}

/// How far the move of a node's copy of a chunk is.
pub(crate) fn stage(
    config: &ChunkConfig,
    node: NodeId,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
    space: &Space<'_>,
) -> Stage {
    let stale = config.stale.iter().any(|(replica, _)| replica.node == node);
    let under_way = has_spare(config) || config.learners.iter().any(|r| r.node != node);
    if under_way || (stale && config.is_whole()) {
        return Stage::Moving;
    }
    if config.learners.iter().any(|replica| replica.node == node) {
        return Stage::Blocked("it is being filled there: it moves once it is in sync".into());
    }
    // Its copy is away: the chunk is not whole for that, and is made whole elsewhere.
    let away = stale && !config.in_sync.iter().any(|replica| replica.node == node);
    if !config.is_whole() && !away {
        let (in_sync, wanted) = (config.in_sync.len(), config.copies_wanted);
        return Stage::Blocked(format!(
            "{in_sync} of {wanted} copies are in sync: those that are missing are restored first"
        ));
    }
    let primary = config.primary.node;
    let cause = match verdicts.get(&primary) {
        Some(verdict) if verdict.is_usable() => None,
        Some(verdict) => Some(verdict.cause()),
        None => Some("it never registered"),
    };
    if let Some(cause) = cause {
        return Stage::Blocked(format!("its primary on {primary} cannot copy it now: {cause}"));
    }
    let (bytes, not) = (state.bytes_of(config.chunk), not_homes(config, state, seen));
    if !space.fits(bytes, &not) {
        return Stage::Blocked(no_home(bytes, &not, space));
    }
    Stage::Due
}

/// Whether one more is in sync, or will be, than is wanted.
pub(crate) fn has_spare(config: &ChunkConfig) -> bool {
    config.in_sync.len() + config.learners.len() > usize::from(config.copies_wanted)
}

/// Nodes that hold a replica of a chunk, or still have to erase an older one, unless that is away with
/// its store: then nobody knows whether it ever will.
pub(crate) fn holders(config: &ChunkConfig, state: &ZoneState) -> Vec<NodeId> {
    let is_there = |replica: &ReplicaId| !state.is_store_gone(*replica);
    let erasing = state.erasures_of(config.chunk).filter(is_there);
    config.replicas().chain(erasing).map(|replica| replica.node).collect()
}

/// Nodes that a primary itself sees on neither network: it could not fill them, and would ask for their
/// removal at once.
pub(crate) fn unreached_by(
    primary: NodeId,
    seen: &Observations,
) -> impl Iterator<Item = NodeId> + '_ {
    let evidence = seen.node(primary).map(|view| view.evidence.as_slice());
    let down = |path| is_down(path, SILENT_DOUBT_MILLIS);
    evidence
        .unwrap_or_default()
        .iter()
        .filter(move |peer| down(peer.primary_net) && down(peer.replication_net))
        .map(|peer| peer.node)
}

/// Nodes that cannot be filled: holders, and those that the primary does not reach.
pub(crate) fn not_homes(
    config: &ChunkConfig,
    state: &ZoneState,
    seen: &Observations,
) -> Vec<NodeId> {
    let unreached = unreached_by(config.primary.node, seen);
    holders(config, state).into_iter().chain(unreached).collect()
}

/// One more replica of a chunk: on none of the nodes that hold it or cannot be filled, and away from the
/// racks of those that are to keep a copy.
pub(crate) fn wanted(config: &ChunkConfig, state: &ZoneState, seen: &Observations) -> Wanted {
    let stays = config.in_sync.iter().chain(&config.learners).map(|replica| replica.node);
    Wanted {
        bytes: state.bytes_of(config.chunk),
        not: not_homes(config, state, seen),
        holders: config.replicas().map(|replica| replica.node).collect(),
        apart: stays.filter(|node| !state.is_draining(*node)).collect(),
    }
}

/// That nobody can take a replica, with the reason of each.
pub(crate) fn no_home(bytes: u64, not: &[NodeId], space: &Space<'_>) -> String {
    let rejected = space.rejected(bytes, not);
    let reasons: Vec<String> =
        rejected.iter().map(|rejected| format!("{}: {}", rejected.node, rejected.why)).collect();
    format!("no node can take another replica: {}", reasons.join("; "))
}

/// Who leaves a chunk that has one more in sync than is wanted. None while that is the primary: it agrees to
/// follow first.
fn leaver(config: &ChunkConfig, state: &ZoneState, levels: &Levels) -> Option<ReplicaId> {
    let node = balance::leaver(config, None, state, levels)?;
    config.secondaries().find(|replica| replica.node == node)
}

/// The last in-sync secondary whose rack has another copy in sync.
fn crowding(config: &ChunkConfig, state: &ZoneState) -> Option<ReplicaId> {
    let rack = |replica: &ReplicaId| state.node(replica.node).map_or("", |node| &node.rack);
    let shares = |one: &ReplicaId| {
        let same = |other: &ReplicaId| other.node != one.node && rack(other) == rack(one);
        !rack(one).is_empty() && config.in_sync.iter().any(same)
    };
    config.in_sync.iter().rev().find(|r| **r != config.primary && shares(r)).copied()
}

/// Chunks with two copies in sync in one rack. Looks at all, if any node has a label.
#[must_use]
pub fn crowded_chunks(state: &ZoneState) -> BTreeSet<ChunkId> {
    if state.nodes().all(|node| node.rack.is_empty()) {
        return BTreeSet::new();
    }
    let crowded = state.configs().filter(|config| crowding(config, state).is_some());
    crowded.map(|config| config.chunk).collect()
}

/// Replicas whose place another has taken.
pub(crate) fn release(
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
    plan: &mut Plan,
) {
    let levels = Levels::of(state, seen);
    for config in state.configs_in_motion() {
        if plan.changes.len() >= CHANGES_PER_COMMAND_MAX {
            return;
        }
        let wanted = usize::from(config.copies_wanted);
        if config.in_sync.len() <= wanted || plan.is_busy(config, seen) {
            continue;
        }
        let Some(replica) = leaver(config, state, &levels) else { continue };
        let stays = |other: &&ReplicaId| {
            **other != replica
                && verdicts.get(&other.node).is_some_and(Verdict::can_follow)
                && !state.is_store_gone(**other)
                && owns(config, **other, seen)
        };
        if config.in_sync.iter().filter(stays).count() >= wanted {
            let kind = ChangeKind::Release { replica };
            plan.changes.push(ChunkChange { chunk: config.chunk, epoch: config.epoch, kind });
        }
    }
}

impl<'a> Judge<'a> {
    /// Begins moves away from drained nodes, then out of crowded racks, then for balance, as many as the
    /// budget allows.
    pub(crate) fn begin_moves(&mut self, plan: &mut Plan) {
        let (state, seen) = (self.state, self.seen);
        let allowed = seen.moves_allowed(self.now, self.search);
        if allowed == 0 {
            return;
        }
        let mut busy = self.busy_nodes();
        let drained = state.draining().flat_map(|record| {
            let held = state.configs_of_node(record.node);
            held.map(|config| (config, record.node, Space::take_one as Take<'a>))
        });
        let crowded = seen.crowded().filter_map(|chunk| {
            let config = state.config(chunk)?;
            Some((config, crowding(config, state)?.node, Space::take_apart as Take<'a>))
        });
        for (config, node, take) in drained.chain(crowded) {
            if plan.moves >= allowed || plan.changes.len() >= CHANGES_PER_COMMAND_MAX {
                return;
            }
            self.begin_move(config, node, take, &mut busy, plan);
        }
        self.begin_balance(&mut busy, plan);
    }

    /// Begins the move of a node's copy of a chunk, unless something stands against it now.
    fn begin_move(
        &mut self,
        config: &ChunkConfig,
        node: NodeId,
        take: Take<'a>,
        busy: &mut BTreeMap<NodeId, usize>,
        plan: &mut Plan,
    ) {
        let has_room = |busy: &BTreeMap<NodeId, usize>, node| {
            busy.get(&node).copied().unwrap_or(0) < MOVES_PER_NODE_MAX
        };
        let primary = config.primary.node;
        if !has_room(busy, primary) || plan.is_busy(config, self.seen) {
            return;
        }
        let stage = stage(config, node, self.state, self.seen, self.verdicts, &self.space);
        if stage != Stage::Due {
            return;
        }
        let mut wanted = wanted(config, self.state, self.seen);
        wanted.not.extend(busy.keys().copied().filter(|node| !has_room(busy, *node)));
        let Some(place) = take(&mut self.space, &wanted) else { return };
        *busy.entry(primary).or_default() += 1;
        *busy.entry(place.node).or_default() += 1;
        plan.moves += 1;
        let kind = ChangeKind::AddSpare { place };
        plan.changes.push(ChunkChange { chunk: config.chunk, epoch: config.epoch, kind });
    }

    /// In how many fills each node takes part.
    fn busy_nodes(&self) -> BTreeMap<NodeId, usize> {
        let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
        for config in self.state.configs_in_motion().filter(|c| !c.learners.is_empty()) {
            *busy.entry(config.primary.node).or_default() += 1;
            for learner in &config.learners {
                *busy.entry(learner.node).or_default() += 1;
            }
        }
        busy
    }
}
