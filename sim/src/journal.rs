//! What happened, event by event: summed up, so that runs can be compared, or told line by line.

use crate::control::ControlEvent;
use crate::net::{Host, Wire};
use crate::state::State;
use crate::world::Event;
use ashlar_types::Time;
use ashlar_types::message::data::{DataMessage, Network, Refusal};
use std::fmt;
use std::time::Duration;

/// Takes the lines of a log as they come, each with its simulated time.
pub(crate) type Sink = Box<dyn FnMut(Duration, &str)>;

/// The account of a run.
pub(crate) struct Journal {
    digesting: bool,
    digest: u64,
    sink: Option<Sink>,
    /// What everything was before the event under way, if changes are told.
    before: Option<State>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({:016x})", self.digest)
    }
}

impl Journal {
    pub(crate) fn new(digesting: bool) -> Self {
        Self { digesting, digest: 0xcbf2_9ce4_8422_2325, sink: None, before: None }
    }

    /// Tells every event from now on.
    pub(crate) fn tell(&mut self, sink: Sink) {
        self.sink = Some(sink);
    }

    /// Tells what every event changes as well.
    pub(crate) fn tell_changes(&mut self) {
        self.before = Some(State::default());
    }

    /// Whether [`Self::changes`] is wanted.
    pub(crate) const fn tells_changes(&self) -> bool {
        self.before.is_some()
    }

    /// An event is over: tells what it changed.
    pub(crate) fn changes(&mut self, at: Time, now: State) {
        let (Some(before), Some(sink)) = (&mut self.before, &mut self.sink) else { return };
        for line in before.changes_to(&now) {
            sink(at.since(Time::ZERO), &format!("    {line}"));
        }
        *before = now;
    }

    /// Digest of every event: equal runs have equal ones.
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn event(&mut self, at: Time, event: &Event) {
        if self.digesting {
            self.mix(&format!("{at} {event:?}"));
        }
        if let Some(sink) = &mut self.sink {
            sink(at.since(Time::ZERO), &format!("{at} {}", Line(event)));
        }
    }

    /// Something that is no event of its own: a broken rule, an alarm, a process that waits.
    pub(crate) fn remark(&mut self, at: Time, text: &str) {
        if let Some(sink) = &mut self.sink {
            sink(at.since(Time::ZERO), &format!("{at} ** {text}"));
        }
    }

    fn mix(&mut self, text: &str) {
        for byte in text.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Member(member) => write!(f, "member-{member}"),
            Self::Client => f.write_str("client"),
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = match self.network {
            Network::Primary => "",
            Network::Replication => " (replication)",
        };
        write!(f, "{} -> {}{network}", self.from, self.to)
    }
}

/// An event as a person reads it.
struct Line<'a>(&'a Event);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::NodeTick { node, .. } => write!(f, "{node} ticks"),
            Event::Start { node } => write!(f, "{node} starts, if it is down"),
            Event::Dial { from, to, network, .. } => {
                write!(f, "{from} dials {to} ({network:?})")
            }
            Event::LinkLost { wire, .. } => write!(f, "{wire}: the loss is noticed"),
            Event::Deliver { wire, connection, message } => {
                write!(f, "{wire} #{connection}: {}", Words(message))
            }
            Event::Arrived { wire, connection, message } => {
                write!(f, "{wire} #{connection}, read late: {}", Words(message))
            }
            Event::Synced { node, store, seq, .. } => {
                write!(f, "{node} journal of {store} durable to {}", seq.0)
            }
            Event::BlocksRead { node, chunk, range, .. } => {
                write!(f, "{node} has read {range:?} of {chunk}")
            }
            Event::ClientDial { node, session, .. } => {
                write!(f, "client dials {node} as session {}", session.0)
            }
            Event::ClientLinkLost { node, .. } => write!(f, "client loses {node}"),
            Event::ClientGone { node, connection, .. } => {
                write!(f, "{node} learns that connection {} ended", connection.0)
            }
            Event::ClientTick => f.write_str("client ticks"),
            Event::Work => f.write_str("client submits"),
            Event::Observe => f.write_str("observer asks"),
            Event::Observed { node, message, .. } => {
                write!(f, "observer -> {node}: {}", Words(message))
            }
            Event::ObserverTold { message } => write!(f, "observer told: {}", Words(message)),
            Event::FormerWrites => f.write_str("former client writes"),
            Event::FormerHeard { node, message, .. } => {
                write!(f, "former client -> {node}: {}", Words(message))
            }
            Event::AttachAgain => f.write_str("the volume is attached elsewhere"),
            Event::SalvageAgain => f.write_str("the operator asks for a salvage again"),
            Event::PassingAgain { name } => write!(f, "the operator asks again for {name}"),
            Event::DrainAgain { node } => write!(f, "the operator asks again to drain {node}"),
            Event::GrowAgain => f.write_str("the operator, or the client, asks again for the size"),
            Event::GivenUp { wire, connection } => {
                write!(f, "{wire} #{connection}: given up if nothing got through")
            }
            Event::Control(event) => control(event, f),
            Event::Fault(fault) => write!(f, "!! {fault:?}"),
            Event::Resume { host, .. } => write!(f, "!! {host} goes on"),
        }
    }
}

fn control(event: &ControlEvent, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match event {
        ControlEvent::Raft { from, to, bytes, .. } => {
            write!(f, "member-{from} -> member-{to}: raft, {} bytes", bytes.len())
        }
        ControlEvent::Tick { member, .. } => write!(f, "member-{member} ticks"),
        other => write!(f, "{other:?}"),
    }
}

/// A message without its bytes.
struct Words<'a>(&'a DataMessage);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            DataMessage::Read { id, stamp, range } => {
                write!(f, "Read {} {range:?} of {} {}", id.0, stamp.chunk, stamp.epoch)
            }
            DataMessage::Write { id, stamp, data } => {
                write!(f, "Write {} {:?} of {} {}", id.0, data.range, stamp.chunk, stamp.epoch)
            }
            DataMessage::ReadDone { id, data } => write!(f, "ReadDone {} {:?}", id.0, data.range),
            DataMessage::Refused {
                id,
                refusal: Refusal::WrongEpoch(config) | Refusal::NotPrimary(config),
            } => {
                let primary = config.primary.node;
                write!(f, "Refused {}: {primary} is primary in {}", id.0, config.epoch)
            }
            DataMessage::Mirror { chunk, epoch, lsn, committed, data } => {
                let range = data.range;
                write!(f, "Mirror {chunk} {epoch} {lsn} {range:?}, committed {committed}")
            }
            DataMessage::Copy { chunk, number, read_at, data, .. } => {
                write!(f, "Copy {number} {chunk} {:?} read at {read_at}", data.range)
            }
            DataMessage::Fetched { chunk, term, data } => {
                write!(f, "Fetched {chunk} {term} {:?}", data.range)
            }
            other => write!(f, "{other:?}"),
        }
    }
}
