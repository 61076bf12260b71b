//! Load generators and measurements.
//!
//! A [`Workload`] says what to do, [`run()`] does it on any [`Device`] and gives a [`Report`]. Knows
//! nothing of clusters: the command line brings the volume and the processes whose CPU time counts.

mod cpu;
mod report;
mod run;
mod workload;

pub use cpu::CpuTime;
pub use report::{Latency, Report};
pub use run::{BenchError, Device, run};
pub use workload::{Operation, Pattern, Workload};
