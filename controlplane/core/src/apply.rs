//! What a committed command does to the state: deterministic, the same on every member.
//!
//! Answers are part of it: a call that is repeated with its token gets the answer stored with the
//! first. Every refusal leaves the state as it was, but for the clock. Rules for configurations
//! stand in [`crate::change`].

use crate::change::{self, ChangeRefusal};
use crate::codec::wire_enum;
use crate::command::{Action, ChunkChange, Command, NodeRecord, Place, TokenUse};
use crate::grow::GrowthRefusal;
use crate::salvage::SalvageRefusal;
use crate::state::{
    Attachment, CHUNKS_PER_ZONE_MAX, Chunk, Fenced, Key, TOKEN_LIFE_MILLIS, TOKENS_MAX,
    TokenRecord, VOLUMES_MAX, Volume, ZoneState,
};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, Incarnation, NodeId, ReplicaId,
    StartNumber, StoreId, VolumeId,
};
use thiserror::Error;

/// What a command led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing to tell.
    Done {},
    /// The volume as it was right after the call.
    Volume {
        /// The volume.
        volume: Volume,
    },
    /// The volume is gone.
    Deleted {
        /// Its id.
        volume: VolumeId,
    },
    /// A member was added or removed.
    Member {
        /// Its number.
        member: u64,
        /// `ip:port` of its services.
        address: String,
    },
}

wire_enum! { Answer {
    0 => Done {},
    1 => Volume { volume },
    2 => Deleted { volume },
    3 => Member { member, address },
} }

/// What became of one chunk change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeOutcome {
    /// The chunk.
    pub chunk: ChunkId,
    /// The epoch that was to be changed.
    pub epoch: Epoch,
    /// The new epoch, or why there is none.
    pub result: Result<Epoch, ChangeRefusal>,
}

/// Effects of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For the caller.
    pub answer: Result<Answer, Refusal>,
    /// For each change of [`Action::Change`], in order.
    pub outcomes: Vec<ChangeOutcome>,
    /// Entries that are different now, or gone.
    pub changed: BTreeSet<Key>,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such volume.
    #[error("no volume {0}")]
    VolumeNotFound(VolumeId),
    /// The name is taken.
    #[error("volume {by} has that name")]
    NameTaken {
        /// Who has it.
        by: VolumeId,
    },
    /// Attached, and not forced.
    #[error("the volume is attached to {client_name:?} (generation {generation})")]
    Attached {
        /// Who has it.
        client_name: String,
        /// Its generation.
        generation: Generation,
    },
    /// Not attached.
    #[error("the volume is not attached")]
    NotAttached,
    /// The attachment named is not the present one.
    #[error("the attachment has ended: generation {current} is attached now")]
    OtherGeneration {
        /// The present one.
        current: Generation,
    },
    /// The token was used with another request.
    #[error("the client token was used before with another request")]
    TokenMismatch,
    /// Too many tokens are remembered.
    #[error("more than {TOKENS_MAX} protected calls in 24 hours")]
    TooManyTokens,
    /// Too many volumes or chunks.
    #[error("a zone has at most {VOLUMES_MAX} volumes and {CHUNKS_PER_ZONE_MAX} chunks")]
    TooManyVolumes,
    /// The nodes chosen by the leader no longer fit.
    #[error("the nodes chosen for the volume are not known or not distinct")]
    Placement,
    /// The node's number belongs to another process, which has other stores and is up.
    #[error("node number {node} belongs to store {store}, and its process is up")]
    NodeTaken {
        /// The number.
        node: NodeId,
        /// The store bound to it.
        store: StoreId,
    },
    /// The store belongs to another node.
    #[error("the store is bound to {node}")]
    StoreTaken {
        /// The node bound to it.
        node: NodeId,
    },
    /// A start number below one seen before: the store was copied or set back.
    #[error("start number {offered} comes after {recorded}: the store was set back or copied")]
    StartBack {
        /// Number of this registration.
        offered: StartNumber,
        /// Number recorded.
        recorded: StartNumber,
    },
    /// A chunk cannot be salvaged so.
    #[error("chunk {chunk} cannot be salvaged: {cause}")]
    Salvage {
        /// The chunk.
        chunk: ChunkId,
        /// Why.
        cause: SalvageRefusal,
    },
    /// The volume cannot grow so.
    #[error(transparent)]
    Growth(GrowthRefusal),
    /// Nothing was named to salvage.
    #[error("no chunk was named to salvage")]
    NothingToSalvage,
    /// The store was stated to be fenced when a volume was salvaged.
    #[error(
        "store {store} of {node} is revoked: a salvage went on without it, and what it holds is of \
         the past; give the node an empty store in its place"
    )]
    StoreRevoked {
        /// Its node.
        node: NodeId,
        /// The store.
        store: StoreId,
    },
    /// No such node.
    #[error("{0} never registered")]
    UnknownNode(NodeId),
    /// No such member.
    #[error("{0} is not a member's number")]
    UnknownMember(u64),
    /// The member was removed.
    #[error("member {0} was removed; its number is not used again")]
    RemovedMember(u64),
    /// A member that has run comes with an empty store: it may have voted.
    #[error("member {0} has run before, with another store: with an empty one it must not vote")]
    MemberRan(u64),
}

impl ZoneState {
    /// Carries out a committed command.
    ///
    /// # Panics
    /// If a rule that guards data is broken by what the rules themselves allowed: the member must
    /// not go on (style.md 15).
    pub fn apply(&mut self, command: &Command) -> Applied {
        let mut applied =
            Applied { answer: Ok(Answer::Done {}), outcomes: Vec::new(), changed: BTreeSet::new() };
        self.advance_clock(command.at_millis, &mut applied.changed);
        applied.answer = self.act(&command.action, &mut applied);
        applied
    }

    /// The answer remembered for a token, if there is one.
    ///
    /// # Errors
    /// If the token was used with another request.
    pub fn replay(&self, token: Option<&TokenUse>) -> Result<Option<&Answer>, Refusal> {
        let Some(token) = token else { return Ok(None) };
        match self.tokens.get(&token.token) {
            None => Ok(None),
            Some(record) if record.request_hash == token.request_hash => Ok(Some(&record.answer)),
            Some(_) => Err(Refusal::TokenMismatch),
        }
    }

    fn advance_clock(&mut self, at_millis: u64, changed: &mut BTreeSet<Key>) {
        if at_millis > self.clock_millis {
            self.clock_millis = at_millis;
            changed.insert(Key::Clock);
        }
        while let Some((expires, token)) = self.token_expiry.first().cloned() {
            if expires > self.clock_millis {
                break;
            }
            self.token_expiry.pop_first();
            self.tokens.remove(&token);
            changed.insert(Key::Token(token));
        }
    }

    fn act(&mut self, action: &Action, applied: &mut Applied) -> Result<Answer, Refusal> {
        let changed = &mut applied.changed;
        match action {
            Action::RegisterNode { node } => self.register(node, changed),
            Action::CreateVolume { token, .. }
            | Action::DeleteVolume { token, .. }
            | Action::Attach { token, .. }
            | Action::Detach { token, .. }
            | Action::Salvage { token, .. }
            | Action::AcknowledgeSalvage { token, .. }
            | Action::Drain { token, .. }
            | Action::GrowVolume { token, .. } => self.act_once(token.as_ref(), action, changed),
            Action::FinishGrowth { grown } => {
                grown.iter().for_each(|(id, size)| self.finish_growth(*id, *size, changed));
                Ok(Answer::Done {})
            }
            Action::MarkReady { volumes } => {
                volumes.iter().for_each(|id| self.mark_ready(*id, changed));
                Ok(Answer::Done {})
            }
            Action::Change { changes } => {
                let outcomes = changes.iter().map(|change| self.change(change, changed)).collect();
                applied.outcomes = outcomes;
                Ok(Answer::Done {})
            }
            Action::SetZoneKey { secret } => {
                if self.zone_key.is_none() {
                    self.zone_key = Some(*secret);
                    changed.insert(Key::ZoneKey);
                }
                Ok(Answer::Done {})
            }
            Action::Forget { replicas } => {
                for (chunk, replica) in replicas {
                    if self.erasures.remove(&(*chunk, *replica)) {
                        changed.insert(Key::Erase(*chunk, *replica));
                    }
                }
                Ok(Answer::Done {})
            }
            Action::StateFenced { volume, generation, by } => {
                self.state_fenced(*volume, *generation, by, changed)
            }
            Action::AddMember { .. }
            | Action::RemoveMember { .. }
            | Action::StartMember { .. }
            | Action::NoteLost { .. } => self.change_members(action, changed),
        }
    }

    /// Carries out a call of a client, unless its token says that it was carried out before.
    fn act_once(
        &mut self,
        token: Option<&TokenUse>,
        action: &Action,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        if let Some(answer) = self.replay(token)? {
            return Ok(answer.clone());
        }
        if token.is_some() && self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::TooManyTokens);
        }
        let answer = match action {
            Action::CreateVolume { .. } => self.create(action, changed),
            Action::DeleteVolume { volume, force, .. } => self.delete(*volume, *force, changed),
            Action::Attach { volume, client_name, force, .. } => {
                self.attach(*volume, client_name, *force, changed)
            }
            Action::Detach { volume, generation, force, .. } => {
                self.detach(*volume, *generation, *force, changed)
            }
            Action::Salvage { .. } => self.salvage(action, changed),
            Action::AcknowledgeSalvage { volume, .. } => self.acknowledge_salvage(*volume, changed),
            Action::Drain { node, cancel, .. } => self.drain(*node, *cancel, changed),
            Action::GrowVolume { volume, size_bytes, placement, .. } => {
                self.grow(*volume, *size_bytes, placement, changed)
            }
            Action::FinishGrowth { .. }
            | Action::RegisterNode { .. }
            | Action::MarkReady { .. }
            | Action::Change { .. }
            | Action::SetZoneKey { .. }
            | Action::Forget { .. }
            | Action::StateFenced { .. }
            | Action::AddMember { .. }
            | Action::RemoveMember { .. }
            | Action::StartMember { .. }
            | Action::NoteLost { .. } => Ok(Answer::Done {}),
        }?;
        self.remember(token, &answer, changed);
        Ok(answer)
    }

    /// Remembers what was answered to a call.
    pub(crate) fn remember(
        &mut self,
        token: Option<&TokenUse>,
        answer: &Answer,
        changed: &mut BTreeSet<Key>,
    ) {
        let Some(token) = token else { return };
        let expires_millis = self.clock_millis.saturating_add(TOKEN_LIFE_MILLIS);
        let (request_hash, answer) = (token.request_hash, answer.clone());
        self.put_token(token.token.clone(), TokenRecord { request_hash, answer, expires_millis });
        changed.insert(Key::Token(token.token.clone()));
    }

    /// Whether a node may register as it says it is.
    ///
    /// # Errors
    /// If its number, store or start number contradict what is known.
    pub fn check_registration(&self, node: &NodeRecord) -> Result<(), Refusal> {
        self.check_revoked(node)?;
        let has = |known: &NodeRecord| known.stores.iter().any(|store| node.stores.contains(store));
        let known = self.nodes.get(&node.node).filter(|known| has(known));
        if let Some(known) = known.filter(|known| node.start < known.start) {
            let (offered, recorded) = (node.start, known.start);
            return Err(Refusal::StartBack { offered, recorded });
        }
        let other = self.nodes.values().find(|known| known.node != node.node && has(known));
        other.map_or(Ok(()), |other| Err(Refusal::StoreTaken { node: other.node }))
    }

    fn register(
        &mut self,
        node: &NodeRecord,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        self.check_registration(node)?;
        self.nodes.insert(node.node, node.clone());
        changed.insert(Key::Node(node.node));
        Ok(Answer::Done {})
    }

    /// A replica that nothing names any more is to be erased, and that is remembered until its holder
    /// confirms it. A store that is away may come back with it, and would serve a chunk that was
    /// deleted; one that is revoked never does.
    pub(crate) fn erase(
        &mut self,
        chunk: ChunkId,
        replica: ReplicaId,
        changed: &mut BTreeSet<Key>,
    ) {
        if !self.is_revoked(replica.node, replica.store) {
            self.erasures.insert((chunk, replica));
            changed.insert(Key::Erase(chunk, replica));
        }
    }

    /// Nobody is left to erase what was on stores that are revoked.
    pub(crate) fn forget_erasures_of_revoked_stores(&mut self, changed: &mut BTreeSet<Key>) {
        let is_revoked = |replica: &ReplicaId| self.is_revoked(replica.node, replica.store);
        let never: Vec<_> =
            self.erasures.iter().filter(|(_, replica)| is_revoked(replica)).copied().collect();
        for (chunk, replica) in never {
            self.erasures.remove(&(chunk, replica));
            changed.insert(Key::Erase(chunk, replica));
        }
    }

    fn create(&mut self, action: &Action, changed: &mut BTreeSet<Key>) -> Result<Answer, Refusal> {
        let Action::CreateVolume {
            volume: id,
            name,
            geometry,
            copies_wanted,
            copies_min,
            placement,
            error_after,
            ..
        } = action
        else {
            return Ok(Answer::Done {});
        };
        if let Some(by) = self.names.get(name) {
            return Err(Refusal::NameTaken { by: *by });
        }
        let count = geometry.chunk_count() as usize;
        if self.volumes.len() >= VOLUMES_MAX || self.chunks.len() + count > CHUNKS_PER_ZONE_MAX {
            return Err(Refusal::TooManyVolumes);
        }
        if placement.0.len() != count || self.volumes.contains_key(id) {
            return Err(Refusal::Placement);
        }
        let volume = Volume {
            id: *id,
            name: name.clone(),
            geometry: *geometry,
            copies_wanted: *copies_wanted,
            copies_min: *copies_min,
            ready: false,
            generation: Generation(0),
            attachment: None,
            created_millis: self.clock_millis,
        };
        let chunks: Vec<Chunk> = (0_u32..)
            .zip(&placement.0)
            .map(|(index, places)| self.first_chunk(&volume, ChunkIndex(index), places))
            .collect::<Option<_>>()
            .ok_or(Refusal::Placement)?;
        self.put_volume(volume.clone());
        changed.insert(Key::Volume(*id));
        if error_after.millis > 0 {
            self.error_after.insert(*id, error_after.millis);
            changed.insert(Key::ErrorAfter(*id));
        }
        for chunk in chunks {
            changed.insert(Key::Chunk(chunk.config.chunk));
            self.put_chunk(chunk);
        }
        Ok(Answer::Volume { volume })
    }

    /// A new chunk: nothing is written yet, so all its replicas are in sync.
    pub(crate) fn first_chunk(
        &self,
        volume: &Volume,
        index: ChunkIndex,
        places: &[Place],
    ) -> Option<Chunk> {
        let replica = |place: &Place| {
            let known = self.nodes.get(&place.node)?;
            // Named by the node alone, as up to command version 3: its only store is meant.
            let only = place.store == StoreId(0);
            let store = if only { known.first_store() } else { place.store };
            let replica = ReplicaId { node: place.node, store, incarnation: Incarnation(1) };
            known.has_store_of(replica).then_some(replica)
        };
        let in_sync: Vec<ReplicaId> = places.iter().map(replica).collect::<Option<_>>()?;
        let config = ChunkConfig {
            chunk: ChunkId { volume: volume.id, index },
            blocks: volume.geometry.chunk_blocks(),
            epoch: Epoch(1),
            elected: Epoch(1),
            generation: volume.generation,
            primary: *in_sync.first()?,
            in_sync,
            learners: Vec::new(),
            stale: Vec::new(),
            copies_wanted: volume.copies_wanted,
            copies_min: volume.copies_min,
        };
        let whole = config.in_sync.len() == usize::from(config.copies_wanted);
        (whole && config.check().is_ok()).then_some(Chunk { config, readopting: Vec::new() })
    }

    fn delete(
        &mut self,
        id: VolumeId,
        force: bool,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        refuse_attached(volume, force)?;
        let chunks: Vec<ChunkId> = self.volume_configs(id).map(|config| config.chunk).collect();
        for chunk in chunks {
            let Some(taken) = self.take_chunk(chunk) else { continue };
            changed.insert(Key::Chunk(chunk));
            for replica in taken.config.replicas() {
                self.erase(chunk, replica, changed);
            }
        }
        self.forget_growth(id, changed);
        if let Some(volume) = self.volumes.remove(&id) {
            self.names.remove(&volume.name);
        }
        self.creating.remove(&id);
        if self.error_after.remove(&id).is_some() {
            changed.insert(Key::ErrorAfter(id));
        }
        self.forget_statement(id, changed);
        self.forget_salvages(id, changed);
        changed.insert(Key::Volume(id));
        Ok(Answer::Deleted { volume: id })
    }

    fn attach(
        &mut self,
        id: VolumeId,
        client_name: &str,
        force: bool,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        refuse_attached(volume, force)?;
        let attachment =
            Attachment { client_name: client_name.into(), since_millis: self.clock_millis };
        self.raise_generation(id, Some(attachment), changed)
    }

    fn detach(
        &mut self,
        id: VolumeId,
        generation: Generation,
        force: bool,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        let Some(attachment) = &volume.attachment else { return Err(Refusal::NotAttached) };
        if generation != Generation(0) && generation != volume.generation {
            return Err(Refusal::OtherGeneration { current: volume.generation });
        }
        if generation == Generation(0) && !force {
            return Err(Refusal::Attached {
                client_name: attachment.client_name.clone(),
                generation: volume.generation,
            });
        }
        self.raise_generation(id, None, changed)
    }

    /// Fences whoever had the volume: a new generation in the volume and in every chunk.
    pub(crate) fn raise_generation(
        &mut self,
        id: VolumeId,
        attachment: Option<Attachment>,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::VolumeNotFound(id))?;
        let generation = volume.generation.next();
        assert!(generation > volume.generation, "the generation of {id} goes back");
        volume.generation = generation;
        volume.attachment = attachment;
        let volume = volume.clone();
        changed.insert(Key::Volume(id));
        let next: Vec<Chunk> = self
            .volume_configs(id)
            .filter_map(|config| self.chunks.get(&config.chunk))
            .map(|chunk| change::with_generation(chunk, generation))
            .collect();
        assert!(next.len() >= volume.geometry.chunk_count() as usize, "{id} lacks chunks");
        for chunk in next {
            changed.insert(Key::Chunk(chunk.config.chunk));
            self.put_chunk(chunk);
        }
        Ok(Answer::Volume { volume })
    }

    /// An operator vouches for it that nobody but the present attachment writes: its call need not wait
    /// for the nodes that could still serve another (design.md 4.8).
    fn state_fenced(
        &mut self,
        id: VolumeId,
        generation: Generation,
        by: &str,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        if volume.generation != generation {
            return Err(Refusal::OtherGeneration { current: volume.generation });
        }
        if volume.attachment.is_none() {
            return Err(Refusal::NotAttached);
        }
        let said = Fenced { generation, by: by.into(), at_millis: self.clock_millis };
        let answer = Answer::Volume { volume: volume.clone() };
        self.fenced.insert(id, said);
        changed.insert(Key::Fenced(id));
        Ok(answer)
    }

    fn forget_statement(&mut self, id: VolumeId, changed: &mut BTreeSet<Key>) {
        if self.fenced.remove(&id).is_some() {
            changed.insert(Key::Fenced(id));
        }
    }

    fn mark_ready(&mut self, id: VolumeId, changed: &mut BTreeSet<Key>) {
        let Some(volume) = self.volumes.get(&id) else { return };
        if !volume.ready {
            self.put_volume(Volume { ready: true, ..volume.clone() });
            changed.insert(Key::Volume(id));
        }
    }

    fn change(&mut self, change: &ChunkChange, changed: &mut BTreeSet<Key>) -> ChangeOutcome {
        let id = change.chunk;
        let next = match self.chunks.get(&id) {
            None => Err(ChangeRefusal::UnknownChunk),
            Some(chunk) => {
                let node = |node| self.nodes.get(&node);
                change::next(chunk, change, node, |replica| self.is_store_gone(replica))
            }
        };
        let result = next.map(|next| {
            let epoch = next.chunk.config.epoch;
            self.put_chunk(next.chunk);
            changed.insert(Key::Chunk(id));
            if let Some(replica) = next.forgotten {
                self.erase(id, replica, changed);
            }
            epoch
        });
        ChangeOutcome { chunk: id, epoch: change.epoch, result }
    }
}

fn refuse_attached(volume: &Volume, force: bool) -> Result<(), Refusal> {
    match &volume.attachment {
        Some(attachment) if !force => Err(Refusal::Attached {
            client_name: attachment.client_name.clone(),
            generation: volume.generation,
        }),
        Some(_) | None => Ok(()),
    }
}
