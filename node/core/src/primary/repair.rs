//! Blocks that cannot be read, here or at a member, are written anew (design.md section 8).
//!
//! ```text
//!  unreadable here --> read by halves, down to single blocks --> Recall from a member --> write
//!  a member says so --> read here -----------------------------------------------------> write
//! ```
//! Rules:
//! - a repair is an ordered write of committed content under a new position, like any other;
//! - no write over the range gets a position until its repair is over, so that none can be undone by
//!   it; all others go on;
//! - a member is asked only when every write over the range is committed, for its content at that
//!   position or later, which is the same: only the answer to the last question counts;
//! - a block that no in-sync replica can read is said to be so, after a few more looks at the own
//!   store, not all at once: an error of a disk may pass. It is never guessed.
//!
//! An opening that meets an unreadable range takes the content of another in-sync member instead: the
//! range is not known to be committed, so the content of each of them is as good (design.md 4.5).

use super::opening::Phase;
use super::{Follower, Primary};
use crate::context::{Context, ReadFor};
use crate::durable::ReplicaDurable;
use crate::outbox::{Alarm, Effect};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, Refusal};
use ashlar_types::{BlockData, BlockRange, Lsn, NodeId, Time};
use core::time::Duration;

/// Ranges that wait for repair. What is beyond is found again by the next read or scrub.
const WAITING_MAX: usize = 64;

/// Times that the own store is asked again for a block that no member has, each after the time of a
/// retry: 1 s altogether by default.
const LAST_LOOKS: u32 = 5;

/// How long fills rest after a block was found lost, in stalls: 5 s by default.
const REST_STALLS: u32 = 10;

/// For so long a block that was found lost is looked at once only, in stalls: 60 s by default. Who
/// asks for it again and again would hold all writes up otherwise.
const LOST_STALLS: u32 = 120;

/// Why a range is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// It cannot be read here.
    Own,
    /// A member cannot read it, or holds other content.
    Member,
}

/// All repairs of a chunk, one at a time.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    waiting: VecDeque<(BlockRange, Whose)>,
    present: Option<Repair>,
    last_number: u64,
    /// The range that an opening is to overwrite next could not be read here.
    unread: bool,
    /// Members that were asked for it.
    opening: Vec<NodeId>,
    /// Ranges that were found lost, and when.
    lost: VecDeque<(BlockRange, Time)>,
    /// Until then no fill begins: it would meet the same block again at once.
    rest_until: Time,
}

#[derive(Debug)]
struct Repair {
    number: u64,
    range: BlockRange,
    whose: Whose,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// The store here is reading it.
    Reading,
    /// Unreadable here: a member is to be asked, or was.
    Recalling { asked: Option<Asked>, failed: Vec<NodeId> },
    /// Nobody else has it: the store here reads it a few times more, with a wait before each, since
    /// an error of a disk may pass.
    LastLooks { left: u32, next: Option<Time> },
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    source: NodeId,
    at: Lsn,
    since: Time,
}

impl Repairs {
    /// Whether a write over the range has to wait.
    pub(super) fn hold(&self, range: BlockRange) -> bool {
        let present = self.present.as_ref().map(|repair| repair.range);
        let waiting = self.waiting.iter().map(|(waiting, _)| *waiting);
        present.into_iter().chain(waiting).any(|held| held.overlaps(range))
    }

    /// Whether a learner may be filled from here.
    pub(super) fn let_fill(&self, now: Time) -> bool {
        self.present.is_none() && self.waiting.is_empty() && now >= self.rest_until
    }
}

impl Primary {
    /// Takes in that a range has to be repaired.
    pub(super) fn want_repair(
        &mut self,
        range: BlockRange,
        whose: Whose,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let inside = range.count > 0 && range.end() <= durable.config.blocks;
        let known = self.repairs.waiting.iter().any(|(waiting, _)| *waiting == range)
            || self.repairs.present.as_ref().is_some_and(|repair| repair.range == range);
        if !inside || known || !self.is_serving() || self.repairs.waiting.len() >= WAITING_MAX {
            return;
        }
        self.repairs.waiting.push_back((range, whose));
        self.go_on_repairing(durable, context);
    }

    /// Begins the next repair, or goes on with the present one; lets the writes go after the last.
    pub(super) fn go_on_repairing(
        &mut self,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        if self.repairs.present.is_some() {
            self.recall(durable, context);
            self.look_again(durable, context);
            return;
        }
        let Some((range, whose)) = self.repairs.waiting.pop_front() else { return };
        self.repairs.last_number += 1;
        let number = self.repairs.last_number;
        self.repairs.present = Some(Repair { number, range, whose, step: Step::Reading });
        context.read(durable.config.chunk, range, ReadFor::Repair(number));
    }

    /// The store here has read the range of the present repair.
    pub(super) fn on_repair_blocks(
        &mut self,
        number: u64,
        content: Option<BlockData>,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(repair) = self.repairs.present.as_mut().filter(|r| r.number == number) else {
            return;
        };
        let (range, whose) = (repair.range, repair.whose);
        match content {
            Some(data) if whose == Whose::Member => self.write_repair(data, durable, context),
            // This part of the range is whole.
            Some(_) => self.end_repair(durable, context),
            None if range.count > 1 => {
                let half = range.count / 2;
                let second = BlockRange::new(range.first + half, range.count - half);
                self.repairs.waiting.push_front((second, whose));
                self.repairs.waiting.push_front((BlockRange::new(range.first, half), whose));
                self.end_repair(durable, context);
            }
            None => match &mut repair.step {
                Step::LastLooks { left: 0, .. } => self.give_up(range, durable, context),
                Step::LastLooks { next, .. } => *next = Some(context.now + context.timing.retry),
                Step::Reading | Step::Recalling { .. } => {
                    repair.step = Step::Recalling { asked: None, failed: Vec::new() };
                    self.recall(durable, context);
                }
            },
        }
    }

    /// Has the own store read the block once more, when it is time to.
    fn look_again(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        let Some(repair) = &mut self.repairs.present else { return };
        let Step::LastLooks { left, next } = &mut repair.step else { return };
        if next.is_some_and(|due| context.now >= due) {
            (*next, *left) = (None, left.saturating_sub(1));
            let purpose = ReadFor::Repair(repair.number);
            context.read(durable.config.chunk, repair.range, purpose);
        }
    }

    /// No in-sync replica can read the block.
    fn give_up(
        &mut self,
        range: BlockRange,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let chunk = durable.config.chunk;
        self.repairs.rest_until = context.now + context.timing.stall * REST_STALLS;
        self.repairs.lost.retain(|(known, _)| *known != range);
        self.repairs.lost.truncate(WAITING_MAX - 1);
        self.repairs.lost.push_front((range, context.now));
        context.out.push(Effect::Alarm(Alarm::Lost { chunk, range }));
        for (connection, id) in self.reads.fail_over(range) {
            let refusal = Refusal::Unreadable(range);
            context.reply(connection, DataMessage::Refused { id, refusal });
        }
        self.end_repair(durable, context);
    }

    /// Asks a member for the block, once no write over it is in flight; here again when all have failed.
    fn recall(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let at = self.committed;
        let wanted = self.repairs.present.as_ref().map(|repair| repair.range);
        if wanted.is_none_or(|range| self.newest_write_over(range) > at) {
            return;
        }
        let Some(repair) = &mut self.repairs.present else { return };
        let Step::Recalling { asked, failed } = &mut repair.step else { return };
        let in_sync = |f: &&Follower| durable.config.is_in_sync(f.replica);
        let due = asked.is_none_or(|a| context.now.since(a.since) >= context.timing.retry);
        let mut left = self
            .followers
            .iter()
            .filter(in_sync)
            .map(|follower| follower.replica.node)
            .filter(|node| !failed.contains(node))
            .peekable();
        if left.peek().is_none() {
            let known = self.repairs.lost.iter().any(|(range, since)| {
                *range == repair.range
                    && context.now.since(*since) < context.timing.stall * LOST_STALLS
            });
            let (left, wait) =
                if known { (0, Duration::ZERO) } else { (LAST_LOOKS, context.timing.retry) };
            repair.step = Step::LastLooks { left, next: Some(context.now + wait) };
            self.look_again(durable, context);
            return;
        }
        let Some(source) = left.find(|node| context.peers.reachable(*node)).filter(|_| due) else {
            return;
        };
        *asked = Some(Asked { source, at, since: context.now });
        let (chunk, epoch, range) = (durable.config.chunk, durable.config.epoch, repair.range);
        context.mirror_eagerly(source, DataMessage::Recall { chunk, epoch, at, range });
    }

    /// A member's content of a block, as it was at a position.
    pub(super) fn on_recalled(
        &mut self,
        from: NodeId,
        at: Lsn,
        data: BlockData,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(Repair { range, step: Step::Recalling { asked: Some(asked), .. }, .. }) =
            &self.repairs.present
        else {
            return;
        };
        // An answer to an earlier question may be older than a write since.
        if asked.source == from && asked.at == at && data.range == *range {
            assert!(self.newest_write_over(data.range) <= at, "a repair would undo a write");
            self.write_repair(data, durable, context);
        }
    }

    /// A member cannot read a range, or holds other content than this replica.
    pub(super) fn on_member_damaged(
        &mut self,
        from: NodeId,
        range: BlockRange,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        match &mut self.phase {
            Phase::Overwriting { .. } if self.repairs.opening.last() == Some(&from) => {
                self.recall_overwrite(durable, context);
                return;
            }
            // A write that only this member has cannot be committed: it is as if it had never come.
            Phase::Fetching { source, left, .. }
                if *source == from && left.front() == Some(&range) =>
            {
                left.pop_front();
                self.fetch_next(durable, context);
                return;
            }
            _serving => {}
        }
        if let Some(Repair { range: wanted, step: Step::Recalling { asked, failed }, .. }) =
            &mut self.repairs.present
            && asked.is_some_and(|asked| asked.source == from)
            && *wanted == range
        {
            failed.push(from);
            *asked = None;
            self.recall(durable, context);
            return;
        }
        let named = |f: &Follower| f.replica.node == from && durable.config.is_in_sync(f.replica);
        if self.followers.iter().any(named) {
            self.want_repair(range, Whose::Member, durable, context);
        }
    }

    fn write_repair(
        &mut self,
        data: BlockData,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let (chunk, range) = (durable.config.chunk, data.range);
        context.out.push(Effect::Alarm(Alarm::Repaired { chunk, range }));
        self.assign(data, None, durable, context);
        self.end_repair(durable, context);
    }

    /// Reads that had failed and writes that were held go on, as far as no other repair holds them.
    fn end_repair(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        self.repairs.present = None;
        self.go_on_repairing(durable, context);
        let repairs = &self.repairs;
        for (number, range) in self.reads.take_failed(context.now, |range| !repairs.hold(range)) {
            context.read(durable.config.chunk, range, ReadFor::Client(number));
        }
        self.pump(durable, context);
    }

    /// The store cannot read what a client wants: it is repaired, and read again once.
    pub(super) fn on_unreadable(
        &mut self,
        number: u64,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        match self.reads.note_failed(number) {
            Ok(range) => self.want_repair(range, Whose::Own, durable, context),
            Err(Some((range, (connection, id)))) => {
                let refusal = Refusal::Unreadable(range);
                context.reply(connection, DataMessage::Refused { id, refusal });
            }
            // Its client is gone.
            Err(None) => {}
        }
    }

    /// The range to overwrite next cannot be read here: asks the next member for it. Once all have
    /// failed, the whole question begins again after a while.
    pub(super) fn recall_overwrite(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        let Phase::Overwriting { ranges, begun, .. } = &self.phase else { return };
        let Some(range) = ranges.get(*begun).copied() else { return };
        self.repairs.unread = true;
        let next = self
            .followers
            .iter()
            .filter(|f| durable.config.is_in_sync(f.replica))
            .map(|f| f.replica.node)
            .find(|node| !self.repairs.opening.contains(node) && context.peers.reachable(*node));
        let Some(source) = next else { return };
        self.repairs.opening.push(source);
        let (chunk, epoch, term) = (durable.config.chunk, durable.config.epoch, self.term);
        context.mirror_eagerly(source, DataMessage::Fetch { chunk, epoch, term, range });
    }

    /// Whether a member's content stands in for what this replica cannot read while it opens.
    pub(super) fn recalled_overwrite(&mut self, from: NodeId) -> bool {
        let asked = self.repairs.opening.last() == Some(&from);
        if asked {
            self.repairs.opening.clear();
        }
        asked
    }

    /// The scrub cannot read a range here.
    pub(crate) fn on_scrub_damage(
        &mut self,
        range: BlockRange,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        self.want_repair(range, Whose::Own, durable, context);
    }

    /// Whether no write over the range was assigned after `at`, as far as can be told; `last` is the
    /// newest one assigned.
    pub(crate) fn untouched_since(&self, at: Lsn, range: BlockRange, last: Lsn) -> bool {
        let later = || self.in_flight.iter().filter(|write| write.lsn > at);
        let all_known = later().next().is_some_and(|first| first.lsn == at.next());
        last == at || (all_known && !later().any(|write| write.data.range.overlaps(range)))
    }

    /// Whether an unreadable range of an opening is to be read here again: the error may have passed,
    /// and where nobody else is in sync, nobody else can be asked.
    pub(super) fn retry_overwrite(&mut self) -> bool {
        self.repairs.opening.clear();
        core::mem::take(&mut self.repairs.unread)
    }
}
