//! The one task that owns the machine of a node: gather, decide, carry out.
//!
//! Each round takes everything that is ready (frames of all connections, news of the store and of
//! the control plane), hands it to the core with one reading of the clock, and carries the effects
//! out in batches: all records to the journal at once, all reads at once, one vectored write per
//! touched connection. Nothing here decides; nothing here waits but for the next thing to do.
//!
//! Path of a write: client 3 of 9 (primary) and 5 of 9 (secondary), around the core.
//!
//! When a store fails, nothing is known about its disk any more: it leaves the table, and its replicas
//! leave the node, which introduces itself anew without it. When the last one fails, the task ends with
//! its error and with it the process: its replicas turn stale by being unreachable.

use crate::admission::Admission;
use crate::beats::ToBeats;
use crate::log_line::log_line;
use crate::mailbox::{Mail, Mailbox};
use crate::net::NetEvent;
use crate::net::table::Table;
use crate::post::{Loss, Post};
use crate::seat::{Seat, take_reads};
use crate::store::{NoSpace, Numbered, ReadDone, ReadRequest, Space, StoreFailure};
use ashlar_env::clock::Clock;
use ashlar_env::task::spawn_thread;
use ashlar_node_core::{Alarm, BeatNews, DataCore, Effect, Input, Outbox};
use ashlar_proto::v1;
use ashlar_types::message::cluster::{ControlDown, ControlUp, Order, PeerAddress};
use ashlar_types::{StoreId, Time};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Between two ticks of the core. Its shortest duration is the beat of 150 ms.
const TICK: Duration = Duration::from_millis(50);
/// Passes over the core before the task looks at its sources again: answers from memory come back
/// within a round, and a long chain of them must not keep frames and beats waiting.
const PASSES_MAX: usize = 8;
/// News of the control plane that may wait for the machine's task.
pub(crate) const CONTROL_EVENTS_MAX: usize = 16;

/// What the machine needs of a store. One implementation; tests bring others that fail.
pub(crate) trait Storage: Send + fmt::Debug {
    /// Hands records over, all or none: `records` is empty afterwards, or the store is full.
    ///
    /// # Errors
    /// No space; `records` is as before.
    fn append(&mut self, records: &mut Vec<Numbered>) -> Result<(), NoSpace>;

    /// The same for records that an erasure waits behind: what is kept back is for them.
    ///
    /// # Errors
    /// As [`Storage::append`].
    fn append_before_erasure(&mut self, records: &mut Vec<Numbered>) -> Result<(), NoSpace>;

    /// Reads; gives what can be answered at once, the rest comes through the mailbox.
    fn read(&mut self, requests: Vec<ReadRequest>) -> Vec<ReadDone>;

    /// Room for data, what is promised to content in memory taken off.
    fn space(&self) -> Space;

    /// Begins to verify what the store keeps for itself.
    fn verify(&mut self);
}

/// What the stream to the control plane brings.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    /// It is open; messages for it go here. A sender that is dropped ends the stream.
    Open(mpsc::Sender<v1::NodeUp>),
    /// It is gone.
    Closed,
    /// A message.
    Down(Order),
    /// The zone's nodes as they were when this node last heard of them.
    KnownPeers(Vec<PeerAddress>),
}

/// Where the task gets its work from.
#[derive(Debug)]
pub(crate) struct Inlets {
    pub(crate) net: mpsc::Receiver<NetEvent>,
    pub(crate) control: mpsc::Receiver<ControlEvent>,
    pub(crate) store: Arc<Mailbox>,
    pub(crate) beats: mpsc::Receiver<BeatNews>,
}

/// The machine and everything that its effects reach.
#[derive(Debug)]
pub(crate) struct Machine<S> {
    core: DataCore,
    out: Outbox,
    clock: Arc<dyn Clock>,
    table: Table,
    /// To the thread that beats.
    beats: Post<ToBeats>,
    /// The stores that work: never none.
    stores: Vec<Seat<S>>,
    /// Tells their ids to those who introduce this node.
    living: watch::Sender<Vec<StoreId>>,
    /// Remembers who was let in.
    admission: Arc<Admission>,
    control: Option<mpsc::Sender<v1::NodeUp>>,
    inputs: Vec<Input>,
    last_tick: Time,
}

impl<S: Storage + 'static> Machine<S> {
    /// A machine around a core; `out` holds what the core wanted done when it was made.
    pub(crate) fn new(
        (core, out): (DataCore, Outbox),
        clock: Arc<dyn Clock>,
        (table, beats): (Table, Post<ToBeats>),
        stores: Vec<Seat<S>>,
        (living, admission): (watch::Sender<Vec<StoreId>>, Arc<Admission>),
    ) -> Self {
        // Never: so the first round tells the core what room there is.
        let last_tick = Time::ZERO;
        Self {
            core,
            out,
            clock,
            table,
            beats,
            stores,
            living,
            admission,
            control: None,
            inputs: Vec::new(),
            last_tick,
        }
    }

    /// Runs until `shutdown`; gives the stores back, to be closed.
    ///
    /// # Errors
    /// The last store has failed: the process must end.
    pub(crate) async fn run(
        mut self,
        mut inlets: Inlets,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Vec<S>, StoreFailure> {
        let mut shutdown = pin!(shutdown);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events = Vec::new();
        loop {
            if self.inputs.is_empty() {
                tokio::select! {
                    biased;
                    () = &mut shutdown => {
                        return Ok(self.stores.into_iter().map(|seat| seat.store).collect());
                    }
                    _ = inlets.net.recv_many(&mut events, crate::net::EVENTS_MAX) => {}
                    Some(news) = inlets.beats.recv() => self.inputs.push(Input::Beats(news)),
                    () = inlets.store.came() => {}
                    Some(event) = inlets.control.recv() => self.on_control(event),
                    _ = ticks.tick() => {}
                }
            } else {
                // The last round has left work; the readers get their turn first.
                tokio::task::yield_now().await;
            }
            // Before the frames: who was heard, and which leases stand, is of now.
            while let Ok(news) = inlets.beats.try_recv() {
                self.inputs.push(Input::Beats(news));
            }
            while events.len() < crate::net::EVENTS_MAX
                && let Ok(event) = inlets.net.try_recv()
            {
                events.push(event);
            }
            while let Ok(event) = inlets.control.try_recv() {
                self.on_control(event);
            }
            for (number, mail) in inlets.store.take() {
                self.on_mail(number, mail)?;
            }
            for event in events.drain(..) {
                self.table.on_event(event, &mut self.inputs);
            }
            self.round();
        }
    }

    /// One round: everything gathered goes through the core, then its effects are carried out.
    fn round(&mut self) {
        let now = Time::from_nanos(self.clock.now_nanos());
        if now.since(self.last_tick) >= TICK {
            self.last_tick = now;
            for seat in &mut self.stores {
                seat.look_at_space(&mut self.inputs);
                seat.look_at_scrub(&self.core);
            }
            self.inputs.push(Input::Tick);
            self.beats.flush();
            self.stores.iter_mut().for_each(|seat| seat.retry_full(&mut self.inputs));
        }
        for _pass in 0..PASSES_MAX {
            if self.inputs.is_empty() && self.out.is_empty() {
                return;
            }
            let mut inputs = core::mem::take(&mut self.inputs);
            for input in inputs.drain(..) {
                self.core.handle(now, input, &mut self.out);
            }
            self.core.handle(now, Input::BatchEnd, &mut self.out);
            // Keeps its room; what the effects bring back comes into it.
            self.inputs = inputs;
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        for order in self.out.drain_orders() {
            let order = ToBeats::Order(order);
            let loss = order.loss();
            self.beats.send(order, loss);
        }
        for effect in self.out.drain() {
            match effect {
                Effect::Send { to, message } => self.table.send(to, &message, &mut self.inputs),
                Effect::Persist { store, seq, record } => {
                    if let Some(seat) = Self::seat(&mut self.stores, store) {
                        seat.records.push((seq, record));
                    }
                }
                Effect::Read { store, ticket, chunk, range } => {
                    if let Some(seat) = Self::seat(&mut self.stores, store) {
                        seat.reads.push(ReadRequest { ticket: ticket.0, chunk, range });
                    }
                }
                Effect::Control(up) => tell_control(&mut self.control, &up),
                Effect::VolumeLeft(volume) => self.admission.forget(volume),
                Effect::Alarm(alarm) => sound(&alarm),
            }
        }
        // The journals' threads start their writes while the mirrors are on their way.
        self.stores.iter_mut().for_each(|seat| seat.append(&mut self.inputs));
        self.table.flush(&mut self.inputs);
        self.stores.iter_mut().for_each(|seat| seat.read(&mut self.inputs));
    }

    /// What a store has reported. One that failed leaves the table, and the machine goes on with the
    /// others; without any the process must end.
    fn on_mail(&mut self, number: usize, mail: Mail) -> Result<(), StoreFailure> {
        let Some(at) = self.stores.iter().position(|seat| seat.number == number) else {
            return Ok(());
        };
        if let Some(failure) = mail.failed {
            if self.stores.len() == 1 {
                return Err(failure);
            }
            let Seat { id, store, .. } = self.stores.remove(at);
            self.inputs.push(Input::StoreFailed { store: id });
            let ids = self.stores.iter().map(|seat| seat.id).collect();
            self.living.send_replace(ids);
            // Its threads may hang in the disk: nobody waits for them.
            if spawn_thread("store-close", move || drop(store)).is_err() {
                tracing::warn!(store = %id, "what is left of a failed store cannot be closed");
            }
            return Ok(());
        }
        let Some(seat) = self.stores.get_mut(at) else { return Ok(()) };
        if let Some(seq) = mail.durable {
            self.inputs.push(Input::Durable { store: seat.id, seq });
        }
        take_reads(mail.reads, &mut self.inputs);
        if mail.space {
            seat.retry_full(&mut self.inputs);
        }
        Ok(())
    }

    /// The store that an effect is for; `None` if it has failed since.
    fn seat(stores: &mut [Seat<S>], id: StoreId) -> Option<&mut Seat<S>> {
        stores.iter_mut().find(|seat| seat.id == id)
    }

    pub(crate) fn on_control(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Open(sender) => {
                self.control = Some(sender);
                self.inputs.push(Input::ControlUp);
            }
            ControlEvent::Closed => {
                self.control = None;
                self.inputs.push(Input::ControlLost);
            }
            ControlEvent::Down(order) => {
                if let ControlDown::Peers(peers) = &order.message {
                    self.update_peers(peers);
                }
                self.inputs.push(Input::Control(order));
            }
            ControlEvent::KnownPeers(peers) => self.update_peers(&peers),
        }
    }

    fn update_peers(&mut self, peers: &[PeerAddress]) {
        self.table.update_peers(peers, &mut self.inputs);
        self.beats.send(ToBeats::Peers(peers.to_vec()), Loss::Never);
    }
}

/// Sends if the stream is open. One that does not keep up is ended: after the next opening the core
/// tells everything again, so nothing is lost by it.
fn tell_control(control: &mut Option<mpsc::Sender<v1::NodeUp>>, up: &ControlUp) {
    let Some(sender) = control else { return };
    match sender.try_send(v1::NodeUp::from(up)) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(_)) => {
            tracing::warn!("the control plane does not keep up; its stream is opened anew");
            *control = None;
        }
        Err(mpsc::error::TrySendError::Closed(_)) => *control = None,
    }
}

fn sound(alarm: &Alarm) {
    let line = alarm.line();
    match alarm {
        Alarm::LacksCommitted { chunk, last, committed } => {
            log_line!(line, %chunk, %last, %committed);
        }
        Alarm::ConfigRefused { chunk } => log_line!(line, %chunk),
        Alarm::ClockRunsAhead { node } => log_line!(line, node = node.0),
        Alarm::StoreLost { store, replicas } => log_line!(line, %store, replicas),
        Alarm::Unreadable { chunk, range }
        | Alarm::Repaired { chunk, range }
        | Alarm::Lost { chunk, range } => log_line!(line, %chunk, %range),
    }
}

#[cfg(test)]
mod tests;
