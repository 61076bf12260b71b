//! Members of the control plane that come and go.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core"];
const RAFT: &[&str] = &["-p", "ashlar-zone-raft"];
const MEMBER: &[&str] = &["-p", "ashlar-controlplane", "--lib"];
const ZONE: &[&str] = &["-p", "ashlar-controlplane", "--test", "zone"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a member that has joined takes part only when it knows who votes",
        file: "controlplane/raft/src/storage.rs",
        take_out: "                    term: 0,\n                    vote: 0,\n                    commit: 0,\n                    base: (0, 0),\n",
        put_in: "                    term: 1,\n                    vote: 0,\n                    commit: 1,\n                    base: FIRST_BASE,\n",
        tests: RAFT,
    },
    Mutant {
        rule: "a snapshot from before a change of members is not given to a new one",
        file: "controlplane/raft/src/storage.rs",
        take_out: "&& newest.voters == self.remembered.voters\n                    && newest.learners == self.remembered.learners =>",
        put_in: "&& true =>",
        tests: RAFT,
    },
    Mutant {
        rule: "who votes outlives a crash",
        file: "controlplane/raft/src/driver.rs",
        take_out: "self.node.mut_store().set_members(voters, learners)?;",
        put_in: "let _ = (voters, learners);",
        tests: RAFT,
    },
    Mutant {
        rule: "members change one at a time",
        file: "controlplane/raft/src/driver.rs",
        take_out: "if self.node.raft.has_pending_conf() {",
        put_in: "if self.node.raft.has_pending_conf() && false {",
        tests: RAFT,
    },
    Mutant {
        rule: "no member is removed without which the others are no majority",
        file: "controlplane/raft/src/driver.rs",
        take_out: "if heard * 2 <= left.len() && !force {",
        put_in: "if false && !force {",
        tests: RAFT,
    },
    Mutant {
        rule: "the last member that votes is never removed",
        file: "controlplane/raft/src/driver.rs",
        take_out: "if left.is_empty() {",
        put_in: "if false {",
        tests: RAFT,
    },
    Mutant {
        rule: "a new member votes only when it has what is committed",
        file: "controlplane/raft/src/driver.rs",
        take_out: "progress.is_some_and(|progress| progress.matched >= committed) && self.is_heard(**id)",
        put_in: "progress.is_some()",
        tests: RAFT,
    },
    Mutant {
        rule: "a new member is a learner first",
        file: "controlplane/raft/src/message.rs",
        take_out: "Self::Add(id) => (eraft::ConfChangeType::AddLearnerNode, id),",
        put_in: "Self::Add(id) => (eraft::ConfChangeType::AddNode, id),",
        tests: RAFT,
    },
    Mutant {
        rule: "a member starts with one store only",
        file: "controlplane/core/src/members.rs",
        take_out: "Some(known) if known != store => Err(Refusal::MemberRan(member)),",
        put_in: "Some(known) if known != store && false => Err(Refusal::MemberRan(member)),",
        tests: CORE,
    },
    Mutant {
        rule: "the members that a zone began with never start empty",
        file: "controlplane/core/src/members.rs",
        take_out: "self.put_member(added(*member, address, Some(0)), changed);",
        put_in: "self.put_member(added(*member, address, None), changed);",
        tests: CORE,
    },
    Mutant {
        rule: "a removed member stays removed",
        file: "controlplane/core/src/members.rs",
        take_out: "Some(record) if record.removed => Err(Refusal::RemovedMember(member)),",
        put_in: "Some(record) if record.removed && false => Err(Refusal::RemovedMember(member)),",
        tests: CORE,
    },
    Mutant {
        rule: "a later configuration does not bring members back",
        file: "controlplane/core/src/members.rs",
        take_out: "if self.members.is_empty() {",
        put_in: "if true {",
        tests: CORE,
    },
    Mutant {
        rule: "what a removed member says counts no more",
        file: "controlplane/src/member.rs",
        take_out: "Input::Raft { peer, .. } if self.state.is_removed(peer) => {",
        put_in: "Input::Raft { peer, .. } if self.state.is_removed(peer) && false => {",
        tests: MEMBER,
    },
    Mutant {
        rule: "a removed member ends",
        file: "controlplane/src/member.rs",
        take_out: "if self.removed || self.state.is_removed(member) {",
        put_in: "if false {",
        tests: MEMBER,
    },
    Mutant {
        rule: "a member that was away learns of those that came meanwhile",
        file: "controlplane/src/member/members.rs",
        take_out: "if unknown && room && self.heard.get(&peer) != Some(&address) {",
        put_in: "if unknown && room && false {",
        tests: MEMBER,
    },
    Mutant {
        rule: "nodes are told where the members are",
        file: "controlplane/src/member/sessions.rs",
        take_out: "tell(ControlDown::Members(members.clone()));",
        put_in: "let _ = members;",
        tests: MEMBER,
    },
    Mutant {
        rule: "an add call repeated with its token adds one member",
        file: "controlplane/src/member/members.rs",
        take_out: "return Ok(Step::Done(self.added(&answer, false)));",
        put_in: "let _ = self.added(&answer, false);",
        tests: MEMBER,
    },
    Mutant {
        rule: "the first members never start empty, before the state names them",
        file: "controlplane/src/member/members.rs",
        take_out: "if self.state.members().next().is_none() && self.options.addresses.contains_key(&member) {",
        put_in: "if false {",
        tests: MEMBER,
    },
    Mutant {
        rule: "an empty log after the first start is a loss",
        file: "controlplane/src/join.rs",
        take_out: "Some(Found::Done) => return Ok(Start::Again),",
        put_in: "Some(Found::Done) => return Ok(Start::Join),",
        tests: ZONE,
    },
    Mutant {
        rule: "a member that starts again has every kind of entry",
        file: "controlplane/src/member/storage.rs",
        take_out: "    for kind in Key::KINDS {\n        pairs.extend",
        put_in: "    for kind in 1..=10 {\n        pairs.extend",
        tests: MEMBER,
    },
];
