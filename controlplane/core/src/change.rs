//! Which change of a chunk's configuration is allowed, and what it gives.
//!
//! Every change is a compare-and-set on the epoch and gives epoch + 1. The rules (design.md
//! section 3), each with a test that fails without it:
//! - only the primary proposes removals of secondaries, learners and promotions;
//! - a removal or election that leaves fewer than `copies_min` in sync needs the node declared
//!   dead, the replica's own word that it is stale or gone, or its node registered without its store;
//! - only a member of the in-sync set is elected; the old primary becomes stale, unless it agreed at
//!   this epoch to follow: then it stays in sync, and nobody leaves;
//! - only a learner is promoted, and what it has is of the present election; only a stale replica is re-adopted; one whose store has lost part
//!   of it, or whose filling was given up, comes back as another incarnation, from nothing;
//! - a stale replica is retired only while as many as are wanted are in sync;
//! - one replica more than is wanted is filled, never two; one that is in sync is released only while as
//!   many as are wanted are in sync without it, and never the primary;
//! - a node never holds two replicas of one chunk: where a new one takes the place of a stale one, that
//!   one's store is away, and it is given up.

use crate::command::{ChangeKind, ChunkChange, Evidence, NodeRecord, Place};
use crate::state::Chunk;
use alloc::vec::Vec;
use ashlar_types::{
    ChunkConfig, ConfigError, Epoch, Generation, Incarnation, NodeId, ReplicaId, StaleInfo,
};
use thiserror::Error;

/// Why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChangeRefusal {
    /// The chunk does not exist (any more).
    #[error("no such chunk")]
    UnknownChunk,
    /// The compare-and-set failed.
    #[error("epoch {current} is current")]
    OtherEpoch {
        /// The current epoch.
        current: Epoch,
    },
    /// Proposed by a replica that is not the primary.
    #[error("the proposer is not the primary")]
    NotPrimary,
    /// The replica is not in sync.
    #[error("the replica is not in sync")]
    NotInSync,
    /// The replica is the primary itself.
    #[error("the replica is the primary")]
    IsPrimary,
    /// The replica is not stale.
    #[error("the replica is not known as stale")]
    NotStale,
    /// The replica is not a learner.
    #[error("the replica is not a learner")]
    NotLearner,
    /// Too few would remain in sync.
    #[error("fewer than {copies_min} replicas would remain in sync, and the node is not dead")]
    BelowMinimum {
        /// Replicas that must remain.
        copies_min: u8,
    },
    /// The learner was filled before the primary was elected.
    #[error("what the learner has is of another election than the primary's")]
    OtherElection,
    /// The node holds a replica of the chunk.
    #[error("the node holds a replica of the chunk")]
    HoldsReplica,
    /// Too few are in sync to give a replica up.
    #[error("fewer than {copies_wanted} replicas are in sync")]
    NotWhole {
        /// Replicas that must be in sync.
        copies_wanted: u8,
    },
    /// One more than is wanted is there or being filled already.
    #[error("more than {copies_wanted} replicas are in sync or being filled already")]
    HasSpare {
        /// Replicas that are wanted.
        copies_wanted: u8,
    },
    /// The node never registered.
    #[error("the node is not known")]
    UnknownNode,
    /// The replica is said to be away with its store, and its node has that.
    #[error("the node has the replica's store")]
    StoreThere,
    /// The replica went with its store: what a leader had planned before the node said so.
    #[error("the node does not have the replica's store any more")]
    StoreGone,
    /// A replica is to give way to one on another node.
    #[error("the replica is on another node than the one that is to take its place")]
    OtherNode,
    /// The node does not have that store (any more).
    #[error("the node does not have that store")]
    UnknownStore,
    /// The result would contradict itself.
    #[error("the result would be no configuration: {0}")]
    Contradiction(#[from] ConfigError),
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The chunk as it is from now on.
    pub chunk: Chunk,
    /// A replica that is no longer named and must be erased by its holder.
    pub forgotten: Option<ReplicaId>,
}

/// Makes a change, or says why not.
///
/// # Errors
/// The first rule broken.
///
/// # Panics
/// If the result breaks an invariant although every rule allowed it.
pub fn next<'a>(
    chunk: &Chunk,
    change: &ChunkChange,
    node: impl Fn(NodeId) -> Option<&'a NodeRecord>,
    is_gone: impl Fn(ReplicaId) -> bool,
) -> Result<Next, ChangeRefusal> {
    let old = &chunk.config;
    if change.epoch != old.epoch {
        return Err(ChangeRefusal::OtherEpoch { current: old.epoch });
    }
    let mut next = Next { chunk: chunk.clone(), forgotten: None };
    next.chunk.config.epoch = old.epoch.next();
    match &change.kind {
        ChangeKind::RemoveSecondary { proposer, replica, evidence } => {
            by_primary(old, *proposer)?;
            may_be_said(*evidence, is_gone(*replica))?;
            remove_secondary(&mut next.chunk.config, *replica, *evidence, old.epoch)?;
        }
        ChangeKind::Elect { primary, evidence } => {
            may_be_said(*evidence, is_gone(old.primary))?;
            is_there(*primary, &is_gone)?;
            elect(&mut next.chunk.config, *primary, *evidence, old.epoch)?;
        }
        ChangeKind::ReadoptStale { proposer, replica } => {
            by_primary(old, *proposer)?;
            next.forgotten = readopt(&mut next.chunk, *replica)?;
        }
        ChangeKind::AddLearner { proposer, node: id } => {
            by_primary(old, *proposer)?;
            let store = node(*id).ok_or(ChangeRefusal::UnknownNode)?.first_store();
            let incarnation = Incarnation(old.epoch.next().0);
            add_learner(&mut next.chunk.config, ReplicaId { node: *id, store, incarnation })?;
        }
        ChangeKind::AddLearnerOn { proposer, place } => {
            by_primary(old, *proposer)?;
            add_learner_on(&mut next.chunk.config, *place, node(place.node))?;
        }
        ChangeKind::AddLearnerInstead { proposer, place, away } => {
            by_primary(old, *proposer)?;
            give_up_away(&mut next.chunk.config, *away, *place, is_gone(*away))?;
            add_learner_on(&mut next.chunk.config, *place, node(place.node))?;
            next.forgotten = Some(*away);
        }
        ChangeKind::AddSpare { place } => {
            let (here, wanted) = (old.in_sync.len() + old.learners.len(), old.copies_wanted);
            if here > usize::from(wanted) {
                return Err(ChangeRefusal::HasSpare { copies_wanted: wanted });
            }
            add_learner_on(&mut next.chunk.config, *place, node(place.node))?;
        }
        ChangeKind::Release { replica } => {
            release(&mut next.chunk.config, *replica, old.epoch, &is_gone)?;
        }
        ChangeKind::RemoveLearner { proposer, replica } => {
            by_primary(old, *proposer)?;
            next.forgotten = remove_learner(&mut next.chunk, *replica)?;
        }
        ChangeKind::PromoteLearner { proposer, replica, durable } => {
            by_primary(old, *proposer)?;
            // Who was elected opened a term, and fills in it: no older fill has what that wrote.
            if durable.term.elected != old.elected {
                return Err(ChangeRefusal::OtherElection);
            }
            is_there(*replica, &is_gone)?;
            promote(&mut next.chunk, *replica)?;
        }
        ChangeKind::Retire { replica } => {
            retire(&mut next.chunk.config, *replica, &is_gone)?;
            next.forgotten = Some(*replica);
        }
    }
    next.chunk.config.check()?;
    assert_follows(old, &next.chunk.config);
    Ok(next)
}

/// The same chunk under a new generation: attach and detach.
///
/// # Panics
/// If the generation does not go up.
#[must_use]
pub fn with_generation(chunk: &Chunk, generation: Generation) -> Chunk {
    assert!(generation > chunk.config.generation, "{}: generation goes back", chunk.config.chunk);
    let mut next = chunk.clone();
    next.config.generation = generation;
    next.config.epoch = chunk.config.epoch.next();
    assert_follows(&chunk.config, &next.config);
    next
}

/// What holds between any two configurations that follow each other. Guards acknowledged data,
/// so it is checked in release builds too.
fn assert_follows(old: &ChunkConfig, new: &ChunkConfig) {
    assert_eq!(new.chunk, old.chunk, "a change moved to another chunk");
    assert_eq!(new.epoch, old.epoch.next(), "{}: epochs follow each other", old.chunk);
    assert!(new.generation >= old.generation, "{}: generation goes back", old.chunk);
    assert!(new.elected >= old.elected, "{}: election goes back", old.chunk);
    assert!(new.check().is_ok(), "{}: contradicts itself", old.chunk);
    assert!(
        new.primary == old.primary || old.is_in_sync(new.primary),
        "{}: the new primary was not in sync (invariant 4)",
        old.chunk
    );
    assert!(
        new.primary == old.primary || new.elected == new.epoch,
        "{}: a new primary without an election",
        old.chunk
    );
    assert!(
        new.in_sync.iter().all(|r| old.is_in_sync(*r) || old.is_learner(*r)),
        "{}: in sync without having been filled",
        old.chunk
    );
    assert_eq!(
        (new.blocks, new.copies_min, new.copies_wanted),
        (old.blocks, old.copies_min, old.copies_wanted),
        "{}: its shape changed",
        old.chunk
    );
}

fn by_primary(config: &ChunkConfig, proposer: ReplicaId) -> Result<(), ChangeRefusal> {
    if config.primary == proposer { Ok(()) } else { Err(ChangeRefusal::NotPrimary) }
}

/// Whether a store is away is committed, so nobody's word is needed for it.
const fn may_be_said(evidence: Evidence, is_away: bool) -> Result<(), ChangeRefusal> {
    match evidence {
        Evidence::StoreAway {} if !is_away => Err(ChangeRefusal::StoreThere),
        Evidence::StoreAway {}
        | Evidence::Unreachable {}
        | Evidence::NodeDead {}
        | Evidence::ReportedGone {}
        | Evidence::Agreed { .. } => Ok(()),
    }
}

/// A leader plans by what it has heard of a node, which may be overtaken by what the node registers.
fn is_there(replica: ReplicaId, is_gone: &impl Fn(ReplicaId) -> bool) -> Result<(), ChangeRefusal> {
    if is_gone(replica) { Err(ChangeRefusal::StoreGone) } else { Ok(()) }
}

/// Whether as many copies as are wanted are in sync on stores that are there.
fn is_whole(config: &ChunkConfig, is_gone: &impl Fn(ReplicaId) -> bool) -> bool {
    let there = config.in_sync.iter().filter(|replica| !is_gone(**replica)).count();
    there >= usize::from(config.copies_wanted)
}

/// Takes a replica out of the in-sync set and remembers it as stale. One that is away with its store
/// keeps what it has: if all others are lost, it may be the best that is left (decisions/0006).
fn leave_in_sync(
    config: &mut ChunkConfig,
    replica: ReplicaId,
    evidence: Evidence,
    last_in_sync: Epoch,
) -> Result<(), ChangeRefusal> {
    config.in_sync.retain(|r| *r != replica);
    let trusted = match evidence {
        Evidence::Unreachable {} | Evidence::Agreed { .. } => false,
        Evidence::NodeDead {} | Evidence::ReportedGone {} | Evidence::StoreAway {} => true,
    };
    if config.in_sync.len() < usize::from(config.copies_min) && !trusted {
        return Err(ChangeRefusal::BelowMinimum { copies_min: config.copies_min });
    }
    let suspect = evidence == Evidence::ReportedGone {};
    config.stale.push((replica, StaleInfo { last_in_sync, suspect }));
    Ok(())
}

fn remove_secondary(
    config: &mut ChunkConfig,
    replica: ReplicaId,
    evidence: Evidence,
    epoch: Epoch,
) -> Result<(), ChangeRefusal> {
    if replica == config.primary {
        return Err(ChangeRefusal::IsPrimary);
    }
    if !config.is_in_sync(replica) {
        return Err(ChangeRefusal::NotInSync);
    }
    leave_in_sync(config, replica, evidence, epoch)
}

fn elect(
    config: &mut ChunkConfig,
    primary: ReplicaId,
    evidence: Evidence,
    epoch: Epoch,
) -> Result<(), ChangeRefusal> {
    if primary == config.primary {
        return Err(ChangeRefusal::IsPrimary);
    }
    if !config.is_in_sync(primary) {
        return Err(ChangeRefusal::NotInSync);
    }
    match evidence {
        Evidence::Agreed { by } => by_primary(config, by)?,
        Evidence::Unreachable {}
        | Evidence::NodeDead {}
        | Evidence::ReportedGone {}
        | Evidence::StoreAway {} => {
            leave_in_sync(config, config.primary, evidence, epoch)?;
        }
    }
    config.primary = primary;
    config.elected = config.epoch;
    Ok(())
}

/// Fills a stale replica again. A suspect one does not know what it has forgotten, not even which
/// epochs it had adopted: its name is given up, and the epoch of this change numbers another one.
fn readopt(chunk: &mut Chunk, replica: ReplicaId) -> Result<Option<ReplicaId>, ChangeRefusal> {
    let epoch = chunk.config.epoch;
    let stale = &mut chunk.config.stale;
    let at = stale.iter().position(|(r, _)| *r == replica).ok_or(ChangeRefusal::NotStale)?;
    let remembered = stale.remove(at);
    if remembered.1.suspect {
        let anew = ReplicaId { incarnation: Incarnation(epoch.0), ..replica };
        chunk.config.learners.push(anew);
        return Ok(Some(replica));
    }
    chunk.config.learners.push(replica);
    chunk.readopting.push(remembered);
    Ok(None)
}

/// Adds a replica that is numbered by this change.
fn add_learner_on(
    config: &mut ChunkConfig,
    place: Place,
    known: Option<&NodeRecord>,
) -> Result<(), ChangeRefusal> {
    let incarnation = Incarnation(config.epoch.0);
    let replica = ReplicaId { node: place.node, store: place.store, incarnation };
    if !known.ok_or(ChangeRefusal::UnknownNode)?.has_store_of(replica) {
        return Err(ChangeRefusal::UnknownStore);
    }
    add_learner(config, replica)
}

/// A stale replica that is away with its store gives way to one on the same node.
fn give_up_away(
    config: &mut ChunkConfig,
    away: ReplicaId,
    place: Place,
    is_away: bool,
) -> Result<(), ChangeRefusal> {
    let at = config.stale.iter().position(|(r, _)| *r == away).ok_or(ChangeRefusal::NotStale)?;
    if !is_away {
        return Err(ChangeRefusal::StoreThere);
    }
    if away.node != place.node {
        return Err(ChangeRefusal::OtherNode);
    }
    config.stale.remove(at);
    Ok(())
}

/// A secondary leaves although nothing is wrong with it: its place is taken.
fn release(
    config: &mut ChunkConfig,
    replica: ReplicaId,
    last_in_sync: Epoch,
    is_gone: &impl Fn(ReplicaId) -> bool,
) -> Result<(), ChangeRefusal> {
    if replica == config.primary {
        return Err(ChangeRefusal::IsPrimary);
    }
    if !config.is_in_sync(replica) {
        return Err(ChangeRefusal::NotInSync);
    }
    config.in_sync.retain(|r| *r != replica);
    if !is_whole(config, is_gone) {
        return Err(ChangeRefusal::NotWhole { copies_wanted: config.copies_wanted });
    }
    config.stale.push((replica, StaleInfo { last_in_sync, suspect: false }));
    Ok(())
}

fn add_learner(config: &mut ChunkConfig, replica: ReplicaId) -> Result<(), ChangeRefusal> {
    if config.replicas().any(|held| held.node == replica.node) {
        return Err(ChangeRefusal::HoldsReplica);
    }
    config.learners.push(replica);
    Ok(())
}

/// Gives up filling: a replica that was in sync once turns stale again, another is forgotten. What
/// was copied into it so far makes its old content a base for nothing.
fn remove_learner(
    chunk: &mut Chunk,
    replica: ReplicaId,
) -> Result<Option<ReplicaId>, ChangeRefusal> {
    leave_learners(&mut chunk.config.learners, replica)?;
    match chunk.readopting.iter().position(|(r, _)| *r == replica) {
        Some(at) => {
            let (_, info) = chunk.readopting.remove(at);
            chunk.config.stale.push((replica, StaleInfo { suspect: true, ..info }));
            Ok(None)
        }
        None => Ok(Some(replica)),
    }
}

fn promote(chunk: &mut Chunk, replica: ReplicaId) -> Result<(), ChangeRefusal> {
    leave_learners(&mut chunk.config.learners, replica)?;
    chunk.readopting.retain(|(r, _)| *r != replica);
    chunk.config.in_sync.push(replica);
    Ok(())
}

/// Gives a stale replica up. Its name is never used again: another replica on that node would have
/// another incarnation. So whoever is asked to erase it by its full name, however late, erases
/// nothing that is needed.
fn retire(
    config: &mut ChunkConfig,
    replica: ReplicaId,
    is_gone: &impl Fn(ReplicaId) -> bool,
) -> Result<(), ChangeRefusal> {
    let at = config.stale.iter().position(|(r, _)| *r == replica).ok_or(ChangeRefusal::NotStale)?;
    if !is_whole(config, is_gone) {
        return Err(ChangeRefusal::NotWhole { copies_wanted: config.copies_wanted });
    }
    config.stale.remove(at);
    Ok(())
}

fn leave_learners(learners: &mut Vec<ReplicaId>, replica: ReplicaId) -> Result<(), ChangeRefusal> {
    let at = learners.iter().position(|r| *r == replica).ok_or(ChangeRefusal::NotLearner)?;
    learners.remove(at);
    Ok(())
}
