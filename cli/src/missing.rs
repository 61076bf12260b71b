//! Zones that did not answer a command about several: named below what the others said.

use ashlar_proto::v1;
use serde::Serialize;

/// A zone whose part is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MissingZone {
    pub(crate) zone: String,
    pub(crate) cause: String,
}

impl MissingZone {
    /// The zone in a sentence.
    pub(crate) fn sentence(&self) -> String {
        format!("zone {} is missing: {}", self.zone, self.cause)
    }
}

/// Adds those that are not listed yet.
pub(crate) fn add(listed: &mut Vec<MissingZone>, more: &[v1::UnreachableZone]) {
    for missing in more {
        if listed.iter().all(|known| known.zone != missing.zone) {
            listed.push(MissingZone { zone: missing.zone.clone(), cause: missing.cause.clone() });
        }
    }
}

/// A table with a line for each of them below.
pub(crate) fn below(table: String, missing: &[MissingZone]) -> String {
    missing.iter().fold(table, |text, zone| format!("{text}\n{}", zone.sentence()))
}

/// Says on standard error whom an answer does not speak for.
pub(crate) fn warn(missing: &[v1::UnreachableZone]) {
    let mut zones = Vec::new();
    add(&mut zones, missing);
    for zone in zones {
        crate::failure::warn(&zone.sentence());
    }
}
