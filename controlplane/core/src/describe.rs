//! How volumes and chunks are: whole, degraded or stuck, and of what (invariant 10).

use crate::observe::Observations;
use crate::state::{Volume, ZoneState};
use crate::verdict::{Verdict, Verdicts};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::message::cluster::ReplicaState;
use ashlar_types::{ChunkConfig, ChunkId, Generation, NodeId, VolumeId};

/// How chunks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub total: u32,
    /// As many in sync as wanted.
    pub whole: u32,
    /// Fewer, but writes go on.
    pub degraded: u32,
    /// Writes cannot proceed.
    pub stuck: u32,
}

impl Counts {
    /// Adds one chunk.
    pub fn add(&mut self, health: &Health) {
        self.total += 1;
        match health {
            Health::Whole => self.whole += 1,
            Health::Degraded => self.degraded += 1,
            Health::Stuck(_) => self.stuck += 1,
        }
    }

    /// Adds other counts.
    pub fn add_all(&mut self, other: Self) {
        self.total += other.total;
        self.whole += other.whole;
        self.degraded += other.degraded;
        self.stuck += other.stuck;
    }
}

/// How one chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// As many in sync as wanted.
    Whole,
    /// Fewer, but writes go on.
    Degraded,
    /// Writes cannot proceed.
    Stuck(Stuck),
}

/// Why a chunk is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// In words.
    pub cause: String,
    /// Nodes that must come back, or act.
    pub blocked_on: Vec<NodeId>,
    /// What happens next, and by whom.
    pub next_action: String,
}

/// How a chunk is, as this leader sees it.
#[must_use]
pub fn health(
    config: &ChunkConfig,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Health {
    let primary = config.primary;
    let usable = |node: NodeId| verdicts.get(&node).is_some_and(Verdict::is_usable);
    let in_sync = config.in_sync.len();
    // Not knowing is not being stuck: a new leader has heard nobody yet, and a node that only the
    // control plane cannot reach goes on serving.
    if verdicts.get(&primary.node).is_none_or(Verdict::is_dead) {
        let others: Vec<NodeId> = config.secondaries().map(|replica| replica.node).collect();
        let cause = verdicts.get(&primary.node).map_or("it never registered", Verdict::cause);
        let next_action = if others.iter().any(|node| usable(*node)) {
            "another in-sync replica is elected once the primary is declared dead".into()
        } else {
            "the primary, or an in-sync secondary, must come back".into()
        };
        let cause = format!("the primary on {} is away: {cause}", primary.node);
        let blocked_on = core::iter::once(primary.node).chain(others).collect();
        return Health::Stuck(Stuck { cause, blocked_on, next_action });
    }
    if let Some(verdict @ Verdict::Hidden { .. }) = verdicts.get(&primary.node) {
        let next_action = if in_sync > usize::from(config.copies_min) {
            "another in-sync replica that clients reach is elected"
        } else {
            "the primary network comes back, or another copy is in sync and can be elected"
        };
        return Health::Stuck(Stuck {
            cause: format!("clients do not reach the primary: {}", verdict.cause()),
            blocked_on: [primary.node].into(),
            next_action: next_action.into(),
        });
    }
    // Its node lives, so that nobody else would say it.
    if state.is_store_gone(primary) {
        return Health::Stuck(lost_primary(config, state, seen, usable));
    }
    if in_sync < usize::from(config.copies_min) {
        return Health::Stuck(Stuck {
            cause: format!("{in_sync} in sync, {} needed to write", config.copies_min),
            blocked_on: config
                .learners
                .iter()
                .map(|replica| replica.node)
                .chain(config.stale.iter().map(|(replica, _)| replica.node))
                .collect(),
            next_action: "the primary fills another replica, stale ones first".into(),
        });
    }
    if seen.says_unfit(config.chunk, primary, config.epoch) {
        return Health::Stuck(lost_primary(config, state, seen, usable));
    }
    let opening = seen
        .report(config.chunk, primary)
        .is_some_and(|report| report.state == ReplicaState::Opening);
    if opening {
        return Health::Stuck(Stuck {
            cause: "the primary is taking over".into(),
            blocked_on: config.secondaries().map(|replica| replica.node).collect(),
            next_action: "the primary hears every in-sync replica, or has silent ones removed"
                .into(),
        });
    }
    let short: Vec<NodeId> = config
        .in_sync
        .iter()
        .filter(|r| seen.node(r.node).is_some_and(|node| node.is_short_of_space(r.store)))
        .map(|replica| replica.node)
        .collect();
    if !short.is_empty() {
        return Health::Stuck(no_space(short));
    }
    if in_sync < usize::from(config.copies_wanted) { Health::Degraded } else { Health::Whole }
}

/// Stores that every write needs have no room for more (design.md section 8). Reads go on.
fn no_space(short: Vec<NodeId>) -> Stuck {
    let names: Vec<String> = short.iter().map(|node| format!("{node}")).collect();
    Stuck {
        cause: format!("no space: the store of {} is nearly full", names.join(", ")),
        blocked_on: short,
        next_action: "writes go on when space is given back: trims and deletes of volumes work"
            .into(),
    }
}

/// The primary's store is gone, or it says itself that it has lost part of the chunk.
fn lost_primary(
    config: &ChunkConfig,
    state: &ZoneState,
    seen: &Observations,
    usable: impl Fn(NodeId) -> bool,
) -> Stuck {
    let whole: Vec<NodeId> = config
        .secondaries()
        .filter(|replica| !seen.says_unfit(config.chunk, *replica, config.epoch))
        .filter(|replica| !state.is_store_gone(*replica))
        .map(|replica| replica.node)
        .collect();
    let lost = if state.is_store_gone(config.primary) { "all" } else { "part" };
    let cause = format!("the store of {} has lost {lost} of the chunk", config.primary.node);
    if whole.is_empty() {
        return Stuck {
            cause: format!("{cause}, and so have those of all others in sync"),
            blocked_on: config.in_sync.iter().map(|replica| replica.node).collect(),
            next_action: "no copy is known to be whole: an operator decides about what is left"
                .into(),
        };
    }
    let next_action = if whole.iter().any(|node| usable(*node)) {
        "another in-sync replica is elected".into()
    } else {
        "an in-sync secondary must come back".into()
    };
    Stuck { cause, blocked_on: whole, next_action }
}

/// How a volume's chunks are.
#[must_use]
pub fn volume_counts(
    volume: VolumeId,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Counts {
    let mut counts = Counts::default();
    state
        .volume_configs(volume)
        .for_each(|config| counts.add(&health(config, state, seen, verdicts)));
    counts
}

/// All chunks that are stuck.
#[must_use]
pub fn stuck_chunks(
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> BTreeSet<ChunkId> {
    state
        .configs()
        .filter(|config| matches!(health(config, state, seen, verdicts), Health::Stuck(_)))
        .map(|config| config.chunk)
        .collect()
}

/// Nodes that keep an attachment waiting: in-sync holders of chunks where no in-sync replica has
/// durably adopted the generation yet. Empty: the attachment is safe, since every write needs all; or
/// an operator has stated that nobody else is left who writes.
#[must_use]
pub fn attach_blocked_on(
    volume: &Volume,
    generation: Generation,
    state: &ZoneState,
    seen: &Observations,
) -> BTreeSet<NodeId> {
    if state.fenced(volume.id).is_some() {
        return BTreeSet::new();
    }
    waiting(volume, generation, state, seen)
        .flat_map(|config| config.in_sync.iter().map(|replica| replica.node))
        .collect()
}

/// Chunks of a volume of which no in-sync replica has adopted a generation.
fn waiting<'a>(
    volume: &Volume,
    generation: Generation,
    state: &'a ZoneState,
    seen: &'a Observations,
) -> impl Iterator<Item = &'a ChunkConfig> {
    let adopted = move |config: &ChunkConfig| {
        config.in_sync.iter().any(|replica| seen.has_adopted(config.chunk, *replica, generation))
    };
    state.volume_configs(volume.id).filter(move |config| !adopted(config))
}

/// What keeps the present attachment of a volume waiting, and what to do about it.
#[must_use]
pub fn attach_stuck(volume: &Volume, state: &ZoneState, seen: &Observations) -> Option<Stuck> {
    volume.attachment.as_ref()?;
    let blocked_on = attach_blocked_on(volume, volume.generation, state, seen);
    if blocked_on.is_empty() {
        return None;
    }
    let chunks = waiting(volume, volume.generation, state, seen).count();
    let name = if volume.name.is_empty() { format!("{}", volume.id) } else { volume.name.clone() };
    Some(Stuck {
        cause: format!(
            "of {chunks} chunks no replica in sync has confirmed generation {}: a client before \
             could still write there",
            volume.generation
        ),
        blocked_on: blocked_on.into_iter().collect(),
        next_action: format!(
            "those nodes come back; or, if the client before never writes again, say so: `ashlar \
             attach {name} --force --old-client-fenced`; or, if they are lost for good, `ashlar \
             volume salvage {name}`"
        ),
    })
}
