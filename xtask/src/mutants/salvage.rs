//! Salvage: who may take over, what must be out of the way, what is revoked.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core"];
const MEMBER: &[&str] = &["-p", "ashlar-controlplane", "--lib"];
const REGISTRATION: &[&str] = &["-p", "ashlar-node", "--test", "registration"];
const FILE: &str = "controlplane/core/src/salvage.rs";
const RESCUE: &str = "controlplane/core/src/rescue.rs";

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
    Mutant {
        rule: "a store that is gone is revoked when its chunk is salvaged",
        file: FILE,
        take_out: "for place in fenced.into_iter().chain(out_of_the_way) {",
        put_in: "for place in fenced.into_iter().chain(out_of_the_way.take(0)) {",
        tests: CORE,
    },
    Mutant {
        rule: "who is stated to be fenced must be declared dead",
        file: RESCUE,
        take_out: "judge.check_fenced()?;",
        put_in: "let _ = judge.check_fenced();",
        tests: CORE,
    },
    Mutant {
        rule: "a chunk with a living replica in sync is left alone",
        file: RESCUE,
        take_out: "left.iter().find(|replica| !self.is_dead(replica.node))",
        put_in: "left.iter().find(|_| false)",
        tests: CORE,
    },
    Mutant {
        rule: "who is away and not stated to be fenced stops a salvage",
        file: RESCUE,
        take_out: "if !left.is_empty() {",
        put_in: "if false && !left.is_empty() {",
        tests: CORE,
    },
    Mutant {
        rule: "who says itself that it is no use needs no fence",
        file: RESCUE,
        take_out: "                || says_unfit(replica))",
        put_in: "                || says_unfit(replica) && false)",
        tests: CORE,
    },
    Mutant {
        rule: "who takes over is on a node that can serve",
        file: RESCUE,
        take_out: "Some(verdict) if verdict.is_usable() => {}",
        put_in: "Some(_) => {}",
        tests: CORE,
    },
    Mutant {
        rule: "who takes over is on a store that works",
        file: RESCUE,
        take_out: "(!told).then_some(Unfit::StoreUnheard)",
        put_in: "(!told && false).then_some(Unfit::StoreUnheard)",
        tests: CORE,
    },
    Mutant {
        rule: "no node is revoked for nothing",
        file: RESCUE,
        take_out: "wish.fenced_nodes.iter().find(|node| !holds(node))",
        put_in: "wish.fenced_nodes.iter().find(|node| !holds(node) && false)",
        tests: CORE,
    },
    Mutant {
        rule: "of several the one that lost least takes over",
        file: FILE,
        take_out: "core::cmp::Reverse(one.complete_to)",
        put_in: "one.complete_to",
        tests: CORE,
    },
    Mutant {
        rule: "a node that came before its store was revoked is cut off",
        file: "controlplane/src/member/sessions.rs",
        take_out: "self.end_revoked(now, out);",
        put_in: "",
        tests: MEMBER,
    },
    Mutant {
        rule: "clients of a node that has started wait for the control plane's first word",
        file: "node/src/net/listen.rs",
        take_out: "!net.door.lets_in().await",
        put_in: "false",
        tests: REGISTRATION,
    },
    Mutant {
        rule: "a node whose store is revoked lets nobody in, however long it takes to end",
        file: "node/src/door.rs",
        take_out: "let waiting = *state == State::Waiting;",
        put_in: "let waiting = true;",
        tests: &["-p", "ashlar-node", "--lib", "door"],
    },
    Mutant {
        rule: "what is relayed for a revoked store is void",
        file: "controlplane/src/member/relay.rs",
        take_out: "record.stores.contains(&store) && self.state.check_revoked(record).is_ok()",
        put_in: "record.stores.contains(&store)",
        tests: MEMBER,
    },
    Mutant {
        rule: "a dry run of a salvage changes nothing",
        file: "controlplane/src/member/salvage.rs",
        take_out: "            let reply = v1::SalvageVolumeResponse { dry_run: true, ..planned };\n            return Ok(Step::Done(Reply::SalvageVolume(reply)));\n",
        put_in: "",
        tests: MEMBER,
    },
    Mutant {
        rule: "a node whose store is revoked ends although it serves",
        file: "node/src/control.rs",
        take_out: "if refusal.reason == Reason::StoreRevoked {",
        put_in: "if refusal.reason == Reason::StoreRevoked && !control.serves {",
        tests: REGISTRATION,
    },
    Mutant {
        rule: "a revoked store is not opened again",
        file: "node/src/stores.rs",
        take_out: "let opened = if revoked::is_marked(folder) {",
        put_in: "let opened = if revoked::is_marked(folder) && false {",
        tests: REGISTRATION,
    },
];
