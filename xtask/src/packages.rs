//! `cargo xtask packages`: the Debian package of this machine's architecture, looked at by lintian and lived with under a
//! real systemd: install, upgrade under traffic, crash, hang, purge (tests/systemd).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    cmd,
    dist::{self, DistArgs},
    setup,
};

/// What to test.
#[derive(Args)]
pub(crate) struct PackagesArgs {
    /// This package; default: the one that `cargo xtask dist` makes of this source
    #[arg(long, value_name = "FILE")]
    deb: Option<PathBuf>,
}

/// `cargo xtask packages`.
///
/// # Errors
/// When the package cannot be made, lintian finds an error, or a check under systemd fails.
pub(crate) fn packages(args: PackagesArgs) -> Result<()> {
    ensure!(cmd::is_root(), "a machine of its own is booted for the package, which needs root: run this with sudo -E");
    setup::ensure(setup::Options::PACKAGES)?;
    let deb = match args.deb {
        Some(deb) => deb.canonicalize().with_context(|| format!("--deb {}", deb.display()))?,
        None => made()?,
    };
    let mut lintian = Command::new("lintian");
    cmd::run(lintian.args(["--allow-root", "--fail-on", "error"]).arg(&deb))?;
    let next = next(&deb)?;
    let mut systemd = Command::new(cmd::workspace_root().join("tests/systemd/run.sh"));
    cmd::run(systemd.arg("--deb").arg(&deb).arg("--next").arg(&next))
}

/// The package of this source.
fn made() -> Result<PathBuf> {
    dist::dist(DistArgs::deb_of_this_machine()?)?;
    let folder = cmd::workspace_root().join("target/dist");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut debs =
        files.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "deb"));
    match (debs.next(), debs.next()) {
        (Some(deb), None) => Ok(deb),
        _ => bail!("{} does not hold one .deb", folder.display()),
    }
}

/// The same package as its next revision, as an upgrade brings it.
fn next(deb: &Path) -> Result<PathBuf> {
    let folder = env::temp_dir().join(format!("sensor-next-{}", std::process::id()));
    let result = repacked(deb, &folder);
    // A folder that stays in /tmp does no harm.
    let _ = fs::remove_dir_all(&folder);
    result
}

fn repacked(deb: &Path, folder: &Path) -> Result<PathBuf> {
    cmd::run(Command::new("dpkg-deb").arg("--raw-extract").arg(deb).arg(folder))?;
    let control = folder.join("DEBIAN/control");
    let text = fs::read_to_string(&control).with_context(|| format!("cannot read {}", control.display()))?;
    let version = text.lines().find(|line| line.starts_with("Version: ")).context("the package has no version")?;
    fs::write(&control, text.replace(version, &format!("{version}+next")))
        .with_context(|| format!("cannot write {}", control.display()))?;
    let next = cmd::workspace_root().join("target/packages/next.deb");
    let place = next.parent().context("a path without a folder")?;
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    cmd::run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(folder).arg(&next))?;
    Ok(next)
}
