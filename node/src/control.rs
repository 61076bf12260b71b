//! The stream to the zone's control plane: dialled, kept, dialled again, for ever.
//!
//! Carries what the core emits and what the control plane sends; decides neither. While there is no
//! stream, what the core has to say is dropped: at the next opening it tells everything again. The
//! rules of the stream are in `proto/ashlar/v1/node.proto`.
//!
//! A node whose registration is refused for good (its number belongs to another store) ends, unless
//! it already serves: then it goes on serving and asks again now and then. One whose store is revoked
//! ends in any case, and does not open that store again ([`revoked`]).

use crate::admission::Admission;
use crate::config::endpoint;
use crate::door::Doorkeeper;
use crate::known_members;
use crate::known_peers;
use crate::log_line::log_line;
use crate::revoked;
use crate::task::ControlEvent;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::Line;
use ashlar_proto::GRPC_MESSAGE_BYTES_MAX;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::node_service_client::NodeServiceClient;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_types::message::cluster::{ControlDown, Order, PeerAddress, Registration};
use ashlar_types::{ControlTerm, StoreId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Waits between attempts: an election takes about a second.
const REDIAL: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(50), max: Duration::from_secs(1) };
/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long a member may take to accept or refuse a registration, which it commits first.
const REGISTER_WITHIN: Duration = Duration::from_secs(5);
/// A member that does not answer a ping for so long is given up.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long an answer to a ping may take.
const PING_WITHIN: Duration = Duration::from_secs(2);
/// Messages that may wait for the stream; then it is opened anew.
const UP_MAX: usize = 256;
/// A stream that lived as long was a good one: the next attempt follows without a wait.
const GOOD_STREAM: Duration = Duration::from_secs(1);
/// Pointers to a leader that are followed at once; then there is a wait, as in an election members
/// may point at each other.
const POINTERS_MAX: u32 = 3;
/// Before a node that serves asks again after it was refused for good.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// What the stream needs to know.
#[derive(Debug)]
pub(crate) struct Control {
    /// Members of the configuration, as `http://ip:port`.
    pub(crate) configured: Vec<String>,
    /// Members that the control plane named last, `ip:port`: dialled first.
    pub(crate) members: Vec<String>,
    /// How the node introduces itself, with the stores that work.
    pub(crate) registration: Registration,
    /// Those, whenever they change: the stream is opened anew then.
    pub(crate) stores: watch::Receiver<Vec<StoreId>>,
    /// The address that the connection starts from.
    pub(crate) source: IpAddr,
    /// Learns the zone's key.
    pub(crate) admission: Arc<Admission>,
    /// Where the list of peers is kept.
    pub(crate) folder: PathBuf,
    /// Those of its stores, where one that is revoked is marked.
    pub(crate) folders: BTreeMap<StoreId, PathBuf>,
    /// The list as it was found there.
    pub(crate) known: Vec<PeerAddress>,
    /// Latest leadership that has spoken: nothing of an earlier one is taken in, here or in the core.
    pub(crate) term: ControlTerm,
    /// The node holds replicas.
    pub(crate) serves: bool,
    /// Opens to clients at the first word.
    pub(crate) door: Doorkeeper,
    /// To the machine's task.
    pub(crate) events: mpsc::Sender<ControlEvent>,
}

/// Why a stream could not be had, or has ended.
#[derive(Debug, Error)]
enum StreamEnd {
    /// Refused with a reason.
    #[error("{0}")]
    Refused(ApiError),
    /// The call failed otherwise.
    #[error("{} ({})", .0.message(), .0.code())]
    Status(Status),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// No answer in time.
    #[error("no answer within {} s", REGISTER_WITHIN.as_secs())]
    Late,
    /// The member ended it.
    #[error("ended by the control plane")]
    Ended,
    /// The member led once, and does not know yet that another does.
    #[error("a leader of term {theirs} speaks, and one of term {seen} has spoken before")]
    Replaced { theirs: ControlTerm, seen: ControlTerm },
    /// A store has failed: the node introduces itself without it.
    #[error("the node has other stores now")]
    OtherStores,
    /// The machine's task has ended.
    #[error("the node is stopping")]
    Stopping,
}

impl From<Status> for StreamEnd {
    fn from(status: Status) -> Self {
        ApiError::from_status(&status).map_or(Self::Status(status), Self::Refused)
    }
}

impl StreamEnd {
    /// The leader that a member points at.
    fn leader(&self) -> Option<String> {
        let Self::Refused(refusal) = self else { return None };
        let address = refusal.metadata.get("leader_address")?;
        (refusal.reason == Reason::NotLeader).then(|| endpoint(address).ok()).flatten()
    }

    /// Whether asking again will not help.
    fn for_good(&self) -> Option<&ApiError> {
        match self {
            Self::Refused(refusal) => refusal.reason.refuses_node_for_good().then_some(refusal),
            Self::Status(_)
            | Self::Connect(_)
            | Self::Late
            | Self::Ended
            | Self::Replaced { .. }
            | Self::OtherStores
            | Self::Stopping => None,
        }
    }
}

/// Keeps the stream as long as the node runs. Returns only if the node is refused for good and
/// serves nobody, or must serve nobody any more.
pub(crate) async fn keep(mut control: Control) -> ApiError {
    let mut backoff = Backoff::new(REDIAL);
    let mut dice = SeededDice::system();
    // Not all nodes of a zone begin with the same member.
    let mut at = usize::try_from(dice.next_u64() >> 33).unwrap_or(0);
    let mut pointed: Option<String> = None;
    let mut pointers = 0;
    let mut last_error = String::new();
    loop {
        let endpoints = control.endpoints();
        let listed = endpoints.get(at % endpoints.len().max(1)).cloned();
        let Some(member) = pointed.take().or(listed) else {
            return std::future::pending().await;
        };
        let began = Instant::now();
        let end = control.stream(&member, &mut last_error).await;
        if control.events.send(ControlEvent::Closed).await.is_err() {
            return std::future::pending().await;
        }
        if let Some(refusal) = end.for_good() {
            log_line!(Line::Refused, %member, error = %refusal);
            if refusal.reason == Reason::StoreRevoked {
                control.door.shut();
                control.mark_revoked(refusal).await;
                return refusal.clone();
            }
            if !control.serves {
                return refusal.clone();
            }
            tokio::time::sleep(REFUSED_PAUSE).await;
            continue;
        }
        if matches!(end, StreamEnd::Stopping) {
            return std::future::pending().await;
        }
        if matches!(end, StreamEnd::OtherStores) {
            tracing::info!(%member, "the node introduces itself with the stores that work");
            pointed = Some(member);
            continue;
        }
        let text = end.to_string();
        if text != last_error {
            tracing::info!(%member, reason = %text, "no stream to the control plane");
            last_error = text;
        }
        if began.elapsed() >= GOOD_STREAM {
            backoff.reset();
            pointers = 0;
        }
        pointed = end.leader().filter(|leader| *leader != member && pointers < POINTERS_MAX);
        if pointed.is_some() {
            pointers += 1;
            continue;
        }
        pointers = 0;
        at = at.wrapping_add(1);
        tokio::time::sleep(backoff.next_wait(dice.next_u64())).await;
    }
}

/// Waits until the stores that work are others; for ever if the machine has ended.
async fn changed(stores: &mut watch::Receiver<Vec<StoreId>>) {
    if stores.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Control {
    /// Whom to dial in turn. Those of the configuration stay in it: the list may be older.
    fn endpoints(&self) -> Vec<String> {
        let told = self.members.iter().filter_map(|member| endpoint(member).ok());
        let mut all: Vec<String> = told.collect();
        let others: Vec<&String> = self.configured.iter().filter(|c| !all.contains(c)).collect();
        let others: Vec<String> = others.into_iter().cloned().collect();
        all.extend(others);
        all
    }

    /// One stream from its opening to its end.
    async fn stream(&mut self, member: &str, last_error: &mut String) -> StreamEnd {
        let (up, mut down) = match timeout(REGISTER_WITHIN, self.open(member)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_elapsed) => return StreamEnd::Late,
        };
        let mut up = Some(up);
        loop {
            let message = tokio::select! {
                message = down.message() => message,
                () = changed(&mut self.stores) => return StreamEnd::OtherStores,
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return StreamEnd::Ended,
                Err(status) => return status.into(),
            };
            let order = match Order::try_from(&message) {
                Ok(order) => order,
                Err(error) => {
                    tracing::warn!(%member, %error, "a message of the control plane is malformed");
                    continue;
                }
            };
            if order.term < self.term {
                return StreamEnd::Replaced { theirs: order.term, seen: self.term };
            }
            self.term = order.term;
            // The leader speaks first; one that does not lead ends the stream without a message.
            if let Some(up) = up.take() {
                if self.events.send(ControlEvent::Open(up)).await.is_err() {
                    return StreamEnd::Stopping;
                }
                self.serves = true;
                self.door.open();
                last_error.clear();
                tracing::info!(%member, "registered with the control plane");
            }
            match &order.message {
                ControlDown::Peers(peers) => self.keep_peers(peers).await,
                ControlDown::ZoneKey(key) => self.admission.learn(key).await,
                ControlDown::Members(members) => self.keep_members(members).await,
                _for_the_machine => {}
            }
            if self.events.send(ControlEvent::Down(order)).await.is_err() {
                return StreamEnd::Stopping;
            }
        }
    }

    async fn open(
        &mut self,
        member: &str,
    ) -> Result<(mpsc::Sender<v1::NodeUp>, Streaming<v1::NodeDown>), StreamEnd> {
        let mut client = NodeServiceClient::new(self.channel(member).await?)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
        let (up, messages) = mpsc::channel(UP_MAX);
        self.registration.stores.clone_from(&self.stores.borrow_and_update());
        if up.try_send(v1::NodeUp::from(&self.registration)).is_err() {
            return Err(StreamEnd::Stopping);
        }
        let down = client.session(ReceiverStream::new(messages)).await?.into_inner();
        Ok((up, down))
    }

    async fn channel(&self, member: &str) -> Result<Channel, StreamEnd> {
        let refused = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            StreamEnd::Connect(cause.unwrap_or_else(|| error.to_string()))
        };
        Endpoint::from_shared(member.to_owned())
            .map_err(refused)?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true)
            .local_address(Some(self.source))
            .connect()
            .await
            .map_err(refused)
    }

    /// Marks the store that a refusal names, so that it is not opened again.
    async fn mark_revoked(&self, refusal: &ApiError) {
        let named = refusal.metadata.get("store").and_then(|store| store.parse().ok());
        let folder = named.and_then(|store: StoreId| Some((store, self.folders.get(&store)?)));
        let Some((store, folder)) = folder.map(|(store, folder)| (store, folder.clone())) else {
            return;
        };
        let marked = tokio::task::spawn_blocking(move || revoked::mark(&folder, store)).await;
        if let Ok(Err(error)) = marked {
            tracing::error!(%store, %error, "a revoked store cannot be marked");
        }
    }

    /// Keeps where the members are for a start after all configured ones were replaced.
    async fn keep_members(&mut self, members: &[String]) {
        if self.members == members || members.is_empty() {
            return;
        }
        members.clone_into(&mut self.members);
        tracing::info!(?members, "the control plane has other members");
        let (folder, list) = (self.folder.clone(), members.to_vec());
        let saved = tokio::task::spawn_blocking(move || known_members::save(&folder, &list)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the list of members could not be saved");
        }
    }

    /// Keeps the list for a start without a control plane.
    async fn keep_peers(&mut self, peers: &[PeerAddress]) {
        if self.known == peers {
            return;
        }
        peers.clone_into(&mut self.known);
        let (folder, list) = (self.folder.clone(), peers.to_vec());
        // A few times in the life of a zone: a thread of its own for the sync costs nothing.
        let saved = tokio::task::spawn_blocking(move || known_peers::save(&folder, &list)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the list of peers could not be saved");
        }
    }
}
