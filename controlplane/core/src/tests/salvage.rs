//! Salvage: each rule by a case that only that rule refuses, and what follows from it.

use super::*;
use crate::command::{ChunkSalvage, Evidence, Place};
use crate::salvage::SalvageRefusal;

/// A zone whose chunk 0 has lost both in-sync replicas after a third had become stale.
struct Lost {
    zone: Zone,
    stale: ReplicaId,
    in_sync: Vec<ReplicaId>,
}

fn place(replica: ReplicaId) -> Place {
    Place { node: replica.node, store: replica.store }
}

impl Lost {
    fn new() -> Self {
        let mut zone = Zone::with_volume();
        let config = zone.config(0);
        let stale = config.secondaries().next().unwrap();
        let (proposer, evidence) = (config.primary, Evidence::Unreachable {});
        zone.change(0, ChangeKind::RemoveSecondary { proposer, replica: stale, evidence }).unwrap();
        let in_sync = zone.config(0).in_sync;
        assert_eq!(in_sync.len(), 2);
        Self { zone, stale, in_sync }
    }

    fn wanted(&self) -> ChunkSalvage {
        let epoch = self.zone.config(0).epoch;
        ChunkSalvage { chunk: chunk(0), epoch, primary: self.stale, confirmed: Vec::new() }
    }

    fn salvage(&mut self, one: ChunkSalvage, fenced: &[ReplicaId]) -> Result<Answer, Refusal> {
        self.salvage_all([one].into(), fenced)
    }

    fn salvage_all(
        &mut self,
        chunks: Vec<ChunkSalvage>,
        fenced: &[ReplicaId],
    ) -> Result<Answer, Refusal> {
        let fenced = fenced.iter().copied().map(place).collect();
        let (token, volume, by) = (None, volume_id(1), "an operator".into());
        let before = self.zone.state.clone();
        let action = Action::Salvage { token, volume, chunks, fenced, by };
        let answer = self.zone.apply(action).answer;
        if answer.is_err() {
            // What is refused changes nothing; no store is revoked by it.
            assert!(before.entries().eq(self.zone.state.entries()));
        }
        answer
    }

    fn cause(result: Result<Answer, Refusal>) -> SalvageRefusal {
        match result {
            Err(Refusal::Salvage { cause, .. }) => cause,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stale_replica_takes_over_once_all_that_were_in_sync_are_fenced() {
    let mut lost = Lost::new();
    let (stale, in_sync) = (lost.stale, lost.in_sync.clone());
    lost.zone.attach("client", false).unwrap();
    let before = lost.zone.config(0);
    let others = lost.zone.config(1);
    let wanted = lost.wanted();
    let Ok(Answer::Volume { volume }) = lost.salvage(wanted, &in_sync) else { panic!() };
    let after = lost.zone.config(0);
    assert_eq!((after.primary, after.in_sync), (stale, alloc::vec![stale]));
    assert_eq!((after.epoch, after.elected), (before.epoch.next(), before.epoch.next()));
    assert!(
        after.stale.is_empty() && after.learners.is_empty(),
        "who was in sync is named no more"
    );
    // Whoever had the volume has it no more, in any of its chunks.
    assert_eq!(volume.attachment, None);
    assert_eq!(after.generation, before.generation.next());
    assert_eq!(lost.zone.config(1).generation, others.generation.next());
    assert_eq!(lost.zone.config(1).primary, others.primary);
    let (at, risk) = lost.zone.state.at_risk(volume_id(1)).next().unwrap();
    assert_eq!((at, risk.epoch, risk.complete_to), (chunk(0), after.epoch, Epoch(1)));
    assert_eq!(risk.by, "an operator");
}

#[test]
fn every_replica_in_sync_must_be_out_of_the_way_first() {
    let mut lost = Lost::new();
    let (first, second) = (lost.in_sync[0], lost.in_sync[1]);
    for (fenced, left) in [(&[][..], first), (&[first][..], second), (&[second][..], first)] {
        let wanted = lost.wanted();
        let (node, store) = (left.node, left.store);
        let refused = SalvageRefusal::NotFenced { node, store };
        assert_eq!(Lost::cause(lost.salvage(wanted, fenced)), refused);
    }
    // One whose node came without the store, and one that says itself that it is no use, do no harm.
    let node = NodeRecord { stores: alloc::vec![StoreId(77)], ..record(first.node.0) };
    lost.zone.apply(Action::RegisterNode { node }).answer.unwrap();
    let wanted = ChunkSalvage { confirmed: alloc::vec![second], ..lost.wanted() };
    lost.salvage(wanted, &[]).unwrap();
    // It keeps its data, as a suspect: it is filled from nothing under another name, or not at all.
    let after = lost.zone.config(0);
    assert_eq!(after.stale.iter().map(|(r, _)| *r).collect::<Vec<_>>(), [second]);
    assert!(after.stale[0].1.suspect);
}

#[test]
fn only_a_stale_replica_that_is_whole_and_there_takes_over() {
    let mut lost = Lost::new();
    let in_sync = lost.in_sync.clone();
    let wanted = ChunkSalvage { primary: in_sync[1], ..lost.wanted() };
    let not_stale = SalvageRefusal::NotStale { node: in_sync[1].node };
    assert_eq!(Lost::cause(lost.salvage(wanted, &in_sync)), not_stale);
    let wanted = lost.wanted();
    let gone = SalvageRefusal::Gone { node: lost.stale.node };
    let all = [in_sync[0], in_sync[1], lost.stale];
    assert_eq!(Lost::cause(lost.salvage(wanted, &all)), gone);
    let candidates = lost.zone.state.salvage_candidates(&lost.zone.config(0));
    assert_eq!((candidates.len(), candidates[0].unfit), (1, None));
    // A filling that is given up leaves a mixture.
    let (proposer, replica) = (in_sync[0], lost.stale);
    lost.zone.change(0, ChangeKind::ReadoptStale { proposer, replica }).unwrap();
    let wanted = lost.wanted();
    let learner = SalvageRefusal::NotStale { node: lost.stale.node };
    assert_eq!(Lost::cause(lost.salvage(wanted, &in_sync)), learner);
    lost.zone.change(0, ChangeKind::RemoveLearner { proposer, replica }).unwrap();
    let wanted = lost.wanted();
    let suspect = SalvageRefusal::Suspect { node: lost.stale.node };
    assert_eq!(Lost::cause(lost.salvage(wanted, &in_sync)), suspect);
    let candidates = lost.zone.state.salvage_candidates(&lost.zone.config(0));
    assert_eq!(candidates[0].unfit, Some(suspect));
}

#[test]
fn a_salvage_is_a_compare_and_set_of_all_its_chunks_or_none() {
    let mut lost = Lost::new();
    let in_sync = lost.in_sync.clone();
    let good = lost.wanted();
    let late = ChunkSalvage { epoch: Epoch(1), ..good.clone() };
    let current = good.epoch;
    let refused = SalvageRefusal::OtherEpoch { current };
    assert_eq!(Lost::cause(lost.salvage(late, &in_sync)), refused);
    let healthy = ChunkSalvage { chunk: chunk(1), epoch: Epoch(1), ..good.clone() };
    let both = alloc::vec![good.clone(), healthy];
    let not_stale = SalvageRefusal::NotStale { node: lost.stale.node };
    assert_eq!(Lost::cause(lost.salvage_all(both, &in_sync)), not_stale);
    let twice = alloc::vec![good.clone(), good];
    assert_eq!(Lost::cause(lost.salvage_all(twice, &in_sync)), SalvageRefusal::UnknownChunk);
    assert_eq!(lost.salvage_all(Vec::new(), &in_sync), Err(Refusal::NothingToSalvage));
}

#[test]
fn a_revoked_store_is_never_admitted_again_and_counts_as_gone_everywhere() {
    let mut lost = Lost::new();
    let in_sync = lost.in_sync.clone();
    let wanted = lost.wanted();
    lost.salvage(wanted, &in_sync).unwrap();
    let (node, store) = (in_sync[0].node, in_sync[0].store);
    let back = NodeRecord { start: StartNumber(9), ..record(node.0) };
    let refused = Err(Refusal::StoreRevoked { node, store });
    assert_eq!(lost.zone.state.check_registration(&back), refused);
    assert_eq!(lost.zone.apply(Action::RegisterNode { node: back }).answer.map(|_| ()), refused);
    // Nor under another number.
    let moved = NodeRecord { stores: alloc::vec![StoreId(88), store], ..record(9) };
    assert_eq!(lost.zone.state.check_registration(&moved), refused);
    // With an empty store in its place the node is welcome.
    let anew = NodeRecord { stores: alloc::vec![StoreId(88)], ..record(node.0) };
    lost.zone.apply(Action::RegisterNode { node: anew }).answer.unwrap();
    // What it held of other chunks is gone as well: others are elected, and what is stale
    // gives way.
    let other = (1..4).find(|at| lost.zone.config(*at).in_sync.contains(&in_sync[1])).unwrap();
    assert!(lost.zone.state.is_store_gone(in_sync[1]));
    let config = lost.zone.config(other);
    let held = config.in_sync.iter().copied().find(|r| r.store == in_sync[1].store).unwrap();
    let evidence = Evidence::StoreAway {};
    let kind = if config.primary == held {
        let primary = config.secondaries().next().unwrap();
        ChangeKind::Elect { primary, evidence }
    } else {
        ChangeKind::RemoveSecondary { proposer: config.primary, replica: held, evidence }
    };
    lost.zone.change(other, kind).unwrap();
    let anew = NodeRecord { stores: alloc::vec![StoreId(89)], ..record(held.node.0) };
    lost.zone.apply(Action::RegisterNode { node: anew }).answer.unwrap();
    let place = Place { node: held.node, store: StoreId(89) };
    let proposer = lost.zone.config(other).primary;
    let kind = ChangeKind::AddLearnerInstead { proposer, place, away: held };
    lost.zone.change(other, kind).unwrap();
    assert!(lost.zone.config(other).replicas().all(|replica| replica != held));
    assert_eq!(lost.zone.state.erasures().count(), 0, "nobody is left to erase it");
}

#[test]
fn what_is_at_risk_is_kept_until_it_is_acknowledged() {
    let mut lost = Lost::new();
    let in_sync = lost.in_sync.clone();
    let wanted = lost.wanted();
    lost.salvage(wanted, &in_sync).unwrap();
    assert_eq!(lost.zone.state.at_risk(volume_id(2)).count(), 0);
    assert_eq!(lost.zone.state.at_risk(volume_id(1)).count(), 1);
    let (token, volume) = (None, volume_id(1));
    lost.zone.apply(Action::AcknowledgeSalvage { token, volume }).answer.unwrap();
    assert_eq!(lost.zone.state.at_risk(volume_id(1)).count(), 0);
    // A deleted volume has nothing at risk.
    let mut lost = Lost::new();
    let wanted = lost.wanted();
    lost.salvage(wanted, &in_sync).unwrap();
    let delete = Action::DeleteVolume { token: None, volume: volume_id(1), force: true };
    lost.zone.apply(delete).answer.unwrap();
    assert_eq!(lost.zone.state.at_risk(volume_id(1)).count(), 0);
}

/// Commands as version 5 wrote them, byte for byte.
const VERSION_5: [&str; 2] = [
    "050009000000000000000c0105000000746f6b656e86b35174c4df1fc468733af8c9294e95610000\
     00000000000100000000000000000000000000000001000000610000000000000001000000000000\
     00000000000000000002000000070000000000000003000000030000000000000000000000000000\
     00010000000000000001000000040000000400000000000000000000000000000003000000000000\
     000100000001000000010000000000000000000000000000000b000000616e206f70657261746f72",
    "050009000000000000000d0105000000746f6b656e86b35174c4df1fc468733af8c9294e95610000\
     000000000001000000000000000000000000000000",
];

#[test]
fn salvages_of_command_version_5_are_read_for_ever() {
    let replica = |node: u32, incarnation| ReplicaId {
        node: NodeId(node),
        store: StoreId(u128::from(node)),
        incarnation: ashlar_types::Incarnation(incarnation),
    };
    let (chunk, epoch) = (chunk(2), Epoch(7));
    let confirmed = alloc::vec![replica(4, 3)];
    let chunks = alloc::vec![ChunkSalvage { chunk, epoch, primary: replica(3, 1), confirmed }];
    let fenced = alloc::vec![place(replica(1, 1))];
    let (volume, by) = (volume_id(1), "an operator".into());
    let token = Some(token_use("token", "parameters"));
    let salvage = Action::Salvage { token: token.clone(), volume, chunks, fenced, by };
    let acknowledge = Action::AcknowledgeSalvage { token, volume };
    for (action, fixture) in [salvage, acknowledge].into_iter().zip(VERSION_5) {
        let command = Command { at_millis: 9, action };
        let digit = |at: usize| u8::from_str_radix(&fixture[2 * at..2 * at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..fixture.len() / 2).map(digit).collect();
        let written: String = command.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(Command::decode(&bytes).as_ref(), Ok(&command), "{written}");
        // As long as this is the newest version it is what is written, too.
        if crate::command::COMMAND_VERSION == 5 {
            assert_eq!(written, fixture);
        }
    }
}
