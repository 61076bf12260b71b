//! The world behind five seams: clock, dice, disk, metadata store, network; real and faulty.
