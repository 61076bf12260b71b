//! `ashlar attach`: a volume on this host. Off it again: `detach.rs`.
//!
//! An attachment is a daemon with a folder. This file finds the folder, starts the daemon in the
//! background (or becomes it, with `--foreground`). What the daemon does is in
//! `client/src/daemon.rs`. Folders lie below one place per host, so that `mount` and `detach` find
//! an attachment by the volume's id or name.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ashlar_client::WaitPolicy;
use ashlar_client::daemon::{self, DaemonConfig, DaemonError, DaemonStatus, StateError};
use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::connect::{self, Zone};
use crate::failure::{Failure, Kind};
use crate::process::StopSignals;
use crate::render::{Output, Show, columns};
use crate::{Global, completion, dev, logging, patience, process, size};

/// Where attachments are kept unless the cluster is one of `ashlar dev`.
const HOST_FOLDER: &str = "/var/lib/ashlar/attach";

/// How long a daemon in the background may take to serve: the attach call itself waits for nodes.
const SERVES_WITHIN: Duration = Duration::from_secs(45);

/// How often it is asked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Where attachments of this host are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Folder of this host's attachments (default: in the `dev` cluster, or /var/lib/ashlar/attach).
    #[arg(long, env = "ASHLAR_ATTACH_DIR", value_name = "FOLDER")]
    state: Option<PathBuf>,
}

/// What to attach, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    /// Id or name of the volume.
    #[arg(add = completion::volumes())]
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Path of the NBD socket (default: in the attachment's folder).
    #[arg(long, value_name = "SOCKET")]
    nbd: Option<PathBuf>,
    /// Do not present the volume as a file by FUSE.
    #[arg(long)]
    no_fuse: bool,
    /// Refuse writes.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Take the volume from whoever has it; the other client is fenced.
    #[arg(long)]
    force: bool,
    /// State that whoever had the volume before never writes again (its host is off, or cut from the
    /// nodes): the attachment then waits for no node to confirm it. Kept on record with your name.
    #[arg(long)]
    old_client_fenced: bool,
    /// Answer requests that cannot be carried out with an error after so long, 30s for example, or never
    /// (default: as the volume says).
    #[arg(long, value_name = "TIME", value_parser = patience::parse)]
    error_after: Option<u64>,
    /// Be the daemon, until Ctrl-C or `ashlar detach`.
    #[arg(long)]
    foreground: bool,
}

impl Attach {
    /// An attachment with nothing special about it.
    pub(crate) fn plain(volume: &str, place: &Place, read_only: bool) -> Self {
        Self {
            volume: volume.to_owned(),
            place: place.clone(),
            nbd: None,
            no_fuse: false,
            read_only,
            force: false,
            old_client_fenced: false,
            error_after: None,
            foreground: false,
        }
    }
}

impl Place {
    /// The folder that holds one folder per attachment.
    pub(crate) fn root(&self, global: &Global) -> PathBuf {
        self.state
            .clone()
            .or_else(|| dev::attach_folder(global))
            .unwrap_or_else(|| PathBuf::from(HOST_FOLDER))
    }

    /// The folder of the volume's attachment, whether there is one yet or not.
    fn folder(&self, global: &Global, volume: &str) -> Result<PathBuf, Failure> {
        let root = self.root(global);
        if let Some(folder) = daemon::find(&root, volume) {
            return Ok(folder);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if volume.is_empty() || volume.starts_with('.') || !volume.chars().all(plain) {
            return Err(Failure::new(Kind::Usage, format!("attach volume {volume}"))
                .because("that is neither a volume's id nor a name that one can have"));
        }
        Ok(root.join(volume))
    }
}

/// Attaches a volume.
///
/// # Errors
/// What the control plane or the host refused.
pub(crate) fn attach(arguments: &Attach, global: &Global, output: &Output) -> Result<(), Failure> {
    if arguments.foreground {
        process::die_with_parent();
        logging::start("info");
        return be_daemon(arguments, global);
    }
    process::end_on_broken_pipe();
    let folder = arguments.place.folder(global, &arguments.volume)?;
    if let Ok(status) = daemon::status(&folder) {
        return Err(Failure::new(Kind::Conflict, format!("attach volume {}", arguments.volume))
            .because(format!("it is attached on this host already, by process {}", status.pid))
            .try_next(format!("ashlar detach {}", arguments.volume)));
    }
    let status = in_background(arguments, global, &folder)?;
    output.show(&AttachmentView(status))
}

/// The daemon of the volume on this host, started if there is none.
///
/// # Errors
/// What the control plane or the host refused.
pub(crate) fn ensure(arguments: &Attach, global: &Global) -> Result<DaemonStatus, Failure> {
    let folder = arguments.place.folder(global, &arguments.volume)?;
    match daemon::status(&folder) {
        Ok(status) => Ok(status),
        Err(_nobody) => in_background(arguments, global, &folder),
    }
}

/// An attachment of this host whose daemon does not answer.
#[derive(Debug, Serialize)]
pub(crate) struct Silent {
    pub(crate) name: String,
    pub(crate) cause: String,
}

/// The attachments of this host, as their daemons say, and those whose daemons say nothing.
pub(crate) fn here(global: &Global) -> (Vec<DaemonStatus>, Vec<Silent>) {
    let root = Place { state: None }.root(global);
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (folder, volume, name) in daemon::list(&root) {
        let name = if name.is_empty() { volume } else { name };
        match daemon::status(&folder) {
            Ok(status) => answers.push(status),
            Err(error) => silent.push(Silent { name, cause: error.to_string() }),
        }
    }
    (answers, silent)
}

/// What this host keeps of attachments, whether their daemons live or not: folder, id and name.
pub(crate) fn kept(global: &Global) -> Vec<(PathBuf, String, String)> {
    daemon::list(&Place { state: None }.root(global))
}

fn config_of(arguments: &Attach, global: &Global) -> Result<DaemonConfig, Failure> {
    let folder = arguments.place.folder(global, &arguments.volume)?;
    let with_fuse = !arguments.no_fuse && can_fuse();
    Ok(DaemonConfig {
        endpoints: Zone::find(global)?.endpoints().to_vec(),
        volume: arguments.volume.clone(),
        nbd_socket: arguments.nbd.clone(),
        fuse_dir: with_fuse.then(|| folder.join("fuse")),
        state_dir: folder,
        read_only: arguments.read_only,
        force: arguments.force,
        old_client_fenced_by: arguments.old_client_fenced.then(process::operator),
        policy: arguments.error_after.map(|millis| match millis {
            0 => WaitPolicy::Wait,
            millis => WaitPolicy::EioAfter(Duration::from_millis(millis)),
        }),
        client_name: client_name(),
    })
}

/// Whether this user may present a file by FUSE: root mounts itself, others need the helper.
fn can_fuse() -> bool {
    let open = OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helper = || std::env::split_paths(&path).any(|folder| folder.join("fusermount3").exists());
    open && (nix::unistd::geteuid().is_root() || helper())
}

/// How this host appears in a volume's status.
fn client_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}, process {}", host.trim(), std::process::id())
}

fn be_daemon(arguments: &Attach, global: &Global) -> Result<(), Failure> {
    let what = || format!("attach volume {}", arguments.volume);
    let config = config_of(arguments, global)?;
    connect::runtime()?.block_on(async {
        let stop = CancellationToken::new();
        let mut signals = StopSignals::new()?;
        let told = async {
            signals.wait().await;
            stop.cancel();
            std::future::pending::<std::convert::Infallible>().await
        };
        let ready = |status: &DaemonStatus| {
            tracing::info!(volume = %status.volume, nbd = %status.nbd_socket.display(), "serving");
        };
        tokio::select! {
            outcome = daemon::run(config, stop.clone(), ready) => {
                outcome.map_err(|error| from_daemon(&what(), &error))
            }
            never = told => match never {},
        }
    })
}

/// Starts this binary as the daemon and returns once it serves.
fn in_background(
    arguments: &Attach,
    global: &Global,
    folder: &Path,
) -> Result<DaemonStatus, Failure> {
    let what = || format!("attach volume {}", arguments.volume);
    let failed = |error: std::io::Error| Failure::new(Kind::Error, what()).because(error);
    if daemon::find(&arguments.place.root(global), &arguments.volume).is_none() {
        check_volume(arguments, global)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    let log_path = folder.join("daemon.log");
    let log = OpenOptions::new().create(true).append(true).open(&log_path).map_err(failed)?;
    let said_before = log.metadata().map_or(0, |metadata| metadata.len());
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["attach", &arguments.volume, "--foreground"]);
    command.args(["--endpoint", &Zone::find(global)?.endpoints().join(",")]);
    command.arg("--state").arg(arguments.place.root(global));
    if let Some(socket) = &arguments.nbd {
        command.arg("--nbd").arg(socket);
    }
    if let Some(millis) = arguments.error_after {
        let text = if millis == 0 { "never".to_owned() } else { format!("{millis}ms") };
        command.args(["--error-after", &text]);
    }
    let flags = [
        (arguments.no_fuse, "--no-fuse"),
        (arguments.read_only, "--read-only"),
        (arguments.force, "--force"),
        (arguments.old_client_fenced, "--old-client-fenced"),
    ];
    command.args(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag));
    let mut child = command
        .env_remove(process::PARENT_VARIABLE)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    wait_served(&mut child, folder)
        .ok_or_else(|| ended(&what(), &mut child, &log_path, said_before))
}

/// Asks for the volume before a daemon is started for it: a wrong name or an endpoint where nobody
/// is should be said at once. A kept attachment needs no control plane, so it is not asked for.
fn check_volume(arguments: &Attach, global: &Global) -> Result<(), Failure> {
    let what = format!("attach volume {}", arguments.volume);
    let found = Zone::find(global)?.ask(&what, |channel| {
        let request = v1::GetVolumeRequest { volume: arguments.volume.clone() };
        async move { VolumeServiceClient::new(channel).get_volume(request).await }
    });
    found.map(drop)
}

/// The daemon's status once it answers; none when it ended instead, or takes too long.
fn wait_served(child: &mut Child, folder: &Path) -> Option<DaemonStatus> {
    let deadline = Instant::now() + SERVES_WITHIN;
    while Instant::now() < deadline {
        if let Ok(status) = daemon::status(folder)
            && status.pid == child.id()
        {
            return Some(status);
        }
        if !matches!(child.try_wait(), Ok(None)) {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    None
}

/// Why a daemon in the background did not come up, in its own words.
fn ended(what: &str, child: &mut Child, log: &Path, from: u64) -> Failure {
    let next = format!("look at {}", log.display());
    let Ok(Some(status)) = child.try_wait() else {
        return Failure::new(Kind::Timeout, what.to_owned())
            .because(format!("process {} still tries to attach it", child.id()))
            .try_next(next);
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let said = fs::read(log).unwrap_or_default();
    let said = said.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
    let said = String::from_utf8_lossy(said);
    let words = said.split("error: ").nth(1).unwrap_or_default();
    let mut failure = Failure::new(Kind::from_exit_code(code), what.to_owned());
    let first = words.lines().next().unwrap_or_default();
    if let Some((_, reason)) = first.strip_suffix(']').and_then(|line| line.rsplit_once('[')) {
        failure = failure.with_reason(reason);
    }
    // Its first line says again what was to be done.
    for line in words.lines().skip(1).filter(|line| !line.trim_start().starts_with("try: ")) {
        failure = failure.because(line.trim().trim_start_matches("why: "));
    }
    failure.try_next(next)
}

/// What a daemon's error means to the user of a command.
pub(crate) fn from_daemon(what: &str, error: &DaemonError) -> Failure {
    let failed = |kind| Failure::new(kind, what.to_owned()).because(error);
    match error {
        DaemonError::Control(error) => connect::from_control(what, error),
        DaemonError::State(StateError::Locked(_))
        | DaemonError::OtherVolume { .. }
        | DaemonError::Refused(_) => failed(Kind::Conflict),
        DaemonError::Stuck(_) => failed(Kind::Conflict).with_reason("VOLUME_STUCK"),
        DaemonError::NotFenced(_) => failed(Kind::Unavailable).with_reason("NOT_FENCED"),
        DaemonError::Ask { .. } => failed(Kind::Unavailable),
        DaemonError::State(_) | DaemonError::Export { .. } => failed(Kind::Error),
    }
}

/// An attachment as it is printed.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct AttachmentView(DaemonStatus);

impl Show for AttachmentView {
    fn table(&self) -> String {
        let status = &self.0;
        let row = |name: &str, value: String| [name.to_owned(), value];
        let file = status.fuse_file.as_ref();
        columns(
            ["FIELD", "VALUE"],
            [
                row("volume", format!("{} {}", status.name, status.volume)),
                row("size", size::show(status.size_bytes)),
                row("generation", status.generation.to_string()),
                row("process", status.pid.to_string()),
                row("nbd", format!("nbd+unix:///?socket={}", status.nbd_socket.display())),
                row("file", file.map_or("-".to_owned(), |file| file.display().to_string())),
            ],
        )
    }
}
