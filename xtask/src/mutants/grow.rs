//! Growth of volumes: what it leaves alone, and when clients are told.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core", "grow::"];
const CLIENT: &[&str] = &["-p", "ashlar-client-core", "grow"];
const GROW: &str = "controlplane/core/src/grow.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a size is told only once every new chunk serves",
        file: "controlplane/core/src/plan.rs",
        take_out: "    let there = |volume| all_serve(state.new_configs(volume), seen);",
        put_in: "    let there = |volume| all_serve(state.told_configs(volume), seen);",
        tests: CORE,
    },
    Mutant {
        rule: "the size waits for a command of its own",
        file: GROW,
        take_out: "        if chunks.is_empty() {\n            return Ok(Answer::Volume { volume: self.resize",
        put_in: "        if chunks.len() < 9 {\n            return Ok(Answer::Volume { volume: self.resize",
        tests: CORE,
    },
    Mutant {
        rule: "a growth is not ended by what was said of another one",
        file: GROW,
        take_out: "        if self.grows_to(id) != Some(size_bytes) {\n            return;",
        put_in: "        if self.grows_to(id).is_none() {\n            return;",
        tests: CORE,
    },
    Mutant {
        rule: "a volume never shrinks",
        file: GROW,
        take_out: "        if wanted < has && wanted > 0 {",
        put_in: "        if false && wanted < has && wanted > 0 {",
        tests: CORE,
    },
    Mutant {
        rule: "new chunks come behind those that are there",
        file: GROW,
        take_out: "        let chunks: Vec<Chunk> = (had..)",
        put_in: "        let chunks: Vec<Chunk> = (0_u32..)",
        tests: CORE,
    },
    Mutant {
        rule: "one growth at a time",
        file: GROW,
        take_out: "        if let Some(size_bytes) = self.grows_to(volume.id) {",
        put_in: "        if let Some(size_bytes) = self.grows_to(volume.id).filter(|_| false) {",
        tests: CORE,
    },
    Mutant {
        rule: "who holds the last chunk has room for what more it can hold",
        file: "controlplane/core/src/place.rs",
        take_out: "        (*free < bytes).then(|| Rejected {",
        put_in: "        (false && *free < bytes).then(|| Rejected {",
        tests: CORE,
    },
    Mutant {
        rule: "a client's volume never shrinks",
        file: "client/core/src/volume.rs",
        take_out: "        let is_larger = geometry.size_bytes() > known.size_bytes();",
        put_in: "        let is_larger = true;",
        tests: CLIENT,
    },
];
