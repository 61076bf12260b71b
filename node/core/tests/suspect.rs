//! A replica that its store has lost part of: it takes no part, and comes back under another name.
//!
//! Each test fails when its rule is taken out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{
    Alarm, ConnectionId, Effect, Identity, Input, JournalSeq, Link, NodeCore, Outbox, Process,
    Record, Timing,
};
use ashlar_types::message::cluster::{
    Change, ControlDown, ControlUp, Order, ReplicaReport, ReplicaState,
};
use ashlar_types::message::data::{
    DataMessage, History, Network, NotReady, PeerRefusal, Refusal, Stamp,
};
use ashlar_types::{
    BlockData, BlockRange, ChunkConfig, ChunkId, ChunkIndex, ControlTerm, Epoch, Generation,
    Incarnation, Lsn, NodeId, ReplicaId, RequestId, SessionId, StartNumber, StoreId, Term, Time,
    VolumeId,
};
use std::time::Duration;

fn chunk() -> ChunkId {
    ChunkId { volume: VolumeId { zone: "a".parse().unwrap(), uuid: 1 }, index: ChunkIndex(0) }
}

fn replica(node: u32) -> ReplicaId {
    incarnation(node, 1)
}

fn incarnation(node: u32, number: u64) -> ReplicaId {
    let (node, store) = (NodeId(node), StoreId(u128::from(node)));
    ReplicaId { node, store, incarnation: Incarnation(number) }
}

/// Nodes 1, 2 and 3 in sync; node 1 is primary.
fn config(epoch: u64) -> ChunkConfig {
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

/// Node 3 removed as suspect; `learner` is filled in its place.
fn refilling(epoch: u64, learner: ReplicaId) -> ChunkConfig {
    let in_sync = vec![replica(1), replica(2)];
    ChunkConfig { in_sync, learners: vec![learner], ..config(epoch) }
}

fn term(start: u64) -> Term {
    Term { elected: Epoch(1), start: StartNumber(start) }
}

struct Hands {
    node: u32,
    core: NodeCore,
    now: Time,
    journal: Vec<Record>,
    newest: JournalSeq,
    proposed: Vec<Change>,
    reported: Vec<ReplicaReport>,
    alarms: Vec<Alarm>,
}

impl Hands {
    /// Node `node` as its store finds it.
    fn new(node: u32, recovered: DurableState) -> Self {
        let me = Identity { zone: "a".parse().unwrap(), node: NodeId(node), start: StartNumber(2) };
        let mut out = Outbox::default();
        let now = Time::from_millis(1_000);
        let found = [(StoreId(u128::from(node)), recovered)];
        let core = NodeCore::new(now, me, Timing::default(), found, &mut out);
        let mut hands = Self {
            node,
            core,
            now,
            journal: vec![],
            newest: JournalSeq(0),
            proposed: vec![],
            reported: vec![],
            alarms: vec![],
        };
        hands.take(out);
        for peer in (1..=4).filter(|peer| *peer != node) {
            hands.feed(Input::LinkUp {
                node: NodeId(peer),
                network: Network::Primary,
                process: Process { stores: vec![StoreId(u128::from(peer))], start: StartNumber(1) },
            });
        }
        hands
    }

    fn take(&mut self, mut out: Outbox) -> Vec<DataMessage> {
        let mut sent = vec![];
        for effect in out.drain() {
            match effect {
                Effect::Send { message, .. } => sent.push(message),
                Effect::Persist { seq, record, .. } => {
                    self.newest = seq;
                    self.journal.push(record);
                }
                Effect::Control(ControlUp::Propose(proposals)) => {
                    self.proposed.extend(proposals.into_iter().map(|p| p.change));
                }
                Effect::Control(ControlUp::Replicas(reports)) => self.reported.extend(reports),
                Effect::Control(ControlUp::Heartbeat(_) | ControlUp::Relayed(_))
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

    /// What a peer says, and all that follows once the journal has synced.
    fn peer_says(&mut self, peer: u32, message: DataMessage) -> Vec<DataMessage> {
        let from = Link::Peer(NodeId(peer), Network::Primary);
        let mut sent = self.feed(Input::Frame { from, message });
        sent.extend(self.sync());
        sent
    }

    fn client_says(&mut self, message: DataMessage) -> Vec<DataMessage> {
        let from = Link::Client(ConnectionId(1));
        let mut sent = self.feed(Input::Frame { from, message });
        sent.extend(self.feed(Input::BatchEnd));
        sent
    }

    fn control_says(&mut self, message: ControlDown) -> Vec<DataMessage> {
        let mut sent = self.feed(Input::Control(Order { term: ControlTerm(1), message }));
        sent.extend(self.sync());
        sent
    }

    fn sync(&mut self) -> Vec<DataMessage> {
        let store = StoreId(u128::from(self.node));
        self.feed(Input::Durable { store, seq: self.newest })
    }

    fn state(&self) -> ReplicaState {
        self.core.reports().next().unwrap().state
    }
}

/// What a store finds that held `replica` under `config` and marked it.
fn marked(replica: ReplicaId, config: ChunkConfig) -> DurableState {
    let mut state = DurableState::default();
    state.apply(&Record::Adopt { replica, config });
    state.apply(&Record::Suspect { chunk: chunk() });
    state
}

fn stamp() -> Stamp {
    let (generation, session) = (Generation(1), SessionId(1));
    Stamp { chunk: chunk(), epoch: Epoch(1), generation, session }
}

fn is_not_held(sent: &[DataMessage]) -> bool {
    matches!(sent, [DataMessage::PeerRefused { refusal: PeerRefusal::NotHeld, .. }])
}

/// Everything that a primary may want of a member.
fn requests(config: &ChunkConfig, of: Term) -> Vec<DataMessage> {
    let (chunk, epoch) = (chunk(), config.epoch);
    let (range, lsn) = (BlockRange::new(0, 1), Lsn::opening(of));
    let data = BlockData::holes(range);
    vec![
        DataMessage::Collect { config: Box::new(config.clone()), term: of },
        DataMessage::Fetch { chunk, epoch, term: of, range },
        DataMessage::OpenTerm { chunk, epoch, term: of, base: Lsn::ZERO, overwrite: vec![] },
        DataMessage::Mirror {
            chunk,
            epoch,
            lsn: lsn.next(),
            committed: Lsn::ZERO,
            data: data.clone(),
        },
        DataMessage::Confirm { chunk, epoch, term: of, round: 1 },
        DataMessage::OpenLearner {
            config: Box::new(config.clone()),
            base: lsn,
            learner_start: StartNumber(2),
        },
        DataMessage::Copy {
            chunk,
            epoch,
            read_at: lsn,
            learner_start: StartNumber(2),
            number: 1,
            data,
        },
    ]
}

#[test]
fn a_suspect_member_refuses_everything_as_not_held_and_keeps_nothing_of_it() {
    let mut hands = Hands::new(3, marked(replica(3), config(1)));
    for epoch in [1, 2] {
        for request in requests(&config(epoch), term(1)) {
            let sent = hands.peer_says(1, request.clone());
            assert!(is_not_held(&sent), "epoch {epoch}, {request:?}: {sent:?}");
        }
    }
    // Nor does it speak of epochs: the one that it believes to have adopted proves nothing.
    for request in requests(&config(7), term(1)) {
        if matches!(request, DataMessage::Mirror { .. } | DataMessage::Confirm { .. }) {
            let sent = hands.peer_says(1, request.clone());
            assert!(is_not_held(&sent), "{request:?}: {sent:?}");
        }
    }
    assert!(hands.journal.iter().all(|record| matches!(record, Record::Adopt { .. })));
    let told = DataMessage::Committed { chunk: chunk(), epoch: Epoch(2), lsn: Lsn::ZERO.next() };
    assert!(hands.peer_says(1, told).is_empty());
}

#[test]
fn a_suspect_replica_says_so_under_every_epoch_that_names_it() {
    let mut hands = Hands::new(1, marked(replica(1), config(1)));
    assert_eq!(hands.state(), ReplicaState::Suspect);
    hands.control_says(ControlDown::Configs(vec![config(4)]));
    let last = hands.reported.last().unwrap();
    assert_eq!((last.state, last.adopted), (ReplicaState::Suspect, Epoch(4)));
}

#[test]
fn a_suspect_primary_collects_nothing_and_serves_nothing() {
    let mut hands = Hands::new(1, marked(replica(1), config(1)));
    hands.sync();
    let of = term(2);
    for peer in [2, 3] {
        let (chunk, epoch) = (chunk(), Epoch(1));
        let history = History::default();
        hands.peer_says(peer, DataMessage::Collected { chunk, epoch, term: of, history });
    }
    hands.now = hands.now + Duration::from_secs(1);
    let sent = hands.feed(Input::Tick);
    assert!(sent.iter().all(|m| matches!(m, DataMessage::Beat { .. })), "{sent:?}");
    let read = DataMessage::Read { id: RequestId(1), stamp: stamp(), range: BlockRange::new(0, 1) };
    let sent = hands.client_says(read);
    let expected = Refusal::NotReady(NotReady::OpeningTerm);
    assert!(
        matches!(sent.as_slice(), [DataMessage::Refused { refusal, .. }] if *refusal == expected),
        "{sent:?}"
    );
    assert!(hands.proposed.is_empty());
}

#[test]
fn a_suspect_replica_is_no_learner_under_its_own_name() {
    let mut hands = Hands::new(3, marked(replica(3), config(1)));
    let same = refilling(5, replica(3));
    for request in requests(&same, term(1)) {
        assert!(is_not_held(&hands.peer_says(1, request)));
    }
    assert_eq!(hands.state(), ReplicaState::Suspect);
}

#[test]
fn a_later_incarnation_takes_the_place_of_a_suspect_one_and_starts_empty() {
    let mut hands = Hands::new(3, marked(replica(3), config(1)));
    let anew = incarnation(3, 5);
    let config = refilling(5, anew);
    let base = Lsn::opening(term(1));
    let learner_start = StartNumber(2);
    let open = DataMessage::OpenLearner { config: Box::new(config), base, learner_start };
    let sent = hands.peer_says(1, open);
    assert!(matches!(sent.as_slice(), [DataMessage::MirrorAck { .. }]), "{sent:?}");
    let durable = hands.core.durable(chunk()).unwrap();
    assert_eq!((durable.replica, durable.suspect, durable.last), (anew, false, base));
    assert!(matches!(hands.state(), ReplicaState::Filling { .. }));
    assert!(hands.alarms.is_empty());
    // The former name is not held any more: an order to erase it is confirmed and erases nothing.
    hands.control_says(ControlDown::Erase(vec![(chunk(), replica(3))]));
    let gone = hands.reported.iter().find(|report| report.state == ReplicaState::Gone);
    assert_eq!(gone.map(|report| report.replica), Some(replica(3)));
    assert_eq!(hands.core.durable(chunk()).map(|held| held.replica), Some(anew));
}

#[test]
fn nothing_but_a_later_learner_takes_the_place_of_a_replica() {
    let held = incarnation(3, 5);
    let in_sync = vec![replica(1), replica(2), incarnation(3, 7)];
    for contradiction in [
        refilling(9, incarnation(3, 4)),
        refilling(1, incarnation(3, 7)),
        ChunkConfig { in_sync, ..config(9) },
    ] {
        let mut hands = Hands::new(3, marked(held, refilling(6, held)));
        hands.control_says(ControlDown::Configs(vec![contradiction.clone()]));
        let kept = hands.core.durable(chunk()).unwrap().replica;
        assert_eq!(kept, held, "gave way to {contradiction:?}");
        assert_eq!(hands.alarms.len(), 1);
    }
}

#[test]
fn a_store_with_gaps_does_not_take_itself_for_an_empty_member_in_sync() {
    let mut state = DurableState::default();
    state.note_gaps();
    let mut hands = Hands::new(3, state.clone());
    let sent =
        hands.peer_says(1, DataMessage::Collect { config: Box::new(config(1)), term: term(1) });
    assert!(is_not_held(&sent), "told a primary that it has nothing: {sent:?}");
    assert!(matches!(hands.journal.last(), Some(Record::Suspect { .. })), "the mark is durable");
    assert_eq!(hands.state(), ReplicaState::Suspect);
    // As a learner it is empty whatever it may have held.
    let mut hands = Hands::new(3, state);
    hands.control_says(ControlDown::Configs(vec![refilling(5, incarnation(3, 5))]));
    assert!(matches!(hands.state(), ReplicaState::Filling { .. }));
}

/// Node 1 as a primary that serves with 2 and 3; `written` blocks are committed.
fn serving(written: u64) -> Hands {
    let mut hands = Hands::new(1, DurableState::default());
    hands.control_says(ControlDown::Configs(vec![config(1)]));
    let of = term(2);
    let (chunk, epoch) = (chunk(), Epoch(1));
    for peer in [2, 3] {
        let history = History::default();
        hands.peer_says(peer, DataMessage::Collected { chunk, epoch, term: of, history });
    }
    let mut lsn = Lsn::opening(of);
    for nth in 0..=written {
        if nth > 0 {
            let data = BlockData::holes(BlockRange::new(0, 1));
            hands.client_says(DataMessage::Write { id: RequestId(nth), stamp: stamp(), data });
            hands.sync();
            lsn = lsn.next();
        }
        for peer in [2, 3] {
            let start = StartNumber(1);
            hands.peer_says(peer, DataMessage::MirrorAck { chunk, epoch, lsn, start, fill: None });
        }
    }
    assert_eq!(hands.state(), ReplicaState::Serving);
    hands
}

fn removals(hands: &mut Hands) -> Vec<ReplicaId> {
    hands.now = hands.now + Duration::from_millis(300);
    for peer in [2, 3] {
        hands.peer_says(
            peer,
            DataMessage::Beat {
                number: 1,
                adopted: vec![],
                short_of_space: vec![],
                has_control: false,
                behind_millis: 0,
            },
        );
    }
    hands.feed(Input::Tick);
    let removal = |change: &Change| match change {
        Change::RemoveSecondary { replica, .. } => Some(*replica),
        _ => None,
    };
    hands.proposed.iter().filter_map(removal).collect()
}

#[test]
fn a_secondary_that_lacks_what_it_acknowledged_is_removed() {
    let mut hands = serving(3);
    let at = |counter| Lsn { term: term(2), counter };
    let behind =
        |last| DataMessage::PeerRefused { chunk: chunk(), refusal: PeerRefusal::Gap(last) };
    hands.peer_says(3, behind(at(3)));
    assert!(removals(&mut hands).is_empty(), "it has all that it acknowledged");
    hands.peer_says(3, behind(at(2)));
    assert!(removals(&mut hands).is_empty(), "the refusal may have been overtaken");
    let (start, lsn) = (StartNumber(1), at(3));
    hands.peer_says(
        3,
        DataMessage::MirrorAck { chunk: chunk(), epoch: Epoch(1), lsn, start, fill: None },
    );
    removals(&mut hands);
    hands.peer_says(3, behind(at(2)));
    assert!(removals(&mut hands).is_empty(), "it has acknowledged all in between");
    removals(&mut hands);
    hands.peer_says(3, behind(at(2)));
    assert_eq!(removals(&mut hands), [replica(3)], "its store has lost a durable write");
}

#[test]
fn the_mark_is_kept_through_a_checkpoint_and_absent_in_a_store_of_before() {
    let state = marked(replica(3), config(1));
    for (cut, expected) in [(0, true), (1, false)] {
        let mut loaded = DurableState::default();
        for bytes in state.encode() {
            loaded.load(&bytes[..bytes.len() - cut]).unwrap();
        }
        assert_eq!(loaded.get(chunk()).unwrap().suspect, expected);
    }
}
