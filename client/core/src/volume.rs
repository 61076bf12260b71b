//! The machine of one attached volume: its state, the one dispatch, and how requests end.
//!
//! Invariants (checked after every input in debug builds):
//! - no two overlapping writes are in flight, in whatever epoch they were sent;
//! - requests in flight per connection and parts in all are bounded;
//! - a request is answered exactly once; after a fence everything is answered with it.
//!
//! It never gives up by itself: what ends a request is its acknowledgement, a fence, a final
//! refusal, or the volume's policy.

use crate::input::{Done, Effect, Fence, Input, OpError, OpId, Outbox, PARTS_MAX, VolumeSettings};
use crate::link::{Link, Node};
use crate::op::{Op, Part, PartState};
use crate::order::WriteOrder;
use crate::route::{Chunk, MapWish};
use crate::slab::Slab;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, ChunkIndex, Epoch, Geometry, NodeId, SessionId, Time};
use core::fmt;
use core::time::Duration;

/// How often time is looked at while anything is in progress. Half of it would double the cost
/// of an idle wait; twice as much would show in the pause of a fail-over.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Source of chance: any 64 random bits on each call.
pub type Dice = Box<dyn FnMut() -> u64 + Send>;

/// One attached volume.
pub struct VolumeCore {
    pub(crate) settings: VolumeSettings,
    pub(crate) dice: Dice,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) parts: Slab<Part>,
    pub(crate) ops: BTreeMap<OpId, Op>,
    /// Numbers of writes that are not done, for flushes.
    pub(crate) writes_open: BTreeSet<u64>,
    pub(crate) flushes: VecDeque<(u64, OpId)>,
    pub(crate) number_next: u64,
    pub(crate) session_next: SessionId,
    pub(crate) request_next: u64,
    pub(crate) ticket_next: u64,
    pub(crate) map: MapWish,
    /// Chunks that may have a doubt; looked through on every tick.
    pub(crate) doubtful: BTreeSet<ChunkIndex>,
    pub(crate) fenced: Option<Fence>,
    /// When in-flight parts were last looked through for silence.
    pub(crate) looked: Time,
    /// Parts freed by the part that just ended; kept to reuse its memory.
    freed: Vec<u16>,
}

/// What `status` shows of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Requests in progress.
    pub requests: usize,
    /// Parts in progress.
    pub parts: usize,
    /// Parts sent and not answered.
    pub in_flight: usize,
    /// Chunks that have parts in progress and do not answer: stuck since then.
    pub doubtful_chunks: Vec<(ChunkIndex, Time)>,
    /// Nodes with a connection.
    pub nodes_up: Vec<NodeId>,
    /// Nodes that should have a connection and have none.
    pub nodes_down: Vec<NodeId>,
    /// When the oldest request that is not answered was submitted.
    pub waiting_since: Option<Time>,
    /// Why the attachment is over.
    pub fenced: Option<Fence>,
}

impl fmt::Debug for VolumeCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeCore")
            .field("volume", &self.settings.volume)
            .field("parts", &self.parts.len())
            .field("fenced", &self.fenced)
            .finish_non_exhaustive()
    }
}

impl VolumeCore {
    /// A volume under an attachment. `configs` is the map as far as it is known; what is missing
    /// is asked for when it is needed. `dice` spreads retries.
    #[must_use]
    pub fn new(settings: VolumeSettings, configs: Vec<ChunkConfig>, dice: Dice) -> Self {
        let count = settings.geometry.chunk_count();
        let session_next = settings.first_session;
        let mut core = Self {
            settings,
            dice,
            chunks: (0..count).map(|_| Chunk::default()).collect(),
            nodes: BTreeMap::new(),
            parts: Slab::new(PARTS_MAX),
            ops: BTreeMap::new(),
            writes_open: BTreeSet::new(),
            flushes: VecDeque::new(),
            number_next: 1,
            session_next,
            request_next: 1,
            ticket_next: 1,
            map: MapWish::default(),
            doubtful: BTreeSet::new(),
            fenced: None,
            looked: Time::ZERO,
            freed: Vec::new(),
        };
        // Nothing is in progress yet, so nothing but a fence can come out of it.
        core.adopt_all(Time::ZERO, configs, &mut Outbox::new());
        core
    }

    /// Reacts to one input. Effects are appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        match input {
            Input::Submit { op, request } => self.on_submit(now, op, request, out),
            Input::Fill { op, payload } => self.on_fill(now, op, payload, out),
            Input::Abandon { op } => self.on_abandon(now, op, out),
            Input::LinkUp { node, session } => self.on_link_up(now, node, session, out),
            Input::LinkDown { node, session } => self.on_link_down(now, node, session, out),
            Input::Message { node, session, message } => {
                self.on_message(now, node, session, message, out);
            }
            Input::Map { configs } => self.on_map(now, configs, out),
            Input::MapFailed => self.on_map_failed(now),
            Input::Grow { geometry } => self.on_grow(geometry),
            Input::Tick => self.on_tick(now, out),
        }
        #[cfg(debug_assertions)]
        self.check();
    }

    /// Requests up to the new end are taken from now on; what is in progress is not touched.
    fn on_grow(&mut self, geometry: Geometry) {
        let known = self.settings.geometry;
        let is_larger = geometry.size_bytes() > known.size_bytes();
        if is_larger && geometry.chunk_bytes() == known.chunk_bytes() {
            self.settings.geometry = geometry;
            let count = usize::try_from(geometry.chunk_count()).unwrap_or(self.chunks.len());
            self.chunks.resize_with(count, Chunk::default);
        }
    }

    /// Size of the volume, and of its chunks.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.settings.geometry
    }

    /// When [`Input::Tick`] is due at the latest; `None` while nothing is in progress.
    #[must_use]
    pub fn next_wake(&self, now: Time) -> Option<Time> {
        let busy = self.fenced.is_none() && (self.parts.len() > 0 || self.map.wanted);
        busy.then(|| now + TICK)
    }

    /// Whether another request of any size would be taken. Ask before every submission.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.parts.room() >= crate::PARTS_PER_REQUEST_MAX
    }

    /// Whether every request is answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.values().all(|op| op.reported) && self.flushes.is_empty()
    }

    /// Why the attachment is over, if it is.
    #[must_use]
    pub const fn fenced(&self) -> Option<Fence> {
        self.fenced
    }

    /// The configurations known, for the durable cache of the map.
    pub fn configs(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.chunks.iter().filter_map(|chunk| chunk.config.as_deref())
    }

    /// Highest epoch of all chunks added up: changes whenever any configuration does.
    #[must_use]
    pub fn map_version(&self) -> u64 {
        self.configs().fold(0, |sum, config| sum.wrapping_add(config.epoch.0))
    }

    /// What `status` shows.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let doubtful = (0_u32..).map(ChunkIndex).zip(&self.chunks).filter_map(|(index, chunk)| {
            chunk.doubt.as_ref().filter(|_| chunk.parts > 0).map(|doubt| (index, doubt.since))
        });
        let up = |node: &Node| matches!(node.link, Link::Up(_));
        let nodes = |wanted: bool| {
            let chosen = self.nodes.iter().filter(move |(_, node)| {
                if wanted { up(node) } else { !up(node) && node.wants_link() }
            });
            chosen.map(|(id, _)| *id).collect()
        };
        let unanswered = self.ops.values().filter(|op| !op.reported);
        VolumeStatus {
            requests: self.ops.len() + self.flushes.len(),
            parts: self.parts.len(),
            in_flight: self.nodes.values().map(|node| node.in_flight).sum(),
            doubtful_chunks: doubtful.collect(),
            nodes_up: nodes(true),
            nodes_down: nodes(false),
            waiting_since: unanswered.map(|op| op.submitted).min(),
            fenced: self.fenced,
        }
    }

    pub(crate) fn chunk_mut(&mut self, index: ChunkIndex) -> Option<&mut Chunk> {
        self.chunks.get_mut(usize::try_from(index.0).ok()?)
    }

    pub(crate) fn epoch_of(&self, index: ChunkIndex) -> Option<Epoch> {
        let chunk = self.chunks.get(usize::try_from(index.0).ok()?)?;
        chunk.config.as_ref().map(|config| config.epoch)
    }

    /// A part is over: it leaves the order, frees those behind it, and perhaps ends its request.
    pub(crate) fn end_part(&mut self, now: Time, slot: u16, out: &mut Outbox) {
        let Some(part) = self.parts.remove(slot) else { return };
        if let PartState::InFlight { node, .. } = part.state
            && let Some(node) = self.nodes.get_mut(&node)
        {
            node.in_flight -= 1;
        }
        let mut freed = core::mem::take(&mut self.freed);
        if let Some(chunk) = self.chunk_mut(part.chunk) {
            chunk.parts -= 1;
            if chunk.parts == 0 {
                chunk.doubt = None;
            }
            if part.is_write() {
                chunk.order.leave(slot, part.range, &mut freed);
            }
        }
        for slot in freed.drain(..) {
            self.admit(now, slot, out);
        }
        self.freed = freed;
        let Some(op) = self.ops.get_mut(&part.op) else { return };
        op.parts_left -= 1;
        if op.parts_left == 0 {
            self.end_op(part.op, out);
        }
    }

    fn end_op(&mut self, id: OpId, out: &mut Outbox) {
        let Some(op) = self.ops.remove(&id) else { return };
        if op.reported {
            return;
        }
        if op.writes() {
            self.writes_open.remove(&op.number);
        }
        out.push(Effect::Complete { op: id, result: op.outcome() });
        self.end_flushes(out);
    }

    /// Flushes in front of which no write is open are done.
    pub(crate) fn end_flushes(&mut self, out: &mut Outbox) {
        let oldest = self.writes_open.first().copied().unwrap_or(u64::MAX);
        while let Some((number, op)) = self.flushes.front().copied() {
            if number > oldest {
                return;
            }
            self.flushes.pop_front();
            out.push(Effect::Complete { op, result: Ok(Done::Flushed) });
        }
    }

    /// Tells the user now; what is in flight keeps its place in the order until it is resolved.
    pub(crate) fn report_early(&mut self, now: Time, id: OpId, error: OpError, out: &mut Outbox) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.reported = true;
        if op.writes() {
            let number = op.number;
            self.writes_open.remove(&number);
        }
        out.push(Effect::Complete { op: id, result: Err(error) });
        let unsent: Vec<u16> = self
            .parts
            .iter()
            .filter(|(_, part)| part.op == id && !matches!(part.state, PartState::InFlight { .. }))
            .map(|(slot, _)| slot)
            .collect();
        for slot in unsent {
            self.end_part(now, slot, out);
        }
        self.end_flushes(out);
    }

    /// The right to use the volume is gone: everything is answered, nothing is sent any more.
    pub(crate) fn fence(&mut self, fence: Fence, out: &mut Outbox) {
        if self.fenced.is_some() {
            return;
        }
        self.fenced = Some(fence);
        let error = OpError::Fenced(fence);
        for (id, op) in core::mem::take(&mut self.ops) {
            if !op.reported {
                out.push(Effect::Complete { op: id, result: Err(error) });
            }
        }
        for (_, op) in self.flushes.drain(..) {
            out.push(Effect::Complete { op, result: Err(error) });
        }
        self.writes_open.clear();
        self.doubtful.clear();
        self.parts = Slab::new(PARTS_MAX);
        for chunk in &mut self.chunks {
            chunk.order = WriteOrder::default();
            chunk.parts = 0;
            chunk.doubt = None;
        }
        for (id, node) in core::mem::take(&mut self.nodes) {
            if let Some(session) = node.session() {
                out.push(Effect::Disconnect { node: id, session });
            }
        }
    }
}
