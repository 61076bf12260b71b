//! Runs every check on the repository and gathers what they found.
//!
//! A check returns problems (each fails the run, names its file and says what to do) and notes
//! (figures to look at). It reads the files that git knows or would add, so a stray build folder
//! is never judged.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

mod documents;
mod edges;
mod licence;
mod metadata;
pub(crate) mod reference;
mod sources;
mod supply;
mod ties;

/// What the checks found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// One sentence each; any of them fails the run.
    pub(crate) problems: Vec<String>,
    /// Figures that are printed and judged by a reader.
    pub(crate) notes: Vec<String>,
}

/// One text file of the repository.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Relative to the repository, with `/`.
    pub(crate) path: String,
    /// Its whole text.
    pub(crate) text: String,
}

/// Runs all checks on the repository at `root`.
///
/// # Errors
/// When git or cargo cannot be run or a file cannot be read; what a check finds is in the report.
pub(crate) fn run(root: &Path) -> anyhow::Result<Report> {
    let files = read_files(root)?;
    let metadata = metadata::load(root)?;
    let mut report = Report::default();
    sources::check(&files, &mut report);
    documents::check(root, &files, &mut report);
    ties::check(&files, &mut report);
    edges::check(&metadata, &mut report);
    supply::check(&metadata, &mut report);
    reference::check(root, &files, &mut report)?;
    report.problems.extend(crate::mutants::outdated(root));
    Ok(report)
}

fn read_files(root: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let listing = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("list the repository's files with git")?;
    if !listing.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&listing.stderr));
    }
    let mut files = Vec::new();
    for name in listing.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let path = String::from_utf8_lossy(name).into_owned();
        let full: PathBuf = root.join(&path);
        // Deleted but not yet committed, or a link to a folder: nothing to read.
        if !full.is_file() {
            continue;
        }
        let bytes = std::fs::read(&full).with_context(|| format!("read {path}"))?;
        // Fixtures of old formats are bytes, not text; no check applies to them.
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile { path, text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let report = run(&crate::repository()).expect("the checks ran");
        assert!(report.problems.is_empty(), "{}", report.problems.join("\n"));
    }
}
