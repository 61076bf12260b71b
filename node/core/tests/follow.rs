//! A primary that is asked to follow another: it agrees if it is of use, and stays in sync.

mod common;

use ashlar_node_core::Input;
use ashlar_types::message::cluster::{Change, ControlDown, ReplicaState};
use ashlar_types::message::data::{DataMessage, Network};
use ashlar_types::{ChunkConfig, Epoch, NodeId};
use common::{Hands, block, chunk, config, lsn, order, replica, serving, term, write};

fn ask(hands: &mut Hands, epoch: u64) -> Vec<Change> {
    hands.proposed.clear();
    hands.feed(order(ControlDown::AskToFollow(vec![(chunk(), Epoch(epoch))])));
    std::mem::take(&mut hands.proposed)
}

#[test]
fn a_primary_agrees_while_it_reaches_every_other_replica_in_sync() {
    let mut hands = serving(config(1));
    assert_eq!(ask(&mut hands, 2), [], "another epoch is meant");
    assert_eq!(ask(&mut hands, 1), [Change::Follow]);
    let (node, refused) = (NodeId(3), true);
    for network in [Network::Primary, Network::Replication] {
        hands.feed(Input::LinkDown { node, network, refused });
    }
    assert_eq!(ask(&mut hands, 1), [], "writes would wait for it");
    let (mut secondary, _) = Hands::with(2, config(1));
    assert_eq!(ask(&mut secondary, 1), [], "it is no primary");
}

/// The new primary hears of the write that this one had not committed, as of any other member.
#[test]
fn a_former_primary_that_stays_in_sync_tells_what_it_has() {
    let mut hands = serving(config(1));
    hands.client_says(write(1, 1, block(3, 7)));
    hands.sync();
    let elected = ChunkConfig { primary: replica(2), elected: Epoch(2), ..config(2) };
    hands.feed(order(ControlDown::Configs(vec![elected.clone()])));
    assert_eq!(hands.state(), ReplicaState::Following);
    let mut sent = hands.sync();
    let collect = DataMessage::Collect { config: Box::new(elected), term: term(2, 1) };
    sent.extend(hands.peer_says(2, collect));
    sent.extend(hands.sync());
    sent.extend(hands.tick_after(std::time::Duration::from_secs(1)));
    let collected = sent.iter().find_map(|(to, message)| match message {
        DataMessage::Collected { history, .. } if *to == NodeId(2) => Some(history.clone()),
        _ => None,
    });
    let history = collected.expect("an answer to the new primary");
    assert_eq!(history.last, lsn(term(1, 1), 1));
    assert_eq!(history.uncommitted.len(), 1, "{history:?}");
}
