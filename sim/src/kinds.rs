//! Kinds of faults by name, sets of them, and how often each struck.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A kind of fault that a swarm may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A node's process dies and comes back.
    CrashNode,
    /// A member's process dies and comes back; usually the leader's.
    CrashMember,
    /// All processes die at once and come back.
    CrashAll,
    /// Two nodes lose each other on one network, one way or both.
    CutNodes,
    /// A node loses all nodes and members, on both networks; the client still reaches it.
    Isolate,
    /// The client loses a node.
    CutClient,
    /// A node loses a member.
    CutMember,
    /// Two members lose each other.
    CutMembers,
    /// Messages are lost, and their connections with them.
    Loss,
    /// A node's process stands still.
    PauseNode,
    /// A member's process stands still; usually the leader's.
    PauseMember,
    /// The client's process stands still.
    PauseClient,
    /// Two hosts' connections deliver nothing for a while, and then everything.
    Clog,
    /// Nothing gets through to or from a node, and nobody is told before TCP gives up.
    HalfOpen,
    /// A node's machine loses power: nothing unsynced survives, nobody refuses.
    PowerOff,
    /// Everything of a node takes many times as long.
    Slow,
    /// Messages are lost anywhere for a moment.
    LossBurst,
    /// A node's disk stands still.
    StallDisk,
    /// A node's disk has little room left for a while.
    ShortOfSpace,
    /// Reads of a node's disk fail for a moment.
    FailReads,
    /// A sync of a node's journal fails; its process ends, as it must.
    FailSync,
    /// A node's disk is replaced by an empty one, once.
    NewDisk,
    /// The volume is attached elsewhere by force, once; the former client goes on writing.
    Reattach,
    /// The client's process dies and is started again.
    RestartClient,
    /// A member's wall clock jumps.
    JumpClock,
    /// A node's monotonic clock runs up to 10 % fast or slow.
    Drift,
    /// A node's data core stands still, while it goes on beating.
    StallCore,
    /// An operator has a node drained, or that cancelled.
    Drain,
    /// The disk of one node lets a block rot, loses or misplaces a write, or shows old content.
    BadDisk,
    /// Another volume is made, and deleted after a while.
    ShortLived,
    /// An operator has the volume grow.
    Grow,
}

/// What the node's table says of a store that it goes on without.
const LOST: &str = "the node goes on without a store that failed";

impl FaultKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 31] = [
        Self::CrashNode,
        Self::CrashMember,
        Self::CrashAll,
        Self::CutNodes,
        Self::Isolate,
        Self::CutClient,
        Self::CutMember,
        Self::CutMembers,
        Self::Loss,
        Self::PauseNode,
        Self::PauseMember,
        Self::PauseClient,
        Self::Clog,
        Self::HalfOpen,
        Self::PowerOff,
        Self::Slow,
        Self::LossBurst,
        Self::StallDisk,
        Self::ShortOfSpace,
        Self::FailReads,
        Self::FailSync,
        Self::NewDisk,
        Self::Reattach,
        Self::RestartClient,
        Self::JumpClock,
        Self::Drift,
        Self::StallCore,
        Self::Drain,
        Self::BadDisk,
        Self::ShortLived,
        Self::Grow,
    ];

    /// Those that came when many seeds had a meaning.
    pub(crate) const LATER: [Self; 4] = [Self::Drain, Self::BadDisk, Self::ShortLived, Self::Grow];

    /// Its name on the command line and in the tally of a run.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CrashNode => "crash-node",
            Self::CrashMember => "crash-member",
            Self::CrashAll => "crash-all",
            Self::CutNodes => "cut-nodes",
            Self::Isolate => "isolate",
            Self::CutClient => "cut-client",
            Self::CutMember => "cut-member",
            Self::CutMembers => "cut-members",
            Self::Loss => "loss",
            Self::PauseNode => "pause-node",
            Self::PauseMember => "pause-member",
            Self::PauseClient => "pause-client",
            Self::Clog => "clog",
            Self::HalfOpen => "half-open",
            Self::PowerOff => "power-off",
            Self::Slow => "slow",
            Self::LossBurst => "loss-burst",
            Self::StallDisk => "stall-disk",
            Self::ShortOfSpace => "short-of-space",
            Self::FailReads => "fail-reads",
            Self::FailSync => "fail-sync",
            Self::NewDisk => "new-disk",
            Self::Reattach => "reattach",
            Self::RestartClient => "restart-client",
            Self::JumpClock => "jump-clock",
            Self::Drift => "drift",
            Self::StallCore => "stall-core",
            Self::Drain => "drain",
            Self::BadDisk => "bad-disk",
            Self::ShortLived => "short-lived",
            Self::Grow => "grow",
        }
    }

    /// Warnings and errors that are logged when it strikes: parts of their text. Whatever else is
    /// logged breaks a rule.
    pub(crate) const fn lines(self) -> &'static [&'static str] {
        match self {
            Self::FailReads => &["a read of the store failed", "Unreadable", "Repaired"],
            Self::BadDisk => &[
                "blocks at rest fail their checksum",
                "a read of the store failed",
                "Unreadable",
                "Repaired",
            ],
            // A node with several stores goes on with the others, and introduces itself anew.
            Self::FailSync => &["the store ends", LOST, "the node comes without a store"],
            // With its disk exchanged it comes back while its former process counts as up: it asks
            // until that one has been silent for long enough.
            Self::NewDisk => &[
                "the node comes without a store",
                "a node is refused",
                "the control plane refuses this node",
            ],
            // Raft's word for a leader that hears too few: it gives up, as it must.
            Self::CrashMember
            | Self::CrashAll
            | Self::CutMembers
            | Self::PauseMember
            | Self::Loss
            | Self::LossBurst => &["stepped down to follower since quorum is not active"],
            _nothing_is_logged => &[],
        }
    }

    /// Whether a run has it at most once.
    pub(crate) const fn strikes_once(self) -> bool {
        matches!(self, Self::NewDisk | Self::Reattach)
    }

    /// Kinds that strike at a moment, for pairs of them.
    pub fn striking() -> impl Iterator<Item = Self> + Clone {
        Self::ALL.into_iter().filter(|kind| kind.weight() > 0)
    }

    /// How often it is drawn, beside the others that are on.
    pub(crate) const fn weight(self) -> u64 {
        match self {
            Self::CrashNode => 6,
            Self::CrashMember | Self::CutNodes | Self::PauseNode | Self::Clog => 3,
            Self::CutClient
            | Self::CutMember
            | Self::Isolate
            | Self::PauseMember
            | Self::HalfOpen
            | Self::PowerOff
            | Self::StallDisk
            | Self::FailSync
            | Self::StallCore
            | Self::Slow => 2,
            Self::CrashAll
            | Self::CutMembers
            | Self::PauseClient
            | Self::LossBurst
            | Self::NewDisk
            | Self::Reattach
            | Self::RestartClient
            | Self::JumpClock
            | Self::ShortOfSpace
            | Self::FailReads
            | Self::Drain
            | Self::BadDisk
            | Self::ShortLived
            | Self::Grow
            | Self::Drift => 1,
            // Weather: always there where it is on.
            Self::Loss => 0,
        }
    }
}

impl FromStr for FaultKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// A name that no kind of fault has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no fault {0:?}; the kinds are: {all}", all = Kinds::ALL)]
pub struct UnknownKind(String);

/// A set of kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u32);

const _: () = assert!(FaultKind::ALL.len() <= 32, "a set is 32 bits");

impl Kinds {
    /// No kind.
    pub const NONE: Self = Self(0);
    /// Every kind.
    pub const ALL: Self = Self(u32::MAX);

    /// The set with one more kind.
    #[must_use]
    pub const fn with(self, kind: FaultKind) -> Self {
        Self(self.0 | 1 << kind as u32)
    }

    /// The set with one kind less.
    #[must_use]
    pub const fn without(self, kind: FaultKind) -> Self {
        Self(self.0 & !(1 << kind as u32))
    }

    /// Whether a kind is in the set.
    #[must_use]
    pub const fn contains(self, kind: FaultKind) -> bool {
        self.0 & (1 << kind as u32) != 0
    }

    /// Kinds that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The kinds, in order.
    pub fn iter(self) -> impl Iterator<Item = FaultKind> {
        FaultKind::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }

    /// How many.
    #[must_use]
    pub fn len(self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(FaultKind::name).collect();
        f.write_str(if names.is_empty() { "none".into() } else { names.join(",") }.as_str())
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Kinds {
    type Err = UnknownKind;

    /// Names with commas between them, `all`, or `none`.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        match text {
            "all" => Ok(Self::ALL),
            "none" => Ok(Self::NONE),
            names => names.split(',').try_fold(Self::NONE, |set, name| {
                let kind: FaultKind = name.trim().parse()?;
                Ok(set.with(kind))
            }),
        }
    }
}

/// How often things happened in a run, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
    /// Largest of what was measured.
    most: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Keeps the largest value that was measured.
    pub(crate) fn measure(&mut self, what: &'static str, value: u64) {
        let most = self.most.entry(what).or_default();
        *most = value.max(*most);
    }

    pub(crate) fn note(&mut self, what: &'static str) {
        self.add_to(what, 1);
    }

    /// It happened so often.
    pub(crate) fn add_to(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.counts.entry(what).or_default() += count;
        }
    }

    /// How often it happened, or the largest value of it.
    #[must_use]
    pub fn of(&self, what: &str) -> u64 {
        let counted = self.counts.get(what).or_else(|| self.most.get(what));
        counted.copied().unwrap_or(0)
    }

    /// Everything that happened, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().chain(&self.most).map(|(what, count)| (*what, *count))
    }

    /// Takes the counts of another run in.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        for (what, value) in &other.most {
            self.measure(what, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_reads_back_as_it_is_written_and_a_wrong_name_is_named() {
        for set in [Kinds::NONE, Kinds::NONE.with(FaultKind::Loss).with(FaultKind::CrashAll)] {
            assert_eq!(set.to_string().parse::<Kinds>().unwrap(), set);
        }
        let error = "crash-node,meteor".parse::<Kinds>().unwrap_err().to_string();
        assert!(error.contains("\"meteor\"") && error.contains("pause-node"), "{error}");
        assert_eq!(Kinds::ALL.without(FaultKind::Loss).len(), FaultKind::ALL.len() - 1);
    }
}
