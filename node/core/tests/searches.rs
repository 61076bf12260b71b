//! Searches for a new home: bounded when there is none (design.md section 7, I6).

mod common;

use ashlar_node_core::{Input, Link};
use ashlar_types::message::cluster::{Change, ControlDown, SearchBudget};
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{ChunkConfig, NodeId};
use common::{config, order, replica, serving};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

fn searches(proposed: &[Change]) -> usize {
    proposed.iter().filter(|change| **change == Change::SeekLearner).count()
}

/// One copy left, nowhere another.
fn degraded(epoch: u64) -> ChunkConfig {
    ChunkConfig { in_sync: vec![replica(1)], ..config(epoch) }
}

#[test]
fn a_search_that_finds_no_space_is_repeated_at_most_twelve_times_a_minute() {
    let mut hands = serving(degraded(1));
    let mut each_tick = vec![];
    for _ in 0..3_600 {
        hands.tick_after(TICK);
        each_tick.push(searches(&hands.proposed));
        hands.proposed.clear();
    }
    let minute = 60_000 / 50;
    let worst = each_tick.windows(minute).map(|ticks| ticks.iter().sum::<usize>()).max();
    assert!(worst <= Some(12), "{worst:?} searches within a minute");
    let first: usize = each_tick[..20].iter().sum();
    assert!((2..=6).contains(&first), "{first} searches in the first second");
    let last: usize = each_tick[minute * 2..].iter().sum();
    assert!(last >= 1, "it gave up");
}

#[test]
fn a_node_that_comes_back_lets_the_search_begin_at_once_a_later_epoch_does_not() {
    let mut hands = serving(degraded(1));
    for _ in 0..600 {
        hands.tick_after(TICK);
    }
    hands.proposed.clear();
    hands.feed(order(ControlDown::Configs(vec![degraded(2)])));
    hands.tick_after(TICK);
    assert_eq!(searches(&hands.proposed), 0);
    for _ in 0..1_200 {
        hands.tick_after(TICK);
    }
    hands.proposed.clear();
    hands.link_up(4, 2);
    hands.tick_after(TICK);
    assert_eq!(searches(&hands.proposed), 1);
}

#[test]
fn in_a_large_interruption_only_a_chunk_with_one_copy_left_searches() {
    let within = |config: ChunkConfig, budget| {
        let mut hands = serving(config);
        hands.feed(order(ControlDown::Search(budget)));
        for _ in 0..400 {
            hands.feed(Input::Frame { from: beat_of(2), message: heard() });
            hands.tick_after(TICK);
        }
        searches(&hands.proposed)
    };
    let interrupted = SearchBudget { only_urgent: true, per_second: 1 };
    let two_left = ChunkConfig { in_sync: vec![replica(1), replica(2)], ..config(1) };
    assert_eq!(within(two_left.clone(), interrupted), 0);
    assert!(within(two_left, SearchBudget::FULL) > 0);
    assert!(within(degraded(1), interrupted) > 0);
}

fn beat_of(node: u32) -> Link {
    Link::Peer(NodeId(node), Network::Primary)
}

fn heard() -> DataMessage {
    DataMessage::Beat {
        number: 1,
        adopted: vec![],
        short_of_space: vec![],
        has_control: false,
        behind_millis: 0,
    }
}
