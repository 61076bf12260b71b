//! The wire: gRPC schema and the framed data path, converted to and from the types.
//!
//! Decides nothing. [`v1`] is generated from `ashlar/v1/*.proto`; [`convert`] turns it into the
//! vocabulary of `ashlar-types` with every field checked; [`reason`] is the one registry of typed
//! errors of the API; [`token`] is the signed right of an attachment.

pub mod convert;
pub mod frame;
pub mod reason;
pub mod token;

/// Messages, clients and servers generated from `ashlar/v1/*.proto`; documented there.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        missing_debug_implementations,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::let_underscore_must_use,
        clippy::wildcard_enum_match_arm,
        clippy::missing_errors_doc,
        clippy::too_many_lines,
        reason = "generated code"
    )]
    tonic::include_proto!("ashlar.v1");
}

/// All messages and services of [`v1`] as an encoded `FileDescriptorSet`, for reflection and JSON.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ashlar.v1.bin"));

/// Most bytes of one gRPC message, for clients and servers alike: a map of the largest volume
/// (65,536 chunks of some 300 bytes) fits. tonic's own default of 4 MiB does not suffice.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Domain of every `google.rpc.ErrorInfo` that Ashlar sends.
pub const ERROR_DOMAIN: &str = "ashlar.dev";
