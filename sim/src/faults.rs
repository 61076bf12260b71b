//! What strikes the zone. Each fault heals by itself, and a swarm of them stays within what Ashlar
//! promises to survive: no fault takes data from more replicas than leave one whole in-sync copy.
//!
//! Each seed draws which kinds are on and how often they strike (swarm testing): a run with few
//! kinds reaches states that a run with all of them never does.

use crate::control::ControlEvent;
use crate::kinds::{FaultKind, Kinds};
use crate::member::MEMBERS;
use crate::net::{Host, Wire};
use crate::world::{Event, World};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_types::NodeId;
use ashlar_types::message::data::Network;
use std::time::Duration;

/// One fault, with everything about it decided.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Draws the next fault of the swarm and schedules the one after it.
    Draw,
    /// The process of a node dies and comes back.
    Crash { node: NodeId, away: Duration },
    /// The process of a member dies and comes back.
    CrashMember { member: u64, away: Duration },
    /// All processes die at once and come back, each within so long.
    CrashAll { away_max: Duration },
    /// Nothing passes on these wires.
    Cut { wires: Vec<Wire>, length: Duration },
    /// A cut ends.
    Mend { wires: Vec<Wire> },
    /// A process stands still.
    Pause { host: Host, length: Duration },
}

/// What one seed makes of the kinds that are allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swarm {
    /// Kinds that are on.
    pub(crate) kinds: Kinds,
    /// Longest time between two faults.
    calm_max: Duration,
    /// Longest time that a crashed process or a cut stays.
    away_max: Duration,
}

impl Swarm {
    /// Draws which kinds are on. What is allowed does not change what is drawn, so that a run with
    /// one kind less is as near to the first as it can be.
    pub(crate) fn draw(dice: &mut SeededDice, allowed: Kinds) -> Self {
        let all_on = dice.chance(1, 8);
        let mut kinds = Kinds::NONE;
        for kind in FaultKind::ALL {
            if dice.chance(1, 2) || all_on {
                kinds = kinds.with(kind);
            }
        }
        let calm_max = Duration::from_millis(300 + dice.below(3_000));
        let away_max = Duration::from_millis(500 + dice.below(6_000));
        Self { kinds: kinds.and(allowed), calm_max, away_max }
    }

    /// One of the kinds that are on, by weight.
    fn pick(&self, dice: &mut SeededDice) -> Option<FaultKind> {
        let sum: u64 = self.kinds.iter().map(FaultKind::weight).sum();
        let mut at = dice.below(sum);
        self.kinds.iter().find(|kind| {
            let here = at < kind.weight();
            at = at.saturating_sub(kind.weight());
            here
        })
    }
}

/// Both directions between two hosts on a network.
pub(crate) fn both_ways(a: Host, b: Host, network: Network) -> Vec<Wire> {
    vec![Wire { from: a, to: b, network }, Wire { from: b, to: a, network }]
}

impl World {
    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Draw => self.draw_fault(),
            Fault::Crash { node, away } => {
                self.crash_node(node);
                self.schedule_in(away, Event::Start { node });
            }
            Fault::CrashMember { member, away } => {
                self.crash_member(member);
                self.schedule_in(away, Event::Control(ControlEvent::Start { member }));
            }
            Fault::CrashAll { away_max } => {
                for member in 1..=MEMBERS {
                    let away = self.draw_fault_time(away_max);
                    self.strike(Fault::CrashMember { member, away });
                }
                let all: Vec<NodeId> = self.nodes.keys().copied().collect();
                for node in all {
                    let away = self.draw_fault_time(away_max);
                    self.strike(Fault::Crash { node, away });
                }
            }
            Fault::Cut { wires, length } => {
                for wire in &wires {
                    self.net.cut(*wire);
                }
                self.schedule_in(length, Event::Fault(Fault::Mend { wires }));
            }
            Fault::Mend { wires } => {
                for wire in wires {
                    self.net.mend(wire);
                }
            }
            Fault::Pause { host, length } => self.pause(host, length),
        }
    }

    /// A duration below `max`, from the dice of the faults.
    pub(crate) fn draw_fault_time(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.fault_dice.below(nanos))
    }

    fn any_node(&mut self) -> Option<NodeId> {
        let count = self.nodes.len() as u64;
        let at = usize::try_from(self.fault_dice.below(count)).ok()?;
        self.nodes.keys().nth(at).copied()
    }

    /// Usually the leader.
    fn any_member(&mut self) -> u64 {
        match self.control.leader() {
            Some(leader) if self.fault_dice.chance(2, 3) => leader,
            _ => 1 + self.fault_dice.below(MEMBERS),
        }
    }

    fn draw_fault(&mut self) {
        let swarm = self.swarm;
        let Some(kind) = swarm.pick(&mut self.fault_dice) else { return };
        if let Some(fault) = self.fault_of(kind, swarm.away_max) {
            self.tally.note(kind.name());
            self.strike(fault);
        }
        let wait = self.draw_fault_time(swarm.calm_max);
        self.schedule_in(wait, Event::Fault(Fault::Draw));
    }

    /// A fault of a kind, against whom the dice say.
    fn fault_of(&mut self, kind: FaultKind, away_max: Duration) -> Option<Fault> {
        let away = self.draw_fault_time(away_max);
        let node = self.any_node()?;
        Some(match kind {
            FaultKind::CrashNode => Fault::Crash { node, away },
            FaultKind::CrashMember => Fault::CrashMember { member: self.any_member(), away },
            FaultKind::CrashAll => Fault::CrashAll { away_max: Duration::from_millis(800) },
            FaultKind::CutNodes => {
                let other = self.any_node().filter(|other| *other != node)?;
                let primary_net = self.fault_dice.chance(2, 3);
                let network = if primary_net { Network::Primary } else { Network::Replication };
                let mut wires = both_ways(Host::Node(node), Host::Node(other), network);
                if self.fault_dice.chance(1, 2) {
                    wires.truncate(1);
                }
                Fault::Cut { wires, length: away }
            }
            FaultKind::Isolate => {
                let others = self.nodes.keys().filter(|n| **n != node).map(|n| Host::Node(*n));
                let wires = others
                    .chain((1..=MEMBERS).map(Host::Member))
                    .flat_map(|other| {
                        [Network::Primary, Network::Replication]
                            .into_iter()
                            .flat_map(move |net| both_ways(Host::Node(node), other, net))
                    })
                    .collect();
                Fault::Cut { wires, length: away }
            }
            FaultKind::CutClient => {
                let wire =
                    Wire { from: Host::Client, to: Host::Node(node), network: Network::Primary };
                Fault::Cut { wires: vec![wire], length: away }
            }
            FaultKind::CutMember => {
                let (from, to) = (Host::Node(node), Host::Member(self.any_member()));
                let wire = Wire { from, to, network: Network::Primary };
                Fault::Cut { wires: vec![wire], length: away }
            }
            FaultKind::CutMembers => {
                let member = self.any_member();
                let (from, to) = (Host::Member(member), Host::Member(member % MEMBERS + 1));
                let wire = Wire { from, to, network: Network::Primary };
                Fault::Cut { wires: vec![wire], length: away }
            }
            FaultKind::PauseNode => {
                Fault::Pause { host: Host::Node(node), length: self.draw_pause() }
            }
            FaultKind::PauseMember => {
                let host = Host::Member(self.any_member());
                Fault::Pause { host, length: self.draw_pause() }
            }
            FaultKind::PauseClient => {
                Fault::Pause { host: Host::Client, length: self.draw_pause() }
            }
            FaultKind::Loss => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_not_picked_and_the_rest_is_drawn_alike() {
        for seed in 0..200 {
            let draw = |allowed| Swarm::draw(&mut SeededDice::new(seed), allowed);
            let (all, some) = (draw(Kinds::ALL), draw(Kinds::ALL.without(FaultKind::CrashNode)));
            assert_eq!(all.kinds.without(FaultKind::CrashNode), some.kinds);
            assert_eq!(all.calm_max, some.calm_max);
            let picked = some.pick(&mut SeededDice::new(seed));
            assert_ne!(picked, Some(FaultKind::CrashNode));
            assert!(picked.is_none_or(|kind| all.kinds.contains(kind)));
        }
    }
}
