//! A storage node of the simulation: the real core over simulated stores (`store.rs`).

use crate::store::SimStore;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::{Identity, Input, JournalSeq, NodeCore, Outbox, Process, Record, Timing};
#[cfg(not(debug_assertions))]
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    BlockData, BlockRange, ChunkId, Lsn, NodeId, ReplicaId, StartNumber, StoreId, Sums, Time,
    ZoneId,
};
use std::collections::BTreeMap;
use std::time::Duration;

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
    /// Its disks.
    pub(crate) stores: Vec<SimStore>,
    core: Option<NodeCore>,
    /// Until when the data core stands still, and what waits for it.
    stalled_until: Time,
    backlog: Vec<Input>,
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
    /// Power fails in the middle of a sector: all that was on its way has arrived but the last record,
    /// of which a part has. Its checksum says so, and it counts for nothing.
    Torn,
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
    pub(crate) fn new(
        zone: ZoneId,
        node: NodeId,
        timing: Timing,
        stores: u32,
        dice: &mut SeededDice,
    ) -> Self {
        Self {
            identity: Identity { zone, node, start: StartNumber(0) },
            life: 0,
            timing,
            stores: (0..stores).map(|_| SimStore::new(StoreId(dice.next_u128()))).collect(),
            core: None,
            stalled_until: Time::ZERO,
            backlog: Vec::new(),
            #[cfg(not(debug_assertions))]
            handled: 0,
            positions: BTreeMap::new(),
            ends: BTreeMap::new(),
            off: false,
            clock: LocalClock::default(),
        }
    }

    pub(crate) const fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub(crate) const fn core(&self) -> Option<&NodeCore> {
        self.core.as_ref()
    }

    /// Its stores that work.
    pub(crate) fn living(&self) -> Vec<StoreId> {
        self.stores.iter().filter(|store| !store.failed).map(|store| store.id).collect()
    }

    /// Its process as it introduces itself.
    pub(crate) fn process(&self) -> Process {
        Process { stores: self.living(), start: self.identity.start }
    }

    /// Whether a store of it that works is the replica's.
    pub(crate) fn has_store_of(&self, replica: ReplicaId) -> bool {
        self.store(replica.store).is_some()
    }

    /// A store that works.
    pub(crate) fn store(&self, id: StoreId) -> Option<&SimStore> {
        self.stores.iter().find(|store| store.id == id && !store.failed)
    }

    /// The same, to use it.
    pub(crate) fn store_mut(&mut self, id: StoreId) -> Option<&mut SimStore> {
        self.stores.iter_mut().find(|store| store.id == id && !store.failed)
    }

    /// The store that a fault of the disk strikes: the one that has the chunk, if one has.
    pub(crate) fn struck(&self, chunk: Option<ChunkId>) -> usize {
        let has = |store: &SimStore| chunk.is_some_and(|chunk| store.knows(chunk));
        self.stores.iter().position(has).unwrap_or(0)
    }

    /// Starts the process on what the media hold.
    pub(crate) fn start(&mut self, now: Time, out: &mut Outbox) {
        self.life += 1;
        self.identity.start = self.identity.start.next();
        let states: Vec<_> = self.stores.iter_mut().map(|s| (s.id, s.open())).collect();
        self.positions.clear();
        let replicas = states.iter().flat_map(|(_, state)| state.iter());
        self.ends = replicas.map(|(chunk, replica)| (*chunk, replica.last)).collect();
        self.off = false;
        let now = self.clock.at(now);
        self.core = Some(NodeCore::new(now, self.identity, self.timing, states, out));
    }

    /// The process ends. Gives how many records were lost that were not synced.
    pub(crate) fn end_process(&mut self, how: End, dice: &mut SeededDice) -> u64 {
        self.core = None;
        (self.stalled_until, self.backlog) = (Time::ZERO, Vec::new());
        self.off = matches!(how, End::PowerCut | End::Torn);
        self.stores.iter_mut().map(|store| store.end(how, dice)).sum()
    }

    /// A store's sync has failed: what was on its way has arrived in part, and the process goes on
    /// without it, if it has another. Gives its id.
    pub(crate) fn fail_store(&mut self, at: usize, dice: &mut SeededDice) -> Option<StoreId> {
        let others = self.stores.iter().filter(|store| !store.failed).count() > 1;
        let store = self.stores.get_mut(at).filter(|store| others && !store.failed)?;
        store.failed = true;
        store.end(End::Killed, dice);
        Some(store.id)
    }

    /// A disk is replaced by an empty one. The process must be down. The node's only one had its
    /// start number.
    pub(crate) fn replace_disk(&mut self, at: usize, dice: &mut SeededDice) {
        if let Some(store) = self.stores.get_mut(at) {
            store.replace(StoreId(dice.next_u128()));
        }
        if self.stores.len() == 1 {
            self.identity.start = StartNumber(0);
        }
    }

    /// A disk is taken out, and an empty one stands in its place. The process must be down.
    pub(crate) fn exchange_disk(&mut self, at: usize, empty: SimStore) -> Option<SimStore> {
        let disk = core::mem::replace(self.stores.get_mut(at)?, empty);
        if self.stores.len() == 1 {
            self.identity.start = StartNumber(0);
        }
        Some(disk)
    }

    /// Whether reads of all its disks succeed.
    pub(crate) fn is_readable(&self, now: Time) -> bool {
        self.stores.iter().all(|store| now >= store.disk.unreadable_until)
    }

    /// Replicas that its stores find to have lost part of at a start.
    pub(crate) fn take_lost_parts(&mut self) -> Vec<ChunkId> {
        self.stores.iter_mut().flat_map(SimStore::take_lost_parts).collect()
    }

    /// Every fault of the disks ends but what lies in wrong places.
    pub(crate) fn heal_disk(&mut self) {
        self.stores.iter_mut().for_each(|store| store.disk.heal());
    }

    /// The machine's clock gains so many thousandths from now on.
    pub(crate) fn drift(&mut self, now: Time, permille: i64) {
        self.clock = LocalClock { since: (now, self.clock.at(now)), permille };
    }

    /// The data core stands still until then; the beats go on.
    pub(crate) fn stall(&mut self, until: Time) {
        if let Some(core) = &mut self.core {
            core.stall(true);
            self.stalled_until = self.stalled_until.max(until);
        }
    }

    /// The data core may go on from now on.
    pub(crate) fn stall_ends(&mut self, now: Time) {
        self.stalled_until = self.stalled_until.min(now);
    }

    /// Whether the data core stands still.
    pub(crate) fn is_stalled(&self) -> bool {
        self.core.as_ref().is_some_and(NodeCore::is_stalled)
    }

    /// The data core goes on, if it may by now: with what has waited for it.
    pub(crate) fn go_on(&mut self, now: Time) -> Vec<Input> {
        if now < self.stalled_until {
            return Vec::new();
        }
        if let Some(core) = &mut self.core {
            core.stall(false);
        }
        core::mem::take(&mut self.backlog)
    }

    /// Gives the core an input, if the process runs.
    pub(crate) fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        let now = self.clock.at(now);
        let Some(core) = &mut self.core else { return };
        if core.is_stalled() && !NodeCore::is_for_beats(&input) {
            self.backlog.push(input);
            return;
        }
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

    /// Takes a record for the journal of a store; true if the disk does something else than it should
    /// with it.
    pub(crate) fn append(
        &mut self,
        store: StoreId,
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
        self.store_mut(store).is_some_and(|store| store.append(seq, record, dice))
    }

    /// Records handed to the journals that are not durable.
    pub(crate) fn unsynced(&self) -> usize {
        self.stores.iter().map(SimStore::unsynced).sum()
    }
}
