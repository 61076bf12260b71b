//! Chunk to primary: adopts configurations, queues parts at the primary's node, sends them, and
//! asks who the primary is when it does not answer.
//!
//! The newest epoch wins for each chunk, whatever its source: refusal, answer or map. A part that
//! is in flight at a node that is no longer primary is sent again to the new one; its old number
//! is retired, so a late answer to it means nothing. A part in flight at a primary that stays is
//! left there: it is answered or refused under the new epoch.

use crate::input::{Effect, Fence, Outbox};
use crate::link::{Link, Node};
use crate::op::{Content, Part, PartState};
use crate::order::WriteOrder;
use crate::volume::VolumeCore;
use alloc::boxed::Box;
use alloc::vec::Vec;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_types::limit::REQUESTS_PER_CONNECTION_MAX;
use ashlar_types::message::data::{DataMessage, Stamp};
use ashlar_types::{ChunkConfig, ChunkId, ChunkIndex, NodeId, RequestId, SessionId, Time};
use core::time::Duration;

/// Parts in flight per connection; the rest of the node's limit is left to questions.
const PARTS_PER_CONNECTION_MAX: usize = REQUESTS_PER_CONNECTION_MAX - 64;
/// Slot of a question in a request id; no part has it.
const QUESTION_SLOT: u64 = u16::MAX as u64;
/// Questions about a chunk whose primary is unreachable: often, they are cheap and an election
/// takes about a second.
const ASK_LOST: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(20), max: Duration::from_millis(250) };
/// Questions about a chunk whose primary is reachable but silent: it may have good reasons.
const ASK_SILENT: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(500), max: Duration::from_secs(4) };
/// A silent primary is replaced within a few seconds; for so long the questions come often enough
/// not to be what a client waits for.
const ELECTION_MAX: Duration = Duration::from_secs(5);
/// Longest wait between two questions in that time.
const ASK_IN_ELECTION_MAX: Duration = Duration::from_millis(200);
/// Questions to the control plane.
const ASK_MAP: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(100), max: Duration::from_secs(2) };

/// What is known of a chunk.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) config: Option<Box<ChunkConfig>>,
    pub(crate) order: WriteOrder,
    /// Parts in progress.
    pub(crate) parts: u32,
    pub(crate) doubt: Option<Doubt>,
}

/// The primary does not answer; who is it now?
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) since: Time,
    pub(crate) next: Time,
    pub(crate) lost: bool,
    pub(crate) backoff: Backoff,
}

/// Whether the control plane is to be asked, and when at the earliest.
#[derive(Debug)]
pub(crate) struct MapWish {
    pub(crate) wanted: bool,
    pending: bool,
    not_before: Time,
    backoff: Backoff,
}

impl Default for MapWish {
    fn default() -> Self {
        let backoff = Backoff::new(ASK_MAP);
        Self { wanted: false, pending: false, not_before: Time::ZERO, backoff }
    }
}

impl VolumeCore {
    pub(crate) fn on_map(&mut self, now: Time, configs: Vec<ChunkConfig>, out: &mut Outbox) {
        self.map.pending = false;
        let dice = (self.dice)();
        if self.adopt_all(now, configs, out) {
            self.map.backoff.reset();
        }
        self.map.not_before = now + self.map.backoff.next_wait(dice);
    }

    pub(crate) fn on_map_failed(&mut self, now: Time) {
        self.map.pending = false;
        self.map.wanted = true;
        self.map.not_before = now + self.map.backoff.next_wait((self.dice)());
    }

    pub(crate) fn want_map(&mut self, now: Time, out: &mut Outbox) {
        self.map.wanted = true;
        self.ask_map_if_due(now, out);
    }

    pub(crate) fn ask_map_if_due(&mut self, now: Time, out: &mut Outbox) {
        let map = &mut self.map;
        if map.wanted && !map.pending && map.not_before <= now && self.fenced.is_none() {
            map.wanted = false;
            map.pending = true;
            out.push(Effect::RefreshMap);
        }
    }

    /// Adopts what is newer and sends parts to where they belong now. Returns whether anything
    /// was newer.
    pub(crate) fn adopt_all(
        &mut self,
        now: Time,
        configs: Vec<ChunkConfig>,
        out: &mut Outbox,
    ) -> bool {
        let mut newer = false;
        let mut moved = false;
        for config in configs {
            if config.generation > self.settings.generation {
                let (current, ours) = (config.generation, self.settings.generation);
                if config.chunk.volume == self.settings.volume {
                    self.fence(Fence::Generation { current, ours }, out);
                    return true;
                }
            }
            if let Some(has_parts) = self.adopt(config) {
                newer = true;
                moved |= has_parts;
            }
        }
        if moved {
            self.reroute(now, out);
        }
        newer
    }

    /// `Some` if it is newer; whether parts may have to move then.
    fn adopt(&mut self, config: ChunkConfig) -> Option<bool> {
        let ours = config.chunk.volume == self.settings.volume
            && config.blocks == self.settings.geometry.chunk_blocks()
            && config.check().is_ok();
        if !ours || self.epoch_of(config.chunk.index) >= Some(config.epoch) {
            return None;
        }
        let chunk = self.chunk_mut(config.chunk.index)?;
        chunk.config = Some(Box::new(config));
        chunk.doubt = None;
        Some(chunk.parts > 0)
    }

    /// After a change of configurations: every part that is queued at, waits for or is in flight
    /// at a node that is not its chunk's primary goes to the primary.
    fn reroute(&mut self, now: Time, out: &mut Outbox) {
        let mut moving: Vec<u16> = Vec::new();
        for (slot, part) in self.parts.iter() {
            let primary = self.primary_of(part.chunk);
            let moves = match part.state {
                PartState::Ordered | PartState::Held => false,
                PartState::Unrouted | PartState::Waiting { .. } => true,
                PartState::Ready { node, .. } | PartState::InFlight { node, .. } => {
                    Some(node) != primary
                }
            };
            if moves {
                moving.push(slot);
            }
        }
        for slot in moving {
            self.send_again(now, slot, out);
        }
        // Entries of parts that have moved must not pile up at a node that is gone.
        let parts = &self.parts;
        for node in self.nodes.values_mut() {
            node.ready.retain(|(slot, ticket)| queued(parts.get(*slot), *ticket));
        }
    }

    /// Takes a part back from wherever it is and sends it to the primary, unless its request is
    /// over for the user: then it is done with.
    pub(crate) fn send_again(&mut self, now: Time, slot: u16, out: &mut Outbox) {
        let Some(part) = self.parts.get_mut(slot) else { return };
        let id = part.op;
        if let PartState::InFlight { node, .. } = part.state {
            part.state = PartState::Unrouted;
            if let Some(node) = self.nodes.get_mut(&node) {
                node.in_flight -= 1;
            }
        }
        if self.ops.get(&id).is_some_and(|op| op.reported) {
            self.end_part(now, slot, out);
        } else {
            self.route(now, slot, out);
        }
    }

    pub(crate) fn primary_of(&self, index: ChunkIndex) -> Option<NodeId> {
        let chunk = self.chunks.get(usize::try_from(index.0).ok()?)?;
        chunk.config.as_ref().map(|config| config.primary.node)
    }

    /// Queues a part at the primary of its chunk and sends what can be sent.
    pub(crate) fn route(&mut self, now: Time, slot: u16, out: &mut Outbox) {
        let Some(index) = self.parts.get(slot).map(|part| part.chunk) else { return };
        let primary = self.primary_of(index);
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        let Some(part) = self.parts.get_mut(slot) else { return };
        let Some(primary) = primary else {
            part.state = PartState::Unrouted;
            self.doubt(now, index, true, out);
            return;
        };
        part.state = PartState::Ready { node: primary, ticket };
        let node = self.nodes.entry(primary).or_insert_with(Node::new);
        node.ready.push_back((slot, ticket));
        self.pump(now, primary, out);
        if !matches!(
            self.nodes.get(&primary).map(|n| n.link),
            Some(Link::Up(_) | Link::Dialling(..))
        ) {
            self.doubt(now, index, true, out);
        }
    }

    /// Sends what waits for a node, or dials it.
    pub(crate) fn pump(&mut self, now: Time, id: NodeId, out: &mut Outbox) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if !node.wants_link() {
            return;
        }
        match node.link {
            Link::Dialling(..) => {}
            Link::Down { retry_at } => {
                if retry_at <= now {
                    let session = self.session_next;
                    self.session_next = session.next();
                    node.link = Link::Dialling(session, now);
                    out.push(Effect::Connect { node: id, session });
                }
            }
            Link::Up(session) => self.send_queued(now, id, session, out),
        }
    }

    fn send_queued(&mut self, now: Time, id: NodeId, session: SessionId, out: &mut Outbox) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let volume = self.settings.volume;
        while let Some(index) = node.questions.pop_first() {
            let question = RequestId((self.request_next << 16) | QUESTION_SLOT);
            self.request_next += 1;
            let chunk = ChunkId { volume, index };
            let message = DataMessage::FindConfig { id: question, chunk };
            out.push(Effect::Send { node: id, session, message });
        }
        while node.in_flight < PARTS_PER_CONNECTION_MAX {
            let Some((slot, ticket)) = node.ready.pop_front() else { return };
            let Some(part) = self.parts.get_mut(slot) else { continue };
            if !queued(Some(part), ticket) {
                continue;
            }
            let chunk = usize::try_from(part.chunk.0).ok().and_then(|i| self.chunks.get(i));
            let Some(config) = chunk.and_then(|chunk| chunk.config.as_ref()) else { continue };
            let stamp = Stamp {
                chunk: ChunkId { volume, index: part.chunk },
                epoch: config.epoch,
                generation: self.settings.generation,
                session,
            };
            let request = RequestId((self.request_next << 16) | u64::from(slot));
            self.request_next += 1;
            let message = match &part.content {
                Content::Read => DataMessage::Read { id: request, stamp, range: part.range },
                Content::Write(data) => {
                    DataMessage::Write { id: request, stamp, data: data.clone() }
                }
                Content::Reserve => continue,
            };
            part.state = PartState::InFlight {
                node: id,
                session,
                id: request,
                epoch: stamp.epoch,
                sent: now,
            };
            node.in_flight += 1;
            out.push(Effect::Send { node: id, session, message });
        }
    }

    /// The primary of a chunk with parts in progress cannot be reached (`lost`) or says nothing:
    /// ask the other members and the control plane, at once and then with backoff.
    pub(crate) fn doubt(&mut self, now: Time, index: ChunkIndex, lost: bool, out: &mut Outbox) {
        let Some(chunk) = self.chunk_mut(index) else { return };
        let since = match &chunk.doubt {
            Some(doubt) if doubt.lost || !lost => return,
            Some(doubt) => doubt.since,
            None => now,
        };
        let backoff = Backoff::new(if lost { ASK_LOST } else { ASK_SILENT });
        chunk.doubt = Some(Doubt { since, next: now, lost, backoff });
        self.doubtful.insert(index);
        self.ask(now, index, out);
    }

    /// Asks about a chunk and sets the time of the next question.
    pub(crate) fn ask(&mut self, now: Time, index: ChunkIndex, out: &mut Outbox) {
        let dice = (self.dice)();
        let Some(chunk) = self.chunk_mut(index) else { return };
        if let Some(doubt) = &mut chunk.doubt {
            let wait = doubt.backoff.next_wait(dice);
            let early = now.since(doubt.since) < ELECTION_MAX;
            doubt.next = now + if early { wait.min(ASK_IN_ELECTION_MAX) } else { wait };
        }
        let members: Vec<NodeId> = chunk
            .config
            .iter()
            .flat_map(|config| config.in_sync.iter().map(|replica| replica.node))
            .collect();
        for member in members {
            self.nodes.entry(member).or_insert_with(Node::new).questions.insert(index);
            self.pump(now, member, out);
        }
        self.want_map(now, out);
    }
}

/// Whether the part still waits under this ticket.
fn queued(part: Option<&Part>, ticket: u64) -> bool {
    part.is_some_and(|part| matches!(part.state, PartState::Ready { ticket: t, .. } if t == ticket))
}
