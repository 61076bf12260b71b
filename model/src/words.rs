//! The nouns of the model: positions, configurations, messages. Small copies of the ones in
//! `types/`, so that a state is a few hundred bytes and millions of them fit.

/// Most nodes that a scene may have.
pub(crate) const NODES: usize = 4;

/// Content of the one block: the number of the write that made it, 0 at first.
pub(crate) type Value = u8;

/// Most values a scene may write, the first content included.
pub(crate) const VALUES: usize = 4;

/// Number of a node; an index.
pub(crate) type NodeId = usize;

/// A set of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Set(u8);

impl Set {
    pub(crate) fn of(nodes: &[NodeId]) -> Self {
        nodes.iter().fold(Self::default(), |set, node| set.with(*node))
    }

    pub(crate) const fn contains(self, node: NodeId) -> bool {
        self.0 & (1 << node) != 0
    }

    #[must_use]
    pub(crate) const fn with(self, node: NodeId) -> Self {
        Self(self.0 | (1 << node))
    }

    #[must_use]
    pub(crate) const fn without(self, node: NodeId) -> Self {
        Self(self.0 & !(1 << node))
    }

    #[must_use]
    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub(crate) const fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..NODES).filter(move |node| self.contains(*node))
    }
}

/// Who orders writes: epoch of election, start number of the primary's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Term {
    pub(crate) elected: u8,
    pub(crate) start: u8,
}

/// Position of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lsn {
    pub(crate) term: Term,
    pub(crate) counter: u8,
}

impl Lsn {
    pub(crate) const ZERO: Self = Self { term: Term { elected: 0, start: 0 }, counter: 0 };

    pub(crate) const fn opening(term: Term) -> Self {
        Self { term, counter: 0 }
    }

    #[must_use]
    pub(crate) const fn next(self) -> Self {
        Self { term: self.term, counter: self.counter + 1 }
    }
}

/// A chunk's configuration, as the control plane commits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Config {
    pub(crate) epoch: u8,
    pub(crate) elected: u8,
    pub(crate) primary: NodeId,
    pub(crate) in_sync: Set,
    pub(crate) learners: Set,
    pub(crate) stale: Set,
    /// Learners that were in sync once: given up, they turn stale and are not forgotten.
    pub(crate) readopting: Set,
    /// Which replica of each node: the epoch that added it.
    pub(crate) incarnation: [u8; NODES],
}

impl Config {
    /// In sync or being filled.
    pub(crate) const fn names(&self, node: NodeId) -> bool {
        self.in_sync.contains(node) || self.learners.contains(node)
    }
}

/// What a member tells a primary that opens a term. The content stands for the answer to a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct History {
    pub(crate) last: Lsn,
    pub(crate) committed: Lsn,
    /// Newest position that is not known to be committed; zero if all are.
    pub(crate) uncommitted: Lsn,
    pub(crate) value: Value,
}

/// A message on its way. It may arrive at any time, in any order, again and again, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) body: Body,
}

/// The name of a sender that is no node: the control plane.
pub(crate) const CONTROL: NodeId = NODES;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Body {
    /// Carries the configuration of that epoch, as every message of a primary may.
    Collect {
        epoch: u8,
        term: Term,
    },
    Collected {
        term: Term,
        history: History,
    },
    OpenTerm {
        epoch: u8,
        term: Term,
        base: Lsn,
        overwrite: bool,
    },
    OpenLearner {
        epoch: u8,
        base: Lsn,
        learner_start: u8,
    },
    Mirror {
        epoch: u8,
        lsn: Lsn,
        committed: Lsn,
        value: Value,
    },
    /// `base`: the learner's stream that it belongs to; zero outside of one.
    MirrorAck {
        lsn: Lsn,
        start: u8,
        base: Lsn,
    },
    Committed {
        epoch: u8,
        lsn: Lsn,
    },
    Confirm {
        epoch: u8,
        term: Term,
        round: u8,
    },
    Confirmed {
        epoch: u8,
        term: Term,
        round: u8,
    },
    Copy {
        epoch: u8,
        read_at: Lsn,
        learner_start: u8,
        number: u8,
        value: Value,
    },
    CopyAck {
        term: Term,
        learner_start: u8,
        number: u8,
    },
    /// `adopted`: the epoch of the sender's replica, which settles exceptions up to it.
    Beat {
        sent_at: u8,
        adopted: u8,
    },
    /// `except`: the epoch from which on the grant covers the chunk again; 0 if it always does.
    BeatReply {
        sent_at: u8,
        start: u8,
        except: u8,
    },
    /// To the control plane.
    PromoteLearner {
        epoch: u8,
        learner: NodeId,
    },
    /// Order of the control plane.
    Erase {
        epoch: u8,
        incarnation: u8,
    },
}
