//! A call within the zone that it is for: put to the member that took it, and by that one to its
//! leader; again while there is none, as long as that can do no harm (`controlplane/src/calls.rs` does
//! the same over sockets, and is told of another leader a little earlier).

use super::gateway::Asker;
use super::{Answer, Happens, Region};
use crate::control::ControlEvent;
use crate::net::Host;
use crate::world::Event;
use ashlar_controlplane::gateway::{LEADER_POLL, Status, may_ask_again};
use ashlar_controlplane::member::{CallId, Reply, Request};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_types::Time;

/// See the module.
#[derive(Debug)]
pub(super) struct Local {
    zone: usize,
    /// Who took it.
    member: u64,
    ask: Request,
    until: Time,
    asker: Asker,
    /// The leader that has it now.
    leader: Option<u64>,
}

impl Region {
    pub(super) fn begin_local(
        &mut self,
        zone: usize,
        member: u64,
        ask: Request,
        until: Time,
        asker: Asker,
    ) {
        let local = self.number();
        self.locals.insert(local, Local { zone, member, ask, until, asker, leader: None });
        self.schedule(until, Happens::LocalEnds { local });
        self.ask_member(local);
    }

    /// Puts it to the member that took it.
    pub(super) fn ask_member(&mut self, id: u64) {
        if let Some(local) = self.locals.get_mut(&id) {
            local.leader = None;
            let member = local.member;
            self.put_to(id, member);
        }
    }

    fn put_to(&mut self, id: u64, member: u64) {
        let (Some(local), now) = (self.locals.get(&id), self.now) else { return };
        let Some(zone) = self.zones.get_mut(local.zone) else { return };
        let call = CallId(zone.next_call);
        zone.next_call += 1;
        zone.asked.insert(call, id);
        let life = zone.world.control.life_of(member);
        let (request, deadline) = (local.ask.clone(), local.until);
        let event = ControlEvent::Call { call, member, life, request, deadline };
        zone.world.schedule(now, Event::Control(event));
    }

    /// It reaches the leader.
    pub(super) fn forwarded(&mut self, id: u64, leader: u64) {
        let Some(local) = self.locals.get(&id) else { return };
        let (from, to) = (Host::Member(local.member), Host::Member(leader));
        let Some(zone) = self.zones.get(local.zone) else { return };
        if zone.world.is_cut_between(from, to) {
            // Nobody answers before its time is up.
            return;
        }
        if zone.world.control.is_running(leader) {
            if let Some(local) = self.locals.get_mut(&id) {
                local.leader = Some(leader);
            }
            self.put_to(id, leader);
        } else {
            self.broken(id);
        }
    }

    /// The connection to the leader broke: whether it acted is unknown.
    fn broken(&mut self, id: u64) {
        let status = Status::unavailable("connection reset");
        self.failed(id, status);
    }

    /// It failed by this; maybe it may be made again.
    fn failed(&mut self, id: u64, status: Status) {
        let Some(local) = self.locals.get(&id) else { return };
        let again = may_ask_again(&status, &local.ask);
        let in_time = self.now + LEADER_POLL < local.until;
        match again {
            Ok(()) if in_time => {
                self.schedule(self.now + LEADER_POLL, Happens::Again { local: id });
            }
            Ok(()) => self.local_done(id, Err(status)),
            Err(status) => self.local_done(id, Err(status)),
        }
    }

    /// A member has answered.
    pub(super) fn member_answers(
        &mut self,
        zone: usize,
        call: CallId,
        result: Result<Reply, ApiError>,
    ) {
        let known = self.zones.get_mut(zone).and_then(|zone| zone.asked.remove(&call));
        let Some((id, local)) = known.and_then(|id| Some((id, self.locals.get(&id)?))) else {
            return;
        };
        let error = match result {
            Ok(reply) => return self.local_done(id, Ok(reply)),
            Err(error) => error,
        };
        match error.reason {
            _ if local.leader.is_some() => self.failed(id, error.to_status()),
            Reason::NotLeader => {
                let leader = error.metadata.get("leader").and_then(|text| text.parse().ok());
                match leader {
                    Some(leader) => {
                        let wait = self.delay(zone, zone);
                        let event = Happens::Forwarded { local: id, leader };
                        self.schedule(self.now + wait, event);
                    }
                    None => self.failed(id, error.to_status()),
                }
            }
            Reason::NoQuorum => self.failed(id, error.to_status()),
            _final => self.local_done(id, Err(error.to_status())),
        }
    }

    fn local_done(&mut self, id: u64, answer: Answer) {
        if let Some(local) = self.locals.remove(&id) {
            self.answer(local.zone, local.asker, answer);
        }
    }

    /// Its time is up.
    pub(super) fn local_ends(&mut self, id: u64) {
        let late = Status::deadline_exceeded("no answer in time");
        self.local_done(id, Err(late));
    }

    /// A member's process is gone: what it had is not answered, and whoever asked learns of it.
    pub(super) fn member_died(&mut self, zone: usize, member: u64) {
        let of_zone = |local: &Local| local.zone == zone;
        let at = |id: Option<u64>| id == Some(member);
        let took: Vec<u64> = self.ids(|local| of_zone(local) && local.member == member);
        for id in took {
            self.local_done(id, Err(Status::unavailable("connection reset")));
        }
        let led: Vec<u64> = self.ids(|local| of_zone(local) && at(local.leader));
        for id in led {
            self.broken(id);
        }
        self.gateway_died(zone, member);
    }

    fn ids(&self, of: impl Fn(&Local) -> bool) -> Vec<u64> {
        self.locals.iter().filter(|(_, local)| of(local)).map(|(id, _)| *id).collect()
    }
}
