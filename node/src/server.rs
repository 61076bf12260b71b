//! A node from its start to its end: store, listeners, stream to the control plane, machine.
//!
//! Everything but the store's own threads and the one that beats runs on one thread: the machine's task, the readers and
//! the diallers share one runtime, so a frame passes from socket to machine to socket without
//! waking another thread.

use crate::admission::Admission;
use crate::beats::{self, BeatsThread, ToBeats};
use crate::config::Config;
use crate::control::{self, Control};
use crate::door;
use crate::known_members;
use crate::known_peers;
use crate::mailbox::Mailbox;
use crate::net::dial::{Diallers, Sources};
use crate::net::listen;
use crate::net::table::Table;
use crate::net::{EVENTS_MAX, Net};
use crate::post::Post;
use crate::seat::Seat;
use crate::store::{
    NoSpace, Numbered, OpenError, Opened, ReadDone, ReadRequest, Space, Store, StoreFailure,
};
use crate::stores;
use crate::task::{CONTROL_EVENTS_MAX, ControlEvent, Inlets, Machine, Storage};
use ashlar_env::clock::{Clock, SystemClock};
use ashlar_env::task::{Task, spawn_named};
use ashlar_node_core::{DataCore, Identity, Outbox, Timing};
use ashlar_proto::reason::ApiError;
use ashlar_types::message::cluster::{CLUSTER_PROTOCOL_VERSION, Registration};
use ashlar_types::message::data::Network;
use ashlar_types::{ControlTerm, StoreId, Time};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

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
    /// Two folders hold a store with the same id: one is a copy of the other, and which of them has what
    /// was written last cannot be known.
    #[error(
        "{} and {} hold the same {}: one of them is a copy; name the one that was in use",
        .0.one, .0.other, .0.store
    )]
    SameStore(Box<Twins>),
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
    /// The last store failed while the node ran. Nothing is known about its disk any more.
    #[error("the store failed; its replicas are stale until they are filled again: {0}")]
    StoreFailed(#[from] StoreFailure),
    /// The zone has revoked the store.
    #[error(
        "the store in {folder} is revoked: a salvage went on without it, and what it holds is of the \
         past; empty the folder, and the node is filled anew"
    )]
    Revoked {
        /// Its folder.
        folder: String,
    },
    /// The control plane does not know this node as the one it says it is.
    #[error("the control plane refuses this node: {0}")]
    Refused(ApiError),
}

/// Two folders that hold one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twins {
    /// The id.
    pub store: StoreId,
    /// A folder.
    pub one: String,
    /// Another one.
    pub other: String,
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
    let opened = stores::open_all(config, &mailbox)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut beats = None;
    let outcome = runtime.block_on(serve(config, opened, mailbox, &mut beats, shutdown));
    // Connections end first, then the journal writes what it was given.
    drop(runtime);
    beats.into_iter().for_each(BeatsThread::join);
    drop(outcome?);
    tracing::info!(node = config.node.0, "stopped");
    Ok(())
}

/// The networks and the stream of a node, which run beside its machine.
struct Beside {
    _listeners: [Task<()>; 2],
    _door: Task<()>,
    stream: Task<ApiError>,
}

async fn serve(
    config: &Config,
    opened: Vec<(usize, Opened)>,
    mailbox: Arc<Mailbox>,
    beats: &mut Option<BeatsThread>,
    shutdown: impl Future<Output = ()>,
) -> Result<Vec<Store>, RunError> {
    let start = opened.iter().map(|(_, opened)| opened.start).max().unwrap_or_default();
    let me = Identity { zone: config.zone, node: config.node, start };
    let replicas: usize = opened.iter().map(|(_, opened)| opened.state.len()).sum();
    let ids: Vec<StoreId> = opened.iter().map(|(_, opened)| opened.id).collect();
    let folders = folders(config, &opened);
    let (living, stores) = watch::channel(ids.clone());
    let primary = listener(config.primary_address, Network::Primary)?;
    let replication = listener(config.replication_address, Network::Replication)?;
    let addresses = (primary.local_addr()?, replication.local_addr()?);
    tracing::info!(
        zone = %me.zone, node = me.node.0, start = me.start.0,
        primary = %addresses.0, replication = %addresses.1, replicas, "node starts"
    );
    for (_, Opened { id, state, new, .. }) in &opened {
        let folder = folders.get(id).map(|folder| folder.display());
        tracing::info!(store = %id, folder = ?folder, replicas = state.len(), new, "store open");
    }

    let (net_events, net) = mpsc::channel(EVENTS_MAX);
    let (control_events, control) = mpsc::channel(CONTROL_EVENTS_MAX);
    let admission = Arc::new(Admission::load(&config.data_dir));
    let (guests, hosted) = beats::guests();
    let (doorkeeper, door) = door::door(replicas > 0, config.hears_first);
    let visits = (Arc::clone(&admission), door);
    let network = Net::new(me, stores.clone(), visits, net_events.clone(), guests);
    let sources = Sources { primary: addresses.0.ip(), replication: addresses.1.ip() };
    let table = Table::new(Diallers::new(network.clone(), sources), net_events);
    let (beats_end, thread) = beats::start((me, timing(config)), &network, sources, hosted)?;
    *beats = Some(thread);
    let told = (living, Arc::clone(&admission));
    let mut machine = machine(config, me, opened, (table, beats_end.orders), told);
    let known = known_peers::load(&config.data_dir);
    machine.on_control(ControlEvent::KnownPeers(known.clone()));

    let stream = Control {
        configured: config.control.clone(),
        members: known_members::load(&config.data_dir),
        registration: registration(config, me, ids, addresses),
        stores,
        source: addresses.0.ip(),
        admission,
        folder: config.data_dir.clone(),
        folders,
        term: ControlTerm::default(),
        known,
        door: doorkeeper.clone(),
        serves: replicas > 0,
        events: control_events,
    };
    let beside = Beside {
        _listeners: [
            spawn_named("listen", listen::serve(primary, Network::Primary, network.clone())),
            spawn_named("listen", listen::serve(replication, Network::Replication, network)),
        ],
        _door: spawn_named("door", doorkeeper.open_late()),
        stream: spawn_named("control", control::keep(stream)),
    };
    let inlets = Inlets { net, control, store: mailbox, beats: beats_end.news };
    tokio::select! {
        ended = machine.run(inlets, shutdown) => Ok(ended?),
        Ok(refusal) = beside.stream => Err(RunError::Refused(refusal)),
    }
}

/// How the node introduces itself.
fn registration(
    config: &Config,
    me: Identity,
    stores: Vec<StoreId>,
    (primary, replication): (SocketAddr, SocketAddr),
) -> Registration {
    Registration {
        version: CLUSTER_PROTOCOL_VERSION,
        zone: me.zone,
        node: me.node,
        stores,
        start: me.start,
        primary_address: primary.to_string(),
        replication_address: replication.to_string(),
        rack: config.rack.clone(),
    }
}

/// Where each open store lies.
fn folders(config: &Config, opened: &[(usize, Opened)]) -> BTreeMap<StoreId, PathBuf> {
    let folder_of = |number: &usize| config.stores.get(*number).cloned();
    opened.iter().filter_map(|(number, opened)| Some((opened.id, folder_of(number)?))).collect()
}

fn timing(config: &Config) -> Timing {
    Timing {
        readopt_window: config.readopt_window,
        scrub_bytes_per_second: config.scrub_bytes_per_second,
        scrub_cycle: config.scrub_cycle,
        ..Timing::default()
    }
}

fn machine(
    config: &Config,
    me: Identity,
    opened: Vec<(usize, Opened)>,
    ways: (Table, Post<ToBeats>),
    told: (watch::Sender<Vec<StoreId>>, Arc<Admission>),
) -> Machine<Store> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut out = Outbox::default();
    let now = Time::from_nanos(clock.now_nanos());
    let mut seats = Vec::new();
    let mut states = Vec::new();
    for (number, Opened { store, state, id, .. }) in opened {
        seats.push(Seat::new(number, id, store));
        states.push((id, state));
    }
    let core = DataCore::new(now, me, timing(config), states, &mut out);
    Machine::new((core, out), clock, ways, seats, told)
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
