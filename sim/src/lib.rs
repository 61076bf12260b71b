//! Whole zones in one process under a virtual clock, from one seed (design.md section 13).
//!
//! The cores of nodes, control-plane members and a client run as they do in the processes; the
//! world around them (two networks, disks, crashes, time) is simulated. The same seed gives the
//! same bytes. What is judged stands in `judge.rs`.
//!
//! Not simulated: the shells (sockets, gRPC, files), which the tests in `tests/` run for real.

mod balance;
mod beyond;
mod blocks;
mod client;
mod client_side;
mod control;
mod descriptors;
mod disk;
mod drain;
mod effects;
mod faults;
mod former;
mod grow;
mod journal;
mod judge;
mod kinds;
mod lines;
mod member;
mod misplaced;
mod net;
mod node;
mod observer;
mod passing;
mod pause;
mod promise;
mod queue;
mod racks;
mod region;
mod replace;
mod run;
mod salvage;
mod scenario;
mod shrink;
mod span;
mod state;
mod store;
mod watch;
mod wires;
mod world;

pub use judge::Violation;
pub use kinds::{FaultKind, Kinds, Tally, UnknownKind};
pub use run::{Options, Outcome, Sabotage, Scene, run, run_logged, run_stepped};
pub use scenario::{Scenario, ScenarioError, network_states, scenario, scenarios};
pub use shrink::shrink;
pub use span::parse_span;
