//! What the gate before other zones is locked with.
//!
//! It uses the lock from here, so that `tests/races.rs` can compile the same source over the one of
//! `shuttle`, which tries orders of threads instead of waiting for them.

pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};
