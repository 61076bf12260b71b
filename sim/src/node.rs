//! A storage node of the simulation: the real core over a simulated journal and blocks.
//!
//! The journal is a list of records with a durable prefix; a crash keeps the prefix and any part
//! of what followed it, in order, as a torn journal would. The store's own recovery code is tested
//! over its own simulated disk (`node/src/store`).

use crate::blocks::Blocks;
use crate::disk::DiskFaults;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{Identity, Input, JournalSeq, NodeCore, Outbox, Record, Timing};
#[cfg(not(debug_assertions))]
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    BlockData, BlockRange, ChunkId, Lsn, NodeId, StartNumber, StoreId, Sums, Time, ZoneId,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What a node keeps through a crash.
#[derive(Debug, Default)]
struct Media {
    state: DurableState,
    blocks: Blocks,
}

impl Media {
    fn apply(&mut self, record: &Record) {
        self.state.apply(record);
        self.blocks.apply(record);
    }
}

/// Inputs between two looks at everything that a core believes; what an input is about is looked at
/// after each.
#[cfg(not(debug_assertions))]
const CHECK_ALL_EVERY: u64 = 16;

/// The chunk that an input is about, if it is about one.
#[cfg(not(debug_assertions))]
fn chunk_of(input: &Input) -> Option<ChunkId> {
    match input {
        Input::Frame {
            message: DataMessage::Read { stamp, .. } | DataMessage::Write { stamp, .. },
            ..
        } => Some(stamp.chunk),
        Input::Frame { message, .. } => message.peer_chunk(),
        _about_none_or_all => None,
    }
}

/// One node.
#[derive(Debug)]
pub(crate) struct SimNode {
    pub(crate) identity: Identity,
    /// Counts processes of this node; events of an earlier one are void.
    pub(crate) life: u64,
    timing: Timing,
    media: Media,
    /// Records handed to the journal and not yet durable.
    tail: VecDeque<(JournalSeq, Record)>,
    /// Records that find no room on the disk, and those behind them.
    waiting: VecDeque<(JournalSeq, Record)>,
    /// Replicas of which records were lost since the last start.
    lost_parts: Vec<ChunkId>,
    /// What the process sees: media and tail.
    pub(crate) live: Blocks,
    core: Option<NodeCore>,
    /// Inputs so far: every so many, everything is checked.
    #[cfg(not(debug_assertions))]
    handled: u64,
    /// Position of each write that this process has journalled, by chunk of the one volume and by
    /// what it wrote.
    positions: BTreeMap<(u32, WriteMark), Lsn>,
    /// End of the prefix of each replica, as far as this process has journalled it.
    ends: BTreeMap<ChunkId, Lsn>,
    /// Its machine has no power.
    pub(crate) off: bool,
    disk: DiskFaults,
    clock: LocalClock,
}

/// Why the store cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFault {
    /// The disk says so.
    Failed,
    /// What it gives does not fit its checksum.
    Damaged,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is killed: of what was on its way to the media a part has arrived.
    Killed,
    /// It ends in order: everything is on the media.
    Stopped,
    /// Power fails: nothing that was on its way has arrived.
    PowerCut,
}

/// The monotonic clock of a machine: it may run fast or slow against the world's.
#[derive(Clone, Copy, Debug, Default)]
struct LocalClock {
    /// A moment of the world, and what this clock showed then.
    since: (Time, Time),
    /// Thousandths that it gains.
    permille: i64,
}

impl LocalClock {
    fn at(self, now: Time) -> Time {
        let passed = u64::try_from(now.since(self.since.0).as_nanos()).unwrap_or(u64::MAX);
        let rate = u64::try_from(1_000 + self.permille).unwrap_or(0);
        self.since.1 + Duration::from_nanos(passed / 1_000 * rate + passed % 1_000 * rate / 1_000)
    }
}

/// What tells one write of a chunk from another: its range and a digest of its checksums.
pub(crate) type WriteMark = (BlockRange, u64);

/// The mark of a content.
pub(crate) fn mark_of(data: &BlockData) -> WriteMark {
    let mix = |sum: &u32, mixed: u64| (mixed ^ u64::from(*sum)).wrapping_mul(0x0100_0000_01b3);
    let digest = match &data.sums {
        Sums::Holes => 0,
        Sums::Full(sums) => sums.iter().fold(1, |mixed, sum| mix(sum, mixed)),
        Sums::Mixed(sums) => sums.iter().flatten().fold(2, |mixed, sum| mix(sum, mixed)),
    };
    (data.range, digest)
}

impl SimNode {
    pub(crate) fn new(zone: ZoneId, node: NodeId, timing: Timing, dice: &mut SeededDice) -> Self {
        let store = StoreId(dice.next_u128());
        Self {
            identity: Identity { zone, node, store, start: StartNumber(0) },
            life: 0,
            timing,
            media: Media::default(),
            tail: VecDeque::new(),
            waiting: VecDeque::new(),
            lost_parts: Vec::new(),
            live: Blocks::default(),
            core: None,
            #[cfg(not(debug_assertions))]
            handled: 0,
            positions: BTreeMap::new(),
            ends: BTreeMap::new(),
            off: false,
            disk: DiskFaults::default(),
            clock: LocalClock::default(),
        }
    }

    pub(crate) const fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub(crate) const fn core(&self) -> Option<&NodeCore> {
        self.core.as_ref()
    }

    /// Starts the process on what the media hold.
    pub(crate) fn start(&mut self, now: Time, out: &mut Outbox) {
        self.life += 1;
        self.identity.start = self.identity.start.next();
        self.live = self.media.blocks.clone();
        let state = self.media.state.clone();
        self.positions.clear();
        self.ends = state.iter().map(|(chunk, replica)| (*chunk, replica.last)).collect();
        self.off = false;
        let now = self.clock.at(now);
        self.core = Some(NodeCore::new(now, self.identity, self.timing, state, out));
    }

    /// The process ends.
    pub(crate) fn end_process(&mut self, how: End, dice: &mut SeededDice) {
        self.core = None;
        self.waiting.clear();
        self.off = how == End::PowerCut;
        let waiting = self.tail.len() as u64;
        let arrived = match how {
            End::Killed => dice.below(waiting + 1),
            End::Stopped => waiting,
            End::PowerCut => 0,
        };
        for _ in 0..arrived {
            if let Some((_, record)) = self.tail.pop_front() {
                self.media.apply(&record);
            }
        }
        self.tail.clear();
    }

    /// The disk is replaced by an empty one. The process must be down.
    pub(crate) fn replace_disk(&mut self, dice: &mut SeededDice) {
        self.identity.store = StoreId(dice.next_u128());
        self.identity.start = StartNumber(0);
        self.media = Media::default();
        self.tail.clear();
        self.disk = DiskFaults::default();
    }

    /// Nothing is read or synced until then.
    pub(crate) fn stall_disk(&mut self, until: Time) {
        self.disk.stalled_until = self.disk.stalled_until.max(until);
    }

    /// When something that the disk would finish at `at` is finished.
    pub(crate) fn disk_done(&self, at: Time) -> Time {
        at.max(self.disk.stalled_until)
    }

    /// Reads fail until then.
    pub(crate) fn fail_reads(&mut self, until: Time) {
        self.disk.unreadable_until = self.disk.unreadable_until.max(until);
    }

    /// Whether reads of the disk succeed.
    pub(crate) fn is_readable(&self, now: Time) -> bool {
        now >= self.disk.unreadable_until
    }

    /// Lets a written block of a chunk rot; false if it has none.
    pub(crate) fn rot(&mut self, chunk: ChunkId, dice: &mut SeededDice) -> bool {
        let written: Vec<u32> = self.live.sums(chunk).into_keys().collect();
        let at = usize::try_from(dice.below(written.len() as u64)).unwrap_or(0);
        written.get(at).is_some_and(|block| self.disk.rot(chunk, *block, &self.live))
    }

    /// Lets one block of a chunk rot; false if it was never written.
    pub(crate) fn rot_block(&mut self, chunk: ChunkId, block: u32) -> bool {
        self.disk.rot(chunk, block, &self.live)
    }

    /// What the disk gives for a range, held against the checksums as the store does.
    pub(crate) fn read(
        &self,
        now: Time,
        chunk: ChunkId,
        range: BlockRange,
    ) -> Result<BlockData, ReadFault> {
        if now < self.disk.unreadable_until {
            return Err(ReadFault::Failed);
        }
        if !self.disk.fits(now, chunk, range, &self.live) {
            return Err(ReadFault::Damaged);
        }
        Ok(self.live.read(chunk, range))
    }

    /// Faults of the disk, to add some.
    pub(crate) const fn disk_mut(&mut self) -> &mut DiskFaults {
        &mut self.disk
    }

    /// Until then reads get what is there now.
    pub(crate) fn show_old(&mut self, until: Time) {
        self.disk.show_old(until, &self.live);
    }

    /// A written block of a chunk has the content of another one, and its checksum: what a replica
    /// holds of which a write was lost before its record. False if fewer than two are written.
    pub(crate) fn differ(&mut self, chunk: ChunkId) -> bool {
        let written: Vec<u32> = self.live.sums(chunk).into_keys().collect();
        let [.., other, last] = written.as_slice() else { return false };
        let Some(content) = self.live.get(chunk, *other).cloned() else { return false };
        self.live.put(chunk, *last, content.clone());
        self.media.blocks.put(chunk, *last, content);
        true
    }

    /// The journal has a gap that the store finds at the next start: it cannot know whose records
    /// stood there.
    pub(crate) fn lose_records(&mut self) {
        self.media.state.note_gaps();
        let held: Vec<ChunkId> = self.media.state.iter().map(|(chunk, _)| *chunk).collect();
        for chunk in &held {
            self.media.state.apply(&Record::Suspect { chunk: *chunk });
        }
        self.lost_parts = held;
    }

    /// Replicas that the store finds to have lost part of at its start.
    pub(crate) fn take_lost_parts(&mut self) -> Vec<ChunkId> {
        core::mem::take(&mut self.lost_parts)
    }

    /// Every fault of the disk ends but what lies in wrong places.
    pub(crate) fn heal_disk(&mut self) {
        self.disk.heal();
    }

    /// Whether a record finds no room, or waits behind one that does not.
    pub(crate) fn must_wait(&self, now: Time, record: &Record) -> bool {
        let content = record.content().is_some_and(|data| data.data_blocks() > 0);
        !self.waiting.is_empty() || (content && now < self.disk.full_until)
    }

    /// Keeps a record that finds no room; true for the first.
    pub(crate) fn wait_for_room(&mut self, seq: JournalSeq, record: Record) -> bool {
        self.waiting.push_back((seq, record));
        self.waiting.len() == 1
    }

    /// Whether a read of a chunk must wait: it has to see every record before it.
    pub(crate) fn reads_wait(&self, chunk: ChunkId) -> bool {
        self.waiting.iter().any(|(_, record)| record.chunk() == chunk)
    }

    /// The records that find room now: all, or those up to an erasure, for which room is kept.
    pub(crate) fn take_room(&mut self, now: Time) -> Vec<(JournalSeq, Record)> {
        let erases = |(_, record): &(JournalSeq, Record)| matches!(record, Record::Erase { .. });
        let until = match self.waiting.iter().rposition(erases) {
            _ if now >= self.disk.full_until => self.waiting.len(),
            Some(last) => last + 1,
            None => 0,
        };
        self.waiting.drain(..until).collect()
    }

    /// The machine's clock gains so many thousandths from now on.
    pub(crate) fn drift(&mut self, now: Time, permille: i64) {
        self.clock = LocalClock { since: (now, self.clock.at(now)), permille };
    }

    /// Gives the core an input, if the process runs.
    pub(crate) fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        let now = self.clock.at(now);
        let Some(core) = &mut self.core else { return };
        // In debug builds the core checks itself wholly after each input.
        #[cfg(not(debug_assertions))]
        let about = chunk_of(&input);
        core.handle(now, input, out);
        #[cfg(not(debug_assertions))]
        {
            self.handled += 1;
            match about {
                _ if self.handled.is_multiple_of(CHECK_ALL_EVERY) => core.check(),
                Some(chunk) => core.check_chunk(chunk),
                None => {}
            }
        }
    }

    /// The position that this process gave, or was given for, a write.
    pub(crate) fn position(&self, chunk: ChunkId, mark: WriteMark) -> Option<Lsn> {
        self.positions.get(&(chunk.index.0, mark)).copied()
    }

    /// End of a replica's prefix.
    pub(crate) fn end(&self, chunk: ChunkId) -> Lsn {
        self.ends.get(&chunk).copied().unwrap_or(Lsn::ZERO)
    }

    /// Takes a record for the journal; true if the disk does something else than it should with it.
    pub(crate) fn append(
        &mut self,
        seq: JournalSeq,
        record: Record,
        dice: &mut SeededDice,
    ) -> bool {
        match &record {
            Record::Write { chunk, lsn, data, .. } => {
                self.positions.insert((chunk.index.0, mark_of(data)), *lsn);
                self.ends.insert(*chunk, *lsn);
            }
            Record::OpenTerm { chunk, term, .. } => {
                self.ends.insert(*chunk, Lsn::opening(*term));
            }
            Record::OpenFill { chunk, base } => {
                self.ends.insert(*chunk, *base);
            }
            _facts_without_a_position => {}
        }
        let mut spoiled = false;
        if let Some(data) = record.content() {
            spoiled = self.disk.on_write(record.chunk(), data, &self.live, dice);
        }
        if let Record::Erase { chunk } = &record {
            self.disk.forget(*chunk);
        }
        self.live.apply(&record);
        self.tail.push_back((seq, record));
        spoiled
    }

    /// Records handed to the journal that are not durable.
    pub(crate) fn unsynced(&self) -> usize {
        self.tail.len()
    }

    /// The newest record handed to the journal, if any is not durable.
    pub(crate) fn newest_appended(&self) -> Option<JournalSeq> {
        self.tail.back().map(|(seq, _)| *seq)
    }

    /// The journal's group up to `seq` is on the media.
    pub(crate) fn synced(&mut self, seq: JournalSeq) {
        while let Some((_, record)) = self.tail.pop_front_if(|(at, _)| *at <= seq) {
            self.media.apply(&record);
        }
    }
}
