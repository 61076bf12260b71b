//! Large interruption: many nodes are lost at once (design.md section 6).
//!
//! In April 2011 all nodes that had lost their peers searched for new homes at the same time. Here
//! the zone stops searching instead: lost copies that may come back are waited for, and only chunks
//! that have a single copy left, or whose writes wait, still search.
//!
//! ```text
//!          at least 3 nodes and 10 % lost within 30 s
//!   Calm ----------------------------------------------> Interrupted
//!    ^                                                    |  no new loss for 60 s,
//!    |  100 searches a second and node                    v  or 15 minutes
//!    +------------------------------------------------- Opening: 1, 2, 4, ... a second, each for 10 s
//!                                                         |  as many new losses: Interrupted again
//! ```
//! A node counts once, from when it is found lost; one that is lost already is no new loss. One that
//! holds nothing is none: nobody searches on its account. A new leader knows no history: what is lost
//! when it begins to judge counts as lost then, so that an interruption outlives a leader that dies
//! with it. The price: a leader elected while so many nodes have been lost for long, and still hold
//! replicas, stops searches for a minute.
//!
//! Pure and volatile: driven by the leader at every plan.

use crate::observe::{Observations, SILENT_VOTE_MILLIS};
use crate::state::ZoneState;
use crate::verdict::{self, ACCUSERS_MIN, Verdict, Verdicts};
use alloc::collections::{BTreeMap, BTreeSet};
use ashlar_types::message::cluster::SearchBudget;
use ashlar_types::{NodeId, Time};
use core::time::Duration;

/// Fewer lost nodes are no large interruption.
pub const LOST_MIN: usize = 3;
/// Nor is a smaller part of the zone's nodes, in percent.
pub const LOST_PERCENT: usize = 10;
/// They must be lost within this time.
pub const LOST_WITHIN: Duration = Duration::from_secs(30);
/// It ends when no node was lost for this long.
pub const QUIET: Duration = Duration::from_secs(60);
/// It ends after this time at latest.
pub const LONGEST: Duration = Duration::from_secs(15 * 60);
/// How long each step of the opening lasts.
pub const STEP: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Calm,
    Interrupted {
        since: Time,
    },
    Opening {
        since: Time,
    },
}

/// What the zone knows of its losses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interruption {
    phase: Phase,
    /// Nodes that are lost now.
    lost: BTreeSet<NodeId>,
    /// When each node was found lost, since the last interruption ended.
    losses: BTreeMap<NodeId, Time>,
    last_loss: Time,
}

impl Interruption {
    /// Takes in who is lost now, of so many nodes of the zone.
    pub fn on_losses(&mut self, now: Time, nodes: usize, lost: BTreeSet<NodeId>) {
        for node in lost.difference(&self.lost) {
            self.losses.insert(*node, now);
            self.last_loss = now;
        }
        self.lost = lost;
        if let Phase::Interrupted { since } = self.phase {
            let quiet = now.since(self.last_loss) >= QUIET;
            if quiet || now.since(since) >= LONGEST {
                self.phase = Phase::Opening { since: now };
                self.losses.clear();
            }
            return;
        }
        self.losses.retain(|_, at| now.since(*at) < LOST_WITHIN);
        if self.losses.len() >= LOST_MIN && self.losses.len() * 100 >= nodes * LOST_PERCENT {
            self.phase = Phase::Interrupted { since: now };
        } else if self.searches_per_second(now) >= SearchBudget::FULL.per_second {
            self.phase = Phase::Calm;
        }
    }

    /// Since when there is a large interruption, and how many nodes are lost; none, if there is none.
    #[must_use]
    pub fn is_on(&self) -> Option<(Time, usize)> {
        match self.phase {
            Phase::Interrupted { since } => Some((since, self.lost.len())),
            Phase::Calm | Phase::Opening { .. } => None,
        }
    }

    /// What nodes may search for now.
    #[must_use]
    pub fn budget(&self, now: Time) -> SearchBudget {
        let only_urgent = self.is_on().is_some();
        SearchBudget { only_urgent, per_second: self.searches_per_second(now) }
    }

    fn searches_per_second(&self, now: Time) -> u32 {
        match self.phase {
            Phase::Calm => SearchBudget::FULL.per_second,
            Phase::Interrupted { .. } => 1,
            Phase::Opening { since } => {
                let steps = now.since(since).as_secs() / STEP.as_secs();
                let steps = u32::try_from(steps).unwrap_or(u32::MAX).min(16);
                (1 << steps).min(SearchBudget::FULL.per_second)
            }
        }
    }
}

/// Nodes whose replicas are lost to their peers: dead, cut off, without a primary network, or
/// unreachable for half of the voters. (A tie keeps a primary; here it costs only a pause, and a zone
/// that falls apart in halves must not copy itself twice.) Empty until the leader may judge.
#[must_use]
pub fn lost_nodes(
    now: Time,
    state: &ZoneState,
    seen: &Observations,
    verdicts: &Verdicts,
) -> BTreeSet<NodeId> {
    let is_lost = |node: NodeId, verdict: &Verdict| match verdict {
        Verdict::Dead { .. } | Verdict::Hidden { .. } | Verdict::Up { cut: true } => true,
        Verdict::Up { cut: false } | Verdict::Relayed { .. } | Verdict::Unknown { .. } => {
            let votes = verdict::votes(now, node, None, SILENT_VOTE_MILLIS, state, seen);
            votes.down >= ACCUSERS_MIN && votes.down >= votes.up
        }
    };
    if !seen.may_judge(now) {
        return BTreeSet::new();
    }
    let holding = verdicts.iter().filter(|(node, _)| state.replicas_on(**node) > 0);
    holding.filter(|(node, verdict)| is_lost(**node, verdict)).map(|(node, _)| *node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const SECOND: u64 = 1_000;

    /// Nodes of these numbers are lost at a time.
    fn at(interruption: &mut Interruption, millis: u64, nodes: usize, lost: &[u32]) -> bool {
        let lost = lost.iter().map(|node| NodeId(*node)).collect();
        interruption.on_losses(Time::from_millis(millis), nodes, lost);
        interruption.is_on().is_some()
    }

    #[test]
    fn three_nodes_and_a_tenth_of_the_zone_within_half_a_minute() {
        let mut few = Interruption::default();
        assert!(!at(&mut few, 0, 4, &[1, 2]), "two nodes");
        let mut small = Interruption::default();
        assert!(!at(&mut small, 0, 40, &[1, 2, 3]), "less than a tenth");
        assert!(at(&mut small, SECOND, 40, &[1, 2, 3, 4]));
        let mut slowly = Interruption::default();
        assert!(!at(&mut slowly, 0, 10, &[1]));
        assert!(!at(&mut slowly, 20 * SECOND, 10, &[1, 2]));
        assert!(!at(&mut slowly, 31 * SECOND, 10, &[1, 2, 3]), "the first was before");
        assert!(at(&mut slowly, 40 * SECOND, 10, &[1, 2, 3, 4]));
        let mut flapping = Interruption::default();
        for millis in 0..20 {
            assert!(
                !at(&mut flapping, 2 * millis * SECOND, 10, &[1, 2]),
                "two nodes, over and over"
            );
            assert!(!at(&mut flapping, (2 * millis + 1) * SECOND, 10, &[]));
        }
    }

    #[test]
    fn it_ends_a_minute_after_the_last_loss_and_after_a_quarter_of_an_hour_at_latest() {
        let mut one = Interruption::default();
        assert!(at(&mut one, 0, 10, &[1, 2, 3]));
        assert!(at(&mut one, 50 * SECOND, 10, &[1, 2, 3, 4]));
        assert!(at(&mut one, 109 * SECOND, 10, &[1, 2, 3, 4]));
        assert!(!at(&mut one, 110 * SECOND, 10, &[1, 2, 3, 4]));
        let mut long = Interruption::default();
        let mut lost = Vec::from([1, 2, 3]);
        assert!(at(&mut long, 0, 100, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
        for minute in 1..15 {
            lost.push(10 + minute);
            assert!(at(&mut long, u64::from(minute) * 60 * SECOND - 1, 100, &lost));
        }
        lost.push(99);
        assert!(at(&mut long, (15 * 60 - 1) * SECOND, 100, &lost), "a loss just now");
        assert!(!at(&mut long, 15 * 60 * SECOND, 100, &lost));
    }

    #[test]
    fn afterwards_search_opens_by_steps_and_only_new_losses_end_that() {
        let mut zone = Interruption::default();
        let budget = |zone: &Interruption, millis| zone.budget(Time::from_millis(millis));
        assert_eq!(budget(&zone, 0), SearchBudget::FULL);
        at(&mut zone, 0, 10, &[1, 2, 3]);
        assert_eq!(budget(&zone, 0), SearchBudget { only_urgent: true, per_second: 1 });
        let mut allowed = Vec::new();
        for second in 1..=130 {
            assert!(!at(&mut zone, second * SECOND, 10, &[1, 2, 3]) || second < 60);
            let now = budget(&zone, second * SECOND);
            assert_eq!(now.only_urgent, second < 60);
            if second % 10 == 0 && second >= 60 {
                allowed.push(now.per_second);
            }
        }
        assert_eq!(allowed, [1, 2, 4, 8, 16, 32, 64, 100]);
        assert_eq!(budget(&zone, 130 * SECOND), SearchBudget::FULL);
        // Two more are no interruption, although five are lost together; three more are.
        assert!(!at(&mut zone, 140 * SECOND, 10, &[1, 2, 3, 4, 5]));
        assert!(at(&mut zone, 141 * SECOND, 10, &[1, 2, 3, 4, 5, 6]));
    }
}
