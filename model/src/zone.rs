//! The state of the whole model and everything that may happen in it.
//!
//! Loss, duplication and reordering are one thing: a message stays where it is after it has
//! arrived, and may arrive again or never. A message that can have no effect any more is taken
//! away, so that states which differ in nothing else are one. A paused process is one that does
//! nothing for a while, which any order of events contains.

use crate::judge::Judge;
use crate::mutation::Mutation;
use crate::node::{Durable, Node, Role, Step};
use crate::primary::{Copied, Phase, Primary};
use crate::scene::Scene;
use crate::words::{Body, CONTROL, Config, Lsn, Message, NODES, NodeId, Set, Term, Value};

/// How much of each budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Spent {
    pub(crate) resends: u8,
    pub(crate) reads: u8,
    pub(crate) beats: u8,
    pub(crate) restarts: u8,
    pub(crate) elections: u8,
    pub(crate) removals: u8,
    pub(crate) learners: u8,
    pub(crate) fills: u8,
    pub(crate) retirements: u8,
}

/// What happened once and leaves no other trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) read: bool,
    pub(crate) erased: bool,
    /// A retirement was committed before its conditions held.
    pub(crate) retired_early: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Zone {
    pub(crate) nodes: Vec<Node>,
    /// All configurations, committed in this order; the last one is current.
    pub(crate) configs: Vec<Config>,
    /// Messages sent, each once, in order of their own.
    pub(crate) net: Vec<Message>,
    pub(crate) clock: u8,
    pub(crate) spent: Spent,
    pub(crate) seen: Seen,
    pub(crate) judge: Judge,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Deliver(Message),
    /// A node hears of a configuration from the control plane, or from a primary in band.
    Adopt(NodeId, u8),
    Sync(NodeId),
    Restart(NodeId),
    Tick,
    Elect(NodeId),
    /// The same, and the old primary has agreed to stay in sync.
    ElectAgreed(NodeId),
    RemoveSecondary(NodeId),
    AddLearner(NodeId),
    ReadoptStale(NodeId),
    RemoveLearner(NodeId),
    Retire(NodeId),
    TakeOver(NodeId),
    Write(NodeId),
    /// The client sends its unanswered write again.
    Resend(NodeId),
    BeginRead(NodeId),
    EndRead(NodeId),
    Beat(NodeId, NodeId),
    BeginFill(NodeId, NodeId),
    EndFill(NodeId, NodeId),
    ReadCopy(NodeId, NodeId),
    Propose(NodeId, NodeId),
}

impl Zone {
    /// Everything is quiet: the first primary serves, in its first term.
    pub(crate) fn first(scene: &Scene) -> Self {
        let primary = scene.in_sync.iter().next().unwrap_or_default();
        let mut config = Config { epoch: 1, elected: 1, primary, ..Config::default() };
        config.in_sync = scene.in_sync;
        for node in scene.in_sync.iter() {
            config.incarnation[node] = 1;
        }
        let term = Term { elected: 1, start: 1 };
        let last = Lsn::opening(term);
        let held = Durable { held: 1, config, term, last, committed: last, ..Durable::default() };
        let node = |node: NodeId| {
            if !scene.in_sync.contains(node) {
                return Node::new(1, Durable::default());
            }
            let role = if node == primary {
                let mut serving = Primary::new(term, last);
                serving.phase = Phase::Serving;
                for other in scene.in_sync.without(node).iter() {
                    serving.acked[other] = last;
                    serving.acked_by[other] = 1;
                }
                Role::Primary(Box::new(serving))
            } else {
                Role::Member(None)
            };
            Node { role, ..Node::new(1, held) }
        };
        let mut zone = Self {
            nodes: (0..scene.nodes).map(node).collect(),
            configs: vec![config],
            net: Vec::new(),
            clock: 0,
            spent: Spent::default(),
            seen: Seen::default(),
            judge: Judge::new(last),
        };
        for action in &scene.before {
            zone = zone.after(scene, *action).unwrap_or_else(|| unreachable!("{action:?}"));
        }
        zone
    }

    pub(crate) fn config(&self) -> Config {
        self.configs.last().copied().unwrap_or_default()
    }

    /// The state after an event; `None` if it changes nothing.
    pub(crate) fn after(&self, scene: &Scene, action: Action) -> Option<Self> {
        if let Action::Deliver(message) = action
            && self.changes_nothing(scene, message)
        {
            return None;
        }
        let mut next = self.clone();
        next.act(scene, action);
        for node in &mut next.nodes {
            node.leases.forget_past(next.clock, scene.mutation);
        }
        next.drop_dead_messages(scene);
        (next != *self).then_some(next)
    }

    fn act(&mut self, scene: &Scene, action: Action) {
        match action {
            Action::Deliver(message) => self.deliver(scene, message),
            Action::Adopt(node, epoch) => self.step(scene, node, |step| step.adopt(epoch)),
            Action::Sync(node) => self.step(scene, node, |step| step.sync()),
            Action::Restart(node) => {
                self.spent.restarts += 1;
                self.step(scene, node, |step| step.restart());
            }
            Action::Tick => self.clock += 1,
            Action::Elect(_)
            | Action::ElectAgreed(_)
            | Action::RemoveSecondary(_)
            | Action::AddLearner(_)
            | Action::ReadoptStale(_)
            | Action::RemoveLearner(_)
            | Action::Retire(_) => self.reconfigure(scene, action),
            Action::Beat(holder, granter) => {
                // Without a bound there is nothing to count, and fewer states to tell apart.
                self.spent.beats += u8::from(scene.beats < u8::MAX);
                let adopted = self.nodes[holder].now.config.epoch;
                let body = Body::Beat { sent_at: self.clock, adopted };
                self.post(vec![Message { from: holder, to: granter, body }]);
            }
            of_a_primary => self.act_as_primary(scene, of_a_primary),
        }
    }

    fn act_as_primary(&mut self, scene: &Scene, action: Action) {
        match action {
            Action::TakeOver(node) => self.primary(scene, node, Primary::take_over),
            Action::Write(node) => {
                let value = self.judge.begin_write();
                self.primary(scene, node, |primary, step| primary.assign(value, true, step));
            }
            Action::Resend(node) => {
                self.spent.resends += 1;
                let value = self.judge.begun;
                self.primary(scene, node, |primary, step| primary.assign(value, true, step));
            }
            Action::BeginRead(node) => {
                self.spent.reads += 1;
                let round = self.spent.reads;
                self.primary(scene, node, |primary, step| primary.begin_read(round, step));
            }
            Action::EndRead(node) => {
                let Role::Primary(primary) = &mut self.nodes[node].role else { return };
                if let Some(read) = primary.read.take() {
                    self.judge.end_read(read.value, read.ended_at_begin);
                    self.seen.read = true;
                }
            }
            Action::BeginFill(node, learner) => {
                self.spent.fills += 1;
                let start = self.nodes[learner].start;
                self.primary(scene, node, |p, step| p.begin_fill(learner, start, step));
            }
            Action::EndFill(node, learner) => {
                self.primary(scene, node, |primary, _| primary.fills[learner] = None);
            }
            Action::ReadCopy(node, learner) => {
                self.primary(scene, node, |primary, step| primary.read_copy(learner, step));
            }
            Action::Propose(node, learner) => {
                self.primary(scene, node, |primary, step| primary.propose(learner, step));
            }
            _other => {}
        }
    }

    fn deliver(&mut self, scene: &Scene, message: Message) {
        if message.to != CONTROL {
            let held = self.nodes[message.to].now.held;
            self.step(scene, message.to, |step| step.on_message(message));
            let erased = held != 0 && self.nodes[message.to].now.held == 0;
            self.seen.erased |= erased;
        } else if let Body::PromoteLearner { epoch, learner } = message.body {
            self.promote(epoch, learner);
        }
    }

    /// Whether a message arrives without any effect; cheaper to see than to undo.
    fn changes_nothing(&self, scene: &Scene, message: Message) -> bool {
        let Some(before) = self.nodes.get(message.to) else { return false };
        let (mut node, mut judge, mut sent) = (before.clone(), self.judge.clone(), Vec::new());
        let (configs, clock, me) = (self.configs.as_slice(), self.clock, message.to);
        let (judge, sent) = (&mut judge, &mut sent);
        let mut step = Step { scene, configs, clock, me, node: &mut node, judge, sent };
        step.on_message(message);
        step.end();
        let old = sent.iter().all(|message| self.net.binary_search(message).is_ok());
        old && node == *before && *judge == self.judge
    }

    /// Lets a node handle one input.
    fn step(&mut self, scene: &Scene, me: NodeId, act: impl FnOnce(&mut Step<'_>)) {
        let mut sent = Vec::new();
        let mut step = Step {
            scene,
            configs: &self.configs,
            clock: self.clock,
            me,
            node: &mut self.nodes[me],
            judge: &mut self.judge,
            sent: &mut sent,
        };
        act(&mut step);
        step.end();
        self.post(sent);
    }

    fn primary(
        &mut self,
        scene: &Scene,
        me: NodeId,
        act: impl FnOnce(&mut Primary, &mut Step<'_>),
    ) {
        self.step(scene, me, |step| step.with_primary(act));
    }

    pub(crate) fn post(&mut self, messages: Vec<Message>) {
        for message in messages {
            if let Err(at) = self.net.binary_search(&message) {
                self.net.insert(at, message);
            }
        }
    }

    /// Everything that may happen, within the scene's budgets.
    pub(crate) fn possible(&self, scene: &Scene, actions: &mut Vec<Action>) {
        actions.extend(self.net.iter().map(|message| Action::Deliver(*message)));
        let current = self.config().epoch;
        for (id, node) in self.nodes.iter().enumerate() {
            let later = node.now.floor() + 1..=current;
            actions.extend(later.map(|epoch| Action::Adopt(id, epoch)));
            if scene.lazy_sync && node.dirty {
                actions.push(Action::Sync(id));
            }
            if self.spent.restarts < scene.restarts {
                actions.push(Action::Restart(id));
            }
            if let Some(primary) = node.primary() {
                self.possible_for_primary(scene, id, primary, actions);
            }
        }
        if self.clock < scene.ticks {
            actions.push(Action::Tick);
        }
        self.possible_changes(scene, actions);
    }

    fn possible_for_primary(
        &self,
        scene: &Scene,
        id: NodeId,
        primary: &Primary,
        actions: &mut Vec<Action>,
    ) {
        let mut node = self.nodes[id].clone();
        let mut judge = self.judge.clone();
        let mut sent = Vec::new();
        let (configs, clock) = (self.configs.as_slice(), self.clock);
        let (node, judge, sent) = (&mut node, &mut judge, &mut sent);
        let step = Step { scene, configs, clock, me: id, node, judge, sent };
        if primary.may_take_over(&step) {
            actions.push(Action::TakeOver(id));
        }
        if primary.may_assign(&step) {
            self.possible_writes(scene, id, primary, actions);
        }
        if primary.is_serving() && primary.read.is_none() && self.spent.reads < scene.reads {
            actions.push(Action::BeginRead(id));
        }
        if primary.may_end_read(&step) {
            actions.push(Action::EndRead(id));
        }
        let required = Primary::required(&step);
        if scene.has_leases() && self.spent.beats < scene.beats {
            actions.extend(required.iter().map(|granter| Action::Beat(id, granter)));
        }
        let config = &step.node.now.config;
        for learner in config.learners.iter() {
            let proposed = step.node.now.proposal.is_some_and(|(_, l)| l == learner);
            match primary.fills[learner] {
                None if primary.is_serving() && !proposed && self.spent.fills < scene.fills => {
                    actions.push(Action::BeginFill(id, learner));
                }
                None => {}
                Some(fill) => {
                    let opened = primary.acked[learner].term == primary.term;
                    if fill.copy == Copied::No && opened {
                        actions.push(Action::ReadCopy(id, learner));
                    }
                    if self.spent.fills < scene.fills && !proposed {
                        actions.push(Action::EndFill(id, learner));
                    }
                    if primary.may_propose(learner, &step) {
                        actions.push(Action::Propose(id, learner));
                    }
                }
            }
        }
    }

    fn possible_writes(
        &self,
        scene: &Scene,
        id: NodeId,
        primary: &Primary,
        actions: &mut Vec<Action>,
    ) {
        let begun: Value = self.judge.begun;
        let answered = begun == 0 || self.judge.acknowledged[usize::from(begun)].is_some();
        let may_begin = answered || scene.resends.is_none();
        if may_begin && begun < scene.writes {
            actions.push(Action::Write(id));
        }
        let waits = primary.in_flight.iter().any(|write| write.reply);
        if !answered && !waits && scene.resends.is_some_and(|most| self.spent.resends < most) {
            actions.push(Action::Resend(id));
        }
    }

    /// Takes away what can have no effect any more, whatever happens.
    fn drop_dead_messages(&mut self, scene: &Scene) {
        let current = self.config().epoch;
        let (nodes, clock) = (&self.nodes, self.clock);
        let fenced = scene.mutation != Mutation::NoFence;
        let hold = scene.hold() + 1;
        self.net.retain(|message| match message.body {
            Body::PromoteLearner { epoch, .. } => epoch == current,
            Body::Beat { sent_at, .. } | Body::BeatReply { sent_at, .. } => sent_at + hold > clock,
            Body::Erase { incarnation, .. } => {
                let stable = &nodes[message.to].stable;
                let past = stable.held != incarnation && stable.held != 0;
                !past || scene.mutation == Mutation::EraseWithoutIncarnation
            }
            Body::Collected { .. }
            | Body::MirrorAck { .. }
            | Body::Confirmed { .. }
            | Body::CopyAck { .. } => is_awaited(&nodes[message.to], message),
            _request => {
                is_still_meant(&nodes[message.from], message)
                    && (!fenced || is_acceptable(&nodes[message.to], message.to, &message.body))
            }
        });
    }

    /// Nodes whose stable copy holds every acknowledged write or a later one in its place, and who
    /// know durably that they are in sync under the current configuration or a later one.
    pub(crate) fn owners(&self) -> Set {
        let current = self.config();
        let owns = |node: &NodeId| {
            let stable = &self.nodes[*node].stable;
            stable.held == current.incarnation[*node]
                && stable.config.epoch >= current.epoch
                && stable.config.in_sync.contains(*node)
                && self.judge.has_acknowledged(stable.value)
        };
        current.in_sync.iter().filter(owns).fold(Set::default(), Set::with)
    }
}

/// Epoch and term that a request was sent under.
const fn stamp(body: &Body) -> Option<(u8, Term)> {
    match body {
        Body::Collect { epoch, term }
        | Body::OpenTerm { epoch, term, .. }
        | Body::Confirm { epoch, term, .. } => Some((*epoch, *term)),
        Body::OpenLearner { epoch, base: lsn, .. }
        | Body::Mirror { epoch, lsn, .. }
        | Body::Committed { epoch, lsn }
        | Body::Copy { epoch, read_at: lsn, .. } => Some((*epoch, lsn.term)),
        _answer => None,
    }
}

/// Whether a member could still take the request.
fn is_acceptable(to: &Node, me: NodeId, body: &Body) -> bool {
    let stable = &to.stable;
    let above =
        stamp(body).is_none_or(|(epoch, term)| epoch >= stable.floor() && term >= stable.term);
    let new = match body {
        Body::OpenTerm { term, .. } => stable.last.term < *term,
        Body::OpenLearner { learner_start, .. } | Body::Copy { learner_start, .. } => {
            *learner_start >= to.start
        }
        Body::Committed { lsn, .. } => stable.committed < *lsn,
        // Who is in sync never goes back behind what it has.
        Body::Mirror { lsn, .. } => {
            !stable.config.in_sync.contains(me) || stable.last.term < lsn.term || stable.last < *lsn
        }
        _other => true,
    };
    above && new
}

/// Whether a question still interests the one who asked. What carries data does not ask.
fn is_still_meant(from: &Node, message: &Message) -> bool {
    match message.body {
        Body::Collect { term, .. } => from.primary().is_some_and(|primary| {
            let asks = matches!(primary.phase, Phase::Collecting | Phase::Fetching);
            primary.term == term && asks && primary.histories[message.to].is_none()
        }),
        Body::Confirm { epoch, term, round } => from.primary().is_some_and(|primary| {
            let asks = primary.read.is_some_and(|read| read.round == round);
            primary.term == term && asks && from.now.config.epoch == epoch
        }),
        _data => true,
    }
}

/// Whether an answer can still tell the primary anything. A term that has ended never comes back.
fn is_awaited(to: &Node, message: &Message) -> bool {
    let Some(primary) = to.primary() else { return false };
    match message.body {
        Body::Collected { term, .. } => {
            let asks = matches!(primary.phase, Phase::Collecting | Phase::Fetching);
            term == primary.term && asks
        }
        Body::MirrorAck { lsn, .. } => {
            let known =
                to.now.config.in_sync.contains(message.from) && lsn <= primary.acked[message.from];
            lsn.term == primary.term && !known
        }
        Body::Confirmed { epoch, term, round } => {
            let asks = primary.read.is_some_and(|read| read.round == round);
            term == primary.term && asks && epoch == to.now.config.epoch
        }
        Body::CopyAck { term, .. } => term == primary.term,
        _request => true,
    }
}

const _: () = assert!(NODES <= 8, "a set of nodes is one byte");
