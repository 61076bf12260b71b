//! Byte encoding of the vocabulary: little-endian, fixed order of fields, no padding.
//!
//! Used for the bodies of frames (`proto/src/frame.rs`), the journal's records
//! (`node/core/src/record.rs`) and nothing else. It has no version of its own: the hello and the
//! superblock carry it. Decoding trusts nothing: lengths are checked against what is left, so that
//! no input makes it allocate more than the input's own size times a small factor.

use crate::blocks::{BlockRange, Sums};
use crate::config::{ChunkConfig, StaleInfo};
use crate::epoch::{Epoch, Generation, Lsn, SessionId, StartNumber, Term};
use crate::geometry::Geometry;
use crate::id::{
    ChunkId, ChunkIndex, Incarnation, NodeId, ReplicaId, RequestId, StoreId, VolumeId, ZoneId,
};
use crate::message::data::{
    HelloRefusal, History, Lane, Network, NotReady, PeerRefusal, Refusal, Stamp, TokenRefusal,
    Uncommitted,
};
use crate::time::Time;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
/// Where encoded bytes go.
#[doc(no_inline)]
pub use bytes::BufMut;
use thiserror::Error;

/// Why bytes are not the value they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The bytes end before the value does, or a length names more than is left.
    #[error("the bytes end too early")]
    Short,
    /// A number that stands for no case.
    #[error("{0} is no known case here")]
    Case(u8),
    /// A value that its type refuses.
    #[error("a value is out of bounds")]
    Value,
    /// Bytes are left over.
    #[error("bytes are left over after the value")]
    Trailing,
}

/// Takes values off the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] if there are fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next bytes as an array.
    ///
    /// # Errors
    /// [`CodecError::Short`] if there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// All bytes not read yet.
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.rest = &[];
        rest
    }

    /// Bytes not read yet.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`CodecError::Trailing`] if bytes are left over.
    pub const fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}

/// A value with a byte form.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut impl BufMut);

    /// Takes a value off the front.
    ///
    /// # Errors
    /// If the bytes are not such a value.
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError>;
}

/// Decodes a whole slice as one value.
///
/// # Errors
/// If the bytes are not such a value, or more than it.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut reader = Reader::new(bytes);
    let value = T::get(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Encodes one value into bytes of its own.
#[must_use]
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

macro_rules! wire_numbers {
    ($($number:ty => $put:ident),*) => {$(
        impl Wire for $number {
            fn put(&self, out: &mut impl BufMut) {
                out.$put(*self);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
                Ok(Self::from_le_bytes(from.array()?))
            }
        }
    )*};
}

wire_numbers!(u8 => put_u8, u16 => put_u16_le, u32 => put_u32_le, u64 => put_u64_le, u128 => put_u128_le);

/// Gives structs a byte form: their fields in the order named.
#[macro_export]
macro_rules! wire_struct {
    ($($name:ident { $($field:tt),* $(,)? })*) => {$(
        impl $crate::codec::Wire for $name {
            fn put(&self, out: &mut impl $crate::codec::BufMut) {
                $($crate::codec::Wire::put(&self.$field, out);)*
            }
            fn get(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::CodecError> {
                Ok(Self { $($field: $crate::codec::Wire::get(from)?),* })
            }
        }
    )*};
}

impl Wire for bool {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(u8::from(*self));
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(CodecError::Case(other)),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut impl BufMut) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(if bool::get(from)? { Some(T::get(from)?) } else { None })
    }
}

impl<T: Wire> Wire for Box<T> {
    fn put(&self, out: &mut impl BufMut) {
        (**self).put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        T::get(from).map(Self::new)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut impl BufMut) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let count = u32::get(from)? as usize;
        // Every item takes at least a byte, so a lied length is refused before it allocates.
        if count > from.left() {
            return Err(CodecError::Short);
        }
        let mut items = Self::with_capacity(count.min(4_096));
        for _ in 0..count {
            items.push(T::get(from)?);
        }
        Ok(items)
    }
}

impl Wire for String {
    fn put(&self, out: &mut impl BufMut) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        out.put_slice(self.as_bytes());
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let bytes = {
            let count = u32::get(from)? as usize;
            from.take(count)?
        };
        core::str::from_utf8(bytes).map(Self::from).map_err(|_| CodecError::Value)
    }
}

impl Wire for Geometry {
    fn put(&self, out: &mut impl BufMut) {
        self.size_bytes().put(out);
        self.chunk_bytes().put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let (size_bytes, chunk_bytes) = Wire::get(from)?;
        Self::new(size_bytes, chunk_bytes).map_err(|_| CodecError::Value)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut impl BufMut) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok((A::get(from)?, B::get(from)?))
    }
}

impl Wire for ZoneId {
    fn put(&self, out: &mut impl BufMut) {
        out.put_slice(&self.to_bytes());
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Self::from_bytes(from.array()?).map_err(|_| CodecError::Value)
    }
}

/// Gives newtypes of one number a byte form.
macro_rules! wire_newtype {
    ($($name:ident),*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut impl BufMut) {
                self.0.put(out);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
                Wire::get(from).map(Self)
            }
        }
    )*};
}

wire_newtype!(ChunkIndex, NodeId, StoreId, Incarnation, RequestId);
wire_newtype!(Epoch, Generation, SessionId, StartNumber);

mod structs {
    use super::{
        BlockRange, ChunkConfig, ChunkId, History, Lsn, ReplicaId, StaleInfo, Stamp, Term,
        Uncommitted, VolumeId,
    };
    wire_struct! {
        VolumeId { zone, uuid }
        ChunkId { volume, index }
        ReplicaId { node, store, incarnation }
        Term { elected, start }
        Lsn { term, counter }
        BlockRange { first, count }
        StaleInfo { last_in_sync, suspect }
        ChunkConfig {
            chunk, blocks, epoch, elected, generation, primary, in_sync, learners, stale,
            copies_wanted, copies_min,
        }
        Stamp { chunk, epoch, generation, session }
        Uncommitted { lsn, range }
        History { last, committed, uncommitted }
    }
}

impl Wire for Sums {
    fn put(&self, out: &mut impl BufMut) {
        match self {
            Self::Holes => out.put_u8(0),
            Self::Full(sums) => {
                out.put_u8(1);
                sums.put(out);
            }
            Self::Mixed(sums) => {
                out.put_u8(2);
                sums.put(out);
            }
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        match u8::get(from)? {
            0 => Ok(Self::Holes),
            1 => Vec::get(from).map(Self::Full),
            2 => Vec::get(from).map(Self::Mixed),
            other => Err(CodecError::Case(other)),
        }
    }
}

impl Wire for Network {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(match self {
            Self::Primary => 0,
            Self::Replication => 1,
        });
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        match u8::get(from)? {
            0 => Ok(Self::Primary),
            1 => Ok(Self::Replication),
            other => Err(CodecError::Case(other)),
        }
    }
}

impl Wire for Lane {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(match self {
            Self::Data => 0,
            Self::Beats => 1,
        });
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        match u8::get(from)? {
            0 => Ok(Self::Data),
            1 => Ok(Self::Beats),
            other => Err(CodecError::Case(other)),
        }
    }
}

impl Wire for Time {
    fn put(&self, out: &mut impl BufMut) {
        self.as_nanos().put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        u64::get(from).map(Self::from_nanos)
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut impl BufMut) {
        out.put_slice(self);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        from.take(N)?.try_into().map_err(|_| CodecError::Short)
    }
}

impl Wire for HelloRefusal {
    fn put(&self, out: &mut impl BufMut) {
        match self {
            Self::Version { ours, theirs } => {
                out.put_u8(0);
                ours.put(out);
                theirs.put(out);
            }
            Self::Zone => out.put_u8(1),
            Self::Network => out.put_u8(2),
            Self::Full => out.put_u8(3),
            Self::Token(refusal) => {
                out.put_u8(4);
                refusal.put(out);
            }
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match u8::get(from)? {
            0 => Self::Version { ours: u16::get(from)?, theirs: u16::get(from)? },
            1 => Self::Zone,
            2 => Self::Network,
            3 => Self::Full,
            4 => Self::Token(Wire::get(from)?),
            other => return Err(CodecError::Case(other)),
        })
    }
}

/// In the order of their numbers.
const TOKEN_REFUSALS: [TokenRefusal; 8] = [
    TokenRefusal::Missing,
    TokenRefusal::Malformed,
    TokenRefusal::Version,
    TokenRefusal::Signature,
    TokenRefusal::OtherAttachment,
    TokenRefusal::Expired,
    TokenRefusal::Superseded,
    TokenRefusal::NoKey,
];

impl Wire for TokenRefusal {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(*self as u8);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        let number = u8::get(from)?;
        TOKEN_REFUSALS.get(usize::from(number)).copied().ok_or(CodecError::Case(number))
    }
}

impl Wire for Refusal {
    fn put(&self, out: &mut impl BufMut) {
        match self {
            Self::WrongEpoch(config) => {
                out.put_u8(0);
                config.put(out);
            }
            Self::NotPrimary(config) => {
                out.put_u8(1);
                config.put(out);
            }
            Self::WrongGeneration { current } => {
                out.put_u8(2);
                current.put(out);
            }
            Self::SessionEnded => out.put_u8(3),
            Self::UnknownChunk => out.put_u8(4),
            Self::NotReady(NotReady::OpeningTerm) => out.put_u8(5),
            Self::NotReady(NotReady::QueueFull) => out.put_u8(6),
            Self::BadRequest => out.put_u8(7),
            Self::Unreadable(range) => {
                out.put_u8(8);
                range.put(out);
            }
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match u8::get(from)? {
            0 => Self::WrongEpoch(Box::get(from)?),
            1 => Self::NotPrimary(Box::get(from)?),
            2 => Self::WrongGeneration { current: Generation::get(from)? },
            3 => Self::SessionEnded,
            4 => Self::UnknownChunk,
            5 => Self::NotReady(NotReady::OpeningTerm),
            6 => Self::NotReady(NotReady::QueueFull),
            7 => Self::BadRequest,
            8 => Self::Unreadable(BlockRange::get(from)?),
            other => return Err(CodecError::Case(other)),
        })
    }
}

impl Wire for PeerRefusal {
    fn put(&self, out: &mut impl BufMut) {
        match self {
            Self::LowerEpoch(config) => {
                out.put_u8(0);
                config.put(out);
            }
            Self::LowerTerm(term) => {
                out.put_u8(1);
                term.put(out);
            }
            Self::NotAdopted(epoch) => {
                out.put_u8(2);
                epoch.put(out);
            }
            Self::Gap(lsn) => {
                out.put_u8(3);
                lsn.put(out);
            }
            Self::OtherStart(start) => {
                out.put_u8(4);
                start.put(out);
            }
            Self::NotHeld => out.put_u8(5),
            Self::Damaged(range) => {
                out.put_u8(6);
                range.put(out);
            }
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match u8::get(from)? {
            0 => Self::LowerEpoch(Box::get(from)?),
            1 => Self::LowerTerm(Term::get(from)?),
            2 => Self::NotAdopted(Epoch::get(from)?),
            3 => Self::Gap(Lsn::get(from)?),
            4 => Self::OtherStart(StartNumber::get(from)?),
            5 => Self::NotHeld,
            6 => Self::Damaged(BlockRange::get(from)?),
            other => return Err(CodecError::Case(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_lied_length_is_refused_before_it_allocates() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.push(0);
        assert_eq!(decode::<Vec<u64>>(&bytes), Err(CodecError::Short));
    }

    #[test]
    fn values_survive_and_every_truncation_is_refused() {
        let history = History {
            last: Lsn { term: Term { elected: Epoch(2), start: StartNumber(3) }, counter: 9 },
            committed: Lsn::ZERO,
            uncommitted: vec![Uncommitted { lsn: Lsn::ZERO, range: BlockRange::new(1, 2) }],
        };
        let bytes = encode(&history);
        assert_eq!(decode::<History>(&bytes), Ok(history));
        for end in 0..bytes.len() {
            assert!(decode::<History>(&bytes[..end]).is_err(), "{end}");
        }
    }
}
