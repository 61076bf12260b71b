//! The member's side: an in-sync secondary or a learner follows a primary. Follows
//! `node/core/src/replica/member.rs`; what is refused there is a message without effect here, since
//! every message may arrive again.

use crate::mutation::Mutation;
use crate::node::{Receiving, Role, Step};
use crate::scene::Scene;
use crate::words::{Body, Lsn, Message, NodeId, Term};

/// Whether a member refuses what a primary sends under this epoch and term.
pub(crate) fn is_fenced(scene: &Scene, floor: u8, followed: Term, epoch: u8, term: Term) -> bool {
    scene.mutation != Mutation::NoFence && (epoch < floor || term < followed)
}

impl Step<'_> {
    /// A message has arrived.
    pub(crate) fn on_message(&mut self, message: Message) {
        let from = message.from;
        match message.body {
            Body::Collect { epoch, term } => self.on_collect(from, epoch, term),
            Body::OpenTerm { epoch, term, base, overwrite } => {
                self.on_open_term(from, (epoch, term), base, overwrite);
            }
            Body::OpenLearner { epoch, base, learner_start } => {
                self.on_open_learner(from, epoch, base, learner_start);
            }
            Body::Mirror { epoch, lsn, committed, value } => {
                self.on_mirror(from, epoch, (lsn, committed), value);
            }
            Body::Committed { epoch, lsn } => {
                let now = &self.node.now;
                let fits = epoch == now.config.epoch && lsn.term == now.term && lsn <= now.last;
                if fits && from == now.config.primary && matches!(self.node.role, Role::Member(_)) {
                    // Journalled with the next group, never for itself.
                    self.node.now.commit(lsn);
                }
            }
            Body::Confirm { epoch, term, round } => {
                if self.accepts(from, epoch, term) {
                    self.send_eagerly(from, Body::Confirmed { epoch, term, round });
                }
            }
            Body::Copy { epoch, read_at, learner_start, number, value } => {
                if learner_start == self.node.start && self.accepts(from, epoch, read_at.term) {
                    self.on_copy(from, read_at, number, value);
                }
            }
            Body::Beat { sent_at, adopted } => self.on_beat(from, sent_at, adopted),
            Body::BeatReply { sent_at, start, except } => {
                self.on_beat_reply(from, sent_at, start, except);
            }
            Body::Erase { epoch, incarnation } => self.erase(epoch, incarnation),
            answer => self.with_primary(|primary, step| primary.on_answer(from, answer, step)),
        }
    }

    /// The fence: only the adopted epoch's primary is followed, never in a lower term.
    fn accepts(&self, from: NodeId, epoch: u8, term: Term) -> bool {
        let now = &self.node.now;
        let member = matches!(self.node.role, Role::Member(_));
        let open = self.without(Mutation::NoFence) && epoch <= now.config.epoch;
        let theirs = epoch == now.config.epoch && from == now.config.primary;
        member && (theirs || open) && !is_fenced(self.scene, now.floor(), now.term, epoch, term)
    }

    fn on_collect(&mut self, from: NodeId, epoch: u8, term: Term) {
        self.adopt(epoch);
        if !self.accepts(from, epoch, term) {
            return;
        }
        if term > self.node.now.term {
            self.persist(|durable| durable.term = term);
        }
        // The answer confirms the adoption: it waits until no lease given before is in use.
        if self.clock >= self.node.leases.confirm_at {
            let history = self.node.now.history();
            self.send(from, Body::Collected { term, history });
        }
    }

    fn on_open_term(&mut self, from: NodeId, sent: (u8, Term), base: Lsn, overwrite: bool) {
        let (epoch, term) = sent;
        if !self.accepts(from, epoch, term) {
            return;
        }
        let now = &self.node.now;
        if now.last.term < term {
            let covered = now.uncommitted == Lsn::ZERO || overwrite;
            let covered = covered || self.without(Mutation::NoOverwrite);
            if term != now.term || now.last < base || !covered {
                return;
            }
            self.persist(|durable| {
                durable.commit(base);
                durable.last = Lsn::opening(term);
                durable.uncommitted = if overwrite { durable.last.next() } else { Lsn::ZERO };
            });
        }
        self.acknowledge_prefix(from);
    }

    fn on_open_learner(&mut self, from: NodeId, epoch: u8, base: Lsn, learner_start: u8) {
        self.adopt(epoch);
        let fits = learner_start == self.node.start
            && self.accepts(from, epoch, base.term)
            && self.node.now.config.learners.contains(self.me);
        let Role::Member(receiving) = &mut self.node.role else { return };
        if !fits {
            return;
        }
        let known = receiving.map_or(Lsn::ZERO, |receiving| receiving.base);
        let rewinds = self.scene.mutation == Mutation::OldOpeningRewinds;
        if base < known && !rewinds {
            return;
        }
        if base != known {
            *receiving = Some(Receiving { base, touched: Lsn::ZERO });
            self.persist(|durable| {
                durable.term = durable.term.max(base.term);
                durable.last = base;
                durable.uncommitted = Lsn::ZERO;
            });
        }
        self.acknowledge_prefix(from);
    }

    fn on_mirror(&mut self, from: NodeId, epoch: u8, sent: (Lsn, Lsn), value: u8) {
        let (lsn, committed) = sent;
        let last = self.node.now.last;
        if !self.accepts(from, epoch, lsn.term) || lsn.term != last.term || lsn > last.next() {
            return;
        }
        if lsn == last.next() {
            if let Role::Member(Some(receiving)) = &mut self.node.role {
                receiving.touched = lsn;
            }
            self.persist(|durable| {
                durable.last = lsn;
                durable.value = value;
                durable.uncommitted = lsn;
                durable.commit(committed);
            });
        }
        self.acknowledge_prefix(from);
    }

    fn acknowledge_prefix(&mut self, to: NodeId) {
        let base = match &self.node.role {
            Role::Member(Some(receiving)) => receiving.base,
            Role::Member(None) | Role::Out | Role::Primary(_) => Lsn::ZERO,
        };
        let (lsn, start) = (self.node.now.last, self.node.start);
        self.send(to, Body::MirrorAck { lsn, start, base });
    }

    fn on_copy(&mut self, from: NodeId, read_at: Lsn, number: u8, value: u8) {
        let Role::Member(Some(receiving)) = &self.node.role else { return };
        // Read for a fill that began earlier: writes in between may not have come here.
        let former = read_at < receiving.base && !self.without(Mutation::CopyOfFormerFill);
        if receiving.base.term != read_at.term || former {
            return;
        }
        let later = receiving.touched > read_at && !self.without(Mutation::CopyOverwritesLater);
        if !later && self.node.now.value != value {
            self.persist(|durable| durable.value = value);
        }
        let (term, learner_start) = (read_at.term, self.node.start);
        self.send(from, Body::CopyAck { term, learner_start, number });
    }
}
