//! Which chunks need another primary, and in which order (design.md section 6).
//!
//! Elections have their own resources: they are found before anything else is planned, stand in
//! entries of their own, wait for no other change of their chunk, and Raft keeps room for them
//! (`controlplane/raft/src/driver.rs`). The most urgent come first: chunks of attached volumes, then those
//! that have waited for longest.
//!
//! Without a living in-sync member, nothing: nobody else has every acknowledged write.

use crate::command::{CHANGES_PER_COMMAND_MAX, ChangeKind, ChunkChange, Evidence};
use crate::observe::{Observations, SILENT_DOUBT_MILLIS, SILENT_VOTE_MILLIS, is_down};
use crate::state::ZoneState;
use crate::verdict::{self, Verdict, Verdicts};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, NodeId, ReplicaId, Time};

/// Elections to commit now, the most urgent first. Those whose outcome is not known yet are left out.
#[must_use]
pub fn elections(
    now: Time,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Vec<ChunkChange> {
    let mut due = Vec::new();
    for (node, verdict) in verdicts {
        for config in state.configs_of_node(*node) {
            if config.primary.node != *node || seen.is_electing(config.chunk, config.epoch) {
                continue;
            }
            if let Some(evidence) = reason_to_elect(now, config, verdict, state, seen) {
                due.push((config, evidence));
            }
        }
    }
    due.sort_by_cached_key(|(config, _)| urgency(config, state, seen));
    let mut load: BTreeMap<NodeId, u32> =
        verdicts.keys().map(|node| (*node, state.primaries_on(*node))).collect();
    let mut changes = Vec::new();
    for (config, evidence) in due {
        if changes.len() >= CHANGES_PER_COMMAND_MAX {
            break;
        }
        let primaries = |node| load.get(&node).copied().unwrap_or(0);
        let next = successor(now, config, primaries, state, seen, verdicts);
        let Some(primary) = next else { continue };
        *load.entry(primary.node).or_default() += 1;
        changes.push(ChunkChange {
            chunk: config.chunk,
            epoch: config.epoch,
            kind: ChangeKind::Elect { primary, evidence },
        });
    }
    changes
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
/// fewest chunks; one that clients could not reach a moment ago only if there is no other.
pub(crate) fn successor(
    now: Time,
    config: &ChunkConfig,
    load: impl Fn(NodeId) -> u32,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> Option<ReplicaId> {
    let fit = |replica: &ReplicaId| {
        verdicts.get(&replica.node).is_some_and(Verdict::is_usable)
            && !state.is_store_gone(*replica)
            && !seen.says_unfit(config.chunk, *replica, config.epoch)
    };
    let secondaries = config.secondaries().filter(fit);
    secondaries.min_by_key(|r| (seen.was_hidden(now, r.node), load(r.node), r.node))
}

fn reason_to_elect(
    now: Time,
    config: &ChunkConfig,
    verdict: &Verdict,
    state: &ZoneState,
    seen: &Observations,
) -> Option<Evidence> {
    let unfit = seen.says_unfit(config.chunk, config.primary, config.epoch);
    if unfit || state.is_store_gone(config.primary) {
        return Some(Evidence::ReportedGone {});
    }
    let useless = match verdict {
        Verdict::Dead { .. } => return Some(Evidence::NodeDead {}),
        Verdict::Up { cut: true } | Verdict::Hidden { .. } => true,
        Verdict::Up { cut: false } => is_alone(now, config, seen),
        Verdict::Unknown { .. } => false,
    };
    // It lives: taking its place must not cost the copies that writes need.
    let enough = config.in_sync.len() > usize::from(config.copies_min);
    (useless && enough).then_some(Evidence::Unreachable {})
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
