//! `cargo xtask mutants`: takes out one safety rule after another and wants a test to fail.
//!
//! Works on a copy of the sources below the target folder, so that the working tree is never
//! touched. A mutant that survives, and one whose text is not found any more, is a failure: the
//! table below must follow the code.

use anyhow::{Context, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

mod admission;
mod balance;
mod client;
mod control;
mod drain;
mod grow;
mod lease;
mod members;
mod node;
mod place;
mod points;
mod races;
mod region;
mod salvage;
mod slow;
mod store;
mod stores;
mod transfer;

/// One rule taken out.
struct Mutant {
    /// The rule, as a sentence.
    rule: &'static str,
    file: &'static str,
    take_out: &'static str,
    put_in: &'static str,
    /// Arguments of `cargo test` for the tests that must fail.
    tests: &'static [&'static str],
}

fn all() -> impl Iterator<Item = &'static Mutant> {
    [
        node::MUTANTS,
        points::MUTANTS,
        lease::MUTANTS,
        store::MUTANTS,
        stores::MUTANTS,
        control::MUTANTS,
        drain::MUTANTS,
        grow::MUTANTS,
        balance::MUTANTS,
        place::MUTANTS,
        members::MUTANTS,
        client::MUTANTS,
        admission::MUTANTS,
        races::MUTANTS,
        region::MUTANTS,
        salvage::MUTANTS,
        slow::MUTANTS,
        transfer::MUTANTS,
    ]
    .into_iter()
    .flatten()
}

/// Mutants whose text does not stand in its file exactly once: the code has moved on.
pub(crate) fn outdated(repository: &Path) -> Vec<String> {
    let is_there = |mutant: &&Mutant| {
        let text = fs::read_to_string(repository.join(mutant.file)).unwrap_or_default();
        text.matches(mutant.take_out).count() == 1
    };
    let outdated = all().filter(|mutant| !is_there(mutant));
    outdated
        .map(|m| format!("{}: the text of the rule «{}» is not there once", m.file, m.rule))
        .collect()
}

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Caught,
    Survived,
    /// It does not compile, or its text is not there once: it says nothing about the tests.
    Void,
}

/// Runs every mutant whose file or rule holds `only`, to the end; gives what is wrong, in words.
///
/// # Errors
/// If the sources cannot be copied, or cargo cannot be run.
pub(crate) fn run(repository: &Path, only: &str) -> anyhow::Result<Vec<String>> {
    let work = repository.join("target/mutants");
    let (sources, build) = (work.join("src"), work.join("build"));
    copy_sources(repository, &sources)?;
    let mut chosen: Vec<&Mutant> =
        all().filter(|mutant| mutant.file.contains(only) || mutant.rule.contains(only)).collect();
    if chosen.is_empty() {
        bail!("no file and no rule of the tables holds «{only}»");
    }
    // One selection of packages after the other: what a row compiles the next one finds.
    chosen.sort_by_key(|mutant| mutant.tests);
    let (began, mut wrong) = (Instant::now(), Vec::new());
    for rows in chosen.chunk_by(|one, other| one.tests == other.tests) {
        let tests = rows.first().map(|mutant| mutant.tests).unwrap_or_default();
        // What these print is wanted: a test that fails here says nothing about any rule.
        if !cargo_test(&sources, &build, tests, &[], Shown::Yes)? {
            wrong.push(format!(
                "fails before any rule is taken out: cargo test {}",
                tests.join(" ")
            ));
            continue;
        }
        for mutant in rows {
            let began = Instant::now();
            let verdict = verdict(mutant, &sources, &build)?;
            let (word, seconds) = (format!("{verdict:?}"), began.elapsed().as_secs_f32());
            println!("{word:8} {seconds:5.1} s  {}", mutant.rule);
            match verdict {
                Verdict::Caught => {}
                Verdict::Survived => wrong.push(format!("no test fails without: {}", mutant.rule)),
                Verdict::Void => wrong.push(format!("not there once, or no code: {}", mutant.rule)),
            }
        }
    }
    let (rules, minutes) = (chosen.len(), began.elapsed().as_secs() / 60);
    println!("{rules} rules, {} findings, {minutes} minutes", wrong.len());
    Ok(wrong)
}

/// Takes one rule out and has its tests run.
fn verdict(mutant: &Mutant, sources: &Path, build: &Path) -> anyhow::Result<Verdict> {
    let path = sources.join(mutant.file);
    let original = fs::read_to_string(&path).with_context(|| format!("read {}", mutant.file))?;
    if original.matches(mutant.take_out).count() != 1 {
        return Ok(Verdict::Void);
    }
    fs::write(&path, original.replace(mutant.take_out, mutant.put_in))?;
    let verdict = if !cargo_test(sources, build, mutant.tests, &["--no-run"], Shown::No)? {
        Verdict::Void
    } else if cargo_test(sources, build, mutant.tests, &[], Shown::No)? {
        Verdict::Survived
    } else {
        Verdict::Caught
    };
    fs::write(&path, original)?;
    Ok(verdict)
}

/// Copies what git tracks, and what it would, so that a change can be tried before its commit.
fn copy_sources(repository: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let listed = Command::new("git")
        .current_dir(repository)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()?;
    let names = String::from_utf8(listed.stdout)?;
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let from = repository.join(name);
        if !from.is_file() {
            continue;
        }
        let target: PathBuf = to.join(name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(&from, &target).with_context(|| format!("copy {name}"))?;
    }
    Ok(())
}

/// Packages that are optimized for the simulation: their own tests are done before that is.
const CORES: [&str; 2] = ["ashlar-node-core", "ashlar-controlplane-core"];

/// Whether what the tests print is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Yes,
    No,
}

fn cargo_test(
    sources: &Path,
    build: &Path,
    tests: &[&str],
    more: &[&str],
    shown: Shown,
) -> anyhow::Result<bool> {
    let of_core = tests.get(1).and_then(|package| CORES.iter().find(|core| *core == package));
    let quick = of_core.map(|core| format!("--config=profile.dev.package.{core}.opt-level=0"));
    let output = || if shown == Shown::Yes { Stdio::inherit() } else { Stdio::null() };
    let status = Command::new(env!("CARGO"))
        .current_dir(sources)
        .args(["test", "--quiet"])
        .args(quick)
        .args(tests)
        .args(more)
        .env("CARGO_TARGET_DIR", build)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("RUSTFLAGS", "--cap-lints=warn")
        .stdout(output())
        .stderr(output())
        .status()?;
    Ok(status.success())
}
