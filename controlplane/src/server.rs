//! Starts a member: disks, thread, transport, services; and ends it in order.
//!
//! Order of the end: no new connections, streams of nodes and peers are told, calls under way get
//! their answers, the thread makes its state durable.

use crate::config::{Checked, Config, ConfigError};
use crate::join;
use crate::machine::{self, Dial, Handle, Ways};
use crate::member::{Member, MemberDisks, MemberError};
use crate::nodes::NodeReceiver;
use crate::peers::{self, Pair, RaftReceiver};
use crate::probe;
use crate::region::Gateway;
use crate::routes::Routes;
use ashlar_env::dice::SeededDice;
use ashlar_env::disk::{DiskError, RealDisk};
use ashlar_env::meta::{MetaError, SledOptions, SledStore, SledTuning};
use ashlar_env::task::spawn_named;
use ashlar_proto::reason::ApiError;
use ashlar_proto::v1::cluster_service_server::ClusterServiceServer;
use ashlar_proto::v1::node_service_server::NodeServiceServer;
use ashlar_proto::v1::raft_service_server::RaftServiceServer;
use ashlar_proto::v1::region_service_server::RegionServiceServer;
use ashlar_proto::v1::volume_service_server::VolumeServiceServer;
use ashlar_proto::{FILE_DESCRIPTOR_SET, GRPC_MESSAGE_BYTES_MAX};
use ashlar_types::ZoneId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tonic_health::ServingStatus;

/// Tries to connect that may wait.
const PROBE_QUEUE: usize = 256;
/// Peers to be dialled that may wait: more than there can be.
const DIAL_QUEUE: usize = 64;
/// A connection without life for this long is asked for a sign, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Streams that one connection may have open: a forwarding member has many calls on one.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// How long calls under way may take when the member ends.
const DRAIN_WITHIN: Duration = Duration::from_secs(3);

/// Why a member did not start, or ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// A folder cannot be used.
    #[error("data folder: {0}")]
    Disk(#[from] DiskError),
    /// A folder cannot be made.
    #[error("make folder {folder}: {cause}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
    /// The metadata store cannot be opened, not even an empty one.
    #[error("metadata store: {0}")]
    Meta(#[from] MetaError),
    /// The member could not start, or not go on.
    #[error("member: {0}")]
    Member(#[from] MemberError),
    /// The address cannot be listened on.
    #[error("listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
    /// The zone does not let the member start.
    #[error("the zone refuses this member: {} [{}]", .0.message, .0.reason.text())]
    Refused(ApiError),
    /// The services failed.
    #[error("serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The services describe themselves wrongly.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The member's thread cannot be started or has vanished.
    #[error("the member's thread: {0}")]
    Thread(std::io::Error),
}

/// Runs a member until the process is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// See [`RunError`].
pub fn run_blocking(config: Config) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Thread)?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let told = shutdown.clone();
        let signals = spawn_named("signals", async move {
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                // Without handlers the signals end the process at once, which it survives as well.
                return;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        });
        let result = run(config, shutdown).await;
        signals.abort();
        result
    })
}

/// Runs a member until `shutdown` is cancelled or it cannot go on.
///
/// # Errors
/// What kept it from starting or from going on.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let checked = config.checked()?;
    let address = checked.listen;
    let listener =
        TcpListener::bind(address).await.map_err(|cause| RunError::Listen { address, cause })?;
    serve(checked, listener, shutdown).await
}

async fn serve(
    checked: Checked,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let (zone, me) = (checked.member.zone, checked.member.raft.id);
    let mut checked = checked;
    if !checked.join.is_empty() {
        checked.member.raft.start = tokio::select! {
            start = join::first_start(&checked) => start?,
            () = shutdown.cancelled() => return Ok(()),
        };
    }
    let member = match open(&checked) {
        Ok(member) => member,
        Err(error) => {
            join::report_lost(&checked, &error).await;
            return Err(error);
        }
    };
    join::started(&checked)?;
    tracing::info!(%zone, member = me, listen = %checked.listen, "the member starts");

    let (probes, to_probe) = mpsc::channel(PROBE_QUEUE);
    let (dials, to_dial) = mpsc::channel(DIAL_QUEUE);
    let ways = Ways { me, dials, probes };
    let (handle, ended) = machine::start(member, ways).map_err(RunError::Thread)?;
    drop(spawn_named("raft-peers", dial_peers(zone, me, to_dial, handle.clone())));
    drop(spawn_named("probes", probe::run(to_probe, handle.clone())));

    let stop = CancellationToken::new();
    let server = services(&checked, &handle, &stop, listener)?;
    let server = spawn_named("grpc", server);
    let mut ended = ended;
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        result = &mut ended => Some(result),
    };
    stop.cancel();
    let result = match failed {
        Some(result) => result,
        None => {
            // Answers what waits, tells nodes, makes everything durable.
            let stopper = handle.clone();
            tokio::task::spawn_blocking(move || stopper.stop()).await.ok();
            ended.await
        }
    };
    if tokio::time::timeout(DRAIN_WITHIN, server).await.is_err() {
        tracing::warn!("some connections did not end in time; they are cut");
    }
    tracing::info!(%zone, member = me, "the member has ended");
    result.map_err(|_| RunError::Thread(std::io::Error::other("it vanished")))?.map_err(Into::into)
}

fn open(checked: &Checked) -> Result<Member, RunError> {
    let folder = |name: &str| {
        let folder = checked.data_dir.join(name);
        std::fs::create_dir_all(&folder)
            .map_err(|cause| RunError::Folder { folder: folder.display().to_string(), cause })?;
        Ok::<_, RunError>(folder)
    };
    let log = RealDisk::open(&folder("log")?)?;
    let snapshots = RealDisk::open(&folder("snapshots")?)?;
    let options = SledOptions { folder: folder("meta")?, tuning: SledTuning::default() };
    let (meta, found) = SledStore::open(&options)?;
    tracing::info!(?found, "the metadata store is open");
    let disks =
        MemberDisks { log: Arc::new(log), snapshots: Arc::new(snapshots), meta: Arc::new(meta) };
    let dice = || Box::new(SeededDice::system());
    Ok(Member::open(checked.member.clone(), disks, dice(), dice())?)
}

/// Sends to each peer that is to be dialled.
async fn dial_peers(zone: ZoneId, me: u64, mut dials: mpsc::Receiver<Dial>, member: Handle) {
    while let Some(Dial { peer, address, messages }) = dials.recv().await {
        let Ok(endpoint) = endpoint(&address) else {
            tracing::error!(peer, %address, "a member's address is none");
            continue;
        };
        let own = member.members().addresses.get(&me).cloned().unwrap_or_default();
        let pair = Pair { zone, me, peer, address: own };
        let task = peers::send(pair, endpoint, messages, member.clone(), SeededDice::system());
        drop(spawn_named("raft-peer", task));
    }
}

/// The way to a member's services.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, RunError> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_millis(500))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

/// All services on one listener, until `stop`.
fn services(
    checked: &Checked,
    handle: &Handle,
    stop: &CancellationToken,
    listener: TcpListener,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>> + use<>, RunError> {
    let gateway = Gateway::new(checked.member.zone, handle.clone(), &checked.zones, stop)?;
    let nodes = NodeReceiver { member: handle.clone(), stop: stop.clone() };
    let raft = RaftReceiver {
        zone: checked.member.zone,
        me: checked.member.raft.id,
        member: handle.clone(),
        stop: stop.clone(),
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    drop(spawn_named("health", tell_health(reporter, handle.clone(), stop.clone())));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
    };
    const MAX: usize = GRPC_MESSAGE_BYTES_MAX;
    let routes = Routes::default()
        .with(health)
        .with(reflection().build_v1()?)
        .with(reflection().build_v1alpha()?)
        .with(VolumeServiceServer::new(gateway.clone()).max_encoding_message_size(MAX))
        .with(ClusterServiceServer::new(gateway.clone()).max_encoding_message_size(MAX))
        .with(RegionServiceServer::new(gateway))
        .with(
            NodeServiceServer::new(nodes)
                .max_decoding_message_size(MAX)
                .max_encoding_message_size(MAX),
        )
        .with(RaftServiceServer::new(raft).max_decoding_message_size(MAX));
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX);
    let stop = stop.clone();
    let incoming = TcpListenerStream::new(listener);
    Ok(async move {
        server.serve_with_incoming_shutdown(routes, incoming, stop.cancelled_owned()).await
    })
}

/// The health service says SERVING while a leader is known: this member answers, or forwards.
async fn tell_health(
    reporter: tonic_health::server::HealthReporter,
    handle: Handle,
    stop: CancellationToken,
) {
    let mut leadership = handle.leadership();
    loop {
        let known = leadership.borrow_and_update().leader.is_some();
        let status = if known { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "ashlar.v1.VolumeService", "ashlar.v1.ClusterService"] {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            changed = leadership.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = stop.cancelled() => {
                reporter.set_service_status("", ServingStatus::NotServing).await;
                return;
            }
        }
    }
}
