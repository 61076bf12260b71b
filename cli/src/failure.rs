//! What a failed command tells its user, and the exit code it ends with.
//!
//! A failure says what failed, why, and what to do next. Exit codes are an interface: scripts
//! branch on them, so a kind keeps its number for ever.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::render::Format;

/// Kinds of failure, each with its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Anything without a kind of its own.
    Error,
    /// The command line or its input is wrong.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// The state of what was named forbids it.
    Conflict,
    /// Refused to protect the service; try later.
    Throttled,
    /// Nobody could answer.
    Unavailable,
    /// No answer within the deadline.
    Timeout,
}

impl Kind {
    /// Every kind, in order of exit code.
    pub(crate) const ALL: [Kind; 7] = [
        Kind::Error,
        Kind::Usage,
        Kind::NotFound,
        Kind::Conflict,
        Kind::Throttled,
        Kind::Unavailable,
        Kind::Timeout,
    ];

    /// What it tells a script.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Kind::Error => "failed, for a cause that has no code of its own",
            Kind::Usage => "the command line, or a file that it names, is wrong",
            Kind::NotFound => "what was named does not exist",
            Kind::Conflict => "the state of what was named forbids it",
            Kind::Throttled => "refused to protect the service, or no room: later, or less",
            Kind::Unavailable => "nobody could answer: later",
            Kind::Timeout => "no answer in time; a change may have happened",
        }
    }

    /// The process's exit code.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Kind::Error => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Conflict => 4,
            Kind::Throttled => 5,
            Kind::Unavailable => 6,
            Kind::Timeout => 7,
        }
    }

    /// The kind with this exit code, as the registry of the API's errors gives them.
    pub(crate) fn from_exit_code(code: u8) -> Self {
        match code {
            2 => Kind::Usage,
            3 => Kind::NotFound,
            4 => Kind::Conflict,
            5 => Kind::Throttled,
            6 => Kind::Unavailable,
            7 => Kind::Timeout,
            _ => Kind::Error,
        }
    }
}

/// What `--help` says below the commands.
pub(crate) fn exit_codes() -> String {
    let codes =
        Kind::ALL.iter().map(|kind| format!("\n  {}  {}", kind.exit_code(), kind.meaning()));
    format!("Exit codes:\n  0  done{}", codes.collect::<String>())
}

/// A failed command.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    kind: Kind,
    /// Stable code of the cause, if a service gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What was being done, and what went wrong.
    what: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Failure {
    /// A failure of the given kind.
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, reason: None, what: what.into(), why: Vec::new(), next: None }
    }

    /// A failure with the chain of causes of `error` as its why.
    pub(crate) fn caused_by(what: impl Into<String>, error: &anyhow::Error) -> Self {
        let mut failure = Self::new(Kind::Error, what);
        failure.why = error.chain().map(ToString::to_string).collect();
        failure
    }

    /// Names the service's stable code of the cause.
    pub(crate) fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Adds one cause.
    pub(crate) fn because(mut self, why: impl std::fmt::Display) -> Self {
        self.why.push(why.to_string());
        self
    }

    /// Says what the user can do.
    pub(crate) fn try_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Why, for callers that go on and name it.
    pub(crate) fn why_in_one_line(&self) -> String {
        self.why.first().cloned().unwrap_or_else(|| self.what.clone())
    }

    /// The innermost cause, for callers that go on and name it.
    pub(crate) fn last_why(&self) -> String {
        self.why.last().cloned().unwrap_or_else(|| self.what.clone())
    }

    /// The kind, for callers that go on after some failures.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Prints to standard error and gives the exit code. In the machine formats it is one line of
    /// JSON, so that a script parses one thing whatever happens.
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        let text = match format {
            Format::Table => self.to_string(),
            Format::Json | Format::Yaml => {
                serde_json::json!({ "error": self, "exit_code": self.kind.exit_code() }).to_string()
            }
        };
        // Nothing can be reported when standard error itself is gone.
        drop(writeln!(std::io::stderr(), "{text}"));
        ExitCode::from(self.kind.exit_code())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(reason) = &self.reason {
            write!(f, " [{reason}]")?;
        }
        for why in &self.why {
            write!(f, "\n  why: {why}")?;
        }
        if let Some(next) = &self.next {
            write!(f, "\n  try: {next}")?;
        }
        Ok(())
    }
}

/// Says something beside the result, on standard error.
pub(crate) fn warn(line: &str) {
    // Nothing can be said when standard error itself is gone.
    drop(writeln!(std::io::stderr(), "warning: {line}"));
}

/// Prints what clap found wrong, or the help or version it was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    drop(error.print());
    if error.use_stderr() { ExitCode::from(Kind::Usage.exit_code()) } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_never_change() {
        let codes = [
            (Kind::Error, 1),
            (Kind::Usage, 2),
            (Kind::NotFound, 3),
            (Kind::Conflict, 4),
            (Kind::Throttled, 5),
            (Kind::Unavailable, 6),
            (Kind::Timeout, 7),
        ];
        for (kind, code) in codes {
            assert_eq!(kind.exit_code(), code);
            assert_eq!(Kind::from_exit_code(code), kind);
        }
        assert_eq!(Kind::ALL, codes.map(|(kind, _)| kind));
        assert!(exit_codes().ends_with("\n  7  no answer in time; a change may have happened"));
    }

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let failure = Failure::new(Kind::NotFound, "show volume x: unknown")
            .because("no volume has that id or name")
            .try_next("ashlar volume list");
        assert_eq!(
            failure.to_string(),
            "error: show volume x: unknown\n  why: no volume has that id or name\n  \
             try: ashlar volume list"
        );
    }
}
