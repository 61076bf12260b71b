//! Salvage: who may take over, what must be out of the way, what is revoked.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core"];
const FILE: &str = "controlplane/core/src/salvage.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a salvage needs every replica that was in sync out of the way",
        file: FILE,
        take_out: "if let Some(replica) = old.in_sync.iter().find(may_serve) {",
        put_in: "if let Some(replica) = old.in_sync.iter().find(may_serve).filter(|_| false) {",
        tests: CORE,
    },
    Mutant {
        rule: "only a stale replica is salvaged",
        file: FILE,
        take_out: "known.ok_or(SalvageRefusal::NotStale { node })?;",
        put_in: "known.or(config.stale.first()).ok_or(SalvageRefusal::NotStale { node })?;",
        tests: CORE,
    },
    Mutant {
        rule: "a suspect replica is not salvaged",
        file: FILE,
        take_out: "if info.suspect {",
        put_in: "if false && info.suspect {",
        tests: CORE,
    },
    Mutant {
        rule: "a replica whose store is revoked or gone is not salvaged",
        file: FILE,
        take_out: "if self.is_out_of_the_way(replica, fenced) {",
        put_in: "if false && self.is_out_of_the_way(replica, fenced) {",
        tests: CORE,
    },
    Mutant {
        rule: "a salvage is a compare-and-set on the epoch",
        file: FILE,
        take_out: "if wanted.epoch != old.epoch {",
        put_in: "if false && wanted.epoch != old.epoch {",
        tests: CORE,
    },
    Mutant {
        rule: "a salvage raises the generation and ends the attachment",
        file: FILE,
        take_out: "let answer = self.raise_generation(*id, None, changed)?;",
        put_in: "let answer = Answer::Volume { volume: volume.clone() };",
        tests: CORE,
    },
    Mutant {
        rule: "a fenced store is revoked for ever",
        file: FILE,
        take_out: "self.revoked.insert(place);",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a revoked store is not admitted",
        file: "controlplane/core/src/apply.rs",
        take_out: "self.check_revoked(node)?;",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a replica that was in sync before a salvage is suspect after it",
        file: FILE,
        take_out: "StaleInfo { last_in_sync: old.epoch, suspect: true }",
        put_in: "StaleInfo { last_in_sync: old.epoch, suspect: false }",
        tests: CORE,
    },
    Mutant {
        rule: "what a salvage may have lost is on record",
        file: FILE,
        take_out: "changed.insert(Key::Salvaged(id));\n        self.put_chunk",
        put_in: "self.salvaged.remove(&id);\n        self.put_chunk",
        tests: CORE,
    },
];
