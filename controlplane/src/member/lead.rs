//! What a leader holds while it leads, and how it carries out its plans.
//!
//! All of it is volatile: a new leader starts empty and asks the world again.

use super::relay::Relay;
use super::sessions::{Due, Session};
use super::{CallId, Member, Now, Output, SessionKey};
use ashlar_controlplane_core::command::{Action, ChunkChange, Command};
use ashlar_controlplane_core::describe;
use ashlar_controlplane_core::drain::Expected;
use ashlar_controlplane_core::elect::{Elections, elections};
use ashlar_controlplane_core::interruption::{Interruption, lost_nodes};
use ashlar_controlplane_core::moves;
use ashlar_controlplane_core::observe::Observations;
use ashlar_controlplane_core::place::{self, Space};
use ashlar_controlplane_core::plan::{Plan, plan};
use ashlar_controlplane_core::state::{Key, ZoneState};
use ashlar_controlplane_core::verdict::{self, Verdict, Verdicts};
use ashlar_proto::reason::ApiError;
use ashlar_proto::v1;
use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::Network;
use ashlar_types::{ChunkId, ControlTerm, Epoch, Generation, NodeId, ReplicaId, Time, VolumeId};
use ashlar_zone_raft::ProposeError;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a new leader gives the nodes to find it before it says that space is lacking.
pub(super) const NODES_RETURN_WITHIN: Duration = Duration::from_secs(2);
/// Most changes that wait to be committed; more are answered THROTTLED.
const PENDING_MAX: usize = 1_024;
/// How often stuck chunks are looked for, over the whole zone.
const LOOK_FOR_STUCK_EVERY: Duration = Duration::from_secs(1);
/// How often orders to erase are repeated to holders that have not confirmed.
const REPEAT_ERASE_EVERY: Duration = Duration::from_secs(5);

/// Who waits for an entry to be committed.
#[derive(Debug)]
pub(super) enum Pending {
    /// A call.
    Call { term: u64, call: CallId, kind: CallKind, deadline: Time },
    /// A node's registration.
    Node { term: u64, session: SessionKey },
}

impl Pending {
    pub(super) const fn call(&self) -> Option<CallId> {
        match self {
            Self::Call { call, .. } => Some(*call),
            Self::Node { .. } => None,
        }
    }
}

/// Which answer a call gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum CallKind {
    Create,
    Delete,
    Grow,
    Attach,
    /// The statement of this operator is committed behind it.
    AttachFenced(String),
    Detach,
    AddMember,
    RemoveMember,
    JoinMember(u64),
    ReportLost,
    /// What was planned; the volume comes with the commit.
    Salvage(Box<v1::SalvageVolumeResponse>),
    /// What was on record.
    Acknowledge(Vec<v1::ChunkAtRisk>),
    /// Which node, and what was expected to move.
    Drain(NodeId, Expected),
}

/// An attachment that is committed and waits for its adoption by nodes.
#[derive(Debug)]
pub(super) struct Attaching {
    pub(super) call: CallId,
    pub(super) volume: VolumeId,
    pub(super) generation: Generation,
    pub(super) deadline: Time,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) term: u64,
    /// When it was elected.
    pub(super) since: Time,
    pub(super) seen: Observations,
    pub(super) sessions: BTreeMap<SessionKey, Session>,
    /// Nodes whose stream is gone, and who relays for them.
    pub(super) relays: BTreeMap<NodeId, Relay>,
    /// By log index.
    pub(super) pending: BTreeMap<u64, Option<Pending>>,
    pub(super) attachments: Vec<Attaching>,
    /// Something happened that may change the plan.
    pub(super) plan_due: bool,
    /// Something happened that may end an attachment's wait.
    pub(super) attachments_due: bool,
    /// The list of nodes changed.
    pub(super) peers_due: bool,
    /// The zone has got its key.
    pub(super) key_due: bool,
    /// The key is proposed.
    key_proposed: bool,
    /// The list of members changed.
    pub(super) members_due: bool,
    /// Stores were revoked: streams of nodes that have them end.
    pub(super) revoked_due: bool,
    /// Whether many nodes are lost at once.
    pub(super) interruption: Interruption,
    /// Members that were lost, since this leader knows.
    pub(super) lost_since: BTreeMap<u64, Time>,
    /// Proposed, not applied yet.
    readying: BTreeSet<VolumeId>,
    forgetting: BTreeSet<(ChunkId, ReplicaId)>,
    stuck_looked: Time,
    erase_repeated: Time,
}

impl Lead {
    pub(super) fn new(now: Time, term: u64) -> Self {
        Self {
            term,
            since: now,
            seen: Observations::new(now),
            sessions: BTreeMap::new(),
            relays: BTreeMap::new(),
            pending: BTreeMap::new(),
            attachments: Vec::new(),
            plan_due: true,
            attachments_due: false,
            peers_due: false,
            key_due: false,
            key_proposed: false,
            members_due: false,
            revoked_due: false,
            interruption: Interruption::default(),
            lost_since: BTreeMap::new(),
            readying: BTreeSet::new(),
            forgetting: BTreeSet::new(),
            stuck_looked: now,
            erase_repeated: now,
        }
    }

    /// The room that there is, as this leader knows it.
    pub(super) fn space<'a>(
        &'a self,
        state: &'a ZoneState,
        verdicts: &Verdicts,
        peers_per_node_max: usize,
    ) -> Space<'a> {
        Space::of(state, &self.seen, verdicts).with_peers_max(peers_per_node_max)
    }

    /// What a node is to be told, by each way there is: a stream may be dead, and not known to be.
    fn due_of(&mut self, node: NodeId) -> impl Iterator<Item = &mut Due> {
        let streams = self.sessions.values_mut().filter(move |s| s.active && s.node() == node);
        let relay = self.relays.get_mut(&node).map(|relay| &mut relay.due);
        streams.map(|session| &mut session.due).chain(relay)
    }

    /// A message to a node, by the way that works.
    fn message_to(&self, node: NodeId, message: ControlDown) -> Option<Output> {
        let term = ControlTerm(self.term);
        if let Some(relay) = self.relays.get(&node) {
            return Some(relay.message(node, term, message));
        }
        let mut sessions = self.sessions.values();
        let session = sessions.find(|session| session.active && session.node() == node)?;
        Some(Output::Node { session: session.key, term, message })
    }

    /// Takes in which nodes are lost now.
    fn on_losses(&mut self, now: Now, nodes: usize, lost: BTreeSet<NodeId>) {
        let before = self.interruption.is_on().is_some();
        self.interruption.on_losses(now.time, nodes, lost);
        match self.interruption.is_on() {
            Some((_, lost)) if !before => {
                tracing::info!(lost, nodes, "a large interruption: searches for new homes stop");
            }
            None if before => tracing::info!("the large interruption is over"),
            Some(_) | None => {}
        }
    }

    /// Notes for whom changed entries matter.
    pub(super) fn note_changed(&mut self, state: &ZoneState, changed: &BTreeSet<Key>) {
        self.plan_due = true;
        self.attachments_due = true;
        for key in changed {
            match key {
                Key::Chunk(chunk) => {
                    let nodes: Vec<NodeId> = state
                        .config(*chunk)
                        .map(|config| config.replicas().map(|replica| replica.node).collect())
                        .unwrap_or_default();
                    for node in nodes {
                        for due in self.due_of(node) {
                            due.configs.insert(*chunk);
                        }
                    }
                }
                Key::Erase(chunk, replica) if state.is_erasure(*chunk, *replica) => {
                    for due in self.due_of(replica.node) {
                        due.erase.insert((*chunk, *replica));
                    }
                }
                Key::Erase(chunk, replica) => {
                    self.forgetting.remove(&(*chunk, *replica));
                    self.seen.forget_report(*chunk, *replica);
                }
                Key::Volume(volume) | Key::Growth(volume) => {
                    self.readying.remove(volume);
                }
                Key::Node(_) => self.peers_due = true,
                Key::ZoneKey => self.key_due = true,
                Key::Member(_) => self.members_due = true,
                Key::Revoked(_) => self.revoked_due = true,
                // The plan is due whatever has changed.
                Key::Clock
                | Key::Token(_)
                | Key::Salvaged(_)
                | Key::Fenced(_)
                | Key::Draining(_)
                | Key::ErrorAfter(_) => {}
            }
        }
    }
}

impl Member {
    /// Plans if something happened, and hands the plan to Raft; true if something was proposed.
    pub(super) fn plan_and_propose(&mut self, now: Now, out: &mut Vec<Output>) -> bool {
        if !self.is_serving() {
            return false;
        }
        if self.lead.as_ref().is_none_or(|lead| !lead.plan_due) {
            return false;
        }
        let found = self.note_found(now);
        let Some(lead) = &mut self.lead else { return false };
        lead.plan_due = false;
        let verdicts = verdict::judge_all(now.time, &self.state, &lead.seen);
        let hidden = |(node, verdict): (&NodeId, &Verdict)| {
            matches!(verdict, Verdict::Hidden { .. }).then_some(*node)
        };
        lead.seen.note_hidden(now.time, verdicts.iter().filter_map(hidden));
        let elections = elections(now.time, &self.state, &lead.seen, &verdicts);
        let found = self.elect(now, elections, out) || found;
        let Some(lead) = &mut self.lead else { return found };
        let lost = lost_nodes(now.time, &self.state, &lead.seen, &verdicts);
        lead.on_losses(now, self.state.nodes().count(), lost);
        let search = lead.interruption.budget(now.time);
        let space = lead.space(&self.state, &verdicts, self.options.peers_per_node_max);
        let plan = plan(now.time, &self.state, &lead.seen, &verdicts, search, space);
        lead.seen.forget_proposals(&plan.judged);
        lead.seen.note_slow(now.time, &plan.slow);
        lead.seen.note_moves(now.time, plan.moves, search);
        lead.seen.note_balance(now.time, plan.balance);
        for node in &plan.probes {
            lead.seen.on_probe_asked(now.time, *node);
            out.extend(probes(*node, &self.state));
        }
        for (proposal, reason) in &plan.refused {
            let (chunk, epoch, reason) = (proposal.chunk, proposal.epoch, reason.clone());
            tracing::info!(%chunk, %epoch, %reason, "a proposal is refused");
            let message = ControlDown::ProposalRefused { chunk, epoch, reason };
            out.extend(lead.message_to(proposal.proposer.node, message));
        }
        self.look_around(now);
        self.carry_out(now, plan) || found
    }

    /// Hands elections to Raft, before anything else and in an entry of their own, and asks primaries
    /// that live to follow.
    fn elect(&mut self, now: Now, elections: Elections, out: &mut Vec<Output>) -> bool {
        let Elections { changes, asks } = elections;
        let Some(lead) = &mut self.lead else { return false };
        let mut asked: BTreeMap<NodeId, Vec<(ChunkId, Epoch)>> = BTreeMap::new();
        for (node, chunk, epoch) in asks {
            lead.seen.on_asked(now.time, chunk, epoch);
            asked.entry(node).or_default().push((chunk, epoch));
        }
        for (node, chunks) in asked {
            tracing::info!(%node, chunks = chunks.len(), "a primary is asked to follow another");
            out.extend(lead.message_to(node, ControlDown::AskToFollow(chunks)));
        }
        if changes.is_empty() {
            return false;
        }
        tracing::info!(elections = changes.len(), "proposing elections");
        let marks: Vec<_> = changes.iter().map(|change| (change.chunk, change.epoch)).collect();
        let action = Action::Change { changes };
        let data = Command { at_millis: now.wall_millis, action }.encode();
        if let Err(error) = self.driver.propose_urgent(data) {
            tracing::debug!(%error, "elections are not taken now");
            return false;
        }
        let Some(lead) = &mut self.lead else { return true };
        marks.iter().for_each(|(chunk, epoch)| lead.seen.on_electing(now.time, *chunk, *epoch));
        true
    }

    fn carry_out(&mut self, now: Now, plan: Plan) -> bool {
        let mut proposed = false;
        if !plan.changes.is_empty() {
            tracing::info!(changes = plan.changes.len(), "proposing changes of configurations");
            let marks: Vec<_> = plan
                .changes
                .iter()
                .map(|ChunkChange { chunk, epoch, .. }| (*chunk, *epoch))
                .collect();
            if self.propose(now, Action::Change { changes: plan.changes }).is_ok() {
                proposed = true;
                for (chunk, epoch) in marks {
                    if let Some(lead) = &mut self.lead {
                        lead.seen.on_proposed(now.time, chunk, epoch);
                    }
                }
            }
        }
        proposed |= self.propose_key(now);
        let fresh = |set: &BTreeSet<VolumeId>, id: &VolumeId| !set.contains(id);
        let Some(lead) = &mut self.lead else { return proposed };
        let volumes: Vec<VolumeId> =
            plan.ready.into_iter().filter(|id| fresh(&lead.readying, id)).collect();
        let replicas: Vec<_> =
            plan.erased.into_iter().filter(|erased| !lead.forgetting.contains(erased)).collect();
        let grown: Vec<(VolumeId, u64)> =
            plan.grown.into_iter().filter(|(id, _)| fresh(&lead.readying, id)).collect();
        lead.readying.extend(&volumes);
        lead.readying.extend(grown.iter().map(|(id, _)| *id));
        lead.forgetting.extend(&replicas);
        if !volumes.is_empty() {
            proposed |= self.propose(now, Action::MarkReady { volumes }).is_ok();
        }
        if !grown.is_empty() {
            proposed |= self.propose(now, Action::FinishGrowth { grown }).is_ok();
        }
        if !replicas.is_empty() {
            proposed |= self.propose(now, Action::Forget { replicas }).is_ok();
        }
        proposed
    }

    /// The first leader gives the zone its key; true if it does so now.
    fn propose_key(&mut self, now: Now) -> bool {
        let due = self.state.zone_key().is_none()
            && self.lead.as_ref().is_some_and(|lead| !lead.key_proposed);
        let secret = self.options.zone_secret;
        let proposed = due && self.propose(now, Action::SetZoneKey { secret }).is_ok();
        if let Some(lead) = &mut self.lead {
            lead.key_proposed |= proposed;
        }
        proposed
    }

    /// What needs a look at everything, now and then.
    fn look_around(&mut self, now: Now) {
        let Some(lead) = &mut self.lead else { return };
        if now.time.since(lead.stuck_looked) >= LOOK_FOR_STUCK_EVERY {
            lead.stuck_looked = now.time;
            let verdicts = verdict::judge_all(now.time, &self.state, &lead.seen);
            let stuck = describe::stuck_chunks(&self.state, &lead.seen, &verdicts);
            lead.seen.note_stuck(now.time, &stuck);
            lead.seen.note_crowded(moves::crowded_chunks(&self.state));
        }
        if now.time.since(lead.erase_repeated) >= REPEAT_ERASE_EVERY {
            lead.erase_repeated = now.time;
            // A proposal that Raft dropped is made again.
            lead.readying.clear();
            lead.key_proposed = false;
            lead.forgetting.clear();
            let away = |replica| self.state.is_store_gone(replica);
            for (chunk, replica) in self.state.erasures().filter(|(_, r)| !away(*r)) {
                for due in lead.due_of(replica.node) {
                    due.erase.insert((chunk, replica));
                }
            }
        }
    }

    /// Hands a command to Raft; gives the index at which it will stand if it is committed.
    pub(super) fn propose(&mut self, now: Now, action: Action) -> Result<u64, ApiError> {
        let command = Command { at_millis: now.wall_millis, action };
        let (index, _) = self.driver.propose(command.encode()).map_err(|error| match error {
            ProposeError::NotLeader => self.not_leader(),
            ProposeError::Busy => crate::errors::api_error::throttled("too many changes wait"),
            ProposeError::TooLong(_) => {
                crate::errors::api_error::invalid("size_bytes", error.to_string())
            }
        })?;
        if let Some(lead) = &mut self.lead {
            lead.seen.on_placing(index, place::placing(&command.action, &self.state));
        }
        Ok(index)
    }

    /// Notes who waits for an entry.
    ///
    /// # Errors
    /// If too many wait.
    pub(super) fn check_pending(&self) -> Result<(), ApiError> {
        let waiting =
            self.lead.as_ref().map_or(0, |lead| lead.pending.len() + lead.attachments.len());
        if waiting >= PENDING_MAX {
            return Err(crate::errors::api_error::throttled("too many calls wait"));
        }
        Ok(())
    }
}

fn probes(node: NodeId, state: &ZoneState) -> Vec<Output> {
    let Some(record) = state.node(node) else { return Vec::new() };
    [
        (Network::Primary, &record.primary_address),
        (Network::Replication, &record.replication_address),
    ]
    .map(|(network, address)| Output::Probe { node, network, address: address.clone() })
    .into()
}
