//! Gives enums a byte form: one byte for the case, then its fields in the order named.

/// Implements [`ashlar_types::codec::Wire`] for an enum with the case numbers given. A number is
/// never given to another case: bytes of older releases stay readable.
macro_rules! wire_enum {
    ($name:ident { $($tag:literal => $case:ident { $($field:ident),* $(,)? }),* $(,)? }) => {
        impl ashlar_types::codec::Wire for $name {
            fn put(&self, out: &mut impl ashlar_types::codec::BufMut) {
                match self {
                    $(Self::$case { $($field),* } => {
                        ashlar_types::codec::Wire::put(&{ let tag: u8 = $tag; tag }, out);
                        $(ashlar_types::codec::Wire::put($field, out);)*
                    })*
                }
            }
            fn get(
                from: &mut ashlar_types::codec::Reader<'_>,
            ) -> Result<Self, ashlar_types::codec::CodecError> {
                match <u8 as ashlar_types::codec::Wire>::get(from)? {
                    $($tag => Ok(Self::$case {
                        $($field: ashlar_types::codec::Wire::get(from)?),*
                    }),)*
                    other => Err(ashlar_types::codec::CodecError::Case(other)),
                }
            }
        }
    };
}

pub(crate) use wire_enum;
