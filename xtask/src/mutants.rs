//! `cargo xtask mutants`: takes out one safety rule after another and wants a test to fail.
//!
//! Works on a copy of the sources below the target folder, so that the working tree is never
//! touched. A mutant that survives, and one whose text is not found any more, is a failure: the
//! table below must follow the code.

use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

mod admission;
mod client;
mod control;
mod drain;
mod lease;
mod members;
mod node;
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

/// Runs every mutant whose file or rule holds `only`; gives the rules that no test guards.
///
/// # Errors
/// If the sources cannot be copied or a mutant's text is not found.
pub(crate) fn run(repository: &Path, only: &str) -> anyhow::Result<Vec<&'static str>> {
    let work = repository.join("target/mutants");
    let sources = work.join("src");
    copy_sources(repository, &sources)?;
    let chosen: Vec<&Mutant> =
        all().filter(|mutant| mutant.file.contains(only) || mutant.rule.contains(only)).collect();
    if chosen.is_empty() {
        bail!("no file and no rule of the tables holds «{only}»");
    }
    let suites: BTreeSet<&[&str]> = chosen.iter().map(|mutant| mutant.tests).collect();
    for tests in suites {
        if !cargo_test(&sources, &work.join("build"), tests, &[])? {
            bail!("`cargo test {}` fails before any rule is taken out", tests.join(" "));
        }
    }
    let mut survivors = Vec::new();
    for mutant in chosen {
        let began = Instant::now();
        let path = sources.join(mutant.file);
        let original =
            fs::read_to_string(&path).with_context(|| format!("read {}", mutant.file))?;
        if original.matches(mutant.take_out).count() != 1 {
            bail!("{}: the text of the rule «{}» is not there once", mutant.file, mutant.rule);
        }
        fs::write(&path, original.replace(mutant.take_out, mutant.put_in))?;
        let build = work.join("build");
        if !cargo_test(&sources, &build, mutant.tests, &["--no-run"])? {
            bail!("the mutant without «{}» does not compile", mutant.rule);
        }
        let caught = !cargo_test(&sources, &build, mutant.tests, &[])?;
        fs::write(&path, original)?;
        let verdict = if caught { "caught" } else { "SURVIVED" };
        println!("{verdict:8} {:5.1} s  {}", began.elapsed().as_secs_f32(), mutant.rule);
        if !caught {
            survivors.push(mutant.rule);
        }
    }
    Ok(survivors)
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

fn cargo_test(sources: &Path, build: &Path, tests: &[&str], more: &[&str]) -> anyhow::Result<bool> {
    let status = Command::new(env!("CARGO"))
        .current_dir(sources)
        .args(["test", "--quiet"])
        .args(tests)
        .args(more)
        .env("CARGO_TARGET_DIR", build)
        .env("RUSTFLAGS", "--cap-lints=warn")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}
