//! `ashlar sim`: runs the deterministic simulation from the command line.
//!
//! A failing seed is printed with the command that replays it. The world and its judgement live in
//! `sim/`; this file only counts seeds.

use clap::Subcommand;

use crate::failure::{Failure, Kind};
use crate::render::Output;

/// Commands of the simulation.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one seed, or many in a row.
    Run {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds, counting up from the first.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
    },
}

/// Runs the command.
///
/// # Errors
/// When a seed breaks an invariant; the text names the seed and how to run it again.
pub(crate) fn run(command: &Command, _output: &Output) -> Result<(), Failure> {
    let Command::Run { seed, seeds } = command;
    Err(Failure::new(Kind::Unavailable, format!("run {seeds} seeds from {seed}"))
        .because("the simulator is not part of this build yet (issue 2)"))
}
