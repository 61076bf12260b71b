//! Orders the writes of one chunk so that no two overlapping ones are ever in flight.
//!
//! Invariants:
//! - the ranges of all active writes are disjoint;
//! - a write waits while an overlapping one that was submitted earlier is active or waits itself,
//!   so overlapping writes take effect in the order of submission.
//!
//! This is what makes resending safe (design.md 4.9): a write that is sent again cannot undo a
//! later one, because the later one has not been sent yet. Reads are not ordered here.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::BlockRange;

/// Active and waiting writes of one chunk; each is named by its slot in the table of parts.
#[derive(Debug, Default)]
pub(crate) struct WriteOrder {
    /// First block to (block after the last, slot). Disjoint, so one look-up finds an overlap.
    active: BTreeMap<u32, (u32, u16)>,
    /// In order of submission.
    waiting: Vec<(u16, BlockRange)>,
    /// Lets everything go at once: proves that the tests notice.
    #[cfg(test)]
    pub(crate) broken: bool,
}

impl WriteOrder {
    /// A write is submitted. Returns whether it is active at once; otherwise [`Self::leave`] of
    /// an earlier one will name it.
    pub(crate) fn enter(&mut self, slot: u16, range: BlockRange) -> bool {
        #[cfg(test)]
        if self.broken {
            return true;
        }
        if self.meets_active(range) || self.waiting.iter().any(|(_, w)| w.overlaps(range)) {
            self.waiting.push((slot, range));
            return false;
        }
        self.active.insert(range.first, (range.end(), slot));
        true
    }

    /// A write is over, or was given up while it waited. Appends the slots that are active now
    /// because of it.
    pub(crate) fn leave(&mut self, slot: u16, range: BlockRange, freed: &mut Vec<u16>) {
        if self.active.get(&range.first).is_some_and(|(_, s)| *s == slot) {
            self.active.remove(&range.first);
        } else {
            self.waiting.retain(|(s, _)| *s != slot);
        }
        if self.waiting.is_empty() {
            return;
        }
        let mut ahead: Vec<BlockRange> = Vec::new();
        let mut waiting = core::mem::take(&mut self.waiting);
        waiting.retain(|&(slot, w)| {
            // One that does not touch `range` was held back by something that is still there.
            let free = w.overlaps(range)
                && !self.meets_active(w)
                && !ahead.iter().any(|other| other.overlaps(w));
            if free {
                self.active.insert(w.first, (w.end(), slot));
                freed.push(slot);
            } else {
                ahead.push(w);
            }
            !free
        });
        self.waiting = waiting;
    }

    fn meets_active(&self, range: BlockRange) -> bool {
        // Active ranges are disjoint: the last one that starts before our end reaches furthest.
        self.active.range(..range.end()).next_back().is_some_and(|(_, (end, _))| *end > range.first)
    }

    /// Whether the write has its turn.
    pub(crate) fn is_active(&self, slot: u16, range: BlockRange) -> bool {
        #[cfg(test)]
        if self.broken {
            return true;
        }
        self.active.get(&range.first).is_some_and(|(end, s)| *s == slot && *end == range.end())
    }

    /// Panics if two active writes overlap, or one waits for nothing.
    pub(crate) fn check(&self) {
        let mut last = 0;
        for (first, (end, _)) in &self.active {
            assert!(*first >= last && end > first, "two overlapping writes are in flight");
            last = *end;
        }
        for (at, (slot, range)) in self.waiting.iter().enumerate() {
            let ahead = self.waiting.iter().take(at).any(|(_, other)| other.overlaps(*range));
            assert!(ahead || self.meets_active(*range), "write {slot} waits for nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn r(first: u32, count: u32) -> BlockRange {
        BlockRange::new(first, count)
    }

    #[test]
    fn overlapping_writes_go_one_after_the_other_in_order() {
        let mut order = WriteOrder::default();
        let mut freed = vec![];
        assert!(order.enter(1, r(0, 4)));
        assert!(order.enter(2, r(4, 4)));
        assert!(!order.enter(3, r(2, 4)));
        assert!(
            !order.enter(4, r(5, 1)),
            "overlaps 3, which waits, though 2 is all that is active"
        );
        assert!(order.enter(5, r(9, 1)));
        order.leave(1, r(0, 4), &mut freed);
        assert!(freed.is_empty());
        order.leave(2, r(4, 4), &mut freed);
        assert_eq!(freed, [3]);
        freed.clear();
        order.leave(3, r(2, 4), &mut freed);
        assert_eq!(freed, [4]);
        order.check();
    }

    #[test]
    fn giving_up_a_waiting_write_frees_those_behind_it() {
        let mut order = WriteOrder::default();
        let mut freed = vec![];
        assert!(order.enter(1, r(0, 1)));
        assert!(!order.enter(2, r(0, 9)));
        assert!(!order.enter(3, r(8, 1)));
        order.leave(2, r(0, 9), &mut freed);
        assert_eq!(freed, [3]);
    }
}
