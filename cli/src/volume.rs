//! `ashlar volume`: creates, lists, shows, grows, deletes and salvages volumes.
//!
//! Translates between the command line and `ashlar.v1.VolumeService`; decides nothing about
//! volumes. The shape printed as JSON is this file's `VolumeView`, not the wire's message, so that
//! scripts do not break when the wire grows.

use std::time::{Duration, Instant};

use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use clap::Subcommand;
use serde::Serialize;

use crate::connect::{Zone, client_token};
use crate::failure::{Failure, Kind};
use crate::missing::{self, MissingZone};
use crate::render::{Output, Show, columns};
use crate::transfer::{export, import};
use crate::{Global, completion, patience, process, size};
use salvage::RiskView;

mod grow;
mod salvage;
mod status;

/// Between two looks at a volume that is being made.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Commands about volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a volume. It is thin: it takes space as it is written.
    Create {
        /// Name, unique in its zone; without one only the id names it.
        #[arg(default_value = "")]
        name: String,
        /// Zone to make it in (default: that of the control plane that answers first).
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
        /// Size, for example 1GiB.
        #[arg(long, value_parser = size::parse)]
        size: u64,
        /// Copies of every chunk, 1 to 5.
        #[arg(long, default_value_t = 3)]
        copies: u32,
        /// Size of a chunk, a power of two (default: chosen by the zone, 64MiB and up).
        #[arg(long, value_parser = size::parse)]
        chunk_size: Option<u64>,
        /// Whoever attaches it answers requests that cannot be carried out with an error after so long, 30s
        /// for example: 5s to 24h (default: never, they wait).
        #[arg(long, value_name = "TIME", value_parser = patience::parse)]
        error_after: Option<u64>,
        /// Makes a repeated command the same call (default: made anew for each command).
        #[arg(long)]
        client_token: Option<String>,
        /// Check everything and place, but create nothing.
        #[arg(long)]
        dry_run: bool,
        /// Return only when every chunk's primary serves, within --timeout.
        #[arg(long, conflicts_with = "dry_run")]
        wait: bool,
    },
    /// List the volumes of all zones.
    List {
        /// Only those of this zone.
        #[arg(long, add = completion::zones())]
        zone: Option<String>,
    },
    /// Show one volume.
    Show {
        /// Id or name.
        #[arg(add = completion::volumes())]
        volume: String,
    },
    /// Show who holds each chunk of a volume.
    Status {
        /// Id or name.
        #[arg(add = completion::volumes())]
        volume: String,
    },
    /// Write a volume's content to a file or to standard output.
    ///
    /// The file is read back and compared at the end. What was interrupted goes on with the same
    /// command, unless somebody else was attached meanwhile: then the content may have changed.
    Export(export::Arguments),
    /// Make a volume with the content of a file or of standard input.
    ///
    /// The volume is read back and compared at the end. What was interrupted goes on with the same
    /// command: what had been written is compared with the file first.
    Import(import::Arguments),
    /// Make a volume larger, while it is in use if need be.
    ///
    /// Whoever has it attached takes the new size over within seconds; a mount's device grows with it, and
    /// resize2fs or xfs_growfs makes the file system on it larger. NBD clients see it when they connect anew.
    Grow(grow::Arguments),
    /// Delete a volume and every copy of it.
    Delete {
        /// Id or name.
        #[arg(add = completion::volumes())]
        volume: String,
        /// Delete it even while attached; its client is cut off.
        #[arg(long)]
        force: bool,
        /// Check, but delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Let stale copies take over chunks of which nobody in sync is left; see docs/salvage.md.
    Salvage(salvage::Arguments),
}

/// Runs the command.
///
/// # Errors
/// What the control plane refused.
pub(crate) fn run(command: Command, global: &Global, output: &Output) -> Result<(), Failure> {
    // A transfer has to give its attachment back first.
    if !matches!(command, Command::Export(_) | Command::Import(_)) {
        process::end_on_broken_pipe();
    }
    let zone = Zone::find(global)?;
    match command {
        Command::Create {
            name,
            zone: named,
            size,
            copies,
            chunk_size,
            error_after,
            client_token: token,
            dry_run,
            wait,
        } => {
            let request = v1::CreateVolumeRequest {
                name,
                size_bytes: size,
                copies,
                chunk_bytes: chunk_size.unwrap_or(0),
                client_token: token.unwrap_or_else(client_token),
                dry_run,
                zone: zone.meant(named)?,
                error_after_millis: error_after.unwrap_or(0),
            };
            create(&zone, request, wait, output)
        }
        Command::List { zone: named } => output.show(&list(&zone, &named.unwrap_or_default())?),
        Command::Show { volume } => {
            let answer = show(&zone, &volume)?;
            missing::warn(&answer.unreachable_zones);
            output.show(&VolumeView::from(&answer.volume.unwrap_or_default()))
        }
        Command::Status { volume } => output.show(&status::read(&zone, &volume)?),
        Command::Export(arguments) => export::run(&arguments, &zone, output),
        Command::Import(arguments) => import::run(&arguments, &zone, output),
        Command::Grow(arguments) => grow::run(&zone, arguments, output),
        Command::Delete { volume, force, dry_run } => {
            delete(&zone, volume, (force, dry_run), output)
        }
        Command::Salvage(arguments) => salvage::run(&zone, arguments, output),
    }
}

fn create(
    zone: &Zone,
    request: v1::CreateVolumeRequest,
    wait: bool,
    output: &Output,
) -> Result<(), Failure> {
    let what = format!("create volume {}", request.name);
    let answer = zone.ask(&what, |channel| {
        let request = request.clone();
        async move { VolumeServiceClient::new(channel).create_volume(request).await }
    })?;
    let made = answer.volume.unwrap_or_default();
    let made = if wait { wait_made(zone, &what, made)? } else { made };
    output.show(&VolumeView::from(&made))
}

/// The volume once it is made; it is asked for until then.
fn wait_made(zone: &Zone, what: &str, mut volume: v1::Volume) -> Result<v1::Volume, Failure> {
    let deadline = Instant::now() + zone.within();
    while volume.state() == v1::VolumeState::Creating {
        if Instant::now() >= deadline {
            return Err(Failure::new(Kind::Timeout, what.to_owned())
                .because(format!("{} is committed, but not every primary serves yet", volume.id))
                .try_next(format!("ashlar volume status {}", volume.id)));
        }
        std::thread::sleep(LOOK_EVERY);
        volume = show(zone, &volume.id)?.volume.unwrap_or_default();
    }
    Ok(volume)
}

fn list(zone: &Zone, named: &str) -> Result<VolumeList, Failure> {
    let mut volumes = Vec::new();
    let mut unreachable_zones: Vec<MissingZone> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListVolumesRequest { page_size: 0, page_token, zone: named.to_owned() };
        let answer = zone.ask("list volumes", |channel| {
            let request = request.clone();
            async move { VolumeServiceClient::new(channel).list_volumes(request).await }
        })?;
        volumes.extend(answer.volumes.iter().map(VolumeView::from));
        missing::add(&mut unreachable_zones, &answer.unreachable_zones);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(VolumeList { volumes, unreachable_zones });
        }
    }
}

fn show(zone: &Zone, volume: &str) -> Result<v1::GetVolumeResponse, Failure> {
    zone.ask(&format!("show volume {volume}"), |channel| {
        let request = v1::GetVolumeRequest { volume: volume.to_owned() };
        async move { VolumeServiceClient::new(channel).get_volume(request).await }
    })
}

fn delete(
    zone: &Zone,
    volume: String,
    (force, dry_run): (bool, bool),
    output: &Output,
) -> Result<(), Failure> {
    let what = format!("delete volume {volume}");
    let request = v1::DeleteVolumeRequest { volume, force, client_token: client_token(), dry_run };
    let answer = zone.ask(&what, |channel| {
        let request = request.clone();
        async move { VolumeServiceClient::new(channel).delete_volume(request).await }
    })?;
    output.show(&Deleted { volume_id: answer.volume_id, dry_run: answer.dry_run })
}

/// A volume as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeView {
    id: String,
    name: String,
    size_bytes: u64,
    /// While it grows: its size once the new chunks serve. 0: it does not grow.
    growing_to_bytes: u64,
    chunk_bytes: u64,
    state: &'static str,
    copies_wanted: u32,
    copies_min: u32,
    generation: u64,
    attachment: Option<AttachmentView>,
    chunks: ChunksView,
    created_unix_millis: u64,
    /// Time after which a request that cannot be carried out fails; 0: it waits for ever.
    error_after_millis: u64,
    /// Chunks that a salvage may have lost writes of.
    chunks_at_risk: u32,
    /// The same one by one, where one volume is shown.
    at_risk: Vec<RiskView>,
}

#[derive(Debug, Serialize)]
struct AttachmentView {
    client_name: String,
    generation: u64,
    since_unix_millis: u64,
    /// Present while the attach call waits for nodes.
    waits: Option<WaitsView>,
    /// Who stated that the client before never writes again.
    old_client_fenced_by: String,
}

/// Why an attachment waits.
#[derive(Debug, Serialize)]
struct WaitsView {
    cause: String,
    since_millis: u64,
    blocked_on: Vec<String>,
    next_action: String,
}

impl From<&v1::Attachment> for AttachmentView {
    fn from(attachment: &v1::Attachment) -> Self {
        Self {
            client_name: attachment.client_name.clone(),
            generation: attachment.generation,
            since_unix_millis: attachment.since_unix_millis,
            waits: attachment.waits.as_ref().map(|waits| WaitsView {
                cause: waits.cause.clone(),
                since_millis: waits.since_millis,
                blocked_on: waits.blocked_on.iter().map(|node| format!("node-{node}")).collect(),
                next_action: waits.next_action.clone(),
            }),
            old_client_fenced_by: attachment.old_client_fenced_by.clone(),
        }
    }
}

/// How well chunks are copied.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChunksView {
    total: u32,
    whole: u32,
    degraded: u32,
    stuck: u32,
}

impl From<&v1::ChunkCounts> for ChunksView {
    fn from(counts: &v1::ChunkCounts) -> Self {
        Self {
            total: counts.total,
            whole: counts.whole,
            degraded: counts.degraded,
            stuck: counts.stuck,
        }
    }
}

impl ChunksView {
    /// One word for all chunks, the worst of them first.
    pub(crate) fn health(&self) -> &'static str {
        if self.stuck > 0 {
            "stuck"
        } else if self.degraded > 0 {
            "degraded"
        } else {
            "whole"
        }
    }

    /// Counts of those that are not whole, if any.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} chunks: {} whole, {} degraded, {} stuck",
            self.total, self.whole, self.degraded, self.stuck
        )
    }
}

impl From<&v1::Volume> for VolumeView {
    fn from(volume: &v1::Volume) -> Self {
        let geometry = volume.geometry.unwrap_or_default();
        Self {
            id: volume.id.clone(),
            name: volume.name.clone(),
            size_bytes: geometry.size_bytes,
            growing_to_bytes: volume.growing_to_bytes,
            chunk_bytes: geometry.chunk_bytes,
            state: match volume.state() {
                v1::VolumeState::Unspecified => "unknown",
                v1::VolumeState::Creating => "creating",
                v1::VolumeState::Available => "available",
                v1::VolumeState::InUse => "in-use",
            },
            copies_wanted: volume.copies_wanted,
            copies_min: volume.copies_min,
            generation: volume.generation,
            attachment: volume.attachment.as_ref().map(AttachmentView::from),
            chunks: volume.chunks.as_ref().map(ChunksView::from).unwrap_or_default(),
            created_unix_millis: volume.created_unix_millis,
            error_after_millis: volume.error_after_millis,
            chunks_at_risk: volume.chunks_at_risk,
            at_risk: volume.at_risk.iter().map(RiskView::from).collect(),
        }
    }
}

impl VolumeView {
    /// The volume as a row of a list.
    pub(crate) fn row(&self) -> [String; 6] {
        let client = self.attachment.as_ref().map_or("-", |attachment| &attachment.client_name);
        [
            if self.name.is_empty() { "-".to_owned() } else { self.name.clone() },
            self.id.clone(),
            size::show(self.size_bytes),
            self.state.to_owned(),
            self.chunks.health().to_owned(),
            client.to_owned(),
        ]
    }

    /// Its size, and the one that it grows to, if it does.
    fn size(&self) -> String {
        match self.growing_to_bytes {
            0 => size::show(self.size_bytes),
            to => format!("{}, grows to {}", size::show(self.size_bytes), size::show(to)),
        }
    }

    /// Why its attachment waits, in words.
    pub(crate) fn waits_sentence(&self) -> Option<String> {
        let waits = self.attachment.as_ref()?.waits.as_ref()?;
        let name = if self.name.is_empty() { &self.id } else { &self.name };
        Some(format!(
            "attachment of {name} waits for {} s: {}; waits for {}; next: {}",
            waits.since_millis / 1000,
            waits.cause,
            waits.blocked_on.join(", "),
            waits.next_action
        ))
    }

    /// What a salvage may have lost, in words.
    pub(crate) fn risk_sentence(&self) -> Option<String> {
        (self.chunks_at_risk > 0).then(|| {
            let name = if self.name.is_empty() { &self.id } else { &self.name };
            format!(
                "at risk: {} chunks of {name} were salvaged and may lack writes; next: check what is \
                 on it (`ashlar volume show {name}` says where), then `ashlar volume salvage {name} \
                 --acknowledge`",
                self.chunks_at_risk
            )
        })
    }

    /// Heads of [`VolumeView::row`].
    pub(crate) const HEADER: [&'static str; 6] =
        ["NAME", "ID", "SIZE", "STATE", "COPIES", "ATTACHED TO"];
}

impl Show for VolumeView {
    fn table(&self) -> String {
        let pair = |name: &str, value: String| [name.to_owned(), value];
        let attached = self.attachment.as_ref().map_or_else(
            || "no".to_owned(),
            |attachment| {
                format!("{} (generation {})", attachment.client_name, attachment.generation)
            },
        );
        let mut table = columns(
            ["FIELD", "VALUE"],
            [
                pair("name", self.name.clone()),
                pair("id", self.id.clone()),
                pair("size", self.size()),
                pair("chunk size", size::show(self.chunk_bytes)),
                pair("state", self.state.to_owned()),
                pair(
                    "copies",
                    format!("{} wanted, {} needed to write", self.copies_wanted, self.copies_min),
                ),
                pair("chunks", self.chunks.sentence()),
                pair("attached", attached),
                pair("on faults", patience::show(self.error_after_millis)),
            ],
        );
        if let Some(sentence) = self.waits_sentence() {
            table = format!("{table}\n\n{sentence}");
        }
        if let Some(sentence) = self.risk_sentence() {
            let rows = self.at_risk.iter().map(RiskView::row);
            table = format!("{table}\n\n{sentence}\n{}", columns(RiskView::HEADER, rows));
        }
        table
    }
}

#[derive(Debug, Serialize)]
struct VolumeList {
    volumes: Vec<VolumeView>,
    /// Zones whose volumes are missing.
    unreachable_zones: Vec<MissingZone>,
}

impl Show for VolumeList {
    fn table(&self) -> String {
        let table = columns(VolumeView::HEADER, self.volumes.iter().map(VolumeView::row));
        missing::below(table, &self.unreachable_zones)
    }
}

#[derive(Debug, Serialize)]
struct Deleted {
    volume_id: String,
    dry_run: bool,
}

impl Show for Deleted {
    fn table(&self) -> String {
        if self.dry_run {
            return format!("dry run: {} would be deleted", self.volume_id);
        }
        format!("deleted {}", self.volume_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_as_healthy_as_its_worst_chunk() {
        let counts = |whole, degraded, stuck| ChunksView { total: 4, whole, degraded, stuck };
        assert_eq!(counts(4, 0, 0).health(), "whole");
        assert_eq!(counts(3, 1, 0).health(), "degraded");
        assert_eq!(counts(2, 1, 1).health(), "stuck");
    }
}
