//! What a primary asks the control plane to change: one compare-and-set at a time (section 3).
//!
//! Order of urgency: a secondary that does not answer (writes wait for it) or is too slow, a learner
//! that does not answer, a promotion whose outcome is unknown, copies that are missing. A proposal
//! that brings no later epoch is made again after a while: its time-out decides nothing. Only a search
//! for a new home waits longer each time, and is bounded (section 7): searches that find no space
//! were what brought a whole region down.

use super::{Follower, Primary};
use crate::context::Context;
use crate::durable::ReplicaDurable;
use crate::outbox::Effect;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_types::message::cluster::{Change, ControlUp, Proposal, RemovalReason};
use ashlar_types::{ChunkConfig, Epoch, ReplicaId, Time};
use core::time::Duration;

/// How searches for a new home that bring nothing follow each other (section 7).
const SEARCH: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(100), max: Duration::from_secs(60) };
/// Most searches of a chunk within [`SEARCHES_WITHIN`], whatever the dice say.
const SEARCHES_MAX: usize = 12;
const SEARCHES_WITHIN: Duration = Duration::from_secs(60);

/// When to propose.
#[derive(Debug)]
pub(super) struct Proposals {
    next_at: Time,
    degraded_since: Option<Time>,
    search: Backoff,
    search_at: Time,
    /// The last searches, oldest first.
    searches: VecDeque<Time>,
    /// Secondaries that were too slow.
    slow: Vec<Slow>,
}

/// A secondary that all others waited for.
#[derive(Debug)]
struct Slow {
    replica: ReplicaId,
    /// When that was said last.
    since: Time,
    /// How often it came back and was too slow again.
    relapses: u32,
}

impl Default for Proposals {
    fn default() -> Self {
        Self {
            next_at: Time::ZERO,
            degraded_since: None,
            search: Backoff::new(SEARCH),
            search_at: Time::ZERO,
            searches: VecDeque::new(),
            slow: Vec::new(),
        }
    }
}

impl Proposals {
    pub(super) fn epoch_changed(&mut self, now: Time) {
        self.next_at = now;
    }

    /// A node can be reached again: it may have room. A later epoch alone
    /// tells nothing, or a learner that is added and cannot be reached would start the search anew
    /// each time.
    pub(super) fn peer_returned(&mut self, now: Time) {
        self.search.reset();
        self.search_at = now;
    }

    fn may_search(&self, now: Time) -> bool {
        let used_up = self.searches.len() >= SEARCHES_MAX
            && self.searches.front().is_some_and(|at| now.since(*at) <= SEARCHES_WITHIN);
        now >= self.search_at && !used_up
    }

    /// A search is proposed. Cores have no dice: the moment to the nanosecond and the chunk spread
    /// the waits of the many chunks that lost a copy together.
    fn searched(&mut self, now: Time, salt: u64, retry: Duration) {
        self.searches.push_back(now);
        if self.searches.len() > SEARCHES_MAX {
            self.searches.pop_front();
        }
        let mixed = (now.as_nanos() ^ salt.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.search_at = now + self.search.next_wait(mixed ^ (mixed >> 29)).max(retry);
    }

    /// A proposal that was lost on its way is made again: only one after a rest is a relapse.
    fn note_slow(&mut self, replica: ReplicaId, context: &Context<'_>) {
        let (now, rest) = (context.now, context.timing.slow_rest);
        match self.slow.iter_mut().find(|slow| slow.replica == replica) {
            Some(slow) => {
                slow.relapses += u32::from(now.since(slow.since) >= rest);
                slow.since = now;
            }
            None => self.slow.push(Slow { replica, since: now, relapses: 0 }),
        }
    }

    /// Each relapse doubles the rest, up to the time after which another home is sought.
    fn rests(&self, replica: ReplicaId, context: &Context<'_>) -> bool {
        self.slow.iter().filter(|slow| slow.replica == replica).any(|slow| {
            let rest = context.timing.slow_rest * 2_u32.saturating_pow(slow.relapses.min(8));
            context.now.since(slow.since) < rest.min(context.timing.slow_search)
        })
    }

    /// Whether slowness alone explains that copies are missing: they come back by themselves.
    fn only_slow(&self, config: &ChunkConfig, context: &Context<'_>) -> bool {
        let resting = |replica: ReplicaId| {
            self.slow.iter().any(|slow| {
                slow.replica == replica
                    && context.now.since(slow.since) < context.timing.slow_search
            })
        };
        let here = config.in_sync.len() + config.learners.len();
        let missing = usize::from(config.copies_wanted).saturating_sub(here);
        let slow = config.stale.iter().filter(|(replica, _)| resting(*replica)).count();
        missing > 0 && slow >= missing
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
            if let Change::RemoveSecondary { replica, reason: RemovalReason::Slow { .. } } = change
            {
                self.proposals.note_slow(replica, context);
            }
            let config = &durable.config;
            let (chunk, epoch, proposer) = (config.chunk, config.epoch, durable.replica);
            if change == Change::SeekLearner {
                context.searches.take(context.now);
                let salt = u64::from(chunk.index.0) ^ u64::from(context.me.node.0).rotate_left(16);
                self.proposals.searched(context.now, salt, context.timing.retry);
            }
            let proposal = Proposal { chunk, epoch, proposer, change };
            context.out.push(Effect::Control(ControlUp::Propose(vec![proposal])));
        } else if durable.proposal.is_some() {
            self.proposals.next_at = context.now + context.timing.retry;
            self.propose_promotion(durable, context);
        }
    }

    /// The control plane wants another primary, and asks this one to stay as its secondary. The answer
    /// is no promise: until a later epoch is adopted, this replica goes on as before, and what it
    /// acknowledges meanwhile every other in-sync replica has (docs/decisions/0010). It agrees only
    /// while it reaches all of them, by either network: otherwise writes would wait for it.
    pub(crate) fn asked_to_follow(
        &mut self,
        epoch: Epoch,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let config = &durable.config;
        let reaches = |replica: ReplicaId| {
            let silence = context.timing.silence;
            context.peers.reachable(replica.node)
                && context.peers.unresponsive(context.now, replica.node, silence).is_none()
        };
        let of_use = config.in_sync.len() > 1 && config.secondaries().all(reaches);
        if config.epoch != epoch || self.is_unfit() || !of_use {
            return;
        }
        let (chunk, proposer) = (config.chunk, durable.replica);
        let proposal = Proposal { chunk, epoch, proposer, change: Change::Follow };
        context.out.push(Effect::Control(ControlUp::Propose(vec![proposal])));
    }

    fn note_degraded(&mut self, durable: &ReplicaDurable, now: Time) {
        let config = &durable.config;
        let whole = config.in_sync.len() >= usize::from(config.copies_wanted);
        if whole {
            self.proposals.degraded_since = None;
            self.proposals.search.reset();
        } else {
            self.proposals.degraded_since.get_or_insert(now);
        }
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
        if let Some(change) = self.wanted_for_slowness(durable, context) {
            return Some(change);
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
        let urgent = config.in_sync.len() <= 1 || !config.may_acknowledge();
        let back = config.stale.iter().map(|(replica, _)| *replica).find(|replica| {
            (urgent || !self.proposals.rests(*replica, context))
                && context.peers.reachable(replica.node)
                && context.peers.process(replica.node).is_some_and(|p| p.has_store_of(*replica))
        });
        if let Some(replica) = back {
            return Some(Change::ReadoptStale { replica });
        }
        let waited = self
            .proposals
            .degraded_since
            .is_some_and(|since| context.now.since(since) >= context.timing.readopt_window);
        // What its node has come back without is not waited for (design.md section 7).
        let may_return = |replica: ReplicaId| {
            context.peers.process(replica.node).is_none_or(|process| process.has_store_of(replica))
        };
        let none_returns = !config.stale.iter().any(|(replica, _)| may_return(*replica));
        let wanted =
            urgent || (!self.proposals.only_slow(config, context) && (waited || none_returns));
        let may =
            || self.proposals.may_search(context.now) && context.searches.may(context.now, urgent);
        (wanted && may()).then_some(Change::SeekLearner)
    }
}

/// Why a follower counts as lost, if it does.
fn removal_reason(follower: &Follower, context: &Context<'_>) -> Option<RemovalReason> {
    let node = follower.replica.node;
    let process = context.peers.process(node);
    let foreign = process.is_some_and(|process| !process.has_store_of(follower.replica));
    if follower.says_gone || foreign {
        return Some(RemovalReason::ReportedGone);
    }
    context.peers.unresponsive(context.now, node, context.timing.silence)
}
