//! Lines that the real parts of the simulation log as warnings and errors (members, Raft, logs,
//! metadata stores), caught as their shells' logs would show them.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines caught and not looked at yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Runs something on this thread; what it logs comes here, and goes nowhere else.
    pub(crate) fn catch<T>(&self, act: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(Catcher(self.clone()), act)
    }

    /// Takes what was caught.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Looks at warnings and errors only.
struct Catcher(Lines);

impl Subscriber for Catcher {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::WARN)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words { message: String::new(), fields: String::new() };
        event.record(&mut words);
        let Words { message, fields } = words;
        let line = format!("{} {message}{fields}", event.metadata().level());
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of a line, and its fields behind it.
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
        // Writing to a string does not fail.
        written.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_are_caught_with_their_fields_and_nothing_else_is() {
        let lines = Lines::default();
        let answer = lines.catch(|| {
            tracing::warn!(node = 3, "comes with another store");
            tracing::info!("told to nobody");
            tracing::error!("lost {}", 7);
            1
        });
        tracing::warn!("behind it");
        assert_eq!(answer, 1);
        assert_eq!(lines.take(), ["WARN comes with another store node=3", "ERROR lost 7"]);
        assert_eq!(lines.take(), Vec::<String>::new());
    }
}
