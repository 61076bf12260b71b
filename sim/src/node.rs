//! A storage node of the simulation: the real core over a simulated journal and blocks.
//!
//! The journal is a list of records with a durable prefix; a crash keeps the prefix and any part
//! of what followed it, in order, as a torn journal would. The store's own recovery code is tested
//! over its own simulated disk (`node/src/store`).

use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{Identity, Input, JournalSeq, NodeCore, Outbox, Record, Timing};
use ashlar_types::{
    BlockData, BlockRange, ChunkId, Lsn, NodeId, StartNumber, StoreId, Sums, Time, ZoneId,
};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Content of one block with its checksum.
pub(crate) type Block = (u32, Bytes);

/// Blocks of all replicas of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    blocks: BTreeMap<(ChunkId, u32), Block>,
}

impl Blocks {
    fn apply(&mut self, record: &Record) {
        if let Record::Erase { chunk } = record {
            self.blocks.retain(|(held, _), _| held != chunk);
        }
        let Some(data) = record.content() else { return };
        for (block, content) in data.iter() {
            let key = (record.chunk(), block);
            match content {
                Some(content) => self.blocks.insert(key, content),
                None => self.blocks.remove(&key),
            };
        }
    }

    /// Content of a range.
    pub(crate) fn read(&self, chunk: ChunkId, range: BlockRange) -> BlockData {
        let found: Vec<Option<&Block>> =
            range.blocks().map(|block| self.blocks.get(&(chunk, block))).collect();
        let mut data = BytesMut::new();
        for (_, bytes) in found.iter().flatten() {
            data.extend_from_slice(bytes);
        }
        let sums = Sums::Mixed(found.iter().map(|b| b.map(|(sum, _)| *sum)).collect());
        BlockData { range, sums, data: data.freeze() }
    }

    /// Checksums of all blocks of a chunk: equal replicas have equal ones.
    pub(crate) fn sums(&self, chunk: ChunkId) -> BTreeMap<u32, u32> {
        let of_chunk = (chunk, 0)..=(chunk, u32::MAX);
        self.blocks.range(of_chunk).map(|((_, block), (sum, _))| (*block, *sum)).collect()
    }
}

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
    /// What the process sees: media and tail.
    pub(crate) live: Blocks,
    core: Option<NodeCore>,
    /// Position of each write that this process has journalled, by what it wrote.
    positions: BTreeMap<(ChunkId, WriteMark), Lsn>,
    /// End of the prefix of each replica, as far as this process has journalled it.
    ends: BTreeMap<ChunkId, Lsn>,
    /// Its machine has no power.
    pub(crate) off: bool,
    disk: DiskFaults,
    clock: LocalClock,
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

/// What is wrong with the disk.
#[derive(Debug, Default)]
struct DiskFaults {
    /// Nothing is read or synced until then.
    stalled_until: Time,
    /// Reads fail until then.
    unreadable_until: Time,
    /// Blocks whose bytes do not fit their checksum any more.
    rotten: BTreeSet<(ChunkId, u32)>,
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
            live: Blocks::default(),
            core: None,
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
        written.get(at).is_some_and(|block| self.disk.rotten.insert((chunk, *block)))
    }

    /// What the disk gives for a range; nothing, if it fails or a checksum does not fit.
    pub(crate) fn read(&self, now: Time, chunk: ChunkId, range: BlockRange) -> Option<BlockData> {
        let rotten = range.blocks().any(|block| self.disk.rotten.contains(&(chunk, block)));
        let fails = now < self.disk.unreadable_until;
        (!rotten && !fails).then(|| self.live.read(chunk, range))
    }

    /// Every fault of the disk but rot ends.
    pub(crate) fn heal_disk(&mut self) {
        self.disk.stalled_until = Time::ZERO;
        self.disk.unreadable_until = Time::ZERO;
    }

    /// The machine's clock gains so many thousandths from now on.
    pub(crate) fn drift(&mut self, now: Time, permille: i64) {
        self.clock = LocalClock { since: (now, self.clock.at(now)), permille };
    }

    /// Gives the core an input, if the process runs.
    pub(crate) fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        let now = self.clock.at(now);
        if let Some(core) = &mut self.core {
            core.handle(now, input, out);
            // In debug builds the core has checked itself already.
            #[cfg(not(debug_assertions))]
            core.check();
        }
    }

    /// The position that this process gave, or was given for, a write.
    pub(crate) fn position(&self, chunk: ChunkId, mark: WriteMark) -> Option<Lsn> {
        self.positions.get(&(chunk, mark)).copied()
    }

    /// End of a replica's prefix.
    pub(crate) fn end(&self, chunk: ChunkId) -> Lsn {
        self.ends.get(&chunk).copied().unwrap_or(Lsn::ZERO)
    }

    /// Takes a record for the journal.
    pub(crate) fn append(&mut self, seq: JournalSeq, record: Record) {
        match &record {
            Record::Write { chunk, lsn, data, .. } => {
                self.positions.insert((*chunk, mark_of(data)), *lsn);
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
        if let Some(data) = record.content() {
            for block in data.range.blocks() {
                self.disk.rotten.remove(&(record.chunk(), block));
            }
        }
        self.live.apply(&record);
        self.tail.push_back((seq, record));
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
