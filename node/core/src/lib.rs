//! Decides what a storage node does; pure (design.md sections 3 to 6).
//!
//! Two values that take inputs and give effects, without clock, sockets, files: the data core
//! ([`machine::DataCore`]) and the beats ([`beats::BeatCore`]). The shell in `node/src` gives each a
//! thread; the simulator and the tests drive both as one [`node::NodeCore`].
#![no_std]
extern crate alloc;

pub mod beats;
pub mod durable;
pub mod gate;
pub mod input;
pub mod line;
pub mod machine;
pub mod node;
pub mod outbox;
pub mod peers;
pub mod record;
pub mod timing;

mod context;
mod drift;
mod found;
mod lease;
mod primary;
mod relay;
mod replica;
mod scrub;
mod search;
mod stores;

pub use beats::{BeatCore, BeatEffect, BeatInput, BeatNews, BeatOrder};
pub use context::Identity;
pub use input::Input;
pub use lease::Answer;
pub use line::{Level, Line};
pub use machine::DataCore;
pub use node::NodeCore;
pub use outbox::{Alarm, ConnectionId, Effect, Link, Outbox, ReadTicket};
pub use peers::Process;
pub use record::{JournalSeq, Record};
pub use timing::Timing;
