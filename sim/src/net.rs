//! Connections of the simulated networks: ordered while they live, losing what is in flight when
//! they break. That is what TCP promises, so loss, partitions and crashes all end as broken
//! connections; a cut that nobody notices at once drops silently first.

use ashlar_env::dice::Dice;
use ashlar_types::message::data::Network;
use ashlar_types::{NodeId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    /// A storage node.
    Node(NodeId),
    /// A control-plane member.
    Member(u64),
    /// The client.
    Client,
}

/// A direction of a connection, by who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wire {
    /// Sender.
    pub(crate) from: Host,
    /// Receiver.
    pub(crate) to: Host,
    /// Over which network (control traffic: primary).
    pub(crate) network: Network,
}

impl Wire {
    /// The other direction.
    pub(crate) const fn back(self) -> Self {
        Self { from: self.to, to: self.from, network: self.network }
    }
}

#[derive(Debug)]
struct Link {
    /// Number of the last connection.
    connection: u64,
    /// It lives.
    up: bool,
    /// It is broken, but what was in flight still reaches the receiver.
    drains: bool,
    /// The last delivery scheduled on it: later ones do not overtake.
    last_delivery: Time,
}

/// How hostile the networks are; drawn per seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Shortest delay of a message.
    pub(crate) delay_min: Duration,
    /// Longest delay of a message.
    pub(crate) delay_max: Duration,
    /// One message in so many is lost, which breaks its connection; 0: never.
    pub(crate) loss_one_in: u64,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Net {
    links: BTreeMap<Wire, Link>,
    /// Wires on which nothing passes at present, each with the number of its cuts.
    cuts: BTreeMap<Wire, u32>,
    next_connection: u64,
    pub(crate) weather: Weather,
}

/// What becomes of a message.
pub(crate) enum Fate {
    /// Delivered at this time, if the connection still lives then.
    Deliver { at: Time, connection: u64 },
    /// Lost, and with it the connection; the sender will notice.
    Broken,
    /// The connection does not exist.
    NoConnection,
}

impl Net {
    pub(crate) fn new(weather: Weather) -> Self {
        Self { links: BTreeMap::new(), cuts: BTreeMap::new(), next_connection: 0, weather }
    }

    /// A delay drawn for one message.
    pub(crate) fn delay(&self, dice: &mut dyn Dice) -> Duration {
        let span = self.weather.delay_max.saturating_sub(self.weather.delay_min);
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        // Squared: most messages are fast, a few are slow.
        let share = dice.below(1_000);
        self.weather.delay_min + Duration::from_nanos(nanos / 1_000 * (share * share / 1_000))
    }

    /// A connection comes up: what an earlier one still carried is not read any more.
    pub(crate) fn connect(&mut self, now: Time, wire: Wire) -> u64 {
        self.next_connection += 1;
        let connection = self.next_connection;
        let link = Link { connection, up: true, drains: false, last_delivery: now };
        self.links.insert(wire, link);
        connection
    }

    /// The number of the living connection.
    pub(crate) fn connection(&self, wire: Wire) -> Option<u64> {
        self.links.get(&wire).filter(|link| link.up).map(|link| link.connection)
    }

    /// Whether what was sent on a connection still reaches the receiver's process.
    pub(crate) fn delivers(&self, wire: Wire, connection: u64) -> bool {
        self.links
            .get(&wire)
            .is_some_and(|link| link.connection == connection && (link.up || link.drains))
    }

    /// The connection breaks; what is in flight still arrives if it `drains`, and until the next
    /// connection is made.
    pub(crate) fn disconnect(&mut self, wire: Wire, drains: bool) {
        if let Some(link) = self.links.get_mut(&wire) {
            link.drains = drains && (link.up || link.drains);
            link.up = false;
        }
    }

    /// The receiver's process is gone: nothing of what was sent reaches it.
    pub(crate) fn lose_all_to(&mut self, host: Host) {
        for (_, link) in self.links.iter_mut().filter(|(wire, _)| wire.to == host) {
            link.drains = false;
        }
    }

    /// Every living connection that touches a host.
    pub(crate) fn wires_of(&self, host: Host) -> Vec<Wire> {
        let touches = |wire: &Wire| wire.from == host || wire.to == host;
        self.links
            .iter()
            .filter(|(wire, link)| link.up && touches(wire))
            .map(|(wire, _)| *wire)
            .collect()
    }

    /// Lets nothing pass on a wire until it is mended as often as it was cut.
    pub(crate) fn cut(&mut self, wire: Wire) {
        *self.cuts.entry(wire).or_default() += 1;
    }

    /// Takes one cut back.
    pub(crate) fn mend(&mut self, wire: Wire) {
        if let Some(count) = self.cuts.get_mut(&wire) {
            *count -= 1;
            if *count == 0 {
                self.cuts.remove(&wire);
            }
        }
    }

    /// Heals every cut.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Whether nothing passes that way.
    pub(crate) fn is_cut(&self, wire: Wire) -> bool {
        self.cuts.contains_key(&wire)
    }

    /// Decides what becomes of a message on `wire`.
    pub(crate) fn send(&mut self, now: Time, wire: Wire, dice: &mut dyn Dice) -> Fate {
        let delay = self.delay(dice);
        let lost = self.weather.loss_one_in > 0 && dice.chance(1, self.weather.loss_one_in);
        let cut = self.is_cut(wire);
        let Some(link) = self.links.get_mut(&wire) else { return Fate::NoConnection };
        if !link.up {
            return Fate::NoConnection;
        }
        if lost || cut {
            // What was sent before the loss still arrives.
            link.up = false;
            link.drains = true;
            return Fate::Broken;
        }
        let connection = link.connection;
        let at = (now + delay).max(link.last_delivery);
        link.last_delivery = at;
        Fate::Deliver { at, connection }
    }
}
