//! Slow is not dead, but everybody waits for it (design.md 4.7).
//!
//! A secondary that has not acknowledged a write for a second, while this replica and all others
//! have, is proposed for removal: it turns stale, and is filled again after a rest. If it is this
//! replica's own disk that lags behind all others, it asks for another primary. Neither is done
//! when fewer than `copies_min` would remain: then waiting is the promise.
//!
//! An opening waits for the same disks: each member's answer, and each of its writes, lies behind a
//! record in its journal. There it takes a grant longer, since members wait for leases to run out.
//! A disk that takes nothing may give nothing either: a read that the store here owes for long counts
//! as its lag, where nobody writes.

use super::Primary;
use super::opening::Phase;
use crate::context::Context;
use crate::durable::ReplicaDurable;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{Change, RemovalReason};
use ashlar_types::{Lsn, ReplicaId, Time};
use core::time::Duration;

/// Who keeps the others waiting, and since when.
struct Lag {
    since: Time,
    /// From when on it is too long.
    bound: Duration,
    behind: Vec<ReplicaId>,
    /// The disk here has not done its part.
    own: bool,
}

impl Primary {
    /// What to propose about the one replica that all others wait for, if there is one.
    pub(super) fn wanted_for_slowness(
        &self,
        durable: &ReplicaDurable,
        context: &Context<'_>,
    ) -> Option<Change> {
        let config = &durable.config;
        if config.in_sync.len() <= usize::from(config.copies_min) {
            return None;
        }
        let lag = self.lag(durable, context)?;
        let waited = context.now.since(lag.since.max(context.peers.listening_since()));
        if waited < lag.bound {
            return None;
        }
        let millis = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
        match lag.behind.as_slice() {
            [] if lag.own => Some(Change::StepDown { millis }),
            [replica] if !lag.own && config.is_in_sync(*replica) => {
                let (replica, reason) = (*replica, RemovalReason::Slow { millis });
                Some(Change::RemoveSecondary { replica, reason })
            }
            // Several are behind, or a promotion is not decided: nobody is slower than the others.
            _ => None,
        }
    }

    fn lag(&self, durable: &ReplicaDurable, context: &Context<'_>) -> Option<Lag> {
        let (slow, grant) = (context.timing.slow, context.timing.lease_granted);
        let lag = |since, bound, own, behind: &dyn Fn(&super::Follower) -> bool| {
            let required = self.followers.iter().filter(|f| self.is_required(f.replica, durable));
            let behind = required.filter(|f| behind(f)).map(|follower| follower.replica).collect();
            Some(Lag { since, bound, behind, own })
        };
        let unwritten = self.opening_seq > context.gate.durable();
        match &self.phase {
            Phase::Unfit => None,
            Phase::Collecting { .. } => {
                // Nobody is asked before the record here is durable.
                lag(self.opening_since, slow + grant, unwritten, &|f| {
                    !unwritten && f.history.is_none()
                })
            }
            Phase::Fetching { source, .. } => {
                lag(self.opening_since, slow + grant, false, &|f| f.replica.node == *source)
            }
            Phase::Overwriting { .. }
                if self.own_durable.term < self.term || self.is_unopened(durable) =>
            {
                lag(self.opening_since, slow, unwritten, &|f| {
                    !unwritten && f.acked.term < self.term
                })
            }
            Phase::Overwriting { .. } | Phase::Serving => match self.oldest_uncommitted() {
                Some((oldest, since)) => {
                    lag(since, slow, self.own_durable < oldest, &|f| f.acked < oldest)
                }
                None => {
                    let since = self.reads.oldest_owed()?;
                    lag(since, context.timing.slow_read, true, &|_| false)
                }
            },
        }
    }

    /// Whether a member has not opened the term yet.
    fn is_unopened(&self, durable: &ReplicaDurable) -> bool {
        let mut required = self.followers.iter().filter(|f| self.is_required(f.replica, durable));
        required.any(|follower| follower.acked.term < self.term)
    }

    fn oldest_uncommitted(&self) -> Option<(Lsn, Time)> {
        let oldest = self.in_flight.iter().find(|write| write.lsn > self.committed)?;
        Some((oldest.lsn, oldest.since))
    }
}
