//! Messages as plain values. `data` crosses the two data networks as frames; `cluster` crosses
//! the stream between a node and its zone's control plane as gRPC.

pub mod cluster;
pub mod data;
