//! Raft's messages between members: one outgoing stream to each peer, any number of incoming ones.
//!
//! Messages are opaque here. Loss is allowed and happens when a queue is full or a connection
//! breaks; order within a stream is kept. A large message (a snapshot) goes in pieces.

use crate::machine::Handle;
use crate::member::Input;
use ashlar_env::dice::Dice;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1::raft_service_client::RaftServiceClient;
use ashlar_proto::v1::{ExchangeSummary, MessagePart, RaftEnvelope};
use ashlar_proto::{GRPC_MESSAGE_BYTES_MAX, v1};
use ashlar_types::ZoneId;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_zone_raft::PAYLOAD_VERSION;
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// Messages that may wait for one peer.
pub(crate) const PEER_QUEUE: usize = 512;
/// Envelopes on the way into one connection.
const ENVELOPES_IN_FLIGHT: usize = 32;
/// Messages above this go in pieces of this size.
const PART_BYTES: usize = 512 << 10;
/// Messages that travel in one envelope together, by count and by bytes.
const ENVELOPE_MESSAGES_MAX: usize = 64;
/// Largest message that is put together again: a snapshot of a million chunks.
const MESSAGE_BYTES_MAX: u64 = 512 << 20;
/// How often a peer hears who this is; the first time at once.
const HELLO_EVERY: Duration = Duration::from_secs(2);
/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// Waits between tries. The most stays below an election time-out: a member that comes back must
/// be heard before others start to wonder.
const RECONNECT: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(50), max: Duration::from_millis(500) };

/// Who talks to whom.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) zone: ZoneId,
    pub(crate) me: u64,
    pub(crate) peer: u64,
    /// `ip:port` where this member is found; empty if it does not know.
    pub(crate) address: String,
}

impl Pair {
    fn envelope(&self) -> RaftEnvelope {
        RaftEnvelope {
            version: PAYLOAD_VERSION,
            zone: self.zone.to_string(),
            from: self.me,
            to: self.peer,
            messages: Vec::new(),
            part: None,
            address: String::new(),
        }
    }
}

/// Sends to one peer until the queue ends.
pub(crate) async fn send(
    pair: Pair,
    endpoint: Endpoint,
    mut messages: mpsc::Receiver<Bytes>,
    member: Handle,
    mut dice: impl Dice,
) {
    let mut backoff = Backoff::new(RECONNECT);
    while !messages.is_closed() {
        let connected = tokio::time::timeout(CONNECT_WITHIN, endpoint.connect()).await;
        if let Ok(Ok(channel)) = connected {
            let started = std::time::Instant::now();
            match stream(&pair, channel, &mut messages).await {
                Ended::NothingToSend => return,
                Ended::Removed => {
                    member.input(Input::ToldRemoved);
                }
                Ended::Broken => {}
            }
            // A connection that held for a while was a good one.
            if started.elapsed() > RECONNECT.max {
                backoff.reset();
            }
        }
        member.input(Input::PeerUnreachable { peer: pair.peer });
        tokio::time::sleep(backoff.next_wait(dice.next_u64())).await;
        // What waited meanwhile is old; Raft sends what is needed.
        while messages.try_recv().is_ok() {}
    }
}

/// How a connection ended.
enum Ended {
    /// There is nothing more to send, ever.
    NothingToSend,
    /// The peer says that this member was removed.
    Removed,
    /// Try another one.
    Broken,
}

/// Sends over one connection.
async fn stream(pair: &Pair, channel: Channel, messages: &mut mpsc::Receiver<Bytes>) -> Ended {
    let (sender, envelopes) = mpsc::channel(ENVELOPES_IN_FLIGHT);
    let mut client =
        RaftServiceClient::new(channel).max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let exchange = client.exchange(ReceiverStream::new(envelopes));
    tokio::pin!(exchange);
    let mut batch = Vec::new();
    // The peer hears who this is before there is anything to say: a removed member may never have.
    let mut idle = tokio::time::interval(HELLO_EVERY);
    idle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut exchange => {
                if let Err(status) = ended {
                    tracing::debug!(peer = pair.peer, %status, "the stream to a member ended");
                    if is_removed(pair.me, &status) {
                        return Ended::Removed;
                    }
                }
                return Ended::Broken;
            }
            _ = idle.tick() => {
                let address = pair.address.clone();
                // If this does not fit, others are on their way.
                sender.try_send(RaftEnvelope { address, ..pair.envelope() }).ok();
            }
            count = messages.recv_many(&mut batch, ENVELOPE_MESSAGES_MAX) => {
                if count == 0 {
                    return Ended::NothingToSend;
                }
                for envelope in pack(pair, batch.drain(..)) {
                    let sent = tokio::select! {
                        sent = sender.send(envelope) => sent.is_ok(),
                        ended = &mut exchange => {
                            let removed = ended.is_err_and(|status| is_removed(pair.me, &status));
                            return if removed { Ended::Removed } else { Ended::Broken };
                        }
                    };
                    if !sent {
                        return Ended::Broken;
                    }
                }
            }
        }
    }
}

/// Whether a peer refuses this member by name.
fn is_removed(me: u64, status: &Status) -> bool {
    ApiError::from_status(status).is_some_and(|error| {
        error.reason == Reason::MemberRemoved
            && error.metadata.get("member") == Some(&me.to_string())
    })
}

/// Puts small messages together and takes large ones apart.
fn pack(pair: &Pair, messages: impl Iterator<Item = Bytes>) -> Vec<RaftEnvelope> {
    let mut envelopes = Vec::new();
    let mut whole = pair.envelope();
    let mut whole_bytes = 0;
    for message in messages {
        if whole_bytes + message.len() > PART_BYTES && !whole.messages.is_empty() {
            envelopes.push(std::mem::replace(&mut whole, pair.envelope()));
            whole_bytes = 0;
        }
        if message.len() <= PART_BYTES {
            whole_bytes += message.len();
            whole.messages.push(message);
            continue;
        }
        let total = message.len() as u64;
        let mut offset = 0;
        let mut rest = message;
        while !rest.is_empty() {
            let data = rest.split_to(PART_BYTES.min(rest.len()));
            let part = MessagePart { offset, total, data };
            offset += part.data.len() as u64;
            envelopes.push(RaftEnvelope { part: Some(part), ..pair.envelope() });
        }
    }
    if !whole.messages.is_empty() {
        envelopes.push(whole);
    }
    envelopes
}

/// Puts the pieces of a large message together.
#[derive(Debug, Default)]
struct Assembly {
    bytes: BytesMut,
}

impl Assembly {
    /// Takes a piece; gives the message when it was the last one.
    fn take(&mut self, part: &MessagePart) -> Result<Option<Bytes>, Status> {
        if part.offset == 0 {
            self.bytes.clear();
        }
        let expected = self.bytes.len() as u64;
        let end = expected + part.data.len() as u64;
        if part.offset != expected || end > part.total || part.total > MESSAGE_BYTES_MAX {
            let text = "pieces of a message do not follow each other";
            return Err(ApiError::new(Reason::InvalidParameter, text).into());
        }
        self.bytes.extend_from_slice(&part.data);
        Ok((end == part.total).then(|| self.bytes.split().freeze()))
    }
}

/// Receives from other members.
#[derive(Debug)]
pub(crate) struct RaftReceiver {
    pub(crate) zone: ZoneId,
    pub(crate) me: u64,
    pub(crate) member: Handle,
    pub(crate) stop: CancellationToken,
}

impl RaftReceiver {
    fn check(&self, envelope: &RaftEnvelope) -> Result<(), Status> {
        if envelope.version != PAYLOAD_VERSION {
            let text = format!(
                "raft payload version {} is not spoken here; this member speaks {PAYLOAD_VERSION}",
                envelope.version
            );
            return Err(ApiError::new(Reason::UnsupportedVersion, text).into());
        }
        let members = self.member.members();
        let from = envelope.from;
        let ours = envelope.zone == self.zone.to_string();
        if ours && members.removed.contains(&from) {
            let text = format!(
                "member {from} was removed from zone {}; its number is not used again",
                self.zone
            );
            let error = ApiError::new(Reason::MemberRemoved, text);
            return Err(error.with("member", from.to_string()).into());
        }
        let known = from != self.me && members.admits(from);
        if envelope.zone != self.zone.to_string() || envelope.to != self.me || !known {
            let text = format!(
                "this is member {} of zone {}; the message goes from member {} to member {} of \
                 zone {:?}",
                self.me, self.zone, envelope.from, envelope.to, envelope.zone
            );
            return Err(ApiError::new(Reason::InvalidParameter, text).into());
        }
        Ok(())
    }

    async fn receive(&self, mut stream: Streaming<RaftEnvelope>) -> Result<u64, Status> {
        let mut accepted = 0;
        let mut assembly = Assembly::default();
        while let Some(envelope) = stream.message().await? {
            self.check(&envelope)?;
            let peer = envelope.from;
            if !envelope.address.is_empty()
                && envelope.address.parse::<std::net::SocketAddr>().is_ok()
                && !self.member.members().addresses.contains_key(&peer)
            {
                self.member.input(Input::PeerAt { peer, address: envelope.address });
            }
            let put_together =
                envelope.part.as_ref().map(|part| assembly.take(part)).transpose()?;
            for bytes in envelope.messages.into_iter().chain(put_together.flatten()) {
                // Dropped when the member is behind: Raft sends again.
                accepted += u64::from(self.member.input(Input::Raft { peer, bytes }));
            }
        }
        Ok(accepted)
    }
}

#[tonic::async_trait]
impl v1::raft_service_server::RaftService for RaftReceiver {
    async fn exchange(
        &self,
        request: Request<Streaming<RaftEnvelope>>,
    ) -> Result<Response<ExchangeSummary>, Status> {
        let stopped = || ApiError::new(Reason::ShuttingDown, "this member is shutting down").into();
        tokio::select! {
            received = self.receive(request.into_inner()) => {
                received.map(|messages| Response::new(ExchangeSummary { messages }))
            }
            () = self.stop.cancelled() => Err(stopped()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        Pair { zone: "a".parse().unwrap(), me: 1, peer: 2, address: String::new() }
    }

    #[test]
    fn large_messages_survive_being_taken_apart_between_small_ones() {
        let large = Bytes::from((0..=255).cycle().take(PART_BYTES * 2 + 7).collect::<Vec<u8>>());
        let sent = vec![Bytes::from_static(b"one"), large, Bytes::from_static(b"two")];
        let mut received = Vec::new();
        let mut assembly = Assembly::default();
        for envelope in pack(&pair(), sent.clone().into_iter()) {
            received.extend(envelope.messages);
            if let Some(part) = &envelope.part {
                received.extend(assembly.take(part).unwrap());
            }
        }
        received.sort_by_key(Bytes::len);
        let mut sent = sent;
        sent.sort_by_key(Bytes::len);
        assert_eq!(received, sent);
    }

    #[test]
    fn pieces_that_do_not_follow_or_claim_too_much_are_refused() {
        let part = |offset, total, len: usize| MessagePart {
            offset,
            total,
            data: Bytes::from(vec![0; len]),
        };
        let mut assembly = Assembly::default();
        assert!(assembly.take(&part(5, 10, 5)).is_err());
        assert!(assembly.take(&part(0, 10, 4)).unwrap().is_none());
        assert!(assembly.take(&part(5, 10, 5)).is_err());
        assert!(assembly.take(&part(0, 3, 4)).is_err());
        assert!(assembly.take(&part(0, u64::MAX, 4)).is_err());
    }
}
