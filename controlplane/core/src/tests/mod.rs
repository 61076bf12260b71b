//! A zone to play with: state and observations driven by hand.

mod balance;
mod drain;
mod elections;
mod fixtures;
mod grow;
mod hidden;
mod interrupted;
mod members;
mod placement;
mod rescue;
mod rules;
mod salvage;
mod scenes;
mod stores;

use crate::apply::{Answer, Applied, Refusal};
use crate::command::{Action, ChangeKind, ChunkChange, Command, ErrorAfter, NodeRecord, TokenUse};
use crate::elect::{Elections, elections};
use crate::observe::{Observations, ProbeResult};
use crate::plan::{Plan, plan};
use crate::state::{Volume, ZoneState};
use crate::verdict::judge_all;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{
    Change, Heartbeat, PathState, PeerEvidence, Proposal, ReplicaReport, ReplicaState, ScrubState,
    SearchBudget, StoreState,
};
use ashlar_types::message::data::Network;
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, Geometry, Lsn, NodeId, ReplicaId,
    StartNumber, StoreId, Term, Time, VolumeId, ZoneId,
};

pub(super) const MIB: u64 = 1 << 20;

/// What a learner has that was filled under the first election.
pub(super) const FILLED: Lsn =
    Lsn { term: Term { elected: Epoch(1), start: StartNumber(1) }, counter: 7 };

pub(super) struct Zone {
    pub(super) now: Time,
    pub(super) state: ZoneState,
    pub(super) seen: Observations,
    /// What each living node says of others; everybody else is up.
    pub(super) down: Vec<(u32, u32, PathState)>,
    /// The same of the primary network alone.
    pub(super) off: Vec<(u32, u32, PathState)>,
    pub(super) beating: BTreeSet<u32>,
    pub(super) search: SearchBudget,
}

pub(super) fn zone_id() -> ZoneId {
    "a".parse().unwrap()
}

pub(super) fn volume_id(number: u128) -> VolumeId {
    VolumeId { zone: zone_id(), uuid: number }
}

pub(super) fn chunk(index: u32) -> ChunkId {
    ChunkId { volume: volume_id(1), index: ChunkIndex(index) }
}

pub(super) fn record(node: u32) -> NodeRecord {
    NodeRecord {
        node: NodeId(node),
        stores: alloc::vec![StoreId(u128::from(node))],
        start: StartNumber(1),
        primary_address: format!("127.1.1.{node}:1"),
        replication_address: format!("127.2.1.{node}:1"),
        rack: String::new(),
    }
}

/// A store of 1 GiB.
pub(super) fn store_state(store: StoreId, used_bytes: u64) -> StoreState {
    StoreState { store, capacity_bytes: 1 << 30, used_bytes, scrub: ScrubState::default() }
}

/// A heartbeat of a node with one store.
pub(super) fn beat_of(node: u32, used_bytes: u64) -> Heartbeat {
    let stores = alloc::vec![store_state(StoreId(u128::from(node)), used_bytes)];
    Heartbeat { stores, peers: Vec::new() }
}

impl Zone {
    /// Four nodes, all beating, heard for long enough; nothing stored.
    pub(super) fn new() -> Self {
        Self::of((1..=4).map(record))
    }

    /// The same with these nodes.
    pub(super) fn of(nodes: impl IntoIterator<Item = NodeRecord>) -> Self {
        let mut zone = Self {
            now: Time::from_millis(10_000),
            state: ZoneState::new(zone_id()),
            seen: Observations::new(Time::from_millis(10_000)),
            down: Vec::new(),
            off: Vec::new(),
            beating: BTreeSet::new(),
            search: SearchBudget::FULL,
        };
        for record in nodes {
            let node = record.node;
            zone.apply(Action::RegisterNode { node: record }).answer.unwrap();
            zone.seen.on_connected(zone.now, node);
            zone.beating.insert(node.0);
        }
        zone.run(900);
        zone
    }

    /// The same with volume 1: four chunks of 64 MiB, three copies, two needed.
    pub(super) fn with_volume() -> Self {
        let mut zone = Self::new();
        zone.create(None, "v").unwrap();
        zone
    }

    pub(super) fn apply(&mut self, action: Action) -> Applied {
        let at_millis = self.now.as_nanos() / 1_000_000;
        let command = Command { at_millis, action };
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
        let before = self.state.clone();
        let applied = self.state.apply(&command);
        // What is reported as changed is exactly what is different.
        let differing: BTreeSet<Vec<u8>> = {
            let old: BTreeSet<_> = before.entries().collect();
            let new: BTreeSet<_> = self.state.entries().collect();
            old.symmetric_difference(&new).map(|(key, _)| key.clone()).collect()
        };
        let reported: BTreeSet<_> = applied.changed.iter().map(crate::state::Key::encode).collect();
        assert!(differing.is_subset(&reported), "{:?}", applied.changed);
        // The bytes lead back to the same state.
        let bytes = self.state.to_snapshot();
        assert_eq!(ZoneState::from_snapshot(zone_id(), &bytes).as_ref(), Ok(&self.state));
        let chunks = applied.outcomes.iter().map(|outcome| outcome.chunk).collect();
        self.seen.on_applied(&self.state, &chunks);
        applied
    }

    pub(super) fn create(&mut self, token: Option<&str>, name: &str) -> Result<Answer, Refusal> {
        let mut action = self.creation(name);
        if let Action::CreateVolume { token: used, .. } = &mut action {
            *used = token.map(|token| token_use(token, name));
        }
        self.apply(action).answer
    }

    /// A volume of four chunks with its places, to be created.
    pub(super) fn creation(&self, name: &str) -> Action {
        let geometry = Geometry::new(256 * MIB, 64 * MIB).unwrap();
        let verdicts = judge_all(self.now, &self.state, &self.seen);
        let space = crate::place::Space::of(&self.state, &self.seen, &verdicts);
        let placement = crate::place::place_volume(geometry, 3, space).unwrap();
        Action::CreateVolume {
            token: None,
            volume: volume_id(self.state.volumes().count() as u128 + 1),
            name: name.into(),
            geometry,
            copies_wanted: 3,
            copies_min: 2,
            placement,
            error_after: ErrorAfter::default(),
        }
    }

    pub(super) fn attach(&mut self, client: &str, force: bool) -> Result<Volume, Refusal> {
        let (volume, client_name) = (volume_id(1), String::from(client));
        let action = Action::Attach { token: None, volume, client_name, force };
        match self.apply(action).answer? {
            Answer::Volume { volume } => Ok(volume),
            other @ (Answer::Done { .. } | Answer::Deleted { .. } | Answer::Member { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    pub(super) fn change(&mut self, index: u32, kind: ChangeKind) -> Result<Epoch, String> {
        let epoch = self.config(index).epoch;
        let change = ChunkChange { chunk: chunk(index), epoch, kind };
        let applied = self.apply(Action::Change { changes: [change].into() });
        applied.outcomes[0].result.map_err(|refusal| format!("{refusal}"))
    }

    pub(super) fn config(&self, index: u32) -> ChunkConfig {
        self.state.config(chunk(index)).unwrap().clone()
    }

    /// Lets time pass in ticks of 100 ms; beating nodes beat.
    pub(super) fn run(&mut self, millis: u64) {
        for _ in 0..millis / 100 {
            self.now = self.now + core::time::Duration::from_millis(100);
            self.seen.on_tick(self.now);
            if (self.now.as_nanos() / 1_000_000 / 100 * 100).is_multiple_of(300) {
                self.beat();
            }
        }
    }

    pub(super) fn beat(&mut self) {
        for node in self.beating.clone() {
            // As many as any test has a say about; in a large zone, that all are well.
            let peers = (1..=6)
                .filter(|peer| *peer != node && self.state.node(NodeId(*peer)).is_some())
                .map(|peer| {
                    let said = |list: &[(u32, u32, PathState)]| {
                        let said = list.iter().find(|(by, of, _)| (*by, *of) == (node, peer));
                        said.map(|(_, _, state)| *state)
                    };
                    let replication_net = said(&self.down).unwrap_or(PathState::Up);
                    let primary_net = said(&self.off).unwrap_or(replication_net);
                    PeerEvidence { node: NodeId(peer), primary_net, replication_net }
                })
                .collect();
            let known = self.state.node(NodeId(node)).cloned();
            let stores = known.map(|record| record.stores).unwrap_or_default();
            let stores = stores.into_iter().map(|id| store_state(id, 0)).collect();
            let beat = Heartbeat { stores, peers };
            self.seen.on_heartbeat(self.now, NodeId(node), beat);
        }
    }

    pub(super) fn stop(&mut self, node: u32) {
        self.beating.remove(&node);
        self.seen.on_disconnected(self.now, NodeId(node));
        self.now = self.now + core::time::Duration::from_millis(1);
    }

    pub(super) fn probe(&mut self, node: u32, results: [ProbeResult; 2]) {
        let [primary, replication] = results;
        self.seen.on_probe(self.now, NodeId(node), Network::Primary, primary);
        self.seen.on_probe(self.now, NodeId(node), Network::Replication, replication);
    }

    pub(super) fn elections(&self) -> Vec<ChunkChange> {
        self.elections_and_asks().changes
    }

    pub(super) fn elections_and_asks(&self) -> Elections {
        let verdicts = judge_all(self.now, &self.state, &self.seen);
        elections(self.now, &self.state, &self.seen, &verdicts)
    }

    /// Asks primaries to follow that should be; gives how many.
    pub(super) fn ask(&mut self) -> usize {
        let asks = self.elections_and_asks().asks;
        for (_, chunk, epoch) in &asks {
            self.seen.on_asked(self.now, *chunk, *epoch);
        }
        asks.len()
    }

    /// What is planned, elections first.
    pub(super) fn plan(&self) -> Plan {
        let mut elections = self.elections();
        let mut seen = self.seen.clone();
        for election in &elections {
            seen.on_electing(self.now, election.chunk, election.epoch);
        }
        let verdicts = judge_all(self.now, &self.state, &self.seen);
        let space = crate::place::Space::of(&self.state, &seen, &verdicts);
        let mut plan = plan(self.now, &self.state, &seen, &verdicts, self.search, space);
        elections.append(&mut plan.changes);
        Plan { changes: elections, ..plan }
    }

    /// Commits what is planned.
    pub(super) fn carry_out(&mut self) -> Plan {
        let plan = self.plan();
        for outcome in self.apply(Action::Change { changes: plan.changes.clone() }).outcomes {
            outcome.result.unwrap();
        }
        self.seen.forget_proposals(&plan.judged);
        self.seen.note_slow(self.now, &plan.slow);
        self.seen.note_balance(self.now, plan.balance);
        plan
    }

    pub(super) fn propose(&mut self, index: u32, change: Change) {
        let config = self.config(index);
        let proposal =
            Proposal { chunk: chunk(index), epoch: config.epoch, proposer: config.primary, change };
        self.seen.on_proposals(&self.state, config.primary.node, [proposal].into());
    }

    pub(super) fn report(&mut self, index: u32, replica: ReplicaId, state: ReplicaState) {
        let (adopted, generation) = self
            .state
            .config(chunk(index))
            .map_or((Epoch(0), Generation(0)), |config| (config.epoch, config.generation));
        let report = ReplicaReport { chunk: chunk(index), replica, adopted, generation, state };
        self.seen.on_reports(&self.state, replica.node, [report].into());
    }
}

pub(super) fn token_use(token: &str, parameters: &str) -> TokenUse {
    let request_hash = crate::command::request_hash(1, &[parameters.as_bytes()]);
    TokenUse { token: token.into(), request_hash }
}
