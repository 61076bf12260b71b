//! Opening a term (design.md 4.5): what a new primary, or a restarted one, does before it serves.
//!
//! 1. Collect from every in-sync member, and from a learner whose promotion may have been
//!    committed, what it has; they refuse lower terms from then on.
//! 2. Take over the longest history: ranges are journalled as uncommitted before their first byte.
//! 3. Open the term everywhere, naming every range that may differ between members.
//! 4. Overwrite those ranges with this replica's content, as the first writes of the term.
//! 5. Serve when they are committed.
//!
//! If any member knows writes to be committed that this replica lacks, it does not go on: it
//! reports itself stale, and the control plane elects another.

use super::{Follower, Primary};
use crate::context::{Context, ReadFor};
use crate::durable::ReplicaDurable;
use crate::lease::LeaseWait;
use crate::outbox::{Alarm, Effect};
use crate::record::Record;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ashlar_types::limit::IO_BLOCKS_MAX;
use ashlar_types::message::data::{DataMessage, History};
use ashlar_types::{BlockData, BlockRange, Lsn, NodeId, Time};

/// How far the opening is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Members are asked what they have.
    Collecting {
        /// When they were asked last.
        asked_at: Time,
    },
    /// Ranges are read from the member with the longest history, one at a time.
    Fetching {
        source: NodeId,
        left: VecDeque<BlockRange>,
        /// When the front range was asked for.
        asked_at: Time,
    },
    /// The term is open; ranges are overwritten, one at a time.
    Overwriting {
        base: Lsn,
        ranges: Vec<BlockRange>,
        /// Ranges that have their position; the read of the next one is under way.
        begun: usize,
        /// When a range that cannot be read here was last looked after.
        asked_at: Time,
    },
    /// Requests of clients are carried out.
    Serving,
    /// This replica lacks writes that a member knows to be committed: it says that it is stale and
    /// waits for another to be elected.
    Unfit,
}

impl Primary {
    /// Asks all members; goes on at once if there is none.
    pub(super) fn begin_collecting(
        &mut self,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        self.phase = Phase::Collecting { asked_at: context.now };
        self.opening_since = context.now;
        if durable.term < self.term {
            let (chunk, term) = (durable.config.chunk, self.term);
            self.opening_seq = context.persist(durable, Record::FollowTerm { chunk, term });
        }
        for follower in &self.followers {
            self.ask_history(follower, durable, context);
        }
        self.try_take_over(durable, context);
    }

    fn ask_history(
        &self,
        follower: &Follower,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        if self.is_required(follower.replica, durable) && follower.history.is_none() {
            let config = Box::new(durable.config.clone());
            let message = DataMessage::Collect { config, term: self.term };
            context.send(follower.replica.node, message);
        }
    }

    pub(super) fn on_collected(
        &mut self,
        at: usize,
        history: History,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        if !matches!(self.phase, Phase::Collecting { .. }) {
            return;
        }
        if let Some(follower) = self.followers.get_mut(at) {
            follower.history = Some(history);
        }
        self.try_take_over(durable, context);
    }

    /// What this replica waits for before it opens its term has changed.
    pub(crate) fn on_excepted(
        &mut self,
        wait: LeaseWait,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        self.lease_wait = wait;
        if matches!(self.phase, Phase::Collecting { .. }) {
            self.try_take_over(durable, context);
        }
    }

    fn required_histories(&self, durable: &ReplicaDurable) -> Option<Vec<(&Follower, &History)>> {
        self.followers
            .iter()
            .filter(|follower| self.is_required(follower.replica, durable))
            .map(|follower| follower.history.as_ref().map(|history| (follower, history)))
            .collect()
    }

    /// Once all have answered: finds the longest history and takes over what is missing here.
    fn try_take_over(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        if !self.lease_wait.is_over(context.now) {
            return;
        }
        let Some(histories) = self.required_histories(durable) else { return };
        let committed =
            histories.iter().map(|(_, h)| h.committed).fold(durable.committed, Lsn::max);
        if committed > durable.last {
            let (chunk, last) = (durable.config.chunk, durable.last);
            context.out.push(Effect::Alarm(Alarm::LacksCommitted { chunk, last, committed }));
            context.dirty.insert(chunk);
            self.phase = Phase::Unfit;
            return;
        }
        let source = histories
            .iter()
            .filter(|(follower, _)| durable.config.is_in_sync(follower.replica))
            .max_by_key(|(follower, history)| (history.last, follower.replica))
            .filter(|(_, history)| history.last > durable.last)
            .map(|(follower, history)| (follower.replica.node, history.uncommitted.clone()));
        let Some((source, ranges)) = source else {
            self.open(durable, context);
            return;
        };
        let left = pieces(ranges.iter().map(|entry| entry.range).collect()).into();
        let chunk = durable.config.chunk;
        context.persist(durable, Record::TakeOver { chunk, ranges });
        self.phase = Phase::Fetching { source, left, asked_at: context.now };
        self.opening_since = context.now;
        self.fetch_next(durable, context);
    }

    pub(super) fn fetch_next(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let Phase::Fetching { source, left, asked_at } = &mut self.phase else { return };
        let Some(range) = left.front().copied() else {
            self.open(durable, context);
            return;
        };
        *asked_at = context.now;
        let (chunk, epoch, term) = (durable.config.chunk, durable.config.epoch, self.term);
        let message = DataMessage::Fetch { chunk, epoch, term, range };
        context.send(*source, message);
    }

    pub(super) fn on_fetched(
        &mut self,
        from: NodeId,
        data: BlockData,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        if matches!(self.phase, Phase::Overwriting { .. }) {
            if self.recalled_overwrite(from) {
                self.overwrite(data, durable, context);
            }
            return;
        }
        let Phase::Fetching { source, left, .. } = &mut self.phase else { return };
        if *source != from || left.front() != Some(&data.range) {
            return;
        }
        left.pop_front();
        self.opening_since = context.now;
        let chunk = durable.config.chunk;
        context.persist(durable, Record::Fill { chunk, data });
        self.fetch_next(durable, context);
    }

    /// Opens the term here and at every member.
    fn open(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let Some(histories) = self.required_histories(durable) else { return };
        let base = histories.iter().map(|(_, h)| h.committed).fold(durable.committed, Lsn::max);
        let own = durable.uncommitted.iter().map(|entry| entry.range);
        let theirs =
            histories.iter().flat_map(|(_, h)| h.uncommitted.iter().map(|entry| entry.range));
        let ranges = pieces(own.chain(theirs).collect());
        let (chunk, term) = (durable.config.chunk, self.term);
        let overwrite = ranges.clone();
        self.opening_seq =
            context.persist(durable, Record::OpenTerm { chunk, term, base, overwrite });
        context.gate.note_own(chunk);
        self.committed = base;
        for at in 0..self.followers.len() {
            if let Some(follower) = self.followers.get_mut(at) {
                follower.acked = Lsn::ZERO;
                follower.history = None;
            }
        }
        self.phase = Phase::Overwriting { base, ranges, begun: 0, asked_at: context.now };
        self.opening_since = context.now;
        for at in 0..self.followers.len() {
            self.resend_opening(at, durable, context);
        }
        self.read_next_overwrite(durable, context);
        self.advance(durable, context);
    }

    /// Sends again what a follower needs to take part in the present phase.
    pub(super) fn resend_opening(
        &mut self,
        at: usize,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(follower) = self.followers.get(at) else { return };
        let to = follower.replica.node;
        let (chunk, epoch, term) = (durable.config.chunk, durable.config.epoch, self.term);
        match &self.phase {
            Phase::Collecting { .. } => self.ask_history(follower, durable, context),
            Phase::Fetching { source, left, .. } => {
                if let Some(range) = left.front().filter(|_| *source == to) {
                    let message = DataMessage::Fetch { chunk, epoch, term, range: *range };
                    context.send(to, message);
                }
            }
            Phase::Overwriting { base, ranges, .. } => {
                if self.is_required(follower.replica, durable) && follower.acked.term < term {
                    let (base, overwrite) = (*base, ranges.clone());
                    let message = DataMessage::OpenTerm { chunk, epoch, term, base, overwrite };
                    // Behind the opening's own record: a term that its primary could forget would
                    // let two openings with one number differ.
                    context.send(to, message);
                }
            }
            Phase::Serving | Phase::Unfit => {}
        }
    }

    fn read_next_overwrite(&self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        let Phase::Overwriting { ranges, begun, .. } = &self.phase else { return };
        if let Some(range) = ranges.get(*begun) {
            context.read(durable.config.chunk, *range, ReadFor::Overwrite(self.term));
        }
    }

    /// The content of the next range to overwrite has been read: it becomes the term's next write.
    pub(super) fn overwrite(
        &mut self,
        data: BlockData,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Phase::Overwriting { ranges, begun, .. } = &mut self.phase else { return };
        if ranges.get(*begun) != Some(&data.range) {
            return;
        }
        *begun += 1;
        self.assign(data, None, durable, context);
        self.read_next_overwrite(durable, context);
    }

    /// Serving begins when all members have opened the term and all overwrites are committed.
    pub(super) fn try_serve(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let Phase::Overwriting { ranges, begun, .. } = &self.phase else { return };
        let opened = self
            .followers
            .iter()
            .filter(|follower| self.is_required(follower.replica, durable))
            .all(|follower| follower.acked.term == self.term);
        if *begun < ranges.len() || !opened || self.committed < durable.last {
            return;
        }
        self.phase = Phase::Serving;
        context.dirty.insert(durable.config.chunk);
        self.pump(durable, context);
        self.begin_fills(durable, context);
    }

    /// Asks again for what was not answered in time.
    pub(super) fn tick_opening(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let retry = context.timing.retry;
        match &mut self.phase {
            Phase::Collecting { asked_at } => {
                if context.now.since(*asked_at) >= retry {
                    *asked_at = context.now;
                    for follower in &self.followers {
                        self.ask_history(follower, durable, context);
                    }
                }
                self.try_take_over(durable, context);
            }
            Phase::Fetching { asked_at, .. } => {
                if context.now.since(*asked_at) >= retry {
                    self.fetch_next(durable, context);
                }
            }
            Phase::Overwriting { asked_at, .. } => {
                if context.now.since(*asked_at) >= retry {
                    *asked_at = context.now;
                    if self.retry_overwrite() {
                        self.read_next_overwrite(durable, context);
                    }
                }
                for at in 0..self.followers.len() {
                    let due = self.followers.get(at).is_some_and(|follower| {
                        follower.acked.term < self.term
                            && follower
                                .resynced_at
                                .is_none_or(|then| context.now.since(then) >= retry)
                    });
                    if due {
                        self.resync(at, durable, context);
                    }
                }
            }
            Phase::Serving | Phase::Unfit => {}
        }
    }
}

/// The ranges merged where they overlap, in order, and where they meet as long as one frame, and one
/// record of the journal, holds both. No range is cut: whoever dies between two pieces leaves each
/// write as a whole or not at all (design.md section 8). Only ranges that overlap each other over more
/// than a frame are cut; a client has no two such writes in flight.
fn pieces(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.sort_unstable();
    let mut whole: Vec<BlockRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match whole.last_mut() {
            Some(last) if range.first < last.end() => *last = joined(*last, range),
            _ => whole.push(range),
        }
    }
    let mut pieces: Vec<BlockRange> = Vec::with_capacity(whole.len());
    for range in whole {
        match pieces.last_mut() {
            Some(last)
                if range.first == last.end() && last.count + range.count <= IO_BLOCKS_MAX =>
            {
                *last = joined(*last, range);
            }
            _ => pieces.extend(range.pieces(IO_BLOCKS_MAX)),
        }
    }
    pieces
}

/// From the beginning of `first` to the end of both.
fn joined(first: BlockRange, second: BlockRange) -> BlockRange {
    BlockRange::new(first.first, first.end().max(second.end()) - first.first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_and_merged_into_frames() {
        let ranges = alloc::vec![
            BlockRange::new(600, 1),
            BlockRange::new(0, 200),
            BlockRange::new(200, 10),
            BlockRange::new(5, 1),
        ];
        let expected = [BlockRange::new(0, 210), BlockRange::new(600, 1)];
        assert_eq!(pieces(ranges), expected);
    }

    #[test]
    fn no_write_is_cut_between_two_frames() {
        let ranges = alloc::vec![
            BlockRange::new(0, 200),
            BlockRange::new(200, 100),
            BlockRange::new(300, 8)
        ];
        let expected = [BlockRange::new(0, 200), BlockRange::new(200, 108)];
        assert_eq!(pieces(ranges), expected);
        // Only what overlaps over more than a frame is.
        let ranges = alloc::vec![BlockRange::new(0, 200), BlockRange::new(100, 200)];
        let expected = [BlockRange::new(0, 256), BlockRange::new(256, 44)];
        assert_eq!(pieces(ranges), expected);
    }
}
