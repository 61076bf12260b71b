//! `GrowVolume`: a volume gets chunks, and its clients a larger size (decisions/0018).
//!
//! What is allowed, and when clients are told, is decided by `controlplane/core/src/grow.rs`; the leader's
//! plans end a growth. This file reads the call, places the new chunks and writes the answer.

use super::calls::{self, Step};
use super::lead::CallKind;
use super::{Member, Now, Reply};
use crate::errors;
use ashlar_controlplane_core::apply::{Answer, Refusal};
use ashlar_controlplane_core::command::{Action, Placement};
use ashlar_controlplane_core::place;
use ashlar_controlplane_core::state::Volume;
use ashlar_controlplane_core::verdict;
use ashlar_proto::reason::ApiError;
use ashlar_proto::v1;
use ashlar_types::Geometry;
use std::collections::BTreeSet;

impl Member {
    pub(super) fn grow_volume(
        &mut self,
        now: Now,
        request: &v1::GrowVolumeRequest,
    ) -> Result<Step, ApiError> {
        let size_bytes = request.size_bytes;
        let parameters: &[&[u8]] = &[request.volume.as_bytes(), &size_bytes.to_le_bytes()];
        let token = calls::token(&request.client_token, 10, parameters)?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(self.grown(now, answer)));
        }
        let volume = self.find(&request.volume)?;
        let to = self
            .state
            .check_growth(volume, size_bytes)
            .map_err(|refusal| errors::refusal(&Refusal::Growth(refusal), Some(volume.id)))?;
        let placement = match to {
            Some(to) => self.place_growth(now, volume, to)?,
            // Committed all the same, so that its token is remembered.
            None => Placement::default(),
        };
        if request.dry_run {
            let to = to.unwrap_or(volume.geometry);
            return Ok(Step::Done(self.growth_planned(now, volume, to, &placement)));
        }
        let volume = volume.id;
        tracing::info!(%volume, size_bytes, chunks = placement.0.len(), "a growth is proposed");
        let action = Action::GrowVolume { token, volume, size_bytes, placement };
        Ok(Step::Commit(CallKind::Grow, action))
    }

    fn place_growth(&self, now: Now, volume: &Volume, to: Geometry) -> Result<Placement, ApiError> {
        let Some(lead) = &self.lead else { return Err(self.not_leader()) };
        let verdicts = verdict::judge_all(now.time, &self.state, &lead.seen);
        let space = lead.space(&self.state, &verdicts, self.options.peers_per_node_max);
        place::place_growth(volume, to, space).map_err(|error| self.not_placed(now, lead, &error))
    }

    /// The answer of a dry run.
    fn growth_planned(
        &self,
        now: Now,
        volume: &Volume,
        to: Geometry,
        placement: &Placement,
    ) -> Reply {
        let nodes: BTreeSet<u32> = placement.0.iter().flatten().map(|place| place.node.0).collect();
        let planned = Volume { geometry: to, ..volume.clone() };
        Reply::GrowVolume(v1::GrowVolumeResponse {
            volume: Some(self.view(now).volume(&planned)),
            chunks_added: u32::try_from(placement.0.len()).unwrap_or(u32::MAX),
            nodes: nodes.into_iter().collect(),
            dry_run: true,
        })
    }

    /// The answer, with the volume as it is now: a growth may be over by then.
    pub(super) fn grown(&self, now: Now, answer: Answer) -> Reply {
        let Answer::Volume { volume: then } = answer else {
            return Reply::GrowVolume(v1::GrowVolumeResponse::default());
        };
        let volume = self.state.volume(then.id).unwrap_or(&then);
        let added: Vec<_> = self.state.new_configs(&then).collect();
        let nodes: BTreeSet<u32> = added
            .iter()
            .flat_map(|config| config.replicas())
            .map(|replica| replica.node.0)
            .collect();
        Reply::GrowVolume(v1::GrowVolumeResponse {
            volume: Some(self.view(now).volume(volume)),
            chunks_added: u32::try_from(added.len()).unwrap_or(u32::MAX),
            nodes: nodes.into_iter().collect(),
            dry_run: false,
        })
    }
}
