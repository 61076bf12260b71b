//! A disk that says that it has synced some of its files, and has not: the control of tests that cut power.
//! What they judge shows something only if it fails without a sync.
//!
//! All files are opened through the page cache, whose loss is what such a test sees: a write that passes it
//! by is in the image of a disk at once, synced or not. Folder changes are synced as they should be.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Disk, DiskError, DiskFile, OpenHow};

/// See the module.
#[derive(Debug)]
pub struct Unsynced {
    disk: Arc<dyn Disk>,
    /// Names of its files begin so.
    files: Option<String>,
}

impl Unsynced {
    /// Syncs of files whose names begin so do nothing and report success.
    #[must_use]
    pub fn files(disk: Arc<dyn Disk>, beginning: &str) -> Self {
        Self { disk, files: Some(beginning.to_owned()) }
    }

    /// Every file is synced: what it is to be held against.
    #[must_use]
    pub fn none(disk: Arc<dyn Disk>) -> Self {
        Self { disk, files: None }
    }
}

impl Disk for Unsynced {
    fn open(&self, name: &str, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        let how = if how.creates() { OpenHow::CREATE } else { OpenHow::EXISTING };
        let file = self.disk.open(name, how)?;
        let lies = self.files.as_ref().is_some_and(|beginning| name.starts_with(beginning));
        Ok(if lies { Arc::new(UnsyncedFile(file)) } else { file })
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.disk.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        self.disk.sync_dir()
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.disk.list()
    }
}

#[derive(Debug)]
struct UnsyncedFile(Arc<dyn DiskFile>);

impl DiskFile for UnsyncedFile {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.0.write_at(buf, offset)
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.0.write_at(buf, offset)
    }

    fn preallocate(&self, size: u64) -> Result<(), DiskError> {
        self.0.preallocate(size)
    }

    fn truncate(&self, size: u64) -> Result<(), DiskError> {
        self.0.truncate(size)
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::SeededDice;
    use crate::disk::mem::{MemDisk, Survivors};

    #[test]
    fn a_file_that_is_not_synced_is_lost_and_the_others_are_not() {
        let mem = MemDisk::new();
        let disk = Unsynced::files(Arc::new(mem.clone()), "journal");
        for name in ["journal-1", "data"] {
            let file = disk.open(name, OpenHow::CREATE.direct()).unwrap();
            assert!(!file.is_direct());
            disk.sync_dir().unwrap();
            file.write_durable(&[7; 8], 0).unwrap();
            file.sync_data().unwrap();
        }
        mem.crash_with(Survivors::Nothing, &mut SeededDice::new(1));
        let size = |name| mem.open(name, OpenHow::EXISTING).unwrap().size().unwrap();
        assert_eq!((size("journal-1"), size("data")), (0, 8));
    }
}
