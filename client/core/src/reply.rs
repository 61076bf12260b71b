//! What nodes answer, and connections that come and go.
//!
//! Only messages of the connection that is up count; a late one of an earlier connection, or an
//! answer to a number that was retired, means nothing.

use crate::input::{Effect, Fence, OpError, Outbox, ReadPiece};
use crate::link::Link;
use crate::op::{OpKind, PartState};
use crate::volume::VolumeCore;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, NotReady, Refusal};
use ashlar_types::{BlockData, ChunkConfig, ChunkIndex, NodeId, RequestId, SessionId, Time};

/// How often a damaged range is asked for again before the user is told: the node repairs it
/// from a peer meanwhile.
const UNREADABLE_TRIES_MAX: u8 = 10;

impl VolumeCore {
    pub(crate) fn on_link_up(
        &mut self,
        now: Time,
        id: NodeId,
        session: SessionId,
        out: &mut Outbox,
    ) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if matches!(node.link, Link::Dialling(dialled, _) if dialled == session) {
            node.link = Link::Up(session);
            self.pump(now, id, out);
        }
    }

    /// What was in flight is sent again; who is primary is asked at once.
    pub(crate) fn on_link_down(
        &mut self,
        now: Time,
        id: NodeId,
        session: SessionId,
        out: &mut Outbox,
    ) {
        let dice = (self.dice)();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.session() != Some(session) {
            return;
        }
        node.link = Link::Down { retry_at: now + node.redial.next_wait(dice) };
        node.questions.clear();
        let mut chunks: BTreeSet<ChunkIndex> = BTreeSet::new();
        let mut lost: Vec<u16> = Vec::new();
        for (slot, part) in self.parts.iter() {
            match part.state {
                PartState::InFlight { node, session: s, .. } if node == id && s == session => {
                    lost.push(slot);
                    chunks.insert(part.chunk);
                }
                PartState::Ready { node, .. } if node == id => {
                    chunks.insert(part.chunk);
                }
                PartState::Ordered
                | PartState::Held
                | PartState::Unrouted
                | PartState::Ready { .. }
                | PartState::Waiting { .. }
                | PartState::InFlight { .. } => {}
            }
        }
        for slot in lost {
            self.send_again(now, slot, out);
        }
        for chunk in chunks {
            self.doubt(now, chunk, true, out);
        }
    }

    pub(crate) fn on_message(
        &mut self,
        now: Time,
        id: NodeId,
        session: SessionId,
        message: DataMessage,
        out: &mut Outbox,
    ) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.link != Link::Up(session) {
            return;
        }
        node.redial.reset();
        match message {
            DataMessage::WriteDone { id: request } => {
                if let Some(slot) = self.answered(id, session, request) {
                    self.on_done(now, slot, None, out);
                }
            }
            DataMessage::ReadDone { id: request, data } => {
                if let Some(slot) = self.answered(id, session, request) {
                    self.on_done(now, slot, Some(data), out);
                }
            }
            DataMessage::ConfigIs { config, .. } => {
                self.adopt_all(now, vec![*config], out);
            }
            DataMessage::Refused { id: request, refusal } => {
                if let Some(slot) = self.answered(id, session, request) {
                    self.on_refused(now, slot, refusal, out);
                }
            }
            // No node says any of this to a client.
            DataMessage::Read { .. }
            | DataMessage::Write { .. }
            | DataMessage::FindConfig { .. }
            | DataMessage::Beat { .. }
            | DataMessage::Relay { .. }
            | DataMessage::Relayed { .. }
            | DataMessage::BeatReply { .. }
            | DataMessage::Adopt { .. }
            | DataMessage::Collect { .. }
            | DataMessage::Collected { .. }
            | DataMessage::Fetch { .. }
            | DataMessage::Fetched { .. }
            | DataMessage::OpenTerm { .. }
            | DataMessage::OpenLearner { .. }
            | DataMessage::Mirror { .. }
            | DataMessage::MirrorAck { .. }
            | DataMessage::Committed { .. }
            | DataMessage::Confirm { .. }
            | DataMessage::Confirmed { .. }
            | DataMessage::Copy { .. }
            | DataMessage::CopyAck { .. }
            | DataMessage::Recall { .. }
            | DataMessage::Recalled { .. }
            | DataMessage::Compare { .. }
            | DataMessage::PeerRefused { .. } => self.disconnect(now, id, session, out),
        }
        self.pump(now, id, out);
    }

    /// The part that this answer is for, if it still waits for exactly this one.
    fn answered(&self, from: NodeId, on: SessionId, request: RequestId) -> Option<u16> {
        let slot = u16::try_from(request.0 & 0xffff).ok()?;
        let PartState::InFlight { node, session, id, .. } = self.parts.get(slot)?.state else {
            return None;
        };
        (node == from && session == on && id == request).then_some(slot)
    }

    fn on_done(&mut self, now: Time, slot: u16, data: Option<BlockData>, out: &mut Outbox) {
        let Some(part) = self.parts.get_mut(slot) else { return };
        let PartState::InFlight { node, session, .. } = part.state else { return };
        let fits = match &data {
            Some(data) => !part.is_write() && data.range == part.range && data.check().is_ok(),
            None => part.is_write(),
        };
        if !fits {
            // An answer of the wrong kind: the other side is defect or foreign. Nothing else on
            // this connection is to be believed.
            self.disconnect(now, node, session, out);
            return;
        }
        let (id, index, skipped_blocks) = (part.op, part.chunk, part.skipped_blocks);
        if let Some(chunk) = self.chunk_mut(index) {
            chunk.doubt = None;
        }
        let kind = self.ops.get_mut(&id).map(|op| &mut op.kind);
        if let (Some(OpKind::Read(pieces)), Some(data)) = (kind, data) {
            pieces.push(ReadPiece { skipped_blocks, data });
        }
        self.end_part(now, slot, out);
    }

    fn on_refused(&mut self, now: Time, slot: u16, refusal: Refusal, out: &mut Outbox) {
        let Some(part) = self.parts.get_mut(slot) else { return };
        let index = part.chunk;
        let ours = self.settings.generation;
        match refusal {
            Refusal::WrongEpoch(config) | Refusal::NotPrimary(config) => {
                self.on_config_refusal(now, slot, *config, out);
            }
            Refusal::WrongGeneration { current } if current > ours => {
                self.fence(Fence::Generation { current, ours }, out);
            }
            // The node has not adopted our generation yet: another member has (design.md 4.8).
            Refusal::WrongGeneration { .. } => {
                self.wait(now, slot, out);
                self.doubt(now, index, true, out);
            }
            Refusal::SessionEnded => self.fence(Fence::Session, out),
            Refusal::UnknownChunk => {
                self.wait(now, slot, out);
                self.doubt(now, index, true, out);
            }
            Refusal::NotReady(NotReady::OpeningTerm | NotReady::QueueFull) => {
                self.wait(now, slot, out);
                if let Some(chunk) = self.chunk_mut(index) {
                    chunk.doubt = None;
                }
            }
            Refusal::BadRequest => self.fail_part(now, slot, OpError::Refused, out),
            Refusal::Unreadable(range) => {
                part.unreadable += 1;
                if part.unreadable >= UNREADABLE_TRIES_MAX {
                    self.fail_part(now, slot, OpError::Unreadable(range), out);
                } else {
                    self.wait(now, slot, out);
                }
            }
        }
    }

    /// The node knows another configuration. If ours is older now, go by the newer at once; if
    /// the node is the one behind, give it time.
    fn on_config_refusal(&mut self, now: Time, slot: u16, config: ChunkConfig, out: &mut Outbox) {
        let Some(part) = self.parts.get(slot) else { return };
        let PartState::InFlight { epoch: sent_under, .. } = part.state else { return };
        let index = part.chunk;
        // Not in flight any more, whatever the new configuration says.
        self.take_back(slot);
        self.adopt_all(now, vec![config], out);
        if self.parts.get(slot).is_none_or(|part| part.state != PartState::Unrouted) {
            return; // Sent on by the adoption, or over.
        }
        if self.epoch_of(index) > Some(sent_under) {
            self.send_again(now, slot, out);
        } else {
            self.wait(now, slot, out);
            self.doubt(now, index, true, out);
        }
    }

    fn take_back(&mut self, slot: u16) {
        let Some(part) = self.parts.get_mut(slot) else { return };
        if let PartState::InFlight { node, .. } = part.state
            && let Some(node) = self.nodes.get_mut(&node)
        {
            node.in_flight -= 1;
        }
        part.state = PartState::Unrouted;
    }

    /// Not now: try again after a wait that grows.
    fn wait(&mut self, now: Time, slot: u16, out: &mut Outbox) {
        let dice = (self.dice)();
        self.take_back(slot);
        let Some(part) = self.parts.get_mut(slot) else { return };
        part.state = PartState::Waiting { until: now + part.backoff.next_wait(dice) };
        let id = part.op;
        if self.ops.get(&id).is_some_and(|op| op.reported) {
            self.end_part(now, slot, out);
        }
    }

    fn fail_part(&mut self, now: Time, slot: u16, error: OpError, out: &mut Outbox) {
        let Some(id) = self.parts.get(slot).map(|part| part.op) else { return };
        if let Some(op) = self.ops.get_mut(&id) {
            op.failed = Some(error);
        }
        self.end_part(now, slot, out);
    }

    /// Ends a connection from our side; what was in flight on it is sent again on the next one,
    /// whose higher session number ends this one at the node too.
    pub(crate) fn disconnect(
        &mut self,
        now: Time,
        node: NodeId,
        session: SessionId,
        out: &mut Outbox,
    ) {
        out.push(Effect::Disconnect { node, session });
        self.on_link_down(now, node, session, out);
    }
}
