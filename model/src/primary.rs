//! The primary: order, mirror, commit, acknowledge, read. Follows `node/core/src/primary/`.

use crate::mutation::Mutation;
use crate::node::{Durable, Step};
use crate::scene::Scene;
use crate::words::{Body, CONTROL, History, Lsn, NODES, NodeId, Set, Term, Value};

/// How far the opening of the term is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Collecting,
    /// A longer history is taken over: journalled as uncommitted, its content fetched.
    Fetching,
    Overwriting {
        base: Lsn,
        overwrite: bool,
    },
    Serving,
    /// Lacks what a member knows to be committed.
    Unfit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InFlight {
    pub(crate) lsn: Lsn,
    pub(crate) value: Value,
    /// The client waits for it.
    pub(crate) reply: bool,
}

/// A fill of one learner's process. The chunk has one block, so there is one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fill {
    pub(crate) learner_start: u8,
    pub(crate) base: Lsn,
    pub(crate) number: u8,
    pub(crate) copy: Copied,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Copied {
    No,
    /// Read; waits until what it may show is committed.
    Read {
        read_at: Lsn,
        value: Value,
    },
    Sent,
    Done,
}

/// A read under way: the content is there, proof and commitment may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    pub(crate) ended_at_begin: u8,
    pub(crate) value: Value,
    pub(crate) seen: Lsn,
    pub(crate) round: u8,
    pub(crate) confirmed: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Primary {
    pub(crate) term: Term,
    pub(crate) phase: Phase,
    pub(crate) histories: [Option<History>; NODES],
    pub(crate) acked: [Lsn; NODES],
    /// Process that acknowledged last: only its leases count.
    pub(crate) acked_by: [u8; NODES],
    pub(crate) fills: [Option<Fill>; NODES],
    pub(crate) copies: u8,
    pub(crate) in_flight: Vec<InFlight>,
    pub(crate) committed: Lsn,
    pub(crate) read: Option<Read>,
}

/// In sync, or about to be, but for the node itself.
pub(crate) fn required(scene: &Scene, now: &Durable, me: NodeId) -> Set {
    let counted = scene.mutation != Mutation::ProposedLearnerNotCounted;
    let proposed = now.proposal.filter(|_| counted).map(|(_, learner)| learner);
    let learners = proposed.into_iter().fold(Set::default(), Set::with);
    now.config.in_sync.union(learners).without(me)
}

impl Primary {
    pub(crate) const fn new(term: Term, committed: Lsn) -> Self {
        Self {
            term,
            phase: Phase::Collecting,
            histories: [None; NODES],
            acked: [Lsn::ZERO; NODES],
            acked_by: [0; NODES],
            fills: [None; NODES],
            copies: 0,
            in_flight: Vec::new(),
            committed,
            read: None,
        }
    }

    pub(crate) const fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// The others whose copy and whose lease count.
    pub(crate) fn required(step: &Step<'_>) -> Set {
        required(step.scene, &step.node.now, step.me)
    }

    pub(crate) fn begin_collecting(&mut self, step: &mut Step<'_>) {
        self.phase = Phase::Collecting;
        let term = self.term;
        if step.node.now.term < term {
            step.persist(|durable| durable.term = term);
        }
        let epoch = step.node.now.config.epoch;
        for node in Self::required(step).iter() {
            if self.histories[node].is_none() {
                step.send(node, Body::Collect { epoch, term });
            }
        }
    }

    /// The configuration has changed and this node is still the primary.
    pub(crate) fn reconfigured(&mut self, step: &mut Step<'_>) {
        let config = step.node.now.config;
        let required = Self::required(step);
        for node in 0..NODES {
            if !config.learners.contains(node) {
                self.fills[node] = None;
            }
            if !config.names(node) {
                self.acked[node] = Lsn::ZERO;
                self.histories[node] = None;
            }
        }
        self.ask_confirmation(step);
        match self.phase {
            Phase::Collecting | Phase::Fetching => self.begin_collecting(step),
            Phase::Overwriting { .. } | Phase::Serving => {
                for node in required.union(config.learners).iter() {
                    self.resend(node, step);
                    self.refill(node, step);
                }
                self.advance(step);
            }
            Phase::Unfit => {}
        }
    }

    /// Sends a follower what it may lack, under the present epoch.
    fn resend(&self, node: NodeId, step: &mut Step<'_>) {
        let (epoch, term) = (step.node.now.config.epoch, self.term);
        if let Phase::Overwriting { base, overwrite } = self.phase
            && Self::required(step).contains(node)
        {
            step.send(node, Body::OpenTerm { epoch, term, base, overwrite });
        }
        if self.acked[node].term == term {
            for write in self.in_flight.iter().filter(|write| write.lsn > self.acked[node]) {
                let (lsn, value, committed) = (write.lsn, write.value, self.committed);
                step.send_eagerly(node, Body::Mirror { epoch, lsn, committed, value });
            }
        }
    }

    /// Under a new epoch a learner is sent again what it has not answered.
    fn refill(&mut self, learner: NodeId, step: &mut Step<'_>) {
        let epoch = step.node.now.config.epoch;
        let opened = self.acked[learner].term == self.term;
        let Some(fill) = &mut self.fills[learner] else { return };
        if !opened {
            let (base, learner_start) = (fill.base, fill.learner_start);
            step.send(learner, Body::OpenLearner { epoch, base, learner_start });
        }
        if fill.copy != Copied::Done {
            fill.copy = Copied::No;
        }
    }

    fn all_collected(&self, step: &Step<'_>) -> bool {
        Self::required(step).iter().all(|node| self.histories[node].is_some())
    }

    /// Whether the opening can go on. This node's own adoption waits for its leases, too.
    pub(crate) fn may_take_over(&self, step: &Step<'_>) -> bool {
        let asked = matches!(self.phase, Phase::Collecting | Phase::Fetching);
        asked && self.all_collected(step) && step.clock >= step.node.leases.confirm_at
    }

    /// Takes over the longest history, or opens the term if none is longer than this one's.
    pub(crate) fn take_over(&mut self, step: &mut Step<'_>) {
        let required = Self::required(step);
        let known = |node: NodeId| self.histories[node];
        let now = step.node.now;
        let committed =
            required.iter().filter_map(known).map(|h| h.committed).fold(now.committed, Lsn::max);
        if committed > now.last {
            self.phase = Phase::Unfit;
            return;
        }
        let longest = required
            .iter()
            .filter(|node| now.config.in_sync.contains(*node))
            .filter_map(known)
            .max_by_key(|history| history.last)
            .filter(|history| history.last > now.last);
        match longest.filter(|_| self.phase == Phase::Collecting) {
            Some(history) => {
                if history.uncommitted != Lsn::ZERO {
                    step.persist(|durable| {
                        durable.uncommitted = durable.uncommitted.max(history.uncommitted);
                        durable.value = history.value;
                    });
                }
                self.phase = Phase::Fetching;
            }
            None => self.open(committed, step),
        }
    }

    fn open(&mut self, base: Lsn, step: &mut Step<'_>) {
        let required = Self::required(step);
        let differs = step.node.now.uncommitted != Lsn::ZERO
            || required
                .iter()
                .filter_map(|node| self.histories[node])
                .any(|history| history.uncommitted != Lsn::ZERO);
        let overwrite = differs && !step.without(Mutation::NoOverwrite);
        let term = self.term;
        step.persist(|durable| {
            durable.term = term;
            durable.commit(base);
            durable.last = Lsn::opening(term);
            durable.uncommitted = if overwrite { durable.last.next() } else { Lsn::ZERO };
        });
        self.committed = base;
        self.acked = [Lsn::ZERO; NODES];
        self.histories = [None; NODES];
        self.phase = Phase::Overwriting { base, overwrite };
        for node in required.iter() {
            self.resend(node, step);
        }
        if overwrite {
            let value = step.node.now.value;
            self.assign(value, false, step);
        }
        self.advance(step);
    }

    /// Whether a client's write may get a position.
    pub(crate) fn may_assign(&self, step: &Step<'_>) -> bool {
        self.is_serving() && step.scene.may_acknowledge(&step.node.now.config)
    }

    /// Gives a write the next position, journals it and mirrors it at once.
    pub(crate) fn assign(&mut self, value: Value, reply: bool, step: &mut Step<'_>) {
        let lsn = step.node.now.last.next();
        let (epoch, committed) = (step.node.now.config.epoch, self.committed);
        for node in 0..NODES {
            if node != step.me && self.acked[node].term == self.term {
                step.send_eagerly(node, Body::Mirror { epoch, lsn, committed, value });
            }
        }
        step.persist(|durable| {
            durable.last = lsn;
            durable.value = value;
            durable.uncommitted = lsn;
            durable.commit(committed);
        });
        let newest = &mut step.judge.assigned[usize::from(value)];
        *newest = lsn.max(*newest);
        self.in_flight.push(InFlight { lsn, value, reply });
    }

    pub(crate) fn on_answer(&mut self, from: NodeId, answer: Body, step: &mut Step<'_>) {
        match answer {
            Body::Collected { term, history } if term == self.term => {
                if self.phase == Phase::Collecting {
                    self.histories[from] = Some(history);
                }
            }
            Body::MirrorAck { lsn, start, base } if lsn.term == self.term => {
                self.on_mirror_ack(from, (start, base), lsn, step);
            }
            Body::Confirmed { epoch, term, round } if term == self.term => {
                let current = epoch == step.node.now.config.epoch;
                if let Some(read) = self.read.as_mut().filter(|r| current && r.round == round) {
                    read.confirmed = read.confirmed.with(from);
                }
            }
            Body::CopyAck { term, learner_start, number } if term == self.term => {
                let fill = self.fills[from].as_mut();
                let fits = |f: &&mut Fill| f.learner_start == learner_start && f.number == number;
                if let Some(fill) = fill.filter(fits) {
                    fill.copy = Copied::Done;
                }
            }
            _of_another_term => {}
        }
    }

    fn on_mirror_ack(&mut self, from: NodeId, stream: (u8, Lsn), lsn: Lsn, step: &mut Step<'_>) {
        let (start, base) = stream;
        if lsn > step.node.now.last {
            return;
        }
        if !Self::required(step).contains(from) {
            let Some(fill) = self.fills[from] else { return };
            let former = base != fill.base && !step.without(Mutation::AckOutsideTheFill);
            if fill.learner_start != start || lsn < fill.base || former {
                return;
            }
        }
        let opened_now = self.acked[from].term < self.term;
        self.acked[from] = self.acked[from].max(lsn);
        self.acked_by[from] = self.acked_by[from].max(start);
        if opened_now {
            self.resend(from, step);
        }
        self.advance(step);
    }

    /// Commits and acknowledges what every required replica has; then whatever waited for that.
    pub(crate) fn advance(&mut self, step: &mut Step<'_>) {
        let unstable = step.without(Mutation::AcknowledgeBeforeStable);
        let own = if unstable { step.node.now.last } else { step.node.stable.last };
        if own.term != self.term || step.node.now.last.term != self.term {
            return;
        }
        let required = Self::required(step);
        let others = required.iter().map(|node| self.acked[node]);
        let alone = step.without(Mutation::AcknowledgeBeforeAll);
        let reach = if alone { own } else { others.fold(own, Lsn::min) };
        if reach.term == self.term && reach > self.committed {
            self.committed = reach;
        }
        if step.scene.may_acknowledge(&step.node.now.config) {
            for write in self.in_flight.iter_mut().filter(|write| write.lsn <= self.committed) {
                if std::mem::take(&mut write.reply) {
                    step.judge.end_write(write.value, write.lsn);
                }
            }
        }
        let fills = self.fills.iter().zip(&self.acked);
        let needed_from = fills
            .filter_map(|(fill, acked)| fill.map(|fill| fill.base.max(*acked)))
            .fold(self.committed, Lsn::min);
        self.in_flight.retain(|write| write.lsn > needed_from || write.reply);
        let opened = required.iter().all(|node| self.acked[node].term == self.term);
        if matches!(self.phase, Phase::Overwriting { .. })
            && opened
            && self.committed >= step.node.now.last
        {
            self.phase = Phase::Serving;
        }
        self.tell_committed(step);
        self.send_ready_copies(step);
    }

    fn tell_committed(&self, step: &mut Step<'_>) {
        let lsn = self.committed;
        if lsn != step.node.now.last || lsn.term != self.term || lsn <= step.node.now.committed {
            return;
        }
        step.node.now.commit(lsn);
        let epoch = step.node.now.config.epoch;
        for node in 0..NODES {
            if node != step.me && self.acked[node].term == self.term {
                step.send_eagerly(node, Body::Committed { epoch, lsn });
            }
        }
    }

    pub(crate) fn begin_fill(&mut self, learner: NodeId, learner_start: u8, step: &mut Step<'_>) {
        let (base, epoch) = (step.node.now.last, step.node.now.config.epoch);
        self.acked[learner] = Lsn::ZERO;
        self.copies = if step.without(Mutation::CopyNumbersReused) { 1 } else { self.copies + 1 };
        let (number, copy) = (self.copies, Copied::No);
        self.fills[learner] = Some(Fill { learner_start, base, number, copy });
        step.send(learner, Body::OpenLearner { epoch, base, learner_start });
    }

    /// Reads the block for a learner that has opened its stream.
    pub(crate) fn read_copy(&mut self, learner: NodeId, step: &mut Step<'_>) {
        let (read_at, value) = (step.node.now.last, step.node.now.value);
        if let Some(fill) = &mut self.fills[learner] {
            fill.copy = Copied::Read { read_at, value };
        }
        self.send_ready_copies(step);
    }

    fn send_ready_copies(&mut self, step: &mut Step<'_>) {
        let epoch = step.node.now.config.epoch;
        let committed = self.committed;
        for node in 0..NODES {
            let Some(fill) = &mut self.fills[node] else { continue };
            let Copied::Read { read_at, value } = fill.copy else { continue };
            if read_at <= committed {
                fill.copy = Copied::Sent;
                let (learner_start, number) = (fill.learner_start, fill.number);
                let body = Body::Copy { epoch, read_at, learner_start, number, value };
                step.send_eagerly(node, body);
            }
        }
    }

    /// Whether a promotion may be proposed: every block copied, every committed write received.
    pub(crate) fn may_propose(&self, learner: NodeId, step: &Step<'_>) -> bool {
        let Some(fill) = self.fills[learner] else { return false };
        let opened = self.acked[learner].term == self.term;
        let complete = fill.copy == Copied::Done && self.acked[learner] >= self.committed;
        let caught_up = complete || step.without(Mutation::PromotionBeforeCatchUp);
        self.is_serving() && step.node.now.proposal.is_none() && opened && caught_up
    }

    /// Journals the promotion's proposal, then sends it.
    pub(crate) fn propose(&mut self, learner: NodeId, step: &mut Step<'_>) {
        let epoch = step.node.now.config.epoch;
        step.persist(|durable| durable.proposal = Some((epoch, learner)));
        step.send(CONTROL, Body::PromoteLearner { epoch, learner });
    }

    /// Takes a read in: the content comes at once, proof and commitment may come later.
    pub(crate) fn begin_read(&mut self, round: u8, step: &mut Step<'_>) {
        let now = &step.node.now;
        let uncommitted = now.last > self.committed;
        self.read = Some(Read {
            ended_at_begin: step.judge.now(),
            value: now.value,
            seen: if uncommitted { now.last } else { Lsn::ZERO },
            round,
            confirmed: Set::default(),
        });
        self.ask_confirmation(step);
    }

    /// Asks the others whether this is still the primary, where leases are not what proves it.
    fn ask_confirmation(&mut self, step: &mut Step<'_>) {
        let (epoch, term) = (step.node.now.config.epoch, self.term);
        let Some(read) = self.read.as_mut().filter(|_| !step.scene.has_leases()) else { return };
        read.confirmed = Set::default();
        let round = read.round;
        for node in Self::required(step).iter() {
            step.send_eagerly(node, Body::Confirm { epoch, term, round });
        }
    }

    /// Whether every other whose copy counts promises, now, that nobody else is primary.
    fn holds_leases(&self, step: &Step<'_>) -> bool {
        Self::required(step).iter().all(|node| {
            let acknowledged = self.acked[node].term == self.term;
            acknowledged && step.is_covered(node, self.acked_by[node])
        })
    }

    /// Whether the read may be answered now: term and role are checked by being here.
    pub(crate) fn may_end_read(&self, step: &Step<'_>) -> bool {
        let Some(read) = &self.read else { return false };
        let committed = read.seen <= self.committed || step.without(Mutation::ReadUncommitted);
        let proven = if step.scene.has_leases() {
            self.holds_leases(step)
        } else {
            Self::required(step).is_within(read.confirmed)
        };
        self.is_serving() && committed && proven
    }
}
