//! The one binary of Ashlar.

fn main() {}
