//! Installing Debian packages without letting their daemons start. Called by `setup` and `linker`, as root only.
//!
//! Invariant: while packages are installed a policy-rc.d forbids starting services, and it is gone afterwards; units
//! of daemons installed here are not enabled either, so nothing new listens after a reboot.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::cmd;

const POLICY: &str = "/usr/sbin/policy-rc.d";
/// In the file, so that one left behind by an interrupted run is recognised and removed.
const POLICY_TEXT: &str =
    "#!/bin/sh\n# Sensor's `cargo xtask setup` put this here while it installs packages; delete it.\nexit 101\n";
/// Packages of daemons that tests start themselves, with their systemd units.
const DAEMONS: [(&str, &str); 3] = [("nginx-light", "nginx"), ("openssh-server", "ssh"), ("prometheus", "prometheus")];

/// Whether this is a machine with apt.
pub(crate) fn is_here() -> bool {
    cmd::find_in_path("apt-get").is_some() && cmd::find_in_path("apt-cache").is_some()
}

/// Downloads the package lists when there are none (fresh containers); asks root only.
///
/// # Errors
/// When `apt-get update` fails.
pub(crate) fn ensure_lists() -> Result<()> {
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    let present = lists.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("_Packages"));
    if present || !cmd::is_root() || !is_here() {
        return Ok(());
    }
    println!("apt's package lists are missing; they tell what this machine can install:");
    update()
}

/// The version of `package` that apt would install, as `(major, minor)`; `None` when it knows no such package.
pub(crate) fn candidate(package: &str) -> Option<(u32, u32)> {
    if !is_here() {
        return None;
    }
    parse_candidate(&cmd::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C")).ok()?)
}

/// Installs `packages` without recommended ones; once more with fresh lists if that fails.
///
/// # Errors
/// When apt fails twice, or the policy file cannot be written.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let _policy = ServicePolicy::new()?;
    let fresh_daemons: Vec<_> =
        DAEMONS.iter().filter(|(package, _)| packages.iter().any(|p| p == package) && !is_installed(package)).collect();
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "--no-install-recommends"]).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    if cmd::run(&mut command).is_err() {
        println!("that failed, perhaps because the package lists are old; again with fresh ones:");
        update()?;
        cmd::run(&mut command)?;
    }
    if cmd::find_in_path("systemctl").is_some() {
        for (_, unit) in fresh_daemons {
            cmd::run(Command::new("systemctl").args(["disable", unit]))?;
        }
    }
    Ok(())
}

/// Downloads the package lists.
///
/// # Errors
/// When `apt-get update` fails.
pub(crate) fn update() -> Result<()> {
    cmd::run(Command::new("apt-get").arg("update"))
}

/// Whether the package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    let status = cmd::output(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
    status.is_ok_and(|text| text == "install ok installed")
}

fn parse_candidate(policy: &str) -> Option<(u32, u32)> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    // An epoch ("1:22.1.8-1") is no part of the version that upstream gave.
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

/// While it lives, packages do not start their daemons. A policy that was there before is left as it is.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn new() -> Result<Self> {
        let theirs = fs::read_to_string(POLICY).is_ok_and(|text| text != POLICY_TEXT);
        if theirs || !Path::new("/usr/sbin").is_dir() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, POLICY_TEXT)
            .with_context(|| format!("cannot write {POLICY}, which keeps daemons from starting"))?;
        let policy = Self { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {POLICY} executable"))?;
        Ok(policy)
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("warning: cannot remove {POLICY} ({error}); delete it, or no service will start on install");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_read_with_and_without_epoch() {
        let policy = |version: &str| format!("p:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n");
        assert_eq!(parse_candidate(&policy("1.96.0+dfsg1-1~deb12u2")), Some((1, 96)));
        assert_eq!(parse_candidate(&policy("1:22.1.8-1~deb12u1")), Some((22, 1)));
        assert_eq!(parse_candidate(&policy("(none)")), None);
        assert_eq!(parse_candidate(""), None);
    }
}
