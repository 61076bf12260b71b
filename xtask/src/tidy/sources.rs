//! Checks on every file, and on Rust files in particular.
//!
//! Every `.rs` file opens with `//!`, stays below the line limit, ignores no test, is reached by a
//! `mod`, and holds no bare to-do. No file names a path of the machine it was written on. The
//! density of assertions in the cores is printed, not judged: a number to look at.

use std::collections::BTreeSet;

use super::{Report, SourceFile};

/// Hard limit on the lines of a Rust file.
const LINES_MAX: usize = 1000;

/// Nine files of ten should stay below this.
const LINES_TYPICAL: usize = 500;

/// The crates whose assertions are counted, by the folder of their sources.
const CORES: &[&str] =
    &["types/src/", "node/core/src/", "controlplane/core/src/", "client/core/src/"];

/// Folders of the machine a file was written on; split so that this file does not name them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// All checks on sources.
pub(crate) fn check(files: &[SourceFile], report: &mut Report) {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for file in files {
        check_text(file, report);
        if file.path.ends_with(".rs") {
            check_rust(file, report);
            check_reached(file, &paths, files, report);
        }
    }
    note_sizes(files, report);
    note_assertions(files, report);
}

fn check_text(file: &SourceFile, report: &mut Report) {
    for (number, line) in (1..).zip(file.text.lines()) {
        let place = format!("{}:{number}", file.path);
        for machine in MACHINE_PATHS {
            if line.contains(machine) {
                report.problems.push(format!("{place}: names a path of a machine ({machine})"));
            }
        }
        if line.contains(concat!("FIX", "ME")) {
            report.problems.push(format!("{place}: fix it, or open an issue and name it"));
        }
        if has_bare_todo(line) && !file.path.ends_with(".md") {
            report.problems.push(format!("{place}: a to-do names its issue: TODO(#7)"));
        }
    }
}

/// A to-do without an issue number directly behind it.
fn has_bare_todo(line: &str) -> bool {
    let marker = concat!("TO", "DO");
    line.match_indices(marker).any(|(at, _)| {
        let rest = line.get(at + marker.len()..).unwrap_or_default();
        !rest.strip_prefix("(#").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

fn check_rust(file: &SourceFile, report: &mut Report) {
    let path = &file.path;
    if !file.text.starts_with("//!") {
        report.problems.push(format!("{path}: open with `//!`: what the file decides or does"));
    }
    let lines = file.text.lines().count();
    if lines > LINES_MAX {
        report.problems.push(format!("{path}: {lines} lines, the limit is {LINES_MAX}: split it"));
    }
    for (number, line) in (1..).zip(file.text.lines()) {
        let line = line.trim_start();
        if line.starts_with("#[ignore") {
            report.problems.push(format!("{path}:{number}: a test is run or deleted, not ignored"));
        }
    }
}

/// A module file that no `mod` names is dead: the compiler never sees it.
fn check_reached(
    file: &SourceFile,
    paths: &BTreeSet<&str>,
    files: &[SourceFile],
    report: &mut Report,
) {
    let Some((parents, module)) = parents_of(&file.path) else { return };
    let declared = files.iter().filter(|other| parents.contains(&other.path)).any(|other| {
        other.text.lines().any(|line| {
            let line = line.trim();
            line.strip_suffix(';').is_some_and(|line| {
                line == format!("mod {module}") || line.ends_with(&format!(" mod {module}"))
            })
        })
    });
    if !declared && parents.iter().any(|parent| paths.contains(parent.as_str())) {
        report.problems.push(format!("{}: no `mod {module};` reaches this file", file.path));
    }
}

/// The files that may declare the module in `path`, and its name; none for a crate's root.
fn parents_of(path: &str) -> Option<(Vec<String>, String)> {
    let (crate_folder, inner) = path.split_once("src/")?;
    let inner = inner.strip_suffix(".rs")?;
    if inner == "lib" || inner == "main" || inner.starts_with("bin/") {
        return None;
    }
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    let (folder, module) = inner.rsplit_once('/').unwrap_or(("", inner));
    let parents = if folder.is_empty() {
        vec![format!("{crate_folder}src/lib.rs"), format!("{crate_folder}src/main.rs")]
    } else {
        vec![format!("{crate_folder}src/{folder}.rs"), format!("{crate_folder}src/{folder}/mod.rs")]
    };
    Some((parents, module.to_owned()))
}

fn note_sizes(files: &[SourceFile], report: &mut Report) {
    let mut sizes: Vec<(usize, &str)> = files
        .iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| (file.text.lines().count(), file.path.as_str()))
        .collect();
    sizes.sort_unstable();
    let long: Vec<String> = sizes
        .iter()
        .filter(|(lines, _)| *lines >= LINES_TYPICAL)
        .map(|(lines, path)| format!("{path} ({lines})"))
        .collect();
    let total: usize = sizes.iter().map(|(lines, _)| lines).sum();
    report.notes.push(format!(
        "sizes: {} Rust files, {total} lines; {} of them at {LINES_TYPICAL} lines or more \
         (at most one in ten should be): {}",
        sizes.len(),
        long.len(),
        if long.is_empty() { "none".to_owned() } else { long.join(", ") }
    ));
}

fn note_assertions(files: &[SourceFile], report: &mut Report) {
    for core in CORES {
        let (mut lines, mut assertions) = (0usize, 0usize);
        for file in files {
            if !file.path.starts_with(core) || file.path.ends_with("tests.rs") {
                continue;
            }
            for line in file.text.lines().take_while(|line| line.trim() != "#[cfg(test)]") {
                lines += 1;
                assertions +=
                    usize::from(line.contains("assert!(") || line.contains("assert_eq!("));
            }
        }
        let density = (assertions * 1000).checked_div(lines).unwrap_or(0);
        report.notes.push(format!(
            "assertions: {core} {assertions} in {lines} lines, {density} per 1,000 (wanted: 20)"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<SourceFile> = files
            .iter()
            .map(|(path, text)| SourceFile { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        let mut report = Report::default();
        check(&files, &mut report);
        report.problems
    }

    #[test]
    fn a_clean_file_passes() {
        assert!(problems_of(&[("a/src/lib.rs", "//! Does a thing.\n")]).is_empty());
    }

    #[test]
    fn a_file_without_an_opening_or_with_too_many_lines_is_refused() {
        assert_eq!(problems_of(&[("a/src/lib.rs", "fn main() {}\n")]).len(), 1);
        let long = format!("//! Long.\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(problems_of(&[("a/src/lib.rs", &long)]).len(), 1);
    }

    #[test]
    fn ignored_tests_bare_to_dos_and_machine_paths_are_refused() {
        let text = |line: &str| format!("//! Head.\n{line}\n");
        let found = |line: &str| problems_of(&[("a/src/lib.rs", &text(line))]).len();
        assert_eq!(found(concat!("#[ign", "ore]")), 1);
        assert_eq!(found(concat!("// TO", "DO: later")), 1);
        assert_eq!(found(concat!("// TO", "DO(#7): later")), 0);
        assert_eq!(found(concat!("let p = \"/ro", "ot/x\";")), 1);
    }

    #[test]
    fn a_file_that_no_module_declares_is_refused() {
        let root = ("a/src/lib.rs", "//! Root.\nmod used;\n");
        let used = ("a/src/used.rs", "//! Used.\npub(crate) mod deep;\n");
        let deep = ("a/src/used/deep.rs", "//! Deep.\n");
        assert!(problems_of(&[root, used, deep]).is_empty());
        assert_eq!(problems_of(&[root, used, deep, ("a/src/dead.rs", "//! Dead.\n")]).len(), 1);
    }
}
