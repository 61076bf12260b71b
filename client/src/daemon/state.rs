//! What an attach daemon keeps on disk, so that it resumes its own attachment without asking.
//!
//! | file | content | durable before |
//! |---|---|---|
//! | `lock` | nothing; held exclusively while the daemon lives | |
//! | `attachment.json` | client token, then volume, generation and size | the attach call; the first use |
//! | `session` | how often this attachment was opened | the first connection |
//! | `map.json` | configurations, addresses, newest token: a cache | never |
//!
//! Everything is written to a second file, synced and renamed. One daemon per folder: a second
//! one is refused by the lock.

use crate::control::{VolumeMap, policy};
use crate::task::Whereabouts;
use ashlar_client_core::WaitPolicy;
use ashlar_types::codec::{decode, encode};
use ashlar_types::{ChunkConfig, Generation, Geometry, NodeId, SessionId, VolumeId};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Version of the files; another one is refused by name.
const VERSION: u32 = 1;
/// Connections that one start of the daemon may make before the numbers of the next would begin.
const SESSIONS_PER_START: u64 = 1 << 32;

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another daemon uses the folder.
    #[error("another process has {} locked", .0.display())]
    Locked(PathBuf),
    /// The host refuses.
    #[error("cannot {what} {}: {cause}", path.display())]
    Io {
        /// Verb.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Written by another version of the program.
    #[error("{} has version {found}; this build reads version {VERSION}", path.display())]
    Version {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// An attachment as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    version: u32,
    /// What the user called the volume: id or name.
    pub(super) requested: String,
    /// Makes a repeated attach call the same attachment.
    pub(super) client_token: String,
    /// Refuse writes.
    pub(super) read_only: bool,
    /// Present once attached.
    pub(super) attached: Option<KeptAttachment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptAttachment {
    pub(super) volume: String,
    pub(super) name: String,
    pub(super) generation: u64,
    size_bytes: u64,
    chunk_bytes: u64,
    /// The volume's policy: milliseconds after which a request fails; 0: it waits for ever.
    #[serde(default)]
    error_after_millis: u64,
    token: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptMap {
    version: u32,
    generation: u64,
    /// Each configuration as it stands in frames, in hexadecimal.
    configs: Vec<String>,
    addresses: BTreeMap<u32, SocketAddr>,
    /// The attachment's newest token, in hexadecimal.
    #[serde(default)]
    token: String,
    /// Members of the control plane, once it has named them.
    #[serde(default)]
    members: Vec<String>,
}

impl Kept {
    pub(super) fn new(requested: &str, read_only: bool) -> Self {
        Self {
            version: VERSION,
            requested: requested.to_owned(),
            client_token: crate::volume::client_token(),
            read_only,
            attached: None,
        }
    }

    /// Whether this is the volume that the user names now.
    pub(super) fn is(&self, requested: &str) -> bool {
        let attached = self.attached.as_ref();
        self.requested == requested
            || attached.is_some_and(|kept| kept.volume == requested || kept.name == requested)
    }
}

impl KeptAttachment {
    pub(super) fn new(map: &VolumeMap, token: &[u8]) -> Self {
        Self {
            volume: map.volume.to_string(),
            name: map.name.clone(),
            generation: map.generation.0,
            size_bytes: map.geometry.size_bytes(),
            chunk_bytes: map.geometry.chunk_bytes(),
            error_after_millis: match map.policy {
                WaitPolicy::Wait => 0,
                WaitPolicy::EioAfter(limit) => u64::try_from(limit.as_millis()).unwrap_or(0),
            },
            token: token.to_vec(),
        }
    }

    pub(super) fn token(&self) -> Vec<u8> {
        self.token.clone()
    }

    /// Takes over a fresh token, if one was given.
    pub(super) fn renew(&mut self, token: Vec<u8>) {
        if !token.is_empty() {
            self.token = token;
        }
    }

    /// As a map without configurations.
    fn map(&self, path: &Path) -> Result<VolumeMap, StateError> {
        let damaged = |problem: String| StateError::Damaged { path: path.to_owned(), problem };
        Ok(VolumeMap {
            volume: self.volume.parse::<VolumeId>().map_err(|error| damaged(error.to_string()))?,
            name: self.name.clone(),
            geometry: Geometry::new(self.size_bytes, self.chunk_bytes)
                .map_err(|error| damaged(error.to_string()))?,
            policy: policy(self.error_after_millis),
            generation: Generation(self.generation),
            configs: Vec::new(),
            addresses: BTreeMap::new(),
            members: Vec::new(),
        })
    }
}

/// The folder of one attachment, locked.
#[derive(Debug)]
pub(super) struct State {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl State {
    /// Makes the folder if it is not there, and locks it.
    pub(super) fn open(dir: &Path) -> Result<Self, StateError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |cause| StateError::Io { what, path, cause }
        };
        std::fs::create_dir_all(dir).map_err(error("make", dir))?;
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(error("open", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StateError::Locked(dir.to_owned()))?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    pub(super) fn load(&self) -> Result<Option<Kept>, StateError> {
        load(&self.dir)
    }

    pub(super) fn save(&self, kept: &Kept) -> Result<(), StateError> {
        self.write("attachment.json", &to_json(kept))
    }

    /// The volume has grown: whoever resumes without a control plane goes on with this size.
    pub(super) fn keep_size(&self, size_bytes: u64) -> Result<(), StateError> {
        let Some(mut kept) = self.load()? else { return Ok(()) };
        match &mut kept.attached {
            Some(attached) if attached.size_bytes != size_bytes => {
                attached.size_bytes = size_bytes;
                self.save(&kept)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Forgets the attachment: it was given back, or is over.
    pub(super) fn forget(&self) -> Result<(), StateError> {
        for name in ["attachment.json", "map.json", "session"] {
            let path = self.dir.join(name);
            match std::fs::remove_file(&path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::Io { what: "remove", path, cause });
                }
                Ok(()) | Err(_) => {}
            }
        }
        self.sync_dir()
    }

    /// The numbers of this start's connections: above all that the attachment ever used.
    /// Durable on return.
    pub(super) fn next_sessions(&self) -> Result<SessionId, StateError> {
        let path = self.dir.join("session");
        let starts = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u32>().map_err(|error| StateError::Damaged {
                path: path.clone(),
                problem: error.to_string(),
            })?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => 0,
            Err(cause) => return Err(StateError::Io { what: "read", path, cause }),
        };
        let next = starts.saturating_add(1);
        self.write("session", next.to_string().as_bytes())?;
        Ok(SessionId(u64::from(next) * SESSIONS_PER_START))
    }

    pub(super) fn save_map(
        &self,
        generation: Generation,
        known: &Whereabouts,
    ) -> Result<(), StateError> {
        let map = KeptMap {
            version: VERSION,
            generation: generation.0,
            configs: known.configs.iter().map(|config| to_hex(&encode(config))).collect(),
            addresses: known.addresses.iter().map(|(node, at)| (node.0, *at)).collect(),
            token: to_hex(&known.token),
            members: known.members.clone(),
        };
        self.write("map.json", &to_json(&map))
    }

    /// The attachment as far as this folder knows it, with its newest token. A map that is missing,
    /// damaged or of another generation only means that it must be asked for.
    pub(super) fn load_map(&self, kept: &mut KeptAttachment) -> Result<VolumeMap, StateError> {
        let mut map = kept.map(&self.dir.join("attachment.json"))?;
        match self.read_map(kept.generation) {
            Ok(known) => {
                map.configs = known.configs;
                map.addresses = known.addresses;
                if !known.token.is_empty() {
                    kept.token = known.token;
                }
                map.members = known.members;
            }
            Err(problem) => tracing::info!(%problem, "no cached map"),
        }
        Ok(map)
    }

    fn read_map(&self, generation: u64) -> Result<Whereabouts, String> {
        let text = std::fs::read(self.dir.join("map.json")).map_err(|e| e.to_string())?;
        let map: KeptMap = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        if map.version != VERSION || map.generation != generation {
            return Err("of another version or generation".to_owned());
        }
        let mut configs = Vec::with_capacity(map.configs.len());
        for text in &map.configs {
            let bytes = from_hex(text).ok_or("not hexadecimal")?;
            let config: ChunkConfig = decode(&bytes).map_err(|e| e.to_string())?;
            config.check().map_err(|e| e.to_string())?;
            configs.push(config);
        }
        let addresses = map.addresses.into_iter().map(|(node, at)| (NodeId(node), at)).collect();
        let token = from_hex(&map.token).ok_or("the token is not hexadecimal")?;
        Ok(Whereabouts { configs, addresses, token, members: map.members })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let next = self.dir.join(format!("{name}.new"));
        let error = |what| {
            let path = next.clone();
            move |cause| StateError::Io { what, path, cause }
        };
        let mut file = File::create(&next).map_err(error("make"))?;
        file.write_all(bytes).map_err(error("write"))?;
        file.sync_all().map_err(error("sync"))?;
        std::fs::rename(&next, &path).map_err(error("rename"))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), StateError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|cause| StateError::Io { what: "sync", path: self.dir.clone(), cause })
    }
}

/// What a folder keeps, without locking it.
pub(super) fn load(dir: &Path) -> Result<Option<Kept>, StateError> {
    let path = dir.join("attachment.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(StateError::Io { what: "read", path, cause }),
    };
    let damaged = |error: serde_json::Error| StateError::Damaged {
        path: path.clone(),
        problem: error.to_string(),
    };
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let Head { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version != VERSION {
        return Err(StateError::Version { path, found: version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        if write!(text, "{byte:02x}").is_err() {
            text.clear();
        }
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own types: plain structures, lists, and maps with numbers as keys. They always encode.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(generation: u64) -> VolumeMap {
        VolumeMap {
            volume: "vol-a-00000000000000000000000000000007".parse().unwrap(),
            name: "demo".to_owned(),
            geometry: Geometry::new(1 << 20, 65_536).unwrap(),
            policy: WaitPolicy::EioAfter(std::time::Duration::from_secs(7)),
            generation: Generation(generation),
            configs: vec![],
            addresses: BTreeMap::new(),
            members: vec![],
        }
    }

    #[test]
    fn an_attachment_is_found_again_by_id_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.load().unwrap(), None);
        let mut kept = Kept::new("demo", false);
        kept.attached = Some(KeptAttachment::new(&map(4), b"token"));
        state.save(&kept).unwrap();
        let found = state.load().unwrap().unwrap();
        assert_eq!(found, kept);
        assert!(found.is("demo") && found.is("vol-a-00000000000000000000000000000007"));
        assert!(!found.is("other"));
        assert_eq!(state.load_map(&mut found.attached.unwrap()).unwrap(), map(4));
        state.forget().unwrap();
        assert_eq!(state.load().unwrap(), None);
    }

    #[test]
    fn session_numbers_only_go_up_and_a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = State::open(dir.path()).unwrap();
        let before = first.next_sessions().unwrap();
        assert!(matches!(State::open(dir.path()), Err(StateError::Locked(_))));
        drop(first);
        let after = State::open(dir.path()).unwrap().next_sessions().unwrap();
        assert!(after.0 >= before.0 + SESSIONS_PER_START);
    }

    #[test]
    fn the_map_is_kept_and_a_map_of_another_generation_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let address: SocketAddr = "127.1.1.1:70".parse().unwrap();
        let replica = ashlar_types::ReplicaId { node: NodeId(1), ..Default::default() };
        let config = ChunkConfig {
            chunk: ashlar_types::ChunkId {
                volume: map(4).volume,
                index: ashlar_types::ChunkIndex(0),
            },
            blocks: 16,
            epoch: ashlar_types::Epoch(2),
            elected: ashlar_types::Epoch(1),
            generation: Generation(4),
            primary: replica,
            in_sync: vec![replica],
            learners: vec![],
            stale: vec![],
            copies_wanted: 1,
            copies_min: 1,
        };
        let addresses = [(NodeId(1), address)].into();
        let token = b"newer".to_vec();
        let known = Whereabouts {
            configs: vec![config],
            addresses,
            token,
            members: vec!["127.0.0.9:7".into()],
        };
        state.save_map(Generation(4), &known).unwrap();
        let kept = |generation| KeptAttachment::new(&map(generation), b"first");
        let (mut ours, mut later) = (kept(4), kept(5));
        let found = state.load_map(&mut ours).unwrap();
        assert_eq!((found.addresses, found.configs), (known.addresses, known.configs));
        assert_eq!(found.members, known.members);
        assert_eq!(ours.token(), b"newer");
        assert!(state.load_map(&mut later).unwrap().addresses.is_empty());
        assert_eq!(later.token(), b"first");
        std::fs::write(dir.path().join("map.json"), b"{").unwrap();
        assert!(state.load_map(&mut ours).unwrap().addresses.is_empty());
    }

    #[test]
    fn a_volume_that_has_grown_is_resumed_with_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.keep_size(7).unwrap();
        assert_eq!(state.load().unwrap(), None, "nothing is attached");
        let mut kept = Kept::new("demo", false);
        kept.attached = Some(KeptAttachment::new(&map(4), b"first"));
        state.save(&kept).unwrap();
        let grown = 2 * map(4).geometry.size_bytes();
        state.keep_size(grown).unwrap();
        let mut attached = state.load().unwrap().unwrap().attached.unwrap();
        assert_eq!(state.load_map(&mut attached).unwrap().geometry.size_bytes(), grown);
    }

    #[test]
    fn damaged_and_foreign_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let path = dir.path().join("attachment.json");
        std::fs::write(&path, b"{\"version\":1}").unwrap();
        assert!(matches!(state.load(), Err(StateError::Damaged { .. })));
        std::fs::write(&path, b"{\"version\":2}").unwrap();
        assert!(matches!(state.load(), Err(StateError::Version { found: 2, .. })));
        std::fs::write(dir.path().join("session"), b"x").unwrap();
        assert!(matches!(state.next_sessions(), Err(StateError::Damaged { .. })));
    }
}
