//! The one task that owns the machine of a node: gather, decide, carry out.
//!
//! Each round takes everything that is ready (frames of all connections, news of the store and of
//! the control plane), hands it to the core with one reading of the clock, and carries the effects
//! out in batches: all records to the journal at once, all reads at once, one vectored write per
//! touched connection. Nothing here decides; nothing here waits but for the next thing to do.
//!
//! Path of a write: client 3 of 9 (primary) and 5 of 9 (secondary), around the core.
//!
//! When the store fails, the task ends with its error and with it the process: nothing is known
//! about the disk after a failed write, so the replica turns stale by being unreachable.

use crate::log_line::log_line;
use crate::mailbox::{Mail, Mailbox};
use crate::net::NetEvent;
use crate::net::table::Table;
use crate::store::{NoSpace, Numbered, ReadDone, ReadRequest, Space, StoreFailure};
use ashlar_env::clock::Clock;
use ashlar_node_core::{Alarm, Effect, Input, Line, NodeCore, Outbox, ReadTicket, Record};
use ashlar_proto::v1;
use ashlar_types::message::cluster::{ControlDown, ControlUp, Order};
use ashlar_types::{BlockData, ChunkId, Time};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// Between two ticks of the core. Its shortest duration is the beat of 150 ms.
const TICK: Duration = Duration::from_millis(50);
/// Passes over the core before the task looks at its sources again: answers from memory come back
/// within a round, and a long chain of them must not keep frames and beats waiting.
const PASSES_MAX: usize = 8;
/// News of the control plane that may wait for the machine's task.
pub(crate) const CONTROL_EVENTS_MAX: usize = 16;
/// Bytes of a slot of the store.
const SLOT_BYTES: u64 = 1 << 20;

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
    /// A message.
    Down(Order),
    /// The zone's nodes as they were when this node last heard of them.
    KnownPeers(Vec<ashlar_types::message::cluster::PeerAddress>),
}

/// Where the task gets its work from.
#[derive(Debug)]
pub(crate) struct Inlets {
    pub(crate) net: mpsc::Receiver<NetEvent>,
    pub(crate) control: mpsc::Receiver<ControlEvent>,
    pub(crate) store: Arc<Mailbox>,
}

/// The machine and everything that its effects reach.
#[derive(Debug)]
pub(crate) struct Machine<S> {
    core: NodeCore,
    out: Outbox,
    clock: Arc<dyn Clock>,
    table: Table,
    store: S,
    control: Option<mpsc::Sender<v1::NodeUp>>,
    inputs: Vec<Input>,
    last_tick: Time,
    /// Room as the core was told last.
    space: Option<Space>,
    /// Cycles of the scrub after which the store was told to verify its own part.
    scrubbed: u64,
    records: Vec<Numbered>,
    reads: Vec<ReadRequest>,
    /// Records that the store has no room for, in order, and reads that must come after them.
    full: Full,
}

#[derive(Debug, Default)]
struct Full {
    records: VecDeque<Numbered>,
    chunks: BTreeSet<ChunkId>,
    reads: Vec<ReadRequest>,
}

impl Full {
    /// A replica is erased by what comes next: the content that waits for it needs no room. It is
    /// named by no configuration any more, so nobody rests on what it acknowledges meanwhile.
    fn forget_content(&mut self, chunk: ChunkId) {
        for (_, record) in self.records.iter_mut().filter(|(_, record)| record.chunk() == chunk) {
            if let Record::Write { data, .. } | Record::Fill { data, .. } = record {
                *data = BlockData::holes(data.range);
            }
        }
    }
}

impl<S: Storage> Machine<S> {
    /// A machine around a core; `out` holds what the core wanted done when it was made.
    pub(crate) fn new(
        core: NodeCore,
        out: Outbox,
        clock: Arc<dyn Clock>,
        table: Table,
        store: S,
    ) -> Self {
        // Never: so the first round tells the core what room there is.
        let last_tick = Time::ZERO;
        Self {
            core,
            out,
            clock,
            table,
            store,
            control: None,
            inputs: Vec::new(),
            last_tick,
            space: None,
            scrubbed: 0,
            records: Vec::new(),
            reads: Vec::new(),
            full: Full::default(),
        }
    }

    /// Runs until `shutdown`; gives the store back, to be closed.
    ///
    /// # Errors
    /// The store has failed: the process must end.
    pub(crate) async fn run(
        mut self,
        mut inlets: Inlets,
        shutdown: impl Future<Output = ()>,
    ) -> Result<S, StoreFailure> {
        let mut shutdown = pin!(shutdown);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events = Vec::new();
        loop {
            if self.inputs.is_empty() {
                tokio::select! {
                    biased;
                    () = &mut shutdown => return Ok(self.store),
                    _ = inlets.net.recv_many(&mut events, crate::net::EVENTS_MAX) => {}
                    () = inlets.store.came() => {}
                    Some(event) = inlets.control.recv() => self.on_control(event),
                    _ = ticks.tick() => {}
                }
            } else {
                // The last round has left work; the readers get their turn first.
                tokio::task::yield_now().await;
            }
            while events.len() < crate::net::EVENTS_MAX
                && let Ok(event) = inlets.net.try_recv()
            {
                events.push(event);
            }
            while let Ok(event) = inlets.control.try_recv() {
                self.on_control(event);
            }
            self.on_mail(inlets.store.take())?;
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
            self.look_at_space();
            let cycles = self.core.scrub_cycles();
            if self.scrubbed < cycles {
                self.scrubbed = cycles;
                tracing::debug!(cycles, "every block was scrubbed; the store verifies its map");
                self.store.verify();
            }
            self.inputs.push(Input::Tick);
            self.retry_full();
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
        for effect in self.out.drain() {
            match effect {
                Effect::Send { to, message } => self.table.send(to, &message, &mut self.inputs),
                Effect::Persist { seq, record } => self.records.push((seq, record)),
                Effect::Read { ticket, chunk, range } => {
                    self.reads.push(ReadRequest { ticket: ticket.0, chunk, range });
                }
                Effect::Control(up) => tell_control(&mut self.control, &up),
                Effect::Alarm(alarm) => sound(&alarm),
            }
        }
        // The journal's thread starts its write while the mirrors are on their way.
        self.append();
        self.table.flush(&mut self.inputs);
        self.read();
    }

    fn append(&mut self) {
        if self.records.is_empty() {
            return;
        }
        if self.full.records.is_empty() {
            match self.store.append(&mut self.records) {
                Ok(()) => return,
                Err(full) => log_line!(Line::Full, %full),
            }
        }
        // The order of records is fixed, so all of them wait behind the one that finds no room.
        self.full.chunks.extend(self.records.iter().map(|(_, record)| record.chunk()));
        for (seq, record) in self.records.drain(..) {
            if let Record::Erase { chunk } = &record {
                self.full.forget_content(*chunk);
            }
            self.full.records.push_back((seq, record));
        }
        self.retry_full();
    }

    /// Offers waiting records again, one by one, up to the first that still finds no room.
    fn retry_full(&mut self) {
        if self.full.records.is_empty() {
            return;
        }
        let mut one = Vec::with_capacity(1);
        while let Some(record) = self.full.records.pop_front() {
            one.push(record);
            let frees = |(_, record): &Numbered| matches!(record, Record::Erase { .. });
            let taken = if one.iter().chain(&self.full.records).any(frees) {
                self.store.append_before_erasure(&mut one)
            } else {
                self.store.append(&mut one)
            };
            if taken.is_err() {
                self.full.records.extend(one.drain(..));
                self.full.records.rotate_right(1);
                return;
            }
        }
        tracing::info!("the store has room again");
        self.full.chunks.clear();
        self.reads.append(&mut self.full.reads);
        self.read();
    }

    fn read(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let mut reads = core::mem::take(&mut self.reads);
        if !self.full.chunks.is_empty() {
            // A read must see every record before it, and these are not in the store yet.
            let chunks = &self.full.chunks;
            let waits = |read: &mut ReadRequest| chunks.contains(&read.chunk);
            self.full.reads.extend(reads.extract_if(.., waits));
        }
        let done = self.store.read(reads);
        self.on_reads(done);
    }

    fn on_reads(&mut self, done: Vec<ReadDone>) {
        self.inputs.extend(done.into_iter().map(|ReadDone { ticket, result }| {
            let content = result.inspect_err(|error| log_line!(Line::ReadFailed, %error)).ok();
            Input::BlocksRead { ticket: ReadTicket(ticket), content }
        }));
    }

    fn on_mail(&mut self, mail: Mail) -> Result<(), StoreFailure> {
        if let Some(failure) = mail.failed {
            return Err(failure);
        }
        if let Some(seq) = mail.durable {
            self.inputs.push(Input::Durable { seq });
        }
        self.on_reads(mail.reads);
        if mail.space {
            self.retry_full();
        }
        Ok(())
    }

    /// Tells the core what room there is, if that has changed: its heartbeats carry it.
    fn look_at_space(&mut self) {
        let space = self.store.space();
        if self.space != Some(space) {
            self.space = Some(space);
            self.inputs.push(Input::Space {
                capacity_bytes: u64::from(space.total_slots) * SLOT_BYTES,
                used_bytes: u64::from(space.used_slots) * SLOT_BYTES,
            });
        }
    }

    pub(crate) fn on_control(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Open(sender) => {
                self.control = Some(sender);
                self.inputs.push(Input::ControlUp);
            }
            ControlEvent::Down(order) => {
                if let ControlDown::Peers(peers) = &order.message {
                    self.table.update_peers(peers, &mut self.inputs);
                }
                self.inputs.push(Input::Control(order));
            }
            ControlEvent::KnownPeers(peers) => {
                self.table.update_peers(&peers, &mut self.inputs);
            }
        }
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
        Alarm::Unreadable { chunk, range }
        | Alarm::Repaired { chunk, range }
        | Alarm::Lost { chunk, range } => log_line!(line, %chunk, %range),
    }
}

#[cfg(test)]
mod tests;
