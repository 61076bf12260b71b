//! Hostile bytes for the two data networks: what is no frame, hellos of strangers, and what strangers
//! and clients say behind a hello that was right.
//!
//! Nobody speaks in the name of a node that exists: the networks between nodes are trusted so far.

use crate::dice::Dice;
use crate::kinds::{After, Door, Judge, Kind, World};
use ashlar_proto::frame::{Frame, FrameQueue, HEADER_BYTES, next_frame, push_frame};
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, DataMessage, Hello, HelloRefusal, HelloReply, HelloRole, Lane, Network,
    Stamp,
};
use ashlar_types::{
    BlockRange, ChunkId, ChunkIndex, Epoch, Generation, Lsn, NodeId, RequestId, SessionId,
    StartNumber, StoreId, Term, VolumeId,
};
use bytes::BytesMut;
use std::io::IoSlice;

const MAGIC: u32 = 0x4D4C_4841;
const BODY_MAX: u32 = 256 << 10;
const DATA_MAX: u32 = 1 << 20;

fn kind(
    name: &'static str,
    (door, after): (Door, After),
    make: fn(&mut Dice, &World) -> Vec<u8>,
    judge: Judge,
) -> Kind {
    Kind { name, door, after, make, judge }
}

pub(crate) fn kinds() -> Vec<Kind> {
    let mut kinds = no_frames();
    kinds.extend(wrong_bodies());
    kinds.extend(hellos());
    kinds.extend(behind_hellos());
    kinds
}

/// A header whose own checksum is right.
fn header(magic: u32, kind: u8, body_len: u32, data_len: u32, body_crc: u32) -> Vec<u8> {
    let mut bytes = magic.to_le_bytes().to_vec();
    bytes.extend([kind, 0, 0, 0]);
    for word in [body_len, data_len, body_crc] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// A frame that is right but for what its body says.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [header(MAGIC, kind, len, 0, crc32c::crc32c(body)).as_slice(), body].concat()
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut queue = FrameQueue::default();
    push_frame(frame, &mut queue);
    let mut slices = [IoSlice::new(&[]); 4];
    let used = queue.io_slices(&mut slices);
    slices[..used].iter().flat_map(|slice| slice.to_vec()).collect()
}

const DATA_WAITS: (Door, After) = (Door::Data, After::Waits);

fn no_frames() -> Vec<Kind> {
    let waits = DATA_WAITS;
    vec![
        kind("frame: garbage", waits, |dice, _| dice.bytes(4_096), nothing),
        kind(
            "frame: wrong magic",
            waits,
            |dice, _| header(MAGIC ^ (1 << dice.below(32)), 1, 0, 0, 0),
            nothing,
        ),
        kind(
            "frame: damaged header",
            waits,
            |dice, _| {
                let mut bytes = header(MAGIC, 1, 64, 0, 0);
                bytes[5 + dice.below(HEADER_BYTES - 5)] ^= 1 << dice.below(8);
                bytes
            },
            nothing,
        ),
        kind(
            "frame: body above the limit",
            waits,
            |dice, _| header(MAGIC, dice.byte(), BODY_MAX + 1 + dice.word() / 2, 0, 0),
            nothing,
        ),
        kind(
            "frame: data above the limit, or no blocks",
            waits,
            |dice, _| {
                let len = dice.one(&[DATA_MAX + 4_096, 4_095, u32::MAX, 1]);
                header(MAGIC, dice.byte(), 0, len, 0)
            },
            nothing,
        ),
    ]
}

fn wrong_bodies() -> Vec<Kind> {
    let waits = DATA_WAITS;
    let ends = (Door::Data, After::EndsAndReads);
    vec![
        kind("frame: empty body", waits, |dice, _| framed(dice.byte(), &[]), nothing),
        kind(
            "frame: damaged body",
            waits,
            |dice, _| {
                let mut bytes = framed(1, &dice.bytes(64));
                let at = HEADER_BYTES + dice.below(64);
                bytes[at] ^= 1 << dice.below(8);
                bytes
            },
            nothing,
        ),
        kind(
            "frame: less than it says",
            ends,
            |dice, _| {
                let count = dice.below(8_000);
                [header(MAGIC, dice.byte(), BODY_MAX, DATA_MAX, 0), dice.bytes(count)].concat()
            },
            nothing,
        ),
        kind(
            "frame: holes without end",
            waits,
            |dice, _| {
                let count = u32::MAX - dice.word() % 1_000;
                let id = dice.any().to_le_bytes();
                let range = [0_u32.to_le_bytes(), count.to_le_bytes()].concat();
                framed(19, &[id.as_slice(), &range, &[0]].concat())
            },
            nothing,
        ),
        kind(
            "frame: a body of any kind without a hello",
            waits,
            |dice, _| {
                let count = dice.below(512);
                framed(2 + dice.byte() % 60, &dice.bytes(count))
            },
            nothing,
        ),
    ]
}

/// A client's hello with the right to use the volume that nobody uses.
fn client(dice: &mut Dice, world: &World) -> Hello {
    let role = HelloRole::Client {
        volume: world.bait.volume,
        generation: world.bait.generation,
        session: SessionId(1 + dice.any() / 2),
        token: world.bait.token.clone(),
    };
    Hello { version: DATA_PROTOCOL_VERSION, zone: world.zone, role }
}

/// A node that nobody knows.
fn stranger(dice: &mut Dice, world: &World, lane: Lane) -> Hello {
    let role = HelloRole::Node {
        node: NodeId(4_000 + dice.word() / 2),
        stores: vec![StoreId(u128::from(dice.any()))],
        start: StartNumber(1 + dice.any() / 2),
        network: Network::Replication,
        lane,
    };
    Hello { version: DATA_PROTOCOL_VERSION, zone: world.zone, role }
}

fn hellos() -> Vec<Kind> {
    let ends = (Door::Primary, After::EndsAndReads);
    vec![
        kind(
            "hello: newer version",
            ends,
            |dice, world| {
                let version = DATA_PROTOCOL_VERSION + 1 + u16::from(dice.byte());
                encoded(&Frame::Hello(Hello { version, ..client(dice, world) }))
            },
            |answer| refused(answer, |refusal| matches!(refusal, HelloRefusal::Version { .. })),
        ),
        kind(
            "hello: foreign zone",
            ends,
            |dice, world| {
                let zone = dice.one(&["b", "z", "else"]).parse().unwrap();
                encoded(&Frame::Hello(Hello { zone, ..client(dice, world) }))
            },
            |answer| refused(answer, |refusal| refusal == HelloRefusal::Zone),
        ),
        kind(
            "hello: forged token",
            ends,
            |dice, world| {
                let mut hello = client(dice, world);
                if let HelloRole::Client { token, .. } = &mut hello.role {
                    let at = dice.below(token.len());
                    token[at] ^= 1 << dice.below(8);
                }
                encoded(&Frame::Hello(hello))
            },
            |answer| refused(answer, |refusal| matches!(refusal, HelloRefusal::Token(_))),
        ),
        kind(
            "hello: a client on the nodes' network",
            (Door::Replication, After::EndsAndReads),
            |dice, world| encoded(&Frame::Hello(client(dice, world))),
            |answer| refused(answer, |refusal| refusal == HelloRefusal::Network),
        ),
        kind(
            "hello: cut short or altered",
            (Door::Primary, After::EndsAndReads),
            |dice, world| {
                let mut body = encoded(&Frame::Hello(client(dice, world))).split_off(HEADER_BYTES);
                let at = dice.below(body.len());
                body[at] = dice.byte();
                body.truncate(1 + dice.below(2 * body.len()));
                framed(1, &body)
            },
            frames,
        ),
        kind(
            "hello: again and again",
            (Door::Replication, After::Waits),
            |dice, world| {
                encoded(&Frame::Hello(stranger(dice, world, Lane::Data))).repeat(2 + dice.below(64))
            },
            frames,
        ),
    ]
}

fn behind_hellos() -> Vec<Kind> {
    vec![
        kind(
            "client: requests with any fields",
            (Door::Primary, After::EndsAndReads),
            |dice, world| {
                let mut bytes = encoded(&Frame::Hello(client(dice, world)));
                for _ in 0..1 + dice.below(16) {
                    bytes.extend(encoded(&Frame::Message(asked(dice, world))));
                }
                bytes
            },
            frames,
        ),
        kind(
            "client: says what nodes say",
            (Door::Primary, After::Waits),
            |dice, world| {
                let hello = encoded(&Frame::Hello(client(dice, world)));
                let said = said(dice, world);
                [hello, encoded(&Frame::Message(said))].concat()
            },
            frames,
        ),
        kind(
            "stranger: messages with any fields",
            (Door::Replication, After::EndsAndReads),
            |dice, world| {
                let mut bytes = encoded(&Frame::Hello(stranger(dice, world, Lane::Data)));
                for _ in 0..1 + dice.below(16) {
                    bytes.extend(encoded(&Frame::Message(said(dice, world))));
                }
                bytes
            },
            frames,
        ),
        kind(
            "stranger: bodies of any kind",
            (Door::Replication, After::EndsAndReads),
            |dice, world| {
                let lane = dice.one(&[Lane::Data, Lane::Beats]);
                let mut bytes = encoded(&Frame::Hello(stranger(dice, world, lane)));
                let count = dice.below(256);
                bytes.extend(framed(16 + dice.byte() % 40, &dice.bytes(count)));
                bytes
            },
            frames,
        ),
    ]
}

fn chunk(dice: &mut Dice, world: &World) -> ChunkId {
    let volume = match dice.below(2) {
        0 => world.bait.volume,
        _ => VolumeId { uuid: u128::from(dice.any()), ..world.bait.volume },
    };
    ChunkId { volume, index: ChunkIndex(dice.one(&[0, 1, 1 << 16, u32::MAX])) }
}

fn range(dice: &mut Dice) -> BlockRange {
    let edges = [0, 1, 255, 256, 16_383, 16_384, 16_385, u32::MAX - 1, u32::MAX];
    BlockRange { first: dice.one(&edges), count: dice.one(&edges) }
}

/// What a client may ask, of whatever there is not.
fn asked(dice: &mut Dice, world: &World) -> DataMessage {
    let (id, chunk) = (RequestId(dice.any()), chunk(dice, world));
    let stamp = Stamp {
        chunk,
        epoch: Epoch(dice.any() >> dice.below(64)),
        generation: Generation(dice.any() >> dice.below(64)),
        session: SessionId(dice.any()),
    };
    match dice.below(2) {
        0 => DataMessage::Read { id, stamp, range: range(dice) },
        _ => DataMessage::FindConfig { id, chunk },
    }
}

/// What a node may say.
fn said(dice: &mut Dice, world: &World) -> DataMessage {
    let (chunk, range) = (chunk(dice, world), range(dice));
    let (epoch, start) = (Epoch(dice.any() >> dice.below(64)), StartNumber(dice.any()));
    let term = Term { elected: Epoch(dice.any() >> dice.below(64)), start };
    let lsn = Lsn { term, counter: dice.any() >> dice.below(64) };
    match dice.below(6) {
        0 => DataMessage::Fetch { chunk, epoch, term, range },
        1 => DataMessage::Committed { chunk, epoch, lsn },
        2 => DataMessage::OpenTerm { chunk, epoch, term, base: lsn, overwrite: vec![range; 8] },
        3 => DataMessage::Recall { chunk, epoch, at: lsn, range },
        4 => DataMessage::CopyAck { chunk, term, learner_start: start, number: dice.any() },
        _ => DataMessage::Confirm { chunk, epoch, term, round: dice.any() },
    }
}

fn nothing(answer: &[u8]) -> Result<(), String> {
    answer.is_empty().then_some(()).ok_or(format!("{} bytes of an answer", answer.len()))
}

/// Whole frames, and perhaps the beginning of one more.
fn frames(answer: &[u8]) -> Result<(), String> {
    let mut input = BytesMut::from(answer);
    loop {
        match next_frame(&mut input) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(format!("the answer is no frame: {error}")),
        }
    }
}

fn refused(answer: &[u8], wanted: fn(HelloRefusal) -> bool) -> Result<(), String> {
    match next_frame(&mut BytesMut::from(answer)) {
        Ok(Some(Frame::HelloReply(HelloReply::Refused(refusal)))) if wanted(refusal) => Ok(()),
        other => Err(format!("{other:?} instead of a refusal")),
    }
}
