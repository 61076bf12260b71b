//! What strikes the zone, drawn per seed and bounded to what Ashlar promises to survive: at most
//! as many nodes are down or cut off together as leave `copies_min` of every chunk, and each fault
//! heals.

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
    /// All processes die at once and come back.
    CrashAll,
    /// Two nodes lose each other on a network, one way or both.
    Cut(NodeId, NodeId, Network, bool),
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
    fn any_node(&mut self) -> Option<NodeId> {
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
            Fault::CrashAll => {
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
            Fault::CutClient(node) => {
                self.net.set_cut(Host::Client, Host::Node(node), Network::Primary, true);
                let wait = self.draw(Duration::from_secs(1));
                self.schedule_in(wait, Event::Fault(Fault::Heal));
            }
            Fault::Heal => self.net.heal(),
        }
    }

    fn draw_fault(&mut self) {
        let (Some(a), Some(b)) = (self.any_node(), self.any_node()) else { return };
        let network = if self.dice.chance(2, 3) { Network::Primary } else { Network::Replication };
        let both = self.dice.chance(1, 2);
        let fault = match self.dice.below(12) {
            0..6 => Fault::Crash(a),
            6 => Fault::CrashAll,
            7..10 if a != b => Fault::Cut(a, b, network, both),
            _ => Fault::CutClient(a),
        };
        self.strike(fault);
        let wait = self.draw(CALM_MAX);
        self.schedule_in(wait, Event::Fault(Fault::Draw));
    }
}
