//! The rules about damage: the store's own, and those of replicas that it cannot vouch for.

use super::Mutant;

const STORE: &[&str] = &["-p", "ashlar-node", "--lib", "store::"];
const CORE: &[&str] = &["-p", "ashlar-node-core"];
const CONTROL: &[&str] = &["-p", "ashlar-controlplane-core"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a gap in the journal makes every replica suspect",
        file: "node/src/store/open.rs",
        take_out: "    if end.has_gap {\n",
        put_in: "    if false && end.has_gap {\n",
        tests: STORE,
    },
    Mutant {
        rule: "damaged blocks in the journal make their replica suspect",
        file: "node/src/store/open.rs",
        take_out: "self.damaged.insert(record.chunk());",
        put_in: "",
        tests: STORE,
    },
    Mutant {
        rule: "doubt is durable before what shows the damage is wiped",
        file: "node/src/store/open.rs",
        take_out: "    superblock.doubt = doubt;\n",
        put_in: "",
        tests: STORE,
    },
    Mutant {
        rule: "a lost page of the map makes its owner suspect",
        file: "node/src/store/map.rs",
        take_out: "rot::judge(lacking, &loading.rotten, &mut loading.doubt);",
        put_in: "",
        tests: STORE,
    },
    Mutant {
        rule: "a lost page that nobody is proven to own makes all suspect",
        file: "node/src/store/rot.rs",
        take_out: "Some((_, None)) | None => doubt.add_all(),",
        put_in: "Some((_, None)) | None => {}",
        tests: STORE,
    },
    Mutant {
        rule: "a suspect replica has no role but its own",
        file: "node/core/src/replica/mod.rs",
        take_out: "        if self.durable.suspect {\n            self.step_down",
        put_in: "        if false {\n            self.step_down",
        tests: CORE,
    },
    Mutant {
        rule: "a suspect replica answers nothing but that it is not held",
        file: "node/core/src/replica/member.rs",
        take_out: "if self.durable.suspect {",
        put_in: "if false {",
        tests: CORE,
    },
    Mutant {
        rule: "only a later incarnation takes a replica's place",
        file: "node/core/src/replica/suspect.rs",
        take_out: "named.incarnation > self.durable.replica.incarnation",
        put_in: "true",
        tests: CORE,
    },
    Mutant {
        rule: "only a learner takes a replica's place",
        file: "node/core/src/replica/suspect.rs",
        take_out: "            && config.is_learner(named)\n",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a store with gaps does not take itself for an empty member in sync",
        file: "node/core/src/machine.rs",
        take_out: "let may_be_lost = self.has_gaps && !config.is_learner(named);",
        put_in: "let may_be_lost = false && self.has_gaps && !config.is_learner(named);",
        tests: CORE,
    },
    Mutant {
        rule: "a secondary that lacks what it acknowledged is removed",
        file: "node/core/src/primary/mod.rs",
        take_out: "follower.says_gone |= context.now.since(since) >= context.timing.stall;",
        put_in: "let _ = since;",
        tests: CORE,
    },
    Mutant {
        rule: "what a secondary lacks is not judged by one refusal that was overtaken",
        file: "node/core/src/primary/write.rs",
        take_out: "follower.lacks_since = None;",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "with gaps a replica in sync from nothing is marked at the next start",
        file: "node/src/store/doubt.rs",
        take_out: "doubted || (self.has_gaps && in_sync && replica.last == Lsn::ZERO)",
        put_in: "doubted || (false && in_sync && replica.last == Lsn::ZERO)",
        tests: STORE,
    },
    Mutant {
        rule: "a suspect replica comes back as another incarnation",
        file: "controlplane/core/src/change.rs",
        take_out: "    if remembered.1.suspect {\n",
        put_in: "    if false && remembered.1.suspect {\n",
        tests: CONTROL,
    },
    Mutant {
        rule: "a replica whose filling was given up is suspect",
        file: "controlplane/core/src/change.rs",
        take_out: "StaleInfo { suspect: true, ..info }",
        put_in: "info",
        tests: CONTROL,
    },
    Mutant {
        rule: "no write gets a position while a block is repaired",
        file: "node/core/src/primary/write.rs",
        take_out: "            && !self.repairs.hold()\n",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a member is asked for content only when everything assigned is committed",
        file: "node/core/src/primary/repair.rs",
        take_out: "        if self.committed != at {\n",
        put_in: "        if false {\n",
        tests: CORE,
    },
    Mutant {
        rule: "recalled content counts for its own position only",
        file: "node/core/src/primary/repair.rs",
        take_out: "asked.source == from && asked.at == at && durable.last == at",
        put_in: "asked.source == from",
        tests: CORE,
    },
    Mutant {
        rule: "a member gives content exactly at the position asked for",
        file: "node/core/src/replica/member.rs",
        take_out: "!config.is_in_sync(self.durable.replica) || self.durable.last != at",
        put_in: "!config.is_in_sync(self.durable.replica)",
        tests: CORE,
    },
    Mutant {
        rule: "a learner is no source of a repair",
        file: "node/core/src/replica/member.rs",
        take_out: "!config.is_in_sync(self.durable.replica) || self.durable.last != at",
        put_in: "self.durable.last != at",
        tests: CORE,
    },
    Mutant {
        rule: "what nobody can read is an error",
        file: "node/core/src/primary/repair.rs",
        take_out: "for (connection, id) in self.reads.fail_over(range) {",
        put_in: "for (connection, id) in self.reads.fail_over(BlockRange::new(0, 0)) {",
        tests: CORE,
    },
];
