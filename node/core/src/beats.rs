//! Beats, and the read leases that a node grants: the half of a node that goes on however much the other
//! half, the data core, has to do (design.md sections 4.4 and 5, decisions/0013).
//!
//! ```text
//!  data core -- BeatOrder: progress, stop granting, what is settled ------------> beats
//!            <-- BeatNews: who was heard when, answers, which exceptions are in force --
//! ```
//! Rules:
//! - only beats and their answers go this way, over connections of their own;
//! - a beat says for how long the sender's data core has not moved, and counts as heard that much
//!   earlier: a thread that beats does not prove that the node serves;
//! - an order to stop granting is in force when this half has taken it, and not before. The data core
//!   learns then when the last grant without the exception ends, and confirms no adoption earlier;
//! - what an earlier process granted is unknown: a whole grant from the start on.
//!
//! Does not judge: who is silent, and which reads a lease covers, is the data core's matter.

use crate::context::Identity;
use crate::lease::{Answer, EXCEPTIONS_MAX, Exceptions};
use crate::timing::Timing;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{ChunkId, Epoch, NodeId, StoreId, Time};
use core::time::Duration;

/// Beats whose sending is remembered. Older ones could not renew a lease any more.
const BEATS_KEPT: usize = 8;

/// What the data core tells the beats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeatOrder {
    /// The data core moves, and this is what beats say of the node.
    Progress {
        /// When it moved.
        at: Time,
        /// Stores with little room left.
        short_of_space: Vec<StoreId>,
        /// Its stream to the control plane is open.
        has_control: bool,
    },
    /// Stop granting: another than the peer is primary of the chunk under this epoch.
    Except {
        /// Counts up; [`BeatNews::Excepted`] names it.
        number: u64,
        /// The former primary.
        peer: NodeId,
        /// The chunk.
        chunk: ChunkId,
        /// The epoch that takes it from the peer.
        epoch: Epoch,
    },
    /// The peer's exceptions that are adopted here: its next beat says so.
    Settled {
        /// The granter.
        peer: NodeId,
        /// Chunks and adopted epochs.
        adopted: Vec<(ChunkId, Epoch)>,
    },
}

/// What the data core learns of beats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeatNews {
    /// The exception of that number is in force.
    Excepted {
        /// As in the order.
        number: u64,
        /// The chunk.
        chunk: ChunkId,
        /// Until then an earlier grant may cover the chunk.
        until: Time,
    },
    /// A beat has come.
    Heard {
        /// Of this node.
        node: NodeId,
        /// Over this network.
        network: Network,
        /// Since when the peer's data core has not moved: the time of arrival, if it does.
        at: Time,
        /// The peer's stores with little room left.
        short_of_space: Vec<StoreId>,
        /// The peer's stream to the control plane is open.
        has_control: bool,
    },
    /// A beat of this node was answered.
    Answered {
        /// By this node.
        node: NodeId,
        /// Over this network.
        network: Network,
        /// When the answer came.
        at: Time,
        /// Whose answer, to which beat; none: to one of so long ago that it renews nothing.
        answer: Option<Answer>,
        /// Whether the lease is renewed.
        granted: bool,
        /// What it does not cover.
        except: Vec<(ChunkId, Epoch)>,
    },
}

/// What can happen to this half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeatInput {
    /// Time passes; every 50 ms or so.
    Tick,
    /// A frame of a peer.
    Frame(NodeId, Network, DataMessage),
    /// The connection for beats that this node dialled is up.
    LinkUp(NodeId, Network),
    /// It is gone.
    LinkDown(NodeId, Network),
    /// The data core wants something.
    Order(BeatOrder),
}

/// What this half wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeatEffect {
    /// Send a message over the connection for beats; without one, drop it.
    Send(NodeId, Network, DataMessage),
    /// Tell the data core.
    Tell(BeatNews),
}

/// What this node has granted to a peer.
#[derive(Debug, Default)]
struct Given {
    until: Time,
    except: BTreeMap<ChunkId, Epoch>,
}

/// The half of a node that beats and grants.
#[derive(Debug)]
pub struct BeatCore {
    me: Identity,
    timing: Timing,
    /// When this process began to grant.
    started: Time,
    links: BTreeSet<(NodeId, Network)>,
    last_beat: Time,
    number: u64,
    sent: VecDeque<(u64, Time)>,
    given: BTreeMap<NodeId, Given>,
    /// What the next beats tell granters.
    settled: BTreeMap<NodeId, Exceptions>,
    /// When the data core moved last.
    progress: Time,
    short_of_space: Vec<StoreId>,
    has_control: bool,
}

impl BeatCore {
    /// The beats of a process that starts now.
    #[must_use]
    pub const fn new(now: Time, me: Identity, timing: Timing) -> Self {
        Self {
            me,
            timing,
            started: now,
            links: BTreeSet::new(),
            last_beat: now,
            number: 0,
            sent: VecDeque::new(),
            given: BTreeMap::new(),
            settled: BTreeMap::new(),
            progress: now,
            short_of_space: Vec::new(),
            has_control: false,
        }
    }

    /// Handles one input. Spurious inputs are harmless.
    pub fn handle(&mut self, now: Time, input: BeatInput, out: &mut Vec<BeatEffect>) {
        match input {
            BeatInput::Tick if now.since(self.last_beat) >= self.timing.beat => {
                self.last_beat = now;
                self.beat(now, out);
            }
            BeatInput::Tick => {}
            BeatInput::Frame(from, network, message) => {
                self.on_frame(now, from, network, message, out);
            }
            BeatInput::LinkUp(node, network) => {
                self.links.insert((node, network));
            }
            BeatInput::LinkDown(node, network) => {
                self.links.remove(&(node, network));
            }
            BeatInput::Order(order) => self.on_order(order, out),
        }
    }

    fn on_order(&mut self, order: BeatOrder, out: &mut Vec<BeatEffect>) {
        match order {
            BeatOrder::Progress { at, short_of_space, has_control } => {
                self.progress = self.progress.max(at);
                (self.short_of_space, self.has_control) = (short_of_space, has_control);
            }
            BeatOrder::Except { number, peer, chunk, epoch } => {
                let given = self.given.entry(peer).or_default();
                let known = given.except.entry(chunk).or_default();
                *known = (*known).max(epoch);
                let until = given.until.max(self.started + self.timing.lease_granted);
                out.push(BeatEffect::Tell(BeatNews::Excepted { number, chunk, until }));
            }
            BeatOrder::Settled { peer, adopted } => {
                self.settled.insert(peer, adopted);
            }
        }
    }

    /// A beat to every peer, over each network.
    fn beat(&mut self, now: Time, out: &mut Vec<BeatEffect>) {
        self.number += 1;
        self.sent.push_back((self.number, now));
        if self.sent.len() > BEATS_KEPT {
            self.sent.pop_front();
        }
        // Lost on the way: the granter lists them again, and the data core says them again.
        let settled = core::mem::take(&mut self.settled);
        let behind = now.since(self.progress).as_millis();
        for (node, network) in &self.links {
            let message = DataMessage::Beat {
                number: self.number,
                adopted: settled.get(node).cloned().unwrap_or_default(),
                short_of_space: self.short_of_space.clone(),
                has_control: self.has_control,
                behind_millis: u32::try_from(behind).unwrap_or(u32::MAX),
            };
            out.push(BeatEffect::Send(*node, *network, message));
        }
    }

    fn on_frame(
        &mut self,
        now: Time,
        node: NodeId,
        network: Network,
        message: DataMessage,
        out: &mut Vec<BeatEffect>,
    ) {
        match message {
            DataMessage::Beat { number, adopted, short_of_space, has_control, behind_millis } => {
                let (granted, except) = self.grant(now, node, &adopted);
                let (start, clock) = (self.me.start, now);
                let reply = DataMessage::BeatReply { number, start, clock, granted, except };
                out.push(BeatEffect::Send(node, network, reply));
                let at = now - Duration::from_millis(behind_millis.into());
                let news = BeatNews::Heard { node, network, at, short_of_space, has_control };
                out.push(BeatEffect::Tell(news));
            }
            DataMessage::BeatReply { number, start, clock, granted, except } => {
                let beat = self.sent.iter().find(|(sent, _)| *sent == number);
                let (at, answer) =
                    (now, beat.map(|(_, sent)| Answer { sent: *sent, start, clock }));
                let news = BeatNews::Answered { node, network, at, answer, granted, except };
                out.push(BeatEffect::Tell(news));
            }
            _not_a_beat => {}
        }
    }

    /// Renews a peer's grant; gives whether it did, and what it does not cover.
    fn grant(
        &mut self,
        now: Time,
        peer: NodeId,
        settled: &[(ChunkId, Epoch)],
    ) -> (bool, Exceptions) {
        let given = self.given.entry(peer).or_default();
        for (chunk, epoch) in settled {
            if given.except.get(chunk).is_some_and(|except| epoch >= except) {
                given.except.remove(chunk);
            }
        }
        let granted = given.except.len() <= EXCEPTIONS_MAX;
        if granted {
            given.until = given.until.max(now + self.timing.lease_granted);
        }
        let except = given.except.iter().take(EXCEPTIONS_MAX);
        (granted, except.map(|(chunk, epoch)| (*chunk, *epoch)).collect())
    }
}
