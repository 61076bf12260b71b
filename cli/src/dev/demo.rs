//! The demo volume: created once, attached at every start, mounted where the host allows.
//!
//! Attach daemon, `mount` and `umount` are the commands a user would give, as processes of their
//! own, so that what the demo shows is what everybody gets. Whether the volume was formatted is
//! noted only after its first mount succeeded.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ashlar_client::export::fuse::FILE_NAME;
use ashlar_client::{daemon, mount};
use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use nix::mount::{MntFlags, umount2};
use tokio::process::Command;

use super::layout::{Cluster, Layout};
use crate::connect::Zone;
use crate::failure::{Failure, Kind};

/// Name of the volume.
const VOLUME: &str = "demo";

/// Name of its attach daemon's process.
pub(crate) const PROCESS: &str = "attach-demo";

/// Size of the volume.
const SIZE_BYTES: u64 = 1 << 30;

/// File system of the volume.
const FILE_SYSTEM: &str = "ext4";

/// How long a call about the volume may take.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// How long the attach daemon may take to serve: the attach call waits for nodes.
const SERVES_WITHIN: Duration = Duration::from_secs(45);

/// How long the last writes may take at the end. A healthy zone needs well under a second.
const UNMOUNT_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Creates the volume in the first zone unless it is there.
///
/// # Errors
/// What the control plane refused.
pub(crate) async fn ensure_volume(cluster: &Cluster) -> Result<(), Failure> {
    let zone = Zone::of(cluster.endpoints());
    let first = cluster.zones.first().map(|zone| zone.name.clone()).unwrap_or_default();
    let found = zone
        .call("look for the demo volume", CALL_WITHIN, |channel| async move {
            let request = v1::GetVolumeRequest { volume: VOLUME.to_owned() };
            VolumeServiceClient::new(channel).get_volume(request).await
        })
        .await;
    match found {
        Ok(_) => return Ok(()),
        Err(failure) if failure.kind() == Kind::NotFound => {}
        Err(failure) => return Err(failure),
    }
    let created = zone.call("create the demo volume", CALL_WITHIN, |channel| {
        let request = v1::CreateVolumeRequest {
            name: VOLUME.to_owned(),
            size_bytes: SIZE_BYTES,
            copies: 3,
            chunk_bytes: 0,
            client_token: format!("dev-{VOLUME}"),
            dry_run: false,
            zone: first.clone(),
            error_after_millis: 0,
        };
        async move { VolumeServiceClient::new(channel).create_volume(request).await }
    });
    created.await.map(drop)
}

/// Command line of the volume's attach daemon.
pub(crate) fn attach_arguments(layout: &Layout, cluster: &Cluster) -> Vec<String> {
    let attachments = layout.attachments().display().to_string();
    let socket = layout.socket(VOLUME).display().to_string();
    let endpoints = cluster.endpoints().join(",");
    ["attach", VOLUME, "--foreground", "--endpoint", &endpoints, "--state", &attachments]
        .into_iter()
        .chain(["--nbd", &socket])
        .map(str::to_owned)
        .collect()
}

/// Takes away what is mounted, or what a run that was killed left mounted. Its data is safe in the volume; the mount
/// itself has lost its other end and can only be thrown away.
pub(crate) fn clean_up(layout: &Layout) {
    let fuse = layout.attachments().join(VOLUME).join("fuse");
    for device in mount::abandon(&fuse.join(FILE_NAME)) {
        tracing::warn!(device = %device.display(), "programs still hold it");
    }
    // Of a daemon whose file is gone nothing more is known than the place.
    let place = layout.mount_point(VOLUME);
    if is_mounted(&place) {
        umount2(&place, MntFlags::MNT_DETACH).ok();
    }
}

/// Waits for the attach daemon, mounts if that is wanted and possible; gives what to tell the user.
///
/// # Errors
/// When the volume is not served in time, or a mount that should work does not.
pub(crate) async fn show(
    layout: &Layout,
    cluster: &Cluster,
    wanted: bool,
) -> Result<String, Failure> {
    wait_served(layout).await?;
    let socket = format!("nbd+unix:///?socket={}", layout.socket(VOLUME).display());
    if !wanted {
        return Ok(format!("volume {VOLUME} is attached: {socket}"));
    }
    if let Err(why) = mount::possible() {
        return Ok(format!("volume {VOLUME} is attached, but not mounted: {why}\n  {socket}"));
    }
    mount_volume(layout, cluster).await?;
    let place = layout.mount_point(VOLUME);
    Ok(format!("volume {VOLUME} is mounted on {}\n  also: {socket}", place.display()))
}

async fn wait_served(layout: &Layout) -> Result<(), Failure> {
    let folder = layout.attachments().join(VOLUME);
    let served = tokio::time::timeout(SERVES_WITHIN, async {
        while daemon::status(&folder).is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    served.await.map_err(|_elapsed| {
        Failure::new(Kind::Timeout, "attach the demo volume")
            .because("its attach daemon does not serve")
            .try_next(format!("look at {}", layout.log(PROCESS).display()))
    })
}

/// Mounts the volume, formatting it the first time.
async fn mount_volume(layout: &Layout, cluster: &Cluster) -> Result<(), Failure> {
    let place = layout.mount_point(VOLUME).display().to_string();
    let attachments = layout.attachments().display().to_string();
    let plain = ["mount", VOLUME, &place, "--state", &attachments];
    let formatted = layout.attachments().join(VOLUME).join("formatted");
    if formatted.exists() {
        return run(layout, cluster, &plain).await;
    }
    let made = run(layout, cluster, &[&plain[..], &["--mkfs", FILE_SYSTEM]].concat()).await;
    match made {
        Ok(()) => {}
        // An earlier run was cut short between its first mount and the note of it.
        Err(failure) if failure.kind() == Kind::Conflict => run(layout, cluster, &plain).await?,
        Err(failure) => return Err(failure),
    }
    fs::write(&formatted, "")
        .map_err(|error| Failure::new(Kind::Error, "note the first mount").because(error))
}

/// Takes the mount off, if there is one: whatever waits or uses it, since its daemon ends next.
///
/// # Errors
/// What `ashlar umount` said: somebody still used it, or its last writes could not be carried out.
pub(crate) async fn unmount(layout: &Layout, cluster: &Cluster) -> Result<(), Failure> {
    let place = layout.mount_point(VOLUME);
    if !is_mounted(&place) {
        return Ok(());
    }
    let place = place.display().to_string();
    let seconds = UNMOUNT_WITHIN.as_secs().to_string();
    let done = run(layout, cluster, &["umount", &place, "--timeout", &seconds]).await;
    done.map_err(|failure| {
        // The daemon is told to end next: a mount without it would stay, and nobody could use it.
        clean_up(layout);
        failure.because("it was taken away; what was acknowledged is safe")
    })
}

/// Runs a command of this binary; what it says on standard error becomes the failure's why.
async fn run(layout: &Layout, cluster: &Cluster, arguments: &[&str]) -> Result<(), Failure> {
    let what = format!("ashlar {}", arguments.join(" "));
    let failed = |error: std::io::Error| Failure::new(Kind::Error, what.clone()).because(error);
    let output = Command::new(std::env::current_exe().map_err(failed)?)
        .args(arguments)
        .args(["--endpoint", &cluster.endpoints().join(",")])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let mut failure = Failure::new(Kind::from_exit_code(code), what);
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        failure = failure.because(line.trim().trim_start_matches("why: "));
    }
    Err(failure.try_next(format!("look at {}", layout.log(PROCESS).display())))
}

fn is_mounted(place: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == place.to_str())
}
