//! The thread that beats: connections of its own, a runtime of its own, nothing to do but beats.
//!
//! However long the machine's task is busy, beats leave and are answered in time, and no beat waits
//! behind data (design.md section 5). What it decides is in `ashlar_node_core::beats`.

use crate::net::dial::{Diallers, Sources};
use crate::net::table::Table;
use crate::net::{EVENTS_MAX, Guest, Net, NetEvent, connection};
use crate::post::{Loss, Post, post};
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_env::task::{spawn_named, spawn_thread};
use ashlar_node_core::{
    BeatCore, BeatEffect, BeatInput, BeatNews, BeatOrder, Identity, Input, Link, Timing,
};
use ashlar_types::Time;
use ashlar_types::message::cluster::PeerAddress;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// Between two ticks. A beat is due every 150 ms.
const TICK: Duration = Duration::from_millis(50);
/// Connections that may wait to be taken over.
const GUESTS_MAX: usize = 64;

/// What the machine's task tells this thread.
#[derive(Debug)]
pub(crate) enum ToBeats {
    /// What the data core wants.
    Order(BeatOrder),
    /// The zone's nodes.
    Peers(Vec<PeerAddress>),
}

impl ToBeats {
    /// Progress and what is settled are said again; an order to stop granting is given once.
    pub(crate) const fn loss(&self) -> Loss {
        match self {
            Self::Order(BeatOrder::Progress { .. } | BeatOrder::Settled { .. }) => Loss::Allowed,
            Self::Order(BeatOrder::Except { .. }) | Self::Peers(_) => Loss::Never,
        }
    }
}

/// The machine's end.
#[derive(Debug)]
pub(crate) struct BeatsEnd {
    pub(crate) orders: Post<ToBeats>,
    pub(crate) news: mpsc::Receiver<BeatNews>,
}

/// The running thread. It ends when the machine's end is dropped.
#[derive(Debug)]
pub(crate) struct BeatsThread(JoinHandle<()>);

impl BeatsThread {
    /// Waits for its end.
    pub(crate) fn join(self) {
        // A panic there has ended the process.
        self.0.join().ok();
    }
}

/// Where accepted connections for beats go.
pub(crate) fn guests() -> (mpsc::Sender<Guest>, mpsc::Receiver<Guest>) {
    mpsc::channel(GUESTS_MAX)
}

/// Starts the thread.
///
/// # Errors
/// The host gives no thread, or no runtime.
pub(crate) fn start(
    (me, timing): (Identity, Timing),
    net: &Net,
    sources: Sources,
    guests: mpsc::Receiver<Guest>,
) -> io::Result<(BeatsEnd, BeatsThread)> {
    let (events, received) = mpsc::channel(EVENTS_MAX);
    let net = net.for_beats(events.clone());
    let table = Table::new(Diallers::new(net.clone(), sources), events);
    let (orders, ordered) = post();
    let (tells, news) = post();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let core = BeatCore::new(now(), me, timing);
    let beats = Beats { core, table, net, tells, inputs: Vec::new(), effects: Vec::new() };
    let thread = spawn_thread("beats", move || {
        runtime.block_on(beats.run(ordered, received, guests));
    })?;
    Ok((BeatsEnd { orders, news }, BeatsThread(thread)))
}

fn now() -> Time {
    Time::from_nanos(SystemClock.now_nanos())
}

/// The thread's state.
struct Beats {
    core: BeatCore,
    table: Table,
    net: Net,
    tells: Post<BeatNews>,
    inputs: Vec<BeatInput>,
    effects: Vec<BeatEffect>,
}

impl Beats {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<ToBeats>,
        mut net: mpsc::Receiver<NetEvent>,
        mut guests: mpsc::Receiver<Guest>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events = Vec::new();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.on_order(order),
                    None => return,
                },
                _ = net.recv_many(&mut events, EVENTS_MAX) => {}
                Some(guest) = guests.recv() => self.host(guest),
                _ = ticks.tick() => self.inputs.push(BeatInput::Tick),
            }
            // All orders before the frames that came with them: a grant that is asked for now must
            // know what is excepted.
            while let Ok(order) = orders.try_recv() {
                self.on_order(order);
            }
            for event in events.drain(..) {
                self.on_event(event);
            }
            self.round();
        }
    }

    fn on_order(&mut self, order: ToBeats) {
        match order {
            ToBeats::Order(order) => self.inputs.push(BeatInput::Order(order)),
            ToBeats::Peers(peers) => {
                let mut inputs = Vec::new();
                self.table.update_peers(&peers, &mut inputs);
                self.inputs.extend(inputs.into_iter().filter_map(input_of));
            }
        }
    }

    fn on_event(&mut self, event: NetEvent) {
        let mut inputs = Vec::new();
        self.table.on_event(event, &mut inputs);
        self.inputs.extend(inputs.into_iter().filter_map(input_of));
    }

    /// Takes a connection over whose hello the listener has heard.
    fn host(&mut self, guest: Guest) {
        let Guest { stream, input, node, network, process, permit } = guest;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => Arc::new(stream),
            Err(error) => {
                tracing::warn!(node = node.0, %error, "a connection for beats cannot be taken over");
                return;
            }
        };
        let (connection, events) = (self.net.number(), self.net.events.clone());
        drop(spawn_named("beats-in", async move {
            let stream_too = Arc::clone(&stream);
            let opened =
                NetEvent::PeerOpen { connection, stream: stream_too, node, network, process };
            if events.send(opened).await.is_err() {
                return;
            }
            let end = connection::read_frames(connection, &stream, input, None, &events).await;
            if end.is_misbehaviour() {
                tracing::warn!(node = node.0, error = %end, "connection for beats closed");
            }
            events.send(NetEvent::Closed { connection }).await.ok();
            drop(permit);
        }));
    }

    fn round(&mut self) {
        self.tells.flush();
        while !self.inputs.is_empty() {
            let now = now();
            for input in self.inputs.drain(..) {
                self.core.handle(now, input, &mut self.effects);
            }
            let mut inputs = Vec::new();
            for effect in self.effects.drain(..) {
                match effect {
                    BeatEffect::Send(node, network, message) => {
                        self.table.send(Link::Peer(node, network), &message, &mut inputs);
                    }
                    BeatEffect::Tell(news) => {
                        let loss = loss_of(&news);
                        self.tells.send(news, loss);
                    }
                }
            }
            self.table.flush(&mut inputs);
            self.inputs.extend(inputs.into_iter().filter_map(input_of));
        }
    }
}

/// An answer lists all exceptions, and the next beat says what this one said; that an exception is in
/// force is said once.
const fn loss_of(news: &BeatNews) -> Loss {
    match news {
        BeatNews::Heard { .. } | BeatNews::Answered { .. } => Loss::Allowed,
        BeatNews::Excepted { .. } => Loss::Never,
    }
}

/// What the connections bring, as far as it is about beats.
fn input_of(input: Input) -> Option<BeatInput> {
    match input {
        Input::Frame { from: Link::Peer(node, network), message } => {
            Some(BeatInput::Frame(node, network, message))
        }
        Input::LinkUp { node, network, .. } => Some(BeatInput::LinkUp(node, network)),
        Input::LinkDown { node, network, .. } => Some(BeatInput::LinkDown(node, network)),
        _of_no_connection => None,
    }
}
