//! Scenarios: what strikes whom and when, written down as `sim/scenarios/*.toml` and named after the
//! faults of the requirements (`n33-paused-primary`).
//!
//! A step strikes at a time, or at a moment of the protocol, and only while its target is at work
//! (`busy`). A scenario in which a step never struck fails: it would have shown nothing.
//! `script.rs` plays the steps, `aim.rs` finds the targets.

mod aim;
mod script;
mod states;
mod text;

use crate::span::parse_span;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;
use thiserror::Error;

pub(crate) use aim::Aim;
pub use states::network_states;

pub(crate) use script::{Moment, Script, longest};
pub(crate) use text::Verb;

/// The files, embedded so that the binary can replay every scenario anywhere.
const FILES: &[(&str, &str)] = &include!("files.in");

/// A scenario.
#[derive(Debug)]
pub struct Scenario {
    /// Its name: that of its file.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub about: String,
    /// Numbers of the faults that it stands for.
    pub faults: Vec<String>,
    /// How long the steps may take.
    pub storm: Duration,
    /// More is lost than is promised to be survived: what is demanded then is in `beyond.rs`.
    pub(crate) beyond: bool,
    /// Zones: faults strike one of them (`region.rs`).
    pub(crate) zones: u32,
    /// What the callers of a region do, if not the usual.
    pub(crate) calls: Option<Calls>,
    pub(crate) nodes: u32,
    /// Stores of each node.
    pub(crate) stores: u32,
    /// Racks that the nodes stand in, in turn; 0: they have no labels.
    pub(crate) racks: u32,
    /// Nodes of these, the last ones, that are not there until a step lets them come.
    pub(crate) late: u32,
    /// Chunks of the volume.
    pub(crate) chunks: u64,
    /// Size of each.
    pub(crate) chunk_bytes: u64,
    /// What each store can hold, if it is to matter.
    pub(crate) room_bytes: Option<u64>,
    /// In which time nodes scrub everything, if they scrub at all.
    pub(crate) scrub: Option<Duration>,
    pub(crate) load: Load,
    pub(crate) steps: Vec<Step>,
    pub(crate) expect: Expect,
}

impl Scenario {
    /// Whether it has several zones.
    #[must_use]
    pub const fn has_zones(&self) -> bool {
        self.zones > 1
    }
}

/// What the callers of each zone do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Calls in a second.
    pub(crate) per_second: u64,
    /// Of 100 calls, how many make a volume in the zone that faults strike.
    pub(crate) creates: u64,
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests that it keeps in progress.
    pub(crate) depth: usize,
    /// Blocks that half of the requests go to.
    pub(crate) hot_blocks: u64,
    /// Of 100 requests, how many read.
    pub(crate) reads: u64,
    /// Of 100 requests, how many zero.
    pub(crate) zeroes: u64,
    /// Blocks of the largest request.
    pub(crate) blocks_max: u64,
    /// Requests in a second, on average; none: as many as are answered.
    pub(crate) per_second: Option<u64>,
}

impl Load {
    /// The usual one.
    pub(crate) const USUAL: Self =
        Self { depth: 12, hot_blocks: 12, reads: 40, zeroes: 10, blocks_max: 5, per_second: None };

    /// 50 writes and zeroings in a second, and 40 reads.
    pub(crate) const ZONE: Self = Self { per_second: Some(90), ..Self::USUAL };
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Not before this time from the beginning of the load.
    pub(crate) at: Duration,
    /// Only at such a moment.
    pub(crate) on: Option<Moment>,
    /// Only while writes of the first chunk are on their way.
    pub(crate) busy: bool,
    pub(crate) verb: Verb,
    pub(crate) of: Aim,
    /// The other side of a cut.
    pub(crate) from: Aim,
    pub(crate) length: Duration,
    pub(crate) networks: Networks,
    pub(crate) way: Way,
    pub(crate) amount: u64,
    pub(crate) times: u32,
    pub(crate) every: Duration,
}

/// Networks that a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Networks {
    Both,
    Primary,
    Replication,
}

/// Directions that a cut is about, as its target sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    Out,
    In,
}

/// What must have come of it, beside the rules that always hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expect {
    /// Warnings and errors that may be logged: a part of their text.
    pub(crate) lines: Vec<String>,
    /// Counts of the tally that must be reached, or the fault showed nothing.
    pub(crate) at_least: BTreeMap<String, u64>,
    /// Counts that must not be passed.
    pub(crate) at_most: BTreeMap<String, u64>,
}

/// What is wrong with a scenario's text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("scenario {name}: {what}")]
pub struct ScenarioError {
    name: &'static str,
    what: String,
}

/// All scenarios, in order of their names.
///
/// # Errors
/// If one of the embedded files cannot be read: a test holds that none is.
pub fn scenarios() -> Result<&'static [Scenario], ScenarioError> {
    static ALL: OnceLock<Result<Vec<Scenario>, ScenarioError>> = OnceLock::new();
    let all = ALL.get_or_init(|| FILES.iter().map(|(name, file)| text::read(name, file)).collect());
    all.as_deref().map_err(Clone::clone)
}

/// The scenario of a name.
///
/// # Errors
/// If there is none, with the names there are.
pub fn scenario(name: &str) -> Result<&'static Scenario, String> {
    let all = scenarios().map_err(|error| error.to_string())?;
    let states = network_states().map_err(|error| error.to_string())?;
    let both = all.iter().chain(states);
    both.clone().find(|scenario| scenario.name == name).ok_or_else(|| {
        let names: Vec<&str> = both.clone().map(|scenario| scenario.name).collect();
        format!("there is no scenario {name:?}; there are: {}", names.join(", "))
    })
}

/// A time in a scenario.
fn span(text: &str) -> Result<Duration, String> {
    parse_span(text).ok_or_else(|| format!("{text:?} is not a time, as 2s or 150ms are"))
}
