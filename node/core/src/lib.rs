//! Decides what a storage node does; pure (design.md sections 3 to 6).
//!
//! [`machine::NodeCore`] takes inputs and gives effects; it has no clock, no sockets, no files.
//! The shell in `node/src` and the simulator drive the same value.
#![no_std]
extern crate alloc;

pub mod durable;
pub mod gate;
pub mod line;
pub mod machine;
pub mod outbox;
pub mod peers;
pub mod record;
pub mod timing;

mod context;
mod drift;
mod found;
mod lease;
mod primary;
mod relay;
mod replica;
mod scrub;
mod search;
mod stores;

pub use context::Identity;
pub use line::{Level, Line};
pub use machine::{Input, NodeCore};
pub use outbox::{Alarm, ConnectionId, Effect, Link, Outbox, ReadTicket};
pub use peers::Process;
pub use record::{JournalSeq, Record};
pub use timing::Timing;
