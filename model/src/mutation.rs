//! The rules of the protocol that a model can be run without, to see that their loss is noticed.

/// A rule taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// The protocol as it is.
    #[default]
    None,
    /// A member takes writes under a lower epoch and of a lower term.
    NoFence,
    /// The primary acknowledges when it has the write itself.
    AcknowledgeBeforeAll,
    /// Acknowledgements leave before the journal is synced.
    AcknowledgeBeforeStable,
    /// A primary goes on reading under a lease that has run out.
    LeaseKept,
    /// A node confirms the adoption of an election while a lease that it gave may be in use.
    AdoptionBeforeLeaseEnds,
    /// A restarted node takes itself for one that never gave a lease.
    LeaseForgottenByRestart,
    /// A grant covers a chunk although the granter has adopted that another is its primary.
    GrantWithoutException,
    /// A lease counts although another process of the granter acknowledged the term.
    LeaseOfAnotherProcess,
    /// A promotion is proposed as soon as the learner's stream is open.
    PromotionBeforeCatchUp,
    /// Writes and leases do not wait for a learner whose promotion is proposed.
    ProposedLearnerNotCounted,
    /// The proposal is sent without having been journalled: a restart forgets it.
    ProposalNotDurable,
    /// A copy overwrites what a later write of the stream has touched.
    CopyOverwritesLater,
    /// A copy that was read for an earlier fill of the same process is taken.
    CopyOfFormerFill,
    /// A learner goes back to the base of an older opening that arrives late.
    OldOpeningRewinds,
    /// An acknowledgement counts for a fill although it does not come from the fill's stream.
    AckOutsideTheFill,
    /// Copies are numbered from 1 in every fill, so that an old answer fits a new copy.
    CopyNumbersReused,
    /// A replica is retired although fewer than `copies_wanted` have recorded ownership.
    RetirementBeforeOwnership,
    /// A node that has erased a replica has forgotten the epochs it refused under.
    ErasureForgetsEpoch,
    /// The order to erase does not name the incarnation.
    EraseWithoutIncarnation,
    /// A stale replica is elected.
    StaleElected,
    /// A new primary serves without overwriting what is not known to be committed.
    NoOverwrite,
    /// A read shows what is not committed.
    ReadUncommitted,
    /// Clocks drift by more than leases allow for.
    DriftBeyondBound,
}
