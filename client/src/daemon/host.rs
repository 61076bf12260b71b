//! What the daemon asks of the host so that a host short of memory cannot deadlock on it: pages
//! for its writes need its own progress. Best effort: without the rights it runs as it is.

use std::io;

const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// Lock pages as they are touched, not whole reservations (thread stacks).
const MCL_ONFAULT: libc::c_int = 4;

/// Locks memory and marks the process as one that the kernel writes through.
pub(super) fn prepare() {
    if let Err(error) = set_io_flusher() {
        tracing::info!(%error, "not marked as an I/O flusher");
    }
    if let Err(error) = lock_memory() {
        tracing::info!(%error, "memory is not locked");
    }
}

fn set_io_flusher() -> io::Result<()> {
    #[allow(unsafe_code, reason = "a prctl that nix does not have")]
    // SAFETY: this prctl takes numbers only and changes a flag of the calling thread.
    let done = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1_u64, 0_u64, 0_u64, 0_u64) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn lock_memory() -> io::Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    // Under a limit, later allocations would fail: worse than pages that may be written out.
    if soft != RLIM_INFINITY && !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("RLIMIT_MEMLOCK is not unlimited"));
    }
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | MCL_ONFAULT;
    #[allow(unsafe_code, reason = "nix knows no MCL_ONFAULT")]
    // SAFETY: mlockall takes flags only; it changes no memory content.
    let done = unsafe { libc::mlockall(flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
