//! Seeds that lose more than is promised to be survived: nobody is shown wrong bytes, and what cannot be
//! served is refused with its cause (`sim/src/beyond.rs`); and the judge would notice if not.

use ashlar_sim::{FaultKind, Kinds, Options, Sabotage, Tally, run};

fn options(seed: u64) -> Options {
    Options { beyond: true, ..Options::of_many(seed) }
}

#[test]
fn what_is_lost_for_ever_is_refused_with_its_cause_and_nothing_wrong_is_shown() {
    let count = std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut failures = Vec::new();
    let mut tally = Tally::default();
    for seed in 0..count.unwrap_or(24) {
        let outcome = run(options(seed));
        if let Some(violation) = outcome.violations.first() {
            let text: String = violation.to_string().chars().take(600).collect();
            failures.push(format!("{} --log\n    {text}", options(seed).replay_command()));
        }
        tally.add(&outcome.tally);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for what in ["chunks stuck and named", "chunks served", "all members lost", "salvages"] {
        assert!(tally.of(what) > 0, "no {what}: {tally:?}");
    }
}

/// Seeds that failed once, with what they found.
const SEEDS: &[(u64, &str)] = &[
    (19, "service demanded of a chunk with fewer copies than writes need"),
    (42, "service demanded of a chunk whose lost copy nobody can remove"),
    (54, "an answer to another call taken for the status"),
    (80, "a client without a map, as it started while no member answered"),
    (81, "a client without a map, as it started while no member answered"),
    (113, "service demanded of a primary that nobody had told of its election"),
    (118, "a client without a map, as it started while no member answered"),
];

#[test]
fn no_seed_that_failed_once_fails_again() {
    for (seed, found) in SEEDS {
        let outcome = run(options(*seed));
        let shown: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        let command = options(*seed).replay_command();
        assert!(shown.is_empty(), "{found}: {command} --log\n{shown:#?}");
    }
}

/// With a rule taken out, one of the first seeds must break that of the judge.
fn must_break(rule: &str, sabotage: Sabotage) {
    let kinds = Kinds::NONE.with(FaultKind::CrashNode);
    let found = (0..40).any(|seed| {
        let outcome = run(Options { sabotage, kinds, ..options(seed) });
        outcome.violations.iter().any(|violation| violation.rule == rule)
    });
    assert!(found, "{sabotage:?} was not noticed by «{rule}»");
}

#[test]
fn a_status_that_does_not_name_what_is_stuck_is_caught() {
    must_break("not refused", Sabotage::HideStuck);
}

#[test]
fn a_store_that_shows_what_has_rotten_is_caught() {
    must_break("unknown content", Sabotage::NoChecksums);
}
