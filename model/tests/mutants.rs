//! Each rule of the protocol taken out in turn: the model must say which invariant breaks.

#![allow(clippy::print_stdout, reason = "how many states, in what time")]

use ashlar_model::{
    ELECTED_IN_SYNC, IDENTICAL, LINEARIZABLE, MEMBERS_KEPT, Mutation, NOTHING_LOST,
    ONE_ACKNOWLEDGES, RETIRED_LATE, Scene, seek,
};
use std::time::Duration;

fn is_caught(scene: Scene, mutation: Mutation, property: &'static str) {
    let report = seek(scene.without(mutation), Duration::from_secs(120), property);
    println!("{mutation:?}: {report}");
    let named = report.broken.iter().any(|broken| broken.property == property);
    assert!(named, "{mutation:?} does not break «{property}»: {report}");
}

macro_rules! mutants {
    ($($name:ident: $scene:expr, $mutation:ident, $property:ident;)*) => {
        $(#[test]
        fn $name() {
            is_caught($scene, Mutation::$mutation, $property);
        })*
    };
}

mutants! {
    no_fence: Scene::fail_over(false), NoFence, ONE_ACKNOWLEDGES;
    acknowledge_before_all: Scene::fail_over(false), AcknowledgeBeforeAll, NOTHING_LOST;
    acknowledge_before_stable: Scene::power(false), AcknowledgeBeforeStable, NOTHING_LOST;
    lease_kept_by_the_old_primary: Scene::leases(false), LeaseKept, LINEARIZABLE;
    adoption_confirmed_before_the_lease_ends:
        Scene::leases(false), AdoptionBeforeLeaseEnds, LINEARIZABLE;
    lease_forgotten_by_a_restart: Scene::leases(false), LeaseForgottenByRestart, LINEARIZABLE;
    grant_without_exception: Scene::leases(false), GrantWithoutException, LINEARIZABLE;
    lease_of_another_process: Scene::leases(false), LeaseOfAnotherProcess, LINEARIZABLE;
    clocks_that_drift_beyond_the_bound: Scene::leases(false), DriftBeyondBound, LINEARIZABLE;
    promotion_before_catch_up: Scene::promotion(false), PromotionBeforeCatchUp, NOTHING_LOST;
    proposed_learner_not_counted: Scene::promotion(false), ProposedLearnerNotCounted, NOTHING_LOST;
    proposed_learner_not_counted_for_leases:
        Scene::leases_and_promotion(false), ProposedLearnerNotCounted, LINEARIZABLE;
    proposal_not_durable: Scene::promotion(false), ProposalNotDurable, NOTHING_LOST;
    copy_overwrites_a_later_write: Scene::promotion(false), CopyOverwritesLater, NOTHING_LOST;
    copy_of_a_former_fill: Scene::promotion(false), CopyOfFormerFill, NOTHING_LOST;
    old_opening_rewinds_the_learner: Scene::promotion(false), OldOpeningRewinds, NOTHING_LOST;
    acknowledgement_from_outside_the_fill: Scene::promotion(false), AckOutsideTheFill, NOTHING_LOST;
    copy_numbers_reused: Scene::promotion(false), CopyNumbersReused, NOTHING_LOST;
    retirement_before_ownership:
        Scene::retirement(false), RetirementBeforeOwnership, RETIRED_LATE;
    erasure_forgets_the_epoch: Scene::retirement(false), ErasureForgetsEpoch, ONE_ACKNOWLEDGES;
    erase_without_incarnation: Scene::retirement(false), EraseWithoutIncarnation, MEMBERS_KEPT;
    stale_replica_elected: Scene::fail_over(false), StaleElected, ELECTED_IN_SYNC;
    stale_replica_elected_loses_writes: Scene::fail_over(false), StaleElected, NOTHING_LOST;
    no_overwrite_of_what_is_uncommitted: Scene::fail_over(false), NoOverwrite, IDENTICAL;
    read_of_what_is_uncommitted: Scene::reads(false), ReadUncommitted, LINEARIZABLE;
}
