//! One node with its replica of the chunk: what it keeps, what it forgets at a restart, and how it
//! takes up a role. Follows `node/core/src/replica/mod.rs` and `durable.rs`.

use crate::judge::Judge;
use crate::lease::Leases;
use crate::mutation::Mutation;
use crate::primary::Primary;
use crate::scene::Scene;
use crate::words::{Body, Config, History, Lsn, Message, NodeId, Term, Value};

/// What outlives a restart once it is synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Durable {
    /// Incarnation of the replica held; 0: none.
    pub(crate) held: u8,
    pub(crate) config: Config,
    /// Configurations up to this epoch are refused, although no replica is held any more.
    pub(crate) erased: u8,
    pub(crate) term: Term,
    pub(crate) last: Lsn,
    pub(crate) committed: Lsn,
    /// Newest position not known to be committed; zero if all are.
    pub(crate) uncommitted: Lsn,
    pub(crate) value: Value,
    /// Epoch and learner of a promotion whose outcome is unknown.
    pub(crate) proposal: Option<(u8, NodeId)>,
}

impl Durable {
    pub(crate) const fn history(&self) -> History {
        History {
            last: self.last,
            committed: self.committed,
            uncommitted: self.uncommitted,
            value: self.value,
        }
    }

    pub(crate) fn commit(&mut self, lsn: Lsn) {
        self.committed = self.committed.max(lsn);
        if self.uncommitted <= self.committed {
            self.uncommitted = Lsn::ZERO;
        }
    }

    /// The epoch below which nothing is taken.
    pub(crate) fn floor(&self) -> u8 {
        self.config.epoch.max(self.erased)
    }
}

/// A learner's view of its fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Receiving {
    pub(crate) base: Lsn,
    /// Last write since the stream began.
    pub(crate) touched: Lsn,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Out,
    Member(Option<Receiving>),
    Primary(Box<Primary>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// Start number of the process.
    pub(crate) start: u8,
    /// As the process believes it.
    pub(crate) now: Durable,
    /// As a crash leaves it.
    pub(crate) stable: Durable,
    /// A record that messages rest on is not synced.
    pub(crate) dirty: bool,
    /// Messages that wait for the sync.
    pub(crate) held: Vec<Message>,
    pub(crate) role: Role,
    pub(crate) leases: Leases,
}

impl Node {
    pub(crate) fn primary(&self) -> Option<&Primary> {
        match &self.role {
            Role::Primary(primary) => Some(primary),
            Role::Out | Role::Member(_) => None,
        }
    }

    /// A node at rest with this durable state, before it has taken up a role.
    pub(crate) const fn new(start: u8, durable: Durable) -> Self {
        Self {
            start,
            now: durable,
            stable: durable,
            dirty: false,
            held: Vec::new(),
            role: Role::Out,
            leases: Leases::NONE,
        }
    }
}

/// A node while it handles one input.
pub(crate) struct Step<'a> {
    pub(crate) scene: &'a Scene,
    /// Every configuration committed so far, by epoch from 1.
    pub(crate) configs: &'a [Config],
    pub(crate) clock: u8,
    pub(crate) me: NodeId,
    pub(crate) node: &'a mut Node,
    pub(crate) judge: &'a mut Judge,
    pub(crate) sent: &'a mut Vec<Message>,
}

impl Step<'_> {
    pub(crate) fn without(&self, mutation: Mutation) -> bool {
        self.scene.mutation == mutation
    }

    /// A fact is journalled: in effect at once, durable before anything sent behind it.
    pub(crate) fn persist(&mut self, change: impl FnOnce(&mut Durable)) {
        change(&mut self.node.now);
        self.node.dirty = true;
    }

    /// Sends without waiting for the journal.
    pub(crate) fn send_eagerly(&mut self, to: NodeId, body: Body) {
        self.sent.push(Message { from: self.me, to, body });
    }

    /// Sends once everything journalled so far is durable.
    pub(crate) fn send(&mut self, to: NodeId, body: Body) {
        let acknowledges = matches!(body, Body::MirrorAck { .. });
        let early = acknowledges && self.without(Mutation::AcknowledgeBeforeStable);
        if self.node.dirty && !early {
            let message = Message { from: self.me, to, body };
            if !self.node.held.contains(&message) {
                self.node.held.push(message);
            }
        } else {
            self.send_eagerly(to, body);
        }
    }

    /// Ends the handling of an input: without `lazy_sync` the journal is synced at once.
    pub(crate) fn end(&mut self) {
        if !self.scene.lazy_sync {
            self.sync();
        }
        self.node.leases.forget_past(self.clock, self.scene.mutation);
    }

    /// The group commit is done: what waited for it leaves, the primary counts its own copy.
    pub(crate) fn sync(&mut self) {
        // The primary's own copy may set more free, which may journal more.
        while self.node.dirty || self.node.stable != self.node.now {
            self.node.stable = self.node.now;
            self.node.dirty = false;
            self.sent.append(&mut self.node.held);
            self.with_primary(|primary, step| primary.advance(step));
            if self.scene.lazy_sync {
                break;
            }
        }
    }

    /// Lets the primary act, if this node is one.
    pub(crate) fn with_primary(&mut self, act: impl FnOnce(&mut Primary, &mut Self)) {
        match std::mem::replace(&mut self.node.role, Role::Out) {
            Role::Primary(mut primary) => {
                act(&mut primary, self);
                self.node.role = Role::Primary(primary);
            }
            other => self.node.role = other,
        }
    }

    /// Adopts the configuration of an epoch; an earlier or equal one changes nothing.
    pub(crate) fn adopt(&mut self, epoch: u8) {
        let Some(config) = self.configs.get(usize::from(epoch).saturating_sub(1)).copied() else {
            return;
        };
        let me = self.me;
        let now = &self.node.now;
        if epoch <= now.floor() {
            return;
        }
        if now.held == 0 && (!config.names(me) || config.incarnation[me] <= now.erased) {
            return;
        }
        let other = now.held != 0 && now.held != config.incarnation[me];
        if other && config.names(me) {
            return;
        }
        let (created, former) = (now.held == 0, now.config.primary);
        self.persist(|durable| {
            if created {
                let (held, erased) = (config.incarnation[me], durable.erased);
                *durable = Durable { held, erased, ..Durable::default() };
            }
            durable.config = config;
            durable.proposal = durable.proposal.filter(|(at, _)| *at >= config.epoch);
        });
        if !created {
            self.except_former(former, config);
        }
        self.take_role();
    }

    fn take_role(&mut self) {
        let config = self.node.now.config;
        if config.primary == self.me && config.in_sync.contains(self.me) {
            let same = self.node.primary().is_some_and(|p| p.term.elected == config.elected);
            if same {
                self.with_primary(|primary, step| primary.reconfigured(step));
            } else {
                self.begin_term();
            }
        } else if config.names(self.me) {
            if !matches!(self.node.role, Role::Member(_)) {
                self.node.role = Role::Member(None);
            }
        } else {
            self.node.role = Role::Out;
        }
    }

    fn begin_term(&mut self) {
        let term = Term { elected: self.node.now.config.elected, start: self.node.start };
        self.node.role = Role::Primary(Box::new(Primary::new(term, self.node.now.committed)));
        self.with_primary(|primary, step| primary.begin_collecting(step));
    }

    /// The process ends and another begins: what was not synced is lost.
    pub(crate) fn restart(&mut self) {
        let mut stable = self.node.stable;
        if self.without(Mutation::ProposalNotDurable) {
            stable.proposal = None;
        }
        *self.node = Node::new(self.node.start + 1, stable);
        self.restart_leases();
        if stable.held != 0 {
            self.take_role();
        }
    }

    /// Erases the replica on order of the control plane.
    pub(crate) fn erase(&mut self, epoch: u8, incarnation: u8) {
        let now = &self.node.now;
        let named = now.held == incarnation || self.without(Mutation::EraseWithoutIncarnation);
        let wanted_here = now.config.epoch >= epoch && now.config.names(self.me);
        let refused = wanted_here && !self.without(Mutation::EraseWithoutIncarnation);
        let keep = !self.without(Mutation::ErasureForgetsEpoch);
        if now.held == 0 || !named || refused {
            return;
        }
        self.persist(|durable| {
            let erased = if keep { durable.config.epoch } else { 0 };
            *durable = Durable { erased, ..Durable::default() };
        });
        self.node.role = Role::Out;
    }
}
