//! The one binary of Ashlar: parses the command line and hands it to one file per noun.
//!
//! Decides exit codes and where errors go (standard error), nothing else. Daemons (`node run`,
//! `controlplane run`, `attach`) and commands share this entry, so that one file is all there is to
//! install. The command line never touches a data path: it starts parts or asks a control plane.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod attach;
mod bench;
mod completion;
mod connect;
mod controlplane;
mod detach;
mod dev;
mod doctor;
mod failure;
mod logging;
mod missing;
mod mount;
mod node;
mod patience;
mod process;
mod reference;
mod render;
mod sim;
mod size;
mod status;
mod transfer;
mod volume;
mod zone;

use failure::Failure;
use render::{Format, Output};

/// Ashlar: a distributed, replicated block store.
#[derive(Debug, Parser)]
#[command(name = "ashlar", version, propagate_version = true, after_help = failure::exit_codes())]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// Flags that every command takes.
#[derive(Debug, clap::Args)]
struct Global {
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Addresses of the control plane, any zone's, separated by commas (default: the cluster of
    /// `ashlar dev` found in $ASHLAR_DEV_DIR or ./.dev).
    #[arg(long, global = true, env = "ASHLAR_ENDPOINT", value_name = "ADDRESS[,...]")]
    endpoint: Option<String>,
    /// How long to try before giving up, in seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Run a whole zone on this machine, for trying and developing.
    Dev(dev::Arguments),
    /// Show all zones on one screen.
    Status(status::Arguments),
    /// Look for what is wrong here, in the configuration, in every zone, and say what to do.
    Doctor(doctor::Arguments),
    /// Show in a word how the region is, and what is not ok.
    Health(doctor::health::Arguments),
    /// Create, list, show and delete volumes.
    #[command(subcommand)]
    Volume(volume::Command),
    /// Attach a volume to this host: NBD socket and FUSE file.
    Attach(attach::Attach),
    /// Give an attached volume back.
    Detach(detach::Detach),
    /// Mount a volume's file system, attaching the volume if need be.
    Mount(mount::Mount),
    /// Unmount a volume's file system; the volume stays attached.
    Umount(mount::Unmount),
    /// Run or look at storage nodes.
    #[command(subcommand)]
    Node(node::Command),
    /// Run members of a zone's control plane, list, add and remove them.
    #[command(subcommand)]
    Controlplane(controlplane::Command),
    /// Look at the zones of the region.
    #[command(subcommand)]
    Zone(zone::Command),
    /// Run the deterministic simulation.
    #[command(subcommand)]
    Sim(sim::Command),
    /// Measure a volume.
    Bench(bench::Arguments),
    /// Print what a shell loads to complete commands, volumes, zones and nodes.
    Completions {
        /// The shell.
        shell: completion::Shell,
    },
    /// Write man pages.
    Man {
        /// Folder for them; made if it is not there.
        folder: PathBuf,
    },
    /// Print the reference of the command line (docs/cli.md).
    #[command(hide = true)]
    Reference,
}

fn main() -> ExitCode {
    ashlar_env::task::abort_on_panic();
    match completion::answer() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => return failure::usage(&error),
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::usage(&error),
    };
    let output = Output::new(arguments.global.output);
    match run(arguments.noun, &arguments.global, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output.format()),
    }
}

fn run(noun: Noun, global: &Global, output: &Output) -> Result<(), Failure> {
    match noun {
        Noun::Dev(arguments) => dev::run(&arguments),
        Noun::Status(arguments) => status::run(arguments, global, output),
        Noun::Doctor(arguments) => doctor::run(&arguments, global, output),
        Noun::Health(arguments) => doctor::health::run(&arguments, global, output),
        Noun::Volume(command) => volume::run(command, global, output),
        Noun::Attach(arguments) => attach::attach(&arguments, global, output),
        Noun::Detach(arguments) => detach::detach(&arguments, global, output),
        Noun::Mount(arguments) => mount::mount(&arguments, global, output),
        Noun::Umount(arguments) => mount::unmount(&arguments, global, output),
        Noun::Node(command) => node::run(command, global, output),
        Noun::Controlplane(command) => controlplane::run(command, global, output),
        Noun::Zone(command) => zone::run(&command, global, output),
        Noun::Sim(command) => sim::run(&command, output),
        Noun::Bench(arguments) => bench::run(&arguments, global, output),
        Noun::Completions { shell } => completion::print(shell),
        Noun::Man { folder } => reference::write_man_pages(&folder, output),
        Noun::Reference => reference::print(),
    }
}
