//! The members of the control plane: added, removed, started, lost; and where they are found.
//!
//! A change is one entry of the log that changes who votes and, with it, the committed state; so
//! the two never disagree. A new member is filled as a learner and votes when it has caught up,
//! which Raft's driver sees to. A leader that is to be removed hands over first.
//!
//! Where a member is found: in the committed state, once it has members; before, in the
//! configuration. A member that was away while others were added learns of them from their own
//! envelopes, until it has caught up.

use super::calls::{self, Step};
use super::lead::CallKind;
use super::{Member, Now, Output, Reply};
use crate::errors::{self, api_error};
use ashlar_controlplane_core::apply::{Answer, Refusal};
use ashlar_controlplane_core::command::{Action, Command, TokenUse};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::Time;
use ashlar_zone_raft::{ChangeError, Driver, ProposeError};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Most members, learners included: five that vote, and one or two being exchanged.
const MEMBERS_MAX: usize = 7;
/// Most members that are known by their envelopes alone.
const HEARD_MAX: usize = 16;
/// How long after a loss a member counts as heard again: several election time-outs.
const FOUND_AFTER: Duration = Duration::from_secs(5);
/// How long a change of members takes, roughly: an entry, or an election.
const CHANGE_WAIT: Duration = Duration::from_millis(500);

/// Where the members are found, for whoever dials them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// `ip:port` of each.
    pub addresses: BTreeMap<u64, String>,
    /// Those that are members no more.
    pub removed: BTreeSet<u64>,
    /// It has joined, and the zone's state has not come yet.
    pub joining: bool,
}

impl Members {
    /// Whether messages of a member are taken in: of those known, of those that were added while
    /// this one was away, and of all before the zone's state has come.
    #[must_use]
    pub fn admits(&self, peer: u64) -> bool {
        !self.removed.contains(&peer)
            && (self.addresses.contains_key(&peer) || Driver::is_added(peer) || self.joining)
    }
}

/// A change of members that was checked.
#[derive(Debug)]
pub(super) enum Planned {
    Add { token: Option<TokenUse>, address: String },
    Remove { token: Option<TokenUse>, member: u64, force: bool },
}

impl Member {
    /// Where the members are found, as far as this one knows.
    pub(super) fn members(&self) -> Members {
        let mut members = Members { joining: self.is_joining(), ..Members::default() };
        for record in self.state.members() {
            if record.removed {
                members.removed.insert(record.member);
            } else {
                members.addresses.insert(record.member, record.address.clone());
            }
        }
        if members.addresses.is_empty() {
            members.addresses.clone_from(&self.options.addresses);
        }
        for (peer, address) in &self.heard {
            if self.state.member(*peer).is_none() {
                members.addresses.entry(*peer).or_insert_with(|| address.clone());
            }
        }
        members
    }

    fn is_joining(&self) -> bool {
        self.options.addresses.is_empty() && self.state.members().next().is_none()
    }

    /// A member says where it is found. Only one that the state does not know needs to.
    pub(super) fn on_peer_at(&mut self, peer: u64, address: String) {
        let joining = self.is_joining();
        let unknown = self.state.member(peer).is_none()
            && !self.options.addresses.contains_key(&peer)
            && (Driver::is_added(peer) || joining);
        let room = self.heard.len() < HEARD_MAX || self.heard.contains_key(&peer);
        if unknown && room && self.heard.get(&peer) != Some(&address) {
            tracing::info!(peer, %address, "a member that was added meanwhile speaks up");
            self.heard.insert(peer, address);
            self.members_due = true;
        }
    }

    /// Tells whom it concerns that the members have changed.
    pub(super) fn tell_members(&mut self, out: &mut Vec<Output>) {
        if std::mem::take(&mut self.members_due) {
            let known = |peer: &u64| self.state.member(*peer).is_some();
            self.heard = std::mem::take(&mut self.heard)
                .into_iter()
                .filter(|(peer, _)| !known(peer))
                .collect();
            out.push(Output::Members(self.members()));
        }
    }

    /// Addresses for nodes: none while their configuration is right.
    pub(super) fn changed_addresses(&self) -> Option<Vec<String>> {
        let known = self.state.members().next().is_some();
        known.then(|| self.members().addresses.into_values().collect())
    }

    /// The members as the log knows them, for the first change.
    fn before(&self) -> Vec<(u64, String)> {
        let raft = self.driver.status();
        let addresses = self.options.addresses.iter().map(|(id, at)| (*id, at.clone()));
        addresses.filter(|(id, _)| raft.voters.contains(id)).collect()
    }

    pub(super) fn list_members(&self) -> v1::ListMembersResponse {
        let raft = self.driver.status();
        v1::ListMembersResponse {
            zone: self.options.zone.to_string(),
            leader: raft.leader.unwrap_or(0),
            last_index: raft.last,
            members: self.member_views(),
        }
    }

    /// The members as operators see them.
    pub(super) fn member_views(&self) -> Vec<v1::Member> {
        let raft = self.driver.status();
        let view = |(id, address): (u64, String)| {
            let (matched_index, reachable) = raft.members.get(&id).copied().unwrap_or((0, false));
            let role = if raft.voters.contains(&id) {
                v1::MemberRole::Voter
            } else if raft.learners.contains(&id) {
                v1::MemberRole::Learner
            } else {
                v1::MemberRole::Unspecified
            };
            let lost = self.state.member(id).map(|record| record.lost.clone()).unwrap_or_default();
            let forgetful = match (lost.is_empty(), raft.forgetful.contains(&id)) {
                (false, _) => lost,
                (true, true) => "it lost entries that it had acknowledged".to_owned(),
                (true, false) => String::new(),
            };
            let remedy = if forgetful.is_empty() {
                String::new()
            } else {
                format!(
                    "`ashlar controlplane remove {id}`, then `ashlar controlplane add` with a new \
                     folder"
                )
            };
            let leader = raft.leader == Some(id);
            v1::Member {
                id,
                address,
                leader,
                reachable,
                matched_index,
                role: role.into(),
                forgetful,
                remedy,
            }
        };
        self.members().addresses.into_iter().map(view).collect()
    }

    pub(super) fn add_member(&self, request: &v1::AddMemberRequest) -> Result<Step, ApiError> {
        let address = &request.address;
        let token = calls::token(&request.client_token, 5, &[address.as_bytes()])?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(self.added(&answer, false)));
        }
        if !address
            .parse::<SocketAddr>()
            .is_ok_and(|at| at.port() != 0 && !at.ip().is_unspecified())
        {
            let problem = format!("{address:?} is not an address of the form ip:port");
            return Err(api_error::invalid("address", problem));
        }
        let known = self.members().addresses;
        if let Some((id, _)) = known.iter().find(|(_, at)| *at == address) {
            let text = format!("member {id} has the address {address}; remove it first");
            return Err(ApiError::new(Reason::MemberExists, text).with("member", id.to_string()));
        }
        if known.len() >= MEMBERS_MAX {
            let text = format!("a control plane has at most {MEMBERS_MAX} members, learners too");
            return Err(ApiError::new(Reason::MemberLimitExceeded, text));
        }
        if request.dry_run {
            let answer = Answer::Member { member: 0, address: address.clone() };
            return Ok(Step::Done(self.added(&answer, true)));
        }
        let planned = Planned::Add { token, address: address.clone() };
        Ok(Step::Members(CallKind::AddMember, planned))
    }

    pub(super) fn remove_member(
        &mut self,
        request: &v1::RemoveMemberRequest,
    ) -> Result<Step, ApiError> {
        let (member, force) = (request.member, request.force);
        let parameters: &[&[u8]] = &[&member.to_le_bytes(), &[u8::from(force)]];
        let token = calls::token(&request.client_token, 6, parameters)?;
        if let Some(answer) = self.replayed(token.as_ref())? {
            return Ok(Step::Done(removed(&answer, false)));
        }
        if self.state.is_removed(member) {
            return Err(errors::refusal(&Refusal::RemovedMember(member), None));
        }
        match self.driver.check_remove(member, force) {
            Err(ChangeError::Leads(_)) if request.dry_run => {}
            other => other.map_err(|error| self.refused_change(&error))?,
        }
        if request.dry_run {
            let address = self.members().addresses.remove(&member).unwrap_or_default();
            return Ok(Step::Done(removed(&Answer::Member { member, address }, true)));
        }
        let planned = Planned::Remove { token, member, force };
        Ok(Step::Members(CallKind::RemoveMember, planned))
    }

    /// Hands a change of members to Raft; gives the index at which it will stand.
    pub(super) fn propose_members(&mut self, now: Now, planned: Planned) -> Result<u64, ApiError> {
        let before = self.before();
        let command = |action: Action| Command { at_millis: now.wall_millis, action }.encode();
        let proposed = match planned {
            Planned::Add { token, address } => self
                .driver
                .propose_add(|member| command(Action::AddMember { token, member, address, before }))
                .map(|(_, index, _)| index),
            Planned::Remove { token, member, force } => {
                let data = command(Action::RemoveMember { token, member, before });
                self.driver.propose_remove(member, force, data).map(|(index, _)| index)
            }
        };
        proposed.map_err(|error| self.refused_change(&error))
    }

    fn refused_change(&mut self, error: &ChangeError) -> ApiError {
        let text = error.to_string();
        match error {
            ChangeError::Propose(ProposeError::NotLeader) => self.not_leader(),
            ChangeError::Propose(ProposeError::Busy | ProposeError::TooLong(_)) => {
                api_error::throttled(&text)
            }
            ChangeError::Pending => {
                ApiError::new(Reason::MemberChangePending, text).retry_after(CHANGE_WAIT)
            }
            ChangeError::Unknown(id) => errors::refusal(&Refusal::UnknownMember(*id), None),
            ChangeError::Leads(_) if self.driver.hand_over() => {
                // As while nobody leads: whoever forwards asks the next leader.
                let text = format!("{text}; it hands over the lead now");
                ApiError::new(Reason::NoQuorum, text).retry_after(CHANGE_WAIT)
            }
            ChangeError::Leads(id) => {
                let text = format!("member {id} leads, and no other was heard of lately");
                ApiError::new(Reason::QuorumAtRisk, text)
            }
            ChangeError::Last(_) => ApiError::new(Reason::QuorumAtRisk, text),
            ChangeError::NoMajority { .. } => {
                let text = format!("{text}; bring them back first, or say force");
                ApiError::new(Reason::QuorumAtRisk, text)
            }
        }
    }

    /// An added member asks whether it may start with an empty store.
    pub(super) fn join_member(&self, request: &v1::JoinMemberRequest) -> Result<Step, ApiError> {
        self.check_zone(&request.zone)?;
        let store = u128::from_str_radix(&request.store, 16).unwrap_or(0);
        if store == 0 {
            return Err(api_error::invalid("store", "32 hexadecimal digits, not all 0"));
        }
        let member = request.member;
        if self.state.members().next().is_none() && self.options.addresses.contains_key(&member) {
            return Err(errors::refusal(&Refusal::MemberRan(member), None));
        }
        self.state.check_start(member, store).map_err(|error| errors::refusal(&error, None))?;
        Ok(Step::Commit(CallKind::JoinMember(member), Action::StartMember { member, store }))
    }

    /// A member cannot take part any more.
    pub(super) fn report_lost(
        &self,
        request: &v1::ReportLostMemberRequest,
    ) -> Result<Step, ApiError> {
        self.check_zone(&request.zone)?;
        let member = request.member;
        if !self.members().addresses.contains_key(&member) {
            let removed = self.state.is_removed(member);
            let refusal = if removed { Refusal::RemovedMember } else { Refusal::UnknownMember };
            return Err(errors::refusal(&refusal(member), None));
        }
        let cause = if request.cause.is_empty() { "its store is lost" } else { &request.cause };
        if self.state.member(member).is_some_and(|record| record.lost == *cause) {
            return Ok(Step::Done(Reply::ReportLostMember(v1::ReportLostMemberResponse {})));
        }
        let action = Action::NoteLost { member, cause: cause.into(), before: self.before() };
        Ok(Step::Commit(CallKind::ReportLost, action))
    }

    /// A member that was lost and is heard again takes part: it found its store whole after all.
    /// Heard before it was lost is not again.
    pub(super) fn note_found(&mut self, now: Now) -> bool {
        let Some(lead) = &mut self.lead else { return false };
        let lost = |id: &u64| self.state.member(*id).is_some_and(|record| !record.lost.is_empty());
        lead.lost_since.retain(|id, _| lost(id));
        for record in self.state.members().filter(|record| !record.lost.is_empty()) {
            lead.lost_since.entry(record.member).or_insert(now.time);
        }
        if lead.lost_since.is_empty() {
            return false;
        }
        let raft = self.driver.status();
        let heard = |id: &u64| raft.members.get(id).is_some_and(|(_, heard)| *heard);
        let again =
            |(id, since): &(&u64, &mut Time)| now.time.since(**since) >= FOUND_AFTER && heard(id);
        let Some((member, since)) = lead.lost_since.iter_mut().find(again) else { return false };
        let member = *member;
        // If the proposal is dropped, it is made again then.
        *since = now.time;
        let action = Action::NoteLost { member, cause: String::new(), before: Vec::new() };
        self.propose(now, action).is_ok()
    }

    fn check_zone(&self, zone: &str) -> Result<(), ApiError> {
        let ours = self.options.zone.to_string();
        if zone == ours {
            return Ok(());
        }
        let text = format!("this is a member of zone {ours}, not of {zone:?}");
        Err(ApiError::new(Reason::UnknownZone, text).with("zone", zone))
    }

    pub(super) fn added(&self, answer: &Answer, dry_run: bool) -> Reply {
        let (member, address) = named(answer);
        let others = self.members().addresses.into_iter().filter(|(id, _)| *id != member);
        let join = others.map(|(_, address)| address).collect();
        Reply::AddMember(v1::AddMemberResponse { member, address, join, dry_run })
    }

    pub(super) fn joined(&self, member: u64) -> Reply {
        let address = self.members().addresses.remove(&member).unwrap_or_default();
        Reply::JoinMember(v1::JoinMemberResponse { address })
    }
}

pub(super) fn removed(answer: &Answer, dry_run: bool) -> Reply {
    let (member, address) = named(answer);
    Reply::RemoveMember(v1::RemoveMemberResponse { member, address, dry_run })
}

fn named(answer: &Answer) -> (u64, String) {
    match answer {
        Answer::Member { member, address } => (*member, address.clone()),
        Answer::Done {} | Answer::Volume { .. } | Answer::Deleted { .. } => (0, String::new()),
    }
}
