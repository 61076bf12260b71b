//! What a kind of hostile bytes is: where it goes, how it ends, and what may come back.

use crate::dice::Dice;
use crate::frames;
use crate::grpc;
use crate::nbd;
use ashlar_types::{Generation, VolumeId, ZoneId};
use std::path::PathBuf;

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// The NBD socket.
    Nbd,
    /// A node's primary or replication network.
    Data,
    /// A node's primary network alone: what clients say.
    Primary,
    /// A node's replication network alone: what nodes say.
    Replication,
    /// A member of the control plane: its calls, the nodes' streams and Raft share the port.
    Member,
}

/// What the sender does behind its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Waits: the other side must close by itself.
    Waits,
    /// Says that no more comes, and reads to the end.
    EndsAndReads,
    /// Leaves without reading anything.
    Leaves,
}

/// Judges an answer that was read to its end.
pub(crate) type Judge = fn(&[u8]) -> Result<(), String>;

/// One kind.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) door: Door,
    pub(crate) after: After,
    pub(crate) make: fn(&mut Dice, &World) -> Vec<u8>,
    pub(crate) judge: Judge,
}

/// What bytes are made from, and where the doors are.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) socket: PathBuf,
    pub(crate) size_bytes: u64,
    pub(crate) zone: ZoneId,
    pub(crate) nodes: Vec<NodePorts>,
    pub(crate) members: Vec<String>,
    /// A volume that was attached for its token, and that nobody uses.
    pub(crate) bait: Bait,
}

/// A node's addresses.
#[derive(Debug)]
pub(crate) struct NodePorts {
    pub(crate) primary: String,
    pub(crate) replication: String,
}

/// A right to use a volume.
#[derive(Debug)]
pub(crate) struct Bait {
    pub(crate) volume: VolumeId,
    pub(crate) generation: Generation,
    pub(crate) token: Vec<u8>,
}

/// All kinds.
pub(crate) fn all() -> Vec<Kind> {
    let mut kinds = nbd::kinds();
    kinds.extend(frames::kinds());
    kinds.extend(grpc::kinds());
    kinds
}
