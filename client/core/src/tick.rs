//! What time alone brings about: retries, silence, redialling, the policy's time-out.

use crate::OpId;
use crate::input::{OpError, Outbox, WaitPolicy};
use crate::link::Link;
use crate::op::PartState;
use crate::volume::{TICK, VolumeCore};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ashlar_types::backoff::BackoffPolicy;
use ashlar_types::{ChunkIndex, NodeId, SessionId, Time};
use core::time::Duration;

/// A request refused as "not now" is tried again soon: a takeover lasts some tens of
/// milliseconds.
pub(crate) const PART_RETRY: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(10), max: Duration::from_millis(500) };
/// Without an answer for so long, others are asked who the primary is.
const SILENCE: Duration = Duration::from_millis(500);
/// A connection on which a request has had no answer for so long is made anew. The request may
/// wait for a good reason (too few copies); then this costs one connection in this time.
const SILENCE_RESET: Duration = Duration::from_secs(15);
/// How often requests in flight are looked through for silence.
const LOOK: Duration = Duration::from_millis(100);

const _: () = assert!(TICK.as_nanos() <= LOOK.as_nanos() && LOOK.as_nanos() < SILENCE.as_nanos());

impl VolumeCore {
    pub(crate) fn on_tick(&mut self, now: Time, out: &mut Outbox) {
        if self.fenced.is_some() {
            return;
        }
        self.retry_waiting(now, out);
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            self.time_out(now, out);
            self.look_for_silence(now, out);
        }
        self.ask_again(now, out);
        self.ask_map_if_due(now, out);
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.pump(now, node, out);
        }
    }

    fn retry_waiting(&mut self, now: Time, out: &mut Outbox) {
        let due: Vec<u16> = self
            .parts
            .iter()
            .filter(|(_, part)| matches!(part.state, PartState::Waiting { until } if until <= now))
            .map(|(slot, _)| slot)
            .collect();
        for slot in due {
            self.send_again(now, slot, out);
        }
    }

    fn time_out(&mut self, now: Time, out: &mut Outbox) {
        let WaitPolicy::EioAfter(limit) = self.settings.policy else { return };
        let late: Vec<OpId> = self
            .ops
            .iter()
            .filter(|(_, op)| !op.reported && now.since(op.submitted) >= limit)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.report_early(now, id, OpError::TimedOut, out);
        }
    }

    fn look_for_silence(&mut self, now: Time, out: &mut Outbox) {
        let mut silent: BTreeSet<ChunkIndex> = BTreeSet::new();
        let mut reset: BTreeMap<NodeId, SessionId> = BTreeMap::new();
        let mut unreachable: BTreeSet<ChunkIndex> = BTreeSet::new();
        for (_, part) in self.parts.iter() {
            match part.state {
                PartState::InFlight { node, session, sent, .. } => {
                    let quiet = now.since(sent);
                    if quiet >= SILENCE {
                        silent.insert(part.chunk);
                    }
                    if quiet >= SILENCE_RESET {
                        reset.insert(node, session);
                    }
                }
                // A host that takes connections and answers no hello.
                PartState::Ready { node, .. } => {
                    let link = self.nodes.get(&node).map(|node| node.link);
                    if matches!(link, Some(Link::Dialling(_, at)) if now.since(at) >= SILENCE) {
                        unreachable.insert(part.chunk);
                    }
                }
                PartState::Ordered
                | PartState::Held
                | PartState::Unrouted
                | PartState::Waiting { .. } => {}
            }
        }
        for chunk in silent {
            self.doubt(now, chunk, false, out);
        }
        for chunk in unreachable {
            self.doubt(now, chunk, true, out);
        }
        for (node, session) in reset {
            self.disconnect(now, node, session, out);
        }
    }

    fn ask_again(&mut self, now: Time, out: &mut Outbox) {
        let mut due: Vec<ChunkIndex> = Vec::new();
        let chunks = &self.chunks;
        self.doubtful.retain(|index| {
            let chunk = usize::try_from(index.0).ok().and_then(|i| chunks.get(i));
            let doubt = chunk.filter(|chunk| chunk.parts > 0).and_then(|c| c.doubt.as_ref());
            if doubt.is_some_and(|doubt| doubt.next <= now) {
                due.push(*index);
            }
            doubt.is_some()
        });
        for index in due {
            self.ask(now, index, out);
        }
    }
}
