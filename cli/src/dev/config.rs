//! Writes the configuration of each process of a `dev` cluster.
//!
//! What differs from the defaults of a real installation stands here and nowhere else: small
//! journals, small capacity.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::layout::{Cluster, Layout, MemberEntry, NodeEntry, ZoneEntry};

/// Journal of a node (issue 2): small, so that replay is exercised and start is quick.
const JOURNAL_BYTES: u64 = 32 << 20;

/// What a node offers. Thin, so the host needs only what is written.
const CAPACITY_BYTES: u64 = 16 << 30;

/// Most stores of a node here.
pub(crate) const STORES_MAX: u8 = 8;

/// How long a replica that is away is waited for before another node is filled (design.md section 7
/// names this value for `dev`): long enough for a restart by hand, short enough to watch.
const READOPT_WINDOW_SECONDS: u64 = 30;

/// As `ashlar_controlplane::Config` reads it.
#[derive(Debug, Serialize)]
struct MemberConfig<'a> {
    zone: &'a str,
    member: u8,
    data_dir: String,
    listen: String,
    /// The zone is being made: an empty folder is no loss.
    bootstrap: bool,
    peers: BTreeMap<String, String>,
    /// All zones and where their members are.
    zones: BTreeMap<String, Vec<String>>,
}

/// As `ashlar_node::Config` reads it.
#[derive(Debug, Serialize)]
struct NodeConfig<'a> {
    zone: &'a str,
    node: u8,
    data_dir: String,
    stores: Vec<String>,
    primary_address: String,
    replication_address: String,
    control: Vec<String>,
    journal_bytes: u64,
    capacity_bytes: u64,
    readopt_window_seconds: u64,
}

/// Writes all configuration files; each node has at least so many stores.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_all(layout: &Layout, cluster: &Cluster, stores: u8) -> anyhow::Result<()> {
    let zones: BTreeMap<String, Vec<String>> = cluster
        .zones
        .iter()
        .map(|zone| {
            let members = zone.members.iter().map(|member| member.address.to_string());
            (zone.name.clone(), members.collect())
        })
        .collect();
    for zone in &cluster.zones {
        for member in &zone.members {
            let mut config = member_config(layout, zone, member);
            config.zones.clone_from(&zones);
            write(layout, &zone.member_name(member), &config)?;
        }
        for node in &zone.nodes {
            write(layout, &zone.node_name(node), &node_config(layout, zone, node, stores))?;
        }
    }
    Ok(())
}

fn write(layout: &Layout, name: &str, config: &impl Serialize) -> anyhow::Result<()> {
    let text = toml::to_string(config).with_context(|| format!("render {name}'s configuration"))?;
    fs::create_dir_all(layout.data(name)).with_context(|| format!("make {name}'s folder"))?;
    fs::write(layout.config(name), text).with_context(|| format!("write {name}'s configuration"))
}

fn member_config<'a>(
    layout: &Layout,
    zone: &'a ZoneEntry,
    member: &MemberEntry,
) -> MemberConfig<'a> {
    MemberConfig {
        zone: &zone.name,
        member: member.id,
        data_dir: layout.data(&zone.member_name(member)).display().to_string(),
        listen: member.address.to_string(),
        bootstrap: !layout.formed().exists(),
        peers: zone
            .members
            .iter()
            .map(|peer| (peer.id.to_string(), peer.address.to_string()))
            .collect(),
        zones: BTreeMap::new(),
    }
}

/// Folders of a node's stores: those that it has, and more up to what is asked for. Each stands for a
/// disk, so more may come at any start; none goes by itself.
fn stores(data: &Path, wanted: u8) -> Vec<String> {
    let name = |number: u8| match number {
        1 => data.join("store"),
        more => data.join(format!("store-{more}")),
    };
    let count = (1..=STORES_MAX).take_while(|n| *n <= wanted.max(1) || name(*n).exists());
    count.map(|number| name(number).display().to_string()).collect()
}

fn node_config<'a>(
    layout: &Layout,
    zone: &'a ZoneEntry,
    node: &NodeEntry,
    wanted: u8,
) -> NodeConfig<'a> {
    let data = layout.data(&zone.node_name(node));
    NodeConfig {
        zone: &zone.name,
        node: node.id,
        stores: stores(&data, wanted),
        data_dir: data.display().to_string(),
        primary_address: node.primary.to_string(),
        replication_address: node.replication.to_string(),
        control: zone.endpoints(),
        journal_bytes: JOURNAL_BYTES,
        capacity_bytes: CAPACITY_BYTES,
        readopt_window_seconds: READOPT_WINDOW_SECONDS,
    }
}
