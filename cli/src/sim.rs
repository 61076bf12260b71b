//! `ashlar sim`: runs the deterministic simulation from the command line.
//!
//! A failing seed is printed with the command that replays it. The world and its judgement live in
//! `sim/`; this file counts seeds and shares them among the host's cores.

use std::cell::Cell;
use std::io::Write;
use std::panic;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use ashlar_sim::{Options, Outcome};
use clap::Subcommand;
use serde::Serialize;

use crate::failure::{Failure, Kind};
use crate::process;
use crate::render::{Output, Show, columns};

/// Commands of the simulation.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one seed, or many in a row.
    Run {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds, counting up from the first.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
    },
}

/// Runs the command.
///
/// # Errors
/// When a seed breaks an invariant; the text names the seed and how to run it again.
pub(crate) fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let Command::Run { seed, seeds } = command;
    name_seed_on_panic();
    let sweep = Sweep::new(*seed, *seeds);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| sweep.work());
        }
    });
    let found = sweep.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((seed, outcome)) = found.failed {
        let mut failure = Failure::new(Kind::Error, format!("seed {seed} breaks a rule"));
        for violation in &outcome.violations {
            failure = failure.because(violation);
        }
        return Err(failure.try_next(format!("ashlar sim run --seed {seed}")));
    }
    output.show(&SweepView {
        first_seed: *seed,
        seeds: *seeds,
        writes: found.writes,
        reads: found.reads,
        events: found.events,
        digest: format!("{:016x}", found.digest),
        seconds: began.elapsed().as_secs_f64(),
    })
}

thread_local! {
    /// The seed that this thread runs.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// A core that finds itself in a state that must not be panics, which ends the process: the seed
/// that led there must be known all the same.
fn name_seed_on_panic() {
    let end = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let Some(seed) = SEED.get() {
            let line = format!(
                "error: seed {seed} breaks an assertion\n  try: ashlar sim run --seed {seed}"
            );
            // Standard error gone: the panic's own words are lost as well.
            writeln!(std::io::stderr(), "{line}").ok();
        }
        end(info);
    }));
}

/// Seeds that the threads take in turn, and what they found.
struct Sweep {
    next: AtomicU64,
    end: u64,
    /// One seed alone: its digest is wanted.
    single: bool,
    stop: AtomicBool,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    writes: u64,
    reads: u64,
    events: u64,
    /// Of all outcomes, whatever order they came in.
    digest: u64,
    /// The lowest seed that failed.
    failed: Option<(u64, Outcome)>,
}

impl Sweep {
    fn new(first: u64, count: u64) -> Self {
        Self {
            next: AtomicU64::new(first),
            end: first.saturating_add(count),
            single: count == 1,
            stop: AtomicBool::new(false),
            found: Mutex::default(),
        }
    }

    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            SEED.set(Some(seed));
            let options = if self.single { Options::new(seed) } else { Options::of_many(seed) };
            let outcome = ashlar_sim::run(options);
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.take(seed, outcome);
            if found.failed.is_some() {
                // Lower seeds are under way in other threads and end by themselves.
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Found {
    fn take(&mut self, seed: u64, outcome: Outcome) {
        self.writes += outcome.writes;
        self.reads += outcome.reads;
        self.events += outcome.events;
        self.digest ^= outcome.digest.rotate_left(u32::try_from(seed % 64).unwrap_or(0));
        let first = self.failed.as_ref().is_none_or(|(failed, _)| seed < *failed);
        if first && !outcome.violations.is_empty() {
            self.failed = Some((seed, outcome));
        }
    }
}

/// A sweep without a failure, as it is printed.
#[derive(Debug, Serialize)]
struct SweepView {
    first_seed: u64,
    seeds: u64,
    writes: u64,
    reads: u64,
    events: u64,
    digest: String,
    seconds: f64,
}

impl Show for SweepView {
    fn table(&self) -> String {
        let row = |name: &str, value: String| [name.to_owned(), value];
        columns(
            ["MEASURE", "VALUE"],
            [
                row("seeds", format!("{} from {}, no rule broken", self.seeds, self.first_seed)),
                row("blocks written", self.writes.to_string()),
                row("blocks read and judged", self.reads.to_string()),
                row("events", self.events.to_string()),
                row("digest", self.digest.clone()),
                row("took", format!("{:.1} s", self.seconds)),
            ],
        )
    }
}
