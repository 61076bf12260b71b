//! Every scenario, with a few seeds each: its faults struck, and no rule broke.

use ashlar_sim::{Options, Sabotage, run, scenarios};
use std::collections::BTreeSet;
use std::path::Path;

/// Seeds of each scenario; `ASHLAR_SEEDS` asks for more.
fn seed_count() -> u64 {
    std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

#[test]
fn every_scenario_is_survived_and_its_faults_struck() {
    let mut failures = Vec::new();
    for scenario in scenarios().unwrap() {
        for seed in 1..=seed_count() {
            let options = Options::of_scenario(scenario, seed);
            let outcome = run(options);
            if let Some(violation) = outcome.violations.first() {
                let text: String = violation.to_string().chars().take(600).collect();
                failures.push(format!("{} --log\n    {text}", options.replay_command()));
            }
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

/// What a scenario expects is worth what it notices.
#[test]
fn a_scenario_whose_faults_do_nothing_is_noticed() {
    let mut unnoticed = Vec::new();
    for scenario in scenarios().unwrap().iter().filter(|scenario| !scenario.has_zones()) {
        let options = Options::of_scenario(scenario, 1);
        let outcome = run(Options { sabotage: Sabotage::IdleFaults, ..options });
        if outcome.violations.is_empty() {
            unnoticed.push(scenario.name);
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

#[test]
fn every_file_of_a_scenario_is_embedded_and_named_in_the_documentation() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: BTreeSet<String> = std::fs::read_dir(here.join("scenarios"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_suffix(".toml").unwrap().to_owned())
        .collect();
    let embedded: BTreeSet<String> =
        scenarios().unwrap().iter().map(|scenario| scenario.name.to_owned()).collect();
    assert_eq!(files, embedded);
    let page = std::fs::read_to_string(here.join("../docs/simulation.md")).unwrap();
    let missing: Vec<&String> = files.iter().filter(|name| !page.contains(*name)).collect();
    assert!(missing.is_empty(), "not in docs/simulation.md: {missing:?}");
}
