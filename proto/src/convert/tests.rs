//! Every message survives the wire, and each kind of damage is named.

use super::*;
use ashlar_types::message::cluster::{
    Change, ControlDown, ControlUp, Heartbeat, Order, PathState, PeerEvidence, Proposal,
    Registration, Relayed, RemovalReason, ReplicaReport, ReplicaState, ScrubState, SearchBudget,
    StoreState,
};
use ashlar_types::{ControlTerm, VolumeId};

fn replica(number: u32) -> ReplicaId {
    ReplicaId {
        node: NodeId(number),
        store: StoreId(u128::from(number) << 100 | 7),
        incarnation: Incarnation(1),
    }
}

fn chunk() -> ChunkId {
    let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 42 };
    ChunkId { volume, index: ChunkIndex(3) }
}

fn config() -> ChunkConfig {
    ChunkConfig {
        chunk: chunk(),
        blocks: 16_384,
        epoch: Epoch(9),
        elected: Epoch(4),
        generation: Generation(2),
        primary: replica(1),
        in_sync: vec![replica(2), replica(1)],
        learners: vec![replica(3)],
        stale: vec![(replica(4), StaleInfo { last_in_sync: Epoch(3), suspect: true })],
        copies_wanted: 3,
        copies_min: 2,
    }
}

#[test]
fn a_configuration_survives_the_wire() {
    assert_eq!(ChunkConfig::try_from(&v1::ChunkConfig::from(&config())), Ok(config()));
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let mut wire = v1::ChunkConfig::from(&config());
    wire.in_sync.pop();
    assert_eq!(
        ChunkConfig::try_from(&wire),
        Err(ConvertError::Config(ConfigError::PrimaryNotInSync))
    );
    wire.primary = None;
    assert_eq!(ChunkConfig::try_from(&wire), Err(ConvertError::Missing("config.primary")));
    let mut wire = v1::ChunkConfig::from(&config());
    wire.copies_min = 256;
    assert_eq!(ChunkConfig::try_from(&wire), Err(ConvertError::Range("config.copies_min")));
    wire.stale[0].replica.as_mut().unwrap().node = 0;
    assert_eq!(
        ChunkConfig::try_from(&wire),
        Err(ConvertError::Id { field: "replica.node", cause: IdError::Node })
    );
}

fn ups() -> Vec<ControlUp> {
    let report = |state| ReplicaReport {
        chunk: chunk(),
        replica: replica(2),
        adopted: Epoch(7),
        generation: Generation(1),
        state,
    };
    let propose =
        |change| Proposal { chunk: chunk(), epoch: Epoch(9), proposer: replica(1), change };
    let remove = |reason| Change::RemoveSecondary { replica: replica(2), reason };
    let evidence = |state| PeerEvidence {
        node: NodeId(2),
        primary_net: state,
        replication_net: PathState::Up,
    };
    vec![
        ControlUp::Heartbeat(Heartbeat {
            stores: vec![StoreState {
                store: StoreId(8),
                capacity_bytes: 1 << 40,
                used_bytes: 5,
                scrub: ScrubState { cycles: 3, done_permille: 999, bytes_per_second: 7 },
            }],
            peers: vec![
                evidence(PathState::Unknown),
                evidence(PathState::Up),
                evidence(PathState::Silent { millis: 1_200 }),
                evidence(PathState::Refused),
            ],
        }),
        ControlUp::Replicas(vec![
            report(ReplicaState::Serving),
            report(ReplicaState::Opening),
            report(ReplicaState::Following),
            report(ReplicaState::Filling { blocks_done: 12 }),
            report(ReplicaState::Stale),
            report(ReplicaState::Suspect),
            report(ReplicaState::Gone),
        ]),
        ControlUp::Propose(vec![
            propose(remove(RemovalReason::Silent { millis: 1_000 })),
            propose(remove(RemovalReason::Refused)),
            propose(remove(RemovalReason::ReportedGone)),
            propose(Change::ReadoptStale { replica: replica(4) }),
            propose(remove(RemovalReason::Slow { millis: 1_000 })),
            propose(Change::SeekLearner),
            propose(Change::StepDown { millis: 1_000 }),
            propose(Change::Follow),
            propose(Change::RemoveLearner { replica: replica(3) }),
            propose(Change::PromoteLearner {
                replica: replica(3),
                durable: Lsn {
                    term: Term { elected: Epoch(4), start: StartNumber(8) },
                    counter: 77,
                },
            }),
        ]),
        relayed(ControlUp::Propose(vec![propose(Change::Follow)])),
    ]
}

fn relayed(message: ControlUp) -> ControlUp {
    let (node, store) = (NodeId(3), StoreId(99));
    ControlUp::Relayed(Relayed { node, store, message: Box::new(message) })
}

#[test]
fn what_is_relayed_is_not_relayed_again() {
    let twice = relayed(relayed(ControlUp::Replicas(vec![])));
    assert_eq!(
        NodeMessage::try_from(&v1::NodeUp::from(&twice)),
        Err(ConvertError::Range("relayed.message"))
    );
    let once =
        ControlDown::Relay { to: NodeId(3), message: Box::new(ControlDown::Configs(vec![])) };
    let twice = ControlDown::Relay { to: NodeId(2), message: Box::new(once) };
    let order = Order { term: ControlTerm(7), message: twice };
    assert_eq!(
        Order::try_from(&v1::NodeDown::from(&order)),
        Err(ConvertError::Range("relay.message"))
    );
}

#[test]
fn everything_a_node_says_survives_the_wire() {
    for up in ups() {
        assert_eq!(NodeMessage::try_from(&v1::NodeUp::from(&up)), Ok(NodeMessage::Up(up)));
    }
    let registration = Registration {
        version: 3,
        zone: "b".parse().unwrap(),
        node: NodeId(5),
        stores: vec![StoreId(99), StoreId(100)],
        start: StartNumber(3),
        primary_address: "127.1.2.5:7000".into(),
        replication_address: "127.2.2.5:7000".into(),
        rack: "r7".into(),
    };
    assert_eq!(
        NodeMessage::try_from(&v1::NodeUp::from(&registration)),
        Ok(NodeMessage::Registration(registration))
    );
}

#[test]
fn everything_the_control_plane_says_survives_the_wire() {
    let peer = PeerAddress {
        node: NodeId(1),
        store: StoreId(1),
        primary_address: "127.1.1.1:1".into(),
        replication_address: "127.2.1.1:1".into(),
    };
    for down in [
        ControlDown::Configs(vec![config()]),
        ControlDown::Peers(vec![peer]),
        ControlDown::Erase(vec![(chunk(), replica(1))]),
        ControlDown::AskToFollow(vec![(chunk(), Epoch(4))]),
        ControlDown::Search(SearchBudget { only_urgent: true, per_second: 1 }),
        ControlDown::Members(vec!["127.0.0.9:7".into()]),
        ControlDown::Relay {
            to: NodeId(3),
            message: Box::new(ControlDown::AskToFollow(vec![(chunk(), Epoch(4))])),
        },
        ControlDown::ProposalRefused { chunk: chunk(), epoch: Epoch(9), reason: "no space".into() },
    ] {
        let order = Order { term: ControlTerm(7), message: down };
        assert_eq!(Order::try_from(&v1::NodeDown::from(&order)), Ok(order));
    }
}

#[test]
fn empty_messages_and_unknown_states_are_refused() {
    assert!(NodeMessage::try_from(&v1::NodeUp { message: None }).is_err());
    assert!(Order::try_from(&v1::NodeDown { term: 1, message: None }).is_err());
    let message = ControlDown::Members(Vec::new());
    let without_term = Order { term: ControlTerm(0), message };
    let wire = v1::NodeDown::from(&without_term);
    assert_eq!(Order::try_from(&wire), Err(ConvertError::Range("term")));
    let report = v1::ReplicaReport { state: 77, ..Default::default() };
    assert_eq!(ReplicaReport::try_from(&report), Err(ConvertError::Range("report.state")));
}
