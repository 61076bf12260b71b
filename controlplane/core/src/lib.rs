//! Decides what a zone's control plane does; pure.
//!
//! | file | decides |
//! |---|---|
//! | [`command`] | what can be committed, and its bytes |
//! | [`state`] | what is committed: volumes, chunks, nodes, tokens, erasures; its bytes |
//! | [`apply`] | what a committed command does; the same on every member |
//! | [`change`] | which change of a chunk's configuration is allowed (invariants 1 and 4) |
//! | [`observe`] | what this leader sees: heartbeats, evidence, reports; volatile |
//! | [`verdict`] | who is dead, on evidence (design.md section 6) |
//! | [`place`] | where replicas go: room, racks |
//! | [`sharing`] | which nodes share chunks, and how few with each |
//! | [`elect`] | which chunks need another primary, the most urgent first |
//! | [`interruption`] | whether so many nodes are lost that searching for new homes stops |
//! | [`plan`] | what the leader proposes next |
//! | [`moves`] | which copies go from one working node to another, and when the former leaves |
//! | [`drain`] | which nodes are to hold nothing, whether they can, and how far that is |
//! | [`grow`] | how a volume grows, and when clients are told |
//! | [`salvage`] | when a stale replica takes over on an operator's word, and what that revokes |
//! | [`rescue`] | what a salvage would do, as the leader sees it before it proposes one |
//! | [`describe`] | how volumes and chunks are, with causes |
//! | [`bulkhead`] | what calls to another zone may cost (design.md section 10) |
//! | [`way`] | kinds of calls to another zone, and which of its members is asked |
//!
//! No clock, no dice, no I/O: time comes in as an argument, chance as numbers in commands. What
//! is committed never depends on what one leader saw, except as evidence carried in the command.
#![no_std]
extern crate alloc;

pub mod apply;
pub mod balance;
pub mod bulkhead;
pub mod change;
mod codec;
pub mod command;
pub mod describe;
pub mod drain;
pub mod elect;
pub mod grow;
pub mod interruption;
mod members;
pub mod moves;
pub mod observe;
pub mod place;
pub mod plan;
pub mod rescue;
pub mod salvage;
pub mod sharing;
pub mod state;
pub mod verdict;
pub mod way;

#[cfg(test)]
mod tests;
