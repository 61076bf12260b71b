//! Processes that stand still (SIGSTOP) and go on as if nothing had happened.
//!
//! A paused process gets nothing: its frames wait in the kernel, its timers and the answers of its
//! disk come due unseen. When it goes on it gets all of that at once, in the order in which it
//! came, except that its own tick may come before everything else: a real process's timer fires at
//! the first wake-up, while the sockets still have to be read. The kernel goes on answering for
//! it: ports accept, connections stay up.

use crate::net::Host;
use crate::node::SimNode;
use crate::world::{Event, World};
use ashlar_env::dice::Dice;
use ashlar_types::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks at a paused process that something waits for.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(40);

/// Longest of each class of pauses: shorter and longer than a beat, a lease, a heartbeat's
/// time-out, every connection's patience.
const CLASSES_MAX_MILLIS: [u64; 5] = [100, 500, 1_500, 3_000, 6_000];
/// No pause is shorter.
const SHORTEST_MILLIS: u64 = 10;

#[derive(Debug)]
struct Paused {
    number: u64,
    waiting: Vec<Event>,
}

/// Who stands still.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    hosts: BTreeMap<Host, Paused>,
    count: u64,
}

impl Pauses {
    pub(crate) fn holds(&self, host: Host) -> bool {
        self.hosts.contains_key(&host)
    }

    /// The process is gone, and with it what waited for it.
    pub(crate) fn forget(&mut self, host: Host) {
        self.hosts.remove(&host);
    }
}

impl World {
    pub(crate) fn is_paused(&self, host: Host) -> bool {
        self.pauses.holds(host)
    }

    /// How long the next pause lasts: each class equally often.
    pub(crate) fn draw_pause(&mut self) -> Duration {
        let class = self.fault_dice.below(CLASSES_MAX_MILLIS.len() as u64);
        let longest = usize::try_from(class).ok().and_then(|at| CLASSES_MAX_MILLIS.get(at));
        let span = longest.copied().unwrap_or(SHORTEST_MILLIS) - SHORTEST_MILLIS;
        Duration::from_millis(SHORTEST_MILLIS + self.fault_dice.below(span + 1))
    }

    /// Keeps what happens to a paused host. A frame that has arrived waits in the kernel, also when
    /// its connection ends meanwhile.
    pub(crate) fn keep_for(&mut self, host: Host, event: Event) {
        let event = match event {
            Event::Deliver { wire, connection, message } => {
                if !self.net.delivers(wire, connection) {
                    return;
                }
                Event::Arrived { wire, connection, message }
            }
            other => other,
        };
        if let Some(paused) = self.pauses.hosts.get_mut(&host) {
            paused.waiting.push(event);
            self.tally.note("events that waited for a paused process");
        }
    }

    /// Stops a host for so long; one that stands still already stands still for at least so long.
    pub(crate) fn pause(&mut self, host: Host, length: Duration) {
        self.pauses.count += 1;
        let number = self.pauses.count;
        let paused = self.pauses.hosts.entry(host);
        paused.or_insert(Paused { number, waiting: Vec::new() }).number = number;
        self.schedule_in(length, Event::Resume { host, number });
        self.control_misses(host);
    }

    /// A host goes on, unless a later pause holds it.
    pub(crate) fn resume(&mut self, host: Host, number: u64) {
        if self.pauses.hosts.get(&host).is_some_and(|paused| paused.number == number) {
            self.wake(host);
        }
    }

    /// Everything that waited happens now.
    fn wake(&mut self, host: Host) {
        let Some(paused) = self.pauses.hosts.remove(&host) else { return };
        let mut waiting = paused.waiting;
        if self.fault_dice.chance(1, 2)
            && let Some(at) = waiting.iter().position(Event::is_tick)
        {
            let tick = waiting.remove(at);
            waiting.insert(0, tick);
        }
        for event in waiting {
            self.carry_out(event);
        }
    }

    /// Whether a node's data core stands still while it goes on beating.
    pub(crate) fn is_core_stalled(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(SimNode::is_stalled)
    }

    /// A data core goes on, unless a later stall holds it: what waited for it happens now.
    pub(crate) fn core_goes_on(&mut self, id: NodeId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let waited = node.go_on(now);
        self.tally.add_to("inputs that waited for a stalled core", waited.len() as u64);
        for input in waited {
            self.input(id, input);
        }
    }

    /// Every data core goes on.
    pub(crate) fn all_cores_go_on(&mut self) {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in all {
            let now = self.now;
            self.nodes.get_mut(&id).into_iter().for_each(|node| node.stall_ends(now));
            self.core_goes_on(id);
        }
    }

    /// Every host goes on.
    pub(crate) fn wake_all(&mut self) {
        let hosts: Vec<Host> = self.pauses.hosts.keys().copied().collect();
        for host in hosts {
            self.wake(host);
        }
    }
}
