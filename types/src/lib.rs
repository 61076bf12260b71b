//! The vocabulary of Ashlar: ids, units, limits, messages, errors; no I/O.
#![no_std]
extern crate alloc;
