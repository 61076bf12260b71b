//! `ashlar volume export`: a volume's content into a file, or to standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ashlar_client::Volume;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::piece::Piece;
use super::pieces::Pieces;
use super::state::{Done, State};
use super::{
    Form, PIECE_BYTES, PIECES_UNDER_WAY, ZSTD_LEVEL, bar, beside, from_file, from_volume, is_pipe,
    piece_count, piece_len, right, runtime, whole_crc,
};
use crate::connect::{Zone, client_token};
use crate::failure::{Failure, Kind};
use crate::render::{Format, Output, Show};
use crate::{completion, logging, size};

/// What is exported where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Id or name of a volume that is not attached.
    #[arg(add = completion::volumes())]
    volume: String,
    /// The file; `-` is standard output. Holes stay holes in it. What an earlier run of the same
    /// command began is gone on with, as FILE.ashlar-export notes.
    file: PathBuf,
    /// Form of the content in the file (default: zstd for a name that ends in .zst, raw otherwise).
    #[arg(long, value_enum)]
    form: Option<Form>,
}

/// Exports a volume.
///
/// # Errors
/// What the control plane, the volume or the host refused, or a file that is not what was written.
pub(crate) fn run(arguments: &Arguments, zone: &Zone, output: &Output) -> Result<(), Failure> {
    logging::start("warn");
    if is_pipe(&arguments.file) && io::stdout().is_terminal() {
        return Err(Failure::new(Kind::Usage, format!("export volume {}", arguments.volume))
            .because("standard output is a terminal")
            .try_next("name a file, or send it through a pipe"));
    }
    let view = runtime()?.block_on(export(arguments, zone, output.format()))?;
    if is_pipe(&arguments.file) {
        // Standard output is the content.
        drop(writeln!(io::stderr(), "{}", view.table()));
        return Ok(());
    }
    output.show(&view)
}

#[derive(Debug, Serialize)]
struct Exported {
    volume: String,
    file: PathBuf,
    form: &'static str,
    size_bytes: u64,
    /// Bytes that are not holes.
    data_bytes: u64,
    /// Of the whole content, holes as zeros.
    crc32c: String,
    /// Pieces that an earlier run had done.
    resumed_pieces: u64,
    /// Whether the file was read back and compared; what goes into a pipe cannot be.
    verified: bool,
}

impl Show for Exported {
    fn table(&self) -> String {
        format!(
            "{} exported to {}: {}, {} of it data, crc32c {}{}",
            self.volume,
            self.file.display(),
            size::show(self.size_bytes),
            size::show(self.data_bytes),
            self.crc32c,
            if self.verified { ", read back and compared" } else { ", not read back" }
        )
    }
}

async fn export(arguments: &Arguments, zone: &Zone, format: Format) -> Result<Exported, Failure> {
    let what = format!("export volume {}", arguments.volume);
    let found = right::find(zone, &what, &arguments.volume).await?;
    let total = found.geometry.unwrap_or_default().size_bytes;
    let form = Form::of(arguments.form, &arguments.file);
    let file = &arguments.file;
    let to_pipe = is_pipe(file);
    let subject = || {
        let place = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        vec![
            "export".to_owned(),
            found.id.clone(),
            total.to_string(),
            form.name().to_owned(),
            place.display().to_string(),
        ]
    };
    let mut state = if to_pipe {
        None
    } else {
        let notes = beside(file, ".ashlar-export");
        if file.exists() && !notes.exists() {
            return Err(Failure::new(Kind::Conflict, what)
                .because(format!("{} is there already", file.display()))
                .try_next("name another file, or delete that one"));
        }
        Some(State::open(&notes, subject(), client_token())?)
    };
    let failed = |error: io::Error| from_file(&what, file, &error);
    let resumed = match &mut state {
        Some(state) => keep_what_is_right(state, file, form, subject()).map_err(failed)?,
        None => 0,
    };
    let end = state.as_ref().and_then(|state| state.done.last()).map_or(0, |done| done.end);
    let mut sink = Sink::open(file, form, total, end).map_err(failed)?;
    let token = state.as_ref().map_or_else(client_token, |state| state.token.clone());
    let volume = right::take(zone, (&what, "export"), &found, &token, state.as_mut()).await?;
    let copying = Copying { what: &what, total, format, file };
    let copied = super::with(&what, volume, async |volume| {
        copying.run(volume, resumed, &mut sink, state.as_mut()).await
    });
    let crcs = copied.await?;
    let data_bytes = sink.finish().map_err(failed)?;
    let data_bytes = match data_bytes {
        Some(bytes) => bytes,
        None => verify(&what, file, form, &crcs, format)?,
    };
    if let Some(state) = state {
        state.finish().map_err(failed)?;
    }
    Ok(Exported {
        volume: found.id.clone(),
        file: file.clone(),
        form: form.name(),
        size_bytes: total,
        data_bytes,
        crc32c: format!("{:08x}", whole_crc(&crcs, total)),
        resumed_pieces: resumed,
        verified: !to_pipe,
    })
}

/// Compares what the file holds with what was noted; gives the number of pieces that are right.
fn keep_what_is_right(
    state: &mut State,
    file: &Path,
    form: Form,
    subject: Vec<String>,
) -> io::Result<u64> {
    let mut right = 0;
    if let Some(last) = state.done.last()
        && file.exists()
    {
        let mut pieces = Pieces::of_file(file, form, Some(last.end))?;
        for done in &state.done {
            // What cannot be read is not right: a frame may be cut off or damaged.
            match pieces.next() {
                Ok(Some(piece)) if piece.crc() == done.crc => right += 1,
                _ => break,
            }
        }
    }
    state.keep(right, subject)?;
    Ok(right as u64)
}

/// Reads pieces in order, several under way, and hands them to the sink.
struct Copying<'a> {
    what: &'a str,
    total: u64,
    format: Format,
    file: &'a Path,
}

impl Copying<'_> {
    async fn run(
        &self,
        volume: &Volume,
        from: u64,
        sink: &mut Sink,
        mut state: Option<&mut State>,
    ) -> Result<Vec<u32>, Failure> {
        let known = state.as_ref().map(|state| state.done.iter().map(|done| done.crc).collect());
        let mut crcs: Vec<u32> = known.unwrap_or_default();
        let bar = bar(self.total, "exporting", self.format);
        bar.set_position(from * PIECE_BYTES);
        let reads = (from..piece_count(self.total))
            .map(|number| Piece::read(volume, number, piece_len(number, self.total)));
        let mut pieces = stream::iter(reads).buffered(PIECES_UNDER_WAY);
        while let Some(piece) =
            pieces.try_next().await.map_err(|error| from_volume(self.what, error))?
        {
            let failed = |error: io::Error| from_file(self.what, self.file, &error);
            let end = sink.put(&piece).map_err(failed)?;
            let crc = piece.crc();
            crcs.push(crc);
            if let Some(state) = &mut state {
                state.note_piece(Done { crc, end }).map_err(failed)?;
            }
            bar.inc(piece.len);
        }
        bar.finish_and_clear();
        Ok(crcs)
    }
}

/// Where pieces go, in order.
struct Sink {
    out: Out,
    /// Present where content is compressed.
    compressor: Option<Compressor<'static>>,
    /// Bytes of content, or of compressed content, so far.
    end: u64,
    data_bytes: u64,
}

enum Out {
    File(File),
    Pipe(io::Stdout),
}

impl Sink {
    /// The file from `end` on; what stood behind is cut off.
    fn open(path: &Path, form: Form, total: u64, end: u64) -> io::Result<Self> {
        let out = if is_pipe(path) {
            Out::Pipe(io::stdout())
        } else {
            let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
            file.set_len(end)?;
            if form == Form::Raw {
                file.set_len(total)?;
            }
            Out::File(file)
        };
        let compressor = match form {
            Form::Raw => None,
            Form::Zstd => {
                let mut compressor = Compressor::new(ZSTD_LEVEL)?;
                compressor.set_parameter(CParameter::ChecksumFlag(true))?;
                Some(compressor)
            }
        };
        Ok(Self { out, compressor, end, data_bytes: 0 })
    }

    /// Writes the next piece; gives the length of what is written so far.
    fn put(&mut self, piece: &Piece) -> io::Result<u64> {
        self.data_bytes += piece.data_bytes();
        let packed = match &mut self.compressor {
            // One frame for each piece, so that every piece ends where a stream may be cut.
            Some(compressor) => Some(compressor.compress(&piece.to_vec())?),
            None => None,
        };
        match (&mut self.out, packed) {
            (Out::File(file), Some(packed)) => {
                file.write_all_at(&packed, self.end)?;
                self.end += packed.len() as u64;
            }
            (Out::File(file), None) => {
                for (offset, data) in &piece.parts {
                    file.write_all_at(data, self.end + offset)?;
                }
                self.end += piece.len;
            }
            (Out::Pipe(pipe), packed) => {
                let bytes = packed.unwrap_or_else(|| piece.to_vec());
                pipe.write_all(&bytes)?;
                self.end += bytes.len() as u64;
            }
        }
        Ok(self.end)
    }

    /// Everything is on stable media; into a pipe, everything is written: then how much was data.
    fn finish(&mut self) -> io::Result<Option<u64>> {
        match &mut self.out {
            Out::File(file) => file.sync_all().map(|()| None),
            Out::Pipe(pipe) => pipe.flush().map(|()| Some(self.data_bytes)),
        }
    }
}

/// Reads the file back and compares every piece; gives how much of it is data.
fn verify(
    what: &str,
    file: &Path,
    form: Form,
    crcs: &[u32],
    format: Format,
) -> Result<u64, Failure> {
    let failed = |error: io::Error| from_file(what, file, &error);
    let bar = bar(crcs.len() as u64 * PIECE_BYTES, "comparing", format);
    let mut pieces = Pieces::of_file(file, form, None).map_err(failed)?;
    let mut data_bytes = 0;
    for (number, crc) in (0u64..).zip(crcs) {
        let piece = pieces.next().map_err(failed)?.unwrap_or_default();
        if piece.crc() != *crc {
            return Err(Failure::new(Kind::Error, what.to_owned())
                .because(format!(
                    "{} does not hold what was written, from byte {} of the content on",
                    file.display(),
                    number * PIECE_BYTES
                ))
                .try_next("look at the disk; the same command again writes from there on"));
        }
        data_bytes += piece.data_bytes();
        bar.inc(PIECE_BYTES);
    }
    bar.finish_and_clear();
    Ok(data_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_hold_what_was_written_is_refused_with_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let total = 2 * PIECE_BYTES + 4096;
        let file = File::create(&path).unwrap();
        file.set_len(total).unwrap();
        file.write_all_at(&[7; 4096], PIECE_BYTES).unwrap();
        let mut pieces = Pieces::of_file(&path, Form::Raw, None).unwrap();
        let crcs: Vec<u32> =
            std::iter::from_fn(|| pieces.next().unwrap()).map(|piece| piece.crc()).collect();
        let verified = || verify("export", &path, Form::Raw, &crcs, Format::Json);
        assert_eq!(verified().unwrap(), 4096);
        file.write_all_at(&[8], PIECE_BYTES + 5).unwrap();
        let refused = verified().unwrap_err();
        assert!(refused.to_string().contains(&format!("byte {PIECE_BYTES} ")), "{refused}");
        file.write_all_at(&[7], PIECE_BYTES + 5).unwrap();
        file.set_len(PIECE_BYTES).unwrap();
        assert!(verified().is_err(), "it was cut off");
    }
}
