//! One member of a zone's control plane as a value: Raft, state, observations and planner.
//!
//! Synchronous and free of clocks, threads and dice of its own: [`Member::handle`] takes an input
//! and fills an outbox. What stands in the outbox may leave: Raft's persistence is done, and the
//! entries of the state are in the metadata store. The process drives it from one thread with real
//! disks, the simulator with disks in memory; the same seed and inputs give the same outputs.
//!
//! ```text
//! input ─► accept ─► raft.settle ─► apply ─► plan (leader) ─► propose ─┐
//!            │            ▲                                            │
//!            │            └────────────────── until nothing is new ◄──┘
//!            └─► answers, node messages, probes, raft messages ─► outbox
//! ```
//!
//! Path: between `server.rs` (gRPC) and `controlplane/core`, `controlplane/raft`.

mod calls;
mod drain;
mod grow;
mod lead;
mod members;
mod relay;
mod salvage;
mod sessions;
mod storage;
#[cfg(test)]
mod tests;
mod view;

use crate::errors::api_error;
use ashlar_controlplane_core::apply::Applied;
use ashlar_controlplane_core::command::{Command, CommandError};
use ashlar_controlplane_core::observe::ProbeResult;
use ashlar_controlplane_core::state::{Key, StateError, ZoneState};
use ashlar_env::dice::Dice;
use ashlar_env::meta::{MetaError, MetaStore};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::message::cluster::{ControlDown, ControlUp, Registration};
use ashlar_types::message::data::Network;
use ashlar_types::{ControlTerm, NodeId, Time, ZoneId};
use ashlar_zone_raft::{
    Committed, Driver, DriverError, Outbox as RaftOutbox, RaftOptions, StorageError,
};
use bytes::Bytes;
use lead::Lead;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

pub use members::Members;
pub use storage::MemberDisks;

/// How often [`Input::Tick`] is due: Raft's and the planner's step.
pub const TICK_MILLIS: u64 = 50;
/// Rounds of apply and propose in one step; more work waits for the next input. Bounds the time
/// that one step takes.
const ROUNDS_MAX: usize = 8;

/// Number of a call, chosen by the shell; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Number of a node's stream, chosen by the shell; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

/// The two clocks of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: everything is judged by it.
    pub time: Time,
    /// Milliseconds since 1970: for people, and for the expiry of client tokens.
    pub wall_millis: u64,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is the request of the schema with that name")]
pub enum Request {
    CreateVolume(v1::CreateVolumeRequest),
    DeleteVolume(v1::DeleteVolumeRequest),
    GrowVolume(v1::GrowVolumeRequest),
    ListVolumes(v1::ListVolumesRequest),
    GetVolume(v1::GetVolumeRequest),
    AttachVolume(v1::AttachVolumeRequest),
    DetachVolume(v1::DetachVolumeRequest),
    GetVolumeMap(v1::GetVolumeMapRequest),
    SalvageVolume(v1::SalvageVolumeRequest),
    AcknowledgeRisk(v1::AcknowledgeRiskRequest),
    GetStatus(v1::GetStatusRequest),
    ListNodes(v1::ListNodesRequest),
    DrainNode(v1::DrainNodeRequest),
    ListMembers(v1::ListMembersRequest),
    AddMember(v1::AddMemberRequest),
    RemoveMember(v1::RemoveMemberRequest),
    JoinMember(v1::JoinMemberRequest),
    ReportLostMember(v1::ReportLostMemberRequest),
}

impl Request {
    /// Whether carrying it out twice does no harm: it reads, or its token tells.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::ListVolumes(_)
            | Self::GetVolume(_)
            | Self::GetVolumeMap(_)
            | Self::GetStatus(_)
            | Self::ListNodes(_)
            | Self::ListMembers(_)
            | Self::JoinMember(_)
            | Self::ReportLostMember(_) => true,
            Self::AddMember(request) => !request.client_token.is_empty(),
            Self::RemoveMember(request) => !request.client_token.is_empty(),
            Self::CreateVolume(request) => !request.client_token.is_empty(),
            Self::DeleteVolume(request) => !request.client_token.is_empty(),
            Self::GrowVolume(request) => !request.client_token.is_empty(),
            Self::AttachVolume(request) => !request.client_token.is_empty(),
            Self::DetachVolume(request) => !request.client_token.is_empty(),
            Self::SalvageVolume(request) => !request.client_token.is_empty(),
            Self::AcknowledgeRisk(request) => !request.client_token.is_empty(),
            Self::DrainNode(request) => !request.client_token.is_empty(),
        }
    }
}

/// What it is told.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is the response of the schema with that name")]
pub enum Reply {
    CreateVolume(v1::CreateVolumeResponse),
    DeleteVolume(v1::DeleteVolumeResponse),
    GrowVolume(v1::GrowVolumeResponse),
    ListVolumes(v1::ListVolumesResponse),
    GetVolume(v1::GetVolumeResponse),
    AttachVolume(v1::AttachVolumeResponse),
    DetachVolume(v1::DetachVolumeResponse),
    GetVolumeMap(v1::GetVolumeMapResponse),
    SalvageVolume(v1::SalvageVolumeResponse),
    AcknowledgeRisk(v1::AcknowledgeRiskResponse),
    GetStatus(v1::GetStatusResponse),
    ListNodes(v1::ListNodesResponse),
    DrainNode(v1::DrainNodeResponse),
    ListMembers(v1::ListMembersResponse),
    AddMember(v1::AddMemberResponse),
    RemoveMember(v1::RemoveMemberResponse),
    JoinMember(v1::JoinMemberResponse),
    ReportLostMember(v1::ReportLostMemberResponse),
}

/// Everything that can happen to a member.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// [`TICK_MILLIS`] have passed. Due regularly; a gap makes a leader listen before it judges.
    Tick,
    /// Bytes from another member.
    Raft {
        /// The member.
        peer: u64,
        /// As its [`Output::Raft`] gave them.
        bytes: Bytes,
    },
    /// Another member says where it is found.
    PeerAt {
        /// The member.
        peer: u64,
        /// `ip:port` of its services.
        address: String,
    },
    /// A peer refuses this member by name: it was removed.
    ToldRemoved,
    /// The way to another member is interrupted.
    PeerUnreachable {
        /// The member.
        peer: u64,
    },
    /// A client calls.
    Call {
        /// Comes back in [`Output::Answer`], exactly once.
        call: CallId,
        /// What it asks for.
        request: Request,
        /// When it stops waiting.
        deadline: Time,
    },
    /// A node opened its stream and introduced itself.
    NodeOpened {
        /// The stream.
        session: SessionKey,
        /// The node's words.
        registration: Registration,
    },
    /// A node said something.
    NodeSaid {
        /// The stream.
        session: SessionKey,
        /// What.
        message: ControlUp,
    },
    /// A stream ended, from whichever side.
    NodeClosed {
        /// The stream.
        session: SessionKey,
    },
    /// A try to connect ended.
    Probed {
        /// The node.
        node: NodeId,
        /// Over which network.
        network: Network,
        /// How.
        result: ProbeResult,
    },
}

/// Everything that a member does to the world.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Bytes for another member; may be lost, must not be reordered.
    Raft {
        /// The member.
        to: u64,
        /// What.
        bytes: Bytes,
    },
    /// A call has its answer.
    Answer {
        /// The call.
        call: CallId,
        /// The answer.
        result: Box<Result<Reply, ApiError>>,
    },
    /// A message for a node; if it cannot be delivered in order, close the stream.
    Node {
        /// The stream.
        session: SessionKey,
        /// Of the leadership that says it.
        term: ControlTerm,
        /// What.
        message: ControlDown,
    },
    /// End a node's stream with this error. [`Input::NodeClosed`] is not needed any more.
    CloseNode {
        /// The stream.
        session: SessionKey,
        /// Why.
        error: ApiError,
    },
    /// Try to connect and say how it went by [`Input::Probed`].
    Probe {
        /// The node.
        node: NodeId,
        /// Over which network.
        network: Network,
        /// `ip:port`.
        address: String,
    },
    /// Where members are found has changed, or is known for the first time.
    Members(Members),
    /// Who leads has changed.
    Leader {
        /// The leader, as far as known.
        leader: Option<u64>,
        /// This member leads and answers calls.
        serving: bool,
    },
}

/// Why a member cannot go on.
#[derive(Debug, Error)]
pub enum MemberError {
    /// Raft or its memory.
    #[error(transparent)]
    Raft(#[from] DriverError),
    /// Raft's memory at the start.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The metadata store.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// Stored state that cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A committed command that this release does not understand.
    #[error("log entry {index}: {cause}")]
    Command {
        /// The entry.
        index: u64,
        /// What is wrong with it.
        cause: CommandError,
    },
    /// It is a member no more.
    #[error(
        "member {member} was removed from zone {zone}: its number is not used again; delete its \
         folder; `ashlar controlplane add` gives a new member its number"
    )]
    Removed {
        /// This member.
        member: u64,
        /// Its zone.
        zone: ZoneId,
    },
    /// Neither the metadata store nor a snapshot reaches up to where the log begins.
    #[error("state up to entry {base} is lost: neither the metadata store nor a snapshot has it")]
    StateLost {
        /// Position before the first entry of the log.
        base: u64,
    },
}

/// How a member is set up.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// Its zone.
    pub zone: ZoneId,
    /// Its part in Raft.
    pub raft: RaftOptions,
    /// `ip:port` of each member's services, this one's too; until the committed state has members.
    pub addresses: BTreeMap<u64, String>,
    /// Secret half of the zone's key, if this member is the first to lead it. Drawn by the operating
    /// system: whoever guesses it makes rights.
    pub zone_secret: [u8; 32],
    /// A test zone: chunks below 64 MiB are allowed.
    pub small_chunks: bool,
    /// Other nodes that a node shares chunks with, as long as there is any choice.
    pub peers_per_node_max: usize,
    /// Entries after which a snapshot is taken and the log is cut.
    pub compact_after: usize,
    /// Entries kept behind a snapshot, for members that are a little late.
    pub keep_entries: u64,
}

/// One member.
#[derive(Debug)]
pub struct Member {
    options: MemberOptions,
    driver: Driver,
    meta: Arc<dyn MetaStore>,
    state: ZoneState,
    /// Last applied entry, and its term.
    applied: (u64, u64),
    /// Index that the metadata store had when it was opened: batches never go below it.
    meta_floor: u64,
    /// Draws volume ids.
    dice: Box<dyn Dice>,
    lead: Option<Lead>,
    /// Members that are known by their envelopes alone.
    heard: BTreeMap<u64, String>,
    /// Where members are found has to be told.
    members_due: bool,
    /// A peer said so, or the log.
    removed: bool,
    told: Option<(Option<u64>, bool)>,
}

impl Member {
    /// Takes in one input. See [`Self::handle_all`].
    ///
    /// # Errors
    /// The member must stop; the outbox may still be sent.
    pub fn handle(
        &mut self,
        now: Now,
        input: Input,
        out: &mut Vec<Output>,
    ) -> Result<(), MemberError> {
        self.handle_all(now, [input], out)
    }

    /// Takes in everything that waits, then persists, applies, plans and answers once for all.
    ///
    /// # Errors
    /// The member must stop; the outbox may still be sent.
    pub fn handle_all(
        &mut self,
        now: Now,
        inputs: impl IntoIterator<Item = Input>,
        out: &mut Vec<Output>,
    ) -> Result<(), MemberError> {
        // A tick judges silence, so everything that waited beside it is taken in first.
        let mut ticks = 0_u32;
        for input in inputs {
            if input == Input::Tick {
                ticks += 1;
            } else {
                self.accept(now, input, out);
            }
        }
        for _ in 0..ticks {
            self.driver.tick();
        }
        self.settle(now, ticks > 0, out)
    }

    fn accept(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => {}
            // Its votes and words count no more, however late they come.
            Input::Raft { peer, .. } if self.state.is_removed(peer) => {
                tracing::debug!(peer, "a removed member speaks");
            }
            Input::PeerAt { peer, address } => self.on_peer_at(peer, address),
            Input::ToldRemoved => self.removed = true,
            Input::Raft { peer, bytes } => {
                if let Err(error) = self.driver.step(peer, bytes) {
                    tracing::warn!(peer, %error, "a member sent what is no message");
                }
            }
            Input::PeerUnreachable { peer } => self.driver.report_unreachable(peer),
            Input::Call { call, request, deadline } => {
                self.on_call(now, call, &request, deadline, out);
            }
            Input::NodeOpened { session, registration } => {
                self.on_node_opened(now, session, registration, out);
            }
            Input::NodeSaid { session, message } => {
                self.on_node_said(now, session, message, out);
            }
            Input::NodeClosed { session } => self.on_node_closed(now, session),
            Input::Probed { node, network, result } => {
                if let Some(lead) = &mut self.lead {
                    lead.seen.on_probe(now.time, node, network, result);
                    lead.plan_due = true;
                }
            }
        }
    }

    fn settle(&mut self, now: Now, tick: bool, out: &mut Vec<Output>) -> Result<(), MemberError> {
        self.check_removed()?;
        if let Some(lead) = self.lead.as_mut().filter(|_| tick) {
            lead.seen.on_tick(now.time);
            lead.plan_due = true;
        }
        for _ in 0..ROUNDS_MAX {
            let mut raft = RaftOutbox::default();
            self.driver.settle(&mut raft)?;
            out.extend(raft.messages.into_iter().map(|(to, bytes)| Output::Raft { to, bytes }));
            if let Some((index, data)) = raft.snapshot {
                self.install(index, &data)?;
            }
            self.apply_all(now, raft.committed, out)?;
            self.follow_role(now, out);
            if !self.plan_and_propose(now, out) {
                break;
            }
        }
        self.expire(now, out);
        self.finish_attachments(now, out);
        self.flush_sessions(now, out);
        self.tell_members(out);
        self.check_removed()?;
        self.compact_if_due()
    }

    /// A member that was removed ends.
    fn check_removed(&self) -> Result<(), MemberError> {
        let member = self.options.raft.id;
        if self.removed || self.state.is_removed(member) {
            return Err(MemberError::Removed { member, zone: self.options.zone });
        }
        Ok(())
    }

    /// Applies committed entries in order; their effects and the index reach the metadata store
    /// in one batch.
    fn apply_all(
        &mut self,
        now: Now,
        committed: Vec<Committed>,
        out: &mut Vec<Output>,
    ) -> Result<(), MemberError> {
        if committed.is_empty() {
            return Ok(());
        }
        let mut changed = BTreeSet::new();
        for entry in committed {
            let (index, term) = (entry.index, entry.term);
            assert_eq!(index, self.applied.0 + 1, "raft entries come in order");
            let applied = self.apply(&entry)?;
            self.applied = (index, term);
            if let Some(applied) = applied {
                changed.append(&mut applied.changed.clone());
                self.members_due |= changed.iter().any(|key| matches!(key, Key::Member(_)));
                self.on_applied(now, (index, term), applied, out);
            }
        }
        self.store(&changed)
    }

    fn apply(&mut self, entry: &Committed) -> Result<Option<Applied>, MemberError> {
        // A new leader commits an empty entry.
        if entry.data.is_empty() {
            return Ok(None);
        }
        let index = entry.index;
        let command =
            Command::decode(&entry.data).map_err(|cause| MemberError::Command { index, cause })?;
        Ok(Some(self.state.apply(&command)))
    }

    /// Tells whom it concerns what became of an entry: the call that waits for it, nodes.
    fn on_applied(
        &mut self,
        now: Now,
        position: (u64, u64),
        applied: Applied,
        out: &mut Vec<Output>,
    ) {
        let Some(lead) = &mut self.lead else { return };
        let chunks = applied
            .changed
            .iter()
            .filter_map(|key| match key {
                Key::Chunk(chunk) => Some(*chunk),
                Key::Clock
                | Key::Volume(_)
                | Key::Node(_)
                | Key::Token(_)
                | Key::Erase(..)
                | Key::Member(_)
                | Key::Revoked(_)
                | Key::Salvaged(_)
                | Key::Fenced(_)
                | Key::Draining(_)
                | Key::ErrorAfter(_)
                | Key::Growth(_)
                | Key::ZoneKey => None,
            })
            .collect();
        lead.seen.on_entry_applied(position.0);
        lead.seen.on_applied(&self.state, &chunks);
        lead.note_changed(&self.state, &applied.changed);
        for outcome in &applied.outcomes {
            match &outcome.result {
                Ok(epoch) => {
                    tracing::info!(chunk = %outcome.chunk, %epoch, "configuration changed")
                }
                Err(cause) => tracing::info!(chunk = %outcome.chunk, %cause, "change not made"),
            }
        }
        self.answer_applied(now, position, applied.answer, out);
    }

    /// Becomes leader, or stops being it, as Raft says.
    fn follow_role(&mut self, now: Now, out: &mut Vec<Output>) {
        let term = self.driver.term();
        let leads = self.driver.is_leader();
        if self.lead.as_ref().is_some_and(|lead| !leads || lead.term != term) {
            self.step_down(out);
        }
        if leads && self.lead.is_none() {
            tracing::info!(term, "this member leads now");
            self.lead = Some(Lead::new(now.time, term));
        }
        let told = (self.driver.leader(), self.is_serving());
        if self.told != Some(told) {
            self.told = Some(told);
            out.push(Output::Leader { leader: told.0, serving: told.1 });
        }
    }

    fn step_down(&mut self, out: &mut Vec<Output>) {
        let Some(lead) = self.lead.take() else { return };
        tracing::info!(term = lead.term, "this member does not lead any more");
        let error = self.not_leader();
        for session in lead.sessions.keys() {
            out.push(Output::CloseNode { session: *session, error: error.clone() });
        }
        for pending in lead.pending.into_values().flatten() {
            if let Some(call) = pending.call() {
                let error = ApiError::new(
                    Reason::NoQuorum,
                    "the leader changed before the change was seen to be committed; it may still \
                     happen: repeat the call with the same client token",
                )
                .with("outcome", "unknown");
                out.push(Output::Answer { call, result: Box::new(Err(error)) });
            }
        }
        for waiting in lead.attachments {
            let result = Box::new(Err(error.clone()));
            out.push(Output::Answer { call: waiting.call, result });
        }
    }

    /// Whether this member leads and has applied everything that was committed before it led.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.term == self.applied.1)
    }

    /// The error for whoever should talk to the leader instead.
    fn not_leader(&self) -> ApiError {
        let leader = self.driver.leader().filter(|leader| *leader != self.options.raft.id);
        match leader {
            Some(leader) => {
                let address = self.members().addresses.remove(&leader).unwrap_or_default();
                let id = self.options.raft.id;
                let text = format!("member {id} does not lead; member {leader} at {address} does");
                ApiError::new(Reason::NotLeader, text)
                    .with("leader", leader.to_string())
                    .with("leader_address", address)
            }
            None => api_error::no_quorum(),
        }
    }

    /// The committed state, for tests and the simulator.
    #[must_use]
    pub const fn state(&self) -> &ZoneState {
        &self.state
    }

    /// How it stands in Raft.
    #[must_use]
    pub fn raft_status(&self) -> ashlar_zone_raft::RaftStatus {
        self.driver.status()
    }

    /// Last applied entry.
    #[must_use]
    pub const fn applied_index(&self) -> u64 {
        self.applied.0
    }
}
