//! The connection to one node, and what waits for it.

use alloc::collections::{BTreeSet, VecDeque};
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_types::{ChunkIndex, SessionId, Time};
use core::time::Duration;

/// Redialling: quick at first, because a restarted node is back within a second.
const REDIAL: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(20), max: Duration::from_secs(2) };

/// One node that holds chunks of the volume.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) link: Link,
    pub(crate) redial: Backoff,
    /// Parts to send, each with the ticket under which it was queued; a part that has moved on
    /// has another state, so its entry is skipped.
    pub(crate) ready: VecDeque<(u16, u64)>,
    pub(crate) in_flight: usize,
    /// Chunks whose configuration is to be asked for.
    pub(crate) questions: BTreeSet<ChunkIndex>,
}

/// A connection, or when there was or will be an attempt at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Down { retry_at: Time },
    Dialling(SessionId, Time),
    Up(SessionId),
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            link: Link::Down { retry_at: Time::ZERO },
            redial: Backoff::new(REDIAL),
            ready: VecDeque::new(),
            in_flight: 0,
            questions: BTreeSet::new(),
        }
    }

    pub(crate) fn wants_link(&self) -> bool {
        !self.ready.is_empty() || !self.questions.is_empty()
    }

    /// The number of the connection that is dialled or up.
    pub(crate) const fn session(&self) -> Option<SessionId> {
        match self.link {
            Link::Down { .. } => None,
            Link::Dialling(session, _) | Link::Up(session) => Some(session),
        }
    }
}
