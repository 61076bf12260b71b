//! Where log lines go: standard error, filtered by `ASHLAR_LOG`.
//!
//! Daemons log from `info`, commands from `warn`, so that a command's output stays its result.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Sets up logging for this process. `default` is the filter without `ASHLAR_LOG`.
pub(crate) fn start(default: &str) {
    let filter = EnvFilter::try_from_env("ASHLAR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        // A line that cannot be written is lost. Saying so would go the same way, and panic: a full log
        // disk must not end a node.
        .log_internal_errors(false)
        .finish();
    // Fails only when a subscriber is set already, which then stays.
    drop(tracing::subscriber::set_global_default(subscriber));
}
