//! Messages of the schema to and from the vocabulary, every field checked.
//!
//! Going out never fails. Coming in fails with the field at fault, so that nothing unchecked gets
//! past this file: missing messages, numbers out of range, malformed ids, configurations that
//! contradict themselves.

use crate::v1;
use ashlar_types::message::cluster::PeerAddress;
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, ConfigError, Epoch, Generation, Geometry, GeometryError,
    IdError, Incarnation, Lsn, NodeId, ReplicaId, StaleInfo, StartNumber, StoreId, Term,
};
use thiserror::Error;

mod cluster;
pub use cluster::NodeMessage;
#[cfg(test)]
mod tests;

/// Why a message from the network is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// A field that must be there is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An id is malformed.
    #[error("{field}: {cause}")]
    Id {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        cause: IdError,
    },
    /// A number is out of range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Sizes that no volume has.
    #[error("geometry: {0}")]
    Geometry(#[from] GeometryError),
}

/// Result of reading a message.
pub type Converted<T> = Result<T, ConvertError>;

/// The content of a message field that must be set.
fn required<T>(field: Option<T>, name: &'static str) -> Converted<T> {
    field.ok_or(ConvertError::Missing(name))
}

fn id<T: core::str::FromStr<Err = IdError>>(text: &str, field: &'static str) -> Converted<T> {
    text.parse().map_err(|cause| ConvertError::Id { field, cause })
}

fn node(number: u32, field: &'static str) -> Converted<NodeId> {
    if number == 0 {
        return Err(ConvertError::Id { field, cause: IdError::Node });
    }
    Ok(NodeId(number))
}

impl From<ChunkId> for v1::ChunkId {
    fn from(chunk: ChunkId) -> Self {
        Self { volume: chunk.volume.to_string(), index: chunk.index.0 }
    }
}

impl TryFrom<&v1::ChunkId> for ChunkId {
    type Error = ConvertError;
    fn try_from(wire: &v1::ChunkId) -> Converted<Self> {
        Ok(Self { volume: id(&wire.volume, "chunk.volume")?, index: ChunkIndex(wire.index) })
    }
}

impl From<ReplicaId> for v1::ReplicaId {
    fn from(replica: ReplicaId) -> Self {
        Self {
            node: replica.node.0,
            store: replica.store.to_string(),
            incarnation: replica.incarnation.0,
        }
    }
}

impl TryFrom<&v1::ReplicaId> for ReplicaId {
    type Error = ConvertError;
    fn try_from(wire: &v1::ReplicaId) -> Converted<Self> {
        Ok(Self {
            node: node(wire.node, "replica.node")?,
            store: id::<StoreId>(&wire.store, "replica.store")?,
            incarnation: Incarnation(wire.incarnation),
        })
    }
}

impl From<Lsn> for v1::Lsn {
    fn from(lsn: Lsn) -> Self {
        Self { elected: lsn.term.elected.0, start: lsn.term.start.0, counter: lsn.counter }
    }
}

impl From<&v1::Lsn> for Lsn {
    fn from(wire: &v1::Lsn) -> Self {
        let term = Term { elected: Epoch(wire.elected), start: StartNumber(wire.start) };
        Self { term, counter: wire.counter }
    }
}

impl From<Geometry> for v1::Geometry {
    fn from(geometry: Geometry) -> Self {
        Self { size_bytes: geometry.size_bytes(), chunk_bytes: geometry.chunk_bytes() }
    }
}

impl TryFrom<&v1::Geometry> for Geometry {
    type Error = ConvertError;
    fn try_from(wire: &v1::Geometry) -> Converted<Self> {
        Ok(Self::new(wire.size_bytes, wire.chunk_bytes)?)
    }
}

impl From<&ChunkConfig> for v1::ChunkConfig {
    fn from(config: &ChunkConfig) -> Self {
        Self {
            chunk: Some(config.chunk.into()),
            blocks: config.blocks,
            epoch: config.epoch.0,
            elected: config.elected.0,
            generation: config.generation.0,
            primary: Some(config.primary.into()),
            in_sync: config.in_sync.iter().map(|r| (*r).into()).collect(),
            learners: config.learners.iter().map(|r| (*r).into()).collect(),
            stale: config
                .stale
                .iter()
                .map(|(replica, info)| v1::StaleReplica {
                    replica: Some((*replica).into()),
                    last_in_sync: info.last_in_sync.0,
                    suspect: info.suspect,
                })
                .collect(),
            copies_wanted: u32::from(config.copies_wanted),
            copies_min: u32::from(config.copies_min),
        }
    }
}

impl TryFrom<&v1::ChunkConfig> for ChunkConfig {
    type Error = ConvertError;
    fn try_from(wire: &v1::ChunkConfig) -> Converted<Self> {
        let copies =
            |number: u32, name| u8::try_from(number).map_err(|_| ConvertError::Range(name));
        let config = Self {
            chunk: required(wire.chunk.as_ref(), "config.chunk")?.try_into()?,
            blocks: wire.blocks,
            epoch: Epoch(wire.epoch),
            elected: Epoch(wire.elected),
            generation: Generation(wire.generation),
            primary: required(wire.primary.as_ref(), "config.primary")?.try_into()?,
            in_sync: wire.in_sync.iter().map(TryInto::try_into).collect::<Converted<_>>()?,
            learners: wire.learners.iter().map(TryInto::try_into).collect::<Converted<_>>()?,
            stale: wire.stale.iter().map(stale_replica).collect::<Converted<_>>()?,
            copies_wanted: copies(wire.copies_wanted, "config.copies_wanted")?,
            copies_min: copies(wire.copies_min, "config.copies_min")?,
        };
        config.check()?;
        Ok(config)
    }
}

fn stale_replica(wire: &v1::StaleReplica) -> Converted<(ReplicaId, StaleInfo)> {
    let replica = required(wire.replica.as_ref(), "stale.replica")?.try_into()?;
    Ok((replica, StaleInfo { last_in_sync: Epoch(wire.last_in_sync), suspect: wire.suspect }))
}

impl From<&PeerAddress> for v1::PeerAddress {
    fn from(peer: &PeerAddress) -> Self {
        Self {
            node: peer.node.0,
            store: peer.store.to_string(),
            primary_address: peer.primary_address.clone(),
            replication_address: peer.replication_address.clone(),
        }
    }
}

impl TryFrom<&v1::PeerAddress> for PeerAddress {
    type Error = ConvertError;
    fn try_from(wire: &v1::PeerAddress) -> Converted<Self> {
        Ok(Self {
            node: node(wire.node, "peer.node")?,
            store: id(&wire.store, "peer.store")?,
            primary_address: wire.primary_address.clone(),
            replication_address: wire.replication_address.clone(),
        })
    }
}
