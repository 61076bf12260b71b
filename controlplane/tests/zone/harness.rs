//! A zone in one process: members over real gRPC, nodes that adopt and report but store nothing.

use ashlar_controlplane::{Config, RunError, Timing, run};
use ashlar_proto::GRPC_MESSAGE_BYTES_MAX;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use ashlar_proto::v1::node_service_client::NodeServiceClient;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use std::collections::BTreeMap;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const CAPACITY_BYTES: u64 = 8 << 30;

pub(crate) struct Zone {
    name: String,
    /// The region map of its members.
    zones: BTreeMap<String, Vec<String>>,
    timing: Timing,
    folder: tempfile::TempDir,
    addresses: BTreeMap<u64, String>,
    members: BTreeMap<u64, (CancellationToken, JoinHandle<Result<(), RunError>>)>,
    nodes: BTreeMap<u32, Node>,
    hush: Arc<AtomicBool>,
}

struct Node {
    registration: v1::Registration,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Numbers the addresses of one test process.
static ADDRESSES: AtomicU16 = AtomicU16::new(0);

/// An address that stays free until a member binds it: one of loopback that no other test of this
/// process has, and a port below those that the host gives to outgoing connections.
fn free_address() -> String {
    let number = ADDRESSES.fetch_add(1, Ordering::Relaxed);
    let ip = format!("127.88.{}.{}", number / 250, number % 250 + 1);
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    (first..32_000)
        .map(|port| format!("{ip}:{port}"))
        .find(|address| StdListener::bind(address).is_ok())
        .unwrap()
}

/// The typed reason of a refusal.
pub(crate) fn reason<T: std::fmt::Debug>(
    result: Result<tonic::Response<T>, tonic::Status>,
) -> Reason {
    let status = result.unwrap_err();
    ApiError::from_status(&status).unwrap_or_else(|| panic!("untyped: {status:?}")).reason
}

impl Zone {
    /// Members and nodes, all up.
    pub(crate) async fn start(members: u64, nodes: u32) -> Self {
        Self::start_with(members, nodes, Timing::default()).await
    }

    /// The same with other times and sizes.
    pub(crate) async fn start_with(members: u64, nodes: u32, timing: Timing) -> Self {
        let mut zone = Self::prepare("a", members);
        zone.timing = timing;
        zone.go(nodes).await;
        zone
    }

    /// One zone of a region, with addresses; nothing runs yet.
    pub(crate) fn prepare(name: &str, members: u64) -> Self {
        Self {
            name: name.into(),
            zones: BTreeMap::new(),
            timing: Timing::default(),
            folder: tempfile::tempdir().unwrap(),
            addresses: (1..=members).map(|id| (id, free_address())).collect(),
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
            hush: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Zones of one member each that know each other, all up.
    pub(crate) async fn region(names: &[&str], nodes: u32) -> Vec<Self> {
        let mut zones: Vec<Self> = names.iter().map(|name| Self::prepare(name, 1)).collect();
        let map: BTreeMap<String, Vec<String>> =
            zones.iter().map(|zone| (zone.name.clone(), vec![zone.address(1)])).collect();
        for zone in &mut zones {
            zone.knows(map.clone());
            zone.go(nodes).await;
        }
        zones
    }

    /// Gives its members a region map.
    pub(crate) fn knows(&mut self, zones: BTreeMap<String, Vec<String>>) {
        self.zones = zones;
    }

    /// Starts members and nodes and waits for them.
    pub(crate) async fn go(&mut self, nodes: u32) {
        let ids: Vec<u64> = self.addresses.keys().copied().collect();
        ids.into_iter().for_each(|id| self.start_member(id));
        for node in 1..=nodes {
            self.start_node(node).await;
        }
        let wanted = nodes as usize;
        self.until("all nodes are up", move |status| {
            let up = status.nodes.iter().filter(|node| node.state() == v1::NodeState::Up);
            up.count() == wanted
        })
        .await;
    }

    pub(crate) fn start_member(&mut self, id: u64) {
        self.run(self.config(id));
    }

    /// The folder of a member.
    pub(crate) fn folder(&self, id: u64) -> std::path::PathBuf {
        self.folder.path().join(format!("member-{id}"))
    }

    pub(crate) fn new_address(&self) -> String {
        free_address()
    }

    pub(crate) fn note_address(&mut self, id: u64, address: &str) {
        self.addresses.insert(id, address.to_owned());
    }

    /// How a member that the zone began with is configured.
    pub(crate) fn config(&self, id: u64) -> Config {
        let first = |id: &u64| *id <= 5;
        Config {
            zone: self.name.clone(),
            member: id,
            data_dir: self.folder(id),
            listen: self.addresses[&id].clone(),
            peers: self
                .addresses
                .iter()
                .filter(|(id, _)| first(id))
                .map(|(id, at)| (id.to_string(), at.clone()))
                .collect(),
            join: Vec::new(),
            bootstrap: true,
            insecure: false,
            small_chunks: false,
            placement: Default::default(),
            zones: self.zones.clone(),
            timing: self.timing.clone(),
        }
    }

    pub(crate) fn run(&mut self, config: Config) {
        let stop = CancellationToken::new();
        let (id, token) = (config.member, stop.clone());
        let task = tokio::task::spawn(async move { run(config, token).await });
        self.members.insert(id, (stop, task));
    }

    /// How a member ended that nobody told to.
    pub(crate) async fn ended(&mut self, id: u64) -> Result<(), RunError> {
        let (_, task) = self.members.remove(&id).unwrap();
        tokio::time::timeout(PATIENCE, task).await.expect("it ends by itself").unwrap()
    }

    pub(crate) async fn stop_member(&mut self, id: u64) {
        let (stop, task) = self.members.remove(&id).unwrap();
        stop.cancel();
        tokio::time::timeout(PATIENCE, task).await.expect("a clean stop").unwrap().unwrap();
    }

    pub(crate) async fn stop(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.kill_node(id).await;
        }
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop_member(id).await;
        }
    }

    pub(crate) fn address(&self, member: u64) -> String {
        self.addresses[&member].clone()
    }

    pub(crate) fn channel(&self, member: u64) -> Channel {
        channel(&self.addresses[&member])
    }

    pub(crate) fn volumes(&self, member: u64) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel(member))
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
    }

    pub(crate) fn cluster(&self, member: u64) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel(member))
    }

    /// The status, from whichever member runs.
    pub(crate) async fn status(&self) -> v1::GetStatusResponse {
        let asked = async {
            loop {
                for id in self.members.keys() {
                    let mut client = ClusterServiceClient::new(self.channel(*id));
                    if let Ok(status) = client.get_status(v1::GetStatusRequest::default()).await {
                        return status.into_inner();
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("a status")
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        mut done: impl FnMut(&v1::GetStatusResponse) -> bool,
    ) {
        let waited = async {
            loop {
                if done(&self.status().await) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waited).await.is_err() {
            panic!("never: {what}: {:#?}", self.status().await);
        }
    }

    pub(crate) async fn available(&self, name: &str) {
        self.until(&format!("{name} is available"), |status| {
            status
                .volumes
                .iter()
                .any(|volume| volume.name == name && volume.state() == v1::VolumeState::Available)
        })
        .await;
    }

    pub(crate) async fn available_through(&self, member: u64, name: &str) {
        let asked = async {
            loop {
                let ask = v1::GetVolumeRequest { volume: name.into() };
                if let Ok(reply) = self.volumes(member).get_volume(ask).await
                    && reply.into_inner().volume.unwrap().state() == v1::VolumeState::Available
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("available");
    }

    pub(crate) fn registration(&self, node: u32) -> v1::Registration {
        self.nodes.get(&node).map_or_else(
            || v1::Registration {
                version: ashlar_types::message::cluster::CLUSTER_PROTOCOL_VERSION,
                zone: self.name.clone(),
                node,
                stores: vec![format!("{node:032x}")],
                start: 1,
                primary_address: "127.0.0.1:9".into(),
                replication_address: "127.0.0.2:9".into(),
                rack: String::new(),
            },
            |node| node.registration.clone(),
        )
    }

    async fn start_node(&mut self, node: u32) {
        let primary = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let replication = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registration = v1::Registration {
            primary_address: primary.local_addr().unwrap().to_string(),
            replication_address: replication.local_addr().unwrap().to_string(),
            ..self.registration(node)
        };
        let stop = CancellationToken::new();
        let members = self.addresses.values().cloned().collect();
        let life = live(registration.clone(), members, self.hush.clone());
        let token = stop.clone();
        let task = tokio::task::spawn(async move {
            tokio::select! {
                () = life => {}
                () = token.cancelled() => {}
            }
            drop((primary, replication));
        });
        self.nodes.insert(node, Node { registration, stop, task });
    }

    /// The node's process ends: its ports refuse, its stream breaks.
    pub(crate) async fn kill_node(&mut self, node: u32) {
        let node = self.nodes.remove(&node).unwrap();
        node.stop.cancel();
        node.task.await.unwrap();
    }

    /// Nodes go on beating but report nothing.
    pub(crate) fn hush_nodes(&self) {
        self.hush.store(true, Ordering::SeqCst);
    }

    pub(crate) fn unhush_nodes(&self) {
        self.hush.store(false, Ordering::SeqCst);
    }

    /// How a member refuses a node's stream.
    pub(crate) async fn refusal_of(&self, member: u64, registration: v1::Registration) -> ApiError {
        let hello = v1::NodeUp { message: Some(v1::node_up::Message::Registration(registration)) };
        let (sender, messages) = mpsc::channel(1);
        sender.send(hello).await.unwrap();
        let mut client = NodeServiceClient::new(self.channel(member));
        let status = match client.session(ReceiverStream::new(messages)).await {
            Err(status) => status,
            Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        };
        ApiError::from_status(&status).unwrap_or_else(|| panic!("untyped: {status:?}"))
    }
}

fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(1))
        .connect_lazy()
}

/// A node's life: finds the leader, stays with it, finds the next one.
async fn live(registration: v1::Registration, members: Vec<String>, hush: Arc<AtomicBool>) {
    let mut next = 0;
    let mut members = members;
    let mut target = members[0].clone();
    loop {
        match session(&registration, &target, &hush, &mut members).await {
            Some(leader) => target = leader,
            None => {
                next += 1;
                target = members[next % members.len()].clone();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One stream; gives the leader's address when told.
async fn session(
    registration: &v1::Registration,
    member: &str,
    hush: &AtomicBool,
    members: &mut Vec<String>,
) -> Option<String> {
    let (sender, messages) = mpsc::channel(64);
    let hello = v1::node_up::Message::Registration(registration.clone());
    sender.send(v1::NodeUp { message: Some(hello) }).await.ok()?;
    let mut client = NodeServiceClient::new(channel(member));
    let mut stream = client.session(ReceiverStream::new(messages)).await.ok()?.into_inner();
    let mut beat = tokio::time::interval(Duration::from_millis(300));
    let mut known: BTreeMap<(String, u32), v1::ReplicaReport> = BTreeMap::new();
    let mut due = false;
    let store = |id: &String| v1::Store {
        id: id.clone(),
        capacity_bytes: CAPACITY_BYTES,
        ..Default::default()
    };
    let stores: Vec<v1::Store> = registration.stores.iter().map(store).collect();
    loop {
        tokio::select! {
            _ = beat.tick() => {
                let heartbeat = v1::Heartbeat {
                    stores: stores.clone(),
                    peers: Vec::new(),
                };
                let message = Some(v1::node_up::Message::Heartbeat(heartbeat));
                sender.send(v1::NodeUp { message }).await.ok()?;
            }
            message = stream.message() => match message {
                Ok(Some(v1::NodeDown {
                    message: Some(v1::node_down::Message::Members(list)), ..
                })) => {
                    *members = list.addresses;
                }
                Ok(Some(down)) => due |= adopt(registration.node, down, &mut known),
                Ok(None) => return None,
                Err(status) => {
                    let error = ApiError::from_status(&status)?;
                    return error.metadata.get("leader_address").cloned();
                }
            },
        }
        if due && !hush.load(Ordering::SeqCst) {
            due = false;
            let reports = v1::ReplicaReports { reports: known.values().cloned().collect() };
            let message = Some(v1::node_up::Message::Replicas(reports));
            sender.send(v1::NodeUp { message }).await.ok()?;
        }
    }
}

/// Takes in what the control plane says; true if there is something to report.
fn adopt(
    me: u32,
    down: v1::NodeDown,
    known: &mut BTreeMap<(String, u32), v1::ReplicaReport>,
) -> bool {
    let key = |chunk: &v1::ChunkId| (chunk.volume.clone(), chunk.index);
    match down.message {
        Some(v1::node_down::Message::Configs(list)) => {
            for config in list.configs {
                let chunk = config.chunk.clone().unwrap();
                let all = config.in_sync.iter().chain(&config.learners);
                let stale = config.stale.iter().filter_map(|stale| stale.replica.as_ref());
                let Some(mine) = all.chain(stale).find(|replica| replica.node == me) else {
                    continue;
                };
                let state = match &config.primary {
                    Some(primary) if primary == mine => v1::ReplicaState::Serving,
                    _ if config.in_sync.contains(mine) => v1::ReplicaState::Following,
                    _ => v1::ReplicaState::Stale,
                };
                let report = v1::ReplicaReport {
                    chunk: Some(chunk.clone()),
                    replica: Some(mine.clone()),
                    adopted: config.epoch,
                    generation: config.generation,
                    state: state.into(),
                    blocks_done: 0,
                };
                known.insert(key(&chunk), report);
            }
            true
        }
        Some(v1::node_down::Message::Erase(list)) => {
            for erase in list.replicas {
                let chunk = erase.chunk.unwrap();
                let report = v1::ReplicaReport {
                    chunk: Some(chunk.clone()),
                    replica: erase.replica,
                    state: v1::ReplicaState::Gone.into(),
                    ..Default::default()
                };
                known.insert(key(&chunk), report);
            }
            true
        }
        _ => false,
    }
}
