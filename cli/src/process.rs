//! What this process asks of its host: a quiet end on broken pipes, death with its parent.
//!
//! The only file of the command line with a system call that Rust cannot check.

use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::getppid;
use tokio::signal::unix;

use crate::failure::{Failure, Kind};

/// Set by a supervisor for its children: its process number. A child ends with that process.
pub(crate) const PARENT_VARIABLE: &str = "ASHLAR_DIE_WITH_PARENT";

/// Ends quietly when the reader of standard output has gone, as in `ashlar … | head`.
///
/// Only for commands: a daemon writes to sockets, whose readers may go at any time.
pub(crate) fn end_on_broken_pipe() {
    // SAFETY: the default action runs no code of ours in the signal's context.
    #[allow(unsafe_code, reason = "Rust ignores SIGPIPE at start; a command wants the default")]
    let outcome = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // Without it a broken pipe is an error message instead of silence: not worth failing for.
    outcome.ok();
}

/// What the kernel says about the clock that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockState {
    /// Somebody (NTP, PTP, the hypervisor) keeps it right.
    pub(crate) synchronised: bool,
    /// How far it may be off, if somebody does.
    pub(crate) error_micros: u64,
}

/// Asks the kernel about its clock; changes nothing.
///
/// # Errors
/// When the kernel refuses to say, as it does in some containers.
pub(crate) fn clock_state() -> std::io::Result<ClockState> {
    // SAFETY: all fields are numbers, for which zeros are values; no field set means: only read.
    #[allow(unsafe_code, reason = "the standard library has no way to ask")]
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes into the structure that it is given, which lives until it returns.
    #[allow(unsafe_code, reason = "the standard library has no way to ask")]
    let state = unsafe { libc::adjtimex(&raw mut answer) };
    if state < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let synchronised = state != libc::TIME_ERROR && answer.status & libc::STA_UNSYNC == 0;
    Ok(ClockState { synchronised, error_micros: u64::try_from(answer.maxerror).unwrap_or(0) })
}

/// Ends this process with the supervisor that started it, however that one ends. Does nothing when
/// no supervisor started it.
pub(crate) fn die_with_parent() {
    let Some(parent): Option<i32> =
        std::env::var(PARENT_VARIABLE).ok().and_then(|text| text.parse().ok())
    else {
        return;
    };
    if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid().as_raw() != parent {
        // The parent is gone already: its death sent no signal to us.
        std::process::exit(1);
    }
}

/// Ctrl-C and SIGTERM.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl StopSignals {
    /// Takes the signals over from their default, which would end the process.
    ///
    /// # Errors
    /// When the host gives no way to listen.
    pub(crate) fn new() -> Result<Self, Failure> {
        let of = |kind| {
            unix::signal(kind)
                .map_err(|error| Failure::new(Kind::Error, "listen for signals").because(error))
        };
        Ok(Self {
            interrupt: of(unix::SignalKind::interrupt())?,
            terminate: of(unix::SignalKind::terminate())?,
        })
    }

    /// Returns at the next signal; may be dropped and called again.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The user on this host: who says what is kept on record.
pub(crate) fn operator() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}
