//! The world: events in the order of virtual time, and what each does to the processes.
//!
//! One dice stream per purpose, one queue, no thread: the order of events is a function of the
//! seed. Ties are broken by the order in which events were scheduled.

use crate::client::{SimClient, completions};
use crate::control::{ControlEvent, SimControl};
use crate::faults::Fault;
use crate::judge::Judge;
use crate::net::{Fate, Host, Net, Wire};
use crate::node::SimNode;
use crate::run::{Options, Sabotage};
use ashlar_client_core as client;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core as node;
use ashlar_node_core::{ConnectionId, JournalSeq, Link, ReadTicket};
use ashlar_types::message::cluster::ReplicaState;
use ashlar_types::message::data::{DataMessage, Network, Stamp};
use ashlar_types::{BlockRange, ChunkId, NodeId, RequestId, SessionId, Time, VolumeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a node's shell ticks its core.
const NODE_TICK: Duration = Duration::from_millis(50);
/// How long the dialler of a broken connection may not notice.
const NOTICE_MAX: Duration = Duration::from_millis(400);
/// Between two attempts to dial.
const REDIAL_MAX: Duration = Duration::from_millis(150);

/// Something that happens at a point in time.
#[derive(Debug)]
pub(crate) enum Event {
    NodeTick {
        node: NodeId,
        life: u64,
    },
    Start {
        node: NodeId,
    },
    Dial {
        from: NodeId,
        to: NodeId,
        network: Network,
        life: u64,
    },
    LinkLost {
        wire: Wire,
        life: u64,
    },
    Deliver {
        wire: Wire,
        connection: u64,
        message: DataMessage,
    },
    Synced {
        node: NodeId,
        life: u64,
        seq: JournalSeq,
    },
    BlocksRead {
        node: NodeId,
        life: u64,
        ticket: ReadTicket,
        chunk: ChunkId,
        range: BlockRange,
    },
    ClientDial {
        node: NodeId,
        session: SessionId,
    },
    ClientLinkLost {
        node: NodeId,
        session: SessionId,
    },
    ClientTick,
    /// A reader beside the client asks a node for what it takes itself to be primary of.
    Probe,
    Work,
    Control(ControlEvent),
    Fault(Fault),
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    scheduled: u64,
    pub(crate) events: u64,
    pub(crate) dice: SeededDice,
    pub(crate) net: Net,
    pub(crate) nodes: BTreeMap<NodeId, SimNode>,
    pub(crate) control: SimControl,
    pub(crate) client: Option<SimClient>,
    /// The volume that the client uses.
    pub(crate) volume: Option<VolumeId>,
    /// The client's connections: wire to node and back, by node.
    sessions: BTreeMap<NodeId, (SessionId, u64, u64)>,
    /// What a client's connection asked of a node: the chunk of each request, and when.
    asked: BTreeMap<(u64, u64), (ChunkId, Time)>,
    pub(crate) judge: Judge,
    pub(crate) sabotage: Sabotage,
    /// Reads of the reader beside the client.
    probes: u64,
    /// A digest of every event: equal runs have equal ones.
    pub(crate) digest: u64,
    digesting: bool,
    client_ticking: bool,
}

const CLIENT: Host = Host::Client;
/// Connection of the reader beside the client, at every node.
const PROBE: u64 = u64::MAX;
/// Between two of its reads.
const PROBE_EVERY_MAX: Duration = Duration::from_millis(60);

impl World {
    pub(crate) fn new(options: Options, net: Net, control: SimControl) -> Self {
        Self {
            now: Time::ZERO,
            queue: BTreeMap::new(),
            scheduled: 0,
            events: 0,
            dice: SeededDice::stream(options.seed, "world"),
            net,
            nodes: BTreeMap::new(),
            control,
            client: None,
            volume: None,
            sessions: BTreeMap::new(),
            asked: BTreeMap::new(),
            judge: Judge::default(),
            sabotage: options.sabotage,
            probes: 0,
            digesting: options.digest,
            digest: 0xcbf2_9ce4_8422_2325,
            client_ticking: false,
        }
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at.max(self.now), self.scheduled), event);
    }

    pub(crate) fn schedule_in(&mut self, wait: Duration, event: Event) {
        self.schedule(self.now + wait, event);
    }

    /// A duration below `max`, from the world's dice.
    pub(crate) fn draw(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.dice.below(nanos))
    }

    /// Carries out the next event; false when none is left before `until`.
    pub(crate) fn step(&mut self, until: Time) -> bool {
        let Some(entry) = self.queue.first_entry() else { return false };
        if entry.key().0 > until {
            self.now = until;
            return false;
        }
        let ((at, _), event) = entry.remove_entry();
        self.now = at;
        self.events += 1;
        if self.digesting {
            self.note(&event);
        }
        self.carry_out(event);
        true
    }

    /// Mixes an event into the digest.
    fn note(&mut self, event: &Event) {
        let text = format!("{} {event:?}", self.now);
        for byte in text.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn carry_out(&mut self, event: Event) {
        match event {
            Event::NodeTick { node, life } => {
                if self.lives(node, life) {
                    self.input(node, node::Input::Tick);
                    self.schedule_in(NODE_TICK, Event::NodeTick { node, life });
                }
            }
            Event::Start { node } => self.start_node(node),
            Event::Dial { from, to, network, life } => self.dial(from, to, network, life),
            Event::LinkLost { wire, life } => self.link_lost(wire, life),
            Event::Deliver { wire, connection, message } => {
                self.deliver(wire, connection, message);
            }
            Event::Synced { node, life, seq } => {
                if self.lives(node, life) {
                    if let Some(node) = self.nodes.get_mut(&node) {
                        node.synced(seq);
                    }
                    self.input(node, node::Input::Durable { seq });
                }
            }
            Event::BlocksRead { node, life, ticket, chunk, range } => {
                if self.lives(node, life) {
                    let content = self.nodes.get(&node).map(|node| node.live.read(chunk, range));
                    self.input(node, node::Input::BlocksRead { ticket, content });
                }
            }
            Event::ClientDial { node, session } => self.client_dial(node, session),
            Event::ClientLinkLost { node, session } => self.client_link_lost(node, session),
            Event::ClientTick => {
                self.client_ticking = false;
                self.client_input(client::Input::Tick);
            }
            Event::Probe => self.read_beside(),
            Event::Work => self.work(),
            Event::Control(event) => self.control_event(event),
            Event::Fault(fault) => self.strike(fault),
        }
    }

    pub(crate) fn lives(&self, node: NodeId, life: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.is_up() && node.life == life)
    }

    pub(crate) fn life(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |node| node.life)
    }

    /// Starts a node's process, if it is down: it ticks, dials its peers and the control plane.
    fn start_node(&mut self, id: NodeId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_up()) else { return };
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

    /// Ends a node's process at once.
    pub(crate) fn crash_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_up()) else { return };
        node.crash(&mut self.dice);
        let host = Host::Node(id);
        for wire in self.net.wires_of(host) {
            self.net.disconnect(wire);
            self.notice_later(wire);
        }
        self.control_lost(id);
    }

    /// The dialler of a broken connection will notice after a while.
    fn notice_later(&mut self, wire: Wire) {
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

    fn dial(&mut self, from: NodeId, to: NodeId, network: Network, life: u64) {
        let wire = Wire { from: Host::Node(from), to: Host::Node(to), network };
        let back = Wire { from: wire.to, to: wire.from, network };
        if !self.lives(from, life) || self.net.connection(wire).is_some() {
            return;
        }
        let peer = self.nodes.get(&to).filter(|peer| peer.is_up()).map(|peer| peer.identity);
        let cut = self.net.is_cut(wire) || self.net.is_cut(back);
        match peer.filter(|_| !cut) {
            Some(peer) => {
                self.net.connect(self.now, wire);
                let (node, store, start) = (to, peer.store, peer.start);
                self.input(from, node::Input::LinkUp { node, network, store, start });
            }
            None => {
                let refused = peer.is_none() && !cut;
                self.input(from, node::Input::LinkDown { node: to, network, refused });
                let wait = Duration::from_millis(20) + self.draw(REDIAL_MAX);
                self.schedule_in(wait, Event::Dial { from, to, network, life });
            }
        }
    }

    fn link_lost(&mut self, wire: Wire, life: u64) {
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
    fn transmit(&mut self, wire: Wire, message: DataMessage) {
        match self.net.send(self.now, wire, &mut self.dice) {
            Fate::Deliver { at, connection } => {
                self.schedule(at, Event::Deliver { wire, connection, message });
            }
            Fate::Broken => {
                if wire.from == CLIENT || wire.to == CLIENT {
                    let back = Wire { from: wire.to, to: wire.from, network: wire.network };
                    self.net.disconnect(back);
                }
                self.notice_later(wire);
            }
            Fate::NoConnection => {}
        }
    }

    fn deliver(&mut self, wire: Wire, connection: u64, message: DataMessage) {
        if self.net.connection(wire) != Some(connection) {
            return;
        }
        match (wire.from, wire.to) {
            (Host::Node(from), Host::Node(to)) => {
                let member = self.nodes.get(&to).filter(|node| node.is_up());
                let instead = member.and_then(|m| self.sabotage.answer_instead(m, &message));
                if let Some(answer) = instead {
                    let back = Wire { from: wire.to, to: wire.from, network: wire.network };
                    self.transmit(back, answer);
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

    fn note_asked(&mut self, connection: u64, message: &DataMessage) {
        if let DataMessage::Write { id, stamp, .. } | DataMessage::Read { id, stamp, .. } = message
        {
            self.asked.insert((connection, id.0), (stamp.chunk, self.now));
        }
    }

    /// Feeds a node and carries out what it wants.
    pub(crate) fn input(&mut self, id: NodeId, input: node::Input) {
        let mut out = node::Outbox::default();
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.handle(now, input, &mut out);
        }
        self.effects(id, &mut out);
    }

    fn effects(&mut self, id: NodeId, out: &mut node::Outbox) {
        let life = self.life(id);
        let effects: Vec<node::Effect> = out.drain().collect();
        let mut persisted = false;
        for effect in effects {
            match effect {
                node::Effect::Send { to: Link::Peer(to, network), message } => {
                    let wire = Wire { from: Host::Node(id), to: Host::Node(to), network };
                    if self.sabotage == Sabotage::AcknowledgeEarly {
                        self.acknowledge_early(id, to, &message);
                    }
                    self.transmit(wire, message);
                }
                node::Effect::Send { to: Link::Client(connection), message } => {
                    self.answer_client(id, connection, message);
                }
                node::Effect::Persist { seq, record } => {
                    persisted = true;
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.append(seq, record);
                    }
                }
                node::Effect::Read { ticket, chunk, range } => {
                    let wait = self.draw(Duration::from_micros(400));
                    let node = id;
                    self.schedule_in(wait, Event::BlocksRead { node, life, ticket, chunk, range });
                }
                node::Effect::Control(message) => self.control_send_up(id, message),
                node::Effect::Alarm(alarm) => {
                    let detail = format!("{id}: {alarm:?}");
                    self.judge.violated(self.now, "alarm", detail);
                }
            }
        }
        if persisted {
            let newest = self.nodes.get(&id).and_then(SimNode::newest_appended);
            if let Some(seq) = newest {
                let wait = Duration::from_micros(80) + self.draw(Duration::from_micros(400));
                self.schedule_in(wait, Event::Synced { node: id, life, seq });
            }
        }
    }

    /// The sabotaged primary takes a mirror that it sends for one that was acknowledged.
    fn acknowledge_early(&mut self, id: NodeId, to: NodeId, message: &DataMessage) {
        let DataMessage::Mirror { chunk, epoch, lsn, .. } = message else { return };
        let Some(start) = self.nodes.get(&to).map(|node| node.identity.start) else { return };
        let message = DataMessage::MirrorAck { chunk: *chunk, epoch: *epoch, lsn: *lsn, start };
        self.input(id, node::Input::Frame { from: Link::Peer(to, Network::Primary), message });
    }

    /// Reads at a node, by its own belief: the client alone would never ask a deposed primary, since
    /// it knows of every election that it has written under.
    fn read_beside(&mut self) {
        if let Some(id) = self.any_node()
            && let Some(core) = self.nodes.get(&id).and_then(SimNode::core)
        {
            let session = self.sessions.get(&id).map_or(SessionId(1), |(session, ..)| *session);
            let serving = core.reports().filter(|report| report.state == ReplicaState::Serving);
            let stamps: Vec<Stamp> = serving
                .filter_map(|report| core.config(report.chunk))
                .map(|config| Stamp {
                    chunk: config.chunk,
                    epoch: config.epoch,
                    generation: config.generation,
                    session,
                })
                .collect();
            let from = Link::Client(ConnectionId(PROBE));
            for stamp in stamps {
                self.probes += 1;
                let id_of_read = RequestId(self.probes);
                let range = BlockRange::new(0, 1);
                let message = DataMessage::Read { id: id_of_read, stamp, range };
                self.note_asked(PROBE, &message);
                self.input(id, node::Input::Frame { from, message });
                self.input(id, node::Input::BatchEnd);
            }
        }
        let wait = self.draw(PROBE_EVERY_MAX);
        self.schedule_in(wait, Event::Probe);
    }

    fn answer_client(&mut self, id: NodeId, connection: ConnectionId, message: DataMessage) {
        let session = self.sessions.get(&id).copied();
        let Some(back) = session
            .filter(|(_, forth, _)| *forth == connection.0)
            .map(|(.., back)| back)
            .or((connection.0 == PROBE).then_some(PROBE))
        else {
            return;
        };
        if let DataMessage::WriteDone { id: request } | DataMessage::ReadDone { id: request, .. } =
            &message
            && let Some((chunk, asked)) = self.asked.remove(&(connection.0, request.0))
        {
            let core = self.nodes.get(&id).and_then(SimNode::core);
            let term = core.and_then(|core| core.durable(chunk)).map(|d| d.last.term);
            match term {
                Some(term) if matches!(message, DataMessage::WriteDone { .. }) => {
                    self.judge.node_acknowledges(self.now, chunk, term, id);
                }
                Some(term) => self.judge.node_answers_read(self.now, asked, chunk, term, id),
                None => {}
            }
        }
        let wire = Wire { from: Host::Node(id), to: CLIENT, network: Network::Primary };
        if self.net.connection(wire) == Some(back) {
            self.transmit(wire, message);
        }
    }

    fn client_dial(&mut self, node: NodeId, session: SessionId) {
        let network = Network::Primary;
        let forth = Wire { from: CLIENT, to: Host::Node(node), network };
        let back = Wire { from: Host::Node(node), to: CLIENT, network };
        let up = self.nodes.get(&node).is_some_and(SimNode::is_up);
        if up && !self.net.is_cut(forth) && !self.net.is_cut(back) {
            self.end_client_connection(node);
            let there = self.net.connect(self.now, forth);
            let here = self.net.connect(self.now, back);
            self.sessions.insert(node, (session, there, here));
            self.client_input(client::Input::LinkUp { node, session });
        } else {
            self.client_input(client::Input::LinkDown { node, session });
        }
    }

    fn client_link_lost(&mut self, node: NodeId, session: SessionId) {
        if self.sessions.get(&node).is_some_and(|(known, ..)| *known == session) {
            self.end_client_connection(node);
            self.client_input(client::Input::LinkDown { node, session });
        }
    }

    /// Both directions of the client's connection to a node end; the node learns of it.
    fn end_client_connection(&mut self, node: NodeId) {
        let Some((_, there, _)) = self.sessions.remove(&node) else { return };
        let network = Network::Primary;
        self.net.disconnect(Wire { from: CLIENT, to: Host::Node(node), network });
        self.net.disconnect(Wire { from: Host::Node(node), to: CLIENT, network });
        let connection = ConnectionId(there);
        self.input(node, node::Input::ClientGone { connection });
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
                    let known = self.sessions.get(&node).filter(|(s, ..)| *s == session).copied();
                    let network = Network::Primary;
                    if let Some((_, there, _)) = known {
                        self.note_asked(there, &message);
                        let wire = Wire { from: CLIENT, to: Host::Node(node), network };
                        self.transmit(wire, message);
                    }
                }
                client::Effect::Connect { node, session } => {
                    let wait = self.net.delay(&mut self.dice);
                    self.schedule_in(wait, Event::ClientDial { node, session });
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

    fn work(&mut self) {
        let mut out = client::Outbox::new();
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.work(now, &mut self.judge, &mut out);
        }
        self.client_effects(out);
        let wait = self.draw(Duration::from_millis(3));
        self.schedule_in(wait, Event::Work);
    }
}

impl World {
    /// Takes every fault that has not struck out of the queue.
    pub(crate) fn drop_faults(&mut self) {
        self.queue.retain(|_, event| !matches!(event, Event::Fault(_)));
    }
}
