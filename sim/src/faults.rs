//! What strikes the zone, drawn per seed and bounded to what Ashlar promises to survive: at most
//! as many nodes are down or cut off together as leave `copies_min` of every chunk, and each fault
//! heals.

use crate::control::ControlEvent;
use crate::member::MEMBERS;
use crate::net::Host;
use crate::world::{Event, World};
use ashlar_env::dice::Dice;
use ashlar_types::NodeId;
use ashlar_types::message::data::Network;
use std::time::Duration;

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Draws the next fault and schedules the one after it.
    Draw,
    /// The process of a node dies and comes back.
    Crash(NodeId),
    /// The process of a member dies and comes back; usually the leader's.
    CrashMember(u64),
    /// A node and a member lose each other.
    CutMember(NodeId, u64),
    /// Two members lose each other, one way.
    CutMembers(u64, u64),
    /// All processes die at once and come back.
    CrashAll,
    /// Two nodes lose each other on a network, one way or both.
    Cut(NodeId, NodeId, Network, bool),
    /// A node loses all nodes and members, on both networks; clients still reach it.
    Isolate(NodeId),
    /// The client loses a node.
    CutClient(NodeId),
    /// Every cut heals.
    Heal,
}

/// Longest time that a crashed node stays away.
const AWAY_MAX: Duration = Duration::from_secs(4);
/// Longest time between two faults.
const CALM_MAX: Duration = Duration::from_millis(2_500);

impl World {
    pub(crate) fn any_node(&mut self) -> Option<NodeId> {
        let count = self.nodes.len() as u64;
        let at = usize::try_from(self.dice.below(count)).ok()?;
        self.nodes.keys().nth(at).copied()
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Draw => self.draw_fault(),
            Fault::Crash(node) => {
                self.crash_node(node);
                let wait = self.draw(AWAY_MAX);
                self.schedule_in(wait, Event::Start { node });
            }
            Fault::CrashMember(member) => {
                self.crash_member(member);
                let wait = self.draw(AWAY_MAX);
                self.schedule_in(wait, Event::Control(ControlEvent::Start { member }));
            }
            Fault::CutMember(node, member) => {
                let (a, b) = (Host::Node(node), Host::Member(member));
                self.cut_for_a_while(a, b, Network::Primary);
            }
            Fault::CutMembers(a, b) => {
                self.cut_for_a_while(Host::Member(a), Host::Member(b), Network::Primary);
            }
            Fault::CrashAll => {
                for member in 1..=MEMBERS {
                    self.crash_member(member);
                    let wait = self.draw(Duration::from_millis(800));
                    self.schedule_in(wait, Event::Control(ControlEvent::Start { member }));
                }
                let all: Vec<NodeId> = self.nodes.keys().copied().collect();
                for node in all {
                    self.crash_node(node);
                    let wait = self.draw(Duration::from_millis(800));
                    self.schedule_in(wait, Event::Start { node });
                }
            }
            Fault::Cut(a, b, network, both) => {
                self.net.set_cut(Host::Node(a), Host::Node(b), network, true);
                if both {
                    self.net.set_cut(Host::Node(b), Host::Node(a), network, true);
                }
                let wait = self.draw(AWAY_MAX);
                self.schedule_in(wait, Event::Fault(Fault::Heal));
            }
            Fault::Isolate(node) => {
                let peers: Vec<Host> = self
                    .nodes
                    .keys()
                    .filter(|peer| **peer != node)
                    .map(|n| Host::Node(*n))
                    .collect();
                for other in peers.into_iter().chain((1..=MEMBERS).map(Host::Member)) {
                    for network in [Network::Primary, Network::Replication] {
                        self.net.set_cut(Host::Node(node), other, network, true);
                        self.net.set_cut(other, Host::Node(node), network, true);
                    }
                }
                let wait = self.draw(AWAY_MAX);
                self.schedule_in(wait, Event::Fault(Fault::Heal));
            }
            Fault::CutClient(node) => {
                self.net.set_cut(Host::Client, Host::Node(node), Network::Primary, true);
                let wait = self.draw(Duration::from_secs(1));
                self.schedule_in(wait, Event::Fault(Fault::Heal));
            }
            Fault::Heal => self.net.heal(),
        }
    }

    fn cut_for_a_while(&mut self, a: Host, b: Host, network: Network) {
        self.net.set_cut(a, b, network, true);
        let wait = self.draw(AWAY_MAX);
        self.schedule_in(wait, Event::Fault(Fault::Heal));
    }

    fn draw_fault(&mut self) {
        let (Some(a), Some(b)) = (self.any_node(), self.any_node()) else { return };
        let network = if self.dice.chance(2, 3) { Network::Primary } else { Network::Replication };
        let both = self.dice.chance(1, 2);
        let member = match self.control.leader() {
            Some(leader) if self.dice.chance(2, 3) => leader,
            _ => 1 + self.dice.below(MEMBERS),
        };
        let fault = match self.dice.below(20) {
            0..6 => Fault::Crash(a),
            6 => Fault::CrashAll,
            7..10 if a != b => Fault::Cut(a, b, network, both),
            10..13 => Fault::CrashMember(member),
            13 | 14 => Fault::CutMember(a, member),
            15 => Fault::CutMembers(member, member % MEMBERS + 1),
            16 | 17 => Fault::Isolate(a),
            _ => Fault::CutClient(a),
        };
        self.strike(fault);
        let wait = self.draw(CALM_MAX);
        self.schedule_in(wait, Event::Fault(Fault::Draw));
    }
}
