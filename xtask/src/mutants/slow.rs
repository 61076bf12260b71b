//! Replicas that all others wait for, what ends with a replica, and rules of fills.

use super::Mutant;
use super::node::NODE_RULES;

const SLOW: &str = "node/core/src/primary/slow.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a slow secondary stays when too few would remain",
        file: SLOW,
        take_out: "if config.in_sync.len() <= usize::from(config.copies_min) {",
        put_in: "if config.in_sync.is_empty() {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "nobody is called slow when several lag",
        file: SLOW,
        take_out: "[replica] if !lag.own && config.is_in_sync(*replica) => {",
        put_in: "[replica, ..] if config.is_in_sync(*replica) => {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an opening does not wait for a disk that answers nothing",
        file: SLOW,
        take_out: "Phase::Unfit => None,",
        put_in: "Phase::Unfit | Phase::Collecting { .. } | Phase::Fetching { .. } => None,",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a member that is asked for its history may wait for a lease to run out",
        file: SLOW,
        take_out: "lag(self.opening_since, slow + grant, unwritten,",
        put_in: "lag(self.opening_since, slow, unwritten,",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a disk that owes a read for long counts as slow where nobody writes",
        file: SLOW,
        take_out: "let since = self.reads.oldest_owed()?;",
        put_in: "let since = self.reads.oldest_owed().filter(|_| false)?;",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an opening that begins anew takes nothing over twice",
        file: "node/core/src/durable.rs",
        take_out: "if !self.uncommitted.contains(entry) {",
        put_in: "if !self.uncommitted.is_empty() || self.uncommitted.is_empty() {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "what is erased uses up none of the node's budgets, and its clients are told",
        file: "node/core/src/machine/holding.rs",
        take_out: "self.with_replica(now, chunk, out, last_words);",
        put_in: "let _unused = (now, last_words);",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a learner that was promoted keeps nothing of its fill",
        file: "node/core/src/replica/mod.rs",
        take_out: "if !matches!(self.role, Role::Member(_)) || is_filled {",
        put_in: "if !matches!(self.role, Role::Member(_)) || (is_filled && false) {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a volume that left makes room for others among the admitted",
        file: "node/src/admission.rs",
        take_out: "let forgotten = known.admitted.remove(&volume).is_some();",
        put_in: "let forgotten = volume.uuid == 0;",
        tests: &["-p", "ashlar-node", "--lib", "admission::"],
    },
    Mutant {
        rule: "a promotion is on stable media before it is proposed",
        file: "node/core/src/primary/fill.rs",
        take_out: "context.effect(Effect::Control(ControlUp::Propose(vec![proposal])));",
        put_in: "context.out.push(Effect::Control(ControlUp::Propose(vec![proposal])));",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a committed mark counts under the adopted epoch only",
        file: "node/core/src/replica/member.rs",
        take_out: "if epoch == self.durable.config.epoch && lsn.term == self.durable.term {",
        put_in: "if epoch.0 > 0 && lsn.term == self.durable.term {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "nobody but the primary of the epoch writes to its members",
        file: "node/core/src/replica/member.rs",
        take_out: "epoch < config.epoch || from != config.primary.node",
        put_in: "epoch < config.epoch",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a fill that was meant for an earlier process of the learner is refused",
        file: "node/core/src/replica/member.rs",
        take_out: "if learner_start != context.me.start {",
        put_in: "if learner_start.0 == 0 {",
        tests: NODE_RULES,
    },
];
