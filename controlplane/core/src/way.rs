//! Calls to another zone: of which kind they are, what each kind may cost, and which of that zone's
//! members is asked, one after the other.
//!
//! A call begins at the member that answered last and goes on to another one only if repeating it
//! does no harm, while its time lasts; whoever makes it asks the retry budget of its bulkhead as
//! well ([`crate::bulkhead::Bulkhead::take_retry`]). The member that is asked finds its zone's leader
//! by itself, so a call makes one hop here and at most one there.

use crate::bulkhead::Limits;
use ashlar_types::Time;
use ashlar_types::backoff::BackoffPolicy;
use core::time::Duration;

/// Times of all breakers: a zone whose leader is elected anew is found within a second, one that
/// is off is asked every few seconds.
pub const OPEN: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(500), max: Duration::from_secs(5) };
/// How long a probe may take.
pub const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// How long a call to all zones waits for one of them. An election takes about as long; more would
/// make every list wait for a zone that hangs, until its breaker opens.
pub const EACH_ZONE_WITHIN: Duration = Duration::from_secs(1);

/// Kinds of calls that must not hold each other up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// Reads.
    Describe,
    /// Changes of volumes and members.
    Change,
    /// What clients need for their data: attach, detach, maps. Waits for nodes.
    Attach,
}

impl Api {
    /// All kinds: one bulkhead each.
    pub const ALL: [Self; 3] = [Self::Describe, Self::Change, Self::Attach];

    /// Its name in errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Change => "change",
            Self::Attach => "attach",
        }
    }

    /// Longest deadline of a call: what waits longer only holds a place.
    #[must_use]
    pub const fn within_max(self) -> Duration {
        match self {
            Self::Describe => Duration::from_secs(5),
            Self::Change => Duration::from_secs(10),
            Self::Attach => Duration::from_secs(60),
        }
    }

    /// What its calls to one zone may cost.
    #[must_use]
    pub const fn limits(self) -> Limits {
        let (running_max, patience) = match self {
            Self::Describe => (64, Duration::from_secs(1)),
            Self::Change => (32, Duration::from_secs(2)),
            // A map can have 32 MiB, and nodes may take long to adopt a generation.
            Self::Attach => (32, Duration::from_secs(20)),
        };
        Limits {
            running_max,
            waiting_max: running_max,
            failures_to_open: 3,
            open: OPEN,
            patience,
            retries_stored_max: 10,
        }
    }
}

/// One question to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Which of the zone's members, counted from 0.
    pub member: usize,
    /// Until when it may answer.
    pub until: Time,
}

/// The members that one call is put to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    first: usize,
    members: usize,
    tried: usize,
    repeatable: bool,
    deadline: Time,
}

impl Tries {
    /// Of a call to a zone of so many members that begins at the `first`, which answered last.
    #[must_use]
    pub const fn new(first: usize, members: usize, repeatable: bool, deadline: Time) -> Self {
        Self { first, members, tried: 0, repeatable, deadline }
    }

    /// The next question. Half of the time that is left is kept for another member, if one may be
    /// asked after this one.
    pub fn next(&mut self, now: Time) -> Try {
        let member = self.at(self.tried);
        self.tried += 1;
        let left = self.deadline.since(now);
        let left = if self.may_repeat() { left / 2 } else { left };
        Try { member, until: now + left }
    }

    /// Whether another member may be asked, after one was silent.
    #[must_use]
    pub fn goes_on(&self, now: Time) -> bool {
        self.may_repeat() && now < self.deadline
    }

    /// The member that is asked first the next time, after the last one answered, or was silent.
    #[must_use]
    pub const fn preferred(&self, answered: bool) -> usize {
        self.at(if answered { self.tried.saturating_sub(1) } else { self.tried })
    }

    const fn may_repeat(&self) -> bool {
        self.repeatable && self.tried < self.members
    }

    const fn at(&self, nth: usize) -> usize {
        match self.first.wrapping_add(nth).checked_rem(self.members) {
            Some(member) => member,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_asked_once_and_half_of_the_time_is_kept_for_the_next() {
        let at = Time::from_millis;
        let mut tries = Tries::new(2, 3, true, at(800));
        assert_eq!(tries.next(at(0)), Try { member: 2, until: at(400) });
        assert!(tries.goes_on(at(400)) && !tries.goes_on(at(800)));
        assert_eq!(tries.preferred(false), 0);
        assert_eq!(tries.next(at(400)), Try { member: 0, until: at(600) });
        assert_eq!(tries.preferred(true), 0);
        assert_eq!(tries.next(at(600)), Try { member: 1, until: at(800) });
        assert!(!tries.goes_on(at(700)), "all were asked");
    }

    #[test]
    fn what_must_not_be_repeated_is_asked_of_one_member_with_all_its_time() {
        let at = Time::from_millis;
        let mut tries = Tries::new(0, 3, false, at(800));
        assert_eq!(tries.next(at(0)), Try { member: 0, until: at(800) });
        assert!(!tries.goes_on(at(1)));
        // A configuration that names no member: there is one to fail at.
        assert_eq!(Tries::new(5, 0, true, at(1)).next(at(0)).member, 0);
    }
}
