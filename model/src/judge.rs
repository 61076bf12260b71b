//! What the client saw, reduced to what decides whether it is linearizable.
//!
//! Every value is written once (a repetition by the client is the same operation), so a history is
//! linearizable exactly if no two values precede each other: some operation on `a` ended before one
//! on `b` began, and the other way round (Gibbons and Korach 1997; operations on a value are its
//! write and the reads that returned it). A write that was never answered has no end and may take
//! effect at any time.

use crate::words::{Lsn, VALUES, Value};

/// The history of the client's operations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Judge {
    /// Values of which some operation has ended, as bits; the first content counts.
    ended: u8,
    /// Bit `b` of `before[a]`: an operation on `a` ended before one on `b` began.
    before: [u8; VALUES],
    /// The newest position each value was assigned at.
    pub(crate) assigned: [Lsn; VALUES],
    /// The position under which each write was acknowledged.
    pub(crate) acknowledged: [Option<Lsn>; VALUES],
    /// Values that the client has asked to be written.
    pub(crate) begun: Value,
}

impl Judge {
    pub(crate) fn new(first: Lsn) -> Self {
        let mut judge = Self {
            ended: 1,
            before: [0; VALUES],
            assigned: [Lsn::ZERO; VALUES],
            acknowledged: [None; VALUES],
            begun: 0,
        };
        judge.assigned[0] = first;
        judge
    }

    /// What had ended when an operation began.
    pub(crate) const fn now(&self) -> u8 {
        self.ended
    }

    fn follows(&mut self, value: Value, ended: u8) {
        for other in (0..VALUES).filter(|other| ended & (1 << other) != 0) {
            if other != usize::from(value) {
                self.before[other] |= 1 << value;
            }
        }
    }

    pub(crate) fn begin_write(&mut self) -> Value {
        self.begun += 1;
        self.follows(self.begun, self.ended);
        self.begun
    }

    pub(crate) fn end_write(&mut self, value: Value, lsn: Lsn) {
        self.acknowledged[usize::from(value)] = Some(lsn);
        self.ended |= 1 << value;
    }

    pub(crate) fn end_read(&mut self, value: Value, ended_at_begin: u8) {
        self.follows(value, ended_at_begin);
        self.ended |= 1 << value;
    }

    pub(crate) fn is_linearizable(&self) -> bool {
        (0..VALUES).all(|a| {
            (0..a).all(|b| self.before[a] & (1 << b) == 0 || self.before[b] & (1 << a) == 0)
        })
    }

    /// Whether a copy with this content has the acknowledged writes, or later ones in their place.
    pub(crate) fn has_acknowledged(&self, content: Value) -> bool {
        let position = self.assigned[usize::from(content)];
        self.acknowledged.iter().flatten().all(|lsn| position >= *lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_the_old_value_after_the_write_ended_is_noticed() {
        let mut judge = Judge::new(Lsn::ZERO);
        let value = judge.begin_write();
        let during = judge.now();
        judge.end_write(value, Lsn::ZERO);
        let after = judge.now();
        judge.end_read(0, during);
        assert!(judge.is_linearizable(), "the read began before the write ended");
        judge.end_read(0, after);
        assert!(!judge.is_linearizable());
    }

    #[test]
    fn a_value_once_seen_is_never_unseen() {
        let mut judge = Judge::new(Lsn::ZERO);
        let value = judge.begin_write();
        judge.end_read(value, judge.now());
        assert!(judge.is_linearizable(), "an unanswered write may have happened");
        judge.end_read(0, judge.now());
        assert!(!judge.is_linearizable());
    }
}
