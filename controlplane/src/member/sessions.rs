//! Streams of nodes: registration, what they say, what they are told.
//!
//! A stream is served by the leader only. It becomes active once the registration is committed;
//! what the node says before waits, bounded. An active stream is told the nodes of the zone, all
//! its configurations, its orders to erase; then whatever changes. A newer stream of a node ends
//! the older one.

use super::lead::{Lead, Pending};
use super::{Member, Now, Output, SessionKey};
use crate::errors;
use ashlar_controlplane_core::apply::{Answer, Refusal};
use ashlar_controlplane_core::command::{Action, NodeRecord};
use ashlar_controlplane_core::state::ZoneState;
use ashlar_controlplane_core::verdict;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::token::Signs;
use ashlar_types::limit::{STORES_PER_NODE_MAX, is_rack_label};
use ashlar_types::message::cluster::{
    CLUSTER_PROTOCOL_VERSION, ControlDown, ControlUp, PeerAddress, Registration, SearchBudget,
};
use ashlar_types::{ChunkId, ControlTerm, NodeId, ReplicaId, StartNumber, StoreId};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Most configurations in one message: some 100 KiB.
const CONFIGS_PER_MESSAGE_MAX: usize = 256;
/// Most erasures in one message.
const ERASURES_PER_MESSAGE_MAX: usize = 1_024;
/// Most messages that wait for a registration to be committed. A node sends few before.
const WAITING_MAX: usize = 64;

/// One stream.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) key: SessionKey,
    registration: Registration,
    /// The registration is committed.
    pub(super) active: bool,
    waiting: Vec<ControlUp>,
    pub(super) due: Due,
    /// The budget for searches as the node knows it.
    search_told: Option<SearchBudget>,
}

impl Session {
    pub(super) const fn node(&self) -> NodeId {
        self.registration.node
    }
}

impl Member {
    pub(super) fn on_node_opened(
        &mut self,
        now: Now,
        session: SessionKey,
        registration: Registration,
        out: &mut Vec<Output>,
    ) {
        match self.admit(now, session, &registration) {
            Err(error) => {
                if error.reason.is_transient() {
                    tracing::debug!(node = %registration.node, %error, "a node is sent on");
                } else {
                    tracing::warn!(node = %registration.node, %error, "a node is refused");
                }
                out.push(Output::CloseNode { session, error });
            }
            Ok(committed) => {
                let Some(lead) = &mut self.lead else { return };
                lead.sessions.insert(
                    session,
                    Session {
                        key: session,
                        registration,
                        active: false,
                        waiting: Vec::new(),
                        due: Due::default(),
                        search_told: None,
                    },
                );
                if committed {
                    self.activate(now, session, out);
                }
            }
        }
    }

    /// Checks a registration and proposes it if it says something new; true if it does not.
    fn admit(
        &mut self,
        now: Now,
        session: SessionKey,
        registration: &Registration,
    ) -> Result<bool, ApiError> {
        if !self.is_serving() {
            return Err(self.not_leader());
        }
        if registration.version != CLUSTER_PROTOCOL_VERSION {
            let text = format!(
                "stream version {} is not spoken here; this member speaks \
                 {CLUSTER_PROTOCOL_VERSION}",
                registration.version
            );
            return Err(ApiError::new(Reason::UnsupportedVersion, text));
        }
        self.check_words(registration)?;
        let record = NodeRecord::from(registration);
        self.state
            .check_registration(&record)
            .map_err(|refusal| errors::refusal(&refusal, None))?;
        self.check_store(now, &record)?;
        if self.state.node(record.node) == Some(&record) {
            return Ok(true);
        }
        self.check_pending()?;
        let index = self.propose(now, Action::RegisterNode { node: record })?;
        let term = self.driver.term();
        if let Some(lead) = &mut self.lead {
            lead.pending.insert(index, Some(Pending::Node { term, session }));
        }
        Ok(false)
    }

    /// A node may come without stores that it had, or with others: disks fail and are exchanged. With
    /// none of those that are known it may not, while the process that has them is up: then two are
    /// started under one number. (With one of them it is that process or a later one, as a store is
    /// open in one process only.)
    fn check_store(&self, now: Now, record: &NodeRecord) -> Result<(), ApiError> {
        let Some(known) = self.state.node(record.node) else { return Ok(()) };
        let lost = |store: &&StoreId| !record.stores.contains(store);
        let lost: Vec<&StoreId> = known.stores.iter().filter(lost).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let fresh = |lead: &Lead| verdict::is_fresh(now.time, known.node, &lead.seen);
        if lost.len() == known.stores.len() && self.lead.as_ref().is_some_and(fresh) {
            let refusal = Refusal::NodeTaken { node: known.node, store: known.first_store() };
            return Err(errors::refusal(&refusal, None));
        }
        for store in lost {
            tracing::warn!(
                node = %known.node, %store,
                "the node comes without a store; its replicas there count as gone"
            );
        }
        Ok(())
    }

    fn check_words(&self, registration: &Registration) -> Result<(), ApiError> {
        let invalid = |text: String| Err(ApiError::new(Reason::InvalidRegistration, text));
        if registration.zone != self.options.zone {
            let (theirs, ours) = (registration.zone, self.options.zone);
            return invalid(format!("the node belongs to zone {theirs}, this is zone {ours}"));
        }
        let stores = &registration.stores;
        if stores.is_empty() || stores.contains(&StoreId(0)) || registration.start == StartNumber(0)
        {
            return invalid("a node has a store id and a start number, neither of them 0".into());
        }
        if stores.len() > STORES_PER_NODE_MAX {
            let count = stores.len();
            return invalid(format!("{count} stores; a node has {STORES_PER_NODE_MAX} at most"));
        }
        let twice = |(at, store): (usize, &StoreId)| stores.iter().skip(at + 1).any(|s| s == store);
        if stores.iter().enumerate().any(twice) {
            return invalid("a store is named twice: a disk was copied".into());
        }
        for address in [&registration.primary_address, &registration.replication_address] {
            if !address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
                return invalid(format!("{address:?} is not an address of the form ip:port"));
            }
        }
        if registration.primary_address == registration.replication_address {
            return invalid("the two networks need two addresses".into());
        }
        if !is_rack_label(&registration.rack) {
            let text = "rack: a label has at most 64 characters of a-z A-Z 0-9 . _ -";
            return invalid(text.into());
        }
        Ok(())
    }

    /// A registration was committed, or refused on the way.
    pub(super) fn on_registered(
        &mut self,
        now: Now,
        session: SessionKey,
        answer: Result<Answer, Refusal>,
        out: &mut Vec<Output>,
    ) {
        match answer {
            Ok(_) => self.activate(now, session, out),
            Err(refusal) => {
                let error = errors::refusal(&refusal, None);
                self.drop_session(now, session);
                out.push(Output::CloseNode { session, error });
            }
        }
    }

    fn activate(&mut self, now: Now, key: SessionKey, out: &mut Vec<Output>) {
        let Some(lead) = &mut self.lead else { return };
        let Some(node) = lead.sessions.get(&key).map(Session::node) else { return };
        let older: Vec<SessionKey> = lead
            .sessions
            .values()
            .filter(|session| session.key != key && session.node() == node)
            .map(|session| session.key)
            .collect();
        for session in older {
            lead.sessions.remove(&session);
            let error = ApiError::new(
                Reason::SessionReplaced,
                "a newer stream of the same node has taken over",
            );
            out.push(Output::CloseNode { session, error });
        }
        tracing::info!(%node, "a node's stream is open");
        lead.seen.on_connected(now.time, node);
        lead.plan_due = true;
        let term = ControlTerm(lead.term);
        let mut tell = |message| out.push(Output::Node { session: key, term, message });
        tell(ControlDown::Peers(peers(&self.state)));
        zone_key(&self.state).into_iter().for_each(&mut tell);
        if let Some(members) = self.changed_addresses() {
            tell(ControlDown::Members(members));
        }
        let Some(lead) = &mut self.lead else { return };
        let Some(session) = lead.sessions.get_mut(&key) else { return };
        session.active = true;
        session.due = Due::everything(&self.state, node);
        lead.relays.remove(&node);
        for message in std::mem::take(&mut session.waiting) {
            self.on_node_said(now, key, message, out);
        }
    }

    pub(super) fn on_node_said(
        &mut self,
        now: Now,
        key: SessionKey,
        message: ControlUp,
        out: &mut Vec<Output>,
    ) {
        let Some(lead) = &mut self.lead else { return };
        let Some(session) = lead.sessions.get_mut(&key) else { return };
        if !session.active {
            if session.waiting.len() < WAITING_MAX {
                session.waiting.push(message);
            } else {
                lead.sessions.remove(&key);
                let error = errors::api_error::throttled("the registration waits for too long");
                out.push(Output::CloseNode { session: key, error });
            }
            return;
        }
        let node = session.node();
        match message {
            ControlUp::Heartbeat(beat) => lead.seen.on_heartbeat(now.time, node, beat),
            ControlUp::Replicas(reports) => {
                lead.seen.on_reports(&self.state, node, reports);
                lead.attachments_due = true;
                lead.plan_due = true;
            }
            ControlUp::Propose(proposals) => {
                lead.seen.on_proposals(&self.state, node, proposals);
                lead.plan_due = true;
            }
            ControlUp::Relayed(relayed) => self.on_relayed(now, key, node, relayed),
        }
    }

    pub(super) fn on_node_closed(&mut self, now: Now, session: SessionKey) {
        self.drop_session(now, session);
    }

    fn drop_session(&mut self, now: Now, key: SessionKey) {
        let Some(lead) = &mut self.lead else { return };
        let Some(session) = lead.sessions.remove(&key) else { return };
        lead.relays.retain(|_, relay| !relay.goes_by(key));
        if session.active {
            tracing::info!(node = %session.node(), "a node's stream has ended");
            lead.seen.on_disconnected(now.time, session.node());
            lead.plan_due = true;
        }
    }

    /// Ends the streams of nodes that came with a store before it was revoked.
    fn end_revoked(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(lead) = &mut self.lead else { return };
        if !std::mem::take(&mut lead.revoked_due) {
            return;
        }
        let refused = |session: &Session| {
            let record = NodeRecord::from(&session.registration);
            let refusal = self.state.check_revoked(&record).err()?;
            Some((session.key, errors::refusal(&refusal, None)))
        };
        let refused: Vec<_> = lead.sessions.values().filter_map(refused).collect();
        for (session, error) in refused {
            self.drop_session(now, session);
            out.push(Output::CloseNode { session, error });
        }
    }

    /// Tells nodes what has changed for them.
    pub(super) fn flush_sessions(&mut self, now: Now, out: &mut Vec<Output>) {
        self.end_revoked(now, out);
        let members = self.changed_addresses();
        let Some(lead) = &mut self.lead else { return };
        let peers = std::mem::take(&mut lead.peers_due).then(|| peers(&self.state));
        let key = std::mem::take(&mut lead.key_due).then(|| zone_key(&self.state)).flatten();
        let members = members.filter(|_| std::mem::take(&mut lead.members_due));
        let term = ControlTerm(lead.term);
        let search = lead.interruption.budget(now.time);
        for session in lead.sessions.values_mut().filter(|session| session.active) {
            let mut tell = |message| out.push(Output::Node { session: session.key, term, message });
            if let Some(peers) = &peers {
                tell(ControlDown::Peers(peers.clone()));
            }
            key.iter().for_each(|key| tell(key.clone()));
            if session.search_told.replace(search) != Some(search) {
                tell(ControlDown::Search(search));
            }
            if let Some(members) = &members {
                tell(ControlDown::Members(members.clone()));
            }
            session.due.tell(&self.state, tell);
        }
        lead.relays.retain(|_, relay| relay.is_used(now));
        for (node, relay) in &mut lead.relays {
            relay.flush(*node, term, &self.state, out);
        }
    }
}

/// What a node is still to be told.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) configs: BTreeSet<ChunkId>,
    pub(super) erase: BTreeSet<(ChunkId, ReplicaId)>,
}

impl Due {
    /// All that the state has for a node. What is to be erased on a store that is away it is told when
    /// it comes with that store.
    pub(super) fn everything(state: &ZoneState, node: NodeId) -> Self {
        let here = |(_, r): &(ChunkId, ReplicaId)| r.node == node && !state.is_store_gone(*r);
        Self {
            configs: state.configs_of_node(node).map(|config| config.chunk).collect(),
            erase: state.erasures().filter(here).collect(),
        }
    }

    /// Tells it, in messages of bounded size; nothing is due after that.
    pub(super) fn tell(&mut self, state: &ZoneState, mut tell: impl FnMut(ControlDown)) {
        let due: Vec<ChunkId> = std::mem::take(&mut self.configs).into_iter().collect();
        for part in due.chunks(CONFIGS_PER_MESSAGE_MAX) {
            let configs = part.iter().filter_map(|chunk| state.config(*chunk)).cloned().collect();
            tell(ControlDown::Configs(configs));
        }
        let due: Vec<_> = std::mem::take(&mut self.erase).into_iter().collect();
        for part in due.chunks(ERASURES_PER_MESSAGE_MAX) {
            tell(ControlDown::Erase(part.to_vec()));
        }
    }
}

/// The half of the zone's key that nodes know.
fn zone_key(state: &ZoneState) -> Option<ControlDown> {
    let secret = state.zone_key()?;
    Some(ControlDown::ZoneKey(Signs::from_secret(secret).public()))
}

/// Addresses of all nodes.
pub(super) fn peers(state: &ZoneState) -> Vec<PeerAddress> {
    state
        .nodes()
        .map(|record| PeerAddress {
            node: record.node,
            store: record.first_store(),
            primary_address: record.primary_address.clone(),
            replication_address: record.replication_address.clone(),
        })
        .collect()
}
