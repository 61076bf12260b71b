//! Rules about who may speak for an attachment: tokens, connections, sessions.

use super::Mutant;

const ADMISSION: &[&str] = &["-p", "ashlar-node", "--lib", "admission::"];
const VISITORS: &[&str] = &["-p", "ashlar-node", "--test", "visitors", "attachment"];
const TOKEN: &[&str] = &["-p", "ashlar-proto", "token::"];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a renewed token has the rights of the one it replaces",
        file: "controlplane/src/member/calls.rs",
        take_out: "self.token_for(now, volume, grant.rights)",
        put_in: "self.token_for(now, volume, Rights::ReadWrite)",
        tests: &["-p", "ashlar-controlplane", "--lib", "a_renewed_token"],
    },
    Mutant {
        rule: "a token is signed by the zone",
        file: "proto/src/token.rs",
        take_out: "self.0.verify_strict(said, &signature).map_err(|_| TokenRefusal::Signature)?;",
        put_in: "let _unchecked = signature;",
        tests: TOKEN,
    },
    Mutant {
        rule: "a token admits the attachment that it names",
        file: "node/src/admission.rs",
        take_out: "if (volume, generation) != attachment {",
        put_in: "if false {",
        tests: ADMISSION,
    },
    Mutant {
        rule: "an expired token admits nobody for the first time",
        file: "node/src/admission.rs",
        take_out: "if expires <= now {",
        put_in: "if false {",
        tests: ADMISSION,
    },
    Mutant {
        rule: "an admitted attachment outlives its token",
        file: "node/src/admission.rs",
        take_out: "if generation == newest {",
        put_in: "if false {",
        tests: ADMISSION,
    },
    Mutant {
        rule: "a later attachment that was admitted shuts the former one out",
        file: "node/src/admission.rs",
        take_out: "if generation < newest {",
        put_in: "if false {",
        tests: ADMISSION,
    },
    Mutant {
        rule: "a connection speaks for the attachment of its hello alone",
        file: "node/src/net/table.rs",
        take_out: "if !self.may_ask(message) {",
        put_in: "if false {",
        tests: VISITORS,
    },
    Mutant {
        rule: "what waits for an older session ends before a newer one is admitted",
        file: "node/core/src/machine/clients.rs",
        take_out: "primary.end_older_sessions(session, context);",
        put_in: "let _unused = (primary, &context);",
        tests: &["-p", "ashlar-node-core", "--test", "attachments"],
    },
];
