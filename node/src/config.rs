//! What a node is told at its start: one TOML file, checked as a whole before anything is touched.
//!
//! ```toml
//! zone = "a"
//! node = 1
//! data_dir = "/var/lib/ashlar/node-1"
//! primary_address = "10.1.0.1:7000"
//! replication_address = "10.2.0.1:7000"
//! control = ["http://10.1.0.11:7100", "http://10.1.0.12:7100", "http://10.1.0.13:7100"]
//! capacity_bytes = 1099511627776
//! ```
//! One disk, in the folder `store` of `data_dir`; several are named, each with that capacity:
//! `stores = ["/disks/1/ashlar", "/disks/2/ashlar"]`. `rack = "r7"` says what fails together with the
//! node, so that other copies are kept elsewhere.
//! The rest has defaults. A key that is not known is an error, so that a mistyped one is noticed.

use ashlar_env::disk::EngineChoice;
use ashlar_types::limit::{STORES_PER_NODE_MAX, is_rack_label};
use ashlar_types::{NodeId, ZoneId};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// Default size of the journal. The state of the store is rebuilt from it at a start: 256 MiB take
/// about half a second, twice as much would miss the second that a restart may take.
const JOURNAL_BYTES_DEFAULT: u64 = 256 << 20;
/// Smallest journal: a few of the largest records must fit, or writers wait for one another.
const JOURNAL_BYTES_MIN: u64 = 16 << 20;
/// Largest journal: its content stands in memory until it is applied.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// The journal is made of pieces of this size.
const JOURNAL_BYTES_STEP: u64 = 64 << 10;
/// Smallest store that makes sense: one chunk of a volume.
const CAPACITY_BYTES_MIN: u64 = 64 << 20;
/// How long a stale replica is preferred to a new home (design.md section 7).
const READOPT_SECONDS_DEFAULT: u64 = 600;
/// Rate of the scrub on an idle node: a small part of what any disk gives.
const SCRUB_BYTES_DEFAULT: u64 = 16 << 20;
/// A week: the time for which damage that nobody reads may stay, on a disk of up to 10 TB.
const SCRUB_CYCLE_SECONDS_DEFAULT: u64 = 7 * 24 * 3_600;
/// A stream is opened within some 20 ms. Without a control plane this is what a start takes longer.
const HEARS_FIRST_SECONDS_DEFAULT: u64 = 1;
/// Beyond it a zone whose control plane is gone would seem to be gone itself.
const HEARS_FIRST_SECONDS_MAX: u64 = 60;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The zone of the node.
    pub zone: ZoneId,
    /// Its number, unique in the zone.
    pub node: NodeId,
    /// Folder of the node; made if it is not there.
    pub data_dir: PathBuf,
    /// Folders of its stores, one for each disk: at least one.
    pub stores: Vec<PathBuf>,
    /// Listener on the primary network. Peers and clients are told this address; with port 0 the
    /// host chooses one at each start.
    pub primary_address: SocketAddr,
    /// Listener on the replication network.
    pub replication_address: SocketAddr,
    /// What fails with the node: power, a switch. Copies of a chunk are kept under different labels where
    /// that is possible; empty: it has none.
    pub rack: String,
    /// Members of the zone's control plane, as `http://ip:port`.
    pub control: Vec<String>,
    /// Bytes of each store's journal, preallocated.
    pub journal_bytes: u64,
    /// Bytes that replicas may take in each store.
    pub capacity_bytes: u64,
    /// How disk work is handed to the kernel.
    pub io_engine: EngineChoice,
    /// How long a stale replica is preferred to a new home.
    pub readopt_window: Duration,
    /// Bytes that the background scrub reads in a second while there is nothing else to do; 0: none.
    pub scrub_bytes_per_second: u64,
    /// Time in which it reads every block once.
    pub scrub_cycle: Duration,
    /// How long clients of a node that holds replicas wait, after its start, for the control plane's
    /// first word.
    pub hears_first: Duration,
}

/// Why a node cannot be started with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The file is no TOML, lacks a key, or has one that is not known.
    #[error("{0}")]
    Malformed(#[from] toml::de::Error),
    /// A value that cannot be used.
    #[error("{field}: {problem}; {remedy}")]
    Field {
        /// The key at fault.
        field: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

/// As it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    zone: String,
    node: u32,
    data_dir: PathBuf,
    #[serde(default)]
    stores: Vec<PathBuf>,
    primary_address: String,
    replication_address: String,
    #[serde(default)]
    rack: String,
    control: Vec<String>,
    #[serde(default = "default_journal_bytes")]
    journal_bytes: u64,
    capacity_bytes: u64,
    #[serde(default = "default_engine")]
    io_engine: String,
    #[serde(default = "default_readopt_seconds")]
    readopt_window_seconds: u64,
    #[serde(default = "default_scrub_bytes")]
    scrub_bytes_per_second: u64,
    #[serde(default = "default_scrub_cycle_seconds")]
    scrub_cycle_seconds: u64,
    #[serde(default = "default_hears_first_seconds")]
    hears_first_seconds: u64,
    #[serde(default)]
    insecure: bool,
}

const fn default_journal_bytes() -> u64 {
    JOURNAL_BYTES_DEFAULT
}

fn default_engine() -> String {
    "auto".to_owned()
}

const fn default_readopt_seconds() -> u64 {
    READOPT_SECONDS_DEFAULT
}

const fn default_scrub_bytes() -> u64 {
    SCRUB_BYTES_DEFAULT
}

const fn default_scrub_cycle_seconds() -> u64 {
    SCRUB_CYCLE_SECONDS_DEFAULT
}

const fn default_hears_first_seconds() -> u64 {
    HEARS_FIRST_SECONDS_DEFAULT
}

fn wrong(field: &'static str, problem: impl ToString, remedy: &'static str) -> ConfigError {
    ConfigError::Field { field, problem: problem.to_string(), remedy }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The first thing that is wrong with it, and what to do about it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        text.parse()
    }

    /// The same node with these folders for its stores.
    ///
    /// # Errors
    /// If one of them is empty or named twice.
    pub fn with_stores(self, folders: Vec<PathBuf>) -> Result<Self, ConfigError> {
        Ok(Self { stores: stores(&self.data_dir, folders)?, ..self })
    }

    /// The same node in this rack.
    ///
    /// # Errors
    /// If that is no label.
    pub fn with_rack(self, label: String) -> Result<Self, ConfigError> {
        Ok(Self { rack: rack(label)?, ..self })
    }
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)?;
        let zone = raw.zone.parse().map_err(|e| wrong("zone", e, "choose such a name"))?;
        if raw.node == 0 {
            return Err(wrong("node", "0 is no node number", "number the nodes from 1"));
        }
        if raw.data_dir.as_os_str().is_empty() {
            return Err(wrong("data_dir", "is empty", "name the folder that holds the store"));
        }
        let primary_address = address("primary_address", &raw.primary_address, raw.insecure)?;
        let replication_address =
            address("replication_address", &raw.replication_address, raw.insecure)?;
        if primary_address == replication_address && primary_address.port() != 0 {
            return Err(wrong(
                "replication_address",
                "is the primary address too",
                "give each network its own address",
            ));
        }
        check_sizes(&raw)?;
        let io_engine = raw
            .io_engine
            .parse()
            .map_err(|e: String| wrong("io_engine", e, "choose one of them"))?;
        let stores = stores(&raw.data_dir, raw.stores)?;
        Ok(Self {
            zone,
            node: NodeId(raw.node),
            data_dir: raw.data_dir,
            stores,
            primary_address,
            replication_address,
            rack: rack(raw.rack)?,
            control: raw.control.iter().map(|one| endpoint(one)).collect::<Result<_, _>>()?,
            journal_bytes: raw.journal_bytes,
            capacity_bytes: raw.capacity_bytes,
            io_engine,
            readopt_window: Duration::from_secs(raw.readopt_window_seconds),
            scrub_bytes_per_second: raw.scrub_bytes_per_second,
            scrub_cycle: Duration::from_secs(raw.scrub_cycle_seconds),
            hears_first: Duration::from_secs(raw.hears_first_seconds),
        })
    }
}

/// Folder of the store within the node's folder, if no other is named.
const STORE_FOLDER: &str = "store";

/// The folders of the stores: those that are named, none of them twice.
fn stores(data_dir: &Path, named: Vec<PathBuf>) -> Result<Vec<PathBuf>, ConfigError> {
    if named.is_empty() {
        return Ok(vec![data_dir.join(STORE_FOLDER)]);
    }
    if named.len() > STORES_PER_NODE_MAX {
        let problem = format!("{} folders; a node has {STORES_PER_NODE_MAX} at most", named.len());
        return Err(wrong("stores", problem, "run a second node on this host"));
    }
    let mut seen = BTreeSet::new();
    for folder in &named {
        if folder.as_os_str().is_empty() {
            return Err(wrong("stores", "one of them is empty", "name a folder for each disk"));
        }
        // Links and dots may lead to one folder in two ways.
        let real = folder.canonicalize().unwrap_or_else(|_not_there_yet| folder.clone());
        if !seen.insert(real) {
            let problem = format!("{} is named twice", folder.display());
            return Err(wrong("stores", problem, "name each disk's folder once"));
        }
    }
    Ok(named)
}

fn rack(label: String) -> Result<String, ConfigError> {
    if is_rack_label(&label) {
        return Ok(label);
    }
    let remedy = "give it at most 64 characters of a-z A-Z 0-9 . _ -";
    Err(wrong("rack", format!("{label:?} is no label of a rack"), remedy))
}

fn check_sizes(raw: &Raw) -> Result<(), ConfigError> {
    let size = JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX;
    if !size.contains(&raw.journal_bytes) || !raw.journal_bytes.is_multiple_of(JOURNAL_BYTES_STEP) {
        return Err(wrong(
            "journal_bytes",
            format!("{} is no size of a journal", raw.journal_bytes),
            "give it 16 MiB (16777216) to 1 GiB, a multiple of 64 KiB",
        ));
    }
    if raw.capacity_bytes < CAPACITY_BYTES_MIN {
        return Err(wrong(
            "capacity_bytes",
            format!("{} is too small", raw.capacity_bytes),
            "give it 64 MiB (67108864) or more: one chunk must fit",
        ));
    }
    if raw.scrub_cycle_seconds == 0 {
        return Err(wrong(
            "scrub_cycle_seconds",
            "0 is no time",
            "give it 1 or more; scrub_bytes_per_second = 0 turns the scrub off",
        ));
    }
    if raw.hears_first_seconds > HEARS_FIRST_SECONDS_MAX {
        return Err(wrong(
            "hears_first_seconds",
            format!("{} is too long: nobody is served meanwhile", raw.hears_first_seconds),
            "give it 60 or less",
        ));
    }
    if raw.control.is_empty() {
        return Err(wrong("control", "is empty", "list the members of the zone's control plane"));
    }
    Ok(())
}

/// An address to listen on: of this host, not of all the world's.
fn address(field: &'static str, text: &str, insecure: bool) -> Result<SocketAddr, ConfigError> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| wrong(field, format!("{text:?} is no address"), "write it as ip:port"))?;
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        let remedy = "name the one address of this host that peers reach on this network";
        return Err(wrong(
            field,
            format!("{} is not an address of one host", address.ip()),
            remedy,
        ));
    }
    if !insecure && !is_private(address.ip()) {
        let remedy = "traffic is not encrypted: listen on a loopback or private address, \
                      or set insecure = true";
        return Err(wrong(field, format!("{} is a public address", address.ip()), remedy));
    }
    Ok(address)
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// `ip:port` is what peers say, `http://ip:port` what operators write; both mean the same.
pub(crate) fn endpoint(text: &str) -> Result<String, ConfigError> {
    let bare = text.strip_prefix("http://").unwrap_or(text);
    if bare.contains("://") {
        return Err(wrong("control", format!("{text:?} is not http"), "write http://ip:port"));
    }
    let named = bare.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if !named {
        return Err(wrong("control", format!("{text:?} has no port"), "write http://ip:port"));
    }
    Ok(format!("http://{bare}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        zone = "a"
        node = 3
        data_dir = "/tmp/node-3"
        primary_address = "127.1.1.3:7000"
        replication_address = "127.2.1.3:7000"
        control = ["http://127.3.1.1:7100", "127.3.1.2:7100"]
        capacity_bytes = 17179869184
    "#;

    #[test]
    fn a_plain_file_gets_the_defaults() {
        let config: Config = GOOD.parse().unwrap();
        assert_eq!(config.node, NodeId(3));
        assert_eq!(config.stores, [Path::new("/tmp/node-3/store")]);
        assert_eq!(config.rack, "");
        assert_eq!(config.clone().with_rack("r7".into()).unwrap().rack, "r7");
        assert_eq!(config.journal_bytes, 256 << 20);
        assert_eq!(config.readopt_window, Duration::from_secs(600));
        assert_eq!(config.scrub_bytes_per_second, 16 << 20);
        assert_eq!(config.scrub_cycle, Duration::from_secs(604_800));
        assert_eq!(config.hears_first, Duration::from_secs(1));
        assert_eq!(config.io_engine, EngineChoice::Auto);
        assert_eq!(config.control, ["http://127.3.1.1:7100", "http://127.3.1.2:7100"]);
    }

    #[test]
    fn every_bad_value_is_named_with_a_remedy() {
        for (from, to, field) in [
            (r#"zone = "a""#, r#"zone = "Not a zone""#, "zone"),
            ("node = 3", "node = 0", "node"),
            ("/tmp/node-3", "", "data_dir"),
            ("127.1.1.3:7000", "127.1.1.3", "primary_address"),
            ("127.1.1.3:7000", "0.0.0.0:7000", "primary_address"),
            ("127.1.1.3:7000", "8.8.8.8:7000", "primary_address"),
            ("127.2.1.3:7000", "127.1.1.3:7000", "replication_address"),
            ("http://127.3.1.1:7100", "https://127.3.1.1:7100", "control"),
            ("http://127.3.1.1:7100", "http://127.3.1.1", "control"),
            ("17179869184", "4096", "capacity_bytes"),
            ("node = 3", "node = 3\njournal_bytes = 1", "journal_bytes"),
            ("node = 3", "node = 3\nio_engine = \"magic\"", "io_engine"),
            ("node = 3", "node = 3\nstores = [\"/a\", \"\"]", "stores"),
            ("node = 3", "node = 3\nstores = [\"/a\", \"/b\", \"/a\"]", "stores"),
            ("node = 3", "node = 3\nstores = [\"/tmp\", \"/tmp/../tmp/.\"]", "stores"),
            ("node = 3", "node = 3\nscrub_cycle_seconds = 0", "scrub_cycle_seconds"),
            ("node = 3", "node = 3\nhears_first_seconds = 61", "hears_first_seconds"),
            ("node = 3", "node = 3\nrack = \"row 7\"", "rack"),
        ] {
            let text = GOOD.replace(from, to);
            match text.parse::<Config>() {
                Err(ConfigError::Field { field: named, problem, remedy }) => {
                    assert_eq!(named, field, "{problem}");
                    assert!(!problem.is_empty() && !remedy.is_empty());
                }
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_public_address_is_taken_when_the_operator_insists() {
        let text = GOOD.replace("127.1.1.3:7000", "8.8.8.8:7000") + "\ninsecure = true";
        assert!(text.parse::<Config>().is_ok());
    }

    #[test]
    fn a_key_that_is_not_known_is_refused() {
        let text = format!("{GOOD}\njurnal_bytes = 1");
        assert!(matches!(text.parse::<Config>(), Err(ConfigError::Malformed(_))));
    }
}
