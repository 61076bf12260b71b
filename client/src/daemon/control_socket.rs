//! The attach daemon's control socket: one line of JSON in, one line of JSON out.
//!
//! `{"ask":"status"}` · `{"ask":"stop","detach":true,"force":false}`. Local users with the right to open the
//! socket only (mode 0600). A line is at most [`LINE_BYTES_MAX`]; anything else is answered with
//! an error and the connection is closed.

use super::{DaemonError, DaemonStatus, Ended, Waits};
use ashlar_env::task::spawn_named;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Longest question.
const LINE_BYTES_MAX: usize = 1024;
/// Longest answer that a caller reads.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Pause when the process has no more descriptors: some are closed meanwhile.
const NO_FILES_PAUSE: Duration = Duration::from_millis(100);
/// Time for a caller to say what it wants.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub(super) enum Question {
    /// How is it?
    Status,
    /// End; with `detach`, give the attachment back.
    Stop {
        /// Whether the attachment is given back.
        detach: bool,
        /// Whether what waits is given up.
        #[serde(default)]
        force: bool,
    },
}

/// What it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// How it is.
    Status(Box<DaemonStatus>),
    /// It has ended; the daemon exits.
    Ended(Ended),
    /// It was not done: requests wait.
    Stuck(Waits),
    /// It has ended here; the attachment is still on record.
    NotFenced(String),
    /// It was not done, and why.
    Failed(String),
}

/// A question, and where the answer goes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) answer: oneshot::Sender<Answer>,
    /// Ends when the answer has been written, or cannot be.
    pub(super) written: oneshot::Receiver<()>,
}

/// Takes questions until dropped.
pub(super) async fn serve(socket: &Path, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a caller of the control socket");
                tokio::time::sleep(NO_FILES_PAUSE).await;
                continue;
            }
        };
        let asked = asked.clone();
        spawn_named("client-control", async move {
            if let Err(error) = answer_one(stream, asked).await {
                tracing::debug!(%error, "a caller of the control socket left");
            }
        });
    }
}

async fn answer_one(mut stream: UnixStream, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    // Dropped at the end of this function, whatever the end is.
    let (_written, written_in) = oneshot::channel::<()>();
    let mut line = Vec::new();
    let read = async {
        let mut limited = (&mut stream).take(LINE_BYTES_MAX as u64);
        let mut byte = [0_u8];
        while limited.read(&mut byte).await? == 1 {
            if byte == *b"\n" {
                return Ok(());
            }
            line.extend_from_slice(&byte);
        }
        Err(io::Error::from(io::ErrorKind::InvalidData))
    };
    let whole = tokio::time::timeout(ASK_WITHIN, read).await.unwrap_or(Ok(()));
    let answer = match (whole, serde_json::from_slice::<Question>(&line)) {
        (Ok(()), Ok(question)) => {
            let (answer, wait) = oneshot::channel();
            let asking = Asked { question, answer, written: written_in };
            let gone = || Answer::Failed("the daemon is ending".to_owned());
            match asked.send(asking).await {
                Ok(()) => wait.await.unwrap_or_else(|_| gone()),
                Err(_) => gone(),
            }
        }
        (Err(error), _) => Answer::Failed(format!("no question: {error}")),
        (_, Err(error)) => Answer::Failed(format!("not a question: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    stream.write_all(&text).await
}

/// Asks a daemon and waits for its answer; for commands.
pub(super) fn ask(
    socket: &Path,
    question: Question,
    within: Duration,
) -> Result<Answer, DaemonError> {
    let failed = |cause: io::Error| DaemonError::Ask { socket: socket.to_owned(), cause };
    let mut stream = BlockingStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(within)).map_err(failed)?;
    let mut text = serde_json::to_vec(&question).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line).map_err(failed)?;
    serde_json::from_str(&line).map_err(|error| failed(error.into()))
}
