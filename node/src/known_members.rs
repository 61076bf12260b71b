//! The members of the zone's control plane as this node last heard of them, kept in its folder.
//!
//! They are dialled before those of the configuration, which may all have been replaced since it was
//! written. Only a hint: who leads is learned by asking. A damaged file is as good as none.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Name of the file within the node's folder.
const NAME: &str = "members.toml";
/// Version of the file; another one is as good as none.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct List {
    version: u32,
    addresses: Vec<String>,
}

/// The list as it was saved last, `ip:port` each; empty if there is none that can be used.
pub(crate) fn load(folder: &Path) -> Vec<String> {
    let path = folder.join(NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the list of members");
            return Vec::new();
        }
    };
    match toml::from_str::<List>(&text) {
        Ok(list) if list.version == VERSION => list.addresses,
        Ok(list) => {
            tracing::warn!(version = list.version, "the list of members is of another version");
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the list of members is damaged");
            Vec::new()
        }
    }
}

/// Saves the list; a crash leaves the former one or this one.
///
/// # Errors
/// What the disk says; the former list is still there.
pub(crate) fn save(folder: &Path, addresses: &[String]) -> io::Result<()> {
    let list = List { version: VERSION, addresses: addresses.to_vec() };
    let text = toml::to_string(&list).map_err(io::Error::other)?;
    let draft = folder.join("members.toml.new");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

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
