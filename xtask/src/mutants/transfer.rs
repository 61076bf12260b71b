//! Rules of `ashlar volume export` and `import` and the tests that guard them.

use super::Mutant;

const UNITS: &[&str] = &["-p", "ashlar-cli"];
const PROCESSES: &[&str] = &["-p", "ashlar-tests", "--test", "transfers"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a transfer does not go on if somebody else was attached between its runs",
        file: "cli/src/transfer/right.rs",
        take_out: "(None, Some(since)) if since <= 1 => Way::Attach",
        put_in: "(None, Some(since)) if since < u64::MAX => Way::Attach",
        tests: UNITS,
    },
    Mutant {
        rule: "what a transfer left attached is taken back only if no attachment came between",
        file: "cli/src/transfer/right.rs",
        take_out: "Some(since) if since > UNNOTED_MAX => Way::Closed",
        put_in: "Some(since) if since == u64::MAX => Way::Closed",
        tests: UNITS,
    },
    Mutant {
        rule: "what an export finds in its file is believed only if its checksum is right",
        file: "cli/src/transfer/export.rs",
        take_out: "Ok(Some(piece)) if piece.crc() == done.crc => right += 1",
        put_in: "Ok(Some(_)) => right += 1",
        tests: PROCESSES,
    },
    Mutant {
        rule: "an import whose file has changed since the last run is refused",
        file: "cli/src/transfer/import.rs",
        take_out: "Some(known) if known.crc != crc =>",
        put_in: "Some(known) if known.crc != crc && known.crc == 0 =>",
        tests: PROCESSES,
    },
    Mutant {
        rule: "an exported file is read back and compared",
        file: "cli/src/transfer/export.rs",
        take_out: "if piece.crc() != *crc {",
        put_in: "if piece.crc() != *crc && crcs.is_empty() {",
        tests: UNITS,
    },
];
