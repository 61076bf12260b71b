//! Memory aligned for O_DIRECT.
//!
//! One allocation, zeroed, aligned to [`IO_ALIGN`], of fixed length. It can be handed on as `Bytes`
//! without a copy (`Bytes::from_owner`).
#![allow(unsafe_code, reason = "aligned allocation has no safe form in std")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::IO_ALIGN;

/// An owned byte buffer whose address is a multiple of [`IO_ALIGN`].
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer is owned plain bytes; no aliasing, no thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access gives only `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes, rounded up to a multiple of [`IO_ALIGN`] (at least one).
    ///
    /// # Panics
    /// When `len` is within a page of `isize::MAX`; lengths here are bounded by named limits.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a length beyond isize::MAX is a mistake of ours")]
    pub fn zeroed(len: usize) -> Self {
        let rounded = len.max(1).next_multiple_of(IO_ALIGN);
        let layout = Layout::from_size_align(rounded, IO_ALIGN).expect("buffer length is in range");
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    /// A buffer that starts with a copy of `bytes`; the rest is zero.
    #[must_use]
    pub fn copied(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        if let Some(head) = buf.get_mut(..bytes.len()) {
            head.copy_from_slice(bytes);
        }
        buf
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: start points to layout.size() initialised bytes that live as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.layout.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_rounded_up() {
        let buf = AlignedBuf::zeroed(5000);
        assert_eq!(buf.len(), 8192);
        assert_eq!(buf.as_ptr().addr() % IO_ALIGN, 0);
        assert!(buf.iter().all(|b| *b == 0));
        assert_eq!(&AlignedBuf::copied(b"abc")[..4], b"abc\0");
    }
}
