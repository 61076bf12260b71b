//! A bulkhead with the calls that wait before it: turns what it decides into passes and refusals.
//!
//! Behind a lock and not in a task of its own: a pass that is dropped must give its place back
//! whatever happens, and a message to a task could be lost. The lock is held for a step of the
//! bulkhead, never across an await.

use crate::seam::{Mutex, MutexGuard, PoisonError};
use ashlar_controlplane_core::bulkhead::{
    Bulkhead, CallId, Effect, Input, Limits, Outcome, Refusal,
};
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_types::Time;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// Calls of one API to one zone.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    bulkhead: Bulkhead,
    dice: SeededDice,
    asking: BTreeMap<CallId, oneshot::Sender<Result<(), Refusal>>>,
    probe_at: watch::Sender<Option<Time>>,
    next: u64,
}

/// A place among the running calls; dropped, it is given back.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Gate,
    call: CallId,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            bulkhead: Bulkhead::new(limits),
            dice: SeededDice::system(),
            asking: BTreeMap::new(),
            probe_at: watch::channel(None).0,
            next: 0,
        })))
    }

    /// Waits for a place until the deadline.
    pub(super) async fn enter(&self, deadline: Time) -> Result<Pass, Refusal> {
        let (sender, answer) = oneshot::channel();
        let call = {
            let mut inner = self.lock();
            let call = CallId(inner.next);
            inner.next += 1;
            inner.asking.insert(call, sender);
            inner.handle(Input::Ask { call, deadline });
            call
        };
        let pass = Pass { gate: self.clone(), call };
        // The bulkhead answers every call; a closed channel cannot come before its answer.
        match answer.await {
            Ok(Ok(())) | Err(_) => Ok(pass),
            Ok(Err(refusal)) => Err(refusal),
        }
    }

    /// When the zone is to be asked how it is; [`Self::probed`] answers.
    pub(super) fn probe_at(&self) -> watch::Receiver<Option<Time>> {
        self.lock().probe_at.subscribe()
    }

    /// How the question went that was due.
    pub(super) fn probed(&self, outcome: Outcome) {
        self.lock().handle(Input::Probed { outcome });
    }

    /// Since when the zone is not asked.
    pub(super) fn open_since(&self) -> Option<Time> {
        self.lock().bulkhead.open_since()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic ends the process; until then the value is as good as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn handle(&mut self, input: Input) {
        let now = now();
        let mut effects = Vec::new();
        self.bulkhead.handle(now, self.dice.next_u64(), input, &mut effects);
        for effect in effects {
            let (call, answer) = match effect {
                Effect::Begin(call) => (call, Ok(())),
                Effect::Refuse(call, refusal) => (call, Err(refusal)),
                Effect::ProbeAt(time) => {
                    self.probe_at.send_replace(Some(time));
                    continue;
                }
            };
            if let Some(asking) = self.asking.remove(&call) {
                // Who has gone gives its place back by dropping its pass.
                asking.send(answer).ok();
            }
        }
    }
}

impl Pass {
    /// The call has ended.
    pub(super) fn end(self, outcome: Outcome) {
        self.gate.lock().handle(Input::Ended { call: self.call, outcome });
    }

    /// Whether the call may be made once more.
    pub(super) fn may_retry(&self) -> bool {
        self.gate.lock().bulkhead.take_retry()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        inner.asking.remove(&self.call);
        inner.handle(Input::Gone { call: self.call });
    }
}

pub(super) fn now() -> Time {
    Time::from_nanos(SystemClock.now_nanos())
}
