//! The one thread that owns the member: waits for input, hands over all that waits, carries out.
//!
//! A thread and not a task, because the member writes to disk and waits for it. Everything that
//! goes in or out passes bounded queues; what does not fit is refused (calls), dropped (Raft's
//! messages, which may be lost) or ends the stream (nodes, which then start afresh).

use crate::errors::api_error;
use crate::member::{
    CallId, Input, Member, MemberError, Members, Now, Output, Reply, Request, SessionKey,
    TICK_MILLIS,
};
use crate::peers::PEER_QUEUE;
use crate::probe::Probe;
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::Time;
use ashlar_types::message::cluster::{Order, Registration};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

/// Inputs that may wait for the member. A second of its work, roughly; more would only age.
const INPUTS_MAX: usize = 4_096;
/// Inputs that are handed over together.
const BATCH_MAX: usize = 512;
/// Messages that may wait for one node: all configurations of 65,536 chunks take 256.
pub(crate) const NODE_QUEUE: usize = 1_024;

/// Where a node's messages go.
pub(crate) type NodeSender = mpsc::Sender<Result<v1::NodeDown, Status>>;

/// What the thread is told.
enum Event {
    Input(Input),
    Call(Request, Time, oneshot::Sender<Result<Reply, ApiError>>),
    NodeOpened(SessionKey, Registration, NodeSender),
    Stop,
}

/// Who leads, as this member knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) leader: Option<u64>,
    pub(crate) serving: bool,
}

/// A peer to be dialled, until its queue ends.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) peer: u64,
    pub(crate) address: String,
    pub(crate) messages: mpsc::Receiver<Bytes>,
}

/// Where the member's outputs go.
pub(crate) struct Ways {
    pub(crate) me: u64,
    /// Whoever dials.
    pub(crate) dials: mpsc::Sender<Dial>,
    pub(crate) probes: mpsc::Sender<Probe>,
}

/// The way to the member, for everybody else.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    events: SyncSender<Event>,
    leadership: watch::Receiver<Leadership>,
    members: watch::Receiver<Arc<Members>>,
    numbers: Arc<AtomicU64>,
}

impl Handle {
    /// Passes an input on; false if the queue is full or the member is gone.
    pub(crate) fn input(&self, input: Input) -> bool {
        self.events.try_send(Event::Input(input)).is_ok()
    }

    /// Opens a node's stream.
    pub(crate) fn node_opened(
        &self,
        registration: Registration,
        sender: NodeSender,
    ) -> Result<SessionKey, ApiError> {
        let session = SessionKey(self.numbers.fetch_add(1, Ordering::Relaxed));
        self.send(Event::NodeOpened(session, registration, sender))?;
        Ok(session)
    }

    /// Asks the member; the answer comes before `within` has passed, or is a deadline error.
    pub(crate) async fn call(&self, request: Request, within: Duration) -> Result<Reply, ApiError> {
        let (sender, answer) = oneshot::channel();
        let deadline = now().time + within;
        self.send(Event::Call(request, deadline, sender))?;
        answer.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    fn send(&self, event: Event) -> Result<(), ApiError> {
        self.events.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) => api_error::throttled("too many calls wait for this member"),
            TrySendError::Disconnected(_) => shutting_down(),
        })
    }

    /// Who leads, and word of changes.
    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Where members are found, as this one knows it.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// Tells the thread to end; it takes in what waits before.
    pub(crate) fn stop(&self) {
        // A full queue drains within milliseconds; this runs once, off the thread.
        if self.events.send(Event::Stop).is_err() {
            tracing::debug!("the member has ended already");
        }
    }
}

fn shutting_down() -> ApiError {
    ApiError::new(Reason::ShuttingDown, "this member is shutting down; ask another one")
}

fn now() -> Now {
    let clock = SystemClock;
    Now { time: Time::from_nanos(clock.now_nanos()), wall_millis: clock.wall_millis() }
}

/// Starts the thread. The receiver gets the member's end: an error if it could not go on.
pub(crate) fn start(
    member: Member,
    ways: Ways,
) -> std::io::Result<(Handle, oneshot::Receiver<Result<(), MemberError>>)> {
    let (events, inbox) = sync_channel(INPUTS_MAX);
    let (told, leadership) = watch::channel(Leadership::default());
    let (told_members, members) = watch::channel(Arc::new(Members::default()));
    let (ended, end) = oneshot::channel();
    let machine = Machine {
        member,
        ways,
        peers: BTreeMap::new(),
        told,
        told_members,
        calls: BTreeMap::new(),
        nodes: BTreeMap::new(),
        next_call: 0,
    };
    ashlar_env::task::spawn_thread("zone-member", move || {
        let result = machine.run(&inbox);
        if let Err(error) = &result {
            tracing::error!(%error, "this member cannot go on");
        }
        // The receiver is gone only if the server has ended before.
        ended.send(result).ok();
    })?;
    let numbers = Arc::new(AtomicU64::new(1));
    Ok((Handle { events, leadership, members, numbers }, end))
}

struct Machine {
    member: Member,
    ways: Ways,
    /// The way to each peer, with the address that it goes to.
    peers: BTreeMap<u64, (String, mpsc::Sender<Bytes>)>,
    told: watch::Sender<Leadership>,
    told_members: watch::Sender<Arc<Members>>,
    calls: BTreeMap<CallId, oneshot::Sender<Result<Reply, ApiError>>>,
    nodes: BTreeMap<SessionKey, NodeSender>,
    next_call: u64,
}

impl Machine {
    fn run(mut self, inbox: &Receiver<Event>) -> Result<(), MemberError> {
        let tick = Duration::from_millis(TICK_MILLIS);
        let mut next_tick = now().time + tick;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        loop {
            let wait = next_tick.since(now().time);
            let mut go_on = match inbox.recv_timeout(wait) {
                Ok(event) => self.take(event, &mut inputs),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            for event in inbox.try_iter().take(BATCH_MAX) {
                go_on &= self.take(event, &mut inputs);
            }
            let now = now();
            if now.time >= next_tick {
                inputs.push(Input::Tick);
                // After a stall one tick, not many: time that nobody could use is no silence.
                next_tick = now.time + tick;
            }
            self.member.handle_all(now, inputs.drain(..), &mut outputs)?;
            // What an output leads to at once is the next round's input.
            for output in outputs.drain(..) {
                inputs.extend(self.carry_out(output));
            }
            if !go_on {
                return self.member.close();
            }
        }
    }

    /// Turns an event into an input; false when it is time to end.
    fn take(&mut self, event: Event, inputs: &mut Vec<Input>) -> bool {
        match event {
            Event::Input(input) => {
                if let Input::NodeClosed { session } = &input {
                    self.nodes.remove(session);
                }
                inputs.push(input);
            }
            Event::Call(request, deadline, answer) => {
                let call = CallId(self.next_call);
                self.next_call += 1;
                self.calls.insert(call, answer);
                inputs.push(Input::Call { call, request, deadline });
            }
            Event::NodeOpened(session, registration, sender) => {
                self.nodes.insert(session, sender);
                inputs.push(Input::NodeOpened { session, registration });
            }
            Event::Stop => return false,
        }
        true
    }

    /// Ways to the members that there are now; a way to another one ends.
    fn find_members(&mut self, members: Members) {
        // First, so that whoever dials knows its own address.
        self.told_members.send_replace(Arc::new(members.clone()));
        self.peers.retain(|peer, (address, _)| members.addresses.get(peer) == Some(address));
        for (peer, address) in &members.addresses {
            if *peer == self.ways.me || self.peers.contains_key(peer) {
                continue;
            }
            let (way, messages) = mpsc::channel(PEER_QUEUE);
            let dial = Dial { peer: *peer, address: address.clone(), messages };
            // As many wait as there can be members, twice.
            if self.ways.dials.try_send(dial).is_ok() {
                self.peers.insert(*peer, (address.clone(), way));
            }
        }
    }

    fn carry_out(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Raft { to, bytes } => {
                // Lost if the way is full: Raft sends again.
                if let Some((_, way)) = self.peers.get(&to) {
                    way.try_send(bytes).ok();
                }
            }
            Output::Answer { call, result } => {
                if let Some(answer) = self.calls.remove(&call) {
                    // The caller may have gone.
                    answer.send(*result).ok();
                }
            }
            Output::Node { session, term, message } => {
                let order = Order { term, message };
                let sent = self
                    .nodes
                    .get(&session)
                    .is_some_and(|node| node.try_send(Ok((&order).into())).is_ok());
                if !sent && self.nodes.remove(&session).is_some() {
                    tracing::warn!("a node does not take its messages; its stream is ended");
                    return Some(Input::NodeClosed { session });
                }
            }
            Output::CloseNode { session, error } => {
                if let Some(node) = self.nodes.remove(&session) {
                    // If even this does not fit, the end of the stream says enough.
                    node.try_send(Err(error.to_status())).ok();
                }
            }
            Output::Probe { node, network, address } => {
                // Tried again soon if the queue is full.
                self.ways.probes.try_send(Probe { node, network, address }).ok();
            }
            Output::Members(members) => self.find_members(members),
            Output::Leader { leader, serving } => {
                self.told.send_replace(Leadership { leader, serving });
            }
        }
        None
    }
}
