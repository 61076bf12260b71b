//! The network that a pair of nodes uses: fail-over to the replication network and back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Input, Link};
use ashlar_types::message::cluster::Change;
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{NodeId, StartNumber, Time};
use common::*;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

/// Lets time pass; peers beat, and answer every beat, over the networks named.
fn pass(hands: &mut Hands, ticks: u32, answers: &[(u32, Network)]) {
    for _ in 0..ticks {
        let sent = hands.tick_after(TICK);
        let number = sent.iter().find_map(|(_, message)| match message {
            DataMessage::Beat { number, .. } => Some(*number),
            _ => None,
        });
        let Some(number) = number else { continue };
        for (peer, network) in answers {
            let start = StartNumber(1);
            let (granted, clock, except) = (false, Time::ZERO, vec![]);
            let message = DataMessage::BeatReply { number, start, clock, granted, except };
            let from = Link::Peer(NodeId(*peer), *network);
            hands.feed(Input::Frame { from, message: beat() });
            hands.feed(Input::Frame { from, message });
        }
    }
}

const ALL_BUT_3_ON_PRIMARY: [(u32, Network); 3] =
    [(2, Network::Primary), (2, Network::Replication), (3, Network::Replication)];
const ALL: [(u32, Network); 4] = [
    (2, Network::Primary),
    (2, Network::Replication),
    (3, Network::Primary),
    (3, Network::Replication),
];

/// A serving primary with both networks to both secondaries.
fn on_two_networks() -> Hands {
    let mut hands = serving(config(1));
    for peer in [2, 3] {
        hands.feed(Input::LinkUp {
            node: NodeId(peer),
            network: Network::Replication,
            process: process(peer, 1),
        });
    }
    pass(&mut hands, 6, &ALL);
    hands
}

fn over(hands: &Hands, peer: u32) -> Option<Network> {
    hands.mirrored_over.get(&NodeId(peer)).copied()
}

#[test]
fn a_pair_without_its_primary_network_mirrors_over_the_other_one() {
    let mut hands = on_two_networks();
    hands.client_says(write(1, 1, block(0, 1)));
    hands.sync();
    assert_eq!(over(&hands, 3), Some(Network::Primary));
    let at = lsn(term(1, 1), 1);
    hands.ack(2, at);
    pass(&mut hands, 12, &ALL_BUT_3_ON_PRIMARY);
    assert_eq!(over(&hands, 3), Some(Network::Replication), "what was on its way is sent again");
    assert_eq!(over(&hands, 2), Some(Network::Primary), "only the pair that needs it moves");
    pass(&mut hands, 6, &ALL_BUT_3_ON_PRIMARY);
    assert!(hands.proposed.is_empty(), "a secondary that answers on one network is not lost");
    let epoch = hands.core.config(chunk()).unwrap().epoch;
    let message = DataMessage::MirrorAck {
        chunk: chunk(),
        epoch,
        lsn: at,
        start: StartNumber(1),
        fill: None,
    };
    let from = Link::Peer(NodeId(3), Network::Replication);
    assert!(is_done(&hands.feed(Input::Frame { from, message }), 1));
}

#[test]
fn a_pair_returns_to_its_primary_network_when_it_has_been_good_for_a_while() {
    let mut hands = on_two_networks();
    pass(&mut hands, 12, &ALL_BUT_3_ON_PRIMARY);
    let write_at = |hands: &mut Hands, counter: u64| {
        hands.client_says(write(counter, 1, block(0, 1)));
        hands.sync();
        for peer in [2, 3] {
            hands.ack(peer, lsn(term(1, 1), counter));
        }
    };
    write_at(&mut hands, 1);
    assert_eq!(over(&hands, 3), Some(Network::Replication));
    // Good for a second, bad again, good: it must be good without a break.
    pass(&mut hands, 20, &ALL);
    pass(&mut hands, 12, &ALL_BUT_3_ON_PRIMARY);
    pass(&mut hands, 36, &ALL);
    write_at(&mut hands, 2);
    assert_eq!(over(&hands, 3), Some(Network::Replication), "returned too early");
    pass(&mut hands, 10, &ALL);
    write_at(&mut hands, 3);
    assert_eq!(over(&hands, 3), Some(Network::Primary));
}

#[test]
fn a_broken_primary_connection_moves_the_pair_at_the_next_tick() {
    let mut hands = on_two_networks();
    let (node, network) = (NodeId(3), Network::Primary);
    hands.feed(Input::LinkDown { node, network, refused: false });
    hands.client_says(write(1, 1, block(0, 1)));
    hands.sync();
    assert_eq!(over(&hands, 3), None);
    hands.tick_after(TICK);
    assert_eq!(over(&hands, 3), Some(Network::Replication));
}

#[test]
fn a_silent_node_moves_nothing_and_is_proposed_for_removal() {
    let mut hands = on_two_networks();
    let only_2 = [(2, Network::Primary), (2, Network::Replication)];
    pass(&mut hands, 25, &only_2);
    assert!(matches!(
        hands.proposed.first(),
        Some(Change::RemoveSecondary { replica: lost, .. }) if *lost == replica(3)
    ));
    hands.client_says(write(1, 1, block(0, 1)));
    assert_eq!(over(&hands, 3), Some(Network::Primary));
}
