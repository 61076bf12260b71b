//! What is looked at after events: committed configurations, who could acknowledge, how often new
//! homes are asked for (design.md section 12: invariants 1, 4 and 7), what is erased.

use crate::node::SimNode;
use crate::run::Sabotage;
use crate::scenario::Moment;
use crate::world::World;
use ashlar_types::message::cluster::{Change, ControlUp, ReplicaState};
use ashlar_types::{ChunkConfig, ChunkId, NodeId, ReplicaId, Term, Time, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Events between two looks at who could acknowledge. A state of two lasts for milliseconds.
pub(crate) const LOOK_EVERY: u64 = 16;
/// Placement attempts of a chunk that are allowed in [`PLACEMENTS_WITHIN`] (I6).
const PLACEMENTS_MAX: usize = 12;
/// A minute of a clock that runs 10 % fast.
const PLACEMENTS_WITHIN: Duration = Duration::from_secs(54);

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    applied: u64,
    configs: BTreeMap<ChunkId, ChunkConfig>,
    /// Removals, promotions and elections of each chunk.
    role_changes: BTreeMap<ChunkId, u64>,
    /// Of each chunk by each primary: one that is elected or started anew begins to count anew.
    placements: BTreeMap<(ChunkId, NodeId, Term), Placements>,
    /// Replicas of which a node has said that they are erased.
    erased: BTreeSet<(ChunkId, ReplicaId)>,
}

impl Watch {
    /// A volume is deleted: nothing is promised of its chunks any more.
    pub(crate) fn forget(&mut self, volume: VolumeId) {
        self.configs.retain(|chunk, _| chunk.volume != volume);
    }

    /// The newest configuration of every chunk that was ever committed, whoever has forgotten it.
    pub(crate) fn configs(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.configs.values()
    }
}

impl World {
    /// Looks at everything that may have changed by the last event.
    pub(crate) fn watch(&mut self) {
        let ran = core::mem::take(&mut self.control.ran);
        let applied = if ran { self.control.applied() } else { 0 };
        if applied > self.watch.applied {
            self.watch.applied = applied;
            let known = &self.watch.configs;
            let is_new = |config: &&ChunkConfig| known.get(&config.chunk) != Some(*config);
            let changed: Vec<_> = self.control.configs().filter(is_new).cloned().collect();
            for config in changed {
                self.watch_config(config);
            }
        }
        if self.events.is_multiple_of(LOOK_EVERY) {
            self.watch_primaries();
        }
    }

    /// A committed configuration may have changed.
    fn watch_config(&mut self, config: ChunkConfig) {
        if self.passing.is_deleted(config.chunk.volume) {
            return;
        }
        let Some(known) = self.watch.configs.get(&config.chunk) else {
            self.watch.configs.insert(config.chunk, config);
            return;
        };
        let elected = config.primary != known.primary;
        let by_word = config.primary != known.primary && self.is_salvaged(&config);
        if let Some(rule) = broken_by(known, &config).filter(|_| !by_word) {
            let detail = format!("{known:?} became {config:?}");
            self.judge.violated(self.now, rule, detail);
        }
        let removed = known.secondaries().filter(|r| !config.is_in_sync(*r)).count();
        let promoted = config.in_sync.iter().filter(|r| known.is_learner(**r)).count();
        for _ in 0..removed {
            self.tally.note("removals");
        }
        for _ in 0..promoted {
            self.tally.note("promotions");
        }
        if self.is_crowded(&config) {
            self.tally.note("two copies in a rack");
        }
        let known = known.clone();
        self.note_for_salvage(&known, &config);
        let config_keeps = config.is_in_sync(known.primary);
        let chunk = config.chunk;
        let changes = self.watch.role_changes.entry(chunk).or_default();
        *changes += (removed + promoted + usize::from(elected)) as u64;
        self.tally.measure("most role changes of a chunk", *changes);
        self.watch.configs.insert(chunk, config);
        if elected {
            self.tally.note("elections");
            if config_keeps {
                self.tally.note("former primaries in sync");
            }
            self.moment(chunk, Moment::Elected);
        }
    }

    /// At most one node could acknowledge writes of a chunk: it serves, and every other member of
    /// its in-sync set would still follow it.
    fn watch_primaries(&mut self) {
        let mut able: BTreeMap<ChunkId, NodeId> = BTreeMap::new();
        let mut both = None;
        for (id, node) in &self.nodes {
            let Some(core) = node.core() else { continue };
            for report in core.reports().filter(|r| r.state == ReplicaState::Serving) {
                let Some(config) = core.config(report.chunk) else { continue };
                if config.may_acknowledge()
                    && config.secondaries().all(|r| self.would_follow(r.node, config))
                    && let Some(other) = able.insert(report.chunk, *id)
                {
                    both = Some(format!("{id} and {other} could acknowledge in {}", report.chunk));
                }
            }
        }
        let serving = self.nodes.values().filter_map(SimNode::core).flat_map(|core| core.reports());
        let serving = serving.filter(|report| report.state == ReplicaState::Serving);
        self.growth.note_served(serving.map(|report| report.chunk));
        let first = self.watch.configs.keys().next();
        let possible = first.is_some_and(|chunk| able.contains_key(chunk));
        self.note_service(possible);
        if let Some(detail) = both {
            self.judge.violated(self.now, "two able to acknowledge", detail);
        }
    }

    /// Whether a secondary knows of nothing later than a configuration.
    fn would_follow(&self, secondary: NodeId, config: &ChunkConfig) -> bool {
        let core = self.nodes.get(&secondary).and_then(SimNode::core);
        core.and_then(|core| core.config(config.chunk)).is_some_and(|known| {
            self.sabotage == Sabotage::IgnoreEpochs
                || known.epoch < config.epoch
                || (known.epoch == config.epoch && known.primary == config.primary)
        })
    }

    /// A node asks the control plane for changes.
    pub(crate) fn note_proposals(&mut self, node: NodeId, message: &ControlUp) {
        let ControlUp::Propose(proposals) = message else { return };
        for proposal in proposals {
            match &proposal.change {
                Change::SeekLearner => self.note_placement(node, proposal.chunk),
                Change::PromoteLearner { .. } => self.moment(proposal.chunk, Moment::Proposed),
                _no_placement => {}
            }
        }
    }

    /// A node tells of its replicas: what it has once called erased is never there again.
    pub(crate) fn watch_erased(&mut self, message: &ControlUp) {
        let ControlUp::Replicas(reports) = message else { return };
        for report in reports {
            let named = (report.chunk, report.replica);
            if report.state == ReplicaState::Gone {
                self.watch.erased.insert(named);
            } else if self.watch.erased.contains(&named) {
                let detail = format!("{report:?}");
                self.judge.violated(self.now, "an erased replica came back", detail);
            }
        }
    }

    fn note_placement(&mut self, node: NodeId, chunk: ChunkId) {
        let now = self.now;
        self.tally.note("placements asked for");
        let Some(sim) = self.nodes.get(&node) else { return };
        let primary = (chunk, node, sim.end(chunk).term);
        let times = self.watch.placements.entry(primary).or_default();
        if times.asked(now) {
            let detail = format!("{chunk} by {node}: more than {PLACEMENTS_MAX}");
            self.judge.violated(now, "storm of placements", detail);
        }
    }
}

/// Which rule a change of a committed configuration breaks.
fn broken_by(known: &ChunkConfig, config: &ChunkConfig) -> Option<&'static str> {
    if config.epoch <= known.epoch || config.generation < known.generation {
        return Some("epoch went back");
    }
    // Of a change that was not seen alone it is not known what it came from.
    let next = known.epoch.next() == config.epoch;
    let elected = config.primary != known.primary;
    (elected && next && !known.is_in_sync(config.primary)).then_some("a stale primary")
}

/// Times of the last placement attempts of one primary.
#[derive(Debug, Default)]
struct Placements(VecDeque<Time>);

impl Placements {
    /// One more; true if there are too many.
    fn asked(&mut self, now: Time) -> bool {
        self.0.push_back(now);
        while self.0.front().is_some_and(|at| now.since(*at) > PLACEMENTS_WITHIN) {
            self.0.pop_front();
        }
        self.0.len() > PLACEMENTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{
        ChunkIndex, Epoch, Generation, Incarnation, ReplicaId, StoreId, VolumeId, ZoneId,
    };

    fn config(epoch: u64, primary: u32) -> ChunkConfig {
        let replica = |node| ReplicaId {
            node: NodeId(node),
            store: StoreId(u128::from(node)),
            incarnation: Incarnation(1),
        };
        let volume = VolumeId { zone: ZoneId::default(), uuid: 1 };
        ChunkConfig {
            chunk: ChunkId { volume, index: ChunkIndex(0) },
            blocks: 16,
            epoch: Epoch(epoch),
            elected: Epoch(epoch),
            generation: Generation(epoch),
            primary: replica(primary),
            in_sync: vec![replica(1), replica(2), replica(primary)],
            learners: Vec::new(),
            stale: Vec::new(),
            copies_wanted: 3,
            copies_min: 2,
        }
    }

    #[test]
    fn an_election_of_one_who_was_not_in_sync_and_a_step_back_are_found() {
        assert_eq!(broken_by(&config(4, 1), &config(5, 2)), None);
        assert_eq!(broken_by(&config(4, 1), &config(5, 3)), Some("a stale primary"));
        assert_eq!(broken_by(&config(4, 1), &config(6, 3)), None, "what lay between is not known");
        assert_eq!(broken_by(&config(4, 1), &config(4, 2)), Some("epoch went back"));
        let former = ChunkConfig { generation: Generation(3), ..config(5, 1) };
        assert_eq!(broken_by(&config(4, 1), &former), Some("epoch went back"));
    }

    #[test]
    fn a_storm_of_placements_is_found_and_twelve_a_minute_are_none() {
        let mut times = Placements::default();
        let every =
            |seconds: u64| (0_u64..40).map(move |at| Time::from_millis(at * seconds * 1_000));
        assert!(every(5).all(|at| !times.asked(at)));
        let mut times = Placements::default();
        assert!(every(4).any(|at| times.asked(at)));
    }
}
