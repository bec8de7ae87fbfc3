//! What is wrong with a model file, and what to do about it: one [`Problem`] per failed check.
//!
//! Checks that do not depend on each other all run, so that a file is mended in one round. Called by every check of
//! this module; `sensor model check` lists the problems, the agent joins them into one error.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Problems that are kept of one file: a hostile one may have millions.
const MAX_PROBLEMS: usize = 32;
/// Longest text of a problem, in bytes: names in a file may be of any length.
const MAX_TEXT: usize = 1_000;

/// One failed check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was checked: a key of the contract, or a part of the graph.
    pub check: String,
    /// What is wrong.
    pub problem: String,
    /// What to change.
    pub fix: String,
}

impl Problem {
    /// A problem; overlong texts are cut.
    pub fn new(check: &str, problem: impl Into<String>, fix: impl Into<String>) -> Problem {
        Problem { check: cut(check.to_owned()), problem: cut(problem.into()), fix: cut(fix.into()) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.check, self.problem, self.fix)
    }
}

impl std::error::Error for Problem {}

/// The problems of one file.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one, unless there are too many already.
    pub fn add(&mut self, problem: Problem) {
        if self.0.len() < MAX_PROBLEMS {
            self.0.push(problem);
        }
    }

    /// The value, or `None` and one problem more.
    pub fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.add(problem)).ok()
    }

    /// Whether all checks passed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of the checks.
    pub fn list(self) -> Vec<Problem> {
        self.0
    }
}

/// The problems as one error.
pub fn error(problems: &[Problem]) -> anyhow::Error {
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    match problems {
        [_] => anyhow::anyhow!("{}", texts[0]),
        _ => anyhow::anyhow!("{} problems: {}", texts.len(), texts.join(" | ")),
    }
}

/// A text from a file, fit to be shown: one line without control characters, not too long.
pub(super) fn cut(text: String) -> String {
    // One line in a log, whatever a file holds: control characters would write lines of their own.
    let mut text = text.replace(|c: char| c.is_control(), " ");
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
