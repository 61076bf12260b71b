//! A read at the primary (design.md 4.4): content, proof of primaryship, commitment.
//!
//! A read is answered when three things have come together, in any order:
//! 1. the store has returned the content, read after the request arrived;
//! 2. every write that the content may show is committed (once seen, never unseen);
//! 3. this node holds a read lease of every other required replica (`lease.rs`), or each of them
//!    has said, in answer to a question asked after the request arrived, that it knows no later
//!    epoch or term. One question serves all reads that wait.
//!
//! The lease is looked at when the reply is queued, after the content was read: a pause between
//! the two shows.

use super::Primary;
use crate::context::Context;
use crate::durable::ReplicaDurable;
use crate::outbox::ConnectionId;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{BlockData, BlockRange, Lsn, NodeId, RequestId, Time};
use core::time::Duration;

#[derive(Debug)]
struct ReadOp {
    to: (ConnectionId, RequestId),
    range: BlockRange,
    /// The store could not give the content; it is read again after a repair, once.
    failed: Failed,
    /// The first round of questions that was asked after this read arrived.
    round: u64,
    content: Option<BlockData>,
    /// Newest write that the content may show.
    seen: Lsn,
    /// When the store was asked last.
    since: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Never,
    /// It waits for the repair.
    Now,
    /// It was read again.
    Once,
}

#[derive(Debug)]
struct Round {
    number: u64,
    unanswered: Vec<NodeId>,
    asked_at: Time,
}

/// Reads that are under way at a primary.
#[derive(Debug, Default)]
pub(super) struct Reads {
    last_number: u64,
    ops: BTreeMap<u64, ReadOp>,
    /// Number of the last round that was asked.
    asked: u64,
    /// Number of the last round that all have answered.
    confirmed: u64,
    open: Option<Round>,
}

impl Reads {
    /// Takes a read in; gives its number for the store's answer.
    pub(super) fn add(
        &mut self,
        now: Time,
        to: (ConnectionId, RequestId),
        range: BlockRange,
    ) -> u64 {
        debug_assert!(range.count > 0, "ranges are checked before");
        self.last_number += 1;
        let (failed, round) = (Failed::Never, self.asked + 1);
        let op = ReadOp { to, range, failed, round, content: None, seen: Lsn::ZERO, since: now };
        self.ops.insert(self.last_number, op);
        self.last_number
    }

    /// Since when the store owes the content of a read, of all the longest. What waits for a repair is
    /// not its to give.
    pub(super) fn oldest_owed(&self) -> Option<Time> {
        let owed = |op: &&ReadOp| op.content.is_none() && op.failed != Failed::Now;
        self.ops.values().filter(owed).map(|op| op.since).min()
    }

    /// Reads under way.
    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    pub(super) fn filled(&mut self, number: u64, content: BlockData, seen: Lsn) {
        if let Some(op) = self.ops.get_mut(&number) {
            op.content = Some(content);
            op.seen = seen;
        }
    }

    /// The store cannot give the content. The first time the read waits for a repair of the range;
    /// the second time it ends.
    #[expect(clippy::type_complexity, reason = "whom to tell, of what")]
    pub(super) fn note_failed(
        &mut self,
        number: u64,
    ) -> Result<BlockRange, Option<(BlockRange, (ConnectionId, RequestId))>> {
        let Some(op) = self.ops.get_mut(&number) else { return Err(None) };
        if op.failed == Failed::Never {
            op.failed = Failed::Now;
            return Ok(op.range);
        }
        Err(self.ops.remove(&number).map(|op| (op.range, op.to)))
    }

    /// Ends the reads that wait for the repair of a range that cannot be repaired.
    pub(super) fn fail_over(&mut self, range: BlockRange) -> Vec<(ConnectionId, RequestId)> {
        let hit = |_: &u64, op: &mut ReadOp| op.failed == Failed::Now && op.range.overlaps(range);
        self.ops.extract_if(.., hit).map(|(_, op)| op.to).collect()
    }

    /// The reads that waited for repairs which are over: they are to be read again.
    pub(super) fn take_failed(
        &mut self,
        now: Time,
        is_over: impl Fn(BlockRange) -> bool,
    ) -> Vec<(u64, BlockRange)> {
        let waiting =
            self.ops.iter_mut().filter(|(_, op)| op.failed == Failed::Now && is_over(op.range));
        let again = waiting.map(|(number, op)| {
            op.failed = Failed::Once;
            op.since = now;
            (*number, op.range)
        });
        again.collect()
    }

    pub(super) fn drain(&mut self) -> Vec<(ConnectionId, RequestId)> {
        core::mem::take(&mut self.ops).into_values().map(|op| op.to).collect()
    }

    pub(super) fn forget_client(&mut self, connection: ConnectionId) {
        self.ops.retain(|_, op| op.to.0 != connection);
    }

    /// Whoever must answer has changed: the open question is void.
    pub(super) fn ask_again(&mut self) {
        self.open = None;
    }

    /// Takes an answer in; true if it was the last one of the round.
    pub(super) fn on_confirmed(&mut self, from: NodeId, number: u64) -> bool {
        let Some(round) = self.open.as_mut().filter(|round| round.number == number) else {
            return false;
        };
        round.unanswered.retain(|node| *node != from);
        if !round.unanswered.is_empty() {
            return false;
        }
        self.confirmed = number;
        self.open = None;
        true
    }

    /// Gives an unanswered question up after a while; the next one is asked at once.
    pub(super) fn tick(&mut self, now: Time, retry: Duration) {
        if self.open.as_ref().is_some_and(|round| now.since(round.asked_at) >= retry) {
            self.open = None;
        }
    }

    /// Panics if the bookkeeping of questions contradicts itself.
    ///
    /// # Panics
    /// On a broken invariant: a read could be answered without its proof.
    pub(super) fn check(&self) {
        assert!(self.confirmed <= self.asked, "a question was answered that was never asked");
        assert!(
            self.open
                .as_ref()
                .is_none_or(|round| { round.number == self.asked && !round.unanswered.is_empty() }),
            "the open question is not the newest, or nobody is left to answer it"
        );
        assert!(
            self.ops.values().all(|op| op.round <= self.asked + 1),
            "a read waits for a question beyond the next"
        );
    }

    /// Whether a question should be asked now.
    fn wants_round(&self) -> bool {
        self.open.is_none() && self.ops.values().any(|op| op.round > self.confirmed)
    }
}

impl Primary {
    /// Answers what can be answered; asks, if reads wait for a proof and no lease gives it.
    pub(super) fn settle_reads(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        if self.is_leased(durable, context) {
            self.finish_reads(durable, context);
        } else {
            self.ask_confirmation(durable, context);
        }
    }

    /// Whether every other required replica promises, now, that nobody else is primary. With none
    /// there is nobody else who could be.
    fn is_leased(&self, durable: &ReplicaDurable, context: &Context<'_>) -> bool {
        let (chunk, epoch) = (durable.config.chunk, durable.config.epoch);
        self.followers.iter().filter(|follower| self.is_required(follower.replica, durable)).all(
            |follower| {
                let (node, start) = (follower.replica.node, follower.acked_by);
                follower.acked.term == self.term
                    && context.leases.covers(context.now, node, start, chunk, epoch)
            },
        )
    }

    /// Asks all other required replicas, if reads wait for it and no question is open.
    pub(super) fn ask_confirmation(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        if !self.reads.wants_round() {
            return;
        }
        self.reads.asked += 1;
        let round = self.reads.asked;
        let unanswered: Vec<NodeId> = self
            .followers
            .iter()
            .filter(|follower| self.is_required(follower.replica, durable))
            .map(|follower| follower.replica.node)
            .collect();
        if unanswered.is_empty() {
            // The only in-sync replica with no promotion in flight: nobody else could be primary.
            self.reads.confirmed = round;
            self.finish_reads(durable, context);
            return;
        }
        let (chunk, epoch, term) = (durable.config.chunk, durable.config.epoch, self.term);
        for node in &unanswered {
            context.mirror_eagerly(*node, DataMessage::Confirm { chunk, epoch, term, round });
        }
        self.reads.open = Some(Round { number: round, unanswered, asked_at: context.now });
    }

    /// Answers every read for which all three conditions hold. The role is checked by being here:
    /// a replica that is primary no more has dropped its reads.
    pub(super) fn finish_reads(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        if self.reads.ops.is_empty() {
            return;
        }
        let (committed, confirmed) = (self.committed, self.reads.confirmed);
        let leased = self.is_leased(durable, context);
        let proven = |op: &ReadOp| leased || op.round <= confirmed;
        let ready = |op: &ReadOp| proven(op) && op.seen <= committed && op.content.is_some();
        let done: Vec<u64> =
            self.reads.ops.iter().filter(|(_, op)| ready(op)).map(|(number, _)| *number).collect();
        debug_assert!(durable.config.primary == durable.replica, "only a primary reads");
        for number in done {
            if let Some(ReadOp { to: (connection, id), content: Some(data), .. }) =
                self.reads.ops.remove(&number)
            {
                context.reply(connection, DataMessage::ReadDone { id, data });
            }
        }
    }
}
