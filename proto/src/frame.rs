//! Frames of the two data networks: one header, one body, the blocks.
//!
//! ```text
//! byte 0   magic      u32  0x4D_4C_48_41 ("AHLM")
//!      4   kind       u8   which message (table in `frame/message.rs`)
//!      5   reserved   3    zero
//!      8   body_len   u32  at most BODY_BYTES_MAX
//!     12   data_len   u32  at most IO_BYTES_MAX, a multiple of BLOCK_SIZE
//!     16   body_crc   u32  CRC32C of the body
//!     20   header_crc u32  CRC32C of bytes 0..20
//!     24   body            fields of the message; for content also one CRC32C per block
//!          data            the blocks, verified against those CRCs on arrival
//! ```
//! The header's own checksum comes first so that no length is believed before it is verified; the
//! blocks' checksums are the ones that the client computed and the disk will keep, so data is
//! checked once per hop and never summed again.
//!
//! Path of a write: client out, primary in, primary out, secondary in. Does not read or write
//! sockets; knows nothing of who may say what.

mod message;
mod queue;

use ashlar_types::blocks::{BLOCK_SIZE, BlockData, BlockDataError, Sums};
use ashlar_types::codec::{CodecError, Reader, Wire};
use ashlar_types::limit::IO_BYTES_MAX;
use ashlar_types::message::data::{DataMessage, Hello, HelloReply};
use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

pub use queue::FrameQueue;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 24;
/// Largest body: an opening of a term with all its ranges, or a long history, fits.
pub const BODY_BYTES_MAX: usize = 256 << 10;
const MAGIC: u32 = 0x4D4C_4841;

/// One unit on a data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame of the side that dialled.
    Hello(Hello),
    /// First frame of the side that accepted.
    HelloReply(HelloReply),
    /// Everything after that.
    Message(DataMessage),
}

/// Why a connection is closed: what arrived is not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The first four bytes are not ours.
    #[error("not an Ashlar frame")]
    Magic,
    /// The header's checksum is wrong.
    #[error("the frame's header is damaged")]
    HeaderChecksum,
    /// A length above the limit.
    #[error("the frame is too large: body {body_len}, data {data_len} bytes")]
    TooLarge {
        /// Bytes of body announced.
        body_len: u32,
        /// Bytes of data announced.
        data_len: u32,
    },
    /// The body's checksum is wrong.
    #[error("the frame's body is damaged")]
    BodyChecksum,
    /// A block's checksum is wrong.
    #[error("block {block} of the frame is damaged")]
    DataChecksum {
        /// Block within the chunk.
        block: u32,
    },
    /// No such message.
    #[error("message kind {0} is unknown here")]
    Kind(u8),
    /// The body is not the message that its kind says.
    #[error("the frame's body is malformed: {0}")]
    Body(#[from] CodecError),
    /// What a node relays between another and the control plane is no message of theirs.
    #[error("the message that the frame relays is malformed")]
    Relayed,
    /// Content that does not fit its range.
    #[error("the frame's content is malformed: {0}")]
    Content(#[from] BlockDataError),
}

/// Takes the next frame off the front of `input`, if it is there whole. Call again until `None`;
/// then read more from the socket. `input` grows to one largest frame at most if the caller reads
/// only on `None`.
///
/// # Errors
/// What arrived is no frame; the connection cannot be used any more.
pub fn next_frame(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let mut fields = Reader::new(header);
    if u32::get(&mut fields)? != MAGIC {
        return Err(FrameError::Magic);
    }
    let kind = u8::get(&mut fields)?;
    fields.take(3)?;
    let (body_len, data_len) = (u32::get(&mut fields)?, u32::get(&mut fields)?);
    let body_crc = u32::get(&mut fields)?;
    let header_crc = u32::get(&mut fields)?;
    let (summed, _) = header.split_at(HEADER_BYTES - 4);
    if crc32c::crc32c(summed) != header_crc {
        return Err(FrameError::HeaderChecksum);
    }
    let (body_bytes, data_bytes) = (body_len as usize, data_len as usize);
    if body_bytes > BODY_BYTES_MAX || data_bytes > IO_BYTES_MAX || data_bytes % BLOCK_SIZE != 0 {
        return Err(FrameError::TooLarge { body_len, data_len });
    }
    let total = HEADER_BYTES + body_bytes + data_bytes;
    if input.len() < total {
        // One allocation for the whole frame instead of a doubling for each read.
        input.reserve(total - input.len());
        return Ok(None);
    }
    let mut frame = input.split_to(total);
    frame.advance(HEADER_BYTES);
    let body = frame.split_to(body_bytes);
    if crc32c::crc32c(&body) != body_crc {
        return Err(FrameError::BodyChecksum);
    }
    message::decode(kind, &body, frame.freeze()).map(Some)
}

/// Checks shape and checksums of content that has arrived.
fn verified(data: BlockData) -> Result<BlockData, FrameError> {
    data.check()?;
    // A range of holes may be as long as its writer likes to say, and has nothing to verify: a
    // walk over it would let a frame of 41 bytes keep a thread for minutes, before any hello.
    if data.sums == Sums::Holes {
        return Ok(data);
    }
    for (block, content) in data.iter() {
        if let Some((sum, bytes)) = content
            && crc32c::crc32c(&bytes) != sum
        {
            return Err(FrameError::DataChecksum { block });
        }
    }
    Ok(data)
}

/// Appends a frame to what waits to be sent.
pub fn push_frame(frame: &Frame, out: &mut FrameQueue) {
    let (kind, data) = message::kind_and_data(frame);
    out.push(kind, data, |body| message::put_body(frame, body));
}

/// Appends a message to what waits to be sent.
pub fn push_message(message: &DataMessage, out: &mut FrameQueue) {
    let (kind, data) = message::message_kind_and_data(message);
    out.push(kind, data, |body| message::put_message_body(message, body));
}

fn header(kind: u8, body: &[u8], data_len: usize) -> [u8; HEADER_BYTES] {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    MAGIC.put(&mut bytes);
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    u32::try_from(body.len()).unwrap_or(u32::MAX).put(&mut bytes);
    u32::try_from(data_len).unwrap_or(u32::MAX).put(&mut bytes);
    crc32c::crc32c(body).put(&mut bytes);
    let sum = crc32c::crc32c(&bytes);
    sum.put(&mut bytes);
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&bytes);
    header
}

/// Content as it stands in a body (range and checksums), with its bytes from the frame's data.
fn content(body: &mut Reader<'_>, data: Bytes) -> Result<BlockData, FrameError> {
    verified(BlockData { range: Wire::get(body)?, sums: Wire::get(body)?, data })
}

#[cfg(test)]
mod tests;
