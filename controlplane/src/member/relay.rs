//! Nodes whose stream is gone, heard and told through a peer (design.md section 5).
//!
//! No stream: nobody notices when something is lost on the way. So what the node has not adopted is
//! told again with every report, and the relay ends when nothing came by it for a while, when the
//! peer's stream ends, or when the node has a stream again.

use super::sessions::Due;
use super::{Member, Now, Output, SessionKey};
use ashlar_controlplane_core::observe::HEARTBEAT_TIMEOUT;
use ashlar_controlplane_core::state::ZoneState;
use ashlar_controlplane_core::verdict;
use ashlar_types::message::cluster::{ControlDown, ControlUp, Relayed, ReplicaReport};
use ashlar_types::{ControlTerm, NodeId, Time};

/// The way to one node through a peer.
#[derive(Debug)]
pub(super) struct Relay {
    /// Stream of the peer.
    by: SessionKey,
    /// When something came by it last.
    heard: Time,
    pub(super) due: Due,
}

impl Relay {
    pub(super) fn goes_by(&self, session: SessionKey) -> bool {
        self.by == session
    }

    pub(super) fn is_used(&self, now: Now) -> bool {
        now.time.since(self.heard) < HEARTBEAT_TIMEOUT
    }

    /// A message for the node.
    pub(super) fn message(&self, to: NodeId, term: ControlTerm, message: ControlDown) -> Output {
        let message = ControlDown::Relay { to, message: Box::new(message) };
        Output::Node { session: self.by, term, message }
    }

    /// Tells the node what is due.
    pub(super) fn flush(
        &mut self,
        node: NodeId,
        term: ControlTerm,
        state: &ZoneState,
        out: &mut Vec<Output>,
    ) {
        let mut due = std::mem::take(&mut self.due);
        due.tell(state, |message| out.push(self.message(node, term, message)));
    }
}

impl Member {
    /// What a node says through another one, which has the stream `key`. Void while a stream of its
    /// own is heard, and from a node that is not registered with this store, or has a
    /// store that was revoked since.
    pub(super) fn on_relayed(&mut self, now: Now, key: SessionKey, by: NodeId, said: Relayed) {
        let Relayed { node, store, message } = said;
        let Some(lead) = &mut self.lead else { return };
        let known = self.state.node(node).is_some_and(|record| {
            record.stores.contains(&store) && self.state.check_revoked(record).is_ok()
        });
        if !known || verdict::is_fresh(now.time, node, &lead.seen) {
            tracing::debug!(%node, %by, known, "what a node says through a peer is not taken in");
            return;
        }
        if lead.relays.get(&node).is_none_or(|relay| relay.by != key) {
            tracing::info!(%node, %by, "a node without a stream is heard through a peer");
            let due = Due::everything(&self.state, node);
            lead.relays.insert(node, Relay { by: key, heard: now.time, due });
            lead.plan_due = true;
        }
        let Some(relay) = lead.relays.get_mut(&node) else { return };
        relay.heard = now.time;
        match *message {
            ControlUp::Heartbeat(_) => lead.seen.on_relayed(now.time, node, by),
            ControlUp::Replicas(reports) => {
                let lags = |report: &&ReplicaReport| {
                    let config = self.state.config(report.chunk);
                    config.is_some_and(|config| report.adopted < config.epoch)
                };
                relay.due.configs.extend(reports.iter().filter(lags).map(|report| report.chunk));
                lead.seen.on_reports(&self.state, node, reports);
                lead.attachments_due = true;
                lead.plan_due = true;
            }
            ControlUp::Propose(proposals) => {
                lead.seen.on_proposals(&self.state, node, proposals);
                lead.plan_due = true;
            }
            // The wire does not bring it.
            ControlUp::Relayed(_) => {}
        }
    }
}
