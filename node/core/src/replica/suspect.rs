//! A replica that its store has lost part of (design.md 4.6): it says so and does nothing else.
//!
//! Its positions prove nothing, nor does the epoch that it believes to have adopted: a later one may
//! have been lost. So it refuses everything by [`PeerRefusal::NotHeld`], which has it removed, reports
//! itself stale, which has another primary elected, and never acts under its own name again. It
//! ends when a configuration gives this store a later incarnation, which starts empty as a learner:
//! the number of that incarnation is an epoch committed after everything that was lost.

use super::Replica;
use crate::context::Context;
use crate::durable::ReplicaDurable;
use crate::record::Record;
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{ChunkConfig, NodeId, ReplicaId};

impl Replica {
    /// A replica that this store may have held and lost: from the start it takes no part.
    pub(crate) fn created_suspect(mut durable: ReplicaDurable, context: &mut Context<'_>) -> Self {
        let chunk = durable.config.chunk;
        durable.suspect = true;
        let mut replica = Self::created(durable, context);
        // If only the adoption survives a crash, the store sees that nothing was opened under it.
        context.persist(&mut replica.durable, Record::Suspect { chunk });
        replica
    }

    /// Whether `named` takes this replica's place under `config`: a later incarnation that is to be
    /// filled. Any other name for a replica held here contradicts what this store knows.
    ///
    /// A crash may have kept the adoption of that configuration and not the replica that it made:
    /// then the former one is still held, under a configuration that does not name it.
    pub(crate) fn gives_way_to(&self, named: ReplicaId, config: &ChunkConfig) -> bool {
        let held = &self.durable;
        let left_behind = *config == held.config && config.replicas().all(|r| r != held.replica);
        named.incarnation > held.replica.incarnation
            && (config.epoch > held.config.epoch || left_behind)
            && config.is_learner(named)
    }

    /// Whether `config` is one of before, come late, that tells nothing about what is held now: it
    /// names an incarnation of before, or one that came and went while this node did not listen.
    pub(crate) fn outlives(&self, named: ReplicaId, config: &ChunkConfig) -> bool {
        let held = &self.durable;
        let is_out = held.config.replicas().all(|replica| replica != held.replica);
        config.epoch < held.config.epoch && (named.incarnation < held.replica.incarnation || is_out)
    }

    /// Answers a request without having looked at anything but its configuration.
    pub(super) fn refuse_as_suspect(
        &mut self,
        from: NodeId,
        request: &DataMessage,
        context: &mut Context<'_>,
    ) {
        match request {
            DataMessage::Collect { config, .. } | DataMessage::OpenLearner { config, .. } => {
                self.adopt(config, context);
            }
            // Nothing is asked by it.
            DataMessage::Committed { .. } | DataMessage::Compare { .. } => return,
            _other => {}
        }
        let (chunk, refusal) = (self.durable.config.chunk, PeerRefusal::NotHeld);
        context.mirror_eagerly(from, DataMessage::PeerRefused { chunk, refusal });
    }
}
