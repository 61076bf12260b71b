//! The signed right of an attachment: nodes admit a client by it without asking anyone
//! (design.md 4.8).
//!
//! ```text
//! byte 0..2   version, little-endian; another one is refused by name
//! then        volume, generation, rights, expiry (types/src/codec.rs)
//! last 64     Ed25519 signature (RFC 8032) over everything before, by the key of the zone
//! ```
//!
//! The control plane signs; nodes know the public half only, so that a node cannot make rights. The
//! expiry bounds the first admission: what a node has admitted stays valid until a newer generation
//! is known, because the I/O of an attached volume must not depend on the control plane.

use ashlar_types::codec::{BufMut, CodecError, Reader, Wire};
use ashlar_types::message::data::TokenRefusal;
use ashlar_types::{Generation, VolumeId};
use ed25519_dalek::{SIGNATURE_LENGTH, Signature, Signer, SigningKey, VerifyingKey};

/// Version of the token's bytes that this build writes and reads.
pub const TOKEN_VERSION: u16 = 1;
/// Bytes of either half of a zone's key.
pub const KEY_BYTES: usize = 32;
/// For how long a token admits a client for the first time, in seconds: a day.
pub const TOKEN_LIFE_SECONDS: u64 = 24 * 60 * 60;

/// What an attachment may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Reads alone.
    Read,
    /// Reads, writes, trims.
    ReadWrite,
}

/// What a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The volume.
    pub volume: VolumeId,
    /// The attachment.
    pub generation: Generation,
    /// What it may do.
    pub rights: Rights,
    /// Seconds since 1970 from which on it admits nobody new.
    pub expires: u64,
}

impl Grant {
    fn signed_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16_le(TOKEN_VERSION);
        self.volume.put(&mut out);
        self.generation.put(&mut out);
        out.put_u8(match self.rights {
            Rights::Read => 0,
            Rights::ReadWrite => 1,
        });
        self.expires.put(&mut out);
        out
    }

    fn read(bytes: &[u8]) -> Result<Self, TokenRefusal> {
        let malformed = |_: CodecError| TokenRefusal::Malformed;
        let mut reader = Reader::new(bytes);
        if u16::get(&mut reader).map_err(malformed)? != TOKEN_VERSION {
            return Err(TokenRefusal::Version);
        }
        let volume = Wire::get(&mut reader).map_err(malformed)?;
        let generation = Wire::get(&mut reader).map_err(malformed)?;
        let rights = match u8::get(&mut reader).map_err(malformed)? {
            0 => Rights::Read,
            1 => Rights::ReadWrite,
            _unknown => return Err(TokenRefusal::Malformed),
        };
        let expires = Wire::get(&mut reader).map_err(malformed)?;
        reader.finish().map_err(malformed)?;
        Ok(Self { volume, generation, rights, expires })
    }
}

/// The secret half of a zone's key. Held by its control plane alone.
#[derive(Clone, Debug)]
pub struct Signs(SigningKey);

impl Signs {
    /// The key that these bytes are; any 32 bytes are one.
    #[must_use]
    pub fn from_secret(secret: &[u8; KEY_BYTES]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The half that nodes know.
    #[must_use]
    pub fn public(&self) -> [u8; KEY_BYTES] {
        self.0.verifying_key().to_bytes()
    }

    /// A token.
    #[must_use]
    pub fn sign(&self, grant: &Grant) -> Vec<u8> {
        let mut token = grant.signed_bytes();
        let signature = self.0.sign(&token);
        token.extend(signature.to_bytes());
        token
    }
}

/// The public half of a zone's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verifies(VerifyingKey);

impl Verifies {
    /// The key that these bytes are; `None` if they are none.
    #[must_use]
    pub fn from_public(public: &[u8; KEY_BYTES]) -> Option<Self> {
        VerifyingKey::from_bytes(public).ok().map(Self)
    }

    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0.to_bytes()
    }

    /// What a token says, if the zone has signed it. Its expiry is the caller's to judge.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&self, token: &[u8]) -> Result<Grant, TokenRefusal> {
        if token.is_empty() {
            return Err(TokenRefusal::Missing);
        }
        let (said, signature) = token
            .len()
            .checked_sub(SIGNATURE_LENGTH)
            .and_then(|at| token.split_at_checked(at))
            .ok_or(TokenRefusal::Malformed)?;
        // The version first: a later one may be signed otherwise.
        let grant = Grant::read(said)?;
        let signature = Signature::from_slice(signature).map_err(|_| TokenRefusal::Malformed)?;
        self.0.verify_strict(said, &signature).map_err(|_| TokenRefusal::Signature)?;
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            volume: VolumeId { zone: "a".parse().unwrap(), uuid: 7 },
            generation: Generation(3),
            rights: Rights::ReadWrite,
            expires: 1_000,
        }
    }

    #[test]
    fn a_token_says_what_was_signed_and_only_to_the_zone_s_key() {
        let signs = Signs::from_secret(&[7; KEY_BYTES]);
        let key = Verifies::from_public(&signs.public()).unwrap();
        assert_eq!(key.read(&signs.sign(&grant())), Ok(grant()));
        let other = Signs::from_secret(&[8; KEY_BYTES]).sign(&grant());
        assert_eq!(key.read(&other), Err(TokenRefusal::Signature));
        assert_eq!(key.read(&[]), Err(TokenRefusal::Missing));
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed() {
        let signs = Signs::from_secret(&[7; KEY_BYTES]);
        let key = Verifies::from_public(&signs.public()).unwrap();
        let token = signs.sign(&grant());
        for bit in 0..token.len() * 8 {
            let mut changed = token.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.read(&changed).is_err(), "bit {bit}");
        }
        for length in 0..token.len() {
            assert!(key.read(&token[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let token = Signs::from_secret(&[7; KEY_BYTES]).sign(&grant());
        let text: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, include_str!("token.fixture").trim());
    }
}
