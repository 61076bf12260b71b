//! What arrives late, after the world has moved on.

mod common;

use ashlar_node_core::Input;
use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{ChunkConfig, Incarnation, ReplicaId};
use common::{Hands, config, replica};

#[test]
fn an_older_configuration_with_another_incarnation_is_no_alarm_an_equal_one_is() {
    let later = ReplicaId { incarnation: Incarnation(4), ..replica(4) };
    let named = |epoch, learner| ChunkConfig { learners: vec![learner], ..config(epoch) };
    let (mut hands, _) = Hands::with(4, named(4, later));
    let older = Box::new(named(3, replica(4)));
    hands.peer_says(1, DataMessage::Adopt { config: older });
    assert_eq!(hands.alarms, 0, "it was on its way for long");
    hands.feed(Input::Control(ControlDown::Configs(vec![named(4, replica(4))])));
    assert_eq!(hands.alarms, 1, "two configurations of one epoch");
}
