//! Configuration files of nodes and members of this host: do they parse, do they fit each other.
//!
//! Each check speaks of all files together and names those that are at fault, so that a host with many
//! processes does not drown what matters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::Check;

const FILES: &str = "configuration";

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Configs {
    pub(super) nodes: Vec<Named<ashlar_node::Config>>,
    pub(super) members: Vec<Named<ashlar_controlplane::Config>>,
}

/// A configuration and the name of its file.
#[derive(Debug)]
pub(super) struct Named<T> {
    pub(super) name: String,
    pub(super) config: T,
}

impl Configs {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.members.is_empty()
    }

    /// Every address that a process listens on, with the file that says so.
    pub(super) fn addresses(&self) -> Vec<(&str, SocketAddr)> {
        let of_nodes = self.nodes.iter().flat_map(|node| {
            let Named { name, config } = node;
            [config.primary_address, config.replication_address].map(|a| (name.as_str(), a))
        });
        let of_members = self
            .members
            .iter()
            .filter_map(|member| Some((member.name.as_str(), member.config.listen.parse().ok()?)));
        of_nodes.chain(of_members).collect()
    }
}

/// Reads the files; says which cannot be used.
pub(super) fn read(paths: &[PathBuf], checks: &mut Vec<Check>) -> Configs {
    let code = "CONFIG_FILES";
    if paths.is_empty() {
        checks.push(Check::skipped(code, FILES, "no file is named by --config"));
        return Configs::default();
    }
    let mut configs = Configs::default();
    let mut wrong = Vec::new();
    for path in paths {
        if let Err(error) = read_one(path, &mut configs) {
            wrong.push(format!("{}: {error}", path.display()));
        }
    }
    checks.push(judge(
        code,
        &wrong,
        format!("{} files can be used", paths.len()),
        "correct the files; each says what is wrong with its first fault",
        Check::failure,
    ));
    configs
}

fn read_one(path: &Path, configs: &mut Configs) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| error.to_string())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if table.contains_key("node") {
        let config = ashlar_node::Config::load(path).map_err(|error| error.to_string())?;
        configs.nodes.push(Named { name, config });
    } else if table.contains_key("member") {
        let config = ashlar_controlplane::Config::load(path).map_err(|error| error.to_string())?;
        configs.members.push(Named { name, config });
    } else {
        return Err("it has neither `node` nor `member`: what is it for?".to_owned());
    }
    Ok(())
}

type Bad = fn(&'static str, &str, String, String) -> Check;

/// Fine if nothing is at fault; otherwise what is, by `bad`.
pub(super) fn judge(
    code: &'static str,
    faults: &[String],
    fine: String,
    remedy: &str,
    bad: Bad,
) -> Check {
    if faults.is_empty() {
        return Check::ok(code, FILES, fine);
    }
    bad(code, FILES, faults.join("; "), remedy.to_owned())
}

/// What can be said from the files alone.
pub(super) fn checks(configs: &Configs) -> Vec<Check> {
    if configs.is_empty() {
        return Vec::new();
    }
    vec![private(configs), apart(configs), unique(configs), zone_map(configs), members(configs)]
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

fn private(configs: &Configs) -> Check {
    let public = configs.addresses().into_iter().filter(|(_, address)| !is_private(address.ip()));
    let public: Vec<String> =
        public.map(|(name, address)| format!("{name} listens on {address}")).collect();
    let remedy = "listen on private addresses: nothing is encrypted or authenticated yet";
    let fine = "every address is loopback or private".to_owned();
    judge("CONFIG_ADDRESSES_PRIVATE", &public, fine, remedy, Check::warning)
}

fn apart(configs: &Configs) -> Check {
    let same = configs
        .nodes
        .iter()
        .filter(|node| node.config.primary_address.ip() == node.config.replication_address.ip());
    let same: Vec<String> = same
        .map(|node| {
            format!("{} has both networks on {}", node.name, node.config.primary_address.ip())
        })
        .collect();
    let remedy = "give the replication network addresses, and better an interface, of its own: \
                  what fills one network then leaves beats on the other";
    let fine = "primary and replication networks have addresses of their own".to_owned();
    judge("CONFIG_NETWORKS_DIFFER", &same, fine, remedy, Check::warning)
}

fn unique(configs: &Configs) -> Check {
    let mut owners: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, address) in configs.addresses().into_iter().filter(|(_, a)| a.port() != 0) {
        owners.entry(format!("address {address}")).or_default().push(name);
    }
    for node in &configs.nodes {
        let key = format!("{} of zone {}", node.config.node, node.config.zone);
        owners.entry(key).or_default().push(&node.name);
        for store in &node.config.stores {
            owners.entry(format!("folder {}", store.display())).or_default().push(&node.name);
        }
    }
    for member in &configs.members {
        let key = format!("member {} of zone {}", member.config.member, member.config.zone);
        owners.entry(key).or_default().push(&member.name);
        let folder = format!("folder {}", member.config.data_dir.display());
        owners.entry(folder).or_default().push(&member.name);
    }
    let shared: Vec<String> = owners
        .into_iter()
        .filter(|(_, owners)| owners.len() > 1)
        .map(|(what, owners)| format!("{what} is claimed by {}", owners.join(" and ")))
        .collect();
    let remedy = "give each process its own number, addresses and folders";
    let fine = "numbers, addresses and folders are claimed once".to_owned();
    judge("CONFIG_CLAIMED_ONCE", &shared, fine, remedy, Check::failure)
}

fn zone_map(configs: &Configs) -> Check {
    let mut maps: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for member in &configs.members {
        let zones: Vec<String> = member
            .config
            .zones
            .iter()
            .map(|(zone, members)| {
                let members: BTreeSet<&str> = members.iter().map(String::as_str).collect();
                format!("{zone}: {}", members.into_iter().collect::<Vec<_>>().join(" "))
            })
            .collect();
        maps.entry(zones.join(", ")).or_default().push(&member.name);
    }
    let differ: Vec<String> = if maps.len() > 1 {
        let map = |(zones, names): (&String, &Vec<&str>)| {
            format!("{}: {}", names.join(" "), if zones.is_empty() { "no zones" } else { zones })
        };
        maps.iter().map(map).collect()
    } else {
        Vec::new()
    };
    let remedy = "write the same table `zones` into every member's configuration";
    let fine = format!("{} members have the same map of zones", configs.members.len());
    judge("CONFIG_ZONE_MAP", &differ, fine, remedy, Check::failure)
}

/// Members of one zone must begin with the same list, and nodes must know where they are.
fn members(configs: &Configs) -> Check {
    let mut faults = Vec::new();
    let mut lists: BTreeMap<&str, (&str, &BTreeMap<String, String>)> = BTreeMap::new();
    for member in configs.members.iter().filter(|member| !member.config.peers.is_empty()) {
        let config = &member.config;
        let (first, peers) = lists.entry(&config.zone).or_insert((&member.name, &config.peers));
        if *peers != &config.peers {
            faults.push(format!("{} and {first} list other peers for one zone", member.name));
        }
    }
    for node in &configs.nodes {
        let zone = node.config.zone.to_string();
        let Some((_, peers)) = lists.get(zone.as_str()) else { continue };
        let known = |peer: &&String| {
            node.config.control.iter().any(|control| control.ends_with(peer.as_str()))
        };
        if !peers.values().any(|peer| known(&peer)) {
            faults.push(format!("{} names none of the members of zone {zone}", node.name));
        }
    }
    let remedy = "`peers` is the same in all members of a zone, and nodes name those in `control`";
    let fine = "members agree on who they are, and nodes know them".to_owned();
    judge("CONFIG_MEMBERS", &faults, fine, remedy, Check::failure)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{Failure, Ok as Fine, Skipped, Warning};
    use super::*;

    fn node(number: u32, addresses: [&str; 2], more: &str) -> String {
        let [primary, replication] = addresses;
        format!(
            "zone = \"a\"\nnode = {number}\ndata_dir = \"/d/{number}\"\n\
             primary_address = \"{primary}\"\nreplication_address = \"{replication}\"\n\
             control = [\"http://10.0.0.1:7\"]\ncapacity_bytes = 1073741824\n{more}"
        )
    }

    fn member(number: u32, zones: &str) -> String {
        format!(
            "zone = \"a\"\nmember = {number}\ndata_dir = \"/m/{number}\"\n\
             listen = \"10.0.0.{number}:7\"\n\
             peers = {{ 1 = \"10.0.0.1:7\", 2 = \"10.0.0.2:7\", 3 = \"10.0.0.3:7\" }}\n\
             zones = {zones}\n"
        )
    }

    fn read_all(texts: &[String]) -> (Configs, Vec<Check>) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (1..)
            .zip(texts)
            .map(|(number, text)| {
                let path = folder.path().join(format!("file-{number}.toml"));
                fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let mut checks = Vec::new();
        let configs = read(&paths, &mut checks);
        (configs, checks)
    }

    #[test]
    fn files_that_fit_each_other_are_fine() {
        let map = "{ a = [\"10.0.0.1:7\"], b = [\"10.9.0.1:7\"] }";
        let (configs, checks) = read_all(&[
            node(1, ["10.1.0.1:7", "10.2.0.1:7"], ""),
            node(2, ["10.1.0.2:7", "10.2.0.2:7"], ""),
            member(1, map),
            member(2, map),
        ]);
        assert_eq!(checks[0].outcome(), Fine, "{checks:?}");
        for check in super::checks(&configs) {
            assert_eq!(check.outcome(), Fine, "{check:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_fault() {
        let (_, checks) = read_all(&["zone = 1".to_owned(), "node = 1".to_owned()]);
        assert_eq!(checks[0].outcome(), Failure);
        assert!(checks[0].found.contains("file-1.toml: it has neither"), "{checks:?}");
        assert!(checks[0].found.contains("file-2.toml: "), "{checks:?}");
        let mut none = Vec::new();
        assert!(read(&[], &mut none).is_empty());
        assert_eq!(none[0].outcome(), Skipped);
    }

    #[test]
    fn shared_networks_claims_and_public_addresses_are_found() {
        let (configs, _) = read_all(&[
            node(1, ["10.1.0.1:7", "10.1.0.1:8"], ""),
            node(1, ["10.1.0.1:7", "9.9.9.9:8"], "insecure = true"),
        ]);
        assert_eq!(apart(&configs).outcome(), Warning);
        assert_eq!(private(&configs).outcome(), Warning);
        let claimed = unique(&configs);
        assert_eq!(claimed.outcome(), Failure);
        for what in ["address 10.1.0.1:7", "node-1 of zone a", "folder /d/1/store"] {
            assert!(claimed.found.contains(what), "{what}: {}", claimed.found);
        }
    }

    #[test]
    fn maps_and_lists_of_members_that_differ_are_found() {
        let lost = node(3, ["10.1.0.3:7", "10.2.0.3:7"], "").replace("10.0.0.1:7", "10.0.0.9:7");
        let other = member(2, "{ a = [\"10.0.0.1:7\"] }").replace("10.0.0.3:7", "10.0.0.4:7");
        let (configs, _) = read_all(&[member(1, "{}"), other, lost]);
        assert_eq!(zone_map(&configs).outcome(), Failure);
        let found = members(&configs);
        assert_eq!(found.outcome(), Failure);
        assert!(found.found.contains("file-2 and file-1 list other peers"), "{found:?}");
        assert!(found.found.contains("file-3 names none"), "{found:?}");
    }
}
