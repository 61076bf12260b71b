//! Calls for the own zone: asked of the own member, or of the leader on the caller's behalf.
//!
//! Any member answers any call of its zone; `region.rs` has those of other zones. Who does not lead forwards once, under the caller's deadline; while
//! nobody leads, the call waits for a leader as long as its deadline allows, unless repeating it
//! could do harm (a change without client token whose outcome is unknown).

use crate::errors::api_error;
use crate::machine::Handle;
use crate::member::{Reply, Request as Ask};
use crate::methods::{Hop, send};
use crate::server::endpoint;
use ashlar_proto::reason::{ApiError, Reason};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Deadline of a caller that names none.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest deadline: what waits longer only holds a slot.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// How long before the caller's deadline its answer leaves: a round trip on a busy host.
const ANSWER_AHEAD: Duration = Duration::from_millis(150);
/// How long to wait for word of a leader before asking again.
pub const LEADER_POLL: Duration = Duration::from_millis(100);
/// Calls of all clients under way at a time; more are answered THROTTLED.
const CALLS_MAX: usize = 1_024;
/// Ways to members that are kept open: twice as many as there can be.
const WAYS_MAX: usize = 16;

/// Answers calls for the own zone.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    member: Handle,
    /// Ways to members by address, connected when first used.
    others: Arc<Mutex<BTreeMap<String, Channel>>>,
    slots: Arc<tokio::sync::Semaphore>,
}

impl Calls {
    pub(crate) fn new(member: Handle) -> Self {
        let slots = Arc::new(tokio::sync::Semaphore::new(CALLS_MAX));
        Self { member, others: Arc::default(), slots }
    }

    /// The own member.
    pub(crate) fn member(&self) -> &Handle {
        &self.member
    }

    /// Gets an answer before `until`, from wherever in the zone it can be had; from this member
    /// alone if it `is_forwarded` by another one.
    pub(crate) async fn answer(
        &self,
        ask: Ask,
        until: Instant,
        is_forwarded: bool,
    ) -> Result<Reply, Status> {
        let Ok(_slot) = self.slots.try_acquire() else {
            return Err(api_error::throttled("too many calls are under way").into());
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let error = match self.member.call(ask.clone(), left).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let again = match error.reason {
                Reason::NotLeader if !is_forwarded => match self.forward(&error, &ask, until).await
                {
                    Some(Ok(reply)) => return Ok(reply),
                    Some(Err(status)) => may_ask_again(&status, &ask),
                    None => Ok(()),
                },
                Reason::NoQuorum if !is_forwarded => may_ask_again(&error.to_status(), &ask),
                _ => Err(error.to_status()),
            };
            again?;
            if Instant::now() + LEADER_POLL >= until {
                return Err(error.into());
            }
            let mut leadership = self.member.leadership();
            // Either there is word of another leader, or it is time to ask again anyway.
            tokio::time::timeout(LEADER_POLL, leadership.changed()).await.ok();
        }
    }

    /// The way to a member, kept for the next call.
    fn way_to(&self, address: &str) -> Option<Channel> {
        let mut others = self.others.lock().ok()?;
        if let Some(channel) = others.get(address) {
            return Some(channel.clone());
        }
        let channel = endpoint(address).ok()?.connect_lazy();
        if others.len() >= WAYS_MAX {
            others.clear();
        }
        others.insert(address.to_owned(), channel.clone());
        Some(channel)
    }

    /// Asks the leader; `None` if there is no way to it.
    async fn forward(
        &self,
        error: &ApiError,
        ask: &Ask,
        until: Instant,
    ) -> Option<Result<Reply, Status>> {
        let channel = self.way_to(error.metadata.get("leader_address")?)?;
        let left = until.saturating_duration_since(Instant::now());
        Some(send(channel, ask.clone(), left, Hop::Leader).await)
    }
}

/// Whether a call that failed this way may be made again without harm.
///
/// # Errors
/// It may not: what it failed by.
pub fn may_ask_again(status: &Status, ask: &Ask) -> Result<(), Status> {
    let typed = ApiError::from_status(status);
    let again = match &typed {
        Some(error) => match error.reason {
            Reason::NotLeader | Reason::ShuttingDown => true,
            Reason::NoQuorum => ask.is_repeatable() || !error.metadata.contains_key("outcome"),
            _ => false,
        },
        // The connection broke: whether the leader acted is unknown.
        None => status.code() == Code::Unavailable && ask.is_repeatable(),
    };
    if again { Ok(()) } else { Err(status.clone()) }
}

/// The caller's deadline, from the header that every gRPC client sets, less a little: an answer
/// that says what was waited for must arrive before the caller's own clock cuts it off.
pub(crate) fn deadline(metadata: &MetadataMap) -> Duration {
    let text = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let given = text.and_then(parse_timeout).unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MAX);
    given.saturating_sub(ANSWER_AHEAD.min(given / 4))
}

/// `TimeoutValue TimeoutUnit` of the gRPC specification: up to 8 digits and one of H M S m u n.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_proto::v1;
    use tonic::metadata::MetadataValue;

    #[test]
    fn deadlines_are_read_as_the_specification_writes_them() {
        for (text, wanted) in [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("1H", Some(Duration::from_secs(3_600))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5x", None),
            ("-5S", None),
        ] {
            assert_eq!(parse_timeout(text), wanted, "{text}");
        }
        let mut metadata = MetadataMap::new();
        assert_eq!(deadline(&metadata), DEADLINE_DEFAULT - ANSWER_AHEAD);
        metadata.insert("grpc-timeout", MetadataValue::from_static("2H"));
        assert_eq!(deadline(&metadata), DEADLINE_MAX - ANSWER_AHEAD);
        metadata.insert("grpc-timeout", MetadataValue::from_static("200m"));
        assert_eq!(deadline(&metadata), Duration::from_millis(150));
    }

    #[test]
    fn a_change_of_unknown_outcome_is_repeated_only_with_a_token() {
        let create = |token: &str| {
            Ask::CreateVolume(v1::CreateVolumeRequest {
                client_token: token.into(),
                ..Default::default()
            })
        };
        let unknown = api_error::no_quorum().with("outcome", "unknown").to_status();
        assert!(may_ask_again(&unknown, &create("t")).is_ok());
        assert!(may_ask_again(&unknown, &create("")).is_err());
        assert!(may_ask_again(&api_error::no_quorum().to_status(), &create("")).is_ok());
        let broken = Status::unavailable("connection reset");
        assert!(may_ask_again(&broken, &create("t")).is_ok());
        assert!(may_ask_again(&broken, &create("")).is_err());
    }
}
