//! A scene: how the model begins, and how much of what may happen happens in it.
//!
//! Every budget bounds one kind of event; within them everything happens in every order. The scenes
//! of CI are small enough for a debug build, the nightly ones are the same with larger budgets.

use crate::mutation::Mutation;
use crate::words::{Body, Config, Message, NodeId, Set};
use crate::zone::Action;

/// What a run of the model explores.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Its name in reports.
    pub name: &'static str,
    /// Rule taken out.
    pub mutation: Mutation,
    pub(crate) nodes: usize,
    /// In sync at the start; the first one is the primary.
    pub(crate) in_sync: Set,
    pub(crate) copies_wanted: u32,
    pub(crate) copies_min: u32,
    /// The journal is synced by an event of its own, so that a crash can lose what is in it.
    pub(crate) lazy_sync: bool,
    /// Ticks that a grant lasts; 0: no leases, every read asks.
    pub(crate) grant: u8,
    /// Values written.
    pub(crate) writes: u8,
    /// The client never has two writes in flight and sends an unanswered one again, so often.
    pub(crate) resends: Option<u8>,
    pub(crate) reads: u8,
    pub(crate) ticks: u8,
    /// Beats sent.
    pub(crate) beats: u8,
    pub(crate) restarts: u8,
    pub(crate) elections: u8,
    /// Primaries that are replaced may stay in sync.
    pub(crate) agrees: bool,
    /// Learners and removals come without the primary's proposal, which may know of no epoch since.
    pub(crate) unasked: bool,
    pub(crate) removals: u8,
    pub(crate) learners: u8,
    pub(crate) fills: u8,
    pub(crate) retirements: u8,
    /// What has happened before: single events, each possible in its turn.
    pub(crate) before: Vec<Action>,
    /// Names of events that must be reachable, or the scene shows nothing.
    pub(crate) reaches: Vec<&'static str>,
}

impl Scene {
    fn new(name: &'static str, nodes: usize, in_sync: &[NodeId]) -> Self {
        Self {
            name,
            mutation: Mutation::None,
            nodes,
            in_sync: Set::of(in_sync),
            copies_wanted: 2,
            copies_min: 1,
            lazy_sync: false,
            grant: 0,
            writes: 1,
            resends: None,
            reads: 0,
            ticks: 0,
            beats: u8::MAX,
            restarts: 0,
            elections: 0,
            agrees: false,
            unasked: false,
            removals: 0,
            learners: 0,
            fills: 0,
            retirements: 0,
            before: Vec::new(),
            reaches: Vec::new(),
        }
    }

    /// Without a rule.
    #[must_use]
    pub fn without(self, mutation: Mutation) -> Self {
        Self { mutation, ..self }
    }

    pub(crate) const fn has_leases(&self) -> bool {
        self.grant > 0
    }

    /// Ticks that a holder uses a grant. Drift within the bound is in it already: both are counted
    /// in true time, the holder's at its slowest clock and the granter's at its fastest.
    pub(crate) const fn hold(&self) -> u8 {
        self.grant
    }

    pub(crate) fn may_acknowledge(&self, config: &Config) -> bool {
        config.in_sync.len() >= self.copies_min
    }

    /// A primary and two secondaries; the primary is replaced or restarts, a secondary is removed.
    #[must_use]
    pub fn fail_over(large: bool) -> Self {
        Self {
            copies_wanted: 3,
            copies_min: if large { 1 } else { 2 },
            writes: if large { 3 } else { 2 },
            elections: if large { 2 } else { 1 },
            removals: 1,
            restarts: 1,
            reaches: vec![FAILED_OVER],
            ..Self::new("fail-over", 3, &[0, 1, 2])
        }
    }

    /// A primary that is replaced stays in sync, with what it had not committed.
    #[must_use]
    pub fn agreement(large: bool) -> Self {
        Self {
            agrees: true,
            writes: if large { 3 } else { 2 },
            elections: 2,
            restarts: u8::from(large),
            reaches: vec![FAILED_OVER],
            ..Self::new("agreement", 3, &[0, 1, 2])
        }
    }

    /// The same under leases: it may have been answering reads.
    #[must_use]
    pub fn agreement_and_leases(large: bool) -> Self {
        Self {
            agrees: true,
            grant: if large { 2 } else { 1 },
            ticks: if large { 3 } else { 2 },
            reads: 2,
            writes: 1,
            elections: if large { 2 } else { 1 },
            reaches: vec![FAILED_OVER, LEASE_READ],
            ..Self::new("agreement and leases", 2, &[0, 1])
        }
    }

    /// One in sync leaves that nobody asked to leave, and the primary may hear of it late: around a
    /// fail-over to one that stays.
    #[must_use]
    pub fn release(large: bool) -> Self {
        Self {
            agrees: true,
            unasked: true,
            writes: 2,
            elections: if large { 2 } else { 1 },
            removals: 1,
            restarts: u8::from(large),
            reaches: vec![FAILED_OVER],
            ..Self::new("release", 3, &[0, 1, 2])
        }
    }

    /// The same under leases.
    #[must_use]
    pub fn release_and_leases(large: bool) -> Self {
        Self {
            agrees: large,
            unasked: true,
            grant: 1,
            ticks: if large { 2 } else { 1 },
            beats: 2,
            reads: 1,
            writes: 1,
            elections: 1,
            removals: 1,
            before: [1, 2].into_iter().flat_map(|granter| lease_events(0, granter)).collect(),
            reaches: vec![FAILED_OVER, LEASE_READ],
            ..Self::new("release and leases", 3, &[0, 1, 2])
        }
    }

    /// A spare is added that nobody asked for, filled, and promoted; another leaves.
    #[must_use]
    pub fn spare(large: bool) -> Self {
        Self {
            unasked: true,
            writes: if large { 2 } else { 1 },
            learners: 1,
            fills: 1,
            elections: 1,
            removals: 1,
            restarts: u8::from(large),
            reaches: vec![PROMOTED, FAILED_OVER],
            ..Self::new("spare", 3, &[0, 1])
        }
    }

    /// The client repeats its unanswered write at the next primary before it writes another.
    #[must_use]
    pub fn repeats(large: bool) -> Self {
        Self {
            writes: 2,
            resends: Some(if large { 2 } else { 1 }),
            elections: 1,
            reads: 1,
            restarts: u8::from(large),
            reaches: vec![FAILED_OVER, READ],
            ..Self::new("repeats", 3, &[0, 1, 2])
        }
    }

    /// Journals that lose what is not synced when their process crashes.
    #[must_use]
    pub fn power(large: bool) -> Self {
        Self {
            lazy_sync: true,
            writes: 2,
            elections: if large { 2 } else { 1 },
            learners: u8::from(large),
            fills: u8::from(large),
            restarts: 2,
            reaches: vec![FAILED_OVER],
            ..Self::new("power loss", 2, &[0, 1])
        }
    }

    /// Two nodes, reads under leases, a fail-over.
    #[must_use]
    pub fn leases(large: bool) -> Self {
        Self {
            grant: if large { 2 } else { 1 },
            ticks: if large { 3 } else { 2 },
            reads: 2,
            writes: 1,
            elections: 1,
            restarts: 1,
            reaches: vec![FAILED_OVER, LEASE_READ],
            ..Self::new("leases", 2, &[0, 1])
        }
    }

    /// A primary that holds leases of two others, two fail-overs: the second may come before
    /// everybody has heard of the first.
    #[must_use]
    pub fn leases_of_three(large: bool) -> Self {
        Self {
            copies_wanted: 3,
            grant: 1,
            ticks: 1,
            beats: 2,
            reads: if large { 2 } else { 1 },
            writes: 1,
            elections: 2,
            before: [1, 2].into_iter().flat_map(|granter| lease_events(0, granter)).collect(),
            reaches: vec![FAILED_OVER, LEASE_READ],
            ..Self::new("leases of three", 3, &[0, 1, 2])
        }
    }

    /// Reads under leases while a learner is promoted and takes over.
    #[must_use]
    pub fn leases_and_promotion(large: bool) -> Self {
        Self {
            grant: 1,
            ticks: if large { 3 } else { 2 },
            reads: 1,
            writes: 1,
            learners: 1,
            fills: 1,
            elections: 1,
            removals: 1,
            restarts: u8::from(large),
            reaches: vec![PROMOTED, FAILED_OVER, LEASE_READ],
            ..Self::new("leases and promotion", 2, &[0])
        }
    }

    /// Reads that ask the secondaries, a fail-over.
    #[must_use]
    pub fn reads(large: bool) -> Self {
        Self {
            reads: 2,
            writes: if large { 1 } else { 2 },
            elections: 1,
            removals: u8::from(large),
            restarts: u8::from(!large),
            reaches: vec![FAILED_OVER, READ],
            ..Self::new(
                "reads",
                if large { 3 } else { 2 },
                if large { &[0, 1, 2] } else { &[0, 1] },
            )
        }
    }

    /// A lone primary fills a learner; either may restart, the fill may be given up and begun anew,
    /// the learner removed and added again.
    #[must_use]
    pub fn promotion(large: bool) -> Self {
        Self {
            writes: 2,
            learners: 2,
            fills: 2,
            removals: 1,
            elections: 1,
            restarts: if large { 2 } else { 1 },
            reaches: vec![PROMOTED, FAILED_OVER],
            ..Self::new("promotion", 2, &[0])
        }
    }

    /// A stale replica is retired once enough others own the chunk; its node takes a new one.
    #[must_use]
    pub fn retirement(large: bool) -> Self {
        Self {
            copies_wanted: if large { 2 } else { 1 },
            writes: 1,
            learners: 2,
            fills: 2,
            elections: if large { 1 } else { 2 },
            restarts: 1,
            retirements: 1,
            reaches: vec![FAILED_OVER, RETIRED],
            ..Self::new("retirement", if large { 3 } else { 2 }, &[0, 1])
        }
    }
}

/// A beat and its answer, both delivered.
fn lease_events(holder: NodeId, granter: NodeId) -> [Action; 3] {
    let beat = Body::Beat { sent_at: 0, adopted: 1 };
    let reply = Body::BeatReply { sent_at: 0, start: 1, except: 0 };
    [
        Action::Beat(holder, granter),
        Action::Deliver(Message { from: holder, to: granter, body: beat }),
        Action::Deliver(Message { from: granter, to: holder, body: reply }),
    ]
}

/// A write was acknowledged in a term of a later election.
pub(crate) const FAILED_OVER: &str = "a fail-over happens";
/// A learner became in sync.
pub(crate) const PROMOTED: &str = "a learner is promoted";
/// A read was answered under leases.
pub(crate) const LEASE_READ: &str = "a lease read happens";
/// A read was answered after a question.
pub(crate) const READ: &str = "a read happens";
/// A replica was erased.
pub(crate) const RETIRED: &str = "a replica is retired";
