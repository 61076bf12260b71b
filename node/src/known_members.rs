//! The members of the zone's control plane as this node last heard of them, kept in its folder.
//!
//! They are dialled before those of the configuration, which may all have been replaced since it was
//! written. Only a hint: who leads is learned by asking. A damaged file is as good as none.

use crate::hint;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Name of the file within the node's folder.
const NAME: &str = "members.toml";

#[derive(Debug, Serialize, Deserialize)]
struct List {
    addresses: Vec<String>,
}

/// The list as it was saved last, `ip:port` each; empty if there is none that can be used.
pub(crate) fn load(folder: &Path) -> Vec<String> {
    hint::load(folder, NAME).map_or_else(Vec::new, |list: List| list.addresses)
}

/// Saves the list.
///
/// # Errors
/// What the disk says; the former list is still there.
pub(crate) fn save(folder: &Path, addresses: &[String]) -> io::Result<()> {
    hint::save(folder, NAME, List { addresses: addresses.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_list_comes_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).is_empty());
        let members = vec!["127.0.0.1:1".to_owned(), "127.0.0.2:1".to_owned()];
        save(folder.path(), &members).unwrap();
        assert_eq!(load(folder.path()), members);
        fs::write(folder.path().join(NAME), "version = 1\nno").unwrap();
        assert!(load(folder.path()).is_empty());
        fs::write(folder.path().join(NAME), "version = 2\naddresses = []").unwrap();
        assert!(load(folder.path()).is_empty());
    }
}
