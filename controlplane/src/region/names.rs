//! Finds the zone of a volume by its name, which is unique in a zone only.
//!
//! All zones are asked. Several volumes of the name are an error that lists their ids. A zone that
//! does not answer is passed over, as one zone's fault must not stop work in another, except by
//! what cannot be undone: that wants the id.

use super::{Gateway, Part, unreachable};
use crate::errors::api_error;
use crate::member::{Reply, Request as Ask};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::ZoneId;
use std::time::Instant;
use tonic::Status;

/// Answers a call that names a volume by its name.
pub(super) async fn answer(
    gateway: &Gateway,
    name: &str,
    ask: Ask,
    until: Instant,
) -> Result<Reply, Status> {
    let look = |zone| {
        let request = v1::GetVolumeRequest { volume: name.to_owned() };
        (zone, Ask::GetVolume(request))
    };
    let asks = gateway.all().into_iter().map(look).collect();
    let found = sort(gateway.ask_zones(asks, until).await)?;
    match found.volumes.as_slice() {
        [] if !found.missing.is_empty() => {
            Err(api_error::name_not_found_everywhere(name, &found.missing).into())
        }
        [] => replay(gateway, name, ask, until).await,
        [(zone, volume)] => {
            if cannot_be_undone(&ask) && !found.missing.is_empty() {
                let error = api_error::name_may_be_ambiguous(name, &volume.id, &found.missing);
                return Err(error.into());
            }
            if let Ask::GetVolume(_) = ask {
                let volume = Some(volume.clone());
                let unreachable_zones = found.missing;
                let reply = v1::GetVolumeResponse { volume, unreachable_zones };
                return Ok(Reply::GetVolume(reply));
            }
            gateway.ask_zone(*zone, ask, until).await
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|(_, volume)| volume.id.as_str()).collect();
            Err(api_error::name_ambiguous(name, &ids).into())
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

/// Deletes the volume, loses of it, or cuts its client off: never on a guess.
fn cannot_be_undone(ask: &Ask) -> bool {
    matches!(ask, Ask::DeleteVolume(request) if !request.dry_run)
        || matches!(ask, Ask::AttachVolume(request) if request.force && !request.dry_run)
        || matches!(ask, Ask::DetachVolume(request) if request.force && !request.dry_run)
        || matches!(ask, Ask::SalvageVolume(request) if !request.dry_run)
        || matches!(ask, Ask::AcknowledgeRisk(request) if !request.dry_run)
}

/// No zone has the volume. A change that was made before, and is repeated with its token, still
/// has its answer in the zone that made it.
async fn replay(gateway: &Gateway, name: &str, ask: Ask, until: Instant) -> Result<Reply, Status> {
    if client_token(&ask).is_none_or(str::is_empty) {
        return Err(api_error::not_found(name).into());
    }
    // One after the other: should somebody make such a volume just now, it is changed once.
    for zone in gateway.all() {
        match gateway.ask_zone(zone, ask.clone(), until).await {
            Err(status) if is_not_found(&status) => {}
            answered => return answered,
        }
    }
    Err(api_error::not_found(name).into())
}

fn client_token(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::DeleteVolume(request) => Some(&request.client_token),
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
        assert!(cannot_be_undone(&salvage(false)) && !cannot_be_undone(&salvage(true)));
        assert!(!cannot_be_undone(&delete(true)) && !cannot_be_undone(&attach(false)));
    }
}
