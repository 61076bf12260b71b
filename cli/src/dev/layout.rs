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

/// Version of `cluster.toml`; a newer one is refused by name.
const CLUSTER_VERSION: u32 = 1;

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

/// What is fixed when a cluster is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    version: u32,
    /// Name of the zone.
    pub(crate) zone: String,
    /// Members of its control plane.
    pub(crate) members: Vec<MemberEntry>,
    /// Its nodes.
    pub(crate) nodes: Vec<NodeEntry>,
}

impl Cluster {
    /// Addresses of the control plane as gRPC clients take them.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}", member.address)).collect()
    }
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
    pub(crate) fn open_cluster(&self, members: u8, nodes: u8) -> Result<Cluster, Failure> {
        let what = || format!("open the cluster in {}", self.root.display());
        if let Some(cluster) =
            self.read_cluster().map_err(|error| Failure::caused_by(what(), &error))?
        {
            let kept = (cluster.members.len(), cluster.nodes.len());
            if kept != (usize::from(members), usize::from(nodes)) {
                return Err(Failure::new(Kind::Conflict, what())
                    .because(format!("it has {} members and {} nodes", kept.0, kept.1))
                    .try_next(format!(
                        "pass --members {} --nodes {}, or another --dir for a new cluster",
                        kept.0, kept.1
                    )));
            }
            return Ok(cluster);
        }
        let cluster =
            new_cluster(members, nodes).map_err(|error| Failure::caused_by(what(), &error))?;
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
        let cluster: Cluster =
            toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        if cluster.version != CLUSTER_VERSION {
            bail!(
                "{} has version {}, this build knows {CLUSTER_VERSION}",
                path.display(),
                cluster.version
            );
        }
        Ok(Some(cluster))
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

fn new_cluster(members: u8, nodes: u8) -> anyhow::Result<Cluster> {
    let mut ports = Ports::from_process();
    let mut cluster = Cluster {
        version: CLUSTER_VERSION,
        zone: "a".to_owned(),
        members: Vec::new(),
        nodes: Vec::new(),
    };
    for id in 1..=members {
        cluster.members.push(MemberEntry { id, address: ports.free(loopback(3, id))? });
    }
    for id in 1..=nodes {
        let primary = ports.free(loopback(1, id))?;
        let replication = ports.free(loopback(2, id))?;
        cluster.nodes.push(NodeEntry { id, primary, replication });
    }
    Ok(cluster)
}

/// 127.role.zone.number; the one zone of `dev` is number 1.
fn loopback(role: u8, number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, role, 1, number))
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
        let first = layout.open_cluster(3, 4).unwrap();
        let second = layout.open_cluster(3, 4).unwrap();
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!((first.members.len(), first.nodes.len()), (3, 4));
        assert_eq!(layout.open_cluster(1, 4).unwrap_err().kind(), Kind::Conflict);
        drop(lock);
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
            assert!(layout.open_cluster(3, 4).is_err());
        }
        fs::remove_dir_all(root).unwrap();
    }
}
