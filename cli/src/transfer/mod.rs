//! `ashlar volume export` and `import`: a volume's content to a file or pipe, and from one.
//!
//! Content moves in pieces of 4 MiB, each with a CRC32C. What is known to be a hole is neither read,
//! nor sent, nor written: raw files stay sparse, and of a zstd file a hole takes some hundred bytes.
//! A state file beside the file notes every piece that is done, so that the same command again goes on
//! where the last one ended, after it has read what is there and compared it with those checksums.
//! At the end what was written is read back whole and compared: the file after an export, the volume
//! after an import.
//!
//! A reader of the pipe that goes away is an error here, not the end of the process: the attachment is
//! given back then too. An attachment of its own holds everybody else off meanwhile. Between two runs nobody else may have
//! been attached (`right.rs`): otherwise the pieces would be of two different contents.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ashlar_client::Volume;
use ashlar_client::device::IoError;
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::{Failure, Kind};
use crate::process::StopSignals;
use crate::render::Format;

pub(crate) mod export;
pub(crate) mod import;
mod piece;
mod pieces;
mod right;
mod state;

/// Content that moves, is summed and is noted as one. Smaller ones cost more notes, larger ones more
/// work that is done again after a kill.
const PIECE_BYTES: u64 = 4 << 20;

/// Pieces under way at a time: enough to hide the way to the nodes, 32 MiB of memory.
const PIECES_UNDER_WAY: usize = 8;

/// How long an attachment may take to be given back.
const DETACH_WITHIN: Duration = Duration::from_secs(10);

/// Of a zstd file; 3 is what `zstd` itself takes.
const ZSTD_LEVEL: i32 = 3;

/// How content lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Byte for byte.
    Raw,
    /// Compressed: `zstd -d` gives the raw content.
    Zstd,
}

impl Form {
    /// As asked for, or by the file's name.
    fn of(given: Option<Form>, file: &Path) -> Form {
        let by_name = match file.extension() {
            Some(extension) if extension == "zst" || extension == "zstd" => Form::Zstd,
            _ => Form::Raw,
        };
        given.unwrap_or(by_name)
    }

    fn name(self) -> &'static str {
        match self {
            Form::Raw => "raw",
            Form::Zstd => "zstd",
        }
    }
}

/// Standard input or output instead of a file.
fn is_pipe(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// `disk.img` and `.ashlar-export` give `disk.img.ashlar-export`.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// CRC32C of zeros.
fn zero_crc(len: u64) -> u32 {
    static PIECE: OnceLock<u32> = OnceLock::new();
    let sum = |len: u64| {
        let zeros = [0; 16 << 10];
        let mut left = len;
        let mut crc = 0;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
            crc = crc32c::crc32c_append(crc, zeros.get(..now).unwrap_or_default());
            left -= now as u64;
        }
        crc
    };
    if len == PIECE_BYTES { *PIECE.get_or_init(|| sum(PIECE_BYTES)) } else { sum(len) }
}

/// Bytes of the piece of that number in a content of `total` bytes.
fn piece_len(number: u64, total: u64) -> u64 {
    total.saturating_sub(number.saturating_mul(PIECE_BYTES)).min(PIECE_BYTES)
}

/// Pieces of a content of `total` bytes.
fn piece_count(total: u64) -> u64 {
    total.div_ceil(PIECE_BYTES)
}

/// CRC32C of the whole content, from those of its pieces.
fn whole_crc(pieces: &[u32], total: u64) -> u32 {
    (0..).zip(pieces).fold(0, |whole, (number, crc)| {
        let len = usize::try_from(piece_len(number, total)).unwrap_or(usize::MAX);
        crc32c::crc32c_combine(whole, *crc, len)
    })
}

/// Shows how far the work is: on a terminal, for people.
fn bar(total: u64, doing: &'static str, format: Format) -> ProgressBar {
    if format != Format::Table || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total).with_message(doing);
    let shape = "{msg} {bytes}/{total_bytes} [{wide_bar}] {bytes_per_sec}, {eta} left";
    match ProgressStyle::with_template(shape) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_not_ours_to_get_wrong) => bar,
    }
}

/// Files are read and written, and content is compressed, in the main task; the volume has threads of
/// its own, so that it is served meanwhile.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::Error, "start a runtime").because(error))
}

/// Does `work` on an attached volume, unless Ctrl-C comes first, and gives the attachment back
/// whatever happened.
async fn with<T>(
    what: &str,
    volume: Volume,
    work: impl AsyncFnOnce(&Volume) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut signals = StopSignals::new()?;
    let outcome = tokio::select! {
        outcome = work(&volume) => outcome,
        () = signals.wait() => Err(Failure::new(Kind::Error, what.to_owned())
            .because("interrupted")
            .try_next("the same command again goes on where it ended")),
    };
    let detached = volume.detach(DETACH_WITHIN).await;
    let outcome = outcome?;
    detached.map_err(|error| crate::connect::from_control(what, &error))?;
    Ok(outcome)
}

/// What a failed request to the volume means to the user of a command.
fn from_volume(what: &str, error: IoError) -> Failure {
    let kind = match error {
        IoError::Fenced(_) => Kind::Conflict,
        IoError::OutOfRange
        | IoError::ReadOnly
        | IoError::Damaged
        | IoError::TimedOut
        | IoError::Closed
        | IoError::GivenUp
        | IoError::Internal => Kind::Error,
    };
    Failure::new(kind, what.to_owned())
        .because(error)
        .try_next("the same command again goes on where it ended")
}

/// What a failed access to a file means to the user of a command.
fn from_file(what: &str, file: &Path, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::Conflict,
        _ => Kind::Error,
    };
    Failure::new(kind, what.to_owned()).because(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_the_whole_is_that_of_its_pieces() {
        let total = PIECE_BYTES * 2 + 4096;
        let content: Vec<u8> = (0..total).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let piece = usize::try_from(PIECE_BYTES).unwrap();
        let pieces: Vec<u32> = content.chunks(piece).map(crc32c::crc32c).collect();
        assert_eq!(piece_count(total), 3);
        assert_eq!(whole_crc(&pieces, total), crc32c::crc32c(&content));
        for len in [0, 4096, PIECE_BYTES] {
            let zeros = vec![0; usize::try_from(len).unwrap()];
            assert_eq!(zero_crc(len), crc32c::crc32c(&zeros));
        }
    }

    #[test]
    fn the_form_follows_the_files_name_unless_it_is_said() {
        assert_eq!(Form::of(None, Path::new("a.img")), Form::Raw);
        assert_eq!(Form::of(None, Path::new("a.img.zst")), Form::Zstd);
        assert_eq!(Form::of(None, Path::new("-")), Form::Raw);
        assert_eq!(Form::of(Some(Form::Raw), Path::new("a.zst")), Form::Raw);
    }
}
