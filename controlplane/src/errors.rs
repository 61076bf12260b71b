//! Refusals of the core as errors of the API: one place, so that no refusal leaves untyped.

use ashlar_controlplane_core::apply::Refusal;
use ashlar_controlplane_core::bulkhead;
use ashlar_controlplane_core::drain::DrainRefusal;
use ashlar_controlplane_core::grow::GrowthRefusal;
use ashlar_controlplane_core::place::NoPlacement;
use ashlar_controlplane_core::rescue::{ChunkRescue, Step, WishRefusal};
use ashlar_controlplane_core::salvage::SalvageRefusal;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::{NodeId, VolumeId, ZoneId};
use std::time::Duration;

/// Builders of errors.
pub(crate) mod api_error {
    use super::{ApiError, Dice, Duration, NodeId, Reason, SeededDice, ZoneId, bulkhead, v1};

    /// How long a caller should wait for an election.
    const ELECTION_WAIT: Duration = Duration::from_millis(500);

    /// Nobody leads.
    pub(crate) fn no_quorum() -> ApiError {
        let text = "no leader is known: the members of this zone are electing one, or fewer than \
                    half of them can talk to each other; try again";
        ApiError::new(Reason::NoQuorum, text).retry_after(ELECTION_WAIT)
    }

    /// The leader does not know the nodes' space yet.
    pub(crate) fn just_elected() -> ApiError {
        let text = "the leader has just been elected and has not heard from enough nodes yet; \
                    try again";
        ApiError::new(Reason::NoQuorum, text).retry_after(ELECTION_WAIT)
    }

    /// Too much waits.
    pub(crate) fn throttled(what: &str) -> ApiError {
        ApiError::new(Reason::Throttled, format!("{what}; try again later"))
            .retry_after(ELECTION_WAIT)
    }

    /// The caller's time is up.
    pub(crate) fn deadline() -> ApiError {
        let text = "the change was not committed in time; it may still happen: repeat the call \
                    with the same client token";
        ApiError::new(Reason::DeadlineExceeded, text)
    }

    /// A volume that does not exist.
    pub(crate) fn not_found(id_or_name: &str) -> ApiError {
        let text = format!("no volume {id_or_name:?}; `ashlar volume list` shows them all");
        ApiError::new(Reason::VolumeNotFound, text).with("volume", id_or_name)
    }

    /// A node that does not exist.
    pub(crate) fn node_not_found(node: NodeId) -> ApiError {
        let text = format!("{node} never registered; `ashlar node list` shows them all");
        ApiError::new(Reason::NodeNotFound, text).with("node", node.to_string())
    }

    /// A zone that did not answer a call.
    pub(crate) fn zone_unreachable(zone: ZoneId, cause: &str) -> ApiError {
        let text =
            format!("zone {zone} does not answer: {cause}; the other zones are not affected");
        ApiError::new(Reason::ZoneUnreachable, text)
            .with("zone", zone.to_string())
            .retry_after(spread(ELECTION_WAIT))
    }

    /// A zone's bulkhead lets a call not through.
    pub(crate) fn zone_refused(zone: ZoneId, api: &str, refusal: &bulkhead::Refusal) -> ApiError {
        let error = match refusal.why {
            bulkhead::Why::Full | bulkhead::Why::Late => {
                return zone_full(zone, api, refusal.retry_after);
            }
            bulkhead::Why::Open { .. } => {
                zone_unreachable(zone, "no call is made until it answers a probe")
            }
        };
        error.with("api", api).retry_after(refusal.retry_after)
    }

    /// As many calls to a zone run and wait as may.
    pub(crate) fn zone_full(zone: ZoneId, api: &str, retry_after: Duration) -> ApiError {
        let text = format!(
            "as many calls of kind {api} to zone {zone} are under way as may be; try again later"
        );
        ApiError::new(Reason::ZoneShedding, text)
            .with("zone", zone.to_string())
            .with("api", api)
            .retry_after(spread(retry_after))
    }

    /// Several zones have a volume of the name.
    pub(crate) fn name_ambiguous(name: &str, ids: &[&str]) -> ApiError {
        let ids = ids.join(", ");
        let text = format!("several zones have a volume {name:?}; name one by its id: {ids}");
        ApiError::new(Reason::VolumeNameAmbiguous, text).with("volume_ids", ids)
    }

    /// A volume was found by its name, but not all zones answered.
    pub(crate) fn name_may_be_ambiguous(
        name: &str,
        id: &str,
        missing: &[v1::UnreachableZone],
    ) -> ApiError {
        let zones = zone_names(missing);
        let text = format!(
            "zone {zones} does not answer and may have a volume {name:?} too; what cannot be \
             undone wants the id: {id}"
        );
        missing_zones(text, zones).with("volume_ids", id)
    }

    /// No zone that answers has the volume, but not all answered.
    pub(crate) fn name_not_found_everywhere(
        name: &str,
        missing: &[v1::UnreachableZone],
    ) -> ApiError {
        let zones = zone_names(missing);
        let text = format!(
            "no zone that answers has a volume {name:?}; zone {zones} does not answer and may \
             have it"
        );
        missing_zones(text, zones)
    }

    fn missing_zones(text: String, zones: String) -> ApiError {
        ApiError::new(Reason::ZoneUnreachable, text)
            .with("unreachable_zones", zones)
            .retry_after(spread(ELECTION_WAIT))
    }

    fn zone_names(missing: &[v1::UnreachableZone]) -> String {
        missing.iter().map(|missing| missing.zone.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// With jitter, so that many callers do not come back together.
    fn spread(least: Duration) -> Duration {
        bulkhead::spread(least, SeededDice::system().next_u64())
    }

    /// A field that is wrong.
    pub(crate) fn invalid(field: &str, problem: impl Into<String>) -> ApiError {
        ApiError::field(Reason::InvalidParameter, field, problem)
    }
}

/// A refusal by apply.
pub(crate) fn refusal(refusal: &Refusal, volume: Option<VolumeId>) -> ApiError {
    let text = refusal.to_string();
    let error = match refusal {
        Refusal::VolumeNotFound(id) => return api_error::not_found(&id.to_string()),
        Refusal::NameTaken { by } => {
            ApiError::new(Reason::VolumeExists, text).with("volume_id", by.to_string())
        }
        Refusal::Attached { client_name, generation } => {
            ApiError::new(Reason::VolumeInUse, format!("{text}; force takes it away"))
                .with("client_name", client_name.clone())
                .with("generation", generation.to_string())
        }
        Refusal::NotAttached => ApiError::new(Reason::IncorrectState, text),
        Refusal::OtherGeneration { current } => {
            ApiError::new(Reason::Fenced, text).with("current", current.to_string())
        }
        Refusal::TokenMismatch => ApiError::new(Reason::IdempotentParameterMismatch, text),
        Refusal::TooManyTokens => api_error::throttled(&text),
        Refusal::TooManyVolumes => {
            ApiError::new(Reason::VolumeLimitExceeded, text.clone()).quota("zone", text)
        }
        Refusal::Placement => ApiError::new(
            Reason::InsufficientVolumeCapacity,
            "the nodes chosen for the volume have changed meanwhile; try again",
        )
        .retry_after(Duration::from_secs(1)),
        Refusal::NodeTaken { .. } | Refusal::StoreTaken { .. } => {
            ApiError::new(Reason::NodeIdTaken, text)
        }
        Refusal::StoreRevoked { node, store } => ApiError::new(Reason::StoreRevoked, text)
            .with("node", node.to_string())
            .with("store", store.to_string()),
        Refusal::Salvage { chunk, cause } => {
            salvage_refusal(*cause, text).with("chunk", chunk.to_string())
        }
        Refusal::Growth(refusal) => not_grown(refusal),
        Refusal::NothingToSalvage => ApiError::new(Reason::NothingToSalvage, text),
        Refusal::StartBack { .. } => ApiError::new(Reason::InvalidRegistration, text),
        Refusal::UnknownNode(node) => return api_error::node_not_found(*node),
        Refusal::UnknownMember(_) => {
            let text = format!("{text}; `ashlar controlplane members` shows them all");
            ApiError::new(Reason::MemberNotFound, text)
        }
        Refusal::RemovedMember(member) => {
            ApiError::new(Reason::MemberRemoved, text).with("member", member.to_string())
        }
        Refusal::MemberRan(_) => {
            let text = format!("{text}; remove it and add another, under a new number");
            ApiError::new(Reason::MemberRanBefore, text)
        }
    };
    match volume {
        Some(volume) => error.with("volume", volume.to_string()),
        None => error,
    }
}

/// A chunk that apply did not salvage: something changed after the leader had planned it.
fn salvage_refusal(cause: SalvageRefusal, text: String) -> ApiError {
    match cause {
        SalvageRefusal::NotFenced { node, store } => ApiError::new(Reason::NodeNotFenced, text)
            .with("node", node.to_string())
            .with("store", store.to_string()),
        SalvageRefusal::NotStale { node }
        | SalvageRefusal::Suspect { node }
        | SalvageRefusal::Gone { node } => {
            ApiError::new(Reason::NoSalvageCandidate, text).with("node", node.to_string())
        }
        SalvageRefusal::OtherEpoch { .. } | SalvageRefusal::UnknownChunk => {
            let text = format!("{text}; look again by a dry run");
            ApiError::new(Reason::IncorrectState, text)
        }
    }
}

/// A wish for a salvage that is wrong in itself.
pub(crate) fn wish(refusal: &WishRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        WishRefusal::UnknownChunk { .. } => api_error::invalid("chunks", text),
        WishRefusal::NodeForNothing { .. } => api_error::invalid("fenced_nodes", text),
        WishRefusal::StoreForNothing { .. } => api_error::invalid("fenced_stores", text),
        WishRefusal::NodeLives { node, cause } => {
            let text = format!(
                "{text}; while it lives its replicas can serve, so a salvage would lose writes for \
                 nothing: let it do so, or make sure that it never runs again, and repeat this once \
                 it is declared dead (`ashlar node list`)"
            );
            ApiError::field(Reason::NodeLives, "fenced_nodes", text)
                .with("node", node.to_string())
                .with("cause", cause.clone())
        }
    }
}

/// A chunk that needs a salvage and cannot have it.
pub(crate) fn not_salvaged(one: &ChunkRescue) -> ApiError {
    let (chunk, index) = (one.chunk, one.chunk.index.0);
    let others = "; `--chunk` names those that can be salvaged without it";
    match &one.step {
        Step::NotFenced { away } => {
            let names: Vec<String> = away.iter().map(|replica| replica.node.to_string()).collect();
            let names = names.join(", ");
            let text = format!(
                "chunk {index}: {names} held it in sync, and is away: bring it back, or make sure \
                 that it never runs again and state that it is fenced{others}"
            );
            let first = away.first();
            let error = ApiError::field(Reason::NodeNotFenced, "fenced_nodes", text);
            error
                .with("chunk", chunk.to_string())
                .with("node", names)
                .with("store", first.map(|r| r.store.to_string()).unwrap_or_default())
        }
        Step::NoCandidate { unfit } => {
            let causes: Vec<String> =
                unfit.iter().map(|(replica, why)| format!("{}: {why}", replica.node)).collect();
            let causes = match causes.as_slice() {
                [] => "it has no stale replica".to_owned(),
                causes => causes.join("; "),
            };
            let text = format!("chunk {index}: nobody can take over: {causes}{others}");
            let mut error = ApiError::field(Reason::NoSalvageCandidate, "from_node", text)
                .with("chunk", chunk.to_string());
            for (replica, why) in unfit {
                error = error.with(&replica.node.to_string(), why.to_string());
            }
            error
        }
        Step::TakesOver { .. } | Step::LeftAlone { .. } => {
            ApiError::new(Reason::IncorrectState, format!("chunk {index} is not blocked"))
        }
    }
}

/// A node that cannot be drained, with what to do about it.
pub(crate) fn not_drained(refusal: &DrainRefusal) -> ApiError {
    match refusal {
        DrainRefusal::BelowMinimum { node, chunk, .. } => {
            let text = format!(
                "{refusal}; bring the other copies back or wait until they are restored (`ashlar volume \
                 status {}` shows them), then drain",
                chunk.volume
            );
            ApiError::new(Reason::CopiesAtRisk, text)
                .with("node", node.to_string())
                .with("chunk", chunk.to_string())
        }
        DrainRefusal::NoHome { node, chunk, bytes, candidates } => {
            let reasons: Vec<String> =
                candidates.iter().map(|one| format!("{}: {}", one.node, one.why)).collect();
            let text = format!(
                "{refusal}: {}; add a node, or a store, with {bytes} bytes or more, or delete volumes, \
                 then drain",
                reasons.join("; ")
            );
            let mut error = ApiError::new(Reason::NoNewHome, text)
                .with("node", node.to_string())
                .with("chunk", chunk.to_string());
            for one in candidates {
                error = error.with(&one.node.to_string(), one.why.clone());
            }
            error
        }
    }
}

/// A volume that cannot grow so, with what to do about it.
fn not_grown(refusal: &GrowthRefusal) -> ApiError {
    let size = |remedy: String| {
        let text = format!("{refusal}; {remedy}");
        ApiError::field(Reason::UnsupportedSize, "size_bytes", text)
    };
    match refusal {
        GrowthRefusal::Shrinks { size_bytes } => size(format!(
            "name a size of more than {size_bytes} bytes, or copy what is needed to a smaller volume \
             (`ashlar volume create`)"
        ))
        .with("size_bytes", size_bytes.to_string()),
        GrowthRefusal::TooManyChunks { largest_bytes, .. } => size(
            "make a new volume of that size, which has larger chunks, and copy the content (`ashlar \
             volume export`, `ashlar volume import`)"
                .to_owned(),
        )
        .with("largest_bytes", largest_bytes.to_string()),
        GrowthRefusal::TooManyAtOnce { largest_bytes } => size(format!(
            "grow it to {largest_bytes} bytes first, and when it has them, on"
        ))
        .with("largest_bytes", largest_bytes.to_string()),
        GrowthRefusal::Size(error) => {
            ApiError::field(Reason::UnsupportedSize, "size_bytes", error.to_string())
        }
        GrowthRefusal::Creating | GrowthRefusal::Growing { .. } => {
            let text = format!("{refusal}; try again when `ashlar volume show` says that it is done");
            ApiError::new(Reason::IncorrectState, text).retry_after(Duration::from_secs(1))
        }
    }
}

/// No place for a new volume, with the reason for each candidate.
pub(crate) fn no_placement(error: &NoPlacement, zone: &str) -> ApiError {
    let mut text = format!("zone {zone} cannot hold the volume: {error}");
    if error.candidates.is_empty() {
        text += "; no node is registered";
    }
    // Who lacks what stands in the metadata, node by node.
    let mut api = ApiError::new(Reason::InsufficientVolumeCapacity, text)
        .quota(&format!("zone {zone}"), error.to_string())
        .retry_after(Duration::from_secs(5));
    for rejected in &error.candidates {
        api = api.with(&rejected.node.to_string(), rejected.why.clone());
    }
    api
}
