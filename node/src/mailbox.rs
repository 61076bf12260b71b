//! From the stores' threads to the machine's task: one box with a part for each store, merged while
//! nobody looks.
//!
//! A store must never wait for the machine, and the machine wakes once for all that has come. A
//! later durable position covers an earlier one; reads are bounded by what the core has asked.

use crate::seam::{Mutex, PoisonError};
use crate::store::{ReadDone, StoreEvent, StoreFailure};
use ashlar_node_core::JournalSeq;
use std::collections::BTreeMap;
use tokio::sync::Notify;

/// What one store has reported since the box was emptied.
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
    /// By the number of the store in this process.
    mail: Mutex<BTreeMap<usize, Mail>>,
    came: Notify,
}

impl Mailbox {
    /// Puts an event of a store in; called from its threads.
    pub(crate) fn put(&self, store: usize, event: StoreEvent) {
        // A panic while the lock is held ends the process.
        let mut all = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let mail = all.entry(store).or_default();
        match event {
            StoreEvent::Durable(seq) => mail.durable = mail.durable.max(Some(seq)),
            StoreEvent::Read(done) => mail.reads.extend(done),
            StoreEvent::Space(_) => mail.space = true,
            StoreEvent::Failed(failure) => {
                mail.failed.get_or_insert(failure);
            }
        }
        drop(all);
        self.came.notify_one();
    }

    /// Empties the box.
    pub(crate) fn take(&self) -> BTreeMap<usize, Mail> {
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
                scope.spawn(move || mailbox.put(1, StoreEvent::Durable(JournalSeq(seq))));
            }
        });
        mailbox.put(0, StoreEvent::Durable(JournalSeq(20)));
        mailbox.came().await;
        let durable = mailbox.take().into_values().map(|mail| mail.durable);
        assert!(durable.eq([Some(JournalSeq(20)), Some(JournalSeq(9))]));
        assert!(mailbox.take().is_empty());
    }
}
