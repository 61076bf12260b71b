//! The one registry of typed errors of the API: stable reason, gRPC code, exit code of the CLI.
//!
//! Every refusal of the gRPC surface is an [`ApiError`]; it becomes a `google.rpc.Status` with
//! ErrorInfo (domain `ashlar.dev`), and RetryInfo, QuotaFailure, BadRequest where they apply.
//! [`ApiError::from_status`] reads it back at the caller.

use crate::ERROR_DOMAIN;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::Duration;
use thiserror::Error;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Trailer that tells gRPC clients when to retry (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

#[cfg(test)]
mod tests;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $case:ident, $text:literal, $code:ident, $aws:literal;)*) => {
        /// Why a call is refused. The text form is stable: programs may compare it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])* $case,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$case),*];

            /// The stable text, as in `ErrorInfo.reason`.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$case => $text),* }
            }

            /// The gRPC code that it travels under.
            #[must_use]
            pub const fn code(self) -> Code {
                match self { $(Self::$case => Code::$code),* }
            }

            /// The spelling that users of EC2 know; empty if it has none.
            #[must_use]
            pub const fn aws_code(self) -> &'static str {
                match self { $(Self::$case => $aws),* }
            }
        }
    };
}

reasons! {
    /// No nodes with enough space; the message and metadata say why for each candidate.
    InsufficientVolumeCapacity, "INSUFFICIENT_VOLUME_CAPACITY", ResourceExhausted, "InsufficientVolumeCapacity";
    /// The volume is attached, and `force` was not given.
    VolumeInUse, "VOLUME_IN_USE", FailedPrecondition, "VolumeInUse";
    /// The volume is not in a state that allows the call.
    IncorrectState, "INCORRECT_STATE", FailedPrecondition, "IncorrectState";
    /// The attachment is not the present one.
    Fenced, "FENCED", FailedPrecondition, "";
    /// No volume with that id or name.
    VolumeNotFound, "VOLUME_NOT_FOUND", NotFound, "InvalidVolume.NotFound";
    /// The id names a zone that this control plane does not serve.
    UnknownZone, "UNKNOWN_ZONE", NotFound, "InvalidZone.NotFound";
    /// Volumes of several zones have the name; metadata `volume_ids` lists them.
    VolumeNameAmbiguous, "VOLUME_NAME_AMBIGUOUS", FailedPrecondition, "";
    /// The zone does not answer; metadata `zone` or `unreachable_zones` names it, RetryInfo says
    /// when to come back. With `outcome` = `unknown` a change may have happened.
    ZoneUnreachable, "ZONE_UNREACHABLE", Unavailable, "Unavailable";
    /// As many calls to the zone are under way as may; metadata `zone` and `api` say which.
    ZoneShedding, "ZONE_SHEDDING", Unavailable, "Unavailable";
    /// The client token was used before with another request.
    IdempotentParameterMismatch, "IDEMPOTENT_PARAMETER_MISMATCH", AlreadyExists, "IdempotentParameterMismatch";
    /// Another volume has the name.
    VolumeExists, "VOLUME_EXISTS", AlreadyExists, "";
    /// The zone has as many volumes or chunks as it may have.
    VolumeLimitExceeded, "VOLUME_LIMIT_EXCEEDED", ResourceExhausted, "VolumeLimitExceeded";
    /// A field is malformed; BadRequest names it.
    InvalidParameter, "INVALID_PARAMETER", InvalidArgument, "InvalidParameterValue";
    /// A size that no volume can have; BadRequest names the field.
    UnsupportedSize, "UNSUPPORTED_SIZE", OutOfRange, "InvalidParameterValue";
    /// The caller's deadline came before every chunk confirmed the new generation; metadata
    /// `blocked_on` lists the nodes waited for. Repeat the call with the same client token.
    AdoptionPending, "ADOPTION_PENDING", DeadlineExceeded, "RequestExpired";
    /// The caller's deadline came before the change was committed; it may still happen. Repeat the
    /// call with the same client token.
    DeadlineExceeded, "DEADLINE_EXCEEDED", DeadlineExceeded, "RequestExpired";
    /// This member does not lead; metadata `leader` and `leader_address` name the one that does.
    NotLeader, "NOT_LEADER", Unavailable, "Unavailable";
    /// No leader is known: fewer than a majority of the members can talk.
    NoQuorum, "NO_QUORUM", Unavailable, "Unavailable";
    /// Too many calls wait already; RetryInfo says when to come back.
    Throttled, "THROTTLED", ResourceExhausted, "ThrottlingException";
    /// No member of the control plane has that number.
    MemberNotFound, "MEMBER_NOT_FOUND", NotFound, "";
    /// The member was removed; its number is not used again. Metadata `member` names it.
    MemberRemoved, "MEMBER_REMOVED", FailedPrecondition, "";
    /// The member has run before, with another store: with an empty one it must not vote.
    MemberRanBefore, "MEMBER_RAN_BEFORE", FailedPrecondition, "";
    /// Another member has that address.
    MemberExists, "MEMBER_EXISTS", AlreadyExists, "";
    /// The control plane has as many members as it may have.
    MemberLimitExceeded, "MEMBER_LIMIT_EXCEEDED", ResourceExhausted, "";
    /// Without the member those left that were heard of are no majority, and `force` was not given.
    QuorumAtRisk, "QUORUM_AT_RISK", FailedPrecondition, "";
    /// Another change of members is under way, or the lead is handed over first; try again.
    MemberChangePending, "MEMBER_CHANGE_PENDING", Unavailable, "";
    /// The member is shutting down.
    ShuttingDown, "SHUTTING_DOWN", Unavailable, "Unavailable";
    /// The other side speaks a version that is not spoken here.
    UnsupportedVersion, "UNSUPPORTED_VERSION", FailedPrecondition, "";
    /// A node introduced itself wrongly: another zone, number 0, an address that is none.
    InvalidRegistration, "INVALID_REGISTRATION", InvalidArgument, "";
    /// The node number is bound to another store.
    NodeIdTaken, "NODE_ID_TAKEN", AlreadyExists, "";
    /// The store was stated to be fenced when a volume was salvaged; metadata `node` and `store`.
    StoreRevoked, "STORE_REVOKED", FailedPrecondition, "";
    /// No chunk that was asked for needs a salvage: somebody in sync lives in each of them.
    NothingToSalvage, "NOTHING_TO_SALVAGE", FailedPrecondition, "";
    /// A replica in sync is away and may come back; metadata `node`, `store` and `chunk`.
    NodeNotFenced, "NODE_NOT_FENCED", FailedPrecondition, "";
    /// A node that was stated to be fenced is not declared dead; metadata `node` and `cause`.
    NodeLives, "NODE_LIVES", FailedPrecondition, "";
    /// No stale replica can take over; metadata `chunk`, and why for each of them.
    NoSalvageCandidate, "NO_SALVAGE_CANDIDATE", FailedPrecondition, "";
    /// No node of the zone has that number.
    NodeNotFound, "NODE_NOT_FOUND", NotFound, "";
    /// Without the node a chunk would have fewer copies in sync than writes need; metadata `node` and
    /// `chunk`.
    CopiesAtRisk, "COPIES_AT_RISK", FailedPrecondition, "";
    /// No other node can take what the node holds; metadata `node` and `chunk`, and why for each
    /// candidate.
    NoNewHome, "NO_NEW_HOME", FailedPrecondition, "";
    /// A newer stream of the same node has taken over.
    SessionReplaced, "SESSION_REPLACED", Aborted, "";
    /// The member cannot go on: its own disk failed.
    StorageFailed, "STORAGE_FAILED", Internal, "InternalError";
    /// The call exists in the schema but is not built yet; the message names what is missing.
    NotBuilt, "NOT_BUILT", Unimplemented, "";
}

impl Reason {
    /// The reason with this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.text() == text)
    }

    /// Exit code of the CLI: 1 error, 2 usage, 3 not found, 4 conflict, 5 throttled or full,
    /// 6 unavailable, 7 time-out.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        exit_code(self.code())
    }

    /// Whether the same call may succeed later without anybody changing it.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
    }

    /// Whether a node that is refused its registration for it need not ask again.
    #[must_use]
    pub const fn refuses_node_for_good(self) -> bool {
        matches!(
            self,
            Self::InvalidRegistration
                | Self::UnsupportedVersion
                | Self::NodeIdTaken
                | Self::StoreRevoked
        )
    }
}

/// Exit code of the CLI for a gRPC code; see [`Reason::exit_code`].
#[must_use]
pub const fn exit_code(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::InvalidArgument | Code::OutOfRange => 2,
        Code::NotFound => 3,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => 4,
        Code::ResourceExhausted => 5,
        Code::Unavailable | Code::Cancelled => 6,
        Code::DeadlineExceeded => 7,
        Code::Unknown
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => 1,
    }
}

/// A refusal with everything that a caller can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ApiError {
    /// Which refusal.
    pub reason: Reason,
    /// What failed, why, and what to do next.
    pub message: String,
    /// Further facts, as in `ErrorInfo.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Fields at fault and what is wrong with each.
    pub fields: Vec<(String, String)>,
    /// Quotas that are used up, and how.
    pub quotas: Vec<(String, String)>,
}

impl ApiError {
    /// A refusal with its sentence.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
            fields: Vec::new(),
            quotas: Vec::new(),
        }
    }

    /// A malformed field.
    #[must_use]
    pub fn field(reason: Reason, field: &str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        let mut error = Self::new(reason, format!("{field}: {problem}"));
        error.fields.push((field.to_owned(), problem));
        error
    }

    /// With one more fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// With the time after which a retry makes sense.
    #[must_use]
    pub const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// With a quota that is used up.
    #[must_use]
    pub fn quota(mut self, subject: &str, problem: impl Into<String>) -> Self {
        self.quotas.push((subject.to_owned(), problem.into()));
        self
    }

    /// As it travels.
    #[must_use]
    pub fn to_status(&self) -> Status {
        let mut metadata: HashMap<String, String> =
            self.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        if !self.reason.aws_code().is_empty() {
            metadata.insert("aws_code".to_owned(), self.reason.aws_code().to_owned());
        }
        let mut details = ErrorDetails::with_error_info(self.reason.text(), ERROR_DOMAIN, metadata);
        if let Some(wait) = self.retry_after {
            details.set_retry_info(Some(wait));
        }
        for (field, problem) in &self.fields {
            details.add_bad_request_violation(field, problem);
        }
        for (subject, problem) in &self.quotas {
            details.add_quota_failure_violation(subject, problem);
        }
        let mut status = Status::with_error_details(self.reason.code(), &self.message, details);
        if let Some(wait) = self.retry_after
            && let Ok(millis) = MetadataValue::try_from(wait.as_millis().to_string())
        {
            // The same for clients that retry by themselves and read no details.
            status.metadata_mut().insert(PUSHBACK, millis);
        }
        status
    }

    /// Reads a refusal back; `None` if the status was not made by [`Self::to_status`] (a broken
    /// connection, a proxy, a reason that this build does not know).
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let details = status.check_error_details().ok()?;
        let info = details.error_info()?;
        if info.domain != ERROR_DOMAIN {
            return None;
        }
        let mut metadata: BTreeMap<String, String> =
            info.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        metadata.remove("aws_code");
        Some(Self {
            reason: Reason::from_text(&info.reason)?,
            message: status.message().to_owned(),
            metadata,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            fields: details.bad_request().map_or_else(Vec::new, |bad| {
                bad.field_violations
                    .iter()
                    .map(|v| (v.field.clone(), v.description.clone()))
                    .collect()
            }),
            quotas: details.quota_failure().map_or_else(Vec::new, |quota| {
                quota
                    .violations
                    .iter()
                    .map(|v| (v.subject.clone(), v.description.clone()))
                    .collect()
            }),
        })
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        error.to_status()
    }
}

impl From<crate::convert::ConvertError> for ApiError {
    fn from(error: crate::convert::ConvertError) -> Self {
        Self::new(Reason::InvalidParameter, error.to_string())
    }
}
