//! Space for data is taken from the file system before it is needed, by a thread of its own.
//!
//! Taking it may wait for the disk, and on most file systems for each transfer of the file that is
//! under way. Whoever hands records over never waits for that (`Store::append`): what does not fit
//! the file yet is not taken, and offered again once it does. Random writes to an empty volume need
//! a slot each, so a burst of them is faster than any step ahead.

use std::time::Duration;

use ashlar_env::disk::DiskError;

use super::format::{PAGE, SLOT_BYTES, as_u64};
use super::map::SlotMap;
use super::shared::{Shared, State};
use super::{NoSpace, Reporter, Space, StoreEvent};

/// The data file grows by this many slots at a time (256 MiB): a step costs about a millisecond.
pub(crate) const GROW_SLOTS: u32 = 256;

/// The file grows when fewer slots than this are left.
const GROW_AHEAD_SLOTS: u32 = 128;

/// How long a file system that had no room is left alone: somebody may make some.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What the thread is to do.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// Slots that the file is to have, if it has fewer.
    wanted: u32,
    /// The last step failed: until one succeeds the store is as large as its file.
    failed: bool,
}

impl State {
    /// Room as others are told: what the file system does not give is none.
    pub(crate) fn space(&self) -> Space {
        let space = self.map.space();
        let total_slots = if self.growth.failed { self.map.grown() } else { space.total_slots };
        Space { total_slots, ..space }
    }
}

impl Shared {
    /// Has the file grown by the thread, if a record needs it: refused until then.
    pub(super) fn make_room(&self, state: &mut State, more: u32) -> Result<(), NoSpace> {
        let needed = state.map.needed(more).saturating_sub(state.map.grown());
        if needed == 0 {
            return Ok(());
        }
        let full = NoSpace::Full { needed, room: 0 };
        if state.map.grown() == 0 {
            // Nothing is under way in an empty file: its first step is a short one.
            return self.grow(&mut state.map, more).map_err(|e| {
                tracing::warn!(error = %e, "the data file cannot grow");
                full
            });
        }
        self.want_growth(state, more);
        Err(if state.growth.failed { full } else { NoSpace::Growing })
    }

    /// Has the file grown before the room that is left is needed.
    pub(super) fn grow_ahead(&self, state: &mut State) {
        let grown = state.map.grown();
        if grown > 0 && grown < state.map.capacity() && !state.growth.failed {
            self.want_growth(state, GROW_AHEAD_SLOTS);
        }
    }

    fn want_growth(&self, state: &mut State, more: u32) {
        let slots = steps(&state.map, more);
        if slots > state.map.grown() && slots > state.growth.wanted {
            state.growth.wanted = slots;
            self.grow_wake.notify();
        }
    }

    /// Grows data and map file at once, in steps, until `more` slots above what is needed fit.
    pub(crate) fn grow(&self, map: &mut SlotMap, more: u32) -> Result<(), DiskError> {
        let slots = steps(map, more);
        self.preallocate(slots)?;
        map.set_grown(slots);
        Ok(())
    }

    /// Carries out what is wanted, outside of the lock, and keeps in mind what failed; false if nothing
    /// is wanted.
    pub(crate) fn grow_as_wanted(&self, reporter: &Reporter) -> bool {
        let slots = std::mem::take(&mut self.lock().growth.wanted);
        if slots == 0 {
            return false;
        }
        let outcome = self.preallocate(slots);
        let mut state = self.lock();
        if let Err(error) = &outcome
            && !state.growth.failed
        {
            tracing::warn!(%error, "the data file cannot grow");
        }
        match outcome {
            Ok(()) => {
                state.growth.failed = false;
                let grown = state.map.grown().max(slots);
                state.map.set_grown(grown);
            }
            Err(_told) => {
                state.growth.failed = true;
                state.growth.wanted = state.growth.wanted.max(slots);
            }
        }
        let space = state.space();
        drop(state);
        // Whoever waits offers its records again, or learns that there is no room.
        reporter.report(StoreEvent::Space(space));
        true
    }

    fn preallocate(&self, slots: u32) -> Result<(), DiskError> {
        self.data.preallocate(u64::from(slots) * SLOT_BYTES)?;
        self.map_file.preallocate(u64::from(slots) * 2 * as_u64(PAGE))
    }
}

/// How many slots the file has after whole steps, if `more` are to fit above what is needed.
fn steps(map: &SlotMap, more: u32) -> u32 {
    map.needed(more).next_multiple_of(GROW_SLOTS).min(map.capacity())
}

/// The thread: ends with the journal's.
pub(super) fn grow_thread(shared: &Shared, reporter: &Reporter) {
    let mut state = shared.lock();
    while !state.finished && state.failed.is_none() {
        let may_begin = match (state.growth.wanted, state.growth.failed) {
            (0, _) => {
                state = shared.grow_wake.wait(state);
                false
            }
            (_, false) => true,
            (_, true) => {
                let (after, passed) = shared.grow_wake.wait_for(state, TRY_AGAIN);
                state = after;
                passed
            }
        };
        if may_begin {
            drop(state);
            shared.grow_as_wanted(reporter);
            state = shared.lock();
        }
    }
}
