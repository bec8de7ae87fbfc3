//! This machine: what is looked up and done here for the decisions of the rest of the toolchain's code.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{Compiler, Linker, Machine, Step, compiler, linker, probe};
use crate::{apt, cmd};

/// The variable that tells rustup where its toolchains are.
pub(crate) const RUSTUP_HOME: &str = "RUSTUP_HOME";

/// The project's own toolchains: the user's are not touched.
pub(super) fn rustup_home() -> PathBuf {
    cmd::tools_root().join("rustup")
}

/// This machine.
#[derive(Default)]
pub(crate) struct Here;

impl Machine for Here {
    fn is_root(&self) -> bool {
        cmd::is_root()
    }

    fn has(&self, program: &str) -> bool {
        cmd::find_in_path(program).is_some()
    }

    fn compilers(&self) -> Result<Vec<Compiler>> {
        compiler::all()
    }

    fn linkers(&self) -> Vec<Linker> {
        linker::all()
    }

    fn links(&self, compiler: &Compiler, linker: &Linker) -> bool {
        probe::links(compiler, linker)
    }

    fn has_llvm(&self, major: u32) -> bool {
        linker::has_llvm(major)
    }

    fn candidate(&self, package: &str) -> Option<(u32, u32)> {
        apt::candidate(package)
    }

    fn perform(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::RefreshLists => apt::update(),
            Step::Apt(packages) => apt::install(packages),
            Step::Rustup => install_by_rustup(),
            Step::CompileLinker { llvm } => linker::compile(*llvm),
            Step::DownloadLinker => linker::download(),
        }
    }
}

fn install_by_rustup() -> Result<()> {
    let rustup = cmd::find_in_path("rustup").context("there is no rustup")?;
    let mut install = Command::new(rustup);
    install.args(["toolchain", "install", compiler::PINNED, "--profile", "minimal", "--component", "rust-src,clippy"]);
    install.args(["--no-self-update"]).env(RUSTUP_HOME, rustup_home()).env_remove("RUSTUP_TOOLCHAIN");
    cmd::run(&mut install)
}
