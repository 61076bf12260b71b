//! The gateway of a member: the same decisions as in its process (bulkheads and tries of
//! `ashlar-controlplane-core`, routes and steps of `ashlar_controlplane::gateway`), over simulated ways.

use super::callers::{Done, Kind, PATIENCE, Wish};
use super::{Answer, Happens, MEMBERS, Region, STRUCK};
use crate::run::Sabotage;
use ashlar_controlplane::gateway::{
    Asking, Part as ZonePart, Route, Status, Step, api_of, is_silence, route,
};
use ashlar_controlplane::member::Request;
use ashlar_controlplane_core::bulkhead::{Bulkhead, CallId, Effect, Input, Outcome, Why};
use ashlar_controlplane_core::way::{Api, EACH_ZONE_WITHIN, PROBE_WITHIN, Tries, Try};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::{Time, ZoneId};
use std::collections::BTreeMap;

/// One bulkhead: that of a member of a zone, for calls of a kind to another zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GateKey {
    pub(super) zone: usize,
    pub(super) member: u64,
    pub(super) to: usize,
    pub(super) api: Api,
}

/// Who waits for an answer.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// The gateway of the own zone.
    Own { part: u64 },
    /// The gateway of another zone, with its try of this number.
    Try { part: u64, nth: u32 },
    /// A gateway that wants to know how the zone is.
    Probe { gate: GateKey, life: u64, nth: u64 },
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Call {
    zone: usize,
    member: u64,
    kind: Kind,
    to: Option<usize>,
    asked: Time,
    until: Time,
    /// If it is put to several zones.
    asking: Option<Asking>,
    /// What each zone that was asked has said.
    parts: Vec<(ZoneId, Option<Answer>)>,
}

/// What a call asks of one zone.
#[derive(Debug)]
pub(super) struct Part {
    call: u64,
    at: usize,
    to: usize,
    ask: Request,
    until: Time,
    gate: Option<(GateKey, CallId)>,
    tries: Option<Tries>,
    nth: u32,
}

/// What a member's process knows of the ways to other zones.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    pub(super) life: u64,
    gates: BTreeMap<GateKey, Gate>,
    /// The member of each zone that answered last.
    preferred: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Gate {
    bulkhead: Bulkhead,
    dice: SeededDice,
    next: u64,
    /// Parts of calls, by their number here.
    parts: BTreeMap<CallId, u64>,
    running: usize,
    waiting: usize,
    begun: u64,
    tried: u64,
    probes: u64,
}

impl Region {
    /// The callers of a zone want something, and will again.
    pub(super) fn ask(&mut self, zone: usize) {
        let Some(known) = self.zones.get_mut(zone) else { return };
        let wish = known.caller.wish();
        let pause = known.caller.pause();
        if self.now + pause < self.asks_until {
            self.schedule(self.now + pause, Happens::Ask { zone });
        }
        let Some(Wish { kind, to, member, request }) = wish else { return };
        self.tally.note("calls");
        let until = self.now + PATIENCE;
        let call = self.number();
        let asked = self.now;
        let wish = Call { zone, member, kind, to, asked, until, asking: None, parts: Vec::new() };
        self.calls.insert(call, wish);
        if !self.is_serving(zone, member) {
            let gone = Status::unavailable("the member that was asked is down, or stands still");
            return self.call_ends(call, Err(gone));
        }
        let ids: Vec<ZoneId> = self.zones.iter().map(|zone| zone.id).collect();
        let Some(own) = ids.get(zone).copied() else { return };
        let is_other = |id: &ZoneId| *id != own && ids.contains(id);
        match route(&request, own, false, is_other) {
            Ok(Route::Here) => self.one_zone(call, zone, request, until),
            Ok(Route::Zone(id)) => {
                let to = ids.iter().position(|known| *known == id).unwrap_or(zone);
                self.one_zone(call, to, request, until);
            }
            Ok(Route::Named(name)) => {
                self.several(call, Asking::by_name(name, request, ids));
            }
            Ok(Route::Everywhere) => self.several(call, Asking::of_all(request, ids)),
            Err(wrong) => {
                let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
                self.call_ends(call, Err(wrong.to_error(own, &names).to_status()));
            }
        }
    }

    /// Whether a member's process runs, and does not stand still.
    pub(super) fn is_serving(&self, zone: usize, member: u64) -> bool {
        self.zones.get(zone).is_some_and(|zone| zone.world.is_member_serving(member))
    }

    fn one_zone(&mut self, call: u64, to: usize, ask: Request, until: Time) {
        let Some(id) = self.zones.get(to).map(|zone| zone.id) else { return };
        if let Some(known) = self.calls.get_mut(&call) {
            known.parts = vec![(id, None)];
        }
        self.begin_part(call, 0, to, ask, until);
    }

    fn several(&mut self, call: u64, asking: Asking) {
        let step = asking.begin();
        if let Some(known) = self.calls.get_mut(&call) {
            known.asking = Some(asking);
        }
        self.go_on(call, step);
    }

    /// Carries out a step of a call to several zones.
    fn go_on(&mut self, call: u64, step: Step) {
        let Some((own, until)) = self.calls.get(&call).map(|call| (call.zone, call.until)) else {
            return;
        };
        let (asks, until) = match step {
            Step::Done(answer) => return self.call_ends(call, answer),
            Step::One(zone, ask) => (vec![(zone, ask)], until),
            Step::Each(asks) => {
                let left = until.since(self.now).mul_f32(0.75);
                (asks, self.now + EACH_ZONE_WITHIN.min(left))
            }
        };
        let several = asks.len() > 1;
        if let Some(known) = self.calls.get_mut(&call) {
            known.parts = asks.iter().map(|(zone, _)| (*zone, None)).collect();
        }
        for (at, (id, ask)) in asks.into_iter().enumerate() {
            let Some(to) = self.zones.iter().position(|zone| zone.id == id) else { continue };
            let leads = self.zones.get(to).is_some_and(|z| z.world.control.leader().is_some());
            if several && to == own && !leads {
                let error = ApiError::new(Reason::NoQuorum, "no leader is known");
                self.part_heard(call, at, Err(error.to_status()));
            } else {
                self.begin_part(call, at, to, ask, until);
            }
        }
    }

    fn begin_part(&mut self, call: u64, at: usize, to: usize, ask: Request, until: Time) {
        let Some(known) = self.calls.get(&call) else { return };
        let (zone, member) = (known.zone, known.member);
        let api = api_of(&ask);
        let part = self.number();
        let within = self.now + api.within_max();
        let until = if to == zone { until } else { until.min(within) };
        let wanted =
            Part { call, at, to, ask: ask.clone(), until, gate: None, tries: None, nth: 0 };
        self.parts.insert(part, wanted);
        if to == zone {
            return self.begin_local(zone, member, ask, until, Asker::Own { part });
        }
        // The shared pool of 2011: a zone that hangs holds what the others need.
        let shared = self.sabotage == Sabotage::OneBulkhead;
        let key = GateKey { zone, member, to: if shared { STRUCK } else { to }, api };
        self.schedule(until, Happens::WaitEnds { part });
        let Some(gate) = self.gate(key) else { return };
        let id = CallId(gate.next);
        gate.next += 1;
        gate.parts.insert(id, part);
        gate.waiting += 1;
        if let Some(part) = self.parts.get_mut(&part) {
            part.gate = Some((key, id));
        }
        self.tell_gate(key, Input::Ask { call: id, deadline: until });
    }

    fn gate(&mut self, key: GateKey) -> Option<&mut Gate> {
        let life = self.zones.get(key.zone)?.world.control.life_of(key.member);
        let seed = self.seed;
        let gateway = self.zones.get_mut(key.zone)?.gateways.entry(key.member).or_default();
        gateway.life = life;
        Some(gateway.gates.entry(key).or_insert_with(|| {
            let purpose = format!("gate {key:?} of life {life}");
            Gate {
                bulkhead: Bulkhead::new(key.api.limits()),
                dice: SeededDice::stream(seed, &purpose),
                next: 0,
                parts: BTreeMap::new(),
                running: 0,
                waiting: 0,
                begun: 0,
                tried: 0,
                probes: 0,
            }
        }))
    }

    fn tell_gate(&mut self, key: GateKey, input: Input) {
        let now = self.now;
        let mut effects = Vec::new();
        let Some(gate) = self.gate(key) else { return };
        if let Input::Ended { .. } = input {
            gate.running = gate.running.saturating_sub(1);
        }
        gate.bulkhead.handle(now, gate.dice.next_u64(), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Begin(id) => self.gate_opens(key, id),
                Effect::Refuse(id, refusal) => {
                    let Some(gate) = self.gate(key) else { return };
                    gate.waiting = gate.waiting.saturating_sub(1);
                    let Some(part) = gate.parts.remove(&id) else { continue };
                    let reason = match refusal.why {
                        Why::Full | Why::Late => Reason::ZoneShedding,
                        Why::Open { .. } => Reason::ZoneUnreachable,
                    };
                    self.tally.note(match refusal.why {
                        Why::Full | Why::Late => "calls shed",
                        Why::Open { .. } => "calls refused at once",
                    });
                    let error = ApiError::new(reason, "the gateway makes no call to the zone now");
                    self.part_ends(part, Err(error.to_status()));
                }
                Effect::ProbeAt(at) => {
                    let life = self.life_of(key);
                    self.tally.note("breakers opened");
                    self.schedule(at, Happens::ProbeDue { gate: key, life });
                }
            }
        }
        self.watch_gate(key);
    }

    fn gate_opens(&mut self, key: GateKey, id: CallId) {
        let Some(gate) = self.gate(key) else { return };
        gate.waiting = gate.waiting.saturating_sub(1);
        gate.running += 1;
        gate.begun += 1;
        let Some(part) = gate.parts.get(&id).copied() else { return };
        let Some(known) = self.parts.get(&part) else { return };
        let (repeatable, until, to) = (known.ask.is_repeatable(), known.until, known.to);
        let first = self.preferred(key, to);
        if let Some(known) = self.parts.get_mut(&part) {
            known.tries = Some(Tries::new(first, MEMBERS, repeatable, until));
        }
        self.next_try(part);
    }

    fn preferred(&self, key: GateKey, to: usize) -> usize {
        let gateway = self.zones.get(key.zone).and_then(|zone| zone.gateways.get(&key.member));
        gateway.and_then(|gateway| gateway.preferred.get(&to)).copied().unwrap_or(0)
    }

    fn prefer(&mut self, key: GateKey, to: usize, member: usize) {
        let zone = self.zones.get_mut(key.zone);
        if let Some(gateway) = zone.and_then(|zone| zone.gateways.get_mut(&key.member)) {
            gateway.preferred.insert(to, member);
        }
    }

    fn life_of(&self, key: GateKey) -> u64 {
        self.zones.get(key.zone).map_or(0, |zone| zone.world.control.life_of(key.member))
    }

    fn next_try(&mut self, part: u64) {
        let now = self.now;
        let Some(known) = self.parts.get_mut(&part) else { return };
        let (Some(tries), Some((key, _))) = (&mut known.tries, known.gate) else { return };
        let Try { member, until } = tries.next(now);
        known.nth += 1;
        let (nth, to, ask) = (known.nth, known.to, known.ask.clone());
        if let Some(gate) = self.gate(key) {
            gate.tried += 1;
        }
        let asker = Asker::Try { part, nth };
        self.put(key.zone, to, member, ask, until, asker);
    }

    /// A question is on its way to a member of another zone; silence is heard when its time is up.
    fn put(&mut self, from: usize, to: usize, at: usize, ask: Request, until: Time, asker: Asker) {
        let silence = Happens::Heard {
            asker: asker.clone(),
            answer: Err(Status::deadline_exceeded("no answer in time")),
        };
        self.schedule(until, silence);
        let wait = self.delay(from, to);
        let member = 1 + at as u64;
        if !self.is_dark(from, to) {
            self.schedule(self.now + wait, Happens::Arrives { to, member, ask, until, asker });
        }
    }

    /// A question of another zone reaches a member's host.
    pub(super) fn arrives(
        &mut self,
        to: usize,
        member: u64,
        ask: Request,
        until: Time,
        asker: Asker,
    ) {
        let Some(zone) = self.zones.get(to) else { return };
        if !zone.world.control.is_running(member) {
            return self.answer(to, asker, Err(Status::unavailable("connection refused")));
        }
        // Who is asked by another zone answers for its own, or nobody does.
        match route(&ask, zone.id, true, |_| false) {
            Ok(Route::Here) => self.begin_local(to, member, ask, until, asker),
            other => {
                let text = format!("a forwarded call would go on: {other:?}");
                self.violated("a call forwarded twice", text);
            }
        }
    }

    /// An answer leaves a zone for whoever asked.
    pub(super) fn answer(&mut self, from: usize, asker: Asker, answer: Answer) {
        let to = match &asker {
            Asker::Own { .. } => from,
            Asker::Try { part, .. } => {
                let part = self.parts.get(part).and_then(|part| self.calls.get(&part.call));
                let Some(call) = part else { return };
                call.zone
            }
            Asker::Probe { gate, .. } => gate.zone,
        };
        if self.is_dark(from, to) {
            return;
        }
        let wait = self.delay(from, to);
        self.schedule(self.now + wait, Happens::Heard { asker, answer });
    }

    /// An answer, or silence, reaches whoever asked; the second of one question is nothing to anybody.
    pub(super) fn heard(&mut self, asker: &Asker, answer: Answer) {
        match asker {
            Asker::Own { part } => self.part_ends(*part, answer),
            Asker::Try { part, nth } => self.try_ends(*part, *nth, answer),
            Asker::Probe { gate, life, nth } => {
                self.probed(*gate, *life, *nth, answer.as_ref().err())
            }
        }
    }

    fn try_ends(&mut self, part: u64, nth: u32, answer: Answer) {
        let now = self.now;
        let Some(known) = self.parts.get(&part).filter(|part| part.nth == nth) else { return };
        let (Some(tries), Some((key, id)), to) = (known.tries, known.gate, known.to) else {
            return;
        };
        let silent = answer.as_ref().is_err_and(is_silence);
        if silent && self.sabotage == Sabotage::SharedState {
            let own = self.zones.get_mut(key.zone);
            own.map(|zone| zone.world.dice.next_u64());
        }
        self.prefer(key, to, tries.preferred(!silent));
        if silent
            && tries.goes_on(now)
            && self.gate(key).is_some_and(|gate| gate.bulkhead.take_retry())
        {
            self.tally.note("calls made again");
            return self.next_try(part);
        }
        let outcome = if silent { Outcome::Failed } else { Outcome::Answered };
        if let Some(gate) = self.gate(key) {
            gate.parts.remove(&id);
        }
        self.tell_gate(key, Input::Ended { call: id, outcome });
        let answer = match answer {
            Err(status) if ApiError::from_status(&status).is_none() => {
                let error = ApiError::new(Reason::ZoneUnreachable, "the zone does not answer");
                Err(error.to_status())
            }
            other => other,
        };
        self.part_ends(part, answer);
    }

    /// The caller's patience with the queue before a zone is over.
    pub(super) fn wait_ends(&mut self, part: u64) {
        let known = self.parts.get(&part).filter(|part| part.tries.is_none());
        let Some((key, id)) = known.and_then(|part| part.gate) else { return };
        if let Some(gate) = self.gate(key) {
            gate.parts.remove(&id);
            gate.waiting = gate.waiting.saturating_sub(1);
        }
        self.tell_gate(key, Input::Gone { call: id });
        let error = ApiError::new(Reason::ZoneShedding, "its turn did not come in time");
        self.part_ends(part, Err(error.to_status()));
    }

    /// A zone that did not answer is asked again, by the gateway itself.
    pub(super) fn probe(&mut self, key: GateKey, life: u64) {
        if self.life_of(key) != life || !self.is_serving(key.zone, key.member) {
            return;
        }
        let until = self.now + PROBE_WITHIN;
        let Some(gate) = self.gate(key) else { return };
        gate.probes += 1;
        let nth = gate.probes;
        let member = self.preferred(key, key.to);
        let ask = Request::ListMembers(v1::ListMembersRequest::default());
        let asker = Asker::Probe { gate: key, life, nth };
        self.put(key.zone, key.to, member, ask, until, asker);
    }

    fn probed(&mut self, key: GateKey, life: u64, nth: u64, error: Option<&Status>) {
        if self.life_of(key) != life {
            return;
        }
        let Some(gate) = self.gate(key).filter(|gate| gate.probes == nth) else { return };
        // Its silence, or its answer, is heard once.
        gate.probes += 1;
        let silent = error.is_some_and(is_silence);
        if silent {
            let next = (self.preferred(key, key.to) + 1) % MEMBERS;
            self.prefer(key, key.to, next);
        }
        let outcome = if silent { Outcome::Failed } else { Outcome::Answered };
        self.tally.note(if silent { "probes without an answer" } else { "probes answered" });
        self.tell_gate(key, Input::Probed { outcome });
    }

    fn part_ends(&mut self, part: u64, answer: Answer) {
        let Some(part) = self.parts.remove(&part) else { return };
        self.part_heard(part.call, part.at, answer);
    }

    fn part_heard(&mut self, call: u64, at: usize, answer: Answer) {
        let Some(known) = self.calls.get_mut(&call) else { return };
        if let Some((_, slot)) = known.parts.get_mut(at) {
            *slot = Some(answer);
        }
        if known.parts.iter().any(|(_, slot)| slot.is_none()) {
            return;
        }
        let parts = core::mem::take(&mut known.parts).into_iter();
        let mut parts: Vec<ZonePart> =
            parts.filter_map(|(zone, answer)| Some((zone, answer?))).collect();
        match &mut known.asking {
            Some(asking) => {
                let step = asking.heard(parts);
                self.go_on(call, step);
            }
            None => {
                let none = || Err(Status::unavailable("nobody was asked"));
                let answer = parts.pop().map_or_else(none, |(_, answer)| answer);
                self.call_ends(call, answer);
            }
        }
    }

    fn call_ends(&mut self, call: u64, answer: Answer) {
        let Some(call) = self.calls.remove(&call) else { return };
        let Call { kind, zone: from, to, asked, .. } = call;
        self.ended(Done { kind, from, to, asked, took: self.now.since(asked), answer });
    }

    /// A member's process is gone, with all that its gateway had under way.
    pub(super) fn gateway_died(&mut self, zone: usize, member: u64) {
        if let Some(zone) = self.zones.get_mut(zone) {
            zone.gateways.remove(&member);
        }
        let of_it = |call: &Call| call.zone == zone && call.member == member;
        let calls: Vec<u64> =
            self.calls.iter().filter(|(_, call)| of_it(call)).map(|(id, _)| *id).collect();
        self.parts.retain(|_, part| !calls.contains(&part.call));
        for call in calls {
            self.call_ends(call, Err(Status::unavailable("connection reset")));
        }
    }

    /// Bounds of a bulkhead, counted here and not by it.
    fn watch_gate(&mut self, key: GateKey) {
        let limits = key.api.limits();
        let Some(gate) = self.gate(key) else { return };
        let (running, waiting, begun, tried) = (gate.running, gate.waiting, gate.begun, gate.tried);
        self.tally.measure("most calls of a gateway to one zone", running as u64);
        self.tally.measure("most calls that wait for a zone", waiting as u64);
        if running > limits.running_max || waiting > limits.waiting_max {
            let detail = format!("{key:?}: {running} run, {waiting} wait");
            self.violated("more calls than may be", detail);
        }
        // A tenth of the calls, beyond what is stored for the beginning.
        if tried > begun + begun / 10 + u64::from(limits.retries_stored_max) {
            let detail = format!("{key:?}: {begun} calls were tried {tried} times");
            self.violated("storm of retries", detail);
        }
    }

    /// Calls that should have ended by now.
    pub(super) fn overdue(&self) -> Vec<String> {
        let late = |call: &&Call| call.until < self.now;
        let late = self.calls.values().filter(late);
        late.map(|call| format!("{:?} of zone {} to {:?}", call.kind, call.zone, call.to)).collect()
    }
}
