//! Asks the control plane, any member of any zone: which addresses, how often, how long, and what its errors mean here.
//!
//! Any member answers, so addresses are tried in turn until one does or the deadline passes. Calls
//! that change something carry a client token made once per command, so a second try is the same
//! call. gRPC codes become exit codes in one place.

use std::future::Future;
use std::time::{Duration, Instant};

use ashlar_client::control::ControlError;
use ashlar_proto::reason::{ApiError, Reason, exit_code};
use ashlar_proto::v1;
use ashlar_proto::v1::region_service_client::RegionServiceClient;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::Global;
use crate::dev;
use crate::failure::{Failure, Kind};

/// How long one address may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Waits between rounds over all addresses.
const ROUNDS: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(100), max: Duration::from_secs(1) };

/// The control plane, as a command sees it: members of one zone or of several.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    endpoints: Vec<String>,
    /// How long one command tries in all. A member election takes about a second.
    within: Duration,
}

impl Zone {
    /// From `--endpoint`, the environment, or the `dev` cluster of the current folder.
    ///
    /// # Errors
    /// When none of them names a control plane.
    pub(crate) fn find(global: &Global) -> Result<Self, Failure> {
        let within = Duration::from_secs(global.timeout);
        if let Some(text) = &global.endpoint {
            return Self::from_addresses(text, within);
        }
        let folder = dev::folder();
        match dev::endpoints(&folder) {
            Some(endpoints) => Ok(Self { endpoints, within }),
            None => Err(Failure::new(Kind::Usage, "find a control plane")
                .because(format!(
                    "no --endpoint was given, and {} has no cluster",
                    folder.display()
                ))
                .try_next("ashlar dev, or pass --endpoint ADDRESS (or set ASHLAR_ENDPOINT)")),
        }
    }

    /// The given addresses, for callers that say for each call how long to try.
    pub(crate) fn of(endpoints: Vec<String>) -> Self {
        Self { endpoints, within: Duration::ZERO }
    }

    /// How long one command tries in all.
    pub(crate) fn within(&self) -> Duration {
        self.within
    }

    /// The addresses, each with its scheme.
    pub(crate) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    fn from_addresses(text: &str, within: Duration) -> Result<Self, Failure> {
        let endpoints: Vec<String> = text
            .split(',')
            .map(str::trim)
            .filter(|address| !address.is_empty())
            .map(|address| {
                if address.contains("://") {
                    address.to_owned()
                } else {
                    format!("http://{address}")
                }
            })
            .collect();
        for endpoint in &endpoints {
            Endpoint::from_shared(endpoint.clone()).map_err(|error| {
                Failure::new(Kind::Usage, format!("use endpoint {endpoint}")).because(error)
            })?;
        }
        if endpoints.is_empty() {
            return Err(Failure::new(Kind::Usage, "use --endpoint")
                .because("it names no address")
                .try_next("--endpoint 127.0.0.1:7000"));
        }
        Ok(Self { endpoints, within })
    }

    /// Makes one call and waits for its answer; for commands, which have nothing else to do.
    ///
    /// # Errors
    /// As [`Zone::call`].
    pub(crate) fn ask<T, F, R>(&self, what: &str, call: F) -> Result<T, Failure>
    where
        F: Fn(Channel) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        runtime()?.block_on(self.call(what, self.within, call))
    }

    /// Tries every address in turn until one answers.
    ///
    /// # Errors
    /// What the control plane refused, or unavailable when nobody answered within `within`.
    pub(crate) async fn call<T, F, R>(
        &self,
        what: &str,
        within: Duration,
        call: F,
    ) -> Result<T, Failure>
    where
        F: Fn(Channel) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + within;
        let mut waits = Backoff::new(ROUNDS);
        loop {
            let mut last = None;
            for (turn, endpoint) in self.endpoints.iter().enumerate() {
                let left = deadline.saturating_duration_since(Instant::now());
                // One that hangs must not use up the time of the others.
                let is_last = turn + 1 == self.endpoints.len();
                let limit = if is_last { left } else { left / 2 };
                match tokio::time::timeout(limit, one_call(endpoint, &call)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(Refused::Unreachable(why))) => last = Some(why),
                    // One zone's fault, as another one says: asking a third helps nobody.
                    Ok(Err(Refused::Status(status))) if is_of_a_zone(&status) => {
                        return Err(from_status(what, &status));
                    }
                    Ok(Err(Refused::Status(status))) if status.code() == Code::Unavailable => {
                        last = Some(status.message().to_owned());
                    }
                    Ok(Err(Refused::Status(status))) => return Err(from_status(what, &status)),
                    Err(_elapsed) if is_last => {
                        return Err(self.nobody(what, Kind::Timeout, within, last));
                    }
                    Err(_elapsed) => last = Some(format!("{endpoint}: no answer in time")),
                }
            }
            let wait = waits.next_wait(jitter());
            if Instant::now() + wait >= deadline {
                return Err(self.nobody(what, Kind::Unavailable, within, last));
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn nobody(&self, what: &str, kind: Kind, within: Duration, last: Option<String>) -> Failure {
        let failure = Failure::new(kind, what.to_owned()).because(format!(
            "no member of the control plane answered within {} s at {}",
            within.as_secs(),
            self.endpoints.join(", ")
        ));
        let failure = match last {
            Some(why) => failure.because(why),
            None => failure,
        };
        failure.try_next("check that the control plane runs (a quorum of its members is needed)")
    }
}

impl Zone {
    /// The zones of the region, as the member that answers first knows them.
    ///
    /// # Errors
    /// As [`Zone::call`].
    pub(crate) fn zones(&self) -> Result<v1::ListZonesResponse, Failure> {
        self.ask("list the zones of the region", |channel| async move {
            RegionServiceClient::new(channel).list_zones(v1::ListZonesRequest {}).await
        })
    }

    /// The zone that a command means: the one it names, or that of the member that answers first.
    /// Named in the call, so that all its tries go to the same zone.
    ///
    /// # Errors
    /// As [`Zone::call`].
    pub(crate) fn meant(&self, named: Option<String>) -> Result<String, Failure> {
        named.map_or_else(|| Ok(self.zones()?.zone), Ok)
    }
}

/// Whether a zone that answers says that another one does not.
fn is_of_a_zone(status: &Status) -> bool {
    let error = ApiError::from_status(status);
    error.is_some_and(|e| matches!(e.reason, Reason::ZoneUnreachable | Reason::ZoneShedding))
}

/// A runtime for a command or a daemon whose work is one task.
///
/// # Errors
/// When the host gives no event queue.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::Error, "start a runtime").because(error))
}

/// A token that makes the tries of one command one call.
pub(crate) fn client_token() -> String {
    format!("cli-{}", uuid::Uuid::now_v7().simple())
}

enum Refused {
    Unreachable(String),
    Status(Status),
}

async fn one_call<T, F, R>(endpoint: &str, call: &F) -> Result<T, Refused>
where
    F: Fn(Channel) -> R,
    R: Future<Output = Result<Response<T>, Status>>,
{
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| Refused::Unreachable(format!("{endpoint}: {error}")))?
        .connect_timeout(CONNECT_WITHIN)
        .connect()
        .await
        .map_err(|error| Refused::Unreachable(format!("{endpoint}: {}", root_cause(&error))))?;
    call(channel).await.map(Response::into_inner).map_err(Refused::Status)
}

/// tonic wraps the host's word ("connection refused") in two of its own.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Random bits for spreading retries; nothing depends on their quality.
fn jitter() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}

/// What a refusal of the control plane means to the user of a command.
fn from_status(what: &str, status: &Status) -> Failure {
    let kind = Kind::from_exit_code(exit_code(status.code()));
    let failure = Failure::new(kind, what.to_owned()).because(status.message());
    match ApiError::from_status(status) {
        Some(error) => explain(failure, &error),
        None => failure,
    }
}

/// What an error of the client library's own calls means to the user of a command.
pub(crate) fn from_control(what: &str, error: &ControlError) -> Failure {
    let failed = |kind| Failure::new(kind, what.to_owned());
    match error {
        ControlError::Refused(error) => {
            let kind = Kind::from_exit_code(error.reason.exit_code());
            explain(failed(kind).because(&error.message), error)
        }
        ControlError::Endpoint(_) => failed(Kind::Usage).because(error),
        ControlError::Unreachable { .. } => failed(Kind::Unavailable)
            .because(error)
            .try_next("check that the control plane runs (a quorum of its members is needed)"),
        ControlError::Status { code, .. } => {
            failed(Kind::from_exit_code(exit_code(*code))).because(error)
        }
        ControlError::Answer(_) | ControlError::Id(_) => failed(Kind::Error).because(error),
    }
}

/// Adds everything that the control plane said about its refusal.
fn explain(failure: Failure, error: &ApiError) -> Failure {
    let mut failure = failure.with_reason(error.reason.text());
    for (key, value) in &error.metadata {
        failure = failure.because(format!("{key}: {value}"));
    }
    for (subject, problem) in error.fields.iter().chain(&error.quotas) {
        let said = format!("{subject}: {problem}");
        if said != error.message {
            failure = failure.because(said);
        }
    }
    match error.retry_after {
        Some(wait) => failure.try_next(format!("the same again in {} ms", wait.as_millis())),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Zone, Failure> {
        Zone::from_addresses(text, Duration::ZERO)
    }

    #[test]
    fn addresses_are_taken_with_and_without_a_scheme() {
        let zone = read("127.0.0.1:1, http://127.0.0.2:2").unwrap();
        assert_eq!(zone.endpoints(), ["http://127.0.0.1:1", "http://127.0.0.2:2"]);
        assert_eq!(read(" , ").unwrap_err().kind(), Kind::Usage);
        assert_eq!(read("http://[").unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn a_refusal_keeps_its_reason_and_gets_its_exit_code() {
        let status = ApiError::new(Reason::VolumeNotFound, "no volume demo").to_status();
        let failure = from_status("show volume demo", &status);
        assert_eq!(failure.kind(), Kind::NotFound);
        assert!(failure.to_string().contains("[VOLUME_NOT_FOUND]"));
        assert!(failure.to_string().contains("no volume demo"));
    }

    #[test]
    fn every_reason_has_the_exit_code_of_the_registry() {
        for reason in Reason::ALL {
            let failure = from_status("x", &ApiError::new(*reason, "y").to_status());
            assert_eq!(failure.kind().exit_code(), reason.exit_code(), "{reason:?}");
        }
    }

    #[test]
    fn nobody_at_any_address_is_unavailable() {
        let zone = Zone::of(vec!["http://127.0.0.1:1".to_owned()]);
        let outcome: Result<(), Failure> = runtime().unwrap().block_on(zone.call(
            "ask nobody",
            Duration::from_millis(300),
            |_channel| async { Ok(Response::new(())) },
        ));
        assert_eq!(outcome.unwrap_err().kind(), Kind::Unavailable);
    }
}
