//! The states that the two networks between a primary and a secondary can be in (design.md section 5):
//! up, slow, lossy, one-way or down, each with each. One scenario for every two of them.
//!
//! Slow is twenty times what the weather has: up to 164 ms on the way. A network on which beats are
//! answered later than 450 ms after they were sent counts as down.
//!
//! | primary network | replication network | what becomes of it |
//! |---|---|---|
//! | up, slow | any | nothing: nobody is replaced, slow is not dead |
//! | lossy, one-way, down | up, slow | the pair uses the replication network and returns; nobody is replaced |
//! | lossy, one-way, down | lossy, one-way, down | the secondary may be removed, and comes back; no more than these two changes of a chunk |

use super::{Scenario, ScenarioError, text};
use std::sync::OnceLock;

/// States, and the steps that make them; of a network that is up there is nothing to make.
const STATES: [(&str, Option<&str>); 5] = [
    ("up", None),
    ("slow", Some("fault = 'slow-wires'\namount = 20")),
    ("lossy", Some("fault = 'lose-on-wires'\namount = 15")),
    ("one-way", Some("fault = 'cut'\nway = 'out'")),
    ("down", Some("fault = 'cut'")),
];

/// A state in which a pair can go on over that network.
fn carries(state: &str) -> bool {
    matches!(state, "up" | "slow")
}

fn step(network: &str, state: Option<&str>) -> String {
    let step = |made| {
        format!(
            "[[step]]\n{made}\nbusy = false\nof = 'primary'\nfrom = 'secondary'\n\
             networks = '{network}'\nfor = '8s'\n"
        )
    };
    state.map(step).unwrap_or_default()
}

fn read(
    (primary, makes_primary): (&str, Option<&str>),
    (replication, makes_replication): (&str, Option<&str>),
) -> Result<Scenario, ScenarioError> {
    let steps = step("primary", makes_primary) + &step("replication", makes_replication);
    // Gone and back again.
    let changes = if carries(primary) || carries(replication) { 0 } else { 2 };
    let text = format!(
        "about = 'Between primary and secondary: the primary network {primary}, the replication \
         network {replication}.'\nfaults = ['N18', 'N19']\nstorm = '14s'\n{steps}\
         [expect.at-most]\n\"most role changes of a chunk\" = {changes}\n"
    );
    // Made once for the life of the process, as those of files are.
    let name = Box::leak(format!("networks-{primary}-{replication}").into_boxed_str());
    text::read(name, &text)
}

/// All of them but the one in which both networks are up.
///
/// # Errors
/// If one of them cannot be read: a test holds that none is.
pub fn network_states() -> Result<&'static [Scenario], ScenarioError> {
    static ALL: OnceLock<Result<Vec<Scenario>, ScenarioError>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let each = |primary| STATES.map(move |replication| (primary, replication));
        let pairs = STATES.into_iter().flat_map(each);
        let bad = pairs.filter(|(primary, replication)| primary.1.or(replication.1).is_some());
        bad.map(|(primary, replication)| read(primary, replication)).collect()
    });
    all.as_deref().map_err(Clone::clone)
}
