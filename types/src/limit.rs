//! Every limit in one place, with its relations checked when the code is compiled.
//!
//! Sizes in blocks are of [`crate::BLOCK_SIZE`] bytes.

use crate::blocks::BLOCK_SIZE;

/// Smallest chunk a volume may have outside tests, in bytes: fewer chunks, fewer beats.
pub const CHUNK_BYTES_MIN: u64 = 64 << 20;
/// Smallest chunk that the protocol can handle at all, in bytes: for simulation, and for zones whose
/// configuration says that they are for tests (`small_chunks`).
pub const CHUNK_BYTES_FLOOR: u64 = 64 << 10;
/// Most chunks that a volume starts with (design.md section 3).
pub const CHUNKS_AT_CREATION_MAX: u64 = 1_024;
/// Most chunks that a volume may grow to.
pub const CHUNKS_MAX: u64 = 65_536;
/// Most chunks that a volume grows by at a time: they are one entry of the log, of some 100 bytes each,
/// which stays below half of a Raft message.
pub const GROWTH_CHUNKS_MAX: u64 = 4_096;
/// Largest volume, in bytes: 64 TiB keeps a chunk below 64 GiB and so block numbers in 32 bits.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Most blocks with data in one request, mirror or copy frame (1 MiB). Twice as much would double
/// the memory that one slow connection can hold.
pub const IO_BLOCKS_MAX: u32 = 256;
/// Bytes of data in the largest frame.
pub const IO_BYTES_MAX: usize = IO_BLOCKS_MAX as usize * BLOCK_SIZE;
/// Most requests that one client connection may have unanswered at a node.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 1_024;
/// Most replicas of one chunk, of all kinds together, in a configuration.
pub const REPLICAS_PER_CHUNK_MAX: usize = 16;
/// Most ranges that an opening of a term may name. In-flight writes of a primary are bounded by
/// this, so that the union of what the members do not know to be committed fits in one record.
pub const UNCOMMITTED_RANGES_MAX: usize = 4_096;
/// Writes in flight (assigned, not yet committed) per chunk: at most three members' worth of
/// ranges must fit in [`UNCOMMITTED_RANGES_MAX`].
pub const WRITES_IN_FLIGHT_PER_CHUNK_MAX: usize = 1_024;
/// Most stores of one node: as many disks as a large host takes. Each has four threads.
pub const STORES_PER_NODE_MAX: usize = 64;
/// Bounds of the room that a store keeps for what already has a position, in bytes.
const SPACE_KEPT_MIN: u64 = 4 << 20;
const SPACE_KEPT_MAX: u64 = 256 << 20;

/// Whether a store has so little room left that new writes must wait for space (design.md section
/// 8): less than a thirty-second of it, which is for writes that already have a position and for
/// what the store keeps for itself. Nodes and the control plane judge by the same numbers; a capacity
/// of 0 says that nothing is known yet.
#[must_use]
pub const fn is_short_of_space(capacity_bytes: u64, used_bytes: u64) -> bool {
    let share = capacity_bytes / 32;
    let kept = if share < SPACE_KEPT_MIN {
        SPACE_KEPT_MIN
    } else if share > SPACE_KEPT_MAX {
        SPACE_KEPT_MAX
    } else {
        share
    };
    capacity_bytes > 0 && capacity_bytes.saturating_sub(used_bytes) < kept
}

/// Most bytes of a node's rack label.
pub const RACK_BYTES_MAX: usize = 64;

/// Whether a node may say this of its rack: characters as in volume names, so that it is told apart at
/// sight. Nothing at all says that it has none.
#[must_use]
pub fn is_rack_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.len() <= RACK_BYTES_MAX && text.chars().all(plain)
}

/// Shortest and longest time after which a volume's requests that cannot be carried out fail, in
/// milliseconds: a fail-over takes some seconds and is no reason to fail; longer than a day is for ever.
pub const ERROR_AFTER_MILLIS_MIN: u64 = 5_000;
/// See [`ERROR_AFTER_MILLIS_MIN`].
pub const ERROR_AFTER_MILLIS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// Most bytes of a volume name.
pub const VOLUME_NAME_BYTES_MAX: usize = 64;
/// Most bytes of a client token (design.md section 9, idempotency).
pub const CLIENT_TOKEN_BYTES_MAX: usize = 64;

const _: () = assert!(CHUNK_BYTES_MIN.is_power_of_two() && CHUNK_BYTES_FLOOR.is_power_of_two());
const _: () = assert!(CHUNK_BYTES_FLOOR <= CHUNK_BYTES_MIN);
const _: () =
    assert!(VOLUME_BYTES_MAX / CHUNKS_AT_CREATION_MAX / (BLOCK_SIZE as u64) < u32::MAX as u64);
const _: () = assert!(GROWTH_CHUNKS_MAX <= CHUNKS_MAX);
const _: () = assert!(WRITES_IN_FLIGHT_PER_CHUNK_MAX * 3 < UNCOMMITTED_RANGES_MAX);
const _: () = assert!((IO_BYTES_MAX as u64) <= CHUNK_BYTES_MIN);
