//! All open connections of a node, as its machine's task sees them.
//!
//! Turns what happens on the networks into inputs of the core, and the core's messages into bytes
//! on the right connection. Owned by the machine's task alone.
//!
//! Rules:
//! - frames count only while their connection is the one that counts: a peer's newer connection
//!   of the same network ends the older one, and nothing read from the older one is handled then;
//! - a connection that fails or takes too little is closed at once, and the core is told.

use super::connection::{
    CLIENT_OUTBOUND_BYTES_MAX, Credit, Outbound, PEER_OUTBOUND_BYTES_MAX, SendError, hang_up,
    request_bytes,
};
use super::dial::Diallers;
use super::{Attachment, ConnectionNumber, DiallerNumber, NetEvent, name};
use ashlar_node_core::{ConnectionId, Input, Link, Process};
use ashlar_proto::token::Rights;
use ashlar_types::limit::REQUESTS_PER_CONNECTION_MAX;
use ashlar_types::message::cluster::PeerAddress;
use ashlar_types::message::data::{DataMessage, Network, Refusal};
use ashlar_types::{NodeId, RequestId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// While more than this waits for a client, answers give no credit back: it asks for no more than
/// it takes.
const CREDIT_HELD_ABOVE: usize = 4 << 20;

const _: () = assert!(CREDIT_HELD_ABOVE < CLIENT_OUTBOUND_BYTES_MAX);

/// All open connections.
#[derive(Debug)]
pub(crate) struct Table {
    diallers: Diallers,
    events: mpsc::Sender<NetEvent>,
    clients: BTreeMap<ConnectionNumber, Client>,
    /// Accepted from peers: only read.
    accepted: BTreeMap<ConnectionNumber, Accepted>,
    /// Dialled by this node: only written.
    links: BTreeMap<(NodeId, Network), Outbound>,
    /// Connections with bytes to flush.
    touched: Vec<Link>,
}

#[derive(Debug)]
struct Client {
    outbound: Outbound,
    credit: Arc<Credit>,
    /// In whose name it speaks.
    attachment: Attachment,
    /// What each request without an answer took of the credit.
    unanswered: BTreeMap<RequestId, usize>,
    /// Credit of answers that have not left yet.
    owed: usize,
}

#[derive(Debug)]
struct Accepted {
    stream: Arc<TcpStream>,
    node: NodeId,
    network: Network,
    process: Process,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.credit.close();
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        hang_up(&self.stream);
    }
}

impl Table {
    pub(crate) fn new(diallers: Diallers, events: mpsc::Sender<NetEvent>) -> Self {
        Self {
            diallers,
            events,
            clients: BTreeMap::new(),
            accepted: BTreeMap::new(),
            links: BTreeMap::new(),
            touched: Vec::new(),
        }
    }

    /// The zone's list of nodes has come.
    pub(crate) fn update_peers(&mut self, peers: &[PeerAddress], inputs: &mut Vec<Input>) {
        for (node, network) in self.diallers.update(peers) {
            if self.links.remove(&(node, network)).is_some() {
                inputs.push(Input::LinkDown { node, network, refused: false });
            }
        }
    }

    /// Takes an event in; what the core must be told goes to `inputs`.
    pub(crate) fn on_event(&mut self, event: NetEvent, inputs: &mut Vec<Input>) {
        match event {
            NetEvent::Frames { connection, messages } => {
                self.on_frames(connection, messages, inputs);
            }
            NetEvent::ClientOpen { connection, stream, credit, attachment } => {
                let events = self.events.clone();
                let outbound = Outbound::new(connection, stream, CLIENT_OUTBOUND_BYTES_MAX, events);
                let unanswered = BTreeMap::new();
                let client = Client { outbound, credit, attachment, unanswered, owed: 0 };
                self.clients.insert(connection, client);
            }
            NetEvent::PeerOpen { connection, stream, node, network, process } => {
                self.on_peer_open(connection, Accepted { stream, node, network, process });
            }
            NetEvent::Writable { connection } => self.on_writable(connection, inputs),
            NetEvent::Closed { connection } => self.on_closed(connection, inputs),
            NetEvent::Linked { dialler, connection, stream, process } => {
                self.on_linked(dialler, connection, stream, process, inputs);
            }
            NetEvent::DialFailed { dialler, refused } => {
                if let Some((node, network)) = self.diallers.whose(dialler) {
                    inputs.push(Input::LinkDown { node, network, refused });
                }
            }
        }
    }

    fn on_frames(
        &mut self,
        connection: ConnectionNumber,
        messages: Vec<DataMessage>,
        inputs: &mut Vec<Input>,
    ) {
        if let Some(peer) = self.accepted.get(&connection) {
            let from = Link::Peer(peer.node, peer.network);
            inputs.extend(messages.into_iter().map(|message| Input::Frame { from, message }));
            return;
        }
        let Some(client) = self.clients.get_mut(&connection) else { return };
        let from = Link::Client(ConnectionId(connection.0));
        for message in messages {
            match client.admit(&message) {
                Admitted::Yes => inputs.push(Input::Frame { from, message }),
                Admitted::TooMany(id, bytes) => {
                    client.owed += bytes;
                    let refusal = Refusal::BadRequest;
                    match client.outbound.push(&DataMessage::Refused { id, refusal }) {
                        Ok(true) => self.touched.push(from),
                        Ok(false) => {}
                        // The next answer meets the same error and closes the connection.
                        Err(_) => break,
                    }
                }
                Admitted::Never(problem) => {
                    tracing::warn!(connection = connection.0, problem, "a client is cut off");
                    self.close(from, inputs);
                    return;
                }
            }
        }
    }

    fn on_peer_open(&mut self, connection: ConnectionNumber, new: Accepted) {
        let known = self
            .accepted
            .iter()
            .find(|(_, old)| old.node == new.node && old.network == new.network)
            .map(|(number, old)| (*number, &old.process));
        if let Some((number, old)) = known {
            let same_disks = old.stores.iter().any(|store| new.process.stores.contains(store));
            if same_disks && old.start > new.process.start {
                // An earlier process of that node, whose connection was slow to arrive.
                return;
            }
            self.accepted.remove(&number);
        }
        self.diallers.hurry(new.node, new.network);
        self.accepted.insert(connection, new);
    }

    fn on_linked(
        &mut self,
        dialler: DiallerNumber,
        connection: ConnectionNumber,
        stream: Arc<TcpStream>,
        process: Process,
        inputs: &mut Vec<Input>,
    ) {
        let Some((node, network)) = self.diallers.whose(dialler) else {
            hang_up(&stream);
            return;
        };
        let events = self.events.clone();
        let link = Outbound::new(connection, stream, PEER_OUTBOUND_BYTES_MAX, events);
        self.links.insert((node, network), link);
        inputs.push(Input::LinkUp { node, network, process });
    }

    fn link_of(&self, connection: ConnectionNumber) -> Option<Link> {
        if self.clients.contains_key(&connection) {
            return Some(Link::Client(ConnectionId(connection.0)));
        }
        let linked = self.links.iter().find(|(_, link)| link.connection() == connection);
        linked.map(|((node, network), _)| Link::Peer(*node, *network))
    }

    fn on_closed(&mut self, connection: ConnectionNumber, inputs: &mut Vec<Input>) {
        if self.accepted.remove(&connection).is_none()
            && let Some(link) = self.link_of(connection)
        {
            self.close(link, inputs);
        }
    }

    fn on_writable(&mut self, connection: ConnectionNumber, inputs: &mut Vec<Input>) {
        let Some(link) = self.link_of(connection) else { return };
        let outcome = match link {
            Link::Client(_) => self.clients.get_mut(&connection).map(Client::on_writable),
            Link::Peer(node, network) => {
                self.links.get_mut(&(node, network)).map(Outbound::on_writable)
            }
        };
        if let Some(Err(error)) = outcome {
            self.give_up(link, &error, inputs);
        }
    }

    /// Queues a message; dropped if the connection is gone.
    pub(crate) fn send(&mut self, to: Link, message: &DataMessage, inputs: &mut Vec<Input>) {
        let outcome = match to {
            Link::Client(ConnectionId(number)) => {
                let Some(client) = self.clients.get_mut(&ConnectionNumber(number)) else { return };
                client.answer(message)
            }
            Link::Peer(node, network) => {
                let Some(link) = self.links.get_mut(&(node, network)) else { return };
                link.push(message)
            }
        };
        match outcome {
            Ok(true) => self.touched.push(to),
            Ok(false) => {}
            Err(error) => self.give_up(to, &error, inputs),
        }
    }

    /// Writes what was queued: one vectored write per connection, if the socket takes it.
    pub(crate) fn flush(&mut self, inputs: &mut Vec<Input>) {
        let mut touched = core::mem::take(&mut self.touched);
        for to in touched.drain(..) {
            let outcome = match to {
                Link::Client(ConnectionId(number)) => {
                    self.clients.get_mut(&ConnectionNumber(number)).map(Client::flush)
                }
                Link::Peer(node, network) => {
                    self.links.get_mut(&(node, network)).map(Outbound::flush)
                }
            };
            if let Some(Err(error)) = outcome {
                self.give_up(to, &error, inputs);
            }
        }
        // Keeps its room for the next batch.
        self.touched = touched;
    }

    fn give_up(&mut self, link: Link, error: &SendError, inputs: &mut Vec<Input>) {
        match (link, error) {
            (Link::Peer(node, network), _) => {
                tracing::warn!(node = node.0, network = name(network), %error, "link given up");
            }
            (Link::Client(connection), SendError::TooSlow(_)) => {
                tracing::warn!(connection = connection.0, %error, "a client's connection given up");
            }
            (Link::Client(_), SendError::Io(_)) => {}
        }
        self.close(link, inputs);
    }

    fn close(&mut self, link: Link, inputs: &mut Vec<Input>) {
        match link {
            Link::Client(connection) => {
                if self.clients.remove(&ConnectionNumber(connection.0)).is_some() {
                    inputs.push(Input::ClientGone { connection });
                }
            }
            Link::Peer(node, network) => {
                if self.links.remove(&(node, network)).is_some() {
                    inputs.push(Input::LinkDown { node, network, refused: false });
                }
            }
        }
    }
}

/// What becomes of a client's request.
enum Admitted {
    Yes,
    /// More are unanswered than may be: refused, with its number and what it took of the credit.
    TooMany(RequestId, usize),
    /// No right client asks this.
    Never(&'static str),
}

impl Client {
    fn admit(&mut self, message: &DataMessage) -> Admitted {
        let (Some(id), Some(bytes)) = (request_id(message), request_bytes(message)) else {
            return Admitted::Yes;
        };
        if self.unanswered.contains_key(&id) {
            return Admitted::Never("it reused a request's number");
        }
        if !self.may_ask(message) {
            return Admitted::Never("it asked for what its attachment does not allow");
        }
        if self.unanswered.len() >= REQUESTS_PER_CONNECTION_MAX {
            return Admitted::TooMany(id, bytes);
        }
        self.unanswered.insert(id, bytes);
        Admitted::Yes
    }

    /// A connection speaks for the attachment of its hello, which its token has proved.
    fn may_ask(&self, message: &DataMessage) -> bool {
        let Attachment { volume, generation, session, rights } = self.attachment;
        match message {
            DataMessage::Read { stamp, .. } | DataMessage::Write { stamp, .. } => {
                let reads = matches!(message, DataMessage::Read { .. });
                (stamp.chunk.volume, stamp.generation, stamp.session)
                    == (volume, generation, session)
                    && (reads || rights == Rights::ReadWrite)
            }
            DataMessage::FindConfig { chunk, .. } => chunk.volume == volume,
            _not_a_request => true,
        }
    }

    fn answer(&mut self, message: &DataMessage) -> Result<bool, SendError> {
        if let Some(bytes) = answered_id(message).and_then(|id| self.unanswered.remove(&id)) {
            self.owed += bytes;
        }
        self.outbound.push(message)
    }

    fn flush(&mut self) -> Result<(), SendError> {
        let outcome = self.outbound.flush();
        self.settle();
        outcome
    }

    fn on_writable(&mut self) -> Result<(), SendError> {
        let outcome = self.outbound.on_writable();
        self.settle();
        outcome
    }

    /// Gives credit back for answers that have left.
    fn settle(&mut self) {
        if self.outbound.waiting_bytes() <= CREDIT_HELD_ABOVE {
            self.credit.give_back(core::mem::take(&mut self.owed));
        }
    }
}

fn request_id(message: &DataMessage) -> Option<RequestId> {
    match message {
        DataMessage::Read { id, .. }
        | DataMessage::Write { id, .. }
        | DataMessage::FindConfig { id, .. } => Some(*id),
        _not_a_request => None,
    }
}

fn answered_id(message: &DataMessage) -> Option<RequestId> {
    match message {
        DataMessage::ReadDone { id, .. }
        | DataMessage::WriteDone { id }
        | DataMessage::ConfigIs { id, .. }
        | DataMessage::Refused { id, .. } => Some(*id),
        _not_an_answer => None,
    }
}

#[cfg(test)]
mod tests;
