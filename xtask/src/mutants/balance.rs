//! Balance: what moves from full nodes to empty ones, and what stands against it.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core", "balance::"];
const BALANCE: &str = "controlplane/core/src/balance.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a move goes from a node that is fuller to one that ends no fuller than the other",
        file: BALANCE,
        take_out: "        gives.ppm() > takes.ppm().saturating_add(GAP_MIN)\n",
        put_in: "        bytes > 0 || gives.ppm() > takes.ppm().saturating_add(GAP_MIN)\n",
        tests: CORE,
    },
    Mutant {
        rule: "nodes that differ by a tenth at most are left alone",
        file: BALANCE,
        take_out: "let is_unequal = look.expected.spread(&look.nodes) > SPREAD_MAX;",
        put_in: "let is_unequal = true;",
        tests: CORE,
    },
    Mutant {
        rule: "nothing moves for balance while a copy is missing anywhere",
        file: BALANCE,
        take_out: "        && state.configs_short().next().is_none()",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "nothing moves for balance while searches are bounded",
        file: BALANCE,
        take_out: "    search == SearchBudget::FULL\n",
        put_in: "    !search.only_urgent\n",
        tests: CORE,
    },
    Mutant {
        rule: "nothing moves for balance while a drained node holds anything",
        file: BALANCE,
        take_out: "        && state.draining().all(|record| state.replicas_on(record.node) == 0)",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "what is on its way through Raft is waited for",
        file: BALANCE,
        take_out: "        && seen.placing().next().is_none()",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a bounded number of moves is under way in a zone",
        file: BALANCE,
        take_out: "let places = BALANCE_MOVES_MAX.saturating_sub(under_way(state));",
        put_in: "let places = usize::MAX;",
        tests: CORE,
    },
    Mutant {
        rule: "a node takes part in a bounded number of moves for balance",
        file: BALANCE,
        take_out: "busy.get(&node).copied().unwrap_or(0) < MOVES_PER_NODE_MAX;",
        put_in: "busy.get(&node).copied().unwrap_or(0) < usize::MAX;",
        tests: CORE,
    },
    Mutant {
        rule: "moves under way are counted as done",
        file: BALANCE,
        take_out: "let expected = promised.expected(state);",
        put_in: "let expected = promised.clone();",
        tests: CORE,
    },
    Mutant {
        rule: "a slow node neither gives nor takes",
        file: BALANCE,
        take_out: "            && !slow.contains(node)",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a node that is not up neither gives nor takes",
        file: BALANCE,
        take_out: "        verdicts.get(node).is_some_and(Verdict::is_usable)\n            && heard(*node)",
        put_in: "        heard(*node)",
        tests: CORE,
    },
    Mutant {
        rule: "no chunk moves that has a copy on a node that takes no part",
        file: BALANCE,
        take_out: "            && config.in_sync.iter().all(|replica| takes_part(replica.node))",
        put_in: "            && takes_part(config.primary.node) | true",
        tests: CORE,
    },
    Mutant {
        rule: "one of two in a rack leaves before all others, so that racks stay apart",
        file: BALANCE,
        take_out: "if let Some(crowding) = secondaries().filter(shares).max_by_key(fullest) {",
        put_in: "if let Some(crowding) = secondaries().filter(shares).find(|_| false) {",
        tests: CORE,
    },
    Mutant {
        rule: "whoever stands on the fullest node leaves",
        file: BALANCE,
        take_out: "    let leaver = secondaries().max_by_key(fullest)?;",
        put_in: "    let leaver = secondaries().last()?;",
        tests: CORE,
    },
    Mutant {
        rule: "a primary that outweighs all others leaves in the end",
        file: BALANCE,
        take_out: "    Some(if outweighs { primary } else { *leaver })",
        put_in: "    Some(if outweighs && false { primary } else { *leaver })",
        tests: CORE,
    },
];
