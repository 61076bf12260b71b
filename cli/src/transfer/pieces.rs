//! A file or a pipe as a row of pieces: raw with its holes, or what a zstd stream holds.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::piece::Piece;
use super::{Form, PIECE_BYTES};

/// Where pieces come from.
pub(super) struct Pieces {
    input: Input,
    /// Bytes given so far.
    at: u64,
}

enum Input {
    /// With holes, which are found without reading them.
    File {
        file: File,
        len: u64,
    },
    Stream(Box<dyn Read>),
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Pieces {
    /// Of the file, or of its first `end` bytes.
    pub(super) fn of_file(path: &Path, form: Form, end: Option<u64>) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len().min(end.unwrap_or(u64::MAX));
        let input = match form {
            Form::Raw => Input::File { file, len },
            Form::Zstd => {
                Input::Stream(Box::new(zstd::stream::read::Decoder::new(file.take(len))?))
            }
        };
        Ok(Self { input, at: 0 })
    }

    /// Of standard input.
    pub(super) fn of_input(form: Form) -> io::Result<Self> {
        let input: Box<dyn Read> = match form {
            Form::Raw => Box::new(io::stdin()),
            Form::Zstd => Box::new(zstd::stream::read::Decoder::new(io::stdin())?),
        };
        Ok(Self { input: Input::Stream(input), at: 0 })
    }

    /// The next piece, as long as a piece is but for the last; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        let piece = match &mut self.input {
            Input::File { file, len } => from_file(file, self.at, *len)?,
            Input::Stream(stream) => {
                let mut data = Vec::new();
                stream.take(PIECE_BYTES).read_to_end(&mut data)?;
                let len = data.len() as u64;
                Piece::of(&Bytes::from(data), len)
            }
        };
        self.at += piece.len;
        Ok((piece.len > 0).then_some(piece))
    }
}

fn from_file(file: &mut File, at: u64, len: u64) -> io::Result<Piece> {
    let wanted = len.saturating_sub(at).min(PIECE_BYTES);
    if wanted == 0 || !has_data(file, at, wanted)? {
        return Ok(Piece { len: wanted, parts: Vec::new() });
    }
    file.seek(SeekFrom::Start(at))?;
    let mut data = vec![0; usize::try_from(wanted).unwrap_or(0)];
    file.read_exact(&mut data)?;
    Ok(Piece::of(&Bytes::from(data), wanted))
}

/// Whether anything but a hole begins in the range. A file system that knows no holes says yes.
fn has_data(file: &File, at: u64, len: u64) -> io::Result<bool> {
    let from = i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).unwrap_or(0) < at + len),
        Err(Errno::ENXIO) => Ok(false),
        Err(Errno::EINVAL | Errno::ESPIPE) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn all(mut pieces: Pieces) -> Vec<Piece> {
        std::iter::from_fn(|| pieces.next().unwrap()).collect()
    }

    #[test]
    fn a_sparse_file_and_its_zstd_stream_give_the_same_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        let file = File::create(&raw).unwrap();
        file.set_len(3 * PIECE_BYTES + 5000).unwrap();
        file.write_all_at(b"in the third piece", 2 * PIECE_BYTES + 9000).unwrap();
        let pieces = all(Pieces::of_file(&raw, Form::Raw, None).unwrap());
        let lens: Vec<u64> = pieces.iter().map(|piece| piece.len).collect();
        assert_eq!(lens, [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 5000]);
        let data: Vec<u64> = pieces.iter().map(Piece::data_bytes).collect();
        assert_eq!(data, [0, 0, 4096, 0]);

        let packed = folder.path().join("packed");
        let content = std::fs::read(&raw).unwrap();
        std::fs::write(&packed, zstd::bulk::compress(&content, 1).unwrap()).unwrap();
        assert_eq!(all(Pieces::of_file(&packed, Form::Zstd, None).unwrap()), pieces);
        let first = all(Pieces::of_file(&raw, Form::Raw, Some(PIECE_BYTES)).unwrap());
        assert_eq!(first, pieces[..1]);
    }
}
