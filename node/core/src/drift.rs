//! Clocks of two nodes that run apart faster than leases allow for (design.md section 12).
//!
//! A lease is used for 400 ms of the holder's clock and binds for 500 ms of the granter's: enough
//! while the granter's clock runs less than 1.25 times as fast. Answers to beats carry the granter's
//! clock. Between two of them the holder's clock shows at least the true time from the sending of the
//! first beat to the arrival of the second answer, however long they were on their way; so a
//! granter's clock that shows 1.23 times that or more does run ahead: clocks within 10 % of true time
//! stay below 1.1 / 0.9. Its leases are not used then:
//! every read is confirmed by the members instead.

use core::time::Duration;

use ashlar_types::{StartNumber, Time};

/// Between two comparisons: long against what a beat is on its way, or drift could hide behind it.
const WINDOW: Duration = Duration::from_secs(5);
/// For so long leases of a granter that ran ahead are not used.
const DISTRUST: Duration = Duration::from_secs(60);

/// One granter's clock, as its answers show it.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    /// Process of the granter, when the first beat was sent here, what its clock showed then.
    first: Option<(StartNumber, Time, Time)>,
    distrusted_until: Time,
}

impl Drift {
    /// An answer has come to a beat sent at `sent`: the granter's clock showed `theirs`. True if its
    /// clock is found to run ahead now, and was not before.
    pub(crate) fn on_answer(
        &mut self,
        now: Time,
        sent: Time,
        start: StartNumber,
        theirs: Time,
    ) -> bool {
        let Some((_, first_sent, first_theirs)) =
            self.first.filter(|(process, _, before)| *process == start && *before <= theirs)
        else {
            self.first = Some((start, sent, theirs));
            return false;
        };
        let ours = now.since(first_sent);
        if ours < WINDOW {
            return false;
        }
        self.first = Some((start, sent, theirs));
        let runs_ahead = theirs.since(first_theirs) * 100 > ours * 123;
        let is_new = runs_ahead && self.is_trusted(now);
        if runs_ahead {
            self.distrusted_until = now + DISTRUST;
        }
        is_new
    }

    /// Whether the granter's leases may be used.
    pub(crate) fn is_trusted(&self, now: Time) -> bool {
        now >= self.distrusted_until
    }
}
