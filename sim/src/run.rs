//! One run: build the zone, let faults strike, heal, judge.

use crate::client::SimClient;
use crate::control::SimControl;
use crate::faults::{Fault, Swarm};
use crate::journal::Sink;
use crate::judge::Violation;
use crate::kinds::{FaultKind, Kinds, Tally};
use crate::lines::Lines;
use crate::net::{Net, Weather};
use crate::node::{End, SimNode};
use crate::region;
use crate::scenario::{Load, Scenario, Script, longest};
use crate::watch::LOOK_EVERY;
use crate::world::{Event, World};
use ashlar_client_core::{VolumeSettings, WaitPolicy};
use ashlar_controlplane::member::{Member, Reply, Request};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::Timing;
use ashlar_proto::v1;
use ashlar_types::limit::CHUNK_BYTES_FLOOR;
use ashlar_types::message::cluster::ReplicaState;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    ChunkConfig, Epoch, Generation, Geometry, NodeId, ReplicaId, RequestId, SessionId, Time, ZoneId,
};
use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A rule taken out on purpose, to show that the judge would notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing is taken out.
    #[default]
    None,
    /// Members answer a deposed primary as if no later epoch were adopted: the fence is gone.
    IgnoreEpochs,
    /// Members tell a deposed primary that it still is the primary: its reads may be stale.
    ConfirmAlways,
    /// Primaries count a secondary's acknowledgement when the write is sent, not when it comes.
    AcknowledgeEarly,
    /// Holders go on using their read leases for an hour.
    KeepLeases,
    /// Nodes do not look at the generation of a write.
    IgnoreGenerations,
    /// Learners acknowledge copies and keep holes.
    ForgetCopies,
    /// Learners do not take copies.
    SilentLearners,
    /// Members do not tell an elected primary what they have.
    SilentMembers,
    /// Nothing is broken; no warning and no error is expected, whatever the scenario lists.
    ExpectNoLine,
    /// Nothing is broken; a salvage is expected to lose nothing.
    ExpectNoLoss,
    /// The faults of a scenario strike, and do nothing.
    IdleFaults,
    /// The zone's status names no chunk that is stuck.
    HideStuck,
    /// Stores do not hold what they read against its checksum.
    NoChecksums,
    /// A gateway has one bulkhead for all zones.
    OneBulkhead,
    /// What a zone with faults fails to answer makes a difference in the zone that asked.
    SharedState,
}

/// What the zone and its load are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scene {
    /// 4 nodes, and a client that keeps its queue full: states follow each other closely.
    #[default]
    Busy,
    /// 5 nodes, 50 writes and 40 reads in a second, for a minute.
    Zone,
    /// Three zones of 4 nodes each with that load, and calls between them; faults strike one zone.
    Region,
}

impl Scene {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Zone => "zone",
            Self::Region => "region",
        }
    }

    const fn load(self) -> Load {
        match self {
            Self::Busy => Load::USUAL,
            Self::Zone | Self::Region => Load::ZONE,
        }
    }

    const fn nodes(self) -> u32 {
        match self {
            Self::Busy | Self::Region => 4,
            Self::Zone => 5,
        }
    }

    const fn zones(self) -> u32 {
        match self {
            Self::Busy | Self::Zone => 1,
            Self::Region => 3,
        }
    }

    /// How long faults strike, if nothing else is said.
    #[must_use]
    pub const fn storm(self) -> Duration {
        match self {
            Self::Busy | Self::Region => Duration::from_secs(10),
            Self::Zone => Duration::from_secs(60),
        }
    }
}

impl FromStr for Scene {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = [Self::Busy, Self::Zone, Self::Region].into_iter();
        let found = all.find(|scene| scene.name() == text);
        found.ok_or_else(|| format!("there is no scene {text:?}; there are: busy, zone, region"))
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long, how large.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where all chance comes from.
    pub seed: u64,
    /// Zone and load.
    pub scene: Scene,
    /// Zones: with several, faults strike one of them.
    pub zones: u32,
    /// Storage nodes of each zone.
    pub nodes: u32,
    /// Stores of each: what strikes a disk strikes one of them.
    pub stores: u32,
    /// Racks that the nodes of a zone stand in, in turn; 0: they have no labels.
    pub racks: u32,
    /// Simulated time during which faults strike.
    pub storm: Duration,
    /// Simulated time after which everything must be writable again, and every request answered.
    pub calm: Duration,
    /// Kinds of faults that may strike; which of them do, the seed draws.
    pub kinds: Kinds,
    /// What strikes instead of a swarm, written down.
    pub scenario: Option<&'static Scenario>,
    /// What strikes instead of a swarm: these two, within a second of each other, in this order.
    pub pair: Option<(FaultKind, FaultKind)>,
    /// The seed loses more than is promised to be survived: what is demanded then is in `beyond.rs`.
    pub beyond: bool,
    /// A rule taken out.
    pub sabotage: Sabotage,
    /// Sum up every event, to compare runs; costs a third of the time.
    pub digest: bool,
}

impl Options {
    /// The usual run of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            scene: Scene::Busy,
            zones: 1,
            nodes: Scene::Busy.nodes(),
            stores: 1,
            racks: 0,
            storm: Scene::Busy.storm(),
            calm: Duration::from_secs(60),
            kinds: Kinds::ALL,
            scenario: None,
            pair: None,
            beyond: false,
            sabotage: Sabotage::None,
            digest: true,
        }
    }

    /// The same run for one seed of many: only judged.
    #[must_use]
    pub const fn of_many(seed: u64) -> Self {
        Self { digest: false, ..Self::new(seed) }
    }

    /// A seed of a scene: only judged.
    #[must_use]
    pub const fn of_scene(scene: Scene, seed: u64) -> Self {
        let (zones, nodes, storm) = (scene.zones(), scene.nodes(), scene.storm());
        Self { scene, zones, nodes, storm, ..Self::of_many(seed) }
    }

    /// A seed of a scenario: only judged.
    #[must_use]
    pub fn of_scenario(scenario: &'static Scenario, seed: u64) -> Self {
        Self {
            zones: scenario.zones,
            nodes: scenario.nodes,
            stores: scenario.stores,
            racks: scenario.racks,
            storm: scenario.storm.max(longest(&scenario.steps)),
            kinds: Kinds::NONE,
            scenario: Some(scenario),
            ..Self::of_many(seed)
        }
    }

    /// Nodes that are not there at first: the last ones.
    pub(crate) fn late_nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        let late = self.scenario.map_or(0, |scenario| scenario.late);
        (self.nodes.saturating_sub(late) + 1..=self.nodes).map(NodeId)
    }

    /// Two kinds of faults within a second (F23): only judged.
    #[must_use]
    pub const fn of_pair(pair: (FaultKind, FaultKind), seed: u64) -> Self {
        Self { storm: Duration::from_secs(5), pair: Some(pair), ..Self::of_many(seed) }
    }

    /// Whether the callers of the zone that faults strike ask the other zones as well. If not, nothing at
    /// all may be different there. Drawn from the seed.
    #[must_use]
    pub fn zone_with_faults_asks(&self) -> bool {
        SeededDice::stream(self.seed, "who asks whom").chance(1, 2)
    }

    /// The command that repeats the run. A taken-out rule is not part of it.
    #[must_use]
    pub fn replay_command(&self) -> String {
        if let Some(scenario) = self.scenario {
            return format!("ashlar sim replay {} --scenario {}", self.seed, scenario.name);
        }
        if let Some((first, second)) = self.pair {
            let (seed, first, second) = (self.seed, first.name(), second.name());
            return format!("ashlar sim replay {seed} --pair {first},{second}");
        }
        let usual = Self::of_scene(Scene::Busy, self.seed);
        let mut command = format!("ashlar sim replay {}", self.seed);
        if self.scene != usual.scene {
            command.push_str(&format!(" --scene {}", self.scene));
        }
        if self.stores != usual.stores {
            command.push_str(&format!(" --stores {}", self.stores));
        }
        if self.beyond {
            command.push_str(" --beyond");
        }
        if self.kinds.len() < usual.kinds.len() {
            command.push_str(&format!(" --faults {}", self.kinds));
        }
        if self.storm != self.scene.storm() {
            command.push_str(&format!(" --storm {}ms", self.storm.as_millis()));
        }
        command
    }
}

/// Bytes a second that nodes of a scenario scrub that has them scrub.
const SCRUB_RATE: u64 = 8 << 20;
/// Simulated time in which all copies are there again once everything is writable (I13).
const REFILL_WITHIN: Duration = Duration::from_secs(300);

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Broken rules; empty is good.
    pub violations: Vec<Violation>,
    /// Writes acknowledged to the client, in blocks.
    pub writes: u64,
    /// Blocks read and judged.
    pub reads: u64,
    /// Events simulated.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Faults that struck, and other things worth counting, by name.
    pub tally: Tally,
    /// Digest of every event, if it was asked for: equal runs have equal ones.
    pub digest: u64,
}

/// Runs one seed.
#[must_use]
pub fn run(options: Options) -> Outcome {
    run_told(options, None, false)
}

/// Runs one seed and tells every event: its simulated time and a line.
#[must_use]
pub fn run_logged(options: Options, sink: impl FnMut(Duration, &str) + 'static) -> Outcome {
    run_told(options, Some(Box::new(sink)), false)
}

/// Runs one seed and tells every event, and behind each what it changed: lines that begin with four
/// spaces. Whoever takes the lines may take the time to read them: the run waits.
#[must_use]
pub fn run_stepped(options: Options, sink: impl FnMut(Duration, &str) + 'static) -> Outcome {
    run_told(options, Some(Box::new(sink)), true)
}

fn run_told(options: Options, sink: Option<Sink>, changes: bool) -> Outcome {
    let lines = Lines::default();
    if options.zones > 1 {
        return lines.catch(|| region::run(&options, &lines, sink, changes));
    }
    lines.catch(|| {
        let mut world = build(&options, "a".parse().unwrap_or_default(), lines.clone());
        if changes {
            world.journal.tell_changes();
        }
        run_world(world, options, sink)
    })
}

fn run_world(mut world: World, options: Options, sink: Option<Sink>) -> Outcome {
    if let Some(sink) = sink {
        world.journal.tell(sink);
    }
    world.set_up_volume(&options);
    world.begin_faults(&options, true);
    let storm_ends = world.now + options.storm;
    world.run_until(storm_ends, |_| false);
    let beyond = options.beyond || options.scenario.is_some_and(|scenario| scenario.beyond);
    if beyond && world.judge.violations.is_empty() {
        world.end_beyond(options.calm);
        if let Some(scenario) = options.scenario {
            world.judge_script(scenario);
        }
    } else if world.judge.violations.is_empty() {
        world.quiet_down();
        world.end_healed(&options);
    }
    for violation in &world.judge.violations {
        world.journal.remark(world.now, &format!("broken: {violation}"));
    }
    Outcome {
        violations: world.judge.violations,
        writes: world.judge.writes_acknowledged,
        reads: world.judge.reads_finished,
        events: world.events,
        simulated: world.now.since(Time::ZERO),
        tally: world.tally,
        digest: world.journal.digest(),
    }
}

/// A zone with nothing wrong yet.
pub(crate) fn build(options: &Options, zone: ZoneId, lines: Lines) -> World {
    let mut dice = SeededDice::stream(options.seed, "swarm");
    let swarm = Swarm::draw(&mut SeededDice::stream(options.seed, "kinds"), options.kinds);
    let loss_one_in = 300 + dice.below(3_000);
    let weather = Weather {
        delay_min: Duration::from_micros(20 + dice.below(100)),
        delay_max: Duration::from_micros(200 + dice.below(8_000)),
        loss_one_in: if swarm.kinds.contains(FaultKind::Loss) { loss_one_in } else { 0 },
        bytes_per_second: 5_000_000 + dice.below(200_000_000),
    };
    let control = SimControl::new(zone, options.seed);
    let mut world = World::new(options, swarm, Net::new(weather), control);
    let timing =
        Timing { readopt_window: Duration::from_secs(3), copy_blocks: 4, ..Timing::default() };
    let timing = match options.scenario.and_then(|scenario| scenario.scrub) {
        Some(scrub_cycle) => Timing { scrub_cycle, scrub_bytes_per_second: SCRUB_RATE, ..timing },
        None => timing,
    };
    let timing = match options.sabotage {
        Sabotage::KeepLeases => Timing { lease_used: Duration::from_secs(3_600), ..timing },
        _ => timing,
    };
    for number in 1..=options.nodes {
        let node = NodeId(number);
        world.nodes.insert(node, SimNode::new(zone, node, timing, options.stores, &mut dice));
        if !world.late.contains(&node) {
            world.schedule(Time::from_millis(1), Event::Start { node });
        }
    }
    if options.scenario.is_some_and(|scenario| scenario.scrub.is_some()) {
        world.used_bytes = 3 * CHUNK_BYTES_FLOOR;
    }
    world.lines = lines;
    world.begin_control();
    world
}

impl World {
    /// Lets faults come: a script, a pair, or a swarm; none, if another zone is the one they `strike`.
    pub(crate) fn begin_faults(&mut self, options: &Options, strike: bool) {
        self.former.expected = options.scenario.is_some()
            || options.pair.is_some()
            || self.swarm.kinds.contains(FaultKind::Reattach);
        match options.scenario {
            _ if !strike => {}
            _ if options.pair.is_some() => {
                let kinds = options.pair.into_iter().flat_map(|(a, b)| [a, b]);
                self.expect_lines_of(kinds.fold(Kinds::NONE, Kinds::with));
                self.schedule_pair(options);
            }
            Some(scenario) => {
                self.script = Some(Script::new(&scenario.steps, self.now));
                self.lines_allowed.clone_from(&scenario.expect.lines);
            }
            None => {
                self.expect_lines_of(self.swarm.kinds);
                self.schedule_in(Duration::from_millis(300), Event::Fault(Fault::Draw));
                if options.beyond {
                    self.schedule_loss(options.seed, options.storm);
                }
            }
        }
        if options.sabotage == Sabotage::ExpectNoLine {
            self.lines_allowed.clear();
        }
    }

    /// Faults have stopped: waits until all is well, and judges what is left.
    pub(crate) fn end_healed(&mut self, options: &Options) {
        let writable = self.now + options.calm;
        self.run_until(writable, Self::is_writable);
        if !self.is_writable() {
            self.judge_liveness("not writable");
        }
        let whole = self.now + REFILL_WITHIN;
        let is_done = |world: &Self| {
            world.is_whole()
                && world.is_drained()
                && world.is_cleared()
                && world.is_apart()
                && world.is_grown()
                && world.is_balanced()
        };
        self.run_until(whole, is_done);
        self.note_drained();
        for _ in 0..self.judge.reads_refused {
            self.tally.note("reads refused, damage named");
        }
        self.judge_end();
        self.note_answers();
        if let Some(scenario) = options.scenario.filter(|_| self.script.is_some()) {
            self.judge_script(scenario);
        }
        self.judge_pair(options);
    }

    /// Faults of these kinds may have been logged.
    fn expect_lines_of(&mut self, kinds: Kinds) {
        let lines = kinds.iter().flat_map(FaultKind::lines).map(|text| (*text).to_owned());
        self.lines_allowed.extend(lines);
    }

    /// Makes the volume, attaches it, and lets the client and the observer begin.
    pub(crate) fn set_up_volume(&mut self, options: &Options) {
        match self.set_up(options) {
            Ok(()) => {
                self.schedule_in(Duration::from_millis(1), Event::Work);
                self.schedule_in(Duration::from_millis(1), Event::Observe);
            }
            Err(detail) => self.judge.violated(self.now, "not alive", detail),
        }
    }

    /// Makes a volume and attaches it, as a person would: again until it works.
    fn set_up(&mut self, options: &Options) -> Result<(), String> {
        // Otherwise the first nodes to come would hold everything.
        let patience = self.now + Duration::from_secs(2);
        let registered = |world: &Self| world.control.state().map_or(0, |s| s.nodes().count());
        let there = self.nodes.len() - self.late.len();
        while registered(self) < there && self.step(patience) {}
        let (chunks, chunk_bytes) = options
            .scenario
            .map_or((3, CHUNK_BYTES_FLOOR), |scenario| (scenario.chunks, scenario.chunk_bytes));
        let create = v1::CreateVolumeRequest {
            name: "demo".into(),
            size_bytes: chunks * chunk_bytes,
            copies: 3,
            chunk_bytes,
            client_token: "create".into(),
            ..Default::default()
        };
        self.ask_until_done(&Request::CreateVolume(create))?;
        let attach = v1::AttachVolumeRequest {
            volume: "demo".into(),
            client_name: "client".into(),
            force: false,
            client_token: "attach".into(),
            ..Default::default()
        };
        let reply = self.ask_until_done(&Request::AttachVolume(attach))?;
        let Reply::AttachVolume(v1::AttachVolumeResponse { map: Some(map), .. }) = reply else {
            return Err("no map came with the attachment".into());
        };
        let configs: Vec<_> =
            map.chunks.iter().filter_map(|config| ChunkConfig::try_from(config).ok()).collect();
        let first = configs.first().ok_or("the volume has no chunks")?;
        let geometry =
            Geometry::new(chunks * chunk_bytes, chunk_bytes).map_err(|error| error.to_string())?;
        let settings = VolumeSettings {
            volume: first.chunk.volume,
            geometry,
            generation: Generation(map.generation),
            first_session: SessionId(1),
            policy: WaitPolicy::Wait,
        };
        self.volume = Some(settings.volume);
        let load = options.scenario.map_or(options.scene.load(), |scenario| scenario.load);
        self.client = Some(SimClient::new(settings, configs, load, options.seed));
        Ok(())
    }

    /// Repeats a call until it succeeds, for at most 30 simulated seconds.
    pub(crate) fn ask_until_done(&mut self, request: &Request) -> Result<Reply, String> {
        let deadline = self.now + Duration::from_secs(30);
        let mut last = String::from("no answer");
        while self.now < deadline {
            self.control.ask_leader();
            let call = self.call(request.clone());
            self.control.awaited = Some(call);
            let patience = self.now + Duration::from_millis(500);
            while self.control.answers.is_empty() && self.step(patience) {}
            match self.control.answers.pop() {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(error)) => last = error.to_string(),
                None => {}
            }
            let pause = self.now + Duration::from_millis(100);
            while self.step(pause) {}
        }
        Err(format!("{request:?}: {last}; {}", self.control.describe()))
    }

    /// No more faults; everything that is down comes back.
    pub(crate) fn quiet_down(&mut self) {
        self.drop_faults();
        self.cut_off_until = Time::ZERO;
        self.wake_all();
        self.all_cores_go_on();
        self.all_descriptors_again();
        self.take_all_disks_out();
        self.net.heal();
        self.former.rest();
        self.give_up_drains();
        self.give_up_passing();
        if let Some(script) = &mut self.script {
            script.end();
        }
        for node in self.nodes.values_mut() {
            node.heal_disk();
        }
        // The ends of faults are dropped with the faults.
        for node in core::mem::take(&mut self.short_of_space) {
            self.tell_space(node);
        }
        // A node that goes on without a store is started again with it, as its operator would.
        let failed = |node: &SimNode| node.stores.iter().any(|store| store.failed);
        let without: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| failed(node)).map(|(id, _)| *id).collect();
        for node in without {
            self.end_node(node, End::Killed);
        }
        let down: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| !node.is_up()).map(|(id, _)| *id).collect();
        for node in down {
            self.schedule_in(Duration::from_millis(10), Event::Start { node });
        }
        self.begin_control();
        if let Some(client) = &mut self.client {
            client.resting = true;
        }
    }

    /// Goes on to that time, until a rule breaks, or until something holds, which is looked at
    /// after every [`LOOK_EVERY`] events.
    pub(crate) fn run_until(&mut self, until: Time, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            for _ in 0..LOOK_EVERY {
                if !self.judge.violations.is_empty() || !self.step(until) {
                    return;
                }
            }
        }
    }

    /// Whether every request is answered and every chunk is served.
    fn is_writable(&self) -> bool {
        let idle = self.client.as_ref().is_some_and(|client| client.unfinished() == 0);
        idle && self.control.leader().is_some()
            && self.control.configs().all(|config| self.is_served(config))
    }

    /// Whether the primary of a chunk takes writes.
    pub(crate) fn is_served(&self, config: &ChunkConfig) -> bool {
        let primary = self.nodes.get(&config.primary.node).and_then(SimNode::core);
        config.may_acknowledge()
            && primary.is_some_and(|core| {
                core.reports().any(|report| {
                    report.chunk == config.chunk
                        && report.state == ReplicaState::Serving
                        && report.adopted == config.epoch
                })
            })
    }

    /// Whether it is writable, has all its copies, and nothing is under way.
    fn is_whole(&self) -> bool {
        self.is_writable()
            && self.control.configs().all(|config| {
                let primary = self.nodes.get(&config.primary.node).and_then(SimNode::core);
                let settled = primary
                    .and_then(|core| core.durable(config.chunk))
                    .is_some_and(|durable| durable.committed == durable.last);
                // A disk that was exchanged a moment ago is still named in sync: it is not whole.
                let there = config.in_sync.iter().all(|replica| {
                    self.nodes
                        .get(&replica.node)
                        .is_some_and(|node| node.is_up() && node.has_store_of(*replica))
                });
                config.in_sync.len() >= usize::from(config.copies_wanted) && settled && there
            })
    }

    /// Members that have applied the same entries and hold different states, by whatever way each came
    /// to it.
    fn members_differ(&self) -> Option<String> {
        let running = || self.control.members().filter_map(|(id, m)| Some((id, m.process()?)));
        let differs = |one: &Member, other: &Member| {
            one.applied_index() == other.applied_index()
                && !one.state().entries().eq(other.state().entries())
        };
        running().find_map(|(id, one)| {
            let (other, _) = running().find(|(_, other)| differs(one, other))?;
            Some(format!("members {id} and {other} at entry {}", one.applied_index()))
        })
    }

    /// Something is unfinished that should not be.
    fn judge_liveness(&mut self, rule: &'static str) {
        let client = self.client.as_ref().map(SimClient::describe).unwrap_or_default();
        let all = self.state().lines().join("\n    ");
        self.judge.violated(self.now, rule, format!("\n    client waits for {client}\n    {all}"));
    }

    fn judge_end(&mut self) {
        if !self.judge.violations.is_empty() {
            return;
        }
        if let Some(detail) = self.members_differ() {
            self.judge.violated(self.now, "members differ", detail);
            return;
        }
        if !self.is_whole() {
            self.judge_liveness("not whole");
            return;
        }
        if !self.is_drained() {
            let detail = self.what_holds_drains();
            self.judge.violated(self.now, "not drained", detail);
            return;
        }
        if !self.is_cleared() {
            self.judge_liveness("something is left of a deleted volume");
            return;
        }
        if !self.is_grown() {
            self.judge_liveness("not grown");
            return;
        }
        if !self.is_apart() {
            self.judge_liveness("copies share a rack");
            return;
        }
        if !self.is_balanced() {
            self.judge_liveness("not balanced");
            return;
        }
        let compared = RefCell::new(0);
        let differing = |config: &ChunkConfig| {
            let store = |replica: &ReplicaId| self.nodes.get(&replica.node)?.store(replica.store);
            let stores = config.in_sync.iter().filter_map(store);
            let sums: Vec<_> = stores.map(|store| store.live.sums(config.chunk)).collect();
            *compared.borrow_mut() += sums.iter().map(|of| of.len() as u64).sum::<u64>();
            let differ = sums.windows(2).any(|pair| matches!(pair, [a, b] if a != b));
            differ.then(|| format!("{}: {sums:?}", config.chunk))
        };
        let details: Vec<String> = self.control.configs().filter_map(differing).collect();
        self.tally.measure("blocks compared at the end", compared.into_inner());
        self.note_holes();
        for detail in details {
            self.judge.violated(self.now, "replicas differ", detail);
        }
    }
}

/// What no node says to another, and none listens to.
const NO_ANSWER: DataMessage = DataMessage::WriteDone { id: RequestId(0) };

impl Sabotage {
    /// What a sabotaged member answers instead of handling a message.
    pub(crate) fn answer_instead(
        self,
        node: &SimNode,
        message: &DataMessage,
    ) -> Option<DataMessage> {
        let adopted =
            |chunk| node.core().and_then(|core| core.config(chunk)).map(|config| config.epoch);
        match message {
            DataMessage::Mirror { chunk, epoch, lsn, .. }
                if self == Self::IgnoreEpochs && adopted(*chunk) > Some(*epoch) =>
            {
                let (chunk, epoch, lsn, start) = (*chunk, *epoch, *lsn, node.identity.start);
                Some(DataMessage::MirrorAck { chunk, epoch, lsn, start, fill: None })
            }
            DataMessage::Copy { .. } if self == Self::SilentLearners => Some(NO_ANSWER),
            DataMessage::Collect { term, .. }
                if self == Self::SilentMembers && term.elected > Epoch(1) =>
            {
                Some(NO_ANSWER)
            }
            DataMessage::Confirm { chunk, epoch, term, round }
                if matches!(self, Self::IgnoreEpochs | Self::ConfirmAlways)
                    && adopted(*chunk) > Some(*epoch) =>
            {
                let (chunk, term, round) = (*chunk, *term, *round);
                Some(DataMessage::Confirmed { chunk, term, round })
            }
            _ => None,
        }
    }
}
