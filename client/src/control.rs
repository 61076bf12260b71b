//! Calls to the zone's control plane: attach, detach, the map. Any member answers, so endpoints
//! are tried in turn, beginning with the one that answered last.

use ashlar_client_core::WaitPolicy;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_proto::GRPC_MESSAGE_BYTES_MAX;
use ashlar_proto::convert::ConvertError;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_types::message::cluster::PeerAddress;
use ashlar_types::{ChunkConfig, Generation, Geometry, IdError, NodeId, VolumeId, ZoneId};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// How long one member may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long one member may take to answer a question that needs no other node.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Waits between rounds over all members.
const ROUNDS: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(100), max: Duration::from_secs(1) };

/// Everything a client needs to find a volume's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMap {
    /// The volume.
    pub volume: VolumeId,
    /// Its name; may be empty.
    pub name: String,
    /// Its size and that of its chunks.
    pub geometry: Geometry,
    /// What happens when a request cannot be carried out for a long time, unless the attachment says.
    pub policy: WaitPolicy,
    /// Generation that the configurations carry.
    pub generation: Generation,
    /// Configuration of every chunk.
    pub configs: Vec<ChunkConfig>,
    /// Addresses of nodes on the primary network.
    pub addresses: BTreeMap<NodeId, SocketAddr>,
    /// `ip:port` of the members of the control plane; empty: not told.
    pub members: Vec<String>,
}

/// An attachment as the control plane gives it.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The map under the new generation.
    pub map: VolumeMap,
    /// Signed right to use the volume.
    pub token: Vec<u8>,
}

/// Why a call to the control plane failed.
#[derive(Clone, Debug, Error)]
pub enum ControlError {
    /// An endpoint is no address.
    #[error("{0} is not an endpoint of a control plane")]
    Endpoint(String),
    /// Nobody answered in time.
    #[error("no member of the control plane answered within {within:?} at {endpoints}: {last}")]
    Unreachable {
        /// How long it was tried.
        within: Duration,
        /// Who was asked.
        endpoints: String,
        /// What went wrong last.
        last: String,
    },
    /// Refused with a reason.
    #[error("{}: {}", .0.reason.text(), .0.message)]
    Refused(Box<ApiError>),
    /// Refused without one.
    #[error("the control plane answered {code}: {message}")]
    Status {
        /// gRPC code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("the control plane's answer is malformed: {0}")]
    Answer(#[from] ConvertError),
    /// The answer names no proper volume.
    #[error("the control plane's answer is malformed: {0}")]
    Id(#[from] IdError),
}

impl ControlError {
    /// The stable reason, if the control plane gave one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(error) => Some(error.reason),
            Self::Endpoint(_)
            | Self::Unreachable { .. }
            | Self::Status { .. }
            | Self::Answer(_)
            | Self::Id(_) => None,
        }
    }
}

/// The members of a zone's control plane: those that were named, and those that it named since.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Those that it named first: they are there.
    endpoints: Vec<(String, Channel)>,
    /// How many of the last ones were named at the beginning.
    named: usize,
    /// The one that answered last.
    preferred: usize,
}

impl ControlPlane {
    /// Members at these addresses (`ip:port` or `http://ip:port`). Dials nobody yet; call within
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Endpoint`] if there is none or one is malformed.
    pub fn new(endpoints: &[String]) -> Result<Self, ControlError> {
        let endpoints: Vec<_> = endpoints.iter().map(lazy).collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(ControlError::Endpoint("nothing".to_owned()));
        }
        let named = endpoints.len();
        Ok(Self { endpoints, named, preferred: 0 })
    }

    /// Takes in where the members are now, as the control plane says. Those that were named at the
    /// beginning are asked after them. True if that is news.
    pub fn learn(&mut self, members: &[String]) -> bool {
        let told = self.endpoints.len() - self.named;
        let known = self.endpoints.iter().take(told).map(|(name, _)| name);
        if members.is_empty() || known.eq(members) {
            return false;
        }
        let fresh: Vec<_> = members.iter().filter_map(|member| lazy(member).ok()).collect();
        self.endpoints.splice(..told, fresh);
        self.preferred = 0;
        true
    }

    /// The members that the control plane named last; empty: none yet.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        let told = self.endpoints.len() - self.named;
        self.endpoints.iter().take(told).map(|(name, _)| name.clone()).collect()
    }

    /// Asks where the members of this zone are; any zone's member may be asked.
    ///
    /// # Errors
    /// Nobody answered within `within`.
    pub async fn ask_members(
        &mut self,
        zone: ZoneId,
        within: Duration,
    ) -> Result<Vec<String>, ControlError> {
        let answer = self
            .ask(within, ANSWER_WITHIN, |channel, left| {
                let mut request = Request::new(v1::ListMembersRequest { zone: zone.to_string() });
                request.set_timeout(left);
                let mut client = ClusterServiceClient::new(channel);
                async move { client.list_members(request).await }
            })
            .await?;
        Ok(answer.members.into_iter().map(|member| member.address).collect())
    }

    /// Attaches a volume under a new generation. The same `client_token` again continues the
    /// same attachment, so a lost answer does no harm. `fenced_by` states in whose name nobody who had
    /// it before writes again.
    ///
    /// # Errors
    /// What the control plane refused, or nobody answered within `within`.
    pub async fn attach(
        &mut self,
        volume: &str,
        client_name: &str,
        client_token: &str,
        force: bool,
        fenced_by: Option<&str>,
        within: Duration,
    ) -> Result<Attached, ControlError> {
        let request = v1::AttachVolumeRequest {
            volume: volume.to_owned(),
            client_name: client_name.to_owned(),
            force,
            client_token: client_token.to_owned(),
            dry_run: false,
            old_client_fenced: fenced_by.is_some(),
            operator: fenced_by.unwrap_or_default().to_owned(),
        };
        let answer = self
            .call(within, within, |mut client, left| {
                let mut request = Request::new(request.clone());
                // Waiting for nodes to adopt the generation is the server's part of the time.
                request.set_timeout(left);
                async move { client.attach_volume(request).await }
            })
            .await?;
        let map = answer.map.ok_or(ConvertError::Missing("map"))?;
        Ok(Attached { map: read_map(&map)?, token: answer.token })
    }

    /// Ends the attachment with this generation. A volume that is attached by somebody else, or
    /// not at all, is no error: this attachment is over either way.
    ///
    /// # Errors
    /// What the control plane refused, or nobody answered within `within`.
    pub async fn detach(
        &mut self,
        volume: &str,
        generation: Generation,
        client_token: &str,
        within: Duration,
    ) -> Result<(), ControlError> {
        let request = v1::DetachVolumeRequest {
            volume: volume.to_owned(),
            generation: generation.0,
            force: false,
            client_token: client_token.to_owned(),
            dry_run: false,
        };
        let answer = self
            .call(within, ANSWER_WITHIN, |mut client, left| {
                let mut request = Request::new(request.clone());
                request.set_timeout(left);
                async move { client.detach_volume(request).await }
            })
            .await;
        match answer {
            Ok(_) => Ok(()),
            Err(error) => match error.reason() {
                Some(Reason::Fenced | Reason::IncorrectState | Reason::VolumeNotFound) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The newest committed map, and a fresh token in exchange for one of the present attachment
    /// (else an empty one).
    ///
    /// # Errors
    /// What the control plane refused, or nobody answered within `within`.
    pub async fn map(
        &mut self,
        volume: &str,
        token: &[u8],
        within: Duration,
    ) -> Result<Attached, ControlError> {
        let request = v1::GetVolumeMapRequest { volume: volume.to_owned(), token: token.to_vec() };
        let answer = self
            .call(within, ANSWER_WITHIN, |mut client, left| {
                let mut request = Request::new(request.clone());
                request.set_timeout(left);
                async move { client.get_volume_map(request).await }
            })
            .await?;
        let map = read_map(&answer.map.ok_or(ConvertError::Missing("map"))?)?;
        Ok(Attached { map, token: answer.token })
    }

    /// The size of a volume in bytes: much less to ask for than its map.
    ///
    /// # Errors
    /// What the control plane refused, or nobody answered within `within`.
    pub async fn size(&mut self, volume: VolumeId, within: Duration) -> Result<u64, ControlError> {
        let request = v1::GetVolumeRequest { volume: volume.to_string() };
        let answer = self
            .call(within, ANSWER_WITHIN, |mut client, left| {
                let mut request = Request::new(request.clone());
                request.set_timeout(left);
                async move { client.get_volume(request).await }
            })
            .await?;
        let geometry = answer.volume.and_then(|volume| volume.geometry);
        Ok(geometry.ok_or(ConvertError::Missing("volume.geometry"))?.size_bytes)
    }

    async fn call<T, F, R>(
        &mut self,
        within: Duration,
        each_within: Duration,
        call: F,
    ) -> Result<T, ControlError>
    where
        F: Fn(VolumeServiceClient<Channel>, Duration) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask(within, each_within, |channel, left| {
            let client =
                VolumeServiceClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX);
            call(client, left)
        })
        .await
    }

    /// Asks members in turn until one answers.
    async fn ask<T, F, R>(
        &mut self,
        within: Duration,
        each_within: Duration,
        call: F,
    ) -> Result<T, ControlError>
    where
        F: Fn(Channel, Duration) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut rounds = Backoff::new(ROUNDS);
        let mut last = String::from("nobody was asked");
        loop {
            for turn in 0..self.endpoints.len() {
                let index = (self.preferred + turn) % self.endpoints.len();
                let Some((name, channel)) = self.endpoints.get(index) else { continue };
                let left = within.saturating_sub(started.elapsed());
                if left.is_zero() {
                    return Err(self.unreachable(within, last));
                }
                let channel = channel.clone();
                let limit = left.min(each_within);
                match tokio::time::timeout(limit, call(channel, limit)).await {
                    Ok(Ok(answer)) => {
                        self.preferred = index;
                        return Ok(answer.into_inner());
                    }
                    Ok(Err(status)) if asks_another(&status) => {
                        last = format!("{name}: {}", status.message());
                    }
                    Ok(Err(status)) => return Err(refused(&status)),
                    Err(_elapsed) => last = format!("{name}: no answer within {limit:?}"),
                }
            }
            tokio::time::sleep(rounds.next_wait(SeededDice::system().next_u64())).await;
        }
    }

    fn unreachable(&self, within: Duration, last: String) -> ControlError {
        let names: Vec<_> = self.endpoints.iter().map(|(name, _)| name.as_str()).collect();
        ControlError::Unreachable { within, endpoints: names.join(", "), last }
    }
}

/// A way to a member, connected when first used.
fn lazy(text: &String) -> Result<(String, Channel), ControlError> {
    let uri = if text.contains("://") { text.clone() } else { format!("http://{text}") };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|_| ControlError::Endpoint(text.clone()))?
        .connect_timeout(CONNECT_WITHIN);
    Ok((text.clone(), endpoint.connect_lazy()))
}

/// Whether another member, or the same one later, may answer what this one did not.
fn asks_another(status: &Status) -> bool {
    let code = status.code();
    let broken = matches!(code, Code::Unavailable | Code::Cancelled | Code::Unknown);
    broken
        || (code == Code::ResourceExhausted
            && ApiError::from_status(status).is_some_and(|e| e.reason == Reason::Throttled))
}

fn refused(status: &Status) -> ControlError {
    match ApiError::from_status(status) {
        Some(error) => ControlError::Refused(Box::new(error)),
        None => ControlError::Status { code: status.code(), message: status.message().to_owned() },
    }
}

/// The policy of a volume whose requests fail after so many milliseconds; 0: never.
pub(crate) const fn policy(error_after_millis: u64) -> WaitPolicy {
    match error_after_millis {
        0 => WaitPolicy::Wait,
        millis => WaitPolicy::EioAfter(Duration::from_millis(millis)),
    }
}

fn read_map(wire: &v1::VolumeMap) -> Result<VolumeMap, ControlError> {
    let volume = wire.volume.as_ref().ok_or(ConvertError::Missing("map.volume"))?;
    let geometry = wire.geometry.as_ref().ok_or(ConvertError::Missing("map.geometry"))?;
    let configs = wire.chunks.iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    let mut addresses = BTreeMap::new();
    for node in &wire.nodes {
        let peer: PeerAddress = node.try_into()?;
        // One odd address must not keep the client from all other nodes.
        match peer.primary_address.parse() {
            Ok(address) => {
                addresses.insert(peer.node, address);
            }
            Err(error) => tracing::warn!(node = %peer.node, %error, "address of a node"),
        }
    }
    Ok(VolumeMap {
        volume: volume.id.parse()?,
        name: volume.name.clone(),
        geometry: geometry.try_into()?,
        policy: policy(volume.error_after_millis),
        generation: Generation(wire.generation),
        configs,
        addresses,
        members: wire.members.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn the_members_that_the_zone_names_are_asked_first_and_replace_each_other() {
        let mut control = ControlPlane::new(&strings(&["127.0.0.1:1"])).unwrap();
        let names = |control: &ControlPlane| {
            control.endpoints.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert!(!control.learn(&[]));
        assert!(control.learn(&strings(&["127.0.0.1:2", "127.0.0.1:3"])));
        assert!(!control.learn(&strings(&["127.0.0.1:2", "127.0.0.1:3"])));
        assert_eq!(names(&control), ["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"]);
        assert!(control.learn(&strings(&["127.0.0.1:4"])));
        assert_eq!(names(&control), ["127.0.0.1:4", "127.0.0.1:1"], "one that is gone is asked");
        assert_eq!(control.members(), ["127.0.0.1:4"]);
    }
}
