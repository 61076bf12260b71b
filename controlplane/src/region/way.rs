//! The way to one other zone: its members' addresses, and a bulkhead for each kind of call.
//!
//! A call begins at the member that answered last and goes on to another one only if repeating it
//! does no harm and the retry budget allows it. The member that is asked finds its zone's leader by
//! itself, so a call makes one hop here and at most one there.

use super::gate::{Gate, Pass, now};
use crate::errors::api_error;
use crate::member::{Reply, Request as Ask};
use crate::methods::{Hop, send};
use crate::server::{RunError, endpoint};
use ashlar_controlplane_core::bulkhead::{Limits, Outcome};
use ashlar_env::task::spawn_named;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::backoff::BackoffPolicy;
use ashlar_types::{Time, ZoneId};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Times of all breakers: a zone whose leader is elected anew is found within a second, one that
/// is off is asked every few seconds.
const OPEN: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(500), max: Duration::from_secs(5) };

/// How long a probe may take.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// Kinds of calls that must not hold each other up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    /// Reads.
    Describe,
    /// Changes of volumes and members.
    Change,
    /// What clients need for their data: attach, detach, maps. Waits for nodes.
    Attach,
}

impl Api {
    const ALL: [Self; 3] = [Self::Describe, Self::Change, Self::Attach];

    fn of(ask: &Ask) -> Self {
        match ask {
            Ask::CreateVolume(_)
            | Ask::DeleteVolume(_)
            | Ask::SalvageVolume(_)
            | Ask::AcknowledgeRisk(_)
            | Ask::AddMember(_)
            | Ask::RemoveMember(_)
            | Ask::JoinMember(_)
            | Ask::ReportLostMember(_) => Self::Change,
            Ask::AttachVolume(_) | Ask::DetachVolume(_) | Ask::GetVolumeMap(_) => Self::Attach,
            Ask::ListVolumes(_)
            | Ask::GetVolume(_)
            | Ask::GetStatus(_)
            | Ask::ListNodes(_)
            | Ask::ListMembers(_) => Self::Describe,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Change => "change",
            Self::Attach => "attach",
        }
    }

    /// Longest deadline of a call: what waits longer only holds a place.
    fn within_max(self) -> Duration {
        match self {
            Self::Describe => Duration::from_secs(5),
            Self::Change => Duration::from_secs(10),
            Self::Attach => Duration::from_secs(60),
        }
    }

    fn limits(self) -> Limits {
        let (running_max, patience) = match self {
            Self::Describe => (64, Duration::from_secs(1)),
            Self::Change => (32, Duration::from_secs(2)),
            // A map can have 32 MiB, and nodes may take long to adopt a generation.
            Self::Attach => (32, Duration::from_secs(20)),
        };
        Limits {
            running_max,
            waiting_max: running_max,
            failures_to_open: 3,
            open: OPEN,
            patience,
            retries_stored_max: 10,
        }
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
        let api = Api::of(&ask);
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
        let mut tried = 0;
        loop {
            let index = (first + tried) % count.max(1);
            tried += 1;
            let another = tried < count && ask.is_repeatable();
            let left = until.saturating_duration_since(Instant::now());
            let limit = if another { left / 2 } else { left };
            let result = self.ask_member(index, ask.clone(), limit).await;
            match result {
                Err(status) if is_silence(&status) => {
                    self.members.preferred.store((index + 1) % count.max(1), Ordering::Relaxed);
                    if !another || Instant::now() >= until || !pass.may_retry() {
                        return Err(status);
                    }
                }
                answered => {
                    self.members.preferred.store(index, Ordering::Relaxed);
                    return answered;
                }
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
        let reads = matches!(Api::of(ask), Api::Describe) || matches!(ask, Ask::GetVolumeMap(_));
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
fn is_silence(status: &Status) -> bool {
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
