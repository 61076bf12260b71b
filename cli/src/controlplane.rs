//! `ashlar controlplane`: runs a member of a zone's control plane; lists, adds and removes members.
//!
//! The member itself is the crate in `controlplane/`; this file reads its configuration and starts
//! it, and asks a zone about its members.

use std::path::{Path, PathBuf};

use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use clap::Subcommand;
use serde::Serialize;

use crate::connect::{Zone, client_token};
use crate::failure::{Failure, Kind};
use crate::process;
use crate::render::{Output, Show, columns};
use crate::{Global, completion};

/// Commands about the control plane.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a member until it is told to end.
    Run {
        /// Its configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// List the members of the zone's control plane.
    Members {
        /// The zone (default: that of the control plane that answers first).
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
    },
    /// Give a new member its number; start it with what this prints.
    Add {
        /// Where its services will be.
        #[arg(value_name = "IP:PORT")]
        address: String,
        /// The zone (default: that of the control plane that answers first).
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
        /// Check, but change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a member for ever; its number is not used again.
    Remove {
        /// Its number.
        #[arg(add = completion::members())]
        member: u64,
        /// The zone (default: that of the control plane that answers first).
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
        /// Even if the members left that were heard of are no majority.
        #[arg(long)]
        force: bool,
        /// Check, but change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// What the member, or the zone, refused.
pub(crate) fn run(command: Command, global: &Global, output: &Output) -> Result<(), Failure> {
    let path = match command {
        Command::Run { config } => config,
        other => return ask(other, global, output),
    };
    process::die_with_parent();
    crate::logging::start("info");
    run_member(&path)
}

fn run_member(path: &Path) -> Result<(), Failure> {
    let what = || format!("run the member of {}", path.display());
    let config = ashlar_controlplane::Config::load(path)
        .map_err(|error| Failure::new(Kind::Usage, what()).because(error))?;
    ashlar_controlplane::run_blocking(config)
        .map_err(|error| Failure::new(Kind::Error, what()).because(error))
}

fn ask(command: Command, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let zone = Zone::find(global)?;
    let token = client_token();
    match command {
        Command::Run { .. } => Ok(()),
        Command::Members { zone: named } => {
            let request = v1::ListMembersRequest { zone: named.unwrap_or_default() };
            let answer = zone.ask("list members", |channel| {
                let request = request.clone();
                async move { ClusterServiceClient::new(channel).list_members(request).await }
            })?;
            let members = answer.members.iter().map(MemberView::from).collect();
            let (zone, last_index) = (answer.zone, answer.last_index);
            output.show(&MemberList { zone, last_index, members })
        }
        Command::Add { address, zone: named, dry_run } => {
            let in_zone = zone.meant(named)?;
            let request =
                v1::AddMemberRequest { address, client_token: token, dry_run, zone: in_zone };
            let answer = zone.ask("add a member", |channel| {
                let request = request.clone();
                async move { ClusterServiceClient::new(channel).add_member(request).await }
            })?;
            let v1::AddMemberResponse { member, address, join, dry_run } = answer;
            output.show(&AddedView { member, address, join, dry_run })
        }
        Command::Remove { member, zone: named, force, dry_run } => {
            let in_zone = zone.meant(named)?;
            let request = v1::RemoveMemberRequest {
                member,
                force,
                client_token: token,
                dry_run,
                zone: in_zone,
            };
            let answer = zone.ask("remove a member", |channel| {
                let request = request.clone();
                async move { ClusterServiceClient::new(channel).remove_member(request).await }
            })?;
            let v1::RemoveMemberResponse { member, address, dry_run } = answer;
            output.show(&RemovedView { member, address, dry_run })
        }
    }
}

/// A member as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct MemberView {
    id: u64,
    address: String,
    leader: bool,
    reachable: bool,
    matched_index: u64,
    role: &'static str,
    forgetful: String,
    remedy: String,
}

impl From<&v1::Member> for MemberView {
    fn from(member: &v1::Member) -> Self {
        let role = match member.role() {
            _ if member.leader => "leader",
            v1::MemberRole::Learner => "learner",
            v1::MemberRole::Voter | v1::MemberRole::Unspecified => "follower",
        };
        Self {
            id: member.id,
            address: member.address.clone(),
            leader: member.leader,
            reachable: member.reachable,
            matched_index: member.matched_index,
            role,
            forgetful: member.forgetful.clone(),
            remedy: member.remedy.clone(),
        }
    }
}

impl MemberView {
    /// Heads of [`MemberView::row`].
    pub(crate) const HEADER: [&'static str; 4] = ["MEMBER", "ADDRESS", "ROLE", "STATE"];

    /// Whether it takes part and votes.
    pub(crate) fn is_whole(&self) -> bool {
        self.reachable && self.forgetful.is_empty() && self.role != "learner"
    }

    /// The member as a row of a list.
    pub(crate) fn row(&self) -> [String; 4] {
        let state = match (self.forgetful.is_empty(), self.reachable) {
            (false, _) => "forgetful",
            (true, true) => "up",
            (true, false) => "unreachable",
        };
        let id = format!("member-{}", self.id);
        [id, self.address.clone(), self.role.to_owned(), state.to_owned()]
    }

    /// Why a member does not take part, and what to do about it.
    pub(crate) fn forgetful_sentence(&self) -> Option<String> {
        (!self.forgetful.is_empty()).then(|| {
            format!(
                "member-{} does not take part: {}; next: {}",
                self.id, self.forgetful, self.remedy
            )
        })
    }
}

#[derive(Debug, Serialize)]
struct MemberList {
    zone: String,
    last_index: u64,
    members: Vec<MemberView>,
}

impl Show for MemberList {
    fn table(&self) -> String {
        let rows = self.members.iter().map(|member| {
            let [id, address, role, state] = member.row();
            let behind = self.last_index.saturating_sub(member.matched_index);
            [id, address, role, state, behind.to_string()]
        });
        let [id, address, role, state] = MemberView::HEADER;
        let mut parts = vec![columns([id, address, role, state, "ENTRIES BEHIND"], rows)];
        parts.extend(self.members.iter().filter_map(MemberView::forgetful_sentence));
        parts.join("\n")
    }
}

#[derive(Debug, Serialize)]
struct AddedView {
    member: u64,
    address: String,
    join: Vec<String>,
    dry_run: bool,
}

impl Show for AddedView {
    fn table(&self) -> String {
        if self.dry_run {
            return format!("dry run: a member at {} would be added", self.address);
        }
        let join: Vec<String> = self.join.iter().map(|address| format!("{address:?}")).collect();
        format!(
            "member {} at {} is added; it votes once it has caught up. Start it with an empty \
             folder and, in its configuration:\n\nmember = {}\nlisten = {:?}\njoin = [{}]",
            self.member,
            self.address,
            self.member,
            self.address,
            join.join(", ")
        )
    }
}

#[derive(Debug, Serialize)]
struct RemovedView {
    member: u64,
    address: String,
    dry_run: bool,
}

impl Show for RemovedView {
    fn table(&self) -> String {
        let Self { member, address, dry_run } = self;
        if *dry_run {
            return format!("dry run: member {member} at {address} would be removed");
        }
        format!("member {member} at {address} is removed; delete its folder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_add_prints_is_a_configuration_of_the_new_member() {
        let added = AddedView {
            member: 107,
            address: "127.0.0.9:7".to_owned(),
            join: vec!["127.0.0.1:7".to_owned(), "127.0.0.2:7".to_owned()],
            dry_run: false,
        };
        let table = added.table();
        let (_, fields) = table.split_once("\n\n").unwrap();
        let text = format!("zone = \"a\"\ndata_dir = \"x\"\n{fields}\n");
        let config: ashlar_controlplane::Config = toml::from_str(&text).unwrap();
        config.check().unwrap();
        assert_eq!((config.member, config.join.len()), (107, 2));
    }
}
