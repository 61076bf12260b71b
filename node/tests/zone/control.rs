//! A control plane that does what the test says: configurations are committed by the test, reports
//! and heartbeats are kept for it to look at.

use ashlar_proto::convert::NodeMessage;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use ashlar_types::message::cluster::{
    ControlDown, ControlUp, Heartbeat, Order, PeerAddress, Proposal, Registration, ReplicaReport,
};
use ashlar_types::{ChunkConfig, ChunkId, ControlTerm, NodeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
struct State {
    registered: BTreeMap<NodeId, Registration>,
    streams: BTreeMap<NodeId, mpsc::Sender<Result<v1::NodeDown, Status>>>,
    heartbeats: BTreeMap<NodeId, Heartbeat>,
    reports: BTreeMap<(NodeId, ChunkId), ReplicaReport>,
    proposals: Vec<Proposal>,
    configs: BTreeMap<ChunkId, ChunkConfig>,
    refuses: Option<ApiError>,
    calls: usize,
    /// Calls wait while it is set.
    silent: tokio::sync::watch::Sender<bool>,
    /// Of the leadership that it speaks for.
    term: u64,
}

impl State {
    fn tell(&self, node: NodeId, down: &ControlDown) {
        if let Some(stream) = self.streams.get(&node) {
            let order = Order { term: ControlTerm(self.term.max(1)), message: down.clone() };
            stream.try_send(Ok(v1::NodeDown::from(&order))).ok();
        }
    }

    fn peers(&self) -> ControlDown {
        let address = |registration: &Registration| PeerAddress {
            node: registration.node,
            store: registration.stores[0],
            primary_address: registration.primary_address.clone(),
            replication_address: registration.replication_address.clone(),
        };
        ControlDown::Peers(self.registered.values().map(address).collect())
    }

    fn configs_of(&self, node: NodeId) -> ControlDown {
        let named = |config: &&ChunkConfig| config.replicas().any(|replica| replica.node == node);
        ControlDown::Configs(self.configs.values().filter(named).cloned().collect())
    }

    fn take(&mut self, node: NodeId, up: ControlUp) {
        match up {
            ControlUp::Heartbeat(heartbeat) => {
                self.heartbeats.insert(node, heartbeat);
            }
            ControlUp::Replicas(reports) => {
                self.reports.extend(reports.into_iter().map(|r| ((node, r.chunk), r)));
            }
            ControlUp::Propose(proposals) => self.proposals.extend(proposals),
            ControlUp::Relayed(_) => {}
        }
    }
}

struct Service(Arc<Mutex<State>>);

#[tonic::async_trait]
impl NodeService for Service {
    type SessionStream = ReceiverStream<Result<v1::NodeDown, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut ups = request.into_inner();
        let first = ups.message().await?.ok_or_else(|| Status::aborted("no registration"))?;
        let Ok(NodeMessage::Registration(registration)) = NodeMessage::try_from(&first) else {
            return Err(Status::invalid_argument("the first message is no registration"));
        };
        let node = registration.node;
        let (down, stream) = mpsc::channel(64);
        let mut silent = {
            let mut state = self.0.lock().unwrap();
            state.calls += 1;
            state.silent.subscribe()
        };
        silent.wait_for(|silent| !silent).await.map_err(|_| Status::aborted("ends"))?;
        {
            let mut state = self.0.lock().unwrap();
            if let Some(refusal) = &state.refuses {
                return Err(refusal.to_status());
            }
            state.registered.insert(node, registration);
            state.streams.insert(node, down);
            let peers = state.peers();
            for known in state.streams.keys() {
                state.tell(*known, &peers);
            }
            state.tell(node, &ControlDown::ZoneKey(super::client::zone_signs().public()));
            state.tell(node, &state.configs_of(node));
        }
        let state = Arc::clone(&self.0);
        drop(ashlar_env::task::spawn_named("ups", async move {
            while let Ok(Some(up)) = ups.message().await {
                let Ok(NodeMessage::Up(up)) = NodeMessage::try_from(&up) else { return };
                state.lock().unwrap().take(node, up);
            }
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Runs until dropped.
pub struct ControlPlane {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl ControlPlane {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let service = NodeServiceServer::new(Service(Arc::clone(&state)));
        let serving =
            Server::builder().serve_with_incoming(service, TcpListenerStream::new(listener));
        runtime.block_on(async { drop(ashlar_env::task::spawn_named("serve", serving)) });
        Self { state, address, _runtime: runtime }
    }

    /// One that points at a leader.
    pub fn follower_of(leader: &Self) -> Self {
        let follower = Self::start();
        let refusal = ApiError::new(Reason::NotLeader, "another member leads")
            .with("leader", "1")
            .with("leader_address", leader.address.to_string());
        follower.refuse(refusal);
        follower
    }

    /// Refuses every registration from now on.
    pub fn refuse(&self, refusal: ApiError) {
        self.state.lock().unwrap().refuses = Some(refusal);
    }

    /// Takes calls and does not answer them, until it is told otherwise.
    pub fn be_silent(&self, silent: bool) {
        self.state.lock().unwrap().silent.send_replace(silent);
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Another leadership speaks from now on, or one of before does again.
    pub fn speak_for(&self, term: u64) {
        self.state.lock().unwrap().term = term;
    }

    /// Hands a configuration to all its nodes, and again to those that come back.
    pub fn commit(&self, config: &ChunkConfig) {
        let mut state = self.state.lock().unwrap();
        state.configs.insert(config.chunk, config.clone());
        let down = ControlDown::Configs(vec![config.clone()]);
        for replica in config.replicas() {
            state.tell(replica.node, &down);
        }
    }

    pub fn registration(&self, node: NodeId) -> Option<Registration> {
        self.state.lock().unwrap().registered.get(&node).cloned()
    }

    pub fn heartbeat(&self, node: NodeId) -> Option<Heartbeat> {
        self.state.lock().unwrap().heartbeats.get(&node).cloned()
    }

    pub fn report(&self, node: NodeId, chunk: ChunkId) -> Option<ReplicaReport> {
        self.state.lock().unwrap().reports.get(&(node, chunk)).copied()
    }

    pub fn proposals(&self) -> Vec<Proposal> {
        self.state.lock().unwrap().proposals.clone()
    }

    /// Forgets what was said, so that only what comes from now on is seen.
    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.heartbeats.clear();
        state.reports.clear();
        state.registered.clear();
    }

    pub fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }
}
