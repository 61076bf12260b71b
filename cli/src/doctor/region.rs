//! Asks every member of every zone by itself what it knows, and every zone for its status; judges
//! whether the members agree.
//!
//! Other commands are content with whichever member answers first; here a member that is silent, has
//! another map or another clock than the rest is what is looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use ashlar_proto::v1::region_service_client::RegionServiceClient;
use futures::future::join_all;

use super::Check;
use crate::Global;
use crate::connect::{self, Zone};
use crate::failure::Failure;

const REGION: &str = "region";

/// One member alone has to answer within this; all are asked at once.
const MEMBER_WITHIN: Duration = Duration::from_secs(2);

/// One zone has to answer within this.
const ZONE_WITHIN: Duration = Duration::from_secs(4);

/// Clocks of members further apart than this make records of what happened when misleading.
const CLOCKS_APART_MAX_MILLIS: u64 = 1_000;

/// What was answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// By address, what each member said.
    members: BTreeMap<String, Result<Said, String>>,
    /// By name, the status of each zone.
    pub(super) zones: BTreeMap<String, Result<v1::GetStatusResponse, String>>,
}

/// What a member said.
#[derive(Debug, Clone, Default)]
struct Said {
    answer: v1::ListZonesResponse,
    /// How far its clock is ahead of this host's, in milliseconds; as exact as half the round trip.
    ahead_millis: i64,
    /// The time that the question and its answer took.
    round_trip_millis: u64,
}

/// Asks everybody; a zone of none but `only` when one is named.
pub(super) fn ask(control: &Zone, only: Option<&str>, global: &Global) -> Answers {
    let within = Duration::from_secs(global.timeout).min(ZONE_WITHIN);
    let Ok(runtime) = connect::runtime() else { return Answers::default() };
    runtime.block_on(async {
        let mut members = ask_members(control.endpoints().to_vec()).await;
        // Those that the members name beside the ones that were named here.
        let named = members.values().flatten().flat_map(|said| &said.answer.zones);
        let named: BTreeSet<String> = named
            .flat_map(|zone| &zone.members)
            .map(|address| format!("http://{address}"))
            .collect();
        let more = named.into_iter().filter(|address| !members.contains_key(address)).collect();
        members.extend(ask_members(more).await);
        let mut names: BTreeSet<String> = members
            .values()
            .flatten()
            .flat_map(|said| said.answer.zones.iter().map(|zone| zone.name.clone()))
            .collect();
        if let Some(only) = only {
            names = BTreeSet::from([only.to_owned()]);
        }
        let asks = names.iter().map(|zone| status_of(control, zone, within));
        let answers = join_all(asks).await.into_iter();
        let answers = answers.map(|answer| answer.map_err(|failure| failure.why_in_one_line()));
        Answers { members, zones: names.clone().into_iter().zip(answers).collect() }
    })
}

async fn ask_members(addresses: Vec<String>) -> BTreeMap<String, Result<Said, String>> {
    let answers = join_all(addresses.iter().map(|address| ask_member(address))).await;
    addresses.clone().into_iter().zip(answers).collect()
}

async fn ask_member(address: &str) -> Result<Said, String> {
    let alone = Zone::of(vec![address.to_owned()]);
    let began = Instant::now();
    let before = unix_millis();
    let answer = alone
        .call("ask a member", MEMBER_WITHIN, |channel| async move {
            RegionServiceClient::new(channel).list_zones(v1::ListZonesRequest {}).await
        })
        .await
        .map_err(|failure| failure.last_why())?;
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let here = before.saturating_add(took / 2);
    let ahead = i128::from(answer.now_unix_millis) - i128::from(here);
    let ahead_millis = i64::try_from(ahead).unwrap_or(i64::MAX);
    Ok(Said { answer, ahead_millis, round_trip_millis: took })
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn status_of(
    control: &Zone,
    zone: &str,
    within: Duration,
) -> Result<v1::GetStatusResponse, Failure> {
    let request = v1::GetStatusRequest { zone: zone.to_owned() };
    control
        .call(&format!("show the status of zone {zone}"), within, |channel| {
            let mut request = tonic::Request::new(request.clone());
            request.set_timeout(within);
            async move { ClusterServiceClient::new(channel).get_status(request).await }
        })
        .await
}

/// All checks of members against each other.
pub(super) fn checks(answers: &Answers) -> Vec<Check> {
    let said: BTreeMap<&str, &Said> = answers
        .members
        .iter()
        .filter_map(|(address, said)| Some((bare(address), said.as_ref().ok()?)))
        .collect();
    let mut checks = vec![members_answer(answers)];
    if !said.is_empty() {
        checks.extend([reach(&said), zone_map(&said), clocks(&said), releases(&said)]);
    }
    checks
}

fn bare(address: &str) -> &str {
    address.strip_prefix("http://").unwrap_or(address)
}

fn judge(code: &'static str, faults: &[String], fine: String, remedy: &str) -> Check {
    if faults.is_empty() {
        return Check::ok(code, REGION, fine);
    }
    Check::warning(code, REGION, faults.join("; "), remedy)
}

fn members_answer(answers: &Answers) -> Check {
    let code = "REGION_MEMBERS_ANSWER";
    let silent = answers.members.iter().filter_map(|(address, said)| {
        said.as_ref().err().map(|why| format!("{}: {why}", bare(address)))
    });
    let silent: Vec<String> = silent.collect();
    let remedy = "start the members that do not answer, or let this host through to them";
    if !silent.is_empty() && silent.len() == answers.members.len() {
        return Check::failure(code, REGION, silent.join("; "), remedy);
    }
    judge(code, &silent, format!("{} members answer", answers.members.len()), remedy)
}

/// What members say of other zones.
fn reach(said: &BTreeMap<&str, &Said>) -> Check {
    let mut faults = Vec::new();
    for (address, said) in said {
        for zone in said.answer.zones.iter().filter(|zone| !zone.reachable) {
            faults.push(format!(
                "{address} of zone {} does not reach zone {}: {}",
                said.answer.zone, zone.name, zone.cause
            ));
        }
    }
    let remedy =
        "bring the zone's control plane back (a majority of its members), or the way to it";
    judge("REGION_ZONES_REACHED", &faults, "every member reaches every zone".to_owned(), remedy)
}

/// Maps are files: one that was forgotten sends calls nowhere.
fn zone_map(said: &BTreeMap<&str, &Said>) -> Check {
    let mut faults = Vec::new();
    let names = |said: &Said| -> Vec<String> {
        said.answer.zones.iter().map(|zone| zone.name.clone()).collect()
    };
    let mut maps: BTreeMap<Vec<String>, Vec<&str>> = BTreeMap::new();
    for (address, said) in said {
        maps.entry(names(said)).or_default().push(address);
    }
    if maps.len() > 1 {
        for (zones, members) in &maps {
            faults.push(format!("{} know {}", members.join(", "), zones.join(" ")));
        }
    }
    // Where a zone's members are now, as one of them says.
    let mut now: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for said in said.values() {
        let own = said.answer.zones.iter().find(|zone| zone.name == said.answer.zone);
        let members = own.map(|zone| zone.members.iter().map(String::as_str));
        now.entry(&said.answer.zone).or_default().extend(members.into_iter().flatten());
    }
    for (address, said) in said {
        for zone in said.answer.zones.iter().filter(|zone| zone.name != said.answer.zone) {
            let Some(members) = now.get(zone.name.as_str()) else { continue };
            if !zone.members.iter().any(|member| members.contains(member.as_str())) {
                let name = &zone.name;
                faults.push(format!("{address} knows no member that zone {name} has now"));
            }
        }
    }
    let remedy = "write the same table `zones` into every member's configuration and restart them \
                  one by one";
    judge("REGION_ZONE_MAP", &faults, "all members have the same map of zones".to_owned(), remedy)
}

/// Against each other and against this host: whichever two are furthest apart.
fn clocks(said: &BTreeMap<&str, &Said>) -> Check {
    let code = "REGION_CLOCKS";
    let known = said.iter().filter(|(_, said)| said.answer.now_unix_millis > 0);
    let here = [("this host", 0, 0)];
    let all: Vec<(&str, i64, u64)> = known
        .map(|(address, said)| (*address, said.ahead_millis, said.round_trip_millis))
        .chain(here)
        .collect();
    let first = all.iter().min_by_key(|(_, ahead, _)| *ahead);
    let last = all.iter().max_by_key(|(_, ahead, _)| *ahead);
    let (Some(first), Some(last), true) = (first, last, all.len() > 1) else {
        return Check::skipped(code, REGION, "no member says what its clock shows");
    };
    let apart = last.1.abs_diff(first.1);
    let found = format!("{} is {apart} ms ahead of {}", last.0, first.0);
    let unsure = (first.2 + last.2) / 2;
    if apart <= CLOCKS_APART_MAX_MILLIS + unsure {
        return Check::ok(code, REGION, format!("at most {apart} ms apart"));
    }
    Check::warning(code, REGION, found, "run chrony or systemd-timesyncd on every host")
}

fn releases(said: &BTreeMap<&str, &Said>) -> Check {
    let mut releases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    releases.entry(env!("CARGO_PKG_VERSION")).or_default().push("this command");
    for (address, said) in said {
        let release = match said.answer.release.as_str() {
            "" => "before 0.1.0",
            release => release,
        };
        releases.entry(release).or_default().push(address);
    }
    let differ: Vec<String> = if releases.len() > 1 {
        releases.iter().map(|(release, who)| format!("{release}: {}", who.join(", "))).collect()
    } else {
        Vec::new()
    };
    let fine = format!("everybody runs {}", env!("CARGO_PKG_VERSION"));
    judge("REGION_RELEASES", &differ, fine, "finish the upgrade: one release everywhere")
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{Failure, Ok as Fine, Warning};
    use super::*;

    fn said(zone: &str, zones: &[(&str, &str)]) -> Said {
        let zones = zones.iter().map(|(name, member)| v1::Zone {
            name: (*name).to_owned(),
            members: vec![(*member).to_owned()],
            reachable: true,
            cause: String::new(),
        });
        let answer = v1::ListZonesResponse {
            zone: zone.to_owned(),
            zones: zones.collect(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            now_unix_millis: 1,
        };
        Said { answer, ahead_millis: 0, round_trip_millis: 4 }
    }

    fn region() -> BTreeMap<&'static str, Said> {
        let map = [("a", "a1"), ("b", "b1")];
        BTreeMap::from([("a1", said("a", &map)), ("b1", said("b", &map))])
    }

    fn by_reference<'a>(said: &'a BTreeMap<&'static str, Said>) -> BTreeMap<&'a str, &'a Said> {
        said.iter().map(|(address, said)| (*address, said)).collect()
    }

    #[test]
    fn members_that_agree_are_fine() {
        let region = region();
        let said = by_reference(&region);
        for check in [reach(&said), zone_map(&said), clocks(&said), releases(&said)] {
            assert_eq!(check.outcome(), Fine, "{check:?}");
        }
    }

    #[test]
    fn a_silent_member_is_named_and_silence_of_all_is_a_failure() {
        let mut answers = Answers::default();
        answers.members.insert("http://a2".to_owned(), Err("refused".to_owned()));
        assert_eq!(members_answer(&answers).outcome(), Failure);
        answers.members.insert("http://a1".to_owned(), Ok(Said::default()));
        let check = members_answer(&answers);
        assert_eq!((check.outcome(), check.found.as_str()), (Warning, "a2: refused"));
    }

    #[test]
    fn zones_out_of_reach_and_maps_that_differ_are_found() {
        let mut lame = region();
        lame.get_mut("a1").unwrap().answer.zones[1].reachable = false;
        assert_eq!(reach(&by_reference(&lame)).outcome(), Warning);
        let mut forgotten = region();
        forgotten.get_mut("b1").unwrap().answer.zones.remove(0);
        assert_eq!(zone_map(&by_reference(&forgotten)).outcome(), Warning);
        let mut moved = region();
        moved.get_mut("a1").unwrap().answer.zones[1].members = vec!["b9".to_owned()];
        let check = zone_map(&by_reference(&moved));
        assert!(check.found.contains("a1 knows no member that zone b has now"), "{check:?}");
    }

    #[test]
    fn clocks_apart_and_mixed_releases_are_found() {
        let mut region = region();
        region.get_mut("a1").unwrap().ahead_millis = -1_500;
        let check = clocks(&by_reference(&region));
        assert_eq!(check.outcome(), Warning);
        assert!(check.found.ends_with("1500 ms ahead of a1"), "{check:?}");
        region.get_mut("a1").unwrap().round_trip_millis = 4_000;
        assert_eq!(clocks(&by_reference(&region)).outcome(), Fine, "no better than the round trip");
        region.get_mut("a1").unwrap().answer.release = "9.0.0".to_owned();
        assert_eq!(releases(&by_reference(&region)).outcome(), Warning);
    }
}
