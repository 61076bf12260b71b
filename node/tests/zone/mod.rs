//! A zone for the tests of the node's shell: real nodes on loopback, each on a thread of its own,
//! and a control plane that does what the test says, over the real stream.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test's harness, shared by several tests"
)]

pub mod client;
pub mod control;

use ashlar_node::{Config, RunError, run_until};
use ashlar_types::message::cluster::{PathState, Registration, ReplicaState};
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, Incarnation, NodeId, ReplicaId, VolumeId,
};
use client::Client;
use control::ControlPlane;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Everything here takes milliseconds; a loaded host gets this.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Blocks of the tests' chunks.
pub const BLOCKS: u32 = 1024;

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Bytes of this process, nodes included, that are in memory.
pub fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

pub fn chunk(index: u32) -> ChunkId {
    ChunkId { volume: VolumeId { zone: "t".parse().unwrap(), uuid: 7 }, index: ChunkIndex(index) }
}

/// A running node.
pub struct Node {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
}

impl Node {
    pub fn start(config: Config) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(format!("node-{}", config.node.0))
            .spawn(move || {
                run_until(&config, async {
                    stopped.await.ok();
                })
            })
            .unwrap();
        Self { stop: Some(stop), thread: Some(thread) }
    }

    pub fn stop(&mut self) -> Result<(), RunError> {
        drop(self.stop.take());
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap())
    }

    /// Waits for a node that ends by itself.
    pub fn join(&mut self) -> Result<(), RunError> {
        until("the node to end", || self.thread.as_ref().unwrap().is_finished().then_some(()));
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop().ok();
    }
}

/// Nodes and their control plane.
pub struct Zone {
    pub control: Option<ControlPlane>,
    pub nodes: BTreeMap<u32, Node>,
    configs: BTreeMap<u32, Config>,
    _folder: tempfile::TempDir,
}

/// A port that is free now, outside the range of outgoing connections, so that it stays free.
pub fn free_address(ip: &str) -> SocketAddr {
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    (first..32_000)
        .map(|port| SocketAddr::new(ip.parse().unwrap(), port))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}

/// Of a node 1 that has its control plane to itself.
pub fn lone_config(test: u8, folder: &std::path::Path, control: &[String]) -> Config {
    format!(
        "zone = \"t\"\nnode = 1\ndata_dir = {folder:?}\nprimary_address = \"{}\"\n\
         replication_address = \"{}\"\ncontrol = {control:?}\njournal_bytes = {}\n\
         capacity_bytes = {}\n",
        free_address(&format!("127.1.{test}.1")),
        free_address(&format!("127.2.{test}.1")),
        16 << 20,
        256 << 20,
    )
    .parse()
    .unwrap()
}

impl Zone {
    /// Starts nodes 1 to `count` and waits until all are registered. `test` keeps the addresses of
    /// tests that run at the same time apart.
    pub fn start(test: u8, count: u32) -> Self {
        Self::start_with(test, count, "")
    }

    /// The same with more lines in the nodes' configurations; `{node}` in them is the node's number.
    pub fn start_with(test: u8, count: u32, more: &str) -> Self {
        let control = ControlPlane::start();
        let folder = tempfile::tempdir().unwrap();
        let configs = (1..=count)
            .map(|node| {
                let more = more.replace("{node}", &node.to_string());
                let text = format!(
                    "zone = \"t\"\nnode = {node}\ndata_dir = {:?}\n\
                     primary_address = \"{}\"\nreplication_address = \"{}\"\n\
                     control = [\"{}\"]\njournal_bytes = {}\ncapacity_bytes = {}\n{more}\n",
                    folder.path().join(format!("node-{node}")),
                    free_address(&format!("127.1.{test}.{node}")),
                    free_address(&format!("127.2.{test}.{node}")),
                    control.address(),
                    16 << 20,
                    256 << 20,
                );
                (node, text.parse().unwrap())
            })
            .collect();
        let mut zone =
            Self { control: Some(control), nodes: BTreeMap::new(), configs, _folder: folder };
        for node in 1..=count {
            zone.start_node(node);
        }
        for node in 1..=count {
            zone.registration(node);
        }
        zone
    }

    /// The folder of a node's store.
    pub fn store(&self, node: u32) -> std::path::PathBuf {
        self.configs[&node].data_dir.join("store")
    }

    pub fn config(&self, node: u32) -> &Config {
        &self.configs[&node]
    }

    pub fn start_node(&mut self, node: u32) {
        self.nodes.insert(node, Node::start(self.configs[&node].clone()));
    }

    pub fn stop_node(&mut self, node: u32) {
        self.nodes.remove(&node).unwrap().stop().unwrap();
    }

    pub fn control(&self) -> &ControlPlane {
        self.control.as_ref().unwrap()
    }

    pub fn registration(&self, node: u32) -> Registration {
        until("a registration", || self.control().registration(NodeId(node)))
    }

    /// The replica that a node has on the store of this number.
    pub fn replica_on(&self, node: u32, store: usize) -> ReplicaId {
        let store = self.registration(node).stores[store];
        ReplicaId { node: NodeId(node), store, incarnation: Incarnation(1) }
    }

    pub fn replica(&self, node: u32) -> ReplicaId {
        let store = self.registration(node).stores[0];
        ReplicaId { node: NodeId(node), store, incarnation: Incarnation(1) }
    }

    /// A configuration with the nodes as members, the first as primary.
    pub fn members(&self, index: u32, epoch: u64, nodes: &[u32]) -> ChunkConfig {
        let in_sync: Vec<_> = nodes.iter().map(|node| self.replica(*node)).collect();
        ChunkConfig {
            chunk: chunk(index),
            blocks: BLOCKS,
            epoch: Epoch(epoch),
            elected: Epoch(epoch),
            generation: Generation(1),
            primary: in_sync[0],
            in_sync,
            learners: Vec::new(),
            stale: Vec::new(),
            copies_wanted: 3,
            copies_min: 2,
        }
    }

    /// Commits a configuration and waits until its primary serves.
    pub fn configure(&self, config: &ChunkConfig) {
        self.control().commit(config);
        self.wait_serving(config);
    }

    pub fn wait_serving(&self, config: &ChunkConfig) {
        until("the primary to serve", || {
            let report = self.control().report(config.primary.node, config.chunk)?;
            (report.adopted == config.epoch && report.state == ReplicaState::Serving).then_some(())
        });
    }

    /// Waits until `node` reports the state of both paths to `peer`.
    pub fn wait_evidence(&self, node: u32, peer: u32, wanted: impl Fn(PathState) -> bool) {
        until("evidence about a peer", || {
            let heartbeat = self.control().heartbeat(NodeId(node))?;
            let seen = heartbeat.peers.iter().find(|seen| seen.node == NodeId(peer))?;
            (wanted(seen.primary_net) && wanted(seen.replication_net)).then_some(())
        });
    }

    pub fn client(&self, node: u32) -> Client {
        Client::open(self.configs[&node].primary_address)
    }
}
