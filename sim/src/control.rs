//! The zone's control plane in the simulation: three real members, their messages, the streams of
//! the nodes, and the calls of the client.

use crate::member::{MEMBERS, SimMember};
use crate::net::{Host, Wire};
use crate::node::SimNode;
use crate::region::REGION_CALLS;
use crate::replace::Replacements;
use crate::world::{Event, World};
use ashlar_client_core as client;
use ashlar_controlplane::member::{
    CallId, Input, Member, MemberError, Output, Reply, Request, SessionKey, TICK_MILLIS,
};
use ashlar_controlplane_core::observe::ProbeResult;
use ashlar_controlplane_core::state::ZoneState;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core as node;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::message::cluster::{
    CLUSTER_PROTOCOL_VERSION, ControlDown, ControlUp, Order, Registration,
};
use ashlar_types::message::data::Network;
use ashlar_types::{ChunkConfig, NodeId, Time, ZoneId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the client waits for an answer of the control plane.
const CALL_PATIENCE: Duration = Duration::from_secs(2);
/// How long a node waits for a member that takes its connection and says nothing.
const REGISTER_WITHIN: Duration = Duration::from_secs(1);
/// How long a stream's two ends go on believing in each other while one of them stands still: a
/// ping and the patience with its answer.
const PING_MISSED: Duration = Duration::from_secs(3);
/// After which a process that has ended by itself is started again.
const RESTART: Duration = Duration::from_secs(1);
/// Longest pause before a node dials a member again.
const REDIAL_MAX: Duration = Duration::from_millis(100);

/// What happens at or to the control plane.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    Start {
        member: u64,
    },
    Tick {
        member: u64,
        life: u64,
    },
    Raft {
        from: u64,
        to: u64,
        life: u64,
        bytes: Bytes,
    },
    Open {
        node: NodeId,
        life: u64,
    },
    Up {
        session: SessionKey,
        member: u64,
        message: ControlUp,
    },
    Down {
        session: SessionKey,
        node: NodeId,
        order: Order,
    },
    Close {
        session: SessionKey,
        leader: Option<u64>,
    },
    /// A stream has ended: the member learns of it.
    Gone {
        session: SessionKey,
        member: u64,
        life: u64,
    },
    /// A stream has ended: the node learns of it.
    Lost {
        node: NodeId,
        life: u64,
    },
    /// A stream whose other end gave no sign: it ends, if it still gives none.
    Missed {
        session: SessionKey,
    },
    Call {
        call: CallId,
        member: u64,
        life: u64,
        request: Request,
        deadline: Time,
    },
    Probed {
        member: u64,
        life: u64,
        node: NodeId,
        network: Network,
    },
    CallEnds {
        call: CallId,
    },
    /// The next call of a replacement is due.
    Replace {
        turn: usize,
    },
    /// A peer refuses a member by name.
    Told {
        member: u64,
        life: u64,
    },
    Answered {
        call: CallId,
        result: Box<Result<Reply, ApiError>>,
    },
}

impl ControlEvent {
    /// The process that it happens to, if it is one that can stand still.
    pub(crate) const fn host(&self) -> Option<Host> {
        match self {
            Self::Tick { member, .. }
            | Self::Probed { member, .. }
            | Self::Gone { member, .. }
            | Self::Call { member, .. } => Some(Host::Member(*member)),
            Self::Raft { to, .. } => Some(Host::Member(*to)),
            Self::Told { member, .. } => Some(Host::Member(*member)),
            Self::Open { node, .. } | Self::Down { node, .. } | Self::Lost { node, .. } => {
                Some(Host::Node(*node))
            }
            Self::Up { member, .. } => Some(Host::Member(*member)),
            Self::CallEnds { .. } | Self::Answered { .. } => Some(Host::Client),
            Self::Start { .. }
            | Self::Close { .. }
            | Self::Missed { .. }
            | Self::Replace { .. } => None,
        }
    }
}

/// A stream of a node to a member.
#[derive(Clone, Copy, Debug)]
struct Session {
    node: NodeId,
    node_life: u64,
    member: u64,
    member_life: u64,
    /// The leader has spoken: only then it is a stream for the node.
    spoken: bool,
}

/// The control plane.
#[derive(Debug)]
pub(crate) struct SimControl {
    seed: u64,
    zone: ZoneId,
    members: BTreeMap<u64, SimMember>,
    sessions: BTreeMap<SessionKey, Session>,
    /// The stream that each node uses now.
    stream_of: BTreeMap<NodeId, SessionKey>,
    /// The member that each node tries next.
    try_next: BTreeMap<NodeId, u64>,
    /// No message overtakes another on one way.
    last_delivery: BTreeMap<(Host, Host), Time>,
    next_number: u64,
    /// A member had something to do since this was looked at last.
    pub(crate) ran: bool,
    /// The client's calls under way, and the member that it tries next.
    calls: BTreeMap<CallId, Request>,
    client_tries: usize,
    /// The members as the client, and each node, last heard of them.
    client_knows: Vec<u64>,
    node_knows: BTreeMap<NodeId, Vec<u64>>,
    pub(crate) replacements: Replacements,
    /// Answers for whoever waits outside the events (the set-up of a run).
    pub(crate) answers: Vec<Result<Reply, ApiError>>,
    /// The call that it waits for: a late answer to another one is nothing to it.
    pub(crate) awaited: Option<CallId>,
    /// Answers to what the region has asked, and members whose processes ended (`region.rs`).
    pub(crate) region_answers: Vec<(CallId, Result<Reply, ApiError>)>,
    pub(crate) died: Vec<u64>,
}

impl SimControl {
    pub(crate) fn new(zone: ZoneId, seed: u64) -> Self {
        Self {
            seed,
            zone,
            members: (1..=MEMBERS).map(|id| (id, SimMember::new(zone, id))).collect(),
            sessions: BTreeMap::new(),
            stream_of: BTreeMap::new(),
            try_next: BTreeMap::new(),
            last_delivery: BTreeMap::new(),
            next_number: 0,
            ran: false,
            calls: BTreeMap::new(),
            client_tries: 1,
            client_knows: (1..=MEMBERS).collect(),
            node_knows: BTreeMap::new(),
            replacements: Replacements::default(),
            answers: Vec::new(),
            awaited: None,
            region_answers: Vec::new(),
            died: Vec::new(),
        }
    }

    /// All members, by number.
    pub(crate) fn members(&self) -> impl Iterator<Item = (u64, &SimMember)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// The member that a node's stream goes to.
    pub(crate) fn stream_to(&self, node: NodeId) -> Option<u64> {
        let session = self.stream_of.get(&node)?;
        self.sessions.get(session).map(|session| session.member)
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn is_up(&self, member: u64, life: u64) -> bool {
        self.members.get(&member).is_some_and(|m| m.process().is_some() && m.life == life)
    }

    /// Counts the processes of a member.
    pub(crate) fn life_of(&self, member: u64) -> u64 {
        self.life(member)
    }

    /// Whether a member's process runs.
    pub(crate) fn is_running(&self, member: u64) -> bool {
        self.is_up(member, self.life(member))
    }

    fn life(&self, member: u64) -> u64 {
        self.members.get(&member).map_or(0, |member| member.life)
    }

    /// The member that has applied most: what it knows is committed.
    fn newest(&self) -> Option<&Member> {
        self.members.values().filter_map(SimMember::process).max_by_key(|m| m.applied_index())
    }

    /// The committed state, as far as any running member has applied it.
    pub(crate) fn state(&self) -> Option<&ZoneState> {
        self.newest().map(Member::state)
    }

    /// How far the member that has applied most has applied.
    pub(crate) fn applied(&self) -> u64 {
        self.newest().map_or(0, Member::applied_index)
    }

    /// Lets the wall clock of a member go wrong by so many seconds.
    pub(crate) fn set_wall_clock(&mut self, member: u64, wrong_seconds: i64) {
        if let Some(member) = self.members.get_mut(&member) {
            member.wall_wrong_seconds = wrong_seconds;
        }
    }

    /// All committed configurations.
    pub(crate) fn configs(&self) -> impl Iterator<Item = &ChunkConfig> {
        self.state().into_iter().flat_map(ZoneState::configs)
    }

    /// Members that run and lead.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |m: &&SimMember| m.process().is_some_and(Member::is_serving);
        self.members.iter().find(|(_, member)| leads(member)).map(|(id, _)| *id)
    }

    /// A sector of a member's log turns to rubbish; false if it has none.
    pub(crate) fn rot_log(&mut self, member: u64) -> bool {
        self.members.get_mut(&member).is_some_and(SimMember::rot_log)
    }

    /// A member's disk has no more room, or has again.
    pub(crate) fn fill_log(&mut self, member: u64, full: bool) {
        if let Some(member) = self.members.get_mut(&member) {
            member.fill_disk(full);
        }
    }

    /// Power fails in the middle of one of the next writes of a member's log.
    pub(crate) fn tear_log(&mut self, member: u64, dice: &mut SeededDice) {
        if let Some(member) = self.members.get_mut(&member) {
            member.tear_log(dice);
        }
    }

    /// A member opens no file any more, or does again.
    pub(crate) fn refuse_files(&mut self, member: u64, refused: bool) {
        if let Some(member) = self.members.get_mut(&member) {
            member.refuse_files(refused);
        }
    }

    /// The client's next call goes to the leader, if there is one.
    pub(crate) fn ask_leader(&mut self) {
        if let Some(leader) = self.leader() {
            let at = self.client_knows.iter().position(|known| *known == leader);
            self.client_tries = at.unwrap_or(0);
        }
    }

    /// The same, whether the client knows the leader or not: in the processes any member forwards,
    /// and clients ask where the members are every few seconds.
    pub(crate) fn find_leader(&mut self) {
        if let Some(leader) = self.leader() {
            if !self.client_knows.contains(&leader) {
                self.client_knows.push(leader);
            }
            self.ask_leader();
        }
    }

    pub(crate) const fn zone(&self) -> ZoneId {
        self.zone
    }

    /// Members that are not lost for good.
    pub(crate) fn ids(&self) -> Vec<u64> {
        let lost = |id: &u64| self.replacements.is_lost(*id);
        self.members.keys().copied().filter(|id| !lost(id)).collect()
    }

    /// The member after this one.
    pub(crate) fn after(&self, member: u64) -> u64 {
        let ids = self.ids();
        ids.iter().copied().find(|id| *id > member).or(ids.first().copied()).unwrap_or(1)
    }

    pub(crate) fn insert_member(&mut self, member: SimMember) {
        self.members.insert(member.id(), member);
    }

    /// The member that a node tries after this one, of those that it knows.
    fn next_for(&self, node: NodeId, member: u64) -> u64 {
        match self.node_knows.get(&node) {
            None => member % MEMBERS + 1,
            Some(known) => {
                let later = known.iter().copied().find(|id| *id > member);
                later.or(known.first().copied()).unwrap_or(1)
            }
        }
    }

    /// The members at these addresses, in order of number.
    fn numbers(&self, addresses: &[String]) -> Vec<u64> {
        let mut ids: Vec<u64> =
            addresses.iter().filter_map(|at| self.replacements.number_at(at)).collect();
        ids.sort_unstable();
        ids
    }

    /// How each member stands, in words.
    pub(crate) fn describe(&self) -> String {
        let lines = self.members.iter().map(|(id, member)| match member.process() {
            Some(process) => format!("member {id}: {:?}", process.raft_status()),
            None => format!("member {id}: down"),
        });
        lines.collect::<Vec<_>>().join("; ")
    }
}

impl World {
    /// Starts all members.
    pub(crate) fn begin_control(&mut self) {
        for member in 1..=MEMBERS {
            self.schedule_in(Duration::ZERO, Event::Control(ControlEvent::Start { member }));
        }
    }

    fn control_in(&mut self, wait: Duration, event: ControlEvent) {
        self.schedule_in(wait, Event::Control(event));
    }

    /// When a message from one host to another arrives, in order.
    fn arrival(&mut self, from: Host, to: Host) -> Time {
        let wire = Wire { from, to, network: Network::Primary };
        let sent = self.net.unclogged(self.now, wire);
        let at = sent + self.net.delay_on(wire, &mut self.dice);
        let last = self.control.last_delivery.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }

    /// Whether a member's process runs, and does not stand still.
    pub(crate) fn is_member_serving(&self, member: u64) -> bool {
        self.control.is_running(member) && !self.is_paused(Host::Member(member))
    }

    pub(crate) fn is_cut_between(&self, a: Host, b: Host) -> bool {
        let network = Network::Primary;
        self.net.is_cut(Wire { from: a, to: b, network })
            || self.net.is_cut(Wire { from: b, to: a, network })
    }

    pub(crate) fn control_event(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Start { member } => self.start_member(member),
            ControlEvent::Tick { member, life } => {
                if self.control.is_up(member, life) {
                    self.member_input(member, Input::Tick);
                    self.note_voter(member);
                    let wait = Duration::from_millis(TICK_MILLIS);
                    self.control_in(wait, ControlEvent::Tick { member, life });
                }
            }
            ControlEvent::Raft { from, to, life, bytes } => {
                if self.control.is_up(to, life) {
                    self.raft_arrives(from, to, bytes);
                }
            }
            ControlEvent::Open { node, life } => self.open_stream(node, life),
            ControlEvent::Up { session, message, .. } => {
                if let Some(known) = self.control.sessions.get(&session).copied()
                    && self.control.is_up(known.member, known.member_life)
                {
                    self.member_input(known.member, Input::NodeSaid { session, message });
                }
            }
            ControlEvent::Down { session, order, .. } => self.order_arrives(session, order),
            ControlEvent::Close { session, leader } => self.end_session(session, leader),
            ControlEvent::Gone { session, member, life } => {
                if self.control.is_up(member, life) {
                    self.member_input(member, Input::NodeClosed { session });
                }
            }
            ControlEvent::Lost { node, life } => {
                // A later stream may be open already.
                let streams = |s: &Session| (s.node, s.node_life, s.spoken) == (node, life, true);
                if self.lives(node, life) && !self.control.sessions.values().any(streams) {
                    self.input(node, node::Input::ControlLost);
                }
            }
            ControlEvent::Missed { session } => {
                if self.is_missed(session) {
                    self.end_session(session, None);
                }
            }
            ControlEvent::Call { call, member, life, request, deadline } => {
                if self.control.is_up(member, life) {
                    self.member_input(member, Input::Call { call, request, deadline });
                }
            }
            ControlEvent::Probed { member, life, node, network } => {
                if self.control.is_up(member, life) {
                    let result = self.probe(member, node, network);
                    self.member_input(member, Input::Probed { node, network, result });
                }
            }
            ControlEvent::Replace { turn } => self.go_on_replacing(turn),
            ControlEvent::Told { member, life } => {
                if self.control.is_up(member, life) {
                    self.member_input(member, Input::ToldRemoved);
                }
            }
            ControlEvent::CallEnds { call } => {
                if let Some(request) = self.control.calls.remove(&call) {
                    self.call_failed(&request);
                }
            }
            ControlEvent::Answered { call, result } => self.answered(call, *result),
        }
    }

    /// A message of a member reaches a node, if its stream is still open.
    fn order_arrives(&mut self, session: SessionKey, order: Order) {
        let known = self.control.sessions.get(&session).copied();
        let Some(known) = known.filter(|s| self.lives(s.node, s.node_life)) else { return };
        if !known.spoken {
            if let Some(session) = self.control.sessions.get_mut(&session) {
                session.spoken = true;
            }
            self.tell_space(known.node);
            self.input(known.node, node::Input::ControlUp);
        }
        if let ControlDown::Members(addresses) = &order.message {
            let ids = self.control.numbers(addresses);
            self.control.node_knows.insert(known.node, ids);
        }
        if matches!(&order.message, ControlDown::Search(budget) if budget.only_urgent) {
            self.tally.note("told of a large interruption");
        }
        self.input(known.node, node::Input::Control(order));
    }

    fn start_member(&mut self, id: u64) {
        let seed = self.control.seed;
        self.control.ran = true;
        if self.control.replacements.is_lost(id) || self.lost.members.contains(&id) {
            return;
        }
        let Some(member) = self.control.members.get_mut(&id) else { return };
        if member.process().is_some() {
            return;
        }
        match member.start(seed) {
            Ok(()) => {
                let life = member.life;
                let wait = Duration::from_millis(TICK_MILLIS);
                self.control_in(wait, ControlEvent::Tick { member: id, life });
            }
            Err(error) => {
                self.logged(Host::Member(id), &format!("ERROR this member cannot start: {error}"));
                self.note_member_failed(id);
                self.control_in(RESTART, ControlEvent::Start { member: id });
            }
        }
        self.member_logged(id);
    }

    /// Ends a member's process at once; its streams break.
    pub(crate) fn crash_member(&mut self, id: u64) {
        self.pauses.forget(Host::Member(id));
        let Some(member) = self.control.members.get_mut(&id) else { return };
        if member.process().is_some() {
            self.control.died.push(id);
        }
        if member.crash(&mut self.dice) {
            self.tally.note("writes torn");
        }
        let broken: Vec<SessionKey> = self
            .control
            .sessions
            .iter()
            .filter(|(_, session)| session.member == id)
            .map(|(key, _)| *key)
            .collect();
        for session in broken {
            let wait = self.draw(REDIAL_MAX);
            self.control_in(wait, ControlEvent::Close { session, leader: None });
        }
    }

    /// Feeds a member and carries out what it wants.
    fn member_input(&mut self, id: u64, input: Input) {
        let mut out = Vec::new();
        let now = self.now;
        self.control.ran = true;
        let Some(member) = self.control.members.get_mut(&id) else { return };
        match member.handle(now, input, &mut out) {
            Ok(()) => {}
            Err(MemberError::Removed { .. }) => {
                self.tally.note("member told that it is none");
                return self.crash_member(id);
            }
            Err(error) => {
                // Its process ends, and whoever watches over it starts it again.
                let line = format!("ERROR this member cannot go on: {error}");
                self.logged(Host::Member(id), &line);
                self.note_member_failed(id);
                self.crash_member(id);
                self.control_in(RESTART, ControlEvent::Start { member: id });
            }
        }
        self.member_logged(id);
        let life = self.control.life(id);
        for output in out {
            self.member_output(id, life, output);
        }
    }

    fn member_output(&mut self, id: u64, life: u64, output: Output) {
        match output {
            Output::Raft { to, bytes } => {
                let lost = self.net.weather.loss_one_in;
                let lost = lost > 0 && self.dice.chance(1, lost);
                let lost = lost || !self.control.replacements.can_send(id, to);
                if !lost && !self.is_cut_between(Host::Member(id), Host::Member(to)) {
                    let at = self.arrival(Host::Member(id), Host::Member(to));
                    let life = self.control.life(to);
                    let event = ControlEvent::Raft { from: id, to, life, bytes };
                    self.schedule(at, Event::Control(event));
                }
            }
            Output::Answer { call, result } if call.0 >= REGION_CALLS => {
                // Dice of the zone have nothing to do with who asks from elsewhere.
                self.control.region_answers.push((call, *result));
            }
            Output::Answer { call, result } => {
                let wait = self.net.delay(&mut self.dice);
                self.control_in(wait, ControlEvent::Answered { call, result });
            }
            Output::Node { session, term, message } => {
                let Some(known) = self.control.sessions.get(&session).copied() else { return };
                if self.is_cut_between(Host::Member(id), Host::Node(known.node)) {
                    self.control_in(REDIAL_MAX, ControlEvent::Close { session, leader: None });
                    return;
                }
                let (node, order) = (known.node, Order { term, message });
                let at = self.arrival(Host::Member(id), Host::Node(node));
                self.schedule(at, Event::Control(ControlEvent::Down { session, node, order }));
            }
            Output::CloseNode { session, error } => {
                let known = self.control.sessions.get(&session).copied();
                if let Some(known) = known.filter(|_| error.reason.refuses_node_for_good()) {
                    self.node_logs(known.node, node::Line::Refused, &error.to_string());
                }
                if let Some(known) = known.filter(|_| error.reason == Reason::StoreRevoked) {
                    let store = error.metadata.get("store").and_then(|text| text.parse().ok());
                    self.node_is_revoked(known.node, store);
                }
                let leader = error.metadata.get("leader").and_then(|text| text.parse().ok());
                let wait = self.net.delay(&mut self.dice);
                self.control_in(wait, ControlEvent::Close { session, leader });
            }
            Output::Probe { node, network, .. } => {
                let wait = self.net.delay(&mut self.dice);
                self.control_in(wait, ControlEvent::Probed { member: id, life, node, network });
            }
            Output::Members(members) => self.control.replacements.set_ways(id, members),
            Output::Leader { serving: true, .. } => self.tally.note("members that began to lead"),
            Output::Leader { .. } => {}
        }
    }

    /// A message of a member: the shell refuses a removed one by name, and passes on where one is
    /// found that may not be known.
    fn raft_arrives(&mut self, from: u64, to: u64, bytes: Bytes) {
        let receiver = self.control.members.get(&to).and_then(SimMember::process);
        if receiver.is_some_and(|process| process.state().is_removed(from)) {
            let life = self.control.life(from);
            return self.control_in(REDIAL_MAX, ControlEvent::Told { member: from, life });
        }
        if let Some(introduction) = self.control.replacements.introduction(from) {
            self.member_input(to, introduction);
        }
        self.member_input(to, Input::Raft { peer: from, bytes });
    }

    /// Notes that a member which was added votes.
    fn note_voter(&mut self, id: u64) {
        let process = self.control.members.get(&id).and_then(SimMember::process);
        if process.is_some_and(|process| process.raft_status().voters.contains(&id))
            && self.control.replacements.votes(id)
        {
            self.tally.note("added member votes");
        }
    }

    fn probe(&mut self, member: u64, node: NodeId, network: Network) -> ProbeResult {
        let (from, to) = (Host::Member(member), Host::Node(node));
        let dark = self.net.is_dark(self.now, Wire { from, to, network }) || self.is_off(node);
        // What a try without a socket says of the other side.
        let dark = dark || self.lacks_descriptor(from);
        match self.nodes.get(&node).is_some_and(SimNode::is_up) {
            _ if dark => ProbeResult::NoAnswer,
            true => ProbeResult::Connected,
            false => ProbeResult::Refused,
        }
    }

    /// A node's process dials the control plane.
    pub(crate) fn control_dial(&mut self, node: NodeId, life: u64) {
        let wait = Duration::from_millis(1) + self.draw(REDIAL_MAX);
        self.control_in(wait, ControlEvent::Open { node, life });
    }

    /// A node's process is gone: its stream breaks.
    pub(crate) fn control_lost(&mut self, node: NodeId) {
        if let Some(session) = self.control.stream_of.remove(&node) {
            let wait = self.draw(REDIAL_MAX);
            self.control_in(wait, ControlEvent::Close { session, leader: None });
        }
    }

    /// The streams of a host that stands still end when their pings stay unanswered.
    pub(crate) fn control_misses(&mut self, host: Host) {
        let touches = |session: &Session| {
            Host::Node(session.node) == host || Host::Member(session.member) == host
        };
        let sessions: Vec<SessionKey> =
            self.control.sessions.iter().filter(|(_, s)| touches(s)).map(|(k, _)| *k).collect();
        for session in sessions {
            let wait = PING_MISSED + self.draw(Duration::from_secs(1));
            self.control_in(wait, ControlEvent::Missed { session });
        }
    }

    /// Whether one end of a stream hears nothing of the other.
    fn is_missed(&self, session: SessionKey) -> bool {
        let Some(known) = self.control.sessions.get(&session) else { return false };
        let (node, member) = (Host::Node(known.node), Host::Member(known.member));
        let wire = Wire { from: node, to: member, network: Network::Primary };
        self.is_paused(node)
            || self.is_paused(member)
            || self.is_off(known.node)
            || self.net.is_dark(self.now, wire)
    }

    fn open_stream(&mut self, id: NodeId, life: u64) {
        let streaming = self.control.stream_of.contains_key(&id);
        if !self.lives(id, life) || streaming {
            return;
        }
        let member = *self.control.try_next.entry(id).or_insert(1);
        let member_life = self.control.life(member);
        if self.is_mute(Host::Member(member)) {
            // The kernel takes the connection, and nobody answers.
            let next = self.control.next_for(id, member);
            self.control.try_next.insert(id, next);
            self.control_in(REGISTER_WITHIN, ControlEvent::Open { node: id, life });
            return;
        }
        let (from, to) = (Host::Node(id), Host::Member(member));
        let dark = self.net.is_dark(self.now, Wire { from, to, network: Network::Primary });
        let cannot = self.lacks_descriptor(from);
        if dark || cannot || !self.control.is_up(member, member_life) {
            let next = self.control.next_for(id, member);
            self.control.try_next.insert(id, next);
            self.control_dial(id, life);
            return;
        }
        let Some(node) = self.nodes.get(&id) else { return };
        let (identity, stores) = (node.identity, node.living());
        let registration = Registration {
            version: CLUSTER_PROTOCOL_VERSION,
            zone: identity.zone,
            node: id,
            stores,
            start: identity.start,
            primary_address: format!("127.1.1.{}:1", id.0),
            replication_address: format!("127.2.1.{}:1", id.0),
            rack: self.rack_of(id),
        };
        let session = SessionKey(self.control.number());
        let known = Session { node: id, node_life: life, member, member_life, spoken: false };
        self.control.sessions.insert(session, known);
        self.control.stream_of.insert(id, session);
        self.member_input(member, Input::NodeOpened { session, registration });
    }

    /// A node's store says what room it has.
    pub(crate) fn tell_space(&mut self, id: NodeId) {
        let capacity_bytes = self.room_bytes;
        let short = self.short_of_space.contains(&id);
        let used_bytes = if short { capacity_bytes } else { self.used_bytes };
        let up = self.nodes.get(&id).filter(|node| node.is_up());
        for store in up.map(SimNode::living).unwrap_or_default() {
            self.input(id, node::Input::Space { store, capacity_bytes, used_bytes });
        }
    }

    /// A node's stores are others now: it introduces itself anew.
    pub(crate) fn introduce_again(&mut self, id: NodeId) {
        if let Some(session) = self.control.stream_of.get(&id).copied() {
            let leader = self.control.sessions.get(&session).map(|known| known.member);
            self.control_in(Duration::ZERO, ControlEvent::Close { session, leader });
        }
    }

    /// A stream has ended, whoever ended it: both sides learn of it, the node dials again.
    fn end_session(&mut self, key: SessionKey, leader: Option<u64>) {
        let Some(session) = self.control.sessions.remove(&key) else { return };
        let Session { member, member_life: life, .. } = session;
        self.carry_out(Event::Control(ControlEvent::Gone { session: key, member, life }));
        if self.control.stream_of.get(&session.node) == Some(&key) {
            self.control.stream_of.remove(&session.node);
        }
        let (node, life) = (session.node, session.node_life);
        self.carry_out(Event::Control(ControlEvent::Lost { node, life }));
        let next = self.control.next_for(session.node, session.member);
        let next = leader.unwrap_or(next);
        self.control.try_next.insert(session.node, next);
        if self.lives(session.node, session.node_life) {
            self.control_dial(session.node, session.node_life);
        }
    }

    pub(crate) fn control_send_up(&mut self, node: NodeId, message: ControlUp) {
        match &message {
            ControlUp::Relayed(relayed) => {
                self.tally.note("messages relayed");
                self.note_proposals(relayed.node, &relayed.message);
            }
            own => {
                self.note_proposals(node, own);
                self.watch_erased(own);
            }
        }
        let Some(session) = self.control.stream_of.get(&node).copied() else { return };
        let Some(known) = self.control.sessions.get(&session).copied() else { return };
        if !known.spoken {
            return;
        }
        if self.is_cut_between(Host::Node(node), Host::Member(known.member)) {
            self.control_in(REDIAL_MAX, ControlEvent::Close { session, leader: None });
            return;
        }
        let member = known.member;
        let at = self.arrival(Host::Node(node), Host::Member(member));
        self.schedule(at, Event::Control(ControlEvent::Up { session, member, message }));
    }

    /// Calls the member that is tried at present.
    pub(crate) fn call(&mut self, request: Request) -> CallId {
        let call = CallId(self.control.number());
        let known = &self.control.client_knows;
        let at = self.control.client_tries % known.len().max(1);
        let member = known.get(at).copied().unwrap_or(1);
        let deadline = self.now + CALL_PATIENCE;
        let life = self.control.life(member);
        let event = ControlEvent::Call { call, member, life, request, deadline };
        self.carry_out(Event::Control(event));
        call
    }

    /// Asks for something on behalf of the client; the answer comes back as an event.
    pub(crate) fn ask(&mut self, request: Request) {
        let call = self.call(request.clone());
        self.control.calls.insert(call, request);
        self.control_in(CALL_PATIENCE, ControlEvent::CallEnds { call });
    }

    /// The client asks for the map.
    pub(crate) fn refresh_map(&mut self) {
        let Some(volume) = self.volume else { return };
        self.ask(Request::GetVolumeMap(v1::GetVolumeMapRequest {
            volume: volume.to_string(),
            ..Default::default()
        }));
    }

    /// The client hears where the members are.
    fn client_learns(&mut self, addresses: &[String]) {
        let ids = self.control.numbers(addresses);
        if !ids.is_empty() && ids != self.control.client_knows {
            self.control.client_knows = ids;
        }
    }

    /// Whether an answer, or the lack of one, is for an operator, who does not stand still with the client.
    pub(crate) fn is_for_operator(&self, event: &Event) -> bool {
        let Event::Control(ControlEvent::CallEnds { call } | ControlEvent::Answered { call, .. }) =
            event
        else {
            return false;
        };
        self.control.calls.get(call).is_some_and(|request| {
            !matches!(request, Request::GetVolumeMap(_) | Request::AttachVolume(_))
        })
    }

    /// A call has no good answer; the next one goes to another member.
    fn call_failed(&mut self, request: &Request) {
        self.control.client_tries += 1;
        if self.replacement_answered(request, None) {
            return;
        }
        match request {
            Request::GetVolumeMap(_) => self.client_input(client::Input::MapFailed),
            Request::SalvageVolume(_) => self.schedule_in(REDIAL_MAX, Event::SalvageAgain),
            Request::DrainNode(_) => {
                self.drain_answered(request, None);
            }
            Request::GrowVolume(_) => {
                self.growth_answered(request, None);
            }
            Request::CreateVolume(_) | Request::DeleteVolume(_) => {
                self.passing_answered(request, None);
            }
            _attaching => self.schedule_in(REDIAL_MAX, Event::AttachAgain),
        }
    }

    fn answered(&mut self, call: CallId, result: Result<Reply, ApiError>) {
        let Some(request) = self.control.calls.remove(&call) else {
            if self.control.awaited == Some(call) {
                self.control.answers.push(result);
            }
            return;
        };
        if self.salvage_answered(&request, &result)
            || self.drain_answered(&request, Some(&result))
            || self.growth_answered(&request, Some(&result))
            || self.passing_answered(&request, Some(&result))
        {
            return;
        }
        if let Ok(reply) = &result
            && self.replacement_answered(&request, Some(reply))
        {
            return;
        }
        match result {
            Ok(Reply::GetVolumeMap(v1::GetVolumeMapResponse { map: Some(map), .. })) => {
                self.client_learns(&map.members);
                self.client_maps(&map);
            }
            Ok(Reply::AttachVolume(v1::AttachVolumeResponse { map: Some(map), .. })) => {
                self.client_learns(&map.members);
                self.attached_elsewhere(&map);
            }
            Ok(_) | Err(_) => self.call_failed(&request),
        }
    }
}
