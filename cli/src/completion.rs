//! Completions of shells: `ashlar completions SHELL` prints what a shell loads once; the shell then
//! runs this binary for every completion, so that volumes, zones and nodes are those that there are.
//!
//! What is asked of a control plane is asked for a second at most, and failing to get it gives no
//! candidates and no words: a shell shows neither. Nothing but candidates may reach standard output.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;

use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use clap::CommandFactory;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use crate::connect::Zone;
use crate::failure::{Failure, Kind};
use crate::render::Format;
use crate::{Arguments, Global, dev, process, size};

/// Tells this binary that a shell asks for candidates, and which shell.
const VARIABLE: &str = "ASHLAR_COMPLETE";

/// Who presses a key does not wait longer, in seconds.
const ANSWER_WITHIN_SECONDS: u64 = 1;

/// Most volumes that are offered.
const VOLUMES_MAX: u32 = 1000;

/// Beginning of every id of a volume.
const ID_PREFIX: &str = "vol-";

/// Shells that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shell {
    /// source <(ashlar completions bash)
    Bash,
    /// source <(ashlar completions zsh)
    Zsh,
    /// ashlar completions fish | source
    Fish,
    /// eval (ashlar completions elvish | slurp)
    Elvish,
    /// ashlar completions powershell | Out-String | Invoke-Expression
    Powershell,
}

impl Shell {
    fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
            Shell::Elvish => "elvish",
            Shell::Powershell => "powershell",
        }
    }
}

/// Prints what `shell` loads. It names this binary by its whole path if it was called by one, since
/// then it need not be where the shell looks.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn print(shell: Shell) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let failed = |error: io::Error| {
        Failure::new(Kind::Error, format!("print completions for {}", shell.name())).because(error)
    };
    let called = std::env::args_os().next().unwrap_or_else(|| OsString::from("ashlar"));
    let binary = if Path::new(&called).components().count() > 1 {
        std::path::absolute(&called).map_err(failed)?.into_os_string()
    } else {
        called
    };
    let mut text = Vec::new();
    let shells = Shells::builtins();
    let completer = shells
        .completer(shell.name())
        .ok_or_else(|| Failure::new(Kind::Error, format!("know the shell {}", shell.name())))?;
    let binary = binary.to_string_lossy();
    completer
        .write_registration(VARIABLE, "ashlar", "ashlar", &binary, &mut text)
        .map_err(failed)?;
    io::stdout().write_all(&text).map_err(failed)
}

/// Answers a shell that asks for candidates; false when none does. Called before anything else.
///
/// # Errors
/// An unknown shell, or a standard output that cannot be written.
pub(crate) fn answer() -> Result<bool, clap::Error> {
    if std::env::var_os(VARIABLE).is_some() {
        process::end_on_broken_pipe();
    }
    let folder = std::env::current_dir().ok();
    CompleteEnv::with_factory(Arguments::command)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), folder.as_deref())
}

/// Volumes: names, or ids where an id was begun. A volume without a name is offered by its id.
pub(crate) fn volumes() -> ArgValueCompleter {
    ArgValueCompleter::new(|begun: &OsStr| {
        let request = v1::ListVolumesRequest { page_size: VOLUMES_MAX, ..Default::default() };
        let answer = ask(|zone| {
            zone.ask("list volumes", |channel| {
                let request = request.clone();
                async move { VolumeServiceClient::new(channel).list_volumes(request).await }
            })
        });
        volume_candidates(&answer.unwrap_or_default().volumes, &begun.to_string_lossy())
    })
}

fn volume_candidates(volumes: &[v1::Volume], begun: &str) -> Vec<CompletionCandidate> {
    let by_id = begun.starts_with(ID_PREFIX);
    let candidate = |volume: &v1::Volume| {
        let bytes = size::show(volume.geometry.unwrap_or_default().size_bytes);
        let (word, other) = if by_id || volume.name.is_empty() {
            (&volume.id, &volume.name)
        } else {
            (&volume.name, &volume.id)
        };
        let help = format!("{bytes} {other}");
        CompletionCandidate::new(word).help(Some(help.trim_end().to_owned().into()))
    };
    let fits = |candidate: &CompletionCandidate| {
        candidate.get_value().to_string_lossy().starts_with(begun)
    };
    volumes.iter().map(candidate).filter(fits).collect()
}

/// Zones of the region.
pub(crate) fn zones() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let zones = ask(|zone| zone.zones()).unwrap_or_default().zones;
        zones.into_iter().map(|zone| CompletionCandidate::new(zone.name)).collect()
    })
}

/// Nodes, as `node list` names them; each name once, however many zones have it.
pub(crate) fn nodes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let answer = ask(|zone| {
            zone.ask("list nodes", |channel| async move {
                ClusterServiceClient::new(channel).list_nodes(v1::ListNodesRequest::default()).await
            })
        });
        let mut numbers: Vec<u32> =
            answer.unwrap_or_default().nodes.iter().map(|node| node.id).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.iter().map(|node| CompletionCandidate::new(format!("node-{node}"))).collect()
    })
}

/// Numbers of the members of the zone that answers first.
pub(crate) fn members() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let answer = ask(|zone| {
            zone.ask("list members", |channel| async move {
                let request = v1::ListMembersRequest::default();
                ClusterServiceClient::new(channel).list_members(request).await
            })
        });
        let members = answer.unwrap_or_default().members;
        let candidate = |member: &v1::Member| {
            CompletionCandidate::new(member.id.to_string())
                .help(Some(member.address.clone().into()))
        };
        members.iter().map(candidate).collect()
    })
}

/// Processes of the `dev` cluster.
pub(crate) fn processes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let folder = option_of(&words(), "--dir").map_or_else(dev::folder, Into::into);
        dev::process_names(&folder).into_iter().map(CompletionCandidate::new).collect()
    })
}

/// Asks the control plane that the line to be completed is about.
fn ask<T>(question: impl FnOnce(&Zone) -> Result<T, Failure>) -> Option<T> {
    let endpoint = option_of(&words(), "--endpoint")
        .or_else(|| std::env::var("ASHLAR_ENDPOINT").ok().filter(|text| !text.is_empty()));
    let global = Global { output: Format::Table, endpoint, timeout: ANSWER_WITHIN_SECONDS };
    Zone::find(&global).and_then(|zone| question(&zone)).ok()
}

/// The line to be completed, as the shell hands it over: behind `--`.
fn words() -> Vec<String> {
    let all = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    all.skip_while(|word| word != "--").skip(1).collect()
}

/// What the line says for an option that takes a value.
fn option_of(words: &[String], option: &str) -> Option<String> {
    let joined = format!("{option}=");
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == option {
            return words.next().cloned();
        }
        if let Some(value) = word.strip_prefix(&joined) {
            return Some(value.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(begun: &str) -> Vec<String> {
        let volume = |name: &str, id: &str| v1::Volume {
            name: name.to_owned(),
            id: id.to_owned(),
            ..Default::default()
        };
        let volumes = [volume("demo", "vol-a-1"), volume("", "vol-a-2"), volume("day", "vol-b-3")];
        let candidates = volume_candidates(&volumes, begun);
        candidates.iter().map(|c| c.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn volumes_are_offered_by_name_and_by_id_once_an_id_was_begun() {
        assert_eq!(offered(""), ["demo", "vol-a-2", "day"]);
        assert_eq!(offered("d"), ["demo", "day"]);
        assert_eq!(offered("vol-a"), ["vol-a-1", "vol-a-2"]);
    }

    #[test]
    fn an_option_is_read_from_the_line_in_both_spellings() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(option_of(&line("a --endpoint x b"), "--endpoint").as_deref(), Some("x"));
        assert_eq!(option_of(&line("a --endpoint=y"), "--endpoint").as_deref(), Some("y"));
        assert_eq!(option_of(&line("a --endpoint"), "--endpoint"), None);
        assert_eq!(option_of(&line("a --endpoints z"), "--endpoint"), None);
    }
}
