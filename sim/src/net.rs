//! Connections of the simulated networks: ordered while they live, losing what is in flight when
//! they break. That is what TCP promises, so loss, partitions and crashes all end as broken
//! connections; a cut that nobody notices at once drops silently first.

use ashlar_env::dice::Dice;
use ashlar_types::message::data::{Lane, Network};
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
    /// Nothing gets through any more, which its sender will notice.
    dying: bool,
    /// The last delivery scheduled on it: later ones do not overtake.
    last_delivery: Time,
    /// The same of beats, which have a connection of their own that lives and breaks with this one.
    last_beat: Time,
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
    /// What a host can send over one network; what is more queues.
    pub(crate) bytes_per_second: u64,
}

/// Nothing passes on a wire for a while.
#[derive(Clone, Copy, Debug)]
struct Clog {
    until: Time,
    /// Longer than TCP's patience: the connection breaks. Otherwise all arrives afterwards.
    breaks: bool,
}

/// A wire that is worse than the weather.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rough {
    /// Messages take so many times as long.
    pub(crate) factor: u32,
    /// One message in so many is lost; 0: as the weather says.
    pub(crate) loss_one_in: u64,
}

impl Rough {
    /// As the weather says.
    pub(crate) const NOT: Self = Self { factor: 1, loss_one_in: 0 };
}

/// How long a connection waits for a word of the other side.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// All connections.
#[derive(Debug)]
pub(crate) struct Net {
    links: BTreeMap<Wire, Link>,
    /// Wires on which nothing passes at present, each with the number of its cuts.
    cuts: BTreeMap<Wire, u32>,
    clogs: BTreeMap<Wire, Clog>,
    /// Hosts whose messages take so many times as long.
    slow: BTreeMap<Host, u32>,
    /// Wires that are worse than the weather.
    rough: BTreeMap<Wire, Rough>,
    /// When the last byte that a host has queued on a network leaves.
    queued: BTreeMap<(Host, Network), Time>,
    next_connection: u64,
    pub(crate) weather: Weather,
}

/// What becomes of a message.
pub(crate) enum Fate {
    /// Delivered at this time, if the connection still lives then.
    Deliver { at: Time, connection: u64 },
    /// Lost, and with it the connection; the sender will notice.
    Broken,
    /// Nothing gets through; the sender's host gives the connection up at this time.
    Stuck { connection: u64, gives_up: Time },
    /// The connection does not exist, or swallows everything.
    NoConnection,
}

impl Net {
    pub(crate) fn new(weather: Weather) -> Self {
        Self {
            links: BTreeMap::new(),
            cuts: BTreeMap::new(),
            clogs: BTreeMap::new(),
            slow: BTreeMap::new(),
            rough: BTreeMap::new(),
            queued: BTreeMap::new(),
            next_connection: 0,
            weather,
        }
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
        let link = Link {
            connection,
            up: true,
            drains: false,
            dying: false,
            last_delivery: now,
            last_beat: now,
        };
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

    /// Lets nothing pass on a wire until then.
    pub(crate) fn clog(&mut self, wire: Wire, until: Time, breaks: bool) {
        self.clogs.insert(wire, Clog { until, breaks });
    }

    /// When a message that is sent on a wire now can leave its clog.
    pub(crate) fn unclogged(&self, now: Time, wire: Wire) -> Time {
        self.clogs.get(&wire).map_or(now, |clog| clog.until.max(now))
    }

    /// Makes everything of a host take so many times as long; 1: as usual.
    pub(crate) fn slow_down(&mut self, host: Host, factor: u32) {
        self.slow.insert(host, factor);
    }

    /// Makes a wire worse than the weather, or as it is.
    pub(crate) fn roughen(&mut self, wire: Wire, rough: Rough) {
        self.rough.insert(wire, rough);
    }

    /// Heals everything.
    pub(crate) fn heal(&mut self) {
        self.rough.clear();
        self.cuts.clear();
        self.clogs.clear();
        self.slow.clear();
        self.weather.loss_one_in = 0;
    }

    /// What is wrong with the networks now, in words, each with where.
    pub(crate) fn troubles(&self, now: Time) -> [(&'static str, String); 3] {
        let list = |of: &mut dyn Iterator<Item = String>| of.collect::<Vec<_>>().join(", ");
        let cuts = list(&mut self.cuts.keys().map(ToString::to_string));
        let clogged = self.clogs.iter().filter(|(_, clog)| clog.until > now);
        let clogs = list(&mut clogged.map(|(wire, _)| wire.to_string()));
        let slow = self.slow.iter().filter(|(_, factor)| **factor > 1);
        let slow = list(&mut slow.map(|(host, factor)| format!("{host} x{factor}")));
        [("cut", cuts), ("clogged", clogs), ("slow", slow)]
    }

    /// Whether nothing passes that way.
    pub(crate) fn is_cut(&self, wire: Wire) -> bool {
        self.cuts.contains_key(&wire)
    }

    /// Whether a host that dials gets no answer.
    pub(crate) fn is_dark(&self, now: Time, wire: Wire) -> bool {
        [wire, wire.back()].into_iter().any(|w| self.is_cut(w) || self.unclogged(now, w) > now)
    }

    /// A delay drawn for a message on a wire.
    pub(crate) fn delay_on(&self, wire: Wire, dice: &mut dyn Dice) -> Duration {
        let of = |host| self.slow.get(&host).copied().unwrap_or(1);
        let rough = self.rough.get(&wire).map_or(1, |rough| rough.factor);
        self.delay(dice) * of(wire.from).max(of(wire.to)).max(rough)
    }

    /// When the last byte of a message has left its host.
    fn leaves(&mut self, now: Time, wire: Wire, bytes: usize) -> Time {
        let queue = self.queued.entry((wire.from, wire.network)).or_default();
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.weather.bytes_per_second;
        *queue = (*queue).max(now) + Duration::from_nanos(nanos);
        *queue
    }

    /// Decides what becomes of a message of so many bytes on `wire`; a beat waits behind no data.
    pub(crate) fn send(
        &mut self,
        now: Time,
        wire: Wire,
        (bytes, lane): (usize, Lane),
        dice: &mut dyn Dice,
    ) -> Fate {
        let delay = self.delay_on(wire, dice);
        let rough = self.rough.get(&wire).map_or(0, |rough| rough.loss_one_in);
        let loss_one_in = if rough > 0 { rough } else { self.weather.loss_one_in };
        let lost = loss_one_in > 0 && dice.chance(1, loss_one_in);
        let cut = self.is_cut(wire);
        let sent = match lane {
            Lane::Data => self.leaves(now, wire, bytes),
            Lane::Beats => now,
        };
        let clog = self.clogs.get(&wire).copied().filter(|clog| clog.until > now);
        let Some(link) = self.links.get_mut(&wire) else { return Fate::NoConnection };
        if !link.up || link.dying {
            return Fate::NoConnection;
        }
        if lost || cut {
            // What was sent before the loss still arrives.
            link.up = false;
            link.drains = true;
            return Fate::Broken;
        }
        let connection = link.connection;
        if clog.is_some_and(|clog| clog.breaks && clog.until > now + PATIENCE) {
            link.dying = true;
            return Fate::Stuck { connection, gives_up: now + PATIENCE };
        }
        let sent = clog.map_or(sent, |clog| clog.until.max(sent));
        let last = match lane {
            Lane::Data => &mut link.last_delivery,
            Lane::Beats => &mut link.last_beat,
        };
        let at = (sent + delay).max(*last);
        *last = at;
        Fate::Deliver { at, connection }
    }
}
