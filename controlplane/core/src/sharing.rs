//! Which nodes share chunks with which, and how few with each (copysets, decisions/0015).
//!
//! Two nodes share a chunk while its configuration names both, in whichever role: one that is away may
//! come back as a replica of it. A node that shares with few others beats to few, and fewer sets of three
//! nodes lose data when all three die. So a node shares with at most `peers_per_node_max` others, as long
//! as there is any choice.
//!
//! Bounds of single nodes alone would lead into a corner: once everybody has as many peers as it may have,
//! hardly any third node shares with both of two others, and the copy that they have lost finds no home. So
//! nodes form *groups*: whoever is reached from one another through shared chunks. A group of at most one
//! more than a node's bound keeps it whatever is placed within, today and after any loss. Groups are not
//! stored: they are what the configurations make of them.
//!
//! ```text
//! new chunk, or new home   the group does not grow, or up to the usual size          (Bound::Group)
//!   otherwise              it grows up to peers_per_node_max + 1                     (Bound::Largest)
//!   otherwise              each pair shares already, or both may have one more       (Bound::Pairs)
//!   otherwise              wherever there is room: a copy comes before the bound     (Bound::None)
//! ```
//! The usual size is three quarters of the largest at most: what is left is for nodes that come later. A
//! group below two thirds of it does not stay so while it can grow: its nodes' recovery would be the work of few.

use crate::state::ZoneState;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::{ChunkConfig, NodeId};

/// Other nodes that a node shares chunks with, unless the members' configuration says otherwise
/// (`placement.peers_per_node_max`; design.md section 3). Twice as many spread the recovery of a node over
/// twice as many, and make it twice as likely that three dead nodes have a chunk in common.
pub const PEERS_PER_NODE_MAX: usize = 32;
/// Fewest that can be configured: a group of them holds a volume with the most copies, and one more.
pub const PEERS_PER_NODE_MIN: usize = 5;

/// How strictly a choice keeps the bound; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    /// Groups stay as they are, or grow to the size of new ones.
    Group,
    /// Groups grow as far as they may.
    Largest,
    /// Every pair shares already, or may.
    Pairs,
    /// It is not kept.
    None,
}

impl Bound {
    pub(crate) const ALL: [Self; 4] = [Self::Group, Self::Largest, Self::Pairs, Self::None];
}

/// In how many chunks each pair of nodes is named together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shared(BTreeMap<NodeId, BTreeMap<NodeId, u32>>);

impl Shared {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn add(&mut self, config: &ChunkConfig) {
        for (node, peer) in pairs(config) {
            *self.0.entry(node).or_default().entry(peer).or_default() += 1;
        }
    }

    /// Without empty entries, so that equal states compare equal however they came about.
    pub(crate) fn remove(&mut self, config: &ChunkConfig) {
        for (node, peer) in pairs(config) {
            let Some(of_node) = self.0.get_mut(&node) else { continue };
            if let Some(count) = of_node.get_mut(&peer) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    of_node.remove(&peer);
                }
            }
            if of_node.is_empty() {
                self.0.remove(&node);
            }
        }
    }

    /// The others that a node shares chunks with, and how many chunks.
    pub(crate) fn of(&self, node: NodeId) -> impl Iterator<Item = (NodeId, u32)> + '_ {
        self.0.get(&node).into_iter().flatten().map(|(peer, count)| (*peer, *count))
    }

    pub(crate) fn count_of(&self, node: NodeId) -> usize {
        self.0.get(&node).map_or(0, BTreeMap::len)
    }
}

/// Every pair of holders, both ways round.
fn pairs(config: &ChunkConfig) -> impl Iterator<Item = (NodeId, NodeId)> + '_ {
    config.replicas().flat_map(|one| {
        let others = config.replicas().filter(move |other| other.node != one.node);
        others.map(move |other| (one.node, other.node))
    })
}

/// Who shares with whom, with what is placed meanwhile: nodes by their position among all of the zone's.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    nodes: Vec<NodeId>,
    peers_max: usize,
    /// Chunks that a node shares with each other one; read from the state when first needed.
    rows: Vec<Option<Vec<u32>>>,
    /// How many others each shares with.
    peers: Vec<usize>,
    /// Number of each one's group.
    group: Vec<usize>,
    /// Nodes of each group.
    size: Vec<usize>,
    /// Nodes that a group has if nothing speaks against it.
    usual: usize,
}

/// What a choice must fit to: those that are chosen or hold the chunk already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circle {
    members: Vec<usize>,
    /// Pairs among them that do not share yet, for each.
    fresh: Vec<usize>,
    groups: BTreeSet<usize>,
    /// Nodes of these groups.
    nodes: usize,
}

impl Sharing {
    /// What the state says of these nodes: all of the zone's, in order.
    pub(crate) fn of(state: &ZoneState, nodes: Vec<NodeId>, peers_max: usize) -> Self {
        let count = nodes.len();
        let peers = nodes.iter().map(|node| state.shared.count_of(*node)).collect();
        let mut sharing = Self {
            nodes,
            peers_max,
            rows: vec![None; count],
            peers,
            group: vec![usize::MAX; count],
            size: Vec::new(),
            usual: usual_group(count, peers_max),
        };
        for node in 0..count {
            sharing.gather(node, state);
        }
        sharing
    }

    /// Puts a node and all that are reached from it into a group.
    fn gather(&mut self, node: usize, state: &ZoneState) {
        if self.group.get(node) != Some(&usize::MAX) {
            return;
        }
        let number = self.size.len();
        let mut found = vec![node];
        let mut size = 0;
        while let Some(next) = found.pop() {
            let Some(group) = self.group.get_mut(next) else { continue };
            if *group == number {
                continue;
            }
            *group = number;
            size += 1;
            let Some(id) = self.nodes.get(next) else { continue };
            found.extend(state.shared.of(*id).filter_map(|(peer, _)| self.position(peer)));
        }
        self.size.push(size);
    }

    pub(crate) fn position(&self, node: NodeId) -> Option<usize> {
        self.nodes.binary_search(&node).ok()
    }

    const fn largest_group(&self) -> usize {
        self.peers_max.saturating_add(1)
    }

    fn group_of(&self, node: usize) -> (usize, usize) {
        let group = self.group.get(node).copied().unwrap_or(usize::MAX);
        (group, self.size.get(group).copied().unwrap_or(0))
    }

    fn peers_of(&self, node: usize) -> usize {
        self.peers.get(node).copied().unwrap_or(0)
    }

    fn row(&self, node: usize) -> &[u32] {
        self.rows.get(node).and_then(Option::as_deref).unwrap_or_default()
    }

    fn load(&mut self, node: usize, state: &ZoneState) {
        let (Some(id), Some(None)) = (self.nodes.get(node), self.rows.get(node)) else { return };
        let mut row = vec![0; self.nodes.len()];
        for (peer, count) in state.shared.of(*id) {
            if let Some(cell) = self.position(peer).and_then(|at| row.get_mut(at)) {
                *cell = count;
            }
        }
        if let Some(slot) = self.rows.get_mut(node) {
            *slot = Some(row);
        }
    }

    /// One more belongs to a circle.
    pub(crate) fn widen(&mut self, circle: &mut Circle, node: usize, state: &ZoneState) {
        self.load(node, state);
        let row = self.row(node);
        let mut fresh = 0;
        for (member, of_member) in circle.members.iter().zip(&mut circle.fresh) {
            if row.get(*member) == Some(&0) {
                fresh += 1;
                *of_member += 1;
            }
        }
        circle.members.push(node);
        circle.fresh.push(fresh);
        let (group, size) = self.group_of(node);
        if circle.groups.insert(group) {
            circle.nodes += size;
        }
    }

    /// Whether a node may hold a chunk together with those of a circle.
    pub(crate) fn allows(&self, bound: Bound, circle: &Circle, node: usize) -> bool {
        if circle.members.is_empty() {
            return true;
        }
        let (group, size) = self.group_of(node);
        let grown = circle.nodes + if circle.groups.contains(&group) { 0 } else { size };
        let grows = circle.groups.len() > 1 || grown > circle.nodes;
        match bound {
            Bound::Group if grows => grown <= self.usual,
            Bound::Group if grown < self.usual.min(self.nodes.len()) * 2 / 3 => false,
            Bound::Group | Bound::Largest => grown <= self.largest_group(),
            Bound::Pairs => self.pairs_allow(circle, node),
            Bound::None => true,
        }
    }

    fn pairs_allow(&self, circle: &Circle, node: usize) -> bool {
        let mut fresh = 0;
        for (member, of_member) in circle.members.iter().zip(&circle.fresh) {
            if self.row(*member).get(node).is_some_and(|shared| *shared > 0) {
                continue;
            }
            fresh += 1;
            if self.peers_of(*member) + of_member + 1 > self.peers_max {
                return false;
            }
        }
        self.peers_of(node) + fresh <= self.peers_max
    }

    /// How many chunks a node shares with those of a circle.
    pub(crate) fn shared(&self, circle: &Circle, node: usize) -> u64 {
        let of = |member: &usize| self.row(*member).get(node).copied().unwrap_or(0);
        circle.members.iter().map(|member| u64::from(of(member))).sum()
    }

    /// A chunk is placed on all of a circle.
    pub(crate) fn place(&mut self, circle: &Circle, state: &ZoneState) {
        for member in &circle.members {
            self.load(*member, state);
        }
        for node in &circle.members {
            for peer in circle.members.iter().filter(|peer| *peer != node) {
                let row = self.rows.get_mut(*node).and_then(Option::as_mut);
                let Some(cell) = row.and_then(|row| row.get_mut(*peer)) else { continue };
                *cell += 1;
                if *cell == 1
                    && let Some(peers) = self.peers.get_mut(*node)
                {
                    *peers += 1;
                }
            }
        }
        self.merge(&circle.groups);
    }

    fn merge(&mut self, groups: &BTreeSet<usize>) {
        let Some(into) = groups.first().copied().filter(|_| groups.len() > 1) else { return };
        for group in self.group.iter_mut().filter(|group| groups.contains(group)) {
            *group = into;
        }
        let all = groups.iter().filter_map(|group| self.size.get(*group)).sum();
        for (number, size) in self.size.iter_mut().enumerate() {
            if groups.contains(&number) {
                *size = if number == into { all } else { 0 };
            }
        }
    }
}

/// The zone in equal parts, with room to grow; as a whole, if it is no larger than a group may be.
fn usual_group(nodes: usize, peers_max: usize) -> usize {
    if nodes <= peers_max.saturating_add(1) {
        return peers_max.saturating_add(1);
    }
    nodes.div_ceil(nodes.div_ceil((peers_max * 3 / 4).max(PEERS_PER_NODE_MIN)))
}

impl ZoneState {
    /// How many other nodes a node shares chunks with.
    #[must_use]
    pub fn peers_of(&self, node: NodeId) -> usize {
        self.shared.count_of(node)
    }
}
