//! Slow is not dead, but every write waits for it (design.md 4.7).
//!
//! A secondary that has not acknowledged a write for a second, while this replica and all others
//! have, is proposed for removal: it turns stale, and is filled again after a rest. If it is this
//! replica's own disk that lags behind all others, it asks for another primary. Neither is done
//! when fewer than `copies_min` would remain: then waiting is the promise.

use super::Primary;
use crate::context::Context;
use crate::durable::ReplicaDurable;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{Change, RemovalReason};
use ashlar_types::{Lsn, Time};

impl Primary {
    /// What to propose about the one replica that all others wait for, if there is one.
    pub(super) fn wanted_for_slowness(
        &self,
        durable: &ReplicaDurable,
        context: &Context<'_>,
    ) -> Option<Change> {
        let config = &durable.config;
        if !self.is_serving() || config.in_sync.len() <= usize::from(config.copies_min) {
            return None;
        }
        let (oldest, since) = self.oldest_uncommitted()?;
        let waited = context.now.since(since.max(context.peers.listening_since()));
        if waited < context.timing.slow {
            return None;
        }
        let millis = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
        let behind: Vec<_> = self
            .followers
            .iter()
            .filter(|f| self.is_required(f.replica, durable) && f.acked < oldest)
            .map(|follower| follower.replica)
            .collect();
        match behind.as_slice() {
            [] if self.own_durable < oldest => Some(Change::StepDown { millis }),
            [replica] if self.own_durable >= oldest && config.is_in_sync(*replica) => {
                let (replica, reason) = (*replica, RemovalReason::Slow { millis });
                Some(Change::RemoveSecondary { replica, reason })
            }
            // Several are behind, or a promotion is not decided: nobody is slower than the others.
            _ => None,
        }
    }

    fn oldest_uncommitted(&self) -> Option<(Lsn, Time)> {
        let oldest = self.in_flight.iter().find(|write| write.lsn > self.committed)?;
        Some((oldest.lsn, oldest.since))
    }
}
