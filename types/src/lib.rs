//! The vocabulary of Ashlar (design.md section 1): ids, units, limits, chunk configurations,
//! messages and backoff arithmetic.
//!
//! Decides nothing and does nothing: no I/O, no clock, no dice. Every other crate speaks in these
//! words, so a word here is the same word in code, logs, metrics, CLI and docs.
#![no_std]
extern crate alloc;

pub mod backoff;
pub mod blocks;
pub mod codec;
pub mod config;
pub mod epoch;
pub mod geometry;
pub mod id;
pub mod limit;
pub mod message;
pub mod time;

pub use blocks::{BLOCK_SIZE, BlockData, BlockDataError, BlockRange, Sums};
pub use config::{ChunkConfig, ConfigError, StaleInfo};
pub use epoch::{ControlTerm, Epoch, Generation, Lsn, SessionId, StartNumber, Term};
pub use geometry::{ChunkPart, Geometry, GeometryError};
pub use id::{
    ChunkId, ChunkIndex, IdError, Incarnation, NodeId, ReplicaId, RequestId, StoreId, VolumeId,
    ZoneId,
};
pub use time::Time;
