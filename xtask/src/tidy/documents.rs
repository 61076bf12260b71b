//! Keeps documents true to the tree: one title per page, and no link or named file that is gone.
//!
//! `ARCHITECTURE.md` and `README.md` name files in backticks; each must exist, and a test named
//! `path.rs::test_name` must be in that file. `docs/design.md` describes what is still to come and
//! is only checked for its links.

use std::path::Path;

use super::{Report, SourceFile};

/// Documents whose backticked paths must exist.
const TRUE_TO_THE_TREE: &[&str] = &["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"];

/// Longest that `ARCHITECTURE.md` may be: one sitting.
const ARCHITECTURE_LINES_MAX: usize = 400;

/// All checks on Markdown pages.
pub(crate) fn check(root: &Path, files: &[SourceFile], report: &mut Report) {
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let prose = prose_of(&file.text);
        let titles = prose.iter().filter(|line| line.starts_with("# ")).count();
        if titles != 1 {
            report.problems.push(format!("{}: {titles} titles (`# `), wanted one", file.path));
        }
        for link in links_of(&prose) {
            check_link(root, file, &link, report);
        }
        if TRUE_TO_THE_TREE.contains(&file.path.as_str()) {
            for named in files_named_in(&prose) {
                check_named(file, &named, files, report);
            }
        }
        let lines = file.text.lines().count();
        if file.path == "ARCHITECTURE.md" && lines >= ARCHITECTURE_LINES_MAX {
            report.problems.push(format!(
                "{}: {lines} lines, wanted fewer than {ARCHITECTURE_LINES_MAX}",
                file.path
            ));
        }
    }
}

/// The lines outside fenced code.
fn prose_of(text: &str) -> Vec<&str> {
    let mut fenced = false;
    text.lines()
        .filter(|line| {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                return false;
            }
            !fenced
        })
        .collect()
}

/// Targets of `[text](target)`.
fn links_of(prose: &[&str]) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose {
        for (at, _) in line.match_indices("](") {
            let rest = line.get(at + 2..).unwrap_or_default();
            if let Some((target, _)) = rest.split_once(')') {
                links.push(target.to_owned());
            }
        }
    }
    links
}

fn check_link(root: &Path, file: &SourceFile, link: &str, report: &mut Report) {
    if link.starts_with("http://") || link.starts_with("https://") || link.starts_with('#') {
        return;
    }
    let target = link.split('#').next().unwrap_or_default();
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    if !root.join(folder).join(target).exists() {
        report.problems.push(format!("{}: links to {link}, which is not there", file.path));
    }
}

/// Backticked words that look like a path to one of our files.
fn files_named_in(prose: &[&str]) -> Vec<String> {
    let mut named = Vec::new();
    for line in prose {
        for quoted in line.split('`').skip(1).step_by(2) {
            let path = quoted.split("::").next().unwrap_or_default();
            let suffix = path.rsplit('.').next().unwrap_or_default();
            let is_file = matches!(suffix, "rs" | "md" | "toml" | "proto");
            if is_file && path.contains('/') && !path.contains([' ', '*', '<', '~', '{']) {
                named.push(quoted.to_owned());
            }
        }
    }
    named
}

fn check_named(file: &SourceFile, named: &str, files: &[SourceFile], report: &mut Report) {
    let (path, test) = named.split_once("::").map_or((named, None), |(p, t)| (p, Some(t)));
    let Some(target) = files.iter().find(|other| other.path == path) else {
        report.problems.push(format!("{}: names {path}, which is not there", file.path));
        return;
    };
    let Some(test) = test else { return };
    let name = test.rsplit("::").next().unwrap_or(test);
    if !target.text.contains(&format!("fn {name}")) {
        report.problems.push(format!("{}: names {named}, but {path} has no such test", file.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(path: &str, text: &str) -> Vec<String> {
        let file = |path: &str, text: &str| SourceFile { path: path.into(), text: text.into() };
        let files = [file(path, text), file("a/src/lib.rs", "//! A.\nfn it_holds() {}\n")];
        let mut report = Report::default();
        check(&crate::repository(), &files, &mut report);
        report.problems
    }

    #[test]
    fn a_page_has_exactly_one_title() {
        assert!(problems_of("docs/x.md", "# One\n```\n# not a title\n```\n").is_empty());
        assert_eq!(problems_of("docs/x.md", "# One\n# Two\n").len(), 1);
        assert_eq!(problems_of("docs/x.md", "## None\n").len(), 1);
    }

    #[test]
    fn a_link_to_nothing_is_refused() {
        assert!(problems_of("docs/x.md", "# X\n[a](design.md#words) [b](https://x)\n").is_empty());
        assert_eq!(problems_of("docs/x.md", "# X\n[a](no-such-page.md)\n").len(), 1);
    }

    #[test]
    fn a_named_file_or_test_that_is_gone_is_refused() {
        let page = |line: &str| format!("# X\n{line}\n");
        let found = |line: &str| problems_of("ARCHITECTURE.md", &page(line)).len();
        assert_eq!(found("`a/src/lib.rs` and `a/src/lib.rs::it_holds`"), 0);
        assert_eq!(found("`a/src/gone.rs`"), 1);
        assert_eq!(found("`a/src/lib.rs::it_does_not`"), 1);
    }
}
