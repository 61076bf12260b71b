//! The zone's nodes as this node last heard of them, kept in its folder.
//!
//! A node that starts while the control plane is down finds its peers by this and serves: no I/O
//! depends on a control plane (design.md section 2). Only a hint: who a peer really is shows in its
//! hello, what it holds in the chunk configurations. A damaged file is as good as none.

use crate::hint;
use ashlar_types::message::cluster::PeerAddress;
use ashlar_types::{NodeId, StoreId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Name of the file within the node's folder.
const NAME: &str = "peers.toml";

#[derive(Debug, Serialize, Deserialize)]
struct List {
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
    let list: Option<List> = hint::load(folder, NAME);
    list.into_iter().flat_map(|list| list.peer).filter_map(Entry::parsed).collect()
}

/// Saves the list.
///
/// # Errors
/// What the disk says; the former list is still there.
pub(crate) fn save(folder: &Path, peers: &[PeerAddress]) -> io::Result<()> {
    hint::save(folder, NAME, List { peer: peers.iter().map(Entry::from).collect() })
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
    use std::fs;

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
