//! The journalled facts of a node: everything that must outlive its process, in one list.
//!
//! A record is durable before anything that rests on it leaves the node (`gate.rs`). Replaying the
//! records in order gives the [`crate::durable::DurableState`] and the blocks (design.md 4.6).
//! The journal stores the fields (`put_fields`) and the blocks apart, so that blocks stay aligned.

use alloc::vec::Vec;
use ashlar_types::codec::{BufMut, CodecError, Reader, Wire};
use ashlar_types::message::data::Uncommitted;
use ashlar_types::{BlockData, BlockRange, ChunkConfig, ChunkId, Epoch, Lsn, ReplicaId, Term};
use bytes::Bytes;

/// Number of a record in its store's journal; counts up without gaps from 1 in each process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalSeq(pub u64);

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The replica adopts a configuration; the first one creates it, empty.
    Adopt {
        /// This node's replica.
        replica: ReplicaId,
        /// The configuration.
        config: ChunkConfig,
    },
    /// The replica has answered a collect: lower terms are refused from now on.
    FollowTerm {
        /// The chunk.
        chunk: ChunkId,
        /// The term followed.
        term: Term,
    },
    /// A primary will fill ranges from another member's history; they differ from now on.
    TakeOver {
        /// The chunk.
        chunk: ChunkId,
        /// The ranges, with the positions that the other member knows them under.
        ranges: Vec<Uncommitted>,
    },
    /// A term is opened here: writes of this term follow, and the ranges named are overwritten by
    /// its first writes, one each, in this order.
    OpenTerm {
        /// The chunk.
        chunk: ChunkId,
        /// The term.
        term: Term,
        /// Committed position that it rests on.
        base: Lsn,
        /// What its first writes overwrite.
        overwrite: Vec<BlockRange>,
    },
    /// A learner's stream starts after `base`; what it held before counts for nothing.
    OpenFill {
        /// The chunk.
        chunk: ChunkId,
        /// Last position before the stream.
        base: Lsn,
    },
    /// One write in order.
    Write {
        /// The chunk.
        chunk: ChunkId,
        /// Its position: the next one of the replica.
        lsn: Lsn,
        /// Everything up to here is committed.
        committed: Lsn,
        /// The content.
        data: BlockData,
    },
    /// Content without a position: copied to a learner, or taken over by a new primary.
    Fill {
        /// The chunk.
        chunk: ChunkId,
        /// The content.
        data: BlockData,
    },
    /// Everything up to `lsn` is committed. Journalled with the next group, never for itself.
    Committed {
        /// The chunk.
        chunk: ChunkId,
        /// The position.
        lsn: Lsn,
    },
    /// A promotion is about to be proposed: until a later epoch is adopted the learner counts as
    /// in sync (design.md section 3).
    ProposePromotion {
        /// The chunk.
        chunk: ChunkId,
        /// Epoch that the proposal compares with.
        epoch: Epoch,
        /// The learner.
        learner: ReplicaId,
    },
    /// The replica is deleted on order: its blocks and its state go.
    Erase {
        /// The chunk.
        chunk: ChunkId,
    },
    /// A replica is to be erased that is not held: no incarnation of the chunk that was numbered up to
    /// this epoch is made here any more.
    Refuse {
        /// The chunk.
        chunk: ChunkId,
        /// The epoch.
        upto: Epoch,
    },
    /// The store has lost part of the replica: what it knows and holds proves nothing any more.
    /// Only another incarnation, filled from the beginning, takes its place (design.md 4.6).
    Suspect {
        /// The chunk.
        chunk: ChunkId,
    },
}

impl Record {
    /// The chunk that the fact is about.
    #[must_use]
    pub const fn chunk(&self) -> ChunkId {
        match self {
            Self::Adopt { config, .. } => config.chunk,
            Self::FollowTerm { chunk, .. }
            | Self::TakeOver { chunk, .. }
            | Self::OpenTerm { chunk, .. }
            | Self::OpenFill { chunk, .. }
            | Self::Write { chunk, .. }
            | Self::Fill { chunk, .. }
            | Self::Committed { chunk, .. }
            | Self::ProposePromotion { chunk, .. }
            | Self::Erase { chunk }
            | Self::Refuse { chunk, .. }
            | Self::Suspect { chunk } => *chunk,
        }
    }

    /// Blocks that the record changes.
    #[must_use]
    pub const fn content(&self) -> Option<&BlockData> {
        match self {
            Self::Write { data, .. } | Self::Fill { data, .. } => Some(data),
            Self::Adopt { .. }
            | Self::FollowTerm { .. }
            | Self::TakeOver { .. }
            | Self::OpenTerm { .. }
            | Self::OpenFill { .. }
            | Self::Committed { .. }
            | Self::ProposePromotion { .. }
            | Self::Erase { .. }
            | Self::Refuse { .. }
            | Self::Suspect { .. } => None,
        }
    }

    /// Whether losing the record at a crash costs nothing but work, so that it needs no flush.
    #[must_use]
    pub const fn may_wait(&self) -> bool {
        matches!(self, Self::Committed { .. })
    }

    /// Appends everything but the bytes of the blocks.
    pub fn put_fields(&self, out: &mut impl BufMut) {
        match self {
            Self::Adopt { replica, config } => {
                out.put_u8(1);
                replica.put(out);
                config.put(out);
            }
            Self::FollowTerm { chunk, term } => {
                out.put_u8(2);
                chunk.put(out);
                term.put(out);
            }
            Self::TakeOver { chunk, ranges } => {
                out.put_u8(3);
                chunk.put(out);
                ranges.put(out);
            }
            Self::OpenTerm { chunk, term, base, overwrite } => {
                out.put_u8(4);
                chunk.put(out);
                term.put(out);
                base.put(out);
                overwrite.put(out);
            }
            Self::OpenFill { chunk, base } => {
                out.put_u8(5);
                chunk.put(out);
                base.put(out);
            }
            Self::Write { chunk, lsn, committed, data } => {
                out.put_u8(6);
                chunk.put(out);
                lsn.put(out);
                committed.put(out);
                data.range.put(out);
                data.sums.put(out);
            }
            Self::Fill { chunk, data } => {
                out.put_u8(7);
                chunk.put(out);
                data.range.put(out);
                data.sums.put(out);
            }
            Self::Committed { chunk, lsn } => {
                out.put_u8(8);
                chunk.put(out);
                lsn.put(out);
            }
            Self::ProposePromotion { chunk, epoch, learner } => {
                out.put_u8(9);
                chunk.put(out);
                epoch.put(out);
                learner.put(out);
            }
            Self::Erase { chunk } => {
                out.put_u8(10);
                chunk.put(out);
            }
            Self::Suspect { chunk } => {
                out.put_u8(11);
                chunk.put(out);
            }
            Self::Refuse { chunk, upto } => {
                out.put_u8(12);
                chunk.put(out);
                upto.put(out);
            }
        }
    }

    /// Reads what [`Self::put_fields`] wrote; `data` are the bytes of the blocks, not summed here.
    ///
    /// # Errors
    /// If the bytes are no record, or blocks and fields do not fit each other.
    pub fn get(fields: &mut Reader<'_>, data: Bytes) -> Result<Self, CodecError> {
        let record = Self::get_apart(fields, data)?;
        match record.content() {
            Some(content) if content.check().is_err() => Err(CodecError::Value),
            Some(_) | None => Ok(record),
        }
    }

    /// The same for a record whose blocks are kept elsewhere: `data` is taken as it is.
    ///
    /// # Errors
    /// If the bytes are no record.
    pub fn get_apart(fields: &mut Reader<'_>, data: Bytes) -> Result<Self, CodecError> {
        let kind = u8::get(fields)?;
        let chunk_first = kind != 1;
        if !chunk_first {
            return Ok(Self::Adopt { replica: Wire::get(fields)?, config: Wire::get(fields)? });
        }
        let chunk = Wire::get(fields)?;
        Ok(match kind {
            2 => Self::FollowTerm { chunk, term: Wire::get(fields)? },
            3 => Self::TakeOver { chunk, ranges: Wire::get(fields)? },
            4 => Self::OpenTerm {
                chunk,
                term: Wire::get(fields)?,
                base: Wire::get(fields)?,
                overwrite: Wire::get(fields)?,
            },
            5 => Self::OpenFill { chunk, base: Wire::get(fields)? },
            6 => Self::Write {
                chunk,
                lsn: Wire::get(fields)?,
                committed: Wire::get(fields)?,
                data: get_content(fields, data)?,
            },
            7 => Self::Fill { chunk, data: get_content(fields, data)? },
            8 => Self::Committed { chunk, lsn: Wire::get(fields)? },
            9 => Self::ProposePromotion {
                chunk,
                epoch: Wire::get(fields)?,
                learner: Wire::get(fields)?,
            },
            10 => Self::Erase { chunk },
            11 => Self::Suspect { chunk },
            12 => Self::Refuse { chunk, upto: Wire::get(fields)? },
            other => return Err(CodecError::Case(other)),
        })
    }
}

fn get_content(fields: &mut Reader<'_>, data: Bytes) -> Result<BlockData, CodecError> {
    Ok(BlockData { range: Wire::get(fields)?, sums: Wire::get(fields)?, data })
}
