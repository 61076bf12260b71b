//! What each zone says of itself: members, nodes, room, chunks; and whether this host reaches its nodes.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ashlar_proto::v1;

use super::Check;
use super::files::Configs;
use super::region::Answers;
use crate::size;

/// A member that is this far behind would need long to take part, or a snapshot.
const ENTRIES_BEHIND_MAX: u64 = 10_000;

/// Nodes beat every 300 ms.
const HEARTBEAT_MAX_MILLIS: u64 = 1_500;

/// Of a store: above it, the room that re-mirroring needs is about to go.
const USED_WARNING_PERCENT: u64 = 80;

/// Of a store: above it, writes are about to wait.
const USED_FAILURE_PERCENT: u64 = 95;

/// Volumes are made in a second where nodes answer.
const CREATING_MAX_MILLIS: u64 = 60_000;

/// How long a node's port may take to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Chunks whose cause is named one by one.
const STUCK_NAMED_MAX: usize = 5;

/// All checks of all zones.
pub(super) fn checks(answers: &Answers, configs: &Configs) -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, answer) in &answers.zones {
        let zone = Zone { about: format!("zone {name}") };
        match answer {
            Ok(status) => checks.extend(zone.all(status, configs)),
            Err(why) => {
                let remedy = "start a majority of its members; volumes go on without them, changes do \
                              not";
                checks.push(Check::failure("ZONE_ANSWERS", &zone.about, why, remedy));
            }
        }
    }
    checks
}

/// A zone that is looked at.
struct Zone {
    about: String,
}

fn node_name(node: u32) -> String {
    format!("node-{node}")
}

fn is_up(node: &v1::Node) -> bool {
    node.state() == v1::NodeState::Up
}

impl Zone {
    fn all(&self, status: &v1::GetStatusResponse, configs: &Configs) -> Vec<Check> {
        let found = format!("member-{} leads in term {}", status.leader, status.term);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        vec![
            Check::ok("ZONE_ANSWERS", &self.about, found),
            self.quorum(status),
            self.members_well(status),
            self.members_level(status),
            self.nodes_up(status),
            self.heartbeats(status),
            self.spare_node(status),
            self.stores(status, configs),
            self.room(status),
            self.headroom(status),
            self.networks(status),
            self.reached(status, |address| {
                TcpStream::connect_timeout(&address, CONNECT_WITHIN).map(drop)
            }),
            self.degraded(status),
            self.stuck(status),
            self.interruption(status),
            self.erasing(status),
            self.creating(status, u64::try_from(now).unwrap_or(u64::MAX)),
            self.scrub(status),
        ]
    }

    /// Fine if nothing is at fault, a warning otherwise.
    fn judge(&self, code: &'static str, faults: &[String], fine: &str, remedy: &str) -> Check {
        if faults.is_empty() {
            return Check::ok(code, &self.about, fine);
        }
        Check::warning(code, &self.about, faults.join("; "), remedy)
    }

    /// How many members may still be lost.
    fn quorum(&self, status: &v1::GetStatusResponse) -> Check {
        let code = "ZONE_QUORUM";
        let votes = |member: &&v1::Member| member.role() != v1::MemberRole::Learner;
        let voters = status.members.iter().filter(votes).count();
        let well = |member: &&v1::Member| member.reachable || member.leader;
        let here = status.members.iter().filter(votes).filter(well).count();
        let spare = here.saturating_sub(voters / 2 + 1);
        let found = format!("{here} of {voters} voting members are here; {spare} more may be lost");
        if spare == 0 {
            let remedy = if here < voters {
                "bring the missing members back; lost for good: `ashlar controlplane remove`, then `add`"
            } else {
                "ashlar controlplane add: three members outlive the loss of one"
            };
            return Check::warning(code, &self.about, found, remedy);
        }
        if voters % 2 == 0 {
            let remedy = "add or remove a member: an even number outlives no more than one less";
            return Check::warning(code, &self.about, found, remedy);
        }
        Check::ok(code, &self.about, found)
    }

    fn members_well(&self, status: &v1::GetStatusResponse) -> Check {
        let code = "ZONE_MEMBERS";
        let mut faults = Vec::new();
        let mut remedies = Vec::new();
        for member in &status.members {
            if !member.forgetful.is_empty() {
                faults.push(format!("member-{}: {}", member.id, member.forgetful));
                remedies.push(format!("member-{}: {}", member.id, member.remedy));
            } else if !member.reachable && !member.leader {
                faults.push(format!("member-{} is not heard of", member.id));
                remedies.push(format!("start member-{} at {}", member.id, member.address));
            }
        }
        self.judge(code, &faults, "every member takes part", &remedies.join("; "))
    }

    fn members_level(&self, status: &v1::GetStatusResponse) -> Check {
        let newest = status.members.iter().map(|member| member.matched_index).max().unwrap_or(0);
        let behind = |member: &v1::Member| newest.saturating_sub(member.matched_index);
        let faults: Vec<String> = status
            .members
            .iter()
            .filter(|member| member.reachable && behind(member) > ENTRIES_BEHIND_MAX)
            .map(|member| format!("member-{} is {} entries behind", member.id, behind(member)))
            .collect();
        let remedy = "look at its disk and its network: it takes in less than the zone writes";
        self.judge("ZONE_MEMBERS_LEVEL", &faults, "members have what the leader has", remedy)
    }

    fn nodes_up(&self, status: &v1::GetStatusResponse) -> Check {
        let away: Vec<String> = status
            .nodes
            .iter()
            .filter(|node| !is_up(node))
            .map(|node| format!("{}: {}", node_name(node.id), node.cause))
            .collect();
        let fine = format!("{} nodes are up", status.nodes.len());
        let remedy = "start them; what they held is copied anew elsewhere meanwhile";
        self.judge("ZONE_NODES_UP", &away, &fine, remedy)
    }

    fn heartbeats(&self, status: &v1::GetStatusResponse) -> Check {
        let late: Vec<String> = status
            .nodes
            .iter()
            .filter(|node| is_up(node) && node.heartbeat_millis_ago > HEARTBEAT_MAX_MILLIS)
            .map(|node| format!("{}: {} ms ago", node_name(node.id), node.heartbeat_millis_ago))
            .collect();
        let remedy = "look at the node's processors and its way to the control plane";
        self.judge("ZONE_HEARTBEATS", &late, "nodes were heard of just now", remedy)
    }

    /// One more node than a volume wants copies, so that a lost copy has somewhere to go.
    fn spare_node(&self, status: &v1::GetStatusResponse) -> Check {
        let code = "ZONE_SPARE_NODE";
        let up = status.nodes.iter().filter(|node| is_up(node)).count();
        let wanted = status.volumes.iter().map(|volume| volume.copies_wanted).max().unwrap_or(3);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let found = format!("{up} nodes are up, volumes want {wanted} copies");
        if up < wanted {
            let remedy = "start or add nodes: there is no place for every copy";
            return Check::failure(code, &self.about, found, remedy);
        }
        if up == wanted {
            let remedy = "add a node: a copy that is lost has nowhere to be made anew";
            return Check::warning(code, &self.about, found, remedy);
        }
        Check::ok(code, &self.about, found)
    }

    /// A node that is up tells of its working stores; its configuration says how many it should have.
    fn stores(&self, status: &v1::GetStatusResponse, configs: &Configs) -> Check {
        let mut lost = Vec::new();
        for node in status.nodes.iter().filter(|node| is_up(node)) {
            let configured = configs.nodes.iter().find(|named| {
                let config = &named.config;
                config.zone.to_string() == status.zone && config.node.0 == node.id
            });
            let wanted = configured.map_or(1, |named| named.config.stores.len());
            if node.stores.len() < wanted {
                let name = node_name(node.id);
                lost.push(format!("{name}: {} of {wanted} stores work", node.stores.len()));
            }
        }
        let remedy = "look at the node's log and the disk; replace it, and restart the node";
        self.judge("ZONE_STORES", &lost, "every known store of the nodes that are up works", remedy)
    }

    fn room(&self, status: &v1::GetStatusResponse) -> Check {
        let code = "ZONE_ROOM";
        let mut worst = 0;
        let mut full = Vec::new();
        for node in &status.nodes {
            for store in node.stores.iter().filter(|store| store.capacity_bytes > 0) {
                let percent = store.used_bytes.saturating_mul(100) / store.capacity_bytes;
                worst = worst.max(percent);
                if percent >= USED_WARNING_PERCENT {
                    full.push(format!("{} {percent} %", node_name(node.id)));
                }
            }
        }
        let remedy = "add nodes or stores, or delete volumes; full stores make writes wait";
        if worst >= USED_FAILURE_PERCENT {
            return Check::failure(code, &self.about, full.join("; "), remedy);
        }
        self.judge(code, &full, &format!("no store holds more than {worst} %"), remedy)
    }

    /// Whether the others have room for what the fullest node holds.
    fn headroom(&self, status: &v1::GetStatusResponse) -> Check {
        let code = "ZONE_HEADROOM";
        let up: Vec<&v1::Node> = status.nodes.iter().filter(|node| is_up(node)).collect();
        let free = |node: &v1::Node| node.capacity_bytes.saturating_sub(node.used_bytes);
        let Some(fullest) = up.iter().max_by_key(|node| node.used_bytes) else {
            return Check::skipped(code, &self.about, "no node is up");
        };
        let others: u64 =
            up.iter().filter(|node| node.id != fullest.id).map(|node| free(node)).sum();
        let found = format!(
            "{} holds {}, the others have {} left",
            node_name(fullest.id),
            size::show(fullest.used_bytes),
            size::show(others)
        );
        if others >= fullest.used_bytes {
            return Check::ok(code, &self.about, found);
        }
        let remedy = "add nodes: what this one holds has no place if it is lost";
        Check::warning(code, &self.about, found, remedy)
    }

    fn networks(&self, status: &v1::GetStatusResponse) -> Check {
        let ip = |text: &str| text.parse::<SocketAddr>().ok().map(|address| address.ip());
        let same: Vec<String> = status
            .nodes
            .iter()
            .filter(|node| {
                let primary = ip(&node.primary_address);
                primary.is_some() && primary == ip(&node.replication_address)
            })
            .map(|node| format!("{} has both on {}", node_name(node.id), node.primary_address))
            .collect();
        let remedy = "give the replication network addresses and an interface of its own";
        self.judge("ZONE_NETWORKS_DIFFER", &same, "nodes have two networks", remedy)
    }

    /// Clients of this host need the primary network; nobody but nodes needs the other one.
    fn reached(
        &self,
        status: &v1::GetStatusResponse,
        connect: impl Fn(SocketAddr) -> std::io::Result<()>,
    ) -> Check {
        let mut faults = Vec::new();
        for node in status.nodes.iter().filter(|node| is_up(node)) {
            let outcome = node
                .primary_address
                .parse()
                .map_err(|_| "it is no address".to_owned())
                .and_then(|address| connect(address).map_err(|error| error.to_string()));
            if let Err(error) = outcome {
                let name = node_name(node.id);
                faults.push(format!("{name} at {}: {error}", node.primary_address));
            }
        }
        let code = "ZONE_REACHED_FROM_HERE";
        if faults.is_empty() {
            return Check::ok(code, &self.about, "this host reaches every node that is up");
        }
        let remedy =
            "open the way from this host to the primary network, or attach volumes elsewhere";
        Check::failure(code, &self.about, faults.join("; "), remedy)
    }

    fn degraded(&self, status: &v1::GetStatusResponse) -> Check {
        let counts = status.chunks.unwrap_or_default();
        let faults: Vec<String> = (counts.degraded > 0)
            .then(|| format!("{} of {} chunks have too few copies", counts.degraded, counts.total))
            .into_iter()
            .collect();
        let fine = format!("{} of {} chunks have all their copies", counts.whole, counts.total);
        let remedy =
            "bring nodes back, or wait until the copies are made anew (`ashlar volume status`)";
        self.judge("ZONE_CHUNKS_WHOLE", &faults, &fine, remedy)
    }

    fn stuck(&self, status: &v1::GetStatusResponse) -> Check {
        let code = "ZONE_CHUNKS_STUCK";
        let counts = status.chunks.unwrap_or_default();
        if counts.stuck == 0 && status.stuck.is_empty() {
            return Check::ok(code, &self.about, "no chunk makes writes wait");
        }
        let (mut faults, mut next) = (Vec::new(), BTreeMap::new());
        for stuck in &status.stuck {
            let chunk = stuck.chunk.clone().unwrap_or_default();
            let seconds = stuck.since_millis / 1000;
            faults
                .push(format!("{}/{} for {seconds} s: {}", chunk.volume, chunk.index, stuck.cause));
            *next.entry(stuck.next_action.as_str()).or_insert(0) += 1;
        }
        let more = counts.stuck.max(u32::try_from(faults.len()).unwrap_or(u32::MAX));
        faults.truncate(STUCK_NAMED_MAX);
        let found = format!("writes of {more} chunks wait: {}", faults.join("; "));
        let next: Vec<&str> = next.keys().copied().filter(|text| !text.is_empty()).collect();
        let remedy = if next.is_empty() { vec!["ashlar status"] } else { next }.join("; ");
        Check::failure(code, &self.about, found, remedy)
    }

    fn interruption(&self, status: &v1::GetStatusResponse) -> Check {
        let on: Vec<String> = status
            .interruption
            .iter()
            .map(|interruption| {
                if interruption.on {
                    format!("large interruption: {} nodes are lost", interruption.lost)
                } else {
                    let rate = interruption.searches_per_second;
                    format!("after a large interruption: {rate} searches a second and node")
                }
            })
            .collect();
        let remedy =
            "bring the lost nodes back; only chunks with a single copy look for a new home";
        self.judge("ZONE_INTERRUPTION", &on, "no large interruption", remedy)
    }

    fn erasing(&self, status: &v1::GetStatusResponse) -> Check {
        let waiting = status.erasing_replicas;
        let faults: Vec<String> = (waiting > 0)
            .then(|| format!("{waiting} replicas of deleted volumes are left"))
            .into_iter()
            .collect();
        let remedy = "bring their holders back: the room is theirs until they have erased them";
        self.judge("ZONE_ERASED", &faults, "deleted volumes are erased everywhere", remedy)
    }

    fn creating(&self, status: &v1::GetStatusResponse, now_millis: u64) -> Check {
        let slow: Vec<String> = status
            .volumes
            .iter()
            .filter(|volume| {
                volume.state() == v1::VolumeState::Creating
                    && now_millis.saturating_sub(volume.created_unix_millis) > CREATING_MAX_MILLIS
            })
            .map(|volume| format!("{} {}", volume.id, volume.name).trim_end().to_owned())
            .collect();
        let remedy = "ashlar volume status VOLUME says which node is waited for; or delete it";
        self.judge("ZONE_VOLUMES_MADE", &slow, "no volume is being made for long", remedy)
    }

    fn scrub(&self, status: &v1::GetStatusResponse) -> Check {
        let off: Vec<String> = status
            .nodes
            .iter()
            .filter(|node| is_up(node))
            .flat_map(|node| node.stores.iter().map(move |store| (node, store)))
            .filter(|(_, store)| store.capacity_bytes > 0 && !is_scrubbed(store))
            .map(|(node, store)| format!("{} store {}", node_name(node.id), store.id))
            .collect();
        let remedy = "set scrub_bytes_per_second above 0: damage that nobody reads is found by it";
        self.judge("ZONE_SCRUB", &off, "stores are read through in the background", remedy)
    }
}

/// Its scrub runs, or has come through.
fn is_scrubbed(store: &v1::Store) -> bool {
    store.scrub.is_some_and(|scrub| scrub.bytes_per_second > 0 || scrub.cycles > 0)
}

#[cfg(test)]
mod tests;
