//! `ashlar controlplane`: runs a member of a zone's control plane.
//!
//! The member itself is the crate in `controlplane/`; this file reads its configuration and starts
//! it.

use std::path::PathBuf;

use clap::Subcommand;

use crate::failure::{Failure, Kind};
use crate::process;

/// Commands about the control plane.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a member until it is told to end.
    Run {
        /// Its configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// What the member refused.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    let Command::Run { config: path } = command;
    process::die_with_parent();
    crate::logging::start("info");
    let what = || format!("run the member of {}", path.display());
    let config = ashlar_controlplane::Config::load(&path)
        .map_err(|error| Failure::new(Kind::Usage, what()).because(error))?;
    ashlar_controlplane::run_blocking(config)
        .map_err(|error| Failure::new(Kind::Error, what()).because(error))
}
