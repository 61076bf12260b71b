//! Who is dead: judged on evidence (design.md section 6).
//!
//! - Heartbeats over an open stream: up.
//! - Ports that refuse on both networks, seen by the control plane or by two peers after the last
//!   contact: dead at once. A port that refuses says that the process is gone, not slow.
//! - Heartbeats stopped for 1.5 s: the peers vote; each that is itself fresh has a voice, the
//!   control plane is one more that does not see the node. A tie keeps the node.
//!   Peers that have only just come to this leader, or have not come yet and may still, are heard
//!   first: after a change of leaders the first to come would otherwise outlive all others.
//! - Heartbeats that a peer relays, while the node's own stream is gone: it lives, keeps what it has,
//!   and is chosen for something new only where there is nobody else. Unless most peers do not reach it:
//!   then that one peer does not help it.
//! - Until it has listened for two heartbeats, a leader judges nobody: neither the silent, nor those
//!   whose heartbeats arrive, against whom the first to come may speak.
//!
//! A node that lives is hidden if clients cannot reach it: they come by the primary network only, so
//! that peers reach it by the replication network is no voice for it here. It loses its primaries and
//! may follow as a secondary. The rule:
//! - a voter is a fresh peer; it speaks against the node if the primary network between them has been
//!   down for as long as in every other vote (1 s), and for it if that network is up;
//! - a voter that reaches nobody else by the primary network accuses nobody: it may be the one that
//!   has lost it. When all nodes have lost it, nobody is hidden;
//! - the control plane, to which streams go by the primary network, is one more voice: for the node
//!   while its heartbeats arrive, against it once they have stopped for 1.5 s;
//! - at least two peers must accuse, whatever the control plane sees; a tie keeps the node;
//! - what has been hidden is not elected again for 5 s after it was seen so, while another can be: a
//!   network that flaps moves primaries away once, not to and fro.

use crate::observe::{HEARTBEAT_TIMEOUT, Observations, SILENT_VOTE_MILLIS, is_down};
use crate::state::ZoneState;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use ashlar_types::message::cluster::PathState;
use ashlar_types::{NodeId, Time};

/// Peers that must agree at least on who is hidden from clients: one alone may be what is broken.
pub const ACCUSERS_MIN: u32 = 2;

/// What the control plane thinks of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Heartbeats arrive.
    Up {
        /// Most of its peers do not reach it, on either network.
        cut: bool,
    },
    /// It lives, but most voters do not reach it by the primary network, by which clients come.
    Hidden {
        /// Heartbeats arrive, its own or relayed: it can be asked.
        fresh: bool,
    },
    /// It lives: a peer relays its heartbeats. Its own stream is gone.
    Relayed {
        /// The peer.
        by: NodeId,
    },
    /// No heartbeat now, not enough evidence to act on.
    Unknown {
        /// In words.
        cause: String,
    },
    /// Dead on evidence: others take over.
    Dead {
        /// In words.
        cause: String,
    },
}

impl Verdict {
    /// Whether it can take over or be a new home.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        matches!(self, Self::Up { cut: false })
    }

    /// Whether it can take over where nobody usable can.
    #[must_use]
    pub const fn is_last_resort(&self) -> bool {
        matches!(self, Self::Relayed { .. })
    }

    /// Whether it can follow a primary: over the replication network that suffices.
    #[must_use]
    pub const fn can_follow(&self) -> bool {
        matches!(self, Self::Up { cut: false } | Self::Hidden { .. } | Self::Relayed { .. })
    }

    /// Whether it is declared dead.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        matches!(self, Self::Dead { .. })
    }

    /// Why it is not simply up; empty if it is.
    #[must_use]
    pub fn cause(&self) -> &str {
        match self {
            Self::Up { cut: false } => "",
            Self::Up { cut: true } => "most of its peers do not reach it",
            Self::Hidden { .. } => "most of its peers do not reach it by the primary network",
            Self::Relayed { .. } => "its stream is gone; a peer relays what it says",
            Self::Unknown { cause } | Self::Dead { cause } => cause,
        }
    }
}

/// Voices about a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Votes {
    /// Peers that reach it on some network.
    pub up: u32,
    /// Peers that reach it on neither.
    pub down: u32,
    /// Of these: both its ports refuse.
    pub refused: u32,
    /// Peers that reach it by the primary network.
    pub served: u32,
    /// Peers that do not, although they reach others by it.
    pub hidden: u32,
    /// Peers whose voice is still to come: they have reached this leader and have not sent a heartbeat
    /// since, or they have not reached it for as long as that may take.
    pub unheard: u32,
}

/// Verdicts about all nodes of a zone.
pub type Verdicts = BTreeMap<NodeId, Verdict>;

/// Judges every node.
#[must_use]
pub fn judge_all(now: Time, state: &ZoneState, seen: &Observations) -> Verdicts {
    state.nodes().map(|record| (record.node, judge(now, record.node, state, seen))).collect()
}

/// Whether heartbeats arrive over an open stream.
#[must_use]
pub fn is_fresh(now: Time, node: NodeId, seen: &Observations) -> bool {
    seen.node(node).is_some_and(|view| {
        let beat = view.last_beat.unwrap_or(view.connection_changed);
        view.connected && now.since(beat) < HEARTBEAT_TIMEOUT
    })
}

/// Voices of the fresh peers about a node, but for that of `without`; silence counts from
/// `silent_millis` on.
#[must_use]
pub fn votes(
    now: Time,
    about: NodeId,
    without: Option<NodeId>,
    silent_millis: u32,
    state: &ZoneState,
    seen: &Observations,
) -> Votes {
    let mut votes = Votes::default();
    for voter in state.nodes().map(|record| record.node) {
        if voter == about || Some(voter) == without {
            continue;
        }
        if !is_fresh(now, voter, seen) {
            votes.unheard += u32::from(seen.is_awaited(now, voter));
            continue;
        }
        let Some(view) = seen.node(voter) else { continue };
        let Some(evidence) = view.evidence_about(about) else {
            let heard = view.last_beat.is_some_and(|at| at >= view.connection_changed);
            votes.unheard += u32::from(!heard);
            continue;
        };
        let paths = [evidence.primary_net, evidence.replication_net];
        votes.up += u32::from(paths.contains(&PathState::Up));
        votes.down += u32::from(paths.iter().all(|path| is_down(*path, silent_millis)));
        votes.refused += u32::from(paths.iter().all(|path| *path == PathState::Refused));
        votes.served += u32::from(evidence.primary_net == PathState::Up);
        let has_network = view.reaches_others(about);
        votes.hidden += u32::from(has_network && is_down(evidence.primary_net, silent_millis));
    }
    votes
}

/// Whether clients cannot reach a node that lives. See the module.
fn is_hidden(votes: Votes, fresh: bool) -> bool {
    let (for_it, against) = if fresh { (1, 0) } else { (0, 1) };
    votes.hidden >= ACCUSERS_MIN && votes.hidden + against > votes.served + votes.unheard + for_it
}

fn judge(now: Time, node: NodeId, state: &ZoneState, seen: &Observations) -> Verdict {
    let votes = votes(now, node, None, SILENT_VOTE_MILLIS, state, seen);
    let fresh = is_fresh(now, node, seen);
    if !seen.may_judge(now) {
        let cause = "the leader has not listened for long enough".into();
        return if fresh { Verdict::Up { cut: false } } else { Verdict::Unknown { cause } };
    }
    if fresh {
        // The control plane itself is one voice that hears it.
        let cut = votes.down > votes.up + votes.unheard + 1;
        if !cut && is_hidden(votes, true) {
            return Verdict::Hidden { fresh: true };
        }
        return Verdict::Up { cut };
    }
    let view = seen.node(node);
    let contact = view.and_then(|view| view.last_contact);
    let silence = now.since(contact.unwrap_or(Time::ZERO).max(seen.listening_since));
    let millis = silence.as_millis();
    let relayed = view.and_then(|view| view.relayed_by(now));
    if let Some(by) = relayed.filter(|_| votes.down <= votes.up + votes.unheard) {
        let hidden = is_hidden(votes, false);
        return if hidden { Verdict::Hidden { fresh: true } } else { Verdict::Relayed { by } };
    }
    if view.is_some_and(|view| view.refused_since(contact.unwrap_or(Time::ZERO))) {
        return Verdict::Dead { cause: "its ports refuse connections on both networks".into() };
    }
    let connected = view.is_some_and(|view| view.connected);
    if votes.refused >= 2 && !connected {
        return Verdict::Dead { cause: format!("{} peers find its ports closed", votes.refused) };
    }
    if silence < HEARTBEAT_TIMEOUT {
        return Verdict::Unknown { cause: format!("no heartbeat for {millis} ms") };
    }
    if votes.up > votes.down && is_hidden(votes, false) {
        return Verdict::Hidden { fresh: false };
    }
    if votes.up > votes.down {
        let cause = format!("no heartbeat for {millis} ms, but {} peers reach it", votes.up);
        return Verdict::Unknown { cause };
    }
    if votes.up + votes.unheard > votes.down {
        let cause = format!("no heartbeat for {millis} ms; {} peers are not heard", votes.unheard);
        return Verdict::Unknown { cause };
    }
    Verdict::Dead { cause: format!("no heartbeat for {millis} ms, and most peers agree") }
}
