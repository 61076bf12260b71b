//! The zone's control plane in the simulation: the real state, judgement and planner.

use crate::net::{Host, Wire};
use crate::node::SimNode;
use crate::world::{Event, World};
use ashlar_client_core as client;
use ashlar_controlplane_core::apply::Answer;
use ashlar_controlplane_core::command::{Action, Command, NodeRecord};
use ashlar_controlplane_core::observe::{Observations, ProbeResult};
use ashlar_controlplane_core::place::{self, Space};
use ashlar_controlplane_core::plan::plan;
use ashlar_controlplane_core::state::ZoneState;
use ashlar_controlplane_core::verdict;
use ashlar_node_core as node;
use ashlar_types::message::cluster::{ControlDown, ControlUp};
use ashlar_types::message::data::Network;
use ashlar_types::{
    ChunkConfig, ChunkId, Epoch, Generation, Geometry, NodeId, Time, VolumeId, ZoneId,
};
use std::collections::BTreeMap;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

/// What happens at or to the control plane.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    Tick,
    Open { node: NodeId, life: u64 },
    Lost { node: NodeId, life: u64 },
    Up { node: NodeId, life: u64, message: ControlUp },
    Down { node: NodeId, life: u64, message: ControlDown },
    Map,
}

/// The control plane.
#[derive(Debug)]
pub(crate) struct SimControl {
    pub(crate) state: ZoneState,
    seen: Observations,
    /// Process of each node whose stream is open, and the newest epoch sent to it.
    streams: BTreeMap<NodeId, (u64, BTreeMap<ChunkId, Epoch>)>,
}

impl SimControl {
    pub(crate) fn new(zone: ZoneId) -> Self {
        Self {
            state: ZoneState::new(zone),
            seen: Observations::new(Time::ZERO),
            streams: BTreeMap::new(),
        }
    }

    fn commit(&mut self, now: Time, action: Action) -> Option<Answer> {
        let command = Command { at_millis: now.as_nanos() / 1_000_000, action };
        let applied = self.state.apply(&command);
        let chunks = self.state.configs().map(|config| config.chunk).collect();
        self.seen.on_applied(&self.state, &chunks);
        applied.answer.ok()
    }

    /// Configurations of all chunks of a volume.
    pub(crate) fn configs(&self, volume: VolumeId) -> Vec<ChunkConfig> {
        self.state.volume_configs(volume).cloned().collect()
    }
}

impl World {
    /// Makes a volume and attaches it, once enough nodes are known; gives its map.
    pub(crate) fn create_volume(
        &mut self,
        geometry: Geometry,
        copies: u8,
    ) -> Option<(VolumeId, Generation, Vec<ChunkConfig>)> {
        let (now, control) = (self.now, &mut self.control);
        let verdicts = verdict::judge_all(now, &control.state, &control.seen);
        let space = Space::of(&control.state, &control.seen, &verdicts);
        let placement =
            place::place_volume(geometry, usize::from(copies), space, &control.state).ok()?;
        let volume = VolumeId { zone: control.state.zone(), uuid: 7 };
        control.commit(
            now,
            Action::CreateVolume {
                token: None,
                volume,
                name: "demo".into(),
                geometry,
                copies_wanted: copies,
                copies_min: 2.min(copies),
                placement,
            },
        )?;
        let action =
            Action::Attach { token: None, volume, client_name: "client".into(), force: false };
        control.commit(now, action)?;
        let configs = control.configs(volume);
        let generation = configs.first()?.generation;
        self.send_configs();
        Some((volume, generation, configs))
    }

    pub(crate) fn begin_control(&mut self) {
        self.schedule_in(TICK, Event::Control(ControlEvent::Tick));
    }

    pub(crate) fn control_dial(&mut self, node: NodeId, life: u64) {
        let wait = Duration::from_millis(1) + self.draw(Duration::from_millis(100));
        self.schedule_in(wait, Event::Control(ControlEvent::Open { node, life }));
    }

    pub(crate) fn control_lost(&mut self, node: NodeId) {
        let life = self.life(node);
        let wait = self.draw(Duration::from_millis(100));
        self.schedule_in(wait, Event::Control(ControlEvent::Lost { node, life }));
    }

    fn control_cut(&self, node: NodeId) -> bool {
        let network = Network::Primary;
        let up = Wire { from: Host::Node(node), to: Host::Member(1), network };
        let down = Wire { from: Host::Member(1), to: Host::Node(node), network };
        self.net.is_cut(up) || self.net.is_cut(down)
    }

    pub(crate) fn control_send_up(&mut self, node: NodeId, life: u64, message: ControlUp) {
        if self.control_cut(node) {
            return;
        }
        let wait = self.net.delay(&mut self.dice);
        self.schedule_in(wait, Event::Control(ControlEvent::Up { node, life, message }));
    }

    fn control_send_down(&mut self, node: NodeId, message: ControlDown) {
        let Some((life, _)) = self.control.streams.get(&node) else { return };
        let life = *life;
        if self.control_cut(node) {
            return;
        }
        let wait = self.net.delay(&mut self.dice);
        self.schedule_in(wait, Event::Control(ControlEvent::Down { node, life, message }));
    }

    pub(crate) fn refresh_map(&mut self) {
        let wait = self.net.delay(&mut self.dice) * 2;
        self.schedule_in(wait, Event::Control(ControlEvent::Map));
    }

    pub(crate) fn control_event(&mut self, event: ControlEvent) {
        let now = self.now;
        match event {
            ControlEvent::Tick => {
                self.control.seen.on_tick(now);
                self.plan_and_commit();
                self.send_erasures();
                self.schedule_in(TICK, Event::Control(ControlEvent::Tick));
            }
            ControlEvent::Open { node, life } => self.open_stream(node, life),
            ControlEvent::Lost { node, life } => {
                if self.control.streams.get(&node).is_some_and(|(known, _)| *known == life) {
                    self.control.streams.remove(&node);
                    self.control.seen.on_disconnected(now, node);
                    self.plan_and_commit();
                }
            }
            ControlEvent::Up { node, life, message } => {
                if self.control.streams.get(&node).is_some_and(|(known, _)| *known == life) {
                    self.take_up(node, message);
                }
            }
            ControlEvent::Down { node, life, message } => {
                if self.lives(node, life) {
                    self.input(node, node::Input::Control(message));
                }
            }
            ControlEvent::Map => {
                let configs = self.control.state.configs().cloned().collect();
                self.client_input(client::Input::Map { configs });
            }
        }
    }

    fn take_up(&mut self, node: NodeId, message: ControlUp) {
        let now = self.now;
        let SimControl { state, seen, .. } = &mut self.control;
        match message {
            ControlUp::Heartbeat(beat) => seen.on_heartbeat(now, node, beat),
            ControlUp::Replicas(reports) => seen.on_reports(state, node, reports),
            ControlUp::Propose(proposals) => seen.on_proposals(state, node, proposals),
        }
        self.plan_and_commit();
    }

    fn open_stream(&mut self, id: NodeId, life: u64) {
        if !self.lives(id, life) {
            return;
        }
        if self.control_cut(id) {
            self.control_dial(id, life);
            return;
        }
        let Some(identity) = self.nodes.get(&id).map(|node| node.identity) else { return };
        let record = NodeRecord {
            node: id,
            store: identity.store,
            start: identity.start,
            primary_address: format!("127.1.1.{}:1", id.0),
            replication_address: format!("127.2.1.{}:1", id.0),
        };
        let now = self.now;
        let _ = self.control.commit(now, Action::RegisterNode { node: record });
        self.control.seen.on_connected(now, id);
        self.control.streams.insert(id, (life, BTreeMap::new()));
        let space = node::Input::Space { capacity_bytes: 1 << 40, used_bytes: 0 };
        self.input(id, space);
        self.input(id, node::Input::ControlUp);
        self.send_configs();
    }

    /// Plans until nothing is left to do, as the leader does after every input.
    fn plan_and_commit(&mut self) {
        let now = self.now;
        let planned = plan(now, &self.control.state, &self.control.seen);
        self.control.seen.forget_proposals(&planned.judged);
        for node in planned.probes {
            self.control.seen.on_probe_asked(now, node);
            let up = self.nodes.get(&node).is_some_and(SimNode::is_up);
            let result = match (up, self.control_cut(node)) {
                (_, true) => ProbeResult::NoAnswer,
                (true, false) => ProbeResult::Connected,
                (false, false) => ProbeResult::Refused,
            };
            for network in [Network::Primary, Network::Replication] {
                self.control.seen.on_probe(now, node, network, result);
            }
        }
        if !planned.changes.is_empty() {
            let _ = self.control.commit(now, Action::Change { changes: planned.changes });
            self.send_configs();
        }
        if !planned.erased.is_empty() {
            let _ = self.control.commit(now, Action::Forget { replicas: planned.erased });
        }
        if !planned.ready.is_empty() {
            let _ = self.control.commit(now, Action::MarkReady { volumes: planned.ready });
        }
    }

    /// Orders what is to be erased, again and again until it is confirmed.
    fn send_erasures(&mut self) {
        let orders: Vec<_> = self.control.state.erasures().collect();
        for (chunk, replica) in orders {
            self.control_send_down(replica.node, ControlDown::Erase(vec![(chunk, replica)]));
        }
    }

    /// Sends every node the configurations that it has not been sent.
    fn send_configs(&mut self) {
        let mut sends = Vec::new();
        for (id, (_, sent)) in &mut self.control.streams {
            let newer: Vec<ChunkConfig> = self
                .control
                .state
                .configs_of_node(*id)
                .filter(|config| sent.get(&config.chunk).is_none_or(|e| *e < config.epoch))
                .cloned()
                .collect();
            sent.extend(newer.iter().map(|config| (config.chunk, config.epoch)));
            if !newer.is_empty() {
                sends.push((*id, newer));
            }
        }
        for (id, configs) in sends {
            self.control_send_down(id, ControlDown::Configs(configs));
        }
    }
}
