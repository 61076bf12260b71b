//! raft-rs logs through slog; we log through tracing. One line between the two.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

/// Passes records on, unstructured: raft-rs puts everything into the message.
struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let text = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{text}"),
            Level::Warning => tracing::warn!(target: "raft", "{text}"),
            // raft-rs tells every election and every rejected vote at this level.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", "{text}"),
            Level::Trace => tracing::trace!(target: "raft", "{text}"),
        }
        Ok(())
    }
}

/// The logger that raft-rs is given.
pub(crate) fn logger() -> Logger {
    Logger::root(ToTracing, o!())
}
