//! A member's state on disk: opened, rebuilt, kept, compacted.
//!
//! The metadata store is a cache: whatever is wrong with it, the newest snapshot and the log lead
//! to the same state. Before the log is cut, the store is made durable.

use super::{Member, MemberError, MemberOptions};
use ashlar_controlplane_core::state::{Key, StateError, ZoneState};
use ashlar_env::dice::Dice;
use ashlar_env::disk::Disk;
use ashlar_env::meta::{MetaBatch, MetaError, MetaStore};
use ashlar_types::ZoneId;
use ashlar_zone_raft::{Driver, Memory};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Index of the last entry whose effects are in the store, 8 bytes little-endian; written with
/// them. The store's own index cannot go back, which this one must when a damaged store is
/// rebuilt from an older snapshot. No kind of entry ([`Key::KINDS`]) begins like it.
const APPLIED: [u8; 1] = [0x10];
const _: () = assert!(APPLIED[0] > *Key::KINDS.end(), "the applied index is no entry");

/// Where a member keeps its things; each in a folder of its own.
#[derive(Clone, Debug)]
pub struct MemberDisks {
    /// Raft's log.
    pub log: Arc<dyn Disk>,
    /// Snapshot files.
    pub snapshots: Arc<dyn Disk>,
    /// Applied state.
    pub meta: Arc<dyn MetaStore>,
}

impl Member {
    /// Opens a member; `election_dice` and `id_dice` are streams of their own.
    ///
    /// # Errors
    /// Damage, a newer version, a lost store ([`ashlar_zone_raft::StorageError::Empty`]).
    pub fn open(
        options: MemberOptions,
        disks: MemberDisks,
        election_dice: Box<dyn Dice>,
        id_dice: Box<dyn Dice>,
    ) -> Result<Self, MemberError> {
        let memory = Memory::open(&options.raft, disks.log, disks.snapshots)?;
        let meta = disks.meta;
        let (state, applied) = open_state(options.zone, &memory, meta.as_ref())?;
        let meta_floor = meta.applied_index().unwrap_or(0);
        let driver = Driver::start(&options.raft, memory, applied, election_dice)?;
        Ok(Self {
            options,
            driver,
            meta,
            state,
            // The term is learned with the next entry; until then the member cannot serve.
            applied: (applied, 0),
            meta_floor,
            dice: id_dice,
            lead: None,
            heard: BTreeMap::new(),
            members_due: true,
            removed: false,
            told: None,
        })
    }

    /// Puts changed entries into the store, with the index that they lead to.
    pub(super) fn store(&self, changed: &BTreeSet<Key>) -> Result<(), MemberError> {
        let mut batch = MetaBatch::new(self.applied.0.max(self.meta_floor));
        batch.put(APPLIED, self.applied.0.to_le_bytes());
        for key in changed {
            match self.state.value(key) {
                Some(value) => batch.put(key.encode(), value),
                None => batch.remove(key.encode()),
            };
        }
        Ok(self.meta.commit(batch)?)
    }

    /// Takes a snapshot from the leader in place of the state.
    pub(super) fn install(&mut self, index: u64, data: &Bytes) -> Result<(), MemberError> {
        self.state = ZoneState::from_snapshot(self.options.zone, data)?;
        self.applied = (index, 0);
        self.members_due = true;
        tracing::info!(index, "took over a snapshot of the leader");
        Ok(replace_all(&self.state, index, self.meta.as_ref())?)
    }

    /// Takes a snapshot and cuts the log, when it is long or another member waits for one.
    pub(super) fn compact_if_due(&mut self) -> Result<(), MemberError> {
        let keep = self.options.keep_entries;
        let long = self.options.compact_after + usize::try_from(keep).unwrap_or(0);
        if self.driver.entry_count() <= long && !self.driver.snapshot_wanted() {
            return Ok(());
        }
        self.meta.flush()?;
        Ok(self.driver.compact(self.applied.0, self.state.to_snapshot(), keep)?)
    }

    /// Makes everything durable, for an orderly end.
    ///
    /// # Errors
    /// The metadata store failed; it will be rebuilt at the next start.
    pub fn close(&mut self) -> Result<(), MemberError> {
        Ok(self.meta.flush()?)
    }
}

/// The state that the store has, or the one of the newest snapshot where the store is behind the
/// log's beginning or unusable.
fn open_state(
    zone: ZoneId,
    memory: &Memory,
    meta: &dyn MetaStore,
) -> Result<(ZoneState, u64), MemberError> {
    let base = memory.base_index();
    match read_state(zone, meta) {
        Ok((state, applied)) if applied >= base => return Ok((state, applied)),
        Ok(_) => {}
        // Starting it on another zone's folder is a mistake, not damage.
        Err(MemberError::State(error @ StateError::Zone { .. })) => return Err(error.into()),
        Err(error) => tracing::warn!(%error, "the metadata store is rebuilt"),
    }
    let (state, applied) = match memory.newest_snapshot()? {
        Some((index, data)) if index >= base => (ZoneState::from_snapshot(zone, &data)?, index),
        // Nothing was ever cut: the log alone leads to the state.
        Some(_) | None if base <= 1 => (ZoneState::new(zone), base),
        Some(_) | None => return Err(MemberError::StateLost { base }),
    };
    replace_all(&state, applied, meta)?;
    Ok((state, applied))
}

fn read_state(zone: ZoneId, meta: &dyn MetaStore) -> Result<(ZoneState, u64), MemberError> {
    let applied = meta.get(&APPLIED)?.unwrap_or_default();
    let applied = applied.try_into().map_or(0, u64::from_le_bytes);
    let mut pairs = Vec::new();
    for kind in Key::KINDS {
        pairs.extend(meta.scan_prefix(&[kind])?);
    }
    let entries = pairs.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    Ok((ZoneState::from_entries(zone, entries)?, applied))
}

/// Replaces the whole content of the store.
fn replace_all(state: &ZoneState, applied: u64, meta: &dyn MetaStore) -> Result<(), MetaError> {
    let mut batch = MetaBatch::new(applied.max(meta.applied_index().unwrap_or(0)));
    batch.put(APPLIED, applied.to_le_bytes());
    for kind in Key::KINDS {
        batch.remove_prefix([kind]);
    }
    for (key, value) in state.entries() {
        batch.put(key, value);
    }
    meta.commit(batch)?;
    meta.flush()
}
