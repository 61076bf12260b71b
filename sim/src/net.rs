//! Connections of the simulated networks: ordered while they live, losing what is in flight when
//! they break. That is what TCP promises, so loss, partitions and crashes all end as broken
//! connections; a cut that nobody notices at once drops silently first.

use ashlar_env::dice::Dice;
use ashlar_types::message::data::Network;
use ashlar_types::{NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};
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

#[derive(Debug, Default)]
struct Link {
    /// Number of the living connection; none while it is down.
    connection: Option<u64>,
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
    /// Directed pairs between which nothing passes at present.
    cut: BTreeSet<(Host, Host, Network)>,
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
        Self { links: BTreeMap::new(), cut: BTreeSet::new(), next_connection: 0, weather }
    }

    /// A delay drawn for one message.
    pub(crate) fn delay(&self, dice: &mut dyn Dice) -> Duration {
        let span = self.weather.delay_max.saturating_sub(self.weather.delay_min);
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        // Squared: most messages are fast, a few are slow.
        let share = dice.below(1_000);
        self.weather.delay_min + Duration::from_nanos(nanos / 1_000 * (share * share / 1_000))
    }

    /// A connection comes up; both directions of `wire` are new.
    pub(crate) fn connect(&mut self, now: Time, wire: Wire) -> u64 {
        self.next_connection += 1;
        let connection = self.next_connection;
        self.links.insert(wire, Link { connection: Some(connection), last_delivery: now });
        connection
    }

    /// The number of the living connection.
    pub(crate) fn connection(&self, wire: Wire) -> Option<u64> {
        self.links.get(&wire).and_then(|link| link.connection)
    }

    /// The connection breaks.
    pub(crate) fn disconnect(&mut self, wire: Wire) {
        if let Some(link) = self.links.get_mut(&wire) {
            link.connection = None;
        }
    }

    /// Every living connection that touches a host.
    pub(crate) fn wires_of(&self, host: Host) -> Vec<Wire> {
        let touches = |wire: &Wire| wire.from == host || wire.to == host;
        self.links
            .iter()
            .filter(|(wire, link)| link.connection.is_some() && touches(wire))
            .map(|(wire, _)| *wire)
            .collect()
    }

    /// Cuts or heals everything between two hosts, one way, on one network.
    pub(crate) fn set_cut(&mut self, from: Host, to: Host, network: Network, cut: bool) {
        if cut {
            self.cut.insert((from, to, network));
        } else {
            self.cut.remove(&(from, to, network));
        }
    }

    /// Heals every cut.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether nothing passes that way.
    pub(crate) fn is_cut(&self, wire: Wire) -> bool {
        self.cut.contains(&(wire.from, wire.to, wire.network))
    }

    /// Decides what becomes of a message on `wire`.
    pub(crate) fn send(&mut self, now: Time, wire: Wire, dice: &mut dyn Dice) -> Fate {
        let delay = self.delay(dice);
        let lost = self.weather.loss_one_in > 0 && dice.chance(1, self.weather.loss_one_in);
        let cut = self.is_cut(wire);
        let Some(link) = self.links.get_mut(&wire) else { return Fate::NoConnection };
        let Some(connection) = link.connection else { return Fate::NoConnection };
        if lost || cut {
            link.connection = None;
            return Fate::Broken;
        }
        let at = (now + delay).max(link.last_delivery);
        link.last_delivery = at;
        Fate::Deliver { at, connection }
    }
}
