//! The wire: gRPC schema and the framed data path, converted to and from the types.

pub mod frame;
