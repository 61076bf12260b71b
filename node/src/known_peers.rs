//! The zone's nodes as this node last heard of them, kept in its folder.
//!
//! A node that starts while the control plane is down finds its peers by this and serves: no I/O
//! depends on a control plane (design.md section 2). Only a hint: who a peer really is shows in its
//! hello, what it holds in the chunk configurations. A damaged file is as good as none.

use ashlar_types::message::cluster::PeerAddress;
use ashlar_types::{NodeId, StoreId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Name of the file within the node's folder.
const NAME: &str = "peers.toml";
/// Version of the file; another one is as good as none.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct List {
    version: u32,
    #[serde(default)]
    peer: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    node: u32,
    store: String,
    primary_address: String,
    replication_address: String,
}

/// The list as it was saved last; empty if there is none that can be used.
pub(crate) fn load(folder: &Path) -> Vec<PeerAddress> {
    let path = folder.join(NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the list of peers");
            return Vec::new();
        }
    };
    match toml::from_str::<List>(&text) {
        Ok(list) if list.version == VERSION => {
            list.peer.into_iter().filter_map(Entry::parsed).collect()
        }
        Ok(list) => {
            tracing::warn!(version = list.version, "the list of peers is of another version");
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the list of peers is damaged");
            Vec::new()
        }
    }
}

/// Saves the list; a crash leaves the former one or this one.
///
/// # Errors
/// What the disk says; the former list is still there.
pub(crate) fn save(folder: &Path, peers: &[PeerAddress]) -> io::Result<()> {
    let list = List { version: VERSION, peer: peers.iter().map(Entry::from).collect() };
    let text = toml::to_string(&list).map_err(io::Error::other)?;
    let draft = folder.join("peers.toml.new");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

impl Entry {
    fn parsed(self) -> Option<PeerAddress> {
        let store: StoreId = self.store.parse().ok()?;
        (self.node != 0).then_some(PeerAddress {
            node: NodeId(self.node),
            store,
            primary_address: self.primary_address,
            replication_address: self.replication_address,
        })
    }
}

impl From<&PeerAddress> for Entry {
    fn from(peer: &PeerAddress) -> Self {
        Self {
            node: peer.node.0,
            store: peer.store.to_string(),
            primary_address: peer.primary_address.clone(),
            replication_address: peer.replication_address.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).is_empty());
        let peers = vec![PeerAddress {
            node: NodeId(2),
            store: StoreId(77),
            primary_address: "127.1.1.2:7000".into(),
            replication_address: "127.2.1.2:7000".into(),
        }];
        save(folder.path(), &peers).unwrap();
        assert_eq!(load(folder.path()), peers);
        save(folder.path(), &[]).unwrap();
        assert!(load(folder.path()).is_empty());
        fs::write(folder.path().join(NAME), "version = 1\n[[peer]]\nno").unwrap();
        assert!(load(folder.path()).is_empty());
        fs::write(folder.path().join(NAME), "version = 2").unwrap();
        assert!(load(folder.path()).is_empty());
    }
}
