//! `ashlar volume grow`: a volume becomes larger, attached or not.
//!
//! The control plane adds the chunks and says when they serve; whoever has the volume attached notices
//! by itself. What is on the volume, a file system say, is for its user to make larger: the answer says
//! how.

use std::time::{Duration, Instant};

use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use serde::Serialize;

use super::VolumeView;
use crate::connect::{Zone, client_token};
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show};
use crate::{completion, size};

/// Between two looks at a volume that grows.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which volume, and how large.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Id or name.
    #[arg(add = completion::volumes())]
    volume: String,
    /// The size that it is to have, not how much it grows by: 20GiB for example.
    #[arg(value_parser = size::parse)]
    size: u64,
    /// Check everything and place, but change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Return only when the volume has the size, within --timeout. Interrupted, it grows on.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Makes a repeated command the same call (default: made anew for each command).
    #[arg(long)]
    client_token: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// What the control plane refused.
pub(super) fn run(zone: &Zone, arguments: Arguments, output: &Output) -> Result<(), Failure> {
    let Arguments { volume, size, dry_run, wait, client_token: token } = arguments;
    let what = format!("grow volume {volume}");
    let request = v1::GrowVolumeRequest {
        volume,
        size_bytes: size,
        client_token: token.unwrap_or_else(client_token),
        dry_run,
    };
    let answer = zone.ask(&what, |channel| {
        let request = request.clone();
        async move { VolumeServiceClient::new(channel).grow_volume(request).await }
    })?;
    let volume = answer.volume.unwrap_or_default();
    let volume = if wait { wait_grown(zone, &what, volume)? } else { volume };
    output.show(&Grown {
        volume: VolumeView::from(&volume),
        chunks_added: answer.chunks_added,
        nodes: answer.nodes.iter().map(|node| format!("node-{node}")).collect(),
        dry_run: answer.dry_run,
    })
}

/// The volume once it has grown; it is asked for until then.
fn wait_grown(zone: &Zone, what: &str, mut volume: v1::Volume) -> Result<v1::Volume, Failure> {
    let deadline = Instant::now() + zone.within();
    while volume.growing_to_bytes > 0 {
        if Instant::now() >= deadline {
            return Err(Failure::new(Kind::Timeout, what.to_owned())
                .because(format!("{} grows, but not every new primary serves yet", volume.id))
                .try_next(format!("ashlar volume show {}", volume.id)));
        }
        std::thread::sleep(LOOK_EVERY);
        volume = super::show(zone, &volume.id)?.volume.unwrap_or_default();
    }
    Ok(volume)
}

/// A growth as it is printed.
#[derive(Debug, Serialize)]
struct Grown {
    volume: VolumeView,
    chunks_added: u32,
    nodes: Vec<String>,
    dry_run: bool,
}

impl Show for Grown {
    fn table(&self) -> String {
        let VolumeView { id, size_bytes, growing_to_bytes, attachment, .. } = &self.volume;
        let chunks = match self.chunks_added {
            0 => "no new chunks".to_owned(),
            count => format!("{count} new chunks on {}", self.nodes.join(", ")),
        };
        if self.dry_run {
            return format!("dry run: {id} would have {}, {chunks}", size::show(*size_bytes));
        }
        if *growing_to_bytes > 0 {
            let to = size::show(*growing_to_bytes);
            return format!(
                "{id} has {} and grows to {to}, {chunks}\nnext: `ashlar volume show {id}` says when it has it",
                size::show(*size_bytes)
            );
        }
        let grown = format!("{id} has {}, {chunks}", size::show(*size_bytes));
        match attachment {
            None => grown,
            // The client asks every few seconds, and nobody else knows what is on the volume.
            Some(attachment) => format!(
                "{grown}\nnext: {} has it attached and takes the size over within seconds; then grow what is \
                 on it: `resize2fs` (ext4), `xfs_growfs` (xfs); an NBD client connects anew",
                attachment.client_name
            ),
        }
    }
}
