//! `ashlar node`: runs a storage node, and lists those of a zone.
//!
//! The node itself is the crate in `node/`; this file reads its configuration and starts it.

use std::path::{Path, PathBuf};

use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use clap::Subcommand;
use serde::Serialize;

use crate::connect::Zone;
use crate::failure::{Failure, Kind};
use crate::missing::{self, MissingZone};
use crate::render::{Output, Show, columns};
use crate::{Global, process, size};

/// Commands about nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a storage node until it is told to end.
    Run {
        /// Its configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// List the nodes of all zones.
    List {
        /// Only those of this zone.
        #[arg(long)]
        zone: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// What the node or the control plane refused.
pub(crate) fn run(command: Command, global: &Global, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Run { config } => {
            process::die_with_parent();
            crate::logging::start("info");
            run_node(&config)
        }
        Command::List { zone: named } => {
            process::end_on_broken_pipe();
            let request = v1::ListNodesRequest { zone: named.unwrap_or_default() };
            let answer = Zone::find(global)?.ask("list nodes", |channel| {
                let request = request.clone();
                async move { ClusterServiceClient::new(channel).list_nodes(request).await }
            })?;
            let mut unreachable_zones = Vec::new();
            missing::add(&mut unreachable_zones, &answer.unreachable_zones);
            let nodes = answer.nodes.iter().map(NodeView::from).collect();
            output.show(&NodeList { nodes, unreachable_zones })
        }
    }
}

fn run_node(path: &Path) -> Result<(), Failure> {
    let what = || format!("run the node of {}", path.display());
    let config = ashlar_node::Config::load(path)
        .map_err(|error| Failure::new(Kind::Usage, what()).because(error))?;
    ashlar_node::run_blocking(&config)
        .map_err(|error| Failure::new(Kind::Error, what()).because(error))
}

/// A node as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct NodeView {
    zone: String,
    id: String,
    state: &'static str,
    cause: String,
    store: String,
    primary_address: String,
    replication_address: String,
    capacity_bytes: u64,
    used_bytes: u64,
    replicas: u32,
    primaries: u32,
    heartbeat_millis_ago: u64,
    start: u64,
}

impl From<&v1::Node> for NodeView {
    fn from(node: &v1::Node) -> Self {
        Self {
            zone: node.zone.clone(),
            id: format!("node-{}", node.id),
            state: match node.state() {
                v1::NodeState::Unspecified | v1::NodeState::Unknown => "unknown",
                v1::NodeState::Up => "up",
                v1::NodeState::Dead => "dead",
            },
            cause: node.cause.clone(),
            store: node.store.clone(),
            primary_address: node.primary_address.clone(),
            replication_address: node.replication_address.clone(),
            capacity_bytes: node.capacity_bytes,
            used_bytes: node.used_bytes,
            replicas: node.replicas,
            primaries: node.primaries,
            heartbeat_millis_ago: node.heartbeat_millis_ago,
            start: node.start,
        }
    }
}

impl NodeView {
    /// Heads of [`NodeView::row`].
    pub(crate) const HEADER: [&'static str; 8] = [
        "NODE",
        "STATE",
        "PRIMARY NET",
        "REPLICATION NET",
        "USED",
        "CAPACITY",
        "REPLICAS",
        "CAUSE",
    ];

    /// Whether its heartbeats arrive.
    pub(crate) fn is_up(&self) -> bool {
        self.state == "up"
    }

    /// The node as a row of a list.
    pub(crate) fn row(&self) -> [String; 8] {
        [
            self.id.clone(),
            self.state.to_owned(),
            self.primary_address.clone(),
            self.replication_address.clone(),
            size::show(self.used_bytes),
            size::show(self.capacity_bytes),
            format!("{} ({} primary)", self.replicas, self.primaries),
            if self.cause.is_empty() { "-".to_owned() } else { self.cause.clone() },
        ]
    }
}

#[derive(Debug, Serialize)]
struct NodeList {
    nodes: Vec<NodeView>,
    /// Zones whose nodes are missing.
    unreachable_zones: Vec<MissingZone>,
}

impl Show for NodeList {
    fn table(&self) -> String {
        let in_zone = |node: &NodeView| {
            let [id, state, primary, replication, used, capacity, replicas, cause] = node.row();
            let zone = node.zone.clone();
            [zone, id, state, primary, replication, used, capacity, replicas, cause]
        };
        let [id, state, primary, replication, used, capacity, replicas, cause] = NodeView::HEADER;
        let header = ["ZONE", id, state, primary, replication, used, capacity, replicas, cause];
        let table = columns(header, self.nodes.iter().map(in_zone));
        missing::below(table, &self.unreachable_zones)
    }
}
