//! Blocks that are journalled or about to be, and not yet in the data file.
//!
//! A **layer** holds everything handed over between two checkpoints. The newest layer takes writes;
//! older ones are frozen and wait to be applied, so that applying never races with new writes and
//! a crash during it finds every block in the journal. Content is kept as extents (runs of blocks
//! written together), because one trim may cover millions of blocks.
//!
//! Invariant: the extents of a chunk in a layer do not overlap and are not empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, ChunkId, Sums};
use bytes::Bytes;

use super::format::{SLOT_BLOCKS, as_usize, slice};
use super::map::slots_of;

/// Content of a run of blocks in memory.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Reads as zero.
    Hole,
    /// Bytes with one checksum per block.
    Data { sums: SumRun, bytes: Bytes },
    /// A large write that has its own place in the data file, from block `at` of it on; the bytes
    /// are here until they are durable there.
    Placed { sums: SumRun, at: u64, bytes: Option<Bytes> },
}

/// Checksums of a run, cheap to cut.
#[derive(Clone, Debug)]
pub(crate) enum SumRun {
    /// The usual case: one block, no allocation.
    One(u32),
    /// From the given place in the list on.
    Many(Arc<[u32]>, usize),
}

impl SumRun {
    pub(crate) fn of(sums: &[u32]) -> Self {
        match sums {
            [one] => Self::One(*one),
            many => Self::Many(many.into(), 0),
        }
    }

    /// The checksum of the `nth` block of the run.
    pub(crate) fn get(&self, nth: usize) -> u32 {
        match self {
            Self::One(sum) => *sum,
            Self::Many(all, from) => all.get(from + nth).copied().unwrap_or(0),
        }
    }

    fn skip(&self, blocks: usize) -> Self {
        match self {
            Self::One(sum) => Self::One(*sum),
            Self::Many(all, from) => Self::Many(all.clone(), from + blocks),
        }
    }
}

impl Content {
    /// The part of `count` blocks after the first `skip`.
    pub(crate) fn part(&self, skip: u32, count: u32) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Data { sums, bytes } => {
                let (skip, count) = (as_usize(u64::from(skip)), as_usize(u64::from(count)));
                let (from, to) = (skip * BLOCK_SIZE, (skip + count) * BLOCK_SIZE);
                Self::Data { sums: sums.skip(skip), bytes: slice(bytes, from, to) }
            }
            Self::Placed { sums, at, bytes } => {
                let (from, count) = (as_usize(u64::from(skip)), as_usize(u64::from(count)));
                let (begin, end) = (from * BLOCK_SIZE, (from + count) * BLOCK_SIZE);
                let bytes = bytes.as_ref().map(|bytes| slice(bytes, begin, end));
                Self::Placed { sums: sums.skip(from), at: at + u64::from(skip), bytes }
            }
        }
    }
}

/// A run of blocks and its content; the first block is the key it is kept under.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// The block after the last.
    pub(crate) end: u32,
    pub(crate) content: Content,
}

/// One chunk in one layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChunkLayer {
    /// Whatever lies below this layer is void: the replica was erased or made anew.
    pub(crate) cleared: bool,
    pub(crate) extents: BTreeMap<u32, Extent>,
}

impl ChunkLayer {
    fn put(&mut self, range: BlockRange, content: Content) {
        let (first, end) = (range.first, range.end());
        let before = self.extents.range_mut(..first).next_back();
        let mut tail = None;
        if let Some((start, extent)) = before
            && extent.end > first
        {
            if extent.end > end {
                let rest = extent.content.part(end - start, extent.end - end);
                tail = Some((end, Extent { end: extent.end, content: rest }));
            }
            extent.content = extent.content.part(0, first - start);
            extent.end = first;
        }
        while let Some((&start, _)) = self.extents.range(first..end).next() {
            if let Some(old) = self.extents.remove(&start)
                && old.end > end
            {
                let rest = old.content.part(end - start, old.end - end);
                tail = Some((end, Extent { end: old.end, content: rest }));
            }
        }
        self.extents.extend(tail);
        self.extents.insert(first, Extent { end, content });
    }

    /// The parts of `range` that this layer covers, in order, each with its content.
    fn covered(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, Content)> + '_ {
        let reaching = self.extents.range(..=range.first).next_back();
        let from = match reaching {
            Some((start, extent)) if extent.end > range.first => *start,
            Some(_) | None => range.first,
        };
        self.extents.range(from..range.end()).filter_map(move |(start, extent)| {
            let whole = BlockRange::new(*start, extent.end - start);
            let common = whole.intersection(range)?;
            Some((common, extent.content.part(common.first - start, common.count)))
        })
    }
}

/// Everything of one checkpoint period.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    pub(crate) chunks: BTreeMap<ChunkId, ChunkLayer>,
}

impl Layer {
    /// Makes everything of the chunk void, here and below.
    pub(crate) fn clear(&mut self, chunk: ChunkId) {
        self.chunks.insert(chunk, ChunkLayer { cleared: true, extents: BTreeMap::new() });
    }

    /// Takes new content.
    pub(crate) fn write(&mut self, chunk: ChunkId, data: &BlockData) {
        let layer = self.chunks.entry(chunk).or_default();
        for (range, content) in runs(data) {
            layer.put(range, content);
        }
    }

    /// Takes new content that has slots of its own, one for each part of the range.
    pub(crate) fn place(&mut self, chunk: ChunkId, data: &BlockData, slots: &[u32]) {
        let Sums::Full(sums) = &data.sums else { return };
        let sums = SumRun::of(sums);
        let layer = self.chunks.entry(chunk).or_default();
        for ((index, part), slot) in slots_of(data.range).zip(slots) {
            let first = index * SLOT_BLOCKS + part.first;
            let skip = as_usize(u64::from(first - data.range.first));
            let count = as_usize(u64::from(part.count));
            // Without bytes: found at replay, durable already.
            let bytes = (!data.data.is_empty())
                .then(|| slice(&data.data, skip * BLOCK_SIZE, (skip + count) * BLOCK_SIZE));
            let at = u64::from(*slot) * u64::from(SLOT_BLOCKS) + u64::from(part.first);
            let content = Content::Placed { sums: sums.skip(skip), at, bytes };
            layer.put(BlockRange::new(first, part.count), content);
        }
    }

    /// What [`Layer::place`] took is durable in its slots: the bytes need not be kept here.
    pub(crate) fn settle(&mut self, chunk: ChunkId, range: BlockRange, slots: &[u32]) {
        let Some(layer) = self.chunks.get_mut(&chunk) else { return };
        for (first, extent) in layer.extents.range_mut(range.first..range.end()) {
            let nth = first / SLOT_BLOCKS - range.first / SLOT_BLOCKS;
            let slot = slots.get(as_usize(u64::from(nth)));
            // A later write may have taken these blocks over.
            if let Content::Placed { at, bytes, .. } = &mut extent.content
                && slot.is_some_and(|slot| *at / u64::from(SLOT_BLOCKS) == u64::from(*slot))
            {
                *bytes = None;
            }
        }
    }

    /// True when journalled data of `range` waits here to be written to its slots.
    pub(crate) fn has_data(&self, chunk: ChunkId, range: BlockRange) -> bool {
        let is_data = |(_, content): (BlockRange, Content)| matches!(content, Content::Data { .. });
        self.chunks.get(&chunk).is_some_and(|layer| layer.covered(range).any(is_data))
    }

    /// True when content below this layer is void for `chunk`.
    pub(crate) fn is_cleared(&self, chunk: ChunkId) -> bool {
        self.chunks.get(&chunk).is_some_and(|c| c.cleared)
    }
}

/// The runs of equal kind (data or holes) of a content.
fn runs(data: &BlockData) -> Vec<(BlockRange, Content)> {
    let sums = match &data.sums {
        Sums::Holes => return vec![(data.range, Content::Hole)],
        Sums::Full(sums) => {
            let content = Content::Data { sums: SumRun::of(sums), bytes: data.data.clone() };
            return vec![(data.range, content)];
        }
        Sums::Mixed(sums) => sums,
    };
    let mut out = Vec::new();
    let mut first = data.range.first;
    let mut used = 0;
    for run in sums.chunk_by(|a, b| a.is_some() == b.is_some()) {
        let count = super::format::as_u32(run.len());
        let some: Vec<u32> = run.iter().copied().flatten().collect();
        let content = if some.is_empty() {
            Content::Hole
        } else {
            let bytes = slice(&data.data, used, used + some.len() * BLOCK_SIZE);
            used += some.len() * BLOCK_SIZE;
            Content::Data { sums: SumRun::of(&some), bytes }
        };
        out.push((BlockRange::new(first, count), content));
        first += count;
    }
    out
}

/// Resolves `range` of `chunk` over `layers`, newest first: calls `found` in order for every part
/// found in memory and `below` for every part that no layer decides.
pub(crate) fn resolve<'l>(
    mut layers: impl Iterator<Item = &'l Layer> + Clone,
    chunk: ChunkId,
    range: BlockRange,
    out: &mut Vec<(BlockRange, Option<Content>)>,
) {
    let Some(layer) = layers.next() else {
        out.push((range, None));
        return;
    };
    let Some(of_chunk) = layer.chunks.get(&chunk) else {
        return resolve(layers, chunk, range, out);
    };
    let mut at = range.first;
    let gap = |from: u32, to: u32, out: &mut Vec<_>| {
        if from < to {
            let gap = BlockRange::new(from, to - from);
            if of_chunk.cleared {
                out.push((gap, Some(Content::Hole)));
            } else {
                resolve(layers.clone(), chunk, gap, out);
            }
        }
    };
    for (part, content) in of_chunk.covered(range) {
        gap(at, part.first, out);
        at = part.end();
        out.push((part, Some(content)));
    }
    gap(at, range.end(), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{ChunkIndex, VolumeId};
    use proptest::prelude::*;

    fn chunk() -> ChunkId {
        let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
        ChunkId { volume, index: ChunkIndex(0) }
    }

    /// Content whose every block is marked by `mark`; each third block is a hole if `mixed`.
    fn content(first: u32, count: u32, mark: u8, mixed: bool) -> BlockData {
        let hole = |block: u32| mixed && block.is_multiple_of(3);
        let range = BlockRange::new(first, count);
        let sums = range.blocks().map(|b| (!hole(b)).then_some(u32::from(mark))).collect();
        let blocks = range.blocks().filter(|b| !hole(*b)).count();
        let data = Bytes::from(vec![mark; blocks * BLOCK_SIZE]);
        BlockData { range, sums: Sums::Mixed(sums), data }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(u32, u32, bool),
        /// Into a slot of its own; settled or not.
        Place(u32, u32, bool),
        Zero(u32, u32),
        Clear,
        Freeze,
    }

    proptest! {
        #[test]
        fn layers_behave_like_an_array_of_blocks(
            ops in prop::collection::vec(
                prop_oneof![
                    6 => (0u32..40, 1u32..20, any::<bool>()).prop_map(|(f, c, m)| Op::Write(f, c, m)),
                    3 => (0u32..40, 1u32..20, any::<bool>()).prop_map(|(f, c, s)| Op::Place(f, c, s)),
                    3 => (0u32..40, 1u32..30).prop_map(|(f, c)| Op::Zero(f, c)),
                    1 => Just(Op::Clear),
                    2 => Just(Op::Freeze),
                ],
                1..30,
            ),
        ) {
            // 255: below every layer; 0: hole.
            let mut model = [255u8; 80];
            let mut layers = vec![Layer::default()];
            for (mark, op) in (1u8..).zip(ops) {
                let top = layers.last_mut().unwrap();
                match op {
                    Op::Write(first, count, mixed) => {
                        top.write(chunk(), &content(first, count, mark, mixed));
                        for b in first..first + count {
                            model[b as usize] = if mixed && b.is_multiple_of(3) { 0 } else { mark };
                        }
                    }
                    Op::Place(first, count, settle) => {
                        let range = BlockRange::new(first, count);
                        let data = content(first, count, mark, false);
                        let sums = Sums::Full(vec![u32::from(mark); count as usize]);
                        top.place(chunk(), &BlockData { sums, ..data }, &[u32::from(mark)]);
                        if settle {
                            top.settle(chunk(), range, &[u32::from(mark)]);
                        }
                        // Bytes that are kept are marked by 254 below.
                        let found = if settle { mark } else { 254 };
                        model[first as usize..(first + count) as usize].fill(found);
                    }
                    Op::Zero(first, count) => {
                        let range = BlockRange::new(first, count);
                        top.write(chunk(), &BlockData::holes(range));
                        model[first as usize..(first + count) as usize].fill(0);
                    }
                    Op::Clear => {
                        top.clear(chunk());
                        model.fill(0);
                    }
                    Op::Freeze => layers.push(Layer::default()),
                }
                let mut parts = Vec::new();
                resolve(layers.iter().rev(), chunk(), BlockRange::new(0, 80), &mut parts);
                let mut at = 0;
                for (range, content) in parts {
                    prop_assert_eq!(range.first, at);
                    at = range.end();
                    for (nth, b) in range.blocks().enumerate() {
                        let found = match &content {
                            None => 255,
                            Some(Content::Hole) => 0,
                            Some(Content::Placed { sums, at, bytes: None }) => {
                                prop_assert_eq!(*at % 256, u64::from(range.first));
                                u8::try_from(sums.get(nth)).unwrap()
                            }
                            Some(Content::Placed { bytes: Some(_), .. }) => 254,
                            Some(Content::Data { sums, bytes }) => {
                                prop_assert_eq!(bytes.len(), range.count as usize * BLOCK_SIZE);
                                prop_assert_eq!(sums.get(nth), u32::from(bytes[nth * BLOCK_SIZE]));
                                bytes[nth * BLOCK_SIZE]
                            }
                        };
                        prop_assert_eq!(found, model[b as usize], "block {}", b);
                    }
                }
                prop_assert_eq!(at, 80);
            }
        }
    }
}
