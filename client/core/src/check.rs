//! What holds in a volume between any two inputs: checked after each in debug builds, and by the
//! simulator.

use crate::OpId;
use crate::input::PARTS_MAX;
use crate::link::Link;
use crate::op::{Content, OpKind, Part, PartState};
use crate::volume::VolumeCore;
use alloc::collections::{BTreeMap, BTreeSet};
use ashlar_types::limit::REQUESTS_PER_CONNECTION_MAX;
use ashlar_types::{ChunkIndex, NodeId, RequestId, Time};

impl VolumeCore {
    /// Asserts the invariants.
    ///
    /// # Panics
    /// If one is broken: a request could be lost, answered twice, or sent out of order.
    pub fn check(&self) {
        assert!(self.parts.len() <= PARTS_MAX, "more parts than the table may hold");
        self.check_fence();
        self.check_requests();
        self.check_chunks();
        self.check_connections();
        for (slot, part) in self.parts.iter() {
            self.check_part(slot, part);
        }
    }

    fn check_fence(&self) {
        if self.fenced.is_none() {
            return;
        }
        assert!(self.ops.is_empty(), "a request is open after the attachment has ended");
        assert!(self.flushes.is_empty(), "a flush is open after the attachment has ended");
        assert!(self.parts.len() == 0, "something is to be sent after the attachment has ended");
        assert!(self.nodes.is_empty(), "a connection is kept after the attachment has ended");
    }

    /// Every request has the parts that it counts, and flushes wait for what came before them.
    fn check_requests(&self) {
        let mut parts: BTreeMap<OpId, u32> = BTreeMap::new();
        for (_, part) in self.parts.iter() {
            *parts.entry(part.op).or_default() += 1;
        }
        let mut numbers = BTreeSet::new();
        for (id, op) in &self.ops {
            let counted = parts.get(id).copied().unwrap_or(0);
            assert!(counted == op.parts_left, "parts of a request are counted wrongly");
            assert!(counted > 0, "a request without parts was not answered");
            assert!(op.number < self.number_next, "a request from the future");
            assert!(numbers.insert(op.number), "two requests with one number");
            let open = op.writes() && !op.reported;
            assert!(
                open == self.writes_open.contains(&op.number),
                "flushes wait for a write that is over, or not for one that is open"
            );
            if let OpKind::Reserve { turns_left } = op.kind {
                assert!(turns_left <= op.parts_left, "more turns are to come than parts are left");
            }
        }
        assert!(
            self.writes_open.iter().all(|number| numbers.contains(number)),
            "flushes wait for a write that nobody carries out"
        );
        let flushes = || self.flushes.iter().map(|(number, _)| *number);
        assert!(flushes().zip(flushes().skip(1)).all(|(a, b)| a <= b), "flushes out of order");
        let oldest = self.writes_open.first().copied().unwrap_or(u64::MAX);
        assert!(flushes().all(|number| number > oldest), "a flush waits for nothing");
    }

    fn check_chunks(&self) {
        let mut parts: BTreeMap<ChunkIndex, u32> = BTreeMap::new();
        for (_, part) in self.parts.iter() {
            *parts.entry(part.chunk).or_default() += 1;
        }
        for (index, chunk) in (0_u32..).map(ChunkIndex).zip(&self.chunks) {
            chunk.order.check();
            let counted = parts.get(&index).copied().unwrap_or(0);
            assert!(counted == chunk.parts, "parts of a chunk are counted wrongly");
            assert!(
                chunk.doubt.is_none() || self.doubtful.contains(&index),
                "a chunk in doubt that nobody asks about"
            );
            if let Some(config) = &chunk.config {
                assert!(config.chunk.index == index, "a configuration of another chunk");
                assert!(config.chunk.volume == self.settings.volume, "one of another volume");
                assert!(config.check().is_ok(), "a configuration that contradicts itself");
            }
        }
        assert!(
            parts.keys().all(|index| (index.0 as usize) < self.chunks.len()),
            "a part beyond the volume's end"
        );
    }

    fn check_connections(&self) {
        let mut in_flight: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut ids: BTreeSet<(NodeId, RequestId)> = BTreeSet::new();
        for (_, part) in self.parts.iter() {
            if let PartState::InFlight { node, id, .. } = part.state {
                *in_flight.entry(node).or_default() += 1;
                assert!(ids.insert((node, id)), "two parts in flight under one number");
            }
        }
        for (id, node) in &self.nodes {
            let counted = in_flight.remove(id).unwrap_or(0);
            assert!(counted == node.in_flight, "parts in flight are counted wrongly");
            assert!(counted <= REQUESTS_PER_CONNECTION_MAX, "too many requests on a connection");
            assert!(
                counted == 0 || matches!(node.link, Link::Up(_)),
                "in flight on a connection that is gone"
            );
            assert!(
                node.session().is_none_or(|session| session < self.session_next),
                "a session that was never numbered"
            );
        }
        assert!(in_flight.is_empty(), "in flight to a node that is not known");
    }

    fn check_part(&self, slot: u16, part: &Part) {
        assert!(self.ops.contains_key(&part.op), "a part without its request");
        assert!(part.range.count > 0, "an empty part");
        if let Content::Write(data) = &part.content {
            assert!(data.range == part.range, "the content of another range");
        }
        match part.state {
            PartState::Ordered => {
                assert!(part.is_write(), "a read waits for its turn");
                assert!(!self.is_turn(slot, part), "a write has its turn and does not know it");
            }
            PartState::Held => {
                assert!(matches!(part.content, Content::Reserve), "a filled part is held back");
            }
            PartState::InFlight { node, session, id, sent, .. } => {
                let link = self.nodes.get(&node).map(|node| node.link);
                assert!(link == Some(Link::Up(session)), "in flight on another connection");
                assert!(id.0 != 0, "a number that is no request's");
                assert!(sent > Time::ZERO, "sent before time began");
                assert!(!matches!(part.content, Content::Reserve), "an unfilled part was sent");
            }
            PartState::Unrouted | PartState::Ready { .. } | PartState::Waiting { .. } => {
                assert!(!matches!(part.content, Content::Reserve), "an unfilled part is ready");
            }
        }
        if part.is_write() && part.state != PartState::Ordered {
            assert!(self.is_turn(slot, part), "a write goes before an earlier overlapping one");
        }
    }

    fn is_turn(&self, slot: u16, part: &Part) -> bool {
        let chunk = self.chunks.get(part.chunk.0 as usize);
        chunk.is_some_and(|chunk| chunk.order.is_active(slot, part.range))
    }
}
