//! Decides what a client does with a volume; pure (design.md sections 4, 11, 13).
//!
//! [`VolumeCore`] splits requests over chunks, orders overlapping writes, finds the primary of a
//! chunk, sends again what was not acknowledged, and ends for good when it is fenced.
//! [`nbd_wire`] reads and writes the NBD protocol.
//!
//! It opens nothing, waits for nothing, reads no clock and rolls no dice: see the shell
//! (`ashlar-client`) and the simulator, which drive the same values.
//! Path of a write: client 3 of 9.
#![no_std]
extern crate alloc;

mod check;
mod input;
mod link;
#[cfg(test)]
mod model;
pub mod nbd_wire;
mod op;
mod order;
mod reply;
mod route;
mod slab;
mod submit;
mod tick;
mod volume;

pub use input::{
    Done, Effect, Fence, Input, OpError, OpId, Outbox, PARTS_MAX, PARTS_PER_REQUEST_MAX, Payload,
    ReadPiece, Request, VolumeSettings, WaitPolicy,
};
pub use volume::{Dice, VolumeCore, VolumeStatus};
