//! A client of the data path that says what the test wants, one frame at a time.

use super::{PATIENCE, chunk, until};
use ashlar_proto::frame::{Frame, FrameQueue, next_frame, push_frame};
use ashlar_proto::token::{Grant, Rights, Signs};
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, DataMessage, Hello, HelloRefusal, HelloReply, HelloRole, Lane, Network,
    Stamp, TokenRefusal,
};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, Epoch, Generation, NodeId, RequestId, SessionId,
    StartNumber, StoreId, Sums,
};
use bytes::BytesMut;
use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};

pub struct Client {
    pub stream: TcpStream,
    input: BytesMut,
    last: u64,
    pub session: u64,
}

pub fn hello(role: HelloRole) -> Hello {
    Hello { version: DATA_PROTOCOL_VERSION, zone: "t".parse().unwrap(), role }
}

/// The zone's key.
pub fn zone_signs() -> Signs {
    Signs::from_secret(&[7; 32])
}

pub fn as_client(session: u64) -> HelloRole {
    let (volume, generation, session) = (chunk(0).volume, Generation(1), SessionId(session));
    let grant = Grant { volume, generation, rights: Rights::ReadWrite, expires: u64::MAX };
    HelloRole::Client { volume, generation, session, token: zone_signs().sign(&grant) }
}

pub fn as_node(node: u32, network: Network) -> HelloRole {
    HelloRole::Node {
        node: NodeId(node),
        stores: vec![StoreId(1)],
        start: StartNumber(1),
        network,
        lane: Lane::Data,
    }
}

/// One block full of `byte`.
pub fn filled(first: u32, count: u32, byte: u8) -> BlockData {
    let data = vec![byte; count as usize * BLOCK_SIZE];
    let sums = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
    BlockData {
        range: BlockRange::new(first, count),
        sums: Sums::Full(sums),
        data: bytes::Bytes::from(data),
    }
}

impl Client {
    pub fn open(address: SocketAddr) -> Self {
        until("the node to know the zone's key", || {
            let mut client = Self::connect(address);
            match client.greet(&hello(as_client(1))) {
                HelloReply::Welcome { .. } => Some(client),
                HelloReply::Refused(HelloRefusal::Token(TokenRefusal::NoKey)) => None,
                HelloReply::Refused(refusal) => panic!("refused: {refusal}"),
            }
        })
    }

    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, input: BytesMut::new(), last: 0, session: 1 }
    }

    pub fn greet(&mut self, hello: &Hello) -> HelloReply {
        self.send(&Frame::Hello(hello.clone()));
        match self.receive() {
            Some(Frame::HelloReply(reply)) => reply,
            other => panic!("no answer to a hello: {other:?}"),
        }
    }

    pub fn send(&mut self, frame: &Frame) {
        let mut queue = FrameQueue::default();
        push_frame(frame, &mut queue);
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); 8];
            let used = queue.io_slices(&mut slices);
            let count = self.stream.write_vectored(&slices[..used]).unwrap();
            queue.advance(count);
        }
    }

    /// The next frame; `None` when the node has closed the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut bytes = [0; 64 << 10];
        loop {
            if let Some(frame) = next_frame(&mut self.input).unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn message(&mut self) -> DataMessage {
        match self.receive() {
            Some(Frame::Message(message)) => message,
            other => panic!("no message: {other:?}"),
        }
    }

    pub fn stamp(&self, index: u32, epoch: u64) -> Stamp {
        Stamp {
            chunk: chunk(index),
            epoch: Epoch(epoch),
            generation: Generation(1),
            session: SessionId(self.session),
        }
    }

    pub fn next_id(&mut self) -> RequestId {
        self.last += 1;
        RequestId(self.last)
    }

    pub fn send_write(&mut self, epoch: u64, data: BlockData) -> RequestId {
        let (id, stamp) = (self.next_id(), self.stamp(0, epoch));
        self.send(&Frame::Message(DataMessage::Write { id, stamp, data }));
        id
    }

    pub fn write(&mut self, epoch: u64, data: BlockData) -> DataMessage {
        self.send_write(epoch, data);
        self.message()
    }

    pub fn must_write(&mut self, epoch: u64, data: BlockData) {
        match self.write(epoch, data) {
            DataMessage::WriteDone { .. } => {}
            other => panic!("the write was not acknowledged: {other:?}"),
        }
    }

    /// Begins a write of a chunk; [`Self::must_finish`] waits for it.
    pub fn write_to(&mut self, index: u32, epoch: u64, data: BlockData) -> RequestId {
        let (id, stamp) = (self.next_id(), self.stamp(index, epoch));
        self.send(&Frame::Message(DataMessage::Write { id, stamp, data }));
        id
    }

    pub fn must_finish(&mut self, id: RequestId) {
        match self.message() {
            DataMessage::WriteDone { id: done } if done == id => {}
            other => panic!("the write was not acknowledged: {other:?}"),
        }
    }

    pub fn must_write_to(&mut self, index: u32, epoch: u64, data: BlockData) {
        let id = self.write_to(index, epoch, data);
        self.must_finish(id);
    }

    pub fn send_read(&mut self, epoch: u64, range: BlockRange) -> RequestId {
        let (id, stamp) = (self.next_id(), self.stamp(0, epoch));
        self.send(&Frame::Message(DataMessage::Read { id, stamp, range }));
        id
    }

    /// The first byte of each block; zero for holes.
    pub fn must_read(&mut self, epoch: u64, range: BlockRange) -> Vec<u8> {
        self.send_read(epoch, range);
        match self.message() {
            DataMessage::ReadDone { data, .. } => {
                data.iter().map(|(_, content)| content.map_or(0, |(_, bytes)| bytes[0])).collect()
            }
            other => panic!("the read was not answered: {other:?}"),
        }
    }
}
