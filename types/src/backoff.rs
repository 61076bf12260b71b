//! The one backoff of Ashlar: exponential with full jitter, capped (R01, F05).
//!
//! Pure arithmetic: the caller brings the dice and the clock.

use core::time::Duration;

/// How waits between attempts grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// Upper bound of the first wait.
    pub first: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
}

/// Attempts so far under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    policy: BackoffPolicy,
    attempts: u32,
}

impl Backoff {
    /// No attempt has failed yet.
    #[must_use]
    pub const fn new(policy: BackoffPolicy) -> Self {
        Self { policy, attempts: 0 }
    }

    /// Counts a failed attempt and gives the wait before the next one: uniform between zero and
    /// the current bound, chosen by `dice` (any 64 random bits).
    pub fn next_wait(&mut self, dice: u64) -> Duration {
        let doubled = self.policy.first.saturating_mul(1_u32 << self.attempts.min(20));
        self.attempts = self.attempts.saturating_add(1);
        let bound = u64::try_from(doubled.min(self.policy.max).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(dice % bound.max(1))
    }

    /// Failed attempts since the last reset.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt succeeded, or the world changed: start over.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_under_a_doubling_bound_and_the_cap() {
        let policy =
            BackoffPolicy { first: Duration::from_millis(100), max: Duration::from_secs(60) };
        let mut backoff = Backoff::new(policy);
        for attempt in 0..40_u32 {
            let bound =
                Duration::from_millis(100).saturating_mul(1 << attempt.min(20)).min(policy.max);
            assert!(backoff.next_wait(u64::MAX - 3) < bound);
        }
        backoff.reset();
        assert!(backoff.next_wait(u64::MAX) < policy.first);
    }
}
