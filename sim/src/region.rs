//! Several zones under one clock: each a whole [`World`], and between them the gateways of their
//! members, over ways that take time and can be cut.
//!
//! Zones share nothing: each draws from dice of its own, and what one is told by another are the calls
//! that its gateways forward. So everything that happens in a zone is the same, event by event, whether
//! another zone has faults or not, as long as that one asks nothing of it; where it does, what is
//! demanded is that nobody notices (invariant 8, `region/judge.rs`). To know, a seed is run twice: with
//! the faults of the one zone that has any, and without.
//!
//! | file | holds |
//! |---|---|
//! | `region/gateway.rs` | a member's gateway: bulkheads, tries, probes; calls to several zones |
//! | `region/local.rs` | a call within the zone that it is for: the member asked, its leader |
//! | `region/callers.rs` | who calls, what, and how often |
//! | `region/judge.rs` | what a fault in one zone may not change in the others |

mod callers;
mod gateway;
mod judge;
mod local;

use crate::journal::Sink;
use crate::judge::Violation;
use crate::kinds::{Kinds, Tally};
use crate::lines::Lines;
use crate::run::{Options, Outcome, Sabotage, build};
use crate::world::World;
use ashlar_controlplane::gateway::Status;
use ashlar_controlplane::member::{CallId, Reply, Request};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_types::{Time, ZoneId};
use callers::{Caller, Done};
use gateway::{Asker, Call, GateKey, Gateway, Part};
use judge::Seen;
use local::Local;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Names of the zones, in order.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// The zone that faults strike.
pub(crate) const STRUCK: usize = 1;
/// Members of each zone as a map of the region names them.
const MEMBERS: usize = 3;
/// How long calls go on when faults have stopped: longer than breakers stay open.
const CALLS_AFTER: Duration = Duration::from_secs(12);
/// How long the last calls may take.
const LAST_CALLS: Duration = Duration::from_secs(6);

/// What an answer is.
type Answer = Result<Reply, Status>;

/// Something between the zones, or within one on behalf of a call.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a few hundred wait at a time")]
enum Happens {
    /// A caller of a zone wants something.
    Ask { zone: usize },
    /// A question reaches a member of another zone.
    Arrives { to: usize, member: u64, ask: Request, until: Time, asker: Asker },
    /// A follower's question reaches the leader of its zone.
    Forwarded { local: u64, leader: u64 },
    /// A call within a zone is tried again: there may be a leader by now.
    Again { local: u64 },
    /// Nobody waits for a call within a zone any more.
    LocalEnds { local: u64 },
    /// An answer, or silence, reaches whoever asked.
    Heard { asker: Asker, answer: Answer },
    /// The time of a place in a bulkhead's queue is up.
    WaitEnds { part: u64 },
    /// A zone is to be asked how it is.
    ProbeDue { gate: GateKey, life: u64 },
}

#[derive(Debug)]
struct Zone {
    id: ZoneId,
    world: World,
    gateways: BTreeMap<u64, Gateway>,
    caller: Caller,
    /// Numbers of the calls that its members get: its own, so that they do not tell what goes on
    /// elsewhere.
    next_call: u64,
    /// The call within the zone that a member's answer belongs to.
    asked: BTreeMap<CallId, u64>,
}

/// Calls of a region have numbers from here on: those of the zone's own client are below.
pub(crate) const REGION_CALLS: u64 = 1 << 40;

/// Tells a line of the log, if somebody listens.
type Told = Option<Rc<RefCell<Sink>>>;

struct Region {
    now: Time,
    zones: Vec<Zone>,
    queue: BTreeMap<(Time, u64), Happens>,
    calls: BTreeMap<u64, Call>,
    parts: BTreeMap<u64, Part>,
    locals: BTreeMap<u64, Local>,
    next: u64,
    /// Delays between two zones: dice of each pair, in each direction.
    delays: BTreeMap<(usize, usize), SeededDice>,
    /// Callers ask no more from then on.
    asks_until: Time,
    events: u64,
    tally: Tally,
    seen: Seen,
    violations: Vec<Violation>,
    sabotage: Sabotage,
    seed: u64,
    told: Told,
}

/// Runs a seed of a region: with its faults, and without them for comparison.
pub(crate) fn run(options: &Options, lines: &Lines, sink: Option<Sink>, changes: bool) -> Outcome {
    let told = sink.map(|sink| Rc::new(RefCell::new(sink)));
    let (mut outcome, seen) = Region::play(options, lines, true, (told, changes));
    if outcome.violations.is_empty() {
        let (calm, without) = Region::play(options, lines, false, (None, false));
        outcome.events += calm.events;
        outcome.simulated += calm.simulated;
        outcome.violations = calm.violations;
        if outcome.violations.is_empty() {
            outcome.violations = judge::compare(&seen, &without, outcome.simulated);
        }
    }
    outcome
}

impl Region {
    /// One run: everything up, faults in one zone, and healing.
    fn play(
        options: &Options,
        lines: &Lines,
        faults: bool,
        (told, changes): (Told, bool),
    ) -> (Outcome, Seen) {
        let mut region = Self::build(options, lines, &told, changes);
        region.set_up(options);
        let begun = region.zones.iter().map(|zone| zone.world.now).max().unwrap_or_default();
        region.now = begun;
        region.asks_until = begun + options.storm + CALLS_AFTER;
        for zone in 0..region.zones.len() {
            let struck = zone == STRUCK && faults;
            if let Some(zone) = region.zones.get_mut(zone) {
                zone.world.begin_faults(&zone_options(options, zone.id, struck), struck);
            }
            region.schedule(begun, Happens::Ask { zone });
            if is_full(zone, faults, options)
                && let Some(zone) = region.zones.get_mut(zone)
            {
                zone.world.fill_all(options.storm);
            }
        }
        region.run_until(begun + options.storm);
        for zone in &mut region.zones {
            zone.world.quiet_down();
            zone.caller.calm_down();
        }
        let healed = begun + options.storm;
        region.run_until(region.asks_until + LAST_CALLS);
        region.judge_calls(healed);
        region.look_back();
        // Nothing passes between the zones any more: each heals by itself.
        if let Some(zone) = region.zones.get_mut(STRUCK) {
            zone.world.tally.add(&region.tally);
        }
        for (index, zone) in region.zones.iter_mut().enumerate() {
            let struck = index == STRUCK && faults;
            if zone.world.judge.violations.is_empty() {
                zone.world.end_healed(&zone_options(options, zone.id, struck));
            }
        }
        region.finish()
    }

    fn build(options: &Options, lines: &Lines, told: &Told, changes: bool) -> Self {
        let zones = NAMES.iter().enumerate().map(|(index, name)| {
            let id: ZoneId = name.parse().unwrap_or_default();
            let of_zone = zone_options(options, id, index == STRUCK);
            let mut world = build(&of_zone, id, lines.clone());
            if let Some(told) = told {
                world.journal.tell(prefixed(name, Rc::clone(told)));
                if changes {
                    world.journal.tell_changes();
                }
            }
            let asks_abroad = index != STRUCK || options.zone_with_faults_asks();
            Zone {
                id,
                world,
                gateways: BTreeMap::new(),
                caller: Caller::new(index, asks_abroad, options),
                next_call: REGION_CALLS,
                asked: BTreeMap::new(),
            }
        });
        let pairs = (0..NAMES.len()).flat_map(|a| (0..NAMES.len()).map(move |b| (a, b)));
        let dice =
            |(a, b)| ((a, b), SeededDice::stream(options.seed, &format!("way from {a} to {b}")));
        Self {
            now: Time::ZERO,
            zones: zones.collect(),
            queue: BTreeMap::new(),
            calls: BTreeMap::new(),
            parts: BTreeMap::new(),
            locals: BTreeMap::new(),
            next: 0,
            delays: pairs.map(dice).collect(),
            asks_until: Time::ZERO,
            events: 0,
            tally: Tally::default(),
            seen: Seen::default(),
            violations: Vec::new(),
            sabotage: options.sabotage,
            seed: options.seed,
            told: told.clone(),
        }
    }

    /// Every zone by itself: a volume, attached, and its client at work; and a volume that is looked
    /// for by name.
    fn set_up(&mut self, options: &Options) {
        for (index, zone) in self.zones.iter_mut().enumerate() {
            let of_zone = zone_options(options, zone.id, index == STRUCK);
            zone.world.set_up_volume(&of_zone);
            if let Some(client) = &mut zone.world.client {
                client.keep_times();
            }
            let request = callers::named_volume(zone.id);
            if let Err(detail) = zone.world.ask_until_done(&request) {
                zone.world.judge.violated(zone.world.now, "not alive", detail);
            }
        }
        let demos: Vec<String> = self
            .zones
            .iter()
            .map(|zone| zone.world.volume.map(|id| id.to_string()).unwrap_or_default())
            .collect();
        for zone in &mut self.zones {
            zone.caller.knows(&demos);
        }
    }

    fn schedule(&mut self, at: Time, happens: Happens) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), happens);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A delay between two zones, or within one.
    fn delay(&mut self, from: usize, to: usize) -> Duration {
        let dice = self.delays.get_mut(&(from, to));
        let share = dice.map_or(0, |dice| dice.below(1_000));
        let least = Duration::from_micros(if from == to { 50 } else { 400 });
        least + least / 1_000 * u32::try_from(share).unwrap_or(0) * 3
    }

    /// Lets happen whatever comes first, until then.
    fn run_until(&mut self, until: Time) {
        while self.violations.is_empty() {
            let next = self.zones.iter().enumerate();
            let next = next.filter_map(|(at, zone)| Some((zone.world.next_at()?, at))).min();
            let own = self.queue.first_key_value().map(|((at, _), _)| *at);
            match (own, next) {
                (Some(at), zone) if at <= until && zone.is_none_or(|(first, _)| at <= first) => {
                    let Some((_, happens)) = self.queue.pop_first() else { break };
                    self.now = at;
                    self.events += 1;
                    self.tell(&happens);
                    self.happen(happens);
                }
                (_, Some((at, zone))) if at <= until => {
                    self.now = at;
                    self.step(zone, at);
                }
                _nothing_before => break,
            }
        }
        self.now = self.now.max(until);
    }

    /// The next event of a zone, and what it means for calls.
    fn step(&mut self, index: usize, at: Time) {
        let Some(zone) = self.zones.get_mut(index) else { return };
        zone.world.step(at);
        let died = core::mem::take(&mut zone.world.control.died);
        let answers = core::mem::take(&mut zone.world.control.region_answers);
        if let Some(broken) = zone.world.judge.violations.first() {
            self.violations.push(of_zone(zone.id, broken));
        }
        for member in died {
            self.member_died(index, member);
        }
        for (call, result) in answers {
            self.member_answers(index, call, result);
        }
    }

    fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Ask { zone } => self.ask(zone),
            Happens::Arrives { to, member, ask, until, asker } => {
                self.arrives(to, member, ask, until, asker);
            }
            Happens::Forwarded { local, leader } => self.forwarded(local, leader),
            Happens::Again { local } => self.ask_member(local),
            Happens::LocalEnds { local } => self.local_ends(local),
            Happens::Heard { asker, answer } => self.heard(&asker, answer),
            Happens::WaitEnds { part } => self.wait_ends(part),
            Happens::ProbeDue { gate, life } => self.probe(gate, life),
        }
    }

    fn tell(&self, happens: &Happens) {
        if let Some(told) = &self.told {
            let (at, line) = (self.now, format!("{} region: {happens:?}", self.now));
            (told.borrow_mut())(at.since(Time::ZERO), &line);
        }
    }

    fn violated(&mut self, rule: &'static str, detail: String) {
        self.violations.push(Violation { at: self.now, rule, detail });
    }

    /// Whether nothing passes between a zone and the others.
    fn is_cut_off(&self, zone: usize) -> bool {
        self.zones.get(zone).is_some_and(|zone| zone.world.cut_off_until > self.now)
    }

    fn is_dark(&self, from: usize, to: usize) -> bool {
        from != to && (self.is_cut_off(from) || self.is_cut_off(to))
    }

    /// What is compared of the zones that have no faults, when the calls are over.
    fn look_back(&mut self) {
        for (index, zone) in self.zones.iter_mut().enumerate().filter(|(at, _)| *at != STRUCK) {
            let took = zone.world.client.as_mut().map(|client| client.take_times());
            self.seen.note_zone(index, zone.id, &mut zone.world, took.unwrap_or_default());
        }
    }

    fn finish(self) -> (Outcome, Seen) {
        let mut outcome = Outcome {
            violations: self.violations,
            writes: 0,
            reads: 0,
            events: self.events,
            simulated: Duration::ZERO,
            tally: Tally::default(),
            digest: 0,
        };
        for zone in self.zones {
            let world = zone.world;
            let known = !outcome.violations.is_empty();
            let broken = world.judge.violations.iter().filter(|_| !known);
            outcome.violations.extend(broken.map(|violation| of_zone(zone.id, violation)));
            outcome.writes += world.judge.writes_acknowledged;
            outcome.reads += world.judge.reads_finished;
            outcome.events += world.events;
            outcome.simulated = outcome.simulated.max(world.now.since(Time::ZERO));
            outcome.tally.add(&world.tally);
            outcome.digest = outcome.digest.rotate_left(1) ^ world.journal.digest();
        }
        (outcome, self.seen)
    }
}

/// Whether a zone that is called so often must be full without faults too: it would be filled otherwise.
fn is_full(zone: usize, faults: bool, options: &Options) -> bool {
    zone == STRUCK && !faults && options.scenario.is_some_and(|scenario| scenario.calls.is_some())
}

/// What a zone is like: its own seed; faults strike one alone.
fn zone_options(options: &Options, zone: ZoneId, struck: bool) -> Options {
    let seed = SeededDice::stream(options.seed, &format!("zone {zone}")).next_u64();
    let kinds = if struck { options.kinds } else { Kinds::NONE };
    Options { seed, kinds, ..*options }
}

fn of_zone(zone: ZoneId, violation: &Violation) -> Violation {
    Violation { detail: format!("zone {zone}: {}", violation.detail), ..violation.clone() }
}

/// The lines of a zone, with its name; what an event changed keeps its four spaces.
fn prefixed(zone: &'static str, told: Rc<RefCell<Sink>>) -> Sink {
    Box::new(move |at, line: &str| {
        let text = match line.strip_prefix("    ") {
            Some(change) => format!("    {zone}: {change}"),
            None => format!("{zone}: {line}"),
        };
        (told.borrow_mut())(at, &text);
    })
}

impl Region {
    /// A call has its answer.
    fn ended(&mut self, done: Done) {
        if let Some(zone) = self.zones.get_mut(done.from) {
            zone.caller.learns(&done);
        }
        self.judge_call(&done);
    }
}
