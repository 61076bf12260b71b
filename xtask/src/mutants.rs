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

mod client;
mod control;

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

const NODE_RULES: &[&str] = &["-p", "ashlar-node-core"];

const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a member refuses a lower epoch",
        file: "node/core/src/replica/member.rs",
        take_out: "if epoch < config.epoch || from != config.primary.node {",
        put_in: "if from != config.primary.node {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a member refuses a lower term",
        file: "node/core/src/replica/member.rs",
        take_out: "if term < self.durable.term {",
        put_in: "if false {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a member adopts an epoch before it takes a write under it",
        file: "node/core/src/replica/member.rs",
        take_out: "if epoch > config.epoch {",
        put_in: "if false {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a member applies writes strictly in order",
        file: "node/core/src/replica/member.rs",
        take_out: "if lsn.term != self.durable.last.term || lsn > self.durable.last.next() {",
        put_in: "if lsn.term != self.durable.last.term {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "what rests on a record leaves only when the record is durable",
        file: "node/core/src/gate.rs",
        take_out: "self.durable >= self.needed",
        put_in: "true",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an opening is accepted only by a member complete to its base",
        file: "node/core/src/replica/member.rs",
        take_out: "!followed || self.durable.last < base || !self.covered_by(&overwrite)",
        put_in: "!followed || !self.covered_by(&overwrite)",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an opening names everything that may differ",
        file: "node/core/src/replica/member.rs",
        take_out: "!followed || self.durable.last < base || !self.covered_by(&overwrite)",
        put_in: "!followed || self.durable.last < base",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a learner never overwrites a block that a later write touched",
        file: "node/core/src/replica/member.rs",
        take_out: "touched.get(&block).is_some_and(|lsn| *lsn > read_at)",
        put_in: "touched.get(&block).is_some_and(|_| false)",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "copies are void for another process of the learner",
        file: "node/core/src/replica/member.rs",
        take_out: "if copy.learner_start != context.me.start {",
        put_in: "if false {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a write is acknowledged only when every in-sync replica has it",
        file: "node/core/src/primary/write.rs",
        take_out: ".fold(self.own_durable, Lsn::min);",
        put_in: ".fold(self.own_durable, |own, _| own);",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a write is acknowledged only when it is on the primary's own stable media",
        file: "node/core/src/primary/write.rs",
        take_out: ".take_while(|write| write.seq <= journalled)",
        put_in: ".take_while(|_| true)",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "fewer than copies_min in sync: nothing is acknowledged",
        file: "node/core/src/primary/write.rs",
        take_out: "if durable.config.may_acknowledge() {",
        put_in: "if true {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a read is not answered before a question asked after its arrival is",
        file: "node/core/src/primary/read.rs",
        take_out: "op.round <= confirmed && op.seen",
        put_in: "op.seen",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a read does not show what is not committed",
        file: "node/core/src/primary/read.rs",
        take_out: "op.seen <= committed && op.content.is_some()",
        put_in: "op.content.is_some()",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a new primary overwrites what it does not know to be committed before it serves",
        file: "node/core/src/primary/opening.rs",
        take_out: "if *begun < ranges.len() || !opened || self.committed < durable.last {",
        put_in: "if !opened {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a primary that lacks committed writes does not go on",
        file: "node/core/src/primary/opening.rs",
        take_out: "if committed > durable.last {",
        put_in: "if false && committed > durable.last {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "ranges taken over are journalled as uncommitted before their first byte",
        file: "node/core/src/primary/opening.rs",
        take_out: "context.persist(durable, Record::TakeOver { chunk, ranges });",
        put_in: "let _ = (chunk, ranges);",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a learner counts as in sync from its proposal on",
        file: "node/core/src/primary/mod.rs",
        take_out: "|| durable.proposal.is_some_and(|proposed| proposed.learner == replica)",
        put_in: "|| false",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a promotion is proposed only when every block is copied",
        file: "node/core/src/primary/fill.rs",
        take_out: "let complete = fill.next_block >= blocks && fill.copies.is_empty();",
        put_in: "let complete = fill.next_block >= blocks;",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a learner that restarts is filled from the beginning",
        file: "node/core/src/primary/fill.rs",
        take_out: "if lost && !proposed {",
        put_in: "if false && lost && !proposed {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "only a durable adoption is reported",
        file: "node/core/src/replica/mod.rs",
        take_out: "generation: self.adopted_durably.1,",
        put_in: "generation: config.generation,",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a replica is erased by its full name only",
        file: "node/core/src/machine.rs",
        take_out: "let named = |held: &Replica| held.durable.replica == replica;",
        put_in: "let named = |_: &Replica| true;",
        tests: NODE_RULES,
    },
];

/// Runs every mutant; gives the rules that no test guards.
///
/// # Errors
/// If the sources cannot be copied or a mutant's text is not found.
pub(crate) fn run(repository: &Path) -> anyhow::Result<Vec<&'static str>> {
    let work = repository.join("target/mutants");
    let sources = work.join("src");
    copy_sources(repository, &sources)?;
    if !cargo_test(&sources, &work.join("build"), NODE_RULES, &[])? {
        bail!("the tests fail before any rule is taken out");
    }
    let mut survivors = Vec::new();
    for mutant in MUTANTS.iter().chain(control::MUTANTS).chain(client::MUTANTS) {
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
