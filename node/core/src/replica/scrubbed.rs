//! What a replica does with blocks that the scrub has read, and with a primary's comparison.

use super::{Replica, Role};
use crate::context::{Context, ReadFor};
use crate::scrub::digest;
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{BlockData, BlockRange, Epoch, Lsn, NodeId};

impl Replica {
    /// Whether the scrub reads it: what a learner or a stale replica holds is of no use to anybody.
    pub(crate) fn is_scrubbed(&self) -> bool {
        match &self.role {
            Role::Primary(primary) => primary.is_serving(),
            Role::Member(_) => self.durable.config.is_in_sync(self.durable.replica),
            Role::Out | Role::Suspect => false,
        }
    }

    /// The scrub has read a range, asked for when `at` was the end of the prefix here.
    pub(crate) fn on_scrubbed(
        &mut self,
        at: Lsn,
        range: BlockRange,
        content: Option<BlockData>,
        context: &mut Context<'_>,
    ) {
        let (chunk, epoch) = (self.durable.config.chunk, self.durable.config.epoch);
        match (&mut self.role, content) {
            (Role::Primary(primary), None) => {
                primary.on_scrub_damage(range, &mut self.durable, context);
            }
            (Role::Primary(primary), Some(data)) => {
                let last = self.durable.last;
                if primary.is_serving() && primary.untouched_since(at, range, last) {
                    let digest = digest(&data);
                    let secondaries = self.durable.config.secondaries();
                    for secondary in secondaries.filter(|s| context.peers.reachable(s.node)) {
                        let at = last;
                        let message = DataMessage::Compare { chunk, epoch, at, range, digest };
                        context.mirror_eagerly(secondary.node, message);
                    }
                }
            }
            (Role::Member(_), None) => {
                let to = self.durable.config.primary.node;
                let refusal = PeerRefusal::Damaged(range);
                context.mirror_eagerly(to, DataMessage::PeerRefused { chunk, refusal });
            }
            (Role::Member(_), Some(_)) | (Role::Out | Role::Suspect, _) => {}
        }
    }

    /// A primary says what it holds at a position. It is compared only exactly there; anywhere else
    /// the next cycle will do it.
    pub(super) fn on_compare(
        &self,
        from: NodeId,
        (epoch, at): (Epoch, Lsn),
        range: BlockRange,
        digest: u64,
        context: &mut Context<'_>,
    ) -> Result<(), PeerRefusal> {
        self.fence_epoch(from, epoch)?;
        self.fence_term(at.term)?;
        let config = &self.durable.config;
        let comparable = config.is_in_sync(self.durable.replica)
            && self.durable.last == at
            && range.count > 0
            && range.end() <= config.blocks;
        if comparable {
            context.read(config.chunk, range, ReadFor::Compare(from, digest));
        }
        Ok(())
    }
}
