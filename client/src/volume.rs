//! The library: an attached volume with async calls, and its [`BlockDevice`] for exports.

use crate::bytewise::Bytewise;
use crate::connection::Identity;
use crate::control::{Attached, ControlError, ControlPlane, VolumeMap};
use crate::device::{
    BlockDevice, Command, Completion, Content, DeviceInfo, Io, IoError, SUBMISSIONS_MAX, Sink,
    Submission,
};
use crate::task::{Ask, VolumeTask, Whereabouts};
use ashlar_client_core::{VolumeCore, VolumeSettings, VolumeStatus, WaitPolicy};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::task::{Task, spawn_named};
use ashlar_types::{Generation, Geometry, SessionId, VolumeId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Time that an attach waits for the nodes to adopt the new generation.
pub const ATTACH_WITHIN: Duration = Duration::from_secs(30);

/// How a volume is to be used.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// What the client calls itself in status.
    pub client_name: String,
    /// Take the volume from whoever has it.
    pub force: bool,
    /// Refuse writes here.
    pub read_only: bool,
    /// What happens when a request cannot be carried out for a long time, in place of what the volume
    /// says.
    pub policy: Option<WaitPolicy>,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            client_name: format!("pid {}", std::process::id()),
            force: false,
            read_only: false,
            policy: None,
        }
    }
}

/// An attachment that exists: what is needed to use it, now or after a restart.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Where the data is, as far as known.
    pub map: VolumeMap,
    /// Signed right to use the volume.
    pub token: Vec<u8>,
    /// Number of the first connection; above all that this attachment ever used.
    pub first_session: SessionId,
}

/// An attached volume. Dropping it ends its connections; [`Volume::detach`] also gives the
/// attachment back.
#[derive(Debug)]
pub struct Volume {
    device: BlockDevice,
    calls: Arc<Calls>,
    asks: mpsc::Sender<Ask>,
    whereabouts: watch::Receiver<Arc<Whereabouts>>,
    control: ControlPlane,
    id: VolumeId,
    /// As it was opened.
    geometry: Geometry,
    generation: Generation,
    _task: Task<()>,
}

impl Volume {
    /// Attaches a volume (by id or name) through these control-plane endpoints and opens it.
    ///
    /// # Errors
    /// What the control plane refused, or that it was not reached.
    pub async fn attach(
        endpoints: &[String],
        volume: &str,
        options: VolumeOptions,
    ) -> Result<Self, ControlError> {
        let mut control = ControlPlane::new(endpoints)?;
        let token = client_token();
        let Attached { map, token } = control
            .attach(volume, &options.client_name, &token, options.force, None, ATTACH_WITHIN)
            .await?;
        let attachment = Attachment { map, token, first_session: SessionId(1) };
        Ok(Self::open(control, attachment, &options))
    }

    /// Opens a volume that is attached already. Needs no control plane as long as the map is
    /// right. Call within a tokio runtime.
    #[must_use]
    pub fn open(
        mut control: ControlPlane,
        attachment: Attachment,
        options: &VolumeOptions,
    ) -> Self {
        let map = attachment.map;
        control.learn(&map.members);
        let settings = VolumeSettings {
            volume: map.volume,
            geometry: map.geometry,
            generation: map.generation,
            first_session: attachment.first_session,
            policy: options.policy.unwrap_or(map.policy),
        };
        let mut dice = SeededDice::system();
        let core = VolumeCore::new(settings, map.configs, Box::new(move || dice.next_u64()));
        let (queue, queue_in) = mpsc::channel(SUBMISSIONS_MAX);
        let (asks, asks_in) = mpsc::channel(16);
        let (whereabouts_out, whereabouts) = watch::channel(Arc::new(Whereabouts::default()));
        let (size_out, size) = watch::channel(map.geometry.size_bytes());
        let task = VolumeTask {
            core,
            size: size_out,
            bytewise: Bytewise::new(map.geometry, options.read_only),
            identity: Identity {
                volume: map.volume,
                generation: map.generation,
                token: attachment.token,
            },
            addresses: map.addresses,
            control: control.clone(),
            queue: queue_in,
            asks: asks_in,
            whereabouts: whereabouts_out,
        };
        let name = if map.name.is_empty() { map.volume.to_string() } else { map.name };
        let info = DeviceInfo { name, read_only: options.read_only };
        Self {
            device: BlockDevice { info: Arc::new(info), size, queue },
            calls: Arc::new(Calls::default()),
            asks,
            whereabouts,
            control,
            id: map.volume,
            geometry: map.geometry,
            generation: map.generation,
            _task: spawn_named("client-volume", task.run()).abort_on_drop(),
        }
    }

    /// For exports: requests in batches.
    #[must_use]
    pub fn device(&self) -> BlockDevice {
        self.device.clone()
    }

    /// The volume.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its size and that of its chunks, as far as this client knows: it may have grown a moment ago.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let (size, chunk) = (self.device.size_bytes(), self.geometry.chunk_bytes());
        Geometry::new(size, chunk).unwrap_or(self.geometry)
    }

    /// Generation of the attachment.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What is known of the volume's whereabouts; changes when configurations do.
    #[must_use]
    pub fn whereabouts(&self) -> watch::Receiver<Arc<Whereabouts>> {
        self.whereabouts.clone()
    }

    /// Reads `len` bytes. Waits as long as it takes, unless the policy says otherwise.
    ///
    /// # Errors
    /// Outside the volume, fenced, damaged, closed.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoError> {
        self.call(Io::Read { offset, len }).await.map(Content::into_bytes)
    }

    /// The same, with what is known to be a hole as a hole.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_content(&self, offset: u64, len: u32) -> Result<Content, IoError> {
        self.call(Io::Read { offset, len }).await
    }

    /// Writes; durable on return.
    ///
    /// # Errors
    /// Outside the volume, fenced, closed, read-only.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoError> {
        self.call(Io::Write { offset, data }).await.map(|_| ())
    }

    /// Returns when every write submitted before is durable.
    ///
    /// # Errors
    /// Fenced, closed.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.call(Io::Flush).await.map(|_| ())
    }

    /// Gives the space of a range back; it reads as zero afterwards.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.call(Io::Zero { offset, len }).await.map(|_| ())
    }

    /// Makes a range read as zero; costs no space.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.call(Io::Zero { offset, len }).await.map(|_| ())
    }

    async fn call(&self, io: Io) -> Result<Content, IoError> {
        let (tag, answer) = self.calls.begin();
        let submission =
            Submission { commands: vec![Command { tag, io }], sink: self.calls.clone() };
        if self.device.queue.send(submission).await.is_err() {
            return Err(IoError::Closed);
        }
        answer.await.unwrap_or(Err(IoError::Closed))
    }

    /// How it is: requests in progress, nodes, what is stuck.
    pub async fn status(&self) -> VolumeStatus {
        let (answer, status) = oneshot::channel();
        if self.asks.send(Ask::Status(answer)).await.is_err() {
            return VolumeStatus::default();
        }
        status.await.unwrap_or_default()
    }

    /// Takes nothing new, finishes what is in progress and ends; the attachment stays. Returns
    /// false if that took longer than `within`: then what was in progress has failed.
    pub async fn close(self, within: Duration) -> bool {
        let (answer, closed) = oneshot::channel();
        if self.asks.send(Ask::Close(answer)).await.is_err() {
            return true;
        }
        matches!(tokio::time::timeout(within, closed).await, Ok(Ok(())))
    }

    /// Ends at once: nothing is sent any more, and what waits fails. A node may still carry out what was
    /// sent before, so nothing may be told to be over until the attachment is fenced.
    pub async fn give_up(self) {
        let (answer, ended) = oneshot::channel();
        if self.asks.send(Ask::GiveUp(answer)).await.is_ok() && ended.await.is_err() {
            tracing::debug!("the volume has ended by itself");
        }
    }

    /// Closes, and gives the attachment back to the control plane.
    ///
    /// # Errors
    /// What the control plane refused, or that it was not reached; the volume is closed then too.
    pub async fn detach(self, within: Duration) -> Result<(), ControlError> {
        let (mut control, id, generation) = (self.control.clone(), self.id, self.generation);
        self.close(within).await;
        control.detach(&id.to_string(), generation, &client_token(), within).await
    }
}

/// A token that makes repeats of one call one call.
#[must_use]
pub fn client_token() -> String {
    format!("client-{}", uuid::Uuid::now_v7().simple())
}

/// Callers that wait, each for one answer.
#[derive(Debug, Default)]
struct Calls {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Result<Content, IoError>>>>,
}

impl Calls {
    fn begin(&self) -> (u64, oneshot::Receiver<Result<Content, IoError>>) {
        let tag = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, wait) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(tag, answer);
        (tag, wait)
    }
}

impl Sink for Calls {
    fn complete(&self, completions: &mut Vec<Completion>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for completion in completions.drain(..) {
            let Some(answer) = waiting.remove(&completion.tag) else { continue };
            if answer.send(completion.result).is_err() {
                tracing::debug!("the caller is gone");
            }
        }
    }
}
