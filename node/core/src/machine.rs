//! The data core of a node as a value: inputs in, effects out. One match dispatches everything.
//!
//! Does not read clocks, sockets or disks; the shell (`node/src/task.rs`) and the simulator feed
//! it and carry its effects out in order.

use crate::beats::{BeatNews, BeatOrder};
use crate::context::{Context, Desk, Identity, Tickets};
use crate::durable::{DurableState, ReplicaDurable};
use crate::found::Found;
use crate::input::Input;
use crate::lease::Leases;
use crate::outbox::{Alarm, Effect, Link, Outbox};
use crate::peers::Peers;
use crate::record::JournalSeq;
use crate::relay::{Uplink, tell_replicas};
use crate::replica::{Replica, Role};
use crate::search::Searches;
use crate::stores::Stores;
use crate::timing::Timing;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ashlar_types::message::cluster::{
    ControlDown, ControlUp, Heartbeat, Order, Relayed, ReplicaReport,
};
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{
    ChunkConfig, ChunkId, ControlTerm, Epoch, Generation, NodeId, SessionId, StoreId, Time,
    VolumeId,
};

mod clients;
mod holding;
mod reads;

/// The half of a node that holds replicas and serves them; the other half is `beats.rs`.
#[derive(Debug)]
pub struct DataCore {
    me: Identity,
    timing: Timing,
    replicas: BTreeMap<ChunkId, Replica>,
    peers: Peers,
    leases: Leases,
    stores: Stores,
    tickets: Tickets,
    dirty: BTreeSet<ChunkId>,
    fills: usize,
    searches: Searches,
    /// Newest session of each volume's attachment.
    sessions: BTreeMap<VolumeId, (Generation, SessionId)>,
    /// Chunks that had reads or writes since the last end of a batch.
    touched: BTreeSet<ChunkId>,
    last_tick: Time,
    last_heartbeat: Time,
    /// Chunks whose replica here was erased, or went with its store, and up to which epoch incarnations
    /// are refused. A configuration that names it may still be on its way, from a primary that was
    /// replaced long ago: it must not bring the replica back, empty and in sync with that primary.
    erased: BTreeMap<ChunkId, Epoch>,
    /// Latest leadership of the control plane that has spoken. Forgotten by a restart: what outlives
    /// a leader in what it said (configurations, orders to erase) is committed and stays true however
    /// late it comes, and the rest a new process has not been told by anybody yet.
    control_term: ControlTerm,
    uplink: Uplink,
}

impl DataCore {
    /// A node as its stores describe it after a start; primaries open new terms at once.
    #[must_use]
    pub fn new(
        now: Time,
        me: Identity,
        timing: Timing,
        recovered: impl IntoIterator<Item = (StoreId, DurableState)>,
        out: &mut Outbox,
    ) -> Self {
        let mut core = Self {
            me,
            timing,
            replicas: BTreeMap::new(),
            peers: Peers::default(),
            leases: Leases::new(now),
            stores: Stores::default(),
            tickets: Tickets::default(),
            dirty: BTreeSet::new(),
            fills: 0,
            searches: Searches::default(),
            sessions: BTreeMap::new(),
            touched: BTreeSet::new(),
            last_tick: now,
            last_heartbeat: now,
            erased: BTreeMap::new(),
            control_term: ControlTerm::default(),
            uplink: Uplink::default(),
        };
        let mut found = Found::default();
        for (store, state) in recovered {
            core.stores.add(now, store, state.has_gaps());
            found.take(store, state);
        }
        let Found { replicas, erased, left_over } = found;
        core.erased = erased;
        for (chunk, store) in left_over {
            core.stores.get_mut(store).into_iter().for_each(|part| part.erase(chunk, out));
        }
        for (chunk, durable) in replicas {
            core.watch_members(now, &durable.config);
            let (_, mut desk) = core.split(now, out);
            let Some(mut context) = desk.at(durable.replica.store) else { continue };
            let replica = Replica::recovered(durable, &mut context);
            core.replicas.insert(chunk, replica);
        }
        core
    }

    /// Splits the node into its replicas and what a replica may use.
    fn split<'a>(
        &'a mut self,
        now: Time,
        out: &'a mut Outbox,
    ) -> (&'a mut BTreeMap<ChunkId, Replica>, Desk<'a>) {
        let desk = Desk {
            now,
            me: self.me,
            timing: &self.timing,
            peers: &self.peers,
            leases: &mut self.leases,
            stores: &mut self.stores,
            tickets: &mut self.tickets,
            dirty: &mut self.dirty,
            fills: &mut self.fills,
            searches: &mut self.searches,
            out,
        };
        (&mut self.replicas, desk)
    }

    fn with_replica(
        &mut self,
        now: Time,
        chunk: ChunkId,
        out: &mut Outbox,
        act: impl FnOnce(&mut Replica, &mut Context<'_>),
    ) -> bool {
        let (replicas, mut desk) = self.split(now, out);
        let Some(replica) = replicas.get_mut(&chunk) else { return false };
        let Some(mut context) = desk.at(replica.store()) else { return false };
        act(replica, &mut context);
        true
    }

    fn with_primaries(
        &mut self,
        now: Time,
        out: &mut Outbox,
        mut act: impl FnMut(&mut crate::primary::Primary, &mut ReplicaDurable, &mut Context<'_>),
    ) {
        let (replicas, mut desk) = self.split(now, out);
        for replica in replicas.values_mut() {
            let store = replica.store();
            if let Role::Primary(primary) = &mut replica.role
                && let Some(mut context) = desk.at(store)
            {
                act(primary, &mut replica.durable, &mut context);
            }
        }
    }

    /// Handles one input. Spurious inputs are harmless.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        let before = out.len();
        match input {
            Input::Tick => self.on_tick(now, out),
            Input::Frame { from: Link::Client(connection), message } => {
                self.on_client(now, connection, message, out);
            }
            Input::Frame { from: Link::Peer(node, network), message } => {
                self.peers.heard(now, node, network);
                self.on_peer(now, node, message, out);
            }
            Input::BatchEnd => self.on_batch_end(now, out),
            Input::LinkUp { node, network, process } => {
                self.peers.linked(now, node, network, process);
                if network == self.peers.via(node) {
                    self.on_route(now, node, out);
                }
            }
            Input::LinkDown { node, network, refused } => {
                self.peers.unlinked(now, node, network, refused);
            }
            Input::ClientGone { connection } => {
                self.with_primaries(now, out, |primary, _, _| primary.forget_client(connection));
            }
            Input::Durable { store, seq } => self.on_durable(now, store, seq, out),
            Input::StoreFailed { store } => self.on_store_failed(now, store, out),
            Input::BlocksRead { ticket, content } => self.on_blocks(now, ticket, content, out),
            Input::Beats(news) => self.on_beats(now, news, out),
            Input::ControlUp => {
                self.uplink.opened();
                self.report_everything(out);
            }
            Input::ControlLost => self.uplink.lost(),
            Input::Control(order) => self.on_order(now, order, out),
            Input::Space { store, capacity_bytes, used_bytes } => {
                if let Some(part) = self.stores.get_mut(store) {
                    part.space = (capacity_bytes, used_bytes);
                }
            }
        }
        if let Some(store) = self.stores.first() {
            self.uplink.route(before, store, &self.peers, out);
        }
        #[cfg(debug_assertions)]
        self.check();
    }

    /// Panics if an invariant of the node does not hold.
    ///
    /// # Panics
    /// On a broken invariant.
    pub fn check(&self) {
        self.stores.iter().for_each(|part| part.gate.check());
        for (chunk, replica) in &self.replicas {
            assert!(*chunk == replica.durable.config.chunk, "{chunk}: filed under another name");
            assert!(self.stores.has(replica.store()), "{chunk}: lives on a store that has failed");
            replica.check();
        }
    }

    /// [`Self::check`] for one chunk, if it is held here.
    ///
    /// # Panics
    /// On a broken invariant.
    pub fn check_chunk(&self, chunk: ChunkId) {
        if let Some(replica) = self.replicas.get(&chunk) {
            replica.check();
        }
    }

    /// This node's replicas as they are now, for status and judges.
    pub fn reports(&self) -> impl Iterator<Item = ReplicaReport> + '_ {
        self.replicas.values().map(Replica::report)
    }

    /// The configuration that this node has adopted for a chunk.
    #[must_use]
    pub fn config(&self, chunk: ChunkId) -> Option<&ChunkConfig> {
        self.replicas.get(&chunk).map(|replica| &replica.durable.config)
    }

    /// What must outlive the process, of one chunk.
    #[must_use]
    pub fn durable(&self, chunk: ChunkId) -> Option<&ReplicaDurable> {
        self.replicas.get(&chunk).map(|replica| &replica.durable)
    }

    fn on_tick(&mut self, now: Time, out: &mut Outbox) {
        if now.since(self.last_tick) > self.timing.tick_gap {
            self.peers.listen_again(now);
        }
        self.last_tick = now;
        for node in self.peers.choose_routes(now, &self.timing) {
            self.on_route(now, node, out);
        }
        self.order_beats(now, out);
        if self.uplink.choose(now, &self.peers, &self.timing) {
            self.report_everything(out);
        }
        let (replicas, mut desk) = self.split(now, out);
        for replica in replicas.values_mut() {
            if let Some(mut context) = desk.at(replica.store()) {
                replica.on_tick(&mut context);
            }
        }
        for store in self.stores.ids() {
            let Some(part) = self.stores.get_mut(store) else { continue };
            let work = part.gate.numbered().0 + self.tickets.foreground();
            part.scrub.on_tick(now, work, part.space.1, &self.timing);
            self.go_on_scrubbing(now, store, out);
        }
        if now.since(self.last_heartbeat) >= self.timing.heartbeat {
            self.last_heartbeat = now;
            let peers = self.peers.evidence(now, self.timing.beat);
            let heartbeat = Heartbeat { stores: self.stores.states(), peers };
            out.push(Effect::Control(ControlUp::Heartbeat(heartbeat)));
        }
        self.report_changes(out);
    }

    /// Tells the beats that this half moves, and what they are to say.
    fn order_beats(&mut self, now: Time, out: &mut Outbox) {
        let (short_of_space, has_control) = (self.stores.short_of_space(), self.uplink.is_open());
        out.order(BeatOrder::Progress { at: now, short_of_space, has_control });
        let replicas = &self.replicas;
        let adopted =
            |chunk| replicas.get(&chunk).map(|replica: &Replica| replica.durable.config.epoch);
        for (peer, adopted) in self.leases.all_settled(adopted) {
            // Lost on the way: the peer lists them again.
            self.leases.forget_settled(peer, &adopted);
            out.order(BeatOrder::Settled { peer, adopted });
        }
    }

    fn on_beats(&mut self, now: Time, news: BeatNews, out: &mut Outbox) {
        match news {
            BeatNews::Excepted { number, chunk, until } => {
                self.with_replica(now, chunk, out, |replica, context| {
                    replica.on_excepted(number, until, context);
                });
            }
            BeatNews::Heard { node, network, at, short_of_space, has_control } => {
                self.peers.heard(at, node, network);
                self.peers.says_space(node, &short_of_space);
                self.peers.says_control(node, has_control);
            }
            BeatNews::Answered { node, network, at, answer, granted, except } => {
                // The peer's thread has answered: the network works. Of its data core only beats tell.
                self.peers.answered(at, node, network);
                let Some(answer) = answer else { return };
                if self.leases.on_reply(at, node, answer, granted, &except, &self.timing) {
                    out.push(Effect::Alarm(Alarm::ClockRunsAhead { node }));
                }
            }
        }
    }

    fn on_peer(&mut self, now: Time, from: NodeId, message: DataMessage, out: &mut Outbox) {
        match &message {
            DataMessage::Relay { .. } | DataMessage::Relayed { .. } => {
                self.on_relay(now, from, message, out);
                return;
            }
            DataMessage::Adopt { config }
            | DataMessage::Collect { config, .. }
            | DataMessage::OpenLearner { config, .. } => {
                self.create_if_named(now, config, out);
            }
            _about_a_chunk => {}
        }
        let Some(chunk) = message.peer_chunk() else { return };
        let answer = matches!(message, DataMessage::PeerRefused { .. });
        let held = self.with_replica(now, chunk, out, |replica, context| {
            replica.on_peer(from, message, context);
        });
        if !held && !answer {
            let refusal = PeerRefusal::NotHeld;
            let message = DataMessage::PeerRefused { chunk, refusal };
            let to = Link::Peer(from, self.peers.via(from));
            out.push(Effect::Send { to, message });
        }
    }

    /// Hands on what a peer without a stream says, or takes in what one with a stream hands on.
    fn on_relay(&mut self, now: Time, from: NodeId, message: DataMessage, out: &mut Outbox) {
        match message {
            // Without a stream it would end here; the peer looks for another.
            DataMessage::Relay { store, message } if self.uplink.is_open() => {
                let relayed = Relayed { node: from, store, message };
                out.push(Effect::Control(ControlUp::Relayed(relayed)));
            }
            DataMessage::Relayed { order } => self.on_order(now, *order, out),
            _other => {}
        }
    }

    /// The way to a peer is new: what was sent on an earlier one may be lost.
    fn on_route(&mut self, now: Time, node: NodeId, out: &mut Outbox) {
        self.with_primaries(now, out, |primary, durable, context| {
            primary.on_link_up(node, durable, context);
        });
        self.acknowledge_again(now, node, out);
    }

    /// A message of the control plane, unless a later leader has spoken before: the one that says it
    /// was replaced, and does not know. The shell ends its stream and finds the other.
    fn on_order(&mut self, now: Time, order: Order, out: &mut Outbox) {
        if order.term < self.control_term {
            return;
        }
        self.control_term = order.term;
        self.on_control(now, order.message, out);
    }

    fn on_control(&mut self, now: Time, message: ControlDown, out: &mut Outbox) {
        match message {
            ControlDown::Configs(configs) => {
                for config in configs {
                    self.create_if_named(now, &config, out);
                    self.with_replica(now, config.chunk, out, |replica, context| {
                        replica.adopt(&config, context);
                    });
                }
            }
            ControlDown::Erase(orders) => {
                for (chunk, replica) in orders {
                    self.erase(now, chunk, replica, out);
                }
            }
            ControlDown::Peers(peers) => {
                for peer in peers.iter().filter(|peer| peer.node != self.me.node) {
                    self.peers.watch(now, peer.node);
                }
            }
            ControlDown::Search(budget) => self.searches.set(now, budget),
            ControlDown::AskToFollow(chunks) => {
                for (chunk, epoch) in chunks {
                    self.with_replica(now, chunk, out, |replica, context| {
                        if let Role::Primary(primary) = &mut replica.role {
                            primary.asked_to_follow(epoch, &replica.durable, context);
                        }
                    });
                }
            }
            ControlDown::Relay { to, message } => {
                let order = Box::new(Order { term: self.control_term, message: *message });
                let to = Link::Peer(to, self.peers.via(to));
                out.push(Effect::Send { to, message: DataMessage::Relayed { order } });
            }
            // Clients are admitted, and members dialled, by the shell.
            ControlDown::ZoneKey(_)
            | ControlDown::Members(_)
            | ControlDown::ProposalRefused { .. } => {}
        }
        self.report_changes(out);
    }

    fn on_durable(&mut self, now: Time, store: StoreId, seq: JournalSeq, out: &mut Outbox) {
        let Some(part) = self.stores.get_mut(store) else { return };
        let released = part.gate.release(seq);
        for effect in released.effects {
            out.push(effect);
        }
        let (replicas, mut desk) = self.split(now, out);
        let Some(mut context) = desk.at(store) else { return };
        for (chunk, ack) in released.acks {
            let effect = context.ack_effect(chunk, ack);
            context.out.push(effect);
        }
        for chunk in released.own {
            // One that came to another store meanwhile is another replica.
            let here = replicas.get_mut(&chunk).filter(|replica| replica.store() == store);
            if let Some(Replica { role: Role::Primary(primary), durable, .. }) = here {
                primary.on_durable(durable, &mut context);
            }
        }
        for (chunk, adopted) in released.adopted {
            let here = replicas.get_mut(&chunk).filter(|replica| replica.store() == store);
            if let Some(replica) = here {
                replica.adopted_durably = replica.adopted_durably.max(adopted);
                context.dirty.insert(chunk);
            }
        }
        self.report_changes(out);
    }

    fn on_batch_end(&mut self, now: Time, out: &mut Outbox) {
        let touched = core::mem::take(&mut self.touched);
        let (replicas, mut desk) = self.split(now, out);
        for chunk in touched {
            let Some(replica) = replicas.get_mut(&chunk) else { continue };
            let store = replica.store();
            if let Role::Primary(primary) = &mut replica.role
                && let Some(mut context) = desk.at(store)
            {
                primary.end_of_batch(&replica.durable, &mut context);
            }
        }
        self.report_changes(out);
    }

    /// The way to a peer is open again: as a member, acknowledgements may have been lost.
    fn acknowledge_again(&mut self, now: Time, node: NodeId, out: &mut Outbox) {
        let (replicas, mut desk) = self.split(now, out);
        for replica in replicas.values() {
            let config = &replica.durable.config;
            if matches!(replica.role, Role::Member(_))
                && config.primary.node == node
                && let Some(mut context) = desk.at(replica.store())
            {
                context.acknowledge(config.chunk, replica.prefix(node));
            }
        }
    }

    /// Tells the control plane of replicas whose state has changed.
    fn report_changes(&mut self, out: &mut Outbox) {
        if self.dirty.is_empty() {
            return;
        }
        let dirty = core::mem::take(&mut self.dirty);
        let reports: Vec<ReplicaReport> = dirty
            .iter()
            .filter_map(|chunk| self.replicas.get(chunk).map(Replica::report))
            .collect();
        tell_replicas(reports, out);
    }

    fn report_everything(&mut self, out: &mut Outbox) {
        let reports: Vec<ReplicaReport> = self.replicas.values().map(Replica::report).collect();
        self.dirty.clear();
        tell_replicas(reports, out);
        self.last_heartbeat = Time::ZERO;
    }
}
