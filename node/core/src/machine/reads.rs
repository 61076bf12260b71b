//! What the stores are asked to read, but for clients, and what becomes of every answer.

use super::DataCore;
use crate::context::ReadFor;
use crate::outbox::{Alarm, Effect, Link, Outbox, ReadTicket};
use crate::replica::{Replica, Role};
use crate::scrub::digest;
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{BlockData, BlockRange, ChunkId, StoreId, Time};
use core::ops::Bound;

impl DataCore {
    /// Has a store read what its scrub looks at next, if it may.
    pub(super) fn go_on_scrubbing(&mut self, now: Time, store: StoreId, out: &mut Outbox) {
        let replicas = &self.replicas;
        let whole = |(chunk, replica): (&ChunkId, &Replica)| {
            let scrubbed = replica.store() == store && replica.is_scrubbed();
            scrubbed.then_some((*chunk, replica.durable.config.blocks))
        };
        let next = |after: Option<ChunkId>| {
            let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
            replicas.range((behind, Bound::Unbounded)).find_map(whole)
        };
        let blocks_of =
            |chunk: ChunkId| replicas.get_key_value(&chunk).and_then(whole).map(|w| w.1);
        let Some(part) = self.stores.get_mut(store) else { return };
        let Some((chunk, range)) = part.scrub.take(next, blocks_of) else { return };
        self.with_replica(now, chunk, out, |replica, context| {
            context.read(chunk, range, ReadFor::Scrub(replica.durable.last));
        });
    }

    /// How often the scrub has read all replicas of a store since the process started.
    #[must_use]
    pub fn scrub_cycles(&self, store: StoreId) -> u64 {
        self.stores.get(store).map_or(0, |part| part.scrub.cycles())
    }

    pub(super) fn on_blocks(
        &mut self,
        now: Time,
        ticket: ReadTicket,
        content: Option<BlockData>,
        out: &mut Outbox,
    ) {
        let Some((store, chunk, range, purpose)) = self.tickets.redeem(ticket) else { return };
        if content.is_none() {
            out.push(Effect::Alarm(Alarm::Unreadable { chunk, range }));
        }
        if let ReadFor::Scrub(at) = purpose {
            if let Some(part) = self.stores.get_mut(store) {
                part.scrub.on_read(content.as_ref());
            }
            self.with_replica(now, chunk, out, |replica, context| {
                replica.on_scrubbed(at, range, content, context);
            });
            self.go_on_scrubbing(now, store, out);
            return;
        }
        if let ReadFor::Fetch(to, _) | ReadFor::Recall(to, _) | ReadFor::Compare(to, _) = purpose {
            if let Some(message) = answer(chunk, range, purpose, content) {
                let to = Link::Peer(to, self.peers.via(to));
                out.push(Effect::Send { to, message });
            }
            return;
        }
        self.with_replica(now, chunk, out, |replica, context| {
            if let Role::Primary(primary) = &mut replica.role {
                primary.on_blocks(purpose, range, content, &mut replica.durable, context);
            }
        });
    }
}

/// What a peer is told that asked for content, or whether it is the same as its own.
fn answer(
    chunk: ChunkId,
    range: BlockRange,
    purpose: ReadFor,
    content: Option<BlockData>,
) -> Option<DataMessage> {
    Some(match (purpose, content) {
        (ReadFor::Fetch(_, term), Some(data)) => DataMessage::Fetched { chunk, term, data },
        (ReadFor::Recall(_, at), Some(data)) => DataMessage::Recalled { chunk, at, data },
        (ReadFor::Compare(_, wanted), Some(data)) if digest(&data) == wanted => return None,
        _other => DataMessage::PeerRefused { chunk, refusal: PeerRefusal::Damaged(range) },
    })
}
