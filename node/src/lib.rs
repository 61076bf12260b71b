//! A storage node: its store, its networks, and the task that drives its core.
//!
//! What is decided is decided in `ashlar-node-core`; this crate does it. One task owns the machine
//! ([`run_until`]); readers, diallers and the stream to the control plane hand it batches.

pub mod config;
pub mod store;

mod admission;
mod beats;
mod control;
mod door;
mod hint;
mod known_members;
mod known_peers;
mod log_line;
mod mailbox;
mod net;
mod post;
mod revoked;
mod seam;
mod seat;
mod server;
mod stores;
mod task;

pub use config::{Config, ConfigError};
pub use server::{RunError, Twins, run_blocking, run_until};
