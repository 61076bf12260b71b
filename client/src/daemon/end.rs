//! The end of a daemon: in good order, or by force.
//!
//! In good order nothing is lost: what was submitted is carried out first, and when it cannot be, the
//! daemon stays as it is and says what waits. By force the end comes within [`FORCED_WITHIN`]: what
//! waits fails with EIO, the file is taken away from whoever uses it, and the attachment is fenced at
//! the control plane. Only then is it said to be done: a node may hold a request that was given up, and
//! must not take it once somebody else has the volume.

use super::control_socket::Answer;
use super::{CLOSE_WITHIN, Daemon, DaemonStatus};
use crate::control::{ControlError, ControlPlane};
use crate::volume::client_token;
use ashlar_client_core::VolumeStatus;
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_types::Generation;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Bound of an end by force, whatever is stuck. Its parts are below.
pub const FORCED_WITHIN: Duration = Duration::from_secs(10);
/// Time for what was submitted before a plain end: a fail-over takes a second or two.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at whether anything still waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time for file systems to write out what they can before what waits is given up: a volume that is
/// well loses nothing by force.
const LAST_WRITES_WITHIN: Duration = Duration::from_secs(1);
/// Time for the volume's task to end: it waits for nothing.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(1);
/// Time for the control plane to commit the end: an election fits in.
const FENCE_WITHIN: Duration = Duration::from_secs(5);

const _: () = assert!(
    LAST_WRITES_WITHIN.as_secs() + GIVE_UP_WITHIN.as_secs() + FENCE_WITHIN.as_secs()
        < FORCED_WITHIN.as_secs()
);

/// What keeps an attachment from ending in good order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Requests in progress.
    pub requests: usize,
    /// How long the oldest has waited.
    pub millis: u64,
    /// Chunks whose primary is being looked for.
    pub chunks: Vec<u32>,
    /// Nodes that do not answer.
    pub nodes_down: Vec<u32>,
}

impl Waits {
    /// What a daemon's status says of them.
    #[must_use]
    pub fn of(status: &DaemonStatus) -> Self {
        Self {
            requests: status.requests,
            millis: status.waiting_millis,
            chunks: status.stuck_chunks.clone(),
            nodes_down: status.nodes_down.clone(),
        }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |of: &[u32]| of.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let seconds = Duration::from_millis(self.millis).as_secs_f64();
        write!(f, "{} requests wait, the oldest for {seconds:.1} s", self.requests)?;
        if !self.nodes_down.is_empty() {
            write!(f, "; no connection to node {}", numbers(&self.nodes_down))?;
        }
        if !self.chunks.is_empty() {
            write!(f, "; no primary answers for chunk {}", numbers(&self.chunks))?;
        }
        Ok(())
    }
}

/// How an attachment has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Requests that were given up.
    pub given_up: usize,
    /// Loop devices that programs still hold; they are freed when those close them.
    pub held: Vec<PathBuf>,
}

/// How long the oldest request has waited.
pub(super) fn waiting_millis(status: &VolumeStatus) -> u64 {
    let now = ashlar_types::Time::from_nanos(SystemClock.now_nanos());
    let waited = status.waiting_since.map_or(Duration::ZERO, |since| now.since(since));
    u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)
}

impl Daemon {
    /// Ends as a command asks. While there still is a volume afterwards, nothing has ended.
    pub(super) async fn stop(&mut self, detach: bool, force: bool) -> Answer {
        if force {
            return self.end_by_force().await;
        }
        if let Err(waits) = self.wait_carried_out().await {
            return Answer::Stuck(waits);
        }
        match self.end(detach).await {
            Ok(()) => Answer::Ended(Ended::default()),
            Err(reason) => Answer::Failed(reason),
        }
    }

    /// Returns once every write submitted so far is durable and no chunk is without an answer.
    async fn wait_carried_out(&self) -> Result<(), Waits> {
        let Some(volume) = &self.volume else { return Ok(()) };
        let carried_out = async {
            // A volume that is fenced or closed has nothing that could be waited for.
            if let Err(error) = volume.flush().await {
                tracing::info!(%error, "the last flush");
            }
            while !volume.status().await.doubtful_chunks.is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(FLUSH_WITHIN, carried_out).await.is_ok() {
            return Ok(());
        }
        Err(Waits::of(&self.status().await))
    }

    /// Ends exports and the volume. Refused, with everything as it was, while the file is in use.
    pub(super) async fn end(&mut self, detach: bool) -> Result<(), String> {
        if let Some(file) = self.fuse.take() {
            let ended = tokio::task::spawn_blocking(move || file.unmount()).await;
            if let Ok(Err((file, error))) = ended {
                self.fuse = Some(file);
                return Err(format!("the volume's file is in use ({error}); unmount it first"));
            }
        }
        self.stop_exports.cancel();
        let Some(volume) = self.volume.take() else { return Ok(()) };
        let (id, generation) = (volume.id().to_string(), volume.generation());
        let members = volume.whereabouts().borrow().members.clone();
        if !volume.close(CLOSE_WITHIN).await {
            tracing::warn!("requests in progress were given up");
        }
        if let Ok(Err(error)) = (&mut self.nbd).await {
            tracing::warn!(%error, "end of the NBD export");
        }
        if !detach {
            return Ok(());
        }
        self.fence(&id, generation, &members, CLOSE_WITHIN)
            .await
            .map_err(|error| format!("stopped, but not detached: {error}"))?;
        self.state.forget().map_err(|error| error.to_string())
    }

    /// The attachment is over for the control plane: its generation is committed as past.
    async fn fence(
        &self,
        id: &str,
        generation: Generation,
        members: &[String],
        within: Duration,
    ) -> Result<(), ControlError> {
        let mut control = ControlPlane::new(&self.config.endpoints)?;
        control.learn(members);
        control.detach(id, generation, &client_token(), within).await
    }

    async fn end_by_force(&mut self) -> Answer {
        let file = self.fuse_file();
        if let Some(file) = file.clone() {
            let flush = tokio::task::spawn_blocking(move || crate::mount::flush(&file));
            if tokio::time::timeout(LAST_WRITES_WITHIN, flush).await.is_err() {
                tracing::warn!("not everything could be written: what waits is given up");
            }
        }
        let Some(volume) = self.volume.take() else {
            return Answer::Failed("the daemon is ending".to_owned());
        };
        let (id, generation) = (volume.id().to_string(), volume.generation());
        let members = volume.whereabouts().borrow().members.clone();
        let given_up = volume.status().await.requests;
        if tokio::time::timeout(GIVE_UP_WITHIN, volume.give_up()).await.is_err() {
            tracing::warn!("the volume's task does not answer");
        }
        self.stop_exports.cancel();
        let session = self.fuse.take();
        let taken_apart = tokio::task::spawn_blocking(move || {
            let held = file.as_deref().map(crate::mount::abandon).unwrap_or_default();
            if let Some(session) = session {
                session.end_abandoned();
            }
            held
        });
        let fenced = self.fence(&id, generation, &members, FENCE_WITHIN);
        let taken_apart = tokio::time::timeout(FENCE_WITHIN, taken_apart);
        let (fenced, taken_apart) = tokio::join!(fenced, taken_apart);
        let held = taken_apart.ok().and_then(Result::ok).unwrap_or_default();
        // Kept on disk then, so that `ashlar detach` finds what is still to be given up.
        if let Err(error) = fenced {
            return Answer::NotFenced(error.to_string());
        }
        match self.state.forget() {
            Ok(()) => Answer::Ended(Ended { given_up, held }),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }
}
