//! Bytes that wait for a socket: heads of many frames share buffers, blocks are not copied.

use super::{HEADER_BYTES, header};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Heads of frames gather here; a new buffer of this size is taken when it is used up.
const HEADS_BYTES: usize = 32 << 10;

/// Frames encoded and not yet written, as a list of slices for one vectored write.
#[derive(Debug, Default)]
pub struct FrameQueue {
    slices: VecDeque<Bytes>,
    heads: BytesMut,
    waiting_bytes: usize,
}

impl FrameQueue {
    /// Encodes one frame at the end. `put_body` appends the body's bytes.
    pub(super) fn push(
        &mut self,
        kind: u8,
        data: Option<&Bytes>,
        put_body: impl FnOnce(&mut BytesMut),
    ) {
        if self.heads.capacity() - self.heads.len() < 256 {
            self.seal();
            self.heads.reserve(HEADS_BYTES);
        }
        let start = self.heads.len();
        self.heads.extend_from_slice(&[0; HEADER_BYTES]);
        put_body(&mut self.heads);
        let data_len = data.map_or(0, Bytes::len);
        if let Some((head, body)) =
            self.heads.get_mut(start..).and_then(|frame| frame.split_at_mut_checked(HEADER_BYTES))
        {
            head.copy_from_slice(&header(kind, body, data_len));
        }
        self.waiting_bytes += self.heads.len() - start + data_len;
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            self.seal();
            self.slices.push_back(data.clone());
        }
    }

    /// Makes the heads gathered so far a slice of their own.
    fn seal(&mut self) {
        if !self.heads.is_empty() {
            self.slices.push_back(self.heads.split().freeze());
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.waiting_bytes == 0
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Fills `slices` from the front for one vectored write; gives how many were set.
    pub fn io_slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.seal();
        let mut used = 0;
        for (slot, bytes) in slices.iter_mut().zip(&self.slices) {
            *slot = IoSlice::new(bytes);
            used += 1;
        }
        used
    }

    /// Forgets the first `count` bytes: they are written.
    pub fn advance(&mut self, mut count: usize) {
        self.waiting_bytes = self.waiting_bytes.saturating_sub(count);
        while count > 0 {
            let Some(front) = self.slices.front_mut() else { return };
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.slices.pop_front();
        }
    }

    /// Moves everything that waits in `other` to the end of this queue.
    pub fn append(&mut self, other: &mut Self) {
        self.seal();
        other.seal();
        self.slices.append(&mut other.slices);
        self.waiting_bytes += core::mem::take(&mut other.waiting_bytes);
    }

    /// Forgets everything: the connection is gone.
    pub fn clear(&mut self) {
        self.slices.clear();
        self.heads.clear();
        self.waiting_bytes = 0;
    }
}
