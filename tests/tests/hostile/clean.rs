//! A client of NBD that does what is right: the first mebibyte of the volume, written and read.

use crate::nbd::{go, request};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const BYTES: usize = 1 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Greeting, then the reply with the export, whose size comes behind 20 + 2 bytes.
const SIZE_AT: usize = 18 + 20 + 2;
/// Greeting, two replies with information, the acknowledgement.
const GREETED_BYTES: usize = 18 + (20 + 12) + (20 + 14) + 20;

/// A connection behind its handshake.
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) size_bytes: u64,
}

/// Bytes that differ from block to block.
pub(crate) fn pattern(number: u8) -> Vec<u8> {
    (0..BYTES).map(|at| number ^ at.wrapping_mul(31).to_le_bytes()[1]).collect()
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        stream.write_all(&go()).unwrap();
        let mut greeted = [0; GREETED_BYTES];
        stream.read_exact(&mut greeted).unwrap();
        let size = greeted[SIZE_AT..SIZE_AT + 8].try_into().unwrap();
        Self { stream, size_bytes: u64::from_be_bytes(size) }
    }

    fn ask(&mut self, command: u16, payload: &[u8]) {
        let len = u32::try_from(BYTES).unwrap();
        self.stream.write_all(&request(0, command, 7, 0, len)).unwrap();
        self.stream.write_all(payload).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0; 4], "a clean request failed");
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.ask(1, bytes);
    }

    pub(crate) fn read(&mut self) -> Vec<u8> {
        self.ask(0, &[]);
        let mut bytes = vec![0; BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}
