//! One node alone with hands on everything around it: frames are fed in, effects are looked at.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of these helpers")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{
    ConnectionId, Effect, Identity, Input, JournalSeq, Link, NodeCore, Outbox, Process, ReadTicket,
    Record, Timing,
};
use ashlar_types::message::cluster::{Change, ControlDown, ControlUp, Order, ReplicaState};
use ashlar_types::message::data::{DataMessage, History, Network, PeerRefusal, Stamp};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkConfig, ChunkId, ChunkIndex, ControlTerm, Epoch,
    Generation, Incarnation, Lsn, NodeId, ReplicaId, RequestId, SessionId, StartNumber, StoreId,
    Sums, Term, Time, VolumeId,
};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

thread_local! {
    /// Durations of the nodes that a test makes from then on; each test has a thread of its own.
    pub static TIMING: Cell<Option<Timing>> = const { Cell::new(None) };
}

pub const CLIENT: Link = Link::Client(ConnectionId(1));

pub fn chunk() -> ChunkId {
    ChunkId { volume: VolumeId { zone: "a".parse().unwrap(), uuid: 1 }, index: ChunkIndex(0) }
}

pub fn replica(node: u32) -> ReplicaId {
    ReplicaId { node: NodeId(node), store: StoreId(u128::from(node)), incarnation: Incarnation(1) }
}

/// Nodes 1, 2 and 3 in sync; node 1 is primary.
pub fn config(epoch: u64) -> ChunkConfig {
    ChunkConfig {
        chunk: chunk(),
        blocks: 16,
        epoch: Epoch(epoch),
        elected: Epoch(1),
        generation: Generation(1),
        primary: replica(1),
        in_sync: vec![replica(1), replica(2), replica(3)],
        learners: vec![],
        stale: vec![],
        copies_wanted: 3,
        copies_min: 2,
    }
}

/// The present leader of the control plane says something.
pub fn order(message: ControlDown) -> Input {
    Input::Control(Order { term: ControlTerm(1), message })
}

/// A process of a node with one store, which has the node's number.
pub fn process(node: u32, start: u64) -> Process {
    Process { stores: vec![StoreId(u128::from(node))], start: StartNumber(start) }
}

pub fn block(at: u32, fill: u8) -> BlockData {
    let range = BlockRange::new(at, 1);
    let data = Bytes::from(vec![fill; BLOCK_SIZE]);
    BlockData { range, sums: Sums::Full(vec![u32::from(fill)]), data }
}

pub fn term(elected: u64, start: u64) -> Term {
    Term { elected: Epoch(elected), start: StartNumber(start) }
}

pub fn lsn(of: Term, counter: u64) -> Lsn {
    Lsn { term: of, counter }
}

/// A node with hands on everything around it.
pub struct Hands {
    pub node: u32,
    pub core: NodeCore,
    pub now: Time,
    pub journal: Vec<Record>,
    pub newest: JournalSeq,
    pub reads: Vec<(ReadTicket, BlockRange)>,
    pub proposed: Vec<Change>,
    /// How often an erasure was confirmed.
    pub erasures: usize,
    pub alarms: usize,
    /// Network that the last mirror to each node took.
    pub mirrored_over: BTreeMap<NodeId, Network>,
}

impl Hands {
    pub fn new(
        node: u32,
        start: u64,
        recovered: DurableState,
    ) -> (Self, Vec<(NodeId, DataMessage)>) {
        let me =
            Identity { zone: "a".parse().unwrap(), node: NodeId(node), start: StartNumber(start) };
        let mut out = Outbox::default();
        let now = Time::from_millis(1_000);
        let timing = TIMING.get().unwrap_or_default();
        let found = [(StoreId(u128::from(node)), recovered)];
        let core = NodeCore::new(now, me, timing, found, &mut out);
        let mut hands = Self {
            node,
            core,
            now,
            journal: vec![],
            newest: JournalSeq(0),
            reads: vec![],
            proposed: vec![],
            erasures: 0,
            alarms: 0,
            mirrored_over: BTreeMap::new(),
        };
        let sent = hands.take(out);
        (hands, sent)
    }

    /// A fresh node that knows its peers and has adopted a configuration durably.
    pub fn with(node: u32, config: ChunkConfig) -> (Self, Vec<(NodeId, DataMessage)>) {
        let (mut hands, _) = Self::new(node, 1, DurableState::default());
        for peer in (1..=4).filter(|peer| *peer != node) {
            hands.link_up(peer, 1);
        }
        let mut sent = hands.feed(order(ControlDown::Configs(vec![config])));
        sent.extend(hands.sync());
        (hands, sent)
    }

    pub fn link_up(&mut self, peer: u32, start: u64) -> Vec<(NodeId, DataMessage)> {
        self.feed(Input::LinkUp {
            node: NodeId(peer),
            network: Network::Primary,
            process: process(peer, start),
        })
    }

    pub fn take(&mut self, mut out: Outbox) -> Vec<(NodeId, DataMessage)> {
        let mut sent = vec![];
        for effect in out.drain() {
            match effect {
                Effect::Send { to: Link::Peer(node, network), message } => {
                    if matches!(message, DataMessage::Mirror { .. }) {
                        self.mirrored_over.insert(node, network);
                    }
                    sent.push((node, message));
                }
                Effect::Send { to: Link::Client(_), message } => sent.push((NodeId(0), message)),
                Effect::Persist { seq, record, .. } => {
                    assert_eq!(seq.0, self.newest.0 + 1, "records are numbered without gaps");
                    self.newest = seq;
                    self.journal.push(record);
                }
                Effect::Read { ticket, range, .. } => self.reads.push((ticket, range)),
                Effect::Control(ControlUp::Propose(proposals)) => {
                    self.proposed.extend(proposals.into_iter().map(|p| p.change));
                }
                Effect::Control(ControlUp::Replicas(reports)) => {
                    let gone = reports.iter().filter(|report| report.state == ReplicaState::Gone);
                    self.erasures += gone.count();
                }
                Effect::Control(_) => {}
                Effect::VolumeLeft(_) => {}
                Effect::Alarm(_) => self.alarms += 1,
            }
        }
        sent
    }

    pub fn feed(&mut self, input: Input) -> Vec<(NodeId, DataMessage)> {
        let mut out = Outbox::default();
        self.core.handle(self.now, input, &mut out);
        self.take(out)
    }

    pub fn peer_says(&mut self, peer: u32, message: DataMessage) -> Vec<(NodeId, DataMessage)> {
        self.feed(Input::Frame { from: Link::Peer(NodeId(peer), Network::Primary), message })
    }

    pub fn client_says(&mut self, message: DataMessage) -> Vec<(NodeId, DataMessage)> {
        let mut sent = self.feed(Input::Frame { from: CLIENT, message });
        sent.extend(self.feed(Input::BatchEnd));
        sent
    }

    /// The journal's group commit.
    pub fn sync(&mut self) -> Vec<(NodeId, DataMessage)> {
        let seq = self.newest;
        self.feed(Input::Durable { store: StoreId(u128::from(self.node)), seq })
    }

    /// The store answers every read with one byte value, or as holes.
    pub fn answer_reads(&mut self, fill: u8) -> Vec<(NodeId, DataMessage)> {
        let mut sent = vec![];
        for (ticket, range) in std::mem::take(&mut self.reads) {
            let content = match range.count {
                1 => block(range.first, fill),
                _ => BlockData::holes(range),
            };
            sent.extend(self.feed(Input::BlocksRead { ticket, content: Some(content) }));
        }
        sent
    }

    pub fn tick_after(&mut self, wait: Duration) -> Vec<(NodeId, DataMessage)> {
        self.now = self.now + wait;
        self.feed(Input::Tick)
    }

    pub fn state(&self) -> ReplicaState {
        self.core.reports().next().unwrap().state
    }

    pub fn ack(&mut self, peer: u32, at: Lsn) -> Vec<(NodeId, DataMessage)> {
        self.ack_of(peer, at, None)
    }

    /// An acknowledgement of a learner, in the fill from that base on.
    pub fn ack_of(&mut self, peer: u32, at: Lsn, fill: Option<Lsn>) -> Vec<(NodeId, DataMessage)> {
        let epoch = self.core.config(chunk()).unwrap().epoch;
        let start = StartNumber(1);
        let message = DataMessage::MirrorAck { chunk: chunk(), epoch, lsn: at, start, fill };
        self.peer_says(peer, message)
    }

    pub fn collected(
        &mut self,
        peer: u32,
        of: Term,
        history: History,
    ) -> Vec<(NodeId, DataMessage)> {
        let epoch = self.core.config(chunk()).unwrap().epoch;
        self.peer_says(peer, DataMessage::Collected { chunk: chunk(), epoch, term: of, history })
    }

    /// Everything that a restart would find.
    pub fn crash(self) -> DurableState {
        let mut state = DurableState::default();
        self.journal.iter().for_each(|record| state.apply(record));
        state
    }
}

/// Node 1 as a primary that serves; nothing written yet.
pub fn serving(config: ChunkConfig) -> Hands {
    let required: Vec<u32> = config.secondaries().map(|r| r.node.0).collect();
    let (mut hands, _) = Hands::with(1, config);
    let of = term(1, 1);
    for peer in &required {
        hands.collected(*peer, of, History::default());
    }
    hands.sync();
    for peer in &required {
        hands.ack(*peer, Lsn::opening(of));
    }
    assert_eq!(hands.state(), ReplicaState::Serving);
    hands
}

pub fn write(id: u64, epoch: u64, data: BlockData) -> DataMessage {
    DataMessage::Write { id: RequestId(id), stamp: stamp(epoch), data }
}

/// A peer's beat.
pub fn beat() -> DataMessage {
    DataMessage::Beat {
        number: 1,
        adopted: vec![],
        short_of_space: vec![],
        has_control: false,
        behind_millis: 0,
    }
}

pub fn stamp(epoch: u64) -> Stamp {
    Stamp { chunk: chunk(), epoch: Epoch(epoch), generation: Generation(1), session: SessionId(1) }
}

pub fn is_done(sent: &[(NodeId, DataMessage)], id: u64) -> bool {
    sent.iter().any(|(_, m)| matches!(m, DataMessage::WriteDone { id: done } if done.0 == id))
}

pub fn refusal(sent: &[(NodeId, DataMessage)]) -> Option<&PeerRefusal> {
    sent.iter().find_map(|(_, message)| match message {
        DataMessage::PeerRefused { refusal, .. } => Some(refusal),
        _ => None,
    })
}

pub fn acked(sent: &[(NodeId, DataMessage)]) -> Option<Lsn> {
    sent.iter().rev().find_map(|(_, message)| match message {
        DataMessage::MirrorAck { lsn, .. } => Some(*lsn),
        _ => None,
    })
}

/// Node 2 as a secondary of node 1's first term.
pub fn following() -> (Hands, Term) {
    let (mut hands, _) = Hands::with(2, config(1));
    let of = term(1, 1);
    hands.peer_says(1, DataMessage::Collect { config: Box::new(config(1)), term: of });
    hands.sync();
    hands.peer_says(
        1,
        DataMessage::OpenTerm {
            chunk: chunk(),
            epoch: Epoch(1),
            term: of,
            base: Lsn::ZERO,
            overwrite: vec![],
        },
    );
    hands.sync();
    (hands, of)
}

pub fn mirror(epoch: u64, at: Lsn, data: BlockData) -> DataMessage {
    DataMessage::Mirror { chunk: chunk(), epoch: Epoch(epoch), lsn: at, committed: Lsn::ZERO, data }
}
