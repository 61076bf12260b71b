//! What strikes the zone. Each fault heals by itself, and a swarm of them stays within what Ashlar
//! promises to survive: no fault takes data from more replicas than leave one whole in-sync copy.
//!
//! Each seed draws which kinds are on and how often they strike (swarm testing): a run with few
//! kinds reaches states that a run with all of them never does.

use crate::beyond::{FOR_EVER, Loss};
use crate::control::ControlEvent;
use crate::disk::WriteFault;
use crate::kinds::{FaultKind, Kinds};
use crate::net::{Host, Rough, Wire};
use crate::node::{End, SimNode};
use crate::run::Options;
use crate::store::SimStore;
use crate::world::{Event, World};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_node_core::{Input, Line};
use ashlar_types::message::data::Network;
use ashlar_types::{ChunkId, NodeId, ReplicaId, Time};
use std::time::Duration;

/// One fault, with everything about it decided.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Draws the next fault of the swarm and schedules the one after it.
    Draw,
    /// A fault of this kind, against whom the dice say.
    Drawn { kind: FaultKind },
    /// The process of a node dies and comes back.
    Crash { node: NodeId, away: Duration },
    /// The process of a member dies and comes back.
    CrashMember { member: u64, away: Duration },
    /// The disk of a member is lost; it is removed and another one added.
    ReplaceMember { member: u64 },
    /// All processes die at once and come back, each within so long.
    CrashAll { away_max: Duration },
    /// Nothing passes on these wires.
    Cut { wires: Vec<Wire>, length: Duration },
    /// A cut ends.
    Mend { wires: Vec<Wire> },
    /// A process stands still.
    Pause { host: Host, length: Duration },
    /// A node's process ends in order and comes back.
    Stop { node: NodeId, away: Duration },
    /// A node's machine loses power and comes back.
    PowerOff { node: NodeId, away: Duration },
    /// The same in the middle of a write.
    Tear { node: NodeId, away: Duration },
    /// A member's machine loses power in the middle of one of the next writes of its log, and comes
    /// back when whoever watches over it starts it.
    TearLog { member: u64 },
    /// Nothing passes on these wires for so long; then everything does, unless it `breaks`
    /// connections that TCP gives up before.
    Clog { wires: Vec<Wire>, length: Duration, breaks: bool },
    /// Everything of a host takes so many times as long.
    Slow { host: Host, factor: u32, length: Duration },
    /// These wires are worse than the weather for so long.
    Roughen { wires: Vec<Wire>, rough: Rough, length: Duration },
    /// One message in so many is lost.
    Lose { one_in: u64, length: Duration },
    /// A node's disk stands still.
    StallDisk { node: NodeId, length: Duration },
    /// Reads of a node's disk fail.
    FailReads { node: NodeId, length: Duration },
    /// A sync of a node's journal fails: the process ends, as it must, and comes back.
    FailSync { node: NodeId, away: Duration },
    /// A written block of the first chunk rots at a node.
    Rot { node: NodeId },
    /// One block of the first chunk rots in every replica in sync.
    RotEverywhere,
    /// The next content that a node's disk is given does not get where it belongs.
    SpoilWrite { node: NodeId, how: WriteFault },
    /// Reads of a node's disk get for so long what is there now.
    ShowOld { node: NodeId, length: Duration },
    /// A block of the first chunk at a node has other content, with a good checksum.
    Differ { node: NodeId },
    /// A node's disk has no room for content for so long.
    FillDisk { node: NodeId, length: Duration },
    /// A node's disk has little room left for so long.
    ShortOfSpace { node: NodeId, length: Duration },
    /// A node's disk has room again.
    SpaceAgain { node: NodeId },
    /// A node's process dies, and records that were synced are gone from its journal.
    LoseRecords { node: NodeId, away: Duration },
    /// A member's process dies, and a byte of what its log has synced turns.
    RotLog { member: u64, away: Duration },
    /// A member's disk is full for so long.
    FillLog { member: u64, length: Duration },
    /// A node's disk is replaced by an empty one; its process comes back after a while.
    NewDisk { node: NodeId, away: Duration },
    /// The volume is attached elsewhere; the former client goes on writing for so long.
    Reattach { length: Duration },
    /// The client's process dies and is started again.
    RestartClient,
    /// An operator asks for a salvage.
    Salvage,
    /// An operator asks for a node to be drained, or for that to be cancelled.
    Drain { node: NodeId, cancel: bool },
    /// An operator asks for a volume that is larger by so many chunks.
    Grow { chunks: u64 },
    /// A node comes that was not there at first.
    Join { node: NodeId },
    /// A member's wall clock goes wrong by so many seconds for a while.
    JumpClock { member: u64, seconds: i64, length: Duration },
    /// A node's clock gains so many thousandths from now on.
    Drift { node: NodeId, permille: i64 },
    /// Another volume is made, and deleted after so long.
    ShortLived { length: Duration },
    /// More is lost than is promised to be survived.
    Beyond { loss: Loss },
    /// Nothing passes between this zone and the others.
    CutOff { length: Duration },
    /// A process gets no further file descriptor for so long.
    NoDescriptors { host: Host, length: Duration },
    /// A process gets descriptors again, if no longer want holds.
    Descriptors { host: Host },
    /// The disk of a node is put into another one for so long; both processes come back at once.
    PutDisk { from: NodeId, into: NodeId, length: Duration },
    /// Whatever disks of others are in a node are taken out, and it is started.
    TakeDiskOut { node: NodeId },
    /// A node's data core stands still; its beats go on.
    StallCore { node: NodeId, length: Duration },
    /// It goes on, unless it stands still for longer.
    CoreGoesOn { node: NodeId },
}

impl Fault {
    /// Its name in the tally of a run.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Draw | Self::Drawn { .. } => "draw",
            Self::Crash { .. } => "kill",
            Self::CrashMember { .. } => "kill member",
            Self::ReplaceMember { .. } => "replace member",
            Self::CrashAll { .. } => "kill all",
            Self::Cut { .. } => "cut",
            Self::Mend { .. } => "mend",
            Self::Pause { .. } => "pause",
            Self::Stop { .. } => "stop",
            Self::PowerOff { .. } => "power off",
            Self::Tear { .. } | Self::TearLog { .. } => "tear",
            Self::Clog { breaks: false, .. } => "clog",
            Self::Clog { breaks: true, .. } => "half-open",
            Self::Slow { .. } => "slow",
            Self::Roughen { .. } => "roughen",
            Self::Lose { .. } => "lose",
            Self::StallDisk { .. } => "stall disk",
            Self::FailReads { .. } => "fail reads",
            Self::FailSync { .. } => "fail sync",
            Self::Rot { .. } => "rot",
            Self::RotEverywhere => "rot everywhere",
            Self::SpoilWrite { how: WriteFault::Lost, .. } => "lose write",
            Self::SpoilWrite { how: WriteFault::Misdirected, .. } => "misdirect write",
            Self::ShowOld { .. } => "show old",
            Self::Differ { .. } => "differ",
            Self::FillDisk { .. } => "fill disk",
            Self::ShortOfSpace { .. } => "short of space",
            Self::SpaceAgain { .. } => "space again",
            Self::LoseRecords { .. } => "lose records",
            Self::RotLog { .. } => "rot log",
            Self::FillLog { .. } => "fill log",
            Self::NewDisk { .. } => "new disk",
            Self::Reattach { .. } => "reattach",
            Self::RestartClient => "restart client",
            Self::Salvage => "salvage",
            Self::Drain { cancel: false, .. } => "drain",
            Self::Grow { .. } => "grow",
            Self::Drain { cancel: true, .. } => "cancel drain",
            Self::ShortLived { .. } => "short-lived volume",
            Self::Join { .. } => "join",
            Self::JumpClock { .. } => "jump clock",
            Self::Drift { .. } => "drift",
            Self::Beyond { loss } => loss.name(),
            Self::CutOff { .. } => "cut off",
            Self::NoDescriptors { .. } => "no descriptors",
            Self::Descriptors { .. } => "descriptors again",
            Self::PutDisk { .. } => "put disk",
            Self::TakeDiskOut { .. } => "take disk out",
            Self::StallCore { .. } => "stall core",
            Self::CoreGoesOn { .. } => "core goes on",
        }
    }
}

/// Longest time that a process or a connection of a pair of faults stays away.
const PAIRED_AWAY_MAX: Duration = Duration::from_secs(3);
/// After which they are asked again, if there is none.
const DRAW_AGAIN: Duration = Duration::from_millis(50);
/// How often the dice are asked for a target that the fault may have.
const DRAWS_MAX: u32 = 30;

/// What one seed makes of the kinds that are allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swarm {
    /// Kinds that are on.
    pub(crate) kinds: Kinds,
    /// Longest time between two faults.
    calm_max: Duration,
    /// Longest time that a crashed process or a cut stays.
    away_max: Duration,
}

impl Swarm {
    /// Draws which kinds are on. What is allowed does not change what is drawn, so that a run with
    /// one kind less is as near to the first as it can be.
    pub(crate) fn draw(dice: &mut SeededDice, allowed: Kinds) -> Self {
        let all_on = dice.chance(1, 8);
        let mut kinds = Kinds::NONE;
        for kind in FaultKind::ALL.into_iter().filter(|kind| !FaultKind::LATER.contains(kind)) {
            if dice.chance(1, 2) || all_on {
                kinds = kinds.with(kind);
            }
        }
        let calm_max = Duration::from_millis(300 + dice.below(3_000));
        let away_max = Duration::from_millis(500 + dice.below(6_000));
        // Behind all else: seeds draw what they drew before there were these.
        for kind in FaultKind::LATER {
            if dice.chance(1, 2) || all_on {
                kinds = kinds.with(kind);
            }
        }
        Self { kinds: kinds.and(allowed), calm_max, away_max }
    }

    /// One of the kinds that are on, by weight.
    fn pick(&self, dice: &mut SeededDice) -> Option<FaultKind> {
        let sum: u64 = self.kinds.iter().map(FaultKind::weight).sum();
        let mut at = dice.below(sum);
        self.kinds.iter().find(|kind| {
            let here = at < kind.weight();
            at = at.saturating_sub(kind.weight());
            here
        })
    }
}

/// Both directions between two hosts on a network.
pub(crate) fn both_ways(a: Host, b: Host, network: Network) -> Vec<Wire> {
    vec![Wire { from: a, to: b, network }, Wire { from: b, to: a, network }]
}

impl World {
    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Draw => self.draw_fault(),
            Fault::Drawn { kind } => self.strike_drawn(kind),
            Fault::FailSync { node, away } => self.fail_sync(node, away),
            Fault::Crash { node, away } => self.end_for(node, End::Killed, away),
            Fault::Stop { node, away } => self.end_for(node, End::Stopped, away),
            Fault::PowerOff { node, away } => self.end_for(node, End::PowerCut, away),
            Fault::Tear { node, away } => self.end_for(node, End::Torn, away),
            Fault::CrashAll { away_max } => {
                for member in self.control.ids() {
                    let away = self.draw_fault_time(away_max);
                    self.strike(Fault::CrashMember { member, away });
                }
                let all: Vec<NodeId> = self.nodes.keys().copied().collect();
                for node in all {
                    let away = self.draw_fault_time(away_max);
                    self.strike(Fault::Crash { node, away });
                }
            }
            Fault::Cut { wires, length } => {
                for wire in &wires {
                    self.net.cut(*wire);
                }
                self.schedule_in(length, Event::Fault(Fault::Mend { wires }));
            }
            Fault::Mend { wires } => {
                for wire in wires {
                    self.net.mend(wire);
                }
            }
            Fault::Pause { host, length } => self.pause(host, length),
            Fault::Reattach { length } => self.reattach(length),
            Fault::RestartClient => self.restart_client(),
            Fault::Beyond { loss } => self.lose(loss),
            Fault::CutOff { length } => self.cut_off_until = self.now + length,
            Fault::Salvage => self.begin_salvage(),
            Fault::Drain { node, cancel } => self.begin_drain(node, cancel),
            Fault::Grow { chunks } => self.begin_growth(chunks),
            Fault::ShortLived { length } => self.begin_passing(length),
            of_a_disk @ (Fault::RotEverywhere
            | Fault::SpoilWrite { .. }
            | Fault::ShowOld { .. }
            | Fault::Differ { .. }
            | Fault::FillDisk { .. }
            | Fault::ShortOfSpace { .. }
            | Fault::SpaceAgain { .. }
            | Fault::Rot { .. }
            | Fault::StallDisk { .. }
            | Fault::FailReads { .. }) => self.strike_disk(of_a_disk),
            of_the_net @ (Fault::Clog { .. }
            | Fault::Slow { .. }
            | Fault::Roughen { .. }
            | Fault::Lose { .. }) => {
                self.strike_net(of_the_net);
            }
            of_a_member @ (Fault::CrashMember { .. }
            | Fault::ReplaceMember { .. }
            | Fault::RotLog { .. }
            | Fault::TearLog { .. }
            | Fault::FillLog { .. }) => self.strike_member(of_a_member),
            of_a_machine => self.strike_machine(of_a_machine),
        }
    }

    /// A sync of one of a node's stores fails: the process ends, unless it has another store.
    fn fail_sync(&mut self, node: NodeId, away: Duration) {
        if self.nodes.get(&node).is_some_and(SimNode::is_up) {
            self.node_logs(node, Line::StoreEnds, "a sync failed");
            if self.fail_one_store(node, away) {
                return;
            }
            self.tally.note("processes ended by a failed sync");
        }
        self.strike(Fault::Crash { node, away });
    }

    /// A node's process ends, and is started again after a while.
    fn end_for(&mut self, node: NodeId, how: End, away: Duration) {
        self.end_node(node, how);
        if away >= FOR_EVER {
            self.lost.nodes.insert(node);
        }
        self.schedule_in(away, Event::Start { node });
    }

    fn strike_member(&mut self, fault: Fault) {
        match fault {
            Fault::CrashMember { member, away } => {
                self.crash_member(member);
                if away >= FOR_EVER {
                    self.lost.members.insert(member);
                }
                self.schedule_in(away, Event::Control(ControlEvent::Start { member }));
            }
            Fault::ReplaceMember { member } => self.replace_member(member),
            Fault::RotLog { member, away } => {
                self.crash_member(member);
                if self.control.rot_log(member) {
                    self.tally.note("logs rotten");
                }
                self.schedule_in(away, Event::Control(ControlEvent::Start { member }));
            }
            Fault::TearLog { member } => self.control.tear_log(member, &mut self.fault_dice),
            Fault::FillLog { member, length } => {
                self.control.fill_log(member, !length.is_zero());
                if !length.is_zero() {
                    let over = Fault::FillLog { member, length: Duration::ZERO };
                    self.schedule_in(length, Event::Fault(over));
                }
            }
            _not_of_a_member => {}
        }
    }

    fn strike_net(&mut self, fault: Fault) {
        match fault {
            Fault::Clog { wires, length, breaks } => {
                let until = self.now + length;
                for wire in &wires {
                    self.net.clog(*wire, until, breaks);
                    self.control_misses(wire.from);
                }
            }
            Fault::Slow { host, factor, length } => {
                self.net.slow_down(host, factor);
                if factor > 1 {
                    let usual = Fault::Slow { host, factor: 1, length };
                    self.schedule_in(length, Event::Fault(usual));
                }
            }
            Fault::Roughen { wires, rough, length } => {
                wires.iter().for_each(|wire| self.net.roughen(*wire, rough));
                if !length.is_zero() {
                    let (rough, none) = (Rough::NOT, Duration::ZERO);
                    let usual = Fault::Roughen { wires, rough, length: none };
                    self.schedule_in(length, Event::Fault(usual));
                }
            }
            Fault::Lose { one_in, length } => {
                let usual = self.net.weather.loss_one_in;
                self.net.weather.loss_one_in = one_in;
                if !length.is_zero() {
                    let usual = Fault::Lose { one_in: usual, length: Duration::ZERO };
                    self.schedule_in(length, Event::Fault(usual));
                }
            }
            _not_of_the_net => {}
        }
    }

    fn strike_machine(&mut self, fault: Fault) {
        match fault {
            Fault::Join { node } => self.join(node),
            Fault::JumpClock { member, seconds, length } => {
                self.control.set_wall_clock(member, seconds);
                if seconds != 0 {
                    let right = Fault::JumpClock { member, seconds: 0, length };
                    self.schedule_in(length, Event::Fault(right));
                }
            }
            Fault::Drift { node, permille } => {
                self.with_node(node, |node, now, _| node.drift(now, permille));
            }
            Fault::StallCore { node, length } => {
                self.with_node(node, |node, now, _| node.stall(now + length));
                self.schedule_in(length, Event::Fault(Fault::CoreGoesOn { node }));
            }
            Fault::CoreGoesOn { node } => self.core_goes_on(node),
            Fault::NoDescriptors { host, length } => self.no_descriptors(host, length),
            Fault::Descriptors { host } => self.descriptors_again(host),
            Fault::PutDisk { from, into, length } => self.put_disk(from, into, length),
            Fault::TakeDiskOut { node } => self.take_disk_out(node),
            Fault::LoseRecords { node, away } => {
                self.end_node(node, End::Killed);
                self.with_store(node, |store, _| store.lose_records());
                self.schedule_in(away, Event::Start { node });
            }
            Fault::NewDisk { node, away } => {
                self.end_node(node, End::Killed);
                let chunk = self.first_chunk();
                self.with_node(node, |node, _, dice| node.replace_disk(node.struck(chunk), dice));
                self.schedule_in(away, Event::Start { node });
            }
            _not_of_a_machine => {}
        }
    }

    fn strike_disk(&mut self, fault: Fault) {
        let until = |length| self.now + length;
        let first = self.first_chunk();
        match fault {
            Fault::StallDisk { node, length } => {
                let until = until(length);
                self.with_store(node, |store, _| store.disk.stall(until));
            }
            Fault::FailReads { node, length } => {
                let until = until(length);
                self.with_store(node, |store, _| store.disk.fail_reads(until));
            }
            Fault::ShowOld { node, length } => {
                let until = until(length);
                self.with_store(node, |store, _| store.show_old(until));
            }
            Fault::FillDisk { node, length } => {
                let until = until(length);
                self.with_store(node, |store, _| store.disk.full_until = until);
            }
            Fault::ShortOfSpace { node, length } => {
                self.short_of_space.insert(node);
                self.tell_space(node);
                self.schedule_in(length, Event::Fault(Fault::SpaceAgain { node }));
            }
            Fault::SpaceAgain { node } => {
                self.short_of_space.remove(&node);
                self.tell_space(node);
            }
            Fault::SpoilWrite { node, how } => {
                self.with_store(node, |store, _| store.disk.spoil_next_write(how));
            }
            Fault::Rot { node } => {
                let Some(chunk) = first else { return };
                let mut rotten = false;
                self.with_store(node, |store, dice| rotten = store.rot(chunk, dice));
                if rotten {
                    self.tally.note("blocks rotten");
                }
            }
            Fault::Differ { node } => {
                let Some(chunk) = first else { return };
                let mut differs = false;
                self.with_store(node, |store, _| differs = store.differ(chunk));
                if differs {
                    self.tally.note("replicas made to differ");
                }
            }
            Fault::RotEverywhere => self.rot_everywhere(),
            _not_of_a_disk => {}
        }
    }

    /// Every node's store has little room left for so long.
    pub(crate) fn fill_all(&mut self, length: Duration) {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in all {
            self.strike_disk(Fault::ShortOfSpace { node, length });
        }
    }

    /// A block of the first chunk that is written everywhere rots everywhere.
    fn rot_everywhere(&mut self) {
        let Some(config) = self.control.configs().next().cloned() else { return };
        let block = u32::try_from(self.fault_dice.below(u64::from(config.blocks))).unwrap_or(0);
        let rot = |replica: &ReplicaId| {
            let node = self.nodes.get_mut(&replica.node);
            let store = node.and_then(|node| node.store_mut(replica.store));
            store.is_some_and(|store| store.rot_block(config.chunk, block))
        };
        if config.in_sync.iter().map(rot).filter(|r| *r).count() < config.in_sync.len() {
            return;
        }
        self.tally.note("blocks rotten everywhere");
        if let Some(client) = &mut self.client {
            client.may_not_read(config.chunk, block);
        }
    }

    /// The chunk that disks are struck for.
    fn first_chunk(&self) -> Option<ChunkId> {
        self.control.configs().next().map(|config| config.chunk)
    }

    /// A node that has another store goes on without one that has failed, and is started again after a
    /// while, with all of them. False if it has no other.
    fn fail_one_store(&mut self, node: NodeId, away: Duration) -> bool {
        let chunk = self.first_chunk();
        let mut failed = None;
        self.with_node(node, |node, _, dice| failed = node.fail_store(node.struck(chunk), dice));
        let Some(store) = failed else { return false };
        self.tally.note("stores failed under a process");
        self.input(node, Input::StoreFailed { store });
        self.introduce_again(node);
        self.schedule_in(away, Event::Fault(Fault::Crash { node, away: Duration::ZERO }));
        true
    }

    /// The disk of a node that a fault strikes.
    fn with_store(&mut self, node: NodeId, act: impl FnOnce(&mut SimStore, &mut SeededDice)) {
        let chunk = self.first_chunk();
        self.with_node(node, |node, _, dice| {
            let at = node.struck(chunk);
            if let Some(store) = node.stores.get_mut(at) {
                act(store, dice);
            }
        });
    }

    fn with_node(&mut self, node: NodeId, act: impl FnOnce(&mut SimNode, Time, &mut SeededDice)) {
        if let Some(node) = self.nodes.get_mut(&node) {
            act(node, self.now, &mut self.fault_dice);
        }
    }

    /// A duration below `max`, from the dice of the faults.
    pub(crate) fn draw_fault_time(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.fault_dice.below(nanos))
    }

    fn any_node(&mut self) -> Option<NodeId> {
        let count = self.nodes.len() as u64;
        let at = usize::try_from(self.fault_dice.below(count)).ok()?;
        self.nodes.keys().nth(at).copied()
    }

    /// Usually the leader.
    fn any_member(&mut self) -> u64 {
        match self.control.leader() {
            Some(leader) if self.fault_dice.chance(2, 3) => leader,
            _ => {
                let ids = self.control.ids();
                let at = self.fault_dice.below(ids.len() as u64);
                usize::try_from(at).ok().and_then(|at| ids.get(at).copied()).unwrap_or(1)
            }
        }
    }

    fn draw_fault(&mut self) {
        let swarm = self.swarm;
        let Some(kind) = swarm.pick(&mut self.fault_dice) else { return };
        let drawn = self.fault_of(kind, swarm.away_max);
        if let Some(fault) = drawn.filter(|fault| self.may_strike(fault)) {
            self.tally.note(kind.name());
            self.strike_told(fault);
        }
        let wait = self.draw_fault_time(swarm.calm_max);
        self.schedule_in(wait, Event::Fault(Fault::Draw));
    }

    fn strike_drawn(&mut self, kind: FaultKind) {
        let fault = (0..DRAWS_MAX).find_map(|_| self.fault_of(kind, PAIRED_AWAY_MAX));
        let Some(fault) = fault else {
            // All nodes are down: as soon as there is one that it may strike.
            let again = Event::Fault(Fault::Drawn { kind });
            return self.schedule_in(DRAW_AGAIN, again);
        };
        self.tally.note(kind.name());
        self.strike_told(fault);
    }

    /// What the dice have drawn strikes: the log says what it is.
    fn strike_told(&mut self, fault: Fault) {
        let text = match &fault {
            // One host and all others: too many to read.
            Fault::Cut { wires, length } | Fault::Clog { wires, length, .. } if wires.len() > 2 => {
                let from = wires.first().map(|wire| wire.from.to_string()).unwrap_or_default();
                format!("{} of {} wires around {from} for {length:?}", fault.name(), wires.len())
            }
            few => format!("{few:?}"),
        };
        self.journal.remark(self.now, &format!("struck: {text}"));
        self.note_taken(&fault);
        self.strike(fault);
    }

    /// Two kinds of faults within a second, once the load runs.
    pub(crate) fn schedule_pair(&mut self, options: &Options) {
        let Some((first, second)) = options.pair else { return };
        let at = Duration::from_millis(500);
        self.schedule_in(at, Event::Fault(Fault::Drawn { kind: first }));
        let apart = self.draw_fault_time(Duration::from_secs(1));
        self.schedule_in(at + apart, Event::Fault(Fault::Drawn { kind: second }));
    }

    /// Both faults of a pair must have struck.
    pub(crate) fn judge_pair(&mut self, options: &Options) {
        let Some((first, second)) = options.pair else { return };
        let wanted = if first == second && first.strikes_once() { 1 } else { 2 };
        let struck: u64 = [first, second].iter().map(|kind| self.tally.of(kind.name())).sum();
        let struck = if first == second { struck / 2 } else { struck };
        if struck < wanted {
            let detail = format!("{} and {}: {struck} struck", first.name(), second.name());
            self.judge.violated(self.now, "fault did not strike", detail);
        }
    }

    /// A fault of a kind, against whom the dice say.
    fn fault_of(&mut self, kind: FaultKind, away_max: Duration) -> Option<Fault> {
        let away = self.draw_fault_time(away_max);
        let node = self.any_node()?;
        Some(match kind {
            FaultKind::CrashNode => Fault::Crash { node, away },
            FaultKind::CrashMember => Fault::CrashMember { member: self.any_member(), away },
            FaultKind::CrashAll => Fault::CrashAll { away_max: Duration::from_millis(800) },
            FaultKind::CutNodes => {
                let other = self.any_node().filter(|other| *other != node)?;
                let primary_net = self.fault_dice.chance(2, 3);
                let network = if primary_net { Network::Primary } else { Network::Replication };
                let mut wires = both_ways(Host::Node(node), Host::Node(other), network);
                if self.fault_dice.chance(1, 2) {
                    wires.truncate(1);
                }
                Fault::Cut { wires, length: away }
            }
            FaultKind::Isolate => {
                let others = self.nodes.keys().filter(|n| **n != node).map(|n| Host::Node(*n));
                let wires = others
                    .chain(self.control.ids().into_iter().map(Host::Member))
                    .flat_map(|other| {
                        [Network::Primary, Network::Replication]
                            .into_iter()
                            .flat_map(move |net| both_ways(Host::Node(node), other, net))
                    })
                    .collect();
                Fault::Cut { wires, length: away }
            }
            FaultKind::CutClient => {
                let wire =
                    Wire { from: Host::Client, to: Host::Node(node), network: Network::Primary };
                Fault::Cut { wires: vec![wire], length: away }
            }
            FaultKind::CutMember => {
                let (from, to) = (Host::Node(node), Host::Member(self.any_member()));
                let wire = Wire { from, to, network: Network::Primary };
                Fault::Cut { wires: vec![wire], length: away }
            }
            FaultKind::CutMembers => {
                let member = self.any_member();
                let (from, to) = (Host::Member(member), Host::Member(self.control.after(member)));
                let wire = Wire { from, to, network: Network::Primary };
                Fault::Cut { wires: vec![wire], length: away }
            }
            FaultKind::PauseNode => {
                Fault::Pause { host: Host::Node(node), length: self.draw_pause() }
            }
            FaultKind::PauseMember => {
                let host = Host::Member(self.any_member());
                Fault::Pause { host, length: self.draw_pause() }
            }
            FaultKind::PauseClient => {
                Fault::Pause { host: Host::Client, length: self.draw_pause() }
            }
            other => return self.other_fault_of(other, node, away),
        })
    }
}

impl World {
    /// The kinds that came later than the first ones.
    fn other_fault_of(&mut self, kind: FaultKind, node: NodeId, away: Duration) -> Option<Fault> {
        let host = Host::Node(node);
        match kind {
            FaultKind::Clog | FaultKind::HalfOpen => {
                let breaks = kind == FaultKind::HalfOpen;
                let wires = self.wires_around(host, !breaks);
                // Longer than TCP's patience, now and then.
                Some(Fault::Clog { wires, length: away * 2, breaks })
            }
            FaultKind::PowerOff => Some(Fault::PowerOff { node, away }),
            FaultKind::Slow => {
                let factor = u32::try_from(2 + self.fault_dice.below(120)).unwrap_or(2);
                Some(Fault::Slow { host, factor, length: away })
            }
            FaultKind::LossBurst => {
                let one_in = 3 + self.fault_dice.below(60);
                Some(Fault::Lose { one_in, length: away / 4 })
            }
            FaultKind::StallDisk => {
                let long = self.fault_dice.chance(1, 4);
                let longest = Duration::from_millis(if long { 10_000 } else { 1_000 });
                Some(Fault::StallDisk { node, length: self.draw_fault_time(longest) })
            }
            FaultKind::StallCore => Some(Fault::StallCore { node, length: self.draw_pause() }),
            FaultKind::ShortOfSpace => Some(Fault::ShortOfSpace { node, length: away }),
            // One disk at a time: the others have what it cannot give.
            FaultKind::FailReads => {
                let now = self.now;
                let alone = self.nodes.values().all(|node| node.is_readable(now));
                alone.then_some(Fault::FailReads { node, length: away / 100 })
            }
            FaultKind::FailSync => Some(Fault::FailSync { node, away }),
            FaultKind::NewDisk => self.may_lose(node).then_some(Fault::NewDisk { node, away }),
            FaultKind::Reattach => {
                (!self.former.is_former()).then_some(Fault::Reattach { length: away })
            }
            FaultKind::RestartClient => Some(Fault::RestartClient),
            FaultKind::JumpClock => {
                let seconds = i64::try_from(self.fault_dice.below(7_200)).unwrap_or(0) - 3_600;
                Some(Fault::JumpClock { member: self.any_member(), seconds, length: away })
            }
            FaultKind::Drift => {
                let permille = i64::try_from(self.fault_dice.below(201)).unwrap_or(0) - 100;
                Some(Fault::Drift { node, permille })
            }
            FaultKind::Drain => {
                let cancel = self.drains.nodes().any(|drained| drained == node);
                Some(Fault::Drain { node, cancel })
            }
            FaultKind::BadDisk => self.spoil(node, away),
            FaultKind::ShortLived => Some(Fault::ShortLived { length: away }),
            FaultKind::Grow => self.may_grow().then_some(Fault::Grow { chunks: 1 }),
            _drawn_before => None,
        }
    }

    /// Something that a disk does to what it was given. It is the same disk all along.
    fn spoil(&mut self, node: NodeId, away: Duration) -> Option<Fault> {
        let how = self.fault_dice.below(4);
        let node = self.promise.bad_disk.unwrap_or(node);
        if !self.may_spoil(node) {
            return None;
        }
        self.promise.bad_disk = Some(node);
        Some(match how {
            0 => Fault::Rot { node },
            1 => Fault::SpoilWrite { node, how: WriteFault::Lost },
            2 => Fault::SpoilWrite { node, how: WriteFault::Misdirected },
            _ => Fault::ShowOld { node, length: away / 10 },
        })
    }

    /// Wires of a host with one other host, or with all others.
    fn wires_around(&mut self, host: Host, one: bool) -> Vec<Wire> {
        let nodes = self.nodes.keys().map(|node| Host::Node(*node));
        let mut others: Vec<Host> = nodes
            .chain(self.control.ids().into_iter().map(Host::Member))
            .chain([Host::Client])
            .filter(|other| *other != host)
            .collect();
        if one {
            let keep = usize::try_from(self.fault_dice.below(others.len() as u64)).unwrap_or(0);
            others = others.into_iter().skip(keep).take(1).collect();
        }
        let networks = [Network::Primary, Network::Replication];
        others
            .into_iter()
            .flat_map(|other| networks.map(|network| both_ways(host, other, network)))
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_not_picked_and_the_rest_is_drawn_alike() {
        for seed in 0..200 {
            let draw = |allowed| Swarm::draw(&mut SeededDice::new(seed), allowed);
            let (all, some) = (draw(Kinds::ALL), draw(Kinds::ALL.without(FaultKind::CrashNode)));
            assert_eq!(all.kinds.without(FaultKind::CrashNode), some.kinds);
            assert_eq!(all.calm_max, some.calm_max);
            let picked = some.pick(&mut SeededDice::new(seed));
            assert_ne!(picked, Some(FaultKind::CrashNode));
            assert!(picked.is_none_or(|kind| all.kinds.contains(kind)));
        }
    }
}
