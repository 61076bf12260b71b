//! sled 0.34.7 behind the seam, with what it does not do itself.
//!
//! Measured: `flush()` alone lost the store at 12 of 14 power cuts (sled issues no fdatasync), and
//! damaged files make it panic. So, here and nowhere else:
//! 1. after every `flush()`, fdatasync of sled's `db` file through a descriptor of our own; fsync of
//!    all files and folders at creation;
//! 2. left-over `snap.*.generating` files are removed before the open;
//! 3. every value carries a version and a CRC32C over key and value;
//! 4. the open runs on a thread of its own that may panic, and reads everything once; what is
//!    damaged is moved aside, said loudly, and an empty store opened for the caller to fill; an old
//!    store that comes up empty counts as damaged (sled drops what it cannot read);
//! 5. the applied index travels in the same batch as the state;
//! 6. cache and size are limited.
//!
//! Value on disk: `0 version u8 (1) | 1..5 CRC32C u32 LE over (version, key length u32 LE, key, value) | 5.. value`.
//! The store's own keys start with byte 0x00; callers' keys are stored behind a byte 0x01.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Found, MetaBatch, MetaError, MetaOp, MetaStore, Pair, check_batch, shown};
use crate::task::{exempt_from_abort, spawn_thread};

const VALUE_VERSION: u8 = 1;
const VALUE_HEAD: usize = 5;
const APPLIED_KEY: &[u8] = b"\0applied";
/// Present in every store since its creation: a store that sled opens empty after damage lacks it.
const MARK_KEY: &[u8] = b"\0ashlar";
const USER: u8 = 1;
/// How long the process before this one may take to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Limits.
#[derive(Clone, Copy, Debug)]
pub struct SledTuning {
    /// Bytes of page cache.
    pub cache_bytes: u64,
    /// Bytes on disk at which puts are refused. Beyond 256 MiB sled's memory and start time grow
    /// out of proportion.
    pub size_limit: u64,
}

impl Default for SledTuning {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, size_limit: 256 << 20 }
    }
}

/// Where and how to open.
#[derive(Clone, Debug)]
pub struct SledOptions {
    /// Folder of the store, its own.
    pub folder: PathBuf,
    /// Limits.
    pub tuning: SledTuning,
}

/// The store.
#[derive(Debug)]
pub struct SledStore {
    db: sled::Db,
    /// sled's log, for our own fdatasync.
    log: File,
    folder: PathBuf,
    size_limit: u64,
    /// One committer at a time: check of the index and batch belong together.
    commit: Mutex<()>,
}

impl SledStore {
    /// Opens the store, creating it if missing, moving it aside if damaged.
    ///
    /// # Errors
    /// `Engine` when even an empty store cannot be opened, or the folder is held by another process.
    pub fn open(options: &SledOptions) -> Result<(Self, Found), MetaError> {
        let new = !options.folder.join("db").exists();
        match guarded_open(options) {
            Ok(store) => Ok((store, if new { Found::New } else { Found::Existing })),
            // A lock held by someone else is not damage.
            Err(OpenFailure::Refused(e)) => Err(e),
            Err(OpenFailure::Damaged(cause)) => {
                let moved_to = move_aside(&options.folder)?;
                tracing::error!(
                    folder = %options.folder.display(), moved_to = %moved_to.display(), %cause,
                    "the metadata store is damaged; it was moved aside and will be rebuilt"
                );
                match guarded_open(options) {
                    Ok(store) => Ok((store, Found::Rebuilt { moved_to, cause })),
                    Err(OpenFailure::Refused(e)) => Err(e),
                    Err(OpenFailure::Damaged(cause)) => {
                        Err(MetaError::Engine { what: "open", cause })
                    }
                }
            }
        }
    }

    /// The engine itself, past all checks.
    #[cfg(test)]
    pub(super) fn db_for_test(&self) -> &sled::Db {
        &self.db
    }

    fn sync_files(&self) -> Result<(), MetaError> {
        self.log.sync_data().map_err(|e| engine("flush", &e))
    }
}

enum OpenFailure {
    /// Not damage: report and leave the files alone.
    Refused(MetaError),
    /// Damage, in words.
    Damaged(String),
}

/// Opens and reads everything once, on a thread that may panic.
fn guarded_open(options: &SledOptions) -> Result<SledStore, OpenFailure> {
    prepare(&options.folder).map_err(OpenFailure::Refused)?;
    let exemption = exempt_from_abort();
    let options = options.clone();
    let opener =
        spawn_thread("sled-open", move || std::panic::catch_unwind(|| open_and_verify(&options)))
            .map_err(|e| OpenFailure::Refused(engine("open", &e)))?;
    let outcome = opener.join();
    drop(exemption);
    match outcome {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) | Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(OpenFailure::Damaged(text.unwrap_or_else(|| "a panic".to_owned())))
        }
    }
}

/// Creates the folder and removes what an interrupted snapshot of sled left.
fn prepare(folder: &Path) -> Result<(), MetaError> {
    std::fs::create_dir_all(folder).map_err(|e| engine("open", &e))?;
    for entry in std::fs::read_dir(folder).map_err(|e| engine("open", &e))? {
        let entry = entry.map_err(|e| engine("open", &e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %entry.path().display(), "removed an unfinished sled snapshot");
            std::fs::remove_file(entry.path()).map_err(|e| engine("open", &e))?;
        }
    }
    Ok(())
}

fn open_and_verify(options: &SledOptions) -> Result<SledStore, OpenFailure> {
    let new = !options.folder.join("db").exists();
    let config = sled::Config::new()
        .path(&options.folder)
        .cache_capacity(options.tuning.cache_bytes)
        // Flushing is ours; the background thread would only hide a forgotten flush.
        .flush_every_ms(None);
    let db = open_when_free(&config).map_err(open_failure)?;
    let log = File::open(options.folder.join("db"))
        .map_err(|e| OpenFailure::Refused(engine("open", &e)))?;
    let store = SledStore {
        db,
        log,
        folder: options.folder.clone(),
        size_limit: options.tuning.size_limit,
        commit: Mutex::new(()),
    };
    for pair in store.db.iter() {
        let (key, value) = pair.map_err(open_failure)?;
        match unwrap_value(&key, &value) {
            Ok(_) => {}
            Err(e @ MetaError::NewerVersion { .. }) => return Err(OpenFailure::Refused(e)),
            Err(e) => return Err(OpenFailure::Damaged(e.to_string())),
        }
    }
    let marked = store.db.contains_key(MARK_KEY).map_err(open_failure)?;
    if !new && !marked {
        return Err(OpenFailure::Damaged("an old store came up without its content".to_owned()));
    }
    if new {
        store
            .db
            .insert(MARK_KEY, wrap_value(MARK_KEY, b""))
            .map_err(|e| OpenFailure::Refused(engine("commit", &e)))?;
        store.db.flush().map_err(|e| OpenFailure::Refused(engine("flush", &e)))?;
        sync_tree(&store.folder).map_err(|e| OpenFailure::Refused(engine("flush", &e)))?;
    }
    Ok(store)
}

/// Opens; a lock that is held is waited for, a while: the process that was killed before this one,
/// and a store that was dropped in this one, let go of it a little late.
fn open_when_free(config: &sled::Config) -> sled::Result<sled::Db> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match config.open() {
            // sled says so in words only.
            Err(sled::Error::Io(e))
                if e.to_string().contains("could not acquire lock")
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(LOCK_RETRY);
            }
            opened => return opened,
        }
    }
}

fn open_failure(e: sled::Error) -> OpenFailure {
    match e {
        sled::Error::Corruption { .. }
        | sled::Error::CollectionNotFound(_)
        | sled::Error::ReportableBug(_) => OpenFailure::Damaged(e.to_string()),
        // A cut-off file shows up so.
        sled::Error::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            OpenFailure::Damaged(io.to_string())
        }
        sled::Error::Io(_) | sled::Error::Unsupported(_) => {
            OpenFailure::Refused(engine("open", &e))
        }
    }
}

/// fsync of every file and folder under `folder`, and of its parent.
fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()?;
    match folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Renames `folder` to the first free `<folder>.damaged-<n>`, durably.
fn move_aside(folder: &Path) -> Result<PathBuf, MetaError> {
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    for n in 1..10_000u32 {
        let to = folder.with_file_name(format!("{name}.damaged-{n}"));
        if to.exists() {
            continue;
        }
        std::fs::rename(folder, &to).map_err(|e| engine("move aside", &e))?;
        if let Some(parent) = to.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|f| f.sync_all()).map_err(|e| engine("move aside", &e))?;
        }
        return Ok(to);
    }
    Err(MetaError::Engine { what: "move aside", cause: "too many damaged folders".to_owned() })
}

fn engine(what: &'static str, e: &dyn std::error::Error) -> MetaError {
    MetaError::Engine { what, cause: e.to_string() }
}

fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(USER);
    out.extend_from_slice(key);
    out
}

fn checksum(stored_key: &[u8], value: &[u8]) -> u32 {
    let key_len = u32::try_from(stored_key.len()).unwrap_or(u32::MAX);
    let mut crc = crc32c::crc32c(&[VALUE_VERSION]);
    crc = crc32c::crc32c_append(crc, &key_len.to_le_bytes());
    crc = crc32c::crc32c_append(crc, stored_key);
    crc32c::crc32c_append(crc, value)
}

fn wrap_value(stored_key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(VALUE_HEAD + value.len());
    out.push(VALUE_VERSION);
    out.extend_from_slice(&checksum(stored_key, value).to_le_bytes());
    out.extend_from_slice(value);
    out
}

fn unwrap_value<'v>(stored_key: &[u8], stored: &'v [u8]) -> Result<&'v [u8], MetaError> {
    let damaged = || MetaError::Damaged { key: shown(stored_key) };
    let (version, rest) = stored.split_first().ok_or_else(damaged)?;
    let (crc, value) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    if *version > VALUE_VERSION {
        return Err(MetaError::NewerVersion {
            key: shown(stored_key),
            version: *version,
            supported: VALUE_VERSION,
        });
    }
    if *version != VALUE_VERSION || u32::from_le_bytes(*crc) != checksum(stored_key, value) {
        return Err(damaged());
    }
    Ok(value)
}

impl MetaStore for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        let key = stored_key(key);
        let found = self.db.get(&key).map_err(|e| engine("read", &e))?;
        found.map(|stored| unwrap_value(&key, &stored).map(<[u8]>::to_vec)).transpose()
    }

    fn scan_prefix(&self, prefix: &[u8]) -> Result<Vec<Pair>, MetaError> {
        let mut out = Vec::new();
        for pair in self.db.scan_prefix(stored_key(prefix)) {
            let (key, stored) = pair.map_err(|e| engine("read", &e))?;
            let value = unwrap_value(&key, &stored)?.to_vec();
            out.push((key.get(1..).unwrap_or_default().to_vec(), value));
        }
        Ok(out)
    }

    fn commit(&self, batch: MetaBatch) -> Result<(), MetaError> {
        let _turn = self.commit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        check_batch(&batch, self.applied_index()?)?;
        let mut changes = sled::Batch::default();
        let mut puts = false;
        for op in &batch.ops {
            match op {
                MetaOp::Put(key, value) => {
                    puts = true;
                    let key = stored_key(key);
                    let value = wrap_value(&key, value);
                    changes.insert(key, value);
                }
                MetaOp::Remove(key) => changes.remove(stored_key(key)),
                MetaOp::RemovePrefix(prefix) => {
                    // Keys put earlier in this very batch fall under the prefix too; sled's
                    // batch keeps the last change per key.
                    let earlier = batch.ops.iter().take_while(|o| !std::ptr::eq(*o, op));
                    for earlier in earlier {
                        if let MetaOp::Put(key, _) = earlier
                            && key.starts_with(prefix)
                        {
                            changes.remove(stored_key(key));
                        }
                    }
                    for key in self.db.scan_prefix(stored_key(prefix)).keys() {
                        changes.remove(key.map_err(|e| engine("read", &e))?);
                    }
                }
            }
        }
        let size = self.db.size_on_disk().map_err(|e| engine("read", &e))?;
        if puts && size > self.size_limit {
            return Err(MetaError::Full { size, limit: self.size_limit });
        }
        changes.insert(APPLIED_KEY, wrap_value(APPLIED_KEY, &batch.applied.to_le_bytes()));
        self.db.apply_batch(changes).map_err(|e| engine("commit", &e))
    }

    fn applied_index(&self) -> Result<u64, MetaError> {
        let Some(stored) = self.db.get(APPLIED_KEY).map_err(|e| engine("read", &e))? else {
            return Ok(0);
        };
        let value = unwrap_value(APPLIED_KEY, &stored)?;
        <[u8; 8]>::try_from(value)
            .map(u64::from_le_bytes)
            .map_err(|_| MetaError::Damaged { key: shown(APPLIED_KEY) })
    }

    fn flush(&self) -> Result<(), MetaError> {
        self.db.flush().map_err(|e| engine("flush", &e))?;
        self.sync_files()
    }
}
