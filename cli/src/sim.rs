//! `ashlar sim`: runs the deterministic simulation from the command line.
//!
//! A failing seed is made smaller and printed with the one line that replays it. The world and its
//! judgement live in `sim/`; this folder reads options, shares seeds among the host's cores
//! (`sweep.rs`) and prints.

use std::io::Write;
use std::time::Duration;

use ashlar_sim::{FaultKind, Kinds, Options, Scenario, Scene, UnknownKind};
use clap::Subcommand;
use serde::Serialize;

use crate::failure::{Failure, Kind};
use crate::process;
use crate::render::{Output, Show, columns};

mod step;
mod sweep;

/// Most runs that making a failing seed smaller may take: a minute at most.
const SHRINKING_RUNS_MAX: usize = 40;

/// Commands of the simulation.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one seed, or many in a row; stops at the first that fails.
    Run {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds, counting up from the first.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        #[command(flatten)]
        what: What,
    },
    /// Run many seeds to the end, whatever fails; shows progress and how to replay each failure.
    Sweep {
        /// From the first seed to the one after the last, as in 0..1000.
        #[arg(long, value_parser = seed_range)]
        seeds: std::ops::Range<u64>,
        /// Seeds to run at a time.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
        jobs: u16,
        #[command(flatten)]
        what: What,
    },
    /// List the scenarios.
    Scenarios,
    /// Run one seed and show what happened.
    Replay {
        /// The seed.
        seed: u64,
        /// Print every event.
        #[arg(long)]
        log: bool,
        /// Print events up to this simulated time only, as in 2.5s.
        #[arg(long, value_parser = span)]
        until: Option<Duration>,
        /// Print behind every event what it changed of the hosts.
        #[arg(long)]
        diff: bool,
        /// Stop before every event; shows what each changed. `?` says what may be answered.
        #[arg(long, conflicts_with_all = ["log", "diff", "shrink"])]
        step: bool,
        /// Make a failing run smaller, and show how to replay that.
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        what: What,
    },
}

/// What is simulated, beside the seed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct What {
    /// Zone and load: `busy` (4 nodes, a full queue), `zone` (5 nodes, 50 writes a second) or `region`
    /// (three zones of 4 nodes with such a load, and calls between them; faults strike one).
    #[arg(long, default_value_t = Scene::Busy)]
    scene: Scene,
    /// Kinds of faults that may strike, with commas between them; `all`, or `none`.
    #[arg(long, default_value_t = Kinds::ALL, value_name = "KINDS")]
    faults: Kinds,
    /// Simulated time during which faults strike, as in 10s or 1500ms; the scene says how long it
    /// is otherwise.
    #[arg(long, value_parser = span)]
    storm: Option<Duration>,
    /// Lose more than is promised to be survived, once in each seed, and demand a clean refusal.
    #[arg(long, conflicts_with_all = ["scenario", "pair"])]
    beyond: bool,
    /// Stores of each node: what strikes a disk strikes one of them.
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=8))]
    #[arg(conflicts_with = "scenario")]
    stores: u32,
    /// A scenario by name, instead of a swarm; see `ashlar sim scenarios`.
    #[arg(long, value_parser = ashlar_sim::scenario, conflicts_with_all = ["faults", "storm", "scene"])]
    scenario: Option<&'static Scenario>,
    /// Two kinds of faults within a second, in this order, instead of a swarm.
    #[arg(long, value_parser = pair, value_name = "KIND,KIND")]
    #[arg(conflicts_with_all = ["faults", "storm", "scenario", "scene"])]
    pair: Option<(FaultKind, FaultKind)>,
}

impl What {
    /// The run of a seed.
    fn options(self, seed: u64) -> Options {
        match (self.scenario, self.pair) {
            (Some(scenario), _) => Options::of_scenario(scenario, seed),
            (None, Some(pair)) => Options { stores: self.stores, ..Options::of_pair(pair, seed) },
            (None, None) => {
                let usual = Options::of_scene(self.scene, seed);
                let storm = self.storm.unwrap_or(usual.storm);
                let (kinds, stores, beyond) = (self.faults, self.stores, self.beyond);
                Options { kinds, storm, stores, beyond, ..usual }
            }
        }
    }
}

fn span(text: &str) -> Result<Duration, String> {
    ashlar_sim::parse_span(text)
        .ok_or_else(|| format!("`{text}` is not a time; write for example 10s, 2.5s or 150ms"))
}

fn pair(text: &str) -> Result<(FaultKind, FaultKind), String> {
    let (first, second) = text
        .split_once(',')
        .ok_or_else(|| format!("`{text}` is no pair; write for example isolate,stall-disk"))?;
    let kind = |name: &str| name.parse().map_err(|error: UnknownKind| error.to_string());
    Ok((kind(first)?, kind(second)?))
}

fn seed_range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let wrong = || format!("`{text}` is no range of seeds; write for example 0..1000");
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let first: u64 = first.trim().parse().map_err(|_| wrong())?;
    let end: u64 = end.trim().parse().map_err(|_| wrong())?;
    if first < end { Ok(first..end) } else { Err(wrong()) }
}

/// Runs the command.
///
/// # Errors
/// When a seed breaks a rule; the text names the seed and how to run it again.
pub(crate) fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    match command {
        Command::Run { seed, seeds, what } => {
            let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let seeds = *seed..seed.saturating_add(*seeds);
            sweep::run(&sweep::Order { seeds, jobs, what: *what, go_on: false }, output)
        }
        Command::Sweep { seeds, jobs, what } => {
            let (seeds, jobs) = (seeds.clone(), usize::from(*jobs));
            sweep::run(&sweep::Order { seeds, jobs, what: *what, go_on: true }, output)
        }
        Command::Scenarios => list(output),
        Command::Replay { seed, log, until, diff, step, shrink, what } => {
            let options = Options { digest: true, ..what.options(*seed) };
            let told = match (*step, *diff, *log || until.is_some()) {
                (true, ..) => Told::Steps,
                (_, true, _) => Told::Changes,
                (.., true) => Told::Events,
                (.., false) => Told::Nothing,
            };
            replay(options, told, *until, *shrink, output)
        }
    }
}

fn list(output: &Output) -> Result<(), Failure> {
    let all = ashlar_sim::scenarios()
        .map_err(|error| Failure::new(Kind::Error, "read the scenarios").because(error))?;
    let rows = all.iter().map(|scenario| ScenarioRow {
        name: scenario.name,
        faults: &scenario.faults,
        about: &scenario.about,
    });
    output.show(&ScenariosView { scenarios: rows.collect() })
}

/// A scenario, as it is listed.
#[derive(Debug, Serialize)]
struct ScenarioRow {
    name: &'static str,
    faults: &'static [String],
    about: &'static str,
}

#[derive(Debug, Serialize)]
struct ScenariosView {
    scenarios: Vec<ScenarioRow>,
}

impl Show for ScenariosView {
    fn table(&self) -> String {
        let row = |row: &ScenarioRow| [row.name.into(), row.faults.join(" "), row.about.into()];
        columns(["NAME", "FAULTS", "WHAT"], self.scenarios.iter().map(row))
    }
}

/// What a replay tells while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Events,
    /// Events, and what each changed.
    Changes,
    /// The same, one by one.
    Steps,
}

fn replay(
    options: Options,
    told: Told,
    until: Option<Duration>,
    shrink: bool,
    output: &Output,
) -> Result<(), Failure> {
    let command = options.replay_command();
    sweep::name_on_panic(&command);
    let print = move |at: Duration, line: &str| {
        if until.is_none_or(|until| at <= until) {
            // Standard output gone: the process ends by SIGPIPE before this matters.
            writeln!(std::io::stdout(), "{line}").ok();
        }
    };
    let outcome = match told {
        Told::Nothing => ashlar_sim::run(options),
        Told::Events => ashlar_sim::run_logged(options, print),
        Told::Changes => ashlar_sim::run_stepped(options, print),
        Told::Steps => {
            let mut stepper = step::Stepper::new();
            ashlar_sim::run_stepped(options, move |at, line| stepper.line(at, line))
        }
    };
    if outcome.violations.is_empty() {
        let mut rows: Vec<(String, String)> = vec![
            ("simulated".into(), format!("{:.1} s", outcome.simulated.as_secs_f64())),
            ("events".into(), outcome.events.to_string()),
            ("blocks written".into(), outcome.writes.to_string()),
            ("blocks read and judged".into(), outcome.reads.to_string()),
            ("digest".into(), format!("{:016x}", outcome.digest)),
        ];
        rows.extend(outcome.tally.iter().map(|(what, count)| (what.into(), count.to_string())));
        return output.show(&ReplayView { seed: options.seed, rows });
    }
    let smaller = if shrink { ashlar_sim::shrink(options, SHRINKING_RUNS_MAX) } else { options };
    Err(broken(smaller, &outcome))
}

/// The failure of a run that broke rules.
fn broken(options: Options, outcome: &ashlar_sim::Outcome) -> Failure {
    let mut failure = Failure::new(Kind::Error, format!("seed {} breaks a rule", options.seed));
    for violation in &outcome.violations {
        failure = failure.because(violation);
    }
    failure.try_next(format!("{} --log", options.replay_command()))
}

/// A replay without a failure, as it is printed.
#[derive(Debug, Serialize)]
struct ReplayView {
    seed: u64,
    rows: Vec<(String, String)>,
}

impl Show for ReplayView {
    fn table(&self) -> String {
        columns(
            ["MEASURE", "VALUE"],
            self.rows.iter().map(|(name, value)| [name.clone(), value.clone()]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_times_are_read_as_people_write_them() {
        assert_eq!(seed_range("3..7"), Ok(3..7));
        for wrong in ["7", "7..3", "7..7", "a..b", "..", "-1..4"] {
            assert!(seed_range(wrong).unwrap_err().contains("0..1000"), "{wrong}");
        }
        assert_eq!(span("1500ms"), Ok(Duration::from_millis(1_500)));
        assert_eq!(span("2.5s"), Ok(Duration::from_millis(2_500)));
        assert_eq!(pair("isolate,slow"), Ok((FaultKind::Isolate, FaultKind::Slow)));
        assert!(pair("isolate").is_err() && pair("isolate,meteor").unwrap_err().contains("meteor"));
        assert!(span("soon").unwrap_err().contains("150ms"));
    }
}
