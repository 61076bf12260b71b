//! Every state of the two networks between a primary and a secondary has its outcome, and none makes
//! roles flap (design.md section 5): at most two change.

use ashlar_sim::{Options, network_states, run};

/// Seeds of each; `ASHLAR_SEEDS` asks for more.
fn seed_count() -> u64 {
    std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

#[test]
fn whatever_two_networks_are_like_roles_do_not_flap() {
    let mut failures = Vec::new();
    let states = network_states().unwrap();
    assert_eq!(states.len(), 24);
    for scenario in states {
        for seed in 1..=seed_count() {
            let options = Options::of_scenario(scenario, seed);
            let replay = options.replay_command();
            let outcome = run(options);
            if let Some(violation) = outcome.violations.first() {
                let text: String = violation.to_string().chars().take(600).collect();
                failures.push(format!("{replay} --log\n    {text}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}
