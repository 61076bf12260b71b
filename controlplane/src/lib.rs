//! A zone's control plane: Raft group, gRPC services and the thread that drives its core.
//!
//! [`member`] decides, without clock or thread; the rest carries bytes to and from it:
//!
//! | file | does |
//! |---|---|
//! | [`config`] | reads and checks the configuration |
//! | [`mod@server`] | starts everything, listens, stops in order |
//! | `machine.rs` | one thread that owns the member and its disks |
//! | `methods.rs` | the calls of the schema: served, and sent to other members |
//! | `region.rs` | the region gateway: which zone a call is for |
//! | `calls.rs` | calls for the own zone: forwards to the leader, honours deadlines |
//! | `nodes.rs` | streams of storage nodes |
//! | `peers.rs` | Raft's messages between members |
//! | `probe.rs` | tries to connect to nodes that fell silent |
//! | `routes.rs` | several services behind one listener |
//! | `errors.rs` | refusals of the core as errors of the API |

mod calls;
pub mod config;
mod errors;
mod join;
mod machine;
pub mod member;
mod methods;
mod nodes;
mod peers;
mod probe;
mod region;
mod routes;
mod seam;
pub mod server;

pub use ashlar_proto as proto;
pub use config::{Config, ConfigError, PlacementRules, Timing};
pub use server::{RunError, run, run_blocking};

/// What decides about calls, without sockets or clock: the simulation drives it as the gateway does.
pub mod gateway {
    pub use crate::calls::{LEADER_POLL, may_ask_again};
    pub use tonic::Status;

    pub use crate::region::{Asking, Part, Route, Step, Wrong, api_of, is_silence, route};
}
