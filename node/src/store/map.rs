//! Which slot of the data file holds which blocks: the map in memory, and who may take a slot.
//!
//! A slot (1 MiB) belongs to one (chunk, slot number in the chunk) and is given out on the first
//! write, so volumes are thin. Every write **reserves** the slots it will need when it is handed
//! over, so that applying never meets a full disk. Slots freed by a checkpoint are given out again
//! only after it is complete: until then a crash may still need them.
//!
//! A part of a chunk may lie in several slots, each of its blocks in one of them: large writes go to
//! fresh blocks (`place.rs`). Blocks that a checkpoint frees are **cooling** until no read that began
//! before it is under way: only then a large write may go there.
//!
//! The map on disk (`format::MapPage`, two copies per slot) is written by `apply.rs` only.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_env::disk::{AlignedBuf, DiskError, DiskFile};
use ashlar_types::{BlockRange, ChunkId, ChunkIndex, StoreId, VolumeId, ZoneId};

use super::doubt::Doubt;
use super::format::{MapPage, PAGE, SLOT_BLOCKS, SlotBlocks, Superblock, as_u64, as_usize};
use super::format::{crc_of, stored_crc};
use super::place::{Bits, Claims};
use super::rot::{self, Rotten};
use super::{OpenError, Space};

/// Most slots that are kept back, so that an erasure can free space although writes wait for some:
/// records keep their order, so these writes must be taken first. As much as one chunk may have in
/// flight.
const KEPT_SLOTS_MAX: u32 = 64;

/// A slot in use.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    pub(crate) slot: u32,
    pub(crate) blocks: SlotBlocks,
}

/// Which of the two copies of a slot's page counts, and what tells it from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageState {
    pub(crate) copy: u8,
    pub(crate) crc: u32,
    /// The checkpoint that wrote it.
    pub(crate) checkpoint: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SlotMap {
    /// Slots by chunk and number in it; lists are never empty and their blocks never overlap.
    chunks: BTreeMap<ChunkId, BTreeMap<u32, Vec<Mapped>>>,
    /// Parts of chunks that lie in more than one slot.
    split: BTreeSet<(ChunkId, u32)>,
    /// Blocks that reads may still be looking at although the map does not name them any more.
    cooling: BTreeMap<u32, Bits>,
    /// Slots below `used` without an owner.
    free: BTreeSet<u32>,
    /// Slots ever given out; their pages, by slot.
    pages: Vec<Option<PageState>>,
    capacity: u32,
    /// Slots that content in memory will need and that are not given out yet.
    reserved: BTreeSet<(ChunkId, u32)>,
    /// Slots whose space the data file has.
    grown: u32,
    /// Places of pages that must not count later: of a checkpoint that was never completed, or of
    /// slots that damage has brought back.
    void: Vec<u64>,
}

/// What reading the map brings beside it.
#[derive(Debug, Default)]
struct Loading {
    /// The checkpoint that wrote the page of each slot in use.
    written: BTreeMap<u32, u64>,
    rotten: Vec<Rotten>,
    doubt: Doubt,
}

/// The slots that a range of blocks touches, each with the part of the range in it, counted from
/// the start of the slot.
pub(crate) fn slots_of(range: BlockRange) -> impl Iterator<Item = (u32, BlockRange)> {
    let (first, end) = (range.first, range.end());
    (first / SLOT_BLOCKS..end.div_ceil(SLOT_BLOCKS)).map(move |index| {
        let start = index.saturating_mul(SLOT_BLOCKS);
        let from = first.max(start);
        let to = end.min(start.saturating_add(SLOT_BLOCKS));
        (index, BlockRange::new(from - start, to - from))
    })
}

impl SlotMap {
    /// An empty map.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Reads the map of a store; doubts whose pages are damaged. Its digest is then another than the
    /// superblock's, which must be written before anything else is.
    pub(crate) fn load(
        file: &dyn DiskFile,
        sb: &Superblock,
        doubt: &mut Doubt,
    ) -> Result<Self, OpenError> {
        const PAGES_AT_ONCE: usize = 512;
        let mut map = Self::new(sb.capacity_slots);
        let mut loading = Loading { doubt: *doubt, ..Loading::default() };
        let mut slot = 0u32;
        let mut buf = AlignedBuf::zeroed(PAGES_AT_ONCE * PAGE);
        let used = u64::from(sb.slots_used) * 2 * as_u64(PAGE);
        // Beyond lies what a checkpoint wrote that was never completed. The next one does not write
        // over all of it, as a slot may be skipped for a large write that is superseded.
        let bytes = used.max(file.size()? / (2 * as_u64(PAGE)) * 2 * as_u64(PAGE));
        let mut at = 0u64;
        while at < bytes {
            let len = as_usize(bytes - at).min(buf.len());
            let Some(part) = buf.get_mut(..len) else { break };
            file.read_at(part, at)?;
            for pair in part.chunks(2 * PAGE) {
                if slot < sb.slots_used {
                    map.load_slot(slot, pair, sb, &mut loading);
                } else {
                    map.void_slot(slot, pair);
                }
                slot += 1;
            }
            at += as_u64(len);
        }
        let lacking = sb.map_digest.wrapping_sub(map.digest());
        if lacking != 0 {
            tracing::error!(
                undecodable = loading.rotten.len(),
                "pages of the store's map are lost"
            );
            rot::judge(lacking, &loading.rotten, &mut loading.doubt);
        }
        *doubt = loading.doubt;
        Ok(map)
    }

    /// Wipes pages that must not count: the next checkpoint takes the number of one that was never
    /// completed, and must not complete its pages.
    pub(crate) fn wipe_void(&mut self, file: &dyn DiskFile) -> Result<(), DiskError> {
        let zeros = AlignedBuf::zeroed(PAGE);
        let places = std::mem::take(&mut self.void);
        places.iter().try_for_each(|at| file.write_at(&zeros, *at))?;
        if places.is_empty() { Ok(()) } else { file.sync_data() }
    }

    /// Whatever is written in these pages does not count.
    fn void_slot(&mut self, slot: u32, pair: &[u8]) {
        let written = pair.chunks(PAGE).zip(0..).filter(|(page, _)| !is_blank(page));
        let first = u64::from(slot) * 2 * as_u64(PAGE);
        self.void.extend(written.map(|(_, copy): (_, u64)| first + copy * as_u64(PAGE)));
    }

    /// Takes in the newer intact copy of a slot's page that a complete checkpoint wrote.
    fn load_slot(&mut self, slot: u32, pair: &[u8], sb: &Superblock, loading: &mut Loading) {
        let intact = pair
            .chunks(PAGE)
            .zip(0u8..)
            .filter_map(|(page, copy)| Some((MapPage::decode(page, sb.store)?, copy)))
            .filter(|((page, _), _)| page.slot == slot);
        let (complete, unfinished): (Vec<_>, Vec<_>) =
            intact.partition(|((page, _), _)| page.checkpoint <= sb.checkpoint);
        let place = |copy: u8| (u64::from(slot) * 2 + u64::from(copy)) * as_u64(PAGE);
        self.void.extend(unfinished.iter().map(|(_, copy)| place(*copy)));
        let decoded = complete.len() + unfinished.len();
        let newest = complete.into_iter().max_by_key(|((page, _), _)| page.checkpoint);
        if decoded < 2 {
            let other = newest.as_ref().map(|((p, crc), _)| (*crc, p.owner.map(|(c, _)| c)));
            let is_rotten =
                |page: &&[u8]| MapPage::decode(page, sb.store).is_none() && !is_blank(page);
            loading.rotten.extend(pair.chunks(PAGE).filter(is_rotten).map(|page| Rotten {
                slot,
                stored: stored_crc(page),
                computed: crc_of(page),
                other,
            }));
        }
        let Some(((page, crc), copy)) = newest else {
            // Never written, or lost: the digest tells.
            self.pages.push(None);
            self.free.insert(slot);
            return;
        };
        self.pages.push(Some(PageState { copy, crc, checkpoint: page.checkpoint }));
        match page.owner {
            None => {
                self.free.insert(slot);
            }
            Some((chunk, index)) => {
                let mapped = Mapped { slot, blocks: page.blocks };
                self.place(chunk, index, mapped, page.checkpoint, loading);
            }
        }
    }

    /// Puts a slot in its place. If another one has some of its blocks too, damage has brought one
    /// of them back: the later page counts, and the chunk is doubted.
    fn place(
        &mut self,
        chunk: ChunkId,
        index: u32,
        mapped: Mapped,
        checkpoint: u64,
        loading: &mut Loading,
    ) {
        loading.written.insert(mapped.slot, checkpoint);
        let present = mapped.blocks.present();
        let slots = self.chunks.entry(chunk).or_default().entry(index).or_default();
        slots.push(mapped);
        let twice = |m: &&Mapped| m.blocks.present().meets(present);
        let mut rivals: Vec<u32> = slots.iter().filter(twice).map(|m| m.slot).collect();
        rivals.sort_by_key(|slot| loading.written.get(slot).copied());
        // The one with the latest page stays.
        rivals.pop();
        slots.retain(|m| !rivals.contains(&m.slot));
        if slots.len() > 1 {
            self.split.insert((chunk, index));
        } else {
            self.split.remove(&(chunk, index));
        }
        for slot in rivals {
            tracing::error!(%chunk, index, slot, "two slots hold the same blocks of a chunk");
            loading.doubt.add(chunk);
            if let Some(page) = self.pages.get_mut(as_usize(u64::from(slot))) {
                *page = None;
            }
            self.free.insert(slot);
            let first = u64::from(slot) * 2 * as_u64(PAGE);
            self.void.extend([first, first + as_u64(PAGE)]);
        }
    }

    /// The slots of one part of a chunk; none if it has no content.
    pub(crate) fn get(&self, chunk: ChunkId, index: u32) -> &[Mapped] {
        self.chunks.get(&chunk).and_then(|slots| slots.get(&index)).map_or(&[], Vec::as_slice)
    }

    /// Whether the slot holds content of the part.
    pub(crate) fn has(&self, (chunk, index): (ChunkId, u32), slot: u32) -> bool {
        self.get(chunk, index).iter().any(|m| m.slot == slot)
    }

    /// The blocks of the part that the slot holds.
    pub(crate) fn present(&self, (chunk, index): (ChunkId, u32), slot: u32) -> Bits {
        let mapped = self.get(chunk, index).iter().find(|m| m.slot == slot);
        mapped.map_or_else(Bits::default, |m| m.blocks.present())
    }

    /// Number of parts that lie in more than one slot.
    pub(crate) fn split_parts(&self) -> u32 {
        super::format::as_u32(self.split.len())
    }

    /// Parts that lie in more than one slot.
    pub(crate) fn split(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        self.split.iter().copied()
    }

    /// All slots of a chunk.
    pub(crate) fn of_chunk(&self, chunk: ChunkId) -> impl Iterator<Item = (u32, &Mapped)> {
        let parts = self.chunks.get(&chunk).into_iter().flatten();
        parts.flat_map(|(index, slots)| slots.iter().map(|mapped| (*index, mapped)))
    }

    /// Numbers in `from..to` of the parts of a chunk that have slots.
    pub(crate) fn in_chunk(&self, chunk: ChunkId, from: u32, to: u32) -> impl Iterator<Item = u32> {
        let parts = self.chunks.get(&chunk).into_iter();
        parts.flat_map(move |slots| slots.range(from..to)).map(|(index, _)| *index)
    }

    /// Slots ever given out.
    pub(crate) fn used(&self) -> u32 {
        super::format::as_u32(self.pages.len())
    }

    /// Slots up to the last one with a page.
    pub(crate) fn written(&self) -> u32 {
        let last = self.pages.iter().rposition(Option::is_some);
        last.map_or(0, |last| super::format::as_u32(last + 1))
    }

    /// Page of a slot, `None` if it was never written.
    pub(crate) fn page(&self, slot: u32) -> Option<PageState> {
        self.pages.get(as_usize(u64::from(slot))).copied().flatten()
    }

    /// Sum over all current pages.
    pub(crate) fn digest(&self) -> u64 {
        self.pages
            .iter()
            .zip(0u32..)
            .filter_map(|(page, slot)| page.map(|p| digest_of(slot, p.crc)))
            .fold(0, u64::wrapping_add)
    }

    /// Capacity, slots in use or promised, for status and admission.
    pub(crate) fn space(&self) -> Space {
        let taken = self.used() - super::format::as_u32(self.free.len());
        let promised = super::format::as_u32(self.reserved.len());
        Space { total_slots: self.capacity, used_slots: taken.saturating_add(promised) }
    }

    /// Of the slots that data in `range` of `chunk` needs, those that are neither there nor
    /// reserved. `cleared`: what is there now is void.
    pub(crate) fn missing(&self, chunk: ChunkId, range: BlockRange, cleared: bool) -> Vec<u32> {
        slots_of(range)
            .map(|(index, _)| index)
            .filter(|index| cleared || self.get(chunk, *index).is_empty())
            .filter(|index| !self.reserved.contains(&(chunk, *index)))
            .collect()
    }

    /// Reserves slots. Call after checking [`SlotMap::room`].
    pub(crate) fn reserve(&mut self, chunk: ChunkId, slots: impl IntoIterator<Item = u32>) {
        self.reserved.extend(slots.into_iter().map(|index| (chunk, index)));
    }

    /// Sets the reservations anew, after a checkpoint.
    pub(crate) fn set_reserved(&mut self, reserved: BTreeSet<(ChunkId, u32)>) {
        self.reserved = reserved;
    }

    /// Slots that can still be reserved; the last ones only for what an erasure waits behind.
    pub(crate) fn room(&self, before_erasure: bool) -> u32 {
        let space = self.space();
        let kept = if before_erasure { 0 } else { (self.capacity / 16).min(KEPT_SLOTS_MAX) };
        space.total_slots.saturating_sub(space.used_slots).saturating_sub(kept)
    }

    /// Slots the data file must have for everything given out, promised, and `more`.
    pub(crate) fn needed(&self, more: u32) -> u32 {
        let free = super::format::as_u32(self.free.len());
        let reserved = super::format::as_u32(self.reserved.len()).saturating_add(more);
        self.used().saturating_add(reserved.saturating_sub(free))
    }

    pub(crate) fn grown(&self) -> u32 {
        self.grown
    }

    pub(crate) fn set_grown(&mut self, slots: u32) {
        self.grown = slots;
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Takes a free slot; its reservation stays until the checkpoint is complete.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop_first() {
            return Some(slot);
        }
        let slot = self.used();
        if slot >= self.capacity {
            return None;
        }
        self.pages.push(None);
        Some(slot)
    }

    /// Takes a free slot that no read is looking at.
    pub(crate) fn take_cold(&mut self) -> Option<u32> {
        let cold = self.free.iter().find(|slot| !self.cooling.contains_key(slot)).copied();
        if let Some(slot) = cold {
            self.free.remove(&slot);
            return Some(slot);
        }
        let slot = self.used();
        if slot >= self.capacity {
            return None;
        }
        self.pages.push(None);
        Some(slot)
    }

    /// Gives back a slot that holds nothing.
    pub(crate) fn release(&mut self, slot: u32) {
        self.free.insert(slot);
    }

    /// Forgets free slots that were never given out before: above `used`.
    pub(crate) fn forget_above(&mut self, used: u32) {
        self.free.split_off(&used);
        self.pages.truncate(as_usize(u64::from(used)));
    }

    /// Blocks of a slot that are free from now on, but may still be being read.
    pub(crate) fn cool(&mut self, slot: u32, bits: Bits) {
        if !bits.is_empty() {
            let known = self.cooling.entry(slot).or_default();
            *known = known.with(bits);
        }
    }

    /// Whether reads may still be looking at some of the blocks.
    pub(crate) fn is_cooling(&self, slot: u32, bits: Bits) -> bool {
        self.cooling.get(&slot).is_some_and(|cooling| cooling.meets(bits))
    }

    /// All reads that began before the last checkpoint was complete are done.
    pub(crate) fn cooled(&mut self) {
        self.cooling.clear();
    }

    /// Takes the slots that replayed records name out of the free ones; doubts the chunks of those
    /// that cannot be theirs. The data file has `data_slots`.
    pub(crate) fn occupy(&mut self, claims: &Claims, data_slots: u32, doubt: &mut Doubt) {
        for (slot, claim) in claims {
            let fits = *slot < data_slots && {
                while self.used() <= *slot {
                    self.free.insert(self.used());
                    self.pages.push(None);
                }
                let there = self.present(claim.part, *slot);
                let theirs = self.free.remove(slot) || self.has(claim.part, *slot);
                theirs && !there.meets(claim.bits)
            };
            if !fits {
                tracing::error!(chunk = %claim.part.0, slot, "a record names a slot of another");
                doubt.add(claim.part.0);
            }
        }
        self.capacity = self.capacity.max(self.used());
    }

    /// Of every slot ever given out: whether it is free, and how many parts it is mapped to.
    #[cfg(test)]
    pub(crate) fn census(&self) -> Vec<(u32, bool, usize)> {
        let mapped = |slot: u32| {
            let all = self.chunks.values().flat_map(|parts| parts.values()).flatten();
            all.filter(|m| m.slot == slot).count()
        };
        (0..self.used()).map(|slot| (slot, self.free.contains(&slot), mapped(slot))).collect()
    }

    /// What a slot holds, as a change that changes nothing.
    pub(crate) fn unchanged(&self, slot: u32, zone: ZoneId) -> SlotChange {
        let parts = self.chunks.iter().flat_map(|(chunk, slots)| {
            let slots = slots.iter().flat_map(|(index, all)| all.iter().map(move |m| (*index, m)));
            slots.map(move |(index, mapped)| (*chunk, index, mapped))
        });
        let owned = parts.into_iter().find(|(_, _, mapped)| mapped.slot == slot);
        if let Some((chunk, index, mapped)) = owned {
            return SlotChange { chunk, index, slot, blocks: mapped.blocks.clone() };
        }
        // Free: nobody's, and no chunk has this name.
        let chunk = ChunkId { volume: VolumeId { zone, uuid: 0 }, index: ChunkIndex(0) };
        SlotChange { chunk, index: 0, slot, blocks: SlotBlocks::default() }
    }

    /// Installs the outcome for one slot after its checkpoint is complete; true when it holds
    /// nothing any more. It is not free before [`SlotMap::release`].
    pub(crate) fn install(&mut self, change: SlotChange, page: PageState) -> bool {
        let SlotChange { chunk, index, slot, blocks } = change;
        if let Some(to) = self.pages.get_mut(as_usize(u64::from(slot))) {
            *to = Some(page);
        }
        let before = self.present((chunk, index), slot);
        self.cool(slot, before.without(blocks.present()));
        let parts = self.chunks.entry(chunk).or_default();
        let slots = parts.entry(index).or_default();
        slots.retain(|m| m.slot != slot);
        let emptied = blocks.is_empty();
        if !emptied {
            slots.push(Mapped { slot, blocks });
        }
        if slots.len() > 1 {
            self.split.insert((chunk, index));
        } else {
            self.split.remove(&(chunk, index));
        }
        if slots.is_empty() {
            parts.remove(&index);
        }
        if parts.is_empty() {
            self.chunks.remove(&chunk);
        }
        emptied
    }
}

/// What a checkpoint does to one slot: its new content, all holes meaning that it is freed.
#[derive(Clone, Debug)]
pub(crate) struct SlotChange {
    pub(crate) chunk: ChunkId,
    pub(crate) index: u32,
    pub(crate) slot: u32,
    pub(crate) blocks: SlotBlocks,
}

impl SlotChange {
    /// The page to be written.
    pub(crate) fn page(&self, checkpoint: u64, store: StoreId) -> AlignedBuf {
        let owner = (!self.blocks.is_empty()).then_some((self.chunk, self.index));
        let blocks = self.blocks.clone();
        MapPage { slot: self.slot, checkpoint, owner, blocks }.encode(store)
    }
}

/// True for a page that was never written, or wiped.
fn is_blank(page: &[u8]) -> bool {
    *page == [0; PAGE]
}

/// One page's part of the digest: slot and CRC mixed, so that exchanged pages are noticed too.
pub(crate) fn digest_of(slot: u32, crc: u32) -> u64 {
    let both = (u64::from(slot) << 32) | u64::from(crc);
    both.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_splits_at_slot_borders() {
        let parts: Vec<_> = slots_of(BlockRange::new(250, 300)).collect();
        let expected = [
            (0, BlockRange::new(250, 6)),
            (1, BlockRange::new(0, 256)),
            (2, BlockRange::new(0, 38)),
        ];
        assert_eq!(parts, expected);
    }
}
