//! Rules of the client's core and the tests that guard them.

use super::Mutant;

const CLIENT_RULES: &[&str] = &["-p", "ashlar-client-core"];
const CLIENT_ENDS: &[&str] = &["-p", "ashlar-client", "--test", "volume", "force"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "an NBD request with a flag that nobody knows is refused",
        file: "client/core/src/nbd_wire/transmission.rs",
        take_out: "len == 0 || flags & !FLAGS_KNOWN != 0 ||",
        put_in: "len == 0 ||",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "a write waits behind an earlier overlapping one that waits itself",
        file: "client/core/src/order.rs",
        take_out: "self.meets_active(range) || self.waiting.iter().any(|(_, w)| w.overlaps(range))",
        put_in: "self.meets_active(range)",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "two overlapping writes are never in flight",
        file: "client/core/src/order.rs",
        take_out: "&& !self.meets_active(w)",
        put_in: "&& true",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "an answer to a number that was retired means nothing",
        file: "client/core/src/reply.rs",
        take_out: "(node == from && session == on && id == request).then_some(slot)",
        put_in: "(node == from && session == on).then_some(slot)",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "the newest epoch wins, whatever its source",
        file: "client/core/src/route.rs",
        take_out: "self.epoch_of(config.chunk.index) >= Some(config.epoch)",
        put_in: "false",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "what is in flight at a primary that stays is not sent twice",
        file: "client/core/src/route.rs",
        take_out: "Some(node) != primary",
        put_in: "primary.is_some()",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "a newer generation ends everything for good",
        file: "client/core/src/reply.rs",
        take_out: "Refusal::WrongGeneration { current } if current > ours => {",
        put_in: "Refusal::WrongGeneration { current } if current > current => {",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "a flush waits for every write submitted before it",
        file: "client/core/src/volume.rs",
        take_out: "if number > oldest {",
        put_in: "if false {",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "requests in flight on a connection are bounded",
        file: "client/core/src/route.rs",
        take_out: "while node.in_flight < PARTS_PER_CONNECTION_MAX {",
        put_in: "loop {",
        tests: CLIENT_RULES,
    },
    Mutant {
        rule: "an end by force is fenced before it is said to be done",
        file: "client/src/daemon/end.rs",
        take_out: "if let Err(error) = fenced {",
        put_in: "if let (Err(error), true) = (fenced, false) {",
        tests: CLIENT_ENDS,
    },
    Mutant {
        rule: "a plain end gives nothing up that waits",
        file: "client/src/daemon/end.rs",
        take_out: "if let Err(waits) = self.wait_carried_out().await {",
        put_in: "if let (Err(waits), true) = (self.wait_carried_out().await, false) {",
        tests: CLIENT_ENDS,
    },
];
