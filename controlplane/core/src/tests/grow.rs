//! Growth: what it adds, what it leaves alone, when clients are told, and what is refused.

use super::*;
use crate::command::{Place, Placement};
use crate::grow::GrowthRefusal;
use crate::place::{NoPlacement, Space, place_growth};
use alloc::vec;
use ashlar_types::limit::{CHUNKS_MAX, GROWTH_CHUNKS_MAX};

const NEW: core::ops::Range<u32> = 4..6;

impl Zone {
    /// Volume 1 with four chunks that serve.
    fn ready() -> Self {
        let mut zone = Self::with_volume();
        zone.apply(Action::MarkReady { volumes: [volume_id(1)].into() });
        zone
    }

    fn volume(&self) -> Volume {
        self.state.volume(volume_id(1)).unwrap().clone()
    }

    fn placed(&self, size_bytes: u64) -> Result<Placement, NoPlacement> {
        let volume = self.volume();
        let to = self.state.check_growth(&volume, size_bytes).unwrap();
        let Some(to) = to else { return Ok(Placement::default()) };
        let verdicts = judge_all(self.now, &self.state, &self.seen);
        place_growth(&volume, to, Space::of(&self.state, &self.seen, &verdicts))
    }

    fn grow(&mut self, token: Option<&str>, size_bytes: u64) -> Result<Answer, Refusal> {
        let placement = self.placed(size_bytes).unwrap();
        let token = token.map(|token| token_use(token, &format!("{size_bytes}")));
        self.apply(Action::GrowVolume { token, volume: volume_id(1), size_bytes, placement }).answer
    }

    /// The primaries of these chunks serve.
    fn serve(&mut self, chunks: core::ops::Range<u32>) {
        for index in chunks {
            let primary = self.config(index).primary;
            self.report(index, primary, ReplicaState::Serving);
        }
    }

    fn finish(&mut self) {
        let grown = self.plan().grown;
        self.apply(Action::FinishGrowth { grown }).answer.unwrap();
    }

    fn size(&self) -> u64 {
        self.volume().geometry.size_bytes()
    }
}

#[test]
fn a_volume_has_its_new_size_once_every_new_chunk_serves() {
    let mut zone = Zone::ready();
    zone.grow(None, 384 * MIB).unwrap();
    assert_eq!((zone.size(), zone.state.grows_to(volume_id(1))), (256 * MIB, Some(384 * MIB)));
    assert_eq!(zone.state.volume_configs(volume_id(1)).count(), 6);
    assert_eq!(zone.state.told_configs(&zone.volume()).count(), 4);
    // Those that were there serve, which says nothing of the new ones.
    zone.serve(0..4);
    assert!(zone.plan().grown.is_empty());
    zone.serve(4..5);
    assert!(zone.plan().grown.is_empty());
    zone.serve(5..6);
    assert_eq!(zone.plan().grown, [(volume_id(1), 384 * MIB)]);
    zone.finish();
    assert_eq!((zone.size(), zone.state.grows_to(volume_id(1))), (384 * MIB, None));
    assert_eq!(zone.state.told_configs(&zone.volume()).count(), 6);
    assert!(zone.plan().grown.is_empty());
}

#[test]
fn what_is_there_is_left_alone() {
    let mut zone = Zone::ready();
    zone.attach("client", false).unwrap();
    let before: Vec<ChunkConfig> = (0..4).map(|index| zone.config(index)).collect();
    let attached = zone.volume();
    zone.grow(None, 384 * MIB).unwrap();
    zone.serve(NEW);
    zone.finish();
    let after: Vec<ChunkConfig> = (0..4).map(|index| zone.config(index)).collect();
    assert_eq!(before, after);
    let grown = zone.volume();
    assert_eq!((grown.generation, &grown.attachment), (attached.generation, &attached.attachment));
    for index in NEW {
        let config = zone.config(index);
        assert_eq!((config.epoch, config.generation), (Epoch(1), attached.generation));
        assert_eq!((config.in_sync.len(), config.copies_min), (3, 2));
    }
}

#[test]
fn the_same_call_is_the_same_growth_and_the_same_size_none() {
    let mut zone = Zone::ready();
    let first = zone.grow(Some("t"), 384 * MIB).unwrap();
    assert_eq!(zone.grow(Some("t"), 384 * MIB), Ok(first.clone()));
    zone.grow(None, 384 * MIB).unwrap();
    assert_eq!(zone.state.volume_configs(volume_id(1)).count(), 6);
    zone.serve(NEW);
    zone.finish();
    assert_eq!(zone.grow(Some("t"), 384 * MIB), Ok(first), "what was answered then");
    zone.grow(None, 384 * MIB).unwrap();
    assert_eq!((zone.size(), zone.state.grows_to(volume_id(1))), (384 * MIB, None));
    let other = Action::GrowVolume {
        token: Some(token_use("t", "other")),
        volume: volume_id(1),
        size_bytes: 448 * MIB,
        placement: Placement::default(),
    };
    assert_eq!(zone.apply(other).answer, Err(Refusal::TokenMismatch));
}

#[test]
fn a_volume_never_shrinks_and_grows_one_step_at_a_time() {
    let mut zone = Zone::new();
    zone.create(None, "v").unwrap();
    let refused = |zone: &mut Zone, size_bytes: u64| {
        let placement = Placement::default();
        let action =
            Action::GrowVolume { token: None, volume: volume_id(1), size_bytes, placement };
        zone.apply(action).answer.unwrap_err()
    };
    assert_eq!(refused(&mut zone, 384 * MIB), Refusal::Growth(GrowthRefusal::Creating));
    zone.apply(Action::MarkReady { volumes: [volume_id(1)].into() });
    let shrinks = |size_bytes| Refusal::Growth(GrowthRefusal::Shrinks { size_bytes });
    assert_eq!(refused(&mut zone, 255 * MIB), shrinks(256 * MIB));
    assert_eq!(refused(&mut zone, 1), shrinks(256 * MIB));
    zone.grow(None, 384 * MIB).unwrap();
    assert_eq!(refused(&mut zone, 256 * MIB), shrinks(384 * MIB), "it grows to more");
    let growing = GrowthRefusal::Growing { size_bytes: 384 * MIB };
    assert_eq!(refused(&mut zone, 448 * MIB), Refusal::Growth(growing));
    assert_eq!(zone.state.volume_configs(volume_id(1)).count(), 6);
    let unknown = Action::GrowVolume {
        token: None,
        volume: volume_id(9),
        size_bytes: 1,
        placement: Placement::default(),
    };
    assert_eq!(zone.apply(unknown).answer, Err(Refusal::VolumeNotFound(volume_id(9))));
}

#[test]
fn sizes_that_no_volume_has_are_refused() {
    let zone = Zone::ready();
    let refused = |size| zone.state.check_growth(&zone.volume(), size).unwrap_err();
    assert!(matches!(refused(0), GrowthRefusal::Size(_)));
    assert!(matches!(refused(u64::MAX), GrowthRefusal::Size(_)));
    let chunk_bytes = 64 * MIB;
    let largest_bytes = CHUNKS_MAX * chunk_bytes;
    let too_many = GrowthRefusal::TooManyChunks { chunk_bytes, largest_bytes };
    assert_eq!(refused(largest_bytes + 1), too_many);
    let largest_bytes = (4 + GROWTH_CHUNKS_MAX) * chunk_bytes;
    let at_once = GrowthRefusal::TooManyAtOnce { largest_bytes };
    assert_eq!(refused(largest_bytes + 1), at_once);
    assert!(zone.state.check_growth(&zone.volume(), largest_bytes).unwrap().is_some());
}

#[test]
fn nothing_is_half_done_when_the_places_do_not_fit() {
    let mut zone = Zone::ready();
    let good = zone.placed(384 * MIB).unwrap();
    let mut unknown = good.clone();
    unknown.0[1][0] = Place { node: NodeId(77), store: StoreId(77) };
    let short = Placement(good.0[..1].to_vec());
    let long = Placement([good.0.clone(), good.0.clone()].concat());
    let before = zone.state.volume_configs(volume_id(1)).count();
    for placement in [unknown, short, long] {
        let (volume, size_bytes) = (volume_id(1), 384 * MIB);
        let action = Action::GrowVolume { token: None, volume, size_bytes, placement };
        assert_eq!(zone.apply(action).answer, Err(Refusal::Placement));
        assert_eq!(zone.state.volume_configs(volume_id(1)).count(), before);
        assert_eq!(zone.state.grows_to(volume_id(1)), None);
    }
}

#[test]
fn a_late_word_about_another_growth_ends_none() {
    let mut zone = Zone::ready();
    zone.grow(None, 320 * MIB).unwrap();
    zone.serve(4..5);
    let late = Action::FinishGrowth { grown: zone.plan().grown };
    zone.apply(late.clone());
    zone.grow(None, 384 * MIB).unwrap();
    zone.apply(late);
    assert_eq!((zone.size(), zone.state.grows_to(volume_id(1))), (320 * MIB, Some(384 * MIB)));
}

#[test]
fn attachments_that_change_while_it_grows_take_the_new_chunks_along() {
    let mut zone = Zone::ready();
    zone.grow(None, 384 * MIB).unwrap();
    let attached = zone.attach("client", false).unwrap();
    for index in 0..6 {
        assert_eq!(zone.config(index).generation, attached.generation);
    }
    zone.serve(NEW);
    zone.finish();
    assert_eq!(zone.size(), 384 * MIB);
}

#[test]
fn the_last_chunk_grows_without_a_new_one_and_its_promise_with_it() {
    let mut zone = Zone::ready();
    let promised = |zone: &Zone| -> u64 {
        (1..=4).map(|node| zone.state.allocated_on(NodeId(node), StoreId(node.into()))).sum()
    };
    assert_eq!(promised(&zone), 3 * 256 * MIB);
    zone.grow(None, 257 * MIB).unwrap();
    assert_eq!(promised(&zone), 3 * 257 * MIB, "the promise comes before the size");
    zone.serve(4..5);
    zone.finish();
    assert_eq!(promised(&zone), 3 * 257 * MIB);
    zone.grow(None, 300 * MIB).unwrap();
    assert_eq!((zone.size(), zone.state.grows_to(volume_id(1))), (300 * MIB, None));
    assert_eq!(promised(&zone), 3 * 300 * MIB);
    zone.grow(None, 321 * MIB).unwrap();
    assert_eq!(promised(&zone), 3 * 321 * MIB);
    zone.apply(Action::DeleteVolume { token: None, volume: volume_id(1), force: false })
        .answer
        .unwrap();
    assert_eq!((promised(&zone), zone.state.growths().count()), (0, 0));
}

#[test]
fn a_growth_without_room_is_refused_by_chunk_and_node() {
    let mut zone = Zone::ready();
    // Four nodes of 1 GiB hold three copies of 256 MiB.
    let refused = zone.placed(2_048 * MIB).unwrap_err();
    assert!(refused.chunk.0 >= 4 && refused.wanted == 3, "{refused}");
    assert!(refused.candidates.iter().all(|one| one.why.contains("bytes free")));
    // Without a new chunk, the holders of the last one must have the room.
    zone.grow(None, 257 * MIB).unwrap();
    zone.serve(4..5);
    zone.finish();
    for node in 1..=4 {
        let beat = beat_of(node, (1 << 30) - MIB);
        zone.seen.on_heartbeat(zone.now, NodeId(node), beat);
    }
    let refused = zone.placed(300 * MIB).unwrap_err();
    assert_eq!((refused.chunk, refused.found, refused.wanted), (ChunkIndex(4), 0, 3));
    assert!(refused.candidates[0].why.contains("last chunk"));
}

#[test]
fn what_is_on_its_way_is_counted() {
    let zone = Zone::ready();
    let placement = zone.placed(384 * MIB + 1).unwrap();
    let (volume, size_bytes) = (volume_id(1), 384 * MIB + 1);
    let action = Action::GrowVolume { token: None, volume, size_bytes, placement };
    let placing = crate::place::placing(&action, &zone.state);
    let bytes: Vec<u64> = placing.iter().map(|one| one.bytes).collect();
    assert_eq!(bytes, vec![64 * MIB, 64 * MIB, 4096]);
    assert!(placing.iter().all(|one| one.places.len() == 3));
}
