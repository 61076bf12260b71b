//! `ashlar detach`: a volume off this host, in good order or by force.
//!
//! In good order the daemon first carries out what was submitted; when it cannot, it says what waits and
//! nothing has changed. By force it ends in a bounded time, whatever waits or uses the volume; this file
//! says what that meant, and what is left to do when the control plane could not be asked. Where no
//! daemon answers, the command takes apart itself what it left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ashlar_client::daemon::{self, DaemonError, Ended};
use ashlar_client::mount;
use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use serde::Serialize;

use crate::attach::{Place, from_daemon};
use crate::connect::{self, Zone, client_token};
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show};
use crate::{Global, completion, process};

/// What to give back.
#[derive(Debug, clap::Args)]
pub(crate) struct Detach {
    /// Id or name of the volume.
    #[arg(add = completion::volumes())]
    volume: String,
    #[command(flatten)]
    place: Place,
    /// End the attachment wherever it is, fenced; on this host within 10 s, whatever waits or uses it:
    /// what was never acknowledged is given up, what is mounted is unmounted.
    #[arg(long)]
    force: bool,
    /// Say what would be ended, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Gives a volume back.
///
/// # Errors
/// Its file is in use, requests wait, or the control plane refuses.
pub(crate) fn detach(arguments: &Detach, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let what = format!("detach volume {}", arguments.volume);
    let mut view = Detached {
        volume: arguments.volume.clone(),
        dry_run: arguments.dry_run,
        ended: Ended::default(),
    };
    if let Some(folder) = daemon::find(&arguments.place.root(global), &arguments.volume) {
        if arguments.dry_run {
            return would_end(&what, &folder, arguments.force).and_then(|()| output.show(&view));
        }
        view.ended = end_here(&what, &folder, arguments.force, global)
            .map_err(|failure| advise(failure, &arguments.volume))?;
        return output.show(&view);
    }
    if !arguments.force {
        return Err(Failure::new(Kind::NotFound, what)
            .because("it is not attached on this host")
            .try_next("ashlar volume show, and --force to end the attachment wherever it is"));
    }
    let zone = Zone::find(global)?;
    let request = v1::DetachVolumeRequest {
        volume: arguments.volume.clone(),
        generation: 0,
        force: true,
        client_token: client_token(),
        dry_run: arguments.dry_run,
    };
    zone.ask(&what, |channel| {
        let request = request.clone();
        async move { VolumeServiceClient::new(channel).detach_volume(request).await }
    })?;
    output.show(&view)
}

/// What to do about a failed detach.
fn advise(failure: Failure, volume: &str) -> Failure {
    if failure.kind() == Kind::Unavailable {
        return failure
            .try_next(format!("ashlar detach {volume}, when the control plane answers again"));
    }
    failure.try_next(format!(
        "ashlar volume status {volume} says what it waits for; ashlar detach {volume} --force unmounts \
         it and gives up what was never acknowledged"
    ))
}

/// Whether a detach would be refused as things are.
fn would_end(what: &str, folder: &Path, force: bool) -> Result<(), Failure> {
    match daemon::status(folder) {
        Ok(status) if !force && !status.mounts.is_empty() => {
            let places: Vec<_> =
                status.mounts.iter().map(|dir| dir.display().to_string()).collect();
            Err(Failure::new(Kind::Conflict, what)
                .because(format!("it is mounted on {}", places.join(", ")))
                .try_next(format!("ashlar umount {}", places.join(" "))))
        }
        Ok(_) | Err(DaemonError::Ask { .. }) => Ok(()),
        Err(error) => Err(from_daemon(what, &error)),
    }
}

/// Ends the attachment of a folder of this host.
fn end_here(what: &str, folder: &Path, force: bool, global: &Global) -> Result<Ended, Failure> {
    let asked = if force {
        daemon::stop_by_force(folder)
    } else {
        daemon::stop(folder, true).map(|()| Ended::default())
    };
    match asked {
        Ok(ended) => Ok(ended),
        Err(DaemonError::Ask { .. }) => end_kept(what, folder, force, global),
        Err(error) => Err(from_daemon(what, &error)),
    }
}

/// The daemon is dead: what it left on this host is taken apart, then the attachment is ended.
fn end_kept(what: &str, folder: &Path, force: bool, global: &Global) -> Result<Ended, Failure> {
    let file = folder.join("fuse").join(ashlar_client::export::fuse::FILE_NAME);
    let mut ended = Ended::default();
    if force {
        ended.held = mount::abandon(&file);
    } else {
        mount::release(&file)
            .map_err(|error| Failure::new(Kind::Conflict, what.to_owned()).because(error))?;
    }
    let zone = Zone::find(global)?;
    let within = Duration::from_secs(global.timeout);
    connect::runtime()?
        .block_on(daemon::detach_kept(folder, zone.endpoints(), within))
        .map_err(|error| from_daemon(what, &error))?;
    Ok(ended)
}

/// Ends the attachment that a volume's file belongs to; for `ashlar umount --force`.
///
/// # Errors
/// As [`detach`].
pub(crate) fn by_force(what: &str, file: &Path, global: &Global) -> Result<(), Failure> {
    let folder = folder_of(file)
        .ok_or_else(|| Failure::new(Kind::NotFound, what).because("no attachment keeps it"))?;
    let ended = end_here(what, &folder, true, global)
        .map_err(|failure| advise(failure, &name_of(&folder)))?;
    for device in ended.held {
        crate::failure::warn(&held(&device));
    }
    Ok(())
}

/// The requests of a mounted volume wait: what is said when an unmount does not end in time.
pub(crate) fn stuck(what: &str, file: &Path, seconds: u64) -> Failure {
    let failure = Failure::new(Kind::Conflict, what)
        .with_reason("VOLUME_STUCK")
        .because(format!("its last writes were not carried out within {seconds} s"));
    let Some(folder) = folder_of(file) else { return failure };
    let name = name_of(&folder);
    let failure = match daemon::status(&folder) {
        Ok(status) => failure.because(daemon::Waits::of(&status)),
        Err(error) => failure.because(error),
    };
    failure.try_next(format!(
        "ashlar volume status {name} says what it waits for; --force unmounts, ends the attachment and \
         gives up what was never acknowledged"
    ))
}

/// The attachment's folder, two above its file.
fn folder_of(file: &Path) -> Option<PathBuf> {
    Some(file.parent()?.parent()?.to_owned())
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn held(device: &Path) -> String {
    format!("{} is still held by programs; it is freed when they close it", device.display())
}

#[derive(Debug, Serialize)]
struct Detached {
    volume: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    #[serde(flatten)]
    ended: Ended,
}

impl Show for Detached {
    fn table(&self) -> String {
        if self.dry_run {
            return format!("{} would be detached", self.volume);
        }
        let mut text = format!("detached {}", self.volume);
        if self.ended.given_up > 0 {
            text.push_str(&format!("; {} requests that waited were given up", self.ended.given_up));
        }
        for device in &self.ended.held {
            text.push_str(&format!("\n{}", held(device)));
        }
        text
    }
}
