//! Read leases between pairs of nodes. Follows `node/core/src/lease.rs` and
//! `docs/decisions/0005-who-a-lease-binds.md`.
//!
//! Times are ticks of one true clock. The drift that is allowed is in them: the holder, at its
//! slowest clock, uses no more of a grant than the granter, at its fastest, waits for.

use crate::mutation::Mutation;
use crate::node::Step;
use crate::words::{Body, Config, NODES, NodeId};

/// Leases that a process has given and holds; all of it ends with the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leases {
    /// Until when each node may use what it was given.
    granted: [u8; NODES],
    /// Epochs under which each node is primary no more.
    except: [u8; NODES],
    /// When the last grant of an earlier process has run out.
    earlier_end: u8,
    /// Adoptions are confirmed from then on.
    pub(crate) confirm_at: u8,
    /// Until when the grant of each node is used.
    until: [u8; NODES],
    /// The process that gave it.
    start: [u8; NODES],
    /// From which epoch on it covers the chunk.
    from_epoch: [u8; NODES],
}

impl Leases {
    pub(crate) const NONE: Self = Self {
        granted: [0; NODES],
        except: [0; NODES],
        earlier_end: 0,
        confirm_at: 0,
        until: [0; NODES],
        start: [0; NODES],
        from_epoch: [0; NODES],
    };

    /// Times that have passed decide nothing any more: they are all the same state.
    pub(crate) fn forget_past(&mut self, clock: u8, mutation: Mutation) {
        let kept = mutation == Mutation::LeaseKept;
        let held = self.until.iter_mut().filter(|_| !kept);
        let ends = [&mut self.confirm_at, &mut self.earlier_end];
        for until in held.chain(&mut self.granted).chain(ends) {
            if *until <= clock {
                *until = 0;
            }
        }
    }
}

impl Step<'_> {
    /// An epoch has been adopted that takes the chunk from `former`: no later grant covers it, and
    /// nobody is told of the adoption while an earlier one may.
    pub(crate) fn except_former(&mut self, former: NodeId, config: Config) {
        if former == config.primary || former == self.me {
            return;
        }
        let leases = &mut self.node.leases;
        leases.except[former] = leases.except[former].max(config.epoch);
        if self.scene.mutation != Mutation::AdoptionBeforeLeaseEnds {
            let end = leases.granted[former].max(leases.earlier_end);
            leases.confirm_at = leases.confirm_at.max(end);
        }
    }

    /// What an earlier process gave is unknown: a whole grant from the start on. The wait is over
    /// for an election whose term was opened here.
    pub(crate) fn restart_leases(&mut self) {
        if !self.scene.has_leases() || self.without(Mutation::LeaseForgottenByRestart) {
            return;
        }
        let stable = &self.node.stable;
        let opened = stable.last.term.elected >= stable.config.elected;
        let leases = &mut self.node.leases;
        leases.earlier_end = self.clock + self.scene.grant;
        leases.confirm_at = if opened { 0 } else { leases.earlier_end };
    }

    /// Grants a lease, and says which elections it does not cover.
    pub(crate) fn on_beat(&mut self, from: NodeId, sent_at: u8, adopted: u8) {
        let leases = &mut self.node.leases;
        if adopted >= leases.except[from] {
            leases.except[from] = 0;
        }
        leases.granted[from] = leases.granted[from].max(self.clock + self.scene.grant);
        let covers_all = self.scene.mutation == Mutation::GrantWithoutException;
        let except = if covers_all { 0 } else { leases.except[from] };
        let start = self.node.start;
        self.send_eagerly(from, Body::BeatReply { sent_at, start, except });
    }

    /// Uses a grant from the moment the question was sent.
    pub(crate) fn on_beat_reply(&mut self, from: NodeId, sent_at: u8, start: u8, except: u8) {
        let drift = u8::from(self.without(Mutation::DriftBeyondBound));
        let until = sent_at + self.scene.hold() + drift;
        let leases = &mut self.node.leases;
        if start < leases.start[from] {
            return;
        }
        if start > leases.start[from] {
            leases.start[from] = start;
            leases.until[from] = 0;
            leases.from_epoch[from] = 0;
        }
        leases.from_epoch[from] = leases.from_epoch[from].max(except);
        leases.until[from] = leases.until[from].max(until);
    }

    /// Whether the process of the granter that acknowledged the term covers the chunk now.
    pub(crate) fn is_covered(&self, granter: NodeId, acked_by: u8) -> bool {
        let leases = &self.node.leases;
        let kept = self.without(Mutation::LeaseKept) && leases.until[granter] > 0;
        let same =
            leases.start[granter] == acked_by || self.without(Mutation::LeaseOfAnotherProcess);
        same && (leases.until[granter] > self.clock || kept)
            && leases.from_epoch[granter] <= self.node.now.config.epoch
    }
}
