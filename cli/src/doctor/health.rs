//! `ashlar health`: the doctor's checks of the region and its zones alone, and of these what is not ok.
//!
//! For a glance and for scripts: one word, then one line for each trouble with its stable code. What
//! concerns this host is the doctor's.

use serde::Serialize;

use super::files::Configs;
use super::{Check, Outcome, region, zone};
use crate::connect::Zone;
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show, columns};
use crate::{Global, completion, process};

/// Looks from this host, not at the zone.
const OF_THIS_HOST: &str = "ZONE_REACHED_FROM_HERE";

/// What is looked at.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this zone.
    #[arg(long, add = completion::zones())]
    zone: Option<String>,
}

#[derive(Debug, Serialize)]
struct Health {
    /// The worst of all checks.
    health: Outcome,
    /// Checks that are not ok.
    checks: Vec<Check>,
}

impl Health {
    fn of(checks: Vec<Check>) -> Self {
        let is_bad = |check: &Check| matches!(check.outcome, Outcome::Warning | Outcome::Failure);
        let checks = checks.into_iter().filter(|check| check.code != OF_THIS_HOST);
        let checks: Vec<Check> = checks.filter(is_bad).collect();
        let health = if checks.iter().any(|check| check.outcome == Outcome::Failure) {
            Outcome::Failure
        } else if checks.is_empty() {
            Outcome::Ok
        } else {
            Outcome::Warning
        };
        Self { health, checks }
    }
}

impl Show for Health {
    fn table(&self) -> String {
        if self.checks.is_empty() {
            return self.health.word().to_owned();
        }
        let rows = self.checks.iter().map(|check| {
            let outcome = check.outcome.word().to_owned();
            [outcome, check.code.to_owned(), check.about.clone(), check.found.clone()]
        });
        let table = columns(["OUTCOME", "CHECK", "OF", "FOUND"], rows);
        format!("{}\n{table}", self.health.word())
    }
}

/// Prints what is not ok.
///
/// # Errors
/// When something is wrong now, or nobody can be asked.
pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let control = Zone::find(global)?;
    let answers = region::ask(&control, arguments.zone.as_deref(), global);
    let mut checks = region::checks(&answers);
    checks.extend(zone::checks(&answers, &Configs::default()));
    let health = Health::of(checks);
    output.show(&health)?;
    if health.health == Outcome::Failure {
        return Err(Failure::new(Kind::Error, "the region is not well")
            .try_next("ashlar doctor says what to do"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_that_of_the_worst_check_and_shows_only_what_is_not_ok() {
        let fine = Check::ok("A", "zone a", "fine");
        let odd = Check::warning("B", "zone a", "odd", "straighten it");
        let gone = Check::failure("C", "zone a", "gone", "bring it back");
        let here = Check::failure(OF_THIS_HOST, "zone a", "refused", "open the way");
        let of = |checks: &[&Check]| Health::of(checks.iter().map(|c| (*c).clone()).collect());
        assert_eq!(of(&[&fine, &here]).table(), "ok");
        let warning = of(&[&fine, &odd]);
        assert_eq!((warning.health, warning.checks.len()), (Outcome::Warning, 1));
        assert!(of(&[&odd, &gone]).table().starts_with("failure\nOUTCOME"));
    }
}
