//! What an open store must not be believed any more, kept in the superblock until every replica
//! concerned carries the mark itself (design.md 4.6).
//!
//! Order: doubt is durable before anything that showed the damage is overwritten or wiped; the
//! replicas are marked suspect whenever a store with doubt is opened; a checkpoint, which holds
//! those marks, ends it. So a crash in between finds the damage again, or the doubt.

use crate::log_line::log_line;
use ashlar_node_core::Line;
use ashlar_node_core::durable::{DurableState, ReplicaDurable};
use ashlar_node_core::record::Record;
use ashlar_types::codec::{BufMut, CodecError, Reader, Wire};
use ashlar_types::{ChunkId, Lsn};

/// Replicas whose state or content may not be what was reported durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    whose: Whose,
    /// Records were lost of which nothing is known. Never taken back: a chunk that such a store does
    /// not know it may have held.
    has_gaps: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Whose {
    #[default]
    Nobody,
    /// One replica, proven to be the only one.
    Chunk(ChunkId),
    All,
}

impl Doubt {
    /// Doubts one replica.
    pub(crate) fn add(&mut self, chunk: ChunkId) {
        self.whose = match self.whose {
            Whose::Nobody => Whose::Chunk(chunk),
            Whose::Chunk(known) if known == chunk => self.whose,
            // Two at once are rare; what this costs is a copy, what a list would cost is its code.
            Whose::Chunk(_) | Whose::All => Whose::All,
        };
    }

    /// Doubts every replica that the store knows.
    pub(crate) const fn add_all(&mut self) {
        self.whose = Whose::All;
    }

    /// Records are lost: every replica is doubted, and the store does not know which there were.
    pub(crate) const fn add_gap(&mut self) {
        self.whose = Whose::All;
        self.has_gaps = true;
    }

    /// Whether replicas have to be marked.
    pub(crate) fn is_open(&self) -> bool {
        self.whose != Whose::Nobody
    }

    /// A checkpoint holds the marks.
    pub(crate) fn settled(self) -> Self {
        Self { whose: Whose::Nobody, ..self }
    }

    /// Marks the replicas concerned.
    pub(crate) fn mark(&self, state: &mut DurableState) {
        let concerns = |chunk: ChunkId, replica: &ReplicaDurable| {
            let doubted = match self.whose {
                Whose::Nobody => false,
                Whose::Chunk(doubted) => doubted == chunk,
                Whose::All => true,
            };
            // With gaps, a replica that is to be in sync from nothing is created with its mark; a
            // crash may have kept the one record without the other.
            let in_sync = replica.config.is_in_sync(replica.replica);
            doubted || (self.has_gaps && in_sync && replica.last == Lsn::ZERO)
        };
        let concerned: Vec<ChunkId> = state
            .iter()
            .filter(|(chunk, replica)| !replica.suspect && concerns(**chunk, replica))
            .map(|(chunk, _)| *chunk)
            .collect();
        for chunk in concerned {
            log_line!(Line::LostPart, %chunk);
            state.apply(&Record::Suspect { chunk });
        }
        if self.has_gaps {
            state.note_gaps();
        }
    }
}

/// All zeros stand for no doubt, as in a superblock that was written before there was any.
impl Wire for Doubt {
    fn put(&self, out: &mut impl BufMut) {
        let (kind, chunk) = match self.whose {
            Whose::Nobody => (0, None),
            Whose::Chunk(chunk) => (1, Some(chunk)),
            Whose::All => (2, None),
        };
        out.put_u8(kind);
        self.has_gaps.put(out);
        if let Some(chunk) = chunk {
            chunk.put(out);
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let kind = u8::get(from)?;
        let has_gaps = bool::get(from)?;
        let whose = match kind {
            0 => Whose::Nobody,
            1 => Whose::Chunk(Wire::get(from)?),
            2 => Whose::All,
            other => return Err(CodecError::Case(other)),
        };
        Ok(Self { whose, has_gaps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::codec::{decode, encode};
    use ashlar_types::{ChunkIndex, VolumeId};

    fn chunk(n: u32) -> ChunkId {
        let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
        ChunkId { volume, index: ChunkIndex(n) }
    }

    #[test]
    fn doubt_only_grows_until_it_is_settled_and_gaps_stay() {
        let mut doubt = Doubt::default();
        assert!(!doubt.is_open());
        doubt.add(chunk(1));
        doubt.add(chunk(1));
        assert_eq!(doubt.whose, Whose::Chunk(chunk(1)));
        assert_eq!(decode(&encode(&doubt)), Ok(doubt));
        doubt.add(chunk(2));
        assert_eq!(doubt.whose, Whose::All);
        doubt.add(chunk(1));
        assert_eq!(doubt.whose, Whose::All);
        doubt.add_gap();
        assert_eq!(decode(&encode(&doubt)), Ok(doubt));
        let settled = doubt.settled();
        assert!(!settled.is_open() && settled.has_gaps);
        assert_eq!(decode(&[0, 0]), Ok(Doubt::default()));
    }
}
