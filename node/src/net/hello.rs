//! The first frames of a connection: who is there, and may it come in.
//!
//! Bounded in time and bytes, so that a visitor who says nothing, or too much, costs little.

use super::connection::{ReadEnd, read_some};
use super::{Attachment, Net, Visitor, name};
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_node_core::{Identity, Process};
use ashlar_proto::frame::{Frame, FrameQueue, next_frame, push_frame};
use ashlar_types::NodeId;
use ashlar_types::limit::STORES_PER_NODE_MAX;
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, Hello, HelloRefusal, HelloReply, HelloRole, Network,
};
use bytes::BytesMut;
use std::io::{self, IoSlice};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long either side may take for its hello. A loaded host takes milliseconds.
const HELLO_WITHIN: Duration = Duration::from_secs(2);
/// Largest hello: a token fits many times.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// Why a connection is closed before it was open.
#[derive(Debug, Error)]
pub(crate) enum HelloError {
    /// Nothing, or not enough, came in time.
    #[error("no hello within {} s", HELLO_WITHIN.as_secs())]
    Late,
    /// The connection ended, or carries no frames.
    #[error("{0}")]
    Read(#[from] ReadEnd),
    /// The socket failed while writing.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another frame came first, or a hello without end.
    #[error("the first frame is no hello")]
    NotAHello,
    /// This side refused.
    #[error("refused: {0}")]
    Refused(HelloRefusal),
    /// The other side refused.
    #[error("refused by the other side: {0}")]
    RefusedByThem(HelloRefusal),
    /// Somebody else listens at the address.
    #[error("node {0} answers at this address")]
    OtherNode(NodeId),
    /// A hello that no right node sends.
    #[error("{0}")]
    Absurd(&'static str),
}

impl HelloError {
    /// Whether it is worth a line in the log: the other side is not what it should be.
    pub(crate) const fn is_misbehaviour(&self) -> bool {
        match self {
            Self::Read(end) => end.is_misbehaviour(),
            Self::Io(_) => false,
            Self::Late
            | Self::NotAHello
            | Self::Refused(_)
            | Self::RefusedByThem(_)
            | Self::OtherNode(_)
            | Self::Absurd(_) => true,
        }
    }
}

/// Receives a visitor: tells who it is, and leaves in `input` what came behind its hello.
///
/// # Errors
/// It is no visitor, or one that must not come in; it has been told.
pub(crate) async fn receive(
    stream: &TcpStream,
    net: &Net,
    network: Network,
    full: bool,
    input: &mut BytesMut,
) -> Result<Visitor, HelloError> {
    let me = net.me;
    let Frame::Hello(hello) = first_frame(stream, input).await? else {
        return Err(HelloError::NotAHello);
    };
    let admitted = match judge(&hello, me, network, full) {
        Ok(()) => identify(hello.role, net).await,
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Err(refusal) => {
            send(stream, &Frame::HelloReply(HelloReply::Refused(refusal))).await?;
            Err(HelloError::Refused(refusal))
        }
        Ok(Visitor::Node { node, .. }) if node == me.node => {
            Err(HelloError::Absurd("a hello in this node's own name"))
        }
        Ok(Visitor::Node { network: said, .. }) if said != network => {
            Err(HelloError::Absurd("a hello for the other network"))
        }
        Ok(Visitor::Node { process, .. }) if !is_possible(&process) => {
            Err(HelloError::Absurd("a hello of a node with no store, or with too many"))
        }
        Ok(visitor) => {
            let version = DATA_PROTOCOL_VERSION;
            let (node, Process { stores, start }) = (me.node, net.process());
            let welcome = HelloReply::Welcome { version, node, stores, start };
            send(stream, &Frame::HelloReply(welcome)).await?;
            Ok(visitor)
        }
    }
}

/// Whether a node can be like that.
fn is_possible(process: &Process) -> bool {
    (1..=STORES_PER_NODE_MAX).contains(&process.stores.len())
}

/// Who the visitor is; a client proves it by its token.
async fn identify(role: HelloRole, net: &Net) -> Result<Visitor, HelloRefusal> {
    match role {
        HelloRole::Client { volume, generation, session, token } => {
            let now = SystemClock.wall_millis() / 1_000;
            let admitted = net.admission.admit((volume, generation), &token, now).await;
            let rights = admitted.map_err(HelloRefusal::Token)?;
            Ok(Visitor::Client(Attachment { volume, generation, session, rights }))
        }
        HelloRole::Node { node, stores, start, network, lane } => {
            Ok(Visitor::Node { node, network, lane, process: Process { stores, start } })
        }
    }
}

fn judge(hello: &Hello, me: Identity, network: Network, full: bool) -> Result<(), HelloRefusal> {
    if hello.version != DATA_PROTOCOL_VERSION {
        let (ours, theirs) = (DATA_PROTOCOL_VERSION, hello.version);
        return Err(HelloRefusal::Version { ours, theirs });
    }
    if hello.zone != me.zone {
        return Err(HelloRefusal::Zone);
    }
    if network == Network::Replication && matches!(hello.role, HelloRole::Client { .. }) {
        return Err(HelloRefusal::Network);
    }
    if full { Err(HelloRefusal::Full) } else { Ok(()) }
}

/// Introduces this node to a peer; gives its process.
///
/// # Errors
/// The peer does not answer, refuses, or is another node.
pub(crate) async fn introduce(
    stream: &TcpStream,
    net: &Net,
    peer: NodeId,
    network: Network,
) -> Result<Process, HelloError> {
    let (me, Process { stores, start }) = (net.me, net.process());
    let role = HelloRole::Node { node: me.node, stores, start, network, lane: net.lane };
    let hello = Hello { version: DATA_PROTOCOL_VERSION, zone: me.zone, role };
    send(stream, &Frame::Hello(hello)).await?;
    let mut input = BytesMut::with_capacity(256);
    match first_frame(stream, &mut input).await? {
        Frame::HelloReply(HelloReply::Welcome { node, stores, start, .. }) if node == peer => {
            let process = Process { stores, start };
            if !is_possible(&process) {
                return Err(HelloError::Absurd(
                    "an answer of a node with no store, or with too many",
                ));
            }
            tracing::debug!(node = node.0, network = name(network), start = start.0, "linked");
            Ok(process)
        }
        Frame::HelloReply(HelloReply::Welcome { node, .. }) => Err(HelloError::OtherNode(node)),
        Frame::HelloReply(HelloReply::Refused(refusal)) => Err(HelloError::RefusedByThem(refusal)),
        Frame::Hello(_) | Frame::Message(_) => Err(HelloError::NotAHello),
    }
}

async fn first_frame(stream: &TcpStream, input: &mut BytesMut) -> Result<Frame, HelloError> {
    let read = async {
        loop {
            if let Some(frame) = next_frame(input).map_err(ReadEnd::from)? {
                return Ok(frame);
            }
            if input.len() >= HELLO_BYTES_MAX {
                return Err(HelloError::NotAHello);
            }
            read_some(stream, input).await?;
        }
    };
    timeout(HELLO_WITHIN, read).await.unwrap_or(Err(HelloError::Late))
}

async fn send(stream: &TcpStream, frame: &Frame) -> Result<(), HelloError> {
    let mut queue = FrameQueue::default();
    push_frame(frame, &mut queue);
    let write = async {
        while !queue.is_empty() {
            stream.writable().await?;
            let mut slices = [IoSlice::new(&[]); 2];
            let used = queue.io_slices(&mut slices);
            match stream.try_write_vectored(slices.get(..used).unwrap_or_default()) {
                Ok(count) => queue.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    timeout(HELLO_WITHIN, write).await.unwrap_or(Err(HelloError::Late))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::message::data::HelloRole;
    use ashlar_types::{SessionId, StartNumber};

    #[test]
    fn what_is_wrong_is_named_in_a_fixed_order() {
        let zone = "a".parse().unwrap();
        let me = Identity { zone, node: NodeId(1), start: StartNumber(1) };
        let volume = ashlar_types::VolumeId { zone, uuid: 1 };
        let generation = ashlar_types::Generation(1);
        let role =
            HelloRole::Client { volume, generation, session: SessionId(1), token: Vec::new() };
        let good = Hello { version: DATA_PROTOCOL_VERSION, zone, role };
        let (primary, replication) = (Network::Primary, Network::Replication);
        assert_eq!(judge(&good, me, primary, false), Ok(()));
        assert_eq!(judge(&good, me, primary, true), Err(HelloRefusal::Full));
        assert_eq!(judge(&good, me, replication, true), Err(HelloRefusal::Network));
        let foreign = Hello { zone: "b".parse().unwrap(), ..good };
        assert_eq!(judge(&foreign, me, replication, true), Err(HelloRefusal::Zone));
        let newer = Hello { version: 9, ..foreign };
        let version = HelloRefusal::Version { ours: DATA_PROTOCOL_VERSION, theirs: 9 };
        assert_eq!(judge(&newer, me, replication, true), Err(version));
    }
}
