//! File systems in images, processes that are stopped on them, and copies that are judged.

use crate::{FOLDER, SUBJECT, find};
use ashlar_env::dice::{Dice, SeededDice};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Cuts power several times under `subject`; what was lost.
pub(crate) fn cut_often(subject: &str) -> Vec<String> {
    let cuts = if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 250 } else { 14 };
    cut(subject, cuts, usize::MAX)
}

/// Cuts power until something is lost, a few times at most; what was.
pub(crate) fn cut_until_lost(subject: &str) -> Option<String> {
    cut(subject, 6, 1).into_iter().next()
}

fn cut(subject: &str, cuts: usize, enough: usize) -> Vec<String> {
    let mut dice = SeededDice::system();
    let mut lost = Vec::new();
    for cut in 0..cuts {
        if lost.len() >= enough {
            break;
        }
        let file_system = if cut % 2 == 0 { "ext4" } else { "xfs" };
        match cut_once(subject, file_system, &mut dice) {
            Err(why) => {
                assert!(std::env::var_os("ASHLAR_CI").is_none(), "not judged: {why}");
                eprintln!("SKIP: {why}");
                return lost;
            }
            Ok(Ok(kept)) => eprintln!("{subject}, {file_system}: {kept} kept"),
            Ok(Err(what)) => lost.push(format!("{file_system}: {what}")),
        }
    }
    lost
}

/// Whether a file system can be made and mounted here.
pub(crate) fn is_possible() -> bool {
    let dir = folder();
    make(dir.path(), "ext4").is_ok()
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

fn make(dir: &Path, file_system: &str) -> Result<Mounted, String> {
    let image = dir.join("image");
    // xfs refuses less than 300 MB.
    std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    run(Command::new(format!("mkfs.{file_system}")).arg("-q").arg(&image))?;
    Mounted::new(&image, &dir.join("live"), file_system)
}

/// One cut: how much was acknowledged and found again, or what is missing; an outer error if it
/// cannot be tried here.
fn cut_once(
    subject: &str,
    file_system: &str,
    dice: &mut SeededDice,
) -> Result<Result<u32, String>, String> {
    let dir = folder();
    let mounted = make(dir.path(), file_system)?;
    let writer = Writer::start(subject, &mounted.0);
    let wanted = 40 + u32::try_from(dice.below(200)).unwrap();
    let acknowledged = writer.stop_after(wanted);
    let copy = dir.path().join("copy");
    run(Command::new("cp").arg("--sparse=always").arg(dir.path().join("image")).arg(&copy))
        .unwrap();
    drop(writer);
    drop(mounted);
    assert!(acknowledged > 0, "the member committed nothing");
    let after = Mounted::new(&copy, &dir.path().join("after"), file_system)
        .expect("the copy of a file system can be mounted");
    Ok(find(&after.0, acknowledged).map(|()| acknowledged))
}

/// A mounted image; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path, file_system: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        // No periodic commit of ext4's own may do the member's work.
        let options = if file_system == "ext4" { "loop,commit=300" } else { "loop,nouuid" };
        run(Command::new("mount").args(["-o", options]).arg(image).arg(at))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let now = run(Command::new("umount").arg(&self.0));
        // Something may still be letting go of it.
        if let Err(e) = now.or_else(|_| run(Command::new("umount").arg("-l").arg(&self.0))) {
            eprintln!("{e}");
        }
    }
}

/// The member's process; killed when dropped.
struct Writer {
    child: Child,
    acknowledged: Receiver<u32>,
}

impl Writer {
    fn start(subject: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(SUBJECT, subject)
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tx, acknowledged) = channel();
        std::thread::spawn(move || {
            let numbers = lines.map_while(Result::ok);
            for n in numbers.filter_map(|l| l.strip_prefix("acknowledged ")?.parse().ok()) {
                if tx.send(n).is_err() {
                    return;
                }
            }
        });
        Self { child, acknowledged }
    }

    /// Waits for so many acknowledgements, then stops the process where it is.
    fn stop_after(&self, count: u32) -> u32 {
        let mut last = 0;
        while last < count {
            match self.acknowledged.recv_timeout(PATIENCE) {
                Ok(n) => last = n,
                Err(_) => break,
            }
        }
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(id, Signal::SIGSTOP).unwrap();
        // The signal stops the threads one after the other; one that still ran while the image is
        // copied would be half before the cut and half after it.
        let stopped = waitpid(id, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        // What was said before the copy is made counts too.
        self.acknowledged.try_iter().last().unwrap_or(last)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("{command:?}: {e}")),
    }
}
