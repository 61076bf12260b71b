//! Beyond the promise: more is lost than Ashlar promises to survive, and for ever.
//!
//! What comes back is not waited for then. What is demanded instead:
//! - nobody is shown wrong bytes, and no write that was acknowledged reads as older: the rules of
//!   `judge.rs` hold on;
//! - `not refused`: a chunk is served, or the zone's status names it as stuck, with the cause, who must
//!   come back, and what happens next; and a request waits only for a chunk that is not served. Without
//!   a control plane nothing can be named, and every chunk that has enough copies, all of them up, is
//!   served.
//!
//! Scenarios say what is lost. In a swarm (`ashlar sim sweep --beyond`) each seed draws one [`Loss`] and
//! its moment, among the usual faults, and whether an operator has a stale replica take over then.

use crate::faults::Fault;
use crate::node::{End, SimNode};
use crate::run::Sabotage;
use crate::world::{Event, World};
use ashlar_controlplane::member::{Reply, Request};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_proto::v1;
use ashlar_types::NodeId;
use ashlar_types::{ChunkConfig, ChunkId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who is away for so long never comes back.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(3_600);
/// Longest time that a node is away whose disk is exchanged, or has lost records.
const AWAY_MAX: Duration = Duration::from_secs(2);
/// Longest time until an operator acts.
const OPERATOR_MAX: Duration = Duration::from_secs(3);
/// Blocks that rot together.
const BLOCKS: u32 = 12;

/// What a seed loses that is not promised to be survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All nodes with an in-sync copy of the first chunk come back with empty disks.
    Disks,
    /// They never come back.
    Holders,
    /// They come back without some records that they had synced.
    Records,
    /// Blocks of it rot in every in-sync copy.
    Blocks,
    /// Two of three members never come back.
    Majority,
    /// No member does.
    Members,
}

impl Loss {
    pub(crate) const ALL: [Self; 6] =
        [Self::Disks, Self::Holders, Self::Records, Self::Blocks, Self::Majority, Self::Members];

    /// Its name in the tally of a run.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Disks => "all disks of a chunk lost",
            Self::Holders => "all nodes of a chunk lost",
            Self::Records => "records lost in all copies",
            Self::Blocks => "blocks rotten everywhere",
            Self::Majority => "majority of members lost",
            Self::Members => "all members lost",
        }
    }

    /// Warnings and errors that are logged when it strikes.
    const fn lines(self) -> &'static [&'static str] {
        match self {
            Self::Disks => &[
                "the node comes without a store",
                "a node is refused",
                "the control plane refuses this node",
            ],
            Self::Records => &["the store has lost part of this replica"],
            Self::Blocks => &[
                "blocks at rest fail their checksum",
                "a read of the store failed",
                "Unreadable",
                "Repaired",
                "no in-sync replica can read these blocks",
            ],
            Self::Majority | Self::Members => {
                &["stepped down to follower since quorum is not active"]
            }
            Self::Holders => &[],
        }
    }
}

/// Lines of an operator's salvage, and of a node whose store it revoked.
const OF_A_SALVAGE: &[&str] = &[
    "a salvage is proposed",
    "the control plane refuses this node",
    "a node is refused",
    "the node comes without a store",
];

/// Who never comes back.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) nodes: BTreeSet<NodeId>,
    pub(crate) members: BTreeSet<u64>,
    /// What the seed has drawn.
    drawn: Option<Loss>,
}

impl Lost {
    /// Whether the seed loses more than is promised to be survived.
    pub(crate) const fn is_drawn(&self) -> bool {
        self.drawn.is_some()
    }
}

impl World {
    /// Draws what is lost, when, and whether an operator acts.
    pub(crate) fn schedule_loss(&mut self, seed: u64, storm: Duration) {
        let mut dice = SeededDice::stream(seed, "loss");
        let drawn = usize::try_from(dice.below(Loss::ALL.len() as u64)).unwrap_or(0);
        let Some(loss) = Loss::ALL.get(drawn).copied() else { return };
        self.lost.drawn = Some(loss);
        let millis = u64::try_from(storm.as_millis()).unwrap_or(u64::MAX);
        let at = Duration::from_millis(300 + dice.below(millis.saturating_sub(300).max(1)));
        self.schedule_in(at, Event::Fault(Fault::Beyond { loss }));
        self.lines_allowed.extend(loss.lines().iter().map(|text| (*text).to_owned()));
        if matches!(loss, Loss::Disks | Loss::Holders | Loss::Records) && dice.chance(1, 2) {
            let later = Duration::from_millis(500 + dice.below(2_000)).min(OPERATOR_MAX);
            self.schedule_in(at + later, Event::Fault(Fault::Salvage));
            self.lines_allowed.extend(OF_A_SALVAGE.iter().map(|text| (*text).to_owned()));
        }
    }

    /// More is lost than is promised to be survived.
    pub(crate) fn lose(&mut self, loss: Loss) {
        let config = self.control.configs().next();
        let holders: Vec<NodeId> = config
            .map(|config| config.in_sync.iter().map(|replica| replica.node).collect())
            .unwrap_or_default();
        let members = self.control.ids();
        match loss {
            // It is noted where it struck: only a block that is written everywhere.
            Loss::Blocks => {
                for _ in 0..BLOCKS {
                    self.strike(Fault::RotEverywhere);
                }
                return;
            }
            Loss::Disks | Loss::Records => {
                for node in holders {
                    let away = self.draw_fault_time(AWAY_MAX);
                    self.strike(match loss {
                        Loss::Disks => Fault::NewDisk { node, away },
                        _records => Fault::LoseRecords { node, away },
                    });
                }
            }
            Loss::Holders => {
                for node in holders {
                    self.lost.nodes.insert(node);
                    self.end_node(node, End::Killed);
                }
            }
            Loss::Majority | Loss::Members => {
                let most = members.len() / 2 + 1;
                let gone = if loss == Loss::Majority { most } else { members.len() };
                for member in members.into_iter().take(gone) {
                    self.lost.members.insert(member);
                    self.crash_member(member);
                }
            }
        }
        self.tally.note(loss.name());
    }

    /// What the seed was to lose must have been lost.
    fn judge_loss(&mut self) {
        let missed = self.lost.drawn.filter(|loss| self.tally.of(loss.name()) == 0);
        // Which blocks are written in every copy is up to the client.
        if let Some(loss) = missed.filter(|loss| *loss != Loss::Blocks) {
            self.judge.violated(self.now, "fault did not strike", loss.name().to_owned());
        }
    }

    /// No more faults; what was lost stays lost. Judges what is left after so long.
    pub(crate) fn end_beyond(&mut self, calm: Duration) {
        self.quiet_down();
        self.judge_loss();
        let until = self.now + calm;
        self.run_until(until, |_| false);
        if self.judge.violations.is_empty() {
            self.judge_refusal();
        }
    }

    fn judge_refusal(&mut self) {
        self.tally.measure("members lost", self.lost.members.len() as u64);
        let leads = self.control.leader().is_some();
        let stuck = if leads { self.named_stuck() } else { BTreeMap::new() };
        // Of what was ever committed: there may be nobody left to ask.
        let configs: Vec<ChunkConfig> = self.watch.configs().cloned().collect();
        let waits = self.client.as_ref().map(|client| client.waits_for()).unwrap_or_default();
        let up = |config: &ChunkConfig| {
            // With fewer copies than writes need, only a control plane can help.
            let enough = config.may_acknowledge();
            // Who was elected just before the last member was lost, and not told: nobody else tells it.
            let primary = self.nodes.get(&config.primary.node).and_then(SimNode::core);
            let known = primary.and_then(|core| core.config(config.chunk));
            enough
                && known.is_some_and(|known| known.epoch >= config.epoch)
                && config.in_sync.iter().all(|replica| {
                    let node = self.nodes.get(&replica.node);
                    node.is_some_and(|node| node.is_up() && node.has_store_of(*replica))
                })
        };
        let mut broken = Vec::new();
        for config in &configs {
            let served = self.is_served(config);
            let named = stuck.get(&config.chunk).filter(|chunk| {
                !chunk.cause.is_empty()
                    && !chunk.next_action.is_empty()
                    && !chunk.blocked_on.is_empty()
            });
            let what = match (served, named) {
                // Without a control plane nobody who is gone is removed, and writes wait for it.
                (true, _)
                    if (leads || up(config))
                        && waits.contains(&u64::from(config.chunk.index.0)) =>
                {
                    "it is served, and a request waits for it"
                }
                (true, _) => "",
                (false, Some(_)) => {
                    self.tally.note("chunks stuck and named");
                    ""
                }
                (false, None) if leads => "it is not served, and nothing says why",
                (false, None) if up(config) => "all its copies are up, and it is not served",
                (false, None) => "",
            };
            if what.is_empty() {
                continue;
            }
            broken.push(format!("{}: {what}; {config:?}", config.chunk));
        }
        for config in &configs {
            if self.is_served(config) {
                self.tally.note("chunks served");
            }
        }
        for detail in broken {
            self.judge.violated(self.now, "not refused", detail);
        }
    }

    /// What the zone's status says of chunks that are stuck.
    fn named_stuck(&mut self) -> BTreeMap<ChunkId, v1::StuckChunk> {
        let request = Request::GetStatus(v1::GetStatusRequest::default());
        let Ok(Reply::GetStatus(status)) = self.ask_until_done(&request) else {
            return BTreeMap::new();
        };
        if self.sabotage == Sabotage::HideStuck {
            return BTreeMap::new();
        }
        let named = status.stuck.into_iter().filter_map(|chunk| {
            let id = ChunkId::try_from(chunk.chunk.as_ref()?).ok()?;
            Some((id, chunk))
        });
        named.collect()
    }
}
