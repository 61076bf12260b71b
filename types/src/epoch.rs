//! The numbers that fence: epoch, generation, session, start number, term, LSN.
//!
//! None of them ever goes back (invariant 1). A holder of a lower number is refused.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// Number of a chunk configuration; every committed change gives the next one. From 1.
    Epoch
);
number!(
    /// Number of an attachment of a volume; attach and detach both raise it. 0: never attached.
    Generation
);
number!(
    /// Number of a connection within one attachment, from a durable counter of the client. From 1.
    SessionId
);
number!(
    /// Number of a leadership of the zone's control plane: Raft's term. Not the term of a chunk. From 1.
    ControlTerm
);
number!(
    /// Number of a start of a node's process, durable before the process speaks. From 1.
    StartNumber
);

/// Who orders the writes of a chunk: the epoch in which the primary was elected, then the start
/// number of its process. A restarted primary opens a new term without asking the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Epoch of the configuration that made this node primary.
    pub elected: Epoch,
    /// Start number of the primary's process.
    pub start: StartNumber,
}

/// Position of a write in a chunk. Compares by term, then counter (design.md 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn {
    /// The term that assigned it.
    pub term: Term,
    /// From 1 in each term; 0 is the opening of the term itself.
    pub counter: u64,
}

impl Lsn {
    /// Before every write of every term.
    pub const ZERO: Self =
        Self { term: Term { elected: Epoch(0), start: StartNumber(0) }, counter: 0 };

    /// The opening position of a term: nothing written yet.
    #[must_use]
    pub const fn opening(term: Term) -> Self {
        Self { term, counter: 0 }
    }

    /// The next position in the same term.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { term: self.term, counter: self.counter.saturating_add(1) }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.elected, self.start)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.term, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_outranks_any_counter() {
        let old = Term { elected: Epoch(3), start: StartNumber(9) };
        let new = Term { elected: Epoch(4), start: StartNumber(1) };
        assert!(Lsn { term: old, counter: u64::MAX } < Lsn::opening(new));
        assert!(Lsn::ZERO < Lsn::opening(old));
        assert!(Lsn::opening(old) < Lsn::opening(old).next());
    }
}
