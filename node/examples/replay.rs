//! Measures how long a store takes to open whose journal is as full as it can get.
//!
//! `cargo run --release -p ashlar-node --example replay -- FOLDER [MiB of journal]` (default 256) lets
//! nothing be applied, so that 4 KiB records fill the ring until the store can take no more, ends the
//! process as a kill does, and opens the store. That is the longest replay there can be: afterwards the
//! apply gives room back long before.
#![allow(clippy::print_stdout, reason = "a tool whose output is its purpose")]

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ashlar_env::dice::SeededDice;
use ashlar_env::disk::{Disk, DiskError, DiskFile, EngineChoice, OpenHow, RealDisk};
use ashlar_node::store::{Events, Opened, Owner, Store, StoreEvent, StoreOptions};
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkId, ChunkIndex, NodeId, Sums, VolumeId,
};
use bytes::Bytes;

/// Blocks of a chunk of 64 MiB.
const CHUNK_BLOCKS: u64 = 16_384;
/// Content of a GiB.
const BLOCKS: u64 = 16 * CHUNK_BLOCKS;
/// The journal counts as full when nothing became durable for so long.
const STANDSTILL: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: replay FOLDER [MiB of journal]")?;
    let folder = PathBuf::from(folder).join("replay");
    let mib = arguments.next().map_or(Ok(256), |s| s.parse::<u64>())?;
    let options = StoreOptions {
        journal_bytes: mib << 20,
        capacity_bytes: 4 << 30,
        engine: EngineChoice::Threads,
        ..StoreOptions::default()
    };
    if arguments.next().as_deref() == Some("fill") {
        return fill(&folder, options);
    }
    let this = std::env::current_exe()?;
    let parent = folder.parent().context("a folder")?;
    for nth in 1..=3 {
        // A process of its own, which ends without closing anything.
        Command::new(&this).arg(parent).args([&mib.to_string(), "fill"]).status()?;
        let began = Instant::now();
        let opened = open(Arc::new(RealDisk::open(&folder)?), options)?;
        let taken = began.elapsed();
        println!("open {nth}: {:.0} ms, {mib} MiB of journal", taken.as_secs_f64() * 1e3);
        drop(opened);
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

fn open(
    disk: Arc<dyn Disk>,
    options: StoreOptions,
) -> anyhow::Result<(Opened, Receiver<StoreEvent>)> {
    let (tx, events) = channel();
    let sink: Events = Arc::new(move |event| drop(tx.send(event)));
    let owner = Owner { zone: "bench".parse()?, node: NodeId(1) };
    Ok((Store::open(disk, options, owner, &mut SeededDice::new(1), sink)?, events))
}

/// Fills the ring while nothing can be applied.
fn fill(folder: &Path, options: StoreOptions) -> anyhow::Result<()> {
    let disk = Arc::new(Stuck(Arc::new(RealDisk::open(folder)?)));
    let (opened, events) = open(disk, options)?;
    let block = Bytes::from(vec![0x5a; BLOCK_SIZE]);
    let sums = Sums::Full(vec![crc32c::crc32c(&block)]);
    let zone = "bench".parse()?;
    let (mut seq, mut durable) = (0, 0);
    loop {
        let mut records = Vec::new();
        for _ in 0..64 {
            seq += 1;
            // Scattered, so that no two records are one after the other.
            let at = seq * 7_919 % BLOCKS;
            let index = ChunkIndex(u32::try_from(at / CHUNK_BLOCKS)?);
            let chunk = ChunkId { volume: VolumeId { zone, uuid: 1 }, index };
            let range = BlockRange::new(u32::try_from(at % CHUNK_BLOCKS)?, 1);
            let data = BlockData { range, sums: sums.clone(), data: block.clone() };
            records.push((JournalSeq(seq), Record::Fill { chunk, data }));
        }
        opened.store.append(&mut records)?;
        while opened.store.queued_bytes() > 4 << 20 {
            match events.recv_timeout(STANDSTILL) {
                Ok(StoreEvent::Durable(up_to)) => durable = up_to.0,
                Ok(StoreEvent::Failed(failure)) => bail!(failure),
                Ok(StoreEvent::Read(_) | StoreEvent::Space(_)) => {}
                Err(_) => {
                    println!("journalled: {durable} records of 4 KiB, none of them applied");
                    std::process::exit(0);
                }
            }
        }
    }
}

/// A disk that takes content for the data file and never says that it is stable.
#[derive(Debug)]
struct Stuck(Arc<RealDisk>);

impl Disk for Stuck {
    fn open(&self, name: &str, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.0.open(name, how)?;
        Ok(if name == "data" && !how.creates() { Arc::new(StuckFile(file)) } else { file })
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.0.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename(from, to)
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        self.0.sync_dir()
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.0.list()
    }
}

#[derive(Debug)]
struct StuckFile(Arc<dyn DiskFile>);

impl DiskFile for StuckFile {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.0.write_at(buf, offset)
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        loop {
            std::thread::park();
        }
    }

    fn preallocate(&self, size: u64) -> Result<(), DiskError> {
        self.0.preallocate(size)
    }

    fn truncate(&self, size: u64) -> Result<(), DiskError> {
        self.0.truncate(size)
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
