//! A 4 KiB writer that never stops, and what it saw: pauses, and every acknowledged block.
//!
//! One write at a time, straight to a file or device (`O_DIRECT`), each block filled with its
//! number, so that what was acknowledged can be demanded back afterwards.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a block.
const BLOCK: usize = 4096;

/// A buffer that `O_DIRECT` accepts.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// What a writer saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Last acknowledged number of every written block.
    pub acknowledged: BTreeMap<u64, u64>,
    /// How long each write took, in the order of writing.
    pub times: Vec<(Instant, Duration)>,
    /// The first error, which ended the writer.
    pub error: Option<String>,
}

impl Seen {
    /// The longest write that ended after `from`.
    #[must_use]
    pub fn longest_since(&self, from: Instant) -> Duration {
        self.times
            .iter()
            .filter(|(began, took)| *began + *took >= from)
            .map(|(_, took)| *took)
            .max()
            .unwrap_or_default()
    }
}

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Seen>,
    path: PathBuf,
}

impl Writer {
    /// Writes blocks `0..blocks` of `path` in turn, again and again.
    #[must_use]
    pub fn start(path: &Path, blocks: u64) -> Self {
        Self::start_apart(path, blocks, 1)
    }

    /// The same with `stride` blocks from one to the next: in a chunk of its own each, say.
    #[must_use]
    pub fn start_apart(path: &Path, blocks: u64, stride: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let thread = {
            let (path, stop, count) = (path.to_path_buf(), stop.clone(), count.clone());
            std::thread::spawn(move || write_until(&path, blocks, stride, &stop, &count))
        };
        Self { stop, count, thread, path: path.to_path_buf() }
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends the writer and gives what it saw.
    #[must_use]
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer ends")
    }

    /// The file it writes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a file of `blocks` blocks whose space is really there, so that later writes change data
/// alone and need no further flush of the file system to last.
pub fn prepare(path: &Path, blocks: u64) {
    let bytes = usize::try_from(blocks).unwrap() * BLOCK;
    let mut file = std::fs::File::create(path).expect("make a file");
    file.write_all(&vec![0; bytes]).expect("fill it");
    file.sync_all().expect("flush it");
}

fn write_until(
    path: &Path,
    blocks: u64,
    stride: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Seen {
    let mut seen = Seen::default();
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("open for writing");
    let mut buffer = Box::new(Aligned([0; BLOCK]));
    for number in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let block = number % blocks * stride;
        fill(&mut buffer, number);
        let began = Instant::now();
        if let Err(error) = file.write_all_at(&buffer.0, block * BLOCK as u64) {
            seen.error = Some(format!("write {number}: {error}"));
            break;
        }
        seen.times.push((began, began.elapsed()));
        seen.acknowledged.insert(block, number);
        count.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

fn fill(buffer: &mut Aligned, number: u64) {
    for word in buffer.0.chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
}

/// Panics unless every acknowledged block of `path` reads as it was written (or as a later write
/// that was under way when the writer ended).
pub fn assert_there(path: &Path, seen: &Seen) {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("open for reading");
    let last = seen.acknowledged.values().max().copied().unwrap_or(0);
    let mut buffer = Box::new(Aligned([0; BLOCK]));
    for (block, number) in &seen.acknowledged {
        file.read_exact_at(&mut buffer.0, block * BLOCK as u64).expect("read a block");
        let words: Vec<u64> = buffer
            .0
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        let found = words[0];
        assert!(words.iter().all(|word| *word == found), "block {block} is torn");
        assert!(
            found == *number || found == last + 1,
            "block {block}: acknowledged as {number}, reads as {found}"
        );
    }
}
