//! What a node logs as a warning or an error about its store and its core: one table.
//!
//! The shell logs these lines and no others about what the core and the store tell it; the
//! simulator judges the same lines, so that a scenario that does not list one fails. Lines about
//! sockets and files stand where they are logged: there are none in the simulation.

use crate::outbox::Alarm;

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something was damaged or late, and Ashlar deals with it.
    Warn,
    /// An operator should look: something is lost, refused or ends.
    Error,
}

impl Level {
    /// As it stands in a log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// A line of the table. What it is about (chunk, range, cause) goes with it as fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// [`Alarm::LacksCommitted`].
    LacksCommitted,
    /// [`Alarm::ConfigRefused`].
    ConfigRefused,
    /// [`Alarm::Unreadable`].
    Unreadable,
    /// [`Alarm::Repaired`].
    Repaired,
    /// [`Alarm::Lost`].
    Lost,
    /// [`Alarm::StoreLost`].
    StoreLost,
    /// [`Alarm::ClockRunsAhead`].
    ClockRunsAhead,
    /// The store answers a read with an error.
    ReadFailed,
    /// What the disk gave does not fit its checksum.
    Damaged,
    /// The store has no room for a record: it and everything behind it waits.
    Full,
    /// A store cannot go on (a sync or a write failed): if it is the only one, the process ends.
    StoreEnds,
    /// At its start the store found that it has lost records of a replica, or may have.
    LostPart,
    /// The control plane refuses this node, and asking again will not help.
    Refused,
}

impl Line {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::LacksCommitted,
        Self::ConfigRefused,
        Self::Unreadable,
        Self::Repaired,
        Self::Lost,
        Self::StoreLost,
        Self::ClockRunsAhead,
        Self::ReadFailed,
        Self::Damaged,
        Self::Full,
        Self::StoreEnds,
        Self::LostPart,
        Self::Refused,
    ];

    /// How loud.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            Self::Repaired => Level::Warn,
            Self::LacksCommitted
            | Self::ConfigRefused
            | Self::Unreadable
            | Self::Lost
            | Self::StoreLost
            | Self::ClockRunsAhead
            | Self::ReadFailed
            | Self::Damaged
            | Self::Full
            | Self::StoreEnds
            | Self::LostPart
            | Self::Refused => Level::Error,
        }
    }

    /// The words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::LacksCommitted => {
                "this store has lost committed writes of the chunk; it does not serve it"
            }
            Self::ConfigRefused => "a configuration that contradicts this store is refused",
            Self::Unreadable => "blocks of the chunk cannot be read",
            Self::Repaired => "damaged blocks are written anew",
            Self::Lost => "no in-sync replica can read these blocks",
            Self::StoreLost => {
                "the node goes on without a store that failed; its replicas there are gone"
            }
            Self::ClockRunsAhead => {
                "the node's clock runs faster than read leases allow for; reads are confirmed instead"
            }
            Self::ReadFailed => "a read of the store failed",
            Self::Damaged => "blocks at rest fail their checksum",
            Self::Full => "writes wait for space",
            Self::StoreEnds => "the store ends",
            Self::LostPart => "the store has lost part of this replica; it takes no part",
            Self::Refused => "the control plane refuses this node",
        }
    }
}

impl Alarm {
    /// What the shell logs of it.
    #[must_use]
    pub const fn line(&self) -> Line {
        match self {
            Self::LacksCommitted { .. } => Line::LacksCommitted,
            Self::ConfigRefused { .. } => Line::ConfigRefused,
            Self::Unreadable { .. } => Line::Unreadable,
            Self::Repaired { .. } => Line::Repaired,
            Self::Lost { .. } => Line::Lost,
            Self::StoreLost { .. } => Line::StoreLost,
            Self::ClockRunsAhead { .. } => Line::ClockRunsAhead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_line_has_words_of_its_own() {
        let words: BTreeSet<&str> = Line::ALL.into_iter().map(Line::text).collect();
        assert_eq!(words.len(), Line::ALL.len());
        assert!(Level::Warn < Level::Error);
    }
}
