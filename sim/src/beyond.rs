//! Beyond the promise: more is lost than Ashlar promises to survive, and for ever.
//!
//! What comes back is not waited for then. What is demanded instead:
//! - nobody is shown wrong bytes, and no write that was acknowledged reads as older: the rules of
//!   `judge.rs` hold on;
//! - `not refused`: a chunk is served, or the zone's status names it as stuck, with the cause, who must
//!   come back, and what happens next; and a request waits only for a chunk that is not served. Without
//!   a control plane nothing can be named, and every chunk whose copies are all up is served.

use crate::node::SimNode;
use crate::world::World;
use ashlar_controlplane::member::{Reply, Request};
use ashlar_proto::v1;
use ashlar_types::{ChunkConfig, ChunkId};
use std::collections::BTreeMap;
use std::time::Duration;

impl World {
    /// No more faults; what was lost stays lost. Judges what is left after so long.
    pub(crate) fn end_beyond(&mut self, calm: Duration) {
        self.drop_faults();
        self.wake_all();
        self.net.heal();
        self.former.rest();
        if let Some(script) = &mut self.script {
            script.end();
        }
        if let Some(client) = &mut self.client {
            client.resting = true;
        }
        let until = self.now + calm;
        self.run_until(until, |_| false);
        if self.judge.violations.is_empty() {
            self.judge_refusal();
        }
    }

    fn judge_refusal(&mut self) {
        let leads = self.control.leader().is_some();
        let stuck = if leads { self.named_stuck() } else { BTreeMap::new() };
        // Of what was ever committed: there may be nobody left to ask.
        let configs: Vec<ChunkConfig> = self.watch.configs().cloned().collect();
        let waits = self.client.as_ref().map(|client| client.waits_for()).unwrap_or_default();
        let up = |config: &ChunkConfig| {
            let is_up = |node| self.nodes.get(node).is_some_and(SimNode::is_up);
            config.in_sync.iter().all(|replica| is_up(&replica.node))
        };
        let mut broken = Vec::new();
        for config in &configs {
            let served = self.is_served(config);
            let named = stuck.get(&config.chunk).filter(|chunk| {
                !chunk.cause.is_empty()
                    && !chunk.next_action.is_empty()
                    && !chunk.blocked_on.is_empty()
            });
            let what = match (served, named) {
                (true, _) if waits.contains(&u64::from(config.chunk.index.0)) => {
                    "it is served, and a request waits for it"
                }
                (true, _) => "",
                (false, Some(_)) => {
                    self.tally.note("chunks stuck and named");
                    ""
                }
                (false, None) if leads => "it is not served, and nothing says why",
                (false, None) if up(config) => "all its copies are up, and it is not served",
                (false, None) => "",
            };
            if what.is_empty() {
                continue;
            }
            broken.push(format!("{}: {what}; {config:?}", config.chunk));
        }
        for config in &configs {
            if self.is_served(config) {
                self.tally.note("chunks served");
            }
        }
        for detail in broken {
            self.judge.violated(self.now, "not refused", detail);
        }
    }

    /// What the zone's status says of chunks that are stuck.
    fn named_stuck(&mut self) -> BTreeMap<ChunkId, v1::StuckChunk> {
        let request = Request::GetStatus(v1::GetStatusRequest::default());
        let Ok(Reply::GetStatus(status)) = self.ask_until_done(&request) else {
            return BTreeMap::new();
        };
        let named = status.stuck.into_iter().filter_map(|chunk| {
            let id = ChunkId::try_from(chunk.chunk.as_ref()?).ok()?;
            Some((id, chunk))
        });
        named.collect()
    }
}
