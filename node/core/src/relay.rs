//! The way to the control plane through a peer, while this node has no stream of its own (design.md
//! section 5).
//!
//! ```text
//!  this node -- Relay --> a peer with a stream -- Relayed --> control plane
//!            <-- Relayed --                    <-- Relay --
//! ```
//! - A peer says in its beats whether it has a stream; one that answers beats is chosen, and kept as
//!   long as both hold.
//! - Nobody notices when something is lost on this way. So everything is told again every few
//!   heartbeats, and the control plane repeats what is not adopted.
//! - An order says whose term it is, by whichever way it comes.

use crate::outbox::{Effect, Link, Outbox};
use crate::peers::Peers;
use crate::timing::Timing;
use alloc::boxed::Box;
use alloc::vec::Vec;
use ashlar_types::message::cluster::{ControlUp, ReplicaReport};
use ashlar_types::message::data::DataMessage;
use ashlar_types::{NodeId, StoreId, Time};

/// Everything is told again after so many heartbeats: 3 s by default.
const TELL_ALL_HEARTBEATS: u32 = 10;
/// Reports in one message: well below the largest frame.
const REPORTS_MAX: usize = 1_024;

/// This node's way to the control plane.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    is_open: bool,
    relay: Option<NodeId>,
    told_all: Time,
}

impl Uplink {
    /// The stream is open.
    pub(crate) fn opened(&mut self) {
        (self.is_open, self.relay) = (true, None);
    }

    /// The stream is gone.
    pub(crate) fn lost(&mut self) {
        self.is_open = false;
    }

    /// Whether this node has a stream, and so can relay for others.
    pub(crate) const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Chooses who relays; true if everything must be told.
    pub(crate) fn choose(&mut self, now: Time, peers: &Peers, timing: &Timing) -> bool {
        if self.is_open {
            return false;
        }
        let before = self.relay;
        let kept = before.filter(|node| peers.can_relay(now, *node, timing));
        self.relay = kept.or_else(|| peers.relays(now, timing).next());
        let due = now.since(self.told_all) >= timing.heartbeat * TELL_ALL_HEARTBEATS;
        let tells_all = self.relay.is_some() && (self.relay != before || due);
        if tells_all {
            self.told_all = now;
        }
        tells_all
    }

    /// Sends what the core has for the control plane through the relay, if there is one. Without
    /// one it stays as it is: the shell drops what no stream can take.
    pub(crate) fn route(&self, from: usize, store: StoreId, peers: &Peers, out: &mut Outbox) {
        let Some(relay) = self.relay else { return };
        let to = Link::Peer(relay, peers.via(relay));
        for effect in out.since(from) {
            if let Effect::Control(up) = effect {
                let up = core::mem::replace(up, ControlUp::Replicas(Vec::new()));
                let message = DataMessage::Relay { store, message: Box::new(up) };
                *effect = Effect::Send { to, message };
            }
        }
    }
}

/// Tells the control plane of replicas, in messages of bounded size; of none at all as well.
pub(crate) fn tell_replicas(reports: Vec<ReplicaReport>, out: &mut Outbox) {
    if reports.len() <= REPORTS_MAX {
        out.push(Effect::Control(ControlUp::Replicas(reports)));
        return;
    }
    for part in reports.chunks(REPORTS_MAX) {
        out.push(Effect::Control(ControlUp::Replicas(part.to_vec())));
    }
}
