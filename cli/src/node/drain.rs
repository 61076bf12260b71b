//! `ashlar node drain`: everything that a node holds moves to others; and how far that is.
//!
//! The control plane moves the copies (decisions/0014); this file asks for it, waits if it is told to,
//! and says how far it is.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use serde::Serialize;

use super::NodeView;
use crate::connect::{Zone, client_token};
use crate::failure::Failure;
use crate::render::{Output, Show};
use crate::{Global, completion, size};

/// Between two looks at a node that is drained.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What is to become of which node.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Its name, as `node list` shows it (node-1), or its number.
    #[arg(add = completion::nodes())]
    node: String,
    /// The zone, if several have a node of that number.
    #[arg(long, add = completion::zones())]
    zone: Option<String>,
    /// Return only when the node holds nothing, however long that takes. Interrupted, the drain goes on.
    #[arg(long, conflicts_with_all = ["dry_run", "cancel"])]
    wait: bool,
    /// The node is of use again: it keeps what it has left, and takes new copies.
    #[arg(long)]
    cancel: bool,
    /// Check that it can be done, and what would move, but change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Makes a repeated command the same call (default: made anew for each command).
    #[arg(long)]
    client_token: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// What the control plane refused.
pub(super) fn run(arguments: Arguments, global: &Global, output: &Output) -> Result<(), Failure> {
    let Arguments { node, zone: named, wait, cancel, dry_run, client_token: token } = arguments;
    let known = super::find("drain", &node, super::list(named, global)?)?;
    let request = v1::DrainNodeRequest {
        node: known.number,
        cancel,
        client_token: token.unwrap_or_else(client_token),
        dry_run,
        zone: known.zone.clone(),
    };
    let what = if cancel { "cancel the drain of" } else { "drain" };
    let answer = Zone::find(global)?.ask(&format!("{what} {}", known.id), |channel| {
        let request = request.clone();
        async move { ClusterServiceClient::new(channel).drain_node(request).await }
    })?;
    let node = NodeView::from(&answer.node.unwrap_or_default());
    let node = if wait { wait_drained(node, global)? } else { node };
    let (copies, bytes, dry_run) = (answer.copies, answer.bytes, answer.dry_run);
    output.show(&Drained { node, cancel, copies, bytes, dry_run })
}

/// The node once it holds nothing; it is asked for until then.
fn wait_drained(mut node: NodeView, global: &Global) -> Result<NodeView, Failure> {
    let mut told = String::new();
    while !node.drain.as_ref().is_some_and(DrainView::is_done) {
        let text = node.drain_sentences().join("\n");
        if text != told && io::stderr().is_terminal() {
            // Nobody who reads it: the drain goes on all the same.
            writeln!(io::stderr(), "{text}").ok();
            told = text;
        }
        std::thread::sleep(LOOK_EVERY);
        let list = super::list(Some(node.zone.clone()), global)?;
        node = super::find("wait for", &node.id, list)?;
    }
    Ok(node)
}

/// How far a drain is.
#[derive(Debug, Serialize)]
pub(crate) struct DrainView {
    since_unix_millis: u64,
    /// The node holds nothing and has erased everything: it can be stopped.
    done: bool,
    replicas: u32,
    moving: u32,
    blocked: u32,
    erasing: u32,
    first_blocked: Vec<BlockedView>,
}

#[derive(Debug, Serialize)]
struct BlockedView {
    chunk: String,
    cause: String,
}

impl From<&v1::Drain> for DrainView {
    fn from(drain: &v1::Drain) -> Self {
        let blocked = drain.first_blocked.iter().map(|one| {
            let chunk = one.chunk.clone().unwrap_or_default();
            let chunk = format!("{}/{}", chunk.volume, chunk.index);
            BlockedView { chunk, cause: one.cause.clone() }
        });
        Self {
            since_unix_millis: drain.since_unix_millis,
            done: drain.replicas == 0 && drain.erasing == 0,
            replicas: drain.replicas,
            moving: drain.moving,
            blocked: drain.blocked,
            erasing: drain.erasing,
            first_blocked: blocked.collect(),
        }
    }
}

impl DrainView {
    /// Whether the node holds nothing any more.
    pub(super) const fn is_done(&self) -> bool {
        self.done
    }

    /// The drain of that node, in words: one sentence, and one for each copy that does not move.
    pub(super) fn sentences(&self, node: &str) -> Vec<String> {
        if self.is_done() {
            return vec![format!(
                "{node} is drained: it holds nothing and can be stopped; `ashlar node drain {node} --cancel` \
                 puts it to use again"
            )];
        }
        let Self { replicas, moving, blocked, erasing, .. } = self;
        let mut all = vec![format!(
            "{node} is being drained: {replicas} replicas left, {moving} of them moving, {blocked} blocked; \
             {erasing} to be erased"
        )];
        let named = self.first_blocked.iter();
        all.extend(named.map(|one| format!("blocked: {}: {}", one.chunk, one.cause)));
        all
    }
}

/// The answer as it is printed.
#[derive(Debug, Serialize)]
struct Drained {
    node: NodeView,
    cancel: bool,
    /// Copies that need another home.
    copies: u32,
    bytes: u64,
    dry_run: bool,
}

impl Show for Drained {
    fn table(&self) -> String {
        let id = &self.node.id;
        let (copies, bytes) = (self.copies, size::show(self.bytes));
        match (self.dry_run, self.cancel) {
            (true, true) => format!("the drain of {id} would be cancelled"),
            (true, false) => format!("{id} can be drained: {copies} copies of {bytes} would move"),
            (false, true) => format!("{id} is not drained (any more): it takes new copies"),
            (false, false) => self.node.drain_sentences().join("\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_done_only_when_nothing_is_held_nor_to_be_erased() {
        let drain = |replicas, erasing| {
            let blocked = v1::BlockedCopy {
                chunk: Some(v1::ChunkId { volume: "vol-a-0".into(), index: 2 }),
                cause: "no room".into(),
            };
            let first_blocked = if replicas > 0 { vec![blocked] } else { Vec::new() };
            DrainView::from(&v1::Drain { replicas, erasing, first_blocked, ..Default::default() })
        };
        assert!(drain(0, 0).is_done());
        assert!(!drain(1, 0).is_done() && !drain(0, 1).is_done());
        assert!(drain(0, 0).sentences("node-1")[0].contains("can be stopped"));
        assert_eq!(drain(1, 0).sentences("node-1")[1], "blocked: vol-a-0/2: no room");
    }
}
