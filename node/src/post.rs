//! From one thread of the node to another: bounded, and nobody waits for it.
//!
//! What a later message says again is dropped when the other side does not keep up. What must arrive waits
//! here meanwhile, in order; there is at most one such message for each replica.

use std::collections::VecDeque;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Messages that may wait for the other side.
const MESSAGES_MAX: usize = 1_024;

/// Whether a message may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// A later one says the same, or more.
    Allowed,
    /// It must arrive.
    Never,
}

/// The sending side.
#[derive(Debug)]
pub(crate) struct Post<T> {
    to: mpsc::Sender<T>,
    kept: VecDeque<T>,
}

/// Both sides.
pub(crate) fn post<T>() -> (Post<T>, mpsc::Receiver<T>) {
    let (to, from) = mpsc::channel(MESSAGES_MAX);
    (Post { to, kept: VecDeque::new() }, from)
}

impl<T> Post<T> {
    /// Sends, or keeps, or drops.
    pub(crate) fn send(&mut self, message: T, loss: Loss) {
        self.flush();
        if self.kept.is_empty() {
            match self.to.try_send(message) {
                Err(TrySendError::Full(message)) if loss == Loss::Never => {
                    self.kept.push_back(message);
                }
                // Without a receiver the node is stopping.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
            }
        } else if loss == Loss::Never {
            self.kept.push_back(message);
        }
    }

    /// Sends what was kept, as far as there is room.
    pub(crate) fn flush(&mut self) {
        while let Some(message) = self.kept.pop_front() {
            if let Err(TrySendError::Full(message)) = self.to.try_send(message) {
                self.kept.push_front(message);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_arrive_waits_in_order_and_the_rest_is_dropped() {
        let (mut post, mut inbox) = post();
        for number in 0..MESSAGES_MAX {
            post.send(number, Loss::Allowed);
        }
        post.send(5_001, Loss::Never);
        post.send(5_002, Loss::Allowed);
        post.send(5_003, Loss::Never);
        assert_eq!(inbox.try_recv(), Ok(0));
        // The room is for the one that has waited longest.
        post.send(5_004, Loss::Allowed);
        let mut came = vec![];
        loop {
            while let Ok(number) = inbox.try_recv() {
                came.push(number);
            }
            if post.kept.is_empty() {
                break;
            }
            post.flush();
        }
        assert_eq!(came[MESSAGES_MAX - 1..], [5_001, 5_003]);
    }
}
