//! From the store's threads to the machine's task: one box, merged while nobody looks.
//!
//! The store must never wait for the machine, and the machine wakes once for all that has come. A
//! later durable position covers an earlier one; reads are bounded by what the core has asked.

use crate::store::{ReadDone, StoreEvent, StoreFailure};
use ashlar_node_core::JournalSeq;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// What the store has reported since the box was emptied.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Everything up to here is on stable media.
    pub(crate) durable: Option<JournalSeq>,
    /// Answered reads.
    pub(crate) reads: Vec<ReadDone>,
    /// Space was freed or taken for good.
    pub(crate) space: bool,
    /// The store has ended.
    pub(crate) failed: Option<StoreFailure>,
}

/// The box.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    came: Notify,
}

impl Mailbox {
    /// Puts an event in; called from the store's threads.
    pub(crate) fn put(&self, event: StoreEvent) {
        // A panic while the lock is held ends the process.
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            StoreEvent::Durable(seq) => mail.durable = mail.durable.max(Some(seq)),
            StoreEvent::Read(done) => mail.reads.extend(done),
            StoreEvent::Space(_) => mail.space = true,
            StoreEvent::Failed(failure) => {
                mail.failed.get_or_insert(failure);
            }
        }
        drop(mail);
        self.came.notify_one();
    }

    /// Empties the box.
    pub(crate) fn take(&self) -> Mail {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        core::mem::take(&mut mail)
    }

    /// Waits until something was put in since the last wait.
    pub(crate) async fn came(&self) {
        self.came.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_of_many_threads_are_merged_and_none_is_lost() {
        let mailbox = Mailbox::default();
        std::thread::scope(|scope| {
            for seq in [3, 9, 5] {
                let mailbox = &mailbox;
                scope.spawn(move || mailbox.put(StoreEvent::Durable(JournalSeq(seq))));
            }
        });
        mailbox.came().await;
        assert_eq!(mailbox.take().durable, Some(JournalSeq(9)));
        assert!(mailbox.take().durable.is_none());
    }
}
