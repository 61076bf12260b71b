//! The task between a core and a store that misbehaves.

use super::*;
use crate::admission::Admission;
use crate::door;
use crate::net::Net;
use crate::net::dial::{Diallers, Sources};
use ashlar_env::clock::ManualClock;
use ashlar_env::disk::DiskError;
use ashlar_node_core::record::Record;
use ashlar_node_core::{ConnectionId, Identity, JournalSeq, Link, Timing};
use ashlar_types::ControlTerm;
use ashlar_types::message::data::{DataMessage, Stamp};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation,
    Incarnation, NodeId, ReplicaId, RequestId, SessionId, StartNumber, StoreId, Sums, VolumeId,
};
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The control plane says something.
fn told(message: ControlDown) -> Order {
    Order { term: ControlTerm(1), message }
}

/// Takes records while it has room, and notes what it was given in order.
#[derive(Debug, Default)]
struct Scripted {
    full: bool,
    /// Blocks that it takes for what an erasure waits behind.
    kept: usize,
    contents: Vec<(ChunkId, usize)>,
    taken: Vec<JournalSeq>,
    writes: usize,
    reads: Vec<ReadRequest>,
}

impl Storage for Scripted {
    fn append(&mut self, records: &mut Vec<Numbered>) -> Result<(), NoSpace> {
        let has_blocks = records.iter().any(|(_, record)| record.content().is_some());
        if self.full && has_blocks {
            return Err(NoSpace::Full { needed: 1, room: 0 });
        }
        for (seq, record) in records.drain(..) {
            if let Some(data) = record.content() {
                self.contents.push((record.chunk(), data.data_blocks()));
            }
            self.taken.push(seq);
            self.writes += usize::from(matches!(record, Record::Write { .. }));
        }
        Ok(())
    }

    fn append_before_erasure(&mut self, records: &mut Vec<Numbered>) -> Result<(), NoSpace> {
        let blocks: usize =
            records.iter().filter_map(|(_, r)| r.content()).map(BlockData::data_blocks).sum();
        if blocks > self.kept {
            return Err(NoSpace::Full { needed: 1, room: 0 });
        }
        self.kept -= blocks;
        let full = std::mem::take(&mut self.full);
        let taken = self.append(records);
        self.full = full;
        taken
    }

    fn read(&mut self, requests: Vec<ReadRequest>) -> Vec<ReadDone> {
        self.reads.extend(requests);
        Vec::new()
    }

    fn space(&self) -> Space {
        Space { total_slots: 4, used_slots: 1 }
    }

    fn verify(&mut self) {}
}

fn chunk(index: u32) -> ChunkId {
    ChunkId { volume: VolumeId { zone: "t".parse().unwrap(), uuid: 1 }, index: ChunkIndex(index) }
}

const ME: ReplicaId = ReplicaId { node: NodeId(1), store: StoreId(5), incarnation: Incarnation(1) };

/// A configuration in which this node is alone: its own disk decides everything.
fn alone(index: u32) -> ChunkConfig {
    ChunkConfig {
        chunk: chunk(index),
        blocks: 1024,
        epoch: Epoch(1),
        elected: Epoch(1),
        generation: Generation(1),
        primary: ME,
        in_sync: vec![ME],
        learners: Vec::new(),
        stale: Vec::new(),
        copies_wanted: 1,
        copies_min: 1,
    }
}

struct Rig {
    machine: Machine<Scripted>,
    next: u64,
}

impl Rig {
    /// A node that serves two chunks.
    fn new() -> Self {
        let zone = "t".parse().unwrap();
        let me = Identity { zone, node: NodeId(1), start: StartNumber(1) };
        let (living, stores) = watch::channel(vec![StoreId(5)]);
        let (events, _) = mpsc::channel(1);
        let (guests, _) = crate::beats::guests();
        let (beats, _) = crate::post::post();
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let sources = Sources { primary: ip, replication: ip };
        let table = Table::new(
            Diallers::new(
                Net::new(
                    me,
                    stores,
                    (Arc::new(Admission::nobody()), door::door(false, Duration::ZERO).1),
                    events.clone(),
                    guests,
                ),
                sources,
            ),
            events,
        );
        let mut out = Outbox::default();
        let state = ashlar_node_core::durable::DurableState::default();
        let found = [(StoreId(5), state)];
        let core = DataCore::new(Time::ZERO, me, Timing::default(), found, &mut out);
        let clock = Arc::new(ManualClock::new(0));
        let seats = vec![Seat::new(0, StoreId(5), Scripted::default())];
        let machine = Machine::new(
            (core, out),
            clock,
            (table, beats),
            seats,
            (living, Arc::new(Admission::nobody())),
        );
        let mut rig = Self { machine, next: 0 };
        let configs = ControlDown::Configs(vec![alone(0), alone(1)]);
        rig.machine.on_control(ControlEvent::Down(told(configs)));
        rig.machine.round();
        rig.sync();
        rig
    }

    /// Everything taken becomes durable.
    fn sync(&mut self) {
        for _ in 0..4 {
            let durable = self.machine.stores[0].store.taken.last().copied();
            self.machine.on_mail(0, Mail { durable, ..Mail::default() }).unwrap();
            self.machine.round();
        }
    }

    fn ask(&mut self, message: impl FnOnce(RequestId, Stamp) -> DataMessage, index: u32) {
        self.next += 1;
        let stamp = Stamp {
            chunk: chunk(index),
            epoch: Epoch(1),
            generation: Generation(1),
            session: SessionId(1),
        };
        let message = message(RequestId(self.next), stamp);
        let from = Link::Client(ConnectionId(1));
        self.machine.inputs.push(Input::Frame { from, message });
        self.machine.round();
    }

    fn write(&mut self, index: u32) {
        let block = vec![7; BLOCK_SIZE];
        let sums = Sums::Full(vec![crc32c::crc32c(&block)]);
        let data = BlockData { range: BlockRange::new(0, 1), sums, data: Bytes::from(block) };
        self.ask(|id, stamp| DataMessage::Write { id, stamp, data }, index);
    }

    fn read(&mut self, index: u32) {
        let range = BlockRange::new(0, 1);
        self.ask(|id, stamp| DataMessage::Read { id, stamp, range }, index);
    }
}

#[test]
fn a_full_store_keeps_the_order_of_records_and_holds_reads_of_their_chunks() {
    let mut rig = Rig::new();
    rig.write(0);
    rig.sync();
    assert_eq!(rig.machine.stores[0].store.writes, 1);

    rig.machine.stores[0].store.full = true;
    rig.write(0);
    rig.write(0);
    rig.read(0);
    rig.read(1);
    let read: Vec<_> = rig.machine.stores[0].store.reads.iter().map(|read| read.chunk).collect();
    assert_eq!(read, [chunk(1)], "a read must not miss a write that waits");
    assert_eq!(rig.machine.stores[0].store.writes, 1);

    rig.machine.stores[0].store.full = false;
    rig.write(1);
    assert_eq!(rig.machine.stores[0].store.writes, 4);
    let read: Vec<_> = rig.machine.stores[0].store.reads.iter().map(|read| read.chunk).collect();
    assert_eq!(read, [chunk(1), chunk(0)]);
    let taken: Vec<u64> = rig.machine.stores[0].store.taken.iter().map(|seq| seq.0).collect();
    let in_order: Vec<u64> = (1..).take(taken.len()).collect();
    assert_eq!(taken, in_order, "no record is left out or overtaken");
}

#[test]
fn an_erasure_gets_through_a_full_store_with_what_is_kept_for_it() {
    let mut rig = Rig::new();
    rig.machine.stores[0].store.full = true;
    rig.machine.stores[0].store.kept = 1;
    rig.write(1);
    rig.write(0);
    rig.write(0);
    rig.machine.round();
    assert_eq!(rig.machine.stores[0].store.writes, 0, "what is kept is not for writes alone");
    rig.machine.on_control(ControlEvent::Down(told(ControlDown::Erase(vec![(chunk(0), ME)]))));
    rig.machine.round();
    assert!(rig.machine.stores[0].full.records.is_empty(), "the erasure still waits");
    // In order: what the other chunk wrote, and nothing but holes of the one that is erased.
    assert_eq!(rig.machine.stores[0].store.contents, [(chunk(1), 1), (chunk(0), 0), (chunk(0), 0)]);
    let taken: Vec<u64> = rig.machine.stores[0].store.taken.iter().map(|seq| seq.0).collect();
    assert_eq!(taken, (1..).take(taken.len()).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_failed_store_ends_the_task() {
    let rig = Rig::new();
    let (_keep, net) = mpsc::channel(1);
    let (_keep_too, control) = mpsc::channel(1);
    let (_keep_as_well, beats) = mpsc::channel(1);
    let mailbox = Arc::new(Mailbox::default());
    let inlets = Inlets { net, control, store: Arc::clone(&mailbox), beats };
    let disk = DiskError::NotFound { name: "journal".into() };
    mailbox.put(0, crate::store::StoreEvent::Failed(StoreFailure::Disk(disk.clone())));
    let ended = rig.machine.run(inlets, std::future::pending()).await;
    assert_eq!(ended.err(), Some(StoreFailure::Disk(disk)));
}

#[test]
fn a_failed_store_leaves_the_table_and_another_one_works_on() {
    let mut rig = Rig::new();
    let other = StoreId(6);
    rig.machine.stores.push(Seat::new(1, other, Scripted::default()));
    let living = rig.machine.living.subscribe();
    let failed = Some(StoreFailure::SlotsExhausted);
    let mail = |failed| Mail { failed, ..Mail::default() };
    rig.machine.on_mail(0, mail(failed.clone())).unwrap();
    assert_eq!(*living.borrow(), [other], "whoever introduces the node says so");
    // What it still has to say finds nobody.
    let late = Mail { durable: Some(JournalSeq(1)), space: true, ..Mail::default() };
    rig.machine.on_mail(0, late).unwrap();
    rig.write(0);
    assert!(rig.machine.stores[0].store.taken.is_empty());
    assert_eq!(rig.machine.on_mail(1, mail(failed)), Err(StoreFailure::SlotsExhausted));
}
