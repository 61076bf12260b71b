//! `ashlar volume import`: a new volume with the content of a file, or of standard input.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use ashlar_client::Volume;
use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::piece::Piece;
use super::pieces::Pieces;
use super::state::{Done, State};
use super::{
    Form, PIECE_BYTES, PIECES_UNDER_WAY, bar, beside, from_file, from_volume, is_pipe, piece_count,
    piece_len, right, runtime, whole_crc,
};
use crate::connect::{Zone, client_token};
use crate::failure::{Failure, Kind};
use crate::render::{Format, Output, Show};
use crate::{completion, logging, size};

/// Sizes of volumes are multiples of this.
const BLOCK_BYTES: u64 = 4096;

/// What is imported where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file; `-` is standard input, which needs --size. What an earlier run of the same command
    /// began is gone on with, as FILE.ashlar-import notes.
    file: PathBuf,
    /// Name of the new volume, unique in its zone.
    #[arg(long)]
    name: String,
    /// Zone to make it in (default: that of the control plane that answers first).
    #[arg(long, add = completion::zones())]
    zone: Option<String>,
    /// Size of the volume (default: that of the content, rounded up to 4 KiB).
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Copies of every chunk, 1 to 5.
    #[arg(long, default_value_t = 3)]
    copies: u32,
    /// Form of the content in the file (default: zstd for a name that ends in .zst, raw otherwise).
    #[arg(long, value_enum)]
    form: Option<Form>,
}

/// Imports a volume.
///
/// # Errors
/// What the control plane, the volume or the host refused, or a volume that is not what was written.
pub(crate) fn run(arguments: &Arguments, zone: &Zone, output: &Output) -> Result<(), Failure> {
    logging::start("warn");
    // Asked in the runtime of a command, before there is the one of the transfer.
    let in_zone = zone.meant(arguments.zone.clone())?;
    let view = runtime()?.block_on(import(arguments, zone, in_zone, output.format()))?;
    output.show(&view)
}

#[derive(Debug, Serialize)]
struct Imported {
    volume: String,
    name: String,
    size_bytes: u64,
    /// Bytes that are not holes.
    data_bytes: u64,
    /// Of the whole content, holes as zeros.
    crc32c: String,
    /// Pieces that an earlier run had done.
    resumed_pieces: u64,
}

impl Show for Imported {
    fn table(&self) -> String {
        format!(
            "{} imported as {}: {}, {} of it data, crc32c {}, read back and compared",
            self.name,
            self.volume,
            size::show(self.size_bytes),
            size::show(self.data_bytes),
            self.crc32c
        )
    }
}

/// What is the same in every run of one import.
struct Plan<'a> {
    what: String,
    arguments: &'a Arguments,
    in_zone: String,
    form: Form,
    total: u64,
    format: Format,
}

async fn import(
    arguments: &Arguments,
    zone: &Zone,
    in_zone: String,
    format: Format,
) -> Result<Imported, Failure> {
    let what = format!("import volume {}", arguments.name);
    let form = Form::of(arguments.form, &arguments.file);
    let total = volume_size(&what, arguments, form, format)?;
    let plan = Plan { what, arguments, in_zone, form, total, format };
    let file = &arguments.file;
    let failed = |error: io::Error| from_file(&plan.what, file, &error);
    let mut state = if is_pipe(file) {
        None
    } else {
        let subject = plan.subject().map_err(failed)?;
        Some(State::open(&beside(file, ".ashlar-import"), subject, client_token())?)
    };
    let token = state.as_ref().map_or_else(client_token, |state| state.token.clone());
    let made = match state.as_ref().and_then(|state| state.volume.clone()) {
        Some(volume) => volume,
        None => plan.create(zone, &token).await?,
    };
    if let Some(state) = state.as_mut().filter(|state| state.volume.is_none()) {
        state.note_volume(&made).map_err(failed)?;
    }
    let found = right::find(zone, &plan.what, &made).await?;
    let resumed = state.as_ref().map_or(0, |state| state.done.len() as u64);
    let volume = right::take(zone, (&plan.what, "import"), &found, &token, state.as_mut()).await?;
    let copied = super::with(&plan.what, volume, async |volume| {
        let (crcs, data_bytes) = plan.copy(volume, state.as_mut()).await?;
        plan.verify(volume, &crcs).await?;
        Ok((crcs, data_bytes))
    });
    let (crcs, data_bytes) = copied.await?;
    if let Some(state) = state {
        state.finish().map_err(failed)?;
    }
    Ok(Imported {
        volume: made,
        name: arguments.name.clone(),
        size_bytes: total,
        data_bytes,
        crc32c: format!("{:08x}", whole_crc(&crcs, total)),
        resumed_pieces: resumed,
    })
}

/// Size of the volume. Of a compressed file the content is counted by reading it through.
fn volume_size(
    what: &str,
    arguments: &Arguments,
    form: Form,
    format: Format,
) -> Result<u64, Failure> {
    let file = &arguments.file;
    let usage = |why: &str, next: &str| {
        Failure::new(Kind::Usage, what.to_owned()).because(why).try_next(next)
    };
    let round = |bytes: u64| bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
    let wanted = arguments.size.map(round);
    if is_pipe(file) {
        return wanted.ok_or_else(|| {
            usage("how much standard input holds is not known before its end", "--size SIZE")
        });
    }
    let failed = |error: io::Error| from_file(what, file, &error);
    let length = match (form, wanted) {
        // Longer content is noticed while it is read.
        (Form::Zstd, Some(wanted)) => return Ok(wanted),
        (Form::Raw, _) => std::fs::metadata(file).map_err(failed)?.len(),
        (Form::Zstd, None) => {
            let bar = bar(0, "counting", format);
            let mut pieces = Pieces::of_file(file, form, None).map_err(failed)?;
            let mut length = 0;
            while let Some(piece) = pieces.next().map_err(failed)? {
                length += piece.len;
                bar.set_position(length);
            }
            bar.finish_and_clear();
            length
        }
    };
    match wanted {
        _ if length == 0 => Err(usage("the file is empty", "name a file with content")),
        Some(wanted) if wanted < length => {
            Err(usage(&format!("the file has {length} bytes"), "a --size of at least that"))
        }
        Some(wanted) => Ok(wanted),
        None => Ok(round(length)),
    }
}

impl Plan<'_> {
    /// What must be the same for notes to be of this import.
    fn subject(&self) -> io::Result<Vec<String>> {
        let Arguments { file, name, copies, .. } = self.arguments;
        let metadata = std::fs::metadata(file)?;
        Ok(vec![
            "import".to_owned(),
            name.clone(),
            self.in_zone.clone(),
            self.total.to_string(),
            copies.to_string(),
            self.form.name().to_owned(),
            format!("{} bytes of {}.{}", metadata.len(), metadata.mtime(), metadata.mtime_nsec()),
        ])
    }

    /// Makes the volume; with the same token, the same one.
    async fn create(&self, zone: &Zone, token: &str) -> Result<String, Failure> {
        let request = v1::CreateVolumeRequest {
            name: self.arguments.name.clone(),
            size_bytes: self.total,
            copies: self.arguments.copies,
            chunk_bytes: 0,
            client_token: token.to_owned(),
            dry_run: false,
            zone: self.in_zone.clone(),
            error_after_millis: 0,
        };
        let answer = zone.call(&self.what, zone.within(), |channel| {
            let request = request.clone();
            async move { VolumeServiceClient::new(channel).create_volume(request).await }
        });
        Ok(answer.await?.volume.unwrap_or_default().id)
    }

    /// Reads every piece of the source, writes those that are not done yet; gives the sums of all.
    async fn copy(
        &self,
        volume: &Volume,
        mut state: Option<&mut State>,
    ) -> Result<(Vec<u32>, u64), Failure> {
        let file = &self.arguments.file;
        let failed = |error: io::Error| from_file(&self.what, file, &error);
        let source = if is_pipe(file) {
            Pieces::of_input(self.form)
        } else {
            Pieces::of_file(file, self.form, None)
        };
        let mut source = source.map_err(failed)?;
        let done: Vec<Done> = state.as_ref().map_or_else(Vec::new, |state| state.done.clone());
        let bar = bar(self.total, "importing", self.format);
        let mut crcs = Vec::new();
        let mut data_bytes = 0;
        let reads = (0..piece_count(self.total)).map(|number| {
            let read = source.next().map(Option::unwrap_or_default);
            let wanted = piece_len(number, self.total);
            let piece = read.map_err(failed).and_then(|piece| {
                if piece.len > wanted {
                    return Err(self.too_much());
                }
                Ok(Piece { len: wanted, ..piece })
            });
            let known = usize::try_from(number).ok().and_then(|at| done.get(at));
            async move {
                let piece = piece?;
                let crc = piece.crc();
                match known {
                    Some(known) if known.crc != crc => {
                        Err(Failure::new(Kind::Conflict, &self.what)
                            .because(format!("{} has changed since the last run", file.display()))
                            .try_next("delete the volume and FILE.ashlar-import, and begin anew"))
                    }
                    Some(_) => Ok((piece, crc, false)),
                    None => match piece.write(volume, number).await {
                        Ok(()) => Ok((piece, crc, true)),
                        Err(error) => Err(from_volume(&self.what, error)),
                    },
                }
            }
        });
        let mut pieces = stream::iter(reads).buffered(PIECES_UNDER_WAY);
        while let Some((piece, crc, is_new)) = pieces.try_next().await? {
            crcs.push(crc);
            data_bytes += piece.data_bytes();
            if let Some(state) = state.as_mut().filter(|_| is_new) {
                state.note_piece(Done { crc, end: 0 }).map_err(failed)?;
            }
            bar.inc(piece.len);
        }
        drop(pieces);
        if source.next().map_err(failed)?.is_some() {
            return Err(self.too_much());
        }
        bar.finish_and_clear();
        Ok((crcs, data_bytes))
    }

    fn too_much(&self) -> Failure {
        Failure::new(Kind::Usage, &self.what)
            .because(format!("there is more content than {} bytes", self.total))
            .try_next("delete the volume, and import with a larger --size")
    }

    /// Reads the volume back and compares every piece.
    async fn verify(&self, volume: &Volume, crcs: &[u32]) -> Result<(), Failure> {
        volume.flush().await.map_err(|error| from_volume(&self.what, error))?;
        let bar = bar(self.total, "comparing", self.format);
        let reads = (0..piece_count(self.total))
            .map(|number| Piece::read(volume, number, piece_len(number, self.total)));
        let mut pieces = stream::iter(reads).buffered(PIECES_UNDER_WAY);
        let mut expected = (0u64..).zip(crcs);
        while let Some(piece) =
            pieces.try_next().await.map_err(|error| from_volume(&self.what, error))?
        {
            let Some((number, crc)) = expected.next() else { break };
            if piece.crc() != *crc {
                return Err(Failure::new(Kind::Error, &self.what)
                    .because(format!(
                        "the volume does not hold what was written at byte {}",
                        number * PIECE_BYTES
                    ))
                    .try_next("delete the volume, look at `ashlar doctor`, and import again"));
            }
            bar.inc(piece.len);
        }
        bar.finish_and_clear();
        Ok(())
    }
}
