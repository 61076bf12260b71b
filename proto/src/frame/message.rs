//! Kinds and bodies of the messages. A kind is never reused for another message.

use super::{Frame, FrameError, content};
use crate::convert::NodeMessage;
use crate::v1;
use ashlar_types::blocks::BlockData;
use ashlar_types::codec::{CodecError, Reader, Wire};
use ashlar_types::message::cluster::{ControlDown, ControlUp, Order};
use ashlar_types::message::data::{DataMessage, Hello, HelloReply, HelloRole};
use bytes::{Bytes, BytesMut};
use prost::Message as _;

const HELLO: u8 = 1;
const HELLO_REPLY: u8 = 2;
const READ: u8 = 16;
const WRITE: u8 = 17;
const FIND_CONFIG: u8 = 18;
const READ_DONE: u8 = 19;
const WRITE_DONE: u8 = 20;
const CONFIG_IS: u8 = 21;
const REFUSED: u8 = 22;
const BEAT: u8 = 32;
const BEAT_REPLY: u8 = 33;
const ADOPT: u8 = 34;
const COLLECT: u8 = 35;
const COLLECTED: u8 = 36;
const FETCH: u8 = 37;
const FETCHED: u8 = 38;
const OPEN_TERM: u8 = 39;
const OPEN_LEARNER: u8 = 40;
const MIRROR: u8 = 41;
const MIRROR_ACK: u8 = 42;
const COMMITTED: u8 = 43;
const CONFIRM: u8 = 44;
const CONFIRMED: u8 = 45;
const COPY: u8 = 46;
const COPY_ACK: u8 = 47;
const PEER_REFUSED: u8 = 48;
const RECALL: u8 = 49;
const RECALLED: u8 = 50;
const COMPARE: u8 = 51;
const RELAY: u8 = 52;
const RELAYED: u8 = 53;

pub(super) fn kind_and_data(frame: &Frame) -> (u8, Option<&Bytes>) {
    match frame {
        Frame::Hello(_) => (HELLO, None),
        Frame::HelloReply(_) => (HELLO_REPLY, None),
        Frame::Message(message) => message_kind_and_data(message),
    }
}

pub(super) const fn message_kind_and_data(message: &DataMessage) -> (u8, Option<&Bytes>) {
    match message {
        DataMessage::Read { .. } => (READ, None),
        DataMessage::Write { data, .. } => (WRITE, Some(&data.data)),
        DataMessage::FindConfig { .. } => (FIND_CONFIG, None),
        DataMessage::ReadDone { data, .. } => (READ_DONE, Some(&data.data)),
        DataMessage::WriteDone { .. } => (WRITE_DONE, None),
        DataMessage::ConfigIs { .. } => (CONFIG_IS, None),
        DataMessage::Refused { .. } => (REFUSED, None),
        DataMessage::Beat { .. } => (BEAT, None),
        DataMessage::BeatReply { .. } => (BEAT_REPLY, None),
        DataMessage::Adopt { .. } => (ADOPT, None),
        DataMessage::Collect { .. } => (COLLECT, None),
        DataMessage::Collected { .. } => (COLLECTED, None),
        DataMessage::Fetch { .. } => (FETCH, None),
        DataMessage::Fetched { data, .. } => (FETCHED, Some(&data.data)),
        DataMessage::OpenTerm { .. } => (OPEN_TERM, None),
        DataMessage::OpenLearner { .. } => (OPEN_LEARNER, None),
        DataMessage::Mirror { data, .. } => (MIRROR, Some(&data.data)),
        DataMessage::MirrorAck { .. } => (MIRROR_ACK, None),
        DataMessage::Committed { .. } => (COMMITTED, None),
        DataMessage::Confirm { .. } => (CONFIRM, None),
        DataMessage::Confirmed { .. } => (CONFIRMED, None),
        DataMessage::Copy { data, .. } => (COPY, Some(&data.data)),
        DataMessage::CopyAck { .. } => (COPY_ACK, None),
        DataMessage::PeerRefused { .. } => (PEER_REFUSED, None),
        DataMessage::Recall { .. } => (RECALL, None),
        DataMessage::Recalled { data, .. } => (RECALLED, Some(&data.data)),
        DataMessage::Compare { .. } => (COMPARE, None),
        DataMessage::Relay { .. } => (RELAY, None),
        DataMessage::Relayed { .. } => (RELAYED, None),
    }
}

macro_rules! put {
    ($out:expr, $($field:expr),*) => {{ $($field.put($out);)* }};
}

fn put_content(data: &BlockData, out: &mut BytesMut) {
    put!(out, data.range, data.sums);
}

pub(super) fn put_body(frame: &Frame, out: &mut BytesMut) {
    match frame {
        Frame::Hello(hello) => put_hello(hello, out),
        Frame::HelloReply(reply) => match reply {
            HelloReply::Welcome { version, node, stores, start } => {
                put!(out, 0_u8, version, node, stores, start);
            }
            HelloReply::Refused(refusal) => put!(out, 1_u8, refusal),
        },
        Frame::Message(message) => put_message_body(message, out),
    }
}

fn put_hello(hello: &Hello, out: &mut BytesMut) {
    put!(out, hello.version, hello.zone);
    match &hello.role {
        HelloRole::Client { volume, generation, session, token } => {
            put!(out, 0_u8, volume, generation, session, token);
        }
        HelloRole::Node { node, stores, start, network, lane } => {
            put!(out, 1_u8, node, stores, start, network, lane);
        }
    }
}

pub(super) fn put_message_body(message: &DataMessage, out: &mut BytesMut) {
    match message {
        DataMessage::Read { id, stamp, range } => put!(out, id, stamp, range),
        DataMessage::Write { id, stamp, data } => {
            put!(out, id, stamp);
            put_content(data, out);
        }
        DataMessage::FindConfig { id, chunk } => put!(out, id, chunk),
        DataMessage::ReadDone { id, data } => {
            put!(out, id);
            put_content(data, out);
        }
        DataMessage::WriteDone { id } => put!(out, id),
        DataMessage::ConfigIs { id, config } => put!(out, id, config),
        DataMessage::Refused { id, refusal } => put!(out, id, refusal),
        DataMessage::Beat { number, adopted, short_of_space, has_control, behind_millis } => {
            put!(out, number, adopted, short_of_space, has_control, behind_millis);
        }
        DataMessage::BeatReply { number, start, clock, granted, except } => {
            put!(out, number, start, clock, granted, except);
        }
        DataMessage::Adopt { config } => put!(out, config),
        DataMessage::Collect { config, term } => put!(out, config, term),
        DataMessage::Collected { chunk, epoch, term, history } => {
            put!(out, chunk, epoch, term, history);
        }
        DataMessage::Fetch { chunk, epoch, term, range } => put!(out, chunk, epoch, term, range),
        DataMessage::Fetched { chunk, term, data } => {
            put!(out, chunk, term);
            put_content(data, out);
        }
        DataMessage::OpenTerm { chunk, epoch, term, base, overwrite } => {
            put!(out, chunk, epoch, term, base, overwrite);
        }
        DataMessage::OpenLearner { config, base, learner_start } => {
            put!(out, config, base, learner_start);
        }
        DataMessage::Mirror { chunk, epoch, lsn, committed, data } => {
            put!(out, chunk, epoch, lsn, committed);
            put_content(data, out);
        }
        DataMessage::MirrorAck { chunk, epoch, lsn, start, fill } => {
            put!(out, chunk, epoch, lsn, start, fill);
        }
        DataMessage::Committed { chunk, epoch, lsn } => put!(out, chunk, epoch, lsn),
        DataMessage::Confirm { chunk, epoch, term, round } => put!(out, chunk, epoch, term, round),
        DataMessage::Confirmed { chunk, term, round } => put!(out, chunk, term, round),
        DataMessage::Copy { chunk, epoch, read_at, learner_start, number, data } => {
            put!(out, chunk, epoch, read_at, learner_start, number);
            put_content(data, out);
        }
        DataMessage::CopyAck { chunk, term, learner_start, number } => {
            put!(out, chunk, term, learner_start, number);
        }
        DataMessage::PeerRefused { chunk, refusal } => put!(out, chunk, refusal),
        DataMessage::Recall { chunk, epoch, at, range } => put!(out, chunk, epoch, at, range),
        DataMessage::Recalled { chunk, at, data } => {
            put!(out, chunk, at);
            put_content(data, out);
        }
        DataMessage::Compare { chunk, epoch, at, range, digest } => {
            put!(out, chunk, epoch, at, range, digest);
        }
        DataMessage::Relay { store, message } => {
            put!(out, store);
            out.extend_from_slice(&v1::NodeUp::from(&**message).encode_to_vec());
        }
        DataMessage::Relayed { order } => {
            out.extend_from_slice(&v1::NodeDown::from(&**order).encode_to_vec());
        }
    }
}

pub(super) fn decode(kind: u8, body: &[u8], data: Bytes) -> Result<Frame, FrameError> {
    let mut body = Reader::new(body);
    let has_data = !data.is_empty();
    let (frame, took_data) = match kind {
        HELLO => (Frame::Hello(get_hello(&mut body)?), false),
        HELLO_REPLY => (Frame::HelloReply(get_hello_reply(&mut body)?), false),
        WRITE | READ_DONE | FETCHED | MIRROR | COPY | RECALLED => {
            (Frame::Message(get_content_message(kind, &mut body, data)?), true)
        }
        READ..=REFUSED => (Frame::Message(get_client_message(kind, &mut body)?), false),
        other => (Frame::Message(get_peer_message(other, &mut body)?), false),
    };
    body.finish()?;
    if has_data && !took_data {
        return Err(FrameError::Body(CodecError::Trailing));
    }
    Ok(frame)
}

fn get_hello(body: &mut Reader<'_>) -> Result<Hello, FrameError> {
    let (version, zone) = (Wire::get(body)?, Wire::get(body)?);
    let role = match u8::get(body)? {
        0 => HelloRole::Client {
            volume: Wire::get(body)?,
            generation: Wire::get(body)?,
            session: Wire::get(body)?,
            token: Wire::get(body)?,
        },
        1 => HelloRole::Node {
            node: Wire::get(body)?,
            stores: Wire::get(body)?,
            start: Wire::get(body)?,
            network: Wire::get(body)?,
            lane: Wire::get(body)?,
        },
        other => return Err(CodecError::Case(other).into()),
    };
    Ok(Hello { version, zone, role })
}

fn get_hello_reply(body: &mut Reader<'_>) -> Result<HelloReply, FrameError> {
    Ok(match u8::get(body)? {
        0 => HelloReply::Welcome {
            version: Wire::get(body)?,
            node: Wire::get(body)?,
            stores: Wire::get(body)?,
            start: Wire::get(body)?,
        },
        1 => HelloReply::Refused(Wire::get(body)?),
        other => return Err(CodecError::Case(other).into()),
    })
}

fn get_content_message(
    kind: u8,
    body: &mut Reader<'_>,
    data: Bytes,
) -> Result<DataMessage, FrameError> {
    Ok(match kind {
        WRITE => DataMessage::Write {
            id: Wire::get(body)?,
            stamp: Wire::get(body)?,
            data: content(body, data)?,
        },
        READ_DONE => DataMessage::ReadDone { id: Wire::get(body)?, data: content(body, data)? },
        FETCHED => DataMessage::Fetched {
            chunk: Wire::get(body)?,
            term: Wire::get(body)?,
            data: content(body, data)?,
        },
        MIRROR => DataMessage::Mirror {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            lsn: Wire::get(body)?,
            committed: Wire::get(body)?,
            data: content(body, data)?,
        },
        COPY => DataMessage::Copy {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            read_at: Wire::get(body)?,
            learner_start: Wire::get(body)?,
            number: Wire::get(body)?,
            data: content(body, data)?,
        },
        RECALLED => DataMessage::Recalled {
            chunk: Wire::get(body)?,
            at: Wire::get(body)?,
            data: content(body, data)?,
        },
        other => return Err(FrameError::Kind(other)),
    })
}

fn get_client_message(kind: u8, body: &mut Reader<'_>) -> Result<DataMessage, FrameError> {
    Ok(match kind {
        READ => DataMessage::Read {
            id: Wire::get(body)?,
            stamp: Wire::get(body)?,
            range: Wire::get(body)?,
        },
        FIND_CONFIG => DataMessage::FindConfig { id: Wire::get(body)?, chunk: Wire::get(body)? },
        WRITE_DONE => DataMessage::WriteDone { id: Wire::get(body)? },
        CONFIG_IS => DataMessage::ConfigIs { id: Wire::get(body)?, config: Wire::get(body)? },
        REFUSED => DataMessage::Refused { id: Wire::get(body)?, refusal: Wire::get(body)? },
        other => return Err(FrameError::Kind(other)),
    })
}

fn get_peer_message(kind: u8, body: &mut Reader<'_>) -> Result<DataMessage, FrameError> {
    Ok(match kind {
        BEAT => DataMessage::Beat {
            number: Wire::get(body)?,
            adopted: Wire::get(body)?,
            short_of_space: Wire::get(body)?,
            has_control: Wire::get(body)?,
            behind_millis: Wire::get(body)?,
        },
        BEAT_REPLY => DataMessage::BeatReply {
            number: Wire::get(body)?,
            start: Wire::get(body)?,
            clock: Wire::get(body)?,
            granted: Wire::get(body)?,
            except: Wire::get(body)?,
        },
        ADOPT => DataMessage::Adopt { config: Wire::get(body)? },
        COLLECT => DataMessage::Collect { config: Wire::get(body)?, term: Wire::get(body)? },
        COLLECTED => DataMessage::Collected {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            term: Wire::get(body)?,
            history: Wire::get(body)?,
        },
        FETCH => DataMessage::Fetch {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            term: Wire::get(body)?,
            range: Wire::get(body)?,
        },
        OPEN_TERM => DataMessage::OpenTerm {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            term: Wire::get(body)?,
            base: Wire::get(body)?,
            overwrite: Wire::get(body)?,
        },
        OPEN_LEARNER => DataMessage::OpenLearner {
            config: Wire::get(body)?,
            base: Wire::get(body)?,
            learner_start: Wire::get(body)?,
        },
        MIRROR_ACK => DataMessage::MirrorAck {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            lsn: Wire::get(body)?,
            start: Wire::get(body)?,
            fill: Wire::get(body)?,
        },
        COMMITTED => DataMessage::Committed {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            lsn: Wire::get(body)?,
        },
        CONFIRM => DataMessage::Confirm {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            term: Wire::get(body)?,
            round: Wire::get(body)?,
        },
        CONFIRMED => DataMessage::Confirmed {
            chunk: Wire::get(body)?,
            term: Wire::get(body)?,
            round: Wire::get(body)?,
        },
        PEER_REFUSED => {
            DataMessage::PeerRefused { chunk: Wire::get(body)?, refusal: Wire::get(body)? }
        }
        other => get_copy_message(other, body)?,
    })
}

/// What fills learners and repairs blocks.
fn get_copy_message(kind: u8, body: &mut Reader<'_>) -> Result<DataMessage, FrameError> {
    Ok(match kind {
        COPY_ACK => DataMessage::CopyAck {
            chunk: Wire::get(body)?,
            term: Wire::get(body)?,
            learner_start: Wire::get(body)?,
            number: Wire::get(body)?,
        },
        COMPARE => DataMessage::Compare {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            at: Wire::get(body)?,
            range: Wire::get(body)?,
            digest: Wire::get(body)?,
        },
        RECALL => DataMessage::Recall {
            chunk: Wire::get(body)?,
            epoch: Wire::get(body)?,
            at: Wire::get(body)?,
            range: Wire::get(body)?,
        },
        RELAY => get_relay(body)?,
        RELAYED => get_relayed(body)?,
        other => return Err(FrameError::Kind(other)),
    })
}

/// What is relayed is written as on the stream that it would have gone by.
fn get_relay(body: &mut Reader<'_>) -> Result<DataMessage, FrameError> {
    let store = Wire::get(body)?;
    let wire = v1::NodeUp::decode(body.rest()).map_err(|_| FrameError::Relayed)?;
    match NodeMessage::try_from(&wire) {
        Ok(NodeMessage::Registration(_) | NodeMessage::Up(ControlUp::Relayed(_))) | Err(_) => {
            Err(FrameError::Relayed)
        }
        Ok(NodeMessage::Up(up)) => Ok(DataMessage::Relay { store, message: Box::new(up) }),
    }
}

fn get_relayed(body: &mut Reader<'_>) -> Result<DataMessage, FrameError> {
    let wire = v1::NodeDown::decode(body.rest()).map_err(|_| FrameError::Relayed)?;
    match Order::try_from(&wire) {
        Ok(Order { message: ControlDown::Relay { .. }, .. }) | Err(_) => Err(FrameError::Relayed),
        Ok(order) => Ok(DataMessage::Relayed { order: Box::new(order) }),
    }
}
