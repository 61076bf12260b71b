//! One replica that all others wait for is replaced; when several lag, nobody is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Input, Timing};
use ashlar_types::message::cluster::{Change, ControlDown, RemovalReason};
use ashlar_types::message::data::{DataMessage, History, Network, Uncommitted};
use ashlar_types::{BlockRange, ChunkConfig, RequestId};
use common::*;
use std::time::Duration;

/// Time passes; secondaries beat all the while.
fn pass(hands: &mut Hands, millis: u64) {
    for _ in 0..millis / 100 {
        for peer in [2, 3] {
            hands.peer_says(peer, beat());
        }
        hands.tick_after(Duration::from_millis(100));
    }
}

fn write_at(hands: &mut Hands, sync: bool, acks: &[u32]) {
    hands.client_says(write(1, 1, block(0, 1)));
    if sync {
        hands.sync();
    }
    for peer in acks {
        hands.ack(*peer, lsn(term(1, 1), 1));
    }
}

fn slow(hands: &Hands) -> Option<u32> {
    hands.proposed.iter().find_map(|change| match change {
        Change::RemoveSecondary { replica, reason: RemovalReason::Slow { millis } } => {
            assert!(*millis >= 1_000);
            Some(replica.node.0)
        }
        _ => None,
    })
}

#[test]
fn a_secondary_that_alone_is_waited_for_is_proposed_for_removal_after_a_second() {
    let mut hands = serving(config(1));
    write_at(&mut hands, true, &[2]);
    pass(&mut hands, 900);
    assert!(hands.proposed.is_empty());
    pass(&mut hands, 200);
    assert_eq!(slow(&hands), Some(3));
}

#[test]
fn a_primary_whose_own_disk_is_waited_for_asks_for_another() {
    let mut hands = serving(config(1));
    write_at(&mut hands, false, &[2, 3]);
    pass(&mut hands, 1_100);
    assert!(
        matches!(hands.proposed.first(), Some(Change::StepDown { millis }) if *millis >= 1_000)
    );
}

#[test]
fn when_several_lag_nobody_is_slower_than_the_others() {
    let mut hands = serving(config(1));
    write_at(&mut hands, true, &[]);
    pass(&mut hands, 3_000);
    assert!(hands.proposed.is_empty());
    let mut hands = serving(config(1));
    write_at(&mut hands, false, &[2]);
    pass(&mut hands, 3_000);
    assert!(hands.proposed.is_empty(), "its own disk lags as well");
}

#[test]
fn a_slow_secondary_stays_when_too_few_would_remain() {
    let two = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        stale: vec![(replica(3), Default::default())],
        ..config(1)
    };
    let mut hands = serving(two);
    write_at(&mut hands, true, &[]);
    pass(&mut hands, 3_000);
    assert_eq!(slow(&hands), None);
}

#[test]
fn a_secondary_that_was_too_slow_rests_before_it_is_filled_again() {
    let mut hands = serving(config(1));
    write_at(&mut hands, true, &[2]);
    pass(&mut hands, 1_100);
    let removed = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        stale: vec![(replica(3), Default::default())],
        ..config(2)
    };
    hands.feed(order(ControlDown::Configs(vec![removed])));
    hands.sync();
    hands.proposed.clear();
    pass(&mut hands, 28_000);
    assert_eq!(hands.proposed, []);
    pass(&mut hands, 3_000);
    assert!(
        matches!(hands.proposed.first(), Some(Change::ReadoptStale { replica: r }) if *r == replica(3))
    );
}

/// The secondary was taken out at this epoch: what is proposed while time passes, first thing.
fn after_removal(hands: &mut Hands, epoch: u64, millis: u64) -> Option<Change> {
    let removed = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        stale: vec![(replica(3), Default::default())],
        ..config(epoch)
    };
    hands.feed(order(ControlDown::Configs(vec![removed])));
    hands.sync();
    hands.proposed.clear();
    pass(hands, millis);
    hands.proposed.first().cloned()
}

#[test]
fn each_relapse_doubles_the_rest() {
    let mut hands = serving(config(1));
    write_at(&mut hands, true, &[2]);
    pass(&mut hands, 1_100);
    assert_eq!(slow(&hands), Some(3));
    let readopted = Some(Change::ReadoptStale { replica: replica(3) });
    assert_eq!(after_removal(&mut hands, 2, 31_000), readopted);
    // It was filled, and everybody waits for it again.
    hands.feed(order(ControlDown::Configs(vec![config(3)])));
    hands.sync();
    hands.proposed.clear();
    hands.client_says(write(2, 3, block(0, 1)));
    hands.sync();
    hands.ack(2, lsn(term(1, 1), 2));
    pass(&mut hands, 1_200);
    assert_eq!(slow(&hands), Some(3));
    assert_eq!(after_removal(&mut hands, 4, 55_000), None, "twice as long");
    pass(&mut hands, 6_000);
    assert_eq!(hands.proposed.first().cloned(), readopted);
}

#[test]
fn a_copy_that_was_lost_to_slowness_alone_starts_no_search_for_five_minutes() {
    // A window as short as that of `ashlar dev`: it would be over long before.
    TIMING.set(Some(Timing { readopt_window: Duration::from_secs(1), ..Timing::default() }));
    let mut hands = serving(config(1));
    write_at(&mut hands, true, &[2]);
    pass(&mut hands, 1_100);
    assert_eq!(slow(&hands), Some(3));
    let removed = ChunkConfig {
        in_sync: vec![replica(1), replica(2)],
        stale: vec![(replica(3), Default::default())],
        ..config(2)
    };
    hands.feed(order(ControlDown::Configs(vec![removed])));
    hands.sync();
    // It cannot be reached, so it is not taken back.
    let (node, network) = (ashlar_types::NodeId(3), Network::Primary);
    hands.feed(Input::LinkDown { node, network, refused: false });
    hands.proposed.clear();
    pass(&mut hands, 295_000);
    assert_eq!(hands.proposed, []);
    pass(&mut hands, 6_000);
    assert_eq!(hands.proposed.first(), Some(&Change::SeekLearner));
}

#[test]
fn a_gap_in_its_own_time_makes_nobody_slow() {
    let mut hands = serving(config(1));
    write_at(&mut hands, true, &[2]);
    hands.tick_after(Duration::from_secs(5));
    assert!(hands.proposed.is_empty(), "its acknowledgement may wait to be read");
}

/// Nodes 1, 2 and 3 as before, and another election: node 1 opens its term.
fn opening() -> Hands {
    let (mut hands, _) = Hands::with(1, config(1));
    hands.collected(2, term(1, 1), History::default());
    hands
}

#[test]
fn an_opening_does_not_wait_for_one_member_that_beats_and_does_not_answer() {
    let mut hands = opening();
    pass(&mut hands, 1_400);
    assert!(hands.proposed.is_empty(), "it may wait for a lease to run out");
    pass(&mut hands, 200);
    assert_eq!(slow(&hands), Some(3));
}

#[test]
fn an_opening_does_not_wait_for_one_member_that_does_not_open_the_term() {
    let mut hands = opening();
    hands.collected(3, term(1, 1), History::default());
    hands.sync();
    hands.ack(2, lsn(term(1, 1), 0));
    pass(&mut hands, 1_100);
    assert_eq!(slow(&hands), Some(3));
}

#[test]
fn an_opening_does_not_wait_for_the_one_member_that_content_is_fetched_from() {
    let mut hands = opening();
    hands.collected(3, term(1, 1), longer());
    pass(&mut hands, 1_600);
    assert_eq!(slow(&hands), Some(3));
}

/// One write more than node 1 has.
fn longer() -> History {
    let last = lsn(term(1, 0), 1);
    let uncommitted = vec![Uncommitted { lsn: last, range: BlockRange::new(0, 1) }];
    History { last, uncommitted, ..History::default() }
}

#[test]
fn an_opening_that_begins_anew_takes_nothing_over_twice() {
    let mut hands = opening();
    hands.collected(3, term(1, 1), longer());
    for epoch in 2..5 {
        hands.feed(order(ControlDown::Configs(vec![config(epoch)])));
        hands.sync();
        hands.collected(2, term(1, 1), History::default());
        hands.collected(3, term(1, 1), longer());
        assert_eq!(hands.core.durable(chunk()).unwrap().uncommitted, longer().uncommitted);
    }
}

#[test]
fn a_primary_that_cannot_journal_its_opening_asks_for_another() {
    let (mut hands, _) = Hands::new(1, 1, Default::default());
    for peer in 2..=4 {
        hands.link_up(peer, 1);
    }
    hands.feed(order(ControlDown::Configs(vec![config(1)])));
    pass(&mut hands, 1_700);
    assert!(
        matches!(hands.proposed.first(), Some(Change::StepDown { .. })),
        "{:?}",
        hands.proposed
    );
}

#[test]
fn a_primary_whose_disk_owes_a_read_for_long_asks_for_another() {
    let mut hands = serving(config(1));
    let (id, range) = (RequestId(1), BlockRange::new(0, 1));
    hands.client_says(DataMessage::Read { id, stamp: stamp(1), range });
    pass(&mut hands, 4_900);
    assert!(hands.proposed.is_empty(), "{:?}", hands.proposed);
    pass(&mut hands, 200);
    assert!(
        matches!(hands.proposed.first(), Some(Change::StepDown { .. })),
        "{:?}",
        hands.proposed
    );
}
