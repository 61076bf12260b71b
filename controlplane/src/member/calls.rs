//! Calls of clients: checked, answered from the state, or committed and then answered.
//!
//! Every call gets exactly one answer: at once, when its entry is applied, when its attachment is
//! adopted, when its deadline comes, or when this member stops leading.

use super::lead::{Attaching, CallKind, Lead, NODES_RETURN_WITHIN, Pending};
use super::members::{self, Planned};
use super::{CallId, Member, Now, Output, Reply, Request, view};
use crate::errors::{self, api_error};
use ashlar_controlplane_core::apply::{Answer, Refusal};
use ashlar_controlplane_core::command::{Action, ErrorAfter, Placement, TokenUse, request_hash};
use ashlar_controlplane_core::describe;
use ashlar_controlplane_core::place::{self, NoPlacement};
use ashlar_controlplane_core::state::Volume;
use ashlar_controlplane_core::verdict;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::token::{Grant, Rights, Signs, TOKEN_LIFE_SECONDS, Verifies};
use ashlar_proto::v1;
use ashlar_types::limit::{
    CHUNK_BYTES_MIN, CHUNKS_AT_CREATION_MAX, CLIENT_TOKEN_BYTES_MAX, ERROR_AFTER_MILLIS_MAX,
    ERROR_AFTER_MILLIS_MIN, VOLUME_NAME_BYTES_MAX,
};
use ashlar_types::{Generation, Geometry, GeometryError, Time, VolumeId};
use std::collections::BTreeSet;
use std::time::Duration;

/// Copies when the caller names no number.
const COPIES_DEFAULT: u32 = 3;
/// Most copies of a volume.
const COPIES_MAX: u32 = 5;
/// Longest name of a client, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 128;

/// What becomes of a call.
#[allow(clippy::large_enum_variant, reason = "one at a time, for the length of a call")]
pub(super) enum Step {
    /// It has its answer.
    Done(Reply),
    /// This is committed first.
    Commit(CallKind, Action),
    /// This change of members is committed first.
    Members(CallKind, Planned),
    /// It was committed before; the attachment may still wait.
    Attached(Volume),
}

impl Member {
    pub(super) fn on_call(
        &mut self,
        now: Now,
        call: CallId,
        request: &Request,
        deadline: Time,
        out: &mut Vec<Output>,
    ) {
        let step = self.begin(now, request);
        let result = match step {
            Ok(Step::Done(reply)) => {
                out.push(Output::Answer { call, result: Box::new(Ok(reply)) });
                return;
            }
            Err(error) => Err(error),
            Ok(Step::Attached(volume)) => {
                self.wait_for_adoption(call, &volume, deadline);
                return;
            }
            Ok(Step::Commit(kind, action)) => {
                let proposed = self.check_pending().and_then(|()| self.propose(now, action));
                proposed.map(|index| (kind, index))
            }
            Ok(Step::Members(kind, planned)) => {
                let proposed =
                    self.check_pending().and_then(|()| self.propose_members(now, planned));
                proposed.map(|index| (kind, index))
            }
        };
        let result = match result {
            Err(error) => Err(error),
            Ok((kind, index)) => {
                let term = self.driver.term();
                if let Some(lead) = &mut self.lead {
                    let pending = Pending::Call { term, call, kind, deadline };
                    lead.pending.insert(index, Some(pending));
                }
                return;
            }
        };
        out.push(Output::Answer { call, result: Box::new(result) });
    }

    fn begin(&mut self, now: Now, request: &Request) -> Result<Step, ApiError> {
        if !self.is_serving() {
            return Err(self.not_leader());
        }
        match request {
            Request::CreateVolume(request) => self.create(now, request),
            Request::DeleteVolume(request) => self.delete(request),
            Request::GrowVolume(request) => self.grow_volume(now, request),
            Request::AttachVolume(request) => self.attach(now, request),
            Request::DetachVolume(request) => self.detach(now, request),
            Request::SalvageVolume(request) => self.salvage(now, request),
            Request::AcknowledgeRisk(request) => self.acknowledge_risk(now, request),
            Request::ListVolumes(request) => {
                self.list(now, request).map(Reply::ListVolumes).map(Step::Done)
            }
            Request::GetVolume(request) => {
                let volume = self.find(&request.volume)?;
                let volume = Some(self.view(now).whole_volume(volume));
                let unreachable_zones = Vec::new();
                let reply = v1::GetVolumeResponse { volume, unreachable_zones };
                Ok(Step::Done(Reply::GetVolume(reply)))
            }
            Request::GetVolumeMap(request) => {
                let volume = self.find(&request.volume)?;
                let map = Some(self.view(now).map(volume));
                let token = self.renewed(now, volume, &request.token).unwrap_or_default();
                Ok(Step::Done(Reply::GetVolumeMap(v1::GetVolumeMapResponse { map, token })))
            }
            Request::GetStatus(_) => Ok(Step::Done(Reply::GetStatus(self.status(now)))),
            Request::ListMembers(_) => Ok(Step::Done(Reply::ListMembers(self.list_members()))),
            Request::AddMember(request) => self.add_member(request),
            Request::RemoveMember(request) => self.remove_member(request),
            Request::JoinMember(request) => self.join_member(request),
            Request::ReportLostMember(request) => self.report_lost(request),
            Request::DrainNode(request) => self.drain_node(now, request),
            Request::ListNodes(_) => {
                let nodes = self.view(now).nodes();
                let unreachable_zones = Vec::new();
                let reply = v1::ListNodesResponse { nodes, unreachable_zones };
                Ok(Step::Done(Reply::ListNodes(reply)))
            }
        }
    }

    pub(super) fn find(&self, id_or_name: &str) -> Result<&Volume, ApiError> {
        if let Some(volume) = self.state.find_volume(id_or_name) {
            return Ok(volume);
        }
        if let Ok(id) = id_or_name.parse::<VolumeId>()
            && id.zone != self.options.zone
        {
            let text =
                format!("{id} belongs to zone {}, this is zone {}", id.zone, self.options.zone);
            return Err(ApiError::new(Reason::UnknownZone, text).with("zone", id.zone.to_string()));
        }
        if id_or_name.is_empty() {
            return Err(api_error::invalid("volume", "an id or a name is needed"));
        }
        Err(api_error::not_found(id_or_name))
    }

    /// The answer of an earlier call with the same token.
    pub(super) fn replayed(&self, token: Option<&TokenUse>) -> Result<Option<Answer>, ApiError> {
        let answer = self.state.replay(token).map_err(|refusal| errors::refusal(&refusal, None))?;
        Ok(answer.cloned())
    }

    fn create(&mut self, now: Now, request: &v1::CreateVolumeRequest) -> Result<Step, ApiError> {
        let token = creation_token(request)?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(self.created(now, answer)));
        }
        check_name(&request.name)?;
        let error_after = error_after(request.error_after_millis)?;
        let geometry =
            geometry(request.size_bytes, request.chunk_bytes, self.options.small_chunks)?;
        let copies = if request.copies == 0 { COPIES_DEFAULT } else { request.copies };
        if copies > COPIES_MAX {
            return Err(api_error::invalid("copies", format!("1 to {COPIES_MAX} copies")));
        }
        let copies_wanted = u8::try_from(copies).unwrap_or(1);
        let copies_min = if copies_wanted >= 3 { 2 } else { 1 };
        if let Some(taken) = self.state.find_volume(&request.name)
            && !request.name.is_empty()
        {
            let refusal = Refusal::NameTaken { by: taken.id };
            return Err(errors::refusal(&refusal, None));
        }
        let Some(lead) = &self.lead else { return Err(self.not_leader()) };
        let verdicts = verdict::judge_all(now.time, &self.state, &lead.seen);
        let space = lead.space(&self.state, &verdicts, self.options.peers_per_node_max);
        let placement = place::place_volume(geometry, usize::from(copies_wanted), space)
            .map_err(|error| self.not_placed(now, lead, &error))?;
        let volume = self.draw_volume_id(now);
        if request.dry_run {
            let planned = Volume {
                id: volume,
                name: request.name.clone(),
                geometry,
                copies_wanted,
                copies_min,
                ready: false,
                generation: Generation(0),
                attachment: None,
                created_millis: now.wall_millis,
            };
            return Ok(Step::Done(self.planned(now, &planned, &placement, error_after)));
        }
        let name = request.name.clone();
        let action = Action::CreateVolume {
            token,
            volume,
            name,
            geometry,
            copies_wanted,
            copies_min,
            placement,
            error_after,
        };
        Ok(Step::Commit(CallKind::Create, action))
    }

    /// Nodes that have not found a new leader yet are no lack of space.
    pub(super) fn not_placed(&self, now: Now, lead: &Lead, error: &NoPlacement) -> ApiError {
        let heard = |node| lead.seen.node(node).is_some_and(|view| view.last_beat.is_some());
        let awaited = self.state.nodes().any(|record| !heard(record.node));
        if awaited && now.time.since(lead.since) < NODES_RETURN_WITHIN {
            return api_error::just_elected();
        }
        errors::no_placement(error, &self.options.zone.to_string())
    }

    /// The answer of a dry run.
    fn planned(
        &self,
        now: Now,
        volume: &Volume,
        placement: &Placement,
        error_after: ErrorAfter,
    ) -> Reply {
        let nodes: BTreeSet<u32> = placement.0.iter().flatten().map(|place| place.node.0).collect();
        Reply::CreateVolume(v1::CreateVolumeResponse {
            volume: Some(v1::Volume {
                error_after_millis: error_after.millis,
                ..self.view(now).volume(volume)
            }),
            dry_run: true,
            nodes: nodes.into_iter().collect(),
        })
    }

    /// A UUID of version 7: ids sort by creation.
    fn draw_volume_id(&mut self, now: Now) -> VolumeId {
        const VERSION: u128 = 0x7 << 76;
        const VARIANT: u128 = 0x2 << 62;
        const FIXED: u128 = 0xf << 76 | 0x3 << 62;
        let random = self.dice.next_u128() >> 48;
        let time = u128::from(now.wall_millis) << 80;
        VolumeId { zone: self.options.zone, uuid: (time | random) & !FIXED | VERSION | VARIANT }
    }

    fn delete(&mut self, request: &v1::DeleteVolumeRequest) -> Result<Step, ApiError> {
        let parameters: &[&[u8]] = &[request.volume.as_bytes(), &[u8::from(request.force)]];
        let token = token(&request.client_token, 2, parameters)?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(deleted(&answer, false)));
        }
        let volume = self.find(&request.volume)?;
        if let Some(attachment) = volume.attachment.as_ref().filter(|_| !request.force) {
            return Err(attached(volume, &attachment.client_name));
        }
        if request.dry_run {
            return Ok(Step::Done(deleted(&Answer::Deleted { volume: volume.id }, true)));
        }
        let (volume, force) = (volume.id, request.force);
        Ok(Step::Commit(CallKind::Delete, Action::DeleteVolume { token, volume, force }))
    }

    fn attach(&mut self, now: Now, request: &v1::AttachVolumeRequest) -> Result<Step, ApiError> {
        let name = &request.client_name;
        // A client that died before it had the answer asks again as another process, and perhaps
        // with more insistence: it is the same attachment.
        let token = token(&request.client_token, 3, &[request.volume.as_bytes()])?;
        let stated = stated(request)?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return match answer {
                Answer::Volume { volume } => match stated {
                    Some(by) => Ok(Step::Commit(CallKind::Attach, fenced(&volume, by))),
                    None => Ok(Step::Attached(volume)),
                },
                Answer::Done {} | Answer::Deleted { .. } | Answer::Member { .. } => Err(mismatch()),
            };
        }
        if name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX {
            let problem = format!("1 to {CLIENT_NAME_BYTES_MAX} bytes are needed");
            return Err(api_error::invalid("client_name", problem));
        }
        let volume = self.find(&request.volume)?;
        if let Some(attachment) = volume.attachment.as_ref().filter(|_| !request.force) {
            return Err(attached(volume, &attachment.client_name));
        }
        if request.dry_run {
            let map = Some(self.view(now).map(volume));
            let reply = v1::AttachVolumeResponse { map, token: Vec::new(), dry_run: true };
            return Ok(Step::Done(Reply::AttachVolume(reply)));
        }
        let (volume, client_name, force) = (volume.id, name.clone(), request.force);
        let kind = stated.map_or(CallKind::Attach, CallKind::AttachFenced);
        Ok(Step::Commit(kind, Action::Attach { token, volume, client_name, force }))
    }

    fn detach(&mut self, now: Now, request: &v1::DetachVolumeRequest) -> Result<Step, ApiError> {
        let token = token(
            &request.client_token,
            4,
            &[
                request.volume.as_bytes(),
                &request.generation.to_le_bytes(),
                &[u8::from(request.force)],
            ],
        )?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(self.detached(now, answer, false)));
        }
        let volume = self.find(&request.volume)?;
        let generation = Generation(request.generation);
        let Some(attachment) = &volume.attachment else {
            return Err(errors::refusal(&Refusal::NotAttached, Some(volume.id)));
        };
        if generation == Generation(0) && !request.force {
            return Err(attached(volume, &attachment.client_name));
        }
        if generation != Generation(0) && generation != volume.generation {
            let refusal = Refusal::OtherGeneration { current: volume.generation };
            return Err(errors::refusal(&refusal, Some(volume.id)));
        }
        if request.dry_run {
            let answer = Answer::Volume { volume: volume.clone() };
            return Ok(Step::Done(self.detached(now, answer, true)));
        }
        let (volume, force) = (volume.id, request.force);
        Ok(Step::Commit(CallKind::Detach, Action::Detach { token, volume, generation, force }))
    }

    fn list(
        &self,
        now: Now,
        request: &v1::ListVolumesRequest,
    ) -> Result<v1::ListVolumesResponse, ApiError> {
        const PAGE_MAX: u32 = 1_000;
        let size = match request.page_size {
            0 => 100,
            size if size <= PAGE_MAX => size as usize,
            _ => return Err(api_error::invalid("page_size", format!("at most {PAGE_MAX}"))),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| api_error::invalid("page_token", "not one that was given out"))?,
            ),
        };
        let view = self.view(now);
        let mut rest = self.state.volumes_after(after).peekable();
        let page: Vec<&Volume> = rest.by_ref().take(size).collect();
        let last = page.last().filter(|_| rest.peek().is_some());
        Ok(v1::ListVolumesResponse {
            next_page_token: last.map(|volume| volume.id.to_string()).unwrap_or_default(),
            volumes: page.into_iter().map(|volume| view.volume(volume)).collect(),
            unreachable_zones: Vec::new(),
        })
    }

    fn created(&self, now: Now, answer: Answer) -> Reply {
        let (volume, nodes) = match answer {
            Answer::Volume { volume } => {
                let nodes: BTreeSet<u32> = self
                    .state
                    .volume_configs(volume.id)
                    .flat_map(|config| config.replicas().map(|replica| replica.node.0))
                    .collect();
                (Some(self.view(now).volume(&volume)), nodes.into_iter().collect())
            }
            Answer::Done {} | Answer::Deleted { .. } | Answer::Member { .. } => (None, Vec::new()),
        };
        Reply::CreateVolume(v1::CreateVolumeResponse { volume, dry_run: false, nodes })
    }

    fn detached(&self, now: Now, answer: Answer, dry_run: bool) -> Reply {
        let volume = match answer {
            Answer::Volume { volume } => Some(self.view(now).volume(&volume)),
            Answer::Done {} | Answer::Deleted { .. } | Answer::Member { .. } => None,
        };
        Reply::DetachVolume(v1::DetachVolumeResponse { volume, dry_run })
    }

    /// An entry was applied: whoever waits for it is answered.
    pub(super) fn answer_applied(
        &mut self,
        now: Now,
        (index, term): (u64, u64),
        answer: Result<Answer, Refusal>,
        out: &mut Vec<Output>,
    ) {
        let Some(lead) = &mut self.lead else { return };
        let Some(Some(pending)) = lead.pending.remove(&index) else { return };
        match pending {
            Pending::Node { term: proposed, session } if proposed == term => {
                self.on_registered(now, session, answer, out);
            }
            Pending::Call { term: proposed, call, kind, deadline } if proposed == term => {
                let result = match answer {
                    Err(refusal) => Err(errors::refusal(&refusal, None)),
                    Ok(Answer::Volume { volume }) if kind == CallKind::Attach => {
                        self.wait_for_adoption(call, &volume, deadline);
                        return;
                    }
                    Ok(Answer::Volume { volume }) if matches!(kind, CallKind::AttachFenced(_)) => {
                        let CallKind::AttachFenced(by) = kind else { return };
                        self.commit_statement(now, (call, deadline), &volume, by, out);
                        return;
                    }
                    Ok(answer) => Ok(match kind {
                        CallKind::Create => self.created(now, answer),
                        CallKind::Delete => deleted(&answer, false),
                        CallKind::Grow => self.grown(now, answer),
                        CallKind::Attach | CallKind::AttachFenced(_) | CallKind::Detach => {
                            self.detached(now, answer, false)
                        }
                        CallKind::AddMember => self.added(&answer, false),
                        CallKind::RemoveMember => members::removed(&answer, false),
                        CallKind::JoinMember(member) => self.joined(member),
                        CallKind::ReportLost => {
                            Reply::ReportLostMember(v1::ReportLostMemberResponse {})
                        }
                        CallKind::Salvage(planned) => self.salvaged(now, &answer, *planned),
                        CallKind::Acknowledge(risks) => self.acknowledged(now, &answer, risks),
                        CallKind::Drain(node, expected) => {
                            self.drain_answer(now, node, expected, false)
                        }
                    }),
                };
                out.push(Output::Answer { call, result: Box::new(result) });
            }
            // Another leader's entry took the place; leadership changed, which answers all.
            Pending::Node { .. } => {}
            Pending::Call { call, .. } => {
                let result = Box::new(Err(self.not_leader()));
                out.push(Output::Answer { call, result });
            }
        }
    }

    /// The attachment is committed; what the operator says of the client before it follows.
    fn commit_statement(
        &mut self,
        now: Now,
        (call, deadline): (CallId, Time),
        volume: &Volume,
        by: String,
        out: &mut Vec<Output>,
    ) {
        match self.propose(now, fenced(volume, by)) {
            Ok(index) => {
                let term = self.driver.term();
                if let Some(lead) = &mut self.lead {
                    let pending = Pending::Call { term, call, kind: CallKind::Attach, deadline };
                    lead.pending.insert(index, Some(pending));
                }
            }
            Err(error) => out.push(Output::Answer { call, result: Box::new(Err(error)) }),
        }
    }

    fn wait_for_adoption(&mut self, call: CallId, volume: &Volume, deadline: Time) {
        let Some(lead) = &mut self.lead else { return };
        lead.attachments.push(Attaching {
            call,
            volume: volume.id,
            generation: volume.generation,
            deadline,
        });
        lead.attachments_due = true;
    }

    /// Answers attachments whose generation is safely adopted, or which have ended meanwhile.
    pub(super) fn finish_attachments(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(lead) = self.lead.as_mut().filter(|lead| lead.attachments_due) else { return };
        lead.attachments_due = false;
        let waiting = std::mem::take(&mut lead.attachments);
        let mut still = Vec::new();
        for attaching in waiting {
            match self.adopted(now, &attaching) {
                None => still.push(attaching),
                Some(result) => {
                    let result = Box::new(result);
                    out.push(Output::Answer { call: attaching.call, result });
                }
            }
        }
        if let Some(lead) = &mut self.lead {
            lead.attachments = still;
        }
    }

    fn adopted(&self, now: Now, attaching: &Attaching) -> Option<Result<Reply, ApiError>> {
        let lead = self.lead.as_ref()?;
        let Some(volume) = self.state.volume(attaching.volume) else {
            return Some(Err(api_error::not_found(&attaching.volume.to_string())));
        };
        if volume.generation != attaching.generation {
            let refusal = Refusal::OtherGeneration { current: volume.generation };
            return Some(Err(errors::refusal(&refusal, Some(volume.id))));
        }
        let generation = attaching.generation;
        let blocked = describe::attach_blocked_on(volume, generation, &self.state, &lead.seen);
        // Nodes admit nobody before the zone has its key.
        let token = self.token_for(now, volume, Rights::ReadWrite)?;
        blocked.is_empty().then(|| {
            let map = Some(self.view(now).map(volume));
            Ok(Reply::AttachVolume(v1::AttachVolumeResponse { map, token, dry_run: false }))
        })
    }

    /// A fresh token for who has one of the present attachment, however old: with its rights, as
    /// otherwise who may only read could renew until it may write.
    fn renewed(&self, now: Now, volume: &Volume, token: &[u8]) -> Option<Vec<u8>> {
        let public = Signs::from_secret(self.state.zone_key()?).public();
        let grant = Verifies::from_public(&public)?.read(token).ok()?;
        let present = volume.attachment.is_some()
            && (grant.volume, grant.generation) == (volume.id, volume.generation);
        present.then(|| self.token_for(now, volume, grant.rights)).flatten()
    }

    /// The signed right of the volume's present attachment.
    fn token_for(&self, now: Now, volume: &Volume, rights: Rights) -> Option<Vec<u8>> {
        let signs = Signs::from_secret(self.state.zone_key()?);
        Some(signs.sign(&Grant {
            volume: volume.id,
            generation: volume.generation,
            rights,
            expires: now.wall_millis / 1_000 + TOKEN_LIFE_SECONDS,
        }))
    }

    /// Answers calls whose deadline has come.
    pub(super) fn expire(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(lead) = &mut self.lead else { return };
        for pending in lead.pending.values_mut() {
            if let Some(Pending::Call { call, deadline, .. }) = pending
                && *deadline <= now.time
            {
                let result = Box::new(Err(api_error::deadline()));
                out.push(Output::Answer { call: *call, result });
                *pending = None;
            }
        }
        let (late, still): (Vec<_>, Vec<_>) = std::mem::take(&mut lead.attachments)
            .into_iter()
            .partition(|attaching| attaching.deadline <= now.time);
        lead.attachments = still;
        for attaching in late {
            let error = self.pending_adoption(&attaching);
            out.push(Output::Answer { call: attaching.call, result: Box::new(Err(error)) });
        }
    }

    fn pending_adoption(&self, attaching: &Attaching) -> ApiError {
        let blocked: Vec<String> = match (self.state.volume(attaching.volume), &self.lead) {
            (Some(volume), Some(lead)) => {
                describe::attach_blocked_on(volume, attaching.generation, &self.state, &lead.seen)
                    .iter()
                    .map(ToString::to_string)
                    .collect()
            }
            _ => Vec::new(),
        };
        let blocked = blocked.join(", ");
        ApiError::new(
            Reason::AdoptionPending,
            format!(
                "generation {} of {} is committed, but no in-sync replica of some chunks has \
                 adopted it yet; blocked on {blocked}; repeat the call with the same client token, or \
                 state that the client before never writes again (old_client_fenced)",
                attaching.generation, attaching.volume
            ),
        )
        .with("blocked_on", blocked)
        .with("generation", attaching.generation.to_string())
        .retry_after(Duration::from_secs(1))
    }

    pub(super) fn view(&self, now: Now) -> view::View<'_> {
        view::View::new(now, self)
    }
}

/// Who states that the client before never writes again, if anybody does.
fn stated(request: &v1::AttachVolumeRequest) -> Result<Option<String>, ApiError> {
    if !request.old_client_fenced {
        return Ok(None);
    }
    let by = &request.operator;
    if by.is_empty() || by.len() > CLIENT_NAME_BYTES_MAX {
        let problem = format!("who says so, for the record: 1 to {CLIENT_NAME_BYTES_MAX} bytes");
        return Err(api_error::invalid("operator", problem));
    }
    Ok(Some(by.clone()))
}

/// The statement as it is committed, and as the log has it for whoever asks later.
fn fenced(volume: &Volume, by: String) -> Action {
    let (volume, generation) = (volume.id, volume.generation);
    tracing::warn!(
        %volume, %generation, %by,
        "an operator states that the client before never writes again; the attachment waits for no node"
    );
    Action::StateFenced { volume, generation, by }
}

fn deleted(answer: &Answer, dry_run: bool) -> Reply {
    let volume_id = match answer {
        Answer::Deleted { volume } => volume.to_string(),
        Answer::Volume { volume } => volume.id.to_string(),
        Answer::Done {} | Answer::Member { .. } => String::new(),
    };
    Reply::DeleteVolume(v1::DeleteVolumeResponse { volume_id, dry_run })
}

fn mismatch() -> ApiError {
    errors::refusal(&Refusal::TokenMismatch, None)
}

fn attached(volume: &Volume, client_name: &str) -> ApiError {
    let refusal =
        Refusal::Attached { client_name: client_name.to_owned(), generation: volume.generation };
    errors::refusal(&refusal, Some(volume.id))
}

pub(super) fn token(
    text: &str,
    call: u8,
    parameters: &[&[u8]],
) -> Result<Option<TokenUse>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > CLIENT_TOKEN_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = format!("at most {CLIENT_TOKEN_BYTES_MAX} printable ASCII characters");
        return Err(api_error::invalid("client_token", problem));
    }
    let request_hash = request_hash(call, parameters);
    Ok(Some(TokenUse { token: text.to_owned(), request_hash }))
}

/// What is bound to the caller's token. What earlier releases did not know counts only where it is said,
/// so that a call that is repeated across an update is the same one.
fn creation_token(request: &v1::CreateVolumeRequest) -> Result<Option<TokenUse>, ApiError> {
    let numbers = (request.size_bytes.to_le_bytes(), request.copies.to_le_bytes());
    let (chunk, error_after) =
        (request.chunk_bytes.to_le_bytes(), request.error_after_millis.to_le_bytes());
    let mut parameters: Vec<&[u8]> = vec![request.name.as_bytes(), &numbers.0, &numbers.1, &chunk];
    if request.error_after_millis != 0 {
        parameters.push(&error_after);
    }
    token(&request.client_token, 1, &parameters)
}

/// How long requests of the volume wait, if that is a time that can be meant.
fn error_after(millis: u64) -> Result<ErrorAfter, ApiError> {
    let range = ERROR_AFTER_MILLIS_MIN..=ERROR_AFTER_MILLIS_MAX;
    if millis == 0 || range.contains(&millis) {
        return Ok(ErrorAfter { millis });
    }
    let problem = format!(
        "{millis} ms: give it {ERROR_AFTER_MILLIS_MIN} (a fail-over takes some seconds) to \
         {ERROR_AFTER_MILLIS_MAX}, or 0 to wait for ever"
    );
    Err(api_error::invalid("error_after_millis", problem))
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.len() > VOLUME_NAME_BYTES_MAX || !name.bytes().all(good) || name.starts_with("vol-") {
        let problem = format!(
            "at most {VOLUME_NAME_BYTES_MAX} characters of a-z A-Z 0-9 . _ - that do not start \
             with vol-"
        );
        return Err(api_error::invalid("name", problem));
    }
    Ok(())
}

fn geometry(size_bytes: u64, chunk_bytes: u64, small: bool) -> Result<Geometry, ApiError> {
    if chunk_bytes != 0 && chunk_bytes < CHUNK_BYTES_MIN && !small {
        let problem = format!(
            "a chunk has at least {CHUNK_BYTES_MIN} bytes; name a power of two from there on, or 0 for \
             one that fits the volume (only a zone for tests, whose members have small_chunks = true, \
             has smaller ones)"
        );
        return Err(api_error::invalid("chunk_bytes", problem));
    }
    let geometry = match chunk_bytes {
        0 => Geometry::for_new_volume(size_bytes),
        chosen => Geometry::new(size_bytes, chosen),
    };
    let geometry = geometry.map_err(|error| match error {
        GeometryError::Empty | GeometryError::TooLarge => {
            ApiError::field(Reason::UnsupportedSize, "size_bytes", error.to_string())
        }
        GeometryError::ChunkSize | GeometryError::OutOfRange => {
            api_error::invalid("chunk_bytes", error.to_string())
        }
    })?;
    if u64::from(geometry.chunk_count()) > CHUNKS_AT_CREATION_MAX {
        let problem = format!("a volume starts with at most {CHUNKS_AT_CREATION_MAX} chunks");
        return Err(api_error::invalid("chunk_bytes", problem));
    }
    Ok(geometry)
}
