//! An operator's drain: asked for as a command is, again until there is an answer, and held to what it
//! promises: in the end a drained node holds nothing, not even something to erase.

use crate::node::SimNode;
use crate::world::{Event, World};
use ashlar_controlplane::member::{Reply, Request};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::{NodeId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between an answer, or none, and the next call.
const NEXT_CALL: Duration = Duration::from_millis(300);

/// What an operator wants of which node.
#[derive(Debug, Default)]
pub(crate) struct Drains {
    /// Asked for, without a good answer yet; true: to be cancelled.
    asking: BTreeMap<NodeId, bool>,
    /// Those that the zone has agreed to drain.
    agreed: BTreeSet<NodeId>,
    turn: u64,
}

impl Drains {
    /// Nodes that are to hold nothing.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.agreed.iter().copied()
    }
}

impl World {
    /// The operator asks for a node to be drained, or for its drain to be cancelled.
    pub(crate) fn begin_drain(&mut self, node: NodeId, cancel: bool) {
        self.drains.turn += 1;
        self.drains.asking.insert(node, cancel);
        // Whether a cancel that nobody has answered was carried out is not known.
        if cancel {
            self.drains.agreed.remove(&node);
        }
        self.drain_again(node);
    }

    pub(crate) fn drain_again(&mut self, node: NodeId) {
        let Some(cancel) = self.drains.asking.get(&node).copied() else { return };
        let request = v1::DrainNodeRequest {
            node: node.0,
            cancel,
            client_token: format!("drain-{}-{}", node.0, self.drains.turn),
            ..Default::default()
        };
        self.control.find_leader();
        self.ask(Request::DrainNode(request));
    }

    /// A call has an answer, or none; true if it was the operator's.
    pub(crate) fn drain_answered(
        &mut self,
        request: &Request,
        result: Option<&Result<Reply, ApiError>>,
    ) -> bool {
        let Request::DrainNode(request) = request else { return false };
        let node = NodeId(request.node);
        match result {
            // The operator wants something else by now.
            _late if self.drains.asking.get(&node) != Some(&request.cancel) => {}
            Some(Ok(_)) => {
                self.drains.asking.remove(&node);
                self.tally.note(if request.cancel { "drains cancelled" } else { "drains" });
                if !request.cancel {
                    self.drains.agreed.insert(node);
                }
            }
            Some(Err(error)) if is_refusal(error.reason) => {
                self.tally.note("drains refused");
                self.schedule_in(NEXT_CALL, Event::DrainAgain { node });
            }
            Some(Err(_)) | None => self.schedule_in(NEXT_CALL, Event::DrainAgain { node }),
        }
        true
    }

    /// What was not agreed to by now is not asked for any more.
    pub(crate) fn give_up_drains(&mut self) {
        self.drains.asking.clear();
    }

    /// Whether every node that is to hold nothing holds nothing.
    pub(crate) fn is_drained(&self) -> bool {
        self.drains.nodes().all(|node| self.holds_nothing(node))
    }

    fn holds_nothing(&self, node: NodeId) -> bool {
        let named = self.control.configs().any(|c| c.replicas().any(|r| r.node == node));
        let erasing = self.control.state().is_some_and(|state| {
            // What was on a disk that is gone is not there to be erased.
            let is_here =
                |replica: ReplicaId| replica.node == node && !state.is_store_gone(replica);
            let mut erasures = state.erasures();
            erasures.any(|(_, replica)| is_here(replica))
        });
        let core = self.nodes.get(&node).and_then(SimNode::core);
        !named && !erasing && core.is_none_or(|core| core.reports().count() == 0)
    }

    /// How far the drains are, as the zone says it itself, and what waits to be erased.
    pub(crate) fn what_holds_drains(&mut self) -> String {
        let request = Request::ListNodes(v1::ListNodesRequest::default());
        let listed = match self.ask_until_done(&request) {
            Ok(Reply::ListNodes(listed)) => listed.nodes,
            other => return format!("{other:?}"),
        };
        let drains: Vec<_> =
            listed.into_iter().filter_map(|node| Some((node.id, node.drain?))).collect();
        let erasures = self.control.state().map(|state| state.erasures().collect::<Vec<_>>());
        format!(
            "agreed: {:?}; {drains:?}; to be erased: {erasures:?}; {}",
            self.drains.agreed,
            self.control.describe()
        )
    }

    /// Counts the nodes that are drained at the end.
    pub(crate) fn note_drained(&mut self) {
        let drained: Vec<NodeId> =
            self.drains.nodes().filter(|node| self.holds_nothing(*node)).collect();
        for _ in drained {
            self.tally.note("nodes drained");
        }
    }
}

/// Whether the zone says that it cannot be done now.
const fn is_refusal(reason: Reason) -> bool {
    matches!(reason, Reason::CopiesAtRisk | Reason::NoNewHome)
}
