//! `DrainNode`: a node is to hold nothing, or is of use again (decisions/0014).
//!
//! Whether it can be drained is decided by `controlplane/core/src/drain.rs`; what is committed is a mark,
//! by which the leader's plans move the copies. This file reads the call and writes the answer: the node
//! as it is, with how far it is.

use super::calls::{self, Step};
use super::lead::{CallKind, NODES_RETURN_WITHIN, Pending};
use super::{Member, Now, Reply};
use crate::errors::{self, api_error};
use ashlar_controlplane_core::command::Action;
use ashlar_controlplane_core::drain::{self, DrainRefusal, Expected};
use ashlar_controlplane_core::verdict;
use ashlar_proto::reason::ApiError;
use ashlar_proto::v1;
use ashlar_types::NodeId;

impl Member {
    pub(super) fn drain_node(
        &mut self,
        now: Now,
        request: &v1::DrainNodeRequest,
    ) -> Result<Step, ApiError> {
        let (node, cancel) = (NodeId(request.node), request.cancel);
        let parameters: &[&[u8]] = &[&node.0.to_le_bytes(), &[u8::from(cancel)]];
        let token = calls::token(&request.client_token, 9, parameters)?;
        if self.replayed(token.as_ref())?.is_some() {
            return Ok(Step::Done(self.drain_answer(now, node, Expected::default(), false)));
        }
        if node.0 == 0 {
            return Err(api_error::invalid("node", "its number is needed; no node has number 0"));
        }
        if self.state.node(node).is_none() {
            return Err(api_error::node_not_found(node));
        }
        let expected = if cancel { Expected::default() } else { self.check_drain(now, node)? };
        if request.dry_run {
            return Ok(Step::Done(self.drain_answer(now, node, expected, true)));
        }
        tracing::info!(%node, cancel, copies = expected.copies, "a drain is proposed");
        let action = Action::Drain { token, node, cancel };
        Ok(Step::Commit(CallKind::Drain(node, expected), action))
    }

    fn check_drain(&self, now: Now, node: NodeId) -> Result<Expected, ApiError> {
        let Some(lead) = &self.lead else { return Err(self.not_leader()) };
        if !lead.seen.may_judge(now.time) {
            return Err(api_error::just_elected());
        }
        // Two that are decided at once might count on the same room.
        let another = |pending: &Pending| matches!(pending, Pending::Call { kind: CallKind::Drain(other, _), .. } if *other != node);
        if lead.pending.values().flatten().any(another) {
            return Err(api_error::throttled("the drain of another node is being decided"));
        }
        let verdicts = verdict::judge_all(now.time, &self.state, &lead.seen);
        let space = lead.space(&self.state, &verdicts, self.options.peers_per_node_max);
        drain::check(node, &self.state, space).map_err(|refusal| {
            // Nodes that have not found the new leader yet are no lack of space.
            let heard = |node| lead.seen.node(node).is_some_and(|view| view.last_beat.is_some());
            let awaited = self.state.nodes().any(|record| !heard(record.node));
            let is_young = now.time.since(lead.since) < NODES_RETURN_WITHIN;
            match refusal {
                DrainRefusal::NoHome { .. } if awaited && is_young => api_error::just_elected(),
                refusal => errors::not_drained(&refusal),
            }
        })
    }

    /// The answer, with the node as it is now.
    pub(super) fn drain_answer(
        &self,
        now: Now,
        node: NodeId,
        expected: Expected,
        dry_run: bool,
    ) -> Reply {
        let node = self.view(now).nodes().into_iter().find(|known| known.id == node.0);
        Reply::DrainNode(v1::DrainNodeResponse {
            node,
            copies: expected.copies,
            bytes: expected.bytes,
            dry_run,
        })
    }
}
