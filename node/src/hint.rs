//! Small files of hints in a node's folder: what it last heard of others. Replaced whole and durably;
//! one that is damaged or of another version is as good as none, because each is only a start.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Version of the files; another one is as good as none.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// Read before the content, which another version may have in another shape.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// What was saved last under a name; nothing if there is nothing that can be used.
pub(crate) fn load<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    let path = folder.join(name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read what was heard before");
            return None;
        }
    };
    match parse(&text) {
        Ok(content) => Some(content),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what was heard before is of no use");
            None
        }
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Box<dyn std::error::Error>> {
    let Version { version } = toml::from_str(text)?;
    if version != VERSION {
        return Err(format!("version {version} is not known here, {VERSION} is").into());
    }
    Ok(toml::from_str::<Versioned<T>>(text)?.content)
}

/// Saves under a name; a crash leaves the former content or this one.
///
/// # Errors
/// What the disk says; the former content is still there.
pub(crate) fn save<T: Serialize>(folder: &Path, name: &str, content: T) -> io::Result<()> {
    let versioned = Versioned { version: VERSION, content };
    let text = toml::to_string(&versioned).map_err(io::Error::other)?;
    let draft = folder.join(format!("{name}.new"));
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(name))?;
    File::open(folder)?.sync_all()
}
