//! Where replicas go: racks, sharing nodes, room.

use super::Mutant;

const CORE: &[&str] = &["-p", "ashlar-controlplane-core", "placement::"];
const MEMBER: &[&str] = &["-p", "ashlar-controlplane", "--lib", "placement::"];
const PLACE: &str = "controlplane/core/src/place.rs";
const SHARING: &str = "controlplane/core/src/sharing.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "copies of a chunk are in different racks where labels allow",
        file: PLACE,
        take_out: "                && !(apart && chosen.racks.contains(&home.rack))\n",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "a rack is shared rather than a copy not made",
        file: PLACE,
        take_out: "!(apart && chosen.racks",
        put_in: "!((apart || !apart) && chosen.racks",
        tests: CORE,
    },
    Mutant {
        rule: "a node without a label is a rack of its own",
        file: PLACE,
        take_out: "                \"\" => number,\n",
        put_in: "                \"\" => usize::from(number > usize::MAX),\n",
        tests: CORE,
    },
    Mutant {
        rule: "a node shares chunks with few others",
        file: SHARING,
        take_out: "Bound::Group if grows => grown <= self.usual,",
        put_in: "Bound::Group if grows => true,",
        tests: CORE,
    },
    Mutant {
        rule: "no group grows beyond the bound, though a node were to stay empty",
        file: SHARING,
        take_out: "Bound::Group | Bound::Largest => grown <= self.largest_group(),",
        put_in: "Bound::Group | Bound::Largest => true,",
        tests: CORE,
    },
    Mutant {
        rule: "groups keep room for those that come later",
        file: SHARING,
        take_out: "Bound::Group if grows => grown <= self.usual,",
        put_in: "Bound::Group if grows => grown <= self.largest_group(),",
        tests: CORE,
    },
    Mutant {
        rule: "a copy is made even where the bound on sharing nodes cannot be kept",
        file: SHARING,
        take_out: "            Bound::None => true,",
        put_in: "            Bound::None => grown <= self.largest_group(),",
        tests: CORE,
    },
    Mutant {
        rule: "a replica that is away shares as others do",
        file: SHARING,
        take_out: "let others = config.replicas().filter(",
        put_in: "let others = config.in_sync.iter().copied().filter(",
        tests: CORE,
    },
    Mutant {
        rule: "what is placed and not committed yet takes its room",
        file: PLACE,
        take_out: "            one.places.iter().for_each(|place| space.claim(*place, one.bytes));\n",
        put_in: "",
        tests: CORE,
    },
    Mutant {
        rule: "what a leader has handed to Raft is counted until it is applied",
        file: "controlplane/src/member/lead.rs",
        take_out: "            lead.seen.on_placing(index, place::placing(&command.action, &self.state));\n",
        put_in: "",
        tests: MEMBER,
    },
    Mutant {
        rule: "what is applied is not counted twice",
        file: "controlplane/src/member.rs",
        take_out: "        lead.seen.on_entry_applied(position.0);\n",
        put_in: "",
        tests: MEMBER,
    },
    Mutant {
        rule: "a rack that is no label is refused",
        file: "controlplane/src/member/sessions.rs",
        take_out: "if !is_rack_label(&registration.rack) {",
        put_in: "if false && !is_rack_label(&registration.rack) {",
        tests: MEMBER,
    },
    Mutant {
        rule: "who shares a rack leaves it, not who has just come",
        file: "controlplane/core/src/balance.rs",
        take_out: "if let Some(crowding) = secondaries().filter(shares).max_by_key(fullest) {",
        put_in: "if let Some(crowding) = secondaries().filter(|_| false).max_by_key(fullest) {",
        tests: CORE,
    },
    Mutant {
        rule: "a copy moves only to a rack that has none",
        file: "controlplane/core/src/moves.rs",
        take_out: "Space::take_apart as Take",
        put_in: "Space::take_one as Take",
        tests: CORE,
    },
    Mutant {
        rule: "how long requests wait is said by the volume",
        file: "client/src/volume.rs",
        take_out: "policy: options.policy.unwrap_or(map.policy),",
        put_in: "policy: options.policy.unwrap_or_default(),",
        tests: &["-p", "ashlar-client", "--test", "volume", "time_limit"],
    },
    Mutant {
        rule: "an attachment may say otherwise",
        file: "client/src/volume.rs",
        take_out: "policy: options.policy.unwrap_or(map.policy),",
        put_in: "policy: map.policy,",
        tests: &["-p", "ashlar-client", "--test", "volume", "time_limit"],
    },
    Mutant {
        rule: "a daemon that resumes alone keeps the volume's policy",
        file: "client/src/daemon/state.rs",
        take_out: "            policy: policy(self.error_after_millis),\n",
        put_in: "            policy: policy(0),\n",
        tests: &["-p", "ashlar-client", "--lib", "an_attachment_is_found"],
    },
    Mutant {
        rule: "a fail-over is no reason for an error",
        file: "controlplane/src/member/calls.rs",
        take_out: "if millis == 0 || range.contains(&millis) {",
        put_in: "if millis == 0 || range.contains(&millis) || true {",
        tests: &["-p", "ashlar-controlplane", "--test", "zone"],
    },
];
