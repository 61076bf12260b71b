//! What a measurement found.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::workload::Workload;

/// Times of single operations, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// The average.
    pub mean_micros: f64,
    /// Half were faster.
    pub p50_micros: f64,
    /// 99 of 100 were faster.
    pub p99_micros: f64,
    /// 999 of 1,000 were faster.
    pub p999_micros: f64,
    /// The slowest.
    pub max_micros: f64,
}

impl Latency {
    /// From recorded nanoseconds.
    pub(crate) fn of(nanos: &Histogram<u64>) -> Self {
        let at = |quantile| micros(Duration::from_nanos(nanos.value_at_quantile(quantile)));
        Self {
            mean_micros: nanos.mean() / 1000.0,
            p50_micros: at(0.5),
            p99_micros: at(0.99),
            p999_micros: at(0.999),
            max_micros: micros(Duration::from_nanos(nanos.max())),
        }
    }
}

/// The result of one measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was run.
    pub workload: Workload,
    /// Operations that ended.
    pub operations: u64,
    /// From the first start to the last end.
    pub elapsed: Duration,
    /// Operations per second.
    pub iops: f64,
    /// Mebibytes per second.
    pub mib_per_second: f64,
    /// Times of single operations.
    pub latency: Latency,
    /// CPU time of all processes that take part, per operation; none when it was not measured.
    pub cpu_micros_per_operation: Option<f64>,
}

impl Report {
    /// Works out the rates.
    pub(crate) fn new(
        workload: &Workload,
        operations: u64,
        elapsed: Duration,
        latency: Latency,
    ) -> Self {
        let iops = count(operations) / elapsed.as_secs_f64().max(1e-9);
        let mib_per_second = iops * f64::from(workload.block_bytes) / f64::from(1 << 20);
        Self {
            workload: workload.clone(),
            operations,
            elapsed,
            iops,
            mib_per_second,
            latency,
            cpu_micros_per_operation: None,
        }
    }

    /// Adds the CPU time that all processes took over the run.
    #[must_use]
    pub fn with_cpu(mut self, cpu: Duration) -> Self {
        let per_operation = micros(cpu) / count(self.operations.max(1));
        self.cpu_micros_per_operation = Some(per_operation);
        self
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[allow(clippy::cast_precision_loss, reason = "exact below 2^53 operations")]
fn count(operations: u64) -> f64 {
    operations as f64
}
