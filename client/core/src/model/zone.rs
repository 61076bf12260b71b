//! The nodes of the model and the network between them and the client.

use crate::{Effect, Input, Outbox, VolumeCore, VolumeSettings, WaitPolicy};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, NotReady, Refusal, Stamp};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation,
    Geometry, Incarnation, NodeId, ReplicaId, RequestId, SessionId, StoreId, Sums, Time, VolumeId,
};
use bytes::Bytes;
use core::time::Duration;

pub(super) const CHUNKS: u32 = 3;
pub(super) const BLOCKS: u32 = 16;
const NODES: u32 = 3;

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Content of a block that the model writes: its tag; 0 is a hole.
pub(super) fn block(tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE];
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    bytes
}

pub(super) fn tags(data: &BlockData) -> Vec<u64> {
    let tag = |bytes: &Bytes| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    data.iter().map(|(_, b)| b.map_or(0, |(_, bytes)| tag(&bytes))).collect()
}

/// A write that a node has taken and not carried out.
struct Pending {
    node: NodeId,
    session: SessionId,
    id: RequestId,
    chunk: ChunkIndex,
    data: BlockData,
    at: Time,
}

pub(super) struct Zone {
    pub(super) rng: Rng,
    pub(super) core: VolumeCore,
    pub(super) now: Time,
    pub(super) store: Vec<u64>,
    pub(super) calm: bool,
    configs: Vec<ChunkConfig>,
    pending: Vec<Pending>,
    /// Highest session that each node admitted.
    admitted: BTreeMap<NodeId, SessionId>,
    /// In order of time, then of sending.
    events: BTreeMap<(Time, u64), Event>,
    event_next: u64,
    pub(super) user: Vec<Effect>,
    pub(super) sent: u64,
}

#[derive(Debug)]
enum Event {
    Dial(NodeId, SessionId),
    ToNode(NodeId, SessionId, DataMessage),
    ToClient(Input),
}

impl Zone {
    pub(super) fn new(seed: u64, policy: WaitPolicy) -> Self {
        let mut rng = Rng(seed);
        let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 7 };
        let geometry =
            Geometry::new(u64::from(CHUNKS * BLOCKS) * BLOCK_SIZE as u64, 65_536).unwrap();
        let configs: Vec<_> = (0..CHUNKS).map(|i| config(volume, i)).collect();
        let settings = VolumeSettings {
            volume,
            geometry,
            generation: Generation(3),
            first_session: SessionId(1),
            policy,
        };
        let known = if rng.chance(50) { configs.clone() } else { vec![] };
        let mut dice = Rng(seed ^ 1);
        let core = VolumeCore::new(settings, known, Box::new(move || dice.next()));
        Self {
            rng,
            core,
            now: Time::from_millis(1),
            store: vec![0; (CHUNKS * BLOCKS) as usize],
            calm: false,
            configs,
            pending: vec![],
            admitted: BTreeMap::new(),
            events: BTreeMap::new(),
            event_next: 0,
            user: vec![],
            sent: 0,
        }
    }

    pub(super) fn give(&mut self, input: Input) {
        let mut out = Outbox::new();
        self.core.handle(self.now, input, &mut out);
        for effect in out {
            match effect {
                Effect::Send { node, session, message } => {
                    self.sent += 1;
                    self.later(Event::ToNode(node, session, message));
                }
                Effect::Connect { node, session } => self.later(Event::Dial(node, session)),
                Effect::Disconnect { node, session } => self.cut(node, session),
                Effect::RefreshMap => {
                    let fails = !self.calm && self.rng.chance(30);
                    let configs = self.configs.clone();
                    let answer = if fails { Input::MapFailed } else { Input::Map { configs } };
                    self.later(Event::ToClient(answer));
                }
                Effect::Complete { .. } | Effect::Turn { .. } => self.user.push(effect),
            }
        }
    }

    fn later(&mut self, event: Event) {
        // One ordered stream per connection and direction, as TCP gives it: equal delay for all
        // but the outliers, which only connections of their own (dials, maps) may be.
        let slow = matches!(event, Event::Dial(..)) && !self.calm && self.rng.chance(10);
        let delay = if slow { 200 } else { 2 };
        self.event_next += 1;
        let at = self.now + Duration::from_millis(delay);
        self.events.insert((at, self.event_next), event);
    }

    /// One millisecond passes.
    pub(super) fn step(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        if !self.calm {
            self.trouble();
        }
        while let Some((key, _)) = self.events.first_key_value() {
            if key.0 > self.now {
                break;
            }
            let Some((_, event)) = self.events.pop_first() else { break };
            match event {
                Event::Dial(node, session) => self.dial(node, session),
                Event::ToNode(node, session, message) => self.receive(node, session, message),
                Event::ToClient(input) => self.give(input),
            }
        }
        self.carry_out_due();
        if self.core.next_wake(self.now).is_some() {
            self.give(Input::Tick);
        }
    }

    fn trouble(&mut self) {
        if self.rng.chance(2) {
            let links: Vec<_> = self.admitted.iter().map(|(n, s)| (*n, *s)).collect();
            if !links.is_empty() {
                let (node, session) = links[self.rng.below(links.len() as u64) as usize];
                self.cut(node, session);
                self.later(Event::ToClient(Input::LinkDown { node, session }));
            }
        }
        if self.rng.chance(1) {
            let chunk = self.rng.below(u64::from(CHUNKS)) as usize;
            self.settle(|p| p.chunk.0 as usize == chunk);
            let next = self.rng.below(u64::from(NODES)) as usize;
            let config = &mut self.configs[chunk];
            config.epoch = config.epoch.next();
            config.primary = config.in_sync[next];
            config.elected = config.epoch;
        }
    }

    /// Messages on the way are lost; what the node has taken stays until a newer session comes.
    fn cut(&mut self, node: NodeId, session: SessionId) {
        self.events.retain(|_, event| match event {
            Event::ToNode(n, s, _) | Event::Dial(n, s) => (*n, *s) != (node, session),
            Event::ToClient(Input::Message { node: n, session: s, .. }) => {
                (*n, *s) != (node, session)
            }
            Event::ToClient(_) => true,
        });
    }

    fn dial(&mut self, node: NodeId, session: SessionId) {
        if !self.calm && self.rng.chance(20) {
            self.later(Event::ToClient(Input::LinkDown { node, session }));
            return;
        }
        if self.admitted.get(&node).is_some_and(|s| *s >= session) {
            return;
        }
        self.settle(|p| p.node == node);
        self.admitted.insert(node, session);
        self.later(Event::ToClient(Input::LinkUp { node, session }));
    }

    /// Each write taken is carried out or lost, in order, now.
    fn settle(&mut self, which: impl Fn(&Pending) -> bool) {
        for pending in core::mem::take(&mut self.pending) {
            if !which(&pending) {
                self.pending.push(pending);
            } else if self.rng.chance(50) {
                self.carry_out(&pending);
                self.answer(
                    pending.node,
                    pending.session,
                    DataMessage::WriteDone { id: pending.id },
                );
            }
        }
    }

    fn carry_out(&mut self, pending: &Pending) {
        for (block, tag) in pending.data.range.blocks().zip(tags(&pending.data)) {
            self.store[(pending.chunk.0 * BLOCKS + block) as usize] = tag;
        }
    }

    fn carry_out_due(&mut self) {
        let now = self.now;
        let mut due: Vec<Pending> = vec![];
        let mut rest: Vec<Pending> = vec![];
        for pending in core::mem::take(&mut self.pending) {
            if pending.at <= now { due.push(pending) } else { rest.push(pending) }
        }
        self.pending = rest;
        // A primary orders writes as they come to be assigned: any order among these.
        while !due.is_empty() {
            let pick = self.rng.below(due.len() as u64) as usize;
            let pending = due.remove(pick);
            self.carry_out(&pending);
            self.answer(pending.node, pending.session, DataMessage::WriteDone { id: pending.id });
        }
    }

    fn answer(&mut self, node: NodeId, session: SessionId, message: DataMessage) {
        if self.admitted.get(&node) != Some(&session) {
            return;
        }
        if !self.calm && self.rng.chance(1) {
            return;
        }
        let twice = !self.calm && self.rng.chance(5);
        let input = Input::Message { node, session, message };
        if twice {
            self.later(Event::ToClient(input.clone()));
        }
        self.later(Event::ToClient(input));
    }

    fn receive(&mut self, node: NodeId, session: SessionId, message: DataMessage) {
        if self.admitted.get(&node) != Some(&session) {
            return;
        }
        match message {
            DataMessage::FindConfig { id, chunk } => {
                let config = Box::new(self.configs[chunk.index.0 as usize].clone());
                self.answer(node, session, DataMessage::ConfigIs { id, config });
            }
            DataMessage::Read { id, stamp, range } => {
                let answer = match self.refuse(node, stamp) {
                    Some(refusal) => DataMessage::Refused { id, refusal },
                    None => DataMessage::ReadDone { id, data: self.content(stamp, range) },
                };
                self.answer(node, session, answer);
            }
            DataMessage::Write { id, stamp, data } => {
                data.check().unwrap();
                if let Some(refusal) = self.refuse(node, stamp) {
                    self.answer(node, session, DataMessage::Refused { id, refusal });
                    return;
                }
                let wait = if self.calm { 1 } else { self.rng.below(30) };
                let at = self.now + Duration::from_millis(wait);
                let chunk = stamp.chunk.index;
                self.pending.push(Pending { node, session, id, chunk, data, at });
            }
            other => panic!("a client sent {other:?}"),
        }
    }

    fn refuse(&mut self, node: NodeId, stamp: Stamp) -> Option<Refusal> {
        let config = self.configs[stamp.chunk.index.0 as usize].clone();
        assert_eq!(stamp.generation, Generation(3));
        if config.primary.node != node {
            return Some(Refusal::NotPrimary(Box::new(config)));
        }
        if config.epoch != stamp.epoch {
            return Some(Refusal::WrongEpoch(Box::new(config)));
        }
        if self.calm || !self.rng.chance(10) {
            return None;
        }
        Some(match self.rng.below(4) {
            0 => Refusal::NotReady(NotReady::QueueFull),
            1 => Refusal::NotReady(NotReady::OpeningTerm),
            2 => Refusal::UnknownChunk,
            _ => Refusal::WrongGeneration { current: Generation(2) },
        })
    }

    fn content(&self, stamp: Stamp, range: BlockRange) -> BlockData {
        let base = stamp.chunk.index.0 * BLOCKS;
        let tags: Vec<u64> =
            range.blocks().map(|block| self.store[(base + block) as usize]).collect();
        let data = tags.iter().filter(|t| **t != 0).flat_map(|t| block(*t)).collect::<Vec<_>>();
        let sums = tags.iter().map(|t| (*t != 0).then_some(1)).collect();
        BlockData { range, sums: Sums::Mixed(sums), data: Bytes::from(data) }
    }
}

pub(super) fn config(volume: VolumeId, index: u32) -> ChunkConfig {
    let replica = |n: u32| ReplicaId {
        node: NodeId(n + 1),
        store: StoreId(u128::from(n)),
        incarnation: Incarnation(1),
    };
    ChunkConfig {
        chunk: ChunkId { volume, index: ChunkIndex(index) },
        blocks: BLOCKS,
        epoch: Epoch(5),
        elected: Epoch(1),
        generation: Generation(3),
        primary: replica(index % NODES),
        in_sync: (0..NODES).map(replica).collect(),
        learners: vec![],
        stale: vec![],
        copies_wanted: 3,
        copies_min: 2,
    }
}
