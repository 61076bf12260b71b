//! Snapshots as files: written beside, synced, renamed, so that a name always means a whole file.
//!
//! ```text
//! byte 0..8    "ASHSNAP2"; another digit is another version (1: without learners, still read)
//! byte 8..12   CRC32C of everything after it
//! byte 12..20  length of the rest, little-endian
//! byte 20..    the snapshot (controlplane/raft/src/message.rs)
//! ```
//!
//! Path: below the log; the newest file is what a member starts from, the one before it is kept
//! until the newer one is durable.

use crate::message::WireSnapshot;
use crate::storage::StorageError;
use ashlar_env::disk::{Disk, DiskError, DiskFile, OpenHow};
use prost::Message as _;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"ASHSNAP2";
/// Of the version before, which knew no learners.
const MAGIC_1: &[u8; 8] = b"ASHSNAP1";
const HEAD: usize = 20;
const UNFINISHED: &str = "unfinished";
const PREFIX: &str = "snapshot-";

/// The snapshot files of one member.
#[derive(Debug)]
pub(crate) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
}

impl SnapshotFiles {
    /// The files in a folder of their own.
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }

    /// The newest snapshot; `None` if there never was one.
    pub(crate) fn newest(&self) -> Result<Option<WireSnapshot>, StorageError> {
        let names = self.disk.list()?;
        let newest = names.iter().filter(|name| name.starts_with(PREFIX)).max();
        newest.map(|name| self.read(name)).transpose()
    }

    /// Makes the names durable that are there: nothing may rest on a snapshot before.
    pub(crate) fn sync_names(&self) -> Result<(), StorageError> {
        Ok(self.disk.sync_dir()?)
    }

    fn read(&self, name: &str) -> Result<WireSnapshot, StorageError> {
        let damaged = |why| StorageError::Snapshot { name: name.to_owned(), why };
        let file = self.disk.open(name, OpenHow::EXISTING)?;
        let size = usize::try_from(file.size()?).map_err(|_| damaged("it is too large"))?;
        let mut bytes = vec![0; size];
        file.read_at(&mut bytes, 0)?;
        let (head, body) = bytes.split_at_checked(HEAD).ok_or_else(|| damaged("it is cut off"))?;
        let (magic, rest) = head.split_at(MAGIC.len());
        if magic.get(..7) != MAGIC.get(..7) {
            return Err(damaged("it does not start like a snapshot"));
        }
        if magic != MAGIC && magic != MAGIC_1 {
            return Err(damaged("it is of a version that this release does not read"));
        }
        let (crc, len) = rest.split_at(4);
        if len != (body.len() as u64).to_le_bytes() {
            return Err(damaged("its length is wrong"));
        }
        if crc != crc32c::crc32c(body).to_le_bytes() {
            return Err(damaged("its checksum is wrong"));
        }
        WireSnapshot::decode(body).map_err(|_| damaged("it cannot be decoded"))
    }

    /// Writes a snapshot; on return it is durable and older ones are gone.
    pub(crate) fn write(&self, snapshot: &WireSnapshot) -> Result<(), StorageError> {
        let body = snapshot.encode_to_vec();
        let mut bytes = Vec::with_capacity(HEAD + body.len());
        bytes.extend(MAGIC);
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        match self.disk.remove(UNFINISHED) {
            Ok(()) | Err(DiskError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let file: Arc<dyn DiskFile> = self.disk.open(UNFINISHED, OpenHow::CREATE)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        let name = format!("{PREFIX}{:020}", snapshot.index);
        self.disk.rename(UNFINISHED, &name)?;
        self.disk.sync_dir()?;
        for old in self.disk.list()?.iter().filter(|old| old.starts_with(PREFIX) && **old < name) {
            self.disk.remove(old)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_env::dice::SeededDice;
    use ashlar_env::disk::mem::MemDisk;
    use bytes::Bytes;

    fn snapshot(index: u64) -> WireSnapshot {
        let data = Bytes::from(vec![7; 5_000]);
        WireSnapshot { index, term: 2, voters: vec![1, 2, 3], learners: vec![], data }
    }

    #[test]
    fn after_a_crash_at_any_step_the_newest_whole_snapshot_is_found() {
        for stop in 1..12 {
            let disk = MemDisk::new();
            let files = SnapshotFiles::new(Arc::new(disk.clone()));
            files.write(&snapshot(10)).unwrap();
            disk.stop_after(stop);
            let written = files.write(&snapshot(20)).is_ok();
            disk.crash(&mut SeededDice::new(stop));
            let files = SnapshotFiles::new(Arc::new(disk));
            let found = files.newest().unwrap().unwrap();
            assert!(found == snapshot(20) || (!written && found == snapshot(10)), "stop {stop}");
        }
    }

    #[test]
    fn a_snapshot_of_version_1_is_read() {
        use prost::Message as _;
        // Without learners the bytes are those of the release before, but for the digit.
        let body = snapshot(10).encode_to_vec();
        let mut bytes = MAGIC_1.to_vec();
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        let disk = MemDisk::new();
        let file = disk.open(&format!("{PREFIX}{:020}", 10), OpenHow::CREATE).unwrap();
        file.write_at(&bytes, 0).unwrap();
        let files = SnapshotFiles::new(Arc::new(disk));
        assert_eq!(files.newest().unwrap(), Some(snapshot(10)));
    }

    #[test]
    fn damage_is_named_never_taken_for_a_snapshot() {
        let disk = MemDisk::new();
        let files = SnapshotFiles::new(Arc::new(disk.clone()));
        assert_eq!(files.newest().unwrap(), None);
        files.write(&snapshot(10)).unwrap();
        let name = format!("{PREFIX}{:020}", 10);
        for offset in [0, 7, 9, 13, 21, 3_000] {
            disk.flip(&name, offset).unwrap();
            assert!(matches!(files.newest(), Err(StorageError::Snapshot { .. })), "{offset}");
            disk.flip(&name, offset).unwrap();
        }
        assert_eq!(files.newest().unwrap(), Some(snapshot(10)));
    }
}
