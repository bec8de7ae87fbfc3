//! What is wrong with settings, collected: one look at a file names all of it.

use std::fmt::Display;
use std::time::Duration;

use anyhow::Result;

/// Something that cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The settings that it is about, as in "agent.lease"; the one to look at first is the first.
    pub settings: &'static [&'static str],
    /// What is wrong, and what would be right. It names the setting.
    pub text: String,
}

/// Problems that were found so far.
#[derive(Debug, Default)]
pub(super) struct Checks(pub(super) Vec<Problem>);

impl Checks {
    /// Unless it `holds`, `text` says what would be right.
    pub(super) fn ensure(&mut self, holds: bool, settings: &'static [&'static str], text: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Problem { settings, text: text() });
        }
    }

    /// A failure of `result` is one of these settings.
    pub(super) fn result(&mut self, settings: &'static [&'static str], result: Result<()>) {
        if let Err(error) = result {
            self.0.push(Problem { settings, text: format!("{error:#}") });
        }
    }

    pub(super) fn within(
        &mut self,
        setting: &'static [&'static str; 1],
        value: Duration,
        least: Duration,
        most: Duration,
    ) {
        self.ensure((least..=most).contains(&value), setting, || {
            let [value, least, most] = [value, least, most].map(show);
            format!("{} = \"{value}\": must be from {least} to {most}", setting[0])
        });
    }

    pub(super) fn number<T: PartialOrd + Display>(
        &mut self,
        setting: &'static [&'static str; 1],
        value: T,
        least: T,
        most: T,
    ) {
        let holds = value >= least && value <= most;
        self.ensure(holds, setting, || format!("{} = {value}: must be from {least} to {most}", setting[0]));
    }
}

/// A duration as people write it.
pub(super) fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
