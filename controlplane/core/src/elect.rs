//! Which chunks need another primary, and in which order (design.md section 6).
//!
//! Elections have their own resources: they are found before anything else is planned, stand in
//! entries of their own, wait for no other change of their chunk, and Raft keeps room for them
//! (`controlplane/raft/src/driver.rs`). The most urgent come first: chunks of attached volumes, then those
//! that have waited for longest.
//!
//! Without a living in-sync member, nothing: nobody else has every acknowledged write.

use crate::balance::{self, Levels};
use crate::command::{CHANGES_PER_COMMAND_MAX, ChangeKind, ChunkChange, Evidence};
use crate::observe::{Observations, SILENT_DOUBT_MILLIS, SILENT_VOTE_MILLIS, is_down};
use crate::state::ZoneState;
use crate::verdict::{self, Verdict, Verdicts};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, ChunkId, Epoch, NodeId, ReplicaId, Time};
use core::time::Duration;

/// How long a primary that lives and is connected may take to agree, where another can be elected
/// without it: one heartbeat.
pub const AGREE_WITHIN: Duration = Duration::from_millis(300);

/// What to do about primaries now, the most urgent first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elections {
    /// To commit. Those whose outcome is not known yet are left out.
    pub changes: Vec<ChunkChange>,
    /// Primaries that should be asked to follow another: they live, and an election either needs
    /// their agreement or keeps a copy by it.
    pub asks: Vec<(NodeId, ChunkId, Epoch)>,
}

/// What can be done about a primary.
enum Step {
    Elect(Evidence),
    Ask,
}

/// Elections that are due.
#[must_use]
pub fn elections(
    now: Time,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Elections {
    let mut due = Vec::new();
    let levels = Levels::of(state, seen);
    for (node, verdict) in verdicts {
        for config in state.configs_of_node(*node) {
            if config.primary.node != *node || seen.is_electing(config.chunk, config.epoch) {
                continue;
            }
            let leaves = || leave(config, state, seen, verdicts, &levels);
            if let Some(step) = step(now, config, verdict, state, seen).or_else(leaves) {
                due.push((config, step));
            }
        }
    }
    due.sort_by_cached_key(|(config, _)| urgency(config, state, seen));
    let mut load: BTreeMap<NodeId, u32> =
        verdicts.keys().map(|node| (*node, state.primaries_on(*node))).collect();
    let mut elections = Elections::default();
    for (config, step) in due {
        let (chunk, epoch) = (config.chunk, config.epoch);
        let primaries = |node| load.get(&node).copied().unwrap_or(0);
        let next = successor(now, config, primaries, state, seen, verdicts);
        let Some(primary) = next else { continue };
        match step {
            Step::Elect(evidence) if elections.changes.len() < CHANGES_PER_COMMAND_MAX => {
                *load.entry(primary.node).or_default() += 1;
                let kind = ChangeKind::Elect { primary, evidence };
                elections.changes.push(ChunkChange { chunk, epoch, kind });
            }
            Step::Ask if is_ask_due(now, chunk, epoch, seen) => {
                elections.asks.push((config.primary.node, chunk, epoch));
            }
            Step::Elect(_) | Step::Ask => {}
        }
    }
    elections
}

/// Lost on the way, the question is asked again.
fn is_ask_due(now: Time, chunk: ChunkId, epoch: Epoch, seen: &Observations) -> bool {
    seen.asked(chunk, epoch).is_none_or(|(_, last)| now.since(last) >= AGREE_WITHIN)
}

/// Sorts before whatever can wait for longer: attached first, then by when it began to wait.
fn urgency(config: &ChunkConfig, state: &ZoneState, seen: &Observations) -> (bool, Time) {
    let volume = state.volume(config.chunk.volume);
    let attached = volume.is_some_and(|volume| volume.attachment.is_some());
    // Until somebody has looked for stuck chunks, the last word of the primary's node tells.
    let contact = seen.node(config.primary.node).and_then(|view| view.last_contact);
    let since = seen.stuck_since(config.chunk).or(contact);
    (!attached, since.unwrap_or(Time::ZERO))
}

/// Who takes over: of the living in-sync secondaries the one on the node that is primary of the
/// fewest chunks; one that clients could not reach a moment ago only if there is no other, one on a node
/// that is drained only if there is nobody else, and one that the control plane hears through a peer only
/// if there is no other at all.
pub(crate) fn successor(
    now: Time,
    config: &ChunkConfig,
    load: impl Fn(NodeId) -> u32,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Option<ReplicaId> {
    let last_resort = |node: NodeId| verdicts.get(&node).is_some_and(Verdict::is_last_resort);
    let fit = |replica: &ReplicaId| {
        let verdict = verdicts.get(&replica.node);
        (verdict.is_some_and(Verdict::is_usable) || last_resort(replica.node))
            && !state.is_store_gone(*replica)
            && !seen.says_unfit(config.chunk, *replica, config.epoch)
    };
    let secondaries = config.secondaries().filter(fit);
    secondaries.min_by_key(|r| {
        let (hidden, drained) = (seen.was_hidden(now, r.node), state.is_draining(r.node));
        (last_resort(r.node), drained, hidden, load(r.node), r.node)
    })
}

fn step(
    now: Time,
    config: &ChunkConfig,
    verdict: &Verdict,
    state: &ZoneState,
    seen: &Observations,
) -> Option<Step> {
    if seen.says_unfit(config.chunk, config.primary, config.epoch) {
        return Some(Step::Elect(Evidence::ReportedGone {}));
    }
    if state.is_store_gone(config.primary) {
        return Some(Step::Elect(Evidence::StoreAway {}));
    }
    let (useless, may_stay) = match verdict {
        Verdict::Dead { .. } => return Some(Step::Elect(Evidence::NodeDead {})),
        Verdict::Hidden { fresh } => (true, *fresh),
        Verdict::Up { cut: true } => (true, false),
        Verdict::Up { cut: false } => (is_alone(now, config, seen), false),
        Verdict::Relayed { .. } | Verdict::Unknown { .. } => (false, false),
    };
    if !useless {
        return None;
    }
    if seen.has_agreed(config) {
        return Some(Step::Elect(Evidence::Agreed { by: config.primary }));
    }
    // It lives: without its agreement it leaves the in-sync set, and that must not cost the copies
    // that writes need. Where it does not, one that others reach is asked and not waited for.
    let enough = config.in_sync.len() > usize::from(config.copies_min);
    let asked = seen.asked(config.chunk, config.epoch);
    let has_had_time = asked.is_some_and(|(first, _)| now.since(first) >= AGREE_WITHIN);
    if enough && (!may_stay || has_had_time) {
        return Some(Step::Elect(Evidence::Unreachable {}));
    }
    Some(Step::Ask)
}

/// A primary that works and is to leave its node (`moves.rs`): another takes over once it agrees, and not
/// before. It has no hurry, so it costs no copy.
fn leave(
    config: &ChunkConfig,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
    levels: &Levels,
) -> Option<Step> {
    if config.in_sync.len() <= usize::from(config.copies_wanted) {
        return None;
    }
    let primary = config.primary.node;
    let usable = |node: NodeId| verdicts.get(&node).is_some_and(Verdict::is_usable);
    let outweighs = || balance::leaver(config, None, state, levels) == Some(primary);
    let due = (state.is_draining(primary) || outweighs())
        && usable(primary)
        && config.secondaries().any(|r| usable(r.node) && !state.is_draining(r.node));
    if !due {
        return None;
    }
    let agreed = seen.has_agreed(config);
    Some(if agreed { Step::Elect(Evidence::Agreed { by: config.primary }) } else { Step::Ask })
}

/// Whether a primary hears nobody but the control plane, and its secondaries say the same: at least
/// one of them does not reach it, and none does. Other voters are not asked, so that no majority is
/// needed: only secondaries can complete its writes.
fn is_alone(now: Time, config: &ChunkConfig, seen: &Observations) -> bool {
    let primary = config.primary.node;
    if !seen.may_judge(now)
        || !seen.node(primary).is_some_and(|view| view.hears_nobody(SILENT_DOUBT_MILLIS))
    {
        return false;
    }
    let mut votes = 0;
    for node in config.secondaries().map(|replica| replica.node) {
        let Some(view) = seen.node(node).filter(|_| verdict::is_fresh(now, node, seen)) else {
            continue;
        };
        match view.evidence_about(primary) {
            Some(said)
                if is_down(said.primary_net, SILENT_VOTE_MILLIS)
                    && is_down(said.replication_net, SILENT_VOTE_MILLIS) =>
            {
                votes += 1;
            }
            Some(_) | None => return false,
        }
    }
    votes > 0
}
