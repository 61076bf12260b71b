//! The attach daemon: one attached volume, exported to this host, resumed after a restart.
//!
//! [`run`] locks its folder, attaches (or resumes its own attachment, without a control plane if
//! need be), raises the durable number of sessions, and exports by NBD and FUSE until it is
//! stopped. [`status`], [`stop`] and [`find`] are for commands; they talk to the control socket
//! in the folder.
//!
//! A stop without `detach` keeps the attachment: the next [`run`] on the same folder goes on with
//! it. While its FUSE file is in use (a loop device, an open file), a stop is refused.

mod control_socket;
mod end;
mod host;
mod state;

use crate::control::{Attached, ControlError, ControlPlane, VolumeMap};
use crate::export::fuse::FuseFile;
use crate::export::{fuse, nbd};
use crate::task::Whereabouts;
use crate::volume::{ATTACH_WITHIN, Attachment, Volume, VolumeOptions, client_token};
use ashlar_client_core::WaitPolicy;
use ashlar_env::task::{Task, spawn_named};
use ashlar_proto::reason::Reason;
use control_socket::{Answer, Asked, Question};
use serde::{Deserialize, Serialize};
use state::{Kept, KeptAttachment, State};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use end::{Ended, FORCED_WITHIN, Waits};
pub use state::StateError;

/// File name of the control socket in the daemon's folder.
const CONTROL_SOCKET: &str = "control.sock";
/// File name of the NBD socket in the daemon's folder, if no other is asked for.
const NBD_SOCKET: &str = "nbd.sock";
/// Time to ask the control plane whether a kept attachment still stands; without an answer it is
/// used as it is.
const CONFIRM_WITHIN: Duration = Duration::from_millis(1_500);
/// Time to finish what is in progress when stopping.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// The map is written at most this often.
const MAP_EVERY: Duration = Duration::from_millis(500);
/// Time for the last answer to leave.
const ANSWER_OUT_WITHIN: Duration = Duration::from_secs(1);
/// Time that a command waits for a daemon's answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// Longest wait for a daemon that is asked how it is: it answers in milliseconds, or hangs.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// What a daemon does.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Control-plane members, `ip:port` or `http://ip:port`.
    pub endpoints: Vec<String>,
    /// Volume, by id or name.
    pub volume: String,
    /// Folder of this attachment; made if it is not there. Also holds the sockets.
    pub state_dir: PathBuf,
    /// NBD socket; `nbd.sock` in the folder if absent.
    pub nbd_socket: Option<PathBuf>,
    /// Folder to present the FUSE file in (made if it is not there), if wanted.
    pub fuse_dir: Option<PathBuf>,
    /// Refuse writes.
    pub read_only: bool,
    /// Take the volume from whoever has it.
    pub force: bool,
    /// Who states that whoever had it before never writes again.
    pub old_client_fenced_by: Option<String>,
    /// What happens when a request cannot be carried out for a long time, in place of what the volume
    /// says.
    pub policy: Option<WaitPolicy>,
    /// What the client calls itself in the volume's status.
    pub client_name: String,
}

/// Why a daemon ends, or a command about one fails.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Its folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The folder keeps the attachment of another volume.
    #[error("{} keeps an attachment of {kept}; detach it or use another folder", dir.display())]
    OtherVolume {
        /// Folder.
        dir: PathBuf,
        /// Volume.
        kept: String,
    },
    /// An export cannot be made.
    #[error("cannot export by {what} at {}: {cause}", path.display())]
    Export {
        /// NBD, FUSE or the control socket.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
    /// The daemon does not answer.
    #[error("no answer from the attach daemon at {}: {cause}", socket.display())]
    Ask {
        /// Its socket.
        socket: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// It cannot be ended in good order: requests wait.
    #[error("{0}")]
    Stuck(Waits),
    /// Everything here is over, but the attachment is not: the control plane did not say so.
    #[error("everything on this host has ended, but the attachment is not given up: {0}")]
    NotFenced(String),
    /// The daemon refused.
    #[error("the attach daemon refused: {0}")]
    Refused(String),
}

/// What `ashlar status` shows of an attachment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Id of the volume.
    pub volume: String,
    /// Its name; may be empty.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Generation of the attachment.
    pub generation: u64,
    /// Process of the daemon.
    pub pid: u32,
    /// Where NBD clients connect.
    pub nbd_socket: PathBuf,
    /// The FUSE file, if there is one.
    pub fuse_file: Option<PathBuf>,
    /// Where file systems on it are mounted.
    pub mounts: Vec<PathBuf>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Requests in progress.
    pub requests: usize,
    /// How long the oldest of them has waited, in milliseconds.
    #[serde(default)]
    pub waiting_millis: u64,
    /// Nodes with a connection.
    pub nodes_up: Vec<u32>,
    /// Nodes that are waited for.
    pub nodes_down: Vec<u32>,
    /// Chunks whose primary is being looked for.
    pub stuck_chunks: Vec<u32>,
    /// Why the attachment is over, if it is.
    pub fenced: Option<String>,
}

/// Runs a daemon until it is told to stop over its control socket, or `shutdown` is cancelled
/// (then the attachment is kept). `ready` is called once everything is exported.
///
/// # Errors
/// What prevented the attachment or an export, or an orderly end.
pub async fn run(
    mut config: DaemonConfig,
    shutdown: CancellationToken,
    ready: impl FnOnce(&DaemonStatus),
) -> Result<(), DaemonError> {
    host::prepare();
    // What status says is read by processes in other folders.
    for path in [Some(&mut config.state_dir), config.nbd_socket.as_mut(), config.fuse_dir.as_mut()]
        .into_iter()
        .flatten()
    {
        *path = std::path::absolute(&path).map_err(|cause| StateError::Io {
            what: "find",
            path: path.clone(),
            cause,
        })?;
    }
    let state = State::open(&config.state_dir)?;
    let mut control = ControlPlane::new(&config.endpoints)?;
    let (kept, map) = attach(&config, &state, &mut control).await?;
    let attachment =
        Attachment { map: map.clone(), token: kept.token(), first_session: state.next_sessions()? };
    let options = VolumeOptions {
        client_name: config.client_name.clone(),
        force: config.force,
        read_only: config.read_only,
        policy: config.policy,
    };
    let volume = Volume::open(control, attachment, &options);
    let known = volume.whereabouts();
    let mut daemon = Daemon::export(config, state, volume, map)?;
    let keeping = daemon.keep_map(known);
    let outcome = daemon.serve(shutdown, ready).await;
    // It shares the folder's lock, which must be free when this returns.
    daemon.stop_keeping.cancel();
    if keeping.await.is_err() {
        tracing::debug!("the map was no longer kept");
    }
    outcome
}

/// The kept attachment if it still stands, a new one otherwise.
async fn attach(
    config: &DaemonConfig,
    state: &State,
    control: &mut ControlPlane,
) -> Result<(KeptAttachment, VolumeMap), DaemonError> {
    let mut kept = match state.load()? {
        Some(kept) if kept.is(&config.volume) => kept,
        Some(kept) => {
            let (dir, kept) = (config.state_dir.clone(), kept.requested);
            return Err(DaemonError::OtherVolume { dir, kept });
        }
        None => Kept::new(&config.volume, config.read_only),
    };
    if let Some(mut attached) = kept.attached.clone() {
        let cached = state.load_map(&mut attached)?;
        control.learn(&cached.members);
        match control.map(&attached.volume, &attached.token(), CONFIRM_WITHIN).await {
            Ok(Attached { map, token }) if map.generation == cached.generation => {
                attached.renew(token);
                // It may have grown while no daemon ran.
                state.keep_size(map.geometry.size_bytes())?;
                return Ok((attached, map));
            }
            // Another attachment or a detach has ended ours: begin anew, by the usual rules.
            Ok(Attached { map, .. }) if map.generation > cached.generation => {
                tracing::warn!(ours = %cached.generation, now = %map.generation, "attachment over");
                state.forget()?;
                kept = Kept::new(&config.volume, config.read_only);
            }
            Ok(_older) => return Ok((attached, cached)),
            Err(error) if error.reason() == Some(Reason::VolumeNotFound) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%error, "resuming without the control plane");
                return Ok((attached, cached));
            }
        }
    }
    // Kept before the call, so that a restart in the middle continues the same attachment.
    state.save(&kept)?;
    let (name, fenced_by) = (&config.client_name, config.old_client_fenced_by.as_deref());
    let attached = control
        .attach(&config.volume, name, &kept.client_token, config.force, fenced_by, ATTACH_WITHIN)
        .await
        .inspect_err(|error| {
            let undecided = matches!(error.reason(), None | Some(Reason::AdoptionPending));
            if !undecided && let Err(error) = state.forget() {
                tracing::warn!(%error, "after a refused attach");
            }
        })?;
    let attachment = KeptAttachment::new(&attached.map, &attached.token);
    kept.attached = Some(attachment.clone());
    state.save(&kept)?;
    Ok((attachment, attached.map))
}

/// A daemon that exports.
struct Daemon {
    config: DaemonConfig,
    state: Arc<State>,
    volume: Option<Volume>,
    map: VolumeMap,
    /// Of the volume; its changes are what the host is told of.
    size: watch::Receiver<u64>,
    fuse: Option<FuseFile>,
    nbd_socket: PathBuf,
    stop_exports: CancellationToken,
    stop_keeping: CancellationToken,
    asked: mpsc::Receiver<Asked>,
    nbd: Task<io::Result<()>>,
    _control: Task<()>,
}

impl Daemon {
    fn export(
        mut config: DaemonConfig,
        state: State,
        volume: Volume,
        map: VolumeMap,
    ) -> Result<Self, DaemonError> {
        let nbd_socket =
            config.nbd_socket.clone().unwrap_or_else(|| config.state_dir.join(NBD_SOCKET));
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |cause| DaemonError::Export { what, path, cause }
        };
        let stop_exports = CancellationToken::new();
        let (device, socket, stop) = (volume.device(), nbd_socket.clone(), stop_exports.clone());
        // Bound before anybody is told that the daemon is ready.
        let listener = nbd::bind(&nbd_socket).map_err(failed("NBD", &nbd_socket))?;
        let nbd = spawn_named("client-nbd-listen", async move {
            nbd::serve_on(device, listener, &socket, stop).await
        });
        let fuse = match &config.fuse_dir {
            None => None,
            Some(dir) => Some(present(&volume, dir).map_err(failed("FUSE", dir))?),
        };
        // As the kernel names it, and asked for now: later the answer could wait for the volume.
        if let Some(dir) = &mut config.fuse_dir {
            *dir = dir.canonicalize().map_err(failed("FUSE", dir))?;
        }
        let (ask, asked) = mpsc::channel(16);
        let socket = config.state_dir.join(CONTROL_SOCKET);
        let control = spawn_named("client-control-listen", async move {
            if let Err(error) = control_socket::serve(&socket, ask).await {
                tracing::error!(%error, "the control socket is gone");
            }
        });
        Ok(Self {
            config,
            state: Arc::new(state),
            size: volume.device().size,
            volume: Some(volume),
            map,
            fuse,
            nbd_socket,
            stop_exports,
            stop_keeping: CancellationToken::new(),
            asked,
            nbd,
            _control: control.abort_on_drop(),
        })
    }

    /// Writes the map to its cache as it changes.
    fn keep_map(&self, mut known: watch::Receiver<Arc<Whereabouts>>) -> Task<()> {
        let (state, generation) = (self.state.clone(), self.map.generation);
        let stop = self.stop_keeping.clone();
        let keep = async move {
            loop {
                let newest = known.borrow_and_update().clone();
                let state = state.clone();
                // A file now and then: far from the I/O path.
                let saved =
                    tokio::task::spawn_blocking(move || state.save_map(generation, &newest));
                if let Ok(Err(error)) = saved.await {
                    tracing::warn!(%error, "the map is not kept");
                }
                let next = async {
                    tokio::time::sleep(MAP_EVERY).await;
                    known.changed().await
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = next => if changed.is_err() { return },
                }
            }
        };
        spawn_named("client-keep-map", keep)
    }

    async fn serve(
        &mut self,
        shutdown: CancellationToken,
        ready: impl FnOnce(&DaemonStatus),
    ) -> Result<(), DaemonError> {
        ready(&self.status().await);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    return self.end(false).await.map_err(DaemonError::Refused);
                }
                Ok(()) = self.size.changed() => self.on_grown(),
                Some(Asked { question, answer, written }) = self.asked.recv() => {
                    let (reply, over) = match question {
                        Question::Status => (Answer::Status(Box::new(self.status().await)), false),
                        Question::Stop { detach, force } => {
                            let reply = self.stop(detach, force).await;
                            (reply, self.volume.is_none())
                        }
                    };
                    if answer.send(reply).is_err() {
                        tracing::debug!("the caller did not wait for the answer");
                    }
                    if over {
                        // The process ends next: the answer must be out before.
                        if tokio::time::timeout(ANSWER_OUT_WITHIN, written).await.is_err() {
                            tracing::debug!("the caller does not take its answer");
                        }
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The volume has grown: that is kept, and then the kernel is told, the devices over the file away from
    /// this task, as an export that is stuck would hold it up.
    fn on_grown(&mut self) {
        let size_bytes = *self.size.borrow_and_update();
        if let Err(error) = self.state.keep_size(size_bytes) {
            tracing::warn!(%error, "the new size is not kept");
        }
        let file = self.fuse_file();
        if let Some(Err(error)) = self.fuse.as_ref().map(FuseFile::note_grown) {
            tracing::warn!(%error, "the kernel is not told of the new size");
        }
        let tell = move || {
            for (device, taken) in file.as_deref().map(crate::mount::grown).unwrap_or_default() {
                let device = device.display();
                match taken {
                    Ok(()) => tracing::info!(
                        %device, size_bytes,
                        "the device has grown; a file system on it grows by resize2fs or xfs_growfs"
                    ),
                    Err(error) => tracing::warn!(
                        %device, %error,
                        "the device has not grown: `losetup --set-capacity` makes it take the new size"
                    ),
                }
            }
        };
        drop(tokio::task::spawn_blocking(tell));
    }

    async fn status(&self) -> DaemonStatus {
        let volume = match &self.volume {
            Some(volume) => volume.status().await,
            None => crate::VolumeStatus::default(),
        };
        let fuse_file = self.fuse_file();
        let numbers = |nodes: Vec<ashlar_types::NodeId>| nodes.iter().map(|n| n.0).collect();
        DaemonStatus {
            volume: self.map.volume.to_string(),
            name: self.map.name.clone(),
            size_bytes: *self.size.borrow(),
            generation: self.map.generation.0,
            pid: std::process::id(),
            nbd_socket: self.nbd_socket.clone(),
            mounts: fuse_file.as_deref().map(crate::mount::mounts_of).unwrap_or_default(),
            fuse_file,
            read_only: self.config.read_only,
            requests: volume.requests,
            waiting_millis: end::waiting_millis(&volume),
            nodes_up: numbers(volume.nodes_up),
            nodes_down: numbers(volume.nodes_down),
            stuck_chunks: volume.doubtful_chunks.iter().map(|(chunk, _)| chunk.0).collect(),
            fenced: volume.fenced.map(|fence| fence.to_string()),
        }
    }

    fn fuse_file(&self) -> Option<PathBuf> {
        Some(self.config.fuse_dir.as_ref()?.join(fuse::FILE_NAME))
    }
}

fn present(volume: &Volume, dir: &Path) -> io::Result<FuseFile> {
    // What a killed daemon left: a mount whose other end is gone.
    if std::fs::metadata(dir).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN)) {
        nix::mount::umount2(dir, nix::mount::MntFlags::MNT_DETACH)?;
    }
    std::fs::create_dir_all(dir)?;
    fuse::mount(volume.device(), dir)
}

/// How the daemon of this folder is.
///
/// # Errors
/// There is none, or it does not answer.
pub fn status(state_dir: &Path) -> Result<DaemonStatus, DaemonError> {
    match control_socket::ask(&state_dir.join(CONTROL_SOCKET), Question::Status, STATUS_WITHIN)? {
        Answer::Status(status) => Ok(*status),
        Answer::Failed(reason) => Err(DaemonError::Refused(reason)),
        Answer::Ended(_) | Answer::Stuck(_) | Answer::NotFenced(_) => {
            Err(DaemonError::Refused("an answer of the wrong kind".to_owned()))
        }
    }
}

/// Stops the daemon of this folder; with `detach`, gives the attachment back. Returns when its
/// exports are gone and everything acknowledged is durable.
///
/// # Errors
/// There is none, it does not answer, its file is in use, or requests wait.
pub fn stop(state_dir: &Path, detach: bool) -> Result<(), DaemonError> {
    ask_to_stop(state_dir, Question::Stop { detach, force: false }, ANSWER_WITHIN).map(drop)
}

/// Ends the daemon of this folder whatever waits or uses it, and the attachment: within
/// [`FORCED_WITHIN`]. What was never acknowledged is given up.
///
/// # Errors
/// There is none, it does not answer, or the control plane did not give the attachment up.
pub fn stop_by_force(state_dir: &Path) -> Result<Ended, DaemonError> {
    // A plain stop may be under way: it is waited for.
    let within = FORCED_WITHIN * 2;
    ask_to_stop(state_dir, Question::Stop { detach: true, force: true }, within)
}

fn ask_to_stop(
    state_dir: &Path,
    question: Question,
    within: Duration,
) -> Result<Ended, DaemonError> {
    match control_socket::ask(&state_dir.join(CONTROL_SOCKET), question, within)? {
        Answer::Ended(ended) => Ok(ended),
        Answer::Stuck(waits) => Err(DaemonError::Stuck(waits)),
        Answer::NotFenced(why) => Err(DaemonError::NotFenced(why)),
        Answer::Failed(reason) => Err(DaemonError::Refused(reason)),
        Answer::Status(_) => Err(DaemonError::Refused("an answer of the wrong kind".to_owned())),
    }
}

/// Gives back an attachment whose daemon is gone: for `ashlar detach` when [`stop`] finds nobody.
/// Takes apart what is mounted of it first.
///
/// # Errors
/// A daemon lives after all, something is in use, or the control plane refuses.
pub async fn detach_kept(
    state_dir: &Path,
    endpoints: &[String],
    within: Duration,
) -> Result<(), DaemonError> {
    let state = State::open(state_dir)?;
    if let Some(Kept { attached: Some(kept), .. }) = state.load()? {
        let mut control = ControlPlane::new(endpoints)?;
        let generation = ashlar_types::Generation(kept.generation);
        control.detach(&kept.volume, generation, &client_token(), within).await?;
    }
    Ok(state.forget()?)
}

/// Folders below `root` that keep an attachment: (folder, volume id or what it was called, name).
#[must_use]
pub fn list(root: &Path) -> Vec<(PathBuf, String, String)> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let dir = entry.ok()?.path();
            let kept = state::load(&dir).ok()??;
            let (volume, name) = match kept.attached {
                Some(attached) => (attached.volume, attached.name),
                None => (kept.requested, String::new()),
            };
            Some((dir, volume, name))
        })
        .collect();
    found.sort();
    found
}

/// The folder below `root` that keeps an attachment of this volume (id or name).
#[must_use]
pub fn find(root: &Path, volume: &str) -> Option<PathBuf> {
    let found = list(root).into_iter().find(|(_, id, name)| id == volume || name == volume);
    found.map(|(dir, _, _)| dir)
}
