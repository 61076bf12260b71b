//! Large writes that need not pass through the journal: where they go instead, and who may.
//!
//! A write of at least [`LARGE_BLOCKS`] blocks goes to **fresh** blocks of the data file: blocks that
//! no map page on disk names, that no content in memory will be put into, and that no read still
//! looks at. They are made durable before the record that names their slots is journalled, so a
//! crash finds the record and the content, or neither; what was there before lies elsewhere. The
//! checkpoint of the period moves the map; nothing is written a second time.
//!
//! Blocks so taken are **claimed** until the checkpoint of their period is complete. Claims live in
//! memory only: after a crash whatever no map page and no replayed record names is free again, so no
//! crash leaks a slot.
//!
//! A part of a chunk may so come to lie in several slots, each block in one of them. Small writes
//! bring it together again (`apply.rs`); when room runs short, merging does (`merge.rs`). A large
//! write that would take room from others is journalled like any other.

use std::collections::BTreeMap;

use ashlar_env::disk::{AlignedBuf, DiskError, DiskFile, IoEngine, IoKind, IoOp};
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{BLOCK_SIZE, BlockRange, ChunkId, Sums};

use super::format::{SLOT_BLOCKS, as_u64, as_usize, put};
use super::map::slots_of;
use super::shared::State;

/// Blocks from which on a write is large (256 KiB; tests get by with less): below, a second sync costs
/// more than writing twice, see the figures in docs/decisions/0008-large-writes.md.
pub(crate) const LARGE_BLOCKS: usize = if cfg!(test) { 16 } else { 64 };

/// Most bytes of large writes made durable with one group: their acknowledgements wait for each other.
pub(crate) const PLACED_BYTES: u64 = 4 << 20;

/// Slots that one period may claim: superseded content keeps its slots until the checkpoint.
const PERIOD_SLOTS_MAX: u32 = 256;

/// A set of blocks of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits(pub(crate) [u64; 4]);

impl Bits {
    /// The blocks of `range`, which counts from the start of the slot.
    pub(crate) fn of(range: BlockRange) -> Self {
        let mut bits = Self::default();
        for block in range.blocks() {
            if let Some(word) = bits.0.get_mut(as_usize(u64::from(block / 64))) {
                *word |= 1 << (block % 64);
            }
        }
        bits
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }

    pub(crate) fn with(self, other: Self) -> Self {
        self.combined(other, |a, b| a | b)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        self.combined(other, |a, b| a & !b)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == [0; 4]
    }

    fn combined(mut self, other: Self, how: impl Fn(u64, u64) -> u64) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = how(*a, b);
        }
        self
    }
}

/// Blocks of a slot that content in memory has taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Chunk and number of the slot in it.
    pub(crate) part: (ChunkId, u32),
    pub(crate) bits: Bits,
    /// The replica that claimed it is gone: its place is for nobody until the claim ends.
    pub(crate) void: bool,
}

/// By slot.
pub(crate) type Claims = BTreeMap<u32, Claim>;

/// Claims more blocks of a slot.
pub(crate) fn add_claim(claims: &mut Claims, slot: u32, part: (ChunkId, u32), bits: Bits) {
    let claim = claims.entry(slot).or_insert(Claim { part, bits: Bits::default(), void: false });
    claim.bits = claim.bits.with(bits);
}

/// The chunk's replica is gone: nothing else may go to the places that it claimed.
pub(crate) fn void_claims(claims: &mut Claims, chunk: ChunkId) {
    let of_chunk = claims.values_mut().filter(|claim| claim.part.0 == chunk);
    of_chunk.for_each(|claim| claim.void = true);
}

/// A record that waits to be journalled, with the slots that its content has if it is large.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) seq: JournalSeq,
    pub(crate) record: Record,
    /// One for each part of the range; empty: the content is journalled.
    pub(crate) slots: Vec<u32>,
}

impl Queued {
    /// Bytes that go to the data file before the record is journalled.
    pub(crate) fn placed_bytes(&self) -> u64 {
        if self.slots.is_empty() {
            return 0;
        }
        as_u64(self.record.content().map_or(0, |content| content.data.len()))
    }
}

/// A claim just made, to be taken back if the records beside it find no room.
#[derive(Debug)]
pub(crate) struct Made {
    slot: u32,
    bits: Bits,
    /// The slot was free before.
    fresh: bool,
}

impl State {
    /// Claims places for the content of a large record; `None` when it is small, or better journalled.
    pub(crate) fn place(&mut self, record: &Record, made: &mut Vec<Made>) -> Option<Vec<u32>> {
        let content = record.content()?;
        if !matches!(content.sums, Sums::Full(_)) || content.data_blocks() < LARGE_BLOCKS {
            return None;
        }
        let (chunk, range) = (record.chunk(), content.range);
        let newest = self.periods.len().checked_sub(1)?;
        // What is to be put into the slots of the part by an earlier checkpoint must not meet it.
        if self.periods.iter().take(newest).any(|p| p.layer.has_data(chunk, range)) {
            return None;
        }
        let (before, used) = (made.len(), self.map.used());
        let mut slots = Vec::new();
        for (index, part) in slots_of(range) {
            let Some(slot) = self.claim((chunk, index), Bits::of(part), made) else {
                self.unclaim(made.drain(before..), used);
                return None;
            };
            slots.push(slot);
        }
        Some(slots)
    }

    /// Claims `bits` of a slot for `part`: one that the part has, else a free one.
    fn claim(&mut self, part: (ChunkId, u32), bits: Bits, made: &mut Vec<Made>) -> Option<u32> {
        let (known, has_any) = self.slot_of_part(part, bits);
        let slot = match known {
            Some(slot) => slot,
            None => self.fresh_slot(has_any)?,
        };
        let newest = self.periods.back_mut()?;
        add_claim(&mut newest.claims, slot, part, bits);
        made.push(Made { slot, bits, fresh: known.is_none() });
        Some(slot)
    }

    /// A slot of the part in which `bits` are fresh, and whether the part has a slot at all.
    fn slot_of_part(&self, part: (ChunkId, u32), bits: Bits) -> (Option<u32>, bool) {
        let cleared = self.periods.iter().any(|p| p.layer.is_cleared(part.0));
        let mapped = self.map.get(part.0, part.1).iter().filter(|_| !cleared);
        let mapped = mapped.map(|m| (m.slot, m.blocks.present()));
        let claims = self.periods.iter().rev().flat_map(|p| p.claims.iter());
        let claimed = claims.filter(|(slot, claim)| {
            claim.part == part && !claim.void && !self.map.has(part, **slot)
        });
        let claimed = claimed.map(|(slot, _)| (*slot, Bits::default()));
        let mut has_any = false;
        let is_fresh = |(slot, present): &(u32, Bits)| {
            has_any = true;
            !present.meets(bits)
                && !self.map.is_cooling(*slot, bits)
                && !self.is_claimed(*slot, bits)
        };
        let found = mapped.chain(claimed).find(is_fresh).map(|(slot, _)| slot);
        (found, has_any)
    }

    fn is_claimed(&self, slot: u32, bits: Bits) -> bool {
        self.periods.iter().any(|p| p.claims.get(&slot).is_some_and(|c| c.bits.meets(bits)))
    }

    /// True when some period has a claim on the slot.
    pub(crate) fn has_claim(&self, slot: u32) -> bool {
        self.periods.iter().any(|p| p.claims.contains_key(&slot))
    }

    /// A free slot that may be written at once. `beside`: the part has one already, so this one is
    /// a loan: an eighth of the store at most, and none when less than that is left.
    fn fresh_slot(&mut self, beside: bool) -> Option<u32> {
        let eighth = self.map.capacity() / 8;
        let claimed: usize = self.periods.iter().map(|p| p.claims.len()).sum();
        let lent = self.map.split_parts() + super::format::as_u32(claimed);
        let room = self.map.room(false);
        if room == 0 || (beside && (lent >= eighth || room <= eighth)) {
            return None;
        }
        // An overwrite can do without: it must not fail because the file cannot grow.
        if beside && self.map.needed(1) > self.map.grown() {
            return None;
        }
        self.map.take_cold()
    }

    /// Takes claims back that were made just now, when `used` slots had ever been given out.
    pub(crate) fn unclaim(&mut self, made: impl IntoIterator<Item = Made>, used: u32) {
        let Some(newest) = self.periods.back_mut() else { return };
        for Made { slot, bits, fresh } in made {
            if let Some(claim) = newest.claims.get_mut(&slot) {
                claim.bits = claim.bits.without(bits);
            }
            if newest.claims.get(&slot).is_some_and(|claim| claim.bits.is_empty()) {
                newest.claims.remove(&slot);
            }
            if fresh {
                self.map.release(slot);
            }
        }
        self.map.forget_above(used);
    }

    /// True when the newest period should end: its claims are returned by its checkpoint.
    pub(crate) fn claims_enough(&self) -> bool {
        let limit = (self.map.capacity() / 32).clamp(1, PERIOD_SLOTS_MAX);
        self.periods.back().is_some_and(|p| p.claims.len() >= as_usize(u64::from(limit)))
    }

    /// Ends the claims of a period whose checkpoint is complete; slots that hold nothing are free,
    /// and so are those of `emptied`, unless a later period claims them.
    pub(crate) fn end_claims(&mut self, claims: &Claims, emptied: Vec<u32>) {
        for (slot, claim) in claims {
            // Superseded content may still be being read.
            let present = self.map.present(claim.part, *slot);
            self.map.cool(*slot, claim.bits.without(present));
        }
        let unused = claims.iter().filter(|(slot, claim)| !self.map.has(claim.part, **slot));
        let unused: Vec<u32> = unused.map(|(slot, _)| *slot).chain(emptied).collect();
        for slot in unused {
            if !self.has_claim(slot) {
                self.map.release(slot);
            }
        }
    }
}

/// Writes the content of large records to their places; durable on return. Does nothing for others.
///
/// One descriptor of its own: an error that the kernel reports for a sync once only must reach the
/// one who rests on it, not the apply thread that syncs the same file.
pub(crate) fn write_placed(
    file: &std::sync::Arc<dyn DiskFile>,
    engine: &mut IoEngine,
    batch: &[Queued],
) -> Result<(), DiskError> {
    let mut ops = Vec::new();
    for queued in batch.iter().filter(|queued| !queued.slots.is_empty()) {
        let Some(content) = queued.record.content() else { continue };
        let mut from = 0;
        for ((_, part), slot) in slots_of(content.range).zip(&queued.slots) {
            let bytes = as_usize(u64::from(part.count)) * BLOCK_SIZE;
            let mut buf = AlignedBuf::zeroed(bytes);
            put(&mut buf, 0, content.data.get(from..from + bytes).unwrap_or_default());
            from += bytes;
            let block = u64::from(*slot) * u64::from(SLOT_BLOCKS) + u64::from(part.first);
            let offset = block * as_u64(BLOCK_SIZE);
            ops.push(IoOp::new(file.clone(), IoKind::Write, offset, buf));
        }
    }
    if let [one] = ops.as_slice() {
        return one.file.write_durable(&one.buf, one.offset);
    }
    if ops.is_empty() {
        return Ok(());
    }
    for op in engine.run(ops) {
        op.result?;
    }
    file.sync_data()
}
