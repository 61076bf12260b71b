//! io_uring for the batch engine, by hand: fill the ring, wait for all.
//!
//! No registered buffers, no polling thread: for batches of 32 blocks they gained nothing that could
//! be measured. A short or interrupted operation is finished with a plain call.
#![allow(unsafe_code, reason = "submission needs the promise that buffers outlive the operation")]

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

use super::DiskError;
use super::engine::{BATCH_DEPTH, IoKind, IoOp};

/// One ring; used by one thread at a time.
pub struct Uring {
    ring: IoUring,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Uring")
    }
}

impl Uring {
    /// Sets a ring up; an error means that the kernel or the sandbox refuses it.
    pub(super) fn start() -> io::Result<Self> {
        let ring = IoUring::new(BATCH_DEPTH)?;
        // Some sandboxes allow the set-up and refuse the entry: ask for an empty submission.
        ring.submit()?;
        Ok(Self { ring })
    }

    /// Carries out all operations; see [`super::IoEngine::run`].
    pub(super) fn run(&mut self, mut ops: Vec<IoOp>) -> Vec<IoOp> {
        let mut next = 0usize;
        let mut in_flight = 0usize;
        loop {
            while in_flight < BATCH_DEPTH as usize {
                let Some(op) = ops.get_mut(next) else { break };
                if self.push(op, next) {
                    in_flight += 1;
                }
                next += 1;
            }
            if in_flight == 0 && next >= ops.len() {
                return ops;
            }
            self.wait(in_flight);
            let done: Vec<(usize, i32)> = self
                .ring
                .completion()
                .map(|c| (usize::try_from(c.user_data()).unwrap_or(usize::MAX), c.result()))
                .collect();
            for (index, result) in done {
                in_flight -= 1;
                if let Some(op) = ops.get_mut(index) {
                    finish(op, result);
                }
            }
        }
    }

    /// Queues one operation; false when it was carried out inline or refused instead.
    fn push(&mut self, op: &mut IoOp, index: usize) -> bool {
        let Some(fd) = op.file.fd().map(|fd| types::Fd(fd.as_raw_fd())) else {
            op.run_inline();
            return false;
        };
        let (Ok(len), Some(part)) = (u32::try_from(op.len), op.buf.get_mut(..op.len)) else {
            // Sets the typed error.
            op.finish_from(usize::MAX);
            return false;
        };
        let entry = match op.kind {
            IoKind::Read => opcode::Read::new(fd, part.as_mut_ptr(), len).offset(op.offset).build(),
            IoKind::Write => opcode::Write::new(fd, part.as_ptr(), len).offset(op.offset).build(),
        };
        let entry = entry.user_data(u64::try_from(index).unwrap_or(u64::MAX));
        // SAFETY: buffer and descriptor belong to `op`, which `run` keeps until the operation's
        // completion has been seen; moving the Vec of operations does not move the heap buffers.
        let queued = unsafe { self.ring.submission().push(&entry) };
        if queued.is_err() {
            op.run_inline();
            return false;
        }
        true
    }

    /// Submits and waits until at least half of what is in flight is done (all at the end), so that
    /// a long batch costs one system call per 16 operations and never runs the disk dry.
    fn wait(&mut self, in_flight: usize) {
        let want = in_flight.div_ceil(2);
        while let Err(e) = self.ring.submit_and_wait(want) {
            // Leaving with operations in flight would free memory the kernel still writes to.
            match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => {
                    tracing::error!(error = %e, "io_uring_enter failed; the process ends");
                    std::process::abort();
                }
            }
        }
    }
}

/// Turns a completion into the operation's result.
fn finish(op: &mut IoOp, result: i32) {
    match usize::try_from(result) {
        Ok(n) if n == op.len => op.result = Ok(()),
        Ok(0) if op.kind == IoKind::Read => {
            op.result = Err(DiskError::PastEnd {
                name: op.file.name().to_owned(),
                offset: op.offset,
                len: op.len,
            });
        }
        Ok(n) => op.finish_from(n),
        Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => op.run_inline(),
        Err(_) => {
            let what = match op.kind {
                IoKind::Read => "read",
                IoKind::Write => "write",
            };
            let e = io::Error::from_raw_os_error(-result);
            op.result = Err(super::direct::io_error(what, op.file.name(), &e));
        }
    }
}
