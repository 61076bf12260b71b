//! `ashlar dev`: a whole zone on this machine, for trying and developing.
//!
//! Decides the order of things: lock, addresses, configurations, processes, readiness, demo volume;
//! and the reverse at the end. The next run in the same folder finds the same cluster and data.
//! Every process is a real one with its own addresses and folder; nothing here is simulated.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Subcommand;
use nix::sys::signal::Signal;

use crate::connect::{self, Zone};
use crate::failure::{Failure, Kind};
use crate::process::StopSignals;
use crate::{Global, logging, process};

mod config;
mod control;
mod demo;
mod layout;
mod readiness;
mod supervisor;

use config::{member_name, node_name};
use layout::{Cluster, Layout};
use supervisor::Supervisor;

/// Where `dev` keeps its cluster unless told otherwise.
const FOLDER: &str = ".dev";

/// Environment variable that names the folder.
const FOLDER_VARIABLE: &str = "ASHLAR_DEV_DIR";

/// Said once everything is up. The last line is what scripts wait for.
const WHAT_TO_TRY: &str = "\
what to try, in another terminal:
  ashlar status                      the zone on one screen
  ashlar dev kill node-1             the volume goes on; `ashlar dev start node-1` brings it back
  ashlar volume create scratch --size 1GiB
  ashlar bench scratch --overwrite   4 KiB random writes, 32 at a time
Ctrl-C stops everything; the next run finds the same data";

/// How the cluster is run.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// Zones. This build runs one; three come with issue 4.
    #[arg(long, default_value_t = 1)]
    zones: u8,
    /// Storage nodes in the zone.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    nodes: u8,
    /// Members of the zone's control plane: 1, 3 or 5.
    #[arg(long, default_value_t = 3)]
    members: u8,
    /// Attach the demo volume, but do not mount it.
    #[arg(long)]
    no_mount: bool,
    /// Folder of the cluster, the same for the next run.
    #[arg(long, global = true, env = FOLDER_VARIABLE, default_value = FOLDER)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Commands to a running cluster.
#[derive(Debug, Subcommand)]
enum Command {
    /// Stop processes and keep them down (names as in the log folder: node-1, member-1).
    Stop {
        /// The processes.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// End processes at once (SIGKILL) and keep them down.
    Kill {
        /// The processes.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let stopped processes run again.
    Start {
        /// The processes.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs a cluster until Ctrl-C or SIGTERM, or sends a command to a running one.
///
/// # Errors
/// When the folder is in use, holds another cluster, or a process cannot be started.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Some(Command::Stop { names }) => control::stop(&arguments.dir, names, Signal::SIGTERM),
        Some(Command::Kill { names }) => control::stop(&arguments.dir, names, Signal::SIGKILL),
        Some(Command::Start { names }) => control::start(&arguments.dir, names),
        None => run_cluster(arguments),
    }
}

fn run_cluster(arguments: &Arguments) -> Result<(), Failure> {
    check_sizes(arguments)?;
    process::die_with_parent();
    logging::start("warn");
    let began = Instant::now();
    let layout = Layout::new(&absolute(&arguments.dir)?);
    let _lock = layout.lock()?;
    let cluster = layout.open_cluster(arguments.members, arguments.nodes)?;
    config::write_all(&layout, &cluster)
        .map_err(|error| Failure::caused_by("write the cluster's configuration", &error))?;
    let mut supervisor = Supervisor::new(layout.clone());
    let outcome = connect::runtime()?.block_on(serve(
        &layout,
        &cluster,
        &mut supervisor,
        !arguments.no_mount,
        began,
    ));
    supervisor.stop_all();
    outcome
}

/// Starts everything, waits for Ctrl-C or SIGTERM, and unmounts. The processes are stopped by the
/// caller, whatever happens here.
async fn serve(
    layout: &Layout,
    cluster: &Cluster,
    supervisor: &mut Supervisor,
    mount: bool,
    began: Instant,
) -> Result<(), Failure> {
    let mut stop = StopSignals::new()?;
    start_processes(layout, cluster, supervisor)
        .map_err(|error| Failure::caused_by("start the cluster's processes", &error))?;
    let zone = Zone::of(cluster.endpoints());
    let held = cluster.nodes.iter().filter(|node| layout.hold(&node_name(node)).exists()).count();
    let ready = readiness::wait(&zone, cluster, held);
    match during(supervisor, &mut stop, true, ready).await? {
        Some(outcome) => outcome?,
        None => return Ok(()),
    }
    fs::write(layout.formed(), "")
        .map_err(|error| Failure::new(Kind::Error, "note that the cluster is up").because(error))?;
    say(&format!(
        "zone {} is ready after {:.1} s: {} members, {} nodes in {}",
        cluster.zone,
        began.elapsed().as_secs_f64(),
        cluster.members.len(),
        cluster.nodes.len(),
        layout.root().display()
    ));
    say(&format!("control plane: {}", cluster.endpoints().join(",")));
    let volume = demo::ensure_volume(&zone);
    match during(supervisor, &mut stop, true, volume).await? {
        Some(outcome) => outcome?,
        None => return Ok(()),
    }
    demo::clean_up(layout);
    supervisor
        .start(demo::PROCESS, demo::attach_arguments(layout, cluster))
        .map_err(|error| Failure::caused_by("start the demo volume's attach daemon", &error))?;
    let shown = demo::show(layout, cluster, mount);
    match during(supervisor, &mut stop, true, shown).await? {
        Some(outcome) => say(&outcome?),
        None => return demo::unmount(layout, cluster).await,
    }
    say(&format!("everything is up after {:.1} s", began.elapsed().as_secs_f64()));
    say(WHAT_TO_TRY);
    during(supervisor, &mut stop, false, std::future::pending::<()>()).await?;
    say("stopping");
    demo::unmount(layout, cluster).await
}

fn start_processes(
    layout: &Layout,
    cluster: &Cluster,
    supervisor: &mut Supervisor,
) -> anyhow::Result<()> {
    let mut start = |name: String, noun: &str| {
        let config = layout.config(&name).display().to_string();
        let arguments = [noun, "run", "--config", &config].map(str::to_owned).to_vec();
        supervisor.start(&name, arguments)
    };
    for member in &cluster.members {
        start(member_name(member), "controlplane")?;
    }
    for node in &cluster.nodes {
        start(node_name(node), "node")?;
    }
    Ok(())
}

/// Does `work` while the processes are watched; none when a stop was asked for first. While
/// `starting`, a process that does not come up ends it.
async fn during<T>(
    supervisor: &mut Supervisor,
    stop: &mut StopSignals,
    starting: bool,
    work: impl Future<Output = T>,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        outcome = work => Ok(Some(outcome)),
        () = stop.wait() => Ok(None),
        failure = supervisor.watch(starting) => Err(failure),
    }
}

/// Where a cluster in `folder` serves its control plane, if there is a cluster.
pub(crate) fn endpoints(folder: &Path) -> Option<Vec<String>> {
    Layout::new(folder).read_cluster().ok().flatten().map(|cluster| cluster.endpoints())
}

/// Where attachments of the `dev` cluster are, if commands are about that one.
pub(crate) fn attach_folder(global: &Global) -> Option<PathBuf> {
    let folder = folder();
    let is_meant = global.endpoint.is_none() && endpoints(&folder).is_some();
    is_meant.then(|| Layout::new(&folder).attachments())
}

/// The folder of the cluster that commands are about.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os(FOLDER_VARIABLE).map_or_else(|| PathBuf::from(FOLDER), PathBuf::from)
}

/// Numbers of the processes of the cluster in `folder` that run now.
pub(crate) fn processes(folder: &Path) -> Vec<u32> {
    Layout::new(folder).running()
}

/// Tells the user. Goes on when nobody reads: the cluster matters more than its words.
fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

fn check_sizes(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.zones != 1 {
        return Err(Failure::new(Kind::Usage, format!("run {} zones", arguments.zones))
            .because("this build runs one zone; three zones come with issue 4")
            .try_next("ashlar dev --zones 1"));
    }
    if !matches!(arguments.members, 1 | 3 | 5) {
        return Err(Failure::new(Kind::Usage, format!("run {} members", arguments.members))
            .because("a control plane has 1, 3 or 5 members, so that a majority is clear")
            .try_next("ashlar dev --members 3"));
    }
    Ok(())
}

/// Children run in the same folder, but sockets and mounts are shown to the user: whole paths.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Kind::Usage, "find the cluster's folder").because(error))
}
