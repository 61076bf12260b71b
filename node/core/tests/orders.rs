//! Orders of the control plane: the latest leadership that has spoken counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::Input;
use ashlar_types::message::cluster::{ControlDown, Order};
use ashlar_types::{ControlTerm, Epoch};
use common::{Hands, chunk, config};

fn adopted(hands: &Hands) -> Epoch {
    hands.core.config(chunk()).unwrap().epoch
}

#[test]
fn an_order_of_a_lower_term_of_the_control_plane_is_refused() {
    let (mut hands, _) = Hands::with(2, config(1));
    let says = |term, epoch| {
        let message = ControlDown::Configs(vec![config(epoch)]);
        Input::Control(Order { term: ControlTerm(term), message })
    };
    hands.feed(says(5, 2));
    assert_eq!(adopted(&hands), Epoch(2));
    hands.feed(says(4, 3));
    assert_eq!(adopted(&hands), Epoch(2), "a leader that was replaced is listened to");
    hands.feed(says(5, 3));
    assert_eq!(adopted(&hands), Epoch(3), "the same leader speaks again");
    hands.feed(says(6, 4));
    assert_eq!(adopted(&hands), Epoch(4));
}
