//! Brings parts of chunks that lie in several slots together in one, when room runs short.
//!
//! Part of a checkpoint: what the smaller slots hold is copied to fresh blocks of the largest, durable
//! with the checkpoint's other blocks; then the map moves. A crash before its end finds everything
//! where it was. Blocks that cannot be read, or fail their checksums, leave the part as it is: the
//! scrub finds them.

use std::collections::BTreeSet;

use ashlar_env::disk::{AlignedBuf, IoKind, IoOp};
use ashlar_types::{BLOCK_SIZE, BlockRange, ChunkId};
use bytes::Bytes;

use super::apply::{Applier, Work};
use super::format::{SLOT_BLOCKS, SLOT_BYTES, SlotBlocks, as_u32, as_u64, as_usize, first_bad};
use super::map::{Mapped, SlotChange};
use super::overlay::{Content, SumRun};
use super::place::add_claim;
use super::shared::State;

/// Parts merged by one checkpoint: at most 16 MiB to read and to write.
const PARTS_MAX: usize = 32;

/// A part to be merged, and where.
struct Plan {
    part: (ChunkId, u32),
    into: Mapped,
    from: Vec<Mapped>,
}

impl Applier {
    /// Adds merges to the work of a checkpoint, if an eighth of the store or less is left.
    pub(crate) fn merge(&mut self, work: &mut Vec<Work>) {
        let plans = {
            let mut state = self.shared.lock();
            if state.map.room(false) > state.map.capacity() / 8 {
                return;
            }
            let touched: BTreeSet<_> =
                work.iter().map(|work| (work.change.chunk, work.change.index)).collect();
            plan(&mut state, &touched)
        };
        for plan in plans {
            match self.copies(&plan) {
                Some(merged) => work.extend(merged),
                None => {
                    tracing::warn!(chunk = %plan.part.0, "slots cannot be merged: damaged blocks")
                }
            }
        }
    }

    /// Reads what moves; `None` if some of it is damaged.
    fn copies(&mut self, plan: &Plan) -> Option<Vec<Work>> {
        let (chunk, index) = plan.part;
        let mut blocks = plan.into.blocks.clone();
        let (mut writes, mut out) = (Vec::new(), Vec::new());
        for from in &plan.from {
            let base = u64::from(from.slot) * SLOT_BYTES;
            for run in runs(&from.blocks) {
                let buf = AlignedBuf::zeroed(as_usize(u64::from(run.count)) * BLOCK_SIZE);
                let offset = base + u64::from(run.first) * as_u64(BLOCK_SIZE);
                let op = IoOp::new(self.shared.data.clone(), IoKind::Read, offset, buf);
                let read = self.engine.run(vec![op]).pop()?;
                let sums: Vec<u32> = run.blocks().filter_map(|b| from.blocks.get(b)).collect();
                if read.result.is_err() || first_bad(&read.buf, sums.iter().copied()).is_some() {
                    return None;
                }
                run.blocks().for_each(|b| blocks.set(b, from.blocks.get(b)));
                let bytes = Bytes::from_owner(read.buf);
                writes.push((run, Content::Data { sums: SumRun::of(&sums), bytes }));
            }
            let change =
                SlotChange { chunk, index, slot: from.slot, blocks: SlotBlocks::default() };
            out.push(Work { change, writes: Vec::new() });
        }
        writes.sort_by_key(|(range, _)| range.first);
        out.push(Work {
            change: SlotChange { chunk, index, slot: plan.into.slot, blocks },
            writes,
        });
        Some(out)
    }
}

/// Chooses parts that the checkpoint does not touch and nobody has claims on; claims what they get.
fn plan(state: &mut State, touched: &BTreeSet<(ChunkId, u32)>) -> Vec<Plan> {
    let is_quiet = |part: &(ChunkId, u32)| {
        let slots = state.map.get(part.0, part.1);
        !touched.contains(part) && !slots.iter().any(|m| state.has_claim(m.slot))
    };
    let parts: Vec<_> = state.map.split().filter(is_quiet).take(PARTS_MAX).collect();
    let mut plans = Vec::new();
    for part in parts {
        let mut from = state.map.get(part.0, part.1).to_vec();
        from.sort_by_key(|mapped| mapped.blocks.count());
        let Some(into) = from.pop() else { continue };
        if let Some(applied) = state.periods.front_mut() {
            for mapped in &from {
                add_claim(&mut applied.claims, into.slot, part, mapped.blocks.present());
            }
        }
        plans.push(Plan { part, into, from });
    }
    plans
}

/// The runs of blocks that are there.
fn runs(blocks: &SlotBlocks) -> Vec<BlockRange> {
    let all: Vec<(u32, bool)> = (0..SLOT_BLOCKS).map(|b| (b, blocks.get(b).is_some())).collect();
    let runs = all.chunk_by(|a, b| a.1 == b.1).filter(|run| run.first().is_some_and(|b| b.1));
    runs.filter_map(|run| Some(BlockRange::new(run.first()?.0, as_u32(run.len())))).collect()
}
