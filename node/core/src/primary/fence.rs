//! The end of an attachment at the primary (design.md 4.8).
//!
//! The attach call returns when one member of each chunk has adopted the new generation, because no
//! write of the former client can be acknowledged without that member. The primary may be the last
//! to hear of it. What it has given a position keeps it, and is committed under the new epoch like
//! everything in flight; but its client is not told so any more: by then the volume is another's.

use super::Primary;
use crate::context::Context;
use ashlar_types::ChunkConfig;
use ashlar_types::message::data::{DataMessage, Refusal};

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
}
