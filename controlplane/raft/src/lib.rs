//! raft-rs as a synchronous machine with injected dice.
