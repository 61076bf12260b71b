//! Three members driven by hand over disks in memory: the same inputs give the same bytes, crashes
//! lose nothing that was answered, and calls get exactly one answer.

mod damage;
mod members;
mod placement;
mod salvage;

use super::*;
use ashlar_controlplane_core::sharing::PEERS_PER_NODE_MAX;
use ashlar_env::dice::SeededDice;
use ashlar_env::disk::mem::MemDisk;
use ashlar_env::meta::MemStore;
use ashlar_proto::token::{Grant, Rights, Signs, Verifies};
use ashlar_types::message::cluster::{
    CLUSTER_PROTOCOL_VERSION, Heartbeat, Relayed, ReplicaReport, ReplicaState, ScrubState,
    StoreState,
};
use ashlar_types::{ChunkConfig, ChunkId, Generation, StartNumber, StoreId};
use ashlar_zone_raft::{RaftStatus, Start};
use std::collections::VecDeque;

const MIB: u64 = 1 << 20;
const NODES: u32 = 4;

/// One member's process and what outlives it.
struct Host {
    member: Option<Member>,
    log: MemDisk,
    snapshots: MemDisk,
    meta: Arc<MemStore>,
    starts: u64,
}

/// A node that adopts whatever it is told.
#[derive(Default)]
struct Node {
    session: Option<(u64, SessionKey)>,
    reports: Vec<ReplicaReport>,
    silent: bool,
    /// Its process is gone.
    dead: bool,
    /// Its stream is gone; this peer relays for it.
    relay: Option<u32>,
    /// The last report of each replica: told whole now and then while a peer relays.
    all: BTreeMap<ChunkId, ReplicaReport>,
    /// Where the members are, once they have changed.
    members: Vec<String>,
}

struct World {
    seed: u64,
    millis: u64,
    hosts: BTreeMap<u64, Host>,
    nodes: BTreeMap<u32, Node>,
    wire: VecDeque<(u64, u64, Bytes)>,
    dice: SeededDice,
    loss_percent: u64,
    next: u64,
    answers: BTreeMap<CallId, Result<Reply, ApiError>>,
    trace: Vec<String>,
    compact_after: usize,
    /// Members that ended as they were told that they are none.
    removed: Vec<u64>,
    /// So many messages that are to be relayed are lost.
    lost_relays: u32,
    /// Members that hear nothing.
    deaf: Vec<u64>,
    /// Whom each member can send to, by its own word.
    ways: BTreeMap<u64, Members>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            millis: 1_000_000,
            hosts: BTreeMap::new(),
            nodes: (1..=NODES).map(|id| (id, Node::default())).collect(),
            wire: VecDeque::new(),
            dice: SeededDice::stream(seed, "world"),
            loss_percent: 0,
            next: 1,
            answers: BTreeMap::new(),
            trace: Vec::new(),
            compact_after: 1_000,
            removed: Vec::new(),
            lost_relays: 0,
            deaf: Vec::new(),
            ways: BTreeMap::new(),
        };
        (1..=3).for_each(|id| world.host(id));
        (1..=3).for_each(|id| world.start(id));
        world
    }

    /// A machine for a member.
    fn host(&mut self, id: u64) {
        let host = Host {
            member: None,
            log: MemDisk::new(),
            snapshots: MemDisk::new(),
            meta: Arc::new(MemStore::new()),
            starts: 0,
        };
        self.hosts.insert(id, host);
    }

    fn start(&mut self, id: u64) {
        self.try_start(id).unwrap();
    }

    fn try_start(&mut self, id: u64) -> Result<(), MemberError> {
        let host = self.hosts.get_mut(&id).unwrap();
        host.starts += 1;
        let (first, joins) = (host.starts == 1, id > 3);
        let members = if joins { 0 } else { 3 };
        let start = if first && joins { Start::Join } else { Start::bootstrap_if(first) };
        let options = MemberOptions {
            zone: "a".parse().unwrap(),
            raft: RaftOptions {
                id,
                voters: (1..=members).collect(),
                start,
                heartbeat_ticks: 2,
                election_ticks: 10,
                log: ashlar_log::LogOptions { segment_bytes: 256 << 10, spare_segments: 1 },
            },
            addresses: (1..=members).map(|id| (id, format!("127.0.0.{id}:1"))).collect(),
            zone_secret: [7; 32],
            small_chunks: false,
            peers_per_node_max: PEERS_PER_NODE_MAX,
            compact_after: self.compact_after,
            keep_entries: 4,
        };
        let disks = MemberDisks {
            log: Arc::new(host.log.clone()),
            snapshots: Arc::new(host.snapshots.clone()),
            meta: Arc::clone(&host.meta) as Arc<dyn MetaStore>,
        };
        let dice = |purpose: &str| {
            Box::new(SeededDice::stream(self.seed, &format!("{purpose} {id} {}", host.starts)))
        };
        host.member = Some(Member::open(options, disks, dice("elect"), dice("ids"))?);
        Ok(())
    }

    /// The process is gone, and with it what was not durable.
    fn crash(&mut self, id: u64) {
        let host = self.hosts.get_mut(&id).unwrap();
        host.member = None;
        host.log.crash(&mut self.dice);
        host.snapshots.crash(&mut self.dice);
        host.meta.crash();
        for node in self.nodes.values_mut() {
            node.session = node.session.filter(|(member, _)| *member != id);
        }
    }

    fn now(&self) -> Now {
        Now { time: Time::from_millis(self.millis), wall_millis: self.millis }
    }

    fn feed(&mut self, id: u64, input: Input) {
        let now = self.now();
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let Some(member) = host.member.as_mut() else { return };
        let mut out = Vec::new();
        match member.handle(now, input, &mut out) {
            Err(MemberError::Removed { .. }) => {
                self.removed.push(id);
                return self.crash(id);
            }
            other => other.unwrap(),
        }
        for output in out {
            self.trace.push(format!("{} {id} {output:?}", self.millis));
            self.take(id, output);
        }
    }

    fn take(&mut self, id: u64, output: Output) {
        match output {
            Output::Raft { to, bytes } => {
                let known = self.ways.get(&id).is_some_and(|w| w.addresses.contains_key(&to));
                if known && !self.dice.chance(self.loss_percent, 100) {
                    self.wire.push_back((id, to, bytes));
                }
            }
            Output::Answer { call, result } => {
                assert!(self.answers.insert(call, *result).is_none(), "answered twice");
            }
            Output::Node { message: ControlDown::Relay { to, message }, .. } => {
                if self.lost_relays > 0 {
                    self.lost_relays -= 1;
                } else if let Some(node) = self.nodes.get_mut(&to.0) {
                    node.hear(to.0, *message);
                }
            }
            Output::Node { session, message, .. } => {
                let node = self.nodes.iter_mut().find(|(_, n)| n.session == Some((id, session)));
                if let Some((number, node)) = node {
                    node.hear(*number, message);
                }
            }
            Output::CloseNode { session, .. } => {
                for node in self.nodes.values_mut() {
                    node.session = node.session.filter(|open| *open != (id, session));
                }
            }
            Output::Members(members) => {
                self.ways.insert(id, members);
            }
            Output::Probe { .. } | Output::Leader { .. } => {}
        }
    }

    /// 50 ms pass.
    fn tick(&mut self) {
        self.millis += TICK_MILLIS;
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        for id in ids {
            self.feed(id, Input::Tick);
        }
        for _ in 0..500 {
            let Some((peer, to, bytes)) = self.wire.pop_front() else { break };
            self.arrives(peer, to, bytes);
        }
        for number in 1..=NODES {
            self.node_acts(number);
        }
    }

    /// As the shell does it: a removed member is refused by name, an added one says where it is.
    fn arrives(&mut self, peer: u64, to: u64, bytes: Bytes) {
        if self.deaf.contains(&to) {
            return;
        }
        let removed = self.ways.get(&to).is_some_and(|members| members.removed.contains(&peer));
        if removed && self.hosts.contains_key(&peer) && !self.deaf.contains(&peer) {
            return self.feed(peer, Input::ToldRemoved);
        }
        let own = self.ways.get(&peer).and_then(|members| members.addresses.get(&peer)).cloned();
        if let Some(address) = own {
            self.feed(to, Input::PeerAt { peer, address });
        }
        self.feed(to, Input::Raft { peer, bytes });
    }

    fn node_acts(&mut self, number: u32) {
        let Some(leader) = self.serving() else { return };
        if let Some(by) = self.nodes[&number].relay {
            return self.node_acts_through(number, by);
        }
        let node = self.nodes.get_mut(&number).unwrap();
        if node.dead {
            return;
        }
        let Some((member, session)) = node.session else {
            let session = SessionKey(self.next);
            self.next += 1;
            node.session = Some((leader, session));
            let registration = registration(number);
            return self.feed(leader, Input::NodeOpened { session, registration });
        };
        let reports = std::mem::take(&mut node.reports);
        let quiet = node.silent;
        if !reports.is_empty() && !quiet {
            let message = ControlUp::Replicas(reports);
            self.feed(member, Input::NodeSaid { session, message });
        }
        if self.millis.is_multiple_of(300) {
            let store = StoreState {
                store: StoreId(number.into()),
                capacity_bytes: 8 << 30,
                used_bytes: 0,
                scrub: ScrubState::default(),
            };
            let beat = Heartbeat { stores: vec![store], peers: Vec::new() };
            let message = ControlUp::Heartbeat(beat);
            self.feed(member, Input::NodeSaid { session, message });
        }
    }

    /// A node without a stream speaks through a peer, and tells everything every 3 s.
    fn node_acts_through(&mut self, number: u32, by: u32) {
        let Some((member, session)) = self.nodes[&by].session else { return };
        let node = self.nodes.get_mut(&number).unwrap();
        let mut ups = Vec::new();
        if self.millis.is_multiple_of(300) {
            ups.push(ControlUp::Heartbeat(Heartbeat::default()));
        }
        if self.millis.is_multiple_of(3_000) {
            ups.push(ControlUp::Replicas(node.all.values().copied().collect()));
        }
        ups.push(ControlUp::Replicas(std::mem::take(&mut node.reports)));
        for up in ups {
            self.feed(member, Input::NodeSaid { session, message: relayed(number, up) });
        }
    }

    /// The stream of a node ends, and a peer relays for it from now on.
    fn relay(&mut self, number: u32, by: u32) {
        let node = self.nodes.get_mut(&number).unwrap();
        node.relay = Some(by);
        if let Some((member, session)) = node.session.take() {
            self.feed(member, Input::NodeClosed { session });
        }
    }

    fn serving(&self) -> Option<u64> {
        let running = self.hosts.iter().filter_map(|(id, host)| Some((*id, host.member.as_ref()?)));
        running
            .filter(|(_, member)| member.is_serving())
            .max_by_key(|(_, member)| member.raft_status().term)
            .map(|(id, _)| id)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..4_000 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("never: {what}, seed {}", self.seed);
    }

    /// All nodes are heard.
    fn settle(&mut self) {
        self.until("nodes are up", |world| {
            let Some(reply) = world.try_ask(Request::ListNodes(v1::ListNodesRequest::default()))
            else {
                return false;
            };
            let Ok(Reply::ListNodes(list)) = reply else { return false };
            let up =
                |node: &&v1::Node| node.state() == v1::NodeState::Up && node.capacity_bytes > 0;
            list.nodes.iter().filter(up).count() == NODES as usize
        });
    }

    /// Asks whoever leads, once; `None` if there is no answer at once.
    fn try_ask(&mut self, request: Request) -> Option<Result<Reply, ApiError>> {
        let leader = self.serving()?;
        let call = self.call(leader, request, 5_000);
        self.answers.remove(&call)
    }

    fn call(&mut self, member: u64, request: Request, millis: u64) -> CallId {
        let call = CallId(self.next);
        self.next += 1;
        let deadline = Time::from_millis(self.millis + millis);
        self.feed(member, Input::Call { call, request, deadline });
        call
    }

    /// Asks until there is an answer that is not about who leads.
    fn ask(&mut self, request: &Request) -> Result<Reply, ApiError> {
        for _ in 0..200 {
            self.until("a leader", |world| world.serving().is_some());
            let leader = self.serving().unwrap();
            let call = self.call(leader, request.clone(), 3_000);
            let answered = |world: &mut Self| {
                let running = world.hosts[&leader].member.is_some();
                world.answers.contains_key(&call) || !running
            };
            self.until("an answer", answered);
            match self.answers.remove(&call) {
                Some(Err(error)) if error.reason.is_transient() => {}
                Some(answer) => return answer,
                None => {}
            }
            self.tick();
        }
        panic!("no answer to {request:?}, seed {}", self.seed);
    }

    fn create(&mut self, name: &str) -> Result<Reply, ApiError> {
        self.ask(&Request::CreateVolume(v1::CreateVolumeRequest {
            name: name.into(),
            size_bytes: 256 * MIB,
            client_token: format!("create-{name}"),
            ..Default::default()
        }))
    }

    fn attach(&mut self, name: &str, token: &str) -> Result<Reply, ApiError> {
        self.ask(&attach(name, token))
    }

    fn status(&self, id: u64) -> RaftStatus {
        self.hosts[&id].member.as_ref().unwrap().raft_status()
    }
}

fn attach(name: &str, token: &str) -> Request {
    Request::AttachVolume(v1::AttachVolumeRequest {
        volume: name.into(),
        client_name: "client".into(),
        client_token: token.into(),
        ..Default::default()
    })
}

impl Node {
    fn hear(&mut self, number: u32, message: ControlDown) {
        let mine = |config: &ChunkConfig| config.replicas().find(|r| r.node == NodeId(number));
        match message {
            ControlDown::Configs(configs) => {
                for config in configs {
                    let Some(replica) = mine(&config) else { continue };
                    let state = if config.primary == replica {
                        ReplicaState::Serving
                    } else {
                        ReplicaState::Following
                    };
                    let report = ReplicaReport {
                        chunk: config.chunk,
                        replica,
                        adopted: config.epoch,
                        generation: config.generation,
                        state,
                    };
                    self.all.insert(config.chunk, report);
                    self.reports.push(report);
                }
            }
            ControlDown::Erase(list) => {
                self.reports.extend(list.into_iter().map(|(chunk, replica)| ReplicaReport {
                    chunk,
                    replica,
                    adopted: ashlar_types::Epoch(0),
                    generation: Generation(0),
                    state: ReplicaState::Gone,
                }));
            }
            ControlDown::Members(members) => self.members = members,
            ControlDown::Peers(_)
            | ControlDown::ZoneKey(_)
            | ControlDown::AskToFollow(_)
            | ControlDown::Relay { .. }
            | ControlDown::Search(_)
            | ControlDown::ProposalRefused { .. } => {}
        }
    }
}

fn relayed(number: u32, message: ControlUp) -> ControlUp {
    let (node, store) = (NodeId(number), registration(number).stores[0]);
    ControlUp::Relayed(Relayed { node, store, message: Box::new(message) })
}

fn registration(number: u32) -> Registration {
    Registration {
        version: CLUSTER_PROTOCOL_VERSION,
        zone: "a".parse().unwrap(),
        node: NodeId(number),
        stores: vec![StoreId(number.into())],
        start: StartNumber(1),
        primary_address: format!("127.1.1.{number}:1"),
        replication_address: format!("127.2.1.{number}:1"),
        rack: String::new(),
    }
}

/// Generation of an attachment's answer.
fn generation(reply: Result<Reply, ApiError>) -> u64 {
    match reply {
        Ok(Reply::AttachVolume(reply)) => reply.map.unwrap().generation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_seed_gives_the_same_outputs() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.loss_percent = 10;
        world.settle();
        world.create("v").unwrap();
        let leader = world.serving().unwrap();
        world.crash(leader);
        world.attach("v", "t").unwrap();
        world.start(leader);
        world.create("w").unwrap();
        world.trace
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

#[test]
fn what_was_answered_outlives_crashes_of_one_and_of_all() {
    for seed in 0..8 {
        let mut world = World::new(seed);
        world.compact_after = 20;
        world.loss_percent = 5;
        world.settle();
        for round in 0..6_u64 {
            let name = format!("v{round}");
            world.create(&name).unwrap();
            assert_eq!(generation(world.attach(&name, &format!("a{round}"))), 1, "seed {seed}");
            if round % 3 == 2 {
                (1..=3).for_each(|id| world.crash(id));
                world.wire.clear();
                (1..=3).for_each(|id| world.start(id));
            } else {
                let victim = 1 + world.dice.below(3);
                world.crash(victim);
                world.settle();
                world.start(victim);
            }
            world.settle();
        }
        let list = world.ask(&Request::ListVolumes(v1::ListVolumesRequest::default())).unwrap();
        let Reply::ListVolumes(list) = list else { panic!("{list:?}") };
        assert_eq!(list.volumes.len(), 6, "seed {seed}");
        assert!(list.volumes.iter().all(|volume| volume.generation == 1));
        // All members come to the same state, by whatever way.
        world.until("all applied", |world| {
            let applied: BTreeSet<u64> = world
                .hosts
                .values()
                .map(|host| host.member.as_ref().unwrap().applied_index())
                .collect();
            applied.len() == 1
        });
        let states: Vec<_> =
            world.hosts.values().map(|host| host.member.as_ref().unwrap().state()).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}");
    }
}

#[test]
fn a_member_that_starts_again_has_every_kind_of_entry() {
    let mut world = World::new(6);
    world.settle();
    let request = Request::CreateVolume(v1::CreateVolumeRequest {
        name: "v".into(),
        size_bytes: 256 * MIB,
        client_token: "create".into(),
        error_after_millis: 20_000,
        ..Default::default()
    });
    world.ask(&request).unwrap();
    let drain = |cancel: bool, token: &str| {
        let client_token = token.into();
        Request::DrainNode(v1::DrainNodeRequest {
            node: 4,
            cancel,
            client_token,
            ..Default::default()
        })
    };
    world.ask(&drain(false, "drain")).unwrap();
    let state = |world: &World, id| world.hosts[&id].member.as_ref().unwrap().state().clone();
    let applied = |world: &World, id| world.hosts[&id].member.as_ref().unwrap().applied_index();
    for id in 1..=3 {
        world.until("all applied", |world| (1..=3).all(|m| applied(world, m) == applied(world, 1)));
        assert!(state(&world, id).is_draining(NodeId(4)));
        // In good order: what it finds again is its metadata store, and not the log.
        world.hosts.get_mut(&id).unwrap().member.as_mut().unwrap().close().unwrap();
        world.crash(id);
        world.start(id);
        world.until("all applied", |world| (1..=3).all(|m| applied(world, m) == applied(world, 1)));
        let other = 1 + id % 3;
        assert!(state(&world, id) == state(&world, other), "member {id} differs from {other}");
    }
    let entries: Vec<_> = state(&world, 1).entries().map(|(key, _)| key[0]).collect();
    assert!(entries.contains(&12) && entries.contains(&13), "{entries:?}");
}

#[test]
fn a_lost_metadata_store_is_rebuilt_from_snapshot_and_log() {
    let mut world = World::new(5);
    world.compact_after = 10;
    for id in 1..=3 {
        world.crash(id);
        world.start(id);
    }
    world.settle();
    for round in 0..12 {
        world.create(&format!("v{round}")).unwrap();
    }
    let applied = world.hosts[&2].member.as_ref().unwrap().applied_index();
    let before = world.hosts[&2].member.as_ref().unwrap().state().clone();
    assert!(applied > 20);
    world.crash(2);
    world.hosts.get_mut(&2).unwrap().meta = Arc::new(MemStore::new());
    world.start(2);
    world.until("caught up", |world| {
        world.hosts[&2].member.as_ref().unwrap().applied_index() >= applied
    });
    let after = world.hosts[&2].member.as_ref().unwrap().state();
    assert!(before.volumes().all(|volume| after.volume(volume.id).is_some()));
}

#[test]
fn a_member_away_for_long_takes_over_a_snapshot() {
    let mut world = World::new(6);
    world.compact_after = 10;
    for id in 1..=3 {
        world.crash(id);
        world.start(id);
    }
    world.settle();
    let away = (1..=3).find(|id| Some(*id) != world.serving()).unwrap();
    world.crash(away);
    for round in 0..20 {
        world.create(&format!("v{round}")).unwrap();
    }
    world.start(away);
    world.until("caught up", |world| {
        world.hosts[&away].member.as_ref().unwrap().state().volumes().count() == 20
    });
}

#[test]
fn calls_at_a_follower_name_the_leader_and_calls_without_quorum_end_at_their_deadline() {
    let mut world = World::new(7);
    world.settle();
    let leader = world.serving().unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let get = Request::GetVolume(v1::GetVolumeRequest { volume: "v".into() });
    let call = world.call(follower, get, 1_000);
    let error = world.answers.remove(&call).unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::NotLeader);
    assert_eq!(error.metadata["leader"], leader.to_string());
    for id in (1..=3).filter(|id| *id != leader) {
        world.crash(id);
    }
    let create = Request::CreateVolume(v1::CreateVolumeRequest {
        size_bytes: 256 * MIB,
        ..Default::default()
    });
    let call = world.call(leader, create, 200);
    world.until("an answer", |world| world.answers.contains_key(&call));
    let error = world.answers.remove(&call).unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::DeadlineExceeded);
    world.until("it steps down", |world| !world.status(leader).is_leader);
}

#[test]
fn an_attachment_waits_for_nodes_and_a_repeated_call_goes_on_waiting() {
    let mut world = World::new(8);
    world.settle();
    world.create("v").unwrap();
    world.settle();
    for node in world.nodes.values_mut() {
        node.silent = true;
    }
    let leader = world.serving().unwrap();
    let call = world.call(leader, attach("v", "t"), 500);
    world.until("an answer", |world| world.answers.contains_key(&call));
    let error = world.answers.remove(&call).unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::AdoptionPending);
    assert!(error.metadata["blocked_on"].contains("node-1"), "{error:?}");
    let again = world.call(leader, attach("v", "t"), 5_000);
    world.tick();
    assert!(!world.answers.contains_key(&again), "nobody adopted it yet");
    for node in world.nodes.values_mut() {
        node.silent = false;
    }
    // What the silent nodes did not say was lost with their silence: they say everything again.
    for number in 1..=NODES {
        let node = world.nodes.get_mut(&number).unwrap();
        node.session = None;
    }
    world.until("an answer", |world| world.answers.contains_key(&again));
    assert_eq!(generation(world.answers.remove(&again).unwrap()), 1);
}

#[test]
fn a_deleted_volume_is_erased_everywhere_even_across_a_leader_change() {
    let mut world = World::new(9);
    world.settle();
    world.create("v").unwrap();
    let delete = v1::DeleteVolumeRequest { volume: "v".into(), ..Default::default() };
    world.ask(&Request::DeleteVolume(delete)).unwrap();
    let leader = world.serving().unwrap();
    world.crash(leader);
    world.settle();
    world.until("all erased", |world| {
        let leader = world.serving();
        leader.is_some_and(|id| {
            world.hosts[&id].member.as_ref().unwrap().state().erasures().count() == 0
        })
    });
}

#[test]
fn a_newer_stream_of_a_node_ends_the_older_one() {
    let mut world = World::new(10);
    world.settle();
    let leader = world.serving().unwrap();
    let old = world.nodes[&1].session.unwrap().1;
    let session = SessionKey(9_999);
    let now = world.now();
    let member = world.hosts.get_mut(&leader).unwrap().member.as_mut().unwrap();
    let mut out = Vec::new();
    let opened = Input::NodeOpened { session, registration: registration(1) };
    member.handle(now, opened, &mut out).unwrap();
    assert!(out.iter().any(|output| matches!(
        output,
        Output::CloseNode { session, error }
            if *session == old && error.reason == Reason::SessionReplaced
    )));
}

#[test]
fn a_node_comes_with_another_store_only_when_the_process_with_the_one_before_is_silent() {
    let mut world = World::new(11);
    world.settle();
    let leader = world.serving().unwrap();
    let mut exchanged = || {
        let session = SessionKey(9_999);
        let now = world.now();
        let member = world.hosts.get_mut(&leader).unwrap().member.as_mut().unwrap();
        let mut out = Vec::new();
        let registration = Registration { stores: vec![StoreId(77)], ..registration(1) };
        member.handle(now, Input::NodeOpened { session, registration }, &mut out).unwrap();
        world.millis += 3_000;
        out.into_iter().find_map(|output| match output {
            Output::CloseNode { session: closed, error } if closed == session => Some(error),
            _ => None,
        })
    };
    assert_eq!(exchanged().unwrap().reason, Reason::NodeIdTaken);
    assert!(exchanged().is_none(), "an exchanged disk could never come back");
}

#[test]
fn a_renewed_token_has_the_rights_of_the_one_it_replaces() {
    let mut world = World::new(3);
    world.settle();
    world.create("v").unwrap();
    let Reply::AttachVolume(attached) = world.attach("v", "t").unwrap() else { panic!() };
    let leader = world.serving().unwrap();
    let secret = *world.hosts[&leader].member.as_ref().unwrap().state().zone_key().unwrap();
    let signs = Signs::from_secret(&secret);
    let zone = Verifies::from_public(&signs.public()).unwrap();
    let granted = zone.read(&attached.token).unwrap();
    for rights in [Rights::Read, Rights::ReadWrite] {
        let token = signs.sign(&Grant { rights, ..granted });
        let renew = v1::GetVolumeMapRequest { volume: "v".into(), token };
        let Reply::GetVolumeMap(map) = world.ask(&Request::GetVolumeMap(renew)).unwrap() else {
            panic!()
        };
        assert_eq!(zone.read(&map.token).unwrap().rights, rights);
    }
}

#[test]
fn a_node_without_a_stream_is_heard_and_told_through_a_peer_even_if_some_of_it_is_lost() {
    let mut world = World::new(13);
    world.settle();
    world.create("data").unwrap();
    world.relay(1, 2);
    world.lost_relays = 3;
    let attached = Generation(generation(world.attach("data", "first")));
    world.until("the node without a stream has what was committed", |world| {
        let all = &world.nodes[&1].all;
        !all.is_empty() && all.values().all(|report| report.generation == attached)
    });
    assert_eq!(world.lost_relays, 0, "nothing was lost");
    let leader = world.serving().unwrap();
    world.until("what it says through the peer counts", |world| {
        let member = world.hosts[&leader].member.as_ref().unwrap();
        let seen = &member.lead.as_ref().unwrap().seen;
        let mut all = world.nodes[&1].all.values();
        all.all(|report| seen.has_adopted(report.chunk, report.replica, attached))
    });
    // It has a stream again: nothing is relayed any more.
    world.nodes.get_mut(&1).unwrap().relay = None;
    world.until("its own stream is open", |world| world.nodes[&1].session.is_some());
    let member = world.hosts[&leader].member.as_ref().unwrap();
    assert!(member.lead.as_ref().unwrap().relays.is_empty());
}

#[test]
fn what_a_peer_relays_for_another_store_or_for_a_node_that_is_heard_is_void() {
    let mut world = World::new(14);
    world.settle();
    world.create("data").unwrap();
    let leader = world.serving().unwrap();
    let session = world.nodes[&2].session.unwrap().1;
    let says = |world: &mut World, message| {
        world.feed(leader, Input::NodeSaid { session, message });
        let member = world.hosts[&leader].member.as_ref().unwrap();
        member.lead.as_ref().unwrap().relays.len()
    };
    let beat = || ControlUp::Heartbeat(Heartbeat::default());
    assert_eq!(says(&mut world, relayed(1, beat())), 0, "it has a stream of its own");
    world.relay(1, 3);
    world.millis += 3_000;
    let foreign = Relayed { node: NodeId(1), store: StoreId(77), message: Box::new(beat()) };
    assert_eq!(says(&mut world, ControlUp::Relayed(foreign)), 0, "that store is not registered");
    assert_eq!(says(&mut world, relayed(1, beat())), 1);
}
