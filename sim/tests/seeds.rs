//! Seeds of the simulation: none may break a rule, and the judge must notice when a rule is gone.

use ashlar_sim::{FaultKind, Kinds, Options, Sabotage, run, run_logged, run_stepped};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Seeds that a run of the test suite tries; `ASHLAR_SEEDS` asks for more.
fn seed_count(usual: u64) -> u64 {
    std::env::var("ASHLAR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn no_seed_breaks_a_rule() {
    // The CI runs its seeds with the release build; here few are enough to find a broken world.
    let mut failures = Vec::new();
    for seed in 0..seed_count(40) {
        // Every fourth zone has two stores in each node.
        let stores = 1 + u32::from(seed % 4 == 3);
        let options = Options { stores, ..Options::of_many(seed) };
        let outcome = run(options);
        if let Some(violation) = outcome.violations.first() {
            let text: String = violation.to_string().chars().take(600).collect();
            failures.push(format!("{} --log\n    {text}", options.replay_command()));
        } else if outcome.writes <= 100 {
            failures.push(format!("seed {seed} wrote only {} blocks", outcome.writes));
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

/// The whole log of a run.
fn log_of(options: Options) -> Vec<String> {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&lines);
    let outcome = run_logged(options, move |_, line| sink.borrow_mut().push(line.to_owned()));
    lines.borrow_mut().push(format!("{outcome:?}"));
    lines.take()
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for seed in 0..3 {
        let (first, second) = (log_of(Options::new(seed)), log_of(Options::new(seed)));
        let differs = first.iter().zip(&second).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.len() > 10_000, "seed {seed} told only {} lines", first.len());
    }
}

#[test]
fn what_events_change_is_told_and_telling_changes_nothing() {
    let scenario = ashlar_sim::scenario("n32-primary-before-mirror").unwrap();
    let options = Options { digest: true, ..Options::of_scenario(scenario, 1) };
    let lines = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&lines);
    let stepped = run_stepped(options, move |_, line| sink.borrow_mut().push(line.to_owned()));
    assert_eq!(stepped, run(options));
    let lines = lines.take();
    let told = |words: &[&str]| {
        let fits = |line: &&String| {
            line.starts_with("    ") && words.iter().all(|word| line.contains(word))
        };
        assert!(lines.iter().any(|line| fits(&line)), "no change with {words:?}");
    };
    told(&["node-", "process up => down"]);
    told(&["node-", "chunk 0: ", "last ", " => "]);
    told(&["committed chunk 0: ", "epoch ", " => "]);
    told(&["member-", "applied "]);
    told(&["client: ", "unanswered "]);
}

#[test]
fn processes_that_stand_still_are_part_of_the_swarm() {
    let kinds = Kinds::NONE
        .with(FaultKind::PauseNode)
        .with(FaultKind::PauseMember)
        .with(FaultKind::PauseClient);
    let mut paused = 0;
    for seed in 0..12 {
        let outcome = run(Options { kinds, ..Options::of_many(seed) });
        let shown: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "replay: ashlar sim replay {seed} --faults {kinds}\n{shown:#?}");
        paused += outcome.tally.of(FaultKind::PauseNode.name());
        assert!(outcome.tally.of("observer's reads judged") > 0, "seed {seed} observed nothing");
    }
    assert!(paused > 20, "only {paused} nodes stood still");
}

/// Rules whose breaking loses or hides data.
const RULES_OF_DATA: [&str; 4] = ["lost write", "two writers", "replicas differ", "stale read"];

fn caught_by(sabotage: Sabotage) -> Option<u64> {
    (0..200).find(|seed| {
        let outcome = run(Options { sabotage, ..Options::of_many(*seed) });
        outcome.violations.iter().any(|v| RULES_OF_DATA.contains(&v.rule))
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
fn a_replaced_primary_that_shows_what_it_remembers_is_caught() {
    // The members confirm whatever the asking primary's epoch is: the stale read of N33.
    let kinds = Kinds::NONE.with(FaultKind::PauseNode);
    let found = (0..200).find(|seed| {
        let sabotage = Sabotage::ConfirmAlways;
        let outcome = run(Options { sabotage, kinds, ..Options::of_many(*seed) });
        outcome.violations.iter().any(|violation| RULES_OF_DATA.contains(&violation.rule))
    });
    assert!(found.is_some());
}

#[test]
fn a_primary_that_keeps_its_leases_is_caught() {
    assert!(caught_by(Sabotage::KeepLeases).is_some());
}

/// With a rule of Ashlar taken out, one of the first seeds must break a rule of the judge.
fn must_break(rule: &str, sabotage: Sabotage, kinds: Kinds) {
    let mut broken = BTreeMap::new();
    for seed in 0..60 {
        let outcome = run(Options { sabotage, kinds, ..Options::of_many(seed) });
        for violation in outcome.violations {
            *broken.entry(violation.rule).or_insert(0) += 1;
        }
        if broken.contains_key(rule) {
            break;
        }
    }
    assert!(broken.contains_key(rule), "{rule} was not noticed, only {broken:?}");
}

#[test]
fn a_node_that_does_not_look_at_generations_is_caught() {
    let kinds = Kinds::NONE.with(FaultKind::Reattach);
    must_break("fenced writer", Sabotage::IgnoreGenerations, kinds);
}

#[test]
fn two_primaries_that_both_could_acknowledge_are_caught() {
    let kinds = Kinds::NONE.with(FaultKind::PauseNode).with(FaultKind::Isolate);
    must_break("two able to acknowledge", Sabotage::IgnoreEpochs, kinds);
}

#[test]
fn copies_that_were_not_kept_are_caught() {
    let kinds = Kinds::NONE.with(FaultKind::CrashNode);
    must_break("replicas differ", Sabotage::ForgetCopies, kinds);
}

#[test]
fn a_learner_that_is_never_full_is_caught() {
    let kinds = Kinds::NONE.with(FaultKind::NewDisk);
    must_break("not whole", Sabotage::SilentLearners, kinds);
}

#[test]
fn a_line_that_a_scenario_does_not_list_is_caught() {
    for (name, line) in [
        ("n44-rot-in-the-primary", "damaged blocks are written anew"),
        ("n48-failed-sync", "the store ends"),
        ("n51-empty-disk", "the node comes without a store"),
    ] {
        let options = Options::of_scenario(ashlar_sim::scenario(name).unwrap(), 1);
        let outcome = run(Options { sabotage: Sabotage::ExpectNoLine, ..options });
        let logged = |v: &ashlar_sim::Violation| v.rule == "logged";
        assert!(outcome.violations.iter().any(logged), "{name}: {:?}", outcome.violations);
        assert!(run(options).violations.is_empty(), "{name} lists {line:?}");
    }
}

#[test]
fn a_salvage_loses_writes_and_the_judge_would_tell() {
    let name = "salvage-after-all-in-sync-are-lost";
    let options = Options::of_scenario(ashlar_sim::scenario(name).unwrap(), 1);
    let outcome = run(Options { sabotage: Sabotage::ExpectNoLoss, ..options });
    let lost = |v: &ashlar_sim::Violation| v.rule == "lost write";
    assert!(outcome.violations.iter().any(lost), "{:?}", outcome.violations);
    assert!(run(options).violations.is_empty());
}

#[test]
fn a_primary_that_never_opens_its_term_is_caught() {
    let kinds = Kinds::NONE.with(FaultKind::CrashNode);
    must_break("not writable", Sabotage::SilentMembers, kinds);
}
