//! A call that no zone answers alone, step by step: whom to ask next, and what their answers come to.
//!
//! A value, so that the simulation drives the same steps as the gateway does over sockets.

use super::lists::OfAll;
use super::names::ByName;
use crate::errors::api_error;
use crate::member::{Reply, Request as Ask};
use ashlar_types::ZoneId;
use tonic::Status;

/// One zone's part of a call to several.
pub type Part = (ZoneId, Result<Reply, Status>);

/// What the gateway does next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one at a time, for a step of a call")]
pub enum Step {
    /// Ask these zones at once, and wait a while for each
    /// ([`ashlar_controlplane_core::way::EACH_ZONE_WITHIN`]).
    Each(Vec<(ZoneId, Ask)>),
    /// Ask this zone, for as long as the call may take.
    One(ZoneId, Ask),
    /// This is the answer.
    Done(Result<Reply, Status>),
}

impl Step {
    /// The answer of the only zone that was asked.
    pub(super) fn of_only(mut parts: Vec<Part>) -> Self {
        let none = || Err(api_error::no_quorum().into());
        Self::Done(parts.pop().map_or_else(none, |(_, answered)| answered))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Asking(Kind);

#[derive(Debug)]
enum Kind {
    Name(ByName),
    All(OfAll),
}

impl Asking {
    /// A call that names a volume by its name, in a region of these zones.
    #[must_use]
    pub fn by_name(name: String, ask: Ask, zones: Vec<ZoneId>) -> Self {
        Self(Kind::Name(ByName::new(name, ask, zones)))
    }

    /// A list of all these zones.
    #[must_use]
    pub const fn of_all(ask: Ask, zones: Vec<ZoneId>) -> Self {
        Self(Kind::All(OfAll::new(ask, zones)))
    }

    /// The first step.
    #[must_use]
    pub fn begin(&self) -> Step {
        match &self.0 {
            Kind::Name(call) => call.begin(),
            Kind::All(call) => call.begin(),
        }
    }

    /// The step behind the answers of those that were asked, in the order in which they were asked.
    #[must_use]
    pub fn heard(&mut self, parts: Vec<Part>) -> Step {
        match &mut self.0 {
            Kind::Name(call) => call.heard(parts),
            Kind::All(call) => call.heard(parts),
        }
    }
}
