//! `ashlar bench`: measures a volume through the client library.
//!
//! The load generators live in `bench/`; this file names the workload and prints the figures.

use crate::Global;
use crate::failure::{Failure, Kind};
use crate::render::Output;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Volume, by id or name. What it holds is overwritten.
    volume: String,
}

/// Runs the measurement.
///
/// # Errors
/// When the volume cannot be attached or an I/O fails.
pub(crate) fn run(
    arguments: &Arguments,
    _global: &Global,
    _output: &Output,
) -> Result<(), Failure> {
    Err(Failure::new(Kind::Unavailable, format!("measure {}", arguments.volume))
        .because("the load generators are not part of this build yet (issue 2)"))
}
