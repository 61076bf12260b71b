//! The node stream: registration, what goes up, what comes down.

use super::{ConvertError, Converted, id, node, required};
use crate::v1;
use ashlar_types::message::cluster::{
    Change, ControlDown, ControlUp, Heartbeat, Order, PathState, PeerEvidence, Proposal,
    Registration, Relayed, RemovalReason, ReplicaReport, ReplicaState, ScrubState, SearchBudget,
    StoreState,
};
use ashlar_types::{ControlTerm, Epoch, Generation, StartNumber};
use v1::path_state::State as WirePath;
use v1::proposal::Change as WireChange;
use v1::remove_secondary::Reason as WireReason;

impl From<&Registration> for v1::Registration {
    fn from(registration: &Registration) -> Self {
        Self {
            version: registration.version,
            zone: registration.zone.to_string(),
            node: registration.node.0,
            stores: registration.stores.iter().map(ToString::to_string).collect(),
            start: registration.start.0,
            primary_address: registration.primary_address.clone(),
            replication_address: registration.replication_address.clone(),
            rack: registration.rack.clone(),
        }
    }
}

impl TryFrom<&v1::Registration> for Registration {
    type Error = ConvertError;
    fn try_from(wire: &v1::Registration) -> Converted<Self> {
        Ok(Self {
            version: wire.version,
            zone: id(&wire.zone, "registration.zone")?,
            node: node(wire.node, "registration.node")?,
            stores: wire
                .stores
                .iter()
                .map(|store| id(store, "registration.stores"))
                .collect::<Converted<_>>()?,
            start: StartNumber(wire.start),
            primary_address: wire.primary_address.clone(),
            replication_address: wire.replication_address.clone(),
            rack: wire.rack.clone(),
        })
    }
}

/// What a node sends, as read from its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeMessage {
    /// The first message.
    Registration(Registration),
    /// Every later one.
    Up(ControlUp),
}

impl From<&Registration> for v1::NodeUp {
    fn from(registration: &Registration) -> Self {
        Self { message: Some(v1::node_up::Message::Registration(registration.into())) }
    }
}

impl From<&ControlUp> for v1::NodeUp {
    fn from(up: &ControlUp) -> Self {
        use v1::node_up::Message;
        let message = match up {
            ControlUp::Heartbeat(beat) => Message::Heartbeat(beat.into()),
            ControlUp::Replicas(reports) => Message::Replicas(v1::ReplicaReports {
                reports: reports.iter().map(Into::into).collect(),
            }),
            ControlUp::Propose(proposals) => Message::Propose(v1::Proposals {
                proposals: proposals.iter().map(Into::into).collect(),
            }),
            ControlUp::Relayed(relayed) => Message::Relayed(Box::new(v1::RelayedUp {
                node: relayed.node.0,
                store: relayed.store.to_string(),
                message: Some(Box::new(Self::from(&*relayed.message))),
            })),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<&v1::NodeUp> for NodeMessage {
    type Error = ConvertError;
    fn try_from(wire: &v1::NodeUp) -> Converted<Self> {
        use v1::node_up::Message;
        Ok(match required(wire.message.as_ref(), "message")? {
            Message::Registration(registration) => Self::Registration(registration.try_into()?),
            Message::Heartbeat(beat) => Self::Up(ControlUp::Heartbeat(beat.try_into()?)),
            Message::Replicas(list) => {
                let reports = list.reports.iter().map(TryInto::try_into);
                Self::Up(ControlUp::Replicas(reports.collect::<Converted<_>>()?))
            }
            Message::Propose(list) => {
                let proposals = list.proposals.iter().map(TryInto::try_into);
                Self::Up(ControlUp::Propose(proposals.collect::<Converted<_>>()?))
            }
            Message::Relayed(wire) => Self::Up(ControlUp::Relayed(relayed(wire)?)),
        })
    }
}

/// One step only: what is relayed is never relayed itself, nor anybody's registration.
fn relayed(wire: &v1::RelayedUp) -> Converted<Relayed> {
    let message = required(wire.message.as_ref(), "relayed.message")?;
    if let Some(v1::node_up::Message::Relayed(_)) = message.message {
        return Err(ConvertError::Range("relayed.message"));
    }
    match NodeMessage::try_from(&**message)? {
        NodeMessage::Up(up) => Ok(Relayed {
            node: node(wire.node, "relayed.node")?,
            store: id(&wire.store, "relayed.store")?,
            message: Box::new(up),
        }),
        NodeMessage::Registration(_) => Err(ConvertError::Range("relayed.message")),
    }
}

impl From<&Order> for v1::NodeDown {
    fn from(order: &Order) -> Self {
        Self { term: order.term.0, ..(&order.message).into() }
    }
}

impl From<&ControlDown> for v1::NodeDown {
    fn from(down: &ControlDown) -> Self {
        use v1::node_down::Message;
        let message = match down {
            ControlDown::Configs(configs) => Message::Configs(v1::ChunkConfigs {
                configs: configs.iter().map(Into::into).collect(),
            }),
            ControlDown::Peers(peers) => {
                Message::Peers(v1::PeerList { peers: peers.iter().map(Into::into).collect() })
            }
            ControlDown::Erase(replicas) => Message::Erase(v1::EraseList {
                replicas: replicas
                    .iter()
                    .map(|(chunk, replica)| v1::EraseReplica {
                        chunk: Some((*chunk).into()),
                        replica: Some((*replica).into()),
                    })
                    .collect(),
            }),
            ControlDown::AskToFollow(chunks) => Message::AskToFollow(v1::FollowRequests {
                requests: chunks
                    .iter()
                    .map(|(chunk, epoch)| v1::FollowRequest {
                        chunk: Some((*chunk).into()),
                        epoch: epoch.0,
                    })
                    .collect(),
            }),
            ControlDown::Search(budget) => Message::Search(v1::SearchBudget {
                only_urgent: budget.only_urgent,
                per_second: budget.per_second,
            }),
            ControlDown::ZoneKey(key) => Message::ZoneKey(key.to_vec()),
            ControlDown::Members(addresses) => {
                Message::Members(v1::MemberList { addresses: addresses.clone() })
            }
            ControlDown::Relay { to, message } => Message::Relay(Box::new(v1::RelayDown {
                to: to.0,
                message: Some(Box::new((&**message).into())),
            })),
            ControlDown::ProposalRefused { chunk, epoch, reason } => {
                Message::Refused(v1::ProposalRefused {
                    chunk: Some((*chunk).into()),
                    epoch: epoch.0,
                    reason: reason.clone(),
                })
            }
        };
        Self { term: 0, message: Some(message) }
    }
}

impl TryFrom<&v1::NodeDown> for Order {
    type Error = ConvertError;
    fn try_from(wire: &v1::NodeDown) -> Converted<Self> {
        if wire.term == 0 {
            return Err(ConvertError::Range("term"));
        }
        Ok(Self { term: ControlTerm(wire.term), message: down(wire)? })
    }
}

fn down(wire: &v1::NodeDown) -> Converted<ControlDown> {
    use v1::node_down::Message;
    Ok(match required(wire.message.as_ref(), "message")? {
        Message::Configs(list) => ControlDown::Configs(
            list.configs.iter().map(TryInto::try_into).collect::<Converted<_>>()?,
        ),
        Message::Peers(list) => {
            ControlDown::Peers(list.peers.iter().map(TryInto::try_into).collect::<Converted<_>>()?)
        }
        Message::Erase(list) => {
            ControlDown::Erase(list.replicas.iter().map(erase).collect::<Converted<_>>()?)
        }
        Message::AskToFollow(list) => {
            let request = |wire: &v1::FollowRequest| {
                let chunk = required(wire.chunk.as_ref(), "follow.chunk")?.try_into()?;
                Ok((chunk, Epoch(wire.epoch)))
            };
            ControlDown::AskToFollow(list.requests.iter().map(request).collect::<Converted<_>>()?)
        }
        Message::Search(budget) if budget.per_second == 0 => {
            return Err(ConvertError::Range("search.per_second"));
        }
        Message::Search(budget) => ControlDown::Search(SearchBudget {
            only_urgent: budget.only_urgent,
            per_second: budget.per_second,
        }),
        Message::ZoneKey(key) => {
            let wrong = |_| ConvertError::Range("zone_key");
            ControlDown::ZoneKey(key.as_slice().try_into().map_err(wrong)?)
        }
        Message::Members(list) => ControlDown::Members(list.addresses.clone()),
        Message::Relay(relay) => {
            let message = required(relay.message.as_ref(), "relay.message")?;
            if let Some(Message::Relay(_)) = message.message {
                return Err(ConvertError::Range("relay.message"));
            }
            let to = node(relay.to, "relay.to")?;
            ControlDown::Relay { to, message: Box::new(down(message)?) }
        }
        Message::Refused(refused) => ControlDown::ProposalRefused {
            chunk: required(refused.chunk.as_ref(), "refused.chunk")?.try_into()?,
            epoch: Epoch(refused.epoch),
            reason: refused.reason.clone(),
        },
    })
}

fn erase(wire: &v1::EraseReplica) -> Converted<(ashlar_types::ChunkId, ashlar_types::ReplicaId)> {
    Ok((
        required(wire.chunk.as_ref(), "erase.chunk")?.try_into()?,
        required(wire.replica.as_ref(), "erase.replica")?.try_into()?,
    ))
}

impl From<&Heartbeat> for v1::Heartbeat {
    fn from(beat: &Heartbeat) -> Self {
        Self {
            stores: beat.stores.iter().map(Into::into).collect(),
            peers: beat
                .peers
                .iter()
                .map(|peer| v1::PeerEvidence {
                    node: peer.node.0,
                    primary_net: Some(peer.primary_net.into()),
                    replication_net: Some(peer.replication_net.into()),
                })
                .collect(),
        }
    }
}

impl TryFrom<&v1::Heartbeat> for Heartbeat {
    type Error = ConvertError;
    fn try_from(wire: &v1::Heartbeat) -> Converted<Self> {
        let peer = |peer: &v1::PeerEvidence| {
            Ok(PeerEvidence {
                node: node(peer.node, "evidence.node")?,
                primary_net: path(peer.primary_net.as_ref()),
                replication_net: path(peer.replication_net.as_ref()),
            })
        };
        Ok(Self {
            stores: wire.stores.iter().map(TryInto::try_into).collect::<Converted<_>>()?,
            peers: wire.peers.iter().map(peer).collect::<Converted<_>>()?,
        })
    }
}

impl From<&StoreState> for v1::Store {
    fn from(store: &StoreState) -> Self {
        let ScrubState { cycles, done_permille, bytes_per_second } = store.scrub;
        Self {
            id: store.store.to_string(),
            capacity_bytes: store.capacity_bytes,
            used_bytes: store.used_bytes,
            scrub: Some(v1::Scrub { cycles, done_permille, bytes_per_second }),
            replicas: 0,
        }
    }
}

impl TryFrom<&v1::Store> for StoreState {
    type Error = ConvertError;
    fn try_from(wire: &v1::Store) -> Converted<Self> {
        let scrub = wire.scrub.unwrap_or_default();
        Ok(Self {
            store: id(&wire.id, "store.id")?,
            capacity_bytes: wire.capacity_bytes,
            used_bytes: wire.used_bytes,
            scrub: ScrubState {
                cycles: scrub.cycles,
                done_permille: scrub.done_permille,
                bytes_per_second: scrub.bytes_per_second,
            },
        })
    }
}

impl From<PathState> for v1::PathState {
    fn from(state: PathState) -> Self {
        let state = match state {
            PathState::Unknown => None,
            PathState::Up => Some(WirePath::Up(v1::path_state::Up {})),
            PathState::Silent { millis } => Some(WirePath::SilentMillis(millis)),
            PathState::Refused => Some(WirePath::Refused(v1::path_state::Refused {})),
        };
        Self { state }
    }
}

fn path(wire: Option<&v1::PathState>) -> PathState {
    match wire.and_then(|w| w.state.as_ref()) {
        None => PathState::Unknown,
        Some(WirePath::Up(_)) => PathState::Up,
        Some(WirePath::SilentMillis(millis)) => PathState::Silent { millis: *millis },
        Some(WirePath::Refused(_)) => PathState::Refused,
    }
}

impl From<&ReplicaReport> for v1::ReplicaReport {
    fn from(report: &ReplicaReport) -> Self {
        let (state, blocks_done) = match report.state {
            ReplicaState::Serving => (v1::ReplicaState::Serving, 0),
            ReplicaState::Opening => (v1::ReplicaState::Opening, 0),
            ReplicaState::Following => (v1::ReplicaState::Following, 0),
            ReplicaState::Filling { blocks_done } => (v1::ReplicaState::Filling, blocks_done),
            ReplicaState::Stale => (v1::ReplicaState::Stale, 0),
            ReplicaState::Suspect => (v1::ReplicaState::Suspect, 0),
            ReplicaState::Gone => (v1::ReplicaState::Gone, 0),
        };
        Self {
            chunk: Some(report.chunk.into()),
            replica: Some(report.replica.into()),
            adopted: report.adopted.0,
            generation: report.generation.0,
            state: state.into(),
            blocks_done,
        }
    }
}

impl TryFrom<&v1::ReplicaReport> for ReplicaReport {
    type Error = ConvertError;
    fn try_from(wire: &v1::ReplicaReport) -> Converted<Self> {
        let state = match v1::ReplicaState::try_from(wire.state) {
            Ok(v1::ReplicaState::Serving) => ReplicaState::Serving,
            Ok(v1::ReplicaState::Opening) => ReplicaState::Opening,
            Ok(v1::ReplicaState::Following) => ReplicaState::Following,
            Ok(v1::ReplicaState::Filling) => {
                ReplicaState::Filling { blocks_done: wire.blocks_done }
            }
            Ok(v1::ReplicaState::Stale) => ReplicaState::Stale,
            Ok(v1::ReplicaState::Suspect) => ReplicaState::Suspect,
            Ok(v1::ReplicaState::Gone) => ReplicaState::Gone,
            Ok(v1::ReplicaState::Unspecified) | Err(_) => {
                return Err(ConvertError::Range("report.state"));
            }
        };
        Ok(Self {
            chunk: required(wire.chunk.as_ref(), "report.chunk")?.try_into()?,
            replica: required(wire.replica.as_ref(), "report.replica")?.try_into()?,
            adopted: Epoch(wire.adopted),
            generation: Generation(wire.generation),
            state,
        })
    }
}

impl From<&Proposal> for v1::Proposal {
    fn from(proposal: &Proposal) -> Self {
        let change = match &proposal.change {
            Change::RemoveSecondary { replica, reason } => {
                WireChange::RemoveSecondary(v1::RemoveSecondary {
                    replica: Some((*replica).into()),
                    reason: Some(match reason {
                        RemovalReason::Silent { millis } => WireReason::SilentMillis(*millis),
                        RemovalReason::Refused => WireReason::Refused(v1::path_state::Refused {}),
                        RemovalReason::ReportedGone => {
                            WireReason::ReportedGone(v1::remove_secondary::ReportedGone {})
                        }
                        RemovalReason::Slow { millis } => WireReason::SlowMillis(*millis),
                    }),
                })
            }
            Change::ReadoptStale { replica } => {
                WireChange::ReadoptStale(v1::ReadoptStale { replica: Some((*replica).into()) })
            }
            Change::SeekLearner => WireChange::SeekLearner(v1::SeekLearner {}),
            Change::Follow => WireChange::Follow(v1::Follow {}),
            Change::StepDown { millis } => WireChange::StepDown(v1::StepDown { millis: *millis }),
            Change::RemoveLearner { replica } => {
                WireChange::RemoveLearner(v1::RemoveLearner { replica: Some((*replica).into()) })
            }
            Change::PromoteLearner { replica, durable } => {
                WireChange::PromoteLearner(v1::PromoteLearner {
                    replica: Some((*replica).into()),
                    durable: Some((*durable).into()),
                })
            }
        };
        Self {
            chunk: Some(proposal.chunk.into()),
            epoch: proposal.epoch.0,
            proposer: Some(proposal.proposer.into()),
            change: Some(change),
        }
    }
}

impl TryFrom<&v1::Proposal> for Proposal {
    type Error = ConvertError;
    fn try_from(wire: &v1::Proposal) -> Converted<Self> {
        let replica = |replica: &Option<v1::ReplicaId>| {
            required(replica.as_ref(), "change.replica")?.try_into()
        };
        let change = match required(wire.change.as_ref(), "proposal.change")? {
            WireChange::RemoveSecondary(change) => Change::RemoveSecondary {
                replica: replica(&change.replica)?,
                reason: match required(change.reason.as_ref(), "remove_secondary.reason")? {
                    WireReason::SilentMillis(millis) => RemovalReason::Silent { millis: *millis },
                    WireReason::Refused(_) => RemovalReason::Refused,
                    WireReason::ReportedGone(_) => RemovalReason::ReportedGone,
                    WireReason::SlowMillis(millis) => RemovalReason::Slow { millis: *millis },
                },
            },
            WireChange::ReadoptStale(change) => {
                Change::ReadoptStale { replica: replica(&change.replica)? }
            }
            WireChange::SeekLearner(_) => Change::SeekLearner,
            WireChange::Follow(_) => Change::Follow,
            WireChange::StepDown(change) => Change::StepDown { millis: change.millis },
            WireChange::RemoveLearner(change) => {
                Change::RemoveLearner { replica: replica(&change.replica)? }
            }
            WireChange::PromoteLearner(change) => Change::PromoteLearner {
                replica: replica(&change.replica)?,
                durable: required(change.durable.as_ref(), "promote_learner.durable")?.into(),
            },
        };
        Ok(Self {
            chunk: required(wire.chunk.as_ref(), "proposal.chunk")?.try_into()?,
            epoch: Epoch(wire.epoch),
            proposer: required(wire.proposer.as_ref(), "proposal.proposer")?.try_into()?,
            change,
        })
    }
}
