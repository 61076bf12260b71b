//! `cargo xtask`: checks on the repository itself, and the long runs.
//!
//! Decides which check runs; each check lives in its own file below `tidy/`. It builds nothing of
//! the product and judges no behaviour: that is what `cargo test --workspace` does.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool: its printed report is its product"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod mutants;
mod tidy;

/// Seeds of the simulation in a nightly run (issue 2).
const NIGHTLY_SEEDS: &str = "20000";

const USAGE: &str = "usage: cargo xtask <tidy|mutants|nightly>
  tidy     check the repository: imports, file sizes, licences, documents
  mutants  take out one safety rule after another; a test must fail each time
  nightly  run the workspace's tests at their nightly sizes (hours)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => run_tidy(),
        ["mutants"] => run_mutants(),
        ["nightly"] => run_nightly(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder that holds the workspace's `Cargo.toml`.
fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

fn run_tidy() -> anyhow::Result<ExitCode> {
    let report = tidy::run(&repository())?;
    for note in &report.notes {
        println!("{note}");
    }
    for problem in &report.problems {
        eprintln!("tidy: {problem}");
    }
    if report.problems.is_empty() {
        println!("tidy: ok");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("tidy: {} problems", report.problems.len());
        Ok(ExitCode::FAILURE)
    }
}

fn run_mutants() -> anyhow::Result<ExitCode> {
    let survivors = mutants::run(&repository())?;
    for rule in &survivors {
        eprintln!("mutants: no test fails without the rule: {rule}");
    }
    Ok(if survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_nightly() -> anyhow::Result<ExitCode> {
    let status = Command::new(env!("CARGO"))
        .current_dir(repository())
        .args(["test", "--workspace"])
        .env("ASHLAR_NIGHTLY", "1")
        .env("ASHLAR_SEEDS", NIGHTLY_SEEDS)
        .status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
