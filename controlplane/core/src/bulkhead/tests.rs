//! Each rule of the bulkhead as a sentence.

use super::*;
use alloc::vec;

const LIMITS: Limits = Limits {
    running_max: 2,
    waiting_max: 2,
    failures_to_open: 3,
    open: BackoffPolicy { first: Duration::from_millis(500), max: Duration::from_secs(8) },
    patience: Duration::from_secs(1),
    retries_stored_max: 2,
};

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

/// A bulkhead with the effects of the last input.
struct World {
    bulkhead: Bulkhead,
    dice: u64,
}

impl World {
    fn new() -> Self {
        Self { bulkhead: Bulkhead::new(LIMITS), dice: u64::MAX / 3 }
    }

    fn handle(&mut self, millis: u64, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.bulkhead.handle(at(millis), self.dice, input, &mut out);
        out
    }

    fn ask(&mut self, millis: u64, call: u64, deadline: u64) -> Vec<Effect> {
        self.handle(millis, Input::Ask { call: CallId(call), deadline: at(deadline) })
    }

    fn end(&mut self, millis: u64, call: u64, outcome: Outcome) -> Vec<Effect> {
        self.handle(millis, Input::Ended { call: CallId(call), outcome })
    }

    /// Opens the breaker with three failures; gives the time of the probe.
    fn open(&mut self, millis: u64) -> Time {
        let mut last = Vec::new();
        for call in 1_000..1_003 {
            self.ask(millis, call, millis + 10_000);
            last = self.end(millis, call, Outcome::Failed);
        }
        match last.as_slice() {
            [Effect::ProbeAt(time)] => *time,
            other => panic!("the breaker did not open: {other:?}"),
        }
    }
}

fn why(effects: &[Effect]) -> Option<Why> {
    match effects {
        [Effect::Refuse(_, refusal)] => Some(refusal.why),
        _ => None,
    }
}

#[test]
fn no_more_calls_run_and_wait_than_may() {
    let mut world = World::new();
    assert_eq!(world.ask(0, 1, 9_000), [Effect::Begin(CallId(1))]);
    assert_eq!(world.ask(0, 2, 9_000), [Effect::Begin(CallId(2))]);
    assert_eq!(world.ask(0, 3, 9_000), []);
    assert_eq!(world.ask(0, 4, 9_000), []);
    let refused = world.ask(0, 5, 9_000);
    assert_eq!(why(&refused), Some(Why::Full));
    // A slot that is free again goes to who has waited longest.
    assert_eq!(world.end(10, 2, Outcome::Answered), [Effect::Begin(CallId(3))]);
    assert_eq!(world.end(10, 2, Outcome::Answered), [], "a second end of the same call");
    let gone = Input::Gone { call: CallId(4) };
    assert_eq!(world.handle(20, gone), []);
    assert_eq!(world.end(30, 1, Outcome::Answered), []);
}

#[test]
fn no_call_begins_after_its_deadline() {
    let mut world = World::new();
    world.ask(0, 1, 9_000);
    world.ask(0, 2, 9_000);
    world.ask(0, 3, 50);
    world.ask(0, 4, 9_000);
    let effects = world.end(60, 1, Outcome::Answered);
    assert_eq!(why(&effects[..1]), Some(Why::Late), "{effects:?}");
    assert_eq!(effects[1..], [Effect::Begin(CallId(4))]);
}

#[test]
fn failures_in_a_row_open_the_breaker_and_refuse_who_waits() {
    let mut world = World::new();
    for call in 1..=4 {
        world.ask(0, call, 9_000);
    }
    world.end(100, 1, Outcome::Failed);
    world.end(100, 2, Outcome::Failed);
    world.ask(100, 5, 9_000);
    let effects = world.end(100, 3, Outcome::Failed);
    assert!(matches!(
        effects.as_slice(),
        [Effect::Refuse(CallId(5), Refusal { why: Why::Open { .. }, .. }), Effect::ProbeAt(_)]
    ));
    assert_eq!(why(&world.ask(101, 6, 9_000)), Some(Why::Open { since: at(100) }));
    assert_eq!(world.bulkhead.open_since(), Some(at(100)));
    // What ran when it opened changes nothing any more.
    assert_eq!(world.end(102, 4, Outcome::Answered), []);
    assert!(world.bulkhead.open_since().is_some());
}

#[test]
fn an_answer_between_failures_keeps_it_closed() {
    let mut world = World::new();
    for call in 0..20 {
        let outcome = if call % 3 == 2 { Outcome::Answered } else { Outcome::Failed };
        world.ask(0, call, 9_000);
        assert_eq!(world.end(0, call, outcome), []);
    }
}

#[test]
fn only_an_answered_probe_closes_it_and_then_one_failure_opens_it_again() {
    let mut world = World::new();
    let first = world.open(0);
    assert!(first.since(at(0)) < LIMITS.open.first);
    // Time alone lets nobody through: a caller would pay for finding out.
    assert!(why(&world.ask(60_000, 1, 90_000)).is_some());
    let effects = world.handle(60_000, Input::Probed { outcome: Outcome::Failed });
    assert!(matches!(effects.as_slice(), [Effect::ProbeAt(_)]), "{effects:?}");
    assert_eq!(world.bulkhead.open_since(), Some(at(0)));
    assert_eq!(world.handle(61_000, Input::Probed { outcome: Outcome::Answered }), []);
    assert_eq!(world.ask(61_000, 2, 90_000), [Effect::Begin(CallId(2))]);
    let effects = world.end(61_000, 2, Outcome::Failed);
    assert!(matches!(effects.as_slice(), [Effect::ProbeAt(_)]), "{effects:?}");
    // After an answered call it takes as many failures as at the beginning.
    world.handle(62_000, Input::Probed { outcome: Outcome::Answered });
    world.ask(62_000, 3, 90_000);
    world.end(62_000, 3, Outcome::Answered);
    world.ask(62_000, 4, 90_000);
    assert_eq!(world.end(62_000, 4, Outcome::Failed), []);
}

#[test]
fn the_zone_is_asked_again_at_growing_intervals() {
    let mut world = World::new();
    world.open(0);
    let mut longest = Duration::ZERO;
    for round in 0..40 {
        let now = 10_000 * (round + 1);
        let effects = world.handle(now, Input::Probed { outcome: Outcome::Failed });
        let [Effect::ProbeAt(time)] = effects.as_slice() else { panic!("{effects:?}") };
        longest = longest.max(time.since(at(now)));
    }
    assert!(longest > LIMITS.open.first, "{longest:?}");
    assert!(longest < LIMITS.open.max, "{longest:?}");
}

#[test]
fn a_caller_that_gave_up_late_counts_as_a_failure_and_an_impatient_one_does_not() {
    let mut world = World::new();
    for call in 0..9 {
        world.ask(0, call, 9_000);
        assert_eq!(world.handle(10, Input::Gone { call: CallId(call) }), []);
    }
    assert!(world.bulkhead.open_since().is_none());
    for call in 10..13 {
        world.ask(0, call, 9_000);
        world.handle(2_000, Input::Gone { call: CallId(call) });
    }
    assert!(world.bulkhead.open_since().is_some());
}

#[test]
fn a_tenth_of_the_calls_may_be_made_again() {
    let mut world = World::new();
    let stored = LIMITS.retries_stored_max;
    for _ in 0..stored {
        assert!(world.bulkhead.take_retry());
    }
    assert!(!world.bulkhead.take_retry());
    let mut retries = 0;
    for call in 0..100 {
        world.ask(0, call, 9_000);
        retries += u32::from(world.bulkhead.take_retry());
        world.end(0, call, Outcome::Answered);
    }
    assert_eq!(retries, 10);
    for call in 100..400 {
        world.ask(0, call, 9_000);
        world.end(0, call, Outcome::Answered);
    }
    let kept = (0..100).filter(|_| world.bulkhead.take_retry()).count();
    assert_eq!(kept, stored as usize, "what is not used is not kept for a storm");
}

#[test]
fn who_is_refused_is_told_to_wait_with_jitter() {
    let mut world = World::new();
    let probe_at = world.open(0);
    let mut waits = vec![];
    for call in 0..20 {
        match world.ask(0, call, 9_000).as_slice() {
            [Effect::Refuse(_, refusal)] => waits.push(refusal.retry_after),
            other => panic!("{other:?}"),
        }
    }
    assert!(waits.iter().all(|wait| *wait >= probe_at.since(at(0))));
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 5, "{waits:?}");
}
