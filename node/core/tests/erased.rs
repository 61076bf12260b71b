//! What is left of a replica that was erased: the epochs that it refused stay refused. Found by
//! `model/`: otherwise an old primary that sleeps through a retirement finds its secondary again,
//! empty and willing, and acknowledges beside the new one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::Record;
use ashlar_node_core::durable::DurableState;
use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::{DataMessage, PeerRefusal};
use ashlar_types::{ChunkConfig, Epoch, Incarnation, ReplicaId};
use common::{Hands, chunk, config, following, order, refusal, replica, term};

/// Node 2 was a secondary of node 1, has taken over in epoch 2, and was retired and erased later.
fn erased() -> Hands {
    let (mut hands, _) = following();
    let elected = ChunkConfig {
        primary: replica(2),
        elected: Epoch(2),
        in_sync: vec![replica(2), replica(3)],
        stale: vec![(replica(1), Default::default())],
        ..config(2)
    };
    hands.feed(order(ControlDown::Configs(vec![elected])));
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    hands.sync();
    assert!(hands.core.durable(chunk()).is_none());
    hands
}

/// The primary of epoch 1 wakes in a new process and opens a term.
fn old_primary_collects(hands: &mut Hands) {
    let collect = DataMessage::Collect { config: Box::new(config(1)), term: term(1, 2) };
    let mut sent = hands.peer_says(1, collect);
    sent.extend(hands.sync());
    assert!(matches!(refusal(&sent), Some(PeerRefusal::NotHeld)), "{sent:?}");
    assert!(hands.core.durable(chunk()).is_none(), "brought back by an old configuration");
}

#[test]
fn an_erased_replica_is_not_brought_back_by_an_older_configuration() {
    let mut hands = erased();
    old_primary_collects(&mut hands);
    hands.feed(order(ControlDown::Configs(vec![config(1)])));
    hands.peer_says(1, DataMessage::Adopt { config: Box::new(config(2)) });
    assert!(hands.core.durable(chunk()).is_none());
}

/// What nobody may bring back: the replica under its own name, by whatever configuration.
fn stays_erased(hands: &mut Hands, by: ChunkConfig) {
    let collect = DataMessage::Collect { config: Box::new(by.clone()), term: term(1, 2) };
    let mut sent = hands.peer_says(1, collect);
    sent.extend(hands.sync());
    assert!(matches!(refusal(&sent), Some(PeerRefusal::NotHeld)), "{sent:?}");
    hands.feed(order(ControlDown::Configs(vec![by])));
    assert!(hands.core.durable(chunk()).is_none());
}

#[test]
fn an_erased_replica_is_not_brought_back_by_a_configuration_that_it_never_heard_of() {
    let mut hands = erased();
    stays_erased(&mut hands, config(3));
}

#[test]
fn what_was_erased_before_it_came_never_comes() {
    let mut hands = Hands::new(2, 1, DurableState::default()).0;
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    hands.sync();
    hands.link_up(1, 1);
    stays_erased(&mut hands, config(1));
    let mut checkpoint = DurableState::default();
    for bytes in hands.crash().encode() {
        checkpoint.load(&bytes).unwrap();
    }
    let mut hands = Hands::new(2, 2, checkpoint).0;
    hands.link_up(1, 1);
    stays_erased(&mut hands, config(2));
}

#[test]
fn the_confirmation_of_an_erasure_waits_until_it_is_durable() {
    let mut hands = Hands::new(2, 1, DurableState::default()).0;
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    assert_eq!(hands.erasures, 0);
    hands.sync();
    assert_eq!(hands.erasures, 1);
    // Asked again, there is nothing left to be written.
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    assert_eq!(hands.erasures, 2);
}

/// A crash may keep the adoption of a configuration that names the node's next replica, and not the
/// replica that it made.
#[test]
fn an_erasure_leaves_the_incarnation_alone_that_is_still_to_come() {
    let (mut hands, _) = following();
    let next = ReplicaId { incarnation: Incarnation(3), ..replica(2) };
    let named =
        ChunkConfig { in_sync: vec![replica(1), replica(3)], learners: vec![next], ..config(3) };
    hands.feed(order(ControlDown::Configs(vec![named.clone()])));
    hands.sync();
    let adopted = hands.journal.iter().position(|record| {
        matches!(record, Record::Adopt { replica, config } if *replica != next && config.epoch == Epoch(3))
    });
    let mut kept = DurableState::default();
    hands.journal.iter().take(adopted.unwrap() + 1).for_each(|record| kept.apply(record));
    let mut hands = Hands::new(2, 2, kept).0;
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    hands.sync();
    hands.feed(order(ControlDown::Configs(vec![named])));
    hands.sync();
    assert_eq!(hands.core.durable(chunk()).map(|durable| durable.replica), Some(next));
}

#[test]
fn a_restart_and_a_checkpoint_keep_what_an_erased_replica_refused() {
    let hands = erased();
    let mut checkpoint = DurableState::default();
    for bytes in hands.crash().encode() {
        checkpoint.load(&bytes).unwrap();
    }
    let (mut hands, _) = Hands::new(2, 2, checkpoint);
    old_primary_collects(&mut hands);
}

#[test]
fn a_later_configuration_makes_a_new_replica_where_one_was_erased() {
    let mut hands = erased();
    let new = ReplicaId { incarnation: Incarnation(7), ..replica(2) };
    let later =
        ChunkConfig { in_sync: vec![replica(1), replica(3)], learners: vec![new], ..config(7) };
    hands.feed(order(ControlDown::Configs(vec![later])));
    hands.sync();
    assert_eq!(hands.core.durable(chunk()).map(|durable| durable.replica), Some(new));
    let found = hands.crash();
    assert_eq!(found.erased().count(), 0, "the replica itself keeps its epoch from here on");
}
