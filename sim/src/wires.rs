//! Nodes' processes and their connections: start, end, dial, lose, deliver.

use crate::net::{Fate, Host, PATIENCE, Wire};
use crate::node::{End, SimNode};
use crate::pause::LOOK_AGAIN;
use crate::world::{Event, NODE_TICK, World};
use ashlar_client_core as client;
use ashlar_env::dice::Dice;
use ashlar_node_core as node;
use ashlar_node_core::{ConnectionId, Link};
use ashlar_types::NodeId;
use ashlar_types::message::data::{DataMessage, Lane, Network};
use std::time::Duration;

/// How long the dialler of a broken connection may not notice.
const NOTICE_MAX: Duration = Duration::from_millis(400);
/// Between two attempts to dial.
const REDIAL_MAX: Duration = Duration::from_millis(150);

/// What a message costs on a wire: its content, and a little for the rest.
fn bytes_of(message: &DataMessage) -> usize {
    const REST: usize = 100;
    match message {
        DataMessage::Write { data, .. }
        | DataMessage::ReadDone { data, .. }
        | DataMessage::Mirror { data, .. }
        | DataMessage::Copy { data, .. }
        | DataMessage::Fetched { data, .. } => REST + data.data.len(),
        _without_content => REST,
    }
}

/// The connection that a message takes.
const fn lane_of(message: &DataMessage) -> Lane {
    match message {
        DataMessage::Beat { .. } | DataMessage::BeatReply { .. } => Lane::Beats,
        _anything_else => Lane::Data,
    }
}

impl World {
    /// Starts a node's process, if it is down: it ticks, dials its peers and the control plane.
    pub(crate) fn start_node(&mut self, id: NodeId) {
        let now = self.now;
        if self.nodes.get(&id).is_none_or(SimNode::is_up) || self.lost.nodes.contains(&id) {
            return;
        }
        if self.start_waits(id) || self.disks_keep_it_down(id) {
            return;
        }
        if self.is_off(id) {
            // Its kernel knows nothing of the connections of before, and says so.
            for wire in self.net.wires_of(Host::Node(id)) {
                self.net.disconnect(wire, false);
                self.notice_later(wire);
            }
            self.control_lost(id);
        }
        for chunk in self.nodes.get_mut(&id).map(SimNode::take_lost_parts).unwrap_or_default() {
            self.node_logs(id, node::Line::LostPart, &chunk.to_string());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let mut out = node::Outbox::default();
        node.start(now, &mut out);
        let life = node.life;
        self.effects(id, &mut out);
        self.schedule_in(NODE_TICK, Event::NodeTick { node: id, life });
        let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|peer| *peer != id).collect();
        for to in peers {
            for network in [Network::Primary, Network::Replication] {
                let wait = self.draw(REDIAL_MAX);
                self.schedule_in(wait, Event::Dial { from: id, to, network, life });
            }
        }
        self.control_dial(id, life);
    }

    /// Whether a node's machine has no power: nobody refuses there.
    pub(crate) fn is_off(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.off)
    }

    /// Ends a node's process at once, whether it runs or stands still.
    pub(crate) fn end_node(&mut self, id: NodeId, how: End) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_up()) else { return };
        let lost = node.end_process(how, &mut self.dice);
        self.tally.add_to("unsynced records lost", lost);
        if how == End::Torn && lost > 0 {
            self.tally.note("writes torn");
        }
        let host = Host::Node(id);
        self.pauses.forget(host);
        if self.is_off(id) {
            // No word of it: the other ends find out when TCP gives up.
            for wire in self.net.wires_of(host).into_iter().filter(|wire| wire.to == host) {
                if let Some(connection) = self.net.connection(wire) {
                    let gives_up = self.now + PATIENCE;
                    self.schedule(gives_up, Event::GivenUp { wire, connection });
                }
            }
            self.net.lose_all_to(host);
            self.control_misses(host);
            return;
        }
        for wire in self.net.wires_of(host) {
            // What it had sent may still arrive; what was sent to it is lost.
            let drains = wire.from == host && self.dice.chance(1, 2);
            self.net.disconnect(wire, drains);
            self.notice_later(wire);
        }
        self.net.lose_all_to(host);
        self.control_lost(id);
    }

    /// The dialler of a broken connection will notice after a while.
    pub(crate) fn notice_later(&mut self, wire: Wire) {
        let wait = self.draw(NOTICE_MAX);
        match (wire.from, wire.to) {
            (Host::Node(from), Host::Node(_)) => {
                let life = self.life(from);
                self.schedule_in(wait, Event::LinkLost { wire, life });
            }
            (Host::Client, Host::Node(node)) | (Host::Node(node), Host::Client) => {
                if let Some((session, ..)) = self.sessions.get(&node) {
                    let session = *session;
                    self.schedule_in(wait, Event::ClientLinkLost { node, session });
                }
            }
            _ => {}
        }
    }

    pub(crate) fn dial(&mut self, from: NodeId, to: NodeId, network: Network, life: u64) {
        let wire = Wire { from: Host::Node(from), to: Host::Node(to), network };
        if !self.lives(from, life) || self.net.connection(wire).is_some() {
            return;
        }
        let peer = self.nodes.get(&to).filter(|peer| peer.is_up()).map(SimNode::process);
        let cannot = self.lacks_descriptor(wire.from);
        let dark = cannot || self.net.is_dark(self.now, wire) || self.is_off(to);
        let refused = peer.is_none() && !dark;
        match peer.filter(|_| !dark) {
            // The kernel takes the connection, and nobody answers the hello.
            Some(_) if self.is_mute(Host::Node(to)) => {
                self.schedule_in(LOOK_AGAIN, Event::Dial { from, to, network, life });
            }
            Some(process) => {
                self.net.connect(self.now, wire);
                self.input(from, node::Input::LinkUp { node: to, network, process });
            }
            None => {
                self.input(from, node::Input::LinkDown { node: to, network, refused });
                let wait = Duration::from_millis(20) + self.draw(REDIAL_MAX);
                self.schedule_in(wait, Event::Dial { from, to, network, life });
            }
        }
    }

    pub(crate) fn link_lost(&mut self, wire: Wire, life: u64) {
        let (Host::Node(from), Host::Node(to)) = (wire.from, wire.to) else { return };
        if !self.lives(from, life) || self.net.connection(wire).is_some() {
            return;
        }
        let network = wire.network;
        self.input(from, node::Input::LinkDown { node: to, network, refused: false });
        let wait = self.draw(REDIAL_MAX);
        self.schedule_in(wait, Event::Dial { from, to, network, life });
    }

    /// Puts a message on a connection.
    pub(crate) fn transmit(&mut self, wire: Wire, message: DataMessage) {
        match self.net.send(self.now, wire, (bytes_of(&message), lane_of(&message)), &mut self.dice)
        {
            Fate::Deliver { at, connection } => {
                self.schedule(at, Event::Deliver { wire, connection, message });
            }
            Fate::Broken => {
                self.tally.note("connections broken");
                if wire.from == Host::Client || wire.to == Host::Client {
                    self.net.disconnect(wire.back(), false);
                }
                self.notice_later(wire);
            }
            Fate::Stuck { connection, gives_up } => {
                self.schedule(gives_up, Event::GivenUp { wire, connection });
            }
            Fate::NoConnection => {}
        }
    }

    /// A host gives a connection up that nothing got through on.
    pub(crate) fn given_up(&mut self, wire: Wire, connection: u64) {
        if self.net.connection(wire) == Some(connection) {
            self.net.disconnect(wire, false);
            self.tally.note("connections broken");
            self.notice_later(wire);
        }
    }

    /// A message is read at its receiver.
    pub(crate) fn arrive(&mut self, wire: Wire, connection: u64, message: DataMessage) {
        match (wire.from, wire.to) {
            (Host::Node(from), Host::Node(to)) => {
                let member = self.nodes.get(&to).filter(|node| node.is_up());
                let instead = member.and_then(|m| self.sabotage.answer_instead(m, &message));
                if let Some(answer) = instead {
                    self.transmit(wire.back(), answer);
                    return;
                }
                let from = Link::Peer(from, wire.network);
                self.input(to, node::Input::Frame { from, message });
                self.input(to, node::Input::BatchEnd);
            }
            (Host::Client, Host::Node(to)) => {
                let from = Link::Client(ConnectionId(connection));
                self.input(to, node::Input::Frame { from, message });
                self.input(to, node::Input::BatchEnd);
            }
            (Host::Node(node), Host::Client) => {
                let known = self.sessions.get(&node).filter(|(_, _, back)| *back == connection);
                if let Some((session, ..)) = known {
                    let session = *session;
                    self.client_input(client::Input::Message { node, session, message });
                }
            }
            _ => {}
        }
    }
}
