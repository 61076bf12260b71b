//! A primary that stands still for longer than every time-out, is replaced meanwhile, and wakes up (N33):
//! asked directly, by a client with the map of before, it serves neither a read nor a write.
//!
//! The requests lie in its sockets while it sleeps, so that it gets them before anything tells it that it
//! was replaced; others come when it is awake.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::io::{IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ashlar_proto::frame::{Frame, FrameQueue, next_frame, push_frame};
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use ashlar_proto::v1::{AttachVolumeRequest, VolumeMap};
use ashlar_tests::cluster::Cluster;
use ashlar_tests::{sized, wait};
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, DataMessage, Hello, HelloReply, HelloRole, Refusal, Stamp,
};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkConfig, Generation, NodeId, RequestId, SessionId, Sums,
};
use bytes::{Bytes, BytesMut};
use nix::sys::signal::Signal;

const WITHIN: Duration = Duration::from_secs(60);
/// What the sleeper is told to write: nobody may ever read it.
const NEVER: u8 = 0xee;

/// The right to write the volume, and what the zone said when it gave it.
struct Attachment {
    token: Vec<u8>,
    map: VolumeMap,
    sessions: u64,
}

/// A connection to a node, as a client's.
struct Client {
    stream: TcpStream,
    input: BytesMut,
    session: SessionId,
    generation: Generation,
    last: u64,
}

impl Attachment {
    fn take(cluster: &Cluster) -> Self {
        let status = cluster.status().unwrap();
        let members = status["members"].as_array().unwrap();
        let address = members[0]["address"].as_str().unwrap();
        let address = format!("http://{}", address.trim_start_matches("http://"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let mut volumes = VolumeServiceClient::connect(address).await.unwrap();
            let request = AttachVolumeRequest {
                volume: "asked".into(),
                client_name: "a client with an old map".into(),
                client_token: "attach".into(),
                ..Default::default()
            };
            volumes.attach_volume(request).await.unwrap().into_inner()
        });
        Self { token: answer.token, map: answer.map.unwrap(), sessions: 0 }
    }

    fn config(&self) -> ChunkConfig {
        ChunkConfig::try_from(&self.map.chunks[0]).unwrap()
    }

    /// A new connection; nothing if the node does not admit a client now.
    fn connect(&mut self, node: NodeId) -> Option<Client> {
        let peer = self.map.nodes.iter().find(|peer| peer.node == node.0).unwrap();
        let stream = TcpStream::connect(&peer.primary_address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(WITHIN)).unwrap();
        self.sessions += 1;
        let (session, generation) = (SessionId(self.sessions), Generation(self.map.generation));
        let volume = self.config().chunk.volume;
        let mut client = Client { stream, input: BytesMut::new(), session, generation, last: 0 };
        let token = self.token.clone();
        let role = HelloRole::Client { volume, generation, session, token };
        client.send(&Frame::Hello(Hello {
            version: DATA_PROTOCOL_VERSION,
            zone: volume.zone,
            role,
        }));
        match client.receive() {
            Some(Frame::HelloReply(HelloReply::Welcome { .. })) => Some(client),
            Some(Frame::HelloReply(HelloReply::Refused(_))) | None => None,
            Some(other) => panic!("no answer to a hello: {other:?}"),
        }
    }
}

impl Client {
    fn send(&mut self, frame: &Frame) {
        let mut queue = FrameQueue::default();
        push_frame(frame, &mut queue);
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); 8];
            let used = queue.io_slices(&mut slices);
            let count = self.stream.write_vectored(&slices[..used]).unwrap();
            queue.advance(count);
        }
    }

    /// The next frame; nothing if the node has closed the connection.
    fn receive(&mut self) -> Option<Frame> {
        let mut bytes = [0; 64 << 10];
        loop {
            if let Some(frame) = next_frame(&mut self.input).unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn stamp(&mut self, config: &ChunkConfig) -> (RequestId, Stamp) {
        self.last += 1;
        let (generation, session) = (self.generation, self.session);
        let stamp = Stamp { chunk: config.chunk, epoch: config.epoch, generation, session };
        (RequestId(self.last), stamp)
    }

    fn send_write(&mut self, config: &ChunkConfig, byte: u8) {
        let (id, stamp) = self.stamp(config);
        let data = vec![byte; BLOCK_SIZE];
        let sums = Sums::Full(vec![crc32c::crc32c(&data)]);
        let data = BlockData { range: BlockRange::new(0, 1), sums, data: Bytes::from(data) };
        self.send(&Frame::Message(DataMessage::Write { id, stamp, data }));
    }

    fn send_read(&mut self, config: &ChunkConfig) {
        let (id, stamp) = self.stamp(config);
        let range = BlockRange::new(0, 1);
        self.send(&Frame::Message(DataMessage::Read { id, stamp, range }));
    }

    /// The next answer to a request; nothing if the connection has ended.
    fn answer(&mut self) -> Option<DataMessage> {
        match self.receive() {
            None => None,
            Some(Frame::Message(message)) => Some(message),
            Some(other) => panic!("no message: {other:?}"),
        }
    }
}

/// Asks for `done` with the newest configuration until it is granted, following refusals.
fn granted<T>(
    attachment: &mut Attachment,
    config: &mut ChunkConfig,
    ask: impl Fn(&mut Client, &ChunkConfig),
    done: impl Fn(DataMessage) -> Option<T>,
) -> T {
    let mut client: Option<Client> = None;
    wait::until("a request to be granted", WITHIN, || {
        if client.is_none() {
            client = attachment.connect(config.primary.node);
        }
        let connected = client.as_mut()?;
        ask(connected, config);
        match connected.answer() {
            Some(DataMessage::Refused {
                refusal: Refusal::WrongEpoch(newer) | Refusal::NotPrimary(newer),
                ..
            }) => {
                if newer.epoch > config.epoch {
                    *config = *newer;
                }
                client = None;
                None
            }
            Some(DataMessage::Refused { .. }) => None,
            Some(message) => done(message),
            None => {
                client = None;
                None
            }
        }
    })
}

fn write(attachment: &mut Attachment, config: &mut ChunkConfig, byte: u8) {
    let done = |message| matches!(message, DataMessage::WriteDone { .. }).then_some(());
    granted(attachment, config, |client, config| client.send_write(config, byte), done);
}

fn read(attachment: &mut Attachment, config: &mut ChunkConfig) -> u8 {
    granted(attachment, config, Client::send_read, |message| match message {
        DataMessage::ReadDone { data, .. } => {
            Some(data.iter().next().and_then(|(_, content)| content).map_or(0, |(_, b)| b[0]))
        }
        _no_content => None,
    })
}

/// A read and a write are refused, by a type that sends the client elsewhere, or the connection ends.
/// Gives how many refusals had such a type.
fn must_refuse(client: &mut Client, asked: usize) -> usize {
    let mut refused = 0;
    for _ in 0..asked {
        match client.answer() {
            Some(DataMessage::Refused {
                refusal: Refusal::WrongEpoch(_) | Refusal::NotPrimary(_) | Refusal::UnknownChunk,
                ..
            }) => refused += 1,
            Some(DataMessage::Refused { refusal: Refusal::SessionEnded, .. }) => {}
            None => return refused,
            Some(other) => panic!("a replaced primary answers {other:?}"),
        }
    }
    refused
}

#[test]
fn a_stopped_primary_that_wakes_up_replaced_serves_neither_a_read_nor_a_write() {
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.must(&["volume", "create", "asked", "--size", "64MiB"]);
    let mut attachment = Attachment::take(&cluster);
    let mut config = attachment.config();
    let mut refusals = 0;
    for round in 1..=sized(3, 30) {
        cluster.wait_whole(WITHIN);
        let content = u8::try_from(round).unwrap() * 2;
        write(&mut attachment, &mut config, content);
        let (before, sleeper) = (config.clone(), config.primary.node);
        let mut old = attachment.connect(sleeper).unwrap();
        cluster.signal(&format!("node-{}", sleeper.0), Signal::SIGSTOP);
        // The requests wait in its socket.
        old.send_read(&before);
        old.send_write(&before, NEVER);
        let elected = || cluster.chunks("asked")[0]["primary"].as_str().unwrap().to_owned();
        let former = format!("node-{}", sleeper.0);
        let primary = wait::until("another primary", WITHIN, || {
            Some(elected()).filter(|primary| *primary != former)
        });
        config.primary.node = NodeId(primary.trim_start_matches("node-").parse().unwrap());
        write(&mut attachment, &mut config, content + 1);
        assert!(config.epoch > before.epoch && config.primary.node != sleeper, "{config:?}");

        cluster.signal(&former, Signal::SIGCONT);
        refusals += must_refuse(&mut old, 2);
        // Once more, by a client that comes when it is awake, with the map of before.
        let mut late =
            wait::until("the woken node to admit a client", WITHIN, || attachment.connect(sleeper));
        late.send_read(&before);
        late.send_write(&before, NEVER);
        let of_late = must_refuse(&mut late, 2);
        assert_eq!(of_late, 2, "not refused by type");
        refusals += of_late;
        assert_eq!(read(&mut attachment, &mut config), content + 1);
    }
    eprintln!("stopped primary: {refusals} refusals by type");
    cluster.stop();
}
