//! The bytes of a store: superblock, journal group, map page. All numbers little-endian.
//!
//! Drawn with byte offsets in `docs/disk.md`; this file and that page change together. Encoding is
//! pure; nothing here touches a disk. Every structure carries a magic, the store's id (so that the
//! content of a volume can never be taken for a structure of the store that holds it) and a CRC32C.

use ashlar_env::disk::{AlignedBuf, IO_ALIGN};
use ashlar_types::codec::{BufMut, CodecError, Reader, Wire};
use ashlar_types::{BLOCK_SIZE, ChunkId, NodeId, StartNumber, StoreId, ZoneId};
use bytes::Bytes;

use super::doubt::Doubt;
use super::place::Bits;

/// Newest format version read and written here. Version 1 had no doubt: zeros in its place. Before
/// version 3 every record's blocks followed it in the journal, and a part of a chunk had one slot.
pub const VERSION: u32 = 4;
/// Oldest format version read here.
const VERSION_MIN: u32 = 1;
/// Blocks per slot: a slot is 1 MiB.
pub const SLOT_BLOCKS: u32 = 256;
/// Bytes per slot.
pub const SLOT_BYTES: u64 = 1 << 20;
/// Bytes of a superblock copy, a map page and the granule of the journal.
pub(crate) const PAGE: usize = IO_ALIGN;
/// Bytes of a group's head before its entries.
pub(crate) const GROUP_HEAD: usize = 96;
/// Bytes before the fields of an entry: their length and the number of blocks.
pub(crate) const ENTRY_HEAD: usize = 8;
/// In an entry's number of blocks: they are in slots of the data file, that many of which are named
/// behind the fields.
pub(crate) const PLACED: u32 = 1 << 31;

const SUPER_MAGIC: [u8; 8] = *b"ASHSTORE";
const GROUP_MAGIC: [u8; 8] = *b"ASHGROUP";
const MAP_MAGIC: [u8; 8] = *b"ASHMAPPG";
/// Where the CRC is in each of the three; it covers everything else, itself as zero.
const CRC_AT: usize = 8;

const _: () = assert!(PAGE == BLOCK_SIZE);
const _: () = assert!(SLOT_BYTES == SLOT_BLOCKS as u64 * BLOCK_SIZE as u64);

/// Why bytes are not the structure they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// No magic, a bad checksum, another store's id, or fields that make no sense.
    Damaged,
    /// Intact, but written by a newer release.
    Newer(u32),
}

impl From<CodecError> for Unreadable {
    fn from(_: CodecError) -> Self {
        Self::Damaged
    }
}

/// What is known of a store before anything else is read. Two copies; the newer intact one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Which copy is newer; goes up with every write.
    pub(crate) sequence: u64,
    pub(crate) store: StoreId,
    pub(crate) zone: ZoneId,
    pub(crate) node: NodeId,
    pub(crate) start: StartNumber,
    pub(crate) journal_bytes: u64,
    /// Position of the checkpoint that replay begins with.
    pub(crate) tail: u64,
    /// Number of the group at `tail`.
    pub(crate) tail_number: u64,
    /// CRC of the group before it.
    pub(crate) tail_chain: u32,
    /// Number of the last complete checkpoint; map pages of a later one do not count.
    pub(crate) checkpoint: u64,
    /// Slots that were ever used: map pages beyond do not exist.
    pub(crate) slots_used: u32,
    /// Sum over the CRCs of all current map pages: a page that rotted away is noticed.
    pub(crate) map_digest: u64,
    /// Most slots the data file may have.
    pub(crate) capacity_slots: u32,
    /// Whose state or content was found damaged and is not marked yet.
    pub(crate) doubt: Doubt,
}

ashlar_types::wire_struct! {
    Superblock {
        sequence, store, zone, node, start, journal_bytes, tail, tail_number, tail_chain,
        checkpoint, slots_used, map_digest, capacity_slots, doubt,
    }
}

impl Superblock {
    pub(crate) fn encode(&self) -> AlignedBuf {
        let mut body = Vec::with_capacity(PAGE);
        body.put_slice(&SUPER_MAGIC);
        body.put_u32_le(0);
        body.put_u32_le(VERSION);
        self.put(&mut body);
        sealed(&body)
    }

    pub(crate) fn decode(page: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(opened(page, &SUPER_MAGIC)?);
        match u32::get(&mut reader)? {
            VERSION_MIN..=VERSION => Ok(Self::get(&mut reader)?),
            newer if newer > VERSION => Err(Unreadable::Newer(newer)),
            _ => Err(Unreadable::Damaged),
        }
    }
}

/// What a group holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupKind {
    /// Records.
    Records,
    /// Part `part` of `parts` of a checkpoint: one byte string per replica.
    Checkpoint { part: u32, parts: u32 },
}

/// The head of a journal group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHead {
    /// Bytes of head and entries, before padding.
    pub(crate) head_bytes: u32,
    /// 4 KiB blocks that follow the padded head.
    pub(crate) payload_blocks: u32,
    pub(crate) store: StoreId,
    /// Byte position in the endless journal; the place in the file is the rest modulo its size.
    pub(crate) position: u64,
    /// Where the group before ended: less than `position` where the ring wrapped.
    pub(crate) previous_end: u64,
    pub(crate) number: u64,
    pub(crate) start: StartNumber,
    pub(crate) previous_crc: u32,
    pub(crate) entries: u32,
    pub(crate) kind: GroupKind,
}

impl GroupHead {
    /// Bytes of the whole group in the journal.
    pub(crate) fn len(&self) -> u64 {
        let head = u64::from(self.head_bytes).next_multiple_of(PAGE_U64);
        head + u64::from(self.payload_blocks) * PAGE_U64
    }

    /// Writes the head over the first [`GROUP_HEAD`] bytes of `block`, whose entries are in place,
    /// and seals `head_bytes` of it; returns the CRC.
    pub(crate) fn seal(&self, block: &mut [u8]) -> u32 {
        let mut head = Vec::with_capacity(GROUP_HEAD);
        head.put_slice(&GROUP_MAGIC);
        head.put_u32_le(0);
        head.put_u32_le(self.head_bytes);
        head.put_u32_le(self.payload_blocks);
        head.put_u32_le(self.entries);
        self.store.put(&mut head);
        self.position.put(&mut head);
        self.previous_end.put(&mut head);
        self.number.put(&mut head);
        self.start.put(&mut head);
        self.previous_crc.put(&mut head);
        let (part, parts) = match self.kind {
            GroupKind::Records => (0, 0),
            GroupKind::Checkpoint { part, parts } => (part, parts),
        };
        part.put(&mut head);
        parts.put(&mut head);
        head.resize(GROUP_HEAD, 0);
        put(block, 0, &head);
        let crc = crc_of(block.get(..as_usize(u64::from(self.head_bytes))).unwrap_or_default());
        put(block, CRC_AT, &crc.to_le_bytes());
        crc
    }

    /// Reads the head at the start of `at`, which goes to the end of the journal; also returns the
    /// entries' bytes and the CRC.
    pub(crate) fn open(at: &[u8], store: StoreId) -> Option<(Self, &[u8], u32)> {
        if at.first_chunk() != Some(&GROUP_MAGIC) {
            return None;
        }
        let head_bytes = u32::get(&mut Reader::new(at.get(12..16)?)).ok()?;
        let whole = at.get(..as_usize(u64::from(head_bytes)))?;
        let mut reader = Reader::new(opened(whole, &GROUP_MAGIC).ok()?);
        let crc = u32::get(&mut Reader::new(whole.get(CRC_AT..12)?)).ok()?;
        let head = Self::parse(&mut reader).ok()?;
        let entries = whole.get(GROUP_HEAD..)?;
        (head.store == store).then_some((head, entries, crc))
    }

    fn parse(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let head_bytes = u32::get(from)?;
        let payload_blocks = u32::get(from)?;
        let entries = u32::get(from)?;
        let store = StoreId::get(from)?;
        let (position, previous_end) = (u64::get(from)?, u64::get(from)?);
        let (number, start) = (u64::get(from)?, StartNumber::get(from)?);
        let previous_crc = u32::get(from)?;
        let kind = match (u32::get(from)?, u32::get(from)?) {
            (0, 0) => GroupKind::Records,
            (part, parts) if part < parts => GroupKind::Checkpoint { part, parts },
            _ => return Err(CodecError::Value),
        };
        Ok(Self {
            head_bytes,
            payload_blocks,
            store,
            position,
            previous_end,
            number,
            start,
            previous_crc,
            entries,
            kind,
        })
    }
}

/// Which block of which chunk a slot holds, with presence and checksums. A free slot has no owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapPage {
    pub(crate) slot: u32,
    /// The checkpoint that wrote it.
    pub(crate) checkpoint: u64,
    /// Chunk and number of the slot within it.
    pub(crate) owner: Option<(ChunkId, u32)>,
    pub(crate) blocks: SlotBlocks,
}

/// The blocks of a slot: which are there, and their checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotBlocks {
    present: [u64; 4],
    sums: Box<[u32; SLOT_BLOCKS as usize]>,
}

impl Default for SlotBlocks {
    fn default() -> Self {
        Self { present: [0; 4], sums: Box::new([0; SLOT_BLOCKS as usize]) }
    }
}

impl SlotBlocks {
    /// The checksum of a block; `None` for a hole.
    pub(crate) fn get(&self, block: u32) -> Option<u32> {
        let word = self.present.get(as_usize(u64::from(block / 64)))?;
        let there = word & (1 << (block % 64)) != 0;
        if there { self.sums.get(as_usize(u64::from(block))).copied() } else { None }
    }

    /// Sets a block, or makes it a hole.
    pub(crate) fn set(&mut self, block: u32, sum: Option<u32>) {
        let at = as_usize(u64::from(block));
        if let (Some(word), Some(to)) = (self.present.get_mut(at / 64), self.sums.get_mut(at)) {
            let bit = 1 << (block % 64);
            *word = if sum.is_some() { *word | bit } else { *word & !bit };
            *to = sum.unwrap_or(0);
        }
    }

    /// True when every block is a hole.
    pub(crate) fn is_empty(&self) -> bool {
        self.present == [0; 4]
    }

    /// The blocks that are there.
    pub(crate) fn present(&self) -> Bits {
        Bits(self.present)
    }

    /// Number of blocks that are there.
    pub(crate) fn count(&self) -> u32 {
        self.present.iter().map(|word| word.count_ones()).sum()
    }
}

impl MapPage {
    pub(crate) fn encode(&self, store: StoreId) -> AlignedBuf {
        let mut body = Vec::with_capacity(PAGE);
        body.put_slice(&MAP_MAGIC);
        body.put_u32_le(0);
        self.slot.put(&mut body);
        store.put(&mut body);
        self.checkpoint.put(&mut body);
        self.owner.map(|(chunk, _)| chunk).put(&mut body);
        self.owner.map_or(0, |(_, index)| index).put(&mut body);
        self.blocks.present.iter().for_each(|word| word.put(&mut body));
        self.blocks.sums.iter().for_each(|sum| sum.put(&mut body));
        sealed(&body)
    }

    /// Reads a page; also returns its CRC.
    pub(crate) fn decode(page: &[u8], store: StoreId) -> Option<(Self, u32)> {
        let mut reader = Reader::new(opened(page, &MAP_MAGIC).ok()?);
        let crc = u32::get(&mut Reader::new(page.get(CRC_AT..12)?)).ok()?;
        let page = Self::parse(&mut reader, store).ok()??;
        Some((page, crc))
    }

    fn parse(from: &mut Reader<'_>, store: StoreId) -> Result<Option<Self>, CodecError> {
        let slot = u32::get(from)?;
        let of = StoreId::get(from)?;
        let checkpoint = u64::get(from)?;
        let chunk: Option<ChunkId> = Wire::get(from)?;
        let index = u32::get(from)?;
        let mut blocks = SlotBlocks::default();
        for word in &mut blocks.present {
            *word = u64::get(from)?;
        }
        for sum in blocks.sums.iter_mut() {
            *sum = u32::get(from)?;
        }
        let owner = chunk.map(|chunk| (chunk, index));
        Ok((of == store).then_some(Self { slot, checkpoint, owner, blocks }))
    }
}

const PAGE_U64: u64 = 4096;

/// Copies `body` into a page and puts its CRC in place.
fn sealed(body: &[u8]) -> AlignedBuf {
    let mut page = AlignedBuf::copied(body);
    debug_assert_eq!(page.len(), PAGE, "a structure fits one page");
    let crc = crc_of(&page);
    put(&mut page, CRC_AT, &crc.to_le_bytes());
    page
}

/// Checks magic and CRC of `bytes`; returns what follows them.
fn opened<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<&'a [u8], Unreadable> {
    if bytes.first_chunk() != Some(magic) {
        return Err(Unreadable::Damaged);
    }
    let stored = bytes.get(CRC_AT..12).ok_or(Unreadable::Damaged)?;
    if stored != crc_of(bytes).to_le_bytes() {
        return Err(Unreadable::Damaged);
    }
    bytes.get(12..).ok_or(Unreadable::Damaged)
}

/// CRC32C of `bytes` with the four bytes at [`CRC_AT`] as zero.
pub(crate) fn crc_of(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(bytes.get(..CRC_AT).unwrap_or_default());
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, bytes.get(CRC_AT + 4..).unwrap_or_default())
}

/// The checksum that a structure says it has.
pub(crate) fn stored_crc(bytes: &[u8]) -> u32 {
    let stored = bytes.get(CRC_AT..).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
    u32::from_le_bytes(stored)
}

pub(crate) fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = buf.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// Saturates; used for lengths that are bounded by named limits.
pub(crate) fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Saturates; see [`as_usize`].
pub(crate) fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Saturates; see [`as_usize`].
pub(crate) fn as_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Verifies the blocks of `bytes` against `sums`; the first bad block's number if one is bad.
pub(crate) fn first_bad(bytes: &[u8], sums: impl Iterator<Item = u32>) -> Option<usize> {
    bytes
        .chunks(BLOCK_SIZE)
        .zip(sums)
        .position(|(block, sum)| block.len() != BLOCK_SIZE || crc32c::crc32c(block) != sum)
}

/// A slice of a shared buffer; empty when out of range.
pub(crate) fn slice(bytes: &Bytes, from: usize, to: usize) -> Bytes {
    if from <= to && to <= bytes.len() { bytes.slice(from..to) } else { Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{ChunkIndex, VolumeId};

    fn superblock() -> Superblock {
        Superblock {
            sequence: 3,
            store: StoreId(77),
            zone: "a".parse().unwrap(),
            node: NodeId(2),
            start: StartNumber(5),
            journal_bytes: 1 << 20,
            tail: 8192,
            tail_number: 4,
            tail_chain: 9,
            checkpoint: 2,
            slots_used: 8,
            map_digest: 1234,
            capacity_slots: 100,
            doubt: Doubt::default(),
        }
    }

    #[test]
    fn a_superblock_reads_back_and_a_newer_one_is_named() {
        let page = superblock().encode();
        assert_eq!(Superblock::decode(&page), Ok(superblock()));
        for at in [0, 9, 13, 40, 100, 4000] {
            let mut bad = page.to_vec();
            bad[at] ^= 1;
            assert_eq!(Superblock::decode(&bad), Err(Unreadable::Damaged), "byte {at}");
        }
        let mut newer = page.to_vec();
        newer[12] = 5;
        let crc = crc_of(&newer);
        newer[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&newer), Err(Unreadable::Newer(5)));
        let mut older = page.to_vec();
        older[12] = 1;
        let crc = crc_of(&older);
        older[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&older), Ok(superblock()), "version 1 is read");
    }

    #[test]
    fn a_map_page_reads_back_and_belongs_to_its_store() {
        let mut blocks = SlotBlocks::default();
        assert!(blocks.is_empty());
        blocks.set(0, Some(5));
        blocks.set(255, Some(0));
        blocks.set(7, Some(1));
        blocks.set(7, None);
        assert_eq!((blocks.get(0), blocks.get(7), blocks.get(255)), (Some(5), None, Some(0)));
        let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
        let owner = Some((ChunkId { volume, index: ChunkIndex(3) }, 9));
        let page = MapPage { slot: 4, checkpoint: 8, owner, blocks };
        let bytes = page.encode(StoreId(7));
        assert_eq!(MapPage::decode(&bytes, StoreId(7)).unwrap().0, page);
        assert_eq!(MapPage::decode(&bytes, StoreId(8)), None);
        let free = MapPage { owner: None, blocks: SlotBlocks::default(), ..page };
        assert_eq!(MapPage::decode(&free.encode(StoreId(7)), StoreId(7)).unwrap().0, free);
    }

    #[test]
    fn a_group_head_reads_back_only_for_its_store_and_whole() {
        let mut block = vec![0; PAGE];
        block[GROUP_HEAD..GROUP_HEAD + 3].copy_from_slice(b"abc");
        let head = GroupHead {
            head_bytes: as_u32(GROUP_HEAD + 3),
            payload_blocks: 2,
            store: StoreId(1),
            position: 4096,
            previous_end: 4096,
            number: 6,
            start: StartNumber(1),
            previous_crc: 3,
            entries: 1,
            kind: GroupKind::Checkpoint { part: 0, parts: 2 },
        };
        let crc = head.seal(&mut block);
        assert_eq!(head.len(), 3 * 4096);
        assert_eq!(GroupHead::open(&block, StoreId(1)), Some((head, &b"abc"[..], crc)));
        assert_eq!(GroupHead::open(&block, StoreId(2)), None);
        for at in 0..GROUP_HEAD + 3 {
            let mut bad = block.clone();
            bad[at] ^= 0x40;
            assert_eq!(GroupHead::open(&bad, StoreId(1)), None, "byte {at}");
        }
    }
}
