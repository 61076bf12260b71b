//! The world behind seams: time, chance, disks, the metadata store, tasks.
//!
//! Cores never touch the world; shells touch it only through this crate, so that the simulator and
//! the tests can put a faulty world in its place. What is here: [`clock::Clock`], [`dice::Dice`],
//! [`disk::Disk`] with its batch engine, [`meta::MetaStore`], and [`task::spawn_named`].
//! What is not here: any protocol, any format above a key and its value.

pub mod clock;
pub mod dice;
pub mod disk;
pub mod meta;
pub mod task;
