//! A node with several stores: what is said about a replica waits for the journal of its own store
//! and no other, and a store that fails takes its own replicas with it and no others.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{
    Alarm, ConnectionId, Effect, Identity, Input, JournalSeq, Link, NodeCore, Outbox, Process,
    Record, Timing,
};
use ashlar_types::message::cluster::{ControlDown, ControlUp, Heartbeat, Order, ReplicaReport};
use ashlar_types::message::data::{DataMessage, Network, PeerRefusal, Refusal, Stamp};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkConfig, ChunkId, ChunkIndex, ControlTerm, Epoch,
    Generation, Incarnation, Lsn, NodeId, ReplicaId, RequestId, SessionId, StartNumber, StoreId,
    Sums, Term, Time, VolumeId,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// The stores of node 1.
const A: StoreId = StoreId(10);
const B: StoreId = StoreId(11);

fn chunk(index: u32) -> ChunkId {
    ChunkId { volume: VolumeId { zone: "a".parse().unwrap(), uuid: 1 }, index: ChunkIndex(index) }
}

/// Of node 1, on a store.
fn ours(store: StoreId, incarnation: u64) -> ReplicaId {
    ReplicaId { node: NodeId(1), store, incarnation: Incarnation(incarnation) }
}

fn theirs(node: u32) -> ReplicaId {
    let store = StoreId(u128::from(node));
    ReplicaId { node: NodeId(node), store, incarnation: Incarnation(1) }
}

fn config(index: u32, epoch: u64, in_sync: &[ReplicaId]) -> ChunkConfig {
    ChunkConfig {
        chunk: chunk(index),
        blocks: 16,
        epoch: Epoch(epoch),
        elected: Epoch(1),
        generation: Generation(1),
        primary: in_sync[0],
        in_sync: in_sync.to_vec(),
        learners: vec![],
        stale: vec![],
        copies_wanted: 3,
        copies_min: 2,
    }
}

/// Node 1 follows node 2 in chunk 0 on store A and in chunk 1 on store B.
fn following() -> Hands {
    let mut hands = Hands::new([(A, DurableState::default()), (B, DurableState::default())]);
    let configs = vec![
        config(0, 1, &[theirs(2), ours(A, 1), theirs(3)]),
        config(1, 1, &[theirs(2), ours(B, 1), theirs(3)]),
    ];
    hands.told(ControlDown::Configs(configs));
    hands.sync(A);
    hands.sync(B);
    for index in [0, 1] {
        let config = Box::new(hands.core.config(chunk(index)).unwrap().clone());
        hands.peer_says(2, DataMessage::Collect { config, term: term() });
        hands.sync(A);
        hands.sync(B);
        let open = DataMessage::OpenTerm {
            chunk: chunk(index),
            epoch: Epoch(1),
            term: term(),
            base: Lsn::ZERO,
            overwrite: vec![],
        };
        hands.peer_says(2, open);
    }
    hands.sync(A);
    hands.sync(B);
    hands
}

fn term() -> Term {
    Term { elected: Epoch(1), start: StartNumber(5) }
}

fn lsn(counter: u64) -> Lsn {
    Lsn { term: term(), counter }
}

fn block(fill: u8) -> BlockData {
    let (range, data) = (BlockRange::new(0, 1), Bytes::from(vec![fill; BLOCK_SIZE]));
    BlockData { range, sums: Sums::Full(vec![u32::from(fill)]), data }
}

fn mirror(index: u32, counter: u64) -> DataMessage {
    DataMessage::Mirror {
        chunk: chunk(index),
        epoch: Epoch(1),
        lsn: lsn(counter),
        committed: Lsn::ZERO,
        data: block(7),
    }
}

struct Hands {
    core: NodeCore,
    now: Time,
    journals: BTreeMap<StoreId, Vec<Record>>,
    newest: BTreeMap<StoreId, JournalSeq>,
    alarms: Vec<Alarm>,
    reported: Vec<ReplicaReport>,
    heartbeat: Heartbeat,
}

impl Hands {
    fn new(found: impl IntoIterator<Item = (StoreId, DurableState)>) -> Self {
        let me = Identity { zone: "a".parse().unwrap(), node: NodeId(1), start: StartNumber(2) };
        let mut out = Outbox::default();
        let now = Time::from_millis(1_000);
        let core = NodeCore::new(now, me, Timing::default(), found, &mut out);
        let mut hands = Self {
            core,
            now,
            journals: BTreeMap::new(),
            newest: BTreeMap::new(),
            alarms: vec![],
            reported: vec![],
            heartbeat: Heartbeat::default(),
        };
        hands.take(out);
        for peer in 2..=4 {
            let stores = vec![StoreId(u128::from(peer))];
            let process = Process { stores, start: StartNumber(5) };
            let network = Network::Primary;
            hands.feed(Input::LinkUp { node: NodeId(peer), network, process });
        }
        hands
    }

    fn take(&mut self, mut out: Outbox) -> Vec<DataMessage> {
        let mut sent = vec![];
        for effect in out.drain() {
            match effect {
                Effect::Send { message, .. } => sent.push(message),
                Effect::Persist { store, seq, record } => {
                    let newest = self.newest.entry(store).or_default();
                    assert_eq!(seq.0, newest.0 + 1, "{store}: records are numbered without gaps");
                    *newest = seq;
                    self.journals.entry(store).or_default().push(record);
                }
                Effect::Control(ControlUp::Replicas(reports)) => self.reported.extend(reports),
                Effect::Control(ControlUp::Heartbeat(beat)) => self.heartbeat = beat,
                Effect::Control(ControlUp::Propose(_) | ControlUp::Relayed(_))
                | Effect::Read { .. } => {}
                Effect::VolumeLeft(_) => {}
                Effect::Alarm(alarm) => self.alarms.push(alarm),
            }
        }
        sent
    }

    fn feed(&mut self, input: Input) -> Vec<DataMessage> {
        let mut out = Outbox::default();
        self.core.handle(self.now, input, &mut out);
        self.take(out)
    }

    fn told(&mut self, message: ControlDown) -> Vec<DataMessage> {
        self.feed(Input::Control(Order { term: ControlTerm(1), message }))
    }

    fn peer_says(&mut self, peer: u32, message: DataMessage) -> Vec<DataMessage> {
        self.feed(Input::Frame { from: Link::Peer(NodeId(peer), Network::Primary), message })
    }

    fn client_says(&mut self, message: DataMessage) -> Vec<DataMessage> {
        let mut sent = self.feed(Input::Frame { from: Link::Client(ConnectionId(1)), message });
        sent.extend(self.feed(Input::BatchEnd));
        sent
    }

    fn sync(&mut self, store: StoreId) -> Vec<DataMessage> {
        let seq = self.newest.get(&store).copied().unwrap_or_default();
        self.feed(Input::Durable { store, seq })
    }

    /// What a start would find on a store.
    fn found(&self, store: StoreId) -> (StoreId, DurableState) {
        let mut state = DurableState::default();
        self.journals.get(&store).into_iter().flatten().for_each(|record| state.apply(record));
        (store, state)
    }
}

/// Acknowledged prefixes, by chunk.
fn acks(sent: &[DataMessage]) -> Vec<(u32, u64)> {
    let ack = |message: &DataMessage| match message {
        DataMessage::MirrorAck { chunk, lsn, .. } => Some((chunk.index.0, lsn.counter)),
        _ => None,
    };
    sent.iter().filter_map(ack).collect()
}

fn write(index: u32, id: u64) -> DataMessage {
    let stamp = Stamp {
        chunk: chunk(index),
        epoch: Epoch(1),
        generation: Generation(1),
        session: SessionId(1),
    };
    DataMessage::Write { id: RequestId(id), stamp, data: block(9) }
}

#[test]
fn an_acknowledgement_waits_for_the_journal_of_its_own_store_alone() {
    let mut hands = following();
    let mut sent = hands.peer_says(2, mirror(0, 1));
    sent.extend(hands.peer_says(2, mirror(1, 1)));
    assert_eq!(acks(&sent), [], "nothing is durable");
    // The disk of A hangs; B's is as quick as ever.
    assert_eq!(acks(&hands.sync(B)), [(1, 1)]);
    hands.peer_says(2, mirror(1, 2));
    assert_eq!(acks(&hands.sync(B)), [(1, 2)], "A's disk holds up its own replicas alone");
    assert_eq!(acks(&hands.sync(A)), [(0, 1)]);
}

#[test]
fn a_failed_store_says_nothing_more_and_the_others_go_on() {
    let mut hands = following();
    hands.peer_says(2, mirror(0, 1));
    hands.peer_says(2, mirror(1, 1));
    let sent = hands.feed(Input::StoreFailed { store: A });
    assert_eq!(acks(&sent), [], "what was not durable is never acknowledged");
    let not_held = DataMessage::PeerRefused { chunk: chunk(0), refusal: PeerRefusal::NotHeld };
    assert!(sent.contains(&not_held), "the primary hears it at once: {sent:?}");
    assert_eq!(hands.alarms, [Alarm::StoreLost { store: A, replicas: 1 }]);
    // The journal thread's last word comes late.
    assert_eq!(hands.sync(A), []);
    assert_eq!(acks(&hands.sync(B)), [(1, 1)]);
    assert_eq!(hands.peer_says(2, mirror(0, 2)), [not_held]);
    assert!(hands.core.config(chunk(0)).is_none());
    hands.peer_says(2, mirror(1, 2));
    assert_eq!(acks(&hands.sync(B)), [(1, 2)]);
    // Spurious repetition is harmless.
    hands.feed(Input::StoreFailed { store: A });
    assert_eq!(hands.alarms.len(), 1);
    hands.now = hands.now + Duration::from_secs(1);
    hands.feed(Input::Tick);
    let told: Vec<StoreId> = hands.heartbeat.stores.iter().map(|store| store.store).collect();
    assert_eq!(told, [B]);
}

#[test]
fn a_configuration_of_before_makes_no_replica_again_after_the_store_has_failed() {
    let mut hands = following();
    let old = config(0, 1, &[theirs(2), ours(A, 1), theirs(3)]);
    hands.feed(Input::StoreFailed { store: A });
    hands.told(ControlDown::Configs(vec![old]));
    assert!(hands.core.config(chunk(0)).is_none(), "the store is not there");
    // Nor does one that names the other store, under an epoch that was adopted before.
    hands.told(ControlDown::Configs(vec![config(0, 1, &[theirs(2), ours(B, 1), theirs(3)])]));
    assert!(hands.core.config(chunk(0)).is_none());
    // A later one does: another replica of the node, to be filled on the store that works.
    let mut later = config(0, 4, &[theirs(2), theirs(3)]);
    later.learners = vec![ours(B, 4)];
    hands.told(ControlDown::Configs(vec![later]));
    hands.sync(B);
    let report = hands.reported.iter().rfind(|report| report.chunk == chunk(0)).unwrap();
    assert_eq!((report.replica, report.adopted), (ours(B, 4), Epoch(4)));
}

#[test]
fn a_primary_on_a_failed_store_sends_its_clients_on() {
    let mut hands = Hands::new([(A, DurableState::default()), (B, DurableState::default())]);
    let alone = |index, store| ChunkConfig {
        copies_wanted: 1,
        copies_min: 1,
        ..config(index, 1, &[ours(store, 1)])
    };
    hands.told(ControlDown::Configs(vec![alone(0, A), alone(1, B)]));
    for _ in 0..3 {
        hands.sync(A);
        hands.sync(B);
    }
    hands.now = hands.now + Duration::from_secs(1);
    hands.feed(Input::Tick);
    hands.client_says(write(0, 1));
    hands.client_says(write(1, 2));
    let sent = hands.feed(Input::StoreFailed { store: A });
    let refused = |id| move |message: &DataMessage| matches!(message, DataMessage::Refused { id: of, .. } if *of == RequestId(id));
    assert!(sent.iter().any(refused(1)), "{sent:?}");
    let sent = hands.client_says(write(0, 3));
    let refusal = Refusal::UnknownChunk;
    assert_eq!(sent, [DataMessage::Refused { id: RequestId(3), refusal }]);
    let done = DataMessage::WriteDone { id: RequestId(2) };
    assert!(hands.sync(B).contains(&done), "the other store's chunk is written as before");
}

#[test]
fn of_two_replicas_of_a_chunk_the_later_configuration_keeps_one() {
    // Store A was away while the chunk came to store B, to be filled and then in sync.
    let before = following();
    let mut hands = Hands::new([(B, DurableState::default())]);
    let mut later = config(0, 6, &[theirs(2), theirs(3)]);
    later.learners = vec![ours(B, 6)];
    hands.told(ControlDown::Configs(vec![later]));
    hands.sync(B);
    for found in [[before.found(A), hands.found(B)], [hands.found(B), before.found(A)]] {
        let mut both = Hands::new(found);
        assert_eq!(both.core.durable(chunk(0)).unwrap().replica, ours(B, 6));
        assert_eq!(both.journals[&A], [Record::Erase { chunk: chunk(0) }]);
        assert!(!both.journals.contains_key(&B));
        // Once more, with the erasure durable: nothing is left to do.
        let erased = {
            let (_, mut state) = before.found(A);
            state.apply(&Record::Erase { chunk: chunk(0) });
            state
        };
        let again = Hands::new([(A, erased), hands.found(B)]);
        assert!(again.journals.is_empty());
        assert_eq!(again.core.durable(chunk(0)).unwrap().replica, ours(B, 6));
        // What the earlier replica refused stays refused.
        both.told(ControlDown::Configs(vec![config(0, 1, &[theirs(2), ours(A, 1), theirs(3)])]));
        assert_eq!(both.core.durable(chunk(0)).unwrap().replica, ours(B, 6));
    }
}

#[test]
fn a_replica_that_comes_to_another_store_leaves_nothing_on_the_former_one() {
    let mut hands = following();
    let mut later = config(0, 4, &[theirs(2), theirs(3)]);
    later.learners = vec![ours(B, 4)];
    hands.told(ControlDown::Configs(vec![later]));
    assert_eq!(hands.core.durable(chunk(0)).unwrap().replica, ours(B, 4));
    assert!(hands.journals[&A].contains(&Record::Erase { chunk: chunk(0) }));
    // Whatever of it survives a crash, one replica is found.
    for kept in 0..=hands.journals[&A].len() {
        let mut state = DurableState::default();
        hands.journals[&A].iter().take(kept).for_each(|record| state.apply(record));
        let found = Hands::new([(A, state), hands.found(B)]);
        assert_eq!(found.core.durable(chunk(0)).unwrap().replica, ours(B, 4), "{kept} records");
    }
}

#[test]
fn shortage_of_space_is_of_one_store() {
    let mut hands = following();
    let (capacity_bytes, used_bytes) = (1 << 30, 1 << 30);
    hands.feed(Input::Space { store: B, capacity_bytes, used_bytes });
    hands.feed(Input::Space { store: A, capacity_bytes, used_bytes: 5 });
    hands.now = hands.now + Duration::from_secs(1);
    let sent = hands.feed(Input::Tick);
    let short = sent.iter().find_map(|message| match message {
        DataMessage::Beat { short_of_space, .. } => Some(short_of_space.clone()),
        _ => None,
    });
    assert_eq!(short, Some(vec![B]));
    let told: Vec<(StoreId, u64)> =
        hands.heartbeat.stores.iter().map(|store| (store.store, store.used_bytes)).collect();
    assert_eq!(told, [(A, 5), (B, 1 << 30)]);
}

#[test]
fn gaps_of_one_store_are_not_those_of_another() {
    let mut gaps = DurableState::default();
    gaps.note_gaps();
    let mut hands = Hands::new([(A, gaps), (B, DurableState::default())]);
    hands.told(ControlDown::Configs(vec![
        config(0, 1, &[theirs(2), ours(A, 1), theirs(3)]),
        config(1, 1, &[theirs(2), ours(B, 1), theirs(3)]),
    ]));
    assert!(hands.core.durable(chunk(0)).unwrap().suspect, "it may have held it before");
    assert!(!hands.core.durable(chunk(1)).unwrap().suspect);
}

#[test]
fn an_erasure_is_confirmed_by_the_journal_of_its_store() {
    let mut hands = following();
    hands.told(ControlDown::Erase(vec![(chunk(0), ours(A, 1))]));
    let gone = |hands: &Hands| {
        hands.reported.iter().any(|report| {
            report.state == ashlar_types::message::cluster::ReplicaState::Gone
                && report.replica == ours(A, 1)
        })
    };
    hands.sync(B);
    assert!(!gone(&hands), "the other journal says nothing about it");
    hands.sync(A);
    assert!(gone(&hands));
    assert!(hands.core.config(chunk(1)).is_some());
    // Another store of that chunk's name is not meant.
    hands.told(ControlDown::Erase(vec![(chunk(1), ours(A, 1))]));
    assert!(hands.core.config(chunk(1)).is_some());
}

#[test]
fn a_collect_is_answered_behind_the_right_journal() {
    let mut hands = following();
    let later = Term { elected: Epoch(2), start: StartNumber(9) };
    let config =
        Box::new(ChunkConfig { elected: Epoch(2), ..config(0, 2, &[theirs(3), ours(A, 1)]) });
    hands.peer_says(3, DataMessage::Collect { config, term: later });
    // The lease that was granted to the former primary is waited for.
    hands.now = hands.now + Duration::from_secs(2);
    let mut sent = hands.feed(Input::Tick);
    sent.extend(hands.sync(B));
    let collected = |sent: &[DataMessage]| {
        sent.iter().any(|message| matches!(message, DataMessage::Collected { .. }))
    };
    assert!(!collected(&sent), "the adoption is not durable on its store");
    assert!(collected(&hands.sync(A)));
}
