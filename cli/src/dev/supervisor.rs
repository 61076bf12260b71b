//! Starts the processes of a cluster, starts them again when they end, and stops them in order.
//!
//! Each process is this binary with another command line, in a process group of its own, so that
//! Ctrl-C in a terminal reaches `dev` alone, which then stops the others in their order. All of them
//! die with `dev` (`process::die_with_parent`). Deliberately not a service manager: no dependency
//! between processes, no restart limit; a process that keeps failing is tried at growing intervals
//! and its log says why.

use std::fs::{self, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::Layout;
use crate::failure::{Failure, Kind};
use crate::process::PARENT_VARIABLE;

/// How often processes are looked at. A tenth of the shortest pause anybody measures here.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// First wait before a process is started again; doubled at each failure in a row.
const RESTART_WAIT_FIRST: Duration = Duration::from_millis(250);

/// Longest wait before a process is started again.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(5);

/// A process that lived this long starts its waits afresh.
const STEADY_AFTER: Duration = Duration::from_secs(10);

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A process that ends so often in a row while the cluster starts will not come up by waiting.
const FAILURES_AT_START_MAX: u32 = 4;

/// Lines of a failing process's log that are shown.
const LOG_LINES: usize = 3;

/// One supervised process.
#[derive(Debug)]
struct Process {
    name: String,
    arguments: Vec<String>,
    child: Option<Child>,
    started: Instant,
    start_again_at: Option<Instant>,
    wait: Duration,
    /// Ends in a row, none of them after a steady life.
    failures: u32,
}

/// The processes of one cluster.
#[derive(Debug)]
pub(crate) struct Supervisor {
    layout: Layout,
    processes: Vec<Process>,
}

impl Supervisor {
    /// Supervises nothing yet.
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, processes: Vec::new() }
    }

    /// Starts this binary with `arguments` under the name `name`, and keeps it running.
    ///
    /// # Errors
    /// When the process cannot be started at all.
    pub(crate) fn start(&mut self, name: &str, arguments: Vec<String>) -> anyhow::Result<()> {
        let mut process = Process {
            name: name.to_owned(),
            arguments,
            child: None,
            started: Instant::now(),
            start_again_at: None,
            wait: RESTART_WAIT_FIRST,
            failures: 0,
        };
        if !self.layout.hold(name).exists() {
            process.spawn(&self.layout)?;
        }
        self.processes.push(process);
        Ok(())
    }

    /// Looks at the processes until it is dropped. Safe to drop at any time. With `starting` it ends
    /// when a process does not come up; without, never.
    pub(crate) async fn watch(&mut self, starting: bool) -> Failure {
        loop {
            self.look(Instant::now());
            let hopeless = |process: &&Process| process.failures >= FAILURES_AT_START_MAX;
            if starting && let Some(process) = self.processes.iter().find(hopeless) {
                return process.hopeless(&self.layout);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look(&mut self, now: Instant) {
        for process in &mut self.processes {
            process.look(now, &self.layout);
        }
    }

    /// Ends all processes, the last started first; those of one kind (nodes) at the same time.
    pub(crate) fn stop_all(&mut self) {
        while let Some(kind) = self.processes.last().map(|process| process.kind().to_owned()) {
            let (mut ending, staying): (Vec<Process>, Vec<Process>) =
                self.processes.drain(..).partition(|process| process.kind() == kind);
            self.processes = staying;
            for process in &mut ending {
                process.terminate();
            }
            let deadline = Instant::now() + STOP_WITHIN;
            for process in &mut ending {
                process.reap(deadline, &self.layout);
            }
        }
    }
}

impl Process {
    /// The command that it runs: all nodes are of one kind, whatever their zone.
    fn kind(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }

    fn spawn(&mut self, layout: &Layout) -> anyhow::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(layout.log(&self.name))
            .with_context(|| format!("open the log of {}", self.name))?;
        let own = std::env::current_exe().context("find this binary")?;
        let child = Command::new(own)
            .args(&self.arguments)
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        // For people and tests that want to send a signal; nothing here depends on it.
        drop(fs::write(layout.pid(&self.name), child.id().to_string()));
        self.child = Some(child);
        self.started = Instant::now();
        self.start_again_at = None;
        Ok(())
    }

    fn look(&mut self, now: Instant, layout: &Layout) {
        if let Some(child) = &mut self.child {
            if let Ok(Some(status)) = child.try_wait() {
                self.on_ended(status, now, layout);
            }
            return;
        }
        let due = self.start_again_at.is_none_or(|at| now >= at);
        if due && !layout.hold(&self.name).exists() {
            if let Err(error) = self.spawn(layout) {
                tracing::warn!("{}: {error:#}", self.name);
                self.start_again_at = Some(now + self.wait);
            } else {
                tracing::info!("{} started", self.name);
            }
        }
    }

    fn on_ended(&mut self, status: ExitStatus, now: Instant, layout: &Layout) {
        self.child = None;
        drop(fs::remove_file(layout.pid(&self.name)));
        if layout.hold(&self.name).exists() {
            tracing::info!("{} stopped ({})", self.name, describe(status));
            return;
        }
        let steady = now.saturating_duration_since(self.started) >= STEADY_AFTER;
        self.failures = if steady { 1 } else { self.failures.saturating_add(1) };
        self.wait = if steady { RESTART_WAIT_FIRST } else { (self.wait * 2).min(RESTART_WAIT_MAX) };
        self.start_again_at = Some(now + self.wait);
        tracing::warn!(
            "{} ended ({}); starting it again in {} ms; its log: {}",
            self.name,
            describe(status),
            self.wait.as_millis(),
            layout.log(&self.name).display()
        );
    }

    fn hopeless(&self, layout: &Layout) -> Failure {
        let log = layout.log(&self.name);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let mut last: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
        last.reverse();
        Failure::new(Kind::Error, format!("start {}", self.name))
            .because(format!("it ended {} times in a row; its last words:", self.failures))
            .because(last.join("\n       "))
            .try_next(format!("look at {}", log.display()))
    }

    fn terminate(&mut self) {
        if let Some(pid) = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()) {
            // Already gone is as good as told to go.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
    }

    /// Waits for the end; kills at the deadline.
    fn reap(&mut self, deadline: Instant, layout: &Layout) {
        let Some(mut child) = self.child.take() else { return };
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        if matches!(child.try_wait(), Ok(None)) {
            tracing::warn!("{} did not end in time; killing it", self.name);
            drop(child.kill());
        }
        drop(child.wait());
        drop(fs::remove_file(layout.pid(&self.name)));
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}
