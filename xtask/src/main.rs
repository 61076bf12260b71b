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
use std::time::{Instant, SystemTime};

mod mutants;
mod tidy;

/// Seeds of the simulation in a nightly run (issue 2).
const NIGHTLY_SEEDS: &str = "0..20000";
/// Seeds that lose more than is promised to be survived.
const NIGHTLY_SEEDS_BEYOND: &str = "0..10000";
/// Seeds of three zones.
const NIGHTLY_SEEDS_OF_A_REGION: &str = "0..1000";

const USAGE: &str = "usage: cargo xtask <tidy|reference|mutants [TEXT]|nightly>
  tidy       check the repository: imports, file sizes, licences, documents
  reference  write docs/cli.md from the command line's own definition
  mutants    take out one safety rule after another (whose file or words hold TEXT); a test must fail
             each time
  nightly    seeds of the simulation and the workspace's tests, both with the release build and at
             their nightly sizes (hours)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => run_tidy(),
        ["reference"] => write_reference(),
        ["mutants"] => run_mutants(""),
        ["mutants", only] => run_mutants(only),
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

fn write_reference() -> anyhow::Result<ExitCode> {
    let root = repository();
    std::fs::write(root.join(tidy::reference::PAGE), tidy::reference::text(&root)?)?;
    Ok(ExitCode::SUCCESS)
}

fn run_mutants(only: &str) -> anyhow::Result<ExitCode> {
    let wrong = mutants::run(&repository(), only)?;
    for what in &wrong {
        eprintln!("mutants: {what}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All steps, also after one that failed.
fn run_nightly() -> anyhow::Result<ExitCode> {
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(repository()).args(arguments);
        command
    };
    if !cargo(&["build", "--release"]).status()?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let binary = release_folder().join("ashlar");
    let mut steps = [
        Command::new(&binary),
        Command::new(&binary),
        Command::new(&binary),
        // The tests' own code needs no optimization; what they drive is what users run.
        cargo(&["test", "--workspace", "--no-fail-fast", "--", "--nocapture"]),
    ];
    let [seeds, beyond, region, tests] = &mut steps;
    seeds.args(["sim", "sweep", "--seeds", NIGHTLY_SEEDS]);
    beyond.args(["sim", "sweep", "--beyond", "--seeds", NIGHTLY_SEEDS_BEYOND]);
    region.args(["sim", "sweep", "--scene", "region", "--seeds", NIGHTLY_SEEDS_OF_A_REGION]);
    tests.env("ASHLAR_NIGHTLY", "1").env("ASHLAR_BIN", &binary);
    // Other cases than the usual ones, which `.cargo/config.toml` makes the same each time.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    tests.env("PROPTEST_RNG_SEED", now.as_secs().to_string());
    let mut failed = Vec::new();
    for step in &mut steps {
        let began = Instant::now();
        println!("nightly: {step:?}");
        if !step.status()?.success() {
            failed.push(format!("{step:?}"));
        }
        println!("nightly: took {} s", began.elapsed().as_secs());
    }
    for step in &failed {
        eprintln!("nightly: failed: {step}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where cargo puts release builds.
fn release_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("release")
}
