//! What a fault in one zone may not change in the others (invariant 8, I8, I14).
//!
//! - `fault in another zone`: a call between zones without faults fails; a list, or a look for a name,
//!   fails, names a zone that is up as unreachable, or takes longer than the wait for one zone; the
//!   slowest hundredth of calls, or of reads and writes, takes more than 1.2 times as long as in the
//!   same seed without the fault (and longer by more than [`NOISE`], if the zone with faults asks the
//!   others: then their dice fall differently); or, if it does not, anything at all is different there.
//! - `call without an end`: a call has neither answer nor error when its caller's time is up.
//! - `zone not reached again`: faults have stopped, the zone has a leader, and calls still fail.

use super::callers::Done;
use super::{Region, STRUCK, Zone};
use crate::judge::Violation;
use crate::world::World;
use ashlar_controlplane::member::Reply;
use ashlar_controlplane_core::way::EACH_ZONE_WITHIN;
use ashlar_env::dice::Dice;
use ashlar_types::{Time, ZoneId};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a call may take beyond its deadline, or a list beyond the wait for one zone.
const SLACK: Duration = Duration::from_millis(250);
/// How long before the end of all calls a zone that healed must be reached again.
const REACHED_WITHIN: Duration = Duration::from_secs(4);
/// Draws of other delays: the networks of a zone take up to 8 ms for a message.
const NOISE: Duration = Duration::from_millis(10);
/// The slowest of so many calls says something.
const SAMPLES_MIN: usize = 200;

/// What was seen of the zones without faults.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How long calls between them took.
    calls: Vec<Duration>,
    zones: BTreeMap<usize, ZoneSeen>,
    /// Whether the zone with faults asked them anything.
    asked_from_there: bool,
    /// Calls to the zone with faults: when asked, and whether they were answered.
    there: Vec<(Time, bool)>,
}

#[derive(Debug)]
struct ZoneSeen {
    id: ZoneId,
    /// How long reads and writes took.
    took: Vec<Duration>,
    /// Events, and what the dice would show next: different, if anything was different.
    events: u64,
    dice: u64,
}

impl Seen {
    pub(super) fn note_zone(
        &mut self,
        at: usize,
        id: ZoneId,
        world: &mut World,
        took: Vec<Duration>,
    ) {
        let (events, dice) = (world.events, world.dice.next_u64());
        self.zones.insert(at, ZoneSeen { id, took, events, dice });
    }
}

impl Region {
    /// Judges a call that has ended.
    pub(super) fn judge_call(&mut self, done: &Done) {
        let answered = done.answer.is_ok();
        self.tally.note(if answered { "calls answered" } else { "calls not answered" });
        if done.from == STRUCK {
            self.seen.asked_from_there |= done.to != Some(STRUCK);
            return;
        }
        match done.to {
            Some(STRUCK) => self.seen.there.push((done.asked, answered)),
            Some(_) => match &done.answer {
                Ok(_) => self.seen.calls.push(done.took),
                Err(status) => {
                    let detail = format!("{}: {status}", words(done));
                    self.violated("fault in another zone", detail);
                }
            },
            None => self.judge_of_all(done),
        }
    }

    /// A list of all zones, or a look for a name in all.
    fn judge_of_all(&mut self, done: &Done) {
        let missing = match &done.answer {
            Ok(Reply::ListVolumes(reply)) => &reply.unreachable_zones,
            Ok(Reply::GetVolume(reply)) => &reply.unreachable_zones,
            Ok(other) => {
                let detail = format!("{}: answered by {other:?}", words(done));
                return self.violated("fault in another zone", detail);
            }
            Err(status) => {
                // The volume may be in the zone that does not answer.
                let there = self.zones.get(STRUCK).map(|zone| format!("named-{}", zone.id));
                let about_it = there.is_some_and(|name| status.message().contains(&name));
                if !about_it {
                    let detail = format!("{}: {status}", words(done));
                    self.violated("fault in another zone", detail);
                }
                return;
            }
        };
        let struck = self.zones.get(STRUCK).map(|zone| zone.id.to_string()).unwrap_or_default();
        if !missing.is_empty() {
            self.tally.note("lists that name a zone without an answer");
        }
        if let Some(other) = missing.iter().find(|missing| missing.zone != struck) {
            let detail = format!("{}: zone {} is said not to answer", words(done), other.zone);
            self.violated("fault in another zone", detail);
        } else if done.took > EACH_ZONE_WITHIN + SLACK {
            let detail = format!("{}: took {:?}", words(done), done.took);
            self.violated("fault in another zone", detail);
        }
    }

    /// When all calls must be over.
    pub(super) fn judge_calls(&mut self, healed: Time) {
        if !self.violations.is_empty() {
            return;
        }
        if let Some(late) = self.overdue().first() {
            let detail = late.clone();
            self.violated("call without an end", detail);
        }
        let late = self.asks_until - REACHED_WITHIN;
        let there = || self.seen.there.iter().filter(|(asked, _)| *asked > late);
        let (asked, answered) = (there().count(), there().filter(|(_, ok)| *ok).count());
        let after = |(asked, ok): &&(Time, bool)| *asked > healed && *ok;
        for _ in self.seen.there.iter().filter(after) {
            self.tally.note("calls answered by the zone after it healed");
        }
        let leads = |zone: &Zone| zone.world.control.leader().is_some();
        if asked > 0 && answered == 0 && self.zones.get(STRUCK).is_some_and(leads) {
            let detail = format!("{asked} calls of the last {REACHED_WITHIN:?} failed");
            self.violated("zone not reached again", detail);
        }
    }
}

fn words(done: &Done) -> String {
    format!("{:?} of zone {} for {:?}, asked at {}", done.kind, done.from, done.to, done.asked)
}

/// Holds what was seen with faults against the same seed without them.
pub(super) fn compare(with: &Seen, without: &Seen, simulated: Duration) -> Vec<Violation> {
    let mut broken = Vec::new();
    let mut differs = |detail: String| {
        let at = Time::ZERO + simulated;
        broken.push(Violation { at, rule: "fault in another zone", detail });
    };
    let asked = with.asked_from_there || without.asked_from_there;
    let noise = if asked { NOISE } else { Duration::ZERO };
    if let Some(text) = slower(&with.calls, &without.calls, noise) {
        differs(format!("calls between the other zones: {text}"));
    }
    for (at, zone) in &with.zones {
        let Some(calm) = without.zones.get(at) else { continue };
        if let Some(text) = slower(&zone.took, &calm.took, noise) {
            differs(format!("reads and writes of zone {}: {text}", zone.id));
        }
        let same = (zone.events, zone.dice) == (calm.events, calm.dice);
        if !(same || asked) {
            let (events, before) = (zone.events, calm.events);
            differs(format!("zone {}: {events} events instead of {before}", zone.id));
        }
    }
    broken
}

/// How much slower the slowest hundredth is, if it is by more than a fifth, and by more than that.
fn slower(with: &[Duration], without: &[Duration], noise: Duration) -> Option<String> {
    if with.len().min(without.len()) < SAMPLES_MIN {
        return None;
    }
    let (with, without) = (p99(with), p99(without));
    let much = with.as_nanos() * 10 > without.as_nanos() * 12 && with > without + noise;
    much.then(|| format!("the slowest hundredth takes {with:?}, and {without:?} without the fault"))
}

fn p99(of: &[Duration]) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    let at = sorted.len().saturating_sub(1) * 99 / 100;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(millis: u64, dice: u64) -> Seen {
        let took = vec![Duration::from_millis(millis); SAMPLES_MIN];
        let zone = ZoneSeen { id: ZoneId::default(), took: took.clone(), events: 7, dice };
        Seen { calls: took, zones: BTreeMap::from([(0, zone)]), ..Seen::default() }
    }

    #[test]
    fn what_takes_a_fifth_longer_or_is_different_at_all_is_found() {
        let found = |with: &Seen, without: &Seen| {
            let broken = compare(with, without, Duration::ZERO);
            broken.into_iter().map(|violation| violation.detail).collect::<Vec<_>>()
        };
        assert_eq!(found(&seen(12, 1), &seen(10, 1)), Vec::<String>::new());
        let slow = found(&seen(13, 1), &seen(10, 1));
        assert_eq!(slow.len(), 2, "{slow:?}");
        assert!(
            slow[0].starts_with("calls") && slow[1].starts_with("reads and writes"),
            "{slow:?}"
        );
        assert_eq!(found(&seen(10, 1), &seen(10, 2)).len(), 1, "another draw: something happened");
        let asked = |millis| Seen { asked_from_there: true, ..seen(millis, 1) };
        assert_eq!(found(&asked(19), &seen(10, 2)), Vec::<String>::new());
        assert_eq!(found(&asked(22), &seen(10, 2)).len(), 2);
    }
}
