//! Lists of all zones, merged; a zone that does not answer is named and costs the list nothing else.
//!
//! Volumes are listed in order of id, and an id begins with its zone, so the last id of a page
//! says where the next one begins.

use super::asking::{Part, Step};
use super::unreachable;
use crate::errors::api_error;
use crate::member::{Reply, Request as Ask};
use crate::methods::mixed_up;
use ashlar_proto::v1;
use ashlar_types::{VolumeId, ZoneId};
use tonic::Status;

/// Volumes in a page when the caller names no number.
const PAGE_DEFAULT: usize = 100;

/// A list of all zones.
#[derive(Debug)]
pub(super) struct OfAll {
    ask: Ask,
    zones: Vec<ZoneId>,
}

impl OfAll {
    pub(super) const fn new(ask: Ask, zones: Vec<ZoneId>) -> Self {
        Self { ask, zones }
    }

    pub(super) fn begin(&self) -> Step {
        let zones = self.zones.iter().copied();
        match &self.ask {
            Ask::ListVolumes(request) => {
                let after: Option<VolumeId> = match request.page_token.as_str() {
                    "" => None,
                    text => match text.parse() {
                        Ok(after) => Some(after),
                        Err(_) => {
                            let error =
                                api_error::invalid("page_token", "not one that was given out");
                            return Step::Done(Err(error.into()));
                        }
                    },
                };
                let begins = |zone: &ZoneId| after.is_none_or(|after| *zone >= after.zone);
                let page = |zone| (zone, Ask::ListVolumes(page_of(request, zone, after)));
                Step::Each(zones.filter(begins).map(page).collect())
            }
            Ask::ListNodes(request) => {
                Step::Each(zones.map(|zone| (zone, Ask::ListNodes(request.clone()))).collect())
            }
            other => Step::Done(Err(Status::internal(format!("no list of all zones: {other:?}")))),
        }
    }

    pub(super) fn heard(&self, parts: Vec<Part>) -> Step {
        Step::Done(match &self.ask {
            Ask::ListVolumes(request) => merge(parts, request.page_size),
            _nodes => nodes(parts),
        })
    }
}

/// What a zone is asked for: the token is for the zone that it names, the others begin.
fn page_of(
    request: &v1::ListVolumesRequest,
    zone: ZoneId,
    after: Option<VolumeId>,
) -> v1::ListVolumesRequest {
    let goes_on = after.is_some_and(|after| after.zone == zone);
    let page_token = if goes_on { request.page_token.clone() } else { String::new() };
    v1::ListVolumesRequest { page_size: request.page_size, page_token, zone: zone.to_string() }
}

/// The parts in order of zone, cut to one page.
fn merge(parts: Vec<Part>, page_size: u32) -> Result<Reply, Status> {
    let size = if page_size == 0 { PAGE_DEFAULT } else { page_size as usize };
    let mut merged = v1::ListVolumesResponse::default();
    let mut more = false;
    for (zone, part) in parts {
        match part {
            Ok(Reply::ListVolumes(part)) if merged.volumes.len() < size && !more => {
                merged.volumes.extend(part.volumes);
                more |= merged.volumes.len() > size || !part.next_page_token.is_empty();
                merged.volumes.truncate(size);
            }
            // The page is full: what comes behind it is for the next one.
            Ok(Reply::ListVolumes(part)) => more |= !part.volumes.is_empty(),
            Ok(other) => return Err(mixed_up(&other)),
            Err(status) => match unreachable(zone, &status) {
                Some(missing) => merged.unreachable_zones.push(missing),
                None => return Err(status),
            },
        }
    }
    if more && let Some(last) = merged.volumes.last() {
        merged.next_page_token.clone_from(&last.id);
    }
    Ok(Reply::ListVolumes(merged))
}

fn nodes(parts: Vec<Part>) -> Result<Reply, Status> {
    let mut merged = v1::ListNodesResponse::default();
    for (zone, part) in parts {
        match part {
            Ok(Reply::ListNodes(part)) => merged.nodes.extend(part.nodes),
            Ok(other) => return Err(mixed_up(&other)),
            Err(status) => match unreachable(zone, &status) {
                Some(missing) => merged.unreachable_zones.push(missing),
                None => return Err(status),
            },
        }
    }
    Ok(Reply::ListNodes(merged))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> ZoneId {
        name.parse().unwrap()
    }

    fn part(name: &str, volumes: u32, next: bool) -> Part {
        let id = |n: u32| format!("vol-{name}-{n:032x}");
        let list = v1::ListVolumesResponse {
            volumes: (0..volumes).map(|n| v1::Volume { id: id(n), ..Default::default() }).collect(),
            next_page_token: if next { id(volumes - 1) } else { String::new() },
            unreachable_zones: Vec::new(),
        };
        (zone(name), Ok(Reply::ListVolumes(list)))
    }

    fn merged(parts: Vec<Part>, size: u32) -> v1::ListVolumesResponse {
        match merge(parts, size).unwrap() {
            Reply::ListVolumes(list) => list,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_cut_across_zones_and_its_last_id_begins_the_next() {
        let page = merged(vec![part("a", 2, false), part("b", 2, false)], 3);
        assert_eq!(page.volumes.len(), 3);
        assert_eq!(page.next_page_token, page.volumes[2].id);
        let page = merged(vec![part("a", 2, false), part("b", 1, false)], 3);
        assert_eq!((page.volumes.len(), page.next_page_token.as_str()), (3, ""));
        // The page ends with a zone: the next one has the others.
        let page = merged(vec![part("a", 3, false), part("b", 1, false)], 3);
        assert_eq!((page.volumes.len(), page.next_page_token), (3, page.volumes[2].id.clone()));
        // A zone that has more is not skipped for the next one.
        let page = merged(vec![part("a", 2, true), part("b", 1, false)], 3);
        assert_eq!((page.volumes.len(), page.next_page_token), (2, page.volumes[1].id.clone()));
    }

    #[test]
    fn a_zone_that_does_not_answer_is_named_and_the_rest_is_listed() {
        let off = (zone("b"), Err(Status::unavailable("connection refused")));
        let page = merged(vec![part("a", 1, false), off, part("c", 1, false)], 0);
        assert_eq!(page.volumes.len(), 2);
        assert_eq!(page.unreachable_zones[0].zone, "b");
        let wrong = (zone("b"), Err(api_error::invalid("page_size", "too many").into()));
        assert!(merge(vec![part("a", 1, false), wrong], 0).is_err());
    }

    #[test]
    fn only_the_zone_of_the_token_goes_on() {
        let after: VolumeId = format!("vol-b-{:032x}", 1).parse().unwrap();
        let request =
            v1::ListVolumesRequest { page_token: after.to_string(), ..Default::default() };
        assert_eq!(page_of(&request, zone("b"), Some(after)).page_token, after.to_string());
        assert_eq!(page_of(&request, zone("c"), Some(after)).page_token, "");
    }
}
