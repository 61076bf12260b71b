//! Who calls the region: one stream of calls in each zone, to any of its members, for any zone.
//!
//! Callers do not wait: what they ask next, and when, is drawn before anything is answered, so that a
//! zone with faults changes nothing of what the others are asked. What they made they delete again,
//! later, by the id that they were told.

use super::{Answer, NAMES, STRUCK};
use crate::run::Options;
use ashlar_controlplane::member::{Reply, Request};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_proto::v1;
use ashlar_types::limit::CHUNK_BYTES_FLOOR;
use ashlar_types::{Time, ZoneId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Calls of a zone's callers in a second, if a scenario says nothing.
const PER_SECOND: u64 = 30;
/// Of 100 calls, how many make a volume, and how many delete one.
const CREATES: u64 = 3;
const DELETES: u64 = 3;
/// A volume is deleted at the earliest when so many later ones were made.
const KEPT: usize = 2;
/// How long callers wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Status,
    Get,
    Map,
    Create,
    Delete,
    /// Asks every zone.
    Find,
    /// Asks every zone.
    List,
}

/// A call that is over.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) kind: Kind,
    pub(super) from: usize,
    /// The zone that it was for; nothing: all.
    pub(super) to: Option<usize>,
    pub(super) asked: Time,
    pub(super) took: Duration,
    pub(super) answer: Answer,
}

/// What a caller wants next.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) kind: Kind,
    pub(super) to: Option<usize>,
    /// The member that it asks.
    pub(super) member: u64,
    pub(super) request: Request,
}

/// The callers of one zone.
#[derive(Debug)]
pub(super) struct Caller {
    zone: usize,
    asks_abroad: bool,
    dice: SeededDice,
    per_second: u64,
    creates: u64,
    /// Creations go to the zone with faults: the others are not filled.
    creates_there: bool,
    made: u64,
    /// Volumes to delete, by zone.
    volumes: BTreeMap<usize, VecDeque<String>>,
    /// The volume of each zone's client.
    demos: Vec<String>,
}

impl Caller {
    pub(super) fn new(zone: usize, asks_abroad: bool, options: &Options) -> Self {
        let calls = options.scenario.and_then(|scenario| scenario.calls);
        Self {
            zone,
            asks_abroad,
            dice: SeededDice::stream(options.seed, &format!("callers of zone {zone}")),
            per_second: calls.map_or(PER_SECOND, |calls| calls.per_second),
            creates: calls.map_or(CREATES, |calls| calls.creates),
            creates_there: calls.is_some(),
            made: 0,
            volumes: BTreeMap::new(),
            demos: Vec::new(),
        }
    }

    /// The volumes that clients use, by zone.
    pub(super) fn knows(&mut self, demos: &[String]) {
        self.demos = demos.to_vec();
    }

    /// Faults are over: as few calls as usual.
    pub(super) fn calm_down(&mut self) {
        self.per_second = PER_SECOND.min(self.per_second);
        self.creates = CREATES.min(self.creates);
        self.creates_there = false;
    }

    /// Time until the next call.
    pub(super) fn pause(&mut self) -> Duration {
        let twice = 2_000_000_000 / self.per_second.max(1);
        Duration::from_nanos(self.dice.below(twice.max(1)))
    }

    /// The next call. Every wish draws as often as any other.
    pub(super) fn wish(&mut self) -> Option<Wish> {
        let member = 1 + self.dice.below(super::MEMBERS as u64);
        let drawn = usize::try_from(self.dice.below(NAMES.len() as u64)).unwrap_or(0);
        let what = self.dice.below(100);
        let to = if self.asks_abroad { drawn } else { self.zone };
        let (name, demo) = (NAMES.get(to)?, self.demos.get(to)?.clone());
        let one = |kind, request| Some(Wish { kind, to: Some(to), member, request });
        let all = |kind, request| Some(Wish { kind, to: None, member, request });
        let creates_to = if self.creates_there { STRUCK } else { to };
        match what {
            what if what < self.creates => {
                self.made += 1;
                let (zone, made) = (self.zone, self.made);
                let name = format!("made-{zone}-{made}");
                let request = create(&name, NAMES.get(creates_to)?);
                Some(Wish { kind: Kind::Create, to: Some(creates_to), member, request })
            }
            what if what < self.creates + DELETES => {
                let known = self.volumes.entry(to).or_default();
                let volume = if known.len() > KEPT { known.pop_front() } else { None };
                let volume = volume?;
                let client_token = format!("delete-{volume}");
                let request =
                    v1::DeleteVolumeRequest { volume, client_token, ..Default::default() };
                one(Kind::Delete, Request::DeleteVolume(request))
            }
            // A zone whose callers ask nobody else has no list of all.
            50..=59 if self.asks_abroad => {
                all(Kind::List, Request::ListVolumes(v1::ListVolumesRequest::default()))
            }
            60..=69 if self.asks_abroad => {
                let request = v1::GetVolumeRequest { volume: format!("named-{name}") };
                all(Kind::Find, Request::GetVolume(request))
            }
            0..=79 => one(Kind::Get, Request::GetVolume(v1::GetVolumeRequest { volume: demo })),
            80..=89 => {
                let request = v1::GetVolumeMapRequest { volume: demo, ..Default::default() };
                one(Kind::Map, Request::GetVolumeMap(request))
            }
            _rest => {
                let zone = (*name).to_owned();
                one(Kind::Status, Request::GetStatus(v1::GetStatusRequest { zone }))
            }
        }
    }

    /// A call is over.
    pub(super) fn learns(&mut self, done: &Done) {
        if let (Ok(Reply::CreateVolume(reply)), Some(to)) = (&done.answer, done.to)
            && let Some(volume) = &reply.volume
        {
            self.volumes.entry(to).or_default().push_back(volume.id.clone());
        }
    }
}

fn create(name: &str, zone: &str) -> Request {
    Request::CreateVolume(v1::CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: CHUNK_BYTES_FLOOR,
        copies: 3,
        chunk_bytes: CHUNK_BYTES_FLOOR,
        client_token: format!("create-{name}"),
        zone: zone.to_owned(),
        ..Default::default()
    })
}

/// The volume of a zone that is looked for by name.
pub(super) fn named_volume(zone: ZoneId) -> Request {
    create(&format!("named-{zone}"), &zone.to_string())
}
