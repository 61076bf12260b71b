//! The client's connections: dial, lose, answer; and what its core wants done.

use crate::client::{SimClient, completions};
use crate::former::is_former;
use crate::net::{Host, Wire};
use crate::node::{SimNode, WriteMark, mark_of};
use crate::observer::is_observers;
use crate::pause::LOOK_AGAIN;
use crate::scenario::Moment;
use crate::world::{Event, World};
use ashlar_client_core as client;
use ashlar_node_core as node;
use ashlar_node_core::ConnectionId;
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{ChunkId, NodeId, SessionId, Time};
use std::time::Duration;

/// How long a client waits for the answer to its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(3);

/// A request that was sent to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    chunk: ChunkId,
    at: Time,
    /// What a write wrote.
    write: Option<WriteMark>,
    /// A write that needs no room.
    zeroes: bool,
}

/// The client's wire to a node.
const fn wire_to(node: NodeId) -> Wire {
    Wire { from: Host::Client, to: Host::Node(node), network: Network::Primary }
}

impl World {
    pub(crate) fn note_asked(&mut self, connection: u64, message: &DataMessage) {
        let (id, chunk, write) = match message {
            DataMessage::Read { id, stamp, .. } => (id, stamp.chunk, None),
            DataMessage::Write { id, stamp, data } => {
                let mark = mark_of(data);
                self.note_sent_again(message, mark);
                (id, stamp.chunk, Some(mark))
            }
            _neither => return,
        };
        let zeroes = matches!(message, DataMessage::Write { data, .. } if data.data_blocks() == 0);
        let asked = Asked { chunk, at: self.now, write, zeroes };
        self.asked.insert((connection, id.0), asked);
    }

    pub(crate) fn answer_client(
        &mut self,
        id: NodeId,
        connection: ConnectionId,
        message: DataMessage,
    ) {
        let session = self.sessions.get(&id).filter(|(_, forth, _)| *forth == connection.0);
        let back = session.map(|(.., back)| *back);
        if is_former(connection) {
            self.answer_former(id, &message);
            return;
        }
        if back.is_none() && !is_observers(connection) {
            return;
        }
        self.judge_answer(id, connection, &message);
        let Some(back) = back else {
            self.answer_observer(message);
            return;
        };
        let wire = wire_to(id).back();
        if self.net.connection(wire) == Some(back) {
            self.transmit(wire, message);
        }
    }

    /// Holds what a node answers against what others have answered.
    fn judge_answer(&mut self, id: NodeId, connection: ConnectionId, message: &DataMessage) {
        let (DataMessage::WriteDone { id: request } | DataMessage::ReadDone { id: request, .. }) =
            message
        else {
            return;
        };
        let Some(asked) = self.asked.remove(&(connection.0, request.0)) else { return };
        if !self.short_of_space.is_empty() {
            match asked.write {
                Some(_) if asked.zeroes => self.tally.note("trims done while space is short"),
                Some(_) => {}
                None => self.tally.note("reads judged while space is short"),
            }
        }
        let Some(node) = self.nodes.get(&id) else { return };
        match asked.write.map(|mark| node.position(asked.chunk, mark)) {
            Some(Some(lsn)) => {
                self.judge.node_acknowledges(self.now, asked.chunk, lsn, id);
                self.moment(asked.chunk, Moment::Committed);
            }
            Some(None) => {}
            None => {
                let term = node.end(asked.chunk).term;
                self.judge.node_answers_read(self.now, asked.at, asked.chunk, term, id);
            }
        }
    }

    pub(crate) fn client_dial(
        &mut self,
        process: u64,
        node: NodeId,
        session: SessionId,
        since: Time,
    ) {
        if process != self.client_process {
            // Its number would count as the last one that this process has used.
            return;
        }
        let forth = wire_to(node);
        let up = self.nodes.get(&node).is_some_and(SimNode::is_up);
        let cannot = self.lacks_descriptor(Host::Client);
        let open = up && !cannot && !self.net.is_dark(self.now, forth) && !self.is_off(node);
        let mute = open && self.is_mute(Host::Node(node));
        if mute && self.now.since(since) < HELLO_WITHIN {
            let again = Event::ClientDial { process, node, session, since };
            self.schedule_in(LOOK_AGAIN, again);
        } else if open && !mute {
            self.end_client_connection(node);
            let there = self.net.connect(self.now, forth);
            let here = self.net.connect(self.now, forth.back());
            self.sessions.insert(node, (session, there, here));
            self.last_sessions.insert(node, session);
            self.client_input(client::Input::LinkUp { node, session });
        } else {
            self.client_input(client::Input::LinkDown { node, session });
        }
    }

    pub(crate) fn client_link_lost(&mut self, node: NodeId, session: SessionId) {
        if self.sessions.get(&node).is_some_and(|(known, ..)| *known == session) {
            self.end_client_connection(node);
            self.client_input(client::Input::LinkDown { node, session });
        }
    }

    /// Both directions of the client's connection to a node end; the node learns of it.
    pub(crate) fn end_client_connection(&mut self, node: NodeId) {
        let Some((_, there, _)) = self.sessions.remove(&node) else { return };
        self.net.disconnect(wire_to(node), false);
        self.net.disconnect(wire_to(node).back(), false);
        let life = self.life(node);
        let connection = ConnectionId(there);
        self.carry_out(Event::ClientGone { node, life, connection });
    }

    /// A node learns that a connection of the client is gone.
    pub(crate) fn client_gone(&mut self, node: NodeId, life: u64, connection: ConnectionId) {
        if self.lives(node, life) {
            self.input(node, node::Input::ClientGone { connection });
        }
    }

    /// Feeds the client and carries out what it wants.
    pub(crate) fn client_input(&mut self, input: client::Input) {
        let mut out = client::Outbox::new();
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.handle(now, input, &mut out);
        }
        self.client_effects(out);
    }

    fn client_effects(&mut self, mut out: client::Outbox) {
        let Some(client) = &mut self.client else { return };
        for (op, result) in completions(&mut out) {
            client.completed(self.now, op, result, &mut self.judge);
        }
        for effect in out {
            match effect {
                client::Effect::Send { node, session, message } => {
                    let known = self.sessions.get(&node).filter(|(s, ..)| *s == session);
                    if let Some(there) = known.map(|(_, there, _)| *there) {
                        self.note_asked(there, &message);
                        self.note_for_former(&message);
                        self.transmit(wire_to(node), message);
                    }
                }
                client::Effect::Connect { node, session } => {
                    let wait = self.net.delay(&mut self.dice);
                    let (process, since) = (self.client_process, self.now);
                    let dial = Event::ClientDial { process, node, session, since };
                    self.schedule_in(wait, dial);
                }
                client::Effect::Disconnect { node, session } => {
                    if self.sessions.get(&node).is_some_and(|(known, ..)| *known == session) {
                        self.end_client_connection(node);
                    }
                }
                client::Effect::RefreshMap => self.refresh_map(),
                client::Effect::Complete { .. } | client::Effect::Turn { .. } => {}
            }
        }
        if !self.client_ticking {
            self.client_ticking = true;
            self.schedule_in(Duration::from_millis(10), Event::ClientTick);
        }
    }

    pub(crate) fn work(&mut self) {
        let mut out = client::Outbox::new();
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.work(now, &mut self.judge, &mut out);
        }
        self.client_effects(out);
        let pace = self.client.as_ref().map_or(Duration::ZERO, SimClient::pace);
        let wait = self.draw(pace);
        self.schedule_in(wait, Event::Work);
    }
}
