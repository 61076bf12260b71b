//! The region gateway: every member serves the whole region and forwards by zone.
//!
//! Decides where a call goes: the own zone, another one, whichever has a volume of a name, or all
//! of them. It keeps no state but ways to the other zones ([`way`]), each behind bulkheads of its
//! own, so that a zone that is off or hangs costs the others nothing. Streams of nodes and Raft's
//! messages never pass here.
//!
//! | file | does |
//! |---|---|
//! | `route.rs` | which zone a call belongs to |
//! | `way.rs` | calls to one other zone: bulkheads, members, retries, probes |
//! | `gate.rs` | a bulkhead with its waiting calls |
//! | `asking.rs` | a call to several zones, step by step |
//! | `names.rs` | finds a volume by its name |
//! | `lists.rs` | lists of all zones, merged |

use crate::calls::{Calls, deadline};
use crate::errors::api_error;
use crate::machine::Handle;
use crate::member::{Reply, Request as Ask};
use crate::methods::Hop;
use crate::server::RunError;
use ashlar_controlplane_core::way::EACH_ZONE_WITHIN;
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::ZoneId;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use way::Way;

mod asking;
mod gate;
mod lists;
mod names;
mod route;
mod way;

pub use asking::{Asking, Part, Step};
pub use route::{Route, Wrong, route};
pub use way::{api_of, is_silence};

/// Serves clients, whichever zone their calls are for.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    zone: ZoneId,
    own: Calls,
    others: Arc<BTreeMap<ZoneId, Way>>,
}

impl Gateway {
    /// A gateway of this zone's member to the `zones` of the region. Their probes end with `stop`.
    ///
    /// # Errors
    /// An address of another zone is none.
    pub(crate) fn new(
        zone: ZoneId,
        member: Handle,
        zones: &BTreeMap<ZoneId, Vec<String>>,
        stop: &CancellationToken,
    ) -> Result<Self, RunError> {
        let others = zones
            .iter()
            .filter(|(other, _)| **other != zone)
            .map(|(other, members)| Ok((*other, Way::new(*other, members, stop)?)))
            .collect::<Result<_, RunError>>()?;
        Ok(Self { zone, own: Calls::new(member), others: Arc::new(others) })
    }

    /// Gets the answer of whichever zone the call is for.
    pub(crate) async fn answer(&self, metadata: &MetadataMap, ask: Ask) -> Result<Reply, Status> {
        let until = Instant::now() + deadline(metadata);
        let hop = Hop::made(metadata);
        let is_other = |zone: &ZoneId| self.others.contains_key(zone);
        let is_alone = hop.is_some() || self.others.is_empty();
        match route(&ask, self.zone, is_alone, is_other).map_err(|wrong| {
            let known = self.names();
            wrong.to_error(self.zone, &known).to_status()
        })? {
            Route::Here => self.own.answer(ask, until, hop == Some(Hop::Leader)).await,
            Route::Zone(zone) => self.ask_zone(zone, ask, until).await,
            Route::Named(name) => self.go(Asking::by_name(name, ask, self.all()), until).await,
            Route::Everywhere => self.go(Asking::of_all(ask, self.all()), until).await,
        }
    }

    /// Asks several zones, step by step.
    async fn go(&self, mut asking: Asking, until: Instant) -> Result<Reply, Status> {
        let mut step = asking.begin();
        loop {
            let parts = match step {
                Step::Done(answered) => return answered,
                Step::Each(asks) => self.ask_zones(asks, until).await,
                Step::One(zone, ask) => vec![(zone, self.ask_zone(zone, ask, until).await)],
            };
            step = asking.heard(parts);
        }
    }

    /// The zones of the region, as this member sees them; asks nobody.
    pub(crate) fn zones(&self) -> v1::ListZonesResponse {
        let leader = self.has_leader();
        let own = v1::Zone {
            name: self.zone.to_string(),
            members: self.own.member().members().addresses.values().cloned().collect(),
            reachable: leader,
            cause: if leader { String::new() } else { "no leader is known".to_owned() },
        };
        let mut zones: BTreeMap<ZoneId, v1::Zone> =
            self.others.iter().map(|(zone, way)| (*zone, way.describe())).collect();
        zones.insert(self.zone, own);
        v1::ListZonesResponse {
            zone: self.zone.to_string(),
            zones: zones.into_values().collect(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            now_unix_millis: SystemClock.wall_millis(),
        }
    }

    /// All zones, in order of name.
    fn all(&self) -> Vec<ZoneId> {
        let mut all: Vec<ZoneId> = self.others.keys().copied().chain([self.zone]).collect();
        all.sort_unstable();
        all
    }

    fn names(&self) -> Vec<String> {
        self.all().iter().map(ToString::to_string).collect()
    }

    fn has_leader(&self) -> bool {
        self.own.member().leadership().borrow().leader.is_some()
    }

    /// Asks one zone, the own one too.
    async fn ask_zone(&self, zone: ZoneId, ask: Ask, until: Instant) -> Result<Reply, Status> {
        match self.others.get(&zone) {
            Some(way) => way.call(ask, until).await,
            None => self.own.answer(ask, until, false).await,
        }
    }

    /// Asks several zones at once, each with its own question, and waits a while for each.
    async fn ask_zones(&self, asks: Vec<(ZoneId, Ask)>, until: Instant) -> Vec<Part> {
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        let until = now + EACH_ZONE_WITHIN.min(left.mul_f32(0.75));
        join_all(asks.into_iter().map(|(zone, ask)| async move {
            // Waiting for the own zone's election would hold up what the others have to say.
            if zone == self.zone && !self.has_leader() {
                return (zone, Err(api_error::no_quorum().into()));
            }
            (zone, self.ask_zone(zone, ask, until).await)
        }))
        .await
    }
}

/// Why a zone's part is missing, if the zone is at fault and not the call.
fn unreachable(zone: ZoneId, status: &Status) -> Option<v1::UnreachableZone> {
    let typed = ApiError::from_status(status);
    let asked_wrongly = typed.is_some_and(|error| error.reason == Reason::InvalidParameter);
    (!asked_wrongly)
        .then(|| v1::UnreachableZone { zone: zone.to_string(), cause: status.message().to_owned() })
}
