//! `SalvageVolume` and `AcknowledgeRisk`: an operator's word about what is lost (decisions/0011).
//!
//! What may be done is decided by `controlplane/core`: `rescue.rs` by what this leader sees,
//! `salvage.rs` by what is committed. This file reads the call and writes the answer. A call that is
//! repeated with its token is told what is on record, not what was planned then.

use super::calls::{self, Step};
use super::lead::CallKind;
use super::{Member, Now, Reply};
use crate::errors::{self, api_error};
use ashlar_controlplane_core::apply::Answer;
use ashlar_controlplane_core::command::{Action, CHANGES_PER_COMMAND_MAX, Place, TokenUse};
use ashlar_controlplane_core::rescue::{self, ChunkRescue, Rescue, Wish};
use ashlar_controlplane_core::salvage::AtRisk;
use ashlar_controlplane_core::state::{Volume, ZoneState};
use ashlar_controlplane_core::verdict;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::{ChunkIndex, IdError, NodeId, StoreId};
use std::collections::BTreeSet;

/// Longest name of an operator, in bytes.
const OPERATOR_BYTES_MAX: usize = 128;
/// Most nodes, stores and chunks that a call names: as many chunks as a volume has.
const NAMED_MAX: usize = 65_536;

impl Member {
    pub(super) fn salvage(
        &mut self,
        now: Now,
        request: &v1::SalvageVolumeRequest,
    ) -> Result<Step, ApiError> {
        let token = token_of(request)?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(self.salvaged(
                now,
                &answer,
                v1::SalvageVolumeResponse::default(),
            )));
        }
        let wish = wish_of(request)?;
        let by = request.operator.clone();
        if by.is_empty() || by.len() > OPERATOR_BYTES_MAX {
            let problem = format!("who says so, for the record: 1 to {OPERATOR_BYTES_MAX} bytes");
            return Err(api_error::invalid("operator", problem));
        }
        let volume = self.find(&request.volume)?;
        let Some(lead) = &self.lead else { return Err(self.not_leader()) };
        if !lead.seen.may_judge(now.time) {
            return Err(api_error::just_elected());
        }
        let verdicts = verdict::judge_all(now.time, &self.state, &lead.seen);
        let rescue = rescue::rescue(volume, &wish, &self.state, &lead.seen, &verdicts)
            .map_err(|refusal| errors::wish(&refusal))?;
        let planned = self.planned_salvage(now, volume, &rescue);
        if request.dry_run {
            let reply = v1::SalvageVolumeResponse { dry_run: true, ..planned };
            return Ok(Step::Done(Reply::SalvageVolume(reply)));
        }
        if let Some(blocked) = rescue.blocked() {
            return Err(errors::not_salvaged(blocked));
        }
        let chunks = rescue.salvages();
        if chunks.is_empty() {
            let text = format!(
                "no chunk of {} that was asked for needs a salvage: a replica in sync lives in each \
                 of them; a dry run names it",
                volume.id
            );
            return Err(ApiError::new(Reason::NothingToSalvage, text));
        }
        if chunks.len() > CHANGES_PER_COMMAND_MAX {
            let problem = format!("at most {CHANGES_PER_COMMAND_MAX} at a time: name some of them");
            return Err(api_error::invalid("chunks", problem));
        }
        let (volume, fenced) = (volume.id, rescue.revoked.into_iter().collect());
        tracing::warn!(%volume, chunks = chunks.len(), operator = %by, "a salvage is proposed");
        let action = Action::Salvage { token, volume, chunks, fenced, by };
        Ok(Step::Commit(CallKind::Salvage(Box::new(planned)), action))
    }

    fn planned_salvage(
        &self,
        now: Now,
        volume: &Volume,
        rescue: &Rescue,
    ) -> v1::SalvageVolumeResponse {
        v1::SalvageVolumeResponse {
            volume: Some(self.view(now).whole_volume(volume)),
            chunks: rescue.chunks.iter().map(|one| chunk_of(volume, one)).collect(),
            revoked: rescue.revoked.iter().copied().map(revoked_store).collect(),
            dry_run: false,
        }
    }

    /// The answer once it is committed, or was before: then nothing is `planned`.
    pub(super) fn salvaged(
        &self,
        now: Now,
        answer: &Answer,
        planned: v1::SalvageVolumeResponse,
    ) -> Reply {
        let mut reply = v1::SalvageVolumeResponse { volume: None, ..planned };
        if let Some(volume) = self.answered(answer) {
            if reply.chunks.is_empty() {
                reply.chunks = at_risk(volume, &self.state).into_iter().map(from_record).collect();
            }
            reply.volume = Some(self.view(now).whole_volume(volume));
        }
        Reply::SalvageVolume(reply)
    }

    pub(super) fn acknowledge_risk(
        &mut self,
        now: Now,
        request: &v1::AcknowledgeRiskRequest,
    ) -> Result<Step, ApiError> {
        let token = calls::token(&request.client_token, 8, &[request.volume.as_bytes()])?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(self.acknowledged(now, &answer, Vec::new())));
        }
        let volume = self.find(&request.volume)?;
        let risks = at_risk(volume, &self.state);
        if request.dry_run {
            let volume = Some(self.view(now).whole_volume(volume));
            let reply = v1::AcknowledgeRiskResponse { volume, acknowledged: risks, dry_run: true };
            return Ok(Step::Done(Reply::AcknowledgeRisk(reply)));
        }
        let action = Action::AcknowledgeSalvage { token, volume: volume.id };
        Ok(Step::Commit(CallKind::Acknowledge(risks), action))
    }

    pub(super) fn acknowledged(
        &self,
        now: Now,
        answer: &Answer,
        acknowledged: Vec<v1::ChunkAtRisk>,
    ) -> Reply {
        let volume = self.answered(answer).map(|volume| self.view(now).whole_volume(volume));
        Reply::AcknowledgeRisk(v1::AcknowledgeRiskResponse { volume, acknowledged, dry_run: false })
    }

    /// The volume of an answer, as it is now; as it was then if it is deleted since.
    fn answered<'a>(&'a self, answer: &'a Answer) -> Option<&'a Volume> {
        match answer {
            Answer::Volume { volume } => Some(self.state.volume(volume.id).unwrap_or(volume)),
            Answer::Done {} | Answer::Deleted { .. } | Answer::Member { .. } => None,
        }
    }
}

/// What salvages of a volume may have lost, in order of chunk.
pub(super) fn at_risk(volume: &Volume, state: &ZoneState) -> Vec<v1::ChunkAtRisk> {
    let record = |index: ChunkIndex, risk: &AtRisk| {
        let (offset_bytes, length_bytes) = range_of(volume, index);
        v1::ChunkAtRisk {
            index: index.0,
            offset_bytes,
            length_bytes,
            complete_to: risk.complete_to.0,
            epoch: risk.epoch.0,
            primary: Some(risk.primary.into()),
            at_unix_millis: risk.at_millis,
            by: risk.by.clone(),
        }
    };
    state.at_risk(volume.id).map(|(chunk, risk)| record(chunk.index, risk)).collect()
}

/// Where a chunk begins in its volume and how long it is, in bytes: the last one may be cut.
fn range_of(volume: &Volume, index: ChunkIndex) -> (u64, u64) {
    let (size, chunk) = (volume.geometry.size_bytes(), volume.geometry.chunk_bytes());
    let offset = u64::from(index.0).saturating_mul(chunk);
    (offset, size.saturating_sub(offset).min(chunk))
}

fn chunk_of(volume: &Volume, one: &ChunkRescue) -> v1::ChunkSalvage {
    let mut chunk = v1::ChunkSalvage { index: one.chunk.index.0, ..Default::default() };
    match &one.step {
        rescue::Step::TakesOver { primary, complete_to, .. } => {
            chunk.set_step(v1::SalvageStep::TakesOver);
            chunk.replica = Some((*primary).into());
            chunk.complete_to = complete_to.0;
            (chunk.offset_bytes, chunk.length_bytes) = range_of(volume, one.chunk.index);
            chunk.cause = format!(
                "{} takes over; what was acknowledged after epoch {complete_to} may be lost",
                primary.node
            );
        }
        rescue::Step::LeftAlone { lives } => {
            chunk.set_step(v1::SalvageStep::LeftAlone);
            chunk.replica = Some((*lives).into());
            chunk.cause = format!("{} is in sync and not declared dead", lives.node);
        }
        rescue::Step::NotFenced { away } => {
            chunk.set_step(v1::SalvageStep::NotFenced);
            chunk.blocked_on = away.iter().map(|replica| (*replica).into()).collect();
            chunk.cause = errors::not_salvaged(one).message;
        }
        rescue::Step::NoCandidate { .. } => {
            chunk.set_step(v1::SalvageStep::NoCandidate);
            chunk.cause = errors::not_salvaged(one).message;
        }
    }
    chunk
}

/// A chunk that was salvaged before, from the record.
fn from_record(risk: v1::ChunkAtRisk) -> v1::ChunkSalvage {
    v1::ChunkSalvage {
        index: risk.index,
        step: v1::SalvageStep::TakesOver.into(),
        replica: risk.primary,
        complete_to: risk.complete_to,
        offset_bytes: risk.offset_bytes,
        length_bytes: risk.length_bytes,
        blocked_on: Vec::new(),
        cause: "it was salvaged by this call before".to_owned(),
    }
}

fn revoked_store(place: Place) -> v1::RevokedStore {
    v1::RevokedStore { node: place.node.0, store: place.store.to_string() }
}

fn token_of(request: &v1::SalvageVolumeRequest) -> Result<Option<TokenUse>, ApiError> {
    let numbers = |numbers: &[u32]| -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    };
    calls::token(
        &request.client_token,
        7,
        &[
            request.volume.as_bytes(),
            &numbers(&request.chunks),
            &numbers(&request.fenced_nodes),
            request.fenced_stores.join(",").as_bytes(),
            &request.from_node.to_le_bytes(),
            request.operator.as_bytes(),
        ],
    )
}

fn wish_of(request: &v1::SalvageVolumeRequest) -> Result<Wish, ApiError> {
    for (field, count) in [
        ("chunks", request.chunks.len()),
        ("fenced_nodes", request.fenced_nodes.len()),
        ("fenced_stores", request.fenced_stores.len()),
    ] {
        if count > NAMED_MAX {
            return Err(api_error::invalid(field, format!("at most {NAMED_MAX} of them")));
        }
    }
    if request.fenced_nodes.contains(&0) {
        return Err(api_error::invalid("fenced_nodes", "no node has number 0"));
    }
    let stores = request.fenced_stores.iter().map(|store| store.parse());
    let stores: Result<BTreeSet<StoreId>, IdError> = stores.collect();
    Ok(Wish {
        chunks: request.chunks.iter().copied().map(ChunkIndex).collect(),
        fenced_nodes: request.fenced_nodes.iter().copied().map(NodeId).collect(),
        fenced_stores: stores
            .map_err(|error| api_error::invalid("fenced_stores", error.to_string()))?,
        from: (request.from_node != 0).then_some(NodeId(request.from_node)),
    })
}
