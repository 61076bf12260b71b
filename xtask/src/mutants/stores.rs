//! The rules about nodes with several stores.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-node-core", "--test", "stores"];
const CONTROL: &[&str] = &["-p", "ashlar-controlplane-core", "stores"];
const LIVE: &[&str] = &["-p", "ashlar-node", "--test", "stores"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "what a replica says waits for the journal of its own store",
        file: "node/core/src/context.rs",
        take_out: "            gate: &mut part.gate,\n",
        put_in: "            gate: alloc::boxed::Box::leak(alloc::boxed::Box::default()),\n",
        tests: CORE,
    },
    Mutant {
        rule: "a store that has failed acknowledges nothing more",
        file: "node/core/src/machine/holding.rs",
        take_out: "        self.stores.remove(store);\n",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "replicas of a failed store take no part any more",
        file: "node/core/src/machine/holding.rs",
        take_out: "let Some(ended) = self.replicas.remove(&chunk) else { return };",
        put_in: "let Some(ended) = self.replicas.get(&chunk) else { return };",
        tests: CORE,
    },
    Mutant {
        rule: "what a replica on a failed store has refused stays refused",
        file: "node/core/src/machine/holding.rs",
        take_out: "note_erased(&mut self.erased, chunk, ended.durable.refused_once_erased());",
        put_in: "let _ = &ended;",
        tests: CORE,
    },
    Mutant {
        rule: "the primary of a replica hears at once that its store has failed",
        file: "node/core/src/replica/mod.rs",
        take_out: "            let refusal = PeerRefusal::NotHeld;\n            context.mirror_eagerly(primary.node, DataMessage::PeerRefused { chunk, refusal });\n",
        put_in: "            let _ = chunk;\n",
        tests: CORE,
    },
    Mutant {
        rule: "a replica that comes to another store is erased from the former one",
        file: "node/core/src/machine/holding.rs",
        take_out: "        self.leave_other_store(chunk, named, out);\n",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "of two replicas of a chunk the later configuration keeps one",
        file: "node/core/src/found.rs",
        take_out: "let latest = if one.config.epoch >= other.config.epoch { one } else { other };",
        put_in: "let latest = one;",
        tests: CORE,
    },
    Mutant {
        rule: "a replica that is given up at a start is erased",
        file: "node/core/src/found.rs",
        take_out: "        self.left_over.push((chunk, store));\n        note_erased",
        put_in: "        let _ = store;\n        note_erased",
        tests: CORE,
    },
    Mutant {
        rule: "gaps are those of one store",
        file: "node/core/src/machine/holding.rs",
        take_out: "self.stores.get(named.store).is_some_and(|part| part.has_gaps)",
        put_in: "self.stores.iter().any(|part| part.has_gaps)",
        tests: CORE,
    },
    Mutant {
        rule: "no node has two replicas of a chunk, whatever its stores",
        file: "controlplane/core/src/place.rs",
        take_out: "let mut tried = chosen.homes.clone();",
        put_in: "let mut tried: Vec<usize> = Vec::new();",
        tests: &["-p", "ashlar-controlplane-core", "placement::"],
    },
    Mutant {
        rule: "replicas of a store that its node comes without are gone",
        file: "controlplane/core/src/state.rs",
        take_out: "self.nodes.get(&replica.node).is_some_and(|node| !node.has_store_of(replica))",
        put_in: "self.nodes.get(&replica.node).is_some_and(|_| false)",
        tests: CONTROL,
    },
    Mutant {
        rule: "nothing is placed on a store that its node does not have",
        file: "controlplane/core/src/change.rs",
        take_out: "if !known.ok_or(ChangeRefusal::UnknownNode)?.has_store_of(replica) {",
        put_in: "if known.ok_or(ChangeRefusal::UnknownNode)?.stores.is_empty() {",
        tests: CONTROL,
    },
    Mutant {
        rule: "a node that loses a store introduces itself without it",
        file: "node/src/task.rs",
        take_out: "self.living.send_replace(ids);",
        put_in: "let _: Vec<StoreId> = ids;",
        tests: LIVE,
    },
    Mutant {
        rule: "two folders with one store id are refused",
        file: "node/src/stores.rs",
        take_out: "all.iter().find(|(_, known)| known.id == opened.id)",
        put_in: "all.iter().find(|(_, known)| known.id == opened.id && false)",
        tests: LIVE,
    },
    Mutant {
        rule: "a chunk whose stores are gone is stuck, though its nodes are up",
        file: "controlplane/core/src/describe.rs",
        take_out: "    if state.is_store_gone(primary) {\n",
        put_in: "    if false {\n",
        tests: CONTROL,
    },
];
