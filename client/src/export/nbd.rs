//! A device as an NBD export over a unix socket.
//!
//! One task per connection: it parses everything that the socket gave, hands it over as one
//! batch, and writes everything that is done with one vectored write. What it may hold is
//! bounded: requests and bytes in progress, replies not yet taken by the client.
//! Path of a write: client 1 of 9.

use crate::device::{
    BlockDevice, ChannelSink, Command, Completion, Content, Io, IoError, Submission,
};
use ashlar_client_core::nbd_wire::{
    Export, Handshake, NbdCommand, NbdErrno, NbdError, NbdRequest, Parsed, Step, data_head,
    error_reply, hole_chunk, next_request, read_error_chunk, simple_reply,
};
use ashlar_env::task::spawn_named;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Requests of one connection in progress.
const REQUESTS_MAX: usize = 512;
/// Bytes of requests of one connection in progress (reads count their answers).
const BYTES_MAX: usize = 64 << 20;
/// Time for a handshake; a client that says nothing gives its place back.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Room made for each read of a socket.
const READ_BYTES: usize = 256 << 10;
/// Data from this size on is sent from where it lies; less is copied behind its head.
const COPY_BELOW: usize = 16 << 10;

#[derive(Debug, Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] NbdError),
    #[error("no handshake within {HANDSHAKE_WITHIN:?}")]
    HandshakeTime,
    #[error("the device is gone")]
    DeviceGone,
}

/// Makes the socket. A stale socket file of an earlier process is replaced. Only the user of this
/// process may connect.
///
/// # Errors
/// When it cannot be made.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Makes the socket and takes NBD clients until `stop`.
///
/// # Errors
/// As [`bind`] and [`serve_on`].
pub async fn serve(device: BlockDevice, socket: &Path, stop: CancellationToken) -> io::Result<()> {
    serve_on(device, bind(socket)?, socket, stop).await
}

/// Takes NBD clients until `stop`, then removes the socket.
///
/// # Errors
/// When the socket file cannot be removed.
pub async fn serve_on(
    device: BlockDevice,
    listener: UnixListener,
    socket: &Path,
    stop: CancellationToken,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, usually: give others time to close theirs.
                tracing::warn!(%error, "cannot accept an NBD client");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(limit = CONNECTIONS_MAX, "too many NBD clients");
            continue;
        };
        let (device, stop) = (device.clone(), stop.clone());
        spawn_named("client-nbd", async move {
            let _place = place;
            match connection(device, stream, &stop).await {
                Ok(()) => tracing::debug!("NBD client left"),
                Err(error) => tracing::info!(%error, "NBD connection ended"),
            }
        });
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn connection(
    device: BlockDevice,
    mut stream: UnixStream,
    stop: &CancellationToken,
) -> Result<(), ConnectionError> {
    let export = Export {
        name: device.info.name.clone(),
        size_bytes: device.size_bytes(),
        read_only: device.info.read_only,
    };
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let greeted =
        tokio::time::timeout(HANDSHAKE_WITHIN, handshake(&export, &mut stream, &mut input));
    let greeted = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        greeted = greeted => greeted.map_err(|_| ConnectionError::HandshakeTime)??,
    };
    let Some(structured) = greeted else { return Ok(()) };
    let (sink, done) = ChannelSink::new(REQUESTS_MAX);
    let mut connection = Connection {
        export,
        structured,
        device,
        sink,
        open: Requests::default(),
        replies: Replies::default(),
        bytes: 0,
        leaving: false,
    };
    let mut done = done;
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = connection.run(&stream, input, &mut done) => ended,
    };
    connection.last_words(&stream, &mut done)?;
    ended
}

/// `None` if the client left; otherwise whether reads are answered by structured replies.
async fn handshake(
    export: &Export,
    stream: &mut UnixStream,
    input: &mut BytesMut,
) -> Result<Option<bool>, ConnectionError> {
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(export.clone(), &mut out);
    loop {
        let step = handshake.feed(input, &mut out);
        stream.write_all_buf(&mut out).await?;
        match step? {
            Step::More => {}
            Step::Transmission { structured } => return Ok(Some(structured)),
            Step::Closed => return Ok(None),
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

struct Connection {
    export: Export,
    structured: bool,
    device: BlockDevice,
    sink: Arc<ChannelSink>,
    open: Requests,
    replies: Replies,
    /// Bytes of requests in progress.
    bytes: usize,
    /// The client has said good-bye, or closed its side: answer what is open, then end.
    leaving: bool,
}

impl Connection {
    async fn run(
        &mut self,
        stream: &UnixStream,
        mut input: BytesMut,
        done: &mut mpsc::Receiver<Vec<Completion>>,
    ) -> Result<(), ConnectionError> {
        loop {
            let commands = self.parse(&mut input)?;
            if !commands.is_empty() {
                let submission = Submission { commands, sink: self.sink.clone() };
                let sent = self.device.queue.send(submission).await;
                sent.map_err(|_| ConnectionError::DeviceGone)?;
            }
            let written = self.replies.write(stream)?;
            if self.leaving && self.open.len == 0 && self.replies.is_empty() {
                return Ok(());
            }
            let reads = !self.leaving && self.has_room();
            tokio::select! {
                biased;
                Some(completions) = done.recv() => {
                    self.answer(completions);
                    while let Ok(completions) = done.try_recv() {
                        self.answer(completions);
                    }
                }
                ready = stream.writable(), if !written => ready?,
                ready = stream.readable(), if reads => {
                    ready?;
                    self.leaving |= !read_some(stream, &mut input)?;
                }
            }
        }
    }

    /// The end has come from our side: a client that waits is told so, request by request, as far as
    /// its socket takes it at once.
    fn last_words(
        &mut self,
        stream: &UnixStream,
        done: &mut mpsc::Receiver<Vec<Completion>>,
    ) -> io::Result<()> {
        while let Ok(completions) = done.try_recv() {
            self.answer(completions);
        }
        let open = 0..self.open.slots.len() as u64;
        let unanswered = open.map(|tag| Completion { tag, result: Err(IoError::Closed) });
        self.answer(unanswered.collect());
        self.replies.write(stream).map(|_written| ())
    }

    fn has_room(&self) -> bool {
        self.open.len < REQUESTS_MAX && self.bytes + self.replies.bytes < BYTES_MAX
    }

    fn parse(&mut self, input: &mut BytesMut) -> Result<Vec<Command>, ConnectionError> {
        let mut commands = Vec::new();
        while self.has_room() && !self.leaving {
            let Some(parsed) = next_request(input, &self.export)? else { break };
            match parsed {
                Parsed::Refuse { cookie, errno, read } => {
                    let structured = read && self.structured;
                    error_reply(&mut self.replies.heads, cookie, errno, structured);
                }
                Parsed::Request(request) => commands.extend(self.command(request)),
            }
        }
        Ok(commands)
    }

    fn command(&mut self, request: NbdRequest) -> Option<Command> {
        let (io, read) = match request.command {
            NbdCommand::Disconnect => {
                self.leaving = true;
                return None;
            }
            NbdCommand::Flush => (Io::Flush, None),
            NbdCommand::Zero { offset, len } => (Io::Zero { offset, len: u64::from(len) }, None),
            NbdCommand::Write { offset, data } => (Io::Write { offset, data }, None),
            NbdCommand::Read { offset, len, one_piece } => {
                (Io::Read { offset, len }, Some((offset, one_piece)))
            }
        };
        let bytes = match &io {
            Io::Read { len, .. } => *len as usize,
            Io::Write { data, .. } => data.len(),
            Io::Zero { .. } | Io::Flush => 0,
        };
        self.bytes += bytes;
        let tag = self.open.insert(OpenRequest { cookie: request.cookie, read, bytes });
        Some(Command { tag, io })
    }

    fn answer(&mut self, completions: Vec<Completion>) {
        for completion in completions {
            let Some(request) = self.open.remove(completion.tag) else { continue };
            self.bytes -= request.bytes;
            match (completion.result, request.read) {
                (Ok(content), Some((offset, one_piece))) => {
                    self.answer_read(request.cookie, offset, one_piece, content);
                }
                (Ok(_), None) => self.replies.head(&simple_reply(request.cookie, 0)),
                (Err(error), Some(_)) if self.structured => {
                    self.replies.head(&read_error_chunk(request.cookie, errno(error)));
                }
                (Err(error), _) => {
                    self.replies.head(&simple_reply(request.cookie, errno(error) as u32));
                }
            }
        }
    }

    fn answer_read(&mut self, cookie: u64, mut offset: u64, one_piece: bool, content: Content) {
        if !self.structured {
            self.replies.head(&simple_reply(cookie, 0));
            return self.replies.data(content.into_bytes());
        }
        if one_piece {
            let data = content.into_bytes();
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            self.replies.head(&data_head(cookie, offset, len, true));
            return self.replies.data(data);
        }
        let count = content.pieces.len();
        for (index, piece) in content.pieces.into_iter().enumerate() {
            let last = index + 1 == count;
            match piece.data {
                Some(data) => {
                    self.replies.head(&data_head(cookie, offset, piece.len, last));
                    self.replies.data(data);
                }
                None => self.replies.head(&hole_chunk(cookie, offset, piece.len, last)),
            }
            offset += u64::from(piece.len);
        }
    }
}

/// What a device's error is called here.
fn errno(error: IoError) -> NbdErrno {
    match error {
        IoError::OutOfRange => NbdErrno::Invalid,
        IoError::ReadOnly => NbdErrno::Perm,
        IoError::Closed => NbdErrno::Shutdown,
        IoError::Fenced(_)
        | IoError::Damaged
        | IoError::TimedOut
        | IoError::GivenUp
        | IoError::Internal => NbdErrno::Io,
    }
}

/// Takes what is there. Returns whether the client may send more.
fn read_some(stream: &UnixStream, input: &mut BytesMut) -> io::Result<bool> {
    if input.capacity() - input.len() < READ_BYTES / 4 {
        input.reserve(READ_BYTES);
    }
    match stream.try_read_buf(input) {
        Ok(0) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct OpenRequest {
    cookie: u64,
    /// Offset, and whether the answer must be one piece.
    read: Option<(u64, bool)>,
    bytes: usize,
}

/// Requests in progress; the tag is the slot.
#[derive(Debug, Default)]
struct Requests {
    slots: Vec<Option<OpenRequest>>,
    free: Vec<usize>,
    len: usize,
}

impl Requests {
    fn insert(&mut self, request: OpenRequest) -> u64 {
        self.len += 1;
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.slots.get_mut(slot)
        {
            *place = Some(request);
            return slot as u64;
        }
        self.slots.push(Some(request));
        (self.slots.len() - 1) as u64
    }

    fn remove(&mut self, tag: u64) -> Option<OpenRequest> {
        let slot = usize::try_from(tag).ok()?;
        let request = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        self.len -= 1;
        Some(request)
    }
}

/// Replies that wait for the socket: heads and small data in one buffer, large data by reference.
#[derive(Debug, Default)]
struct Replies {
    slices: VecDeque<Bytes>,
    heads: BytesMut,
    /// Bytes in `slices`.
    bytes: usize,
}

impl Replies {
    fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.heads.is_empty()
    }

    fn head(&mut self, bytes: &[u8]) {
        self.heads.extend_from_slice(bytes);
    }

    fn data(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW {
            return self.heads.extend_from_slice(&data);
        }
        self.seal();
        self.bytes += data.len();
        self.slices.push_back(data);
    }

    fn seal(&mut self) {
        if !self.heads.is_empty() {
            self.bytes += self.heads.len();
            self.slices.push_back(self.heads.split().freeze());
        }
    }

    /// Writes what the socket takes. Returns whether everything is written.
    fn write(&mut self, stream: &UnixStream) -> io::Result<bool> {
        self.seal();
        while !self.slices.is_empty() {
            let written = {
                let mut slices = [io::IoSlice::new(&[]); 64];
                let mut used = 0;
                for (slot, bytes) in slices.iter_mut().zip(&self.slices) {
                    *slot = io::IoSlice::new(bytes);
                    used += 1;
                }
                stream.try_write_vectored(slices.get(..used).unwrap_or_default())
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while count > 0 {
            let Some(front) = self.slices.front_mut() else { return };
            if front.len() > count {
                return front.advance(count);
            }
            count -= front.len();
            self.slices.pop_front();
        }
    }
}
