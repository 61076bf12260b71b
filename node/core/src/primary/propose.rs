//! What a primary asks the control plane to change: one compare-and-set at a time (section 3).
//!
//! Order of urgency: a secondary that does not answer (writes wait for it), a learner that does
//! not answer, a promotion whose outcome is unknown, copies that are missing. A proposal that
//! brings no later epoch is made again after a while: its time-out decides nothing.

use super::{Follower, Primary};
use crate::context::Context;
use crate::durable::ReplicaDurable;
use crate::outbox::Effect;
use alloc::vec;
use ashlar_types::Time;
use ashlar_types::message::cluster::{Change, ControlUp, Proposal, RemovalReason};

/// When to propose.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    next_at: Time,
    degraded_since: Option<Time>,
}

impl Proposals {
    pub(super) fn epoch_changed(&mut self, now: Time) {
        self.next_at = now;
    }
}

impl Primary {
    pub(super) fn propose(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        self.note_degraded(durable, context.now);
        if self.is_serving() && durable.proposal.is_none() {
            self.retry_promotions(durable, context);
        }
        if context.now < self.proposals.next_at {
            return;
        }
        if let Some(change) = self.wanted_change(durable, context) {
            self.proposals.next_at = context.now + context.timing.retry;
            let config = &durable.config;
            let (chunk, epoch, proposer) = (config.chunk, config.epoch, durable.replica);
            let proposal = Proposal { chunk, epoch, proposer, change };
            context.out.push(Effect::Control(ControlUp::Propose(vec![proposal])));
        } else if durable.proposal.is_some() {
            self.proposals.next_at = context.now + context.timing.retry;
            self.propose_promotion(durable, context);
        }
    }

    fn note_degraded(&mut self, durable: &ReplicaDurable, now: Time) {
        let config = &durable.config;
        let whole = config.in_sync.len() >= usize::from(config.copies_wanted);
        self.proposals.degraded_since =
            if whole { None } else { self.proposals.degraded_since.or(Some(now)) };
    }

    fn wanted_change(&self, durable: &ReplicaDurable, context: &Context<'_>) -> Option<Change> {
        let config = &durable.config;
        let lost = |follower: &&Follower| removal_reason(follower, context);
        let secondary = self
            .followers
            .iter()
            .filter(|f| config.is_in_sync(f.replica))
            .find_map(|f| Some((f.replica, lost(&f)?)));
        if let Some((replica, reason)) = secondary {
            return Some(Change::RemoveSecondary { replica, reason });
        }
        let learner =
            self.followers.iter().find(|f| config.is_learner(f.replica) && lost(f).is_some());
        if let Some(follower) = learner {
            return Some(Change::RemoveLearner { replica: follower.replica });
        }
        let enough =
            config.in_sync.len() + config.learners.len() >= usize::from(config.copies_wanted);
        if enough || !self.is_serving() || durable.proposal.is_some() {
            return None;
        }
        self.wanted_copy(durable, context)
    }

    /// A stale replica that is back, or, after the window, a new home.
    fn wanted_copy(&self, durable: &ReplicaDurable, context: &Context<'_>) -> Option<Change> {
        let config = &durable.config;
        let back = config.stale.iter().map(|(replica, _)| *replica).find(|replica| {
            context.peers.reachable(replica.node)
                && context.peers.process(replica.node).is_some_and(|(s, _)| s == replica.store)
        });
        if let Some(replica) = back {
            return Some(Change::ReadoptStale { replica });
        }
        let urgent = config.in_sync.len() <= 1 || !config.may_acknowledge();
        let waited = self
            .proposals
            .degraded_since
            .is_some_and(|since| context.now.since(since) >= context.timing.readopt_window);
        (urgent || waited || config.stale.is_empty()).then_some(Change::SeekLearner)
    }
}

/// Why a follower counts as lost, if it does.
fn removal_reason(follower: &Follower, context: &Context<'_>) -> Option<RemovalReason> {
    let node = follower.replica.node;
    let foreign =
        context.peers.process(node).is_some_and(|(store, _)| store != follower.replica.store);
    if follower.says_gone || foreign {
        return Some(RemovalReason::ReportedGone);
    }
    context.peers.unresponsive(context.now, node, context.timing.silence)
}
