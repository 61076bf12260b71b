//! What a transfer notes beside the file, so that the same command again can go on.
//!
//! One line of JSON for each fact, appended as it becomes true: what is transferred, the volume that
//! was made for it, each attachment, each piece that is done. A last line that was cut off is not
//! counted. Nothing rests on a line being durable: what a line says is compared with what is there
//! before it is believed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Kind};

/// Version of the lines; another one is refused by name.
const VERSION: u32 = 1;

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begun { version: u32, token: String, what: Vec<String> },
    Volume(String),
    Attached(u64),
    Piece { crc32c: u32, end: u64 },
}

/// A piece that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) crc: u32,
    /// Length of the file behind it, where that is not its place.
    pub(super) end: u64,
}

/// The notes of one transfer; locked while it lives.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    file: File,
    /// Names the transfer to the control plane, through all its runs.
    pub(super) token: String,
    /// The volume that was made for it.
    pub(super) volume: Option<String>,
    /// The last attachment that was noted.
    pub(super) generation: Option<u64>,
    /// Pieces that are done, from the first on.
    pub(super) done: Vec<Done>,
}

impl State {
    /// The notes at `path`, or new ones for what is transferred.
    ///
    /// # Errors
    /// A conflict when they are about something else, or another process works with them.
    pub(super) fn open(path: &Path, what: Vec<String>, new_token: String) -> Result<Self, Failure> {
        let doing = || format!("use {}", path.display());
        let failed = |error: io::Error| Failure::new(Kind::Error, doing()).because(error);
        let open = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = open.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(Kind::Conflict, doing())
                    .because("another process works with it")
                    .try_next("wait for that one"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let lines = read(&mut file).map_err(failed)?;
        let mut state = Self {
            path: path.to_path_buf(),
            file,
            token: new_token,
            volume: None,
            generation: None,
            done: Vec::new(),
        };
        let Some((first, rest)) = lines.split_first() else {
            state.begin(what).map_err(failed)?;
            return Ok(state);
        };
        let conflict = |why: String| {
            Failure::new(Kind::Conflict, doing()).because(why).try_next(format!(
                "give the command that began it, or delete {} and begin anew",
                path.display()
            ))
        };
        match first {
            Line::Begun { version, token, what: kept } if *version == VERSION => {
                if *kept != what {
                    return Err(conflict(format!(
                        "it is of another transfer: {}, not {}",
                        kept.join(", "),
                        what.join(", ")
                    )));
                }
                state.token.clone_from(token);
            }
            Line::Begun { version, .. } => {
                return Err(conflict(format!("it has version {version}, this release {VERSION}")));
            }
            Line::Volume(_) | Line::Attached(_) | Line::Piece { .. } => {
                return Err(conflict("it does not say what it is of".to_owned()));
            }
        }
        for line in rest {
            match line {
                Line::Begun { .. } => {}
                Line::Volume(volume) => state.volume = Some(volume.clone()),
                Line::Attached(generation) => state.generation = Some(*generation),
                Line::Piece { crc32c, end } => {
                    state.done.push(Done { crc: *crc32c, end: *end });
                }
            }
        }
        Ok(state)
    }

    fn begin(&mut self, what: Vec<String>) -> io::Result<()> {
        // Lines that were cut off before the first was whole are of no use.
        self.file.set_len(0)?;
        let line = Line::Begun { version: VERSION, token: self.token.clone(), what };
        self.note(&line)?;
        // The token must be there again if the volume is: a lost one would make a second volume.
        self.file.sync_all()
    }

    fn note(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line).map_err(io::Error::other)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }

    /// Notes the volume.
    pub(super) fn note_volume(&mut self, volume: &str) -> io::Result<()> {
        self.volume = Some(volume.to_owned());
        self.note(&Line::Volume(volume.to_owned()))
    }

    /// Notes an attachment.
    pub(super) fn note_attached(&mut self, generation: u64) -> io::Result<()> {
        self.generation = Some(generation);
        self.note(&Line::Attached(generation))
    }

    /// Notes the next piece.
    pub(super) fn note_piece(&mut self, done: Done) -> io::Result<()> {
        self.done.push(done);
        self.note(&Line::Piece { crc32c: done.crc, end: done.end })
    }

    /// Forgets all pieces but the first `count`, which alone are what they should be.
    pub(super) fn keep(&mut self, count: usize, what: Vec<String>) -> io::Result<()> {
        if count >= self.done.len() {
            return Ok(());
        }
        self.done.truncate(count);
        let lines = [self.volume.clone().map(Line::Volume), self.generation.map(Line::Attached)];
        let pieces: Vec<Line> =
            self.done.iter().map(|done| Line::Piece { crc32c: done.crc, end: done.end }).collect();
        self.begin(what)?;
        lines.into_iter().flatten().chain(pieces).try_for_each(|line| self.note(&line))
    }

    /// The transfer is complete: its notes go.
    pub(super) fn finish(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Whole lines, up to the first that is none. What stands behind is cut off.
fn read(file: &mut File) -> io::Result<Vec<Line>> {
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Vec::new();
    let mut whole = 0;
    let mut reader = BufReader::new(&mut *file);
    let mut text = Vec::new();
    loop {
        text.clear();
        let len = reader.read_until(b'\n', &mut text)?;
        match serde_json::from_slice(&text) {
            Ok(line) if text.ends_with(b"\n") => lines.push(line),
            _ => break,
        }
        whole += len as u64;
    }
    drop(reader);
    file.set_len(whole)?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what() -> Vec<String> {
        vec!["export".to_owned(), "vol-a-1".to_owned()]
    }

    #[test]
    fn notes_are_found_again_without_a_line_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        let mut state = State::open(&path, what(), "first".to_owned()).unwrap();
        state.note_volume("vol-a-1").unwrap();
        state.note_attached(3).unwrap();
        state.note_piece(Done { crc: 7, end: 70 }).unwrap();
        state.note_piece(Done { crc: 8, end: 80 }).unwrap();
        drop(state);
        let mut text = std::fs::read(&path).unwrap();
        text.truncate(text.len() - 3);
        std::fs::write(&path, text).unwrap();
        let mut again = State::open(&path, what(), "second".to_owned()).unwrap();
        assert_eq!((again.token.as_str(), again.generation), ("first", Some(3)));
        assert_eq!(again.done, [Done { crc: 7, end: 70 }]);
        again.note_piece(Done { crc: 9, end: 90 }).unwrap();
        again.keep(1, what()).unwrap();
        drop(again);
        let last = State::open(&path, what(), "third".to_owned()).unwrap();
        assert_eq!(last.done, [Done { crc: 7, end: 70 }]);
        assert_eq!((last.volume.as_deref(), last.generation), (Some("vol-a-1"), Some(3)));
        last.finish().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn notes_of_something_else_or_in_use_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        let held = State::open(&path, what(), "t".to_owned()).unwrap();
        assert_eq!(State::open(&path, what(), "t".to_owned()).unwrap_err().kind(), Kind::Conflict);
        drop(held);
        let other = vec!["import".to_owned()];
        let refused = State::open(&path, other, "t".to_owned()).unwrap_err();
        assert!(refused.to_string().contains("another transfer"), "{refused}");
        let newer = "{\"begun\":{\"version\":2,\"token\":\"t\",\"what\":[]}}\n";
        std::fs::write(&path, newer).unwrap();
        let refused = State::open(&path, what(), "t".to_owned()).unwrap_err();
        assert!(refused.to_string().contains("version 2"), "{refused}");
    }
}
