//! Stepping through a run: what the next event is, what it changed, and who is asked to go on.
//!
//! The run itself waits inside the line that it tells, so nothing is computed ahead.

use std::io::{BufRead, Write};
use std::time::Duration;

/// What a person may type between two events.
const HELP: &str = "Enter: next event; a number: so many events; a time (4.5s): until then; \
                    a word (node-2, chunk 0): on to the next line with it; q: end";

/// Until when no question is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Going {
    Events(u64),
    Until(Duration),
    ToWord(String),
}

/// The person at the other end of the terminal.
pub(super) struct Stepper {
    going: Going,
}

impl Stepper {
    pub(super) const fn new() -> Self {
        Self { going: Going::Events(0) }
    }

    /// Shows a line, and asks how to go on before the next event.
    pub(super) fn line(&mut self, at: Duration, line: &str) {
        let begins = !line.starts_with("    ");
        if begins && self.is_due(at) {
            self.ask();
        }
        if let Going::ToWord(word) = &self.going
            && line.contains(word.as_str())
        {
            self.going = Going::Events(0);
        }
        // Standard output gone: the process ends by SIGPIPE before this matters.
        writeln!(std::io::stdout(), "{line}").ok();
    }

    /// Whether the event that is about to be told is the one to stop before.
    fn is_due(&mut self, at: Duration) -> bool {
        match &mut self.going {
            Going::Events(0) => true,
            Going::Events(left) => {
                *left -= 1;
                false
            }
            Going::Until(until) => at >= *until,
            Going::ToWord(_) => false,
        }
    }

    fn ask(&mut self) {
        loop {
            write!(std::io::stdout(), "step> ").ok();
            std::io::stdout().flush().ok();
            let mut answer = String::new();
            match std::io::stdin().lock().read_line(&mut answer) {
                Ok(1..) => {}
                // Nobody answers any more.
                Ok(0) | Err(_) => std::process::exit(0),
            }
            match parse(answer.trim()) {
                Some(going) => {
                    self.going = going;
                    return;
                }
                None if answer.trim() == "q" => std::process::exit(0),
                None => {
                    writeln!(std::io::stdout(), "{HELP}").ok();
                }
            }
        }
    }
}

/// How to go on after an answer; nothing, if it is a question or the end.
fn parse(answer: &str) -> Option<Going> {
    match answer {
        "" => Some(Going::Events(0)),
        "q" | "?" | "h" | "help" => None,
        text => Some(match (text.parse::<u64>(), ashlar_sim::parse_span(text)) {
            (Ok(count), _) => Going::Events(count.saturating_sub(1)),
            (_, Some(until)) => Going::Until(until),
            _ => Going::ToWord(text.to_owned()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_help_says() {
        assert_eq!(parse(""), Some(Going::Events(0)));
        assert_eq!(parse("10"), Some(Going::Events(9)));
        assert_eq!(parse("4.5s"), Some(Going::Until(Duration::from_millis(4_500))));
        assert_eq!(parse("node-2"), Some(Going::ToWord("node-2".into())));
        assert_eq!((parse("?"), parse("q")), (None, None));
    }

    #[test]
    fn a_number_of_events_passes_without_a_question_and_a_word_stops_behind_its_line() {
        let mut stepper = Stepper { going: Going::Events(2) };
        let at = Duration::ZERO;
        assert!(!stepper.is_due(at) && !stepper.is_due(at) && stepper.is_due(at));
        stepper.going = Going::Until(Duration::from_secs(2));
        assert!(!stepper.is_due(Duration::from_secs(1)) && stepper.is_due(Duration::from_secs(2)));
        stepper.going = Going::ToWord("node-2".into());
        stepper.line(at, "    node-1: up");
        assert!(!stepper.is_due(at));
        stepper.line(at, "    node-2: down");
        assert!(stepper.is_due(at));
    }
}
