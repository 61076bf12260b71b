//! Ways in which a device appears to the host.

pub mod fuse;
pub mod nbd;
