//! `ashlar dev`: a whole region on this machine, for trying and developing.
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

use crate::connect;
use crate::failure::{Failure, Kind};
use crate::process::StopSignals;
use crate::{Global, completion, logging, process};

mod config;
mod control;
mod demo;
mod layout;
mod readiness;
mod supervisor;

use layout::{Cluster, Layout, Sizes};
use supervisor::Supervisor;

/// Where `dev` keeps its cluster unless told otherwise.
const FOLDER: &str = ".dev";

/// Environment variable that names the folder.
const FOLDER_VARIABLE: &str = "ASHLAR_DEV_DIR";

/// Said once everything is up. The last line is what scripts wait for.
const WHAT_TO_TRY: &str = "\
what to try, in another terminal:
  ashlar status                      all zones on one screen
  ashlar dev kill NODE               the volume goes on; `ashlar dev start NODE` brings it back
  ashlar volume create scratch --size 1GiB
  ashlar bench scratch --overwrite   4 KiB random writes, 32 at a time
Ctrl-C stops everything; the next run finds the same data";

/// How the cluster is run.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// Zones, 1 to 3 (default: those that the folder has, 3 in a new one).
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
    zones: Option<u8>,
    /// Storage nodes in each zone (default: as many as there are, 4 in a new folder).
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    nodes: Option<u8>,
    /// Members of each zone's control plane: 1, 3 or 5 (default: as many as there are, 3 in a new
    /// folder).
    #[arg(long)]
    members: Option<u8>,
    /// Stores of each node, each as its own disk would be (default: as many as there are, 1 in a new
    /// folder). More may be added at any start.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(config::STORES_MAX)))]
    stores: Option<u8>,
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
    /// Stop processes and keep them down (names as in the log folder: a-node-1, b-member-2).
    ///
    /// Where one zone alone has such a process, `node-1` is enough.
    Stop {
        /// The processes.
        #[arg(required = true, add = completion::processes())]
        names: Vec<String>,
    },
    /// End processes at once (SIGKILL) and keep them down.
    Kill {
        /// The processes.
        #[arg(required = true, add = completion::processes())]
        names: Vec<String>,
    },
    /// Let stopped processes run again.
    Start {
        /// The processes.
        #[arg(required = true, add = completion::processes())]
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
    let sizes =
        Sizes { zones: arguments.zones, members: arguments.members, nodes: arguments.nodes };
    let cluster = layout.open_cluster(sizes)?;
    config::write_all(&layout, &cluster, arguments.stores.unwrap_or(1))
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
    let ready = all_ready(layout, cluster);
    match during(supervisor, &mut stop, true, ready).await? {
        Some(outcome) => outcome?,
        None => return Ok(()),
    }
    fs::write(layout.formed(), "")
        .map_err(|error| Failure::new(Kind::Error, "note that the cluster is up").because(error))?;
    say(&welcome(layout, cluster, began));
    let volume = demo::ensure_volume(cluster);
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

async fn all_ready(layout: &Layout, cluster: &Cluster) -> Result<(), Failure> {
    let zones = cluster.zones.iter().map(|zone| {
        let is_held = |name: String| layout.hold(&name).exists();
        let held = zone.nodes.iter().filter(|node| is_held(zone.node_name(node))).count();
        readiness::wait(zone, held)
    });
    futures::future::try_join_all(zones).await.map(drop)
}

/// What is up, and where.
fn welcome(layout: &Layout, cluster: &Cluster, began: Instant) -> String {
    let [zones, members, nodes] = cluster.sizes();
    let mut text = format!(
        "{zones} {} ready after {:.1} s, with {members} members and {nodes} nodes{}, in {}",
        if zones == 1 { "zone is" } else { "zones are" },
        began.elapsed().as_secs_f64(),
        if zones == 1 { "" } else { " each" },
        layout.root().display()
    );
    for zone in &cluster.zones {
        text.push_str(&format!("\n  zone {}: {}", zone.name, zone.endpoints().join(",")));
    }
    text
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
    for zone in &cluster.zones {
        for member in &zone.members {
            start(zone.member_name(member), "controlplane")?;
        }
    }
    for zone in &cluster.zones {
        for node in &zone.nodes {
            start(zone.node_name(node), "node")?;
        }
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

/// Configuration files of the nodes and members of the `dev` cluster, if commands are about that one.
pub(crate) fn config_files(global: &Global) -> Vec<PathBuf> {
    let folder = folder();
    if global.endpoint.is_some() || endpoints(&folder).is_none() {
        return Vec::new();
    }
    let layout = Layout::new(&folder);
    let files = layout.processes().into_iter().map(|process| layout.config(&process));
    files.filter(|file| file.exists()).collect()
}

/// The folder of the cluster that commands are about.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os(FOLDER_VARIABLE).map_or_else(|| PathBuf::from(FOLDER), PathBuf::from)
}

/// Names of the processes that the cluster in `folder` has, whether they run or not.
pub(crate) fn process_names(folder: &Path) -> Vec<String> {
    Layout::new(folder).processes()
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
    if let Some(members) = arguments.members.filter(|members| !matches!(members, 1 | 3 | 5)) {
        return Err(Failure::new(Kind::Usage, format!("run {members} members"))
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
