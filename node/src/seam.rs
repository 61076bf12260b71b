//! What the parts that several threads share are made of: locks, conditions, atomics, threads.
//!
//! These sources use them from here and nowhere else, so that `tests/races.rs` can compile the same
//! sources over the locks of `shuttle`, which tries orders of threads instead of waiting for them.

pub(crate) use ashlar_env::task::spawn_thread;
pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
pub(crate) use std::thread::JoinHandle;
