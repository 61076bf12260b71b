//! What the tests of real processes share: a cluster that is started, hurt, and judged from outside.
//!
//! Everything here uses the binary as a user does: command line, sockets, files, signals. No test
//! looks into a process. Sizes are those of CI unless `ASHLAR_NIGHTLY=1`. A test that lacks a
//! privilege or a tool prints `SKIP` and why; with `ASHLAR_CI=1` that is a failure instead.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a test's harness: it ends the test by a panic, and says why on standard error"
)]

pub mod binary;
pub mod cluster;
pub mod history;
pub mod needs;
pub mod netns;
pub mod tree;
pub mod wait;
pub mod writer;

/// The nightly size instead of CI's, if that is asked for.
#[must_use]
pub fn sized<T>(ci: T, nightly: T) -> T {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { nightly } else { ci }
}
