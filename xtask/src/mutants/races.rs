//! The rules about threads: without one of them some order of threads must fail.

use super::Mutant;

const STORE: &[&str] = &["-p", "ashlar-node", "--test", "races"];
const GATE: &[&str] = &["-p", "ashlar-controlplane", "--test", "races"];
const ADMISSION: &[&str] = &["-p", "ashlar-node", "--lib", "admission::"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "races: whoever is about to wait looks first, under the lock that it waits with",
        file: "node/src/store/threads.rs",
        take_out: "            if state.job.is_none() && !state.finished && state.failed.is_none() {\n",
        put_in: "            if true {\n",
        tests: STORE,
    },
    Mutant {
        rule: "races: the last old read wakes the apply thread",
        file: "node/src/store/reader.rs",
        take_out: "        self.shared.apply_wake.notify();\n",
        put_in: "",
        tests: STORE,
    },
    Mutant {
        rule: "races: blocks are not overwritten while an earlier read looks at them",
        file: "node/src/store/apply.rs",
        take_out: "state.reading.get(state.parity ^ 1).is_none_or(|n| *n == 0)",
        put_in: "state.parity < 2",
        tests: STORE,
    },
    Mutant {
        rule: "races: the read thread ends after the journal has ended",
        file: "node/src/store/threads.rs",
        take_out: "    shared.apply_wake.notify();\n    shared.read_wake.notify();\n",
        put_in: "    shared.apply_wake.notify();\n",
        tests: STORE,
    },
    Mutant {
        rule: "races: mail is put in before its receiver is woken",
        file: "node/src/mailbox.rs",
        take_out: "        drop(all);\n        self.came.notify_one();\n",
        put_in: "        drop(all);\n",
        tests: STORE,
    },
    Mutant {
        rule: "races: a pass that is dropped gives its place back",
        file: "controlplane/src/region/gate.rs",
        take_out: "        inner.handle(Input::Gone { call: self.call });\n",
        put_in: "",
        tests: GATE,
    },
    Mutant {
        rule: "races: nobody is let in before the attachment is saved, whoever saves it",
        file: "node/src/admission.rs",
        take_out: "known.changes > known.saved)",
        put_in: "false)",
        tests: ADMISSION,
    },
];
