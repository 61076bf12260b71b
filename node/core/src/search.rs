//! How often this node may search for new homes: a budget that the control plane sets (section 7).
//!
//! In a large interruption only chunks with a single copy left, or whose writes wait, search at all.
//! The budget is that of the leader that spoke last; a node that nobody has told yet has the full one.

use ashlar_types::Time;
use ashlar_types::message::cluster::SearchBudget;
use core::time::Duration;

/// Searches may come this much before their turn: chunks are looked at once a tick, and several may
/// be due together.
const AHEAD: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Searches {
    budget: SearchBudget,
    /// Whose turn is at this moment, if searches are evenly spaced.
    turn: Time,
}

impl Default for Searches {
    fn default() -> Self {
        Self { budget: SearchBudget::FULL, turn: Time::ZERO }
    }
}

impl Searches {
    /// The control plane has said what is allowed from now on.
    pub(crate) fn set(&mut self, now: Time, budget: SearchBudget) {
        self.budget = budget;
        // A slower pace before must not hold up a faster one.
        self.turn = self.turn.min(now + self.interval());
    }

    /// Whether one more search may begin now.
    pub(crate) fn may(&self, now: Time, urgent: bool) -> bool {
        (urgent || !self.budget.only_urgent) && self.turn <= now + AHEAD
    }

    /// A search begins.
    pub(crate) fn take(&mut self, now: Time) {
        self.turn = self.turn.max(now) + self.interval();
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.budget.per_second.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches within ten seconds of ticks, with more than enough to search for.
    fn in_ten_seconds(searches: &mut Searches, from: u64, urgent: bool) -> usize {
        let mut begun = 0;
        for tick in 0..200 {
            let now = Time::from_millis(from + tick * 50);
            while searches.may(now, urgent) {
                searches.take(now);
                begun += 1;
            }
        }
        begun
    }

    #[test]
    fn searches_are_as_many_as_the_budget_says() {
        let mut searches = Searches::default();
        assert!((990..=1_011).contains(&in_ten_seconds(&mut searches, 1_000, false)));
        let interrupted = SearchBudget { only_urgent: true, per_second: 1 };
        searches.set(Time::from_millis(20_000), interrupted);
        assert_eq!(in_ten_seconds(&mut searches, 20_000, false), 0);
        assert!((9..=11).contains(&in_ten_seconds(&mut searches, 30_000, true)));
        searches.set(Time::from_millis(41_000), SearchBudget::FULL);
        assert!((990..=1_011).contains(&in_ten_seconds(&mut searches, 41_000, false)));
    }
}
