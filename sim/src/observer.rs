//! An observer: asks any node that takes itself for a primary, however old its view, for one block,
//! and holds the answer against what was acknowledged before the question was asked.
//!
//! It stands for a client whose map is old (design.md 4.4): a primary that was replaced while it
//! stood still must not show it anything stale. It speaks under the attachment of the client, with
//! the epoch that the asked node itself believes in, so that nothing but the rules of reading keeps
//! the node from answering.

use crate::net::{Host, Wire};
use crate::node::SimNode;
use crate::world::{Event, World};
use ashlar_env::dice::Dice;
use ashlar_node_core as node;
use ashlar_node_core::{ConnectionId, Link};
use ashlar_types::message::data::{DataMessage, Network, Stamp};
use ashlar_types::{BlockRange, ChunkId, ChunkIndex, NodeId, RequestId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest time between two questions.
const ASK_MAX: Duration = Duration::from_millis(16);
/// Connections of the observer are numbered from here, one for each process of a node.
const CONNECTIONS: u64 = 1 << 48;
/// Questions that wait for an answer; nodes that have none to give leave them without.
const UNANSWERED_MAX: usize = 256;
/// Blocks that it asks about: those that the workload writes most.
const HOT_BLOCKS: u64 = 12;

/// What the observer waits for: block of the volume, and the least version that it may see.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    last: u64,
    unanswered: BTreeMap<u64, (u64, u64)>,
}

/// Whether a connection is the observer's.
pub(crate) const fn is_observers(connection: ConnectionId) -> bool {
    connection.0 >= CONNECTIONS
}

impl World {
    /// Asks some node, and plans the next question.
    pub(crate) fn observe(&mut self) {
        let wait = self.draw(ASK_MAX);
        self.schedule_in(wait, Event::Observe);
        let block = self.dice.below(HOT_BLOCKS);
        let nodes = self.nodes.len() as u64;
        let at = usize::try_from(self.dice.below(nodes)).unwrap_or(0);
        let delay = self.net.delay(&mut self.dice);
        let Some(to) = self.nodes.keys().nth(at).copied() else { return };
        let wire = Wire { from: Host::Client, to: Host::Node(to), network: Network::Primary };
        if self.net.is_cut(wire) || self.client.as_ref().is_none_or(|client| client.resting) {
            return;
        }
        let Some(message) = self.question(to, block) else { return };
        let life = self.life(to);
        self.note_asked(CONNECTIONS + life, &message);
        self.schedule_in(delay, Event::Observed { node: to, life, message });
    }

    /// The question about a block, if the node takes itself for the primary of its chunk.
    fn question(&mut self, to: NodeId, block: u64) -> Option<DataMessage> {
        let (volume, generation) = (self.volume?, self.client.as_ref()?.generation());
        let session = *self.last_sessions.get(&to)?;
        let core = self.nodes.get(&to).and_then(SimNode::core)?;
        let blocks = self.client.as_ref()?.chunk_blocks();
        let chunk = ChunkId { volume, index: ChunkIndex(u32::try_from(block / blocks).ok()?) };
        let config = core.config(chunk).filter(|config| config.primary.node == to)?;
        let stamp = Stamp { chunk, epoch: config.epoch, generation, session };
        let range = BlockRange::new(u32::try_from(block % blocks).ok()?, 1);
        let observer = &mut self.observer;
        observer.last += 1;
        observer.unanswered.insert(observer.last, (block, self.judge.read_floor(block)));
        if observer.unanswered.len() > UNANSWERED_MAX {
            observer.unanswered.pop_first();
        }
        Some(DataMessage::Read { id: RequestId(observer.last), stamp, range })
    }

    /// The question reaches the node.
    pub(crate) fn observed(&mut self, node: NodeId, life: u64, message: DataMessage) {
        if self.lives(node, life) {
            let from = Link::Client(ConnectionId(CONNECTIONS + life));
            self.input(node, node::Input::Frame { from, message });
            self.input(node, node::Input::BatchEnd);
        }
    }

    /// A node answers the observer. The answer counts when it has arrived.
    pub(crate) fn answer_observer(&mut self, message: DataMessage) {
        if matches!(message, DataMessage::ReadDone { .. }) {
            let wait = self.net.delay(&mut self.dice);
            self.schedule_in(wait, Event::ObserverTold { message });
        }
    }

    /// The observer has its answer: it is judged.
    pub(crate) fn observer_told(&mut self, message: &DataMessage) {
        let DataMessage::ReadDone { id, data } = message else { return };
        let Some((block, floor)) = self.observer.unanswered.remove(&id.0) else { return };
        let Some(client) = &self.client else { return };
        for (_, content) in data.iter() {
            match client.version_of(block, floor, content) {
                Some(version) => self.judge.read_finished(self.now, block, floor, version),
                None => {
                    let detail = format!("block {block} holds foreign bytes");
                    self.judge.violated(self.now, "unknown content", detail);
                }
            }
        }
        self.tally.note("observer's reads judged");
    }
}
