//! The primary of a chunk: the one replica that orders writes and acknowledges them.
//!
//! ```text
//!  elected / process started
//!        |
//!   Collecting --all members answered--> Fetching --ranges taken over--> Overwriting --committed--> Serving
//!        ^                                  |                                |
//!        +------ membership changed --------+                                (membership may change)
//! ```
//! Invariants:
//! - nothing is acknowledged that is not durable here and at every in-sync replica, with at least
//!   `copies_min` of them in sync (invariant 2);
//! - a learner whose promotion is proposed counts as in sync until a later epoch is adopted;
//! - reads and writes of clients are carried out only while Serving.
//!
//! Does not decide who is primary, and removes or adds nobody: it proposes (`propose.rs`).

mod fence;
mod fill;
mod opening;
mod propose;
mod read;
mod repair;
mod slow;
mod space;
mod write;

use crate::context::{Context, ReadFor};
use crate::durable::ReplicaDurable;
use crate::lease::LeaseWait;
use crate::outbox::ConnectionId;
use crate::record::JournalSeq;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, History, NotReady, PeerRefusal, Refusal, Stamp};
use ashlar_types::{
    BlockData, BlockRange, ChunkConfig, Generation, Lsn, NodeId, ReplicaId, RequestId, StartNumber,
    Term, Time,
};
use core::time::Duration;

use fill::Fill;
use opening::Phase;
use propose::Proposals;
use read::Reads;
use repair::Repairs;

/// Shortest time between two resends of everything to one member: a burst of refusals for one
/// cause must not multiply the resends.
const RESYNC_INTERVAL: Duration = Duration::from_millis(20);

/// One replica that is sent the chunk's writes.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) replica: ReplicaId,
    /// Its contiguous durable prefix in this term.
    acked: Lsn,
    /// Process that acknowledged it last: only its leases count.
    acked_by: StartNumber,
    /// Its answer to the collect of this term.
    history: Option<History>,
    /// A learner's fill.
    fill: Option<Fill>,
    /// It says itself that it does not hold the replica.
    says_gone: bool,
    /// In sync, it has said since then that it lacks what it had on stable media.
    lacks_since: Option<Time>,
    resynced_at: Option<Time>,
    wants_resync: bool,
}

impl Follower {
    const fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            acked: Lsn::ZERO,
            acked_by: StartNumber(0),
            history: None,
            fill: None,
            says_gone: false,
            lacks_since: None,
            resynced_at: None,
            wants_resync: false,
        }
    }
}

/// A write with a position.
#[derive(Debug)]
struct InFlight {
    lsn: Lsn,
    data: BlockData,
    reply: Option<(ConnectionId, RequestId)>,
    /// Its record in the journal here.
    seq: JournalSeq,
    since: Time,
}

/// A client's request that waits for the chunk.
#[derive(Debug)]
struct Waiting {
    connection: ConnectionId,
    id: RequestId,
    stamp: Stamp,
    what: Request,
}

#[derive(Debug)]
enum Request {
    Read(BlockRange),
    Write(BlockData),
}

impl Request {
    /// Bytes of content that it holds while it waits.
    fn bytes(&self) -> usize {
        match self {
            Self::Read(_) => 0,
            Self::Write(data) => data.data.len(),
        }
    }
}

/// The primary's volatile state.
#[derive(Debug)]
pub(crate) struct Primary {
    term: Term,
    /// The attachment whose writes may be acknowledged.
    generation: Generation,
    phase: Phase,
    /// Until then a former primary may hold a lease that this replica's node gave.
    lease_wait: LeaseWait,
    followers: Vec<Follower>,
    in_flight: VecDeque<InFlight>,
    /// This replica's own contiguous durable prefix in this term.
    own_durable: Lsn,
    /// The last record of the opening here: that the term is followed, then that it is open.
    opening_seq: JournalSeq,
    /// Since when the opening waits for what it waits for now.
    opening_since: Time,
    committed: Lsn,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Bytes of content of all that is in flight or kept for learners.
    in_flight_bytes: usize,
    /// Committed while fewer than `copies_min` were in sync: acknowledged when enough are again.
    withheld: Vec<(ConnectionId, RequestId)>,
    reads: Reads,
    repairs: Repairs,
    proposals: Proposals,
    /// Number of the last copy read for a learner.
    copies: u64,
    committed_told: Lsn,
}

impl Primary {
    /// Takes up the primaryship under the adopted configuration: a new term.
    pub(crate) fn elected(
        durable: &mut ReplicaDurable,
        lease_wait: LeaseWait,
        context: &mut Context<'_>,
    ) -> Self {
        let term = Term { elected: durable.config.elected, start: context.me.start };
        let mut primary = Self {
            term,
            generation: durable.config.generation,
            phase: Phase::Collecting { asked_at: context.now },
            lease_wait,
            followers: Vec::new(),
            in_flight: VecDeque::new(),
            own_durable: Lsn::ZERO,
            opening_seq: JournalSeq::default(),
            opening_since: context.now,
            committed: durable.committed,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight_bytes: 0,
            withheld: Vec::new(),
            reads: Reads::default(),
            repairs: Repairs::default(),
            proposals: Proposals::default(),
            copies: 0,
            committed_told: Lsn::ZERO,
        };
        primary.match_followers(&durable.config, context);
        primary.begin_collecting(durable, context);
        primary
    }

    pub(crate) const fn term(&self) -> Term {
        self.term
    }

    /// Whether its store lacks what was committed: as good as stale.
    pub(crate) const fn is_unfit(&self) -> bool {
        matches!(self.phase, Phase::Unfit)
    }

    pub(crate) const fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// The configuration has changed and this replica is still its primary.
    pub(crate) fn reconfigured(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        self.end_former_attachment(&durable.config, context);
        self.match_followers(&durable.config, context);
        self.proposals.epoch_changed(context.now);
        let config = Box::new(durable.config.clone());
        for follower in &self.followers {
            let message = DataMessage::Adopt { config: config.clone() };
            context.mirror_eagerly(follower.replica.node, message);
        }
        self.reads.ask_again();
        match self.phase {
            Phase::Collecting { .. } | Phase::Fetching { .. } => {
                self.begin_collecting(durable, context);
            }
            Phase::Overwriting { .. } | Phase::Serving => self.advance(durable, context),
            Phase::Unfit => {}
        }
    }

    /// One follower for each other in-sync replica and learner of the configuration.
    fn match_followers(&mut self, config: &ChunkConfig, context: &mut Context<'_>) {
        let wanted = |replica: ReplicaId| {
            replica != config.primary && (config.is_in_sync(replica) || config.is_learner(replica))
        };
        for follower in &mut self.followers {
            if follower.fill.is_some() && !config.is_learner(follower.replica) {
                follower.end_fill(context);
            }
        }
        self.followers.retain(|follower| wanted(follower.replica));
        for replica in config.in_sync.iter().chain(&config.learners).copied().filter(|r| wanted(*r))
        {
            if !self.followers.iter().any(|follower| follower.replica == replica) {
                self.followers.push(Follower::new(replica));
            }
        }
    }

    /// Another replica is primary now, or this one is stale: everyone who waits is told.
    pub(crate) fn dismiss(&mut self, config: &ChunkConfig, context: &mut Context<'_>) {
        self.waiting_bytes = 0;
        self.in_flight_bytes = 0;
        self.repairs = Repairs::default();
        let waiting = self.waiting.drain(..).map(|w| (w.connection, w.id));
        let in_flight = self.in_flight.drain(..).filter_map(|write| write.reply);
        let reads = self.reads.drain();
        let all: Vec<_> =
            waiting.chain(in_flight).chain(self.withheld.drain(..)).chain(reads).collect();
        for (connection, id) in all {
            let refusal = Refusal::NotPrimary(Box::new(config.clone()));
            context.reply(connection, DataMessage::Refused { id, refusal });
        }
        for follower in &mut self.followers {
            follower.end_fill(context);
        }
    }

    /// Whether writes wait for this follower's acknowledgement.
    fn is_required(&self, replica: ReplicaId, durable: &ReplicaDurable) -> bool {
        durable.config.is_in_sync(replica)
            || durable.proposal.is_some_and(|proposed| proposed.learner == replica)
    }

    /// A client's read or write. Refused at once if it can never be carried out as it is.
    pub(crate) fn on_client(
        &mut self,
        connection: ConnectionId,
        message: DataMessage,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let (id, stamp, what) = match message {
            DataMessage::Read { id, stamp, range } => (id, stamp, Request::Read(range)),
            DataMessage::Write { id, stamp, data } => (id, stamp, Request::Write(data)),
            _other => return,
        };
        let request = Waiting { connection, id, stamp, what };
        let held = |request: &Waiting| self.is_held(&request.what, durable, context);
        let first = self.waiting.iter().all(held) && !held(&request);
        if first && self.may_begin(&request.what, durable, context) {
            self.begin(request, durable, context);
        } else if self.waiting.len() < context.timing.waiting_max
            && self.waiting_bytes + request.what.bytes() <= context.timing.chunk_bytes_max
        {
            self.waiting_bytes += request.what.bytes();
            self.waiting.push_back(request);
        } else {
            let refusal = Refusal::NotReady(NotReady::QueueFull);
            context.reply(connection, DataMessage::Refused { id, refusal });
        }
    }

    fn may_begin(&self, what: &Request, durable: &ReplicaDurable, context: &Context<'_>) -> bool {
        self.is_serving()
            && match what {
                Request::Read(_) => self.reads.len() < context.timing.waiting_max,
                Request::Write(_) => self.may_assign(durable, context),
            }
    }

    /// Carries out a request now; epoch, generation and range are checked at this moment.
    fn begin(&mut self, request: Waiting, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let range = match &request.what {
            Request::Read(range) => *range,
            Request::Write(data) => data.range,
        };
        let config = &durable.config;
        let stamp = request.stamp;
        let refusal = if stamp.generation < config.generation {
            Some(Refusal::WrongGeneration { current: config.generation })
        } else if stamp.generation > config.generation || stamp.epoch > config.epoch {
            // The client knows a configuration that has not arrived here yet.
            Some(Refusal::NotReady(NotReady::OpeningTerm))
        } else if stamp.epoch < config.epoch {
            Some(Refusal::WrongEpoch(Box::new(config.clone())))
        } else if range.count == 0 || range.end() > config.blocks {
            Some(Refusal::BadRequest)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            context.reply(request.connection, DataMessage::Refused { id: request.id, refusal });
            return;
        }
        match request.what {
            Request::Read(range) => {
                let op = (request.connection, request.id);
                let number = self.reads.add(context.now, op, range);
                context.read(durable.config.chunk, range, ReadFor::Client(number));
            }
            Request::Write(data) => {
                self.assign(data, Some((request.connection, request.id)), durable, context);
            }
        }
    }

    /// Whether a request waits for something that others do not wait for.
    fn is_held(&self, what: &Request, durable: &ReplicaDurable, context: &Context<'_>) -> bool {
        let repaired = matches!(what, Request::Write(data) if self.repairs.hold(data.range));
        repaired || self.waits_for_space(what, durable, context)
    }

    /// Begins what waits, as far as it may. Writes that wait for space let others pass: trims give
    /// back what they wait for. So do those over a range that is repaired. (A client has no two
    /// overlapping requests in progress.)
    fn pump(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let mut held = 0;
        while let Some(next) = self.waiting.get(held) {
            if self.is_held(&next.what, durable, context) {
                held += 1;
                continue;
            }
            if !self.may_begin(&next.what, durable, context) {
                return;
            }
            let Some(request) = self.waiting.remove(held) else { return };
            self.waiting_bytes -= request.what.bytes();
            self.begin(request, durable, context);
        }
    }

    /// A client's connection is gone: nobody waits for its answers. Writes that have a position
    /// keep it.
    pub(crate) fn forget_client(&mut self, connection: ConnectionId) {
        self.waiting.retain(|request| request.connection != connection);
        self.waiting_bytes = self.waiting.iter().map(|request| request.what.bytes()).sum();
        self.withheld.retain(|(to, _)| *to != connection);
        self.reads.forget_client(connection);
        for write in &mut self.in_flight {
            write.reply = write.reply.filter(|(to, _)| *to != connection);
        }
    }

    /// An answer of a follower.
    pub(crate) fn on_answer(
        &mut self,
        from: NodeId,
        message: DataMessage,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(at) = self.followers.iter().position(|f| f.replica.node == from) else { return };
        match message {
            DataMessage::Collected { epoch, term, history, .. } => {
                if term == self.term && epoch <= durable.config.epoch {
                    self.on_collected(at, history, durable, context);
                }
            }
            DataMessage::Fetched { term, data, .. } => {
                if term == self.term {
                    self.on_fetched(from, data, durable, context);
                }
            }
            DataMessage::MirrorAck { lsn, start, fill, .. } => {
                if lsn.term == self.term {
                    self.on_mirror_ack(at, (start, fill), lsn, durable, context);
                }
            }
            DataMessage::Confirmed { term, round, .. } => {
                if term == self.term && self.reads.on_confirmed(from, round) {
                    self.finish_reads(durable, context);
                    self.ask_confirmation(durable, context);
                }
            }
            DataMessage::CopyAck { term, learner_start, number, .. } => {
                if term == self.term {
                    self.on_copy_ack(at, learner_start, number, durable, context);
                }
            }
            DataMessage::Recalled { at, data, .. } => {
                self.on_recalled(from, at, data, durable, context);
            }
            DataMessage::PeerRefused { refusal: PeerRefusal::Damaged(range), .. } => {
                self.on_member_damaged(from, range, durable, context);
            }
            DataMessage::PeerRefused { refusal, .. } => {
                self.on_refused(at, &refusal, durable, context);
            }
            _other => {}
        }
    }

    fn on_refused(
        &mut self,
        at: usize,
        refusal: &PeerRefusal,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let committed = self.committed;
        let Some(follower) = self.followers.get_mut(at) else { return };
        match refusal {
            PeerRefusal::NotHeld => follower.says_gone = true,
            PeerRefusal::Damaged(_) => {}
            PeerRefusal::Gap(last) => {
                // In sync means that it had all of this on stable media: its store has lost it,
                // unless this refusal was overtaken by an acknowledgement on the other network.
                let had = follower.acked.max(committed);
                if durable.config.is_in_sync(follower.replica) && *last < had {
                    let since = *follower.lacks_since.get_or_insert(context.now);
                    follower.says_gone |= context.now.since(since) >= context.timing.stall;
                }
                self.resync(at, durable, context);
            }
            PeerRefusal::OtherStart(_) => {
                let proposed = durable.proposal.is_some_and(|p| p.learner == follower.replica);
                if !proposed {
                    follower.end_fill(context);
                }
            }
            PeerRefusal::LowerEpoch(_) | PeerRefusal::LowerTerm(_) | PeerRefusal::NotAdopted(_) => {
                self.resync(at, durable, context)
            }
        }
    }

    /// Sends a follower everything it may lack: configuration, opening, writes.
    fn resync(&mut self, at: usize, durable: &ReplicaDurable, context: &mut Context<'_>) {
        let Some(follower) = self.followers.get_mut(at) else { return };
        let early =
            follower.resynced_at.is_some_and(|then| context.now.since(then) < RESYNC_INTERVAL);
        if early {
            follower.wants_resync = true;
            return;
        }
        follower.resynced_at = Some(context.now);
        follower.wants_resync = false;
        let to = follower.replica.node;
        let config = Box::new(durable.config.clone());
        context.mirror_eagerly(to, DataMessage::Adopt { config });
        self.resend_opening(at, durable, context);
        self.resend_writes(at, durable, context);
    }

    /// The connection to a follower's node is up (again).
    pub(crate) fn on_link_up(
        &mut self,
        node: NodeId,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        self.proposals.peer_returned(context.now);
        let Some(at) = self.followers.iter().position(|f| f.replica.node == node) else { return };
        self.restart_lost_fill(at, durable, context);
        if let Some(follower) = self.followers.get_mut(at) {
            follower.resynced_at = None;
        }
        self.resync(at, durable, context);
    }

    /// Time passes: what was lost is sent again, what is due is proposed, fills begin.
    pub(crate) fn on_tick(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        for at in 0..self.followers.len() {
            if self.needs_resend(at, durable, context) {
                self.resync(at, durable, context);
            }
        }
        self.tick_opening(durable, context);
        self.reads.tick(context.now, context.timing.retry);
        self.settle_reads(durable, context);
        self.tell_committed(durable, context);
        if self.is_serving() {
            self.go_on_repairing(durable, context);
            self.begin_fills(durable, context);
            self.go_on_after_shortage(durable, context);
        }
        self.propose(durable, context);
    }

    fn needs_resend(&self, at: usize, durable: &ReplicaDurable, context: &Context<'_>) -> bool {
        let Some(follower) = self.followers.get(at) else { return false };
        let oldest = self.in_flight.iter().find(|write| write.lsn > follower.acked);
        let stalled = oldest
            .is_some_and(|write| context.now.since(write.since) > context.timing.stall)
            && follower
                .resynced_at
                .is_none_or(|then| context.now.since(then) > context.timing.stall)
            && (self.is_required(follower.replica, durable) || follower.fill.is_some());
        context.peers.reachable(follower.replica.node) && (stalled || follower.wants_resync)
    }

    /// All records of this chunk's own writes up to some number are durable.
    pub(crate) fn on_durable(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        self.advance(durable, context);
    }

    /// The store has answered a read.
    pub(crate) fn on_blocks(
        &mut self,
        purpose: ReadFor,
        range: BlockRange,
        content: Option<BlockData>,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        match purpose {
            ReadFor::Client(number) => match content {
                Some(data) => {
                    let seen = self.newest_write_over(range);
                    self.reads.filled(number, data, seen);
                    self.settle_reads(durable, context);
                }
                None => self.on_unreadable(number, durable, context),
            },
            ReadFor::Overwrite(term) => match content.filter(|_| term == self.term) {
                Some(data) => self.overwrite(data, durable, context),
                None => self.recall_overwrite(durable, context),
            },
            ReadFor::Fill(learner, start, number) => {
                self.on_fill_blocks(learner, start, number, content, durable, context);
            }
            ReadFor::Repair(number) => self.on_repair_blocks(number, content, durable, context),
            ReadFor::Fetch(..) | ReadFor::Recall(..) | ReadFor::Scrub(_) | ReadFor::Compare(..) => {
            }
        }
    }

    /// Position of the newest write over the range that is not committed yet: a content read now
    /// may hold it, so it must not be shown before it is committed.
    fn newest_write_over(&self, range: BlockRange) -> Lsn {
        self.in_flight
            .iter()
            .rev()
            .find(|write| write.lsn > self.committed && write.data.range.overlaps(range))
            .map_or(Lsn::ZERO, |write| write.lsn)
    }

    /// End of a batch of inputs: one question serves all reads that arrived with it.
    pub(crate) fn end_of_batch(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        self.settle_reads(durable, context);
    }
}

impl Primary {
    /// Panics if what this primary believes contradicts itself. Cheap enough for every event.
    ///
    /// # Panics
    /// On a broken invariant: going on could acknowledge what is not safe.
    pub(crate) fn check(&self, durable: &ReplicaDurable) {
        let config = &durable.config;
        let chunk = config.chunk;
        assert!(config.primary == durable.replica, "{chunk}: acts as primary without being it");
        assert!(self.term.elected == config.elected, "{chunk}: a term of another election");
        assert!(self.term <= durable.term, "{chunk}: its own term is not durable");
        assert!(self.committed <= durable.last.max(durable.committed), "{chunk}: committed ahead");
        for follower in &self.followers {
            let replica = follower.replica;
            assert!(replica != durable.replica, "{chunk}: follows itself");
            assert!(
                config.is_in_sync(replica) || config.is_learner(replica),
                "{chunk}: mirrors to a replica that the configuration does not name"
            );
            assert!(follower.acked <= durable.last, "{chunk}: acknowledged what was not written");
            assert!(
                follower.fill.is_none() || config.is_learner(replica),
                "{chunk}: fills a replica that is no learner"
            );
        }
        self.check_writes(durable);
        self.reads.check();
    }

    fn check_writes(&self, durable: &ReplicaDurable) {
        let chunk = durable.config.chunk;
        let bytes: usize = self.in_flight.iter().map(|write| write.data.data.len()).sum();
        assert!(bytes == self.in_flight_bytes, "{chunk}: bytes in flight are miscounted");
        let bytes: usize = self.waiting.iter().map(|request| request.what.bytes()).sum();
        assert!(bytes == self.waiting_bytes, "{chunk}: waiting bytes are miscounted");
        let mut expected = self.in_flight.front().map(|write| write.lsn);
        for write in &self.in_flight {
            assert!(Some(write.lsn) == expected, "{chunk}: a gap among the writes in flight");
            assert!(write.lsn.term == self.term, "{chunk}: a write of another term in flight");
            assert!(
                write.lsn > self.committed || write.reply.is_none(),
                "{chunk}: a committed write whose client was not told"
            );
            expected = Some(write.lsn.next());
        }
        if let Some(newest) = self.in_flight.back() {
            assert!(newest.lsn == durable.last, "{chunk}: the newest write is not in flight");
        }
        if self.is_serving() {
            assert!(durable.last.term == self.term, "{chunk}: serves without an open term");
            assert!(
                self.committed.term == self.term,
                "{chunk}: serves before its opening is committed"
            );
        } else {
            assert!(self.reads.len() == 0, "{chunk}: reads before it serves");
        }
        assert!(
            self.withheld.is_empty() || !durable.config.may_acknowledge(),
            "{chunk}: keeps an acknowledgement back without a reason"
        );
    }
}
