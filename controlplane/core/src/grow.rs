//! Volumes grow: chunks are added behind the last one, and the size follows once they serve
//! (decisions/0018).
//!
//! - Nothing that exists changes: no configuration of a chunk, no generation, no attachment.
//! - The size that clients are told stays until every new chunk has a primary that serves.
//! - A volume never shrinks, and its chunks keep their size.
//! - One command carries all new chunks: a growth that is refused leaves nothing behind.
//!
//! It places nothing (`place.rs`) and does not judge who serves (`plan.rs`).

use crate::apply::{Answer, Refusal};
use crate::command::Placement;
use crate::state::{CHUNKS_PER_ZONE_MAX, Chunk, Key, Volume, ZoneState};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use ashlar_types::limit::{CHUNKS_MAX, GROWTH_CHUNKS_MAX};
use ashlar_types::{
    ChunkConfig, ChunkId, ChunkIndex, Geometry, GeometryError, VolumeId, wire_struct,
};
use thiserror::Error;

/// A growth whose chunks are there and do not all serve yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowthRecord {
    /// The volume.
    pub volume: VolumeId,
    /// Its size when they do.
    pub size_bytes: u64,
    /// When it was committed, milliseconds since 1970.
    pub since_millis: u64,
}

wire_struct! {
    GrowthRecord { volume, size_bytes, since_millis }
}

/// Why a volume does not grow so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GrowthRefusal {
    /// Smaller than it is.
    #[error("volumes do not shrink, and this one has {size_bytes} bytes")]
    Shrinks {
        /// Its size, or the one that it grows to.
        size_bytes: u64,
    },
    /// Its first chunks do not all serve yet.
    #[error("the volume is still being created")]
    Creating,
    /// One growth at a time.
    #[error("the volume grows to {size_bytes} bytes already")]
    Growing {
        /// The size that it grows to.
        size_bytes: u64,
    },
    /// More chunks than a volume may have.
    #[error(
        "a volume has at most {CHUNKS_MAX} chunks: with its chunks of {chunk_bytes} bytes this one \
         grows to at most {largest_bytes} bytes"
    )]
    TooManyChunks {
        /// Size of its chunks.
        chunk_bytes: u64,
        /// The largest size that it can have.
        largest_bytes: u64,
    },
    /// More chunks than one command may add.
    #[error("a volume grows by at most {GROWTH_CHUNKS_MAX} chunks at a time")]
    TooManyAtOnce {
        /// The largest size that it can grow to now.
        largest_bytes: u64,
    },
    /// A size that no volume has.
    #[error(transparent)]
    Size(GeometryError),
}

/// What a volume is to be.
fn target(geometry: Geometry, size_bytes: u64) -> Result<Geometry, GrowthRefusal> {
    let chunk_bytes = geometry.chunk_bytes();
    let to = Geometry::new(size_bytes, chunk_bytes).map_err(|error| match error {
        GeometryError::ChunkSize => {
            let largest_bytes = chunk_bytes.saturating_mul(CHUNKS_MAX);
            GrowthRefusal::TooManyChunks { chunk_bytes, largest_bytes }
        }
        other => GrowthRefusal::Size(other),
    })?;
    let largest = u64::from(geometry.chunk_count()) + GROWTH_CHUNKS_MAX;
    if u64::from(to.chunk_count()) > largest {
        let largest_bytes = chunk_bytes.saturating_mul(largest);
        return Err(GrowthRefusal::TooManyAtOnce { largest_bytes });
    }
    Ok(to)
}

impl ZoneState {
    /// Growths that are not over, in order of volume.
    pub fn growths(&self) -> impl Iterator<Item = &GrowthRecord> {
        self.growing.values()
    }

    /// The size that a volume grows to, if it does.
    #[must_use]
    pub fn grows_to(&self, volume: VolumeId) -> Option<u64> {
        self.growing.get(&volume).map(|growth| growth.size_bytes)
    }

    /// Configurations of the chunks that clients are told of, in order.
    pub fn told_configs(&self, volume: &Volume) -> impl Iterator<Item = &ChunkConfig> {
        let count = volume.geometry.chunk_count();
        self.volume_configs(volume.id).filter(move |config| config.chunk.index.0 < count)
    }

    /// Configurations of the chunks that a volume grows by, in order.
    pub fn new_configs(&self, volume: &Volume) -> impl Iterator<Item = &ChunkConfig> {
        let count = volume.geometry.chunk_count();
        self.volume_configs(volume.id).filter(move |config| config.chunk.index.0 >= count)
    }

    /// What the volume is to be at this size; none: it has the size, or grows to it.
    ///
    /// # Errors
    /// It cannot have that size, or not now.
    pub fn check_growth(
        &self,
        volume: &Volume,
        size_bytes: u64,
    ) -> Result<Option<Geometry>, GrowthRefusal> {
        let has = self.grows_to(volume.id).unwrap_or(volume.geometry.size_bytes());
        let to = target(volume.geometry, size_bytes);
        let wanted = to.map_or(size_bytes, Geometry::size_bytes);
        if wanted < has && wanted > 0 {
            return Err(GrowthRefusal::Shrinks { size_bytes: has });
        }
        if wanted == has {
            return Ok(None);
        }
        if !volume.ready {
            return Err(GrowthRefusal::Creating);
        }
        if let Some(size_bytes) = self.grows_to(volume.id) {
            return Err(GrowthRefusal::Growing { size_bytes });
        }
        to.map(Some)
    }

    /// Adds the chunks of a growth. Clients are told of the size by [`Self::finish_growth`], unless no
    /// chunk is new: then the last one is there already.
    pub(crate) fn grow(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        placement: &Placement,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?.clone();
        let Some(to) = self.check_growth(&volume, size_bytes).map_err(Refusal::Growth)? else {
            return Ok(Answer::Volume { volume });
        };
        let had = volume.geometry.chunk_count();
        let more = to.chunk_count().saturating_sub(had) as usize;
        if self.chunks.len() + more > CHUNKS_PER_ZONE_MAX {
            return Err(Refusal::TooManyVolumes);
        }
        if placement.0.len() != more {
            return Err(Refusal::Placement);
        }
        let chunks: Vec<Chunk> = (had..)
            .zip(&placement.0)
            .map(|(index, places)| self.first_chunk(&volume, ChunkIndex(index), places))
            .collect::<Option<_>>()
            .ok_or(Refusal::Placement)?;
        if chunks.is_empty() {
            return Ok(Answer::Volume { volume: self.resize(volume, to, changed) });
        }
        let since_millis = self.clock_millis;
        self.put_growth(GrowthRecord { volume: id, size_bytes: to.size_bytes(), since_millis });
        changed.insert(Key::Growth(id));
        for chunk in chunks {
            let id = chunk.config.chunk;
            assert!(!self.chunks.contains_key(&id), "{id} is there already");
            changed.insert(Key::Chunk(id));
            self.put_chunk(chunk);
        }
        Ok(Answer::Volume { volume })
    }

    /// Every new chunk serves: clients are told of the size. Another growth than the one that was judged
    /// is not ended by it.
    pub(crate) fn finish_growth(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        changed: &mut BTreeSet<Key>,
    ) {
        if self.grows_to(id) != Some(size_bytes) {
            return;
        }
        let Some(volume) = self.volumes.get(&id).cloned() else { return };
        let Ok(to) = Geometry::new(size_bytes, volume.geometry.chunk_bytes()) else { return };
        let there = self.volume_configs(id).count();
        assert_eq!(there, to.chunk_count() as usize, "{id} is to be larger than its chunks");
        self.resize(volume, to, changed);
        self.growing.remove(&id);
        changed.insert(Key::Growth(id));
    }

    /// The volume with its new size, of which clients are told from now on.
    fn resize(&mut self, volume: Volume, to: Geometry, changed: &mut BTreeSet<Key>) -> Volume {
        let had = volume.geometry.size_bytes();
        assert!(to.size_bytes() > had, "{} shrinks", volume.id);
        let (id, larger) = (volume.id, Volume { geometry: to, ..volume });
        self.recount(id, |state| state.put_volume(larger.clone()));
        changed.insert(Key::Volume(id));
        larger
    }

    /// Notes a growth; its chunks count at what they will hold.
    pub(crate) fn put_growth(&mut self, growth: GrowthRecord) {
        self.recount(growth.volume, |state| {
            state.growing.insert(growth.volume, growth);
        });
    }

    /// The growth of a volume that is gone.
    pub(crate) fn forget_growth(&mut self, id: VolumeId, changed: &mut BTreeSet<Key>) {
        if self.growing.remove(&id).is_some() {
            changed.insert(Key::Growth(id));
        }
    }

    /// Changes what chunks of a volume can hold, and counts again what is promised for them: of those that
    /// are there, the last one and those behind it.
    fn recount(&mut self, id: VolumeId, change: impl FnOnce(&mut Self)) {
        let count = self.volumes.get(&id).map_or(0, |volume| volume.geometry.chunk_count());
        let last = ChunkIndex(count.saturating_sub(1));
        let touched: Vec<ChunkId> =
            self.volume_configs_from(id, last).map(|config| config.chunk).collect();
        let taken: Vec<Chunk> =
            touched.into_iter().filter_map(|chunk| self.take_chunk(chunk)).collect();
        change(self);
        taken.into_iter().for_each(|chunk| self.put_chunk(chunk));
    }
}
