//! Seeds of the simulation: none may break a rule, and the judge must notice when a rule is gone.

use ashlar_sim::{Options, Sabotage, run};

/// Seeds that a run of the test suite tries; `ASHLAR_SEEDS` asks for more.
fn seed_count(usual: u64) -> u64 {
    std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn no_seed_breaks_a_rule() {
    // The CI runs its seeds with the release build; here few are enough to find a broken world.
    for seed in 0..seed_count(40) {
        let outcome = run(Options::of_many(seed));
        let shown: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "replay: ashlar sim run --seed {seed}\n{shown:#?}");
        assert!(outcome.writes > 100, "seed {seed} wrote only {} blocks", outcome.writes);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in 0..5 {
        assert_eq!(run(Options::new(seed)), run(Options::new(seed)), "seed {seed}");
    }
}

fn caught_by(sabotage: Sabotage) -> Option<u64> {
    (0..200).find(|seed| {
        let outcome = run(Options { sabotage, ..Options::of_many(*seed) });
        outcome.violations.iter().any(|v| {
            ["lost write", "two writers", "replicas differ", "stale read"].contains(&v.rule)
        })
    })
}

#[test]
fn a_zone_without_the_epoch_check_is_caught() {
    assert!(caught_by(Sabotage::IgnoreEpochs).is_some());
}

#[test]
fn a_primary_that_acknowledges_before_its_secondaries_have_the_write_is_caught() {
    assert!(caught_by(Sabotage::AcknowledgeEarly).is_some());
}

#[test]
fn a_primary_that_keeps_its_leases_is_caught() {
    assert!(caught_by(Sabotage::KeepLeases).is_some());
}
