//! What arrives late, after the world has moved on.

mod common;

use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{ChunkConfig, Epoch, Incarnation, ReplicaId};
use common::{Hands, chunk, config, order, replica};

#[test]
fn an_older_configuration_with_another_incarnation_is_no_alarm_an_equal_one_is() {
    let later = ReplicaId { incarnation: Incarnation(4), ..replica(4) };
    let named = |epoch, learner| ChunkConfig { learners: vec![learner], ..config(epoch) };
    let (mut hands, _) = Hands::with(4, named(4, later));
    let older = Box::new(named(3, replica(4)));
    hands.peer_says(1, DataMessage::Adopt { config: older });
    assert_eq!(hands.alarms, 0, "it was on its way for long");
    hands.feed(order(ControlDown::Configs(vec![named(4, replica(4))])));
    assert_eq!(hands.alarms, 1, "two configurations of one epoch");
}

/// Seed 2130 of the simulation: adopting a configuration and making the replica that it names are two
/// records, and a crash came between them.
#[test]
fn a_replica_that_a_crash_left_behind_gives_way_to_the_one_that_its_configuration_names() {
    let named = |epoch, learner| ChunkConfig { learners: vec![learner], ..config(epoch) };
    let later = ReplicaId { incarnation: Incarnation(7), ..replica(4) };
    let (mut hands, _) = Hands::with(4, named(2, replica(4)));
    let before = hands.journal.len();
    hands.feed(order(ControlDown::Configs(vec![named(3, later)])));
    assert_eq!(hands.core.durable(chunk()).unwrap().replica, later);
    // Of what this wrote, the first record survives.
    hands.journal.truncate(before + 1);
    let (mut hands, _) = Hands::new(4, 2, hands.crash());
    let left = hands.core.durable(chunk()).unwrap();
    assert_eq!((left.replica, left.config.epoch), (replica(4), Epoch(3)), "the case is this one");
    hands.peer_says(1, DataMessage::Adopt { config: Box::new(named(3, later)) });
    assert_eq!(hands.alarms, 0);
    assert_eq!(hands.core.durable(chunk()).unwrap().replica, later);
}

/// Seed 18105 of the simulation: a node that was away came back to the newest configuration in band,
/// and then to those of the control plane in order, one of which had made it a replica for a moment.
#[test]
fn an_older_configuration_with_a_later_incarnation_than_is_held_is_no_alarm() {
    let named = |epoch, learner| ChunkConfig { learners: vec![learner], ..config(epoch) };
    let (mut hands, _) = Hands::with(4, named(2, replica(4)));
    hands.peer_says(1, DataMessage::Adopt { config: Box::new(config(9)) });
    let later = ReplicaId { incarnation: Incarnation(7), ..replica(4) };
    hands.feed(order(ControlDown::Configs(vec![named(7, later)])));
    assert_eq!(hands.alarms, 0);
    let held = hands.core.durable(chunk()).unwrap();
    assert_eq!((held.replica, held.config.epoch), (replica(4), Epoch(9)));
}
