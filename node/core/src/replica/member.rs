//! The member's side of replication: an in-sync secondary or a learner follows a primary.
//!
//! Rules, each with a test in `tests/` that fails without it:
//! - a lower epoch and a lower term are refused; an epoch is adopted before anything sent under it;
//! - writes are applied strictly in order; only the contiguous durable prefix is acknowledged;
//! - an opening is accepted only if this replica is complete to the position it rests on, and its
//!   ranges are journalled as uncommitted with it;
//! - a learner never overwrites a block that a later write touched, and takes copies only for the
//!   process and the fill that they were read for;
//! - a learner is never taken back by an opening older than its own, and says with every
//!   acknowledgement which fill it belongs to.

use super::{Replica, Role};
use crate::context::{Context, ReadFor};
use crate::gate::Acknowledge;
use crate::record::Record;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{
    BlockData, BlockRange, ChunkConfig, Epoch, Lsn, NodeId, StartNumber, Sums, Term,
};
use bytes::{Bytes, BytesMut};

/// Volatile state of a member.
#[derive(Debug, Default)]
pub(crate) struct Member {
    /// A learner's view of its fill; none after a restart, so copies of before are void.
    receiving: Option<Receiving>,
}

#[derive(Debug)]
struct Receiving {
    base: Lsn,
    /// Last write to each block since the stream began.
    touched: BTreeMap<u32, Lsn>,
    blocks_done: u32,
}

impl Member {
    pub(crate) fn blocks_done(&self) -> u32 {
        self.receiving.as_ref().map_or(0, |r| r.blocks_done)
    }
}

impl Replica {
    /// A request of a primary.
    pub(super) fn on_request(
        &mut self,
        from: NodeId,
        request: DataMessage,
        context: &mut Context<'_>,
    ) {
        if self.durable.suspect {
            self.refuse_as_suspect(from, &request, context);
            return;
        }
        let outcome = match request {
            DataMessage::Collect { config, term } => self.on_collect(from, &config, term, context),
            DataMessage::Fetch { epoch, term, range, .. } => {
                self.on_fetch(from, epoch, term, range, context)
            }
            DataMessage::OpenTerm { epoch, term, base, overwrite, .. } => {
                self.on_open_term(from, epoch, term, base, overwrite, context)
            }
            DataMessage::OpenLearner { config, base, learner_start } => {
                self.on_open_learner(from, &config, base, learner_start, context)
            }
            DataMessage::Mirror { epoch, lsn, committed, data, .. } => {
                self.on_mirror(from, epoch, lsn, committed, data, context)
            }
            DataMessage::Committed { epoch, lsn, .. } => {
                if epoch == self.durable.config.epoch && lsn.term == self.durable.term {
                    self.note_committed(lsn, context);
                }
                Ok(())
            }
            DataMessage::Confirm { epoch, term, round, .. } => {
                self.on_confirm(from, epoch, term, round, context)
            }
            DataMessage::Copy { epoch, read_at, learner_start, number, data, .. } => {
                let copy = CopyFrame { read_at, learner_start, number, data };
                self.on_copy(from, epoch, copy, context)
            }
            DataMessage::Compare { epoch, at, range, digest, .. } => {
                self.on_compare(from, (epoch, at), range, digest, context)
            }
            DataMessage::Recall { epoch, at, range, .. } => {
                self.on_recall(from, epoch, at, range, context)
            }
            _other => Ok(()),
        };
        if let Err(refusal) = outcome {
            let chunk = self.durable.config.chunk;
            context.mirror_eagerly(from, DataMessage::PeerRefused { chunk, refusal });
        }
    }

    /// Refuses what was sent under another epoch than the adopted one, or by another node than
    /// that epoch's primary. This is the fence.
    pub(super) fn fence_epoch(&self, from: NodeId, epoch: Epoch) -> Result<(), PeerRefusal> {
        let config = &self.durable.config;
        if epoch > config.epoch {
            return Err(PeerRefusal::NotAdopted(config.epoch));
        }
        if epoch < config.epoch || from != config.primary.node {
            return Err(PeerRefusal::LowerEpoch(Box::new(config.clone())));
        }
        if !matches!(self.role, Role::Member(_)) {
            return Err(PeerRefusal::NotHeld);
        }
        Ok(())
    }

    /// Refuses a term below the one followed.
    pub(super) fn fence_term(&self, term: Term) -> Result<(), PeerRefusal> {
        if term < self.durable.term {
            return Err(PeerRefusal::LowerTerm(self.durable.term));
        }
        Ok(())
    }

    fn on_collect(
        &mut self,
        from: NodeId,
        config: &ChunkConfig,
        term: Term,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.adopt(config, context);
        self.fence_epoch(from, config.epoch)?;
        self.fence_term(term)?;
        let chunk = config.chunk;
        if term > self.durable.term {
            context.persist(&mut self.durable, Record::FollowTerm { chunk, term });
        }
        self.asked = Some((from, term));
        self.answer_collect(context);
        Ok(())
    }

    /// Confirms adoption and term, once no former primary can hold a lease over the chunk.
    pub(super) fn answer_collect(&mut self, context: &mut Context<'_>) {
        if !self.lease_wait.is_over(context.now) {
            return;
        }
        let Some((from, term)) = self.asked.take().filter(|(_, term)| *term == self.durable.term)
        else {
            return;
        };
        let config = &self.durable.config;
        let (chunk, epoch, history) = (config.chunk, config.epoch, self.durable.history());
        context.send(from, DataMessage::Collected { chunk, epoch, term, history });
    }

    fn on_fetch(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        term: Term,
        range: BlockRange,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(term)?;
        if range.end() <= self.durable.config.blocks {
            context.read(self.durable.config.chunk, range, ReadFor::Fetch(from, term));
        }
        Ok(())
    }

    /// Gives content as it is at a position or later, to a primary that cannot read its own and lets no
    /// write over it pass meanwhile. Every member in sync is there: the position is committed.
    fn on_recall(
        &self,
        from: NodeId,
        epoch: Epoch,
        at: Lsn,
        range: BlockRange,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(at.term)?;
        let config = &self.durable.config;
        let last = self.durable.last;
        if !config.is_in_sync(self.durable.replica) || last < at || last.term != at.term {
            return Err(PeerRefusal::Gap(last));
        }
        if range.count > 0 && range.end() <= config.blocks {
            context.read(config.chunk, range, ReadFor::Recall(from, at));
        }
        Ok(())
    }

    fn on_open_term(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        term: Term,
        base: Lsn,
        overwrite: Vec<BlockRange>,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(term)?;
        if self.durable.last.term < term {
            let followed = term == self.durable.term;
            if !followed || self.durable.last < base || !self.covered_by(&overwrite) {
                return Err(PeerRefusal::Gap(self.durable.last));
            }
            let chunk = self.durable.config.chunk;
            context.persist(&mut self.durable, Record::OpenTerm { chunk, term, base, overwrite });
        }
        self.acknowledge_prefix(from, context);
        Ok(())
    }

    /// Whether everything that may differ here will be overwritten by the opening.
    fn covered_by(&self, overwrite: &[BlockRange]) -> bool {
        self.durable.uncommitted.iter().all(|entry| {
            entry.range.blocks().all(|block| overwrite.iter().any(|range| range.contains(block)))
        })
    }

    fn on_open_learner(
        &mut self,
        from: NodeId,
        config: &ChunkConfig,
        base: Lsn,
        learner_start: StartNumber,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.adopt(config, context);
        self.fence_epoch(from, config.epoch)?;
        self.fence_term(base.term)?;
        if learner_start != context.me.start {
            return Err(PeerRefusal::OtherStart(context.me.start));
        }
        if !config.is_learner(self.durable.replica) {
            return Err(PeerRefusal::Gap(self.durable.last));
        }
        let Role::Member(member) = &mut self.role else { return Err(PeerRefusal::NotHeld) };
        let known = member.receiving.as_ref().map(|receiving| receiving.base);
        if known.is_some_and(|known| base < known) {
            // Overtaken by a later opening: going back would forget what came since.
            return Ok(());
        }
        if known != Some(base) {
            member.receiving = Some(Receiving { base, touched: BTreeMap::new(), blocks_done: 0 });
            let chunk = config.chunk;
            context.persist(&mut self.durable, Record::OpenFill { chunk, base });
        }
        self.acknowledge_prefix(from, context);
        Ok(())
    }

    fn on_mirror(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        lsn: Lsn,
        committed: Lsn,
        data: BlockData,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(lsn.term)?;
        if lsn.term != self.durable.last.term || lsn > self.durable.last.next() {
            return Err(PeerRefusal::Gap(self.durable.last));
        }
        if data.range.end() > self.durable.config.blocks {
            return Err(PeerRefusal::NotHeld);
        }
        if lsn == self.durable.last.next() {
            if let Role::Member(Member { receiving: Some(receiving) }) = &mut self.role {
                receiving.touched.extend(data.range.blocks().map(|block| (block, lsn)));
            }
            let chunk = self.durable.config.chunk;
            context.persist(&mut self.durable, Record::Write { chunk, lsn, committed, data });
        }
        self.acknowledge_prefix(from, context);
        Ok(())
    }

    /// What this replica has on stable media once its journal is synced, for its primary.
    pub(crate) fn prefix(&self, to: NodeId) -> Acknowledge {
        let fill = match &self.role {
            Role::Member(member) => member.receiving.as_ref().map(|receiving| receiving.base),
            Role::Primary(_) | Role::Out | Role::Suspect => None,
        };
        Acknowledge { to, epoch: self.durable.config.epoch, lsn: self.durable.last, fill }
    }

    fn acknowledge_prefix(&self, to: NodeId, context: &mut Context<'_>) {
        context.acknowledge(self.durable.config.chunk, self.prefix(to));
    }

    /// Answers only if no later epoch or term is known here: the asking primary is still the one.
    fn on_confirm(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        term: Term,
        round: u64,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(term)?;
        let chunk = self.durable.config.chunk;
        context.mirror_eagerly(from, DataMessage::Confirmed { chunk, term, round });
        Ok(())
    }

    fn on_copy(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        copy: CopyFrame,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(copy.read_at.term)?;
        if copy.learner_start != context.me.start {
            return Err(PeerRefusal::OtherStart(context.me.start));
        }
        let config = &self.durable.config;
        if config.is_in_sync(self.durable.replica) {
            // Sent twice, and late: the fill is over.
            return Ok(());
        }
        let (chunk, blocks) = (config.chunk, config.blocks);
        let Role::Member(Member { receiving: Some(receiving) }) = &mut self.role else {
            return Err(PeerRefusal::Gap(self.durable.last));
        };
        // Read before this fill began: a write in between may not have come here.
        let former = copy.read_at < receiving.base;
        if copy.data.range.end() > blocks || receiving.base.term != copy.read_at.term || former {
            return Err(PeerRefusal::Gap(self.durable.last));
        }
        receiving.blocks_done = receiving.blocks_done.saturating_add(copy.data.range.count);
        let term = copy.read_at.term;
        let wanted = untouched(&receiving.touched, copy.read_at, copy.data);
        for data in wanted {
            context.persist(&mut self.durable, Record::Fill { chunk, data });
        }
        let (learner_start, number) = (copy.learner_start, copy.number);
        context.send(from, DataMessage::CopyAck { chunk, term, learner_start, number });
        Ok(())
    }
}

/// The parts of a copy that matter to a learner.
struct CopyFrame {
    read_at: Lsn,
    learner_start: StartNumber,
    number: u64,
    data: BlockData,
}

/// Blocks that follow each other, each with checksum and bytes or as a hole.
type Run = Vec<(u32, Option<(u32, Bytes)>)>;

/// The runs of a copy that no later write has touched.
fn untouched(touched: &BTreeMap<u32, Lsn>, read_at: Lsn, copy: BlockData) -> Vec<BlockData> {
    let range = copy.range;
    let later = |block: u32| touched.get(&block).is_some_and(|lsn| *lsn > read_at);
    if touched.range(range.first..range.end()).all(|(block, _)| !later(*block)) {
        return alloc::vec![copy];
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut in_run = false;
    for (block, content) in copy.iter() {
        if later(block) {
            in_run = false;
            continue;
        }
        match runs.last_mut() {
            Some(run) if in_run => run.push((block, content)),
            _ => runs.push(alloc::vec![(block, content)]),
        }
        in_run = true;
    }
    runs.into_iter().filter_map(gathered).collect()
}

/// Blocks that follow each other, as one content.
fn gathered(run: Run) -> Option<BlockData> {
    let first = run.first()?.0;
    let range = BlockRange::new(first, u32::try_from(run.len()).ok()?);
    let mut sums = Vec::with_capacity(run.len());
    let mut data = BytesMut::new();
    for (_, content) in run {
        sums.push(content.as_ref().map(|(sum, _)| *sum));
        if let Some((_, bytes)) = content {
            data.extend_from_slice(&bytes);
        }
    }
    Some(BlockData { range, sums: Sums::Mixed(sums), data: data.freeze() })
}
