//! Rules about what one zone may cost the others.

use super::Mutant;

const BULKHEAD: &[&str] = &["-p", "ashlar-controlplane-core", "--lib", "bulkhead"];
const ROUTE: &[&str] = &["-p", "ashlar-controlplane", "--lib", "region::"];
const WAY: &[&str] = &["-p", "ashlar-controlplane-core", "--lib", "way::"];
const SIM: &[&str] = &["-p", "ashlar-sim", "--test", "region", "scenarios_of_a_region"];
const REGION: &[&str] = &["-p", "ashlar-controlplane", "--test", "zone", "region::"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "no more calls to a zone run than may",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "while self.running.len() < self.limits.running_max\n            && let Some",
        put_in: "while let Some",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "no more calls to a zone wait than may",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "&& self.waiting.len() >= self.limits.waiting_max",
        put_in: "&& self.waiting.len() == usize::MAX",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "no call begins after its deadline",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "if deadline <= now {",
        put_in: "if false {",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "while the breaker is open no call is made",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "if let Breaker::Open { since, probe_at } = self.breaker {",
        put_in: "if let Breaker::Open { since, probe_at } = self.breaker && since > now {",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "when the breaker opens who waits is refused",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "for (call, _) in self.waiting.drain(..) {",
        put_in: "for (call, _) in self.waiting.drain(..0) {",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "after an answered probe one failure opens the breaker again",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "let failures = self.limits.failures_to_open.saturating_sub(1);",
        put_in: "let failures = 0;",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "a caller that gave up late counts as a failure",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "now.since(began) >= self.limits.patience",
        put_in: "began > now",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "retries are a tenth of the calls",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "self.retry_store = left;",
        put_in: "let _unused = left;",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "retries that were not made are not kept for a storm",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "saturating_add(1).min(full)",
        put_in: "saturating_add(1).max(full.min(0))",
        tests: BULKHEAD,
    },
    Mutant {
        rule: "a forwarded call is never forwarded again",
        file: "controlplane/src/region/route.rs",
        take_out: "zone if !is_alone && is_other(&zone) => Ok(Route::Zone(zone)),",
        put_in: "zone if is_other(&zone) => Ok(Route::Zone(zone)),",
        tests: ROUTE,
    },
    Mutant {
        rule: "a change that could be repeated elsewhere names its zone",
        file: "controlplane/src/region/route.rs",
        take_out: "Says::OneZone(\"\") => Err(Wrong::Unnamed),",
        put_in: "Says::OneZone(\"\") => Ok(Route::Here),",
        tests: ROUTE,
    },
    Mutant {
        rule: "what cannot be undone is not done on a guess",
        file: "controlplane/src/region/names.rs",
        take_out: "if cannot_be_undone(&self.ask) && !found.missing.is_empty() {",
        put_in: "if false {",
        tests: REGION,
    },
    Mutant {
        rule: "a zone's silence counts against it",
        file: "controlplane/src/region/way.rs",
        take_out: "Err(status) if is_silence(status) => Outcome::Failed,",
        put_in: "Err(status) if is_silence(status) => Outcome::Answered,",
        tests: REGION,
    },
    Mutant {
        rule: "a call that could do harm twice is put to one member",
        file: "controlplane/core/src/way.rs",
        take_out: "self.repeatable && self.tried < self.members",
        put_in: "self.tried < self.members",
        tests: WAY,
    },
    Mutant {
        rule: "a call is put to every member once",
        file: "controlplane/core/src/way.rs",
        take_out: "self.repeatable && self.tried < self.members",
        put_in: "self.repeatable",
        tests: WAY,
    },
    Mutant {
        rule: "no member is asked after a call's deadline",
        file: "controlplane/core/src/way.rs",
        take_out: "self.may_repeat() && now < self.deadline",
        put_in: "self.may_repeat()",
        tests: WAY,
    },
    Mutant {
        rule: "time is kept for another member",
        file: "controlplane/core/src/way.rs",
        take_out: "if self.may_repeat() { left / 2 } else { left }",
        put_in: "left",
        tests: WAY,
    },
    Mutant {
        rule: "retries of calls between zones are a tenth of them, in a region",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "match self.retry_store.checked_sub(CALLS_PER_RETRY) {",
        put_in: "match Some(self.retry_store) {",
        tests: SIM,
    },
    Mutant {
        rule: "a zone that does not answer opens the breaker, in a region",
        file: "controlplane/core/src/bulkhead.rs",
        take_out: "Outcome::Failed if failures.saturating_add(1) >= self.limits.failures_to_open => {",
        put_in: "Outcome::Failed if failures == u32::MAX => {",
        tests: SIM,
    },
    Mutant {
        rule: "a zone that does not answer is missing from a list, and not the list",
        file: "controlplane/src/region/lists.rs",
        take_out: "Some(missing) => merged.unreachable_zones.push(missing),\n                None => return Err(status),\n            },\n        }\n    }\n    if more",
        put_in: "Some(_) | None => return Err(status),\n            },\n        }\n    }\n    if more",
        tests: SIM,
    },
];
