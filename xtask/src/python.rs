//! The tests of the Python part (models/), as the last of `cargo xtask test`.
//!
//! Invariant: nothing is installed for the user: packages, of the versions that models/requirements.txt pins, go into an
//! environment of their own below target/. Only the first run needs the network.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::cmd;

/// What the tests import.
const PACKAGES: [&str; 2] = ["numpy", "onnx"];

/// Runs `python3 -m unittest discover models`.
///
/// # Errors
/// When a test fails, or python3, its module venv or the packages are missing and cannot be fetched.
pub(crate) fn test() -> Result<()> {
    let environment = cmd::workspace_root().join("target/python");
    let python = environment.join("bin/python");
    let imports = format!("import {}", PACKAGES.join(", "));
    if !cmd::succeeds(Command::new(&python).args(["-c", &imports])) {
        let list = cmd::workspace_root().join("models/requirements.txt");
        let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let pins: Vec<&str> = list
            .lines()
            .filter(|line| line.split_once("==").is_some_and(|(name, _)| PACKAGES.contains(&name)))
            .collect();
        if pins.len() != PACKAGES.len() {
            bail!("models/requirements.txt does not pin {}", PACKAGES.join(" and "));
        }
        let made = cmd::run(Command::new("python3").args(["-m", "venv"]).arg(&environment)).and_then(|()| {
            cmd::run(
                Command::new(&python)
                    .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                    .args(&pins),
            )
        });
        made.context("the tests of models/ need python3 (3.11 or newer) with venv, and once the network")?;
    }
    let mut tests = Command::new(&python);
    cmd::run(tests.current_dir(cmd::workspace_root()).args(["-m", "unittest", "discover", "models"]))
}
