//! Balance: copies move from the fullest nodes to the emptiest ones, by the moves that there are
//! (`moves.rs`), until all are filled to within [`SPREAD_MAX`] of each other (decisions/0019).
//!
//! A node is as full as what configurations promise on its stores, of what these can hold: by what counts
//! for placement, and not by what is written, which follows an erasure late.
//!
//! Rules:
//! - it is the last thing to do: nothing moves while a copy is missing anywhere, while a drained node holds
//!   anything, while searches are bounded or other moves begin;
//! - only nodes that are up, heard, not drained and not slow take part, and only chunks all of whose copies
//!   are on such nodes;
//! - whoever gives is fuller by more than [`GAP_MIN`], and stays at least as full as whoever takes: each move
//!   makes the sum of capacity times fullness squared smaller, so that moves come to an end and none is
//!   taken back;
//! - racks stay as far apart as they are, and the bound on sharing nodes is kept where it gives way for
//!   nobody's loss: here always;
//! - at most [`BALANCE_MOVES_MAX`] are under way in a zone, and [`MOVES_PER_NODE_MAX`] at a node.
//!
//! Who leaves in the end is not noted anywhere. It is found anew from what the nodes hold then
//! ([`leaver`]), by the same rule by which the move was chosen, so that another leader goes on with it.

use crate::command::{CHANGES_PER_COMMAND_MAX, ChangeKind, ChunkChange};
use crate::moves::{self, MOVES_PER_NODE_MAX};
use crate::observe::Observations;
use crate::plan::{Judge, Plan};
use crate::state::ZoneState;
use crate::verdict::{Verdict, Verdicts};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ashlar_types::message::cluster::SearchBudget;
use ashlar_types::{ChunkConfig, NodeId, Time};
use core::cmp::Reverse;
use core::time::Duration;

/// How far apart the fullest and the emptiest node may be: 10 % of capacity, in millionths. Half of it would
/// move twice as much after each node that is added, and would be passed by a few new volumes.
pub const SPREAD_MAX: u64 = 100_000;
/// How much fuller whoever gives must be than whoever takes. Half of [`SPREAD_MAX`]: whatever stands between
/// the fullest and the emptiest is as far from one of them, so that there is a way over it; and what has
/// just become good enough is left alone.
pub const GAP_MIN: u64 = SPREAD_MAX / 2;
/// Moves under way for balance in a zone. Each reads and writes a chunk once over the primary network, which
/// is the clients': with two at a node this keeps four pairs of nodes busy, however large the zone is.
pub const BALANCE_MOVES_MAX: usize = 8;
/// Between two looks for copies to move.
pub const BALANCE_EVERY: Duration = Duration::from_millis(250);
/// The same after a look that found none, though the nodes differ.
pub const BALANCE_REST: Duration = Duration::from_secs(5);
/// Chunks of one node that are looked at in one look; the next fruitless one goes on behind them.
const CHUNKS_PER_LOOK: usize = 64;
/// Places tried in one look: what is looked through without end would delay whoever waits for the leader.
const TRIES_PER_LOOK: usize = 2_000;
/// Moves to come that are counted; more are told as so many.
const DUE_MAX: u32 = 10_000;

/// How full a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Bytes promised on its stores.
    pub promised: u64,
    /// Bytes that these can hold, as far as they have been heard of.
    pub capacity: u64,
}

impl Level {
    /// In millionths of its capacity; nothing, while that is not known.
    #[must_use]
    pub fn ppm(self) -> u64 {
        let ppm = u128::from(self.promised) * 1_000_000;
        let ppm = ppm.checked_div(u128::from(self.capacity)).unwrap_or(0);
        u64::try_from(ppm).unwrap_or(u64::MAX)
    }

    const fn with(self, bytes: u64) -> Self {
        Self { promised: self.promised.saturating_add(bytes), ..self }
    }

    const fn without(self, bytes: u64) -> Self {
        Self { promised: self.promised.saturating_sub(bytes), ..self }
    }
}

/// How full each node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels(BTreeMap<NodeId, Level>);

impl Levels {
    /// By all that is promised, also to replicas that are about to leave.
    #[must_use]
    pub fn of(state: &ZoneState, seen: &Observations) -> Self {
        let level = |record: &crate::command::NodeRecord| {
            let node = record.node;
            let told = |store| seen.node(node).and_then(|view| view.store(store));
            let stores = record.stores.iter();
            Level {
                promised: stores.clone().map(|store| state.allocated_on(node, *store)).sum(),
                capacity: stores.map(|store| told(*store).map_or(0, |s| s.capacity_bytes)).sum(),
            }
        };
        Self(state.nodes().map(|record| (record.node, level(record))).collect())
    }

    /// The same once every move has ended that is under way, and what is given up is gone.
    #[must_use]
    pub fn expected(&self, state: &ZoneState) -> Self {
        let mut after = self.clone();
        for config in state.configs_in_motion().filter(|config| moves::has_spare(config)) {
            if let Some(node) = leaver(config, None, state, self) {
                after.take_away(node, state.bytes_of(config.chunk));
            }
        }
        for config in state.configs_with_stale().filter(|config| config.is_whole()) {
            for (replica, _) in config.stale.iter().filter(|(r, _)| !state.is_store_gone(*r)) {
                after.take_away(replica.node, state.bytes_of(config.chunk));
            }
        }
        after
    }

    /// How full a node is.
    #[must_use]
    pub fn level(&self, node: NodeId) -> Level {
        self.0.get(&node).copied().unwrap_or_default()
    }

    fn ppm(&self, node: NodeId) -> u64 {
        self.level(node).ppm()
    }

    fn add(&mut self, node: NodeId, bytes: u64) {
        if let Some(level) = self.0.get_mut(&node) {
            *level = level.with(bytes);
        }
    }

    fn take_away(&mut self, node: NodeId, bytes: u64) {
        if let Some(level) = self.0.get_mut(&node) {
            *level = level.without(bytes);
        }
    }

    /// Whether a copy of so many bytes does more good on `to` than on `from`.
    fn is_better(&self, from: NodeId, to: NodeId, bytes: u64) -> bool {
        let (gives, takes) = (self.level(from), self.level(to));
        gives.ppm() > takes.ppm().saturating_add(GAP_MIN)
            && gives.without(bytes).ppm() >= takes.with(bytes).ppm()
    }

    /// By how much the fullest of these is fuller than the emptiest.
    fn spread(&self, nodes: &[NodeId]) -> u64 {
        let ppm = || nodes.iter().map(|node| self.ppm(*node));
        ppm().max().unwrap_or(0).saturating_sub(ppm().min().unwrap_or(0))
    }
}

/// Where a node stands; without a label, alone.
fn rack(node: NodeId, state: &ZoneState) -> Result<&str, NodeId> {
    state.node(node).map(|record| record.rack.as_str()).filter(|rack| !rack.is_empty()).ok_or(node)
}

/// Who leaves a chunk that has one more in sync than is wanted, counting `also` as in sync: what is on a
/// drained node; otherwise one of two in a rack, if there are two; of these, or of all, whoever stands on the
/// fullest node, and of equals who joined last. The primary only if its node is fuller than each other by more
/// than [`GAP_MIN`]: it has to agree, and writers wait meanwhile.
pub(crate) fn leaver(
    config: &ChunkConfig,
    also: Option<NodeId>,
    state: &ZoneState,
    levels: &Levels,
) -> Option<NodeId> {
    let nodes: Vec<NodeId> = config.in_sync.iter().map(|r| r.node).chain(also).collect();
    if let Some(drained) = nodes.iter().find(|node| state.is_draining(**node)) {
        return Some(*drained);
    }
    let primary = config.primary.node;
    let shares = |one: &&NodeId| {
        let same = |other: &&NodeId| other != one && rack(**other, state) == rack(**one, state);
        nodes.iter().any(|other| same(&other))
    };
    let secondaries = || nodes.iter().filter(|node| **node != primary);
    let fullest = |node: &&NodeId| levels.ppm(**node);
    if let Some(crowding) = secondaries().filter(shares).max_by_key(fullest) {
        return Some(*crowding);
    }
    let leaver = secondaries().max_by_key(fullest)?;
    let outweighs = levels.ppm(primary) > levels.ppm(*leaver).saturating_add(GAP_MIN);
    Some(if outweighs { primary } else { *leaver })
}

/// Nodes between which copies may move.
fn partners(now: Time, state: &ZoneState, seen: &Observations, verdicts: &Verdicts) -> Vec<NodeId> {
    let slow: BTreeSet<NodeId> = seen.slow_nodes(now).collect();
    let heard = |node| seen.node(node).is_some_and(|view| view.last_beat.is_some());
    let takes_part = |node: &NodeId| {
        verdicts.get(node).is_some_and(Verdict::is_usable)
            && heard(*node)
            && !state.is_draining(*node)
            && !slow.contains(node)
    };
    state.nodes().map(|record| record.node).filter(takes_part).collect()
}

/// Whether there is nothing more urgent to do than to balance.
fn is_calm(state: &ZoneState, seen: &Observations, search: SearchBudget) -> bool {
    search == SearchBudget::FULL
        && state.configs_short().next().is_none()
        && state.draining().all(|record| state.replicas_on(record.node) == 0)
        // What is on its way stands in no configuration yet: it would be counted on one side only.
        && seen.placing().next().is_none()
}

/// Chunks that have one more copy, or will have, than is wanted.
fn under_way(state: &ZoneState) -> usize {
    state.configs_in_motion().filter(|config| moves::has_spare(config)).count()
}

/// What one look works with.
struct Look {
    /// All that is promised: by it the one that leaves is found.
    promised: Levels,
    /// What will be, by which moves are judged.
    expected: Levels,
    /// Who takes part, the fullest first.
    nodes: Vec<NodeId>,
    tries: usize,
    /// Copies go to the emptiest node and to no other: a way over another one is for chunks that it cannot
    /// take, and not for a moment in which it is busy.
    straight: bool,
    /// A copy could move, but for a node that is busy.
    waits: bool,
}

impl Look {
    /// Where a copy might go from a node, the best first.
    fn homes(&self, from: NodeId, bytes: u64) -> Vec<NodeId> {
        let emptiest = self.nodes.iter().min_by_key(|node| self.expected.ppm(**node));
        let is_worth = |to: &NodeId| self.expected.is_better(from, *to, bytes);
        if self.straight {
            return emptiest.copied().filter(is_worth).into_iter().collect();
        }
        self.nodes.iter().rev().copied().take_while(is_worth).collect()
    }
}

impl Judge<'_> {
    /// Begins moves for balance, if nothing else is to do, and as many as the pace allows.
    pub(crate) fn begin_balance(&mut self, busy: &mut BTreeMap<NodeId, usize>, plan: &mut Plan) {
        let (state, seen) = (self.state, self.seen);
        if plan.moves > 0 || !seen.may_balance(self.now) || !is_calm(state, seen, self.search) {
            return;
        }
        let mut nodes = partners(self.now, state, seen, self.verdicts);
        let promised = Levels::of(state, seen);
        let expected = promised.expected(state);
        nodes.retain(|node| expected.level(*node).capacity > 0);
        nodes.sort_by_key(|node| Reverse(expected.ppm(*node)));
        let mut look = Look { promised, expected, nodes, tries: 0, straight: true, waits: false };
        let is_unequal = look.expected.spread(&look.nodes) > SPREAD_MAX;
        let places = BALANCE_MOVES_MAX.saturating_sub(under_way(state));
        let allowed = seen.moves_allowed(self.now, self.search).min(places);
        if is_unequal && allowed > 0 {
            self.look(&mut look, allowed, busy, plan);
            look.straight = false;
            if plan.moves == 0 && !look.waits {
                self.look(&mut look, allowed, busy, plan);
            }
        }
        let fruitless = is_unequal && allowed > 0 && plan.moves == 0 && !look.waits;
        plan.balance = Some(if fruitless { BALANCE_REST } else { BALANCE_EVERY });
    }

    fn look(
        &mut self,
        look: &mut Look,
        allowed: usize,
        busy: &mut BTreeMap<NodeId, usize>,
        plan: &mut Plan,
    ) {
        for from in look.nodes.clone() {
            let held = self.state.replicas_on(from);
            let skip = self.seen.balance_turn().wrapping_mul(CHUNKS_PER_LOOK) % held.max(1);
            let all = || self.state.configs_of_node(from);
            let turned = all().skip(skip).chain(all().take(skip));
            for config in turned.take(CHUNKS_PER_LOOK) {
                if plan.moves >= allowed
                    || plan.changes.len() >= CHANGES_PER_COMMAND_MAX
                    || look.tries >= TRIES_PER_LOOK
                    || look.expected.spread(&look.nodes) <= SPREAD_MAX
                {
                    return;
                }
                if self.may_leave(config, look, plan) {
                    self.find_better(config, from, look, busy, plan);
                }
            }
        }
    }

    /// Whether a chunk is whole, at rest, and on nodes that take part alone.
    fn may_leave(&self, config: &ChunkConfig, look: &Look, plan: &Plan) -> bool {
        let takes_part = |node| look.nodes.contains(&node);
        config.in_sync.len() == usize::from(config.copies_wanted)
            && config.learners.is_empty()
            && config.stale.is_empty()
            && !plan.is_busy(config, self.seen)
            && config.in_sync.iter().all(|replica| takes_part(replica.node))
    }

    /// Begins to move a copy of a chunk to where it does more good.
    fn find_better(
        &mut self,
        config: &ChunkConfig,
        from: NodeId,
        look: &mut Look,
        busy: &mut BTreeMap<NodeId, usize>,
        plan: &mut Plan,
    ) {
        let has_time = |node| busy.get(&node).copied().unwrap_or(0) < MOVES_PER_NODE_MAX;
        let primary = config.primary.node;
        let wanted = moves::wanted(config, self.state, self.seen);
        for to in look.homes(from, wanted.bytes) {
            look.tries += 1;
            if wanted.not.contains(&to) {
                continue;
            }
            let Some(leaves) = self.who_leaves(config, to, look, wanted.bytes) else { continue };
            if !has_time(primary) || !has_time(to) {
                look.waits = true;
                return;
            }
            let Some(place) = self.space.take_there(to, &wanted) else { continue };
            *busy.entry(primary).or_default() += 1;
            *busy.entry(to).or_default() += 1;
            plan.moves += 1;
            let kind = ChangeKind::AddSpare { place };
            plan.changes.push(ChunkChange { chunk: config.chunk, epoch: config.epoch, kind });
            look.promised.add(to, wanted.bytes);
            look.expected.add(to, wanted.bytes);
            look.expected.take_away(leaves, wanted.bytes);
            return;
        }
    }

    /// Who will leave a chunk in the place of one more on `to`, if the zone is better for it. Racks stay as
    /// far apart as they are: where `to` shares one, it would be `to` itself ([`leaver`]).
    fn who_leaves(
        &self,
        config: &ChunkConfig,
        to: NodeId,
        look: &Look,
        bytes: u64,
    ) -> Option<NodeId> {
        let mut then = look.promised.clone();
        then.add(to, bytes);
        let leaves = leaver(config, Some(to), self.state, &then)?;
        look.expected.is_better(leaves, to, bytes).then_some(leaves)
    }
}

/// What balance does with the copies of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Copies that are about to leave it: another is filled, or in sync, in their place.
    pub leaving: u32,
    /// Copies that come to it now.
    pub coming: u32,
    /// Copies that are still to leave it, about.
    pub due_out: u32,
    /// Copies that are still to come to it, about.
    pub due_in: u32,
}

/// How far balance is: of each node with a part in it. Copies of drained nodes and of shared racks are told
/// elsewhere.
#[must_use]
pub fn shares(
    now: Time,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> BTreeMap<NodeId, Share> {
    let promised = Levels::of(state, seen);
    let mut shares: BTreeMap<NodeId, Share> = BTreeMap::new();
    for config in state.configs_in_motion().filter(|config| moves::has_spare(config)) {
        let Some(leaves) = leaver(config, None, state, &promised) else { continue };
        if state.is_draining(leaves) {
            continue;
        }
        shares.entry(leaves).or_default().leaving += 1;
        for learner in &config.learners {
            shares.entry(learner.node).or_default().coming += 1;
        }
    }
    let nodes = partners(now, state, seen, verdicts);
    due(promised.expected(state), nodes, state, &mut shares);
    shares
}

/// Counts the moves to come, as if all copies were of one size and could go anywhere.
fn due(
    mut levels: Levels,
    mut nodes: Vec<NodeId>,
    state: &ZoneState,
    shares: &mut BTreeMap<NodeId, Share>,
) {
    nodes.retain(|node| levels.level(*node).capacity > 0);
    let copies: u64 = nodes.iter().map(|node| state.replicas_on(*node) as u64).sum();
    let bytes: u64 = nodes.iter().map(|node| levels.level(*node).promised).sum();
    let Some(each) = bytes.checked_div(copies).filter(|each| *each > 0) else { return };
    for _ in 0..DUE_MAX {
        let by_level = |node: &&NodeId| (levels.ppm(**node), **node);
        let fullest = nodes.iter().max_by_key(by_level).copied();
        let emptiest = nodes.iter().min_by_key(by_level).copied();
        let (Some(from), Some(to)) = (fullest, emptiest) else { return };
        if levels.spread(&nodes) <= SPREAD_MAX || !levels.is_better(from, to, each) {
            return;
        }
        levels.take_away(from, each);
        levels.add(to, each);
        shares.entry(from).or_default().due_out += 1;
        shares.entry(to).or_default().due_in += 1;
    }
}
