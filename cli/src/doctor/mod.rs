//! `ashlar doctor`: looks at this host, at configuration files, at every zone and at what is attached
//! here, and says of each thing whether it is as it should be, and what to do if it is not.
//!
//! Only looks: nothing is changed, but for a small file that is written into a store's folder and
//! taken away again to time the disk. A check that cannot be made here says why it was skipped. What
//! counts as a failure is wrong now; a warning is a risk, or a state that heals by itself.

use std::path::PathBuf;

use serde::Serialize;

use crate::connect::Zone;
use crate::failure::{Failure, Kind};
use crate::render::{Output, Show, columns};
use crate::{Global, completion, dev, process};

mod attachments;
mod disks;
mod files;
pub(crate) mod health;
mod host;
mod networks;
mod region;
mod zone;

/// What is looked at.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration of a node or of a member on this host; several times for several (default:
    /// those of the `dev` cluster, if commands are about that one).
    #[arg(long = "config", value_name = "FILE")]
    configs: Vec<PathBuf>,
    /// Only this zone.
    #[arg(long, add = completion::zones())]
    zone: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok,
    Warning,
    Failure,
    /// It could not be made.
    Skipped,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failure => "failure",
            Outcome::Skipped => "skipped",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Stable name of the check.
    code: &'static str,
    /// What was looked at: the host, a file, a zone, a volume.
    about: String,
    outcome: Outcome,
    /// What was found, or why it was skipped.
    found: String,
    /// What to do; absent where nothing needs to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn new(code: &'static str, about: &str, outcome: Outcome, found: impl Into<String>) -> Self {
        Self { code, about: about.to_owned(), outcome, found: found.into(), remedy: None }
    }

    pub(crate) fn ok(code: &'static str, about: &str, found: impl Into<String>) -> Self {
        Self::new(code, about, Outcome::Ok, found)
    }

    pub(crate) fn skipped(code: &'static str, about: &str, why: impl Into<String>) -> Self {
        Self::new(code, about, Outcome::Skipped, why)
    }

    pub(crate) fn warning(
        code: &'static str,
        about: &str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { remedy, ..Self::new(code, about, Outcome::Warning, found) }
    }

    pub(crate) fn failure(
        code: &'static str,
        about: &str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { remedy, ..Self::new(code, about, Outcome::Failure, found) }
    }

    #[cfg(test)]
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
struct Report {
    ok: usize,
    warnings: usize,
    failures: usize,
    skipped: usize,
    checks: Vec<Check>,
}

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
        Self {
            ok: count(Outcome::Ok),
            warnings: count(Outcome::Warning),
            failures: count(Outcome::Failure),
            skipped: count(Outcome::Skipped),
            checks,
        }
    }
}

impl Show for Report {
    fn table(&self) -> String {
        let rows = self.checks.iter().map(|check| {
            [
                check.outcome.word().to_owned(),
                check.code.to_owned(),
                check.about.clone(),
                check.found.clone(),
            ]
        });
        let mut parts = vec![columns(["OUTCOME", "CHECK", "OF", "FOUND"], rows), String::new()];
        for check in &self.checks {
            if let Some(remedy) = &check.remedy {
                parts.push(format!("{} of {}: {remedy}", check.code, check.about));
            }
        }
        parts.push(format!(
            "{} checks: {} ok, {} warnings, {} failures, {} skipped",
            self.checks.len(),
            self.ok,
            self.warnings,
            self.failures,
            self.skipped
        ));
        parts.join("\n")
    }
}

/// Makes all checks and prints them.
///
/// # Errors
/// When one of them failed.
pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let mut checks = host::checks();
    let found = match arguments.configs.as_slice() {
        [] => dev::config_files(global),
        named => named.to_vec(),
    };
    let configs = files::read(&found, &mut checks);
    checks.extend(files::checks(&configs));
    checks.extend(networks::checks(&configs));
    checks.extend(disks::checks(&configs));
    match Zone::find(global) {
        Ok(control) => {
            let answers = region::ask(&control, arguments.zone.as_deref(), global);
            checks.extend(region::checks(&answers));
            checks.extend(zone::checks(&answers, &configs));
        }
        Err(failure) => {
            checks.push(Check::skipped("REGION_ANSWERS", "region", failure.why_in_one_line()));
        }
    }
    checks.extend(attachments::checks(global));
    let report = Report::of(checks);
    output.show(&report)?;
    if report.failures == 0 {
        return Ok(());
    }
    let failed = report.checks.iter().filter(|check| check.outcome == Outcome::Failure);
    let failed = failed.map(|check| format!("{} of {}", check.code, check.about));
    Err(Failure::new(Kind::Error, format!("{} checks failed", report.failures))
        .because(failed.collect::<Vec<_>>().join(", "))
        .try_next("what stands behind each of them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_and_names_remedies_below() {
        let checks = vec![
            Check::ok("A", "host", "fine"),
            Check::warning("B", "host", "odd", "straighten it"),
            Check::failure("C", "zone a", "gone", "bring it back"),
            Check::skipped("D", "zone a", "nobody to ask"),
        ];
        let report = Report::of(checks);
        let counts = [report.ok, report.warnings, report.failures, report.skipped];
        assert_eq!(counts, [1, 1, 1, 1]);
        let table = report.table();
        assert!(
            table.contains("B of host: straighten it\nC of zone a: bring it back\n"),
            "{table}"
        );
        assert!(table.ends_with("4 checks: 1 ok, 1 warnings, 1 failures, 1 skipped"), "{table}");
    }
}
