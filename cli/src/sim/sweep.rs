//! Many seeds: shared among the host's cores, with progress, and every failure with its replay.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ashlar_sim::{Options, Outcome, Tally};
use serde::Serialize;

use super::{SHRINKING_RUNS_MAX, What, broken};
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show, columns};

/// Failures that a sweep shows in full; more are counted.
const FAILURES_SHOWN_MAX: usize = 20;
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What to run.
pub(super) struct Order {
    pub(super) seeds: Range<u64>,
    pub(super) jobs: usize,
    pub(super) what: What,
    /// Runs all seeds, whatever fails.
    pub(super) go_on: bool,
}

/// Runs the seeds.
///
/// # Errors
/// When a seed breaks a rule.
pub(super) fn run(order: &Order, output: &Output) -> Result<(), Failure> {
    name_case_on_panic();
    let sweep = Sweep::new(order);
    thread::scope(|scope| {
        for _ in 0..order.jobs {
            scope.spawn(|| sweep.work());
        }
    });
    let seconds = sweep.began.elapsed().as_secs_f64();
    let found = sweep.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    match found.failed.first_key_value() {
        None => output.show(&SweepView::new(order, &found, seconds)),
        Some((seed, outcome)) if !order.go_on => {
            let options = order.what.options(*seed);
            Err(broken(ashlar_sim::shrink(options, SHRINKING_RUNS_MAX), outcome))
        }
        Some(_) => Err(all_broken(order, &found)),
    }
}

/// Every failure with the line that replays it, made smaller.
fn all_broken(order: &Order, found: &Found) -> Failure {
    let (failed, run) = (found.failed.len(), found.run);
    let mut failure = Failure::new(Kind::Error, format!("{failed} of {run} seeds break a rule"));
    for (seed, outcome) in found.failed.iter().take(FAILURES_SHOWN_MAX) {
        let options = ashlar_sim::shrink(order.what.options(*seed), SHRINKING_RUNS_MAX);
        let rule = outcome.violations.first().map_or("", |violation| violation.rule);
        failure = failure.because(format!("{rule}: {} --log", options.replay_command()));
    }
    failure
}

thread_local! {
    /// The command that repeats what this thread runs.
    static CASE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Names the command that repeats what this thread runs, should it panic.
pub(super) fn name_on_panic(command: &str) {
    CASE.set(Some(command.to_owned()));
    name_case_on_panic();
}

/// A core that finds itself in a state that must not be panics, which ends the process: the seed
/// that led there must be known all the same.
fn name_case_on_panic() {
    let end = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let Some(command) = CASE.take() {
            let line = format!("error: an assertion is broken\n  try: {command} --log");
            // Standard error gone: the panic's own words are lost as well.
            writeln!(std::io::stderr(), "{line}").ok();
        }
        end(info);
    }));
}

/// Seeds that the threads take in turn, and what they found.
struct Sweep<'a> {
    order: &'a Order,
    next: AtomicU64,
    stop: AtomicBool,
    began: Instant,
    found: Mutex<Found>,
}

struct Found {
    run: u64,
    writes: u64,
    reads: u64,
    events: u64,
    simulated: Duration,
    tally: Tally,
    failed: BTreeMap<u64, Outcome>,
    told: Instant,
}

impl<'a> Sweep<'a> {
    fn new(order: &'a Order) -> Self {
        let found = Found {
            run: 0,
            writes: 0,
            reads: 0,
            events: 0,
            simulated: Duration::ZERO,
            tally: Tally::default(),
            failed: BTreeMap::new(),
            told: Instant::now(),
        };
        Self {
            order,
            next: AtomicU64::new(order.seeds.start),
            stop: AtomicBool::new(false),
            began: Instant::now(),
            found: Mutex::new(found),
        }
    }

    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.order.seeds.end {
                return;
            }
            let options: Options = self.order.what.options(seed);
            CASE.set(Some(options.replay_command()));
            let outcome = ashlar_sim::run(options);
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.take(seed, outcome);
            if !found.failed.is_empty() && !self.order.go_on {
                // Lower seeds are under way in other threads and end by themselves.
                self.stop.store(true, Ordering::Relaxed);
            }
            self.tell(&mut found);
        }
    }

    /// A line of progress now and then, for whoever watches.
    fn tell(&self, found: &mut Found) {
        if found.told.elapsed() < PROGRESS_EVERY || !std::io::stderr().is_terminal() {
            return;
        }
        found.told = Instant::now();
        let seconds = self.began.elapsed().as_secs_f64();
        let all = self.order.seeds.end - self.order.seeds.start;
        let (run, failed) = (found.run, found.failed.len());
        let rate = rate_of(run, seconds);
        let line = format!("{run} of {all} seeds, {rate:.1}/s, {failed} failed");
        // Nobody watches any more: the result comes all the same.
        writeln!(std::io::stderr(), "{line}").ok();
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people: three digits are enough")]
fn rate_of(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-3)
}

impl Found {
    fn take(&mut self, seed: u64, outcome: Outcome) {
        self.run += 1;
        self.writes += outcome.writes;
        self.reads += outcome.reads;
        self.events += outcome.events;
        self.simulated += outcome.simulated;
        self.tally.add(&outcome.tally);
        if !outcome.violations.is_empty() {
            self.failed.insert(seed, outcome);
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
    simulated_seconds: f64,
    seconds: f64,
    events_per_second: f64,
    tally: BTreeMap<String, u64>,
}

impl SweepView {
    fn new(order: &Order, found: &Found, seconds: f64) -> Self {
        Self {
            first_seed: order.seeds.start,
            seeds: found.run,
            writes: found.writes,
            reads: found.reads,
            events: found.events,
            simulated_seconds: found.simulated.as_secs_f64(),
            seconds,
            events_per_second: rate_of(found.events, seconds),
            tally: found.tally.iter().map(|(what, count)| (what.to_owned(), count)).collect(),
        }
    }
}

impl Show for SweepView {
    fn table(&self) -> String {
        let row = |name: &str, value: String| [name.to_owned(), value];
        let mut rows = vec![
            row("seeds", format!("{} from {}, no rule broken", self.seeds, self.first_seed)),
            row("blocks written", self.writes.to_string()),
            row("blocks read and judged", self.reads.to_string()),
            row("events", self.events.to_string()),
            row("events per second", format!("{:.0}", self.events_per_second)),
            row("simulated", format!("{:.0} s", self.simulated_seconds)),
            row("took", format!("{:.1} s", self.seconds)),
        ];
        rows.extend(self.tally.iter().map(|(what, count)| row(what, count.to_string())));
        columns(["MEASURE", "VALUE"], rows)
    }
}
