//! Every duration and bound that the core uses, by name. The defaults are design.md's.

use core::time::Duration;

/// Durations and bounds of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two beats to a peer on each network (section 4.4).
    pub beat: Duration,
    /// How long a lease given to a peer binds this node, from the receipt of the beat (section 4.4).
    pub lease_granted: Duration,
    /// How much of a lease its holder uses, from the sending of the beat: less, since clocks drift.
    pub lease_used: Duration,
    /// Between two heartbeats to the control plane (section 5).
    pub heartbeat: Duration,
    /// Silence on both networks after which a secondary is proposed for removal (section 6).
    pub silence: Duration,
    /// A gap between two ticks of this node above which it does not trust the silences that it has
    /// counted: it was not listening (section 6).
    pub tick_gap: Duration,
    /// How long the primary network of a pair must be good again before its traffic returns from the
    /// replication network (section 5).
    pub return_to_primary: Duration,
    /// How long all may wait for one replica's disk before it is replaced (section 4.7).
    pub slow: Duration,
    /// How long the store may owe a read while nobody writes: disks under load take long, too.
    pub slow_read: Duration,
    /// How long a replica that was too slow rests before it is filled again.
    pub slow_rest: Duration,
    /// For how long a copy that was lost to slowness alone starts no search for a new home (4.7).
    pub slow_search: Duration,
    /// Before the same proposal, collect or question is sent again.
    pub retry: Duration,
    /// Before unacknowledged mirrors are sent again to a member that is reachable.
    pub stall: Duration,
    /// How long a stale replica is preferred to a new home (section 7).
    pub readopt_window: Duration,
    /// Chunks that this node fills learners of at the same time, as primary. Two keep both a
    /// read and a send busy; many would take the foreground's disk time.
    pub fills_max: usize,
    /// Copies in flight of one fill.
    pub copies_in_flight_max: usize,
    /// Blocks of one copy.
    pub copy_blocks: u32,
    /// Requests that may wait for one chunk (opening a term, too few copies).
    pub waiting_max: usize,
    /// Bytes of content that may wait for one chunk, that may be in flight, and that may be kept
    /// for its learners: three bounds of this size each.
    pub chunk_bytes_max: usize,
    /// Bytes that the scrub reads in a second while the node has nothing else to do; 0: no scrub.
    pub scrub_bytes_per_second: u64,
    /// Time in which the scrub reads every block once (section 8).
    pub scrub_cycle: Duration,
    /// Mirrored writes kept for a learner beyond those not committed; above, its fill starts over.
    pub learner_lag_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beat: Duration::from_millis(150),
            lease_granted: Duration::from_millis(500),
            lease_used: Duration::from_millis(400),
            heartbeat: Duration::from_millis(300),
            silence: Duration::from_secs(1),
            tick_gap: Duration::from_millis(300),
            return_to_primary: Duration::from_secs(2),
            slow: Duration::from_secs(1),
            slow_read: Duration::from_secs(5),
            slow_rest: Duration::from_secs(30),
            slow_search: Duration::from_secs(300),
            retry: Duration::from_millis(200),
            stall: Duration::from_millis(500),
            readopt_window: Duration::from_secs(600),
            fills_max: 4,
            copies_in_flight_max: 4,
            copy_blocks: 64,
            waiting_max: 2_048,
            chunk_bytes_max: 64 << 20,
            scrub_bytes_per_second: 0,
            scrub_cycle: Duration::from_secs(7 * 24 * 3_600),
            learner_lag_max: 4_096,
        }
    }
}
