//! What is released: its version, and the time that stands for the build in everything that records one.

use std::{env, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::cmd;

/// Who answers for the packages, in the form that packages want.
pub(super) const MAINTAINER: &str = "Sensor maintainers <maintainers@sensor.example>";
/// The package's revision of a version.
pub(super) const REVISION: &str = "1";

/// A release.
pub(super) struct Release {
    /// The version of the workspace.
    pub(super) version: &'static str,
    /// Seconds since 1970: SOURCE_DATE_EPOCH, else the time of the last commit.
    pub(super) epoch: u64,
}

impl Release {
    /// The one of this source.
    ///
    /// # Errors
    /// When there is neither a repository nor SOURCE_DATE_EPOCH, or that is no number.
    pub(super) fn of_this_source() -> Result<Self> {
        let text = match env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text,
            Err(_) => last_commit(&cmd::workspace_root())
                .context("the time of the release is that of the last commit; without git, set SOURCE_DATE_EPOCH")?,
        };
        let epoch = text.trim().parse().with_context(|| format!("{text:?} is no time in seconds since 1970"))?;
        // This program is of the workspace's version, too.
        Ok(Self { version: env!("CARGO_PKG_VERSION"), epoch })
    }

    /// Debian's changelog of the package, which has its own form. What changed for users is in CHANGELOG.md.
    ///
    /// # Errors
    /// When `date` is missing.
    pub(super) fn debian_changelog(&self) -> Result<String> {
        let version = self.version;
        Ok(format!(
            "sensor ({version}-{REVISION}) unstable; urgency=medium\n\n  \
             * Version {version}; changelog.gz says what is new.\n\n -- {MAINTAINER}  {}\n",
            self.date("%a, %d %b %Y %H:%M:%S +0000")?
        ))
    }

    /// The release's time in UTC, in this form of date(1).
    ///
    /// # Errors
    /// When `date` is missing.
    pub(super) fn date(&self, form: &str) -> Result<String> {
        let mut date = Command::new("date");
        date.args(["-u", "-d", &format!("@{}", self.epoch), &format!("+{form}")]).env("LC_ALL", "C");
        Ok(cmd::output(&mut date)?.trim().to_owned())
    }
}

fn last_commit(root: &Path) -> Result<String> {
    cmd::output(Command::new("git").arg("-C").arg(root).args(["log", "-1", "--format=%ct"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_release() {
        let release = Release { version: "1.2.3", epoch: 86_400 };
        assert_eq!(release.date("%Y-%m-%dT%H:%M:%SZ").unwrap(), "1970-01-02T00:00:00Z");
        let changelog = release.debian_changelog().unwrap();
        assert!(changelog.starts_with("sensor (1.2.3-1) unstable"), "{changelog}");
        assert!(changelog.ends_with("Fri, 02 Jan 1970 00:00:00 +0000\n"), "{changelog}");
    }
}
