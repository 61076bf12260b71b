//! The way to one other zone: its members' addresses, and a bulkhead for each kind of call.
//!
//! Which member is asked, and for how long, is decided in `controlplane/core/src/way.rs`.

use super::gate::{Gate, Pass, now};
use crate::errors::api_error;
use crate::member::{Reply, Request as Ask};
use crate::methods::{Hop, send};
use crate::server::{RunError, endpoint};
use ashlar_controlplane_core::bulkhead::Outcome;
use ashlar_controlplane_core::way::{Api, OPEN, PROBE_WITHIN, Tries, Try};
use ashlar_env::task::spawn_named;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::{Time, ZoneId};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Which kind a call is of.
#[must_use]
pub fn api_of(ask: &Ask) -> Api {
    match ask {
        Ask::CreateVolume(_)
        | Ask::DeleteVolume(_)
        | Ask::GrowVolume(_)
        | Ask::SalvageVolume(_)
        | Ask::AcknowledgeRisk(_)
        | Ask::DrainNode(_)
        | Ask::AddMember(_)
        | Ask::RemoveMember(_)
        | Ask::JoinMember(_)
        | Ask::ReportLostMember(_) => Api::Change,
        Ask::AttachVolume(_) | Ask::DetachVolume(_) | Ask::GetVolumeMap(_) => Api::Attach,
        Ask::ListVolumes(_)
        | Ask::GetVolume(_)
        | Ask::GetStatus(_)
        | Ask::ListNodes(_)
        | Ask::ListMembers(_) => Api::Describe,
    }
}

/// The way to another zone.
#[derive(Clone, Debug)]
pub(super) struct Way {
    zone: ZoneId,
    members: Arc<Members>,
    gates: [Gate; Api::ALL.len()],
}

#[derive(Debug)]
struct Members {
    addresses: Vec<String>,
    channels: Vec<Channel>,
    /// The one that answered last.
    preferred: AtomicUsize,
}

impl Way {
    /// The way to a zone's members; its probes end with `stop`. Dials nobody yet.
    ///
    /// # Errors
    /// An address is none.
    pub(super) fn new(
        zone: ZoneId,
        addresses: &[String],
        stop: &CancellationToken,
    ) -> Result<Self, RunError> {
        let channels = addresses
            .iter()
            .map(|address| Ok(endpoint(address)?.connect_lazy()))
            .collect::<Result<_, RunError>>()?;
        let addresses = addresses.to_vec();
        let members = Members { addresses, channels, preferred: AtomicUsize::new(0) };
        let gates = Api::ALL.map(|api| Gate::new(api.limits()));
        let way = Self { zone, members: Arc::new(members), gates };
        for gate in &way.gates {
            let probes = probe(way.clone(), gate.clone());
            let stop = stop.clone();
            drop(spawn_named("zone-probe", async move {
                tokio::select! {
                    () = probes => {}
                    () = stop.cancelled() => {}
                }
            }));
        }
        Ok(way)
    }

    fn gate(&self, api: Api) -> &Gate {
        let [describe, change, attach] = &self.gates;
        match api {
            Api::Describe => describe,
            Api::Change => change,
            Api::Attach => attach,
        }
    }

    /// The zone as far as it is known.
    pub(super) fn describe(&self) -> v1::Zone {
        let open = self.gate(Api::Describe).open_since();
        v1::Zone {
            name: self.zone.to_string(),
            members: self.members.addresses.clone(),
            reachable: open.is_none(),
            cause: open.map_or_else(String::new, |since| {
                format!("it has not answered for {} s", now().since(since).as_secs())
            }),
        }
    }

    /// Makes a call, if the bulkhead lets it through.
    pub(super) async fn call(&self, ask: Ask, until: Instant) -> Result<Reply, Status> {
        let api = api_of(&ask);
        let until = until.min(Instant::now() + api.within_max());
        let left = until.saturating_duration_since(Instant::now());
        let entered = timeout(left, self.gate(api).enter(now() + left)).await;
        let pass = match entered {
            Ok(Ok(pass)) => pass,
            Ok(Err(refusal)) => {
                return Err(api_error::zone_refused(self.zone, api.name(), &refusal).into());
            }
            Err(_elapsed) => {
                return Err(api_error::zone_full(self.zone, api.name(), OPEN.first).into());
            }
        };
        let result = self.try_members(&ask, until, &pass).await;
        let outcome = match &result {
            Err(status) if is_silence(status) => Outcome::Failed,
            Ok(_) | Err(_) => Outcome::Answered,
        };
        pass.end(outcome);
        result.map_err(|status| self.explain(status, &ask))
    }

    /// Asks the member that answered last, then others while that may help.
    async fn try_members(&self, ask: &Ask, until: Instant, pass: &Pass) -> Result<Reply, Status> {
        let count = self.members.channels.len();
        let first = self.members.preferred.load(Ordering::Relaxed);
        let deadline = now() + until.saturating_duration_since(Instant::now());
        let mut tries = Tries::new(first, count, ask.is_repeatable(), deadline);
        loop {
            let Try { member, until } = tries.next(now());
            let result = self.ask_member(member, ask.clone(), until.since(now())).await;
            let silent = result.as_ref().is_err_and(is_silence);
            self.members.preferred.store(tries.preferred(!silent), Ordering::Relaxed);
            if !silent || !tries.goes_on(now()) || !pass.may_retry() {
                return result;
            }
        }
    }

    async fn ask_member(&self, index: usize, ask: Ask, limit: Duration) -> Result<Reply, Status> {
        let Some(channel) = self.members.channels.get(index) else {
            return Err(Status::unavailable("the configuration names no member of the zone"));
        };
        match timeout(limit, send(channel.clone(), ask, limit, Hop::Zone)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// A refusal of the zone stays as it is; silence is given its name.
    fn explain(&self, status: Status, ask: &Ask) -> Status {
        if ApiError::from_status(&status).is_some() {
            return status;
        }
        let error = api_error::zone_unreachable(self.zone, &root_cause(&status));
        // Whether a member acted before the connection broke is unknown.
        let reads = matches!(api_of(ask), Api::Describe) || matches!(ask, Ask::GetVolumeMap(_));
        if reads { error.into() } else { error.with("outcome", "unknown").into() }
    }
}

/// tonic wraps the host's word ("connection refused") in its own.
fn root_cause(status: &Status) -> String {
    let mut cause = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(deeper) = next {
        cause = deeper.to_string();
        next = deeper.source();
    }
    cause
}

/// Whether the zone, or the member that was asked, did not answer.
#[must_use]
pub fn is_silence(status: &Status) -> bool {
    match ApiError::from_status(status) {
        Some(error) => matches!(
            error.reason,
            Reason::NoQuorum | Reason::NotLeader | Reason::ShuttingDown | Reason::StorageFailed
        ),
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown
        ),
    }
}

/// Asks the zone how it is whenever that is due, so that no caller pays for finding out.
async fn probe(way: Way, gate: Gate) {
    let mut due = gate.probe_at();
    while due.changed().await.is_ok() {
        let at: Option<Time> = *due.borrow_and_update();
        let Some(at) = at else { continue };
        tokio::time::sleep(at.since(now())).await;
        let index = way.members.preferred.load(Ordering::Relaxed);
        let ask = Ask::ListMembers(v1::ListMembersRequest::default());
        let outcome = match way.ask_member(index, ask, PROBE_WITHIN).await {
            Err(status) if is_silence(&status) => {
                // The next probe goes to another member.
                let next = (index + 1) % way.members.channels.len().max(1);
                way.members.preferred.store(next, Ordering::Relaxed);
                Outcome::Failed
            }
            Ok(_) | Err(_) => Outcome::Answered,
        };
        tracing::info!(zone = %way.zone, ?outcome, "a zone that did not answer was asked again");
        gate.probed(outcome);
    }
}
