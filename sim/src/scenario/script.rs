//! Plays the steps of a scenario, and holds it against what it expected.

use super::{Networks, Scenario, Step, Verb, Way};
use crate::disk::WriteFault;
use crate::faults::Fault;
use crate::net::{Host, Rough, Wire};
use crate::node::SimNode;
use crate::run::Sabotage;
use crate::world::World;
use ashlar_types::message::data::Network;
use ashlar_types::{ChunkId, ChunkIndex, NodeId, Time};
use serde::Deserialize;
use std::time::Duration;

/// A moment of the protocol, of the first chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Moment {
    /// The primary has sent a write to its secondaries; its own journal has not taken it.
    Mirrored,
    /// The primary's own journal has a write that no secondary has acknowledged.
    Journalled,
    /// Every in-sync replica has a write; its client is about to be told.
    Committed,
    /// A new primary has begun to open its term.
    Opening,
    /// A learner takes copies.
    Filling,
    /// A promotion was proposed.
    Proposed,
    /// Another primary was elected.
    Elected,
}

/// A step that waits for its next strike.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    step: usize,
    struck: u32,
    due: Time,
}

/// The steps that are not over.
#[derive(Debug)]
pub(crate) struct Script {
    steps: Vec<Step>,
    waiting: Vec<Waiting>,
    moments: Vec<Moment>,
    /// Nothing strikes any more.
    over: bool,
}

impl Script {
    pub(crate) fn new(steps: &[Step], begun: Time) -> Self {
        let waiting = steps
            .iter()
            .enumerate()
            .map(|(step, text)| Waiting { step, struck: 0, due: begun + text.at })
            .collect();
        Self { steps: steps.to_vec(), waiting, moments: Vec::new(), over: false }
    }

    /// The time of the steps has passed.
    pub(crate) const fn end(&mut self) {
        self.over = true;
    }

    /// What has not struck as often as it should, in words.
    fn unreached(&self) -> Vec<String> {
        let text = |waiting: &Waiting| {
            let step = self.steps.get(waiting.step);
            let verb = step.map(|step| (step.verb, step.of, step.times));
            format!("step {} {verb:?} struck {} times", waiting.step + 1, waiting.struck)
        };
        self.waiting.iter().map(text).collect()
    }
}

impl World {
    /// Something happened that a step may wait for.
    pub(crate) fn moment(&mut self, chunk: ChunkId, moment: Moment) {
        if let Some(script) = &mut self.script
            && chunk.index == ChunkIndex(0)
        {
            script.moments.push(moment);
        }
    }

    /// Lets every step strike that is due. Called after each event.
    pub(crate) fn play(&mut self) {
        let Some(mut script) = self.script.take() else { return };
        let moments = core::mem::take(&mut script.moments);
        if script.over {
            self.script = Some(script);
            return;
        }
        let (now, busy) = (self.now, self.is_busy());
        let mut faults = Vec::new();
        script.waiting.retain_mut(|waiting| {
            let Some(step) = script.steps.get(waiting.step) else { return false };
            let ready = waiting.due <= now
                && step.on.is_none_or(|moment| moments.contains(&moment))
                && (busy || !step.busy);
            let struck = if ready { self.faults_of(step, waiting.struck) } else { Vec::new() };
            if struck.is_empty() {
                return true;
            }
            faults.extend(struck);
            waiting.struck += 1;
            waiting.due = now + step.every;
            waiting.struck < step.times
        });
        self.script = Some(script);
        let struck = !faults.is_empty();
        for fault in faults {
            self.journal.remark(now, &format!("strikes: {fault:?}"));
            self.tally.note(fault.name());
            self.note_strike();
            if self.sabotage != Sabotage::IdleFaults {
                self.strike(fault);
            }
        }
        if struck {
            self.note_holders_down();
        }
    }

    /// Whether writes of the first chunk are on their way.
    fn is_busy(&self) -> bool {
        let waits = self.client.as_ref().is_some_and(|client| client.unfinished() > 0);
        let uncommitted = |node: &SimNode| {
            node.core().is_some_and(|core| {
                core.reports().any(|report| {
                    report.chunk.index == ChunkIndex(0)
                        && core.durable(report.chunk).is_some_and(|d| !d.uncommitted.is_empty())
                })
            })
        };
        waits && self.nodes.values().any(uncommitted)
    }

    /// What a step means now; nothing, if its target is not there.
    fn faults_of(&self, step: &Step, turn: u32) -> Vec<Fault> {
        let targets = self.aim(step.of, turn);
        let length = step.length;
        match step.verb {
            Verb::Cut => self.wires_of(step, &targets, &|wires| Fault::Cut { wires, length }),
            Verb::Clog => {
                self.wires_of(step, &targets, &|wires| Fault::Clog { wires, length, breaks: false })
            }
            Verb::HalfOpen => {
                self.wires_of(step, &targets, &|wires| Fault::Clog { wires, length, breaks: true })
            }
            Verb::SlowWires => {
                let factor = u32::try_from(step.amount).unwrap_or(u32::MAX);
                let rough = Rough { factor, loss_one_in: 0 };
                self.wires_of(step, &targets, &|wires| Fault::Roughen { wires, rough, length })
            }
            Verb::LoseOnWires => {
                let rough = Rough { factor: 1, loss_one_in: step.amount };
                self.wires_of(step, &targets, &|wires| Fault::Roughen { wires, rough, length })
            }
            Verb::Lose => vec![Fault::Lose { one_in: step.amount, length }],
            Verb::Reattach => vec![Fault::Reattach { length }],
            Verb::RestartClient => vec![Fault::RestartClient],
            Verb::Salvage => vec![Fault::Salvage],
            Verb::Grow => vec![Fault::Grow { chunks: step.amount }],
            Verb::CutOff => vec![Fault::CutOff { length }],
            Verb::CancelDrain => {
                self.drains.nodes().map(|node| Fault::Drain { node, cancel: true }).collect()
            }
            Verb::Join => self.late.iter().map(|node| Fault::Join { node: *node }).collect(),
            Verb::RotEverywhere => vec![Fault::RotEverywhere],
            Verb::PutDisk => self.disk_put(step, &targets),
            verb => targets
                .iter()
                .filter_map(|host| match host {
                    Host::Node(node) => self.of_node(verb, *node, step),
                    Host::Member(member) => Self::of_member(verb, *member, step),
                    Host::Client => Self::of_any(verb, *host, step),
                })
                .collect(),
        }
    }

    fn of_node(&self, verb: Verb, node: NodeId, step: &Step) -> Option<Fault> {
        if !self.nodes.get(&node).is_some_and(SimNode::is_up) {
            return None;
        }
        let (away, length) = (step.length, step.length);
        let host = Host::Node(node);
        match verb {
            Verb::Kill => Some(Fault::Crash { node, away }),
            Verb::Stop => Some(Fault::Stop { node, away }),
            Verb::PowerOff => Some(Fault::PowerOff { node, away }),
            Verb::Tear => Some(Fault::Tear { node, away }),
            Verb::Slow => {
                Some(Fault::Slow { host, factor: u32::try_from(step.amount).ok()?, length })
            }
            Verb::StallDisk => Some(Fault::StallDisk { node, length }),
            Verb::StallCore => Some(Fault::StallCore { node, length }),
            Verb::FailReads => Some(Fault::FailReads { node, length }),
            Verb::FailSync => Some(Fault::FailSync { node, away }),
            Verb::Rot => Some(Fault::Rot { node }),
            Verb::LoseWrite => Some(Fault::SpoilWrite { node, how: WriteFault::Lost }),
            Verb::MisdirectWrite => Some(Fault::SpoilWrite { node, how: WriteFault::Misdirected }),
            Verb::ShowOld => Some(Fault::ShowOld { node, length }),
            Verb::Differ => Some(Fault::Differ { node }),
            Verb::FillDisk => Some(Fault::FillDisk { node, length }),
            Verb::ShortOfSpace => Some(Fault::ShortOfSpace { node, length }),
            Verb::LoseRecords => Some(Fault::LoseRecords { node, away }),
            Verb::NewDisk => Some(Fault::NewDisk { node, away }),
            Verb::Drain => Some(Fault::Drain { node, cancel: false }),
            Verb::Drift => Some(Fault::Drift { node, permille: i64::try_from(step.amount).ok()? }),
            of_any => Self::of_any(of_any, host, step),
        }
    }

    fn of_member(verb: Verb, member: u64, step: &Step) -> Option<Fault> {
        let host = Host::Member(member);
        let (away, length) = (step.length, step.length);
        match verb {
            Verb::Kill | Verb::PowerOff => Some(Fault::CrashMember { member, away }),
            Verb::ReplaceMember => Some(Fault::ReplaceMember { member }),
            Verb::RotLog => Some(Fault::RotLog { member, away }),
            Verb::Tear => Some(Fault::TearLog { member }),
            Verb::FillDisk => Some(Fault::FillLog { member, length }),
            Verb::Slow => {
                Some(Fault::Slow { host, factor: u32::try_from(step.amount).ok()?, length })
            }
            Verb::JumpClock => {
                let seconds = i64::try_from(step.amount).ok()?;
                Some(Fault::JumpClock { member, seconds, length })
            }
            of_any => Self::of_any(of_any, host, step),
        }
    }

    /// What strikes every kind of process alike.
    fn of_any(verb: Verb, host: Host, step: &Step) -> Option<Fault> {
        let length = step.length;
        match verb {
            Verb::Pause => Some(Fault::Pause { host, length }),
            Verb::NoDescriptors => Some(Fault::NoDescriptors { host, length }),
            _not_of_all => None,
        }
    }

    /// The wires between the targets and the other side of a step.
    fn wires_of(
        &self,
        step: &Step,
        targets: &[Host],
        fault: &dyn Fn(Vec<Wire>) -> Fault,
    ) -> Vec<Fault> {
        let others = self.aim(step.from, 0);
        let networks: &[Network] = match step.networks {
            Networks::Both => &[Network::Primary, Network::Replication],
            Networks::Primary => &[Network::Primary],
            Networks::Replication => &[Network::Replication],
        };
        let mut wires = Vec::new();
        for target in targets {
            // Among themselves, if both sides are the same; otherwise the targets keep each other.
            let alike = step.of == step.from;
            let other_side =
                |other: &&Host| *other != target && (alike || !targets.contains(other));
            for other in others.iter().filter(other_side) {
                for network in networks {
                    let out = Wire { from: *target, to: *other, network: *network };
                    match step.way {
                        Way::Both => wires.extend([out, out.back()]),
                        Way::Out => wires.push(out),
                        Way::In => wires.push(out.back()),
                    }
                }
            }
        }
        if wires.is_empty() { Vec::new() } else { vec![fault(wires)] }
    }

    /// Holds the run against what its scenario expected.
    pub(crate) fn judge_script(&mut self, scenario: &Scenario) {
        let unreached = self.script.as_ref().map(Script::unreached).unwrap_or_default();
        for text in unreached {
            self.judge.violated(self.now, "fault did not strike", text);
        }
        for (what, least) in &scenario.expect.at_least {
            let count = self.tally.of(what);
            if count < *least {
                let detail = format!("{what}: {count}, at least {least} expected");
                self.judge.violated(self.now, "fault showed nothing", detail);
            }
        }
        for (what, most) in &scenario.expect.at_most {
            let count = self.tally.of(what);
            if count > *most {
                let detail = format!("{what}: {count}, at most {most} allowed");
                self.judge.violated(self.now, "more than allowed", detail);
            }
        }
    }
}

/// Longest time that the steps need, so that a storm is never shorter than its script.
pub(crate) fn longest(steps: &[Step]) -> Duration {
    let end = |step: &Step| step.at + step.every.saturating_mul(step.times.saturating_sub(1));
    steps.iter().map(end).max().unwrap_or_default()
}
