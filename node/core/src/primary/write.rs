//! A write at the primary: position, mirror, commit, acknowledge (design.md 4.2, 4.3).
//!
//! Path of a write: client 4 of 9. The mirror leaves at once, while the journal's own write is in
//! flight; the acknowledgement leaves when every required replica, this one included, has the
//! write on stable media and at least `copies_min` are in sync.

use super::{InFlight, Primary};
use crate::context::Context;
use crate::durable::ReplicaDurable;
use crate::outbox::ConnectionId;
use crate::record::Record;
use ashlar_types::limit::WRITES_IN_FLIGHT_PER_CHUNK_MAX;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{BlockData, Lsn, RequestId, StartNumber};

impl Primary {
    /// Whether a client's write may get a position now.
    pub(super) fn may_assign(&self, durable: &ReplicaDurable, context: &Context<'_>) -> bool {
        let uncommitted =
            durable.last.counter.saturating_sub(match self.committed.term == self.term {
                true => self.committed.counter,
                false => 0,
            });
        durable.config.may_acknowledge()
            && uncommitted < WRITES_IN_FLIGHT_PER_CHUNK_MAX as u64
            && self.in_flight_bytes <= context.timing.chunk_bytes_max
    }

    /// Gives a write the next position, journals it here and mirrors it.
    pub(super) fn assign(
        &mut self,
        data: BlockData,
        reply: Option<(ConnectionId, RequestId)>,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let lsn = durable.last.next();
        let (chunk, epoch, committed) =
            (durable.config.chunk, durable.config.epoch, self.committed);
        assert!(lsn.term == self.term, "{chunk}: a write outside the term that is open");
        for follower in &self.followers {
            let node = follower.replica.node;
            if follower.acked.term == self.term && context.peers.reachable(node) {
                let data = data.clone();
                let message = DataMessage::Mirror { chunk, epoch, lsn, committed, data };
                context.mirror_eagerly(node, message);
            }
        }
        let record = Record::Write { chunk, lsn, committed, data: data.clone() };
        let seq = context.persist(durable, record);
        context.gate.note_own(chunk);
        self.in_flight_bytes += data.data.len();
        self.in_flight.push_back(InFlight { lsn, data, reply, seq, since: context.now });
    }

    /// A follower has a prefix on stable media.
    pub(super) fn on_mirror_ack(
        &mut self,
        at: usize,
        stream: (StartNumber, Option<Lsn>),
        lsn: Lsn,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(follower) = self.followers.get_mut(at) else { return };
        let (start, base) = stream;
        let required = durable.config.is_in_sync(follower.replica)
            || durable.proposal.is_some_and(|p| p.learner == follower.replica);
        if !required {
            let Some(fill) = follower.fill.as_ref() else { return };
            if fill.learner_start != start {
                follower.end_fill(context);
                return;
            }
            // A learner that has not heard of the fill may say what it has, or take a write that
            // overtook the opening: the opening will take it back to the base.
            if base != Some(fill.base) {
                return;
            }
        }
        if lsn > durable.last {
            return;
        }
        let opened_now = follower.acked.term < self.term;
        if lsn >= follower.acked {
            follower.lacks_since = None;
        }
        follower.acked = follower.acked.max(lsn);
        follower.acked_by = follower.acked_by.max(start);
        if opened_now {
            self.resend_writes(at, durable, context);
        }
        self.advance(durable, context);
        self.go_on_filling(at, durable, context);
    }

    /// Sends a follower that has opened the term all writes that it has not acknowledged.
    pub(super) fn resend_writes(
        &self,
        at: usize,
        durable: &ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let Some(follower) = self.followers.get(at) else { return };
        if follower.acked.term != self.term {
            return;
        }
        let (chunk, epoch, committed) =
            (durable.config.chunk, durable.config.epoch, self.committed);
        for write in self.in_flight.iter().filter(|write| write.lsn > follower.acked) {
            let (lsn, data) = (write.lsn, write.data.clone());
            let message = DataMessage::Mirror { chunk, epoch, lsn, committed, data };
            context.mirror_eagerly(follower.replica.node, message);
        }
    }

    /// Commits and acknowledges what every required replica has; then whatever waited for that.
    pub(super) fn advance(&mut self, durable: &mut ReplicaDurable, context: &mut Context<'_>) {
        let journalled = context.gate.durable();
        if durable.last.term != self.term || self.opening_seq > journalled {
            return;
        }
        self.own_durable = self
            .in_flight
            .iter()
            .filter(|write| write.lsn > self.own_durable)
            .take_while(|write| write.seq <= journalled)
            .last()
            .map_or(self.own_durable.max(Lsn::opening(self.term)), |write| write.lsn);
        let reach = self
            .followers
            .iter()
            .filter(|follower| self.is_required(follower.replica, durable))
            .map(|follower| follower.acked)
            .fold(self.own_durable, Lsn::min);
        if reach.term == self.term && reach > self.committed {
            self.commit(reach);
        }
        self.release_withheld(durable, context);
        self.drop_finished();
        self.try_serve(durable, context);
        self.go_on_repairing(durable, context);
        self.pump(durable, context);
        self.finish_reads(durable, context);
        self.send_ready_copies(durable, context);
    }

    fn commit(&mut self, reach: Lsn) {
        assert!(reach <= self.own_durable, "committed beyond this replica's own stable media");
        let before = self.committed;
        self.committed = reach;
        let newly = self
            .in_flight
            .iter_mut()
            .skip_while(|write| write.lsn <= before)
            .take_while(|write| write.lsn <= reach);
        self.withheld.extend(newly.filter_map(|write| write.reply.take()));
    }

    /// Acknowledges what is committed, if enough replicas are in sync.
    fn release_withheld(&mut self, durable: &ReplicaDurable, context: &mut Context<'_>) {
        if durable.config.may_acknowledge() {
            for (connection, id) in self.withheld.drain(..) {
                context.reply(connection, DataMessage::WriteDone { id });
            }
        }
    }

    /// Forgets writes that nobody needs any more: committed, and received by every learner.
    fn drop_finished(&mut self) {
        let needed_from = self
            .followers
            .iter()
            .filter_map(|follower| follower.fill.as_ref().map(|f| f.base.max(follower.acked)))
            .fold(self.committed, Lsn::min);
        while let Some(write) = self.in_flight.pop_front_if(|write| write.lsn <= needed_from) {
            self.in_flight_bytes -= write.data.data.len();
        }
    }

    /// In quiet times members learn here what is committed; otherwise with the next write.
    pub(super) fn tell_committed(
        &mut self,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        let idle = self.committed == durable.last;
        if !idle || self.committed.term != self.term || self.committed_told == self.committed {
            return;
        }
        self.committed_told = self.committed;
        let (chunk, epoch, lsn) = (durable.config.chunk, durable.config.epoch, self.committed);
        if lsn > durable.committed {
            context.persist(durable, Record::Committed { chunk, lsn });
        }
        for follower in self.followers.iter().filter(|f| f.acked.term == self.term) {
            let message = DataMessage::Committed { chunk, epoch, lsn };
            context.mirror_eagerly(follower.replica.node, message);
        }
    }
}
