//! Holds `docs/cli.md` to the command line that it describes.
//!
//! The page is what the binary prints of itself, so this check builds the binary: quick after a build
//! of the workspace, and the only check here that compiles anything. The same builds serve to write
//! the page anew (`cargo xtask reference`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{Report, SourceFile};

/// The page.
pub(crate) const PAGE: &str = "docs/cli.md";

/// The page against what the binary prints.
///
/// # Errors
/// When the binary cannot be built or run.
pub(crate) fn check(root: &Path, files: &[SourceFile], report: &mut Report) -> anyhow::Result<()> {
    let wanted = text(root)?;
    compare(&wanted, files, report);
    Ok(())
}

fn compare(wanted: &str, files: &[SourceFile], report: &mut Report) {
    let found = files.iter().find(|file| file.path == PAGE).map(|file| file.text.as_str());
    if found == Some(wanted) {
        return;
    }
    let mut lines = (1..).zip(wanted.lines());
    let found: Vec<&str> = found.unwrap_or_default().lines().collect();
    let differs = lines.find(|(number, line)| found.get(number - 1) != Some(line));
    let (number, line) = differs.unwrap_or((found.len(), "nothing more"));
    report.problems.push(format!(
        "{PAGE}:{number}: is not what the command line is now (`{line}`): cargo xtask reference"
    ));
}

/// What the page has to be.
///
/// # Errors
/// When the binary cannot be built or run.
pub(crate) fn text(root: &Path) -> anyhow::Result<String> {
    let output =
        Command::new(binary(root)?).arg("reference").output().context("run ashlar reference")?;
    if !output.status.success() {
        bail!("ashlar reference: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("read what ashlar reference printed")
}

/// The binary, built with the features of the whole workspace so that nothing is compiled twice.
fn binary(root: &Path) -> anyhow::Result<PathBuf> {
    let built = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", "ashlar"])
        .status()
        .context("run cargo build")?;
    if !built.success() {
        bail!("cargo build failed");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    Ok(root.join(target).join("debug/ashlar"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(page: Option<&str>) -> Vec<String> {
        let file = |text: &str| SourceFile { path: PAGE.into(), text: text.into() };
        let files: Vec<SourceFile> = page.map(file).into_iter().collect();
        let mut report = Report::default();
        compare("one\ntwo\n", &files, &mut report);
        report.problems
    }

    #[test]
    fn a_page_that_is_gone_cut_or_different_is_refused_with_the_first_line_that_differs() {
        assert!(problems_of(Some("one\ntwo\n")).is_empty());
        assert!(problems_of(Some("one\nthree\n"))[0].contains("cli.md:2"));
        assert!(problems_of(Some("one\ntwo\nthree\n"))[0].contains("nothing more"));
        assert!(problems_of(None)[0].contains("cli.md:1"));
    }
}
