//! Every scene is explored whole: no invariant breaks, and what it is about does happen.

#![allow(clippy::print_stdout, reason = "how many states, in what time")]

use ashlar_model::{Scene, explore};
use std::time::Duration;

fn nightly() -> bool {
    std::env::var_os("ASHLAR_NIGHTLY").is_some()
}

fn holds(scene: fn(bool) -> Scene) {
    let at_most = Duration::from_secs(if nightly() { 1_800 } else { 120 });
    let report = explore(scene(nightly()), at_most);
    println!("{report}");
    assert!(report.broken.is_empty(), "{report}");
    assert!(report.unreached.is_empty(), "{report}");
    assert!(report.complete, "{report}");
}

#[test]
fn a_primary_is_replaced_and_nothing_is_lost() {
    holds(Scene::fail_over);
}

#[test]
fn a_primary_that_agreed_to_follow_loses_nothing() {
    holds(Scene::agreement);
}

#[test]
fn a_primary_that_agreed_to_follow_answers_no_stale_read() {
    holds(Scene::agreement_and_leases);
}

#[test]
fn a_secondary_that_is_released_unasked_loses_nothing() {
    holds(Scene::release);
}

#[test]
fn a_secondary_that_is_released_unasked_shows_nothing_stale() {
    holds(Scene::release_and_leases);
}

#[test]
fn a_spare_that_is_added_unasked_has_everything_when_it_is_promoted() {
    holds(Scene::spare);
}

#[test]
fn what_a_crash_takes_from_the_journal_was_never_acknowledged() {
    holds(Scene::power);
}

#[test]
fn reads_under_leases_are_linearizable() {
    holds(Scene::leases);
}

#[test]
fn a_lease_binds_also_who_skips_an_election() {
    holds(Scene::leases_of_three);
}

#[test]
fn a_promoted_learner_counts_for_leases_from_its_proposal_on() {
    holds(Scene::leases_and_promotion);
}

#[test]
fn a_repeated_write_never_undoes_a_later_one() {
    holds(Scene::repeats);
}

#[test]
fn reads_that_ask_are_linearizable() {
    holds(Scene::reads);
}

#[test]
fn a_promoted_learner_has_everything() {
    holds(Scene::promotion);
}

#[test]
fn a_replica_is_retired_only_when_others_own_the_chunk() {
    holds(Scene::retirement);
}
