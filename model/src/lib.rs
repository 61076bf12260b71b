//! The protocol of one chunk (design.md sections 3 and 4) as a model of which every state within
//! stated budgets is explored: replication, elections and terms, read leases, filling and promotion
//! of a learner, retirement.
//!
//! Does not run the real cores: it says the same in fewer words, under their names, so that loss,
//! reordering, crashes and pauses can be tried in every order. `sim/` runs the cores themselves in
//! some orders. What is modelled and what is not: `docs/model.md`.

#![allow(
    clippy::indexing_slicing,
    reason = "nodes and values are small numbers that the model made itself; one out of bounds is a \
              defect of the model and must stop it"
)]

mod control;
mod explore;
mod judge;
mod lease;
mod member;
mod mutation;
mod node;
mod primary;
mod properties;
mod scene;
mod words;
mod zone;

pub use explore::{Broken, Report, explore, seek};
pub use mutation::Mutation;
pub use properties::{
    ELECTED_IN_SYNC, IDENTICAL, LINEARIZABLE, MEMBERS_KEPT, NOTHING_LOST, ONE_ACKNOWLEDGES,
    RETIRED_LATE,
};
pub use scene::Scene;
