//! The data core of a node as a value: inputs in, effects out. One match dispatches everything.
//!
//! Does not read clocks, sockets or disks; the shell (`node/src/task.rs`) and the simulator feed
//! it and carry its effects out in order.

use crate::beats::{BeatNews, BeatOrder};
use crate::context::{Context, Desk, Identity, ReadFor, Tickets};
use crate::durable::{DurableState, ReplicaDurable};
use crate::found::Found;
use crate::input::Input;
use crate::lease::Leases;
use crate::outbox::{Alarm, ConnectionId, Effect, Link, Outbox, ReadTicket};
use crate::peers::Peers;
use crate::record::JournalSeq;
use crate::relay::{Uplink, tell_replicas};
use crate::replica::{Replica, Role};
use crate::scrub::digest;
use crate::search::Searches;
use crate::stores::Stores;
use crate::timing::Timing;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ashlar_types::message::cluster::{
    ControlDown, ControlUp, Heartbeat, Order, Relayed, ReplicaReport, ReplicaState,
};
use ashlar_types::message::data::{DataMessage, NotReady, PeerRefusal, Refusal, Stamp};
use ashlar_types::{
    BlockData, BlockRange, ChunkConfig, ChunkId, ControlTerm, Epoch, Generation, NodeId, ReplicaId,
    SessionId, StoreId, Time, VolumeId,
};
use core::ops::Bound;

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
    /// Chunks whose replica here was erased, or went with its store, and the epoch that it had
    /// adopted. An older configuration may still be on its way, from a primary that was replaced long
    /// ago: it must not bring the replica back, empty and in sync with that primary.
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

    /// Has a store read what its scrub looks at next, if it may.
    fn go_on_scrubbing(&mut self, now: Time, store: StoreId, out: &mut Outbox) {
        let replicas = &self.replicas;
        let whole = |(chunk, replica): (&ChunkId, &Replica)| {
            let scrubbed = replica.store() == store && replica.is_scrubbed();
            scrubbed.then_some((*chunk, replica.durable.config.blocks))
        };
        let next = |after: Option<ChunkId>| {
            let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
            replicas.range((behind, Bound::Unbounded)).find_map(whole)
        };
        let blocks_of =
            |chunk: ChunkId| replicas.get_key_value(&chunk).and_then(whole).map(|w| w.1);
        let Some(part) = self.stores.get_mut(store) else { return };
        let Some((chunk, range)) = part.scrub.take(next, blocks_of) else { return };
        self.with_replica(now, chunk, out, |replica, context| {
            context.read(chunk, range, ReadFor::Scrub(replica.durable.last));
        });
    }

    /// How often the scrub has read all replicas of a store since the process started.
    #[must_use]
    pub fn scrub_cycles(&self, store: StoreId) -> u64 {
        self.stores.get(store).map_or(0, |part| part.scrub.cycles())
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

    /// A request of a client: the session is admitted, the chunk's primary takes it from there.
    fn on_client(
        &mut self,
        now: Time,
        connection: ConnectionId,
        message: DataMessage,
        out: &mut Outbox,
    ) {
        let reply = |message| Effect::Send { to: Link::Client(connection), message };
        let (id, stamp) = match &message {
            DataMessage::Read { id, stamp, .. } | DataMessage::Write { id, stamp, .. } => {
                (*id, *stamp)
            }
            DataMessage::FindConfig { id, chunk } => {
                let answer = match self.config(*chunk) {
                    Some(config) => {
                        DataMessage::ConfigIs { id: *id, config: Box::new(config.clone()) }
                    }
                    None => DataMessage::Refused { id: *id, refusal: Refusal::UnknownChunk },
                };
                out.push(reply(answer));
                return;
            }
            // Anything else is not a client's to say.
            _other => return,
        };
        if !self.replicas.contains_key(&stamp.chunk) {
            out.push(reply(DataMessage::Refused { id, refusal: Refusal::UnknownChunk }));
            return;
        }
        if let Some(refusal) = self.admit_session(now, stamp, out) {
            out.push(reply(DataMessage::Refused { id, refusal }));
            return;
        }
        self.touched.insert(stamp.chunk);
        self.with_replica(now, stamp.chunk, out, |replica, context| match &mut replica.role {
            Role::Primary(primary) => {
                primary.on_client(connection, message, &mut replica.durable, context);
            }
            // If it was the primary, another is to be elected: until then nobody serves.
            Role::Suspect if replica.durable.config.primary == replica.durable.replica => {
                let refusal = Refusal::NotReady(NotReady::OpeningTerm);
                context.reply(connection, DataMessage::Refused { id, refusal });
            }
            Role::Member(_) | Role::Out | Role::Suspect => {
                let config = Box::new(replica.durable.config.clone());
                let refusal = Refusal::NotPrimary(config);
                context.reply(connection, DataMessage::Refused { id, refusal });
            }
        });
    }

    /// The newest session of the newest generation speaks. Older ones end before it does: what waits
    /// for them must not get its position behind what the newer one asks for (design.md 4.8).
    fn admit_session(&mut self, now: Time, stamp: Stamp, out: &mut Outbox) -> Option<Refusal> {
        let (volume, session) = (stamp.chunk.volume, (stamp.generation, stamp.session));
        let newest = self.sessions.entry(volume).or_default();
        if session > *newest {
            *newest = session;
            self.with_primaries(now, out, |primary, durable, context| {
                if durable.config.chunk.volume == volume {
                    primary.end_older_sessions(session, context);
                }
            });
            return None;
        }
        (session.0 == newest.0 && session.1 < newest.1).then_some(Refusal::SessionEnded)
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

    fn watch_members(&mut self, now: Time, config: &ChunkConfig) {
        for replica in config.replicas().filter(|replica| replica.node != self.me.node) {
            self.peers.watch(now, replica.node);
        }
    }

    /// The replica that a configuration gives a store of this node, in sync or learning.
    fn named_here(&self, config: &ChunkConfig) -> Option<ReplicaId> {
        config
            .in_sync
            .iter()
            .chain(&config.learners)
            .copied()
            .find(|replica| self.is_ours(*replica))
    }

    /// Whether a replica is of a store of this node that works.
    fn is_ours(&self, replica: ReplicaId) -> bool {
        replica.node == self.me.node && self.stores.has(replica.store)
    }

    /// Begins to hold a chunk, empty, if a configuration says so. A store that is intact and has
    /// no such replica has never held this incarnation, so empty is what it must be; one that has
    /// lost records cannot know, and does not take part under that name. A learner is empty in any
    /// case.
    fn create_if_named(&mut self, now: Time, config: &ChunkConfig, out: &mut Outbox) {
        self.watch_members(now, config);
        let Some(named) = self.named_here(config) else { return };
        let chunk = config.chunk;
        if self.erased.get(&chunk).is_some_and(|erased| config.epoch <= *erased) {
            return;
        }
        let refused = match self.replicas.get(&chunk) {
            Some(held) if held.durable.replica == named => return,
            Some(held) if held.outlives(named, config) => return,
            Some(held) => !held.gives_way_to(named, config) || config.check().is_err(),
            None => config.check().is_err(),
        };
        if refused {
            out.push(Effect::Alarm(Alarm::ConfigRefused { chunk }));
            return;
        }
        let has_gaps = self.stores.get(named.store).is_some_and(|part| part.has_gaps);
        let may_be_lost = has_gaps && !config.is_learner(named);
        self.with_replica(now, chunk, out, |former, context| former.adopt(config, context));
        self.leave_other_store(chunk, named, out);
        let (_, mut desk) = self.split(now, out);
        let Some(mut context) = desk.at(named.store) else { return };
        let durable = ReplicaDurable::new(named, config.clone());
        let replica = if may_be_lost {
            Replica::created_suspect(durable, &mut context)
        } else {
            Replica::created(durable, &mut context)
        };
        self.replicas.insert(chunk, replica);
        self.dirty.insert(chunk);
    }

    /// The replica that is held gives way to one on another store: what is left of it is erased.
    fn leave_other_store(&mut self, chunk: ChunkId, named: ReplicaId, out: &mut Outbox) {
        let Some(former) = self.replicas.get(&chunk).map(Replica::store) else { return };
        if former != named.store
            && let Some(part) = self.stores.get_mut(former)
        {
            part.erase(chunk, out);
        }
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
                    self.erase(chunk, replica, out);
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

    /// Erases a replica on order of the control plane, by its full name only. The order is repeated
    /// until it is confirmed, so one about a replica that is not held is confirmed again.
    fn erase(&mut self, chunk: ChunkId, replica: ReplicaId, out: &mut Outbox) {
        if !self.is_ours(replica) {
            return;
        }
        let named = |held: &&Replica| held.durable.replica == replica;
        // Another incarnation is not what is meant: the one that is meant is not held any more.
        if let Some(held) = self.replicas.get(&chunk).filter(named) {
            // What is erased vouches for nobody any more.
            let config = &held.durable.config;
            if config.primary.node != self.me.node {
                let (peer, next) = (config.primary.node, config.epoch.next());
                self.leases.except(peer, chunk, next, out);
            }
            note_erased(&mut self.erased, chunk, config.epoch);
            self.replicas.remove(&chunk);
            if let Some(part) = self.stores.get_mut(replica.store) {
                part.erase(chunk, out);
            }
        }
        let report = ReplicaReport {
            chunk,
            replica,
            adopted: Epoch(0),
            generation: Generation(0),
            state: ReplicaState::Gone,
        };
        let effect = Effect::Control(ControlUp::Replicas(alloc::vec![report]));
        let part = self.stores.get_mut(replica.store);
        if let Some(effect) = part.and_then(|part| part.gate.hold(effect)) {
            out.push(effect);
        }
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

    fn on_blocks(
        &mut self,
        now: Time,
        ticket: ReadTicket,
        content: Option<BlockData>,
        out: &mut Outbox,
    ) {
        let Some((store, chunk, range, purpose)) = self.tickets.redeem(ticket) else { return };
        if content.is_none() {
            out.push(Effect::Alarm(Alarm::Unreadable { chunk, range }));
        }
        if let ReadFor::Scrub(at) = purpose {
            if let Some(part) = self.stores.get_mut(store) {
                part.scrub.on_read(content.as_ref());
            }
            self.with_replica(now, chunk, out, |replica, context| {
                replica.on_scrubbed(at, range, content, context);
            });
            self.go_on_scrubbing(now, store, out);
            return;
        }
        if let ReadFor::Fetch(to, _) | ReadFor::Recall(to, _) | ReadFor::Compare(to, _) = purpose {
            if let Some(message) = answer(chunk, range, purpose, content) {
                let to = Link::Peer(to, self.peers.via(to));
                out.push(Effect::Send { to, message });
            }
            return;
        }
        self.with_replica(now, chunk, out, |replica, context| {
            if let Role::Primary(primary) = &mut replica.role {
                primary.on_blocks(purpose, range, content, &mut replica.durable, context);
            }
        });
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

    /// A store has failed: its replicas end, at once and without another word that rests on it. Their
    /// primaries are told, as those who wait for them are; the control plane hears it by a
    /// registration without the store (the shell's), which gives them up wherever they are named.
    fn on_store_failed(&mut self, now: Time, store: StoreId, out: &mut Outbox) {
        if !self.stores.has(store) {
            return;
        }
        let on_it =
            |(chunk, replica): (&ChunkId, &Replica)| (replica.store() == store).then_some(*chunk);
        let chunks: Vec<ChunkId> = self.replicas.iter().filter_map(on_it).collect();
        for chunk in &chunks {
            self.with_replica(now, *chunk, out, Replica::lost);
            let Some(lost) = self.replicas.remove(chunk) else { continue };
            note_erased(&mut self.erased, *chunk, lost.durable.config.epoch);
            self.dirty.remove(chunk);
            self.touched.remove(chunk);
        }
        self.stores.remove(store);
        self.tickets.forget(store);
        out.push(Effect::Alarm(Alarm::StoreLost { store, replicas: chunks.len() }));
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

/// Notes up to which epoch a chunk stays erased.
fn note_erased(erased: &mut BTreeMap<ChunkId, Epoch>, chunk: ChunkId, epoch: Epoch) {
    let known = erased.entry(chunk).or_default();
    *known = epoch.max(*known);
}

/// What a peer is told that asked for content, or whether it is the same as its own.
fn answer(
    chunk: ChunkId,
    range: BlockRange,
    purpose: ReadFor,
    content: Option<BlockData>,
) -> Option<DataMessage> {
    Some(match (purpose, content) {
        (ReadFor::Fetch(_, term), Some(data)) => DataMessage::Fetched { chunk, term, data },
        (ReadFor::Recall(_, at), Some(data)) => DataMessage::Recalled { chunk, at, data },
        (ReadFor::Compare(_, wanted), Some(data)) if digest(&data) == wanted => return None,
        _other => DataMessage::PeerRefused { chunk, refusal: PeerRefusal::Damaged(range) },
    })
}
