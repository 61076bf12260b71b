//! Filling a learner (design.md section 3): every block is copied while live writes go on.
//!
//! ```text
//! OpenLearner(base) -> acknowledged -> copies, a window at a time -> all acknowledged
//!    -> prefix complete -> promotion journalled, then proposed -> a later epoch decides
//! ```
//! Rules:
//! - the learner gets every write after `base`; blocks are read after `base`, so that together
//!   they are everything;
//! - a copy carries only committed content and the position that it was read at;
//! - a fill belongs to one process of the learner: another start number voids it;
//! - only an acknowledgement that names the fill's base counts for it, and no copy's number is used
//!   twice in a term: answers that were meant for an earlier fill are void;
//! - from the journalled proposal on, writes wait for the learner (`Primary::is_required`).

use super::repair::Whose;
use super::{Follower, Primary};
use crate::context::{Context, ReadFor};
use crate::durable::ReplicaDurable;
use crate::outbox::Effect;
use crate::record::Record;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{Change, ControlUp, Proposal};
use ashlar_types::message::data::DataMessage;
use ashlar_types::{BlockData, BlockRange, Lsn, ReplicaId, StartNumber, Time};

/// One fill of one learner's process.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) learner_start: StartNumber,
    /// Last position assigned before the learner's stream.
    pub(super) base: Lsn,
    opened_at: Time,
    next_block: u32,
    copies: BTreeMap<u64, Copy>,
}

impl Fill {
    /// Nothing is on its way, and there is more to copy: it waits for room.
    pub(super) fn waits(&self, blocks: u32) -> bool {
        self.copies.is_empty() && self.next_block < blocks
    }
}

/// One copy that is not acknowledged.
#[derive(Debug)]
struct Copy {
    range: BlockRange,
    read_at: Lsn,
    state: CopyState,
}

#[derive(Debug)]
enum CopyState {
    /// The store is reading it.
    Reading,
    /// Read; waits until the newest write that it may show is committed.
    Read { data: BlockData, seen: Lsn },
    /// On its way to the learner.
    Sent { at: Time },
}

impl Follower {
    /// Ends a fill, if there is one; what the learner got of it is void.
    pub(super) fn end_fill(&mut self, context: &mut Context<'_>) {
        if self.fill.take().is_some() {
            *context.fills = context.fills.saturating_sub(1);
        }
    }
}

impl Primary {
    /// Starts fills of learners that are reachable, as far as the node's bound allows.
    pub(super) fn begin_fills(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        let term = self.term;
        for follower in &mut self.followers {
            let replica = follower.replica;
            let process = context.peers.process(replica.node);
            let ready = durable.config.is_learner(replica)
                && follower.fill.is_none()
                && self.repairs.let_fill(context.now)
                && durable.proposal.is_none_or(|proposed| proposed.learner != replica)
                && context.peers.reachable(replica.node)
                && *context.fills < context.timing.fills_max;
            let Some(process) = process.filter(|_| ready) else { continue };
            if !process.has_store_of(replica) {
                follower.says_gone = true;
                continue;
            }
            let learner_start = process.start;
            *context.fills += 1;
            let base = durable.last;
            follower.acked = Lsn::ZERO;
            follower.fill = Some(Fill {
                learner_start,
                base,
                opened_at: context.now,
                next_block: 0,
                copies: BTreeMap::new(),
            });
            assert!(base.term == term, "a fill starts in a term that is open");
            let config = Box::new(durable.config.clone());
            context.send(replica.node, DataMessage::OpenLearner { config, base, learner_start });
        }
        self.tick_fills(durable, context);
    }

    /// Sends openings and copies again that were not answered in time, and ends fills that lag.
    fn tick_fills(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        // Half of the bound, so that a lagging learner never stops the writes themselves.
        let lagging = self.in_flight.len() > context.timing.learner_lag_max
            || self.in_flight_bytes > context.timing.chunk_bytes_max / 2;
        let (term, now, stall) = (self.term, context.now, context.timing.stall);
        let mut reread = Vec::new();
        for follower in &mut self.followers {
            let proposed = durable.proposal.is_some_and(|p| p.learner == follower.replica);
            let behind = follower.acked < self.committed;
            if lagging && behind && !proposed {
                follower.end_fill(context);
            }
            let Some(fill) = &mut follower.fill else { continue };
            if follower.acked.term < term && now.since(fill.opened_at) > stall && !proposed {
                fill.opened_at = now;
                let (base, learner_start) = (fill.base, fill.learner_start);
                let config = Box::new(durable.config.clone());
                let message = DataMessage::OpenLearner { config, base, learner_start };
                context.send(follower.replica.node, message);
            }
            for (number, copy) in &mut fill.copies {
                let lost = matches!(copy.state, CopyState::Sent { at } if now.since(at) > stall);
                if lost {
                    copy.state = CopyState::Reading;
                    copy.read_at = durable.last;
                    reread.push((follower.replica, fill.learner_start, *number, copy.range));
                }
            }
        }
        for (replica, start, number, range) in reread {
            context.read(durable.config.chunk, range, ReadFor::Fill(replica, start, number));
        }
    }

    /// The learner's process is another than the one that was being filled: begin again.
    pub(super) fn restart_lost_fill(
        &mut self,
        at: usize,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(follower) = self.followers.get_mut(at) else { return };
        let start = context.peers.process(follower.replica.node).map(|process| process.start);
        let proposed = durable.proposal.is_some_and(|p| p.learner == follower.replica);
        let lost = follower.fill.as_ref().is_some_and(|fill| Some(fill.learner_start) != start);
        if lost && !proposed {
            follower.end_fill(context);
        }
    }

    /// Reads the next pieces, up to the window; when all are acknowledged, proposes promotion.
    pub(super) fn go_on_filling(
        &mut self,
        at: usize,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let (term, chunk, blocks) = (self.term, durable.config.chunk, durable.config.blocks);
        let Some(follower) = self.followers.get_mut(at) else { return };
        let opened = follower.acked.term == term;
        let (replica, acked) = (follower.replica, follower.acked);
        let Some(fill) = follower.fill.as_mut().filter(|_| opened) else { return };
        // Copies are writes like others: what would fill its store to the brim waits.
        let room = !context.is_short_of_space(replica);
        while room
            && fill.next_block < blocks
            && fill.copies.len() < context.timing.copies_in_flight_max
        {
            let count = context.timing.copy_blocks.min(blocks - fill.next_block);
            let range = BlockRange::new(fill.next_block, count);
            fill.next_block += count;
            self.copies += 1;
            let copy = Copy { range, read_at: durable.last, state: CopyState::Reading };
            fill.copies.insert(self.copies, copy);
            let purpose = ReadFor::Fill(replica, fill.learner_start, self.copies);
            context.read(chunk, range, purpose);
        }
        let complete = fill.next_block >= blocks && fill.copies.is_empty();
        let undecided = durable.proposal.is_none();
        if complete && undecided && acked >= self.committed && durable.config.is_learner(replica) {
            let epoch = durable.config.epoch;
            context.persist(durable, Record::ProposePromotion { chunk, epoch, learner: replica });
            self.propose_promotion(durable, context);
        }
    }

    /// Sends the journalled proposal, behind its record.
    pub(super) fn propose_promotion(&self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        let Some(proposed) = durable.proposal else { return };
        let learner = self.followers.iter().find(|f| f.replica == proposed.learner);
        let Some(follower) = learner.filter(|f| f.acked.term == self.term) else { return };
        let proposal = Proposal {
            chunk: durable.config.chunk,
            epoch: proposed.epoch,
            proposer: durable.replica,
            change: Change::PromoteLearner { replica: proposed.learner, durable: follower.acked },
        };
        context.effect(Effect::Control(ControlUp::Propose(vec![proposal])));
    }

    /// The store has read a piece.
    pub(super) fn on_fill_blocks(
        &mut self,
        learner: ReplicaId,
        start: StartNumber,
        number: u64,
        content: Option<BlockData>,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(follower) = self.followers.iter_mut().find(|f| f.replica == learner) else {
            return;
        };
        let Some(fill) = follower.fill.as_mut().filter(|f| f.learner_start == start) else {
            return;
        };
        let Some(copy) = fill.copies.get_mut(&number) else { return };
        match content {
            Some(data) => {
                let seen = durable.last;
                copy.state = CopyState::Read { data, seen };
                self.send_ready_copies(durable, context);
            }
            // Unreadable here: it begins again once this is repaired.
            None => {
                let range = copy.range;
                follower.end_fill(context);
                self.want_repair(range, Whose::Own, durable, context);
            }
        }
    }

    /// Sends the pieces whose content is committed.
    pub(super) fn send_ready_copies(
        &mut self,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let (chunk, epoch, committed) =
            (durable.config.chunk, durable.config.epoch, self.committed);
        for follower in &mut self.followers {
            let to = follower.replica.node;
            let Some(fill) = &mut follower.fill else { continue };
            let learner_start = fill.learner_start;
            for (number, copy) in &mut fill.copies {
                let ready =
                    matches!(&copy.state, CopyState::Read { seen, .. } if *seen <= committed);
                if !ready {
                    continue;
                }
                let sent = CopyState::Sent { at: context.now };
                if let CopyState::Read { data, .. } = core::mem::replace(&mut copy.state, sent) {
                    let (number, read_at) = (*number, copy.read_at);
                    let message =
                        DataMessage::Copy { chunk, epoch, read_at, learner_start, number, data };
                    context.mirror_eagerly(to, message);
                }
            }
        }
    }

    /// A copy is on stable media at the learner.
    pub(super) fn on_copy_ack(
        &mut self,
        at: usize,
        learner_start: StartNumber,
        number: u64,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(follower) = self.followers.get_mut(at) else { return };
        let Some(fill) = follower.fill.as_mut().filter(|f| f.learner_start == learner_start) else {
            return;
        };
        fill.copies.remove(&number);
        self.go_on_filling(at, durable, context);
    }

    /// Lets every complete fill try its proposal again after the epoch has changed.
    pub(super) fn retry_promotions(
        &mut self,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        for at in 0..self.followers.len() {
            self.go_on_filling(at, durable, context);
        }
    }
}
