//! Judges what the client and the zone do. Every broken rule names itself; none is forgiven.
//!
//! Rules (design.md section 12):
//! - `lost write`: a read returns less than the last write that was acknowledged, or seen, before
//!   the read began (invariants 2 and 3); a salvage lowers that for its chunks alone (`salvage.rs`);
//! - `unknown content`: a read returns bytes that nobody wrote to that block;
//! - `two writers`: an acknowledgement of a write that a term acknowledged under before does not
//!   hold (invariant 1). A primary that stood still may tell late what was committed in time;
//! - `stale read`: a node answers a read that was asked after another had acknowledged a write of
//!   the chunk under a later term (3);
//! - `replicas differ`: after healing, in-sync replicas of a chunk are not byte-identical (6);
//! - `logged`: a warning or an error that was not to be expected;
//! - `a size before its chunks`: the client is told of a size before the new chunks have served;
//! - `not writable`, `not whole`, `not grown`: after faults stop, requests, replicas or growths stay
//!   unfinished (10).
//!
//! Writes of one client to one block are ordered by the client library, so the history of a block
//! is a list of versions and linearizability is two bounds on the version that a read returns.

use ashlar_types::{ChunkId, Lsn, NodeId, Term, Time};
use std::collections::BTreeMap;
use std::fmt;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When, in simulated time.
    pub at: Time,
    /// Which rule, in words.
    pub rule: &'static str,
    /// What happened.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.at, self.rule, self.detail)
    }
}

/// Versions of one block of the volume: 0 is "never written".
#[derive(Clone, Copy, Debug, Default)]
struct BlockHistory {
    /// Last version handed to the client library.
    submitted: u64,
    /// Last version acknowledged, or returned by a finished read.
    settled: u64,
}

/// Everything judged so far.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    blocks: BTreeMap<u64, BlockHistory>,
    /// Newest term that a write was acknowledged under, by whom, and when first.
    acknowledged_under: BTreeMap<ChunkId, (Term, NodeId, Time)>,
    /// What each term that was opened took over: the end of its primary's own prefix.
    taken_over: BTreeMap<ChunkId, BTreeMap<Term, Lsn>>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) writes_acknowledged: u64,
    pub(crate) reads_finished: u64,
    /// Reads that ended with an error which names blocks that are damaged in every replica.
    pub(crate) reads_refused: u64,
}

impl Judge {
    pub(crate) fn violated(&mut self, at: Time, rule: &'static str, detail: String) {
        self.violations.push(Violation { at, rule, detail });
    }

    /// A write (or zeroing) of a block is handed to the client; gives its version.
    pub(crate) fn write_submitted(&mut self, block: u64) -> u64 {
        let history = self.blocks.entry(block).or_default();
        history.submitted += 1;
        history.submitted
    }

    /// The client was told that the write is done.
    pub(crate) fn write_acknowledged(&mut self, block: u64, version: u64) {
        let history = self.blocks.entry(block).or_default();
        history.settled = history.settled.max(version);
        self.writes_acknowledged += 1;
    }

    /// A read may return as little from now on, as a replica that had no more took over by a salvage;
    /// true if that is less than before.
    pub(crate) fn may_be_older(&mut self, block: u64, floor: u64) -> bool {
        let history = self.blocks.entry(block).or_default();
        let is_less = floor < history.settled;
        history.settled = history.settled.min(floor);
        is_less
    }

    /// The least version that a read beginning now may return.
    pub(crate) fn read_floor(&self, block: u64) -> u64 {
        self.blocks.get(&block).map_or(0, |history| history.settled)
    }

    /// A read has returned `version` of a block; `floor` was [`Self::read_floor`] at its start.
    pub(crate) fn read_finished(&mut self, at: Time, block: u64, floor: u64, version: u64) {
        let history = self.blocks.entry(block).or_default();
        self.reads_finished += 1;
        if version < floor {
            let detail = format!("block {block} reads as version {version}, {floor} was settled");
            self.violated(at, "lost write", detail);
        } else if version > history.submitted {
            let detail = format!("block {block} reads as version {version}, never written");
            self.violated(at, "unknown content", detail);
        } else {
            history.settled = history.settled.max(version);
        }
    }

    /// A primary opens a term with a prefix of its own that ends at `last`.
    pub(crate) fn term_opened(&mut self, chunk: ChunkId, term: Term, last: Lsn) {
        self.taken_over.entry(chunk).or_default().entry(term).or_insert(last);
    }

    /// A node acknowledges the write of a chunk at a position.
    pub(crate) fn node_acknowledges(&mut self, at: Time, chunk: ChunkId, lsn: Lsn, node: NodeId) {
        let known = self.acknowledged_under.get(&chunk).copied();
        let Some((newest, by, _)) = known.filter(|(newest, ..)| *newest > lsn.term) else {
            if known.is_none_or(|(newest, ..)| newest < lsn.term) {
                self.acknowledged_under.insert(chunk, (lsn.term, node, at));
            }
            return;
        };
        let later = self.taken_over.get(&chunk).into_iter().flatten();
        let mut between = later.filter(|(term, _)| **term > lsn.term && **term <= newest);
        if between.any(|(_, last)| *last < lsn) {
            let detail = format!("{node} at {lsn} after {by} under {newest} in {chunk}");
            self.violated(at, "two writers", detail);
        }
    }

    /// A node answers a read of a chunk under a term; it was sent at `asked`.
    pub(crate) fn node_answers_read(
        &mut self,
        at: Time,
        asked: Time,
        chunk: ChunkId,
        term: Term,
        node: NodeId,
    ) {
        let known = self.acknowledged_under.get(&chunk).copied();
        if let Some((newest, by, since)) =
            known.filter(|(newest, _, since)| *newest > term && *since < asked)
        {
            let detail = format!(
                "{node} answers under {term} what was asked at {asked}; {by} has acknowledged \
                 under {newest} since {since} in {chunk}"
            );
            self.violated(at, "stale read", detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{ChunkIndex, Epoch, StartNumber, VolumeId, ZoneId};

    #[test]
    fn the_judge_finds_a_read_of_a_deposed_primary() {
        let term = |elected| Term { elected: Epoch(elected), start: StartNumber(1) };
        let (old, new) = (NodeId(1), NodeId(2));
        let volume = VolumeId { zone: ZoneId::default(), uuid: 1 };
        let chunk = ChunkId { volume, index: ChunkIndex(0) };
        let mut judge = Judge::default();
        let lsn = Lsn { term: term(2), counter: 1 };
        judge.node_acknowledges(Time::from_millis(5), chunk, lsn, new);
        let at = Time::from_millis(9);
        judge.node_answers_read(at, Time::from_millis(4), chunk, term(1), old);
        judge.node_answers_read(at, Time::from_millis(6), chunk, term(2), new);
        assert!(judge.violations.is_empty(), "asked before, or answered by the newest");
        judge.node_answers_read(at, Time::from_millis(6), chunk, term(1), old);
        assert_eq!(judge.violations.len(), 1);
    }

    #[test]
    fn the_judge_finds_a_lost_write_and_an_unseen_one() {
        let mut judge = Judge::default();
        let version = judge.write_submitted(7);
        judge.write_acknowledged(7, version);
        let floor = judge.read_floor(7);
        judge.read_finished(Time::ZERO, 7, floor, 0);
        assert_eq!(judge.violations.len(), 1);
        judge.write_submitted(7);
        judge.read_finished(Time::ZERO, 7, 1, 2);
        judge.read_finished(Time::ZERO, 7, judge.read_floor(7), 1);
        assert_eq!(judge.violations.len(), 2, "a version once seen was unseen");
        judge.read_finished(Time::ZERO, 7, 0, 9);
        assert_eq!(judge.violations.len(), 3, "a version from nowhere passed");
    }

    #[test]
    fn a_late_word_about_what_was_taken_over_is_no_second_writer() {
        let term = |elected| Term { elected: Epoch(elected), start: StartNumber(1) };
        let at = |elected, counter| Lsn { term: term(elected), counter };
        let volume = "vol-a-000000000000000000000000000000aa".parse().unwrap();
        let chunk = ChunkId { volume, index: ChunkIndex(0) };
        let mut judge = Judge::default();
        judge.node_acknowledges(Time::ZERO, chunk, at(1, 4), NodeId(1));
        judge.term_opened(chunk, term(2), at(1, 6));
        judge.node_acknowledges(Time::ZERO, chunk, at(2, 3), NodeId(2));
        judge.node_acknowledges(Time::ZERO, chunk, at(1, 6), NodeId(1));
        assert_eq!(judge.violations, Vec::new());
        judge.node_acknowledges(Time::ZERO, chunk, at(1, 7), NodeId(1));
        assert_eq!(judge.violations.len(), 1, "the new term does not hold that write");
    }
}
