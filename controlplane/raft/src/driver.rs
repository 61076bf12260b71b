//! raft-rs driven by hand: input, then [`Driver::settle`], then output.
//!
//! - **Persist before send**: what Raft wants stored is synced before a message or a committed
//!   entry of the same step leaves. A leader could send earlier; the microseconds are not worth a
//!   second order of events to reason about.
//! - **Dice**: raft-rs draws election time-outs itself. Its range is made so wide that it never
//!   draws a value of ours; a value that is not ours means that Raft has reset its timer, and one
//!   from our dice takes its place.
//! - **No forwarding**: a follower refuses proposals; the caller goes to the leader.
//! - **Stuck snapshots**: Raft waits for word about a snapshot that it sent; if none comes, it is
//!   told that it failed, and sends again.

use crate::logger::logger;
use crate::message::{self, MemberChange, MessageError, WireSnapshot};
use crate::storage::{RaftStorage, Start, StorageError};
use ashlar_env::dice::Dice;
use ashlar_env::disk::Disk;
use ashlar_log::LogOptions;
use bytes::Bytes;
use raft::prelude::{Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// Most bytes of entries in one message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Most messages with entries on the way to one member.
const MESSAGES_IN_FLIGHT_MAX: usize = 64;
/// Most bytes of proposals that are not committed yet; more are refused.
const UNCOMMITTED_BYTES_MAX: usize = 32 << 20;
/// Above this, only urgent proposals are taken.
const URGENT_BYTES_FROM: usize = 28 << 20;
const _: () = assert!(URGENT_BYTES_FROM + 2 * ENTRY_BYTES_MAX <= UNCOMMITTED_BYTES_MAX);
/// Longest entry. A create of the largest volume takes about a third of it.
pub const ENTRY_BYTES_MAX: usize = 2 << 20;

/// How a member takes part.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// This member's number, from 1.
    pub id: u64,
    /// All members' numbers; used only when the zone is new.
    pub voters: Vec<u64>,
    /// Why an empty log may be no loss.
    pub start: Start,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Least ticks without a leader before an election; the most are one less than twice as many.
    pub election_ticks: usize,
    /// Sizes of the log.
    pub log: LogOptions,
}

/// Why a member cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DriverError {
    /// Its memory failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Options that Raft refuses, or a state that it finds impossible.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// This member does not lead.
    #[error("this member does not lead")]
    NotLeader,
    /// Too much waits to be committed already.
    #[error("too many changes wait to be committed")]
    Busy,
    /// Longer than [`ENTRY_BYTES_MAX`].
    #[error("the change has {0} bytes; the limit is {ENTRY_BYTES_MAX}")]
    TooLong(usize),
}

/// Why a change of members was not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// This member does not lead, or too much waits.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// One at a time.
    #[error("another change of members is under way; ask again when it is done")]
    Pending,
    /// Not a member.
    #[error("{0} is not a member")]
    Unknown(u64),
    /// The leader cannot see to its own removal.
    #[error("member {0} leads; ask again when another does")]
    Leads(u64),
    /// Nobody would vote any more.
    #[error("member {0} is the last one that votes")]
    Last(u64),
    /// The others would not be able to go on.
    #[error("without it only {heard} of {left} members would be there: no majority")]
    NoMajority {
        /// Members left that were heard of lately.
        heard: usize,
        /// Members left.
        left: usize,
    },
}

/// Numbers of members that are added begin above this one, so that none of the first is met.
const ADDED_ABOVE: u64 = 100;

/// A committed entry. Empty ones, which new leaders commit, are passed on too, for their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its position.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// What was proposed.
    pub data: Bytes,
}

/// What a step led to. Everything in here may leave: its persistence is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// For other members, in order.
    pub messages: Vec<(u64, Bytes)>,
    /// A state to take in place of one's own, with its index, before `committed`.
    pub snapshot: Option<(u64, Bytes)>,
    /// To be applied, in order.
    pub committed: Vec<Committed>,
}

/// How a member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub id: u64,
    /// Raft's term.
    pub term: u64,
    /// The leader, as far as known.
    pub leader: Option<u64>,
    /// This member leads.
    pub is_leader: bool,
    /// Last committed entry.
    pub committed: u64,
    /// Last entry stored here.
    pub last: u64,
    /// Members that vote.
    pub voters: Vec<u64>,
    /// Members that are filled and do not vote.
    pub learners: Vec<u64>,
    /// For a leader: by member, last entry known to be stored there, and whether it was heard of
    /// within the last election time-out.
    pub members: BTreeMap<u64, (u64, bool)>,
    /// For a leader: members that lost entries which they had acknowledged to it.
    pub forgetful: Vec<u64>,
}

/// What a member remembers, opened and repaired, before it takes part.
#[derive(Debug)]
pub struct Memory {
    storage: RaftStorage,
}

impl Memory {
    /// Opens the log and the snapshots, or creates them if the zone is new.
    ///
    /// # Errors
    /// Damage, a newer version, an empty log of a zone that is not new.
    pub fn open(
        options: &RaftOptions,
        log_disk: Arc<dyn Disk>,
        snapshot_disk: Arc<dyn Disk>,
    ) -> Result<Self, StorageError> {
        let (log, voters) = (options.log, &options.voters);
        let storage = RaftStorage::open(log_disk, snapshot_disk, log, voters, options.start)?;
        Ok(Self { storage })
    }

    /// Position before the first entry held: a state that does not go that far needs
    /// [`Self::newest_snapshot`] first.
    #[must_use]
    pub fn base_index(&self) -> u64 {
        self.storage.base_index()
    }

    /// Index and state of the newest snapshot.
    ///
    /// # Errors
    /// A damaged file.
    pub fn newest_snapshot(&self) -> Result<Option<(u64, Bytes)>, StorageError> {
        Ok(self.storage.newest_snapshot()?.map(|newest| (newest.index, newest.data)))
    }
}

/// One member.
pub struct Driver {
    node: RawNode<RaftStorage>,
    dice: Box<dyn Dice>,
    election_ticks: usize,
    /// By member: ticks since a snapshot went there without word.
    snapshot_waits: BTreeMap<u64, usize>,
    ticks: usize,
    /// By member: the tick at which it was last heard.
    heard: BTreeMap<u64, usize>,
    /// A tick has passed: what was synced last is to be sealed.
    seal_due: bool,
    /// Says to the leader that entries are gone which it counts on.
    confession: Option<Message>,
    /// As a leader: who has said so.
    forgetful: BTreeSet<u64>,
}

impl core::fmt::Debug for Driver {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Driver").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Starts a member on its memory. `applied` is the index up to which the caller's own state
    /// goes; entries after it come again. It must not be below [`Memory::base_index`].
    ///
    /// # Errors
    /// Impossible options, or state that does not fit the memory.
    pub fn start(
        options: &RaftOptions,
        memory: Memory,
        applied: u64,
        dice: Box<dyn Dice>,
    ) -> Result<Self, DriverError> {
        let mut storage = memory.storage;
        storage.check_applied(applied)?;
        let config = Config {
            id: options.id,
            election_tick: options.election_ticks,
            min_election_tick: options.election_ticks,
            // See the head of this file: one draw in 2^40 would be taken for ours.
            max_election_tick: 1 << 40,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX as u64,
            max_committed_size_per_ready: 4 * MESSAGE_BYTES_MAX,
            ..Config::default()
        };
        let node = RawNode::new(&config, storage, &logger())
            .map_err(|error| DriverError::Raft(error.to_string()))?;
        let election_ticks = options.election_ticks;
        let mut driver = Self {
            node,
            dice,
            election_ticks,
            snapshot_waits: BTreeMap::new(),
            ticks: 0,
            heard: BTreeMap::new(),
            seal_due: false,
            confession: None,
            forgetful: BTreeSet::new(),
        };
        driver.throw_election_dice();
        if driver.voters() == [options.id] {
            // Alone, there is nobody to wait for.
            driver.node.campaign().map_err(|error| DriverError::Raft(error.to_string()))?;
            driver.throw_election_dice();
        }
        Ok(driver)
    }

    /// Our dice in place of Raft's, whenever Raft has thrown its own.
    fn throw_election_dice(&mut self) {
        let raft = &mut self.node.raft;
        if raft.randomized_election_timeout() >= 2 * self.election_ticks {
            let range = u64::try_from(self.election_ticks).unwrap_or(1);
            let extra = usize::try_from(self.dice.below(range)).unwrap_or(0);
            raft.set_randomized_election_timeout(self.election_ticks + extra);
        }
    }

    /// Time passes by one tick. Call [`Self::settle`] after it.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.seal_due = true;
        self.node.tick();
        self.throw_election_dice();
        self.retry_snapshots();
        self.promote_filled();
    }

    fn retry_snapshots(&mut self) {
        let waiting: Vec<u64> = if self.is_leader() {
            let members = self.node.raft.prs().iter();
            members
                .filter(|(_, progress)| progress.state == ProgressState::Snapshot)
                .map(|(id, _)| *id)
                .collect()
        } else {
            Vec::new()
        };
        self.snapshot_waits.retain(|id, _| waiting.contains(id));
        for id in waiting {
            let ticks = self.snapshot_waits.entry(id).or_default();
            *ticks += 1;
            if *ticks > 4 * self.election_ticks {
                *ticks = 0;
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// A message came from `peer`. Call [`Self::settle`] after it; several may go before one.
    ///
    /// # Errors
    /// Bytes that are no message for this member; nothing has changed then.
    pub fn step(&mut self, peer: u64, bytes: Bytes) -> Result<(), MessageError> {
        let mut message = message::decode(self.node.raft.id, peer, bytes)?;
        self.heard.insert(peer, self.ticks);
        // raft-rs panics on a commit index beyond the log.
        let known = self.node.raft.raft_log.last_index() + message.entries.len() as u64;
        let beyond = message.get_msg_type() == MessageType::MsgHeartbeat && message.commit > known;
        let (term, counted_on) = (message.term, message.commit);
        if beyond {
            message.commit = self.node.raft.raft_log.committed;
        }
        self.note_forgetful(&message);
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, peer, "raft ignored a message");
        }
        if beyond {
            self.confess(peer, term, counted_on);
        }
        self.throw_election_dice();
        Ok(())
    }

    /// If the leader counts on entries beyond this log, then this member has acknowledged them and
    /// lost them: its log is shorter than it was, and looks whole. The leader is told, as if it had
    /// tried to append there.
    fn confess(&mut self, leader: u64, term: u64, counted_on: u64) {
        let raft = &self.node.raft;
        if term != raft.term || leader != raft.leader_id {
            return;
        }
        let last = raft.raft_log.last_index();
        tracing::error!(last, counted_on, "the raft log has lost its end; the leader is told");
        let mut answer = Message::default();
        answer.set_msg_type(MessageType::MsgAppendResponse);
        (answer.from, answer.to, answer.term) = (raft.id, leader, term);
        (answer.index, answer.reject, answer.reject_hint) = (counted_on, true, last);
        answer.log_term = raft.raft_log.term(last).unwrap_or(0);
        self.confession = Some(answer);
    }

    /// A member that refuses, below what it acknowledged in this term, has lost entries since. Raft
    /// takes such a refusal for an old one and would wait for ever; it is filled again from there.
    fn note_forgetful(&mut self, message: &Message) {
        let refused = message.get_msg_type() == MessageType::MsgAppendResponse && message.reject;
        if !refused || !self.is_leader() || message.term != self.node.raft.term {
            return;
        }
        let Some(progress) = self.node.raft.mut_prs().get_mut(message.from) else { return };
        let (has, acknowledged) = (message.reject_hint, progress.matched);
        if has < acknowledged {
            tracing::error!(
                member = message.from,
                has,
                acknowledged,
                "a member lost entries that it had acknowledged; it is filled again"
            );
            progress.matched = has;
            progress.become_probe();
            self.forgetful.insert(message.from);
        }
    }

    /// The way to a member is interrupted.
    pub fn report_unreachable(&mut self, peer: u64) {
        self.node.report_unreachable(peer);
    }

    /// Proposes an entry; gives its index and term. It is committed only if an entry of that
    /// index **and** term comes out of [`Self::settle`].
    ///
    /// # Errors
    /// Not leading, too much uncommitted, too long.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(u64, u64), ProposeError> {
        if self.node.raft.uncommitted_size() + data.len() > URGENT_BYTES_FROM {
            return Err(ProposeError::Busy);
        }
        self.propose_urgent(data)
    }

    /// The same for what must not wait behind others: it may take the room that is kept.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub fn propose_urgent(&mut self, data: Vec<u8>) -> Result<(u64, u64), ProposeError> {
        if data.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLong(data.len()));
        }
        if !self.is_leader() {
            return Err(ProposeError::NotLeader);
        }
        self.node.propose(Vec::new(), data).map_err(|_| ProposeError::Busy)?;
        self.throw_election_dice();
        Ok((self.node.raft.raft_log.last_index(), self.node.raft.term))
    }

    /// Proposes a new member, which is filled before it votes. Gives its number, which is made of
    /// the entry's position and so never given twice, and index and term as [`Self::propose`]
    /// does. What `data` makes of the number is applied with the change. The member starts with an
    /// empty store and [`Start::Join`].
    ///
    /// # Errors
    /// Not leading; another change is under way.
    ///
    /// # Panics
    /// If the entry is not where it was expected: only a defect can cause it, and a number could
    /// be given twice.
    pub fn propose_add(
        &mut self,
        data: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<(u64, u64, u64), ChangeError> {
        let id = self.next_member();
        let (index, term) = self.propose_change(MemberChange::Add(id), data(id))?;
        assert_eq!(id, ADDED_ABOVE + index, "a member is numbered after its entry");
        Ok((id, index, term))
    }

    /// The number that a member would get which is added now.
    #[must_use]
    pub fn next_member(&self) -> u64 {
        ADDED_ABOVE + self.node.raft.raft_log.last_index() + 1
    }

    /// Whether a number is one that was given to an added member, not one of the first.
    #[must_use]
    pub const fn is_added(id: u64) -> bool {
        id > ADDED_ABOVE
    }

    /// Lets members vote that have been filled: they have everything that is committed, and were
    /// heard of lately. One at a time.
    fn promote_filled(&mut self) {
        if !self.is_leader() || self.node.raft.has_pending_conf() {
            return;
        }
        let committed = self.node.raft.raft_log.committed;
        let filled = |id: &&u64| {
            let progress = self.node.raft.prs().get(**id);
            progress.is_some_and(|progress| progress.matched >= committed) && self.is_heard(**id)
        };
        let Some(id) = self.node.store().learners().iter().find(filled).copied() else { return };
        if let Err(error) = self.propose_change(MemberChange::Promote(id), Vec::new()) {
            tracing::debug!(member = id, %error, "a filled member does not vote yet");
        }
    }

    /// Whether a member may be removed, `force` aside: see [`Self::propose_remove`].
    ///
    /// # Errors
    /// As there.
    pub fn check_remove(&self, id: u64, force: bool) -> Result<(), ChangeError> {
        if self.node.store().learners().contains(&id) {
            return Ok(());
        }
        if !self.voters().contains(&id) {
            return Err(ChangeError::Unknown(id));
        }
        let left: Vec<u64> = self.voters().iter().copied().filter(|other| *other != id).collect();
        if left.is_empty() {
            return Err(ChangeError::Last(id));
        }
        let heard = left.iter().filter(|other| self.is_heard(**other)).count();
        if heard * 2 <= left.len() && !force {
            return Err(ChangeError::NoMajority { heard, left: left.len() });
        }
        if id == self.node.raft.id { Err(ChangeError::Leads(id)) } else { Ok(()) }
    }

    /// Proposes that a member is none any more; `data` is applied with it.
    ///
    /// # Errors
    /// Not leading; another change is under way; it leads; the others are no majority, unless
    /// `force`; it is the last one.
    pub fn propose_remove(
        &mut self,
        id: u64,
        force: bool,
        data: Vec<u8>,
    ) -> Result<(u64, u64), ChangeError> {
        self.check_remove(id, force)?;
        self.propose_change(MemberChange::Remove(id), data)
    }

    /// Hands the lead to the voter that has most and was heard of lately; false if there is none.
    pub fn hand_over(&mut self) -> bool {
        let me = self.node.raft.id;
        let others = self.voters().iter().filter(|id| **id != me && self.is_heard(**id));
        let matched = |id: &u64| self.node.raft.prs().get(*id).map_or(0, |p| p.matched);
        let Some(to) = others.copied().max_by_key(matched) else { return false };
        tracing::info!(to, "the lead is handed over");
        self.node.transfer_leader(to);
        true
    }

    fn propose_change(
        &mut self,
        change: MemberChange,
        data: Vec<u8>,
    ) -> Result<(u64, u64), ChangeError> {
        if data.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLong(data.len()).into());
        }
        if !self.is_leader() {
            return Err(ProposeError::NotLeader.into());
        }
        // Raft would quietly make an empty entry of it.
        if self.node.raft.has_pending_conf() {
            return Err(ChangeError::Pending);
        }
        self.node
            .propose_conf_change(change.encode(data.into()), change.to_raft())
            .map_err(|_| ProposeError::Busy)?;
        self.throw_election_dice();
        Ok((self.node.raft.raft_log.last_index(), self.node.raft.term))
    }

    /// Carries out changes of members among committed entries.
    fn change_members(&mut self, committed: &[Entry]) -> Result<(), DriverError> {
        for entry in committed {
            if entry.get_entry_type() != EntryType::EntryConfChange {
                continue;
            }
            let (change, _) = MemberChange::decode(&entry.context)
                .map_err(|cause| StorageError::Entry { index: entry.index, cause })?;
            let members = self
                .node
                .apply_conf_change(&change.to_raft())
                .map_err(|error| DriverError::Raft(error.to_string()))?;
            let (voters, learners) = (members.voters, members.learners);
            tracing::info!(?change, ?voters, ?learners, "the members have changed");
            self.node.mut_store().set_members(voters, learners)?;
        }
        Ok(())
    }

    /// Persists, then releases what may leave. Call until input is used up; spurious calls are
    /// harmless.
    ///
    /// # Errors
    /// The memory failed: the member must stop; nothing of this step has left.
    pub fn settle(&mut self, out: &mut Outbox) -> Result<(), DriverError> {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let storage = self.node.mut_store();
            if !ready.snapshot().is_empty() {
                let snapshot = WireSnapshot::from(ready.snapshot().clone());
                storage.install(&snapshot)?;
                out.snapshot = Some((snapshot.index, snapshot.data));
                out.committed.clear();
            }
            storage.append(ready.take_entries())?;
            if let Some(hard) = ready.hs() {
                storage.set_hard_state(hard)?;
            }
            if ready.must_sync() {
                storage.sync()?;
            }
            let mut messages = ready.take_messages();
            messages.extend(ready.take_persisted_messages());
            let mut committed = ready.take_committed_entries();
            let mut light = self.node.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.node.mut_store().set_commit(commit);
            }
            messages.extend(light.take_messages());
            committed.extend(light.take_committed_entries());
            self.change_members(&committed)?;
            self.node.advance_apply();
            self.throw_election_dice();
            release(messages, committed, out);
        }
        if std::mem::take(&mut self.seal_due) {
            self.node.mut_store().seal()?;
        }
        release(self.confession.take().into_iter().collect(), Vec::new(), out);
        if !self.is_leader() {
            self.forgetful.clear();
        }
        Ok(())
    }

    /// Keeps a snapshot of the caller's state at `index`, which it has applied **and made
    /// durable**, and drops older entries but for the last `keep`, which spare slow members it.
    ///
    /// # Errors
    /// The memory failed: the member must stop.
    pub fn compact(&mut self, index: u64, state: Vec<u8>, keep: u64) -> Result<(), DriverError> {
        let keep_from = (index + 1).saturating_sub(keep);
        Ok(self.node.mut_store().compact(index, state, keep_from)?)
    }

    /// Position before the first entry held.
    #[must_use]
    pub fn base_index(&self) -> u64 {
        self.node.store().base_index()
    }

    /// Entries held.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.node.store().entry_count()
    }

    /// Whether another member waits for a newer snapshot than there is.
    #[must_use]
    pub fn snapshot_wanted(&self) -> bool {
        self.node.store().snapshot_wanted()
    }

    /// Members that vote.
    #[must_use]
    pub fn voters(&self) -> &[u64] {
        self.node.store().voters()
    }

    /// Whether this member leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Raft's term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The leader, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    /// Raft's own note of this is wiped at every election time-out, so it would flicker.
    fn is_heard(&self, id: u64) -> bool {
        let lately = |tick: &usize| self.ticks - tick <= self.election_ticks;
        id == self.node.raft.id || self.heard.get(&id).is_some_and(lately)
    }

    /// How this member stands.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let raft = &self.node.raft;
        let members = if self.is_leader() {
            raft.prs()
                .iter()
                .map(|(id, progress)| (*id, (progress.matched, self.is_heard(*id))))
                .collect()
        } else {
            BTreeMap::new()
        };
        RaftStatus {
            voters: self.voters().to_vec(),
            learners: raft.store().learners().to_vec(),
            id: raft.id,
            term: raft.term,
            leader: self.leader(),
            is_leader: self.is_leader(),
            committed: raft.raft_log.committed,
            last: raft.store().last_index().unwrap_or(0),
            members,
            forgetful: self.forgetful.iter().copied().collect(),
        }
    }
}

fn release(messages: Vec<Message>, committed: Vec<Entry>, out: &mut Outbox) {
    out.messages.extend(messages.into_iter().map(|message| (message.to, message::encode(message))));
    out.committed.extend(committed.into_iter().map(|entry| {
        // A change of members is carried out already; what the caller applies with it is not.
        let plain = entry.get_entry_type() == EntryType::EntryNormal;
        let words = |context: &Bytes| MemberChange::decode(context).map(|(_, data)| data);
        let data = if plain { entry.data } else { words(&entry.context).unwrap_or_default() };
        Committed { index: entry.index, term: entry.term, data }
    }));
}
