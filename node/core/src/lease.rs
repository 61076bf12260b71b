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
//! Here is the holder's side, and the orders to stop granting; the granter's is in `beats.rs`. Who must
//! grant is the primary's matter (`primary/read.rs`).

use crate::beats::BeatOrder;
use crate::drift::Drift;
use crate::outbox::Outbox;
use crate::timing::Timing;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::{ChunkId, Epoch, NodeId, StartNumber, Time};

/// Exceptions that one message lists. While there are more, nothing is granted; the holder's answer
/// makes room for the next.
pub(crate) const EXCEPTIONS_MAX: usize = 64;

/// Chunks and the epochs under which another is primary.
pub(crate) type Exceptions = Vec<(ChunkId, Epoch)>;

/// What a peer has granted to this node.
#[derive(Debug, Default)]
struct Held {
    /// Process of the granter.
    start: StartNumber,
    until: Time,
    except: BTreeMap<ChunkId, Epoch>,
}

/// An answer to a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When the beat was sent.
    pub sent: Time,
    /// Process of the granter.
    pub start: StartNumber,
    /// What its clock showed.
    pub clock: Time,
}

/// What a replica waits for before it confirms that it has adopted an epoch which takes the chunk from a
/// former primary: no lease of that one may stand any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseWait {
    /// The last order to stop granting that is not in force yet.
    order: Option<u64>,
    /// Until then an earlier grant may stand.
    until: Time,
}

impl LeaseWait {
    pub(crate) const fn until(until: Time) -> Self {
        Self { order: None, until }
    }

    /// An order to stop granting was given.
    pub(crate) const fn ordered(&mut self, number: u64) {
        self.order = Some(number);
    }

    /// An order is in force; orders take effect one after the other.
    pub(crate) fn in_force(&mut self, number: u64, until: Time) {
        self.until = self.until.max(until);
        if self.order.is_some_and(|order| order <= number) {
            self.order = None;
        }
    }

    pub(crate) fn is_over(&self, now: Time) -> bool {
        self.order.is_none() && now >= self.until
    }
}

/// The leases that a node holds, and its orders to grant no more.
#[derive(Debug)]
pub(crate) struct Leases {
    /// When this process began to grant.
    started: Time,
    orders: u64,
    held: BTreeMap<NodeId, Held>,
    /// Clocks of the granters.
    drifts: BTreeMap<NodeId, Drift>,
}

impl Leases {
    pub(crate) const fn new(now: Time) -> Self {
        Self { started: now, orders: 0, held: BTreeMap::new(), drifts: BTreeMap::new() }
    }

    /// Peers whose exceptions are settled here, as far as they are.
    pub(crate) fn all_settled(
        &self,
        adopted: impl Fn(ChunkId) -> Option<Epoch>,
    ) -> Vec<(NodeId, Exceptions)> {
        let with_some = self.held.iter().filter(|(_, held)| !held.except.is_empty());
        let settled = with_some.map(|(peer, _)| (*peer, self.settled(*peer, &adopted)));
        settled.filter(|(_, settled)| !settled.is_empty()).collect()
    }

    /// A peer's exceptions as far as they are settled here: `adopted` gives the epoch of a chunk's
    /// replica on this node. One that this node does not hold it cannot serve either.
    fn settled(&self, peer: NodeId, adopted: impl Fn(ChunkId) -> Option<Epoch>) -> Exceptions {
        let Some(held) = self.held.get(&peer) else { return Vec::new() };
        let settled = held.except.iter().filter_map(|(chunk, epoch)| {
            let known = adopted(*chunk).unwrap_or(*epoch);
            (known >= *epoch).then_some((*chunk, known))
        });
        settled.take(EXCEPTIONS_MAX).collect()
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
        let Answer { sent, start, clock } = answer;
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
            held.until = held.until.max(sent + timing.lease_used);
        }
        self.drifts.entry(from).or_default().on_answer(now, sent, start, clock)
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

    /// An epoch has been adopted that takes a chunk from `peer`: no later grant may cover it. Gives
    /// the number of the order, to wait for.
    pub(crate) fn except(
        &mut self,
        peer: NodeId,
        chunk: ChunkId,
        epoch: Epoch,
        out: &mut Outbox,
    ) -> u64 {
        self.orders += 1;
        let number = self.orders;
        out.order(BeatOrder::Except { number, peer, chunk, epoch });
        number
    }

    /// When the last grant of an earlier process of this node has run out.
    pub(crate) fn earlier_grants_end(&self, timing: &Timing) -> Time {
        self.started + timing.lease_granted
    }
}
