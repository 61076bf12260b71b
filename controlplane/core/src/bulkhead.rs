//! What calls to another zone may cost: how many run, how many wait, and when none is made.
//!
//! The region gateway keeps one [`Bulkhead`] per zone and API, so that a zone that hangs holds
//! nothing that another zone needs. It decides only; whoever owns it makes the calls, brings clock
//! and dice, and carries the effects out. Invariants:
//!
//! - At most `running_max` calls run and at most `waiting_max` wait; each of them ends in exactly
//!   one [`Effect::Begin`] or [`Effect::Refuse`], and no call begins after its deadline.
//! - While the breaker is open no call begins and none waits: the gateway asks the zone by itself
//!   ([`Effect::ProbeAt`]), so that no caller pays for finding out.
//! - Retries are at most a tenth of the calls, beyond a small store for the beginning.
//!
//! ```text
//!            failures_to_open in a row                       the probe is answered
//!   Closed ----------------------------> Open (probe at T) -----------------------> Closed,
//!     ^                                    ^   |  the probe fails: T doubles        one failure
//!     |  a call is answered                |   +--+                                 opens it again
//!     +------------------------------------+-----------------------------------------+
//! ```

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use ashlar_types::Time;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use core::time::Duration;

#[cfg(test)]
mod tests;

/// Calls that pay for one retry: 10 % of the calls may be made again (design.md section 10).
const CALLS_PER_RETRY: u32 = 10;

/// Number of a call, chosen by the owner; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Bounds of one bulkhead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls that run at a time.
    pub running_max: usize,
    /// Calls that wait for one of them to end.
    pub waiting_max: usize,
    /// Failures in a row that open the breaker.
    pub failures_to_open: u32,
    /// How long the zone is left alone before it is asked again: grows from the first to the last.
    pub open: BackoffPolicy,
    /// Who gives a running call up after this long says as much as a time-out.
    pub patience: Duration,
    /// Retries that may be made before calls have paid for them.
    pub retries_stored_max: u32,
}

/// What the bulkhead is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A call wants to be made.
    Ask {
        /// Its number.
        call: CallId,
        /// When its caller stops waiting.
        deadline: Time,
    },
    /// A call that began has ended.
    Ended {
        /// Its number.
        call: CallId,
        /// How.
        outcome: Outcome,
    },
    /// Nobody waits for this call any more, whether it began or not. Harmless when it has ended.
    Gone {
        /// Its number.
        call: CallId,
    },
    /// How the question of [`Effect::ProbeAt`] went.
    Probed {
        /// How.
        outcome: Outcome,
    },
}

/// How a call went, as far as the zone is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The zone answered, were it with a refusal.
    Answered,
    /// No answer in time, no connection, or no leader.
    Failed,
}

/// What the owner does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this call.
    Begin(CallId),
    /// Refuse this call.
    Refuse(CallId, Refusal),
    /// At this time ask the zone something small and say how it went ([`Input::Probed`]). Never
    /// given again before that.
    ProbeAt(Time),
}

/// Why a call is not made, and when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Why,
    /// How long to wait: with jitter, so that the refused do not come back together.
    pub retry_after: Duration,
}

/// Why a call is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// As many calls run and wait as may.
    Full,
    /// Its deadline came before its turn.
    Late,
    /// The zone does not answer; none of its calls is made for now.
    Open {
        /// Since when.
        since: Time,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    /// Calls are made; failures in a row.
    Closed { failures: u32 },
    /// None is made before a probe was answered.
    Open { since: Time, probe_at: Time },
}

/// The calls of one API to one zone.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    limits: Limits,
    running: BTreeMap<CallId, Time>,
    waiting: VecDeque<(CallId, Time)>,
    breaker: Breaker,
    opened: Backoff,
    /// Retries in store, in tenths of one.
    retry_store: u32,
}

impl Bulkhead {
    /// Nothing runs, the breaker is closed.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            breaker: Breaker::Closed { failures: 0 },
            opened: Backoff::new(limits.open),
            retry_store: limits.retries_stored_max.saturating_mul(CALLS_PER_RETRY),
        }
    }

    /// Takes in what happened. `dice` are any 64 random bits.
    pub fn handle(&mut self, now: Time, dice: u64, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Ask { call, deadline } => self.on_ask(now, dice, call, deadline, out),
            Input::Ended { call, outcome } => {
                if self.running.remove(&call).is_some() {
                    self.on_outcome(now, dice, outcome, out);
                }
            }
            Input::Gone { call } => {
                self.waiting.retain(|(waiting, _)| *waiting != call);
                let began = self.running.remove(&call);
                // An impatient caller says nothing about the zone.
                if began.is_some_and(|began| now.since(began) >= self.limits.patience) {
                    self.on_outcome(now, dice, Outcome::Failed, out);
                }
            }
            Input::Probed { outcome } => self.on_probed(now, dice, outcome, out),
        }
        self.begin_waiting(now, dice, out);
        self.check();
    }

    /// Whether one more try of a running call may be made; takes it from the store.
    pub fn take_retry(&mut self) -> bool {
        match self.retry_store.checked_sub(CALLS_PER_RETRY) {
            Some(left) => {
                self.retry_store = left;
                true
            }
            None => false,
        }
    }

    /// Since when no call is made; `None` while calls are made.
    #[must_use]
    pub const fn open_since(&self) -> Option<Time> {
        match self.breaker {
            Breaker::Open { since, .. } => Some(since),
            Breaker::Closed { .. } => None,
        }
    }

    fn on_ask(
        &mut self,
        now: Time,
        dice: u64,
        call: CallId,
        deadline: Time,
        out: &mut Vec<Effect>,
    ) {
        if let Breaker::Open { since, probe_at } = self.breaker {
            out.push(Effect::Refuse(call, open_refusal(now, dice, since, probe_at)));
            return;
        }
        if self.running.len() >= self.limits.running_max
            && self.waiting.len() >= self.limits.waiting_max
        {
            out.push(Effect::Refuse(call, self.refusal(Why::Full, dice)));
            return;
        }
        self.waiting.push_back((call, deadline));
    }

    fn begin_waiting(&mut self, now: Time, dice: u64, out: &mut Vec<Effect>) {
        while self.running.len() < self.limits.running_max
            && let Some((call, deadline)) = self.waiting.pop_front()
        {
            if deadline <= now {
                out.push(Effect::Refuse(call, self.refusal(Why::Late, dice)));
                continue;
            }
            self.running.insert(call, now);
            let full = self.limits.retries_stored_max.saturating_mul(CALLS_PER_RETRY);
            self.retry_store = self.retry_store.saturating_add(1).min(full);
            out.push(Effect::Begin(call));
        }
    }

    fn on_outcome(&mut self, now: Time, dice: u64, outcome: Outcome, out: &mut Vec<Effect>) {
        let Breaker::Closed { failures } = self.breaker else { return };
        match outcome {
            Outcome::Answered => {
                self.breaker = Breaker::Closed { failures: 0 };
                self.opened.reset();
            }
            Outcome::Failed if failures.saturating_add(1) >= self.limits.failures_to_open => {
                self.open(now, now, dice, out);
            }
            Outcome::Failed => self.breaker = Breaker::Closed { failures: failures + 1 },
        }
    }

    fn on_probed(&mut self, now: Time, dice: u64, outcome: Outcome, out: &mut Vec<Effect>) {
        let Breaker::Open { since, .. } = self.breaker else { return };
        match outcome {
            // One answer to a small question is no proof: the next failure opens it again, and
            // only an answered call makes the waits short again.
            Outcome::Answered => {
                let failures = self.limits.failures_to_open.saturating_sub(1);
                self.breaker = Breaker::Closed { failures };
            }
            Outcome::Failed => self.open(now, since, dice, out),
        }
    }

    fn open(&mut self, now: Time, since: Time, dice: u64, out: &mut Vec<Effect>) {
        let probe_at = now + self.opened.next_wait(dice);
        self.breaker = Breaker::Open { since, probe_at };
        for (call, _) in self.waiting.drain(..) {
            out.push(Effect::Refuse(call, open_refusal(now, dice, since, probe_at)));
        }
        out.push(Effect::ProbeAt(probe_at));
    }

    /// Refused for want of room: after the first wait of the breaker, and up to as much later.
    fn refusal(&self, why: Why, dice: u64) -> Refusal {
        Refusal { why, retry_after: spread(self.limits.open.first, dice) }
    }

    fn check(&self) {
        debug_assert!(self.running.len() <= self.limits.running_max);
        debug_assert!(self.waiting.len() <= self.limits.waiting_max);
        debug_assert!(self.waiting.is_empty() || self.open_since().is_none());
    }
}

/// Not before the zone was asked again.
fn open_refusal(now: Time, dice: u64, since: Time, probe_at: Time) -> Refusal {
    let left = probe_at.since(now).max(Duration::from_millis(100));
    Refusal { why: Why::Open { since }, retry_after: spread(left, dice) }
}

/// Between `least` and twice as long.
#[must_use]
pub fn spread(least: Duration, dice: u64) -> Duration {
    let nanos = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX);
    least.saturating_add(Duration::from_nanos(dice % nanos.max(1)))
}
