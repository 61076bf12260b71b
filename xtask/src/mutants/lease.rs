//! Rules of read leases and the tests that guard them.

use super::Mutant;
use super::node::NODE_RULES;

const LEASE: &str = "node/core/src/lease.rs";
const BEATS: &str = "node/core/src/beats.rs";
const STALLED: &[&str] = &["-p", "ashlar-node-core", "--test", "beats"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a granter whose clock runs ahead covers nothing",
        file: "node/core/src/lease.rs",
        take_out: "self.drifts.get(&peer).is_none_or(|drift| drift.is_trusted(now))",
        put_in: "true",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a lease ends for its holder, counted from the sending of the beat",
        file: LEASE,
        take_out: "&& now < held.until",
        put_in: "",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "only the reply to a beat that was sent renews a lease",
        file: BEATS,
        take_out: "self.sent.iter().find(|(sent, _)| *sent == number)",
        put_in: "self.sent.back()",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a lease covers only what the same process of the granter acknowledged",
        file: LEASE,
        take_out: "held.start == start",
        put_in: "held.start >= start",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a lease does not cover an excepted chunk",
        file: LEASE,
        take_out: "&& held.except.get(&chunk).is_none_or(|except| *except <= epoch)",
        put_in: "",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an exception stays until the holder has adopted its epoch",
        file: BEATS,
        take_out: "is_some_and(|except| epoch >= except)",
        put_in: "is_some()",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a holder settles an exception only by adopting its epoch",
        file: LEASE,
        take_out: "(known >= *epoch).then_some((*chunk, known))",
        put_in: "Some((*chunk, known.max(*epoch)))",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an adoption is confirmed only when the grants without the exception have run out",
        file: "node/core/src/replica/member.rs",
        take_out: "if !self.lease_wait.is_over(context.now) {",
        put_in: "if false {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a new primary waits for the lease that its own node gave",
        file: "node/core/src/primary/opening.rs",
        take_out: "if !self.lease_wait.is_over(context.now) {",
        put_in: "if false {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "after a restart a whole grant is waited for",
        file: "node/core/src/replica/mod.rs",
        take_out: "let opened = durable.last.term.elected >= durable.config.elected;",
        put_in: "let opened = true;",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "a chunk that is taken from a holder is excepted from its lease",
        file: "node/core/src/replica/mod.rs",
        take_out: "if former != config.primary.node && former != context.me.node {",
        put_in: "if false {",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "the lease is looked at after the content was read",
        file: "node/core/src/primary/read.rs",
        take_out: "let leased = self.is_leased(durable, context);\n        let proven",
        put_in: "let leased = self.reads.asked == 0;\n        let proven",
        tests: NODE_RULES,
    },
    Mutant {
        rule: "an adoption is confirmed only when the order to stop granting is in force",
        file: LEASE,
        take_out: "self.order.is_none() && now >= self.until",
        put_in: "now >= self.until",
        tests: STALLED,
    },
    Mutant {
        rule: "the order to stop granting that is waited for is the last one",
        file: LEASE,
        take_out: "if self.order.is_some_and(|order| order <= number) {",
        put_in: "if self.order.is_some() {",
        tests: STALLED,
    },
    Mutant {
        rule: "an order to stop granting names the end of the grants before it",
        file: BEATS,
        take_out: "let until = given.until.max(self.started + self.timing.lease_granted);",
        put_in: "let until = self.started + self.timing.lease_granted;",
        tests: STALLED,
    },
    Mutant {
        rule: "a thread that beats does not prove that the node serves",
        file: BEATS,
        take_out: "let at = now - Duration::from_millis(behind_millis.into());",
        put_in: "let at = now - Duration::from_millis(u64::from(behind_millis) / 1_000_000);",
        tests: STALLED,
    },
    Mutant {
        rule: "an answer to a beat proves nothing of the data core",
        file: "node/core/src/machine.rs",
        take_out: "self.peers.answered(at, node, network);",
        put_in: "self.peers.answered(at, node, network);\n                self.peers.heard(at, node, network);",
        tests: STALLED,
    },
    Mutant {
        rule: "exceptions that are too many for one answer leave nothing granted",
        file: BEATS,
        take_out: "let granted = given.except.len() <= EXCEPTIONS_MAX;",
        put_in: "let granted = true;",
        tests: STALLED,
    },
    Mutant {
        rule: "what was erased vouches for nobody",
        file: "node/core/src/replica/mod.rs",
        take_out: "context.leases.except(config.primary.node, config.chunk, next, context.out);",
        put_in: "let _unused = next;",
        tests: NODE_RULES,
    },
];
