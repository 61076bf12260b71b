//! `ashlar node`: runs a storage node, lists those of a zone, and drains them.
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
use crate::{Global, completion, process, size};
use balance::BalanceView;
use drain::DrainView;

mod balance;
mod drain;

/// Commands about nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a storage node until it is told to end.
    Run {
        /// Its configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// A folder for a store, in place of those of the configuration; once for each disk.
        #[arg(long = "store", value_name = "DIR")]
        stores: Vec<PathBuf>,
        /// Label of the node's rack, in place of that of the configuration: copies of a chunk are kept
        /// under different labels where that is possible.
        #[arg(long, value_name = "LABEL")]
        rack: Option<String>,
    },
    /// List the nodes of all zones.
    List {
        /// Only those of this zone.
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
    },
    /// Show a node with its stores: room, replicas, how far their scrubs are.
    Show {
        /// Its name, as `node list` shows it (node-1), or its number.
        #[arg(add = completion::nodes())]
        node: String,
        /// The zone, if several have a node of that number.
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
    },
    /// Move everything that a node holds to others, under load, so that it can be stopped.
    ///
    /// Each copy is in sync elsewhere before the one on the node is given up. The node takes no new
    /// ones until the drain is cancelled. `node show`, `node list` and `status` say how far it is.
    Drain(drain::Arguments),
}

/// Runs the command.
///
/// # Errors
/// What the node or the control plane refused.
pub(crate) fn run(command: Command, global: &Global, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Run { config, stores, rack } => {
            process::die_with_parent();
            crate::logging::start("info");
            run_node(&config, stores, rack)
        }
        Command::List { zone: named } => {
            process::end_on_broken_pipe();
            output.show(&list(named, global)?)
        }
        Command::Show { node, zone } => {
            process::end_on_broken_pipe();
            output.show(&find("show", &node, list(zone, global)?)?)
        }
        Command::Drain(arguments) => {
            process::end_on_broken_pipe();
            drain::run(arguments, global, output)
        }
    }
}

fn list(zone: Option<String>, global: &Global) -> Result<NodeList, Failure> {
    let request = v1::ListNodesRequest { zone: zone.unwrap_or_default() };
    let answer = Zone::find(global)?.ask("list nodes", |channel| {
        let request = request.clone();
        async move { ClusterServiceClient::new(channel).list_nodes(request).await }
    })?;
    let mut unreachable_zones = Vec::new();
    missing::add(&mut unreachable_zones, &answer.unreachable_zones);
    let nodes = answer.nodes.iter().map(NodeView::from).collect();
    Ok(NodeList { nodes, unreachable_zones })
}

/// The one node of that name, for what is to be done with it.
fn find(verb: &str, name: &str, list: NodeList) -> Result<NodeView, Failure> {
    let what = || format!("{verb} node {name}");
    let named = |node: &NodeView| node.id == name || node.id.strip_prefix("node-") == Some(name);
    let known = list.nodes.iter().map(|node| format!("{} of zone {}", node.id, node.zone));
    let known: Vec<String> = known.collect();
    let mut found = list.nodes.into_iter().filter(named);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (Some(one), Some(other)) => Err(Failure::new(Kind::Usage, what()).because(format!(
            "zones {} and {} both have it; name one by --zone",
            one.zone, other.zone
        ))),
        (None, _) => {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let why = format!("there is no such node; there are: {known}");
            Err(Failure::new(Kind::NotFound, what()).because(why))
        }
    }
}

fn run_node(path: &Path, stores: Vec<PathBuf>, rack: Option<String>) -> Result<(), Failure> {
    let what = || format!("run the node of {}", path.display());
    let usage = |error| Failure::new(Kind::Usage, what()).because(error);
    let mut config = ashlar_node::Config::load(path).map_err(usage)?;
    if !stores.is_empty() {
        config = config.with_stores(stores).map_err(usage)?;
    }
    if let Some(label) = rack {
        config = config.with_rack(label).map_err(usage)?;
    }
    ashlar_node::run_blocking(&config)
        .map_err(|error| Failure::new(Kind::Error, what()).because(error))
}

/// A store as it is printed.
#[derive(Debug, Serialize)]
struct StoreView {
    id: String,
    capacity_bytes: u64,
    used_bytes: u64,
    replicas: u32,
    /// Times that every block was read since the process started.
    scrub_cycles: u64,
    /// Thousandths of the present cycle; all of them between two cycles.
    scrub_done_permille: u32,
    scrub_bytes_per_second: u64,
}

impl From<&v1::Store> for StoreView {
    fn from(store: &v1::Store) -> Self {
        let scrub = store.scrub.unwrap_or_default();
        Self {
            id: store.id.clone(),
            capacity_bytes: store.capacity_bytes,
            used_bytes: store.used_bytes,
            replicas: store.replicas,
            scrub_cycles: scrub.cycles,
            scrub_done_permille: scrub.done_permille,
            scrub_bytes_per_second: scrub.bytes_per_second,
        }
    }
}

impl StoreView {
    const HEADER: [&'static str; 7] =
        ["STORE", "USED", "CAPACITY", "REPLICAS", "SCRUB CYCLES", "THIS CYCLE", "SCRUB RATE"];

    fn row(&self) -> [String; 7] {
        let done = match self.scrub_done_permille {
            1_000.. => "done".to_owned(),
            permille => format!("{}.{} %", permille / 10, permille % 10),
        };
        [
            self.id.clone(),
            size::show(self.used_bytes),
            size::show(self.capacity_bytes),
            self.replicas.to_string(),
            self.scrub_cycles.to_string(),
            done,
            format!("{}/s", size::show(self.scrub_bytes_per_second)),
        ]
    }
}

/// A node as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct NodeView {
    zone: String,
    id: String,
    state: &'static str,
    cause: String,
    stores: Vec<StoreView>,
    primary_address: String,
    replication_address: String,
    capacity_bytes: u64,
    used_bytes: u64,
    replicas: u32,
    primaries: u32,
    heartbeat_millis_ago: u64,
    start: u64,
    /// Label of its rack; empty: it has none.
    rack: String,
    /// Other nodes that it shares chunks with.
    peers: u32,
    /// It is drained, or being drained.
    drain: Option<DrainView>,
    /// Bytes promised on its stores.
    promised_bytes: u64,
    /// Copies move from it or to it for balance.
    balance: Option<BalanceView>,
    #[serde(skip)]
    number: u32,
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
            stores: node.stores.iter().map(StoreView::from).collect(),
            primary_address: node.primary_address.clone(),
            replication_address: node.replication_address.clone(),
            capacity_bytes: node.capacity_bytes,
            used_bytes: node.used_bytes,
            replicas: node.replicas,
            primaries: node.primaries,
            heartbeat_millis_ago: node.heartbeat_millis_ago,
            start: node.start,
            rack: node.rack.clone(),
            peers: node.peers,
            drain: node.drain.as_ref().map(DrainView::from),
            promised_bytes: node.promised_bytes,
            balance: node.balance.as_ref().map(BalanceView::from),
            number: node.id,
        }
    }
}

impl NodeView {
    /// Heads of [`NodeView::row`].
    pub(crate) const HEADER: [&'static str; 10] = [
        "NODE",
        "STATE",
        "RACK",
        "PRIMARY NET",
        "REPLICATION NET",
        "USED",
        "CAPACITY",
        "STORES",
        "REPLICAS",
        "CAUSE",
    ];

    /// Whether its heartbeats arrive.
    pub(crate) fn is_up(&self) -> bool {
        self.state == "up"
    }

    /// How far its drain is, and what moves for balance, in words; nothing, if nothing moves.
    pub(crate) fn move_sentences(&self) -> Vec<String> {
        let balance = self.balance.as_ref().map(|balance| balance.sentence(&self.id));
        self.drain_sentences().into_iter().chain(balance).collect()
    }

    /// How far its drain is, in words; nothing, if it is not drained.
    pub(crate) fn drain_sentences(&self) -> Vec<String> {
        self.drain.as_ref().map(|drain| drain.sentences(&self.id)).unwrap_or_default()
    }

    /// The node as a row of a list.
    pub(crate) fn row(&self) -> [String; 10] {
        [
            self.id.clone(),
            match &self.drain {
                None if self.balance.is_some() => format!("{}, balancing", self.state),
                None => self.state.to_owned(),
                Some(drain) if drain.is_done() => format!("{}, drained", self.state),
                Some(_) => format!("{}, draining", self.state),
            },
            if self.rack.is_empty() { "-".to_owned() } else { self.rack.clone() },
            self.primary_address.clone(),
            self.replication_address.clone(),
            size::show(self.used_bytes),
            size::show(self.capacity_bytes),
            self.stores.len().to_string(),
            format!("{} ({} primary)", self.replicas, self.primaries),
            if self.cause.is_empty() { "-".to_owned() } else { self.cause.clone() },
        ]
    }
}

impl Show for NodeView {
    fn table(&self) -> String {
        let node = columns(Self::HEADER, [self.row()]);
        let stores = columns(StoreView::HEADER, self.stores.iter().map(StoreView::row));
        let mut parts = vec![node, stores];
        parts.extend(self.move_sentences());
        parts.join("\n")
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
            let [id, state, rack, primary, replication, used, capacity, stores, replicas, cause] =
                node.row();
            let zone = node.zone.clone();
            [zone, id, state, rack, primary, replication, used, capacity, stores, replicas, cause]
        };
        let [id, state, rack, primary, replication, used, capacity, stores, replicas, cause] =
            NodeView::HEADER;
        let header = [
            "ZONE",
            id,
            state,
            rack,
            primary,
            replication,
            used,
            capacity,
            stores,
            replicas,
            cause,
        ];
        let mut parts = vec![columns(header, self.nodes.iter().map(in_zone))];
        parts.extend(self.nodes.iter().flat_map(NodeView::move_sentences));
        missing::below(parts.join("\n"), &self.unreachable_zones)
    }
}
