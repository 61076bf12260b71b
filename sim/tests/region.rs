//! Three zones under one clock: what a fault in one of them may not change in the others (I8), and that
//! the judge would notice if it did.

use ashlar_sim::{Kinds, Options, Sabotage, Scenario, Scene, run, run_logged, scenario};
use std::cell::RefCell;
use std::rc::Rc;

/// The whole log of a run that begins with these words.
fn log_of(options: Options, zone: &str) -> Vec<String> {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let (sink, zone) = (Rc::clone(&lines), zone.to_owned());
    let outcome = run_logged(options, move |_, line| {
        if line.starts_with(&zone) {
            sink.borrow_mut().push(line.to_owned());
        }
    });
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    lines.take()
}

/// Seeds of which the zone with faults asks nothing of the others, and of which it does.
fn seeds_of_silence() -> Vec<u64> {
    let silent = |seed: &u64| !Options::of_scene(Scene::Region, *seed).zone_with_faults_asks();
    (0..40).filter(silent).collect()
}

#[test]
fn seeds_of_a_region_break_no_rule() {
    let count = std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut failures = Vec::new();
    for seed in 0..count.unwrap_or(6) {
        let options = Options::of_scene(Scene::Region, seed);
        let outcome = run(options);
        if let Some(violation) = outcome.violations.first() {
            let text: String = violation.to_string().chars().take(600).collect();
            failures.push(format!("{} --log\n    {text}", options.replay_command()));
        }
        assert!(outcome.tally.of("calls answered") > 100, "{:?}", outcome.tally);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn scenarios_of_a_region_break_no_rule() {
    // All of them, with more seeds, run in `scenarios.rs`.
    for name in ["region-members-dead", "region-members-hang", "n05-creates-in-a-full-zone"] {
        let options = Options::of_scenario(scenario(name).unwrap(), 1);
        let outcome = run(options);
        let shown: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "{} --log\n{shown:#?}", options.replay_command());
    }
}

#[test]
fn a_zone_is_the_same_event_by_event_whether_another_has_faults_or_not() {
    let seed = *seeds_of_silence().first().unwrap();
    let options = Options::of_scene(Scene::Region, seed);
    for zone in ["a: ", "c: "] {
        let (with, without) =
            (log_of(options, zone), log_of(Options { kinds: Kinds::NONE, ..options }, zone));
        let differs = with.iter().zip(&without).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}, zone {zone}");
        assert_eq!(with.len(), without.len());
        assert!(with.len() > 10_000, "{}", with.len());
    }
    let zone = "b: ";
    assert_ne!(log_of(options, zone), log_of(Options { kinds: Kinds::NONE, ..options }, zone));
}

#[test]
fn the_same_seed_gives_the_same_region() {
    let scenario = scenario("region-members-hang").unwrap();
    let options = Options { digest: true, ..Options::of_scenario(scenario, 3) };
    assert_eq!(run(options), run(options));
}

/// With a rule of the gateways taken out, one of the first seeds must break that of the judge.
fn must_break(scenario: &'static Scenario, sabotage: Sabotage, seeds: &[u64]) {
    let found = seeds.iter().any(|seed| {
        let outcome = run(Options { sabotage, ..Options::of_scenario(scenario, *seed) });
        outcome.violations.iter().any(|violation| violation.rule == "fault in another zone")
    });
    assert!(found, "{sabotage:?} was not noticed");
}

#[test]
fn a_bulkhead_for_all_zones_is_caught() {
    must_break(scenario("region-members-hang").unwrap(), Sabotage::OneBulkhead, &[1, 2, 3]);
}

#[test]
fn what_another_zone_fails_at_and_this_one_remembers_is_caught() {
    let seeds = seeds_of_silence();
    must_break(scenario("region-members-hang").unwrap(), Sabotage::SharedState, &seeds[..3]);
}
