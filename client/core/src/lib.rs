//! Decides what a client does with a volume; pure.
#![no_std]
extern crate alloc;
