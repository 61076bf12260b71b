//! A member driven by hand.
