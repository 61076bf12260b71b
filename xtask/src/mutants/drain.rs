//! Draining nodes: what stands against it, what moves, what leaves and when.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core", "drain::"];
const CHANGE: &str = "controlplane/core/src/change.rs";
const MOVES: &str = "controlplane/core/src/moves.rs";
const BALANCE: &str = "controlplane/core/src/balance.rs";
const DRAIN: &str = "controlplane/core/src/drain.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a replica is released only while as many as are wanted are in sync without it",
        file: CHANGE,
        take_out: "    config.in_sync.retain(|r| *r != replica);\n    if !is_whole(config, is_gone) {",
        put_in: "    config.in_sync.retain(|r| *r != replica);\n    if config.in_sync.is_empty() {",
        tests: CORE,
    },
    Mutant {
        rule: "a primary is never released",
        file: CHANGE,
        take_out: "    is_gone: &impl Fn(ReplicaId) -> bool,\n) -> Result<(), ChangeRefusal> {\n    if replica == config.primary {",
        put_in: "    is_gone: &impl Fn(ReplicaId) -> bool,\n) -> Result<(), ChangeRefusal> {\n    if false && replica == config.primary {",
        tests: CORE,
    },
    Mutant {
        rule: "a chunk has one spare at a time",
        file: CHANGE,
        take_out: "            if here > usize::from(wanted) {",
        put_in: "            if false && here > usize::from(wanted) {",
        tests: CORE,
    },
    Mutant {
        rule: "one leaves only when those that stay have said that they are in sync under this epoch",
        file: MOVES,
        take_out: "                && owns(config, **other, seen)",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "what is on the drained node leaves, not who joined last",
        file: BALANCE,
        take_out: "if let Some(drained) = nodes.iter().find(|node| state.is_draining(**node)) {",
        put_in: "if let Some(drained) = nodes.last().filter(|_| false) {",
        tests: CORE,
    },
    Mutant {
        rule: "moves begin at a bounded pace",
        file: MOVES,
        take_out: "if plan.moves >= allowed ||",
        put_in: "if false && plan.moves >= allowed ||",
        tests: CORE,
    },
    Mutant {
        rule: "a node takes part in a bounded number of moves",
        file: MOVES,
        take_out: "busy.get(&node).copied().unwrap_or(0) < MOVES_PER_NODE_MAX",
        put_in: "busy.get(&node).copied().unwrap_or(0) < usize::MAX",
        tests: CORE,
    },
    Mutant {
        rule: "copies that are missing are restored before others move",
        file: MOVES,
        take_out: "if !config.is_whole() && !away {",
        put_in: "if false && !config.is_whole() && !away {",
        tests: CORE,
    },
    Mutant {
        rule: "no move begins in a large interruption, or before a leader has listened",
        file: "controlplane/core/src/observe.rs",
        take_out: "if budget.only_urgent || now < self.move_at || !self.may_judge(now) {",
        put_in: "if now < self.move_at {",
        tests: CORE,
    },
    Mutant {
        rule: "two drains do not count on the same copy",
        file: DRAIN,
        take_out: "config.replicas().filter(|r| r.node != node && !state.is_draining(r.node)).count();",
        put_in: "config.replicas().filter(|r| r.node != node).count();",
        tests: CORE,
    },
    Mutant {
        rule: "the last home of what is drained is not drained",
        file: DRAIN,
        take_out: "    for config in state.configs() {\n        let holds",
        put_in: "    for config in state.configs_of_node(node) {\n        let holds",
        tests: CORE,
    },
    Mutant {
        rule: "the last home of a copy that is missing is not drained",
        file: DRAIN,
        take_out: "        if homes == 0 {",
        put_in: "        let drained = |r: ReplicaId| r.node == node || state.is_draining(r.node);\n        if homes == 0 || !config.replicas().any(drained) {",
        tests: CORE,
    },
    Mutant {
        rule: "a drained node takes no new replicas",
        file: "controlplane/core/src/place.rs",
        take_out: "if heard && state.is_draining(node) {",
        put_in: "if false && heard && state.is_draining(node) {",
        tests: CORE,
    },
    Mutant {
        rule: "a drained node takes no replica back that has room elsewhere",
        file: "controlplane/core/src/plan.rs",
        take_out: "if self.state.is_draining(replica.node)",
        put_in: "if false && self.state.is_draining(replica.node)",
        tests: CORE,
    },
    Mutant {
        rule: "a primary that is to leave is asked, and replaced by its agreement only",
        file: "controlplane/core/src/elect.rs",
        take_out: "Some(if agreed { Step::Elect(Evidence::Agreed { by: config.primary }) } else { Step::Ask })",
        put_in: "let by = config.primary; Some(if agreed || true { Step::Elect(Evidence::Agreed { by }) } else { Step::Ask })",
        tests: CORE,
    },
    Mutant {
        rule: "a primary is not asked to leave before its place is taken",
        file: "controlplane/core/src/elect.rs",
        take_out: "    if config.in_sync.len() <= usize::from(config.copies_wanted) {\n        return None;\n    }",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a drain that takes a chunk below copies_min is refused",
        file: DRAIN,
        take_out: "if holds && !config.is_whole() && remaining < usize::from(config.copies_min) {",
        put_in: "if false && holds && remaining < usize::from(config.copies_min) {",
        tests: CORE,
    },
    Mutant {
        rule: "a drain for which nobody has room is refused",
        file: DRAIN,
        take_out: "        for _ in 0..homes {",
        put_in: "        for _ in 0..homes.min(0) {",
        tests: CORE,
    },
];
