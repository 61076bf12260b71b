//! Which chunks need another primary, and in which order (design.md section 6).
//!
//! Elections have their own resources: they are found before anything else is planned, stand in
//! entries of their own, wait for no other change of their chunk, and Raft keeps room for them
//! (`controlplane/raft/src/driver.rs`). The most urgent come first: chunks of attached volumes, then those
//! that have waited for longest.
//!
//! Without a living in-sync member, nothing: nobody else has every acknowledged write.

use crate::command::{CHANGES_PER_COMMAND_MAX, ChangeKind, ChunkChange, Evidence};
use crate::observe::Observations;
use crate::state::ZoneState;
use crate::verdict::{Verdict, Verdicts};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, NodeId, ReplicaId, Time};

/// Elections to commit now, the most urgent first. Those whose outcome is not known yet are left out.
#[must_use]
pub fn elections(state: &ZoneState, seen: &Observations, verdicts: &Verdicts) -> Vec<ChunkChange> {
    let mut due = Vec::new();
    for (node, verdict) in verdicts {
        for config in state.configs_of_node(*node) {
            if config.primary.node != *node || seen.is_electing(config.chunk, config.epoch) {
                continue;
            }
            if let Some(evidence) = reason_to_elect(config, verdict, state, seen) {
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
        let Some(primary) = successor(config, &load, state, seen, verdicts) else { continue };
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

/// The living in-sync secondary on the node that is primary of the fewest chunks.
fn successor(
    config: &ChunkConfig,
    load: &BTreeMap<NodeId, u32>,
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
    secondaries.min_by_key(|replica| (load.get(&replica.node).copied(), replica.node))
}

fn reason_to_elect(
    config: &ChunkConfig,
    verdict: &Verdict,
    state: &ZoneState,
    seen: &Observations,
) -> Option<Evidence> {
    let unfit = seen.says_unfit(config.chunk, config.primary, config.epoch);
    if unfit || state.is_store_gone(config.primary) {
        return Some(Evidence::ReportedGone {});
    }
    match verdict {
        Verdict::Dead { .. } => Some(Evidence::NodeDead {}),
        // It lives: taking its place must not cost the copies that writes need.
        Verdict::Up { cut: true } if config.in_sync.len() > usize::from(config.copies_min) => {
            Some(Evidence::Unreachable {})
        }
        Verdict::Up { .. } | Verdict::Unknown { .. } => None,
    }
}
