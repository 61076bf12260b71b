//! One replica of a chunk at this node: what it must keep, and the role it plays now.
//!
//! ```text
//!            adopt: primary          adopt: in sync or learner
//!   Primary <---------------- any ----------------------------> Member
//!                              | adopt: stale
//!                              v
//!                             Out
//! ```
//! The role follows from the adopted configuration alone; a node never chooses it. The one exception
//! takes no part in anything: a replica that its store has lost part of (`suspect.rs`).
//!
//! Path of a write: client 3 of 9 (primary), 5 of 9 (member).

mod member;
mod scrubbed;
mod suspect;

use crate::context::Context;
use crate::durable::ReplicaDurable;
use crate::lease::LeaseWait;
use crate::primary::Primary;
use crate::record::Record;
use alloc::boxed::Box;
use ashlar_types::message::cluster::{ReplicaReport, ReplicaState};
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{ChunkConfig, Epoch, Generation, NodeId, StoreId, Term, Time};

pub(crate) use member::Member;

/// What the replica is at present.
#[derive(Debug)]
pub(crate) enum Role {
    /// Stale: keeps its data, takes no part.
    Out,
    /// The store has lost part of it: takes no part, whatever the configuration says.
    Suspect,
    /// In-sync secondary or learner.
    Member(Member),
    /// The primary.
    Primary(Box<Primary>),
}

/// One replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) durable: ReplicaDurable,
    pub(crate) role: Role,
    /// The newest adopted epoch that is on stable media, and its generation: only these may be
    /// reported, since an attach returns on the strength of a report.
    pub(crate) adopted_durably: (Epoch, Generation),
    /// Until then a former primary may hold a lease over the chunk: the adoption is not confirmed
    /// and no term is opened before.
    lease_wait: LeaseWait,
    /// A collect that waits for it.
    asked: Option<(NodeId, Term)>,
}

impl Replica {
    /// A replica as found in the store at start; takes up its role.
    pub(crate) fn recovered(durable: ReplicaDurable, context: &mut Context<'_>) -> Self {
        let adopted_durably = (durable.config.epoch, durable.config.generation);
        // Under an election whose term was opened here, the wait is over; under another one the
        // process before this may have ended in the middle of it.
        let opened = durable.last.term.elected >= durable.config.elected;
        let ends =
            if opened { Time::ZERO } else { context.leases.earlier_grants_end(context.timing) };
        let lease_wait = LeaseWait::until(ends);
        let mut replica =
            Self { durable, role: Role::Out, adopted_durably, lease_wait, asked: None };
        replica.take_role(context);
        replica
    }

    /// A replica that this node holds from now on.
    pub(crate) fn created(durable: ReplicaDurable, context: &mut Context<'_>) -> Self {
        let config = durable.config.clone();
        let mut replica = Self {
            durable,
            role: Role::Out,
            adopted_durably: Default::default(),
            lease_wait: LeaseWait::default(),
            asked: None,
        };
        context.persist_adoption(&mut replica.durable, config);
        replica.take_role(context);
        replica
    }

    /// Its store.
    pub(crate) const fn store(&self) -> StoreId {
        self.durable.replica.store
    }

    /// It is about to be erased: whoever waits for it is told, and it vouches for nobody any more.
    pub(crate) fn leave(&mut self, context: &mut Context<'_>) {
        self.step_down(context);
        let config = &self.durable.config;
        if config.primary.node != context.me.node {
            let next = config.epoch.next();
            context.leases.except(config.primary.node, config.chunk, next, context.out);
        }
    }

    /// The store has failed: it leaves, and its primary is told, as that rests on nothing.
    pub(crate) fn lost(&mut self, context: &mut Context<'_>) {
        self.leave(context);
        let (chunk, primary) = (self.durable.config.chunk, self.durable.config.primary);
        if primary.node != context.me.node {
            let refusal = PeerRefusal::NotHeld;
            context.mirror_eagerly(primary.node, DataMessage::PeerRefused { chunk, refusal });
        }
    }

    /// Adopts a configuration with a later epoch; an earlier or equal one changes nothing.
    pub(crate) fn adopt(&mut self, config: &ChunkConfig, context: &mut Context<'_>) {
        if config.epoch <= self.durable.config.epoch {
            return;
        }
        let former = self.durable.config.primary.node;
        if former != config.primary.node && former != context.me.node {
            let (chunk, epoch) = (config.chunk, config.epoch);
            self.lease_wait.ordered(context.leases.except(former, chunk, epoch, context.out));
        }
        self.asked = None;
        context.persist_adoption(&mut self.durable, config.clone());
        self.take_role(context);
        context.dirty.insert(config.chunk);
    }

    fn take_role(&mut self, context: &mut Context<'_>) {
        let config = &self.durable.config;
        let me = self.durable.replica;
        if self.durable.suspect {
            self.step_down(context);
            self.role = Role::Suspect;
        } else if config.primary == me {
            match &mut self.role {
                Role::Primary(primary) if primary.term().elected == config.elected => {
                    primary.reconfigured(&mut self.durable, context);
                }
                Role::Primary(_) | Role::Member(_) | Role::Out | Role::Suspect => {
                    self.step_down(context);
                    let primary = Primary::elected(&mut self.durable, self.lease_wait, context);
                    self.role = Role::Primary(Box::new(primary));
                }
            }
        } else if config.is_in_sync(me) || config.is_learner(me) {
            // In sync a fill is over, with what it kept of the writes meanwhile.
            let is_filled = config.is_in_sync(me);
            self.step_down(context);
            if !matches!(self.role, Role::Member(_)) || is_filled {
                self.role = Role::Member(Member::default());
            }
        } else {
            self.step_down(context);
            self.role = Role::Out;
        }
    }

    /// Time passes.
    pub(crate) fn on_tick(&mut self, context: &mut Context<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.on_tick(&mut self.durable, context);
        }
        self.answer_collect(context);
    }

    /// An order to stop granting is in force.
    pub(crate) fn on_excepted(&mut self, number: u64, until: Time, context: &mut Context<'_>) {
        self.lease_wait.in_force(number, until);
        if let Role::Primary(primary) = &mut self.role {
            primary.on_excepted(self.lease_wait, &mut self.durable, context);
        }
        self.answer_collect(context);
    }

    /// Ends a primaryship: whoever waits is told who is primary now.
    fn step_down(&mut self, context: &mut Context<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.dismiss(&self.durable.config, context);
            self.role = Role::Out;
        }
    }

    /// Handles a message from another node about this chunk.
    pub(crate) fn on_peer(
        &mut self,
        from: NodeId,
        message: DataMessage,
        context: &mut Context<'_>,
    ) {
        match message {
            DataMessage::Adopt { config } => self.adopt(&config, context),
            DataMessage::PeerRefused { refusal: PeerRefusal::LowerEpoch(config), .. }
                if config.epoch > self.durable.config.epoch =>
            {
                self.adopt(&config, context);
            }
            DataMessage::Collected { .. }
            | DataMessage::Fetched { .. }
            | DataMessage::MirrorAck { .. }
            | DataMessage::Confirmed { .. }
            | DataMessage::CopyAck { .. }
            | DataMessage::Recalled { .. }
            | DataMessage::PeerRefused { .. } => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.on_answer(from, message, &mut self.durable, context);
                }
            }
            request => self.on_request(from, request, context),
        }
    }

    /// What the control plane is told of this replica.
    pub(crate) fn report(&self) -> ReplicaReport {
        let config = &self.durable.config;
        let state = match &self.role {
            Role::Primary(primary) if primary.is_serving() => ReplicaState::Serving,
            Role::Primary(primary) if primary.is_unfit() => ReplicaState::Stale,
            Role::Primary(_) => ReplicaState::Opening,
            Role::Member(member) if config.is_learner(self.durable.replica) => {
                ReplicaState::Filling { blocks_done: member.blocks_done() }
            }
            Role::Member(_) => ReplicaState::Following,
            Role::Out => ReplicaState::Stale,
            Role::Suspect => ReplicaState::Suspect,
        };
        ReplicaReport {
            chunk: config.chunk,
            replica: self.durable.replica,
            adopted: self.adopted_durably.0,
            generation: self.adopted_durably.1,
            state,
        }
    }

    /// Panics if role, configuration and durable state contradict each other.
    ///
    /// # Panics
    /// On a broken invariant.
    pub(crate) fn check(&self) {
        self.durable.check();
        let config = &self.durable.config;
        let me = self.durable.replica;
        assert!(config.check().is_ok(), "{}: adopted a contradiction", config.chunk);
        assert!(self.adopted_durably.0 <= config.epoch, "{}: reports ahead", config.chunk);
        assert!(self.adopted_durably.1 <= config.generation, "{}: reports ahead", config.chunk);
        assert!(
            self.durable.suspect == matches!(self.role, Role::Suspect),
            "{}: takes part although its store has lost part of it",
            config.chunk
        );
        match &self.role {
            Role::Suspect => {}
            Role::Primary(primary) => primary.check(&self.durable),
            Role::Member(_) => {
                assert!(config.primary != me, "{}: follows itself", config.chunk);
                assert!(
                    config.is_in_sync(me) || config.is_learner(me),
                    "{}: follows without being named",
                    config.chunk
                );
            }
            Role::Out => assert!(
                !config.is_in_sync(me) && !config.is_learner(me),
                "{}: stands aside although it is named",
                config.chunk
            ),
        }
    }

    /// Notes that the primary's committed position is at least `lsn`, for the next restart.
    pub(crate) fn note_committed(&mut self, lsn: ashlar_types::Lsn, context: &mut Context<'_>) {
        if lsn > self.durable.committed && lsn <= self.durable.last {
            let chunk = self.durable.config.chunk;
            context.persist(&mut self.durable, Record::Committed { chunk, lsn });
        }
    }
}
