//! Stores that the zone has revoked: a salvage went on without them (docs/decisions/0011).
//!
//! A primary that is alone in sync needs nobody's consent to serve, and does so from its start on. So a
//! process that is told that one of its stores is revoked ends at once, and leaves a mark in the
//! folder of that store: with it the store is not opened again, on whatever node. Whoever empties the
//! folder takes the mark away with what must not be served.

use ashlar_types::StoreId;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Name of the mark within a store's folder. That it is there is what counts.
const NAME: &str = "revoked";

/// Whether the store in this folder was revoked.
pub(crate) fn is_marked(folder: &Path) -> bool {
    // A folder that cannot be looked at gives no store either.
    fs::exists(folder.join(NAME)).unwrap_or(false)
}

/// Marks the store in this folder for good.
///
/// # Errors
/// What the disk says.
pub(crate) fn mark(folder: &Path, store: StoreId) -> io::Result<()> {
    let mut file = File::create(folder.join(NAME))?;
    writeln!(file, "store {store} was revoked by its zone: a salvage went on without it")?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}
