//! The world: events in the order of virtual time, and what each does to the processes.
//!
//! One dice stream per purpose, one queue, no thread: the order of events is a function of the
//! seed. Ties are broken by the order in which events were scheduled. What is for a process that
//! stands still waits (`pause.rs`).

use crate::balance::ROOM_USUAL;
use crate::beyond::Lost;
use crate::client::SimClient;
use crate::client_side::Asked;
use crate::control::{ControlEvent, SimControl};
use crate::descriptors::Descriptors;
use crate::drain::Drains;
use crate::effects::Effects;
use crate::faults::{Fault, Swarm};
use crate::former::Former;
use crate::grow::Growth;
use crate::journal::Journal;
use crate::judge::Judge;
use crate::kinds::Tally;
use crate::lines::Lines;
use crate::misplaced::Misplaced;
use crate::net::{Host, Net, Wire};
use crate::node::{ReadFault, SimNode};
use crate::observer::Observer;
use crate::passing::Passing;
use crate::pause::Pauses;
use crate::promise::Promise;
use crate::queue::Queue;
use crate::run::{Options, Sabotage};
use crate::salvage::Salvages;
use crate::scenario::{Moment, Script};
use crate::store::SimStore;
use crate::watch::Watch;
use ashlar_client_core as client;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core as node;
use ashlar_node_core::{ConnectionId, JournalSeq, Link, ReadTicket, Record};
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{BlockData, BlockRange, ChunkId, NodeId, SessionId, StoreId, Time, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often a node's shell ticks its core.
pub(crate) const NODE_TICK: Duration = Duration::from_millis(50);

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
    Arrived {
        wire: Wire,
        connection: u64,
        message: DataMessage,
    },
    Synced {
        node: NodeId,
        life: u64,
        store: StoreId,
        seq: JournalSeq,
    },
    BlocksRead {
        node: NodeId,
        life: u64,
        store: StoreId,
        ticket: ReadTicket,
        chunk: ChunkId,
        range: BlockRange,
    },
    ClientDial {
        process: u64,
        node: NodeId,
        session: SessionId,
        since: Time,
    },
    ClientLinkLost {
        node: NodeId,
        session: SessionId,
    },
    ClientGone {
        node: NodeId,
        life: u64,
        connection: ConnectionId,
    },
    ClientTick,
    Work,
    Observe,
    Observed {
        node: NodeId,
        life: u64,
        message: DataMessage,
    },
    ObserverTold {
        message: DataMessage,
    },
    FormerWrites,
    FormerHeard {
        node: NodeId,
        life: u64,
        message: DataMessage,
    },
    AttachAgain,
    SalvageAgain,
    DrainAgain {
        node: NodeId,
    },
    GrowAgain,
    PassingAgain {
        name: String,
    },
    GivenUp {
        wire: Wire,
        connection: u64,
    },
    Control(ControlEvent),
    Fault(Fault),
    Resume {
        host: Host,
        number: u64,
    },
}

impl Event {
    /// The process that it happens to, if it is one that can stand still.
    fn host(&self) -> Option<Host> {
        match self {
            Self::NodeTick { node, .. }
            | Self::Synced { node, .. }
            | Self::BlocksRead { node, .. }
            | Self::ClientGone { node, .. }
            | Self::Observed { node, .. }
            | Self::FormerHeard { node, .. } => Some(Host::Node(*node)),
            Self::Dial { from, .. } => Some(Host::Node(*from)),
            Self::LinkLost { wire, .. } => Some(wire.from),
            Self::Deliver { wire, .. } | Self::Arrived { wire, .. } => Some(wire.to),
            Self::ClientDial { .. }
            | Self::ClientLinkLost { .. }
            | Self::ClientTick
            | Self::Work => Some(Host::Client),
            Self::Control(event) => event.host(),
            Self::Start { .. }
            | Self::Observe
            | Self::ObserverTold { .. }
            | Self::FormerWrites
            | Self::AttachAgain
            | Self::SalvageAgain
            | Self::DrainAgain { .. }
            | Self::GrowAgain
            | Self::PassingAgain { .. }
            | Self::GivenUp { .. }
            | Self::Fault(_)
            | Self::Resume { .. } => None,
        }
    }

    /// Whether it is a process's own clock.
    pub(crate) const fn is_tick(&self) -> bool {
        matches!(
            self,
            Self::NodeTick { .. } | Self::ClientTick | Self::Control(ControlEvent::Tick { .. })
        )
    }
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Time,
    queue: Queue,
    pub(crate) events: u64,
    pub(crate) dice: SeededDice,
    /// Faults have dice of their own: what they do to the world does not change which come next.
    pub(crate) fault_dice: SeededDice,
    pub(crate) swarm: Swarm,
    pub(crate) net: Net,
    pub(crate) nodes: BTreeMap<NodeId, SimNode>,
    /// Racks that they stand in; 0: nobody says.
    pub(crate) racks: u32,
    /// Stores of each.
    pub(crate) stores_each: u32,
    /// What each store can hold.
    pub(crate) room_bytes: u64,
    /// Nodes that have not come yet.
    pub(crate) late: BTreeSet<NodeId>,
    pub(crate) control: SimControl,
    pub(crate) client: Option<SimClient>,
    pub(crate) observer: Observer,
    /// The client that the volume may be taken from.
    pub(crate) former: Former,
    pub(crate) salvages: Salvages,
    pub(crate) drains: Drains,
    pub(crate) growth: Growth,
    pub(crate) passing: Passing,
    pub(crate) watch: Watch,
    pub(crate) effects: Effects,
    /// The steps of a scenario that have not struck.
    pub(crate) script: Option<Script>,
    /// Warnings and errors that may be logged: parts of their text.
    pub(crate) lines_allowed: Vec<String>,
    /// What the members and what they are made of have logged.
    pub(crate) lines: Lines,
    pub(crate) pauses: Pauses,
    /// Who gets no file descriptor.
    pub(crate) descriptors: Descriptors,
    /// Disks that are in the wrong node.
    pub(crate) misplaced: Misplaced,
    /// The volume that the client uses.
    pub(crate) volume: Option<VolumeId>,
    /// The client's connections: wire to node and back, by node.
    pub(crate) sessions: BTreeMap<NodeId, (SessionId, u64, u64)>,
    /// The number of the client's last connection to each node.
    pub(crate) last_sessions: BTreeMap<NodeId, SessionId>,
    /// Counts the client's processes: what one has dialled is nothing to the next.
    pub(crate) client_process: u64,
    /// What each connection of a client asked of a node.
    pub(crate) asked: BTreeMap<(u64, u64), Asked>,
    pub(crate) judge: Judge,
    pub(crate) sabotage: Sabotage,
    pub(crate) journal: Journal,
    /// How often things happened.
    pub(crate) tally: Tally,
    pub(crate) client_ticking: bool,
    /// What each node says that its store holds: the pace of a scrub follows from it.
    pub(crate) used_bytes: u64,
    /// Nodes whose stores have little room left.
    pub(crate) short_of_space: BTreeSet<NodeId>,
    /// Who never comes back.
    pub(crate) lost: Lost,
    /// What a swarm may still take.
    pub(crate) promise: Promise,
    /// Nothing passes between this zone and others until then.
    pub(crate) cut_off_until: Time,
    /// What a node's core wants, while it is carried out.
    outbox: node::Outbox,
}

impl World {
    pub(crate) fn new(options: &Options, swarm: Swarm, net: Net, control: SimControl) -> Self {
        Self {
            now: Time::ZERO,
            queue: Queue::default(),
            events: 0,
            dice: SeededDice::stream(options.seed, "world"),
            fault_dice: SeededDice::stream(options.seed, "faults"),
            swarm,
            net,
            nodes: BTreeMap::new(),
            racks: options.racks,
            stores_each: options.stores,
            room_bytes: options.scenario.and_then(|s| s.room_bytes).unwrap_or(ROOM_USUAL),
            late: options.late_nodes().collect(),
            control,
            client: None,
            observer: Observer::default(),
            former: Former::default(),
            salvages: Salvages::default(),
            drains: Drains::default(),
            growth: Growth::default(),
            passing: Passing::default(),
            watch: Watch::default(),
            effects: Effects::default(),
            script: None,
            lines_allowed: Vec::new(),
            lines: Lines::default(),
            pauses: Pauses::default(),
            descriptors: Descriptors::default(),
            misplaced: Misplaced::default(),
            volume: None,
            sessions: BTreeMap::new(),
            last_sessions: BTreeMap::new(),
            client_process: 0,
            asked: BTreeMap::new(),
            judge: Judge::default(),
            sabotage: options.sabotage,
            journal: Journal::new(options.digest),
            tally: Tally::default(),
            client_ticking: false,
            used_bytes: 0,
            short_of_space: BTreeSet::new(),
            lost: Lost::default(),
            promise: Promise::default(),
            cut_off_until: Time::ZERO,
            outbox: node::Outbox::default(),
        }
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.queue.push(at.max(self.now), event);
    }

    pub(crate) fn schedule_in(&mut self, wait: Duration, event: Event) {
        self.schedule(self.now + wait, event);
    }

    /// A duration below `max`, from the world's dice.
    pub(crate) fn draw(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.dice.below(nanos))
    }

    /// When the next event happens.
    pub(crate) fn next_at(&self) -> Option<Time> {
        self.queue.next_at()
    }

    /// Carries out the next event; false when none is left before `until`.
    pub(crate) fn step(&mut self, until: Time) -> bool {
        let Some(at) = self.queue.next_at() else { return false };
        if at > until {
            self.now = until;
            return false;
        }
        let Some(event) = self.queue.pop() else { return false };
        self.now = at;
        self.events += 1;
        self.journal.event(at, &event);
        self.carry_out(event);
        self.watch();
        self.play();
        if self.journal.tells_changes() {
            let state = self.state();
            self.journal.changes(at, state);
        }
        true
    }

    /// Lets an event happen, now or when its process goes on.
    pub(crate) fn carry_out(&mut self, event: Event) {
        let stands_still = |host: &Host| self.is_paused(*host) && !self.is_for_operator(&event);
        if let Some(host) = event.host().filter(stands_still) {
            self.keep_for(host, event);
            return;
        }
        match event {
            Event::NodeTick { node, life } => self.node_ticks(node, life),
            Event::Start { node } => self.start_node(node),
            Event::Dial { from, to, network, life } => self.dial(from, to, network, life),
            Event::LinkLost { wire, life } => self.link_lost(wire, life),
            Event::Deliver { wire, connection, message } => {
                if self.net.delivers(wire, connection) {
                    self.arrive(wire, connection, message);
                }
            }
            Event::Arrived { wire, connection, message } => {
                self.arrive(wire, connection, message);
            }
            Event::Synced { node, life, store, seq } => self.synced((node, life), store, seq),
            Event::BlocksRead { node, life, store, ticket, chunk, range } => {
                // A store that has failed since answers nothing.
                let known = self.nodes.get(&node).and_then(|node| node.store(store));
                if known.is_some_and(|store| store.reads_wait(chunk)) {
                    let again = Event::BlocksRead { node, life, store, ticket, chunk, range };
                    self.schedule_in(NODE_TICK, again);
                } else if self.lives(node, life)
                    && let Some(store) = known
                {
                    let read = match self.sabotage {
                        Sabotage::NoChecksums => Ok(store.read_unchecked(chunk, range)),
                        _ => store.read(self.now, chunk, range),
                    };
                    if let Err(fault) = read {
                        self.read_failed(node, chunk, range, fault);
                    }
                    self.input(node, node::Input::BlocksRead { ticket, content: read.ok() });
                }
            }
            Event::ClientDial { process, node, session, since } => {
                self.client_dial(process, node, session, since);
            }
            Event::ClientLinkLost { node, session } => self.client_link_lost(node, session),
            Event::ClientGone { node, life, connection } => {
                self.client_gone(node, life, connection);
            }
            Event::ClientTick => {
                self.client_ticking = false;
                self.client_input(client::Input::Tick);
            }
            Event::Work => self.work(),
            Event::Observe => self.observe(),
            Event::Observed { node, life, message } => self.observed(node, life, message),
            Event::ObserverTold { message } => self.observer_told(&message),
            Event::FormerWrites => self.former_writes(),
            Event::FormerHeard { node, life, message } => self.former_heard(node, life, message),
            Event::AttachAgain => self.attach_again(),
            Event::SalvageAgain => self.salvage_again(),
            Event::DrainAgain { node } => self.drain_again(node),
            Event::GrowAgain => self.grow_again(),
            Event::PassingAgain { name } => self.passing_again(name),
            Event::GivenUp { wire, connection } => self.given_up(wire, connection),
            Event::Control(event) => self.control_event(event),
            Event::Fault(fault) => self.strike(fault),
            Event::Resume { host, number } => self.resume(host, number),
        }
    }

    fn node_ticks(&mut self, node: NodeId, life: u64) {
        if self.lives(node, life) {
            if !self.is_core_stalled(node) {
                self.retry_full(node);
            }
            self.input(node, node::Input::Tick);
            self.schedule_in(NODE_TICK, Event::NodeTick { node, life });
        }
    }

    pub(crate) fn lives(&self, node: NodeId, life: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.is_up() && node.life == life)
    }

    pub(crate) fn life(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |node| node.life)
    }

    /// When something that a store would finish at `at` is finished.
    fn disk_done(&self, node: NodeId, store: StoreId, at: Time) -> Time {
        let store = self.nodes.get(&node).and_then(|node| node.store(store));
        store.map_or(at, |store| at.max(store.disk.stalled_until))
    }

    /// A host logs a warning or an error: a broken rule, unless it was to be expected.
    pub(crate) fn logged(&mut self, host: Host, text: &str) {
        let text = format!("{host}: {text}");
        self.journal.remark(self.now, &text);
        self.tally.note("warnings and errors logged");
        if !self.lines_allowed.iter().any(|allowed| text.contains(allowed)) {
            self.judge.violated(self.now, "logged", text);
        }
    }

    /// A node's shell logs a line of its table.
    pub(crate) fn node_logs(&mut self, node: NodeId, line: node::Line, about: &str) {
        let text = format!("{} {} {about}", line.level().name(), line.text());
        self.logged(Host::Node(node), &text);
    }

    /// What a member and what it is made of have logged since this was asked last.
    pub(crate) fn member_logged(&mut self, member: u64) {
        for line in self.lines.take() {
            self.logged(Host::Member(member), &line);
        }
    }

    /// Moments of a write that a scenario may wait for.
    fn note_sent(&mut self, message: &DataMessage) {
        match message {
            DataMessage::Mirror { chunk, .. } => self.moment(*chunk, Moment::Mirrored),
            DataMessage::OpenTerm { chunk, .. } => self.moment(*chunk, Moment::Opening),
            DataMessage::Copy { chunk, .. } => self.moment(*chunk, Moment::Filling),
            _other => {}
        }
    }

    fn synced(&mut self, (node, life): (NodeId, u64), store: StoreId, seq: JournalSeq) {
        // A stall that began since holds this sync too.
        let at = self.disk_done(node, store, self.now);
        if at > self.now {
            self.schedule(at, Event::Synced { node, life, store, seq });
            return;
        }
        self.note_journalled(node);
        if self.lives(node, life)
            && let Some(known) = self.nodes.get_mut(&node).and_then(|node| node.store_mut(store))
        {
            known.synced(seq);
            self.note_synced(node, store);
            self.input(node, node::Input::Durable { store, seq });
        }
    }

    /// Feeds a node and carries out what it wants.
    pub(crate) fn input(&mut self, id: NodeId, input: node::Input) {
        let now = self.now;
        let mut out = core::mem::take(&mut self.outbox);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.handle(now, input, &mut out);
        }
        self.effects(id, &mut out);
        // Keeps its room.
        self.outbox = out;
    }

    pub(crate) fn effects(&mut self, id: NodeId, out: &mut node::Outbox) {
        let life = self.life(id);
        let mut persisted: Vec<StoreId> = Vec::new();
        for effect in out.drain() {
            match effect {
                node::Effect::Send { to: Link::Peer(to, network), message } => {
                    let wire = Wire { from: Host::Node(id), to: Host::Node(to), network };
                    if self.sabotage == Sabotage::AcknowledgeEarly {
                        self.acknowledge_early(id, to, &message);
                    }
                    self.note_sent(&message);
                    self.transmit(wire, message);
                }
                node::Effect::Send { to: Link::Client(connection), message } => {
                    self.answer_client(id, connection, message);
                }
                node::Effect::Persist { store, seq, record } => {
                    if !persisted.contains(&store) {
                        persisted.push(store);
                    }
                    self.persist(id, store, seq, record);
                }
                node::Effect::Read { store, ticket, chunk, range } => {
                    let wait = self.draw(Duration::from_micros(400));
                    let at = self.disk_done(id, store, self.now + wait);
                    let node = id;
                    let read = Event::BlocksRead { node, life, store, ticket, chunk, range };
                    self.schedule(at, read);
                }
                node::Effect::Control(message) => self.control_send_up(id, message),
                // Tokens are the shells' matter.
                node::Effect::VolumeLeft(_) => {}
                node::Effect::Alarm(alarm) => {
                    if matches!(alarm, node::Alarm::Repaired { .. }) {
                        self.tally.note("blocks repaired");
                    }
                    self.node_logs(id, alarm.line(), &format!("{alarm:?}"));
                }
            }
        }
        for store in persisted {
            self.sync(id, store);
        }
    }

    /// The journal's group is on its way.
    fn sync(&mut self, id: NodeId, store: StoreId) {
        let known = self.nodes.get(&id).and_then(|node| node.store(store));
        let newest = known.and_then(SimStore::newest_appended);
        if let Some(seq) = newest {
            let life = self.life(id);
            let wait = Duration::from_micros(80) + self.draw(Duration::from_micros(400));
            let at = self.disk_done(id, store, self.now + wait);
            self.schedule(at, Event::Synced { node: id, life, store, seq });
        }
    }

    /// Records that waited for space are offered to the store again, as its shell does every tick.
    fn retry_full(&mut self, id: NodeId) {
        for store in self.nodes.get(&id).map(SimNode::living).unwrap_or_default() {
            let known = self.nodes.get_mut(&id).and_then(|node| node.store_mut(store));
            let records = known.map(|known| known.take_room(self.now)).unwrap_or_default();
            if records.is_empty() {
                continue;
            }
            for (seq, record) in records {
                self.append(id, store, seq, record);
            }
            self.sync(id, store);
        }
    }

    fn append(&mut self, id: NodeId, store: StoreId, seq: JournalSeq, record: Record) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.append(store, seq, record, &mut self.fault_dice) {
            self.tally.note("writes gone wrong");
        }
    }

    /// The store cannot read: its shell logs it.
    fn read_failed(&mut self, id: NodeId, chunk: ChunkId, range: BlockRange, fault: ReadFault) {
        self.tally.note("reads failed");
        let about = format!("{chunk} {range}");
        if fault == ReadFault::Damaged {
            self.tally.note("damaged reads");
            self.node_logs(id, node::Line::Damaged, &about);
        }
        self.node_logs(id, node::Line::ReadFailed, &about);
    }

    /// A node's record goes to its journal.
    fn persist(&mut self, id: NodeId, store: StoreId, seq: JournalSeq, record: Record) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let record = match record {
            Record::Fill { chunk, data } if self.sabotage == Sabotage::ForgetCopies => {
                Record::Fill { chunk, data: BlockData::holes(data.range) }
            }
            other => other,
        };
        if let Record::OpenTerm { chunk, term, overwrite, .. } = &record {
            let config = node.core().and_then(|core| core.config(*chunk));
            if config.is_some_and(|config| config.primary.node == id) {
                self.judge.term_opened(*chunk, *term, node.end(*chunk));
                if !overwrite.is_empty() {
                    self.tally.note("terms opened over uncommitted writes");
                }
            }
        }
        let now = self.now;
        let Some(known) = node.store_mut(store) else { return };
        if !known.must_wait(now, &record) {
            self.append(id, store, seq, record);
        } else if known.wait_for_room(seq, record) {
            self.tally.note("writes waited for space");
            self.node_logs(id, node::Line::Full, "");
        }
    }

    /// A moment that a scenario may wait for: a primary's own write becomes durable before any
    /// secondary has acknowledged it.
    fn note_journalled(&mut self, id: NodeId) {
        if self.script.is_none() {
            return;
        }
        let Some(chunk) = self.control.configs().next().map(|config| config.chunk) else { return };
        let last = |node: NodeId| self.nodes.get(&node).map(|node| node.end(chunk));
        let config = self.nodes.get(&id).and_then(SimNode::core).and_then(|c| c.config(chunk));
        let ahead = config.is_some_and(|config| {
            config.primary.node == id && config.secondaries().all(|r| last(r.node) < last(id))
        });
        if ahead {
            self.moment(chunk, Moment::Journalled);
        }
    }

    /// The sabotaged primary takes a mirror that it sends for one that was acknowledged.
    fn acknowledge_early(&mut self, id: NodeId, to: NodeId, message: &DataMessage) {
        let DataMessage::Mirror { chunk, epoch, lsn, .. } = message else { return };
        let Some(start) = self.nodes.get(&to).map(|node| node.identity.start) else { return };
        let message =
            DataMessage::MirrorAck { chunk: *chunk, epoch: *epoch, lsn: *lsn, start, fill: None };
        self.input(id, node::Input::Frame { from: Link::Peer(to, Network::Primary), message });
    }

    /// Takes every fault that has not struck out of the queue.
    pub(crate) fn drop_faults(&mut self) {
        self.queue.drop_all(|event| matches!(event, Event::Fault(_) | Event::Resume { .. }));
    }
}
