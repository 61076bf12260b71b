//! One connection: a reader that hands over whole batches, and the bytes on their way out.
//!
//! In: the reader takes what the socket has, parses every whole frame, and hands the batch to the
//! machine's task. Out: the machine's task owns an [`Outbound`], fills it while it handles a batch
//! and flushes it once with vectored writes; only when the socket is full does a task wait for
//! room, and it wakes the machine's task, which writes on. So no queue is shared.
//!
//! Bounds: what waits to be sent ([`Outbound::push`]), what a client has asked and not been
//! answered ([`Credit`]), one batch per reader.

use super::{ConnectionNumber, NetEvent};
use ashlar_env::task::spawn_named;
use ashlar_proto::frame::{Frame, FrameError, FrameQueue, next_frame, push_message};
use ashlar_types::BLOCK_SIZE;
use ashlar_types::limit::{IO_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX};
use ashlar_types::message::data::DataMessage;
use bytes::BytesMut;
use socket2::SockRef;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

/// Room made for each read. 32 writes of 4 KiB fit: a deeper queue gives more reads, not more
/// waiting, and twice as much doubles what an idle connection holds.
const READ_BYTES: usize = 128 << 10;
/// Slices of one vectored write: heads and blocks of 64 writes.
const SLICES_MAX: usize = 128;
/// Bytes that may wait for one peer. The blocks are shared with the writes in flight, so this
/// costs little memory; it must hold what is sent again after a link comes back.
pub(crate) const PEER_OUTBOUND_BYTES_MAX: usize = 256 << 20;
/// Bytes that may wait for one client; above its [`Credit`], so that only answers nobody asked
/// for could reach it.
pub(crate) const CLIENT_OUTBOUND_BYTES_MAX: usize = 64 << 20;
/// Bytes of requests that one client may have unanswered: 32 of the largest. The reader waits for
/// answers to leave when this is used up.
const CREDIT_BYTES: usize = 32 << 20;
/// What a request takes of the credit besides its content.
const REQUEST_BYTES: usize = 256;

const _: () = assert!(CREDIT_BYTES >= 4 * IO_BYTES_MAX);
const _: () = assert!(CREDIT_BYTES < CLIENT_OUTBOUND_BYTES_MAX);
const _: () = assert!(CREDIT_BYTES > REQUESTS_PER_CONNECTION_MAX * REQUEST_BYTES);

/// Why a reader has stopped.
#[derive(Debug, Error)]
pub(crate) enum ReadEnd {
    /// The other side closed, between two frames.
    #[error("closed by the other side")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What arrived is no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A hello in the middle.
    #[error("a second hello")]
    SecondHello,
    /// A message on a link that only carries ours.
    #[error("a message on a connection that carries none in this direction")]
    WrongDirection,
    /// A client said what only nodes say.
    #[error("a message that no client sends")]
    NotARequest,
    /// The machine's task has ended.
    #[error("the node is stopping")]
    Stopping,
}

impl ReadEnd {
    /// Whether the other side is to blame: such an end is worth a line in the log.
    pub(crate) const fn is_misbehaviour(&self) -> bool {
        matches!(
            self,
            Self::Frame(_) | Self::SecondHello | Self::WrongDirection | Self::NotARequest
        )
    }
}

/// What a client may still ask before answers have left.
#[derive(Debug)]
pub(crate) struct Credit(Semaphore);

impl Credit {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Semaphore::new(CREDIT_BYTES)))
    }

    fn try_take(&self, bytes: usize) -> bool {
        u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.0.try_acquire_many(bytes).ok())
            .map(SemaphorePermit::forget)
            .is_some()
    }

    /// Waits until a request is within the credit, or the connection has ended.
    async fn take(&self, bytes: usize, stream: &TcpStream) -> Result<(), ReadEnd> {
        let bytes = u32::try_from(bytes).map_err(|_| ReadEnd::Closed)?;
        tokio::select! {
            permit = self.0.acquire_many(bytes) => permit.map_err(|_| ReadEnd::Closed)?.forget(),
            // Nothing is read meanwhile, so the end of the connection would not be noticed.
            _ = stream.ready(Interest::ERROR) => return Err(ReadEnd::Closed),
        }
        Ok(())
    }

    /// Answers to requests of so many bytes have left.
    pub(crate) fn give_back(&self, bytes: usize) {
        // The sum of what is taken never exceeds the credit, so neither does what comes back.
        self.0.add_permits(bytes.min(CREDIT_BYTES));
    }

    /// The connection is given up: its reader waits no longer.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

/// What a client's request takes of the credit: its content, or the content of its answer.
/// `None`: no client says this.
pub(crate) fn request_bytes(message: &DataMessage) -> Option<usize> {
    let content = match message {
        DataMessage::Read { range, .. } => (range.count as usize).saturating_mul(BLOCK_SIZE),
        DataMessage::Write { data, .. } => data.data.len(),
        DataMessage::FindConfig { .. } => 0,
        _not_a_request => return None,
    };
    Some(REQUEST_BYTES + content.min(IO_BYTES_MAX))
}

/// Takes what the socket has to give now into `input`; waits until there is something.
///
/// # Errors
/// The socket failed, or the other side closed it.
pub(crate) async fn read_some(stream: &TcpStream, input: &mut BytesMut) -> Result<(), ReadEnd> {
    loop {
        stream.readable().await?;
        match stream.try_read_buf(input) {
            Ok(0) => return Err(ReadEnd::Closed),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads an accepted connection to its end and hands its frames over in batches. `input` holds
/// what came behind the hello.
pub(crate) async fn read_frames(
    connection: ConnectionNumber,
    stream: &TcpStream,
    mut input: BytesMut,
    credit: Option<&Credit>,
    events: &mpsc::Sender<NetEvent>,
) -> ReadEnd {
    loop {
        let (messages, end) = parse(&mut input);
        let batch = Batch { connection, messages, events };
        let handed = match credit {
            Some(credit) => batch.hand_over_within(credit, stream).await,
            None => batch.hand_over().await,
        };
        if let Err(end) = handed {
            return end;
        }
        if let Some(end) = end {
            return end;
        }
        if input.capacity() - input.len() < READ_BYTES / 4 {
            input.reserve(READ_BYTES);
        }
        if let Err(end) = read_some(stream, &mut input).await {
            return end;
        }
    }
}

/// Frames on their way to the machine's task.
struct Batch<'a> {
    connection: ConnectionNumber,
    messages: Vec<DataMessage>,
    events: &'a mpsc::Sender<NetEvent>,
}

impl Batch<'_> {
    async fn hand_over(self) -> Result<(), ReadEnd> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let Self { connection, messages, events } = self;
        let frames = NetEvent::Frames { connection, messages };
        events.send(frames).await.map_err(|_| ReadEnd::Stopping)
    }

    /// Hands a client's requests over, as many at a time as its credit allows.
    async fn hand_over_within(
        mut self,
        credit: &Credit,
        stream: &TcpStream,
    ) -> Result<(), ReadEnd> {
        let all: Option<usize> = self.messages.iter().map(request_bytes).sum();
        if credit.try_take(all.ok_or(ReadEnd::NotARequest)?) {
            return self.hand_over().await;
        }
        let (connection, events) = (self.connection, self.events);
        let mut messages = Vec::new();
        for message in core::mem::take(&mut self.messages) {
            let bytes = request_bytes(&message).ok_or(ReadEnd::NotARequest)?;
            if !credit.try_take(bytes) {
                // What is gathered must be on its way before waiting for its answers.
                let messages = core::mem::take(&mut messages);
                Self { connection, messages, events }.hand_over().await?;
                credit.take(bytes, stream).await?;
            }
            messages.push(message);
        }
        Self { connection, messages, events }.hand_over().await
    }
}

/// All whole frames at the front of `input`, and why there will be no more, if so.
fn parse(input: &mut BytesMut) -> (Vec<DataMessage>, Option<ReadEnd>) {
    let mut messages = Vec::new();
    loop {
        match next_frame(input) {
            Ok(Some(Frame::Message(message))) => messages.push(message),
            Ok(Some(Frame::Hello(_) | Frame::HelloReply(_))) => {
                return (messages, Some(ReadEnd::SecondHello));
            }
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error.into())),
        }
    }
}

/// Waits for the end of a link that only carries our own frames.
pub(crate) async fn read_to_end(stream: &TcpStream) -> ReadEnd {
    let mut input = BytesMut::with_capacity(64);
    match read_some(stream, &mut input).await {
        Ok(()) => ReadEnd::WrongDirection,
        Err(end) => end,
    }
}

/// Why a connection is given up while sending.
#[derive(Debug, Error)]
pub(crate) enum SendError {
    /// More waits than may wait.
    #[error("{0} bytes wait and the other side does not take them")]
    TooSlow(usize),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Frames on their way out of one connection. Dropping it ends the connection.
#[derive(Debug)]
pub(crate) struct Outbound {
    connection: ConnectionNumber,
    stream: Arc<TcpStream>,
    queue: FrameQueue,
    bytes_max: usize,
    /// Frames were added since the last flush.
    touched: bool,
    /// The socket is full; a task waits for room and will send [`NetEvent::Writable`].
    full: bool,
    events: mpsc::Sender<NetEvent>,
}

impl Outbound {
    pub(crate) fn new(
        connection: ConnectionNumber,
        stream: Arc<TcpStream>,
        bytes_max: usize,
        events: mpsc::Sender<NetEvent>,
    ) -> Self {
        let queue = FrameQueue::default();
        Self { connection, stream, queue, bytes_max, touched: false, full: false, events }
    }

    pub(crate) const fn connection(&self) -> ConnectionNumber {
        self.connection
    }

    /// Bytes that wait.
    pub(crate) const fn waiting_bytes(&self) -> usize {
        self.queue.waiting_bytes()
    }

    /// Adds a frame; it leaves at the next flush. True if it is the first since the last one.
    ///
    /// # Errors
    /// The other side takes too little: the connection must be given up.
    pub(crate) fn push(&mut self, message: &DataMessage) -> Result<bool, SendError> {
        if self.queue.waiting_bytes() > self.bytes_max {
            return Err(SendError::TooSlow(self.queue.waiting_bytes()));
        }
        push_message(message, &mut self.queue);
        Ok(!core::mem::replace(&mut self.touched, true))
    }

    /// Writes what the socket takes; the rest leaves when it has room.
    ///
    /// # Errors
    /// The socket failed: the connection must be given up.
    pub(crate) fn flush(&mut self) -> Result<(), SendError> {
        self.touched = false;
        while !self.full && !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = self.queue.io_slices(&mut slices);
            let some = slices.get(..used).unwrap_or_default();
            match self.stream.try_write_vectored(some) {
                Ok(0) => return Err(SendError::Io(io::ErrorKind::WriteZero.into())),
                Ok(count) => self.queue.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The socket has room again.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(crate) fn on_writable(&mut self) -> Result<(), SendError> {
        self.full = false;
        self.flush()
    }

    fn wait_for_room(&mut self) {
        self.full = true;
        let (stream, events) = (Arc::clone(&self.stream), self.events.clone());
        let connection = self.connection;
        // Ends with the connection at the latest: a socket that is shut down counts as writable.
        drop(spawn_named("wait-for-room", async move {
            // An error shows up again at the write that follows.
            stream.writable().await.ok();
            events.send(NetEvent::Writable { connection }).await.ok();
        }));
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        hang_up(&self.stream);
    }
}

/// Ends a connection from any side of it: its reader finds the end.
pub(crate) fn hang_up(stream: &TcpStream) {
    // Fails only if the connection has ended already.
    SockRef::from(stream).shutdown(Shutdown::Both).ok();
}
