//! Who is dead: judged on evidence (design.md section 6).
//!
//! - Heartbeats over an open stream: up.
//! - Ports that refuse on both networks, seen by the control plane or by two peers after the last
//!   contact: dead at once. A port that refuses says that the process is gone, not slow.
//! - Heartbeats stopped for 1.5 s: the peers vote; each that is itself fresh has a voice, the
//!   control plane is one more that does not see the node. A tie keeps the node.
//!   Peers that have only just come to this leader are heard first: after a change of leaders the
//!   first one to come would otherwise outlive all others.
//! - Until it has listened for two heartbeats, a leader declares nobody dead.

use crate::observe::{HEARTBEAT_TIMEOUT, Observations, SILENT_VOTE_MILLIS, is_down};
use crate::state::ZoneState;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use ashlar_types::message::cluster::PathState;
use ashlar_types::{NodeId, Time};

/// What the control plane thinks of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Heartbeats arrive.
    Up {
        /// Most of its peers do not reach it, on either network.
        cut: bool,
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
    /// Whether it can take over or be filled.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        matches!(self, Self::Up { cut: false })
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
    /// Peers that have come to this leader and have not sent a heartbeat since.
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
        if voter == about || Some(voter) == without || !is_fresh(now, voter, seen) {
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
    }
    votes
}

fn judge(now: Time, node: NodeId, state: &ZoneState, seen: &Observations) -> Verdict {
    let votes = votes(now, node, None, SILENT_VOTE_MILLIS, state, seen);
    if is_fresh(now, node, seen) {
        // The control plane itself is one voice that hears it.
        return Verdict::Up { cut: votes.down > votes.up + 1 };
    }
    let view = seen.node(node);
    let contact = view.and_then(|view| view.last_contact);
    let silence = now.since(contact.unwrap_or(Time::ZERO).max(seen.listening_since));
    let millis = silence.as_millis();
    if !seen.may_judge(now) {
        return Verdict::Unknown { cause: "the leader has not listened for long enough".into() };
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
