//! A disk that says that it has synced and has not: the control.

use ashlar_env::disk::{Disk, DiskError, DiskFile, OpenHow};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub(crate) struct Unsynced(pub(crate) Arc<dyn Disk>);

#[derive(Debug)]
struct File(Arc<dyn DiskFile>);

impl Disk for Unsynced {
    fn open(&self, name: &str, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(Arc::new(File(self.0.open(name, how)?)))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.0.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename(from, to)
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.0.list()
    }
}

impl DiskFile for File {
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
