//! A request, and its parts: one part is what one frame carries.

use crate::input::ReadPiece;
use crate::{Done, OpError, OpId};
use alloc::vec::Vec;
use ashlar_types::backoff::Backoff;
use ashlar_types::{BlockData, BlockRange, ChunkIndex, Epoch, NodeId, RequestId, SessionId, Time};

/// A request of a user.
#[derive(Debug)]
pub(crate) struct Op {
    /// Order of submission.
    pub(crate) number: u64,
    pub(crate) kind: OpKind,
    /// Parts that are not over.
    pub(crate) parts_left: u32,
    pub(crate) submitted: Time,
    pub(crate) failed: Option<OpError>,
    /// The user has been told already (timed out): the parts only keep their place in the order.
    pub(crate) reported: bool,
}

#[derive(Debug)]
pub(crate) enum OpKind {
    Read(Vec<ReadPiece>),
    Write,
    /// Parts whose turn has not come.
    Reserve {
        turns_left: u32,
    },
}

impl Op {
    pub(crate) const fn writes(&self) -> bool {
        !matches!(self.kind, OpKind::Read(_))
    }

    /// What the user is told once no part is left.
    pub(crate) fn outcome(self) -> Result<Done, OpError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        Ok(match self.kind {
            OpKind::Read(mut pieces) => {
                pieces.sort_unstable_by_key(|piece| piece.skipped_blocks);
                Done::Read(pieces)
            }
            OpKind::Write | OpKind::Reserve { .. } => Done::Written,
        })
    }
}

/// What one frame carries.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) op: OpId,
    pub(crate) chunk: ChunkIndex,
    pub(crate) range: BlockRange,
    pub(crate) skipped_blocks: u32,
    pub(crate) content: Content,
    pub(crate) state: PartState,
    pub(crate) backoff: Backoff,
    /// How often the primary could not read the range.
    pub(crate) unreadable: u8,
}

#[derive(Debug)]
pub(crate) enum Content {
    Read,
    Write(BlockData),
    /// Nothing yet: the caller fills it.
    Reserve,
}

/// ```text
///            earlier write over                link up, room
///  Ordered ----------------------> Ready(node) -------------> InFlight --> (over)
///     |                              ^  ^  |                     |
///     | (reservation)          Fill  |  |  | no configuration    | refused, link lost,
///     +----------> Held -------------+  |  v                     | other primary
///                                       | Unrouted               v
///                                       +----------------- Waiting / Ready
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartState {
    /// Behind an overlapping earlier write.
    Ordered,
    /// A reservation that has its turn.
    Held,
    /// The chunk's configuration is not known.
    Unrouted,
    /// In the queue of the primary's node, under this ticket.
    Ready { node: NodeId, ticket: u64 },
    /// Refused for now.
    Waiting { until: Time },
    /// Sent.
    InFlight { node: NodeId, session: SessionId, id: RequestId, epoch: Epoch, sent: Time },
}

impl Part {
    pub(crate) const fn is_write(&self) -> bool {
        !matches!(self.content, Content::Read)
    }
}
