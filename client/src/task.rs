//! The task of a volume: drives the machine, carries out its effects in batches.
//!
//! One task owns the machine. Each turn it takes everything that waits (submissions, messages,
//! connections, the map), lets the machine handle all of it, and then writes once to every
//! connection that was touched and answers every submitter once.
//! Path of a write: client 4 of 9.

mod news;

use crate::bytewise::{Bytewise, Out};
use crate::connection::{self, Identity, LinkEvent, write_some};
use crate::control::{Attached, ControlError, ControlPlane};
use crate::device::{Completion, IoError, Sink, Submission};
use ashlar_client_core::{Effect, Input, Outbox, VolumeCore, VolumeStatus};
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_env::task::{Task, spawn_named};
use ashlar_proto::frame::{FrameQueue, push_message};
use ashlar_types::{ChunkConfig, NodeId, SessionId, Time};
use news::{News, ask_around};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Batches of messages that may wait for the task.
const EVENTS_MAX: usize = 256;
/// Content held for requests in progress; beyond it, submitters wait.
const BYTES_IN_PROGRESS_MAX: usize = 256 << 20;
/// Batches taken in one turn, so that answers do not wait for an endless input.
const BATCHES_PER_TURN_MAX: usize = 64;
/// Time for one question for the map; the machine decides whether to ask again.
const MAP_WITHIN: Duration = Duration::from_secs(4);
/// How often the attachment's token is renewed: several times in its life of a day.
const RENEW_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// What may be asked of the task besides I/O.
#[derive(Debug)]
pub(crate) enum Ask {
    /// How is it?
    Status(oneshot::Sender<VolumeStatus>),
    /// Take nothing new, finish what is in progress, end. Answered when it has ended.
    Close(oneshot::Sender<()>),
    /// End now: what is in progress fails. Answered when it has ended.
    GiveUp(oneshot::Sender<()>),
}

/// What is known of the volume's whereabouts, for the durable cache.
#[derive(Clone, Debug, Default)]
pub struct Whereabouts {
    /// Newest configurations known.
    pub configs: Vec<ChunkConfig>,
    /// Addresses of nodes on the primary network.
    pub addresses: BTreeMap<NodeId, SocketAddr>,
    /// Newest token of the attachment.
    pub token: Vec<u8>,
    /// `ip:port` of the members of the control plane; empty: not told.
    pub members: Vec<String>,
}

/// One connection, dialled or up.
struct Link {
    session: SessionId,
    stream: Option<Arc<TcpStream>>,
    queue: FrameQueue,
    want_write: Arc<Notify>,
    /// The socket is full; wait for its task to say otherwise.
    blocked: bool,
    /// Ends the connection when dropped.
    _task: Task<()>,
}

/// Everything that the task owns.
pub(crate) struct VolumeTask {
    pub(crate) core: VolumeCore,
    pub(crate) bytewise: Bytewise,
    pub(crate) identity: Identity,
    pub(crate) addresses: BTreeMap<NodeId, SocketAddr>,
    pub(crate) control: ControlPlane,
    pub(crate) queue: mpsc::Receiver<Submission>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Its size, for exports.
    pub(crate) size: watch::Sender<u64>,
    /// Newest whereabouts, for whoever keeps them.
    pub(crate) whereabouts: watch::Sender<Arc<Whereabouts>>,
}

struct Running {
    task: VolumeTask,
    clock: SystemClock,
    links: BTreeMap<NodeId, Link>,
    touched: Vec<NodeId>,
    completions: Vec<(Arc<dyn Sink>, Vec<Completion>)>,
    events: mpsc::Sender<LinkEvent>,
    maps: mpsc::Sender<Result<Attached, ControlError>>,
    /// When the token is to be renewed.
    renew_at: Time,
    effects: Outbox,
    map_version: u64,
    closing: Option<oneshot::Sender<()>>,
    /// What everything that is not answered at the end is told.
    last_error: IoError,
}

impl VolumeTask {
    /// Runs until closed, or until nobody can submit any more.
    pub(crate) async fn run(self) {
        let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
        let (maps, mut maps_in) = mpsc::channel(1);
        let clock = SystemClock;
        let renew_at = Time::from_nanos(clock.now_nanos()) + RENEW_EVERY;
        let (news, mut news_in) = mpsc::channel(1);
        let _around =
            ask_around(self.control.clone(), self.identity.volume, self.size.subscribe(), news);
        let mut running = Running {
            task: self,
            clock,
            links: BTreeMap::new(),
            touched: Vec::new(),
            completions: Vec::new(),
            events,
            maps,
            renew_at,
            effects: Outbox::new(),
            map_version: 0,
            closing: None,
            last_error: IoError::Closed,
        };
        running.publish();
        loop {
            let now = running.now();
            let wake = running.next_wake(now);
            let room = running.has_room();
            tokio::select! {
                biased;
                Some(event) = events_in.recv() => {
                    let now = running.now();
                    running.on_event(now, event);
                    for _ in 1..BATCHES_PER_TURN_MAX {
                        let Ok(event) = events_in.try_recv() else { break };
                        running.on_event(now, event);
                    }
                }
                submission = running.task.queue.recv(), if room => {
                    let Some(submission) = submission else { break };
                    let now = running.now();
                    running.on_submission(now, submission);
                    for _ in 1..BATCHES_PER_TURN_MAX {
                        if !running.has_room() { break }
                        let Ok(submission) = running.task.queue.try_recv() else { break };
                        running.on_submission(now, submission);
                    }
                }
                Some(map) = maps_in.recv() => running.on_map(map),
                Some(news) = news_in.recv() => running.on_news(&news),
                ask = running.task.asks.recv() => {
                    if running.on_ask(ask).is_break() {
                        break;
                    }
                }
                () = tokio::time::sleep(wake.since(now)) => {
                    let now = running.now();
                    running.renew_if_due(now);
                    running.give(now, Input::Tick);
                }
            }
            running.finish_turn();
            if running.closing.is_some() && running.is_quiet() {
                break;
            }
        }
        running.end();
    }
}

impl Running {
    /// Breaks where the task ends at once.
    fn on_ask(&mut self, ask: Option<Ask>) -> ControlFlow<()> {
        match ask {
            Some(Ask::Status(answer)) => self.tell_status(answer),
            Some(Ask::Close(answer)) => self.closing = Some(answer),
            Some(Ask::GiveUp(answer)) => {
                self.closing = Some(answer);
                self.last_error = IoError::GivenUp;
                return ControlFlow::Break(());
            }
            None => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn tell_status(&self, answer: oneshot::Sender<VolumeStatus>) {
        if answer.send(self.task.core.status()).is_err() {
            tracing::debug!("nobody waits for the status");
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_nanos())
    }

    fn next_wake(&self, now: Time) -> Time {
        self.task.core.next_wake(now).map_or(self.renew_at, |wake| wake.min(self.renew_at))
    }

    /// Nodes that have not admitted this attachment yet want a token that has not expired.
    fn renew_if_due(&mut self, now: Time) {
        if now >= self.renew_at {
            self.renew_at = now + RENEW_EVERY;
            self.refresh_map();
        }
    }

    fn has_room(&self) -> bool {
        self.task.core.has_room() && self.task.bytewise.bytes() < BYTES_IN_PROGRESS_MAX
    }

    fn is_quiet(&self) -> bool {
        self.task.bytewise.is_idle() && self.task.queue.is_empty()
    }

    fn on_submission(&mut self, now: Time, submission: Submission) {
        let mut out = Out::default();
        for command in submission.commands {
            self.task.bytewise.submit(command, &submission.sink, &mut out);
        }
        self.carry_out(now, out);
    }

    fn on_event(&mut self, now: Time, event: LinkEvent) {
        match event {
            LinkEvent::Messages { inputs } => {
                for input in inputs {
                    self.give(now, input);
                }
            }
            LinkEvent::Up { node, session, stream } => {
                if let Some(link) = self.links.get_mut(&node).filter(|l| l.session == session) {
                    link.stream = Some(stream);
                    self.give(now, Input::LinkUp { node, session });
                }
            }
            LinkEvent::Down { node, session } => {
                if self.links.get(&node).is_some_and(|link| link.session == session) {
                    self.links.remove(&node);
                    self.give(now, Input::LinkDown { node, session });
                }
            }
            LinkEvent::Writable { node, session } => {
                if let Some(link) = self.links.get_mut(&node).filter(|l| l.session == session) {
                    link.blocked = false;
                    self.touched.push(node);
                }
            }
        }
    }

    fn on_map(&mut self, answer: Result<Attached, ControlError>) {
        let now = self.now();
        match answer {
            Ok(Attached { map, token }) => {
                if !token.is_empty() {
                    self.task.identity.token = token;
                }
                self.task.addresses = map.addresses;
                self.task.control.learn(&map.members);
                // First the room for new chunks, then who has them, and then everybody may know.
                self.give(now, Input::Grow { geometry: map.geometry });
                self.task.bytewise.grow(self.task.core.geometry());
                self.give(now, Input::Map { configs: map.configs });
                self.publish();
                self.publish_size();
            }
            Err(error) => {
                tracing::info!(%error, "no map from the control plane");
                self.give(now, Input::MapFailed);
            }
        }
    }

    /// One input for the machine, and everything that follows from it.
    fn give(&mut self, now: Time, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.task.core.handle(now, input, &mut effects);
        let mut out = Out::default();
        for effect in effects.drain(..) {
            self.on_effect(effect, &mut out);
        }
        self.effects = effects;
        self.carry_out(now, out);
    }

    fn carry_out(&mut self, now: Time, out: Out) {
        for (sink, completion) in out.completions {
            match self.completions.iter_mut().find(|(s, _)| Arc::ptr_eq(s, &sink)) {
                Some((_, list)) => list.push(completion),
                None => self.completions.push((sink, vec![completion])),
            }
        }
        for input in out.inputs {
            self.give(now, input);
        }
    }

    fn on_effect(&mut self, effect: Effect, out: &mut Out) {
        match effect {
            Effect::Send { node, session, message } => {
                if let Some(link) = self.links.get_mut(&node).filter(|l| l.session == session) {
                    push_message(&message, &mut link.queue);
                    if self.touched.last() != Some(&node) {
                        self.touched.push(node);
                    }
                }
            }
            Effect::Connect { node, session } => self.connect(node, session),
            Effect::Disconnect { node, session } => {
                if self.links.get(&node).is_some_and(|link| link.session == session) {
                    self.links.remove(&node);
                }
            }
            Effect::Complete { op, result } => self.task.bytewise.on_complete(op, result, out),
            Effect::Turn { op } => self.task.bytewise.on_turn(op, out),
            Effect::RefreshMap => self.refresh_map(),
        }
    }

    fn connect(&mut self, node: NodeId, session: SessionId) {
        let want_write = Arc::new(Notify::new());
        let address = self.task.addresses.get(&node).copied();
        let run = connection::run(
            node,
            session,
            address,
            self.task.identity.clone(),
            want_write.clone(),
            self.events.clone(),
        );
        let task = spawn_named("client-link", run).abort_on_drop();
        let link = Link {
            session,
            stream: None,
            queue: FrameQueue::default(),
            want_write,
            blocked: false,
            _task: task,
        };
        self.links.insert(node, link);
    }

    fn refresh_map(&self) {
        let mut control = self.task.control.clone();
        let volume = self.task.identity.volume.to_string();
        let token = self.task.identity.token.clone();
        let maps = self.maps.clone();
        spawn_named("client-map", async move {
            let map = control.map(&volume, &token, MAP_WITHIN).await;
            if maps.send(map).await.is_err() {
                tracing::debug!("the volume is closed");
            }
        });
    }

    /// The control plane has other members now, or the volume has grown.
    fn on_news(&mut self, news: &News) {
        match news {
            News::Members(members) if self.task.control.learn(members) => self.publish(),
            News::Members(_) => {}
            News::Larger => self.refresh_map(),
        }
    }

    /// Writes once to every connection that was touched, answers every submitter once.
    fn finish_turn(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for node in touched.drain(..) {
            self.write(node);
        }
        // Losing a connection while writing may have touched others.
        if self.touched.is_empty() {
            self.touched = touched;
        }
        for (sink, mut list) in self.completions.drain(..) {
            sink.complete(&mut list);
        }
        if self.task.core.map_version() != self.map_version {
            self.publish();
        }
    }

    fn write(&mut self, node: NodeId) {
        let Some(link) = self.links.get_mut(&node) else { return };
        let Some(stream) = link.stream.as_ref().filter(|_| !link.blocked) else { return };
        match write_some(stream, &mut link.queue) {
            Ok(true) => {}
            Ok(false) => {
                link.blocked = true;
                link.want_write.notify_one();
            }
            Err(error) => {
                let session = link.session;
                tracing::info!(%node, %error, "connection lost while writing");
                self.links.remove(&node);
                let now = self.now();
                self.give(now, Input::LinkDown { node, session });
            }
        }
    }

    fn publish(&mut self) {
        self.map_version = self.task.core.map_version();
        let whereabouts = Whereabouts {
            configs: self.task.core.configs().cloned().collect(),
            addresses: self.task.addresses.clone(),
            token: self.task.identity.token.clone(),
            members: self.task.control.members(),
        };
        self.task.whereabouts.send_replace(Arc::new(whereabouts));
    }

    fn publish_size(&self) {
        let size_bytes = self.task.core.geometry().size_bytes();
        let is_news = self.task.size.send_if_modified(|known| {
            let differs = *known != size_bytes;
            *known = size_bytes;
            differs
        });
        if is_news {
            tracing::info!(volume = %self.task.identity.volume, size_bytes, "the volume has grown");
        }
    }

    fn end(mut self) {
        self.task.queue.close();
        let mut out = Out::default();
        self.task.bytewise.fail_all(self.last_error, &mut out);
        while let Ok(submission) = self.task.queue.try_recv() {
            for command in submission.commands {
                let result = Err(self.last_error);
                let completion = Completion { tag: command.tag, result };
                out.completions.push((submission.sink.clone(), completion));
            }
        }
        for (sink, completion) in out.completions {
            sink.complete(&mut vec![completion]);
        }
        if let Some(closing) = self.closing
            && closing.send(()).is_err()
        {
            tracing::debug!("nobody waits for the end");
        }
    }
}
