//! The journal: a ring of groups on preallocated space, one write and one sync each.
//!
//! Positions count up for ever; the place in the file is the position modulo its size. A group never
//! crosses the end of the file: the next one then starts at the next multiple of the size and names
//! where the one before ended. Groups are numbered without gaps, and a group is written only after
//! the one before it is durable. So at replay, when no continuing group is found at position p:
//! an intact group with a number above the one expected proves that durable content is gone
//! (damage); without one, what is missing was never durable (a torn tail). A journal that falls idle
//! gets a *seal*, a group without entries, so that its last content has a group behind it too.
//!
//! Damage to blocks alone concerns the replicas that they belong to: what was recorded is known. Damage
//! to a head ends the replay there: what follows is unknown, and no replica is to be believed.

use std::ops::Range;
use std::sync::Arc;

use ashlar_env::disk::{AlignedBuf, DiskError, DiskFile, IO_ALIGN};
use ashlar_node_core::record::Record;
use ashlar_types::codec::Reader;
use ashlar_types::{BLOCK_SIZE, StartNumber, StoreId, Sums};
use bytes::Bytes;

use super::OpenError;
use super::format::{
    ENTRY_HEAD, GROUP_HEAD, GroupHead, GroupKind, PAGE, PLACED, as_u32, as_u64, as_usize,
    first_bad, put, slice,
};
use super::map::slots_of;
use super::place::Queued;

/// Most payload and fields that are put into one group, but for a single larger record. 1 MiB
/// takes under half a millisecond to write; more would only delay the first record of it.
pub(crate) const GROUP_BYTES: usize = 1 << 20;

/// Where the next group goes and what it must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) end: u64,
    pub(crate) number: u64,
    pub(crate) chain: u32,
}

/// A place in the journal where replay may begin: a checkpoint.
pub(crate) type Mark = Cursor;

/// The writing side.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Arc<dyn DiskFile>,
    size: u64,
    store: StoreId,
    start: StartNumber,
    cursor: Cursor,
    /// Replay begins here; nothing from here on may be overwritten.
    tail: u64,
    /// The last group needs no other to say that it was durable: it holds nothing of its own.
    sealed: bool,
    /// Reused: head and entries, then the whole group.
    head: Vec<u8>,
    group: AlignedBuf,
}

/// An encoded record: fields, and blocks or the slots that have them.
pub(crate) fn entry_len(record: &Record, slots: &[u32]) -> usize {
    let blocks = match slots {
        [] => record.content().map_or(0, |c| c.data.len()),
        slots => size_of_val(slots),
    };
    // Fields without blocks are bounded by their lists; a guess is enough to cut groups.
    ENTRY_HEAD + 128 + record.content().map_or(0, |c| c.data_blocks() * 4) + blocks
}

impl Journal {
    pub(crate) fn new(
        file: Arc<dyn DiskFile>,
        size: u64,
        store: StoreId,
        start: StartNumber,
        cursor: Cursor,
        tail: u64,
    ) -> Self {
        let group = AlignedBuf::zeroed(IO_ALIGN);
        // What replay accepted is durable, but its last group may have nothing behind it.
        let sealed = cursor.number == 1;
        Self { file, size, store, start, cursor, tail, sealed, head: Vec::new(), group }
    }

    /// Bytes between tail and end.
    pub(crate) fn used(&self) -> u64 {
        self.cursor.end - self.tail
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether damage to any group with content can be told from a torn tail: an intact group
    /// behind it says that it was durable.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Gives the space before `tail` back.
    pub(crate) fn release(&mut self, tail: u64) {
        debug_assert!(tail >= self.tail && tail <= self.cursor.end);
        self.tail = tail;
    }

    /// Encodes records into the group buffer; returns the bytes that the group will take, the rest
    /// of the ring that it may have to skip included.
    pub(crate) fn stage_records(&mut self, records: &[Queued]) -> Staged {
        self.head.clear();
        self.head.resize(GROUP_HEAD, 0);
        let mut blocks = 0usize;
        for Queued { record, slots, .. } in records {
            let at = self.head.len();
            self.head.resize(at + ENTRY_HEAD, 0);
            record.put_fields(&mut self.head);
            slots.iter().for_each(|slot| self.head.extend_from_slice(&slot.to_le_bytes()));
            let fields = as_u32(self.head.len() - at - ENTRY_HEAD);
            let count = match slots.as_slice() {
                [] => record.content().map_or(0, |c| c.data.len() / BLOCK_SIZE),
                _ => 0,
            };
            let kept = if slots.is_empty() { as_u32(count) } else { PLACED | as_u32(slots.len()) };
            put(&mut self.head, at, &fields.to_le_bytes());
            put(&mut self.head, at + 4, &kept.to_le_bytes());
            blocks += count;
        }
        let payload = self.prepare(blocks);
        let mut at = payload;
        let journalled = records.iter().filter(|queued| queued.slots.is_empty());
        for content in journalled.filter_map(|queued| queued.record.content()) {
            put(&mut self.group, at, &content.data);
            at += content.data.len();
        }
        self.staged(as_u32(records.len()), blocks, GroupKind::Records)
    }

    /// Encodes one part of a checkpoint.
    pub(crate) fn stage_checkpoint(&mut self, part: &[Vec<u8>], kind: GroupKind) -> Staged {
        self.head.clear();
        self.head.resize(GROUP_HEAD, 0);
        for bytes in part {
            self.head.extend_from_slice(&as_u32(bytes.len()).to_le_bytes());
            self.head.extend_from_slice(&[0; 4]);
            self.head.extend_from_slice(bytes);
        }
        self.prepare(0);
        self.staged(as_u32(part.len()), 0, kind)
    }

    /// Copies head and entries into a buffer with room for `blocks`; returns where those go.
    fn prepare(&mut self, blocks: usize) -> usize {
        let payload = self.head.len().next_multiple_of(PAGE);
        let whole = payload + blocks * BLOCK_SIZE;
        if self.group.len() < whole {
            self.group = AlignedBuf::zeroed(whole.next_power_of_two());
        }
        put(&mut self.group, 0, &self.head);
        if let Some(padding) = self.group.get_mut(self.head.len()..payload) {
            padding.fill(0);
        }
        payload
    }

    fn staged(&self, entries: u32, blocks: usize, kind: GroupKind) -> Staged {
        let Cursor { end, number, chain } = self.cursor;
        let mut head = GroupHead {
            head_bytes: as_u32(self.head.len()),
            payload_blocks: as_u32(blocks),
            store: self.store,
            position: end,
            previous_end: end,
            number,
            start: self.start,
            previous_crc: chain,
            entries,
            kind,
        };
        let into = end % self.size;
        if into + head.len() > self.size {
            head.position = end - into + self.size;
        }
        Staged { head }
    }

    /// True when the staged group can be written without touching what replay needs.
    pub(crate) fn fits(&self, staged: &Staged) -> bool {
        staged.end() - self.tail <= self.size
    }

    /// Bytes left in the ring after the staged group.
    pub(crate) fn room_after(&self, staged: &Staged) -> u64 {
        (self.tail + self.size).saturating_sub(staged.end())
    }

    /// Writes the staged group; on return it is durable.
    pub(crate) fn write(&mut self, staged: &Staged) -> Result<(), DiskError> {
        let head = &staged.head;
        let chain = head.seal(&mut self.group);
        let bytes = self.group.get(..as_usize(head.len())).unwrap_or_default();
        self.file.write_durable(bytes, head.position % self.size)?;
        self.cursor = Cursor { end: staged.end(), number: head.number + 1, chain };
        // A seal has no entries; a checkpoint repeats what the groups before it say.
        self.sealed = head.entries == 0 || head.kind != GroupKind::Records;
        Ok(())
    }
}

/// A group in the buffer, not yet written.
#[derive(Debug)]
pub(crate) struct Staged {
    head: GroupHead,
}

impl Staged {
    /// Position after the group.
    pub(crate) fn end(&self) -> u64 {
        self.head.position + self.head.len()
    }
}

/// What replay hands on, in order.
#[derive(Debug)]
pub(crate) enum Replayed {
    /// One replica of the checkpoint.
    Replica(Vec<u8>),
    /// A record.
    Record(Record),
    /// A record whose content is in these slots, one for each part of its range.
    Placed(Record, Vec<u32>),
    /// A record whose blocks are damaged: its facts hold, its content does not.
    Damaged(Record),
}

/// What replay ends with.
#[derive(Debug)]
pub(crate) struct ReplayEnd {
    pub(crate) cursor: Cursor,
    /// Highest start number seen.
    pub(crate) start: StartNumber,
    /// Places of groups behind `cursor`, in order: a checkpoint that was not completed, a group that
    /// was written in part, or what follows damage. They must be wiped before anything is written at `cursor`.
    pub(crate) left_over: Vec<u64>,
    /// Durable groups behind `cursor` are lost.
    pub(crate) has_gap: bool,
}

/// Reads the journal from `mark` on, calling `each` in order.
pub(crate) fn replay(
    content: AlignedBuf,
    store: StoreId,
    mark: Mark,
    each: &mut dyn FnMut(Replayed) -> Result<(), OpenError>,
) -> Result<ReplayEnd, OpenError> {
    let ring = Ring { size: as_u64(content.len()), content: Bytes::from_owner(content), store };
    let mut cursor = mark;
    let mut start = StartNumber(0);
    let mut trailing = Vec::new();
    let mut before_trailing = mark;
    let mut torn = None;
    // A replay begins with a whole checkpoint, or with nothing at all in a new store.
    let mut parts_left = (mark.number == 1).then_some(0);
    while let Some((head, entries, crc)) = ring.next(&cursor) {
        let Some(items) = ring.items(&head, &entries) else { break };
        let damaged = items.iter().any(|item| matches!(item, Replayed::Damaged(_)));
        if damaged && ring.intact_after(head.number).is_none() {
            // The last group, written in part: nothing in it was durable. Its head must not be found
            // behind groups that are wiped, where it would be taken for what is left of a gap.
            torn = Some(head.position);
            break;
        }
        parts_left = match (head.kind, parts_left) {
            (GroupKind::Checkpoint { part: 0, parts }, None) => Some(parts - 1),
            (GroupKind::Checkpoint { part, parts }, Some(left)) if part + left == parts => {
                Some(left - 1)
            }
            (GroupKind::Records, Some(0)) => Some(0),
            // A later checkpoint, begun and not (yet) complete: the records before it were read.
            (GroupKind::Checkpoint { .. }, Some(0)) => {
                if trailing.is_empty() {
                    before_trailing = cursor;
                }
                trailing.push(head.position);
                cursor = after(&head, crc);
                start = start.max(head.start);
                continue;
            }
            (GroupKind::Records | GroupKind::Checkpoint { .. }, _) => {
                let why = "replay does not begin with a whole checkpoint";
                return Err(OpenError::Damaged { what: "journal", at: head.position, why });
            }
        };
        trailing.clear();
        items.into_iter().try_for_each(&mut *each)?;
        start = start.max(head.start);
        cursor = after(&head, crc);
    }
    if parts_left != Some(0) {
        let why = "the checkpoint that replay begins with is unreadable";
        return Err(OpenError::Damaged { what: "journal", at: mark.end, why });
    }
    let later = ring.intact_after(cursor.number);
    if let Some(later) = later {
        tracing::error!(
            stopped = cursor.end,
            later,
            "durable groups of the journal are unreadable"
        );
    }
    if !trailing.is_empty() {
        cursor = before_trailing;
    }
    trailing.extend(torn);
    let left_over = if later.is_some() { ring.all_from(cursor.number) } else { trailing };
    Ok(ReplayEnd { cursor, start, left_over, has_gap: later.is_some() })
}

/// Wipes what an incomplete checkpoint or group left at the end of the journal, so that its room can
/// be used again however often the process dies there; or the groups that damage has cut off, so that
/// they are not taken for damage again. Last first: each group that remains then continues an
/// intact one, and damage is seen until the last one is gone.
pub(crate) fn wipe(file: &dyn DiskFile, size: u64, left_over: &[u64]) -> Result<(), DiskError> {
    let zeros = AlignedBuf::zeroed(PAGE);
    left_over.iter().rev().try_for_each(|at| file.write_durable(&zeros, at % size))
}

/// A record whose content is in `count` slots.
fn placed(fields: &[u8], count: u32) -> Option<Replayed> {
    let mut fields = Reader::new(fields);
    let record = Record::get_apart(&mut fields, Bytes::new()).ok()?;
    let content = record.content()?;
    let parts = slots_of(content.range).count();
    let whole =
        matches!(&content.sums, Sums::Full(sums) if as_u32(sums.len()) == content.range.count);
    if !whole || as_u32(parts) != count {
        return None;
    }
    let slots: Vec<u32> =
        (0..count).map(|_| fields.array().ok().map(u32::from_le_bytes)).collect::<Option<_>>()?;
    fields.finish().ok()?;
    Some(Replayed::Placed(record, slots))
}

fn after(head: &GroupHead, crc: u32) -> Cursor {
    Cursor { end: head.position + head.len(), number: head.number + 1, chain: crc }
}

/// The whole journal in memory.
struct Ring {
    content: Bytes,
    size: u64,
    store: StoreId,
}

impl Ring {
    /// The group that continues at `cursor`: there, or at the start of the next round.
    fn next(&self, cursor: &Cursor) -> Option<(GroupHead, Range<usize>, u32)> {
        let next_round = cursor.end.next_multiple_of(self.size);
        [cursor.end, next_round].into_iter().find_map(|position| {
            let (head, entries, crc) = self.open(position)?;
            let continues = head.position == position
                && head.previous_end == cursor.end
                && head.number == cursor.number
                && head.previous_crc == cursor.chain;
            continues.then_some((head, entries, crc))
        })
    }

    fn open(&self, position: u64) -> Option<(GroupHead, Range<usize>, u32)> {
        let at = as_usize(position % self.size);
        let (head, entries, crc) = GroupHead::open(self.content.get(at..)?, self.store)?;
        let first = at + GROUP_HEAD;
        Some((head, first..first + entries.len(), crc))
    }

    /// The items of a group; `None` when an entry makes no sense.
    fn items(&self, head: &GroupHead, entries: &Range<usize>) -> Option<Vec<Replayed>> {
        let mut reader = Reader::new(self.content.get(entries.clone())?);
        let at = as_usize(head.position % self.size);
        let mut payload = at + as_usize(u64::from(head.head_bytes)).next_multiple_of(PAGE);
        let end = at + as_usize(head.len());
        let mut items = Vec::new();
        for _ in 0..head.entries {
            let len = u32::from_le_bytes(reader.array().ok()?);
            let blocks = u32::from_le_bytes(reader.array().ok()?);
            let fields = reader.take(as_usize(u64::from(len))).ok()?;
            if head.kind != GroupKind::Records {
                items.push(Replayed::Replica(fields.to_vec()));
                continue;
            }
            if blocks & PLACED != 0 {
                items.push(placed(fields, blocks & !PLACED)?);
                continue;
            }
            let bytes = as_usize(u64::from(blocks)) * BLOCK_SIZE;
            if payload + bytes > end {
                return None;
            }
            let data = slice(&self.content, payload, payload + bytes);
            payload += bytes;
            let mut fields = Reader::new(fields);
            let record = Record::get(&mut fields, data).ok()?;
            fields.finish().ok()?;
            let bad = record.content().and_then(|content| {
                let sums = content.iter().filter_map(|(_, block)| block.map(|(sum, _)| sum));
                first_bad(&content.data, sums)
            });
            items.push(match bad {
                None => Replayed::Record(record),
                Some(_) => Replayed::Damaged(record),
            });
        }
        reader.finish().ok()?;
        Some(items)
    }

    /// Position of an intact group head with a number above `expected`.
    fn intact_after(&self, expected: u64) -> Option<u64> {
        self.heads().find(|head| head.number > expected).map(|head| head.position)
    }

    /// Positions of all intact group heads with at least this number, in order of their numbers.
    fn all_from(&self, number: u64) -> Vec<u64> {
        let mut found: Vec<_> = self.heads().filter(|head| head.number >= number).collect();
        found.sort_by_key(|head| head.number);
        found.into_iter().map(|head| head.position).collect()
    }

    /// All intact group heads, wherever they are.
    fn heads(&self) -> impl Iterator<Item = GroupHead> + '_ {
        (0..self.size / as_u64(PAGE)).filter_map(|page| {
            let (head, _, _) = self.open(page * as_u64(PAGE))?;
            (head.position % self.size == page * as_u64(PAGE)).then_some(head)
        })
    }
}
