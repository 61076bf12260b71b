//! The client of the simulation: the real volume core under a random workload.

use crate::effects::Answers;
use crate::judge::Judge;
use crate::scenario::Load;
use ashlar_client_core::{
    Done, Effect, Fence, Input, OpError, OpId, Outbox, Payload, Request, VolumeCore, VolumeSettings,
};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    BLOCK_SIZE, BlockRange, ChunkConfig, ChunkId, ChunkIndex, Generation, Geometry, SessionId, Time,
};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Longest time between two submissions of a client that keeps its depth.
const WORK_MAX: Duration = Duration::from_millis(3);

#[derive(Debug)]
enum Pending {
    Read { first: u64, floors: Vec<u64> },
    Write { first: u64, versions: Vec<u64>, zeroes: bool },
    Flush,
}

/// The client and its workload.
#[derive(Debug)]
pub(crate) struct SimClient {
    core: VolumeCore,
    dice: SeededDice,
    settings: VolumeSettings,
    load: Load,
    blocks: u64,
    /// Blocks before it grew for the first time.
    first_size: Option<u64>,
    chunk_blocks: u64,
    pending: BTreeMap<OpId, Pending>,
    begun: BTreeMap<OpId, Time>,
    answers: Answers,
    /// How long each request took, if that is kept.
    took: Option<Vec<Duration>>,
    next_op: u64,
    /// Version of each content handed out, by its checksum and block.
    versions: BTreeMap<(u64, u32), u64>,
    /// Versions of each block that are zeroes: a hole may be any of them.
    zeroed: BTreeMap<u64, Vec<u64>>,
    /// Stops submitting.
    pub(crate) resting: bool,
    /// The volume is being taken from it: it may be told so.
    pub(crate) may_be_fenced: bool,
    fenced: bool,
    /// Blocks of the volume that are damaged in every replica: reads may be refused.
    unreadable: BTreeSet<u64>,
}

impl SimClient {
    pub(crate) fn new(
        settings: VolumeSettings,
        configs: Vec<ChunkConfig>,
        load: Load,
        seed: u64,
    ) -> Self {
        let blocks = settings.geometry.size_bytes() / BLOCK_SIZE as u64;
        let chunk_blocks = u64::from(settings.geometry.chunk_blocks());
        let kept = settings.clone();
        let mut retry_dice = SeededDice::stream(seed, "client retries");
        let core = VolumeCore::new(settings, configs, Box::new(move || retry_dice.next_u64()));
        Self {
            core,
            dice: SeededDice::stream(seed, "client workload"),
            settings: kept,
            load,
            blocks,
            first_size: None,
            chunk_blocks,
            pending: BTreeMap::new(),
            begun: BTreeMap::new(),
            answers: Answers::default(),
            took: None,
            next_op: 0,
            versions: BTreeMap::new(),
            zeroed: BTreeMap::new(),
            resting: false,
            may_be_fenced: false,
            fenced: false,
            unreadable: BTreeSet::new(),
        }
    }

    pub(crate) fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        self.core.handle(now, input, out);
    }

    /// Size of the volume as its core knows it.
    pub(crate) const fn geometry(&self) -> Geometry {
        self.core.geometry()
    }

    /// The volume is larger than it was: its workload goes up to the new end.
    pub(crate) fn grown(&mut self) {
        self.settings.geometry = self.core.geometry();
        self.first_size.get_or_insert(self.blocks);
        self.blocks = self.settings.geometry.size_bytes() / BLOCK_SIZE as u64;
    }

    /// The attachment that it writes under.
    pub(crate) const fn generation(&self) -> Generation {
        self.settings.generation
    }

    /// Another process of the client, or another client, goes on with the volume: it knows what was
    /// written, and nothing of what is in progress.
    pub(crate) fn succeeded(
        &mut self,
        generation: Generation,
        first_session: SessionId,
        configs: Vec<ChunkConfig>,
        seed: u64,
    ) -> Self {
        let settings = VolumeSettings { generation, first_session, ..self.settings.clone() };
        let mut next = Self::new(settings, configs, self.load, seed);
        next.versions = core::mem::take(&mut self.versions);
        next.unreadable = self.unreadable.clone();
        next.zeroed = core::mem::take(&mut self.zeroed);
        next.next_op = self.next_op;
        next.first_size = self.first_size;
        next.answers = self.answers;
        next.took = self.took.take();
        next.resting = self.resting;
        next
    }

    /// Keeps how long each request takes from now on.
    pub(crate) fn keep_times(&mut self) {
        self.took = Some(Vec::new());
    }

    /// How long each took.
    pub(crate) fn take_times(&mut self) -> Vec<Duration> {
        self.took.take().unwrap_or_default()
    }

    /// Blocks of a chunk.
    pub(crate) const fn chunk_blocks(&self) -> u64 {
        self.chunk_blocks
    }

    /// Whether a write that was sent is one that nobody has been told of.
    pub(crate) fn is_unanswered(&self, write: &DataMessage, judge: &Judge) -> bool {
        let DataMessage::Write { stamp, data, .. } = write else { return false };
        let first = u64::from(stamp.chunk.index.0) * self.chunk_blocks;
        data.iter().all(|(block, content)| {
            let (block, known) = (first + u64::from(block), content.is_some());
            let floor = judge.read_floor(block);
            known && self.version_of(block, floor, content).is_some_and(|version| version > floor)
        })
    }

    /// Requests without an answer.
    pub(crate) fn unfinished(&self) -> usize {
        self.pending.len()
    }

    /// What its requests came to.
    pub(crate) const fn answers(&self) -> Answers {
        self.answers
    }

    /// Blocks that it has zeroed ever.
    pub(crate) fn zeroed_blocks(&self) -> impl Iterator<Item = (ChunkIndex, u32)> {
        let split = |block: &u64| {
            let chunk = u32::try_from(block / self.chunk_blocks).ok()?;
            Some((ChunkIndex(chunk), u32::try_from(block % self.chunk_blocks).ok()?))
        };
        self.zeroed.keys().filter_map(split)
    }

    /// Of writes without an answer, pairs that overlap.
    pub(crate) fn overlapping_writes(&self) -> u64 {
        let writes: Vec<(u64, u64)> = self
            .pending
            .values()
            .filter_map(|pending| match pending {
                Pending::Write { first, versions, .. } => {
                    Some((*first, *first + versions.len() as u64))
                }
                Pending::Read { .. } | Pending::Flush => None,
            })
            .collect();
        let later = |at: usize| writes.get(at + 1..).unwrap_or_default();
        let pairs = writes.iter().enumerate().map(|(at, (first, end))| {
            later(at).iter().filter(|(other, until)| other < end && first < until).count() as u64
        });
        pairs.sum()
    }

    /// Chunks that single requests without an answer are about.
    pub(crate) fn waits_for(&self) -> BTreeSet<u64> {
        let chunk = |first: &u64, count: usize| {
            let (first, last) = (*first, first + count.saturating_sub(1) as u64);
            let alone = first / self.chunk_blocks == last / self.chunk_blocks;
            alone.then_some(first / self.chunk_blocks)
        };
        let pending = self.pending.values();
        pending
            .filter_map(|pending| match pending {
                Pending::Read { first, floors } => chunk(first, floors.len()),
                Pending::Write { first, versions, .. } => chunk(first, versions.len()),
                // It waits for all writes.
                Pending::Flush => None,
            })
            .collect()
    }

    /// What the client waits for, in words.
    pub(crate) fn describe(&self) -> String {
        format!("{:?} {:?}", self.core.status(), self.pending)
    }

    /// Longest time until the workload wants something again.
    pub(crate) fn pace(&self) -> Duration {
        let each =
            |per_second: u64| Duration::from_secs(2) / u32::try_from(per_second).unwrap_or(1);
        self.load.per_second.map_or(WORK_MAX, each)
    }

    /// Submits what the workload wants now.
    pub(crate) fn work(&mut self, now: Time, judge: &mut Judge, out: &mut Outbox) {
        let mut wanted = if self.load.per_second.is_some() { 1 } else { self.load.depth };
        while wanted > 0
            && !(self.resting || self.fenced)
            && self.pending.len() < self.load.depth
            && self.core.has_room()
        {
            wanted -= 1;
            self.next_op += 1;
            let op = OpId(self.next_op);
            let count = 1 + self.dice.below(self.load.blocks_max);
            // A few hot blocks, so that writes overlap often.
            let hot = self.dice.chance(1, 2);
            let span = if hot { self.load.hot_blocks } else { self.blocks };
            let starts = span.min(self.blocks).saturating_sub(count).max(1);
            let first = self.dice.below(starts);
            let is_beyond = self.first_size.is_some_and(|size| first + count > size);
            self.answers.beyond += u64::from(is_beyond);
            let Load { reads, zeroes, .. } = self.load;
            let (request, pending) = match self.dice.below(100) {
                drawn if drawn < reads => self.read(first, count, judge),
                drawn if drawn < reads + zeroes => self.zero(first, count, judge),
                drawn if drawn >= 95 => (Request::Flush, Pending::Flush),
                _ => self.write(first, count, judge),
            };
            self.pending.insert(op, pending);
            self.begun.insert(op, now);
            self.answers.most_open = self.answers.most_open.max(self.pending.len());
            self.core.handle(now, Input::Submit { op, request }, out);
        }
    }

    fn read(&mut self, first: u64, count: u64, judge: &Judge) -> (Request, Pending) {
        let floors = (first..first + count).map(|block| judge.read_floor(block)).collect();
        let request = Request::Read { first, count: u32::try_from(count).unwrap_or(1) };
        (request, Pending::Read { first, floors })
    }

    fn zero(&mut self, first: u64, count: u64, judge: &mut Judge) -> (Request, Pending) {
        let versions: Vec<u64> =
            (first..first + count).map(|block| judge.write_submitted(block)).collect();
        for (block, version) in (first..).zip(&versions) {
            self.zeroed.entry(block).or_default().push(*version);
        }
        let request = Request::Zero { first, count: u32::try_from(count).unwrap_or(1) };
        (request, Pending::Write { first, versions, zeroes: true })
    }

    fn write(&mut self, first: u64, count: u64, judge: &mut Judge) -> (Request, Pending) {
        let mut data = BytesMut::zeroed(usize::try_from(count).unwrap_or(1) * BLOCK_SIZE);
        let mut sums = Vec::new();
        let mut versions = Vec::new();
        for (block, bytes) in (first..first + count).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            let version = judge.write_submitted(block);
            let tag = block.to_le_bytes().into_iter().chain(version.to_le_bytes());
            for (to, from) in bytes.iter_mut().zip(tag) {
                *to = from;
            }
            let sum = crc32c::crc32c(bytes);
            self.versions.insert((block, sum), version);
            sums.push(sum);
            versions.push(version);
        }
        let payload = Payload { sums, data: data.freeze() };
        (Request::Write { first, payload }, Pending::Write { first, versions, zeroes: false })
    }

    /// Takes an outcome of the core in.
    pub(crate) fn completed(
        &mut self,
        now: Time,
        op: OpId,
        result: Result<Done, OpError>,
        judge: &mut Judge,
    ) {
        if let Some(begun) = self.begun.remove(&op) {
            self.answers.longest = self.answers.longest.max(now.since(begun));
            self.answers.all += 1;
            if let Some(took) = &mut self.took {
                took.push(now.since(begun));
            }
        }
        let Some(pending) = self.pending.remove(&op) else {
            judge.violated(now, "unknown content", format!("{op:?} completed twice"));
            return;
        };
        match (pending, result) {
            (Pending::Read { first, floors }, Ok(Done::Read(pieces))) => {
                for piece in pieces {
                    let start = first + u64::from(piece.skipped_blocks);
                    for (block, (_, content)) in (start..).zip(piece.data.iter()) {
                        let at = usize::try_from(block - first).unwrap_or(usize::MAX);
                        let floor = floors.get(at).copied().unwrap_or(0);
                        match self.version_of(block, floor, content) {
                            Some(version) => judge.read_finished(now, block, floor, version),
                            None => {
                                let detail = format!("block {block} holds foreign bytes");
                                judge.violated(now, "unknown content", detail);
                            }
                        }
                    }
                }
            }
            (Pending::Write { first, versions, zeroes }, Ok(Done::Written)) => {
                self.answers.zeroings += u64::from(zeroes);
                for (block, version) in (first..).zip(versions) {
                    judge.write_acknowledged(block, version);
                }
            }
            (Pending::Flush, Ok(Done::Flushed)) => {}
            (Pending::Read { first, floors }, Err(OpError::Unreadable(range)))
                if self.names_damage(first, floors.len() as u64, range) =>
            {
                judge.reads_refused += 1;
            }
            (_, Err(OpError::Fenced(Fence::Generation { .. }))) if self.may_be_fenced => {
                // Its place is taken by another as soon as the attach call returns.
                self.fenced = true;
            }
            (pending, result) => {
                let detail = format!("{pending:?} ended with {result:?}");
                judge.violated(now, "error for a transient fault", detail);
            }
        }
    }

    /// A block is damaged in every replica.
    pub(crate) fn may_not_read(&mut self, chunk: ChunkId, block: u32) {
        let block = u64::from(chunk.index.0) * self.chunk_blocks + u64::from(block);
        self.unreadable.insert(block);
    }

    /// Whether a refused read asked for such a block, and the range that was named with it (counted
    /// within a chunk) holds it.
    fn names_damage(&self, first: u64, count: u64, range: BlockRange) -> bool {
        self.unreadable.range(first..first + count).any(|block| {
            let inside = u32::try_from(block % self.chunk_blocks).unwrap_or(u32::MAX);
            range.blocks().any(|named| named == inside)
        })
    }

    /// Which write of a block a content comes from.
    pub(crate) fn version_of(
        &self,
        block: u64,
        floor: u64,
        content: Option<(u32, Bytes)>,
    ) -> Option<u64> {
        match content {
            Some((sum, _)) => self.versions.get(&(block, sum)).copied(),
            // A hole: never written, or any zeroing; the one that explains it best.
            None => {
                let zeroed = self.zeroed.get(&block).map_or(&[][..], Vec::as_slice);
                let all = || core::iter::once(0).chain(zeroed.iter().copied());
                all().find(|version| *version >= floor).or_else(|| all().last())
            }
        }
    }
}

/// Splits completions off what the world must carry out.
pub(crate) fn completions(out: &mut Outbox) -> Vec<(OpId, Result<Done, OpError>)> {
    let mut done = Vec::new();
    out.retain_mut(|effect| match effect {
        Effect::Complete { op, result } => {
            done.push((*op, core::mem::replace(result, Ok(Done::Flushed))));
            false
        }
        _ => true,
    });
    done
}
