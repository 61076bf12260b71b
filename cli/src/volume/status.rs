//! `ashlar volume status`: who holds each chunk of a volume, and in which state.

use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use serde::Serialize;

use crate::connect::Zone;
use crate::failure::Failure;
use crate::render::{Show, columns};

/// The chunks of a volume under their newest committed configurations.
#[derive(Debug, Serialize)]
pub(super) struct VolumeStatus {
    volume_id: String,
    generation: u64,
    chunks: Vec<ChunkView>,
}

#[derive(Debug, Serialize)]
struct ChunkView {
    index: u32,
    /// `whole`, `degraded`, or `below-minimum`: then its writes wait.
    state: &'static str,
    /// It was salvaged and may lack what was acknowledged after this epoch.
    complete_to: Option<u64>,
    epoch: u64,
    primary: String,
    in_sync: Vec<String>,
    learners: Vec<String>,
    stale: Vec<String>,
}

/// Asks the zone for the volume's map.
///
/// # Errors
/// What the control plane refused.
pub(super) fn read(zone: &Zone, volume: &str) -> Result<VolumeStatus, Failure> {
    let answer = zone.ask(&format!("show the chunks of volume {volume}"), |channel| {
        let request = v1::GetVolumeMapRequest { volume: volume.to_owned(), ..Default::default() };
        async move { VolumeServiceClient::new(channel).get_volume_map(request).await }
    })?;
    Ok(VolumeStatus::from(answer.map.unwrap_or_default()))
}

impl From<v1::VolumeMap> for VolumeStatus {
    fn from(map: v1::VolumeMap) -> Self {
        let volume = map.volume.unwrap_or_default();
        let mut chunks: Vec<ChunkView> = map.chunks.iter().map(ChunkView::from).collect();
        for chunk in &mut chunks {
            let risk = volume.at_risk.iter().find(|risk| risk.index == chunk.index);
            chunk.complete_to = risk.map(|risk| risk.complete_to);
        }
        Self { volume_id: volume.id, generation: map.generation, chunks }
    }
}

impl From<&v1::ChunkConfig> for ChunkView {
    fn from(config: &v1::ChunkConfig) -> Self {
        let copies = u32::try_from(config.in_sync.len()).unwrap_or(u32::MAX);
        let state = if copies < config.copies_min {
            "below-minimum"
        } else if copies < config.copies_wanted {
            "degraded"
        } else {
            "whole"
        };
        let names = |replicas: &[v1::ReplicaId]| replicas.iter().map(node_name).collect();
        let stale: Vec<v1::ReplicaId> =
            config.stale.iter().filter_map(|stale| stale.replica.clone()).collect();
        Self {
            index: config.chunk.as_ref().map_or(0, |chunk| chunk.index),
            state,
            complete_to: None,
            epoch: config.epoch,
            primary: config.primary.as_ref().map_or_else(|| "-".to_owned(), node_name),
            in_sync: names(&config.in_sync),
            learners: names(&config.learners),
            stale: names(&stale),
        }
    }
}

fn node_name(replica: &v1::ReplicaId) -> String {
    format!("node-{}", replica.node)
}

impl Show for VolumeStatus {
    fn table(&self) -> String {
        let list = |names: &[String]| match names {
            [] => "-".to_owned(),
            names => names.join(" "),
        };
        columns(
            ["CHUNK", "STATE", "EPOCH", "PRIMARY", "IN SYNC", "LEARNERS", "STALE", "AT RISK"],
            self.chunks.iter().map(|chunk| {
                [
                    chunk.index.to_string(),
                    chunk.state.to_owned(),
                    chunk.epoch.to_string(),
                    chunk.primary.clone(),
                    list(&chunk.in_sync),
                    list(&chunk.learners),
                    list(&chunk.stale),
                    chunk
                        .complete_to
                        .map_or_else(|| "-".to_owned(), |epoch| format!("since epoch {epoch}")),
                ]
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_below_its_minimum_says_so() {
        let replica = |node| v1::ReplicaId { node, ..Default::default() };
        let config = |in_sync: &[u32]| v1::ChunkConfig {
            primary: Some(replica(1)),
            in_sync: in_sync.iter().map(|node| replica(*node)).collect(),
            stale: vec![v1::StaleReplica { replica: Some(replica(9)), ..Default::default() }],
            copies_wanted: 3,
            copies_min: 2,
            ..Default::default()
        };
        assert_eq!(ChunkView::from(&config(&[1, 2, 3])).state, "whole");
        assert_eq!(ChunkView::from(&config(&[1, 2])).state, "degraded");
        let alone = ChunkView::from(&config(&[1]));
        assert_eq!((alone.state, alone.stale), ("below-minimum", vec!["node-9".to_owned()]));
    }
}
