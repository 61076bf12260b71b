//! The listener of one network: takes connections in, up to a bound.
//!
//! Each connection is one task from its hello to its end. A connection that cannot be taken is
//! told so if that is cheap, else closed.

use super::connection::{Credit, read_frames};
use super::{ConnectionNumber, Guest, Net, NetEvent, Visitor, hello, name, tune};
use ashlar_env::task::spawn_named;
use ashlar_types::message::data::{Lane, Network};
use bytes::BytesMut;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections open at a time on one network, hellos included. A node has some 32 peers; clients
/// have a few connections each. Each idle one holds 128 KiB.
const CONNECTIONS_MAX: usize = 1_024;
/// Connections beyond that which are told so, instead of being closed without a word.
const REFUSALS_MAX: usize = 32;
/// Connections that the kernel holds before they are accepted.
const BACKLOG: u32 = 1_024;
/// Pause when the host has no more files to give: connections end meanwhile.
const NO_FILES_PAUSE: Duration = Duration::from_millis(100);

/// Listens on an address.
///
/// # Errors
/// What the host says: in use, not an address of this host.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted node must not wait for its former connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections of one network as long as the task lives.
pub(crate) async fn serve(listener: TcpListener, network: Network, net: Net) {
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let refusing = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, network = name(network), "cannot accept a connection");
                tokio::time::sleep(NO_FILES_PAUSE).await;
                continue;
            }
        };
        let (permit, full) = match Arc::clone(&open).try_acquire_owned() {
            Ok(permit) => (permit, false),
            Err(_) => match Arc::clone(&refusing).try_acquire_owned() {
                Ok(permit) => (permit, true),
                Err(_) => continue,
            },
        };
        let net = net.clone();
        drop(spawn_named("connection", async move {
            host(stream, from, network, (permit, full), net).await;
        }));
    }
}

/// One connection from its hello to its end.
async fn host(
    stream: TcpStream,
    from: SocketAddr,
    network: Network,
    (permit, full): (OwnedSemaphorePermit, bool),
    net: Net,
) {
    tune(&stream);
    let mut input = BytesMut::with_capacity(1024);
    let visitor = match hello::receive(&stream, &net, network, full, &mut input).await {
        Ok(visitor) => visitor,
        Err(error) if error.is_misbehaviour() => {
            tracing::warn!(%from, network = name(network), %error, "connection closed");
            return;
        }
        Err(error) => {
            tracing::debug!(%from, network = name(network), %error, "connection ended");
            return;
        }
    };
    if let Visitor::Node { node, network, lane: Lane::Beats, process } = visitor {
        match stream.into_std() {
            Ok(stream) => {
                let guest = Guest { stream, input, node, network, process, permit };
                net.guests.send(guest).await.ok();
            }
            Err(error) => tracing::warn!(%from, %error, "a connection cannot be handed on"),
        }
        return;
    }
    if matches!(visitor, Visitor::Client(_)) && !net.door.lets_in().await {
        return;
    }
    let stream = Arc::new(stream);
    let connection = net.number();
    let credit = matches!(visitor, Visitor::Client(_)).then(Credit::new);
    let opened = opened(connection, &stream, visitor, credit.clone());
    if net.events.send(opened).await.is_err() {
        return;
    }
    let end = read_frames(connection, &stream, input, credit.as_deref(), &net.events).await;
    if end.is_misbehaviour() {
        tracing::warn!(%from, network = name(network), error = %end, "connection closed");
    } else {
        tracing::debug!(%from, network = name(network), end = %end, "connection ended");
    }
    net.events.send(NetEvent::Closed { connection }).await.ok();
}

fn opened(
    connection: ConnectionNumber,
    stream: &Arc<TcpStream>,
    visitor: Visitor,
    credit: Option<Arc<Credit>>,
) -> NetEvent {
    let stream = Arc::clone(stream);
    match visitor {
        Visitor::Client(attachment) => {
            let credit = credit.unwrap_or_else(Credit::new);
            NetEvent::ClientOpen { connection, stream, credit, attachment }
        }
        Visitor::Node { node, network, process, .. } => {
            NetEvent::PeerOpen { connection, stream, node, network, process }
        }
    }
}
