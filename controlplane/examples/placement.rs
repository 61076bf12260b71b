//! How long a volume takes to be placed, how even the nodes fill, and with how many each shares chunks.
//!
//! `cargo run --release -p ashlar-controlplane --example placement`: volumes of 1,024 chunks, three copies,
//! one after the other, in zones of several sizes; then a node dies, and each of its chunks finds a home.

use anyhow::Context;
use ashlar_controlplane_core::command::{Action, Command, ErrorAfter, NodeRecord};
use ashlar_controlplane_core::observe::Observations;
use ashlar_controlplane_core::place::{Space, Wanted, place_volume};
use ashlar_controlplane_core::state::ZoneState;
use ashlar_controlplane_core::verdict::{Verdict, judge_all};
use ashlar_types::message::cluster::{Heartbeat, ScrubState, StoreState};
use ashlar_types::{Geometry, NodeId, StartNumber, StoreId, Time, VolumeId, ZoneId};
use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

const VOLUMES: u128 = 20;
const CHUNK_BYTES: u64 = 64 << 20;

fn main() -> anyhow::Result<()> {
    for nodes in [12, 33, 34, 100, 300, 1_000] {
        for racks in [0, 7] {
            let line = measure(nodes, racks)?;
            writeln!(std::io::stdout(), "{line}")?;
        }
    }
    Ok(())
}

fn zone() -> anyhow::Result<ZoneId> {
    "a".parse().context("a zone's name")
}

/// Nodes with a store of 4 TiB each, in so many racks; all are well.
fn zone_of(nodes: u32, racks: u32) -> anyhow::Result<(ZoneState, Observations)> {
    let mut state = ZoneState::new(zone()?);
    let mut seen = Observations::new(Time::from_millis(0));
    for number in 1..=nodes {
        let store = StoreId(number.into());
        let rack = if racks == 0 { String::new() } else { format!("r{}", number % racks) };
        let node = NodeRecord {
            node: NodeId(number),
            stores: vec![store],
            start: StartNumber(1),
            primary_address: String::new(),
            replication_address: String::new(),
            rack,
        };
        let command = Command { at_millis: 1, action: Action::RegisterNode { node } };
        state.apply(&command).answer?;
        seen.on_connected(Time::from_millis(1), NodeId(number));
        let scrub = ScrubState::default();
        let stores = vec![StoreState { store, capacity_bytes: 4 << 40, used_bytes: 0, scrub }];
        let beat = Heartbeat { stores, peers: Vec::new() };
        seen.on_heartbeat(Time::from_millis(900), NodeId(number), beat);
    }
    seen.on_tick(Time::from_millis(200));
    Ok((state, seen))
}

fn measure(nodes: u32, racks: u32) -> anyhow::Result<String> {
    let (mut state, seen) = zone_of(nodes, racks)?;
    let now = Time::from_millis(1_000);
    let (mut longest, mut total) = (Duration::ZERO, Duration::ZERO);
    for number in 1..=VOLUMES {
        let geometry = Geometry::new(1_024 * CHUNK_BYTES, CHUNK_BYTES)?;
        let verdicts = judge_all(now, &state, &seen);
        let begun = Instant::now();
        let placement = place_volume(geometry, 3, Space::of(&state, &seen, &verdicts))?;
        let took = begun.elapsed();
        longest = longest.max(took);
        total += took;
        let volume = VolumeId { zone: zone()?, uuid: number };
        let name = format!("v{number}");
        let (token, copies_wanted, copies_min) = (None, 3, 2);
        let action = Action::CreateVolume {
            token,
            volume,
            name,
            geometry,
            copies_wanted,
            copies_min,
            placement,
            error_after: ErrorAfter::default(),
        };
        state.apply(&Command { at_millis: 1, action }).answer?;
    }
    let (least_peers, most_peers) = bounds(state.nodes().map(|n| state.peers_of(n.node) as u64));
    let (emptiest, fullest) =
        bounds(state.nodes().map(|n| state.allocated_on(n.node, n.first_store()) / CHUNK_BYTES));
    let (homes, each, chunks, search) = death(&state, &seen, NodeId(nodes / 2))?;
    Ok(format!(
        "{nodes:4} nodes, {racks} racks: 1,024 chunks in {:.1} ms (longest {:.1}); peers {least_peers} to \
         {most_peers}; chunks {emptiest} to {fullest}; {chunks} of a dead node to {homes} others, {each} at \
         most, {:.0} us each",
        total.as_secs_f64() * 1e3 / VOLUMES as f64,
        longest.as_secs_f64() * 1e3,
        search.as_secs_f64() * 1e6,
    ))
}

fn bounds(values: impl Iterator<Item = u64>) -> (u64, u64) {
    values.fold((u64::MAX, 0), |(least, most), value| (least.min(value), most.max(value)))
}

/// A new home for each chunk of a node, as in one plan: how many take part, the most of one, all, and the
/// time of one search.
fn death(
    state: &ZoneState,
    seen: &Observations,
    dead: NodeId,
) -> anyhow::Result<(usize, usize, usize, Duration)> {
    let mut verdicts = judge_all(Time::from_millis(1_000), state, seen);
    verdicts.insert(dead, Verdict::Dead { cause: "measured".into() });
    let begun = Instant::now();
    let mut space = Space::of(state, seen, &verdicts);
    let mut homes: Vec<NodeId> = Vec::new();
    for config in state.configs_of_node(dead) {
        let holders: Vec<NodeId> = config.replicas().map(|replica| replica.node).collect();
        let apart = holders.iter().copied().filter(|node| *node != dead).collect();
        let wanted = Wanted { bytes: CHUNK_BYTES, not: holders.clone(), holders, apart };
        homes.push(space.take_one(&wanted).context("a home")?.node);
    }
    let took = begun.elapsed() / u32::try_from(homes.len().max(1))?;
    let distinct: BTreeSet<NodeId> = homes.iter().copied().collect();
    let count = |node: &NodeId| homes.iter().filter(|home| *home == node).count();
    let most = distinct.iter().map(count).max().unwrap_or(0);
    Ok((distinct.len(), most, homes.len(), took))
}
