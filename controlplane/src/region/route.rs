//! Which zone a call belongs to: the zone in a volume's id, or the zone that the call names.
//!
//! Pure. A call that another member forwarded belongs here or nowhere.

use crate::member::Request as Ask;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_types::{VolumeId, ZoneId};

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the own zone.
    Here,
    /// To this other zone.
    Zone(ZoneId),
    /// To whichever zone has a volume of this name.
    Named(String),
    /// To all zones.
    Everywhere,
}

/// Why it goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// No such zone is known here.
    Unknown(String),
    /// It has to say which zone it means.
    Unnamed,
}

impl Wrong {
    /// As the caller is told.
    #[must_use]
    pub fn to_error(&self, own: ZoneId, known: &[String]) -> ApiError {
        let known = known.join(", ");
        match self {
            Self::Unknown(zone) => {
                let text = format!(
                    "no zone {zone:?} is known to this member of zone {own}; it knows {known}; \
                     `zones` in its configuration names the others"
                );
                ApiError::new(Reason::UnknownZone, text).with("zone", zone).with("zones", known)
            }
            Self::Unnamed => {
                let text = format!("name one of the zones of this region: {known}");
                ApiError::field(Reason::InvalidParameter, "zone", text)
            }
        }
    }
}

/// What a call says about its zone.
enum Says<'a> {
    /// A volume's id or name.
    Volume(&'a str),
    /// A zone; empty: the one of the member asked.
    Zone(&'a str),
    /// A zone to change something in; empty: the only one.
    OneZone(&'a str),
    /// A zone; empty: all.
    AnyZone(&'a str),
    /// It is about the member asked.
    Here,
}

fn says(ask: &Ask) -> Says<'_> {
    match ask {
        Ask::CreateVolume(request) => Says::OneZone(&request.zone),
        Ask::AddMember(request) => Says::OneZone(&request.zone),
        Ask::RemoveMember(request) => Says::OneZone(&request.zone),
        Ask::DrainNode(request) => Says::OneZone(&request.zone),
        Ask::DeleteVolume(request) => Says::Volume(&request.volume),
        Ask::GrowVolume(request) => Says::Volume(&request.volume),
        Ask::GetVolume(request) => Says::Volume(&request.volume),
        Ask::AttachVolume(request) => Says::Volume(&request.volume),
        Ask::DetachVolume(request) => Says::Volume(&request.volume),
        Ask::GetVolumeMap(request) => Says::Volume(&request.volume),
        Ask::SalvageVolume(request) => Says::Volume(&request.volume),
        Ask::AcknowledgeRisk(request) => Says::Volume(&request.volume),
        Ask::ListVolumes(request) => Says::AnyZone(&request.zone),
        Ask::ListNodes(request) => Says::AnyZone(&request.zone),
        Ask::GetStatus(request) => Says::Zone(&request.zone),
        Ask::ListMembers(request) => Says::Zone(&request.zone),
        // Members of one zone speak to each other; the member checks the zone.
        Ask::JoinMember(_) | Ask::ReportLostMember(_) => Says::Here,
    }
}

/// Where a call goes. `is_alone`: no other zone is known, or the call was forwarded already.
///
/// # Errors
/// It names a zone that is none of these, or none where it must.
pub fn route(
    ask: &Ask,
    own: ZoneId,
    is_alone: bool,
    is_other: impl Fn(&ZoneId) -> bool,
) -> Result<Route, Wrong> {
    let in_zone = |zone: ZoneId| match zone {
        zone if zone == own => Ok(Route::Here),
        zone if !is_alone && is_other(&zone) => Ok(Route::Zone(zone)),
        zone => Err(Wrong::Unknown(zone.to_string())),
    };
    let named = |zone: &str| match zone.parse() {
        Ok(zone) => in_zone(zone),
        Err(_) => Err(Wrong::Unknown(zone.to_owned())),
    };
    match says(ask) {
        Says::Volume(text) => match text.parse::<VolumeId>() {
            Ok(id) => in_zone(id.zone),
            // Nobody can have it: the member says what is wrong with it.
            Err(_) if is_alone || text.is_empty() || text.starts_with("vol-") => Ok(Route::Here),
            Err(_) => Ok(Route::Named(text.to_owned())),
        },
        Says::Zone("") | Says::Here => Ok(Route::Here),
        Says::OneZone("") | Says::AnyZone("") if is_alone => Ok(Route::Here),
        Says::OneZone("") => Err(Wrong::Unnamed),
        Says::AnyZone("") => Ok(Route::Everywhere),
        Says::Zone(zone) | Says::OneZone(zone) | Says::AnyZone(zone) => named(zone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_proto::v1;

    fn of(ask: &Ask, is_alone: bool) -> Result<Route, Wrong> {
        let b: ZoneId = "b".parse().unwrap();
        route(ask, "a".parse().unwrap(), is_alone, |zone| *zone == b)
    }

    fn get(volume: &str) -> Ask {
        Ask::GetVolume(v1::GetVolumeRequest { volume: volume.into() })
    }

    fn create(zone: &str) -> Ask {
        Ask::CreateVolume(v1::CreateVolumeRequest { zone: zone.into(), ..Default::default() })
    }

    fn id(zone: &str) -> String {
        format!("vol-{zone}-{}", "0".repeat(32))
    }

    #[test]
    fn a_call_goes_to_the_zone_that_it_names() {
        let b = Route::Zone("b".parse().unwrap());
        assert_eq!(of(&get(&id("a")), false), Ok(Route::Here));
        assert_eq!(of(&get(&id("b")), false), Ok(b.clone()));
        assert_eq!(of(&get(&id("c")), false), Err(Wrong::Unknown("c".into())));
        assert_eq!(of(&get("demo"), false), Ok(Route::Named("demo".into())));
        assert_eq!(of(&get("vol-b-1"), false), Ok(Route::Here));
        assert_eq!(of(&create("b"), false), Ok(b));
        assert_eq!(of(&create("B!"), false), Err(Wrong::Unknown("B!".into())));
        // Repeated at another zone's member, it would make a second volume.
        assert_eq!(of(&create(""), false), Err(Wrong::Unnamed));
        let list = Ask::ListVolumes(v1::ListVolumesRequest::default());
        assert_eq!(of(&list, false), Ok(Route::Everywhere));
        let status = Ask::GetStatus(v1::GetStatusRequest::default());
        assert_eq!(of(&status, false), Ok(Route::Here));
    }

    #[test]
    fn a_forwarded_call_is_never_forwarded_again() {
        assert_eq!(of(&get(&id("b")), true), Err(Wrong::Unknown("b".into())));
        assert_eq!(of(&create("b"), true), Err(Wrong::Unknown("b".into())));
        assert_eq!(of(&get("demo"), true), Ok(Route::Here));
        assert_eq!(of(&create(""), true), Ok(Route::Here));
        let list = Ask::ListVolumes(v1::ListVolumesRequest::default());
        assert_eq!(of(&list, true), Ok(Route::Here));
    }
}
