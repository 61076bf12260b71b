//! Where `ashlar dev` keeps a cluster, and what makes it the same cluster next time.
//!
//! ```text
//! <dir>/lock            held while a `dev` runs here: one at a time
//!       cluster.toml    addresses and sizes, chosen once (this file's `Cluster`)
//!       config/*.toml   what each process was started with; written anew at each start
//!       data/<process>/ the data of each member and node
//!       attach/<volume>/ what each attach daemon keeps
//!       log/<process>.log
//!       run/<process>.pid, run/demo.sock
//!       hold/<process>  stopped by `dev stop`: not started again until `dev start`
//!       mnt/demo        where the demo volume is mounted
//! ```
//!
//! A process is called `node-1` or `member-1` in a cluster of one zone, and `a-node-1` or `b-member-2`
//! in a cluster of several.
//!
//! Addresses are loopback addresses, one per process and role, so that cutting an address cuts one
//! network of one process: control 127.3.zone.member, primary 127.1.zone.node, replication
//! 127.2.zone.node. Ports are chosen once, below the range the host hands to outgoing connections.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Kind};

/// Version of `cluster.toml`; a newer one is refused by name. Version 1 had one zone.
const CLUSTER_VERSION: u32 = 2;

/// Names of the zones, in order.
const ZONE_NAMES: [&str; 3] = ["a", "b", "c"];

/// Zones of a new cluster (design.md section 14).
const ZONES_DEFAULT: u8 = 3;

/// Members of each zone of a new cluster.
const MEMBERS_DEFAULT: u8 = 3;

/// Nodes of each zone of a new cluster.
const NODES_DEFAULT: u8 = 4;

/// Longest path of a unix socket (108 bytes with its terminating zero, unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Ports are looked for from here upward ...
const PORT_FIRST: u16 = 10_240;

/// ... to here, where Linux starts to hand out ports to outgoing connections.
const PORT_LAST: u16 = 32_000;

/// A member of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberEntry {
    /// From 1.
    pub(crate) id: u8,
    /// Where it serves gRPC.
    pub(crate) address: SocketAddr,
}

/// A storage node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeEntry {
    /// From 1.
    pub(crate) id: u8,
    /// Listener on the primary network.
    pub(crate) primary: SocketAddr,
    /// Listener on the replication network.
    pub(crate) replication: SocketAddr,
}

/// A zone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ZoneEntry {
    /// Its name.
    pub(crate) name: String,
    /// Members of its control plane.
    pub(crate) members: Vec<MemberEntry>,
    /// Its nodes.
    pub(crate) nodes: Vec<NodeEntry>,
    /// What the names of its processes begin with: nothing in a cluster of one zone.
    #[serde(skip)]
    prefix: String,
}

impl ZoneEntry {
    /// Addresses of its control plane as gRPC clients take them.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}", member.address)).collect()
    }

    /// Name of a member's process.
    pub(crate) fn member_name(&self, member: &MemberEntry) -> String {
        format!("{}member-{}", self.prefix, member.id)
    }

    /// Name of a node's process.
    pub(crate) fn node_name(&self, node: &NodeEntry) -> String {
        format!("{}node-{}", self.prefix, node.id)
    }
}

/// What is fixed when a cluster is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    version: u32,
    /// Its zones; never empty.
    pub(crate) zones: Vec<ZoneEntry>,
}

/// What makes a cluster another one; `None`: as it is, or the default for a new one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Zones.
    pub(crate) zones: Option<u8>,
    /// Members of each zone's control plane.
    pub(crate) members: Option<u8>,
    /// Nodes of each zone.
    pub(crate) nodes: Option<u8>,
}

impl Cluster {
    fn of(zones: Vec<ZoneEntry>) -> Self {
        let mut cluster = Self { version: CLUSTER_VERSION, zones };
        if cluster.zones.len() > 1 {
            for zone in &mut cluster.zones {
                zone.prefix = format!("{}-", zone.name);
            }
        }
        cluster
    }

    /// Addresses of all control planes as gRPC clients take them, the first zone's first.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.zones.iter().flat_map(ZoneEntry::endpoints).collect()
    }

    /// Zones, members and nodes of each.
    pub(crate) fn sizes(&self) -> [usize; 3] {
        let first = self.zones.first();
        [
            self.zones.len(),
            first.map_or(0, |zone| zone.members.len()),
            first.map_or(0, |zone| zone.nodes.len()),
        ]
    }
}

/// Only what tells which version a file has.
#[derive(Debug, Deserialize)]
struct Versioned {
    version: u32,
}

/// A cluster as version 1 kept it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneZone {
    #[serde(rename = "version")]
    _version: u32,
    zone: String,
    members: Vec<MemberEntry>,
    nodes: Vec<NodeEntry>,
}

/// The folder of one `dev` cluster.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// Holds the folder for this process; dropped, or with the process, it is free again.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl Layout {
    /// The cluster folder at `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Makes the folders and takes the lock.
    ///
    /// # Errors
    /// A conflict when another `dev` holds the folder; otherwise what the host refused.
    pub(crate) fn lock(&self) -> Result<FolderLock, Failure> {
        let what = format!("use {} for a cluster", self.root.display());
        let longest = self.attachments().join("demo").join("control.sock");
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Failure::new(Kind::Usage, what)
                .because(format!(
                    "its sockets would have longer paths than a host allows ({} bytes)",
                    SOCKET_PATH_BYTES_MAX
                ))
                .try_next("name a folder with a shorter path by --dir"));
        }
        let failed = |error: std::io::Error| Failure::new(Kind::Error, what.clone()).because(error);
        for folder in ["config", "data", "log", "run", "hold"] {
            fs::create_dir_all(self.root.join(folder)).map_err(failed)?;
        }
        let path = self.root.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(Kind::Conflict, what)
                    .because("another `ashlar dev` is running in this folder")
                    .try_next("stop it with Ctrl-C, or give this one its own --dir"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(FolderLock { _file: file })
    }

    /// Whether a `dev` runs in this folder.
    pub(crate) fn is_held(&self) -> bool {
        File::open(self.root.join("lock"))
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The cluster kept here, or a new one of the given size.
    ///
    /// # Errors
    /// A conflict when the folder holds a cluster of another size.
    pub(crate) fn open_cluster(&self, sizes: Sizes) -> Result<Cluster, Failure> {
        let what = || format!("open the cluster in {}", self.root.display());
        if let Some(cluster) =
            self.read_cluster().map_err(|error| Failure::caused_by(what(), &error))?
        {
            let kept = cluster.sizes();
            let wanted = [sizes.zones, sizes.members, sizes.nodes];
            let differs = kept
                .iter()
                .zip(wanted)
                .any(|(kept, wanted)| wanted.is_some_and(|wanted| usize::from(wanted) != *kept));
            if differs {
                let [zones, members, nodes] = kept;
                return Err(Failure::new(Kind::Conflict, what())
                    .because(format!(
                        "it has {zones} zones with {members} members and {nodes} nodes each"
                    ))
                    .try_next("pass no sizes to run it, or another --dir for a new cluster"));
            }
            return Ok(cluster);
        }
        let cluster = new_cluster(sizes).map_err(|error| Failure::caused_by(what(), &error))?;
        self.write_cluster(&cluster).map_err(|error| Failure::caused_by(what(), &error))?;
        Ok(cluster)
    }

    /// The cluster kept here, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of a newer version.
    pub(crate) fn read_cluster(&self) -> anyhow::Result<Option<Cluster>> {
        let path = self.root.join("cluster.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let parsed = || format!("parse {}", path.display());
        let Versioned { version } = toml::from_str(&text).with_context(parsed)?;
        let zones = match version {
            1 => {
                let OneZone { zone, members, nodes, .. } =
                    toml::from_str(&text).with_context(parsed)?;
                vec![ZoneEntry { name: zone, members, nodes, prefix: String::new() }]
            }
            CLUSTER_VERSION => toml::from_str::<Cluster>(&text).with_context(parsed)?.zones,
            newer => {
                bail!("{} has version {newer}, this build knows {CLUSTER_VERSION}", path.display())
            }
        };
        if zones.is_empty() {
            bail!("{} names no zone", path.display());
        }
        Ok(Some(Cluster::of(zones)))
    }

    fn write_cluster(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let text = toml::to_string(cluster).context("render cluster.toml")?;
        // Renamed into place, so that a crash leaves either no cluster or a whole one.
        let draft = self.root.join("cluster.toml.new");
        let mut file = File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, self.root.join("cluster.toml")).context("write cluster.toml")
    }

    /// Configuration file of a process.
    pub(crate) fn config(&self, process: &str) -> PathBuf {
        self.root.join("config").join(format!("{process}.toml"))
    }

    /// Data folder of a process.
    pub(crate) fn data(&self, process: &str) -> PathBuf {
        self.root.join("data").join(process)
    }

    /// Log file of a process.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.root.join("log").join(format!("{process}.log"))
    }

    /// File with the number of a running process.
    pub(crate) fn pid(&self, process: &str) -> PathBuf {
        self.root.join("run").join(format!("{process}.pid"))
    }

    /// While this file is there, the process is not started again.
    pub(crate) fn hold(&self, process: &str) -> PathBuf {
        self.root.join("hold").join(process)
    }

    /// The socket that exports a volume as NBD.
    pub(crate) fn socket(&self, volume: &str) -> PathBuf {
        self.root.join("run").join(format!("{volume}.sock"))
    }

    /// Where a volume is mounted.
    pub(crate) fn mount_point(&self, volume: &str) -> PathBuf {
        self.root.join("mnt").join(volume)
    }

    /// Written once all members and nodes were up for the first time. From then on a member whose
    /// folder is empty has lost something and must not vote.
    pub(crate) fn formed(&self) -> PathBuf {
        self.root.join("formed")
    }

    /// Where attachments are kept.
    pub(crate) fn attachments(&self) -> PathBuf {
        self.root.join("attach")
    }

    /// Names of all processes that ever ran here: each one has written to its log.
    pub(crate) fn processes(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join("log")) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".log").map(str::to_owned))
            .collect();
        names.sort_unstable();
        names
    }

    /// Numbers of all running processes.
    pub(crate) fn running(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.root.join("run")) else { return Vec::new() };
        entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
            .collect()
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

fn new_cluster(sizes: Sizes) -> anyhow::Result<Cluster> {
    let mut ports = Ports::from_process();
    let mut zones = Vec::new();
    let count = usize::from(sizes.zones.unwrap_or(ZONES_DEFAULT));
    for (zone, name) in (1..).zip(ZONE_NAMES).take(count) {
        let mut entry = ZoneEntry {
            name: name.to_owned(),
            members: Vec::new(),
            nodes: Vec::new(),
            prefix: String::new(),
        };
        for id in 1..=sizes.members.unwrap_or(MEMBERS_DEFAULT) {
            let address = ports.free(loopback(3, zone, id))?;
            entry.members.push(MemberEntry { id, address });
        }
        for id in 1..=sizes.nodes.unwrap_or(NODES_DEFAULT) {
            let primary = ports.free(loopback(1, zone, id))?;
            let replication = ports.free(loopback(2, zone, id))?;
            entry.nodes.push(NodeEntry { id, primary, replication });
        }
        zones.push(entry);
    }
    Ok(Cluster::of(zones))
}

/// 127.role.zone.number; zones are numbered from 1.
fn loopback(role: u8, zone: u8, number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, role, zone, number))
}

/// Looks for free ports. Several clusters on one host share the addresses, so each starts its
/// search elsewhere.
struct Ports {
    next: u16,
}

impl Ports {
    fn from_process() -> Self {
        let span = u32::from(PORT_LAST - PORT_FIRST);
        // Spreads consecutive process numbers over the span.
        let offset = std::process::id().wrapping_mul(2_654_435_761) % span;
        Self { next: PORT_FIRST + u16::try_from(offset).unwrap_or(0) }
    }

    fn free(&mut self, address: IpAddr) -> anyhow::Result<SocketAddr> {
        for _ in PORT_FIRST..PORT_LAST {
            let candidate = SocketAddr::new(address, self.next);
            self.next = if self.next + 1 >= PORT_LAST { PORT_FIRST } else { self.next + 1 };
            if TcpListener::bind(candidate).is_ok() {
                return Ok(candidate);
            }
        }
        bail!("no free port on {address}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ashlar-layout-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_second_run_finds_the_same_cluster() {
        let root = folder("same");
        let layout = Layout::new(&root);
        let lock = layout.lock().unwrap();
        let first = layout.open_cluster(NO_SIZES).unwrap();
        let second = layout.open_cluster(NO_SIZES).unwrap();
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!(first.sizes(), [3, 3, 4]);
        let b = &first.zones[1];
        assert_eq!((b.member_name(&b.members[0]), b.node_name(&b.nodes[3])), names("b-"));
        let other = Sizes { members: Some(1), ..NO_SIZES };
        assert_eq!(layout.open_cluster(other).unwrap_err().kind(), Kind::Conflict);
        drop(lock);
        fs::remove_dir_all(root).unwrap();
    }

    const NO_SIZES: Sizes = Sizes { zones: None, members: None, nodes: None };

    fn names(prefix: &str) -> (String, String) {
        (format!("{prefix}member-1"), format!("{prefix}node-4"))
    }

    #[test]
    fn a_cluster_of_one_zone_keeps_its_names_whichever_version_wrote_it() {
        let root = folder("one");
        let layout = Layout::new(&root);
        let _lock = layout.lock().unwrap();
        let one = Sizes { zones: Some(1), ..NO_SIZES };
        let zone = layout.open_cluster(one).unwrap().zones.remove(0);
        assert_eq!((zone.member_name(&zone.members[0]), zone.node_name(&zone.nodes[3])), names(""));
        let old = "version = 1\nzone = \"a\"\n[[members]]\nid = 1\naddress = \"127.3.1.1:1\"\n\
                   [[nodes]]\nid = 1\nprimary = \"127.1.1.1:1\"\nreplication = \"127.2.1.1:1\"\n";
        fs::write(root.join("cluster.toml"), old).unwrap();
        let zone = layout.open_cluster(NO_SIZES).unwrap().zones.remove(0);
        assert_eq!(zone.member_name(&zone.members[0]), "member-1");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_folder_too_deep_for_sockets_is_refused_before_anything_is_made() {
        let root = folder(&"deep".repeat(25));
        assert_eq!(Layout::new(&root).lock().unwrap_err().kind(), Kind::Usage);
        assert!(!root.exists());
    }

    #[test]
    fn a_held_folder_is_refused_until_it_is_free() {
        let root = folder("held");
        let layout = Layout::new(&root);
        let lock = layout.lock().unwrap();
        assert_eq!(layout.lock().unwrap_err().kind(), Kind::Conflict);
        assert!(layout.is_held());
        drop(lock);
        assert!(!layout.is_held());
        assert!(layout.lock().is_ok());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_newer_or_damaged_cluster_file_is_refused() {
        let root = folder("newer");
        let layout = Layout::new(&root);
        let _lock = layout.lock().unwrap();
        for text in ["version = 9\nzone = \"a\"\nmembers = []\nnodes = []\n", "not toml at all ["] {
            fs::write(root.join("cluster.toml"), text).unwrap();
            assert!(layout.open_cluster(NO_SIZES).is_err());
        }
        fs::remove_dir_all(root).unwrap();
    }
}
