//! What is committed in a zone: volumes, chunk configurations, nodes, tokens, erasures.
//!
//! Changed by [`crate::apply`] alone. Every entry has a key and a versioned value, so that a
//! member keeps the state in its metadata store entry by entry, and a snapshot is the list of all
//! entries in order of key.
//!
//! ```text
//! key    byte 0: kind (1 clock, 2 volume, 3 chunk, 4 node, 5 token, 6 erasure, 7 member, 8 zone
//!        key, 9 revoked store, 10 salvaged chunk, 11 statement about an attachment, 12 drained node,
//!        13 patience of a volume, 14 growth of a volume), then the id, big-endian so that keys sort as ids do
//! value  byte 0: version; then the fields (types/src/codec.rs)
//! ```

use crate::apply::Answer;
use crate::command::{MemberRecord, NodeRecord, Place};
use crate::drain::DrainRecord;
use crate::grow::GrowthRecord;
use crate::salvage::AtRisk;
use crate::sharing::Shared;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::codec::{self, CodecError, Reader, Wire};
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, ConfigError, Generation, Geometry, NodeId, ReplicaId,
    StaleInfo, StoreId, VolumeId, ZoneId, wire_struct,
};
use thiserror::Error;

/// Version of every value that this build writes, and the newest that it reads.
/// Version 2: nodes with several stores. Version 3: racks of nodes, patience of volumes. Version 4:
/// growth of volumes.
pub const VALUE_VERSION: u8 = 4;
/// Version of the list of entries in a snapshot.
pub const SNAPSHOT_VERSION: u16 = 1;
/// Most volumes of a zone.
pub const VOLUMES_MAX: usize = 10_000;
/// Most chunks of a zone: some 300 bytes each in every member's memory.
pub const CHUNKS_PER_ZONE_MAX: usize = 1_000_000;
/// Most client tokens remembered at a time; more calls than that in 24 hours are throttled.
pub const TOKENS_MAX: usize = 100_000;
/// How long a token is remembered (design.md section 9).
pub const TOKEN_LIFE_MILLIS: u64 = 24 * 60 * 60 * 1_000;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name; may be empty.
    pub name: String,
    /// Sizes.
    pub geometry: Geometry,
    /// In-sync replicas aimed for.
    pub copies_wanted: u8,
    /// In-sync replicas below which writes wait.
    pub copies_min: u8,
    /// Every primary has served once.
    pub ready: bool,
    /// Number of the latest attachment or detachment.
    pub generation: Generation,
    /// Who has it.
    pub attachment: Option<Attachment>,
    /// When it was created, milliseconds since 1970.
    pub created_millis: u64,
}

/// One client's right to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What the client calls itself.
    pub client_name: String,
    /// When it was committed, milliseconds since 1970.
    pub since_millis: u64,
}

/// What an operator stated about a volume: whoever had it before this attachment never writes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// The attachment.
    pub generation: Generation,
    /// Who said so.
    pub by: String,
    /// When, milliseconds since 1970.
    pub at_millis: u64,
}

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its configuration.
    pub config: ChunkConfig,
    /// What was remembered of learners that were in sync once: they turn stale again, with this,
    /// if their filling is given up. Learners that are not here were never in sync.
    pub readopting: Vec<(ReplicaId, StaleInfo)>,
}

/// A remembered call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Hash of the request.
    pub request_hash: u128,
    /// What was answered.
    pub answer: Answer,
    /// When it is forgotten, milliseconds since 1970.
    pub expires_millis: u64,
}

wire_struct! {
    Volume {
        id, name, geometry, copies_wanted, copies_min, ready, generation, attachment,
        created_millis,
    }
    Attachment { client_name, since_millis }
    Fenced { generation, by, at_millis }
    Chunk { config, readopting }
    TokenRecord { request_hash, answer, expires_millis }
}

/// Names an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The zone's name and the latest wall time that a command carried.
    Clock,
    /// A volume.
    Volume(VolumeId),
    /// A chunk.
    Chunk(ChunkId),
    /// A node.
    Node(NodeId),
    /// A client token.
    Token(String),
    /// A replica to be erased.
    Erase(ChunkId, ReplicaId),
    /// The zone's key.
    ZoneKey,
    /// A member of the control plane.
    Member(u64),
    /// A store that is revoked.
    Revoked(Place),
    /// What the salvage of a chunk may have lost.
    Salvaged(ChunkId),
    /// What an operator stated about a volume's attachment.
    Fenced(VolumeId),
    /// A node that is drained.
    Draining(NodeId),
    /// How long requests of a volume wait, if not for ever.
    ErrorAfter(VolumeId),
    /// A growth that is not over.
    Growth(VolumeId),
}

impl Key {
    /// First bytes of keys, those to come among them. Whoever stores entries reads and clears all of
    /// these; what it keeps beside them begins with another byte.
    pub const KINDS: core::ops::RangeInclusive<u8> = 1..=15;

    /// The key's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        fn volume(out: &mut Vec<u8>, id: VolumeId) {
            out.extend(id.zone.to_bytes());
            out.extend(id.uuid.to_be_bytes());
        }
        fn chunk(out: &mut Vec<u8>, id: ChunkId) {
            volume(out, id.volume);
            out.extend(id.index.0.to_be_bytes());
        }
        let mut out = Vec::new();
        match self {
            Self::Clock => out.push(1),
            Self::Volume(id) => {
                out.push(2);
                volume(&mut out, *id);
            }
            Self::Chunk(id) => {
                out.push(3);
                chunk(&mut out, *id);
            }
            Self::Node(id) => {
                out.push(4);
                out.extend(id.0.to_be_bytes());
            }
            Self::Token(token) => {
                out.push(5);
                out.extend(token.as_bytes());
            }
            Self::Erase(id, replica) => {
                out.push(6);
                chunk(&mut out, *id);
                out.extend(replica.node.0.to_be_bytes());
                out.extend(replica.store.0.to_be_bytes());
                out.extend(replica.incarnation.0.to_be_bytes());
            }
            Self::ZoneKey => out.push(8),
            Self::Member(id) => {
                out.push(7);
                out.extend(id.to_be_bytes());
            }
            Self::Revoked(place) => {
                out.push(9);
                out.extend(place.node.0.to_be_bytes());
                out.extend(place.store.0.to_be_bytes());
            }
            Self::Salvaged(id) => {
                out.push(10);
                chunk(&mut out, *id);
            }
            Self::Fenced(id) => {
                out.push(11);
                volume(&mut out, *id);
            }
            Self::Draining(id) => {
                out.push(12);
                out.extend(id.0.to_be_bytes());
            }
            Self::ErrorAfter(id) => {
                out.push(13);
                volume(&mut out, *id);
            }
            Self::Growth(id) => {
                out.push(14);
                volume(&mut out, *id);
            }
        }
        out
    }
}

/// Why stored bytes are no state of this build.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Written by a newer release.
    #[error("stored state has version {found}; this release reads up to {known}")]
    NewerVersion {
        /// Version found.
        found: u16,
        /// Newest version read here.
        known: u16,
    },
    /// Damaged.
    #[error("stored state is damaged: {0}")]
    Codec(#[from] CodecError),
    /// A configuration that contradicts itself.
    #[error("stored state has a chunk whose configuration contradicts itself: {0}")]
    Config(#[from] ConfigError),
    /// The state of another zone.
    #[error("stored state belongs to zone {found}, this member to zone {expected}")]
    Zone {
        /// Zone of the state.
        found: ZoneId,
        /// Zone of the member.
        expected: ZoneId,
    },
    /// A key that no entry has.
    #[error("stored state has an entry of unknown kind {0}")]
    Kind(u8),
}

/// The committed state of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneState {
    pub(crate) zone: ZoneId,
    /// Latest wall time that a command carried; never goes back.
    pub(crate) clock_millis: u64,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) names: BTreeMap<String, VolumeId>,
    pub(crate) chunks: BTreeMap<ChunkId, Chunk>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(crate) tokens: BTreeMap<String, TokenRecord>,
    pub(crate) token_expiry: BTreeSet<(u64, String)>,
    pub(crate) erasures: BTreeSet<(ChunkId, ReplicaId)>,
    pub(crate) zone_key: Option<[u8; 32]>,
    /// Members, removed ones too. Empty until they change for the first time: before, every
    /// member's configuration names them.
    pub(crate) members: BTreeMap<u64, MemberRecord>,
    /// Stores that an operator stated to be fenced: never admitted again.
    pub(crate) revoked: BTreeSet<Place>,
    /// What salvages may have lost, until an operator has acknowledged it.
    pub(crate) salvaged: BTreeMap<ChunkId, AtRisk>,
    /// What operators stated about present attachments.
    pub(crate) fenced: BTreeMap<VolumeId, Fenced>,
    /// Nodes that are to hold nothing.
    pub(crate) draining: BTreeMap<NodeId, DrainRecord>,
    /// How long requests of volumes wait, in milliseconds: of those where it is not for ever.
    pub(crate) error_after: BTreeMap<VolumeId, u64>,
    /// Growths whose chunks do not all serve yet.
    pub(crate) growing: BTreeMap<VolumeId, GrowthRecord>,
    /// Volumes that are not ready yet.
    pub(crate) creating: BTreeSet<VolumeId>,
    /// Chunks with stale replicas.
    with_stale: BTreeSet<ChunkId>,
    /// Chunks with learners, or with more in sync than are wanted.
    in_motion: BTreeSet<ChunkId>,
    /// Chunks with fewer in sync than are wanted.
    short: BTreeSet<ChunkId>,
    /// Chunks whose configuration names a node.
    held: BTreeMap<NodeId, BTreeSet<ChunkId>>,
    /// Chunks that a node is the primary of.
    primaries: BTreeMap<NodeId, u32>,
    /// Bytes promised on a node's store to its chunks.
    allocated: BTreeMap<(NodeId, StoreId), u64>,
    /// How many chunks each pair of nodes shares.
    pub(crate) shared: Shared,
}

impl ZoneState {
    /// An empty zone.
    #[must_use]
    pub const fn new(zone: ZoneId) -> Self {
        Self {
            zone,
            clock_millis: 0,
            volumes: BTreeMap::new(),
            names: BTreeMap::new(),
            chunks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            token_expiry: BTreeSet::new(),
            erasures: BTreeSet::new(),
            zone_key: None,
            members: BTreeMap::new(),
            revoked: BTreeSet::new(),
            salvaged: BTreeMap::new(),
            fenced: BTreeMap::new(),
            draining: BTreeMap::new(),
            error_after: BTreeMap::new(),
            growing: BTreeMap::new(),
            creating: BTreeSet::new(),
            with_stale: BTreeSet::new(),
            in_motion: BTreeSet::new(),
            short: BTreeSet::new(),
            held: BTreeMap::new(),
            primaries: BTreeMap::new(),
            allocated: BTreeMap::new(),
            shared: Shared::new(),
        }
    }

    /// The zone.
    #[must_use]
    pub const fn zone(&self) -> ZoneId {
        self.zone
    }

    /// All volumes, in order of id.
    pub fn volumes(&self) -> impl DoubleEndedIterator<Item = &Volume> {
        self.volumes.values()
    }

    /// Volumes after `last`, in order of id.
    pub fn volumes_after(&self, last: Option<VolumeId>) -> impl Iterator<Item = &Volume> {
        use core::ops::Bound::{Excluded, Unbounded};
        let from = last.map_or(Unbounded, Excluded);
        self.volumes.range((from, Unbounded)).map(|(_, volume)| volume)
    }

    /// A volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// The volume with this id or name.
    #[must_use]
    pub fn find_volume(&self, id_or_name: &str) -> Option<&Volume> {
        let by_id = id_or_name.parse().ok().and_then(|id: VolumeId| self.volumes.get(&id));
        by_id.or_else(|| self.names.get(id_or_name).and_then(|id| self.volumes.get(id)))
    }

    /// Secret half of the key by which tokens are signed; the first leader sets it.
    #[must_use]
    pub const fn zone_key(&self) -> Option<&[u8; 32]> {
        self.zone_key.as_ref()
    }

    /// What an operator stated about the volume's present attachment, and no former one.
    #[must_use]
    pub fn fenced(&self, volume: VolumeId) -> Option<&Fenced> {
        let present = self.volumes.get(&volume)?.generation;
        self.fenced.get(&volume).filter(|said| said.generation == present)
    }

    /// How long a request of the volume that cannot be carried out waits, in milliseconds; 0: for ever.
    #[must_use]
    pub fn error_after_millis(&self, volume: VolumeId) -> u64 {
        self.error_after.get(&volume).copied().unwrap_or(0)
    }

    /// Volumes whose primaries have not all served yet.
    pub fn creating(&self) -> impl Iterator<Item = VolumeId> {
        self.creating.iter().copied()
    }

    /// A chunk's configuration.
    #[must_use]
    pub fn config(&self, chunk: ChunkId) -> Option<&ChunkConfig> {
        self.chunks.get(&chunk).map(|chunk| &chunk.config)
    }

    /// All configurations, in order of chunk.
    pub fn configs(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.chunks.values().map(|chunk| &chunk.config)
    }

    /// Configurations of a volume's chunks, in order; while it grows, those of the new ones too.
    pub fn volume_configs(&self, volume: VolumeId) -> impl Iterator<Item = &ChunkConfig> {
        self.volume_configs_from(volume, ChunkIndex(0))
    }

    /// The same from one of them on.
    pub(crate) fn volume_configs_from(
        &self,
        volume: VolumeId,
        first: ChunkIndex,
    ) -> impl Iterator<Item = &ChunkConfig> {
        let at = |index| ChunkId { volume, index };
        let all = self.chunks.range(at(first)..=at(ChunkIndex(u32::MAX)));
        all.map(|(_, chunk)| &chunk.config)
    }

    /// Configurations that name a node, in order of chunk.
    pub fn configs_of_node(&self, node: NodeId) -> impl Iterator<Item = &ChunkConfig> {
        self.held.get(&node).into_iter().flatten().filter_map(|chunk| self.config(*chunk))
    }

    /// Whether a replica's node has registered without its store since: an empty, exchanged or failed
    /// disk.
    #[must_use]
    pub fn is_store_gone(&self, replica: ReplicaId) -> bool {
        self.is_revoked(replica.node, replica.store)
            || self.nodes.get(&replica.node).is_some_and(|node| !node.has_store_of(replica))
    }

    /// How many replicas of any kind a store holds. Looks through all of its node's.
    #[must_use]
    pub fn replicas_on_store(&self, node: NodeId, store: StoreId) -> usize {
        let held = |config: &&ChunkConfig| {
            config.replicas().any(|replica| replica.node == node && replica.store == store)
        };
        self.configs_of_node(node).filter(held).count()
    }

    /// Configurations with stale replicas, in order of chunk.
    pub fn configs_with_stale(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.with_stale.iter().filter_map(|chunk| self.config(*chunk))
    }

    /// Configurations with learners, or with more in sync than are wanted, in order of chunk.
    pub fn configs_in_motion(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.in_motion.iter().filter_map(|chunk| self.config(*chunk))
    }

    /// Configurations with fewer in sync than are wanted, in order of chunk.
    pub fn configs_short(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.short.iter().filter_map(|chunk| self.config(*chunk))
    }

    /// All nodes, in order of number.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&node)
    }

    /// Replicas to be erased, in order.
    pub fn erasures(&self) -> impl Iterator<Item = (ChunkId, ReplicaId)> {
        self.erasures.iter().copied()
    }

    /// Replicas of a chunk that are to be erased.
    pub fn erasures_of(&self, chunk: ChunkId) -> impl Iterator<Item = ReplicaId> {
        let of_chunk = self.erasures.iter().filter(move |(erased, _)| *erased == chunk);
        of_chunk.map(|(_, replica)| *replica)
    }

    /// Whether a replica is to be erased.
    #[must_use]
    pub fn is_erasure(&self, chunk: ChunkId, replica: ReplicaId) -> bool {
        self.erasures.contains(&(chunk, replica))
    }

    /// The members that are committed, removed ones too, in order of number. None until they change
    /// for the first time: before, every member's configuration names them.
    pub fn members(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.values()
    }

    /// A member.
    #[must_use]
    pub fn member(&self, member: u64) -> Option<&MemberRecord> {
        self.members.get(&member)
    }

    /// Whether a member was removed: for ever, as numbers are not given twice.
    #[must_use]
    pub fn is_removed(&self, member: u64) -> bool {
        self.members.get(&member).is_some_and(|record| record.removed)
    }

    /// How many chunks a node is the primary of.
    #[must_use]
    pub fn primaries_on(&self, node: NodeId) -> u32 {
        self.primaries.get(&node).copied().unwrap_or(0)
    }

    /// How many replicas of any kind a node holds.
    #[must_use]
    pub fn replicas_on(&self, node: NodeId) -> usize {
        self.held.get(&node).map_or(0, BTreeSet::len)
    }

    /// Bytes promised on a store of a node: replicas of every kind, each at full size.
    #[must_use]
    pub fn allocated_on(&self, node: NodeId, store: StoreId) -> u64 {
        self.allocated.get(&(node, store)).copied().unwrap_or(0)
    }

    /// Bytes of a chunk that can hold data: the last chunk of a volume may reach past its end.
    #[must_use]
    pub fn chunk_bytes(geometry: Geometry, index: ChunkIndex) -> u64 {
        let start = u64::from(index.0).saturating_mul(geometry.chunk_bytes());
        geometry.size_bytes().saturating_sub(start).min(geometry.chunk_bytes())
    }

    /// Puts a chunk in place of what was there, and keeps the indexes.
    pub(crate) fn put_chunk(&mut self, chunk: Chunk) {
        let id = chunk.config.chunk;
        let bytes = self.bytes_of(id);
        self.take_chunk(id);
        for replica in chunk.config.replicas() {
            self.held.entry(replica.node).or_default().insert(id);
            *self.allocated.entry((replica.node, replica.store)).or_default() += bytes;
        }
        self.shared.add(&chunk.config);
        *self.primaries.entry(chunk.config.primary.node).or_default() += 1;
        if !chunk.config.stale.is_empty() {
            self.with_stale.insert(id);
        }
        let config = &chunk.config;
        if !config.learners.is_empty() || config.in_sync.len() > usize::from(config.copies_wanted) {
            self.in_motion.insert(id);
        }
        if !config.is_whole() {
            self.short.insert(id);
        }
        self.chunks.insert(id, chunk);
    }

    /// Takes a chunk out, and keeps the indexes.
    pub(crate) fn take_chunk(&mut self, id: ChunkId) -> Option<Chunk> {
        let bytes = self.bytes_of(id);
        let chunk = self.chunks.remove(&id)?;
        self.with_stale.remove(&id);
        self.in_motion.remove(&id);
        self.short.remove(&id);
        for replica in chunk.config.replicas() {
            if let Some(held) = self.held.get_mut(&replica.node) {
                held.remove(&id);
            }
            if let Some(allocated) = self.allocated.get_mut(&(replica.node, replica.store)) {
                *allocated = allocated.saturating_sub(bytes);
            }
        }
        self.shared.remove(&chunk.config);
        if let Some(count) = self.primaries.get_mut(&chunk.config.primary.node) {
            *count = count.saturating_sub(1);
        }
        // Without empty entries, equal states compare equal however they came about.
        self.held.retain(|_, held| !held.is_empty());
        self.allocated.retain(|_, allocated| *allocated > 0);
        self.primaries.retain(|_, count| *count > 0);
        Some(chunk)
    }

    /// A chunk counts at the bytes that its volume can put into it, or will when it has grown.
    #[must_use]
    pub fn bytes_of(&self, id: ChunkId) -> u64 {
        let Some(volume) = self.volumes.get(&id.volume) else { return 0 };
        let larger = self.grows_to(id.volume);
        let larger = larger.and_then(|to| Geometry::new(to, volume.geometry.chunk_bytes()).ok());
        Self::chunk_bytes(larger.unwrap_or(volume.geometry), id.index)
    }

    /// The present value of an entry; `None`: it is gone.
    #[must_use]
    pub fn value(&self, key: &Key) -> Option<Vec<u8>> {
        fn versioned(value: &impl Wire) -> Vec<u8> {
            let mut out = Vec::new();
            out.push(VALUE_VERSION);
            value.put(&mut out);
            out
        }
        match key {
            Key::Clock => Some(versioned(&(self.zone, self.clock_millis))),
            Key::Volume(id) => self.volumes.get(id).map(versioned),
            Key::Chunk(id) => self.chunks.get(id).map(versioned),
            Key::Node(id) => self.nodes.get(id).map(versioned),
            Key::Token(token) => {
                self.tokens.get(token).map(|record| versioned(&(token.clone(), record.clone())))
            }
            Key::Erase(chunk, replica) => {
                self.erasures.contains(&(*chunk, *replica)).then(|| versioned(&(*chunk, *replica)))
            }
            Key::ZoneKey => self.zone_key.as_ref().map(versioned),
            Key::Member(id) => self.members.get(id).map(versioned),
            Key::Revoked(place) => self.revoked.get(place).map(versioned),
            Key::Salvaged(id) => self.salvaged.get(id).map(|risk| versioned(&(*id, risk.clone()))),
            Key::Fenced(id) => self.fenced.get(id).map(|said| versioned(&(*id, said.clone()))),
            Key::Draining(id) => self.draining.get(id).map(versioned),
            Key::ErrorAfter(id) => self.error_after.get(id).map(|ms| versioned(&(*id, *ms))),
            Key::Growth(id) => self.growing.get(id).map(versioned),
        }
    }

    /// All entries: key and value, in order of key.
    pub fn entries(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let keys = core::iter::once(Key::Clock)
            .chain(self.volumes.keys().map(|id| Key::Volume(*id)))
            .chain(self.chunks.keys().map(|id| Key::Chunk(*id)))
            .chain(self.nodes.keys().map(|id| Key::Node(*id)))
            .chain(self.tokens.keys().map(|token| Key::Token(token.clone())))
            .chain(self.erasures.iter().map(|(chunk, replica)| Key::Erase(*chunk, *replica)))
            .chain(self.members.keys().map(|id| Key::Member(*id)))
            .chain(core::iter::once(Key::ZoneKey))
            .chain(self.revoked.iter().map(|place| Key::Revoked(*place)))
            .chain(self.salvaged.keys().map(|id| Key::Salvaged(*id)))
            .chain(self.fenced.keys().map(|id| Key::Fenced(*id)))
            .chain(self.draining.keys().map(|id| Key::Draining(*id)))
            .chain(self.error_after.keys().map(|id| Key::ErrorAfter(*id)))
            .chain(self.growing.keys().map(|id| Key::Growth(*id)));
        keys.filter_map(|key| self.value(&key).map(|value| (key.encode(), value)))
    }

    /// Rebuilds a state from its entries, which must come in order of key.
    ///
    /// # Errors
    /// Damage, a newer version, another zone.
    pub fn from_entries<'a>(
        zone: ZoneId,
        entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, StateError> {
        let mut state = Self::new(zone);
        for (key, value) in entries {
            state.load(key, value)?;
        }
        Ok(state)
    }

    fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        let kind = key.first().copied().unwrap_or(0);
        let (version, body) = value.split_first().ok_or(CodecError::Short)?;
        if *version > VALUE_VERSION {
            let (found, known) = (u16::from(*version), u16::from(VALUE_VERSION));
            return Err(StateError::NewerVersion { found, known });
        }
        match kind {
            1 => {
                let (found, clock_millis) = codec::decode(body)?;
                if found != self.zone {
                    return Err(StateError::Zone { found, expected: self.zone });
                }
                self.clock_millis = clock_millis;
            }
            2 => self.put_volume(codec::decode(body)?),
            3 => {
                let chunk: Chunk = codec::decode(body)?;
                chunk.config.check()?;
                self.put_chunk(chunk);
            }
            4 => {
                let node: NodeRecord = codec::decode(body)?;
                self.nodes.insert(node.node, node);
            }
            5 => {
                let (token, record) = codec::decode::<(String, TokenRecord)>(body)?;
                self.put_token(token, record);
            }
            6 => {
                let (chunk, replica) = codec::decode(body)?;
                self.erasures.insert((chunk, replica));
            }
            8 => self.zone_key = Some(codec::decode(body)?),
            7 => {
                let member: MemberRecord = codec::decode(body)?;
                self.members.insert(member.member, member);
            }
            9 => {
                self.revoked.insert(codec::decode(body)?);
            }
            10 => {
                let (chunk, risk) = codec::decode(body)?;
                self.salvaged.insert(chunk, risk);
            }
            11 => {
                let (volume, said) = codec::decode(body)?;
                self.fenced.insert(volume, said);
            }
            12 => {
                let record: DrainRecord = codec::decode(body)?;
                self.draining.insert(record.node, record);
            }
            13 => {
                let (volume, millis) = codec::decode(body)?;
                self.error_after.insert(volume, millis);
            }
            14 => self.put_growth(codec::decode(body)?),
            other => return Err(StateError::Kind(other)),
        }
        Ok(())
    }

    pub(crate) fn put_volume(&mut self, volume: Volume) {
        if !volume.name.is_empty() {
            self.names.insert(volume.name.clone(), volume.id);
        }
        if volume.ready {
            self.creating.remove(&volume.id);
        } else {
            self.creating.insert(volume.id);
        }
        self.volumes.insert(volume.id, volume);
    }

    pub(crate) fn put_token(&mut self, token: String, record: TokenRecord) {
        self.token_expiry.insert((record.expires_millis, token.clone()));
        self.tokens.insert(token, record);
    }

    /// All of it as bytes.
    #[must_use]
    pub fn to_snapshot(&self) -> Vec<u8> {
        let mut out = Vec::new();
        SNAPSHOT_VERSION.put(&mut out);
        for (key, value) in self.entries() {
            for part in [key, value] {
                u32::try_from(part.len()).unwrap_or(u32::MAX).put(&mut out);
                out.extend(part);
            }
        }
        out
    }

    /// A state from the bytes of a snapshot.
    ///
    /// # Errors
    /// Damage, a newer version, another zone.
    pub fn from_snapshot(zone: ZoneId, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(bytes);
        let found = u16::get(&mut reader)?;
        if found > SNAPSHOT_VERSION {
            return Err(StateError::NewerVersion { found, known: SNAPSHOT_VERSION });
        }
        let mut state = Self::new(zone);
        while reader.left() > 0 {
            let mut part = || -> Result<&[u8], CodecError> {
                let len = u32::get(&mut reader)?;
                reader.take(len as usize)
            };
            let (key, value) = (part()?, part()?);
            state.load(key, value)?;
        }
        Ok(state)
    }
}
