//! The test of reproducibility: everything once more, from another folder that holds nothing but the source.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{DistArgs, SUMS, empty, release::Release};
use crate::cmd;

/// A second run below `work` gives the same as the first, in `out`.
///
/// # Errors
/// When it fails, or gives something else: the message names the files.
pub(super) fn compare(args: &DistArgs, release: &Release, work: &Path, out: &Path) -> Result<()> {
    // A longer path than the first: one that is not taken out shows in sizes, too.
    let elsewhere = work.join("again/in-another-folder");
    empty(&elsewhere)?;
    copy_source(&elsewhere)?;
    // This program, told that the project is there.
    let mut run = Command::new(env::current_exe().context("cannot find the path of the running xtask")?);
    run.current_dir(&elsewhere).arg("dist").env("CARGO_MANIFEST_DIR", elsewhere.join("xtask"));
    for arch in &args.arch {
        run.args(["--arch", name(arch)?.as_str()]);
    }
    for kind in &args.only {
        run.args(["--only", name(kind)?.as_str()]);
    }
    if let Some(folder) = &args.prebuilt {
        run.arg("--prebuilt").arg(folder.canonicalize().context("--prebuilt")?);
    }
    run.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    cmd::run(&mut run)?;
    let sums = |folder: &Path| {
        fs::read_to_string(folder.join(SUMS)).with_context(|| format!("cannot read {SUMS} in {}", folder.display()))
    };
    let second = elsewhere.join("target/dist");
    let different = different(&sums(out)?, &sums(&second)?);
    if !different.is_empty() {
        bail!("not reproducible: {} differ between {} and {}", different.join(", "), out.display(), second.display());
    }
    println!("reproducible: a second run in {} gave the same bytes", elsewhere.display());
    Ok(())
}

/// What git knows or would add, as it is now.
fn copy_source(to: &Path) -> Result<()> {
    let root = cmd::workspace_root();
    let mut list = Command::new("git");
    list.arg("-C").arg(&root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    for file in cmd::output(&mut list)?.lines() {
        let (from, to) = (root.join(file), to.join(file));
        // One that was removed and not yet committed.
        if !from.exists() {
            continue;
        }
        let folder = to.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {file}"))?;
    }
    Ok(())
}

fn name(value: &impl ValueEnum) -> Result<String> {
    Ok(value.to_possible_value().context("every value has a name")?.get_name().to_owned())
}

/// The names whose lines are in one list of checksums only.
fn different(first: &str, second: &str) -> Vec<String> {
    let only_in = |a: &str, b: &str| -> Vec<String> {
        let missing = a.lines().filter(|line| !b.lines().any(|other| other == *line));
        missing.filter_map(|line| line.split("  ").nth(1)).map(str::to_owned).collect()
    };
    let mut names = only_in(first, second);
    names.extend(only_in(second, first));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_and_one_missing_file_are_named() {
        let first = "aa  sensor.deb\nbb  sensor.rpm\n";
        assert!(different(first, first).is_empty());
        assert_eq!(different(first, "aa  sensor.deb\nbc  sensor.rpm\n"), ["sensor.rpm"]);
        assert_eq!(different(first, "aa  sensor.deb\n"), ["sensor.rpm"]);
        assert_eq!(different("", "cc  SBOM\n"), ["SBOM"]);
    }
}
