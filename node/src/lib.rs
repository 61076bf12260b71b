//! A storage node: store, networks and the task that drives its core.

pub mod store;
