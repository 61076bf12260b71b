//! Keeps a fixed number of operations in flight and times each.
//!
//! All operations run in one task: what is measured is the device, not the generator. Written data
//! is unlike from block to block, so that nothing in the path can fold it.

use std::cell::RefCell;
use std::future::Future;
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::report::{Latency, Report};
use crate::workload::{Operation, Sequence, Workload};

/// Buffers of written data that are taken in turn.
const BUFFERS: usize = 64;

/// What is measured: a volume, or anything else of blocks.
pub trait Device {
    /// Reads `length` bytes at `offset`.
    fn read(&self, offset: u64, length: u32) -> impl Future<Output = anyhow::Result<Bytes>>;
    /// Writes `data` at `offset`; it is durable when this returns.
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = anyhow::Result<()>>;
}

/// Why a measurement has no result.
#[derive(Debug)]
pub enum BenchError {
    /// The workload cannot be run on any device.
    Workload(&'static str),
    /// An operation failed; a benchmark of a failing device would be a lie.
    Operation(anyhow::Error),
}

impl std::fmt::Display for BenchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BenchError::Workload(why) => write!(f, "the workload makes no sense: {why}"),
            BenchError::Operation(error) => write!(f, "an operation failed: {error:#}"),
        }
    }
}

impl std::error::Error for BenchError {}

/// What the workers of one run share; they run in one task, one at a time.
struct Shared {
    sequence: Sequence,
    latency: Histogram<u64>,
    buffers: Vec<Bytes>,
    next_buffer: usize,
}

/// Runs `workload` on `device`.
///
/// # Errors
/// When the workload makes no sense or an operation fails.
pub async fn run(device: &impl Device, workload: &Workload) -> Result<Report, BenchError> {
    let shared = RefCell::new(Shared::new(workload)?);
    let began = Instant::now();
    let mut workers: FuturesUnordered<_> =
        (0..workload.depth).map(|_| work(device, workload, &shared, began)).collect();
    while let Some(outcome) = workers.next().await {
        outcome.map_err(BenchError::Operation)?;
    }
    drop(workers);
    let elapsed = began.elapsed();
    let latency = shared.into_inner().latency;
    Ok(Report::new(workload, latency.len(), elapsed, Latency::of(&latency)))
}

impl Shared {
    fn new(workload: &Workload) -> Result<Self, BenchError> {
        if workload.block_bytes == 0 || !workload.block_bytes.is_multiple_of(4096) {
            return Err(BenchError::Workload("a block is a multiple of 4096 bytes"));
        }
        if workload.depth == 0 || workload.read_percent > 100 {
            return Err(BenchError::Workload("the depth is at least 1, reads at most 100 percent"));
        }
        let sequence = Sequence::new(workload)
            .ok_or(BenchError::Workload("the device is smaller than one block"))?;
        // Three digits are what is printed.
        let latency = Histogram::new(3)
            .map_err(|_| BenchError::Workload("no histogram of three digits exists"))?;
        Ok(Self { sequence, latency, buffers: buffers(workload), next_buffer: 0 })
    }

    fn buffer(&mut self) -> Bytes {
        self.next_buffer = (self.next_buffer + 1) % self.buffers.len().max(1);
        self.buffers.get(self.next_buffer).cloned().unwrap_or_default()
    }
}

fn buffers(workload: &Workload) -> Vec<Bytes> {
    let mut dice = SmallRng::seed_from_u64(workload.seed);
    (0..BUFFERS)
        .map(|_| {
            let mut bytes = vec![0; usize::try_from(workload.block_bytes).unwrap_or(0)];
            dice.fill_bytes(&mut bytes);
            Bytes::from(bytes)
        })
        .collect()
}

async fn work(
    device: &impl Device,
    workload: &Workload,
    shared: &RefCell<Shared>,
    began: Instant,
) -> anyhow::Result<()> {
    while began.elapsed() < workload.duration {
        let (operation, offset) = shared.borrow_mut().sequence.draw();
        let started = Instant::now();
        match operation {
            Operation::Read => {
                let data = device.read(offset, workload.block_bytes).await;
                data.with_context(|| format!("read at {offset}"))?;
            }
            Operation::Write => {
                let data = shared.borrow_mut().buffer();
                device.write(offset, data).await.with_context(|| format!("write at {offset}"))?;
            }
        }
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Grows by itself; a time beyond centuries cannot be recorded and does not occur.
        shared.borrow_mut().latency.record(nanos).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;
    use crate::Pattern;

    #[derive(Default)]
    struct Fake {
        in_flight: Cell<u32>,
        most: Cell<u32>,
        fails: bool,
    }

    impl Device for Fake {
        async fn read(&self, _offset: u64, length: u32) -> anyhow::Result<Bytes> {
            Ok(Bytes::from(vec![0; usize::try_from(length)?]))
        }

        async fn write(&self, _offset: u64, _data: Bytes) -> anyhow::Result<()> {
            anyhow::ensure!(!self.fails, "the disk is on fire");
            self.in_flight.set(self.in_flight.get() + 1);
            self.most.set(self.most.get().max(self.in_flight.get()));
            tokio::task::yield_now().await;
            self.in_flight.set(self.in_flight.get() - 1);
            Ok(())
        }
    }

    fn workload(depth: u32) -> Workload {
        Workload {
            pattern: Pattern::Random,
            read_percent: 0,
            block_bytes: 4096,
            depth,
            duration: Duration::from_millis(20),
            span_bytes: 1 << 20,
            seed: 1,
        }
    }

    #[tokio::test]
    async fn as_many_operations_are_in_flight_as_asked_for() {
        let device = Fake::default();
        let report = run(&device, &workload(8)).await.unwrap();
        assert_eq!(device.most.get(), 8);
        assert!(report.operations >= 8);
        assert!(report.latency.p50_micros > 0.0);
        assert!(report.latency.p50_micros <= report.latency.max_micros);
    }

    #[tokio::test]
    async fn a_failing_device_has_no_result() {
        let device = Fake { fails: true, ..Fake::default() };
        assert!(matches!(run(&device, &workload(1)).await, Err(BenchError::Operation(_))));
        let mut odd = workload(1);
        odd.block_bytes = 512;
        assert!(matches!(run(&device, &odd).await, Err(BenchError::Workload(_))));
    }
}
