//! `ashlar bench`: measures a volume through the client library.
//!
//! Attaches the volume, runs one workload from `bench/`, detaches, prints. With the cluster of
//! `ashlar dev` the CPU time of all its processes counts too, which is the honest cost of an
//! operation on one host. What the volume held is overwritten.

use std::time::Duration;

use ashlar_bench::{CpuTime, Device, Latency, Pattern, Report, Workload};
use ashlar_client::{Volume, VolumeOptions};
use bytes::Bytes;
use serde::Serialize;

use crate::connect::{self, Zone};
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show, columns};
use crate::{Global, completion, dev, logging, process, size};

/// How long to wait for requests in flight and for the control plane at the end.
const DETACH_WITHIN: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Volume, by id or name, not attached elsewhere.
    #[arg(add = completion::volumes())]
    volume: String,
    /// Where operations go.
    #[arg(long, value_enum, default_value_t = Access::Random)]
    access: Access,
    /// Of 100 operations, how many are reads.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Size of an operation, a multiple of 4KiB, at most 1MiB.
    #[arg(long, default_value = "4KiB", value_parser = size::parse)]
    block: u64,
    /// Operations in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How much of the volume is used, from its start (default: all of it).
    #[arg(long, value_parser = size::parse)]
    span: Option<u64>,
    /// Decides which blocks are touched in which order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Overwrite what the volume holds. Without it only reads are allowed.
    #[arg(long)]
    overwrite: bool,
}

/// Order of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Access {
    /// Anywhere.
    Random,
    /// One after the other.
    Sequential,
}

/// Runs the measurement.
///
/// # Errors
/// When the volume cannot be attached or an operation fails.
pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    logging::start("warn");
    if arguments.reads < 100 && !arguments.overwrite {
        return Err(Failure::new(Kind::Usage, format!("write to {}", arguments.volume))
            .because("it would overwrite what the volume holds")
            .try_next("--overwrite if that is meant, or --reads 100"));
    }
    let zone = Zone::find(global)?;
    let report = connect::runtime()?.block_on(measure(arguments, &zone))?;
    output.show(&ReportView(report))
}

async fn measure(arguments: &Arguments, zone: &Zone) -> Result<Report, Failure> {
    let what = || format!("measure {}", arguments.volume);
    let options =
        VolumeOptions { client_name: "ashlar bench".to_owned(), ..VolumeOptions::default() };
    let volume = Volume::attach(zone.endpoints(), &arguments.volume, options)
        .await
        .map_err(|error| connect::from_control(&what(), &error))?;
    let size_bytes = volume.geometry().size_bytes();
    let workload = Workload {
        pattern: match arguments.access {
            Access::Random => Pattern::Random,
            Access::Sequential => Pattern::Sequential,
        },
        read_percent: arguments.reads,
        block_bytes: u32::try_from(arguments.block)
            .map_err(|_| Failure::new(Kind::Usage, what()).because("the block is too large"))?,
        depth: arguments.depth,
        duration: Duration::from_secs(arguments.seconds),
        span_bytes: arguments.span.unwrap_or(size_bytes).min(size_bytes),
        seed: arguments.seed,
    };
    let processes = taking_part();
    let before = CpuTime::of(&processes);
    let outcome = ashlar_bench::run(&OfVolume(&volume), &workload).await;
    let cpu = CpuTime::of(&processes).since(before);
    let detached = volume.detach(DETACH_WITHIN).await;
    let report = outcome.map_err(|error| Failure::new(Kind::Error, what()).because(error))?;
    detached.map_err(|error| connect::from_control("detach the volume", &error))?;
    // Alone, this process would pass for the whole path.
    Ok(if processes.len() > 1 { report.with_cpu(cpu) } else { report })
}

/// This process and those of the `dev` cluster, if there is one.
fn taking_part() -> Vec<u32> {
    let mut processes = dev::processes(&dev::folder());
    processes.push(std::process::id());
    processes
}

struct OfVolume<'a>(&'a Volume);

impl Device for OfVolume<'_> {
    async fn read(&self, offset: u64, length: u32) -> anyhow::Result<Bytes> {
        Ok(self.0.read(offset, length).await?)
    }

    async fn write(&self, offset: u64, data: Bytes) -> anyhow::Result<()> {
        Ok(self.0.write(offset, data).await?)
    }
}

/// A report as it is printed.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct ReportView(Report);

impl Show for ReportView {
    fn table(&self) -> String {
        let Report { iops, mib_per_second, operations, elapsed, latency, .. } = &self.0;
        let Latency { mean_micros, p50_micros, p99_micros, p999_micros, max_micros } = latency;
        let row = |name: &str, value: String| [name.to_owned(), value];
        let mut rows = vec![
            row("operations", format!("{operations} in {:.1} s", elapsed.as_secs_f64())),
            row("rate", format!("{iops:.0}/s, {mib_per_second:.1} MiB/s")),
            row("mean", format!("{mean_micros:.0} µs")),
            row("p50", format!("{p50_micros:.0} µs")),
            row("p99", format!("{p99_micros:.0} µs")),
            row("p99.9", format!("{p999_micros:.0} µs")),
            row("longest", format!("{max_micros:.0} µs")),
        ];
        if let Some(cpu) = self.0.cpu_micros_per_operation {
            rows.push(row("cpu", format!("{cpu:.1} µs per operation, over all processes")));
        }
        columns(["MEASURE", "VALUE"], rows)
    }
}
