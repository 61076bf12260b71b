//! Nodes whose stream to the control plane is gone speak through a peer that has one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::{Effect, Input, Link, Outbox};
use ashlar_types::message::cluster::{Change, ControlDown, ControlUp, Order, Relayed};
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{ControlTerm, Epoch, NodeId, StartNumber, StoreId, Time};
use common::*;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

/// Time passes; each peer named answers beats, and says whether it has a stream.
fn pass(hands: &mut Hands, ticks: u32, peers: &[(u32, bool)]) -> Vec<(NodeId, DataMessage)> {
    let mut all = vec![];
    for _ in 0..ticks {
        let sent = hands.tick_after(TICK);
        let beat = sent.iter().find_map(|(_, message)| match message {
            DataMessage::Beat { number, .. } => Some(*number),
            _ => None,
        });
        for (peer, has_control) in peers {
            all.extend(hands.peer_says(
                *peer,
                DataMessage::Beat {
                    number: 1,
                    adopted: vec![],
                    short_of_space: vec![],
                    has_control: *has_control,
                    behind_millis: 0,
                },
            ));
            let Some(number) = beat else { continue };
            let start = StartNumber(1);
            let (granted, clock, except) = (false, Time::ZERO, vec![]);
            let message = DataMessage::BeatReply { number, start, clock, granted, except };
            hands.peer_says(*peer, message);
        }
        all.extend(sent);
    }
    all
}

/// What was sent to be relayed: by whom, and what.
fn relayed(sent: &[(NodeId, DataMessage)]) -> Vec<(u32, ControlUp)> {
    let of = |(to, message): &(NodeId, DataMessage)| match message {
        DataMessage::Relay { store, message } => {
            assert_eq!(*store, StoreId(1), "the sender's own store");
            Some((to.0, (**message).clone()))
        }
        _ => None,
    };
    sent.iter().filter_map(of).collect()
}

fn tells_all(ups: &[(u32, ControlUp)]) -> usize {
    ups.iter().filter(|(_, up)| matches!(up, ControlUp::Replicas(r) if !r.is_empty())).count()
}

#[test]
fn without_a_stream_a_peer_that_has_one_and_answers_is_asked() {
    let mut hands = serving(config(1));
    hands.feed(Input::ControlUp);
    let sent = pass(&mut hands, 40, &[(2, true), (3, true)]);
    assert!(relayed(&sent).is_empty(), "it has a stream");
    pass(&mut hands, 4, &[(2, false), (3, false)]);
    hands.feed(Input::ControlLost);
    let sent = pass(&mut hands, 40, &[(2, false), (3, false)]);
    assert!(relayed(&sent).is_empty(), "nobody could hand it on");
    let ups = relayed(&pass(&mut hands, 40, &[(2, false), (3, true)]));
    assert!(ups.iter().all(|(to, _)| *to == 3), "{ups:?}");
    let beats = ups.iter().filter(|(_, up)| matches!(up, ControlUp::Heartbeat(_))).count();
    assert!((6..=8).contains(&beats), "every 300 ms of 2 s: {beats}");
    assert_eq!(tells_all(&ups), 1, "whoever is new is told everything, once");
    // Another takes over when the one before has lost its stream too, or does not answer.
    let ups = relayed(&pass(&mut hands, 20, &[(2, true), (3, false)]));
    assert_eq!(ups.last().map(|(to, _)| *to), Some(2));
    assert_eq!(tells_all(&ups), 1);
    let ups = relayed(&pass(&mut hands, 20, &[(3, true)]));
    assert_eq!(ups.last().map(|(to, _)| *to), Some(3));
    // Nobody notices what is lost on the way: everything is told again every 3 s.
    let ups = relayed(&pass(&mut hands, 180, &[(3, true)]));
    assert_eq!(tells_all(&ups), 3, "in 9 s");
    hands.feed(Input::ControlUp);
    assert!(relayed(&pass(&mut hands, 20, &[(3, true)])).is_empty());
}

#[test]
fn what_a_primary_proposes_goes_through_the_peer() {
    let mut hands = serving(config(1));
    hands.feed(Input::ControlLost);
    pass(&mut hands, 4, &[(2, true), (3, true)]);
    let sent = pass(&mut hands, 40, &[(2, true)]);
    let removes = |up: &ControlUp| match up {
        ControlUp::Propose(proposals) => proposals.iter().any(
            |p| matches!(p.change, Change::RemoveSecondary { replica, .. } if replica.node.0 == 3),
        ),
        _ => false,
    };
    assert!(relayed(&sent).iter().any(|(to, up)| *to == 2 && removes(up)), "{sent:?}");
    assert!(hands.proposed.is_empty(), "on a stream that is gone");
}

#[test]
fn a_node_hands_on_only_while_it_has_a_stream_and_both_ways() {
    let (mut hands, _) = Hands::with(2, config(1));
    let says = |hands: &mut Hands| {
        let message = Box::new(ControlUp::Propose(vec![]));
        let message = DataMessage::Relay { store: StoreId(3), message };
        let from = Link::Peer(NodeId(3), Network::Primary);
        let mut out = Outbox::default();
        hands.core.handle(hands.now, Input::Frame { from, message }, &mut out);
        out.drain().collect::<Vec<_>>()
    };
    assert!(says(&mut hands).is_empty(), "it would end here");
    hands.feed(Input::ControlUp);
    let message = Box::new(ControlUp::Propose(vec![]));
    let expected = Relayed { node: NodeId(3), store: StoreId(3), message };
    assert_eq!(says(&mut hands), [Effect::Control(ControlUp::Relayed(expected))]);
    let message = ControlDown::AskToFollow(vec![(chunk(), Epoch(1))]);
    let relay = ControlDown::Relay { to: NodeId(3), message: Box::new(message.clone()) };
    let sent = hands.feed(Input::Control(Order { term: ControlTerm(7), message: relay }));
    let order = Box::new(Order { term: ControlTerm(7), message });
    assert_eq!(sent, [(NodeId(3), DataMessage::Relayed { order })], "under the leader's term");
}

#[test]
fn an_order_that_is_relayed_counts_like_any_other_and_a_late_one_does_not() {
    let (mut hands, _) = Hands::with(2, config(1));
    let says = |hands: &mut Hands, term, epoch| {
        let message = ControlDown::Configs(vec![config(epoch)]);
        let order = Box::new(Order { term: ControlTerm(term), message });
        hands.peer_says(3, DataMessage::Relayed { order });
        hands.core.config(chunk()).unwrap().epoch
    };
    assert_eq!(says(&mut hands, 5, 2), Epoch(2));
    assert_eq!(says(&mut hands, 4, 3), Epoch(2), "a leader that was replaced is listened to");
    assert_eq!(says(&mut hands, 5, 3), Epoch(3));
}
