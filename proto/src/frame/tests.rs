//! Frames survive the wire; nothing else passes for one.

use super::*;
use ashlar_types::blocks::{BlockRange, Sums};
use ashlar_types::epoch::{ControlTerm, Epoch, Generation, Lsn, SessionId, StartNumber, Term};
use ashlar_types::id::{ChunkId, ChunkIndex, NodeId, RequestId, StoreId, VolumeId};
use ashlar_types::message::cluster::{ControlDown, ControlUp, Heartbeat, Order, Relayed};
use ashlar_types::message::data::{HelloRole, Lane, Network, PeerRefusal, Refusal, Stamp};

fn chunk() -> ChunkId {
    ChunkId { volume: VolumeId { zone: "a".parse().unwrap(), uuid: 7 }, index: ChunkIndex(3) }
}

fn content_of(blocks: u8) -> BlockData {
    let mut data = BytesMut::new();
    let mut sums = Vec::new();
    for i in 0..blocks {
        let block = [i; BLOCK_SIZE];
        sums.push(crc32c::crc32c(&block));
        data.extend_from_slice(&block);
    }
    BlockData {
        range: BlockRange::new(9, u32::from(blocks)),
        sums: Sums::Full(sums),
        data: data.freeze(),
    }
}

fn some_frames() -> Vec<Frame> {
    let lsn = Lsn { term: Term { elected: Epoch(4), start: StartNumber(2) }, counter: 11 };
    let stamp =
        Stamp { chunk: chunk(), epoch: Epoch(5), generation: Generation(2), session: SessionId(1) };
    vec![
        Frame::Hello(Hello {
            version: 1,
            zone: "a".parse().unwrap(),
            role: HelloRole::Node {
                node: NodeId(1),
                stores: vec![StoreId(9), StoreId(10)],
                start: StartNumber(3),
                network: Network::Replication,
                lane: Lane::Beats,
            },
        }),
        Frame::Message(DataMessage::Write { id: RequestId(1), stamp, data: content_of(2) }),
        Frame::Message(DataMessage::Refused {
            id: RequestId(1),
            refusal: Refusal::WrongGeneration { current: Generation(3) },
        }),
        Frame::Message(DataMessage::Mirror {
            chunk: chunk(),
            epoch: Epoch(5),
            lsn,
            committed: Lsn::ZERO,
            data: BlockData::holes(BlockRange::new(0, 9_000)),
        }),
        Frame::Message(DataMessage::PeerRefused { chunk: chunk(), refusal: PeerRefusal::Gap(lsn) }),
        Frame::Message(DataMessage::PeerRefused {
            chunk: chunk(),
            refusal: PeerRefusal::Damaged(BlockRange::new(3, 4)),
        }),
        Frame::Message(DataMessage::Recall {
            chunk: chunk(),
            epoch: Epoch(5),
            at: lsn,
            range: BlockRange::new(3, 1),
        }),
        Frame::Message(DataMessage::Recalled { chunk: chunk(), at: lsn, data: content_of(1) }),
        Frame::Message(DataMessage::Compare {
            chunk: chunk(),
            epoch: Epoch(5),
            at: lsn,
            range: BlockRange::new(3, 64),
            digest: 1 << 40,
        }),
        Frame::Message(DataMessage::Relay {
            store: StoreId(9),
            message: Box::new(ControlUp::Heartbeat(Heartbeat::default())),
        }),
        Frame::Message(DataMessage::Relayed {
            order: Box::new(Order {
                term: ControlTerm(3),
                message: ControlDown::AskToFollow(vec![(chunk(), Epoch(5))]),
            }),
        }),
    ]
}

/// A node hands on what others say, and nothing that is to be handed on once more.
#[test]
fn a_relay_within_a_relay_is_no_frame() {
    let empty = || Box::new(ControlUp::Replicas(vec![]));
    let within = Relayed { node: NodeId(1), store: StoreId(9), message: empty() };
    let up =
        DataMessage::Relay { store: StoreId(9), message: Box::new(ControlUp::Relayed(within)) };
    let message = Box::new(ControlDown::Configs(vec![]));
    let relay = ControlDown::Relay { to: NodeId(1), message };
    let order = Box::new(Order { term: ControlTerm(3), message: relay });
    for message in [up, DataMessage::Relayed { order }] {
        let mut bytes = encoded(&[Frame::Message(message)]);
        assert_eq!(next_frame(&mut bytes), Err(FrameError::Relayed));
    }
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut queue = FrameQueue::default();
    frames.iter().for_each(|frame| push_frame(frame, &mut queue));
    let total = queue.waiting_bytes();
    let mut bytes = BytesMut::new();
    while !queue.is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let used = queue.io_slices(&mut slices);
        let written: usize = slices[..used].iter().map(|s| s.len()).sum::<usize>().min(100);
        let flat: Vec<u8> = slices[..used].iter().flat_map(|s| s.iter().copied()).collect();
        bytes.extend_from_slice(&flat[..written]);
        queue.advance(written);
    }
    assert_eq!(bytes.len(), total);
    bytes
}

#[test]
fn frames_survive_any_cutting_of_the_stream() {
    let frames = some_frames();
    let bytes = encoded(&frames);
    for step in [1, 7, 4096, bytes.len()] {
        let mut input = BytesMut::new();
        let mut seen = Vec::new();
        for piece in bytes.chunks(step) {
            input.extend_from_slice(piece);
            while let Some(frame) = next_frame(&mut input).unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames);
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = encoded(&some_frames()[1..2]);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let outcome = next_frame(&mut damaged);
        assert!(outcome.is_err(), "byte {at}: {outcome:?}");
    }
}

#[test]
fn a_length_of_four_gigabytes_is_refused_without_room_for_it() {
    let mut bytes = BytesMut::new();
    let mut head = Vec::new();
    MAGIC.put(&mut head);
    head.extend_from_slice(&[17, 0, 0, 0]);
    u32::MAX.put(&mut head);
    u32::MAX.put(&mut head);
    0_u32.put(&mut head);
    crc32c::crc32c(&head).put(&mut head);
    bytes.extend_from_slice(&head);
    assert!(matches!(next_frame(&mut bytes), Err(FrameError::TooLarge { .. })));
    assert!(bytes.capacity() < 4096);
}

#[test]
fn holes_without_end_are_taken_without_a_walk_over_them() {
    // With a walk, ten of these take a good part of an hour.
    for count in u32::MAX - 9..=u32::MAX {
        let data = BlockData::holes(BlockRange::new(0, count));
        assert_eq!(verified(data.clone()), Ok(data));
    }
}
