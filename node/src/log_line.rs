//! Logs a line of the core's table ([`ashlar_node_core::Line`]) as loud as the table says.

/// Logs a line with fields, as `tracing::error!` takes them.
macro_rules! log_line {
    ($line:expr, $($field:tt)+) => {{
        let line: ashlar_node_core::Line = $line;
        match line.level() {
            ashlar_node_core::Level::Warn => tracing::warn!($($field)+, "{}", line.text()),
            ashlar_node_core::Level::Error => tracing::error!($($field)+, "{}", line.text()),
        }
    }};
}

pub(crate) use log_line;
