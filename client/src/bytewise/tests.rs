//! Random unaligned requests through the real machine against one node that does as it is told,
//! compared with a plain array.

use super::*;
use crate::device::ChannelSink;
use ashlar_client_core::{Effect, Outbox, VolumeCore, VolumeSettings, WaitPolicy};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_types::message::data::DataMessage;
use ashlar_types::{
    BlockRange, ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, Incarnation, NodeId,
    ReplicaId, SessionId, StoreId, Time, VolumeId,
};

const CHUNK: u64 = 65_536;
const SIZE: usize = 3 * 65_536;

/// The machine, the byte layer, and a node that keeps blocks with their checksums.
struct Bench {
    core: VolumeCore,
    bytewise: Bytewise,
    blocks: Vec<Option<(u32, Bytes)>>,
    sink: Arc<dyn Sink>,
    done: tokio::sync::mpsc::Receiver<Vec<Completion>>,
    results: Vec<Completion>,
    /// Requests at the node, answered in random order.
    waiting: Vec<(NodeId, SessionId, DataMessage)>,
}

fn config(volume: VolumeId, index: u32) -> ChunkConfig {
    let replica = ReplicaId { node: NodeId(1), store: StoreId(1), incarnation: Incarnation(1) };
    ChunkConfig {
        chunk: ChunkId { volume, index: ChunkIndex(index) },
        blocks: 16,
        epoch: Epoch(1),
        elected: Epoch(1),
        generation: Generation(1),
        primary: replica,
        in_sync: vec![replica],
        learners: vec![],
        stale: vec![],
        copies_wanted: 1,
        copies_min: 1,
    }
}

impl Bench {
    fn new() -> Self {
        let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 1 };
        let geometry = Geometry::new(SIZE as u64, CHUNK).unwrap();
        let settings = VolumeSettings {
            volume,
            geometry,
            generation: Generation(1),
            first_session: SessionId(1),
            policy: WaitPolicy::Wait,
        };
        let configs = (0..3).map(|i| config(volume, i)).collect();
        let (sink, done) = ChannelSink::new(1024);
        Self {
            core: VolumeCore::new(settings, configs, Box::new(|| 7)),
            bytewise: Bytewise::new(geometry, false),
            blocks: vec![None; SIZE / BLOCK_SIZE],
            sink,
            done,
            results: vec![],
            waiting: vec![],
        }
    }

    fn submit(&mut self, tag: u64, io: Io) {
        let mut out = Out::default();
        self.bytewise.submit(Command { tag, io }, &self.sink.clone(), &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, mut out: Out) {
        for (sink, completion) in out.completions.drain(..) {
            sink.complete(&mut vec![completion]);
        }
        let mut effects = Outbox::new();
        for input in out.inputs {
            self.core.handle(Time::from_millis(1), input, &mut effects);
        }
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                let mut out = Out::default();
                match effect {
                    Effect::Connect { node, session } => {
                        let up = Input::LinkUp { node, session };
                        self.core.handle(Time::from_millis(1), up, &mut effects);
                    }
                    Effect::Send { node, session, message } => {
                        self.waiting.push((node, session, message));
                    }
                    Effect::Complete { op, result } => {
                        self.bytewise.on_complete(op, result, &mut out);
                    }
                    Effect::Turn { op } => self.bytewise.on_turn(op, &mut out),
                    Effect::Disconnect { .. } | Effect::RefreshMap => {}
                }
                self.carry_out(out);
            }
        }
        while let Ok(batch) = self.done.try_recv() {
            self.results.extend(batch);
        }
    }

    /// The node answers one request.
    fn answer(&mut self, pick: usize) {
        let (node, session, message) = self.waiting.remove(pick);
        let message = match message {
            DataMessage::Read { id, stamp, range } => {
                DataMessage::ReadDone { id, data: self.content(stamp.chunk.index, range) }
            }
            DataMessage::Write { id, stamp, data } => {
                let base = stamp.chunk.index.0 * 16;
                for (block, content) in data.iter() {
                    if let Some((sum, bytes)) = &content {
                        assert_eq!(*sum, crc32c::crc32c(bytes));
                    }
                    self.blocks[(base + block) as usize] = content;
                }
                DataMessage::WriteDone { id }
            }
            _ => return,
        };
        let mut effects = Outbox::new();
        let input = Input::Message { node, session, message };
        self.core.handle(Time::from_millis(1), input, &mut effects);
        for effect in effects {
            let mut out = Out::default();
            match effect {
                Effect::Send { node, session, message } => {
                    self.waiting.push((node, session, message));
                }
                Effect::Complete { op, result } => {
                    self.bytewise.on_complete(op, result, &mut out);
                }
                Effect::Turn { op } => self.bytewise.on_turn(op, &mut out),
                Effect::Connect { .. } | Effect::Disconnect { .. } | Effect::RefreshMap => {}
            }
            self.carry_out(out);
        }
    }

    fn content(&self, chunk: ChunkIndex, range: BlockRange) -> BlockData {
        let base = chunk.0 * 16;
        let blocks: Vec<_> =
            range.blocks().map(|b| self.blocks[(base + b) as usize].clone()).collect();
        let sums = blocks.iter().map(|b| b.as_ref().map(|(sum, _)| *sum)).collect();
        let data: Vec<u8> = blocks.iter().flatten().flat_map(|(_, b)| b.to_vec()).collect();
        BlockData { range, sums: Sums::Mixed(sums), data: Bytes::from(data) }
    }

    fn finish(&mut self, dice: &mut SeededDice) {
        while !self.waiting.is_empty() {
            self.answer(dice.below(self.waiting.len() as u64) as usize);
        }
        while let Ok(batch) = self.done.try_recv() {
            self.results.extend(batch);
        }
    }
}

#[test]
fn unaligned_requests_at_depth_leave_what_a_plain_array_would_hold() {
    for seed in 0..20 {
        let mut dice = SeededDice::new(seed);
        let mut bench = Bench::new();
        let mut plain = vec![0_u8; SIZE];
        for tag in 0..300 {
            let offset = dice.below(SIZE as u64 - 1);
            let aligned = dice.chance(1, 3);
            let offset = if aligned { offset / BLOCK * BLOCK } else { offset };
            let most = (SIZE as u64 - offset).min(if dice.chance(1, 9) { 90_000 } else { 9_000 });
            let len = 1 + dice.below(most);
            let len = if aligned { len.div_ceil(BLOCK) * BLOCK } else { len };
            let (from, to) = (offset as usize, (offset + len) as usize);
            if dice.chance(1, 4) {
                bench.submit(tag, Io::Zero { offset, len });
                plain[from..to].fill(0);
            } else {
                let data: Vec<u8> = (0..len).map(|i| (i + tag) as u8 | 1).collect();
                plain[from..to].copy_from_slice(&data);
                bench.submit(tag, Io::Write { offset, data: Bytes::from(data) });
            }
            // A zeroing in several steps is not one request in the order of writes; like any
            // user, this one does not overlap what it has not seen the end of with other content.
            while !bench.waiting.is_empty()
                && (dice.chance(1, 3) || !bench.bytewise.zeroings.is_empty() || bench.zeroing())
            {
                let pick = dice.below(bench.waiting.len() as u64) as usize;
                bench.answer(pick);
            }
        }
        bench.finish(&mut dice);
        assert!(bench.bytewise.is_idle(), "seed {seed}");
        assert_eq!(bench.bytewise.bytes(), 0);
        assert_eq!(bench.results.len(), 300, "seed {seed}");
        assert!(bench.results.iter().all(|done| done.result.is_ok()));
        bench.results.clear();
        bench.submit(1, Io::Read { offset: 1, len: SIZE as u32 - 2 });
        bench.finish(&mut dice);
        let read = bench.results.remove(0).result.unwrap().into_bytes();
        assert!(read[..] == plain[1..SIZE - 1], "seed {seed}");
    }
}

impl Bench {
    fn zeroing(&self) -> bool {
        self.bytewise.work.values().any(|work| {
            matches!(work, Work::Modify { change: Change { fill: Fill::Zeroes { .. }, .. }, .. })
        })
    }
}

#[test]
fn what_lies_outside_or_may_not_be_written_is_refused() {
    let mut bench = Bench::new();
    let size = SIZE as u64;
    bench.submit(1, Io::Read { offset: size, len: 1 });
    bench.submit(2, Io::Write { offset: size - 1, data: Bytes::from_static(b"ab") });
    bench.submit(3, Io::Zero { offset: u64::MAX, len: 2 });
    bench.submit(4, Io::Read { offset: 0, len: 0 });
    bench.bytewise.read_only = true;
    bench.submit(5, Io::Zero { offset: 0, len: 1 });
    let errors: Vec<_> = bench.results.drain(..).map(|done| done.result.unwrap_err()).collect();
    let outside = IoError::OutOfRange;
    assert_eq!(errors, [outside, outside, outside, outside, IoError::ReadOnly]);
}

#[test]
fn holes_stay_holes_up_to_the_submitter() {
    let mut bench = Bench::new();
    bench.submit(1, Io::Write { offset: BLOCK, data: Bytes::from(vec![5; BLOCK_SIZE]) });
    bench.finish(&mut SeededDice::new(1));
    bench.submit(2, Io::Read { offset: 0, len: 65_536 * 2 });
    bench.finish(&mut SeededDice::new(1));
    let content = bench.results.pop().unwrap().result.unwrap();
    let shape: Vec<_> = content.pieces.iter().map(|p| (p.len, p.data.is_some())).collect();
    assert_eq!(shape, [(4096, false), (4096, true), (65_536 * 2 - 8192, false)]);
}
