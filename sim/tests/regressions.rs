//! Seeds that failed once, with what they found. They stay for ever; what they run changes with the
//! world, what they say about it does not.

use ashlar_sim::{Options, run};
use std::time::Duration;

/// Seed, kinds of faults, milliseconds of storm, what it found.
const SEEDS: &[(u64, &str, u64, &str)] = &[
    (1, "pause-node,pause-member,pause-client", 10_000, "a late word taken for a second writer"),
    (4, "all", 10_000, "searches for a new home without end"),
    (30, "all", 10_000, "an alarm about a configuration of before"),
    (59, "all", 10_000, "an alarm about a configuration of before"),
    (76, "all", 10_000, "a write of the former client acknowledged"),
    (106, "all", 10_000, "an alarm about a configuration of before"),
    (149, "all", 10_000, "a learner added and removed ten times a second"),
    (250, "all", 10_000, "a former client that sent answered writes again"),
    (419, "all", 10_000, "a former client that sent answered writes again"),
    (626, "all", 10_000, "a former client that sent answered writes again"),
    (787, "all", 10_000, "a former client that sent answered writes again"),
    (7653, "all", 10_000, "a session number of a former client used in the next attachment"),
    (
        2130,
        "crash-node,crash-member,crash-all,isolate,cut-member",
        10_000,
        "a false alarm after a crash between two records",
    ),
    (7483, "all", 10_000, "a false alarm after a crash between two records"),
    (12966, "all", 10_000, "an exchanged disk taken for a whole copy"),
    (17284, "all", 10_000, "an exchanged disk taken for a whole copy"),
    (10590, "all", 10_000, "a disk exchanged by the word of members that lagged"),
    (14059, "all", 10_000, "a disk exchanged while the other copies were away"),
    (15546, "all", 10_000, "a session number of a former process of the client"),
    (16012, "all", 10_000, "a session number of a former process of the client"),
    (18105, "all", 10_000, "an alarm about a configuration that came too late to matter"),
    (628, "all", 10_000, "a block said to be lost that could be read a moment later"),
    (1154, "all", 10_000, "a block said to be lost that could be read a moment later"),
    (264, "all", 10_000, "an erased replica brought back by an old configuration"),
    (
        30663,
        "crash-node,crash-all,cut-nodes,isolate,cut-member,cut-members,pause-member,half-open,\
         power-off,stall-disk,short-of-space,fail-reads,fail-sync,new-disk,reattach",
        10_000,
        "an opening that read its own disk once only, with nobody else in sync",
    ),
    (
        51804,
        "all",
        10_000,
        "a swarm that took two processes behind a disk before anybody could know",
    ),
    (16, "crash-node,drain", 10_000, "the last home of what is drained, drained itself"),
    (
        145,
        "new-disk,drain",
        10_000,
        "two drains decided at once; what was on a lost disk, waited for",
    ),
    (
        208,
        "crash-node,crash-member,isolate,new-disk,drain,bad-disk",
        10_000,
        "members that started again had forgotten drains, statements, policies",
    ),
    (
        179,
        "crash-node,crash-member,cut-nodes,cut-member,cut-members,clog,power-off,slow,loss-burst,\
         fail-reads,fail-sync,reattach,drift,stall-core,drain,short-lived",
        10_000,
        "a replica that was erased came back, by a configuration that its node had never heard of",
    ),
    (
        254,
        "crash-all,isolate,cut-client,cut-members,pause-member,clog,loss-burst,stall-disk,fail-sync,\
         jump-clock,stall-core,short-lived",
        10_000,
        "a replica that was to be erased before it came, came",
    ),
    (
        3074,
        "cut-member,loss,pause-node,loss-burst,short-of-space,fail-reads,fail-sync,new-disk,\
         restart-client,jump-clock,stall-core,drain,short-lived",
        10_000,
        "the last home of a copy that was missing, drained",
    ),
    (
        1463,
        "crash-all,isolate,cut-client,cut-member,cut-members,loss,clog,slow,loss-burst,short-of-space,\
         fail-sync,jump-clock,drift,stall-core,bad-disk",
        2_500,
        "a swarm that spoiled a disk while the other copies were away",
    ),
];

#[test]
fn no_seed_that_failed_once_fails_again() {
    for (seed, kinds, storm, found) in SEEDS {
        let kinds = kinds.parse().unwrap();
        let storm = Duration::from_millis(*storm);
        let options = Options { kinds, storm, ..Options::of_many(*seed) };
        let outcome = run(options);
        let shown: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "{found}: {} --log\n{shown:#?}", options.replay_command());
    }
}
