//! The end of an attachment at the primary (design.md 4.8).
//!
//! The attach call returns when one member of each chunk has adopted the new generation, because no
//! write of the former client can be acknowledged without that member. The primary may be the last
//! to hear of it. What it has given a position keeps it, and is committed under the new epoch like
//! everything in flight; but its client is not told so any more: by then the volume is another's.

use super::{Primary, Waiting};
use crate::context::Context;
use alloc::collections::VecDeque;
use ashlar_types::message::data::{DataMessage, Refusal};
use ashlar_types::{ChunkConfig, Generation, SessionId};

impl Primary {
    /// A configuration is adopted: whoever waits under an earlier generation is told that it has
    /// ended.
    pub(super) fn end_former_attachment(
        &mut self,
        config: &ChunkConfig,
        context: &mut Context<'_>,
    ) {
        if config.generation <= self.generation {
            return;
        }
        self.generation = config.generation;
        let in_flight = self.in_flight.iter_mut().filter_map(|write| write.reply.take());
        for (connection, id) in in_flight.chain(self.withheld.drain(..)) {
            let refusal = Refusal::WrongGeneration { current: config.generation };
            context.reply(connection, DataMessage::Refused { id, refusal });
        }
    }

    /// A newer session speaks: what waits for an older one is refused. What has a position keeps it.
    pub(crate) fn end_older_sessions(
        &mut self,
        newest: (Generation, SessionId),
        context: &mut Context<'_>,
    ) {
        let is_older =
            |request: &Waiting| (request.stamp.generation, request.stamp.session) < newest;
        if !self.waiting.iter().any(is_older) {
            return;
        }
        let (ended, kept): (VecDeque<_>, _) = self.waiting.drain(..).partition(is_older);
        self.waiting = kept;
        for Waiting { connection, id, what, .. } in ended {
            self.waiting_bytes -= what.bytes();
            let refusal = Refusal::SessionEnded;
            context.reply(connection, DataMessage::Refused { id, refusal });
        }
    }
}
