//! Opens the stores of a node: each folder is one disk.
//!
//! Whatever is wrong with who a store belongs to is refused by name, before the node says a word: a
//! store of another node or zone, one that another process has open, two folders with one id (a disk
//! was copied). A disk that cannot be read is not: its replicas are gone, the node starts with the
//! others and says so. Nor is a store opened that the zone has revoked. Without any the node does not
//! start.
//!
//! The process has one start number, above all that any of its stores has seen, and durable in each
//! before anything is said under it: terms, leases and fills are told apart by it.

use crate::config::Config;
use crate::hint;
use crate::mailbox::Mailbox;
use crate::revoked;
use crate::server::{RunError, Twins};
use crate::store::{Events, OpenError, Opened, Owner, Store, StoreOptions};
use ashlar_env::dice::SeededDice;
use ashlar_env::disk::DiskError;
use ashlar_types::StartNumber;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Name of the file with the last start number, in the node's folder.
const LAST: &str = "start.toml";

#[derive(Debug, Serialize, Deserialize)]
struct Last {
    start: u64,
}

/// Opens all of them; each with its number in the mailbox.
pub(crate) fn open_all(
    config: &Config,
    mailbox: &Arc<Mailbox>,
) -> Result<Vec<(usize, Opened)>, RunError> {
    std::fs::create_dir_all(&config.data_dir)?;
    // Stores that are not there now may have seen later starts than those that are.
    let last: Option<Last> = hint::load(&config.data_dir, LAST);
    let mut floor = StartNumber(last.map_or(0, |last| last.start));
    loop {
        let opened = open_each(config, mailbox, floor)?;
        let starts = || opened.iter().map(|(_, opened)| opened.start);
        let highest = starts().max().unwrap_or_default();
        if starts().all(|start| start == highest) {
            if let Err(error) = hint::save(&config.data_dir, LAST, Last { start: highest.0 }) {
                tracing::warn!(%error, "the number of this start could not be saved");
            }
            return Ok(opened);
        }
        // One of them has been away, or is new. All of them go above what each has seen.
        floor = highest;
    }
}

fn open_each(
    config: &Config,
    mailbox: &Arc<Mailbox>,
    floor: StartNumber,
) -> Result<Vec<(usize, Opened)>, RunError> {
    let mut all: Vec<(usize, Opened)> = Vec::new();
    let mut failed = None;
    for (number, folder) in config.stores.iter().enumerate() {
        let opened = if revoked::is_marked(folder) {
            Err(RunError::Revoked { folder: shown(folder) })
        } else {
            open(config, folder, (number, mailbox), floor)
                .map_err(|cause| RunError::Store { folder: shown(folder), cause })
        };
        let error = match opened {
            Ok(opened) => {
                if let Some((other, _)) = all.iter().find(|(_, known)| known.id == opened.id) {
                    let other = config.stores.get(*other).map(|path| shown(path));
                    let (store, one) = (opened.id, other.unwrap_or_default());
                    let twins = Twins { store, one, other: shown(folder) };
                    return Err(RunError::SameStore(Box::new(twins)));
                }
                all.push((number, opened));
                continue;
            }
            Err(error) => error,
        };
        if !is_left_out(&error) || config.stores.len() == 1 {
            return Err(error);
        }
        tracing::error!(%error, "the node starts without a store; its replicas there are gone");
        failed = Some(error);
    }
    match (all.is_empty(), failed) {
        (true, Some(error)) => Err(error),
        _some => Ok(all),
    }
}

/// Whether the others go on without it: the disk is at fault, and not who wants it, or it is revoked.
fn is_left_out(error: &RunError) -> bool {
    if let RunError::Revoked { .. } = error {
        return true;
    }
    let RunError::Store { cause: OpenError::Disk(cause), .. } = error else { return false };
    matches!(cause, DiskError::Io { .. } | DiskError::NoSpace { .. } | DiskError::PastEnd { .. })
}

fn open(
    config: &Config,
    folder: &Path,
    (number, mailbox): (usize, &Arc<Mailbox>),
    floor: StartNumber,
) -> Result<Opened, OpenError> {
    let options = StoreOptions {
        journal_bytes: config.journal_bytes,
        capacity_bytes: config.capacity_bytes,
        engine: config.io_engine,
        start_above: floor,
    };
    let owner = Owner { zone: config.zone, node: config.node };
    let mailbox = Arc::clone(mailbox);
    let events: Events = Arc::new(move |event| mailbox.put(number, event));
    Store::open_folder(folder, options, owner, &mut SeededDice::system(), events)
}

fn shown(folder: &Path) -> String {
    folder.display().to_string()
}
