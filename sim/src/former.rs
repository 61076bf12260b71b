//! Attaching a volume elsewhere (N40), and the client that it was taken from.
//!
//! The former client is as bad as one can be within the rules of the client library: it sends the
//! writes that it has no answer to again and again, to whoever is primary, with the newest epoch,
//! under its own generation. None of them may be acknowledged once the attach call has returned,
//! and none may undo what the new client wrote. (Writes that were answered are never sent again by
//! a client; a node cannot tell them from new ones.)

use crate::net::Host;
use crate::node::SimNode;
use crate::run::Sabotage;
use crate::world::{Event, World};
use ashlar_controlplane::member::Request;
use ashlar_env::dice::Dice;
use ashlar_node_core as node;
use ashlar_node_core::{ConnectionId, Link};
use ashlar_proto::v1;
use ashlar_types::message::data::{DataMessage, Stamp};
use ashlar_types::{ChunkConfig, Generation, NodeId, RequestId, SessionId, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// Connections of the former client are numbered from here, one for each process of a node; below
/// those of the observer.
const CONNECTIONS: u64 = 1 << 47;
const CONNECTIONS_END: u64 = 1 << 48;
/// Longest time between two writes of the former client.
const WRITE_MAX: Duration = Duration::from_millis(30);
/// Writes that it sends again.
const WRITES_KEPT: usize = 16;
/// A new process of a client numbers its connections far above the former one.
const SESSIONS_APART: u64 = 1_000;

/// The client that the volume is taken from.
#[derive(Debug, Default)]
pub(crate) struct Former {
    /// The volume may be taken from it in this run: its last writes are kept.
    pub(crate) expected: bool,
    /// Its last writes.
    writes: VecDeque<DataMessage>,
    /// The volume is to be attached elsewhere; how long it goes on writing then.
    length: Option<Duration>,
    /// The volume is attached elsewhere since then; its own attachment.
    pub(crate) ended: Option<(Time, Generation)>,
    sent: u64,
}

/// Whether a connection is the former client's.
pub(crate) const fn is_former(connection: ConnectionId) -> bool {
    connection.0 >= CONNECTIONS && connection.0 < CONNECTIONS_END
}

impl Former {
    /// Whether the volume was taken from it, or is about to be.
    pub(crate) const fn is_former(&self) -> bool {
        self.length.is_some()
    }

    /// It gives up.
    pub(crate) fn rest(&mut self) {
        self.writes.clear();
    }
}

impl World {
    /// Attaches the volume elsewhere by force, as soon as the control plane lets.
    pub(crate) fn reattach(&mut self, length: Duration) {
        if !self.former.is_former() {
            self.former.length = Some(length);
            if let Some(client) = &mut self.client {
                client.may_be_fenced = true;
            }
            self.attach_again();
        }
    }

    /// Asks for the attachment, until it is given.
    pub(crate) fn attach_again(&mut self) {
        if !self.former.is_former() || self.former.ended.is_some() {
            return;
        }
        self.ask(Request::AttachVolume(v1::AttachVolumeRequest {
            volume: "demo".into(),
            client_name: "another client".into(),
            force: true,
            client_token: "attach-elsewhere".into(),
            ..Default::default()
        }));
    }

    /// Keeps what the client writes, should the volume be taken from it.
    pub(crate) fn note_for_former(&mut self, message: &DataMessage) {
        let former = &mut self.former;
        if former.expected && former.ended.is_none() && matches!(message, DataMessage::Write { .. })
        {
            former.writes.push_back(message.clone());
            if former.writes.len() > WRITES_KEPT {
                former.writes.pop_front();
            }
        }
    }

    /// The attach call has returned: another client goes on, the former one does not give up.
    pub(crate) fn attached_elsewhere(&mut self, map: &v1::VolumeMap) {
        let configs =
            map.chunks.iter().filter_map(|config| ChunkConfig::try_from(config).ok()).collect();
        let (now, seed) = (self.now, self.dice.next_u64());
        let (Some(client), former) = (&mut self.client, &mut self.former) else { return };
        if former.ended.is_some() {
            return;
        }
        former.ended = Some((now, client.generation()));
        let judge = &self.judge;
        former.writes.retain(|write| client.is_unanswered(write, judge));
        let next = client.succeeded(Generation(map.generation), SessionId(1), configs, seed);
        // Sessions are counted within an attachment.
        self.last_sessions.clear();
        self.take_over(next);
        self.tally.note("forced attachments");
        self.schedule_in(WRITE_MAX, Event::FormerWrites);
    }

    /// The client's process dies and is started again under the same attachment.
    pub(crate) fn restart_client(&mut self) {
        // What its state on disk says, if no member can be asked.
        let alone = self.control.state().is_none();
        let kept = self.watch.configs().filter(|_| alone);
        let configs = self.control.configs().chain(kept).cloned().collect();
        let last = self.last_sessions.values().map(|session| session.0).max().unwrap_or(0);
        let (session, seed) = (SessionId(last + SESSIONS_APART), self.dice.next_u64());
        let Some(client) = &mut self.client else { return };
        let mut next = client.succeeded(client.generation(), session, configs, seed);
        next.may_be_fenced = client.may_be_fenced;
        self.take_over(next);
        self.tally.note("client restarts");
    }

    /// Another process goes on in the client's place; the connections of the former one end.
    fn take_over(&mut self, next: crate::client::SimClient) {
        self.pauses.forget(Host::Client);
        let nodes: Vec<NodeId> = self.sessions.keys().copied().collect();
        for node in nodes {
            self.end_client_connection(node);
        }
        self.client = Some(next);
        self.client_process += 1;
        self.schedule_in(Duration::from_millis(1), Event::ClientTick);
        self.schedule_in(Duration::from_millis(1), Event::Work);
    }

    /// The former client sends one of its writes again.
    pub(crate) fn former_writes(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let former = &mut self.former;
        let (Some((ended, generation)), Some(length)) = (former.ended, former.length) else {
            return;
        };
        if self.now > ended + length {
            return;
        }
        former.sent += 1;
        let number = former.sent;
        let at = usize::try_from(self.dice.below(former.writes.len() as u64)).unwrap_or(0);
        let write = former.writes.get(at).cloned();
        let wait = self.draw(WRITE_MAX);
        self.schedule_in(wait, Event::FormerWrites);
        let Some(DataMessage::Write { stamp, data, .. }) = write else { return };
        for to in nodes {
            let core = self.nodes.get(&to).and_then(SimNode::core);
            let config = core.and_then(|core| core.config(stamp.chunk));
            let Some(config) = config.filter(|config| config.primary.node == to) else { continue };
            let session = SessionId(u64::MAX);
            let stamp = Stamp { epoch: config.epoch, generation, session, ..stamp };
            let (id, data) = (RequestId(number), data.clone());
            let delay = self.net.delay(&mut self.dice);
            let life = self.life(to);
            let message = DataMessage::Write { id, stamp, data };
            self.schedule_in(delay, Event::FormerHeard { node: to, life, message });
        }
    }

    /// A write of the former client reaches a node.
    pub(crate) fn former_heard(&mut self, node: NodeId, life: u64, message: DataMessage) {
        if self.lives(node, life) {
            self.tally.note("former client's writes");
            let message = self.forge(node, message);
            let from = Link::Client(ConnectionId(CONNECTIONS + life));
            self.input(node, node::Input::Frame { from, message });
            self.input(node, node::Input::BatchEnd);
        }
    }

    /// A node that does not look at generations takes every one for the current one.
    fn forge(&self, node: NodeId, message: DataMessage) -> DataMessage {
        let core = self.nodes.get(&node).and_then(SimNode::core);
        match message {
            DataMessage::Write { id, stamp, data }
                if self.sabotage == Sabotage::IgnoreGenerations =>
            {
                let current = core.and_then(|core| core.config(stamp.chunk));
                let generation = current.map_or(stamp.generation, |config| config.generation);
                let known = self.last_sessions.get(&node).copied();
                let session = known.unwrap_or(stamp.session);
                DataMessage::Write { id, stamp: Stamp { generation, session, ..stamp }, data }
            }
            other => other,
        }
    }

    /// A node answers the former client.
    pub(crate) fn answer_former(&mut self, node: NodeId, message: &DataMessage) {
        if matches!(message, DataMessage::WriteDone { .. }) {
            let detail = format!("{node} acknowledges a write of the former client");
            self.judge.violated(self.now, "fenced writer", detail);
        }
    }
}
