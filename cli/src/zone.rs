//! `ashlar zone`: the zones of a region, as the member that answers knows them.

use ashlar_proto::v1;
use clap::Subcommand;
use serde::Serialize;

use crate::connect::Zone;
use crate::failure::Failure;
use crate::render::{Output, Show, columns};
use crate::{Global, process};

/// Commands about zones.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the zones of the region.
    List,
}

/// Runs the command.
///
/// # Errors
/// When nobody answers.
pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    match command {
        Command::List => {
            let answer = Zone::find(global)?.zones()?;
            output.show(&ZoneList { zones: answer.zones.into_iter().map(ZoneView::from).collect() })
        }
    }
}

#[derive(Debug, Serialize)]
struct ZoneView {
    name: String,
    /// As far as the member that answered knows.
    reachable: bool,
    cause: String,
    members: Vec<String>,
}

impl From<v1::Zone> for ZoneView {
    fn from(zone: v1::Zone) -> Self {
        let v1::Zone { name, members, reachable, cause } = zone;
        Self { name, reachable, cause, members }
    }
}

#[derive(Debug, Serialize)]
struct ZoneList {
    zones: Vec<ZoneView>,
}

impl Show for ZoneList {
    fn table(&self) -> String {
        columns(
            ["ZONE", "REACHABLE", "MEMBERS", "CAUSE"],
            self.zones.iter().map(|zone| {
                [
                    zone.name.clone(),
                    if zone.reachable { "yes" } else { "no" }.to_owned(),
                    zone.members.join(" "),
                    if zone.cause.is_empty() { "-".to_owned() } else { zone.cause.clone() },
                ]
            }),
        )
    }
}
