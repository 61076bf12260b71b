//! What a leader plans when an operator asks for a salvage: each check by a case that only it stops.

use super::*;
use crate::command::{ChunkSalvage, Evidence, Place};
use crate::rescue::{Rescue, Step, Unfit, Wish, WishRefusal, rescue};
use crate::salvage::SalvageRefusal;

/// A zone whose chunk 0 has one stale replica on a node that is up, and two in sync on nodes that are
/// dead.
struct Lost {
    zone: Zone,
    stale: ReplicaId,
    in_sync: [ReplicaId; 2],
}

impl Lost {
    fn new() -> Self {
        let mut zone = Zone::with_volume();
        let config = zone.config(0);
        let stale = config.secondaries().next().unwrap();
        let (proposer, evidence) = (config.primary, Evidence::Unreachable {});
        zone.change(0, ChangeKind::RemoveSecondary { proposer, replica: stale, evidence }).unwrap();
        let in_sync: [ReplicaId; 2] = zone.config(0).in_sync.try_into().unwrap();
        let mut lost = Self { zone, stale, in_sync };
        lost.dies(in_sync[0].node);
        lost.dies(in_sync[1].node);
        lost
    }

    fn dies(&mut self, node: NodeId) {
        self.zone.stop(node.0);
        self.zone.probe(node.0, [ProbeResult::Refused; 2]);
    }

    fn returns(&mut self, node: NodeId) {
        self.zone.seen.on_connected(self.zone.now, node);
        self.zone.beating.insert(node.0);
        self.zone.beat();
    }

    /// The statement that both are fenced, about chunk 0.
    fn wish(&self) -> Wish {
        Wish {
            chunks: [ChunkIndex(0)].into(),
            fenced_nodes: self.in_sync.iter().map(|replica| replica.node).collect(),
            ..Wish::default()
        }
    }

    fn ask(&self, wish: &Wish) -> Result<Rescue, WishRefusal> {
        let verdicts = judge_all(self.zone.now, &self.zone.state, &self.zone.seen);
        let volume = self.zone.state.volume(volume_id(1)).unwrap();
        rescue(volume, wish, &self.zone.state, &self.zone.seen, &verdicts)
    }

    fn step(&self, wish: &Wish) -> Step {
        self.ask(wish).unwrap().chunks[0].step.clone()
    }
}

#[test]
fn the_stale_replica_takes_over_and_only_what_is_needed_is_revoked() {
    let mut lost = Lost::new();
    let rescue = lost.ask(&lost.wish()).unwrap();
    let (primary, confirmed) = (lost.stale, Vec::new());
    let takes_over = Step::TakesOver { primary, complete_to: Epoch(1), confirmed };
    assert_eq!(rescue.chunks[0].step, takes_over);
    assert_eq!(rescue.revoked, lost.in_sync.iter().map(|r| Place::of(*r)).collect());
    assert_eq!(rescue.blocked(), None);
    // What was planned is allowed.
    let fenced = rescue.revoked.iter().copied().collect();
    let (token, volume, by) = (None, volume_id(1), "an operator".into());
    let action = Action::Salvage { token, volume, chunks: rescue.salvages(), fenced, by };
    lost.zone.apply(action).answer.unwrap();
    assert_eq!(lost.zone.config(0).primary, lost.stale);
}

#[test]
fn who_is_away_and_not_stated_to_be_fenced_may_come_back() {
    let lost = Lost::new();
    let [first, second] = lost.in_sync;
    for (fenced, left) in [(None, lost.in_sync.to_vec()), (Some(first), [second].into())] {
        let fenced_nodes = fenced.iter().map(|replica: &ReplicaId| replica.node).collect();
        let wish = Wish { fenced_nodes, ..lost.wish() };
        let rescue = lost.ask(&wish).unwrap();
        assert_eq!(rescue.chunks[0].step, Step::NotFenced { away: left });
        assert!(rescue.salvages().is_empty() && rescue.blocked().is_some());
        assert!(rescue.revoked.is_empty(), "a plan that does nothing revokes nothing");
    }
    // Single stores are stated as well as whole nodes.
    let fenced_stores = lost.in_sync.iter().map(|replica| replica.store).collect();
    let wish = Wish { fenced_nodes: BTreeSet::new(), fenced_stores, ..lost.wish() };
    assert!(matches!(lost.step(&wish), Step::TakesOver { .. }));
}

#[test]
fn a_node_that_lives_is_not_fenced_whatever_is_stated() {
    let mut lost = Lost::new();
    let node = lost.in_sync[1].node;
    lost.returns(node);
    let refused = Err(WishRefusal::NodeLives { node, cause: "it is up".into() });
    assert_eq!(lost.ask(&lost.wish()), refused);
    let fenced_stores = [lost.in_sync[1].store].into();
    let by_store = Wish { fenced_stores, fenced_nodes: BTreeSet::new(), ..lost.wish() };
    assert_eq!(lost.ask(&by_store), refused);
    // Nor is one that is only not heard for a moment.
    lost.zone.stop(node.0);
    lost.zone.run(300);
    assert!(matches!(lost.ask(&lost.wish()), Err(WishRefusal::NodeLives { .. })));
    lost.dies(node);
    assert!(lost.ask(&lost.wish()).is_ok());
}

#[test]
fn a_chunk_with_a_living_replica_in_sync_is_left_alone() {
    let mut lost = Lost::new();
    let [first, second] = lost.in_sync;
    lost.returns(second.node);
    let wish = Wish { fenced_nodes: [first.node].into(), ..lost.wish() };
    assert_eq!(lost.step(&wish), Step::LeftAlone { lives: second });
    // Unless that one says itself that it is no use: then it keeps its store.
    lost.zone.report(0, second, ReplicaState::Stale);
    let rescue = lost.ask(&wish).unwrap();
    let (primary, confirmed) = (lost.stale, alloc::vec![second]);
    let takes_over = Step::TakesOver { primary, complete_to: Epoch(1), confirmed };
    assert_eq!(rescue.chunks[0].step, takes_over);
    assert_eq!(rescue.revoked, [Place::of(first)].into());
    // Of all chunks that are not named, those that need nothing are left alone as well.
    let wish = Wish { chunks: BTreeSet::new(), ..wish };
    let rescue = lost.ask(&wish).unwrap();
    assert_eq!((rescue.chunks.len(), rescue.salvages().len()), (4, 1));
}

#[test]
fn nothing_is_revoked_for_nothing() {
    let mut lost = Lost::new();
    let node = lost.stale.node;
    lost.dies(node);
    let mut wish = lost.wish();
    wish.fenced_nodes.insert(node);
    assert_eq!(lost.ask(&wish), Err(WishRefusal::NodeForNothing { node }));
    let store = StoreId(99);
    let wish = Wish { fenced_stores: [store].into(), ..lost.wish() };
    assert_eq!(lost.ask(&wish), Err(WishRefusal::StoreForNothing { store }));
    let (chunk, count) = (ChunkIndex(4), 4);
    let wish = Wish { chunks: [chunk].into(), ..lost.wish() };
    assert_eq!(lost.ask(&wish), Err(WishRefusal::UnknownChunk { chunk, count }));
}

#[test]
fn only_a_replica_that_can_serve_now_takes_over() {
    let mut lost = Lost::new();
    let (stale, wish) = (lost.stale, lost.wish());
    let unfit = |lost: &Lost, wish: &Wish| match lost.step(wish) {
        Step::NoCandidate { unfit } => {
            assert_eq!(unfit[0].0, lost.stale);
            unfit[0].1.clone()
        }
        other => panic!("{other:?}"),
    };
    let from = Some(lost.in_sync[0].node);
    assert_eq!(unfit(&lost, &Wish { from, ..wish.clone() }), Unfit::NotNamed);
    let from = Some(stale.node);
    assert!(matches!(lost.step(&Wish { from, ..wish.clone() }), Step::TakesOver { .. }));
    // Its store has failed, and the registration without it is on its way.
    lost.zone.seen.on_heartbeat(lost.zone.now, stale.node, Heartbeat::default());
    assert_eq!(unfit(&lost, &wish), Unfit::StoreUnheard);
    lost.zone.beat();
    lost.zone.report(0, stale, ReplicaState::Gone);
    assert_eq!(unfit(&lost, &wish), Unfit::Erased);
    // Its store has lost part of it since it left the in-sync set.
    lost.zone.report(0, stale, ReplicaState::Suspect);
    let damaged = SalvageRefusal::Suspect { node: stale.node };
    assert_eq!(unfit(&lost, &wish), Unfit::Refused(damaged));
    lost.zone.report(0, stale, ReplicaState::Stale);
    lost.dies(stale.node);
    assert!(matches!(unfit(&lost, &wish), Unfit::NodeDown(_)));
    let node = NodeRecord { stores: [StoreId(88)].into(), ..record(stale.node.0) };
    lost.zone.apply(Action::RegisterNode { node }).answer.unwrap();
    let gone = SalvageRefusal::Gone { node: stale.node };
    assert_eq!(unfit(&lost, &wish), Unfit::Refused(gone));
}

#[test]
fn of_several_the_replica_that_lost_least_takes_over() {
    let mut lost = Lost::new();
    let [primary, secondary] = lost.in_sync;
    // The other secondary leaves as well, later: it has more.
    lost.returns(secondary.node);
    let evidence = Evidence::NodeDead {};
    let change = ChangeKind::RemoveSecondary { proposer: primary, replica: secondary, evidence };
    lost.zone.change(0, change).unwrap();
    let wish = Wish { fenced_nodes: [primary.node].into(), ..lost.wish() };
    match lost.step(&wish) {
        Step::TakesOver { primary, complete_to, .. } => {
            assert_eq!((primary, complete_to), (secondary, Epoch(2)));
        }
        other => panic!("{other:?}"),
    }
    // It is the operator who may know better.
    let named = Wish { from: Some(lost.stale.node), ..wish };
    let stale = lost.stale;
    assert!(matches!(lost.step(&named), Step::TakesOver { primary, .. } if primary == stale));
}

#[test]
fn a_store_that_was_gone_when_its_chunk_was_salvaged_never_comes_back() {
    let mut lost = Lost::new();
    let [first, second] = lost.in_sync;
    // Its node has come without that store.
    let node = NodeRecord { stores: [StoreId(77)].into(), ..record(first.node.0) };
    lost.zone.apply(Action::RegisterNode { node }).answer.unwrap();
    lost.returns(first.node);
    let wish = Wish { fenced_nodes: [second.node].into(), ..lost.wish() };
    let rescue = lost.ask(&wish).unwrap();
    assert_eq!(rescue.revoked, lost.in_sync.iter().map(|r| Place::of(*r)).collect());
    // The rule stands where it is applied, whatever the leader has written into the command.
    let chunks: Vec<ChunkSalvage> = rescue.salvages();
    let (token, volume, by) = (None, volume_id(1), "an operator".into());
    let fenced = alloc::vec![Place::of(second)];
    lost.zone.apply(Action::Salvage { token, volume, chunks, fenced, by }).answer.unwrap();
    let back = record(first.node.0);
    let (node, store) = (first.node, first.store);
    assert_eq!(
        lost.zone.state.check_registration(&back),
        Err(Refusal::StoreRevoked { node, store })
    );
}
