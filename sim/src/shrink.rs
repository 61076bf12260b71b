//! Makes a failing run smaller: fewer kinds of faults, a shorter storm, as long as the same rule
//! breaks. What is left is easier to read; it is another run, not a part of the first one.

use crate::run::{Options, Outcome, run};
use std::time::Duration;

/// No storm is made shorter than this.
const STORM_MIN: Duration = Duration::from_millis(400);

/// The smallest run found that breaks the rule that `options` breaks, in at most `runs_max` runs;
/// `options` themselves if they break none.
#[must_use]
pub fn shrink(options: Options, runs_max: usize) -> Options {
    shrink_by(options, runs_max, &mut run)
}

fn shrink_by(
    options: Options,
    runs_max: usize,
    run: &mut dyn FnMut(Options) -> Outcome,
) -> Options {
    let mut left = runs_max;
    let mut broken_rule = |options: Options| {
        left = left.checked_sub(1)?;
        run(options).violations.first().map(|violation| violation.rule)
    };
    let Some(rule) = broken_rule(options) else { return options };
    let mut best = options;
    for kind in options.kinds.iter() {
        let fewer = Options { kinds: best.kinds.without(kind), ..best };
        if broken_rule(fewer) == Some(rule) {
            best = fewer;
        }
    }
    while best.storm / 2 >= STORM_MIN {
        let shorter = Options { storm: best.storm / 2, ..best };
        if broken_rule(shorter) != Some(rule) {
            break;
        }
        best = shorter;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Violation;
    use crate::kinds::{FaultKind, Kinds, Tally};
    use ashlar_types::Time;

    fn outcome(rule: Option<&'static str>) -> Outcome {
        let violation = |rule| Violation { at: Time::ZERO, rule, detail: String::new() };
        Outcome {
            violations: rule.map(violation).into_iter().collect(),
            writes: 0,
            reads: 0,
            events: 0,
            simulated: Duration::ZERO,
            tally: Tally::default(),
            digest: 0,
        }
    }

    #[test]
    fn only_what_the_failure_needs_is_left() {
        let mut runs = 0;
        let smaller = shrink_by(Options::of_many(7), 100, &mut |options| {
            runs += 1;
            let needed = options.kinds.contains(FaultKind::PauseNode)
                && options.storm >= Duration::from_secs(2);
            outcome(needed.then_some("lost write"))
        });
        assert_eq!(smaller.kinds.and(Kinds::ALL).to_string(), "pause-node");
        assert_eq!(smaller.storm, Duration::from_millis(2_500));
        assert!(runs <= FaultKind::ALL.len() + 6, "{runs}");
    }

    #[test]
    fn another_rule_does_not_count_and_runs_are_bounded() {
        let mut runs = 0;
        let options = Options::of_many(7);
        let same = shrink_by(options, 5, &mut |tried| {
            runs += 1;
            let same = tried.kinds == options.kinds && tried.storm == options.storm;
            outcome(Some(if same { "lost write" } else { "not alive" }))
        });
        assert_eq!((same.kinds, same.storm, runs), (options.kinds, options.storm, 5));
    }
}
