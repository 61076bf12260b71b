//! A node from its start to its end: store, listeners, stream to the control plane, machine.
//!
//! Everything but the store's own threads runs on one thread: the machine's task, the readers and
//! the diallers share one runtime, so a frame passes from socket to machine to socket without
//! waking another thread.

use crate::admission::Admission;
use crate::config::Config;
use crate::control::{self, Control};
use crate::known_members;
use crate::known_peers;
use crate::mailbox::Mailbox;
use crate::net::dial::{Diallers, Sources};
use crate::net::listen;
use crate::net::table::Table;
use crate::net::{EVENTS_MAX, Net};
use crate::store::{
    Events, NoSpace, Numbered, OpenError, Opened, Owner, ReadDone, ReadRequest, Space, Store,
    StoreFailure, StoreOptions,
};
use crate::task::{CONTROL_EVENTS_MAX, ControlEvent, Inlets, Machine, Storage};
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_env::dice::SeededDice;
use ashlar_env::task::{Task, spawn_named};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::{Identity, NodeCore, Outbox, Timing};
use ashlar_proto::reason::ApiError;
use ashlar_types::message::cluster::{CLUSTER_PROTOCOL_VERSION, Registration};
use ashlar_types::message::data::Network;
use ashlar_types::{ControlTerm, Time};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Folder of the store within the node's folder.
const STORE_FOLDER: &str = "store";

/// Why a node could not start, or had to end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The store cannot be opened.
    #[error("cannot open the store in {folder}: {cause}")]
    Store {
        /// Its folder.
        folder: String,
        /// Why.
        cause: OpenError,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for the {network} network: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// primary or replication.
        network: &'static str,
        /// What the host says.
        cause: io::Error,
    },
    /// The host refuses what every process needs.
    #[error("cannot start: {0}")]
    Host(#[from] io::Error),
    /// The store failed while the node ran. Nothing is known about its disk any more.
    #[error("the store failed; its replicas are stale until they are filled again: {0}")]
    StoreFailed(#[from] StoreFailure),
    /// The control plane does not know this node as the one it says it is.
    #[error("the control plane refuses this node: {0}")]
    Refused(ApiError),
}

/// Runs a node until the process is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// See [`RunError`].
pub fn run_blocking(config: &Config) -> Result<(), RunError> {
    run_until(config, async {
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            // Without handlers the signals end the process at once, which a node survives as well.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Runs a node until `shutdown`, on the calling thread.
///
/// # Errors
/// See [`RunError`].
pub fn run_until(config: &Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mailbox = Arc::new(Mailbox::default());
    let opened = open_store(config, &mailbox)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config, opened, mailbox, shutdown));
    // Connections end first, then the journal writes what it was given.
    drop(runtime);
    drop(outcome?);
    tracing::info!(node = config.node.0, "stopped");
    Ok(())
}

fn open_store(config: &Config, mailbox: &Arc<Mailbox>) -> Result<Opened, RunError> {
    let folder = config.data_dir.join(STORE_FOLDER);
    let failed = |cause| RunError::Store { folder: folder.display().to_string(), cause };
    let options = StoreOptions {
        journal_bytes: config.journal_bytes,
        capacity_bytes: config.capacity_bytes,
        engine: config.io_engine,
    };
    let owner = Owner { zone: config.zone, node: config.node };
    let box_of_events = Arc::clone(mailbox);
    let events: Events = Arc::new(move |event| box_of_events.put(event));
    std::fs::create_dir_all(&config.data_dir)?;
    Store::open_folder(&folder, options, owner, &mut SeededDice::system(), events).map_err(failed)
}

/// The networks and the stream of a node, which run beside its machine.
struct Beside {
    _listeners: [Task<()>; 2],
    stream: Task<ApiError>,
}

async fn serve(
    config: &Config,
    opened: Opened,
    mailbox: Arc<Mailbox>,
    shutdown: impl Future<Output = ()>,
) -> Result<Store, RunError> {
    let Opened { store, state, id, start, new } = opened;
    let me = Identity { zone: config.zone, node: config.node, store: id, start };
    let serves = !state.is_empty();
    let primary = listener(config.primary_address, Network::Primary)?;
    let replication = listener(config.replication_address, Network::Replication)?;
    let addresses = (primary.local_addr()?, replication.local_addr()?);
    tracing::info!(
        zone = %me.zone, node = me.node.0, store = %me.store, start = me.start.0,
        primary = %addresses.0, replication = %addresses.1,
        replicas = state.len(), new, "node starts"
    );

    let (net_events, net) = mpsc::channel(EVENTS_MAX);
    let (control_events, control) = mpsc::channel(CONTROL_EVENTS_MAX);
    let admission = Arc::new(Admission::load(&config.data_dir));
    let network = Net::new(me, Arc::clone(&admission), net_events.clone());
    let sources = Sources { primary: addresses.0.ip(), replication: addresses.1.ip() };
    let table = Table::new(Diallers::new(network.clone(), sources), net_events);
    let mut machine = machine(config, me, state, table, store);
    let known = known_peers::load(&config.data_dir);
    machine.on_control(ControlEvent::KnownPeers(known.clone()));

    let stream = Control {
        configured: config.control.clone(),
        members: known_members::load(&config.data_dir),
        registration: Registration {
            version: CLUSTER_PROTOCOL_VERSION,
            zone: me.zone,
            node: me.node,
            store: me.store,
            start: me.start,
            primary_address: addresses.0.to_string(),
            replication_address: addresses.1.to_string(),
        },
        source: addresses.0.ip(),
        admission,
        folder: config.data_dir.clone(),
        term: ControlTerm::default(),
        known,
        serves,
        events: control_events,
    };
    let beside = Beside {
        _listeners: [
            spawn_named("listen", listen::serve(primary, Network::Primary, network.clone())),
            spawn_named("listen", listen::serve(replication, Network::Replication, network)),
        ],
        stream: spawn_named("control", control::keep(stream)),
    };
    let inlets = Inlets { net, control, store: mailbox };
    tokio::select! {
        ended = machine.run(inlets, shutdown) => Ok(ended?),
        Ok(refusal) = beside.stream => Err(RunError::Refused(refusal)),
    }
}

fn machine(
    config: &Config,
    me: Identity,
    state: DurableState,
    table: Table,
    store: Store,
) -> Machine<Store> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let timing = Timing {
        readopt_window: config.readopt_window,
        scrub_bytes_per_second: config.scrub_bytes_per_second,
        scrub_cycle: config.scrub_cycle,
        ..Timing::default()
    };
    let mut out = Outbox::default();
    let now = Time::from_nanos(clock.now_nanos());
    let core = NodeCore::new(now, me, timing, state, &mut out);
    Machine::new(core, out, clock, table, store)
}

fn listener(address: SocketAddr, network: Network) -> Result<TcpListener, RunError> {
    let network = crate::net::name(network);
    listen::bind(address).map_err(|cause| RunError::Listen { address, network, cause })
}

impl Storage for Store {
    fn append(&mut self, records: &mut Vec<Numbered>) -> Result<(), NoSpace> {
        Self::append(self, records)
    }

    fn append_before_erasure(&mut self, records: &mut Vec<Numbered>) -> Result<(), NoSpace> {
        Self::append_before_erasure(self, records)
    }

    fn read(&mut self, requests: Vec<ReadRequest>) -> Vec<ReadDone> {
        Self::read(self, requests)
    }

    fn space(&self) -> Space {
        Self::space(self)
    }

    fn verify(&mut self) {
        Self::verify(self);
    }
}
