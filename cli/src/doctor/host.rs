//! Checks of this host: what daemons and mounts need of its kernel, its limits and its clock.
//!
//! Facts come from `/proc`, `/sys` and harmless system calls; each check is a function of the facts,
//! so that both of its outcomes are tested.

use std::fs::{self, OpenOptions};
use std::path::Path;

use ashlar_env::disk::{EngineChoice, IoEngine};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::Check;
use crate::process::{self, ClockState};
use crate::size;

const HOST: &str = "host";

/// What CI and every measurement of the project ran on or above; older ones were never tried.
const KERNEL_TRIED: (u32, u32) = (5, 10);

/// A node has a connection to every client of its volumes and two to every peer.
const OPEN_FILES_WANTED: u64 = 4096;

/// A member, a node and a client with their queues full, side by side.
const MEMORY_WANTED_BYTES: u64 = 512 << 20;

/// Waiting of so many of a hundred seconds makes ticks late: leases lapse, peers look slow.
const PRESSURE_MAX_PERCENT: f64 = 40.0;

/// Of the connections that a firewall tracks; above it new ones are dropped soon.
const CONNTRACK_MAX_PERCENT: u64 = 80;

/// All checks of the host.
pub(super) fn checks() -> Vec<Check> {
    let is_root = nix::unistd::geteuid().is_root();
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let limit = |resource| getrlimit(resource).map_or(0, |(soft, _)| soft);
    vec![
        kernel(text("/proc/sys/kernel/osrelease").trim()),
        engine(IoEngine::start(EngineChoice::Auto).map(|engine| engine.name())),
        fuse(opens("/dev/fuse"), is_root, in_path("fusermount3")),
        loop_devices(is_root, opens("/dev/loop-control")),
        nbd(Path::new("/sys/module/nbd").exists()),
        mount_tools(
            &["mount", "umount", "mkfs.ext4", "mkfs.xfs"].map(|tool| (tool, in_path(tool))),
        ),
        memory_lock(limit(Resource::RLIMIT_MEMLOCK), is_root),
        open_files(limit(Resource::RLIMIT_NOFILE)),
        memory(&text("/proc/meminfo")),
        swap(&text("/proc/swaps")),
        clock(process::clock_state()),
        clock_source(&text("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        pressure("HOST_CPU_PRESSURE", "processors", &text("/proc/pressure/cpu")),
        pressure("HOST_IO_PRESSURE", "disks", &text("/proc/pressure/io")),
        tracked_connections(
            &text("/proc/sys/net/netfilter/nf_conntrack_count"),
            &text("/proc/sys/net/netfilter/nf_conntrack_max"),
        ),
    ]
}

fn opens(path: &str) -> bool {
    OpenOptions::new().read(true).write(true).open(path).is_ok()
}

/// Also where administrators' programs are, which not every user's path names.
fn in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|folder| folder.join(tool).exists())
}

fn kernel(release: &str) -> Check {
    let code = "HOST_KERNEL";
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::skipped(code, HOST, format!("`{release}` is no version of Linux"));
    };
    if (major, minor) >= KERNEL_TRIED {
        return Check::ok(code, HOST, format!("Linux {release}"));
    }
    let (major, minor) = KERNEL_TRIED;
    let remedy = format!("run Linux {major}.{minor} or newer: older ones were never tried");
    Check::warning(code, HOST, format!("Linux {release}"), remedy)
}

fn engine(started: Result<&'static str, impl std::fmt::Display>) -> Check {
    let code = "HOST_IO_ENGINE";
    match started {
        Ok("uring") => Check::ok(code, HOST, "disks are served by io_uring"),
        Ok(other) => Check::warning(
            code,
            HOST,
            format!("the kernel gives no io_uring; nodes use {other}, which costs more per write"),
            "sysctl kernel.io_uring_disabled=0, and allow it where a container forbids it",
        ),
        Err(error) => Check::failure(
            code,
            HOST,
            format!("no way to serve disks: {error}"),
            "allow threads and io_uring to this user (ulimit -u, container profile)",
        ),
    }
}

fn fuse(opens: bool, is_root: bool, has_helper: bool) -> Check {
    let code = "HOST_FUSE";
    match (opens, is_root || has_helper) {
        (true, true) => Check::ok(code, HOST, "/dev/fuse opens"),
        (true, false) => Check::warning(
            code,
            HOST,
            "/dev/fuse opens, but who is not root needs fusermount3",
            "install fuse3; without it volumes are attached by NBD only",
        ),
        (false, _) => Check::warning(
            code,
            HOST,
            "/dev/fuse does not open: volumes are attached by NBD only, and not mounted",
            "modprobe fuse, and give this user or container the device",
        ),
    }
}

fn loop_devices(is_root: bool, opens: bool) -> Check {
    let code = "HOST_LOOP";
    match (is_root, opens) {
        (_, true) => Check::ok(code, HOST, "/dev/loop-control opens"),
        (false, false) => Check::skipped(code, HOST, "mounting needs root, and this user is not"),
        (true, false) => Check::warning(
            code,
            HOST,
            "/dev/loop-control does not open: `ashlar mount` does not work here",
            "modprobe loop, and give the container the device",
        ),
    }
}

fn nbd(loaded: bool) -> Check {
    let code = "HOST_NBD";
    if loaded {
        return Check::ok(code, HOST, "the module nbd is loaded");
    }
    let why =
        "the module nbd is not loaded; only `nbd-client` on this host needs it (modprobe nbd)";
    Check::skipped(code, HOST, why)
}

fn mount_tools(tools: &[(&str, bool)]) -> Check {
    let code = "HOST_MOUNT_TOOLS";
    let missing: Vec<&str> =
        tools.iter().filter(|(_, there)| !there).map(|(tool, _)| *tool).collect();
    if missing.is_empty() {
        return Check::ok(code, HOST, "file systems can be made and mounted");
    }
    Check::warning(
        code,
        HOST,
        format!("not found: {}", missing.join(", ")),
        "install mount, e2fsprogs and xfsprogs, as far as volumes are mounted here",
    )
}

fn memory_lock(limit: u64, is_root: bool) -> Check {
    let code = "HOST_MEMORY_LOCK";
    if limit == RLIM_INFINITY || is_root {
        return Check::ok(code, HOST, "attach daemons can lock their memory");
    }
    Check::warning(
        code,
        HOST,
        format!(
            "at most {} may be locked, so attach daemons lock nothing: a host short of memory can \
             wait for a daemon that waits for memory",
            size::show(limit)
        ),
        "ulimit -l unlimited (LimitMEMLOCK=infinity in a unit)",
    )
}

fn open_files(limit: u64) -> Check {
    let code = "HOST_OPEN_FILES";
    if limit >= OPEN_FILES_WANTED {
        return Check::ok(code, HOST, format!("{limit} files may be open"));
    }
    Check::warning(
        code,
        HOST,
        format!("{limit} files may be open; a node of a large zone needs more connections"),
        format!("ulimit -n {OPEN_FILES_WANTED} or more (LimitNOFILE= in a unit)"),
    )
}

fn memory(meminfo: &str) -> Check {
    let code = "HOST_MEMORY";
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let Some(available) = kibibytes.map(|count| count << 10) else {
        return Check::skipped(code, HOST, "/proc/meminfo does not say");
    };
    let found = format!("{} available", size::show(available));
    if available >= MEMORY_WANTED_BYTES {
        return Check::ok(code, HOST, found);
    }
    let remedy = format!("free memory: {} should be left", size::show(MEMORY_WANTED_BYTES));
    Check::warning(code, HOST, found, remedy)
}

fn swap(swaps: &str) -> Check {
    let code = "HOST_SWAP";
    let places: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if places.is_empty() {
        return Check::ok(code, HOST, "no swap");
    }
    Check::warning(
        code,
        HOST,
        format!("swap on {}: a node that is swapped out misses its beats", places.join(", ")),
        "swapoff -a, or MemorySwapMax=0 in the units of nodes and members",
    )
}

fn clock(state: Result<ClockState, impl std::fmt::Display>) -> Check {
    let code = "HOST_CLOCK_SYNC";
    match state {
        Ok(ClockState { synchronised: true, error_micros }) => {
            Check::ok(code, HOST, format!("synchronised, within {} ms", error_micros / 1000))
        }
        Ok(ClockState { synchronised: false, .. }) => Check::warning(
            code,
            HOST,
            "nothing keeps the clock right; tokens and the times in records follow it",
            "run chrony or systemd-timesyncd (timedatectl set-ntp true)",
        ),
        Err(error) => Check::skipped(code, HOST, format!("the kernel does not say: {error}")),
    }
}

fn clock_source(name: &str) -> Check {
    let code = "HOST_CLOCK_SOURCE";
    match name.trim() {
        "" => Check::skipped(code, HOST, "the kernel does not name it"),
        slow @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies") => Check::warning(
            code,
            HOST,
            format!("{slow}: reading the time is a system call, or too coarse for leases"),
            "boot with a stable TSC (or kvm-clock in a guest)",
        ),
        fast => Check::ok(code, HOST, fast),
    }
}

/// `some avg10=0.00 avg60=1.50 ...`
fn pressure(code: &'static str, of: &str, text: &str) -> Check {
    let some = text.lines().find(|line| line.starts_with("some"));
    let average =
        some.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("avg60=")));
    let Some(percent) = average.and_then(|text| text.parse::<f64>().ok()) else {
        return Check::skipped(code, HOST, "the kernel does not measure pressure");
    };
    let found = format!("tasks waited for {of} {percent:.0} % of the last minute");
    if percent <= PRESSURE_MAX_PERCENT {
        return Check::ok(code, HOST, found);
    }
    Check::warning(code, HOST, found, "move work away: nodes that tick late lose their leases")
}

fn tracked_connections(count: &str, most: &str) -> Check {
    let code = "HOST_CONNTRACK";
    let (Ok(count), Ok(most)) = (count.trim().parse::<u64>(), most.trim().parse::<u64>()) else {
        return Check::ok(code, HOST, "connections are not tracked");
    };
    let found = format!("{count} of {most} connections tracked");
    if count.saturating_mul(100) <= most.saturating_mul(CONNTRACK_MAX_PERCENT) {
        return Check::ok(code, HOST, found);
    }
    let remedy = "raise net.netfilter.nf_conntrack_max, or do not track the zone's ports";
    Check::warning(code, HOST, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{self, Failure, Ok as Fine, Skipped, Warning};
    use super::*;

    #[test]
    fn a_kernel_is_judged_by_its_numbers() {
        for (release, wanted) in [
            ("6.1.0-18-amd64", Fine),
            ("5.10.0", Fine),
            ("5.4.0-1.el8", Warning),
            ("4.19", Warning),
            ("plan9", Skipped),
        ] {
            assert_eq!(kernel(release).outcome(), wanted, "{release}");
        }
    }

    #[test]
    fn engines_devices_and_tools_are_judged_by_what_is_there() {
        assert_eq!(engine(Ok::<_, String>("uring")).outcome(), Fine);
        assert_eq!(engine(Ok::<_, String>("threads")).outcome(), Warning);
        assert_eq!(engine(Err("no threads")).outcome(), Failure);
        assert_eq!(fuse(true, false, true).outcome(), Fine);
        assert_eq!(fuse(true, false, false).outcome(), Warning);
        assert_eq!(fuse(false, true, true).outcome(), Warning);
        assert_eq!(loop_devices(true, true).outcome(), Fine);
        assert_eq!(loop_devices(true, false).outcome(), Warning);
        assert_eq!(loop_devices(false, false).outcome(), Skipped);
        assert_eq!((nbd(true).outcome(), nbd(false).outcome()), (Fine, Skipped));
        assert_eq!(mount_tools(&[("mount", true)]).outcome(), Fine);
        assert!(mount_tools(&[("mount", true), ("mkfs.xfs", false)]).found.contains("mkfs.xfs"));
    }

    #[test]
    fn limits_and_memory_are_judged_by_what_is_wanted() {
        assert_eq!(memory_lock(8 << 20, false).outcome(), Warning);
        assert_eq!(memory_lock(8 << 20, true).outcome(), Fine);
        assert_eq!(memory_lock(RLIM_INFINITY, false).outcome(), Fine);
        assert_eq!(open_files(1024).outcome(), Warning);
        assert_eq!(open_files(4096).outcome(), Fine);
        let of =
            |kibibytes: u64| memory(&format!("MemTotal: 1 kB\nMemAvailable:  {kibibytes} kB\n"));
        assert_eq!(of(4 << 20).outcome(), Fine);
        assert_eq!(of(1 << 10).outcome(), Warning);
        assert_eq!(memory("").outcome(), Skipped);
        assert_eq!(swap("Filename Type\n").outcome(), Fine);
        assert_eq!(swap("Filename Type\n/dev/sda2 partition\n").outcome(), Warning);
    }

    #[test]
    fn clocks_are_judged_by_the_kernels_word() {
        let state = |synchronised| Ok::<_, String>(ClockState { synchronised, error_micros: 9 });
        assert_eq!(clock(state(true)).outcome(), Fine);
        assert_eq!(clock(state(false)).outcome(), Warning);
        assert_eq!(clock(Err("not allowed")).outcome(), Skipped);
        assert_eq!(clock_source("tsc\n").outcome(), Fine);
        assert_eq!(clock_source("acpi_pm\n").outcome(), Warning);
    }

    #[test]
    fn pressure_and_tracked_connections_have_a_limit() {
        let of = |text: &str| -> Outcome { pressure("X", "disks", text).outcome() };
        assert_eq!(of("some avg10=90.00 avg60=3.10 avg300=1.00 total=1\nfull avg60=99.0"), Fine);
        assert_eq!(of("some avg10=1.00 avg60=73.10 avg300=1.00 total=1"), Warning);
        assert_eq!(of(""), Skipped);
        assert_eq!(tracked_connections("", "").outcome(), Fine);
        assert_eq!(tracked_connections("10\n", "100\n").outcome(), Fine);
        assert_eq!(tracked_connections("90\n", "100\n").outcome(), Warning);
    }
}
