//! Compiles the schema with protox: nothing but a Rust toolchain is needed, no `protoc`.
//!
//! The descriptor set is kept beside the generated code, for reflection and JSON.

use prost::Message;
use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 6] = [
    "ashlar/v1/types.proto",
    "ashlar/v1/volume.proto",
    "ashlar/v1/cluster.proto",
    "ashlar/v1/region.proto",
    "ashlar/v1/node.proto",
    "ashlar/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    std::fs::write(out.join("ashlar.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".ashlar.v1.RaftEnvelope")
        .bytes(".ashlar.v1.MessagePart")
        .compile_fds(descriptors)?;
    Ok(())
}
