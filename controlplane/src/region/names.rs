//! Finds the zone of a volume by its name, which is unique in a zone only.
//!
//! All zones are asked. Several volumes of the name are an error that lists their ids. A zone that
//! does not answer is passed over, as one zone's fault must not stop work in another, except by
//! what cannot be undone: that wants the id.

use super::asking::{Part, Step};
use super::unreachable;
use crate::errors::api_error;
use crate::member::{Reply, Request as Ask};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::ZoneId;
use tonic::Status;

/// A call that names a volume by its name.
#[derive(Debug)]
pub(super) struct ByName {
    name: String,
    ask: Ask,
    zones: Vec<ZoneId>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Every zone is asked whether it has the volume.
    Looking,
    /// The zone that has it is asked the call itself.
    Found,
    /// No zone has the volume. A change that was made before, and is repeated with its token, still
    /// has its answer in the zone that made it. One after the other: should somebody make such a
    /// volume just now, it is changed once.
    Replaying { next: usize },
}

impl ByName {
    pub(super) fn new(name: String, ask: Ask, zones: Vec<ZoneId>) -> Self {
        Self { name, ask, zones, stage: Stage::Looking }
    }

    pub(super) fn begin(&self) -> Step {
        let look = |zone: &ZoneId| {
            let request = v1::GetVolumeRequest { volume: self.name.clone() };
            (*zone, Ask::GetVolume(request))
        };
        Step::Each(self.zones.iter().map(look).collect())
    }

    pub(super) fn heard(&mut self, mut parts: Vec<Part>) -> Step {
        match self.stage {
            Stage::Looking => self.looked(parts),
            Stage::Found => Step::of_only(parts),
            Stage::Replaying { .. } => match parts.pop() {
                Some((_, Err(status))) if is_not_found(&status) => self.replay(),
                Some((_, answered)) => Step::Done(answered),
                None => self.replay(),
            },
        }
    }

    fn looked(&mut self, parts: Vec<Part>) -> Step {
        let found = match sort(parts) {
            Ok(found) => found,
            Err(status) => return Step::Done(Err(status)),
        };
        let name = &self.name;
        match found.volumes.as_slice() {
            [] if !found.missing.is_empty() => {
                Step::Done(Err(api_error::name_not_found_everywhere(name, &found.missing).into()))
            }
            [] if client_token(&self.ask).is_none_or(str::is_empty) => {
                Step::Done(Err(api_error::not_found(name).into()))
            }
            [] => {
                self.stage = Stage::Replaying { next: 0 };
                self.replay()
            }
            [(zone, volume)] => {
                if cannot_be_undone(&self.ask) && !found.missing.is_empty() {
                    let error = api_error::name_may_be_ambiguous(name, &volume.id, &found.missing);
                    return Step::Done(Err(error.into()));
                }
                if let Ask::GetVolume(_) = self.ask {
                    let volume = Some(volume.clone());
                    let unreachable_zones = found.missing;
                    let reply = v1::GetVolumeResponse { volume, unreachable_zones };
                    return Step::Done(Ok(Reply::GetVolume(reply)));
                }
                self.stage = Stage::Found;
                Step::One(*zone, self.ask.clone())
            }
            several => {
                let ids: Vec<&str> = several.iter().map(|(_, volume)| volume.id.as_str()).collect();
                Step::Done(Err(api_error::name_ambiguous(name, &ids).into()))
            }
        }
    }

    fn replay(&mut self) -> Step {
        let Stage::Replaying { next } = &mut self.stage else {
            return Step::Done(Err(api_error::not_found(&self.name).into()));
        };
        match self.zones.get(*next) {
            Some(zone) => {
                *next += 1;
                Step::One(*zone, self.ask.clone())
            }
            None => Step::Done(Err(api_error::not_found(&self.name).into())),
        }
    }
}

#[derive(Debug, Default)]
struct Found {
    volumes: Vec<(ZoneId, v1::Volume)>,
    missing: Vec<v1::UnreachableZone>,
}

fn sort(parts: Vec<Part>) -> Result<Found, Status> {
    let mut found = Found::default();
    for (zone, part) in parts {
        match part {
            Ok(Reply::GetVolume(v1::GetVolumeResponse { volume: Some(volume), .. })) => {
                found.volumes.push((zone, volume));
            }
            Ok(other) => return Err(crate::methods::mixed_up(&other)),
            Err(status) if is_not_found(&status) => {}
            Err(status) => match unreachable(zone, &status) {
                Some(missing) => found.missing.push(missing),
                None => return Err(status),
            },
        }
    }
    Ok(found)
}

fn is_not_found(status: &Status) -> bool {
    ApiError::from_status(status).is_some_and(|error| error.reason == Reason::VolumeNotFound)
}

/// Deletes the volume, loses of it, cuts its client off, or makes it larger for ever: never on a guess.
fn cannot_be_undone(ask: &Ask) -> bool {
    matches!(ask, Ask::DeleteVolume(request) if !request.dry_run)
        || matches!(ask, Ask::GrowVolume(request) if !request.dry_run)
        || matches!(ask, Ask::AttachVolume(request) if request.force && !request.dry_run)
        || matches!(ask, Ask::DetachVolume(request) if request.force && !request.dry_run)
        || matches!(ask, Ask::SalvageVolume(request) if !request.dry_run)
        || matches!(ask, Ask::AcknowledgeRisk(request) if !request.dry_run)
}

fn client_token(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::DeleteVolume(request) => Some(&request.client_token),
        Ask::GrowVolume(request) => Some(&request.client_token),
        Ask::AttachVolume(request) => Some(&request.client_token),
        Ask::DetachVolume(request) => Some(&request.client_token),
        Ask::SalvageVolume(request) => Some(&request.client_token),
        Ask::AcknowledgeRisk(request) => Some(&request.client_token),
        _reads => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cuts_data_or_clients_off_is_never_done_on_a_guess() {
        let delete =
            |dry_run| Ask::DeleteVolume(v1::DeleteVolumeRequest { dry_run, ..Default::default() });
        let attach =
            |force| Ask::AttachVolume(v1::AttachVolumeRequest { force, ..Default::default() });
        let salvage = |dry_run| {
            Ask::SalvageVolume(v1::SalvageVolumeRequest { dry_run, ..Default::default() })
        };
        assert!(cannot_be_undone(&delete(false)) && cannot_be_undone(&attach(true)));
        let grow =
            |dry_run| Ask::GrowVolume(v1::GrowVolumeRequest { dry_run, ..Default::default() });
        assert!(cannot_be_undone(&salvage(false)) && !cannot_be_undone(&salvage(true)));
        assert!(cannot_be_undone(&grow(false)) && !cannot_be_undone(&grow(true)));
        assert!(!cannot_be_undone(&delete(true)) && !cannot_be_undone(&attach(false)));
    }
}
