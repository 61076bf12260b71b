//! Ties the documents of wire and disk formats to the code that they describe.
//!
//! A document ends with a fingerprint of its source files. When one of them changes, this check
//! fails until somebody has read the change against the document and set the new fingerprint. It
//! cannot know whether the document is right; it makes sure that somebody looked.

use super::{Report, SourceFile};

/// What stands before the fingerprint, on a line of its own.
const MARK: &str = "Fingerprint of what this page describes: ";

/// A document and the files it describes, by path or by the folder and ending of several.
struct Tie {
    document: &'static str,
    describes: &'static [(&'static str, &'static str)],
}

const TIES: &[Tie] = &[
    Tie {
        document: "docs/wire.md",
        describes: &[
            ("proto/ashlar/v1/", ".proto"),
            ("proto/src/frame.rs", ""),
            ("proto/src/frame/message.rs", ""),
        ],
    },
    Tie {
        document: "docs/disk.md",
        describes: &[("node/src/store/format.rs", ""), ("log/src/format.rs", "")],
    },
];

/// Every tied document against its files.
pub(crate) fn check(files: &[SourceFile], report: &mut Report) {
    for tie in TIES {
        let Some(document) = files.iter().find(|file| file.path == tie.document) else {
            report.problems.push(format!("{} is missing", tie.document));
            continue;
        };
        let wanted = fingerprint(tie, files);
        let found = document.text.lines().find_map(|line| line.strip_prefix(MARK));
        if found.map(|text| text.trim_matches('`')) != Some(&wanted) {
            report.problems.push(format!(
                "{}: what it describes has changed; read the change against the page, then end \
                 the page with: {MARK}`{wanted}`",
                tie.document
            ));
        }
    }
}

/// FNV-1a over paths and texts: any change shows, nobody attacks it.
fn fingerprint(tie: &Tie, files: &[SourceFile]) -> String {
    let mut described: Vec<&SourceFile> = files
        .iter()
        .filter(|file| {
            tie.describes.iter().any(|(start, end)| {
                file.path.strip_prefix(start).is_some_and(|rest| match *end {
                    "" => rest.is_empty(),
                    end => rest.ends_with(end),
                })
            })
        })
        .collect();
    described.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in described.iter().flat_map(|file| file.path.bytes().chain(file.text.bytes())) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(frame: &str, mark: &str) -> Vec<SourceFile> {
        let file = |path: &str, text: &str| SourceFile { path: path.into(), text: text.into() };
        let mut files = vec![
            file("proto/ashlar/v1/a.proto", "a"),
            file("proto/src/frame.rs", frame),
            file("docs/wire.md", mark),
        ];
        let disk = TIES.iter().find(|tie| tie.document == "docs/disk.md").unwrap();
        files.push(file("docs/disk.md", &format!("{MARK}`{}`", fingerprint(disk, &files))));
        files
    }

    fn problems_of(files: &[SourceFile]) -> usize {
        let mut report = Report::default();
        check(files, &mut report);
        report.problems.len()
    }

    #[test]
    fn a_page_holds_until_what_it_describes_changes() {
        let wire = TIES.first().unwrap();
        let mark = format!("{MARK}`{}`\n", fingerprint(wire, &files("one", "")));
        assert_eq!(problems_of(&files("one", &mark)), 0);
        assert_eq!(problems_of(&files("two", &mark)), 1);
        assert_eq!(problems_of(&files("one", "no mark")), 1);
    }
}
