//! What the leader proposes next, behind the elections (`elect.rs`): answers to primaries, volumes
//! that became ready, stale replicas that nobody needs any more, erasures that were confirmed, ports
//! to try.
//!
//! Pure: state and observations in, plan out. Planning twice changes nothing, since every change
//! is a compare-and-set; what is already on its way is left out.

use crate::command::{CHANGES_PER_COMMAND_MAX, ChangeKind, ChunkChange, Evidence, Place};
use crate::elect::successor;
use crate::moves;
use crate::observe::{Observations, PROBE_EVERY, SILENT_DOUBT_MILLIS, SLOW_REPLICAS_MAX, is_down};
use crate::place::Space;
use crate::state::ZoneState;
use crate::verdict::{self, Verdict, Verdicts};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ashlar_types::message::cluster::{Change, Proposal, RemovalReason, ReplicaState, SearchBudget};
use ashlar_types::{ChunkConfig, ChunkId, NodeId, ReplicaId, Time, VolumeId};
use core::time::Duration;

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Changes to commit together.
    pub changes: Vec<ChunkChange>,
    /// Proposals that are not carried out, and why.
    pub refused: Vec<(Proposal, String)>,
    /// Chunks whose waiting proposal was judged, either way.
    pub judged: Vec<ChunkId>,
    /// Volumes whose primaries all serve.
    pub ready: Vec<VolumeId>,
    /// Growths whose new chunks all serve, each with the size that was judged.
    pub grown: Vec<(VolumeId, u64)>,
    /// Erasures that their holders confirmed.
    pub erased: Vec<(ChunkId, ReplicaId)>,
    /// Nodes whose ports should be tried.
    pub probes: Vec<NodeId>,
    /// Nodes that lose replicas because they are slow.
    pub slow: Vec<NodeId>,
    /// Moves that begin with these changes.
    pub moves: usize,
    /// Copies were looked for that would stand better elsewhere: how long that need not be done again.
    pub balance: Option<Duration>,
}

impl Plan {
    /// Whether another change of a chunk is planned, or on its way.
    pub(crate) fn is_busy(&self, config: &ChunkConfig, seen: &Observations) -> bool {
        seen.is_proposed(config.chunk, config.epoch)
            || self.changes.iter().any(|change| change.chunk == config.chunk)
    }
}

/// Plans what comes after the elections that are due, once they are noted as on their way. `space` is
/// what the same state and observations say. Spurious calls are harmless; call after input, and at every
/// tick.
#[must_use]
pub fn plan(
    now: Time,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
    search: SearchBudget,
    space: Space<'_>,
) -> Plan {
    let mut plan = Plan::default();
    let mut planner = Judge { now, state, seen, verdicts, search, space };
    for proposal in seen.proposals() {
        if plan.changes.len() >= CHANGES_PER_COMMAND_MAX {
            break;
        }
        planner.judge(proposal, &mut plan);
    }
    moves::release(state, seen, verdicts, &mut plan);
    planner.begin_moves(&mut plan);
    retire(state, seen, &mut plan);
    let serves = |volume: &VolumeId| all_serve(state.volume_configs(*volume), seen);
    plan.ready = state.creating().filter(serves).collect();
    plan.grown = grown(state, seen);
    plan.erased = state
        .erasures()
        .filter(|(chunk, replica)| {
            seen.report(*chunk, *replica).is_some_and(|report| report.state == ReplicaState::Gone)
        })
        .collect();
    plan.probes = probes(now, state, seen);
    plan
}

/// Gives up stale replicas of chunks that are whole again: all that are wanted are in sync under
/// this epoch, and each has reported that it adopted the epoch durably (design.md section 3). That
/// holds for those that are away with their store, too: until then they may come back as the best that
/// is left (decisions/0006). Comes last: it is never urgent.
fn retire(state: &ZoneState, seen: &Observations, plan: &mut Plan) {
    for config in state.configs_with_stale() {
        if plan.changes.len() >= CHANGES_PER_COMMAND_MAX {
            return;
        }
        let busy = plan.is_busy(config, seen);
        let whole = config.in_sync.len() >= usize::from(config.copies_wanted)
            && config.learners.is_empty()
            && config.in_sync.iter().all(|replica| owns(config, *replica, seen));
        if let Some((replica, _)) = config.stale.first().filter(|_| whole && !busy) {
            let kind = ChangeKind::Retire { replica: *replica };
            plan.changes.push(ChunkChange { chunk: config.chunk, epoch: config.epoch, kind });
        }
    }
}

/// Whether a replica has durably recorded that it holds the chunk under its present epoch.
pub(crate) fn owns(config: &ChunkConfig, replica: ReplicaId, seen: &Observations) -> bool {
    seen.report(config.chunk, replica).is_some_and(|report| {
        report.adopted >= config.epoch
            && matches!(report.state, ReplicaState::Serving | ReplicaState::Following)
    })
}

fn all_serve<'a>(mut configs: impl Iterator<Item = &'a ChunkConfig>, seen: &Observations) -> bool {
    configs.all(|config| {
        seen.report(config.chunk, config.primary)
            .is_some_and(|report| report.state == ReplicaState::Serving)
    })
}

/// Growths whose new chunks all serve, each with the size that is judged.
fn grown(state: &ZoneState, seen: &Observations) -> Vec<(VolumeId, u64)> {
    let there = |volume| all_serve(state.new_configs(volume), seen);
    let over = state.growths().filter(|growth| state.volume(growth.volume).is_some_and(there));
    over.map(|growth| (growth.volume, growth.size_bytes)).collect()
}

/// Nodes that do not beat, unless they were tried just now.
fn probes(now: Time, state: &ZoneState, seen: &Observations) -> Vec<NodeId> {
    let due = |node: &NodeId| {
        let asked = seen.node(*node).and_then(|view| view.probe_asked);
        !verdict::is_fresh(now, *node, seen) && asked.is_none_or(|at| now.since(at) >= PROBE_EVERY)
    };
    state.nodes().map(|record| record.node).filter(due).collect()
}

/// The node that a proposal calls slow.
fn slow_node(proposal: &Proposal) -> Option<NodeId> {
    match &proposal.change {
        Change::RemoveSecondary { replica, reason: RemovalReason::Slow { .. } } => {
            Some(replica.node)
        }
        Change::StepDown { .. } => Some(proposal.proposer.node),
        _other => None,
    }
}

/// Whether a primary's word is held against what others say.
const fn is_accusation(change: &Change) -> bool {
    match change {
        Change::RemoveSecondary { reason, .. } => !matches!(reason, RemovalReason::ReportedGone),
        Change::StepDown { .. }
        | Change::ReadoptStale { .. }
        | Change::SeekLearner
        | Change::RemoveLearner { .. }
        | Change::PromoteLearner { .. }
        | Change::Follow => false,
    }
}

/// Judges what primaries ask for.
pub(crate) struct Judge<'a> {
    pub(crate) now: Time,
    pub(crate) state: &'a ZoneState,
    pub(crate) seen: &'a Observations,
    pub(crate) verdicts: &'a Verdicts,
    pub(crate) search: SearchBudget,
    pub(crate) space: Space<'a>,
}

impl Judge<'_> {
    fn judge(&mut self, proposal: &Proposal, plan: &mut Plan) {
        let Some(config) = self.state.config(proposal.chunk) else {
            plan.judged.push(proposal.chunk);
            return;
        };
        let taken = plan.changes.iter().any(|change| change.chunk == proposal.chunk);
        if taken || self.seen.is_proposed(config.chunk, config.epoch) {
            // Another change of the same epoch is on its way: its outcome is the answer.
            return;
        }
        if !self.seen.may_judge(self.now) && is_accusation(&proposal.change) {
            // Who would contradict it may not have come to this leader yet.
            return;
        }
        plan.judged.push(proposal.chunk);
        let slow = slow_node(proposal);
        let decided = self.decide(config, proposal);
        let within_budget = || slow.map_or(Ok(()), |node| self.may_be_slow(node, &plan.slow));
        match decided.and_then(|kind| within_budget().map(|()| kind)) {
            Ok(kind) => {
                let (chunk, epoch) = (proposal.chunk, proposal.epoch);
                plan.changes.push(ChunkChange { chunk, epoch, kind });
                plan.slow.extend(slow);
            }
            Err(why) => plan.refused.push((proposal.clone(), why)),
        }
    }

    /// One node in ten, one at least, may be taken for slow at a time: when more are, it is not they
    /// that are slow, and copies would go without need. Nor does one node lose more of its replicas
    /// for that than can be filled again in time.
    fn may_be_slow(&self, node: NodeId, planned: &[NodeId]) -> Result<(), String> {
        let now = planned.iter().filter(|known| **known == node).count();
        let lost = self.seen.slow_replicas(self.now, node) as usize + now;
        if lost >= SLOW_REPLICAS_MAX as usize {
            return Err(format!(
                "{node} has lost {lost} replicas to slowness lately; it is waited for"
            ));
        }
        let others: BTreeSet<NodeId> = self
            .seen
            .slow_nodes(self.now)
            .chain(planned.iter().copied())
            .filter(|known| *known != node)
            .collect();
        if others.len() < (self.state.nodes().count() / 10).max(1) {
            return Ok(());
        }
        let names: Vec<String> = others.iter().map(ToString::to_string).collect();
        Err(format!("{} count as slow already; {node} is waited for", names.join(", ")))
    }

    fn decide(&mut self, config: &ChunkConfig, proposal: &Proposal) -> Result<ChangeKind, String> {
        let proposer = proposal.proposer;
        if proposal.epoch != config.epoch {
            return Err(format!("epoch {} is current", config.epoch));
        }
        if proposer != config.primary {
            return Err("the proposer is not the primary".into());
        }
        match &proposal.change {
            Change::RemoveSecondary { replica, reason } => {
                let evidence = self.judge_removal(config, *replica, *reason)?;
                Ok(ChangeKind::RemoveSecondary { proposer, replica: *replica, evidence })
            }
            Change::ReadoptStale { replica } => {
                if !config.is_stale(*replica) {
                    return Err("the replica is not known as stale".into());
                }
                if self.state.is_store_gone(*replica) {
                    return Err(format!("{} does not have that store now", replica.node));
                }
                self.must_be_able_to_follow(replica.node)?;
                // A node that is drained takes no replica back that has room elsewhere.
                if self.state.is_draining(replica.node)
                    && let Ok(elsewhere) = self.seek(config, proposer)
                {
                    return Ok(elsewhere);
                }
                Ok(ChangeKind::ReadoptStale { proposer, replica: *replica })
            }
            Change::StepDown { .. } => self.succeed(config),
            // Kept apart, and used when somebody is elected.
            Change::Follow => Err("nobody takes over".into()),
            Change::SeekLearner => self.seek(config, proposer),
            Change::RemoveLearner { replica } => {
                Ok(ChangeKind::RemoveLearner { proposer, replica: *replica })
            }
            Change::PromoteLearner { replica, durable } => {
                let (replica, durable) = (*replica, *durable);
                Ok(ChangeKind::PromoteLearner { proposer, replica, durable })
            }
        }
    }

    /// A primary asks for another: as long as enough copies remain without it.
    fn succeed(&self, config: &ChunkConfig) -> Result<ChangeKind, String> {
        let remaining = config.in_sync.len().saturating_sub(1);
        if remaining < usize::from(config.copies_min) {
            let needed = config.copies_min;
            return Err(format!("{remaining} in sync would remain, {needed} are needed"));
        }
        let load = |node| self.state.primaries_on(node);
        let next = successor(self.now, config, load, self.state, self.seen, self.verdicts);
        let primary = next.ok_or("no secondary can take over")?;
        Ok(ChangeKind::Elect { primary, evidence: Evidence::Unreachable {} })
    }

    fn must_be_able_to_follow(&self, node: NodeId) -> Result<(), String> {
        match self.verdicts.get(&node) {
            Some(verdict) if verdict.can_follow() => Ok(()),
            Some(verdict) => Err(format!("{node}: {}", verdict.cause())),
            None => Err(format!("{node} is not known")),
        }
    }

    /// A primary says that a secondary does not answer. Usually it is right; it is wrong when it
    /// is the one that is cut off, which the secondary and the other peers then say of it.
    fn judge_removal(
        &self,
        config: &ChunkConfig,
        replica: ReplicaId,
        reason: RemovalReason,
    ) -> Result<Evidence, String> {
        if !config.is_in_sync(replica) || replica == config.primary {
            return Err("the replica is not an in-sync secondary".into());
        }
        if self.seen.says_unfit(config.chunk, replica, config.epoch) {
            return Ok(Evidence::ReportedGone {});
        }
        if self.state.is_store_gone(replica) {
            return Ok(Evidence::StoreAway {});
        }
        // A process that has just started says by its registration which stores it has. Until that is
        // known, a replica that is not there may be away, and whole.
        let is_starting =
            matches!(self.verdicts.get(&replica.node), None | Some(Verdict::Unknown { .. }));
        if reason == RemovalReason::ReportedGone && !is_starting {
            return Ok(Evidence::ReportedGone {});
        }
        let dead = self.verdicts.get(&replica.node).is_some_and(Verdict::is_dead);
        if dead {
            return Ok(Evidence::NodeDead {});
        }
        let remaining = config.in_sync.len().saturating_sub(1);
        if remaining < usize::from(config.copies_min) {
            return Err(format!(
                "{remaining} in sync would remain, {} are needed, and {} is not declared dead",
                config.copies_min, replica.node
            ));
        }
        if self.primary_is_worse(config.primary.node, replica.node) {
            return Err(format!(
                "peers see {} fail rather than {}",
                config.primary.node, replica.node
            ));
        }
        Ok(Evidence::Unreachable {})
    }

    /// Whether the secondary accuses back and the others see the primary fail more than it. A tie
    /// keeps the primary.
    fn primary_is_worse(&self, primary: NodeId, secondary: NodeId) -> bool {
        const DOUBT: u32 = SILENT_DOUBT_MILLIS;
        let accuses = verdict::is_fresh(self.now, secondary, self.seen)
            && self.seen.node(secondary).and_then(|view| view.evidence_about(primary)).is_some_and(
                |evidence| {
                    is_down(evidence.primary_net, DOUBT) && is_down(evidence.replication_net, DOUBT)
                },
            );
        let voices = |about, without| {
            verdict::votes(self.now, about, Some(without), DOUBT, self.state, self.seen).down
        };
        // The accused do not vote on each other here: their word is the question.
        accuses && voices(primary, secondary) > voices(secondary, primary)
    }

    fn seek(&mut self, config: &ChunkConfig, proposer: ReplicaId) -> Result<ChangeKind, String> {
        let filled = config.in_sync.len() + config.learners.len();
        if filled >= usize::from(config.copies_wanted) {
            return Err(format!("{filled} replicas are in sync or being filled already"));
        }
        let urgent = config.in_sync.len() <= 1 || !config.may_acknowledge();
        if self.search.only_urgent && !urgent {
            return Err("a large interruption: the copies that are away may come back".into());
        }
        let wanted = moves::wanted(config, self.state, self.seen);
        if let Some(place) = self.space.take_one(&wanted) {
            return Ok(ChangeKind::AddLearnerOn { proposer, place });
        }
        if let Some((place, away)) = self.place_of_one_away(config, wanted.bytes) {
            return Ok(ChangeKind::AddLearnerInstead { proposer, place, away });
        }
        Err(moves::no_home(wanted.bytes, &wanted.not, &self.space))
    }

    /// Where no other node can take a replica, one that has come without the store of its stale one:
    /// that is given up for it, those first that are of least use to a salvage. While one copy is in
    /// sync, and another is being filled, what is away is kept: it may be all there is.
    fn place_of_one_away(
        &mut self,
        config: &ChunkConfig,
        bytes: u64,
    ) -> Option<(Place, ReplicaId)> {
        if config.in_sync.len() == 1 && !config.learners.is_empty() {
            return None;
        }
        let unreached: BTreeSet<NodeId> =
            moves::unreached_by(config.primary.node, self.seen).collect();
        let is_erasing = |node: NodeId| {
            let here = |(chunk, replica): (ChunkId, ReplicaId)| {
                (chunk, replica.node) == (config.chunk, node) && !self.state.is_store_gone(replica)
            };
            self.state.erasures().any(here)
        };
        let mut away: Vec<_> = config
            .stale
            .iter()
            .filter(|(replica, _)| self.state.is_store_gone(*replica))
            .filter(|(replica, _)| !unreached.contains(&replica.node) && !is_erasing(replica.node))
            .map(|(replica, info)| (!info.suspect, info.last_in_sync, *replica))
            .collect();
        away.sort_unstable();
        away.into_iter().find_map(|(.., replica)| {
            self.space.take_on(replica.node, bytes).map(|place| (place, replica))
        })
    }
}
