//! Decides what a storage node does; pure.

#![no_std]
extern crate alloc;

pub mod durable;
pub mod record;
