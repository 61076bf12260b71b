//! All ordered pairs of faults within one second (F23): what no one had tried in 2011.

use ashlar_sim::{FaultKind, Options, run};

/// Of so many pairs one is run; every night all.
fn step() -> usize {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 1 } else { 13 }
}

#[test]
fn every_pair_of_faults_within_a_second_is_survived() {
    let kinds = FaultKind::striking();
    assert!(kinds.clone().count() >= 20);
    let pairs = kinds.clone().flat_map(|first| kinds.clone().map(move |second| (first, second)));
    let mut failures = Vec::new();
    for (number, pair) in pairs.enumerate().step_by(step()) {
        let options = Options::of_pair(pair, number as u64);
        if let Some(violation) = run(options).violations.first() {
            let text: String = violation.to_string().chars().take(600).collect();
            failures.push(format!("{} --log\n    {text}", options.replay_command()));
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}
