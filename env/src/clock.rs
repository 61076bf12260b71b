//! The clock seam: one monotonic reading that counts through suspend, and wall time for people.
//!
//! Leases are computed from [`Clock::now_nanos`] alone (CLOCK_BOOTTIME, design 4.4): a machine that
//! slept has lost its leases. Wall time only labels what people read; nothing is decided by it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Reads time. Cheap (a vDSO call); shells still read it once per batch, not once per request.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Nanoseconds since an arbitrary origin of this boot; never goes back, counts suspend.
    fn now_nanos(&self) -> u64;

    /// Milliseconds since the Unix epoch. May jump either way; for display and records only.
    fn wall_millis(&self) -> u64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_nanos(&self) -> u64 {
        // The call can fail only for a clock the kernel lacks; CLOCK_BOOTTIME is in every kernel
        // since 2.6.39. Zero is then a reading under which every lease has expired.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
            let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
            let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
            seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
        })
    }

    fn wall_millis(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|d| u64::try_from(d.as_millis()).ok())
            .unwrap_or(0)
    }
}

/// A clock that moves only when told to: for tests and the simulator.
#[derive(Debug, Default)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `nanos`.
    #[must_use]
    pub fn new(nanos: u64) -> Self {
        Self { nanos: AtomicU64::new(nanos) }
    }

    /// Moves the clock forward by `nanos`.
    pub fn advance(&self, nanos: u64) {
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_nanos(&self) -> u64 {
        self.nanos.load(Ordering::Relaxed)
    }

    fn wall_millis(&self) -> u64 {
        self.now_nanos() / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clock_does_not_go_back() {
        let clock = SystemClock;
        let mut last = clock.now_nanos();
        assert!(last > 0);
        for _ in 0..1000 {
            let now = clock.now_nanos();
            assert!(now >= last);
            last = now;
        }
        assert!(clock.wall_millis() > 1_600_000_000_000);
    }

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(5);
        assert_eq!(clock.now_nanos(), 5);
        clock.advance(2_000_000);
        assert_eq!(clock.now_nanos(), 2_000_005);
        assert_eq!(clock.wall_millis(), 2);
    }
}
