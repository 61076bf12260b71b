//! Members replaced while the zone runs: the old one's disk is lost, it is removed, another is added
//! under the number that the zone gives, and joins.
//!
//! Every step is a call that is repeated until it has its answer, under one client token, as an
//! operator's command is. A member is found at an address; who does not know it cannot send there,
//! as in the processes.

use crate::control::ControlEvent;
use crate::member::SimMember;
use crate::world::{Event, World};
use ashlar_controlplane::member::{Input, Members, Reply, Request};
use ashlar_proto::v1;
use ashlar_types::ZoneId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between an answer, or none, and the next call.
const NEXT_CALL: Duration = Duration::from_millis(300);

/// Where the member that the zone began with is found.
pub(crate) fn address(member: u64) -> String {
    format!("127.3.1.{member}:1")
}

fn added_address(turn: usize) -> String {
    format!("127.3.2.{}:1", turn + 1)
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Remove,
    Add,
    Join(u64),
    /// It runs, and does not vote yet.
    Filled(u64),
    Done,
}

#[derive(Debug)]
struct Replacement {
    old: u64,
    phase: Phase,
}

/// The members that come and go.
#[derive(Debug, Default)]
pub(crate) struct Replacements {
    list: Vec<Replacement>,
    /// Numbers by address, of those that were added.
    added: BTreeMap<String, u64>,
    /// By member: whom it can send to.
    ways: BTreeMap<u64, Members>,
}

impl Replacements {
    /// Whether a member's disk is lost: it never comes back.
    pub(crate) fn is_lost(&self, member: u64) -> bool {
        self.list.iter().any(|one| one.old == member)
    }

    /// The member that was added last and runs.
    pub(crate) fn newcomer(&self) -> Option<u64> {
        self.list.iter().rev().find_map(|one| match one.phase {
            Phase::Filled(member) => Some(member),
            Phase::Remove | Phase::Add | Phase::Join(_) | Phase::Done => None,
        })
    }

    /// Whose address this is.
    pub(crate) fn number_at(&self, address: &str) -> Option<u64> {
        let first = || address.strip_prefix("127.3.1.")?.strip_suffix(":1")?.parse().ok();
        self.added.get(address).copied().or_else(first)
    }

    pub(crate) fn set_ways(&mut self, member: u64, members: Members) {
        self.ways.insert(member, members);
    }

    pub(crate) fn can_send(&self, from: u64, to: u64) -> bool {
        self.ways.get(&from).is_some_and(|members| members.addresses.contains_key(&to))
    }

    /// What a member says of itself with its messages, once others may not know it.
    pub(crate) fn introduction(&self, member: u64) -> Option<Input> {
        if self.list.is_empty() {
            return None;
        }
        let address = self.ways.get(&member)?.addresses.get(&member)?.clone();
        Some(Input::PeerAt { peer: member, address })
    }

    /// A member votes; true if it was added and did not before.
    pub(crate) fn votes(&mut self, member: u64) -> bool {
        let filled = self.list.iter_mut().find(|one| one.phase == Phase::Filled(member));
        filled.map(|one| one.phase = Phase::Done).is_some()
    }
}

impl World {
    /// Begins to replace a member whose disk is lost.
    pub(crate) fn replace_member(&mut self, old: u64) {
        self.crash_member(old);
        let turn = self.control.replacements.list.len();
        self.control.replacements.list.push(Replacement { old, phase: Phase::Remove });
        self.schedule_in(NEXT_CALL, Event::Control(ControlEvent::Replace { turn }));
    }

    /// Makes the next call of a replacement.
    pub(crate) fn go_on_replacing(&mut self, turn: usize) {
        let Some(one) = self.control.replacements.list.get(turn) else { return };
        let token = |what: &str| format!("replace-{turn}-{what}");
        let request = match one.phase {
            Phase::Remove => Request::RemoveMember(v1::RemoveMemberRequest {
                member: one.old,
                client_token: token("remove"),
                ..Default::default()
            }),
            Phase::Add => Request::AddMember(v1::AddMemberRequest {
                address: added_address(turn),
                client_token: token("add"),
                ..Default::default()
            }),
            Phase::Join(member) => Request::JoinMember(v1::JoinMemberRequest {
                zone: "a".to_owned(),
                member,
                store: format!("{member:032x}"),
            }),
            Phase::Filled(_) | Phase::Done => return,
        };
        self.control.find_leader();
        self.ask(request);
    }

    /// Which replacement a call belongs to.
    fn turn_of(&self, request: &Request) -> Option<usize> {
        let of_token =
            |token: &str| token.strip_prefix("replace-")?.split('-').next()?.parse().ok();
        match request {
            Request::RemoveMember(request) => of_token(&request.client_token),
            Request::AddMember(request) => of_token(&request.client_token),
            Request::JoinMember(request) => {
                let joins = Phase::Join(request.member);
                self.control.replacements.list.iter().position(|one| one.phase == joins)
            }
            _of_the_client => None,
        }
    }

    /// A call has an answer, or none; true if it was one of a replacement.
    pub(crate) fn replacement_answered(
        &mut self,
        request: &Request,
        reply: Option<&Reply>,
    ) -> bool {
        let ours = matches!(
            request,
            Request::RemoveMember(_) | Request::AddMember(_) | Request::JoinMember(_)
        );
        let Some(turn) = self.turn_of(request) else { return ours };
        let zone = self.control.zone();
        let Some(one) = self.control.replacements.list.get_mut(turn) else { return ours };
        match (one.phase, reply) {
            (Phase::Remove, Some(Reply::RemoveMember(_))) => one.phase = Phase::Add,
            (Phase::Add, Some(Reply::AddMember(added))) => {
                one.phase = Phase::Join(added.member);
                let (number, address) = (added.member, added.address.clone());
                self.control.replacements.added.insert(address, number);
            }
            (Phase::Join(member), Some(Reply::JoinMember(_))) => {
                one.phase = Phase::Filled(member);
                self.start_added(member, zone);
            }
            _no_answer_yet => {}
        }
        self.schedule_in(NEXT_CALL, Event::Control(ControlEvent::Replace { turn }));
        true
    }

    fn start_added(&mut self, member: u64, zone: ZoneId) {
        self.control.insert_member(SimMember::added(zone, member));
        self.schedule_in(Duration::ZERO, Event::Control(ControlEvent::Start { member }));
    }
}
