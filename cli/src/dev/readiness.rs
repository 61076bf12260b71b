//! Waits until a zone of a cluster can serve: a leader, and every node with a heartbeat.
//!
//! Asks the control plane as any operator would; looks into no process.

use std::time::Duration;

use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;

use super::layout::ZoneEntry;
use crate::connect::Zone;
use crate::failure::{Failure, Kind};

/// How long a cluster may take. It is ready within 5 s on two idle cores; a loaded host gets more.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long to wait between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long one question may take before it is asked again: members that start refuse at first.
const QUESTION_WITHIN: Duration = Duration::from_secs(2);

/// Returns once every node that is not held down has registered and its heartbeats arrive.
///
/// # Errors
/// When that takes longer than a minute; the text says what is missing.
pub(crate) async fn wait(entry: &ZoneEntry, held: usize) -> Result<(), Failure> {
    let zone = &Zone::of(entry.endpoints());
    let wanted = entry.nodes.len().saturating_sub(held);
    let mut seen = "no member of the control plane answered".to_owned();
    let outcome = tokio::time::timeout(READY_WITHIN, async {
        loop {
            match status(zone).await {
                Ok(status) => {
                    let up = count_up(&status);
                    if up >= wanted {
                        return;
                    }
                    seen = format!("{up} of {wanted} nodes send heartbeats");
                }
                Err(failure) => seen = failure.to_string(),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
    outcome.map_err(|_elapsed| {
        Failure::new(Kind::Timeout, format!("wait for zone {}", entry.name))
            .because(seen)
            .try_next("look at the logs in the cluster's folder")
    })
}

async fn status(zone: &Zone) -> Result<v1::GetStatusResponse, Failure> {
    zone.call("look at the cluster", QUESTION_WITHIN, |channel| async move {
        ClusterServiceClient::new(channel).get_status(v1::GetStatusRequest::default()).await
    })
    .await
}

/// A node whose stream is open counts as up before its first heartbeat has told what it can hold;
/// a volume made then would pass it by.
fn count_up(status: &v1::GetStatusResponse) -> usize {
    let can_hold = |node: &&v1::Node| node.state() == v1::NodeState::Up && node.capacity_bytes > 0;
    status.nodes.iter().filter(can_hold).count()
}
