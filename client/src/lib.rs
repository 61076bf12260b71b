//! Volumes for programs and hosts: library, attach daemon, NBD, FUSE, mount (design.md section 11).
//!
//! [`Volume`] is the library. [`device::BlockDevice`] is what exports use. Decisions (order of
//! writes, routing, resending, fencing, the NBD protocol) are in `ashlar-client-core`; this crate
//! has the sockets, files and threads.

mod bytewise;
mod connection;
pub mod control;
pub mod daemon;
pub mod device;
pub mod export;
pub mod mount;
mod task;
pub mod volume;

pub use ashlar_client_core::{VolumeStatus, WaitPolicy};
pub use task::Whereabouts;
pub use volume::{Attachment, Volume, VolumeOptions};
