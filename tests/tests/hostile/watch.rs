//! What a process holds, and whether it came to hold more.

use nix::unistd::Pid;
use std::fs;

/// How much memory a process may have gained: its allocator keeps what it had to give once. The
/// warm-up brought every kind to every door many times, so a leak of 1 KiB per case is above it.
pub(crate) const GROWTH_MAX_KIB: u64 = 24 << 10;
/// How many descriptors it may have gained: nodes dial each other again now and then.
pub(crate) const DESCRIPTORS_MORE_MAX: usize = 16;

/// What one process holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: usize,
}

/// What a process holds now; none when there is no such process.
pub(crate) fn held(pid: Pid) -> Option<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let resident_kib = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(Held { resident_kib, descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() })
}

/// Why a process that held `before` and now holds `now` has grown; none if it has not.
pub(crate) fn growth(before: Held, now: Held) -> Option<String> {
    let memory_grew = now.resident_kib > before.resident_kib + GROWTH_MAX_KIB;
    let descriptors_grew = now.descriptors > before.descriptors + DESCRIPTORS_MORE_MAX;
    (memory_grew || descriptors_grew).then(|| format!("from {before:?} to {now:?}"))
}

#[test]
fn the_judge_sees_memory_and_descriptors_that_leak() {
    let me = Pid::this();
    let before = held(me).unwrap();
    assert_eq!(growth(before, before), None);
    let bytes = usize::try_from(2 * (GROWTH_MAX_KIB << 10)).unwrap();
    let leaked = vec![std::hint::black_box(1_u8); bytes];
    assert!(growth(before, held(me).unwrap()).is_some(), "{} bytes unseen", leaked.len());
    drop(leaked);
    let open: Vec<_> =
        (0..2 * DESCRIPTORS_MORE_MAX).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    let now = Held { resident_kib: before.resident_kib, ..held(me).unwrap() };
    assert!(growth(before, now).is_some(), "{} descriptors unseen", open.len());
}
