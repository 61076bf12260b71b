//! Measures one store: 4 KiB records written and read at a queue depth, with CPU per operation.
//!
//! `cargo run --release -p ashlar-node --example store -- FOLDER [SECONDS] [MiB] [auto|uring|threads]`
//! writes over MiB (default 1024) of blocks at depth 1 and 32, then in larger requests, restarts, and
//! reads them back. Bytes written for each byte are what the kernel counted (nothing on tmpfs). Figures are of the whole
//! process, the driver included; say which disk and how many awake CPUs when you quote them.
#![allow(clippy::print_stdout, reason = "a tool whose output is its purpose")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::disk::EngineChoice;
use ashlar_node::store::{Events, Opened, Owner, ReadRequest, Store, StoreEvent, StoreOptions};
use ashlar_node_core::record::{JournalSeq, Record};
use ashlar_types::{
    BLOCK_SIZE, BlockData, BlockRange, ChunkId, ChunkIndex, NodeId, Sums, VolumeId,
};
use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};

/// Blocks of a chunk of 64 MiB.
const CHUNK_BLOCKS: u64 = 16_384;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("usage: store FOLDER [SECONDS] [MiB]")?);
    let seconds = arguments.next().map_or(Ok(5), |s| s.parse())?;
    let blocks = arguments.next().map_or(Ok(1024), |s| s.parse::<u64>())? * 256;
    let engine = arguments.next().map_or(Ok(EngineChoice::Auto), |s| s.parse());
    let engine = engine.map_err(anyhow::Error::msg)?;
    let length = Duration::from_secs(seconds);
    let mut bench = Bench::open(&folder, blocks, engine)?;
    // Every slot once, so that the rest is not about first writes.
    bench.fill()?;
    for depth in [1, 32, 128] {
        bench.write(depth, length)?;
    }
    for request in [8, 16, 32, 64, 256] {
        bench.write_large(request, length)?;
    }
    drop(bench);
    let began = Instant::now();
    let mut bench = Bench::open(&folder, blocks, engine)?;
    println!("open with replay: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    for depth in [1, 32] {
        bench.read(depth, length)?;
    }
    Ok(())
}

struct Bench {
    opened: Opened,
    events: Receiver<StoreEvent>,
    dice: SeededDice,
    seq: u64,
    blocks: u64,
    block: Bytes,
    sum: u32,
}

/// Where block `n` of all is.
fn place(n: u64) -> (ChunkId, u32) {
    let zone = "bench".parse().unwrap_or_default();
    let index = ChunkIndex(u32::try_from(n / CHUNK_BLOCKS).unwrap_or(0));
    let chunk = ChunkId { volume: VolumeId { zone, uuid: 1 }, index };
    (chunk, u32::try_from(n % CHUNK_BLOCKS).unwrap_or(0))
}

fn cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = |t: nix::sys::time::TimeVal| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_usec()).unwrap_or(0)
    };
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

impl Bench {
    fn open(folder: &Path, blocks: u64, engine: EngineChoice) -> anyhow::Result<Self> {
        let (tx, events) = channel();
        let sink: Events = Arc::new(move |event| drop(tx.send(event)));
        let owner = Owner { zone: "bench".parse()?, node: NodeId(1) };
        let options = StoreOptions { engine, ..StoreOptions::default() };
        let mut dice = SeededDice::new(1);
        let opened = Store::open_folder(folder, options, owner, &mut dice, sink)?;
        let block = Bytes::from(vec![0x5a; BLOCK_SIZE]);
        let sum = crc32c::crc32c(&block);
        Ok(Self { opened, events, dice, seq: 0, blocks, block, sum })
    }

    fn record(&mut self, n: u64) -> (JournalSeq, Record) {
        self.seq += 1;
        let (chunk, block) = place(n);
        let range = BlockRange::new(block, 1);
        let data = BlockData { range, sums: Sums::Full(vec![self.sum]), data: self.block.clone() };
        (JournalSeq(self.seq), Record::Fill { chunk, data })
    }

    /// Waits for events until something is durable or read; returns the new number or the count.
    fn next_event(&mut self) -> anyhow::Result<(Option<u64>, usize)> {
        match self.events.recv()? {
            StoreEvent::Durable(seq) => Ok((Some(seq.0), 0)),
            StoreEvent::Read(done) => {
                for answer in &done {
                    if answer.result.is_err() {
                        bail!("{:?}", answer.result);
                    }
                }
                Ok((None, done.len()))
            }
            StoreEvent::Space(_) => Ok((None, 0)),
            StoreEvent::Failed(e) => Err(e.into()),
        }
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        for first in (0..self.blocks).step_by(64) {
            let mut records = (first..first + 64).map(|n| self.record(n)).collect();
            self.opened.store.append(&mut records)?;
            while self.opened.store.queued_bytes() > 4 << 20 {
                self.next_event()?;
            }
        }
        let last = self.seq;
        while self.next_event()?.0 != Some(last) {}
        Ok(())
    }

    fn write(&mut self, depth: u64, length: Duration) -> anyhow::Result<()> {
        let first = self.seq;
        let (mut durable, mut latencies) = (first, Vec::new());
        let mut begun = std::collections::VecDeque::new();
        let (start, cpu_before) = (Instant::now(), cpu());
        while start.elapsed() < length {
            let now = Instant::now();
            let mut records = Vec::new();
            while self.seq - durable < depth {
                let n = self.dice.below(self.blocks);
                records.push(self.record(n));
                begun.push_back(now);
            }
            self.opened.store.append(&mut records)?;
            let seq = loop {
                if let (Some(seq), _) = self.next_event()? {
                    break seq;
                }
            };
            let done = usize::try_from(seq - durable)?;
            latencies.extend(begun.drain(..done).map(|b| b.elapsed()));
            durable = seq;
        }
        report("write", depth, durable - first, start.elapsed(), cpu() - cpu_before, latencies);
        while durable < self.seq {
            durable = self.next_event()?.0.unwrap_or(durable);
        }
        Ok(())
    }

    /// Random aligned requests of `request` blocks, 8 in flight.
    fn write_large(&mut self, request: u32, length: Duration) -> anyhow::Result<()> {
        const DEPTH: u64 = 8;
        let count = usize::try_from(request)?;
        let bytes = Bytes::from(self.block.repeat(count));
        let first = self.seq;
        let mut durable = first;
        let (start, cpu_before, written) = (Instant::now(), cpu(), bytes_written());
        while start.elapsed() < length {
            let mut records = Vec::new();
            while self.seq - durable < DEPTH {
                self.seq += 1;
                let (chunk, block) = place(self.dice.below(self.blocks));
                let range = BlockRange::new(block / request * request, request);
                let sums = Sums::Full(vec![self.sum; count]);
                let data = BlockData { range, sums, data: bytes.clone() };
                records.push((JournalSeq(self.seq), Record::Fill { chunk, data }));
            }
            self.opened.store.append(&mut records)?;
            while self.seq - durable >= DEPTH {
                durable = self.next_event()?.0.unwrap_or(durable);
            }
        }
        while durable < self.seq {
            durable = self.next_event()?.0.unwrap_or(durable);
        }
        let moved = (durable - first) * u64::from(request) * 4096;
        let elapsed = start.elapsed();
        report_large(request, moved, elapsed, cpu() - cpu_before, bytes_written() - written);
        Ok(())
    }

    fn read(&mut self, depth: u64, length: Duration) -> anyhow::Result<()> {
        let (mut asked, mut done, mut latencies) = (0, 0, Vec::new());
        let mut begun = std::collections::VecDeque::new();
        let (start, cpu_before) = (Instant::now(), cpu());
        while start.elapsed() < length {
            let now = Instant::now();
            let mut requests = Vec::new();
            while asked - done < depth {
                asked += 1;
                let (chunk, block) = place(self.dice.below(self.blocks));
                requests.push(ReadRequest {
                    ticket: asked,
                    chunk,
                    range: BlockRange::new(block, 1),
                });
                begun.push_back(now);
            }
            let mut finished = self.opened.store.read(requests).len();
            while finished == 0 {
                finished = self.next_event()?.1;
            }
            latencies.extend(begun.drain(..finished).map(|b| b.elapsed()));
            done += u64::try_from(finished)?;
        }
        report("read", depth, done, start.elapsed(), cpu() - cpu_before, latencies);
        while done < asked {
            done += u64::try_from(self.next_event()?.1)?;
        }
        Ok(())
    }
}

/// What this process had the kernel write to disks so far.
fn bytes_written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    written.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn report_large(request: u32, moved: u64, elapsed: Duration, cpu: Duration, written: u64) {
    println!(
        "write {:4} KiB depth 8: {:8.0} MiB/s  {:.2} bytes written for each  CPU {:.2} ms per MiB",
        request * 4,
        moved as f64 / f64::from(1 << 20) / elapsed.as_secs_f64(),
        written as f64 / moved as f64,
        cpu.as_secs_f64() * 1e3 / (moved as f64 / f64::from(1 << 20)),
    );
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn report(
    what: &str,
    depth: u64,
    count: u64,
    elapsed: Duration,
    cpu: Duration,
    mut latencies: Vec<Duration>,
) {
    latencies.sort_unstable();
    let at = |percent: usize| {
        latencies.get(latencies.len() * percent / 100).map_or(0, Duration::as_micros)
    };
    println!(
        "{what} 4 KiB depth {depth:3}: {:8.0}/s  p50 {} us  p99 {} us  CPU {:.1} us",
        count as f64 / elapsed.as_secs_f64(),
        at(50),
        at(99),
        cpu.as_secs_f64() * 1e6 / count.max(1) as f64,
    );
}
