//! `ashlar volume salvage`: an operator lets stale copies take over, and what that may have lost.
//!
//! Says what will be done before it is done (`--dry-run`), and decides nothing: the zone refuses what
//! would lose more than it must.

use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use serde::Serialize;

use super::VolumeView;
use crate::connect::{Zone, client_token};
use crate::failure::Failure;
use crate::render::{Output, Show, columns};
use crate::{completion, process, size};

/// What `ashlar volume salvage` is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Id or name.
    #[arg(add = completion::volumes())]
    volume: String,
    /// A chunk to salvage, by its number; once for each (default: all that need it).
    #[arg(long = "chunk", value_name = "N")]
    chunks: Vec<u32>,
    /// A node that never runs again with what it holds: its stores that were in sync are revoked
    /// for ever. Once for each.
    #[arg(long = "fenced", value_name = "NODE", value_parser = node_number, add = completion::nodes())]
    fenced: Vec<u32>,
    /// The same for a single store, by its id.
    #[arg(long = "fenced-store", value_name = "STORE")]
    fenced_stores: Vec<String>,
    /// The node whose stale copies take over (default: in each chunk the copy that lost least).
    #[arg(long, value_name = "NODE", value_parser = node_number, add = completion::nodes())]
    from: Option<u32>,
    /// Who says so, for the record (default: the user on this host).
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Makes a repeated command the same call (default: made anew for each command).
    #[arg(long)]
    client_token: Option<String>,
    /// Say what would be done, chunk by chunk, but change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the record of what salvages may have lost away: it was seen.
    #[arg(long, conflicts_with_all = ["chunks", "fenced", "fenced_stores", "from", "operator"])]
    acknowledge: bool,
}

/// `node-3`, as lists show it, or `3`.
fn node_number(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("node-").unwrap_or(text);
    match number.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a node is named as `node list` shows it (node-3), or by its number".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// What the control plane refused.
pub(super) fn run(zone: &Zone, arguments: Arguments, output: &Output) -> Result<(), Failure> {
    let token = arguments.client_token.unwrap_or_else(client_token);
    if arguments.acknowledge {
        let request = v1::AcknowledgeRiskRequest {
            volume: arguments.volume,
            client_token: token,
            dry_run: arguments.dry_run,
        };
        let what = format!("acknowledge the risk of volume {}", request.volume);
        let answer = zone.ask(&what, |channel| {
            let request = request.clone();
            async move { VolumeServiceClient::new(channel).acknowledge_risk(request).await }
        })?;
        return output.show(&Acknowledged::from(&answer));
    }
    let request = v1::SalvageVolumeRequest {
        volume: arguments.volume,
        chunks: arguments.chunks,
        fenced_nodes: arguments.fenced,
        fenced_stores: arguments.fenced_stores,
        from_node: arguments.from.unwrap_or(0),
        operator: arguments.operator.unwrap_or_else(process::operator),
        client_token: token,
        dry_run: arguments.dry_run,
    };
    let answer = zone.ask(&format!("salvage volume {}", request.volume), |channel| {
        let request = request.clone();
        async move { VolumeServiceClient::new(channel).salvage_volume(request).await }
    })?;
    output.show(&SalvageView::from(&answer))
}

/// What a salvage did, or would do.
#[derive(Debug, Serialize)]
struct SalvageView {
    dry_run: bool,
    volume: VolumeView,
    chunks: Vec<ChunkView>,
    revoked: Vec<StoreView>,
}

#[derive(Debug, Serialize)]
struct ChunkView {
    index: u32,
    /// `takes-over`, `left-alone`, `not-fenced` or `no-candidate`.
    step: &'static str,
    /// Who takes over, or lives.
    node: Option<String>,
    /// With `takes-over`: the last epoch of which that copy has every acknowledged write.
    complete_to: Option<u64>,
    offset_bytes: u64,
    length_bytes: u64,
    blocked_on: Vec<String>,
    cause: String,
}

#[derive(Debug, Serialize)]
struct StoreView {
    node: String,
    store: String,
}

fn name_of(replica: &v1::ReplicaId) -> String {
    format!("node-{}", replica.node)
}

impl From<&v1::ChunkSalvage> for ChunkView {
    fn from(chunk: &v1::ChunkSalvage) -> Self {
        let takes_over = chunk.step() == v1::SalvageStep::TakesOver;
        Self {
            index: chunk.index,
            step: match chunk.step() {
                v1::SalvageStep::Unspecified => "unknown",
                v1::SalvageStep::TakesOver => "takes-over",
                v1::SalvageStep::LeftAlone => "left-alone",
                v1::SalvageStep::NotFenced => "not-fenced",
                v1::SalvageStep::NoCandidate => "no-candidate",
            },
            node: chunk.replica.as_ref().map(name_of),
            complete_to: takes_over.then_some(chunk.complete_to),
            offset_bytes: chunk.offset_bytes,
            length_bytes: chunk.length_bytes,
            blocked_on: chunk.blocked_on.iter().map(name_of).collect(),
            cause: chunk.cause.clone(),
        }
    }
}

impl From<&v1::SalvageVolumeResponse> for SalvageView {
    fn from(answer: &v1::SalvageVolumeResponse) -> Self {
        let store = |r: &v1::RevokedStore| StoreView {
            node: format!("node-{}", r.node),
            store: r.store.clone(),
        };
        Self {
            dry_run: answer.dry_run,
            volume: VolumeView::from(&answer.volume.clone().unwrap_or_default()),
            chunks: answer.chunks.iter().map(ChunkView::from).collect(),
            revoked: answer.revoked.iter().map(store).collect(),
        }
    }
}

impl Show for SalvageView {
    fn table(&self) -> String {
        let begin = if self.dry_run {
            "dry run: nothing was changed; what a salvage would do:"
        } else {
            "salvaged; the volume must be attached anew:"
        };
        let rows = self.chunks.iter().map(|chunk| {
            let at_risk = match chunk.complete_to {
                Some(epoch) => format!(
                    "{} from {}, since epoch {epoch}",
                    size::show(chunk.length_bytes),
                    size::show(chunk.offset_bytes)
                ),
                None => "-".to_owned(),
            };
            [chunk.index.to_string(), chunk.step.to_owned(), at_risk, chunk.cause.clone()]
        });
        let mut parts = vec![begin.to_owned(), columns(["CHUNK", "STEP", "AT RISK", "WHY"], rows)];
        let verb = if self.dry_run { "would be" } else { "is" };
        parts.extend(self.revoked.iter().map(|place| {
            let StoreView { node, store } = place;
            format!("store {store} of {node} {verb} revoked for ever: it comes back empty, or not")
        }));
        parts.join("\n")
    }
}

/// A chunk that may lack writes, as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct RiskView {
    index: u32,
    offset_bytes: u64,
    length_bytes: u64,
    complete_to: u64,
    epoch: u64,
    primary: String,
    at_unix_millis: u64,
    by: String,
}

impl From<&v1::ChunkAtRisk> for RiskView {
    fn from(risk: &v1::ChunkAtRisk) -> Self {
        Self {
            index: risk.index,
            offset_bytes: risk.offset_bytes,
            length_bytes: risk.length_bytes,
            complete_to: risk.complete_to,
            epoch: risk.epoch,
            primary: risk.primary.as_ref().map(name_of).unwrap_or_default(),
            at_unix_millis: risk.at_unix_millis,
            by: risk.by.clone(),
        }
    }
}

impl RiskView {
    /// Heads of [`RiskView::row`].
    pub(super) const HEADER: [&'static str; 6] =
        ["CHUNK", "FROM", "LENGTH", "COMPLETE TO EPOCH", "SALVAGED FROM", "BY"];

    /// The chunk as a row of a list.
    pub(super) fn row(&self) -> [String; 6] {
        [
            self.index.to_string(),
            size::show(self.offset_bytes),
            size::show(self.length_bytes),
            self.complete_to.to_string(),
            self.primary.clone(),
            self.by.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Acknowledged {
    dry_run: bool,
    volume_id: String,
    acknowledged: Vec<RiskView>,
}

impl From<&v1::AcknowledgeRiskResponse> for Acknowledged {
    fn from(answer: &v1::AcknowledgeRiskResponse) -> Self {
        Self {
            dry_run: answer.dry_run,
            volume_id: answer.volume.as_ref().map(|v| v.id.clone()).unwrap_or_default(),
            acknowledged: answer.acknowledged.iter().map(RiskView::from).collect(),
        }
    }
}

impl Show for Acknowledged {
    fn table(&self) -> String {
        if self.acknowledged.is_empty() {
            return format!("nothing of {} was at risk", self.volume_id);
        }
        let begin = if self.dry_run {
            "dry run: nothing was changed; on record is"
        } else {
            "no longer on record is"
        };
        let rows = self.acknowledged.iter().map(RiskView::row);
        format!("{begin}:\n{}", columns(RiskView::HEADER, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_as_lists_show_it_or_by_its_number() {
        assert_eq!(node_number("node-3"), Ok(3));
        assert_eq!(node_number("12"), Ok(12));
        for wrong in ["", "0", "node-", "node-0", "a-node-1", "-1"] {
            assert!(node_number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dry_run_says_what_is_at_risk_and_what_would_be_revoked() {
        let replica = Some(v1::ReplicaId { node: 3, ..Default::default() });
        let mut takes_over = v1::ChunkSalvage { index: 2, replica, ..Default::default() };
        takes_over.set_step(v1::SalvageStep::TakesOver);
        (takes_over.complete_to, takes_over.length_bytes) = (7, 1 << 20);
        let answer = v1::SalvageVolumeResponse {
            volume: None,
            chunks: vec![takes_over],
            revoked: vec![v1::RevokedStore { node: 1, store: "ab".to_owned() }],
            dry_run: true,
        };
        let view = SalvageView::from(&answer);
        assert_eq!((view.chunks[0].step, view.chunks[0].complete_to), ("takes-over", Some(7)));
        let table = view.table();
        assert!(table.starts_with("dry run: nothing was changed"), "{table}");
        assert!(table.contains("1 MiB from 0 B, since epoch 7"), "{table}");
        assert!(table.contains("store ab of node-1 would be revoked"), "{table}");
    }
}
