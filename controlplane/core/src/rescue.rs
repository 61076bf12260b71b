//! What a salvage would do, chunk by chunk: the leader's look before it proposes one.
//!
//! [`crate::salvage`] holds the rules that every member applies to what is committed. This is what
//! only a leader can see, and it is stricter:
//! - a node that is stated to be fenced must be declared dead: one that lives would go on serving,
//!   whatever an operator believes;
//! - a chunk with a replica in sync whose node is not declared dead is left alone, as that one serves
//!   or is elected; unless the replica itself says at this epoch that it is no use;
//! - the replica that takes over is on a node that can serve now, with that store: otherwise the chunk
//!   would wait for a node again, and who was in sync would be gone for nothing;
//! - of several, the one that lost least takes over, unless the operator names a node;
//! - nothing is revoked that no chunk needs.
//!
//! Pure: state and observations in, plan out. The committed state may be another one by the time the
//! command is applied; it is a compare-and-set on every epoch.

use crate::command::{ChunkSalvage, Place};
use crate::observe::Observations;
use crate::salvage::SalvageRefusal;
use crate::state::{Volume, ZoneState};
use crate::verdict::{Verdict, Verdicts};
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ashlar_types::message::cluster::ReplicaState;
use ashlar_types::{ChunkConfig, ChunkId, ChunkIndex, Epoch, NodeId, ReplicaId, StoreId};
use thiserror::Error;

/// What an operator asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The chunks; none: all that need it.
    pub chunks: BTreeSet<ChunkIndex>,
    /// Nodes that never run again with what they hold.
    pub fenced_nodes: BTreeSet<NodeId>,
    /// The same of single stores.
    pub fenced_stores: BTreeSet<StoreId>,
    /// Whose stale replicas take over; none: in each chunk the one that lost least.
    pub from: Option<NodeId>,
}

/// What is wrong with the wish itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WishRefusal {
    /// The volume has no such chunk.
    #[error("chunk {chunk} is not one of the volume's {count}", chunk = .chunk.0)]
    UnknownChunk {
        /// Its position.
        chunk: ChunkIndex,
        /// How many there are.
        count: u32,
    },
    /// A node that is stated to be fenced is not declared dead.
    #[error("{node} is not fenced: {cause}")]
    NodeLives {
        /// The node.
        node: NodeId,
        /// How it is, in words.
        cause: String,
    },
    /// A node holds nothing in sync of these chunks.
    #[error("{node} holds no replica in sync of a chunk that needs a salvage: leave it out")]
    NodeForNothing {
        /// The node.
        node: NodeId,
    },
    /// A store holds nothing in sync of these chunks.
    #[error("store {store} holds no replica in sync of a chunk that needs a salvage: leave it out")]
    StoreForNothing {
        /// The store.
        store: StoreId,
    },
}

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescue {
    /// All chunks that were looked at, in order.
    pub chunks: Vec<ChunkRescue>,
    /// Stores that are revoked by it: those stated to be fenced, and those that are gone.
    pub revoked: BTreeSet<Place>,
}

/// What would be done with a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRescue {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its epoch.
    pub epoch: Epoch,
    /// What.
    pub step: Step,
}

/// What a salvage does with a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A stale replica takes over.
    TakesOver {
        /// The replica.
        primary: ReplicaId,
        /// The last epoch of which it has every acknowledged write.
        complete_to: Epoch,
        /// Replicas in sync that said at this epoch that they are no use.
        confirmed: Vec<ReplicaId>,
    },
    /// It needs no salvage: this replica in sync lives.
    LeftAlone {
        /// The replica.
        lives: ReplicaId,
    },
    /// These replicas in sync are away and may come back.
    NotFenced {
        /// At least one.
        away: Vec<ReplicaId>,
    },
    /// No stale replica can take over.
    NoCandidate {
        /// Each of them, and why it cannot.
        unfit: Vec<(ReplicaId, Unfit)>,
    },
}

/// Why a stale replica cannot take over now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// By the rules.
    #[error("{0}")]
    Refused(SalvageRefusal),
    /// Another node was named.
    #[error("another node was named to take over from")]
    NotNamed,
    /// It was erased.
    #[error("it is erased")]
    Erased,
    /// Its node does not serve now.
    #[error("its node is not up: {0}")]
    NodeDown(String),
    /// Its node does, without the store.
    #[error("its node is up, and says nothing of the store yet")]
    StoreUnheard,
}

impl Rescue {
    /// The chunks of the command.
    #[must_use]
    pub fn salvages(&self) -> Vec<ChunkSalvage> {
        let salvage = |one: &ChunkRescue| match &one.step {
            Step::TakesOver { primary, confirmed, .. } => Some(ChunkSalvage {
                chunk: one.chunk,
                epoch: one.epoch,
                primary: *primary,
                confirmed: confirmed.clone(),
            }),
            Step::LeftAlone { .. } | Step::NotFenced { .. } | Step::NoCandidate { .. } => None,
        };
        self.chunks.iter().filter_map(salvage).collect()
    }

    /// The first chunk that needs a salvage and cannot have it.
    #[must_use]
    pub fn blocked(&self) -> Option<&ChunkRescue> {
        let blocked = |one: &&ChunkRescue| match one.step {
            Step::NotFenced { .. } | Step::NoCandidate { .. } => true,
            Step::TakesOver { .. } | Step::LeftAlone { .. } => false,
        };
        self.chunks.iter().find(blocked)
    }
}

/// Plans a salvage.
///
/// # Errors
/// What is wrong with the wish itself. Whether each chunk can be salvaged stands in the plan.
pub fn rescue(
    volume: &Volume,
    wish: &Wish,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Result<Rescue, WishRefusal> {
    let count = volume.geometry.chunk_count();
    if let Some(chunk) = wish.chunks.iter().copied().find(|chunk| chunk.0 >= count) {
        return Err(WishRefusal::UnknownChunk { chunk, count });
    }
    let judge = Judge { wish, state, seen, verdicts };
    judge.check_fenced()?;
    let is_meant =
        |config: &&ChunkConfig| wish.chunks.is_empty() || wish.chunks.contains(&config.chunk.index);
    let mut rescue = Rescue { chunks: Vec::new(), revoked: BTreeSet::new() };
    let mut needed = BTreeSet::new();
    for config in state.volume_configs(volume.id).filter(is_meant) {
        let step = judge.step(config);
        if !matches!(step, Step::LeftAlone { .. }) {
            needed.extend(config.in_sync.iter().map(|replica| Place::of(*replica)));
        }
        if matches!(step, Step::TakesOver { .. }) {
            let never_back = |r: &&ReplicaId| judge.is_fenced(**r) || state.is_store_gone(**r);
            let never_back = config.in_sync.iter().filter(never_back);
            rescue.revoked.extend(never_back.map(|replica| Place::of(*replica)));
        }
        rescue.chunks.push(ChunkRescue { chunk: config.chunk, epoch: config.epoch, step });
    }
    if needed.is_empty() {
        return Ok(rescue);
    }
    // What is fenced for nothing would be lost for nothing: it is revoked for ever.
    let holds = |node: &&NodeId| needed.iter().any(|place| place.node == **node);
    if let Some(node) = wish.fenced_nodes.iter().find(|node| !holds(node)) {
        return Err(WishRefusal::NodeForNothing { node: *node });
    }
    let is_held = |store: &&StoreId| needed.iter().any(|place| place.store == **store);
    if let Some(store) = wish.fenced_stores.iter().find(|store| !is_held(store)) {
        return Err(WishRefusal::StoreForNothing { store: *store });
    }
    Ok(rescue)
}

struct Judge<'a> {
    wish: &'a Wish,
    state: &'a ZoneState,
    seen: &'a Observations,
    verdicts: &'a Verdicts,
}

impl Judge<'_> {
    /// What is stated to be fenced must be dead as far as anybody can see.
    fn check_fenced(&self) -> Result<(), WishRefusal> {
        let fenced = &self.wish.fenced_stores;
        let has_one = |stores: &[StoreId]| stores.iter().any(|store| fenced.contains(store));
        let holders = self.state.nodes().filter(|record| has_one(&record.stores));
        let named = self.wish.fenced_nodes.iter().copied();
        for node in named.chain(holders.map(|record| record.node)) {
            if self.state.node(node).is_none() || self.is_dead(node) {
                continue;
            }
            let cause = match self.verdicts.get(&node).map_or("", Verdict::cause) {
                "" => "it is up".to_string(),
                cause => cause.to_string(),
            };
            return Err(WishRefusal::NodeLives { node, cause });
        }
        Ok(())
    }

    fn is_dead(&self, node: NodeId) -> bool {
        self.verdicts.get(&node).is_some_and(Verdict::is_dead)
    }

    fn is_fenced(&self, replica: ReplicaId) -> bool {
        self.wish.fenced_nodes.contains(&replica.node)
            || self.wish.fenced_stores.contains(&replica.store)
    }

    fn step(&self, config: &ChunkConfig) -> Step {
        let says_unfit = |r: &&ReplicaId| self.seen.says_unfit(config.chunk, **r, config.epoch);
        let may_serve = |replica: &&ReplicaId| {
            !(self.is_fenced(**replica)
                || self.state.is_store_gone(**replica)
                || says_unfit(replica))
        };
        let left: Vec<ReplicaId> = config.in_sync.iter().filter(may_serve).copied().collect();
        if let Some(lives) = left.iter().find(|replica| !self.is_dead(replica.node)) {
            return Step::LeftAlone { lives: *lives };
        }
        if !left.is_empty() {
            return Step::NotFenced { away: left };
        }
        let mut unfit = Vec::new();
        for candidate in self.state.salvage_candidates(config) {
            let (primary, complete_to) = (candidate.replica, candidate.complete_to);
            let by_rule = candidate.unfit.map(Unfit::Refused);
            match by_rule.or_else(|| self.unfit(config.chunk, primary)) {
                Some(why) => unfit.push((primary, why)),
                None => {
                    let confirmed = config.in_sync.iter().filter(says_unfit).copied().collect();
                    return Step::TakesOver { primary, complete_to, confirmed };
                }
            }
        }
        Step::NoCandidate { unfit }
    }

    /// Why a stale replica that the rules allow cannot take over now.
    fn unfit(&self, chunk: ChunkId, replica: ReplicaId) -> Option<Unfit> {
        let node = replica.node;
        if self.wish.from.is_some_and(|from| from != node) {
            return Some(Unfit::NotNamed);
        }
        let report = self.seen.report(chunk, replica);
        match report.map(|report| report.state) {
            Some(ReplicaState::Gone) => return Some(Unfit::Erased),
            // Damaged since it left the in-sync set: what is committed does not know.
            Some(ReplicaState::Suspect) => {
                return Some(Unfit::Refused(SalvageRefusal::Suspect { node }));
            }
            _whole_or_unheard => {}
        }
        match self.verdicts.get(&node) {
            Some(verdict) if verdict.is_usable() => {}
            verdict => {
                let cause = verdict.map_or("it never registered", Verdict::cause);
                return Some(Unfit::NodeDown(cause.to_string()));
            }
        }
        let told = self.seen.node(node).is_some_and(|view| view.store(replica.store).is_some());
        (!told).then_some(Unfit::StoreUnheard)
    }
}
