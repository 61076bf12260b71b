//! Space for data is taken from the file system before it is needed, by a thread of its own.
//!
//! Taking it may wait for the disk, and on most file systems for each transfer of the file that is
//! under way. Whoever hands records over never waits for that (`Store::append`): what does not fit
//! the file yet is not taken, and offered again once it does. Random writes to an empty volume need
//! a slot each, so a burst of them is faster than any step ahead.

use ashlar_env::disk::DiskError;

use super::format::{PAGE, SLOT_BYTES, as_u64};
use super::map::SlotMap;
use super::shared::{Shared, State};
use super::{NoSpace, Reporter, StoreEvent};

/// The data file grows by this many slots at a time (256 MiB): a step costs about a millisecond.
pub(crate) const GROW_SLOTS: u32 = 256;

/// The file grows when fewer slots than this are left.
const GROW_AHEAD_SLOTS: u32 = 128;

/// What the thread is to do.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// Slots that the file is to have, if it has fewer.
    wanted: u32,
    /// The last step failed: what needs more is refused as from a full store.
    failed: bool,
}

impl Shared {
    /// Has the file grown by the thread, if a record needs it: refused until then.
    pub(super) fn make_room(
        &self,
        state: &mut State,
        more: u32,
        full: NoSpace,
    ) -> Result<(), NoSpace> {
        if state.map.needed(more) <= state.map.grown() {
            return Ok(());
        }
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

    /// Carries out what is wanted, outside of the lock; false if nothing is.
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
        state.growth.failed = outcome.is_err();
        if outcome.is_ok() {
            let grown = state.map.grown().max(slots);
            state.map.set_grown(grown);
        }
        let space = state.map.space();
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
    loop {
        while shared.grow_as_wanted(reporter) {}
        let mut state = shared.lock();
        while state.growth.wanted == 0 && !state.finished && state.failed.is_none() {
            state = shared.grow_wake.wait(state);
        }
        if state.finished || state.failed.is_some() {
            return;
        }
    }
}
