//! What readers and writers of a volume's blocks saw, and whether one order explains it.
//!
//! Writes of one block come one after the other, each with a higher version than the one before;
//! reads come whenever they like. Then a history is linearizable exactly if each read returns
//! - at least every version that was acknowledged, or returned by a read that ended, before it began;
//! - at most the newest version that was begun before it ended.

use std::collections::BTreeMap;
use std::time::Instant;

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// The block.
    pub block: u64,
    /// Version written or returned.
    pub version: u64,
    /// A write, or a read.
    pub write: bool,
    /// When it was asked for.
    pub began: Instant,
    /// When it was answered.
    pub ended: Instant,
}

/// A read that no order explains.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// The block.
    pub block: u64,
    /// What the read returned.
    pub returned: u64,
    /// What it had to return at least.
    pub floor: u64,
    /// What it could return at most.
    pub ceiling: u64,
}

/// Judges finished requests; gives every read that breaks the rule.
#[must_use]
pub fn judge(events: &[Event]) -> Vec<Violation> {
    let mut by_block: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    for event in events {
        by_block.entry(event.block).or_default().push(*event);
    }
    by_block.into_values().flat_map(|events| judge_block(&events)).collect()
}

fn judge_block(events: &[Event]) -> Vec<Violation> {
    // Highest version known by each end, and begun by each beginning.
    let settled = running_maximum(events.iter().map(|event| (event.ended, event.version)));
    let begun = running_maximum(events.iter().filter(|e| e.write).map(|e| (e.began, e.version)));
    let mut violations = Vec::new();
    for read in events.iter().filter(|event| !event.write) {
        let floor = highest_before(&settled, read.began);
        let ceiling = highest_before(&begun, read.ended);
        if read.version < floor || read.version > ceiling {
            let (block, returned) = (read.block, read.version);
            violations.push(Violation { block, returned, floor, ceiling });
        }
    }
    violations
}

fn running_maximum(points: impl Iterator<Item = (Instant, u64)>) -> Vec<(Instant, u64)> {
    let mut points: Vec<_> = points.collect();
    points.sort_unstable();
    let mut highest = 0;
    for (_, version) in &mut points {
        highest = highest.max(*version);
        *version = highest;
    }
    points
}

/// The highest version of a point strictly before `moment`.
fn highest_before(points: &[(Instant, u64)], moment: Instant) -> u64 {
    let count = points.partition_point(|(at, _)| *at < moment);
    count.checked_sub(1).map_or(0, |last| points[last].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Requests as (write, version, began, ended), in milliseconds.
    fn verdict(requests: &[(bool, u64, u64, u64)]) -> usize {
        let zero = Instant::now();
        let at = |millis| zero + Duration::from_millis(millis);
        let events: Vec<Event> = requests
            .iter()
            .map(|(write, version, began, ended)| Event {
                block: 7,
                version: *version,
                write: *write,
                began: at(*began),
                ended: at(*ended),
            })
            .collect();
        judge(&events).len()
    }

    #[test]
    fn a_concurrent_read_may_return_either() {
        let writes = [(true, 1, 0, 10), (true, 2, 20, 40)];
        for version in [1, 2] {
            assert_eq!(verdict(&[&writes[..], &[(false, version, 15, 30)]].concat()), 0);
        }
    }

    #[test]
    fn a_stale_read_a_lost_write_and_one_that_was_seen_and_unseen_are_found() {
        assert_eq!(verdict(&[(true, 1, 0, 10), (true, 2, 20, 30), (false, 1, 31, 40)]), 1);
        assert_eq!(verdict(&[(true, 1, 0, 10), (false, 0, 11, 12)]), 1);
        let unseen = [(true, 1, 0, 100), (false, 1, 10, 20), (false, 0, 30, 40)];
        assert_eq!(verdict(&unseen), 1);
        assert_eq!(verdict(&[(true, 1, 50, 60), (false, 1, 10, 20)]), 1, "from the future");
    }
}
