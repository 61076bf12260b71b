//! Names of things. Each id is its own type, so that one is never passed for another.

use core::fmt;
use core::str::FromStr;
use thiserror::Error;

/// Why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// A zone name is 1 to 8 of `a-z`, `0-9`.
    #[error("a zone name has 1 to 8 characters of a-z and 0-9")]
    Zone,
    /// A volume id is `vol-<zone>-<32 hex digits>`.
    #[error("a volume id reads vol-<zone>-<32 hex digits>")]
    Volume,
    /// A node id is a number, or `node-<number>`.
    #[error("a node id is a number from 1 to 4294967295, or node-<number>")]
    Node,
    /// A store id is 32 hex digits.
    #[error("a store id has 32 hex digits")]
    Store,
}

/// Name of a zone (failure domain with its own nodes and control plane): 1 to 8 characters of
/// `a-z0-9`, padded with zeros. Never empty once parsed; the default is the empty name.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId([u8; 8]);

impl ZoneId {
    /// The eight bytes as they stand in frames and on disk.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }

    /// From the eight bytes of a frame or disk record.
    ///
    /// # Errors
    /// [`IdError::Zone`] if they are not a padded zone name.
    pub fn from_bytes(bytes: [u8; 8]) -> Result<Self, IdError> {
        let len = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let (name, rest) = bytes.split_at(len);
        let good = name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if len == 0 || !good || rest.iter().any(|b| *b != 0) {
            return Err(IdError::Zone);
        }
        Ok(Self(bytes))
    }
}

impl FromStr for ZoneId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = [0_u8; 8];
        let raw = text.as_bytes();
        bytes.get_mut(..raw.len()).ok_or(IdError::Zone)?.copy_from_slice(raw);
        Self::from_bytes(bytes)
    }
}

impl fmt::Display for ZoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take_while(|b| **b != 0).try_for_each(|b| write!(f, "{}", char::from(*b)))
    }
}

impl fmt::Debug for ZoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Id of a volume: its zone, so that routing needs no directory, and a UUID of version 7, so that
/// ids sort by creation. Text form `vol-<zone>-<32 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId {
    /// The zone that holds every replica of the volume.
    pub zone: ZoneId,
    /// UUID v7 as a big-endian number.
    pub uuid: u128,
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vol-{}-{:032x}", self.zone, self.uuid)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for VolumeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (zone, hex) = text
            .strip_prefix("vol-")
            .and_then(|rest| rest.rsplit_once('-'))
            .ok_or(IdError::Volume)?;
        if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Volume);
        }
        let uuid = u128::from_str_radix(hex, 16).map_err(|_| IdError::Volume)?;
        Ok(Self { zone: zone.parse()?, uuid })
    }
}

/// Position of a chunk in its volume, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

/// A fixed-size piece of a volume: the unit of replication, election and re-mirroring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    /// The volume.
    pub volume: VolumeId,
    /// Which piece of it.
    pub index: ChunkIndex,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.index.0)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Number of a storage node in its zone, given by configuration; 0 is never used.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for NodeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("node-").unwrap_or(text).parse() {
            Ok(0) | Err(_) => Err(IdError::Node),
            Ok(number) => Ok(Self(number)),
        }
    }
}

/// Random id of a store (one disk of a node). An empty disk is another store.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u128);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store-{:08x}", self.0 >> 96)
    }
}

impl FromStr for StoreId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Store);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| IdError::Store)
    }
}

/// Distinguishes two copies of one chunk that one store held at different times: the epoch of the
/// configuration in which the copy first appeared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// One copy of a chunk (design.md section 3): an empty, foreign or other store is another replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The node that holds it.
    pub node: NodeId,
    /// The store on that node.
    pub store: StoreId,
    /// Which copy, should the store hold the chunk a second time.
    pub incarnation: Incarnation,
}

/// Number of a request on one connection; never reused while the connection lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn volume_ids_survive_their_text_form() {
        let id = VolumeId {
            zone: "a".parse().unwrap(),
            uuid: 0x0190_0000_0000_7000_8000_0000_0000_0001,
        };
        assert_eq!(id.to_string().parse::<VolumeId>(), Ok(id));
    }

    #[test]
    fn texts_that_are_no_ids_are_refused() {
        for text in [
            "",
            "vol-",
            "vol-a-12",
            "vol-A-00000000000000000000000000000001",
            "vol--00000000000000000000000000000001",
            "vol-a-+0000000000000000000000000000001",
        ] {
            assert!(text.parse::<VolumeId>().is_err(), "{text}");
        }
        assert!("".parse::<ZoneId>().is_err());
        assert!("toolongname".parse::<ZoneId>().is_err());
        assert!("0".parse::<NodeId>().is_err());
        assert_eq!("node-7".parse(), Ok(NodeId(7)));
    }
}
