//! What can be committed in a zone's Raft log, and its bytes.
//!
//! ```text
//! byte 0..2   version, little-endian; a newer one is refused by name
//! byte 2..10  wall time of the leader in milliseconds since 1970: tokens expire by it
//! byte 10     case of the action, then its fields (types/src/codec.rs)
//! ```
//!
//! A command carries everything that its effect depends on beside the state: ids drawn by the
//! leader, nodes chosen by its placement, its judgement that a node is dead. So apply is the same
//! on every member.

use crate::codec::wire_enum;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::codec::{self, BufMut, CodecError, Reader, Wire};
use ashlar_types::message::cluster::Registration;
use ashlar_types::{
    ChunkId, Epoch, Generation, Geometry, Lsn, NodeId, ReplicaId, StartNumber, StoreId, VolumeId,
    wire_struct,
};
use thiserror::Error;

/// Version of the command's bytes that this build writes, and the newest that it reads.
/// Version 4: nodes with several stores, and placement by store. Version 5: salvage. Version 6:
/// replicas that are away with their store. Version 7: what an operator states of an attachment.
/// Version 8: drain. Version 9: racks of nodes, how long requests of a volume wait. Version 10: growth.
pub const COMMAND_VERSION: u16 = 10;

/// Most chunk changes in one command: some 60 bytes each keep it far below a Raft message.
pub const CHANGES_PER_COMMAND_MAX: usize = 4_096;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Wall time of the leader, milliseconds since 1970.
    pub at_millis: u64,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A node introduced itself, or its process or addresses changed.
    RegisterNode {
        /// The node as it is from now on.
        node: NodeRecord,
    },
    /// Make a volume with its chunks.
    CreateVolume {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// Id drawn by the leader.
        volume: VolumeId,
        /// Name, unique; may be empty.
        name: String,
        /// Sizes.
        geometry: Geometry,
        /// In-sync replicas aimed for.
        copies_wanted: u8,
        /// In-sync replicas below which writes wait.
        copies_min: u8,
        /// For each chunk where it is held, primary first.
        placement: Placement,
        /// How long its requests wait.
        error_after: ErrorAfter,
    },
    /// Delete a volume; its replicas become erasures.
    DeleteVolume {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The volume.
        volume: VolumeId,
        /// Even while attached.
        force: bool,
    },
    /// Give the right to write to a client, under a new generation.
    Attach {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The volume.
        volume: VolumeId,
        /// What the client calls itself.
        client_name: String,
        /// Even while attached.
        force: bool,
    },
    /// End an attachment, under a new generation.
    Detach {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The volume.
        volume: VolumeId,
        /// The attachment meant; 0 for whichever there is.
        generation: Generation,
        /// Not the caller's own attachment.
        force: bool,
    },
    /// Every primary of a new volume serves.
    MarkReady {
        /// The volumes.
        volumes: Vec<VolumeId>,
    },
    /// Change configurations, each by its own compare-and-set.
    Change {
        /// At most [`CHANGES_PER_COMMAND_MAX`].
        changes: Vec<ChunkChange>,
    },
    /// The key by which tokens of attachments are signed. Only the first one counts.
    SetZoneKey {
        /// Secret half of an Ed25519 key, drawn by a leader.
        secret: [u8; 32],
    },
    /// Holders confirmed that they erased these.
    Forget {
        /// The erased replicas.
        replicas: Vec<(ChunkId, ReplicaId)>,
    },
    /// A member is added: applied with Raft's own change, so it is never refused.
    AddMember {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// Its number.
        member: u64,
        /// `ip:port` of its services.
        address: String,
        /// The members before it, which count if none are committed yet.
        before: Vec<(u64, String)>,
    },
    /// A member is removed: applied with Raft's own change, so it is never refused.
    RemoveMember {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// Its number.
        member: u64,
        /// As in [`Action::AddMember`].
        before: Vec<(u64, String)>,
    },
    /// An added member starts for the first time.
    StartMember {
        /// Its number.
        member: u64,
        /// Number that it has drawn for its store. With another one it would have forgotten what
        /// it voted.
        store: u128,
    },
    /// An operator has stale replicas take over: see [`crate::salvage`].
    Salvage {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The volume. It is attached anew afterwards.
        volume: VolumeId,
        /// Its chunks that are salvaged: all of them, or none.
        chunks: Vec<ChunkSalvage>,
        /// Stores that the operator states to be fenced. They are revoked for ever.
        fenced: Vec<Place>,
        /// Who says so, for the record.
        by: String,
    },
    /// An operator has seen what a salvage may have lost.
    AcknowledgeSalvage {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The volume.
        volume: VolumeId,
    },
    /// An operator states that whoever had a volume before its present attachment never writes again.
    StateFenced {
        /// The volume.
        volume: VolumeId,
        /// The present attachment, and no other.
        generation: Generation,
        /// Who says so, for the record.
        by: String,
    },
    /// A node is to hold nothing: see [`crate::drain`].
    Drain {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The node.
        node: NodeId,
        /// It is of use again.
        cancel: bool,
    },
    /// Chunks for a larger volume: see [`crate::grow`].
    GrowVolume {
        /// Protection against repetition.
        token: Option<TokenUse>,
        /// The volume.
        volume: VolumeId,
        /// Its size once they serve.
        size_bytes: u64,
        /// For each new chunk where it is held, primary first.
        placement: Placement,
    },
    /// Every primary of the new chunks serves: clients are told of the size.
    FinishGrowth {
        /// The volumes, each with the size that was judged.
        grown: Vec<(VolumeId, u64)>,
    },
    /// A member's store is damaged or empty: it cannot take part. Or it does again.
    NoteLost {
        /// Its number.
        member: u64,
        /// What it found; empty: it takes part.
        cause: String,
        /// As in [`Action::AddMember`].
        before: Vec<(u64, String)>,
    },
}

/// A member of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// Its number, never given twice.
    pub member: u64,
    /// `ip:port` of its services.
    pub address: String,
    /// It is a member no more; its peers refuse it.
    pub removed: bool,
    /// The store that it started with; 0 for those that the zone began with.
    pub store: Option<u128>,
    /// Why it cannot take part, in its own words; empty: it can.
    pub lost: String,
}

/// What the zone knows of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its number.
    pub node: NodeId,
    /// Its stores that work: at least one. What it held on any other is gone.
    pub stores: Vec<StoreId>,
    /// Start number of its process.
    pub start: StartNumber,
    /// `ip:port` on the primary network.
    pub primary_address: String,
    /// `ip:port` on the replication network.
    pub replication_address: String,
    /// What fails with it: power, a switch. Replicas of a chunk are on nodes with different labels where
    /// that is possible; empty: it has none, and shares its fate with nobody.
    pub rack: String,
}

impl NodeRecord {
    /// Whether the replica's store is one of its.
    #[must_use]
    pub fn has_store_of(&self, replica: ReplicaId) -> bool {
        self.stores.contains(&replica.store)
    }

    /// The store that stands for the node where only one is named.
    #[must_use]
    pub fn first_store(&self) -> StoreId {
        self.stores.first().copied().unwrap_or(StoreId(0))
    }
}

impl Wire for NodeRecord {
    fn put(&self, out: &mut impl BufMut) {
        let others = self.stores.get(1..).unwrap_or_default().to_vec();
        self.node.put(out);
        self.first_store().put(out);
        self.start.put(out);
        self.primary_address.put(out);
        self.replication_address.put(out);
        others.put(out);
        self.rack.put(out);
    }

    /// The last field of whatever holds it: up to command version 3 and value version 1 it ended with
    /// its addresses, and the node had one store; up to command version 8 and value version 2 with its
    /// stores, and it had no rack.
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let (node, first) = (Wire::get(from)?, Wire::get(from)?);
        let (start, primary_address) = (Wire::get(from)?, Wire::get(from)?);
        let replication_address = Wire::get(from)?;
        let mut stores = alloc::vec![first];
        if from.left() > 0 {
            stores.extend(Vec::<StoreId>::get(from)?);
        }
        let rack = if from.left() > 0 { Wire::get(from)? } else { String::new() };
        Ok(Self { node, stores, start, primary_address, replication_address, rack })
    }
}

/// A place for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Which of its stores.
    pub store: StoreId,
}

impl Place {
    /// Where a replica is.
    #[must_use]
    pub const fn of(replica: ReplicaId) -> Self {
        Self { node: replica.node, store: replica.store }
    }
}

/// Where the chunks of a new volume are held: for each chunk its places, primary first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement(pub Vec<Vec<Place>>);

impl Wire for Placement {
    fn put(&self, out: &mut impl BufMut) {
        let nodes: Vec<Vec<NodeId>> = self.each(|place| place.node);
        nodes.put(out);
        let stores: Vec<Vec<StoreId>> = self.each(|place| place.store);
        stores.put(out);
    }

    /// The last field of its command up to version 8: up to version 3 it named nodes alone, which had one
    /// store each. Store 0 stands for that.
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let nodes = Vec::<Vec<NodeId>>::get(from)?;
        let stores = if from.left() > 0 { Vec::<Vec<StoreId>>::get(from)? } else { Vec::new() };
        let of = |chunk: usize, nth: usize| stores.get(chunk).and_then(|s| s.get(nth)).copied();
        let placed = nodes.iter().enumerate().map(|(chunk, nodes)| {
            let place = |(nth, node): (usize, &NodeId)| Place {
                node: *node,
                store: of(chunk, nth).unwrap_or(StoreId(0)),
            };
            nodes.iter().enumerate().map(place).collect()
        });
        Ok(Self(placed.collect()))
    }
}

impl Placement {
    fn each<T>(&self, what: impl Fn(&Place) -> T) -> Vec<Vec<T>> {
        self.0.iter().map(|places| places.iter().map(&what).collect()).collect()
    }
}

/// How long a request that cannot be carried out waits before its client answers it with an error
/// (design.md section 4.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorAfter {
    /// Milliseconds; 0: for ever.
    pub millis: u64,
}

impl Wire for ErrorAfter {
    fn put(&self, out: &mut impl BufMut) {
        self.millis.put(out);
    }

    /// The last field of its command: up to version 8 all waited for ever.
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let millis = if from.left() > 0 { Wire::get(from)? } else { 0 };
        Ok(Self { millis })
    }
}

impl From<&Registration> for NodeRecord {
    fn from(registration: &Registration) -> Self {
        Self {
            node: registration.node,
            stores: registration.stores.clone(),
            start: registration.start,
            primary_address: registration.primary_address.clone(),
            replication_address: registration.replication_address.clone(),
            rack: registration.rack.clone(),
        }
    }
}

/// A caller's protection against carrying out one request twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// The caller's token.
    pub token: String,
    /// [`request_hash`] of the call and its parameters.
    pub request_hash: u128,
}

/// One chunk of [`Action::Salvage`]: a compare-and-set on `epoch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSalvage {
    /// The chunk.
    pub chunk: ChunkId,
    /// The epoch that it changes.
    pub epoch: Epoch,
    /// The stale replica that becomes the only one in sync.
    pub primary: ReplicaId,
    /// In-sync replicas that said themselves, at this epoch, that they are of no use.
    pub confirmed: Vec<ReplicaId>,
}

/// A change of one chunk's configuration: a compare-and-set on `epoch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkChange {
    /// The chunk.
    pub chunk: ChunkId,
    /// The epoch that it changes.
    pub epoch: Epoch,
    /// What changes.
    pub kind: ChangeKind,
}

/// What changes, with the evidence that its rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The primary cannot complete writes without this secondary; it becomes stale.
    RemoveSecondary {
        /// Who proposed it.
        proposer: ReplicaId,
        /// The secondary.
        replica: ReplicaId,
        /// Why fewer than `copies_min` may remain, if they would.
        evidence: Evidence,
    },
    /// Another in-sync replica becomes primary; the old one becomes stale, unless it agreed to stay.
    Elect {
        /// The new primary.
        primary: ReplicaId,
        /// Why fewer than `copies_min` may remain, if they would.
        evidence: Evidence,
    },
    /// Fill a replica that was in sync once.
    ReadoptStale {
        /// Who proposed it.
        proposer: ReplicaId,
        /// The stale replica.
        replica: ReplicaId,
    },
    /// Fill a new replica on the first store of a node: what was committed up to command version 3.
    AddLearner {
        /// Who proposed it.
        proposer: ReplicaId,
        /// Where.
        node: NodeId,
    },
    /// Fill a new replica on a store chosen by the control plane.
    AddLearnerOn {
        /// Who proposed it.
        proposer: ReplicaId,
        /// Where.
        place: Place,
    },
    /// Fill a new replica on a node whose stale replica of the chunk is away with its store, and is
    /// given up for it.
    AddLearnerInstead {
        /// Who proposed it.
        proposer: ReplicaId,
        /// Where.
        place: Place,
        /// What is given up.
        away: ReplicaId,
    },
    /// A learner does not answer.
    RemoveLearner {
        /// Who proposed it.
        proposer: ReplicaId,
        /// The learner.
        replica: ReplicaId,
    },
    /// A learner has everything.
    PromoteLearner {
        /// Who proposed it.
        proposer: ReplicaId,
        /// The learner.
        replica: ReplicaId,
        /// Its contiguous durable prefix when this was proposed, in a term of the present election:
        /// the position in it is the primary's knowledge, and nothing that is committed tells more.
        durable: Lsn,
    },
    /// Fill one replica more than is wanted: one that is in sync is to leave (`moves.rs`).
    AddSpare {
        /// Where.
        place: Place,
    },
    /// As many as are wanted are in sync without this secondary, and it is to leave; it becomes stale.
    Release {
        /// The secondary.
        replica: ReplicaId,
    },
    /// A stale replica is not needed any more: as many as are wanted are in sync, and each has
    /// durably recorded that it is.
    Retire {
        /// The replica.
        replica: ReplicaId,
    },
}

/// The leader's judgement about a replica that leaves the in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It does not answer its primary, or most of its peers.
    Unreachable {},
    /// Its node is declared dead.
    NodeDead {},
    /// It says itself that it is stale or gone.
    ReportedGone {},
    /// It does not leave: the primary agreed to follow the one that is elected.
    Agreed {
        /// Who agreed, at the epoch of the change.
        by: ReplicaId,
    },
    /// Its node has registered without its store. What is there may be whole, and may come back.
    StoreAway {},
}

wire_struct! {
    Place { node, store }
    MemberRecord { member, address, removed, store, lost }
    TokenUse { token, request_hash }
    ChunkChange { chunk, epoch, kind }
    ChunkSalvage { chunk, epoch, primary, confirmed }
}
wire_enum! { Evidence {
    0 => Unreachable {},
    1 => NodeDead {},
    2 => ReportedGone {},
    3 => Agreed { by },
    4 => StoreAway {},
} }
wire_enum! { ChangeKind {
    0 => RemoveSecondary { proposer, replica, evidence },
    1 => Elect { primary, evidence },
    2 => ReadoptStale { proposer, replica },
    3 => AddLearner { proposer, node },
    4 => RemoveLearner { proposer, replica },
    5 => PromoteLearner { proposer, replica, durable },
    6 => Retire { replica },
    9 => AddLearnerOn { proposer, place },
    10 => AddLearnerInstead { proposer, place, away },
    11 => AddSpare { place },
    12 => Release { replica },
} }
wire_enum! { Action {
    0 => RegisterNode { node },
    1 => CreateVolume {
        token, volume, name, geometry, copies_wanted, copies_min, placement, error_after,
    },
    2 => DeleteVolume { token, volume, force },
    3 => Attach { token, volume, client_name, force },
    4 => Detach { token, volume, generation, force },
    5 => MarkReady { volumes },
    6 => Change { changes },
    7 => Forget { replicas },
    20 => SetZoneKey { secret },
    8 => AddMember { token, member, address, before },
    9 => RemoveMember { token, member, before },
    10 => StartMember { member, store },
    11 => NoteLost { member, cause, before },
    12 => Salvage { token, volume, chunks, fenced, by },
    13 => AcknowledgeSalvage { token, volume },
    14 => StateFenced { volume, generation, by },
    15 => Drain { token, node, cancel },
    16 => GrowVolume { token, volume, size_bytes, placement },
    17 => FinishGrowth { grown },
} }

/// Why bytes of the log are no command of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Written by a newer release; this member must not go on without understanding it.
    #[error(
        "command version {found} is not understood; this release reads up to {COMMAND_VERSION}"
    )]
    NewerVersion {
        /// Version found.
        found: u16,
    },
    /// Damaged.
    #[error("not a command: {0}")]
    Codec(#[from] CodecError),
}

impl Command {
    /// As it stands in the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        COMMAND_VERSION.put(&mut out);
        self.at_millis.put(&mut out);
        self.action.put(&mut out);
        out
    }

    /// From the log.
    ///
    /// # Errors
    /// A newer version, or bytes that are no command.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let mut reader = Reader::new(bytes);
        let found = u16::get(&mut reader)?;
        if found > COMMAND_VERSION {
            return Err(CommandError::NewerVersion { found });
        }
        let command = Self { at_millis: Wire::get(&mut reader)?, action: Wire::get(&mut reader)? };
        reader.finish()?;
        Ok(command)
    }
}

/// Hash of an action without what differs between two tries of one request: its token, and what
/// the leader drew or chose. Not against forgery: it tells a repeated request from another one.
#[must_use]
pub fn request_hash(call: u8, parameters: &[&[u8]]) -> u128 {
    // FNV-1a, 128 bits; lengths go in too, so that ("ab", "c") and ("a", "bc") differ.
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut add = |byte: u8| hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    add(call);
    for parameter in parameters {
        codec::encode(&(parameter.len() as u64)).into_iter().for_each(&mut add);
        parameter.iter().copied().for_each(&mut add);
    }
    hash
}
