//! CPU time of processes, as the kernel counts it: the honest cost of an operation on a small host,
//! where clients, primaries and secondaries share two cores.

use std::fs;
use std::time::Duration;

/// The kernel counts in ticks of 10 ms on every Linux that Ashlar runs on (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// CPU time of a set of processes at one moment.
#[derive(Debug, Clone, Copy)]
pub struct CpuTime(Duration);

impl CpuTime {
    /// User and system time of the processes so far; those that are gone count nothing.
    #[must_use]
    pub fn of(processes: &[u32]) -> Self {
        let ticks: u32 = processes.iter().filter_map(|process| ticks_of(*process)).sum();
        Self(TICK * ticks)
    }

    /// CPU time since an earlier moment of the same processes.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

fn ticks_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may hold anything; fields are counted from behind it (proc(5): 14, 15).
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_time_and_an_unknown_one_none() {
        let own = std::process::id();
        let before = CpuTime::of(&[own]);
        let mut sum = 0_u64;
        while CpuTime::of(&[own]).since(before) < TICK * 3 {
            sum = (0..100_000).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        assert_ne!(sum, 1);
        assert_eq!(CpuTime::of(&[u32::MAX]).0, Duration::ZERO);
    }
}
