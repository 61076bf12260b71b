//! Whether the addresses of the configuration are this host's, on which interfaces, with which limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, TcpListener};

use nix::ifaddrs::getifaddrs;

use super::Check;
use super::files::{Configs, judge};

const FILES: &str = "configuration";

/// Smallest frame of an Ethernet that nobody cut down: below it a tunnel takes its share, and what
/// one end sends whole the other may never get.
const MTU_MIN: u32 = 1500;

/// All checks of addresses.
pub(super) fn checks(configs: &Configs) -> Vec<Check> {
    if configs.addresses().is_empty() {
        return Vec::new();
    }
    let interfaces = interfaces();
    vec![
        here(configs),
        interfaces_differ(configs, &interfaces),
        frames(configs, &interfaces, |name| {
            let text = fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?;
            text.trim().parse().ok()
        }),
        ports(
            configs,
            &fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default(),
        ),
    ]
}

/// The interface of each address of this host.
fn interfaces() -> BTreeMap<IpAddr, String> {
    let Ok(all) = getifaddrs() else { return BTreeMap::new() };
    all.filter_map(|interface| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => return None,
        };
        Some((ip, interface.interface_name))
    })
    .collect()
}

/// Whether a process here could listen there; any free port tells.
fn here(configs: &Configs) -> Check {
    let mut away = Vec::new();
    for (name, address) in configs.addresses() {
        if let Err(error) = TcpListener::bind((address.ip(), 0)) {
            away.push(format!("{name}: {}: {error}", address.ip()));
        }
    }
    let remedy = "name addresses that this host has, or bring up the interface; files of other \
                  hosts are checked there";
    let fine = "every address is one of this host's".to_owned();
    judge("CONFIG_ADDRESSES_HERE", &away, fine, remedy, Check::failure)
}

fn interfaces_differ(configs: &Configs, interfaces: &BTreeMap<IpAddr, String>) -> Check {
    let code = "CONFIG_INTERFACES_DIFFER";
    let mut shared = Vec::new();
    let mut judged = 0;
    for node in &configs.nodes {
        let (primary, replication) =
            (node.config.primary_address.ip(), node.config.replication_address.ip());
        if primary.is_loopback() && replication.is_loopback() {
            continue;
        }
        judged += 1;
        let interface = interfaces.get(&primary);
        if interface.is_some() && interface == interfaces.get(&replication) {
            let interface = interface.map(String::as_str).unwrap_or_default();
            shared.push(format!("{} has both networks on {interface}", node.name));
        }
    }
    if judged == 0 {
        return Check::skipped(code, FILES, "no node listens beyond this host");
    }
    let remedy = "put the networks on two interfaces, so that one cable or one full queue does not \
                  take both";
    let fine = "the two networks have interfaces of their own".to_owned();
    judge(code, &shared, fine, remedy, Check::warning)
}

fn frames(
    configs: &Configs,
    interfaces: &BTreeMap<IpAddr, String>,
    mtu_of: impl Fn(&str) -> Option<u32>,
) -> Check {
    let used: BTreeSet<&String> = configs
        .addresses()
        .iter()
        .filter(|(_, address)| !address.ip().is_loopback())
        .filter_map(|(_, address)| interfaces.get(&address.ip()))
        .collect();
    let code = "CONFIG_MTU";
    let known: Vec<(&String, u32)> =
        used.into_iter().filter_map(|name| Some((name, mtu_of(name)?))).collect();
    if known.is_empty() {
        return Check::skipped(code, FILES, "no address beyond this host's loopback");
    }
    let small: Vec<String> = known
        .iter()
        .filter(|(_, mtu)| *mtu < MTU_MIN)
        .map(|(name, mtu)| format!("{name} has {mtu}"))
        .collect();
    let all: Vec<String> = known.iter().map(|(name, mtu)| format!("{name} {mtu}")).collect();
    let remedy = "set the same MTU on all hosts of a network, 1500 or 9000, and try it with \
                  ping -M do -s SIZE";
    judge(code, &small, all.join(", "), remedy, Check::warning)
}

/// A port that the host hands to outgoing connections may be taken while its daemon restarts.
fn ports(configs: &Configs, range: &str) -> Check {
    let code = "CONFIG_PORTS";
    let mut numbers = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else {
        return Check::skipped(code, FILES, "the host does not say which ports it hands out");
    };
    let at_risk: Vec<String> = configs
        .addresses()
        .into_iter()
        .filter(|(_, address)| (first..=last).contains(&address.port()))
        .map(|(name, address)| format!("{name} listens on port {}", address.port()))
        .collect();
    let remedy = format!(
        "listen below {first}, or name the ports in net.ipv4.ip_local_reserved_ports: an outgoing \
         connection may take one while its daemon restarts"
    );
    let fine = format!("no port is between {first} and {last}, which the host hands out");
    judge(code, &at_risk, fine, &remedy, Check::warning)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome::{Failure, Ok as Fine, Skipped, Warning};
    use super::super::files::Named;
    use super::*;

    fn node(primary: &str, replication: &str) -> Configs {
        let text = format!(
            "zone = \"a\"\nnode = 1\ndata_dir = \"/d\"\ncapacity_bytes = 1073741824\n\
             primary_address = \"{primary}\"\nreplication_address = \"{replication}\"\n\
             control = [\"http://10.0.0.1:7\"]\n"
        );
        let named = Named { name: "node-1".to_owned(), config: text.parse().unwrap() };
        Configs { nodes: vec![named], members: Vec::new() }
    }

    fn interfaces(of: &[(&str, &str)]) -> BTreeMap<IpAddr, String> {
        of.iter().map(|(ip, name)| (ip.parse().unwrap(), (*name).to_owned())).collect()
    }

    #[test]
    fn an_address_that_this_host_does_not_have_is_found() {
        assert_eq!(here(&node("127.0.0.1:7", "127.0.0.2:7")).outcome(), Fine);
        // Of a made-up private network: no host has it.
        let away = here(&node("127.0.0.1:7", "[fd00:dead:beef::1]:7"));
        assert_eq!(away.outcome(), Failure);
        assert!(away.found.contains("node-1: fd00:dead:beef::1"), "{away:?}");
    }

    #[test]
    fn two_networks_on_one_interface_and_small_frames_are_found() {
        let configs = node("10.1.0.1:7", "10.2.0.1:7");
        let two = interfaces(&[("10.1.0.1", "eth0"), ("10.2.0.1", "eth1")]);
        let one = interfaces(&[("10.1.0.1", "eth0"), ("10.2.0.1", "eth0")]);
        assert_eq!(interfaces_differ(&configs, &two).outcome(), Fine);
        assert_eq!(interfaces_differ(&configs, &one).outcome(), Warning);
        let local = node("127.0.0.1:7", "127.0.0.2:7");
        assert_eq!(interfaces_differ(&local, &two).outcome(), Skipped);
        assert_eq!(frames(&configs, &two, |_| Some(9000)).outcome(), Fine);
        assert_eq!(frames(&configs, &two, |_| Some(1400)).outcome(), Warning);
        assert_eq!(frames(&local, &two, |_| Some(1400)).outcome(), Skipped);
    }

    #[test]
    fn a_port_that_the_host_hands_out_is_found() {
        let configs = node("10.1.0.1:7000", "10.2.0.1:40000");
        let found = ports(&configs, "32768\t60999\n");
        assert_eq!(found.outcome(), Warning);
        assert!(found.found.contains("40000") && !found.found.contains("7000;"), "{found:?}");
        assert_eq!(ports(&configs, "50000\t60999\n").outcome(), Fine);
        assert_eq!(ports(&configs, "").outcome(), Skipped);
    }
}
