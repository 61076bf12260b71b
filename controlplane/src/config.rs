//! Configuration of a member, as its TOML file has it, and what is checked before anything starts.

use crate::member::{MemberOptions, TICK_MILLIS};
use ashlar_controlplane_core::sharing::{PEERS_PER_NODE_MAX, PEERS_PER_NODE_MIN};
use ashlar_types::{IdError, ZoneId};
use ashlar_zone_raft::{RaftOptions, Start};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Most sharing nodes that can be configured: it bounds beats.
const PEERS_CONFIGURED_MAX: usize = 1_024;
/// Zones of a region. Each costs ways to its members and three bulkheads.
const ZONES_MAX: usize = 16;
/// Addresses of one zone: as many as it can have members, twice.
const ZONE_MEMBERS_MAX: usize = 10;

/// A member's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the zone: 1 to 8 characters of a-z and 0-9.
    pub zone: String,
    /// Number of this member, from 1.
    pub member: u64,
    /// Folder of this member alone.
    pub data_dir: PathBuf,
    /// `ip:port` that its services listen on.
    pub listen: String,
    /// Number and `ip:port` of every member that the zone began with, this one too. One, three or
    /// five. Once members have changed, the zone knows better. Absent with `join`.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
    /// `ip:port` of members of the zone that this one was added to, under the number that
    /// `ashlar controlplane add` gave it. In place of `peers`.
    #[serde(default)]
    pub join: Vec<String>,
    /// The zone is new, so that an empty folder is no loss. Without it a member whose folder is
    /// empty refuses to start: it may have voted before, and must not vote again.
    #[serde(default)]
    pub bootstrap: bool,
    /// Listen on any address, not only on loopback and private ones, although nothing is
    /// encrypted or authenticated yet.
    #[serde(default)]
    pub insecure: bool,
    /// A test zone: volumes may have chunks below 64 MiB, down to 64 KiB. Each chunk costs memory and
    /// elections of its own, so a zone with data of its own has none that small. All members alike.
    #[serde(default)]
    pub small_chunks: bool,
    /// The zones of the region and `ip:port` of some members of each: calls that are for another
    /// zone are forwarded there. May name this zone too, so that all zones can share the table.
    /// Empty: this zone is alone.
    #[serde(default)]
    pub zones: BTreeMap<String, Vec<String>>,
    /// Times and sizes.
    #[serde(default)]
    pub timing: Timing,
    /// Where replicas go.
    #[serde(default)]
    pub placement: PlacementRules,
}

/// Where replicas go. All members alike; a change holds for what is placed from then on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementRules {
    /// Other nodes that a node shares chunks with, as long as there is any choice: 5 to 1024.
    pub peers_per_node_max: usize,
}

impl Default for PlacementRules {
    fn default() -> Self {
        Self { peers_per_node_max: PEERS_PER_NODE_MAX }
    }
}

/// Times and sizes, each with a default that fits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// How often a leader beats, in milliseconds.
    pub raft_heartbeat_millis: u64,
    /// Least time without a leader before an election, in milliseconds; the most is twice as long.
    pub raft_election_millis: u64,
    /// Log entries after which a snapshot is taken and the log is cut.
    pub compact_after_entries: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            raft_heartbeat_millis: 100,
            // Twice as long would bring the pause after a lost leader near its 4 s (design 6);
            // half as long elects whenever a loaded host stalls for a moment.
            raft_election_millis: 600,
            compact_after_entries: 8_192,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// Not TOML, or not these fields.
    #[error(transparent)]
    Text(#[from] toml::de::Error),
    /// The zone's name.
    #[error("zone: {0}")]
    Zone(#[from] IdError),
    /// A member's number.
    #[error("peers: {0:?} is not a member's number: 1, 2, 3 ...")]
    Number(String),
    /// An address.
    #[error("{field}: {text:?} is not an address of the form ip:port")]
    Address {
        /// The field.
        field: String,
        /// What it says.
        text: String,
        /// What is wrong with it.
        #[source]
        cause: AddrParseError,
    },
    /// How many there are.
    #[error("peers: a control plane has 1, 3 or 5 members, not {0}")]
    Count(usize),
    /// This member is not among them.
    #[error("peers: member {0} itself is missing")]
    Missing(u64),
    /// Both ways to begin, or none that goes with `bootstrap`.
    #[error("join: a member that joins a zone has no peers and no bootstrap = true")]
    Join,
    /// A public address.
    #[error(
        "listen: {0} is neither loopback nor private; nothing is encrypted yet, so say \
         insecure = true if that is meant"
    )]
    Public(IpAddr),
    /// The name of another zone.
    #[error("zones: {name:?}: {cause}")]
    ZoneName {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        cause: IdError,
    },
    /// A zone that nobody could be asked about.
    #[error("zones.{0}: it names no address; give ip:port of at least one of its members")]
    ZoneEmpty(String),
    /// More zones, or members of one, than a member keeps ways to.
    #[error("zones: at most {ZONES_MAX} zones with at most {ZONE_MEMBERS_MAX} addresses each")]
    ZoneCount,
    /// A bound that no volume fits under, or that bounds nothing.
    #[error(
        "placement.peers_per_node_max: {0} is not between {PEERS_PER_NODE_MIN} and \
         {PEERS_CONFIGURED_MAX}; leave it out for {PEERS_PER_NODE_MAX}"
    )]
    Peers(usize),
    /// Times that make no sense.
    #[error("timing: the election time must be at least three heartbeats, and both at least 50 ms")]
    Timing,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) listen: SocketAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) join: Vec<String>,
    pub(crate) zones: BTreeMap<ZoneId, Vec<String>>,
    pub(crate) member: MemberOptions,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.display().to_string(),
            cause: error.to_string(),
        })?;
        let config: Self = toml::from_str(&text)?;
        config.check()?;
        Ok(config)
    }

    /// Whether a member can start with it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.checked().map(|_| ())
    }

    pub(crate) fn checked(&self) -> Result<Checked, ConfigError> {
        let zone: ZoneId = self.zone.parse()?;
        let listen = address("listen", &self.listen)?;
        if !self.insecure && !is_inside(listen.ip()) {
            return Err(ConfigError::Public(listen.ip()));
        }
        let mut addresses = BTreeMap::new();
        for (number, text) in &self.peers {
            let id: u64 = number.parse().map_err(|_| ConfigError::Number(number.clone()))?;
            if id == 0 {
                return Err(ConfigError::Number(number.clone()));
            }
            address(&format!("peers.{number}"), text)?;
            addresses.insert(id, text.clone());
        }
        for text in &self.join {
            address("join", text)?;
        }
        let joins = !self.join.is_empty();
        if joins && (self.bootstrap || !addresses.is_empty()) {
            return Err(ConfigError::Join);
        }
        if !joins && !matches!(addresses.len(), 1 | 3 | 5) {
            return Err(ConfigError::Count(addresses.len()));
        }
        if self.member == 0 {
            return Err(ConfigError::Number("0".into()));
        }
        if !joins && !addresses.contains_key(&self.member) {
            return Err(ConfigError::Missing(self.member));
        }
        let timing = &self.timing;
        let ticks = |millis: u64| usize::try_from(millis / TICK_MILLIS).unwrap_or(usize::MAX);
        let heartbeat_ticks = ticks(timing.raft_heartbeat_millis);
        let election_ticks = ticks(timing.raft_election_millis);
        if heartbeat_ticks == 0 || election_ticks < heartbeat_ticks.saturating_mul(3) {
            return Err(ConfigError::Timing);
        }
        let peers_per_node_max = self.placement.peers_per_node_max;
        if !(PEERS_PER_NODE_MIN..=PEERS_CONFIGURED_MAX).contains(&peers_per_node_max) {
            return Err(ConfigError::Peers(peers_per_node_max));
        }
        Ok(Checked {
            listen,
            data_dir: self.data_dir.clone(),
            join: self.join.clone(),
            zones: self.checked_zones()?,
            member: MemberOptions {
                zone,
                raft: RaftOptions {
                    id: self.member,
                    voters: addresses.keys().copied().collect(),
                    start: Start::bootstrap_if(self.bootstrap),
                    heartbeat_ticks,
                    election_ticks,
                    log: ashlar_log::LogOptions::default(),
                },
                addresses,
                zone_secret: rand::random(),
                small_chunks: self.small_chunks,
                peers_per_node_max,
                compact_after: usize::try_from(timing.compact_after_entries).unwrap_or(usize::MAX),
                keep_entries: u64::from(timing.compact_after_entries / 8),
            },
        })
    }
}

impl Config {
    fn checked_zones(&self) -> Result<BTreeMap<ZoneId, Vec<String>>, ConfigError> {
        if self.zones.len() > ZONES_MAX {
            return Err(ConfigError::ZoneCount);
        }
        let mut zones = BTreeMap::new();
        for (name, members) in &self.zones {
            let zone = name
                .parse()
                .map_err(|cause| ConfigError::ZoneName { name: name.clone(), cause })?;
            if members.is_empty() {
                return Err(ConfigError::ZoneEmpty(name.clone()));
            }
            if members.len() > ZONE_MEMBERS_MAX {
                return Err(ConfigError::ZoneCount);
            }
            for member in members {
                address(&format!("zones.{name}"), member)?;
            }
            zones.insert(zone, members.clone());
        }
        Ok(zones)
    }
}

fn address(field: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|cause| ConfigError::Address {
        field: field.to_owned(),
        text: text.to_owned(),
        cause,
    })
}

/// Loopback, or a range that is not routed between organisations.
fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(peers: &[(&str, &str)], listen: &str) -> Config {
        Config {
            zone: "a".into(),
            member: 1,
            data_dir: PathBuf::from("x"),
            listen: listen.into(),
            peers: peers.iter().map(|(id, at)| ((*id).into(), (*at).into())).collect(),
            join: Vec::new(),
            bootstrap: false,
            insecure: false,
            small_chunks: false,
            zones: BTreeMap::new(),
            timing: Timing::default(),
            placement: PlacementRules::default(),
        }
    }

    const THREE: [(&str, &str); 3] =
        [("1", "127.0.0.1:1"), ("2", "127.0.0.1:2"), ("3", "127.0.0.1:3")];

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert_eq!(config(&THREE, "127.0.0.1:1").check(), Ok(()));
        let refused = |config: Config| config.check().unwrap_err();
        assert_eq!(refused(config(&THREE[..2], "127.0.0.1:1")), ConfigError::Count(2));
        assert_eq!(refused(config(&THREE[1..2], "127.0.0.1:1")), ConfigError::Missing(1));
        assert!(matches!(refused(config(&THREE, "here")), ConfigError::Address { .. }));
        let zero = [("0", "127.0.0.1:1")];
        assert!(matches!(refused(config(&zero, "127.0.0.1:1")), ConfigError::Number(_)));
        let timing = Timing { raft_election_millis: 100, ..Timing::default() };
        let hasty = Config { timing, ..config(&THREE, "127.0.0.1:1") };
        assert_eq!(refused(hasty), ConfigError::Timing);
        for peers_per_node_max in [0, PEERS_PER_NODE_MIN - 1, PEERS_CONFIGURED_MAX + 1] {
            let placement = PlacementRules { peers_per_node_max };
            let unbounded = Config { placement, ..config(&THREE, "127.0.0.1:1") };
            assert_eq!(refused(unbounded), ConfigError::Peers(peers_per_node_max));
        }
        let zone = Config { zone: "Zone A".into(), ..config(&THREE, "127.0.0.1:1") };
        assert!(matches!(refused(zone), ConfigError::Zone(_)));
    }

    #[test]
    fn a_member_that_joins_names_members_and_nothing_else() {
        let joins =
            Config { member: 107, join: vec!["127.0.0.1:2".into()], ..config(&[], "127.0.0.1:1") };
        assert_eq!(joins.check(), Ok(()));
        let both = Config { member: 1, join: joins.join.clone(), ..config(&THREE, "127.0.0.1:1") };
        assert_eq!(both.check(), Err(ConfigError::Join));
        assert_eq!(Config { bootstrap: true, ..joins.clone() }.check(), Err(ConfigError::Join));
        let nowhere = Config { join: vec!["there".into()], ..joins };
        assert!(matches!(nowhere.check(), Err(ConfigError::Address { .. })));
    }

    #[test]
    fn a_region_map_that_leads_nowhere_is_refused_by_field() {
        let with = |name: &str, members: &[&str]| Config {
            zones: [(name.to_owned(), members.iter().map(ToString::to_string).collect())].into(),
            ..config(&THREE, "127.0.0.1:1")
        };
        assert_eq!(with("b", &["127.0.0.1:4"]).check(), Ok(()));
        let said = |config: Config| config.check().unwrap_err().to_string();
        assert!(said(with("b", &[])).starts_with("zones.b: it names no address"));
        assert!(said(with("b", &["there"])).starts_with("zones.b: \"there\""));
        assert!(said(with("Zone B", &["127.0.0.1:4"])).starts_with("zones: \"Zone B\""));
        assert_eq!(with("b", &["127.0.0.1:4"; 11]).check(), Err(ConfigError::ZoneCount));
    }

    #[test]
    fn the_file_holds_these_fields_and_no_others() {
        let text = "zone = \"a\"\nmember = 1\ndata_dir = \"x\"\nlisten = \"127.0.0.1:1\"\n\
                    bootstrap = true\n[peers]\n1 = \"127.0.0.1:1\"\n";
        let read: Config = toml::from_str(text).unwrap();
        let expected = Config { bootstrap: true, ..config(&THREE[..1], "127.0.0.1:1") };
        assert_eq!(read, expected);
        let tests: Config = toml::from_str(&format!("small_chunks = true\n{text}")).unwrap();
        assert!(tests.checked().unwrap().member.small_chunks);
        assert!(!read.checked().unwrap().member.small_chunks);
        assert!(toml::from_str::<Config>(&format!("color = 1\n{text}")).is_err());
        let missing = Config::load(Path::new("no such file"));
        assert!(matches!(missing, Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn public_addresses_need_the_word_insecure() {
        let public = config(&THREE, "0.0.0.0:1");
        assert!(matches!(public.check(), Err(ConfigError::Public(_))));
        assert_eq!(Config { insecure: true, ..public }.check(), Ok(()));
        for inside in ["10.1.2.3:1", "192.168.0.9:1", "[::1]:1", "[fd00::1]:1"] {
            assert_eq!(config(&THREE, inside).check(), Ok(()), "{inside}");
        }
    }
}
