//! What this leader sees: heartbeats, evidence about peers, port probes, reports, proposals.
//!
//! Volatile and local: a new leader starts with nothing and asks the world again. Nothing here is
//! ever committed, but as evidence inside a command. Bounded by what is committed: nodes, replicas
//! and chunks that the state does not know are not kept.

use crate::balance::BALANCE_REST;
use crate::place::Placing;
use crate::state::ZoneState;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ashlar_types::limit::is_short_of_space;
use ashlar_types::message::cluster::{
    Change, Heartbeat, PathState, PeerEvidence, Proposal, ReplicaReport, ReplicaState,
    SearchBudget, StoreState,
};
use ashlar_types::message::data::Network;
use ashlar_types::{ChunkConfig, ChunkId, Epoch, Generation, NodeId, ReplicaId, StoreId, Time};
use core::time::Duration;

/// How long a node that was slow counts against the zone's budget of slow nodes (design.md 4.7).
pub const SLOW_WINDOW: Duration = Duration::from_secs(300);
/// Most replicas of one node that may be taken out for slowness within that time: each is filled again
/// as a whole, which makes nobody faster meanwhile.
pub const SLOW_REPLICAS_MAX: u32 = 64;
/// How often nodes send a heartbeat.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(300);
/// Heartbeats that stop for this long make a node suspected (design.md section 6).
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// A new leader, and one that did not run for [`TICK_GAP_MAX`], listens this long before it
/// judges: two heartbeats.
pub const LISTEN_FIRST: Duration = Duration::from_millis(600);
/// A gap between ticks above this means that this process, not the world, stood still.
pub const TICK_GAP_MAX: Duration = Duration::from_millis(300);
/// A peer that did not answer for this long counts as unreachable when votes about its fate are
/// taken, as long as a primary waits before it proposes a removal. Half of it would take primaries
/// from nodes whose host only stalls for a moment.
pub const SILENT_VOTE_MILLIS: u32 = 1_000;
/// The same when votes are taken only on whom to believe. Shorter, because the one that is cut off
/// may have noticed first: three beats, so that one lost beat accuses nobody.
pub const SILENT_DOUBT_MILLIS: u32 = 500;
/// How long a node whose primary network has come back is elected only if nobody else can be.
pub const HIDDEN_REST: Duration = Duration::from_secs(5);
/// How often the ports of a node without a stream are tried.
pub const PROBE_EVERY: Duration = Duration::from_millis(250);
/// A proposed change that is neither committed nor refused after this is proposed again.
pub const PROPOSAL_PATIENCE: Duration = Duration::from_secs(2);

/// What a try to connect to a node's port gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// Something listens.
    Connected,
    /// The port refuses: no process listens.
    Refused,
    /// No answer in time, or the host cannot be reached.
    NoAnswer,
}

/// What is seen of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its stream is open.
    pub connected: bool,
    /// When the stream opened or closed last.
    pub connection_changed: Time,
    /// When the last heartbeat came.
    pub last_beat: Option<Time>,
    /// When the node was last certain to be alive: its stream opened, or a heartbeat came.
    pub last_contact: Option<Time>,
    /// Its stores as of its last heartbeat.
    pub stores: Vec<StoreState>,
    /// Who relayed a heartbeat of it last, and when.
    relayed: Option<(NodeId, Time)>,
    /// What it saw of its peers at its last heartbeat.
    pub evidence: Vec<PeerEvidence>,
    /// Own tries to connect, by network.
    probes: [Option<(Time, ProbeResult)>; 2],
    /// When the last tries were asked for.
    pub probe_asked: Option<Time>,
}

impl NodeView {
    /// Whether both its ports refused the control plane after `since`.
    #[must_use]
    pub fn refused_since(&self, since: Time) -> bool {
        self.probes
            .iter()
            .all(|probe| matches!(probe, Some((at, ProbeResult::Refused)) if *at > since))
    }

    /// Who relays its heartbeats, while it has no stream.
    #[must_use]
    pub fn relayed_by(&self, now: Time) -> Option<NodeId> {
        let (by, at) = self.relayed?;
        (now.since(at) < HEARTBEAT_TIMEOUT).then_some(by)
    }

    /// One of its stores, as of its last heartbeat.
    #[must_use]
    pub fn store(&self, store: StoreId) -> Option<&StoreState> {
        self.stores.iter().find(|state| state.store == store)
    }

    /// Whether a store of it has so little room left that writes wait for space.
    #[must_use]
    pub fn is_short_of_space(&self, store: StoreId) -> bool {
        self.store(store)
            .is_some_and(|state| is_short_of_space(state.capacity_bytes, state.used_bytes))
    }

    /// Bytes that all its stores can hold, and those taken by replicas.
    #[must_use]
    pub fn space(&self) -> (u64, u64) {
        let sum = |of: fn(&StoreState) -> u64| self.stores.iter().map(of).sum();
        (sum(|state| state.capacity_bytes), sum(|state| state.used_bytes))
    }

    /// Whether it reaches anybody but `peer` by the primary network.
    #[must_use]
    pub fn reaches_others(&self, peer: NodeId) -> bool {
        self.evidence.iter().any(|e| e.node != peer && e.primary_net == PathState::Up)
    }

    /// Whether it hears no peer at all, on either network.
    #[must_use]
    pub fn hears_nobody(&self, silent_millis: u32) -> bool {
        let down = |path| is_down(path, silent_millis);
        !self.evidence.is_empty()
            && self.evidence.iter().all(|e| down(e.primary_net) && down(e.replication_net))
    }

    /// What it says of a peer.
    #[must_use]
    pub fn evidence_about(&self, peer: NodeId) -> Option<PeerEvidence> {
        self.evidence.iter().copied().find(|evidence| evidence.node == peer)
    }
}

/// What a path says in a vote: down if its port refuses, or it was silent for so long.
#[must_use]
pub const fn is_down(state: PathState, silent_millis: u32) -> bool {
    match state {
        PathState::Refused => true,
        PathState::Silent { millis } => millis >= silent_millis,
        PathState::Unknown | PathState::Up => false,
    }
}

/// Everything that this leader sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observations {
    /// Since when it leads.
    leads_since: Time,
    /// Since when it listens without interruption.
    pub listening_since: Time,
    last_tick: Time,
    nodes: BTreeMap<NodeId, NodeView>,
    reports: BTreeMap<(ChunkId, ReplicaId), ReplicaReport>,
    proposals: BTreeMap<ChunkId, Proposal>,
    proposed: BTreeMap<ChunkId, (Epoch, Time)>,
    /// Elections, apart: they wait for no other change.
    electing: BTreeMap<ChunkId, (Epoch, Time)>,
    stuck_since: BTreeMap<ChunkId, Time>,
    /// Primaries that agreed to follow, at which epoch.
    agreed: BTreeMap<ChunkId, (Epoch, ReplicaId)>,
    /// Primaries that were asked to: at which epoch, since when, and when last.
    asked: BTreeMap<ChunkId, (Epoch, Time, Time)>,
    /// Nodes that lost replicas because all others waited for them, when that began, and how many.
    slow: BTreeMap<NodeId, (Time, u32)>,
    /// Nodes that were hidden from clients, and when they were seen so last.
    hidden: BTreeMap<NodeId, Time>,
    /// When the next move of a copy may begin.
    move_at: Time,
    /// When copies may be looked for again that would stand better elsewhere.
    balance_at: Time,
    /// How many such looks found none.
    balance_turn: usize,
    /// Chunks with two copies in one rack, as of the last look at all.
    crowded: BTreeSet<ChunkId>,
    /// What commands that were handed to Raft place, by their index in the log.
    placing: BTreeMap<u64, Vec<Placing>>,
}

impl Observations {
    /// A leader that has just been elected.
    #[must_use]
    pub const fn new(now: Time) -> Self {
        Self {
            leads_since: now,
            listening_since: now,
            last_tick: now,
            nodes: BTreeMap::new(),
            reports: BTreeMap::new(),
            proposals: BTreeMap::new(),
            proposed: BTreeMap::new(),
            electing: BTreeMap::new(),
            stuck_since: BTreeMap::new(),
            agreed: BTreeMap::new(),
            asked: BTreeMap::new(),
            slow: BTreeMap::new(),
            hidden: BTreeMap::new(),
            move_at: now,
            balance_at: now,
            balance_turn: 0,
            crowded: BTreeSet::new(),
            placing: BTreeMap::new(),
        }
    }

    /// A command that places replicas was handed to Raft as this entry: what it takes is taken, though
    /// nothing committed says so yet.
    pub fn on_placing(&mut self, index: u64, placing: Vec<Placing>) {
        if !placing.is_empty() {
            self.placing.insert(index, placing);
        }
    }

    /// An entry is applied: the state says what is placed.
    pub fn on_entry_applied(&mut self, index: u64) {
        self.placing.remove(&index);
    }

    /// What is on its way to be placed.
    pub fn placing(&self) -> impl Iterator<Item = &Placing> {
        self.placing.values().flatten()
    }

    /// How many moves of copies may begin now: at most a tenth of a second's worth at once, and none
    /// while only urgent searches may.
    #[must_use]
    pub fn moves_allowed(&self, now: Time, budget: SearchBudget) -> usize {
        if budget.only_urgent || now < self.move_at || !self.may_judge(now) {
            return 0;
        }
        usize::try_from(budget.per_second.div_ceil(10)).unwrap_or(1)
    }

    /// Moves begin.
    pub fn note_moves(&mut self, now: Time, begun: usize, budget: SearchBudget) {
        let each = Duration::from_secs(1) / budget.per_second.max(1);
        self.move_at = now + each.saturating_mul(u32::try_from(begun).unwrap_or(u32::MAX));
    }

    /// Whether copies may be looked for now that would stand better elsewhere.
    #[must_use]
    pub fn may_balance(&self, now: Time) -> bool {
        now >= self.balance_at && self.may_judge(now)
    }

    /// How many such looks found nothing: the next one looks further on.
    #[must_use]
    pub const fn balance_turn(&self) -> usize {
        self.balance_turn
    }

    /// Copies were looked for, or not; how long nobody needs to do so again.
    pub fn note_balance(&mut self, now: Time, rest: Option<Duration>) {
        let Some(rest) = rest else { return };
        self.balance_at = now + rest;
        self.balance_turn = self.balance_turn.wrapping_add(usize::from(rest == BALANCE_REST));
    }

    /// Nodes that were taken for slow lately.
    pub fn slow_nodes(&self, now: Time) -> impl Iterator<Item = NodeId> {
        let recent =
            move |(_, (since, _)): &(&NodeId, &(Time, u32))| now.since(*since) < SLOW_WINDOW;
        self.slow.iter().filter(recent).map(|(node, _)| *node)
    }

    /// Replicas that a node lost lately because all others waited for them.
    #[must_use]
    pub fn slow_replicas(&self, now: Time, node: NodeId) -> u32 {
        let lately = self.slow.get(&node).filter(|(since, _)| now.since(*since) < SLOW_WINDOW);
        lately.map_or(0, |(_, replicas)| *replicas)
    }

    /// Replicas are taken from nodes because they are slow: one for each time that a node is named.
    pub fn note_slow(&mut self, now: Time, nodes: &[NodeId]) {
        self.slow.retain(|_, (since, _)| now.since(*since) < SLOW_WINDOW);
        for node in nodes {
            self.slow.entry(*node).or_insert((now, 0)).1 += 1;
        }
    }

    /// Nodes are hidden from clients now.
    pub fn note_hidden(&mut self, now: Time, nodes: impl Iterator<Item = NodeId>) {
        self.hidden.retain(|_, seen| now.since(*seen) < HIDDEN_REST);
        self.hidden.extend(nodes.map(|node| (node, now)));
    }

    /// Whether a node was hidden from clients a moment ago.
    #[must_use]
    pub fn was_hidden(&self, now: Time, node: NodeId) -> bool {
        self.hidden.get(&node).is_some_and(|seen| now.since(*seen) < HIDDEN_REST)
    }

    /// Time passes. Call at least every 100 ms, after waiting input was taken in: a longer gap
    /// than [`TICK_GAP_MAX`] makes every silence unreliable, and listening starts over.
    pub fn on_tick(&mut self, now: Time) {
        if now.since(self.last_tick) > TICK_GAP_MAX {
            self.listening_since = now;
        }
        self.last_tick = now;
        self.proposed.retain(|_, (_, at)| now.since(*at) < PROPOSAL_PATIENCE);
        self.electing.retain(|_, (_, at)| now.since(*at) < PROPOSAL_PATIENCE);
    }

    /// Whether it has listened for long enough to judge silence.
    #[must_use]
    pub fn may_judge(&self, now: Time) -> bool {
        now.since(self.listening_since) >= LISTEN_FIRST
    }

    /// Whether a node has never come to this leader, and may still: it finds a new leader by trying
    /// one member after the other. Once that has taken as long as silence that is suspected, it counts
    /// as silent.
    #[must_use]
    pub fn is_awaited(&self, now: Time, node: NodeId) -> bool {
        let came = self.nodes.get(&node).is_some_and(|view| view.last_contact.is_some());
        !came && now.since(self.leads_since) < HEARTBEAT_TIMEOUT
    }

    /// What is seen of a node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&NodeView> {
        self.nodes.get(&node)
    }

    /// A node's stream opened.
    pub fn on_connected(&mut self, now: Time, node: NodeId) {
        let view = self.nodes.entry(node).or_default();
        view.connected = true;
        view.last_contact = Some(now);
        view.connection_changed = now;
        view.relayed = None;
        // What an earlier process saw is no evidence any more.
        view.evidence.clear();
        self.reports.retain(|(_, replica), _| replica.node != node);
        self.proposals.retain(|_, proposal| proposal.proposer.node != node);
        self.agreed.retain(|_, (_, primary)| primary.node != node);
    }

    /// A node's stream ended.
    pub fn on_disconnected(&mut self, now: Time, node: NodeId) {
        let view = self.nodes.entry(node).or_default();
        view.connected = false;
        view.connection_changed = now;
        view.probe_asked = None;
    }

    /// A sign of life.
    pub fn on_heartbeat(&mut self, now: Time, node: NodeId, beat: Heartbeat) {
        let view = self.nodes.entry(node).or_default();
        view.last_beat = Some(now);
        view.last_contact = Some(now);
        view.stores = beat.stores;
        view.evidence = beat.peers;
    }

    /// A sign of life that a peer has handed on. It shows that the node lives, and nothing of its way
    /// to the control plane: neither its voice nor its room counts.
    pub fn on_relayed(&mut self, now: Time, node: NodeId, by: NodeId) {
        self.nodes.entry(node).or_default().relayed = Some((by, now));
    }

    /// A try to connect has ended.
    pub fn on_probe(&mut self, now: Time, node: NodeId, network: Network, result: ProbeResult) {
        let [primary, replication] = &mut self.nodes.entry(node).or_default().probes;
        let slot = match network {
            Network::Primary => primary,
            Network::Replication => replication,
        };
        *slot = Some((now, result));
    }

    /// Tries to connect were asked for.
    pub fn on_probe_asked(&mut self, now: Time, node: NodeId) {
        self.nodes.entry(node).or_default().probe_asked = Some(now);
    }

    /// A node reports its replicas. Reports about what the state does not know are dropped.
    pub fn on_reports(&mut self, state: &ZoneState, node: NodeId, reports: Vec<ReplicaReport>) {
        for report in reports {
            let known = state
                .config(report.chunk)
                .is_some_and(|config| config.replicas().any(|r| r == report.replica));
            let erasing = state.is_erasure(report.chunk, report.replica);
            if report.replica.node == node && (known || erasing) {
                self.reports.insert((report.chunk, report.replica), report);
            }
        }
    }

    /// A primary asks for changes; the newest wish for a chunk counts.
    pub fn on_proposals(&mut self, state: &ZoneState, node: NodeId, proposals: Vec<Proposal>) {
        for proposal in proposals {
            if proposal.proposer.node != node || state.config(proposal.chunk).is_none() {
                continue;
            }
            if proposal.change == Change::Follow {
                self.agreed.insert(proposal.chunk, (proposal.epoch, proposal.proposer));
            } else {
                self.proposals.insert(proposal.chunk, proposal);
            }
        }
    }

    /// Waiting proposals, in order of chunk.
    pub fn proposals(&self) -> impl Iterator<Item = &Proposal> {
        self.proposals.values()
    }

    /// Waiting proposals were judged.
    pub fn forget_proposals(&mut self, chunks: &[ChunkId]) {
        for chunk in chunks {
            self.proposals.remove(chunk);
        }
    }

    /// A change was handed to Raft.
    pub fn on_proposed(&mut self, now: Time, chunk: ChunkId, epoch: Epoch) {
        self.proposed.insert(chunk, (epoch, now));
    }

    /// A primary is asked to follow another.
    pub fn on_asked(&mut self, now: Time, chunk: ChunkId, epoch: Epoch) {
        match self.asked.get_mut(&chunk) {
            Some((asked, _, last)) if *asked == epoch => *last = now,
            _ => {
                self.asked.insert(chunk, (epoch, now, now));
            }
        }
    }

    /// Since when a primary has been asked to follow another, and when last.
    #[must_use]
    pub fn asked(&self, chunk: ChunkId, epoch: Epoch) -> Option<(Time, Time)> {
        let (asked, first, last) = self.asked.get(&chunk)?;
        (*asked == epoch).then_some((*first, *last))
    }

    /// Whether the primary of a configuration has agreed to follow another at this very epoch.
    #[must_use]
    pub fn has_agreed(&self, config: &ChunkConfig) -> bool {
        self.agreed.get(&config.chunk) == Some(&(config.epoch, config.primary))
    }

    /// An election was handed to Raft.
    pub fn on_electing(&mut self, now: Time, chunk: ChunkId, epoch: Epoch) {
        self.electing.insert(chunk, (epoch, now));
    }

    /// Whether a change of this epoch is on its way.
    #[must_use]
    pub fn is_proposed(&self, chunk: ChunkId, epoch: Epoch) -> bool {
        self.proposed.get(&chunk).is_some_and(|(proposed, _)| *proposed == epoch)
            || self.is_electing(chunk, epoch)
    }

    /// Whether an election of this epoch is on its way. Another change of it is no reason to wait:
    /// whichever is committed first counts, and an election that came too late is made again.
    #[must_use]
    pub fn is_electing(&self, chunk: ChunkId, epoch: Epoch) -> bool {
        self.electing.get(&chunk).is_some_and(|(electing, _)| *electing == epoch)
    }

    /// The state changed: forgets what refers to what is gone.
    pub fn on_applied(&mut self, state: &ZoneState, chunks: &BTreeSet<ChunkId>) {
        for chunk in chunks {
            self.proposed.remove(chunk);
            self.electing.remove(chunk);
            self.agreed.remove(chunk);
            self.asked.remove(chunk);
            match state.config(*chunk) {
                None => {
                    self.proposals.remove(chunk);
                    self.stuck_since.remove(chunk);
                }
                Some(config) => {
                    if self.proposals.get(chunk).is_some_and(|p| p.epoch < config.epoch) {
                        self.proposals.remove(chunk);
                    }
                }
            }
        }
    }

    /// An erasure is confirmed and forgotten.
    pub fn forget_report(&mut self, chunk: ChunkId, replica: ReplicaId) {
        self.reports.remove(&(chunk, replica));
    }

    /// The last report about a replica in the present connection of its node.
    #[must_use]
    pub fn report(&self, chunk: ChunkId, replica: ReplicaId) -> Option<&ReplicaReport> {
        self.reports.get(&(chunk, replica))
    }

    /// Whether a replica says itself, at the chunk's current epoch, that it is no use.
    #[must_use]
    pub fn says_unfit(&self, chunk: ChunkId, replica: ReplicaId, epoch: Epoch) -> bool {
        self.report(chunk, replica).is_some_and(|report| match report.state {
            // Whatever epoch it believes in: only another incarnation takes its place.
            ReplicaState::Gone | ReplicaState::Suspect => true,
            ReplicaState::Stale => report.adopted >= epoch,
            ReplicaState::Serving
            | ReplicaState::Opening
            | ReplicaState::Following
            | ReplicaState::Filling { .. } => false,
        })
    }

    /// Whether a replica has durably adopted a generation.
    #[must_use]
    pub fn has_adopted(&self, chunk: ChunkId, replica: ReplicaId, generation: Generation) -> bool {
        self.report(chunk, replica).is_some_and(|report| report.generation >= generation)
    }

    /// Remembers since when chunks are stuck.
    pub fn note_stuck(&mut self, now: Time, stuck: &BTreeSet<ChunkId>) {
        self.stuck_since.retain(|chunk, _| stuck.contains(chunk));
        for chunk in stuck {
            self.stuck_since.entry(*chunk).or_insert(now);
        }
    }

    /// Remembers which chunks have two copies in one rack.
    pub fn note_crowded(&mut self, crowded: BTreeSet<ChunkId>) {
        self.crowded = crowded;
    }

    /// Chunks that had two copies in one rack when all were looked at last.
    pub fn crowded(&self) -> impl Iterator<Item = ChunkId> {
        self.crowded.iter().copied()
    }

    /// Since when a chunk is stuck.
    #[must_use]
    pub fn stuck_since(&self, chunk: ChunkId) -> Option<Time> {
        self.stuck_since.get(&chunk).copied()
    }
}
