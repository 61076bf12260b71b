//! The command line described from its own definition: `docs/cli.md` and man pages.
//!
//! Both are made from what clap parses, so neither can name an option that there is not. The page in
//! `docs/` is written by `cargo xtask reference`; `cargo xtask tidy` fails while it is another one.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command, CommandFactory};
use serde::Serialize;

use crate::failure::{Failure, Kind};
use crate::render::{Output, Show};
use crate::{Arguments, process};

const OPENING: &str = "\
# Command line

Made from the command line's own definition by `cargo xtask reference`; not written by hand.
`ashlar man FOLDER` makes man pages of the same, `ashlar completions SHELL` completes it in a shell,
volumes, zones and nodes too.
";

/// Prints the page.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn print() -> Result<(), Failure> {
    process::end_on_broken_pipe();
    std::io::stdout()
        .write_all(page().as_bytes())
        .map_err(|error| Failure::new(Kind::Error, "print the reference").because(error))
}

/// Writes a man page for every command into `folder`.
///
/// # Errors
/// When the folder cannot be made or written.
pub(crate) fn write_man_pages(folder: &Path, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let failed = |error: std::io::Error| {
        Failure::new(Kind::Error, format!("write man pages to {}", folder.display())).because(error)
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(failed)?;
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with("ashlar")) {
            pages.push(name.to_owned());
        }
    }
    pages.sort_unstable();
    output.show(&ManPages { folder: folder.to_path_buf(), pages })
}

#[derive(Debug, Serialize)]
struct ManPages {
    folder: PathBuf,
    pages: Vec<String>,
}

impl Show for ManPages {
    fn table(&self) -> String {
        let folder = self.folder.display();
        format!("{} pages in {folder}; man -l {folder}/ashlar.1", self.pages.len())
    }
}

/// The whole page.
fn page() -> String {
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    let mut text = OPENING.to_owned();
    text.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n| 0 | done |\n");
    for kind in Kind::ALL {
        add(&mut text, format_args!("| {} | {} |\n", kind.exit_code(), kind.meaning()));
    }
    text.push_str(
        "\nResults go to standard output, everything else to standard error. With `-o json` or \
         `-o yaml` a\nfailure is one line of JSON there: `error` (`kind`, `reason`, `what`, `why`, \
         `next`) and `exit_code`.\n",
    );
    text.push_str("\n## Options of every command\n\n");
    add_arguments(&mut text, &root, |argument| argument.is_global_set());
    describe_all(&mut text, &mut root, "");
    text
}

fn describe_all(text: &mut String, parent: &mut Command, path: &str) {
    for command in parent.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
        let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
        describe(text, command, &path);
        describe_all(text, command, &path);
    }
}

fn describe(text: &mut String, command: &mut Command, path: &str) {
    add(text, format_args!("\n## ashlar {path}\n"));
    let about = command.get_long_about().or_else(|| command.get_about());
    if let Some(about) = about {
        add(text, format_args!("\n{about}\n"));
    }
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let usage: Vec<&str> = usage.lines().map(str::trim).collect();
    add(text, format_args!("\n```text\n{}\n```\n", usage.join("\n")));
    let is_own = |argument: &&Arg| is_shown(argument) && !is_of_every_command(argument);
    if command.get_arguments().any(|argument| is_own(&argument)) {
        text.push('\n');
        add_arguments(text, command, |argument| is_own(&argument));
    }
}

/// Whether readers are to know of it: `--help` and `--version` they do.
fn is_shown(argument: &Arg) -> bool {
    let is_usual = matches!(argument.get_id().as_str(), "help" | "version");
    !argument.is_hide_set() && !is_usual
}

fn is_of_every_command(argument: &Arg) -> bool {
    let root = Arguments::command();
    argument.is_global_set()
        && root.get_arguments().any(|other| other.get_id() == argument.get_id())
}

fn add_arguments(text: &mut String, command: &Command, wanted: impl Fn(&Arg) -> bool) {
    text.push_str("| argument | meaning |\n|---|---|\n");
    for argument in command.get_arguments().filter(|a| is_shown(a) && wanted(a)) {
        add(text, format_args!("| `{}` | {} |\n", spelling(argument), meaning(argument)));
    }
}

/// As it is written on a command line.
fn spelling(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let values: Vec<String> = names.iter().map(|name| format!("<{name}>")).collect();
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let value = if takes_value { values.join(" ") } else { String::new() };
    let long = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    let option: Vec<String> = short.into_iter().chain(long).collect();
    let several = if matches!(argument.get_action(), ArgAction::Append) { "..." } else { "" };
    format!("{} {value}{several}", option.join(", ")).trim().to_owned()
}

/// Its help, with what may be said, what holds if it is not said, and what says it otherwise.
fn meaning(argument: &Arg) -> String {
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default().replace("\n\n", " ");
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    if takes_value {
        let possible = argument.get_possible_values();
        let possible: Vec<String> = possible
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}` ({help})", value.get_name()),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        if !possible.is_empty() {
            add(&mut text, format_args!("; one of {}", possible.join(", ")));
        }
        let defaults = argument.get_default_values().iter().map(|value| value.to_string_lossy());
        let defaults: Vec<_> = defaults.filter(|value| !value.is_empty()).collect();
        if !defaults.is_empty() && !argument.is_hide_default_value_set() {
            add(&mut text, format_args!("; default `{}`", defaults.join(" ")));
        }
    }
    if let Some(variable) = argument.get_env() {
        add(&mut text, format_args!("; also `${}`", variable.to_string_lossy()));
    }
    text.replace('\n', " ").replace('|', "\\|")
}

/// Adds to a text.
fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.push_str(&more.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_page_has_every_command_and_option_that_is_not_hidden() {
        fn walk(command: &Command, path: &str, page: &str) {
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let path = format!("{path} {}", command.get_name());
                assert!(page.contains(&format!("\n## {path}\n")), "{path}");
                let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
                for option in shown.filter_map(Arg::get_long) {
                    assert!(page.contains(&format!("--{option}")), "{path} --{option}");
                }
                walk(command, &path, page);
            }
        }
        let page = page();
        walk(&Arguments::command(), "ashlar", &page);
        assert!(!page.contains("## ashlar reference"), "it is hidden");
        assert!(page.contains("| 6 | "), "{page}");
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        fn walk(command: &Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument);
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Arguments::command());
    }
}
