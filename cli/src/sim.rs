//! `ashlar sim`: runs the deterministic simulation from the command line.
//!
//! A failing seed is printed with the command that replays it. The world and its judgement live in
//! `sim/`; this file only counts seeds.

use std::time::Instant;

use ashlar_sim::{Options, run as simulate};
use clap::Subcommand;
use serde::Serialize;

use crate::failure::{Failure, Kind};
use crate::process;
use crate::render::{Output, Show, columns};

/// Commands of the simulation.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one seed, or many in a row.
    Run {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds, counting up from the first.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
    },
}

/// What the seeds came to.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    blocks_written: u64,
    blocks_read: u64,
    events: u64,
    /// Digest of all events: the same for the same seeds.
    digest: String,
    milliseconds: u128,
}

impl Show for Summary {
    fn table(&self) -> String {
        columns(
            ["SEEDS", "BLOCKS WRITTEN", "BLOCKS READ", "EVENTS", "DIGEST", "MILLISECONDS"],
            [[
                self.seeds.to_string(),
                self.blocks_written.to_string(),
                self.blocks_read.to_string(),
                self.events.to_string(),
                self.digest.clone(),
                self.milliseconds.to_string(),
            ]],
        )
    }
}

/// Runs the command.
///
/// # Errors
/// When a seed breaks an invariant; the text names the seed and how to run it again.
pub(crate) fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let Command::Run { seed, seeds } = command;
    let begun = Instant::now();
    let mut summary = Summary::default();
    let mut digest = 0_u64;
    for seed in (*seed..=u64::MAX).take(usize::try_from(*seeds).unwrap_or(usize::MAX)) {
        let outcome = simulate(Options::new(seed));
        if let Some(first) = outcome.violations.first() {
            return Err(Failure::new(Kind::Error, format!("keep every rule under seed {seed}"))
                .because(first)
                .try_next(format!("ashlar sim run --seed {seed}")));
        }
        summary.seeds += 1;
        summary.blocks_written += outcome.writes;
        summary.blocks_read += outcome.reads;
        summary.events += outcome.events;
        digest = digest.rotate_left(1) ^ outcome.digest;
    }
    summary.digest = format!("{digest:016x}");
    summary.milliseconds = begun.elapsed().as_millis();
    output.show(&summary)
}
