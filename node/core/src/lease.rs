//! Read leases between pairs of nodes (design.md 4.4): while one stands, its granter confirms no
//! other primary for the chunks that it covers, so the holder reads them without asking.
//!
//! ```text
//!  holder (a primary)                              granter (a member)
//!     Beat { n, adopted } ------------------------->  given until receipt + 500 ms
//!                         <-- BeatReply { n, start, granted, except } --
//!  held until sending of n + 400 ms
//! ```
//! Rules:
//! - only the reply to a numbered beat renews, counted from the beat's sending; the granter counts
//!   from its receipt, and longer: the difference covers clocks that drift by 10 % each way;
//! - a lease covers a chunk only if the same process of the granter has acknowledged the holder's
//!   term of that chunk, so that no process answers for what an earlier one knew;
//! - a granter that adopts an epoch which takes a chunk from the holder excepts the chunk from then
//!   on, until the holder says that it has adopted that epoch or a later one, and confirms the
//!   adoption only when every grant without the exception has run out. What an earlier process of
//!   the granter gave is unknown: a whole grant from the start on;
//! - a granter whose clock runs faster than that difference allows for covers nothing (`drift.rs`).
//!
//! Does not decide who must grant: that is the primary's matter (`primary/read.rs`).

use crate::drift::Drift;
use crate::timing::Timing;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use ashlar_types::{ChunkId, Epoch, NodeId, StartNumber, Time};

/// Beats whose sending is remembered. Older ones could not renew a lease any more.
const BEATS_KEPT: usize = 8;

/// Exceptions that one message lists. While there are more, nothing is granted; the holder's answer
/// makes room for the next.
pub(crate) const EXCEPTIONS_MAX: usize = 64;

/// Chunks and the epochs under which another is primary.
pub(crate) type Exceptions = Vec<(ChunkId, Epoch)>;

/// What this node has granted to a peer.
#[derive(Debug, Default)]
struct Given {
    until: Time,
    except: BTreeMap<ChunkId, Epoch>,
}

/// What a peer has granted to this node.
#[derive(Debug, Default)]
struct Held {
    /// Process of the granter.
    start: StartNumber,
    until: Time,
    except: BTreeMap<ChunkId, Epoch>,
}

/// Which beat an answer is to, and who gave it when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) number: u64,
    /// Process of the granter.
    pub(crate) start: StartNumber,
    /// What its clock showed.
    pub(crate) clock: Time,
}

/// All leases of a node, given and held.
#[derive(Debug)]
pub(crate) struct Leases {
    /// When this process began to grant.
    started: Time,
    last_beat: u64,
    sent: VecDeque<(u64, Time)>,
    given: BTreeMap<NodeId, Given>,
    held: BTreeMap<NodeId, Held>,
    /// Clocks of the granters.
    drifts: BTreeMap<NodeId, Drift>,
}

impl Leases {
    pub(crate) const fn new(now: Time) -> Self {
        Self {
            started: now,
            last_beat: 0,
            sent: VecDeque::new(),
            given: BTreeMap::new(),
            held: BTreeMap::new(),
            drifts: BTreeMap::new(),
        }
    }

    /// Number of the beat that is sent now, to everyone.
    pub(crate) fn next_beat(&mut self, now: Time) -> u64 {
        self.last_beat += 1;
        self.sent.push_back((self.last_beat, now));
        if self.sent.len() > BEATS_KEPT {
            self.sent.pop_front();
        }
        self.last_beat
    }

    /// A peer's exceptions as far as they are settled here: `adopted` gives the epoch of a chunk's
    /// replica on this node. One that this node does not hold it cannot serve either.
    pub(crate) fn settled(
        &self,
        peer: NodeId,
        adopted: impl Fn(ChunkId) -> Option<Epoch>,
    ) -> Exceptions {
        let Some(held) = self.held.get(&peer) else { return Vec::new() };
        let settled = held.except.iter().filter_map(|(chunk, epoch)| {
            let known = adopted(*chunk).unwrap_or(*epoch);
            (known >= *epoch).then_some((*chunk, known))
        });
        settled.take(EXCEPTIONS_MAX).collect()
    }

    /// A beat has come: renews the grant; gives whether it did, and what it does not cover.
    pub(crate) fn on_beat(
        &mut self,
        now: Time,
        from: NodeId,
        settled: &[(ChunkId, Epoch)],
        timing: &Timing,
    ) -> (bool, Exceptions) {
        let given = self.given.entry(from).or_default();
        for (chunk, epoch) in settled {
            if given.except.get(chunk).is_some_and(|except| epoch >= except) {
                given.except.remove(chunk);
            }
        }
        let granted = given.except.len() <= EXCEPTIONS_MAX;
        if granted {
            given.until = given.until.max(now + timing.lease_granted);
        }
        let except = given.except.iter().take(EXCEPTIONS_MAX);
        (granted, except.map(|(chunk, epoch)| (*chunk, *epoch)).collect())
    }

    /// The answer to a beat: renews the lease from the beat's sending on. True if it shows, for the
    /// first time, that the granter's clock runs ahead.
    pub(crate) fn on_reply(
        &mut self,
        now: Time,
        from: NodeId,
        answer: Answer,
        granted: bool,
        except: &[(ChunkId, Epoch)],
        timing: &Timing,
    ) -> bool {
        let Answer { number, start, clock } = answer;
        let Some((_, sent)) = self.sent.iter().find(|(sent, _)| *sent == number) else {
            return false;
        };
        let held = self.held.entry(from).or_default();
        if start < held.start {
            return false;
        }
        if start > held.start {
            *held = Held { start, ..Held::default() };
        }
        // Answers overtake each other on two networks: an exception once heard stays until this
        // node has adopted its epoch, by which it means nothing any more.
        for (chunk, epoch) in except {
            let known = held.except.entry(*chunk).or_default();
            *known = (*known).max(*epoch);
        }
        if granted {
            held.until = held.until.max(*sent + timing.lease_used);
        }
        self.drifts.entry(from).or_default().on_answer(now, *sent, start, clock)
    }

    /// Forgets exceptions that this node has settled and told of.
    pub(crate) fn forget_settled(&mut self, peer: NodeId, settled: &[(ChunkId, Epoch)]) {
        let Some(held) = self.held.get_mut(&peer) else { return };
        for (chunk, known) in settled {
            if held.except.get(chunk).is_some_and(|epoch| epoch <= known) {
                held.except.remove(chunk);
            }
        }
    }

    /// Whether the peer's process that acknowledged the chunk's term covers it now, under `epoch`.
    pub(crate) fn covers(
        &self,
        now: Time,
        peer: NodeId,
        start: StartNumber,
        chunk: ChunkId,
        epoch: Epoch,
    ) -> bool {
        self.held.get(&peer).is_some_and(|held| {
            held.start == start
                && now < held.until
                && self.drifts.get(&peer).is_none_or(|drift| drift.is_trusted(now))
                && held.except.get(&chunk).is_none_or(|except| *except <= epoch)
        })
    }

    /// An epoch has been adopted that takes a chunk from `peer`: no later grant covers it, and
    /// until the time given back an earlier one may.
    pub(crate) fn except(
        &mut self,
        peer: NodeId,
        chunk: ChunkId,
        epoch: Epoch,
        timing: &Timing,
    ) -> Time {
        let given = self.given.entry(peer).or_default();
        let known = given.except.entry(chunk).or_default();
        *known = (*known).max(epoch);
        given.until.max(self.earlier_grants_end(timing))
    }

    /// When the last grant of an earlier process of this node has run out.
    pub(crate) fn earlier_grants_end(&self, timing: &Timing) -> Time {
        self.started + timing.lease_granted
    }
}
