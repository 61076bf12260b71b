//! When a node that has started lets clients in: once its control plane has spoken, or kept silent for
//! as long as the configuration says (`hears_first_seconds`).
//!
//! A primary that is alone in sync needs nobody's consent to serve. If the zone went on without its store
//! (a salvage, docs/decisions/0011) while the process was down, only the control plane can tell it so, and
//! a client of before would read and write what nobody has any more. Where no control plane is
//! to be heard, healthy volumes are served nonetheless (design.md section 2): hence the bound. Peers
//! are not kept waiting: a term opens meanwhile.

use std::time::Duration;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was heard yet.
    Waiting,
    Open,
    /// The zone has revoked a store: nobody comes in any more.
    Shut,
}

/// Moves the door.
#[derive(Clone, Debug)]
pub(crate) struct Doorkeeper {
    state: watch::Sender<State>,
    patience: Duration,
}

/// What clients wait at.
#[derive(Clone, Debug)]
pub(crate) struct Door(watch::Receiver<State>);

/// A door that waits for the first word if the node holds replicas, and is open if it holds none.
pub(crate) fn door(holds_replicas: bool, patience: Duration) -> (Doorkeeper, Door) {
    let (state, door) = watch::channel(if holds_replicas { State::Waiting } else { State::Open });
    (Doorkeeper { state, patience }, Door(door))
}

impl Doorkeeper {
    /// The control plane has spoken.
    pub(crate) fn open(&self) {
        self.state.send_if_modified(|state| {
            let waiting = *state == State::Waiting;
            if waiting {
                *state = State::Open;
            }
            waiting
        });
    }

    /// A store is revoked: for good.
    pub(crate) fn shut(&self) {
        self.state.send_replace(State::Shut);
    }

    /// Opens when the control plane has kept silent for too long.
    pub(crate) async fn open_late(self) {
        tokio::time::sleep(self.patience).await;
        self.open();
    }
}

impl Door {
    /// Waits until the door is open or shut; whether a client may come in.
    pub(crate) async fn lets_in(&self) -> bool {
        let mut door = self.0.clone();
        let decided = door.wait_for(|state| *state != State::Waiting).await;
        decided.is_ok_and(|state| *state == State::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::MAX;

    #[tokio::test]
    async fn clients_wait_for_the_first_word_but_not_for_ever() {
        let (keeper, door) = door(true, Duration::from_millis(5));
        let mut waiting = std::pin::pin!(door.lets_in());
        let early = tokio::time::timeout(Duration::ZERO, &mut waiting).await;
        assert!(early.is_err(), "nobody has spoken yet");
        keeper.open_late().await;
        assert!(waiting.await);
        let (keeper, door) = super::door(true, NEVER);
        keeper.open();
        assert!(door.lets_in().await);
    }

    #[tokio::test]
    async fn nothing_opens_a_door_that_was_shut() {
        let (keeper, door) = door(true, Duration::ZERO);
        keeper.shut();
        keeper.open();
        keeper.clone().open_late().await;
        assert!(!door.lets_in().await);
    }

    #[tokio::test]
    async fn a_node_without_replicas_keeps_nobody_waiting() {
        let (_keeper, door) = door(false, NEVER);
        assert!(door.lets_in().await);
    }
}
