//! The half of a node that beats, and what the data core makes of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{
    BeatCore, BeatEffect, BeatInput, BeatNews, BeatOrder, DataCore, Effect, Identity, Input,
    JournalSeq, Link, Outbox, Timing,
};
use ashlar_types::message::cluster::{Change, ControlDown};
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{ChunkConfig, Epoch, NodeId, StartNumber, StoreId, Time};
use common::*;
use std::time::Duration;

fn me(node: u32) -> Identity {
    Identity { zone: "a".parse().unwrap(), node: NodeId(node), start: StartNumber(1) }
}

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn beat_behind(behind_millis: u32) -> DataMessage {
    let (adopted, short_of_space) = (vec![], vec![]);
    DataMessage::Beat { number: 1, adopted, short_of_space, has_control: false, behind_millis }
}

/// The beats of node 1, which began at 1 s, and what they do with an input.
struct Beats(BeatCore);

impl Beats {
    fn new() -> Self {
        let mut core = BeatCore::new(at(1_000), me(1), Timing::default());
        core.handle(at(1_000), BeatInput::LinkUp(NodeId(2), Network::Primary), &mut vec![]);
        Self(core)
    }

    fn take(&mut self, now: u64, input: BeatInput) -> Vec<BeatEffect> {
        let mut effects = vec![];
        self.0.handle(at(now), input, &mut effects);
        effects
    }

    fn order(&mut self, now: u64, order: BeatOrder) -> Vec<BeatEffect> {
        self.take(now, BeatInput::Order(order))
    }

    fn frame(&mut self, now: u64, message: DataMessage) -> Vec<BeatEffect> {
        self.take(now, BeatInput::Frame(NodeId(2), Network::Primary, message))
    }
}

fn behind(effects: &[BeatEffect]) -> Option<u32> {
    effects.iter().find_map(|effect| match effect {
        BeatEffect::Send(_, _, DataMessage::Beat { behind_millis, .. }) => Some(*behind_millis),
        _ => None,
    })
}

#[test]
fn a_beat_says_for_how_long_the_data_core_has_not_moved() {
    let mut beats = Beats::new();
    let moved = |at| BeatOrder::Progress { at, short_of_space: vec![], has_control: true };
    beats.order(1_140, moved(at(1_140)));
    assert_eq!(behind(&beats.take(1_150, BeatInput::Tick)), Some(10));
    assert_eq!(behind(&beats.take(1_200, BeatInput::Tick)), None, "too early");
    assert_eq!(behind(&beats.take(1_900, BeatInput::Tick)), Some(760));
    // Told late: that it moved then is all that is known.
    beats.order(2_000, moved(at(1_150)));
    assert_eq!(behind(&beats.take(2_050, BeatInput::Tick)), Some(900));
}

#[test]
fn a_peer_counts_as_heard_when_its_data_core_moved() {
    let mut beats = Beats::new();
    let told = beats.frame(5_000, beat_behind(1_200));
    let heard = told.iter().find_map(|effect| match effect {
        BeatEffect::Tell(BeatNews::Heard { at, .. }) => Some(*at),
        _ => None,
    });
    assert_eq!(heard, Some(at(3_800)));
}

#[test]
fn an_exception_is_in_force_with_its_order_and_names_the_end_of_the_last_grant() {
    let mut beats = Beats::new();
    beats.frame(5_000, beat_behind(0));
    let except = |number, epoch| BeatOrder::Except {
        number,
        peer: NodeId(2),
        chunk: chunk(),
        epoch: Epoch(epoch),
    };
    let told = beats.order(5_100, except(7, 2));
    let news = BeatNews::Excepted { number: 7, chunk: chunk(), until: at(5_500) };
    assert_eq!(told, [BeatEffect::Tell(news)]);
    let answered = beats.frame(5_200, beat_behind(0));
    assert!(
        matches!(
            answered.first(),
            Some(BeatEffect::Send(_, _, DataMessage::BeatReply { except, .. }))
                if *except == [(chunk(), Epoch(2))]
        ),
        "{answered:?}"
    );
    // Nothing was granted by this process, but what the one before granted is not known.
    let mut young = Beats::new();
    let told = young.order(1_100, except(1, 2));
    let news = BeatNews::Excepted { number: 1, chunk: chunk(), until: at(1_500) };
    assert_eq!(told, [BeatEffect::Tell(news)]);
}

#[test]
fn a_secondary_whose_data_core_stands_still_is_proposed_for_removal_although_it_beats() {
    let mut hands = serving(config(1));
    for beats in 1..20_u32 {
        hands.tick_after(Duration::from_millis(150));
        hands.peer_says(2, beat_behind(0));
        hands.peer_says(3, beat_behind(beats * 150));
        // Its thread answers too, which proves no more.
        let (number, start, clock) = (u64::from(beats), StartNumber(1), Time::ZERO);
        let (granted, except) = (true, vec![]);
        let answer = DataMessage::BeatReply { number, start, clock, granted, except };
        hands.peer_says(3, answer);
    }
    let lost = |change: &Change| matches!(change, Change::RemoveSecondary { replica: lost, .. } if *lost == replica(3));
    assert!(hands.proposed.iter().any(lost), "{:?}", hands.proposed);
    assert!(hands.proposed.iter().all(lost), "{:?}", hands.proposed);
}

/// The data core of node 2, a member of node 1's chunk, without beats.
struct Alone {
    core: DataCore,
    newest: JournalSeq,
    orders: Vec<BeatOrder>,
}

impl Alone {
    fn new() -> Self {
        let mut out = Outbox::default();
        let found = [(StoreId(2), DurableState::default())];
        let core = DataCore::new(at(1_000), me(2), Timing::default(), found, &mut out);
        let mut alone = Self { core, newest: JournalSeq(0), orders: vec![] };
        alone.feed(1_000, order(ControlDown::Configs(vec![config(1)])));
        alone
    }

    /// Whether an adoption is confirmed by it; all records become durable.
    fn feed(&mut self, now: u64, input: Input) -> bool {
        let mut confirmed = false;
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = Outbox::default();
            self.core.handle(at(now), input, &mut out);
            self.orders.extend(out.drain_orders());
            for effect in out.drain() {
                match effect {
                    Effect::Persist { store, seq, .. } => {
                        self.newest = seq;
                        inputs.push(Input::Durable { store, seq });
                    }
                    Effect::Send { message: DataMessage::Collected { .. }, .. } => confirmed = true,
                    _ => {}
                }
            }
        }
        confirmed
    }
}

#[test]
fn an_adoption_is_not_confirmed_before_the_beats_grant_no_more() {
    let mut alone = Alone::new();
    let taken = ChunkConfig {
        elected: Epoch(2),
        primary: replica(3),
        in_sync: vec![replica(3), replica(2)],
        stale: vec![(replica(1), Default::default())],
        ..config(2)
    };
    let of = term(2, 1);
    let collect = DataMessage::Collect { config: Box::new(taken), term: of };
    let from = Link::Peer(NodeId(3), Network::Primary);
    assert!(!alone.feed(9_000, Input::Frame { from, message: collect }));
    let number = alone.orders.iter().find_map(|order| match order {
        BeatOrder::Except { number, peer: NodeId(1), .. } => Some(*number),
        _ => None,
    });
    let number = number.expect("the former primary must be excepted");
    assert!(!alone.feed(60_000, Input::Tick), "the beats may still grant");
    let news = |number, until| {
        Input::Beats(BeatNews::Excepted { number, chunk: chunk(), until: at(until) })
    };
    assert!(!alone.feed(60_010, news(number - 1, 0)), "an earlier order");
    assert!(!alone.feed(60_020, news(number, 60_400)), "an earlier grant stands");
    assert!(!alone.feed(60_399, Input::Tick));
    assert!(alone.feed(60_400, Input::Tick));
}

#[test]
fn exceptions_that_are_too_many_for_one_answer_leave_nothing_granted() {
    let mut beats = Beats::new();
    let granted = |effects: &[BeatEffect]| {
        effects.iter().find_map(|effect| match effect {
            BeatEffect::Send(_, _, DataMessage::BeatReply { granted, except, .. }) => {
                Some((*granted, except.len()))
            }
            _ => None,
        })
    };
    let epoch = Epoch(2);
    let except = |index: u32| {
        let chunk = ashlar_types::ChunkId { index: ashlar_types::ChunkIndex(index), ..chunk() };
        BeatOrder::Except { number: u64::from(index), peer: NodeId(2), chunk, epoch }
    };
    for index in 0..64 {
        beats.order(1_000, except(index));
    }
    assert_eq!(granted(&beats.frame(1_000, beat_behind(0))), Some((true, 64)));
    beats.order(1_000, except(64));
    assert_eq!(granted(&beats.frame(1_000, beat_behind(0))), Some((false, 64)));
    // The holder has adopted the epoch of one: there is room again.
    let settled = vec![(chunk(), epoch)];
    let beat = DataMessage::Beat {
        number: 2,
        adopted: settled,
        short_of_space: vec![],
        has_control: false,
        behind_millis: 0,
    };
    assert_eq!(granted(&beats.frame(1_000, beat)), Some((true, 64)));
}
