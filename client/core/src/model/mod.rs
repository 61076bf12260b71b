//! A model of a zone for the tests of the machine: nodes that delay, drop, repeat and refuse,
//! connections that break, primaries that change; and a judge of what the user saw.
//!
//! Replication itself is assumed right: a chunk has one content, which its primary serves. What
//! the model does with writes in flight at a fail-over is what design.md 4.5 and 4.8 allow: each
//! is carried out or lost, before anything that the new term or session brings.

#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a model for tests: sizes are small, and every other message is a failure"
)]

mod judge;
mod tests;
mod zone;
