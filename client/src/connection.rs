//! One connection to a node, on the primary network: dial, hellos, then whole frames in batches.
//!
//! One task per connection reads: it hands over everything that the socket gave in one batch. The
//! task of the volume writes directly, one vectored write per batch; when the socket is full, this
//! task says when it is writable again. Knows nothing of requests.

use ashlar_client_core::Input;
use ashlar_proto::frame::{Frame, FrameError, FrameQueue, next_frame, push_frame};
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, Hello, HelloRefusal, HelloReply, HelloRole,
};
use ashlar_types::{Generation, NodeId, SessionId, VolumeId};
use bytes::BytesMut;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

/// Time for a connection and its hellos. A busy node may take long; the machine asks the others
/// meanwhile.
const DIAL_WITHIN: Duration = Duration::from_secs(3);
/// Unacknowledged bytes older than this end a connection: the host is gone without a word.
const SILENT_HOST_MILLIS: i32 = 5_000;
/// Room made for each read of a socket.
const READ_BYTES: usize = 256 << 10;

/// Who dials, for the hello.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) volume: VolumeId,
    pub(crate) generation: Generation,
    pub(crate) token: Vec<u8>,
}

/// What connections tell the task of the volume.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Admitted; the stream is for writing.
    Up { node: NodeId, session: SessionId, stream: Arc<TcpStream> },
    /// Failed or ended.
    Down { node: NodeId, session: SessionId },
    /// What the socket gave, as inputs for the machine.
    Messages { inputs: Vec<Input> },
    /// The socket takes bytes again.
    Writable { node: NodeId, session: SessionId },
}

#[derive(Debug, Error)]
enum LinkError {
    #[error("the node's address is not known yet")]
    NoAddress,
    #[error("no answer to the hello within {DIAL_WITHIN:?}")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("refused: {0}")]
    Refused(HelloRefusal),
    #[error("{0} answered at the address of another node")]
    OtherNode(NodeId),
    #[error("no hello came back")]
    NoHello,
    #[error("the node closed the connection")]
    Closed,
}

/// Runs one connection from dialling to its end.
pub(crate) async fn run(
    node: NodeId,
    session: SessionId,
    address: Option<SocketAddr>,
    identity: Identity,
    want_write: Arc<Notify>,
    events: mpsc::Sender<LinkEvent>,
) {
    let error = match connect(node, session, address, identity).await {
        Ok((stream, input)) => {
            let stream = Arc::new(stream);
            let up = LinkEvent::Up { node, session, stream: stream.clone() };
            if events.send(up).await.is_err() {
                return;
            }
            read_all(node, session, &stream, input, &want_write, &events).await
        }
        Err(error) => error,
    };
    tracing::info!(%node, %session, %error, "no connection");
    if events.send(LinkEvent::Down { node, session }).await.is_err() {
        tracing::debug!(%node, "the volume is closed");
    }
}

async fn connect(
    node: NodeId,
    session: SessionId,
    address: Option<SocketAddr>,
    identity: Identity,
) -> Result<(TcpStream, BytesMut), LinkError> {
    let address = address.ok_or(LinkError::NoAddress)?;
    let greeted = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        end_when_silent(&stream)?;
        let hello = Frame::Hello(Hello {
            version: DATA_PROTOCOL_VERSION,
            zone: identity.volume.zone,
            role: HelloRole::Client {
                volume: identity.volume,
                generation: identity.generation,
                session,
                token: identity.token,
            },
        });
        let mut queue = FrameQueue::default();
        push_frame(&hello, &mut queue);
        while !queue.is_empty() {
            stream.writable().await?;
            write_some(&stream, &mut queue)?;
        }
        let mut input = BytesMut::with_capacity(READ_BYTES);
        loop {
            if let Some(frame) = next_frame(&mut input)? {
                welcome(frame, node)?;
                return Ok((stream, input));
            }
            read_some(&stream, &mut input).await?;
        }
    };
    tokio::time::timeout(DIAL_WITHIN, greeted).await.map_err(|_| LinkError::TimedOut)?
}

fn welcome(frame: Frame, dialled: NodeId) -> Result<(), LinkError> {
    match frame {
        Frame::HelloReply(HelloReply::Welcome { node, .. }) if node == dialled => Ok(()),
        Frame::HelloReply(HelloReply::Welcome { node, .. }) => Err(LinkError::OtherNode(node)),
        Frame::HelloReply(HelloReply::Refused(refusal)) => Err(LinkError::Refused(refusal)),
        Frame::Hello(_) | Frame::Message(_) => Err(LinkError::NoHello),
    }
}

async fn read_all(
    node: NodeId,
    session: SessionId,
    stream: &TcpStream,
    mut input: BytesMut,
    want_write: &Notify,
    events: &mpsc::Sender<LinkEvent>,
) -> LinkError {
    let mut wants_write = false;
    loop {
        let mut inputs = Vec::new();
        let parsed = loop {
            match next_frame(&mut input) {
                Ok(Some(Frame::Message(message))) => {
                    inputs.push(Input::Message { node, session, message });
                }
                Ok(Some(Frame::Hello(_) | Frame::HelloReply(_))) => break Err(LinkError::NoHello),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        // What came whole before the damage counts.
        if !inputs.is_empty() && events.send(LinkEvent::Messages { inputs }).await.is_err() {
            return LinkError::Closed;
        }
        if let Err(error) = parsed {
            return error;
        }
        tokio::select! {
            biased;
            read = read_some(stream, &mut input) => {
                if let Err(error) = read {
                    return error;
                }
            }
            () = want_write.notified(), if !wants_write => wants_write = true,
            ready = stream.writable(), if wants_write => {
                wants_write = false;
                if let Err(error) = ready {
                    return error.into();
                }
                if events.send(LinkEvent::Writable { node, session }).await.is_err() {
                    return LinkError::Closed;
                }
            }
        }
    }
}

/// Waits for bytes and takes what is there.
async fn read_some(stream: &TcpStream, input: &mut BytesMut) -> Result<(), LinkError> {
    loop {
        stream.readable().await?;
        if input.capacity() - input.len() < READ_BYTES / 4 {
            input.reserve(READ_BYTES);
        }
        match stream.try_read_buf(input) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes what the socket takes without waiting. Returns whether everything is written.
pub(crate) fn write_some(stream: &TcpStream, queue: &mut FrameQueue) -> io::Result<bool> {
    while !queue.is_empty() {
        let written = {
            let mut slices = [io::IoSlice::new(&[]); 64];
            let used = queue.io_slices(&mut slices);
            stream.try_write_vectored(slices.get(..used).unwrap_or_default())
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => queue.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Ends the connection when the other host no longer acknowledges bytes.
fn end_when_silent(stream: &TcpStream) -> io::Result<()> {
    for (level, name, value) in [
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, SILENT_HOST_MILLIS),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 2),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1),
    ] {
        set_option(stream, level, name, value)?;
    }
    Ok(())
}

#[allow(unsafe_code, reason = "socket options that neither std nor nix has in one place")]
fn set_option(stream: &TcpStream, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the descriptor is open as long as `stream` lives, and the pointer and size are
    // those of a live i32, which is what these options take.
    let done = unsafe {
        libc::setsockopt(stream.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
