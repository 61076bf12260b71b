//! raft-rs as a synchronous machine with injected dice.
//!
//! Input goes in by [`Driver::tick`], [`Driver::step`], [`Driver::propose`]; then
//! [`Driver::settle`] persists what Raft wants persisted and only after that releases messages and
//! committed entries. No threads, no clock, no randomness of its own: the same inputs and the same
//! dice give the same bytes. raft-rs needs std and rolls dice of its own; [`driver`] says how
//! these are replaced.
//!
//! What it does not know: what the entries mean, how messages travel, when to compact.

pub mod driver;
mod logger;
mod message;
mod snapshot;
mod storage;

pub use driver::{
    ChangeError, Committed, Driver, DriverError, Memory, Outbox, ProposeError, RaftOptions,
    RaftStatus,
};
pub use message::{MemberChange, MessageError, PAYLOAD_VERSION};
pub use storage::{Start, StorageError};

#[cfg(test)]
mod tests;
