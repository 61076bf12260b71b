//! Decides what a zone's control plane does; pure.
#![no_std]
extern crate alloc;
