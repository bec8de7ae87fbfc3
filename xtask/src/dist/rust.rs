//! Which Rust toolchain builds the static binaries.
//!
//! Invariant: candidates are tried in order until one is there or can be installed, and the choice is printed. A pinned
//! toolchain has a name of its own in rustup: the user's `stable` and `nightly` are never changed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::target::Arch;
use crate::{apt, cmd};

/// The version that releases are built with, whoever built it: the same source of std either way.
const VERSION: &str = "1.96.0";
/// Debian's toolchain of that version, whose std for musl is compiled here.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_VERSION: (u32, u32) = (1, 96);
const DEBIAN_SYSROOT: &str = "/usr";

/// The toolchain, and where std for the target comes from.
#[derive(Debug, Clone)]
pub(super) struct Rust {
    /// The folder with `bin/rustc` and `lib/rustlib`.
    sysroot: PathBuf,
    /// Whether std is compiled with the agent, because the toolchain ships none for musl.
    pub(super) builds_std: bool,
}

impl Rust {
    /// The first candidate that can be had for these architectures.
    ///
    /// # Errors
    /// When there is none; the message says why each was passed over.
    pub(super) fn choose(arches: &[Arch]) -> Result<Self> {
        let mut passed_over = Vec::new();
        for candidate in [pinned, debian] {
            match candidate(arches) {
                Ok(rust) => {
                    println!("static binaries: {}", rust.describe());
                    return Ok(rust);
                }
                Err(reason) => {
                    println!("passed over: {reason:#}");
                    passed_over.push(format!("  - {reason:#}"));
                }
            }
        }
        bail!("no Rust toolchain for static binaries:\n{}", passed_over.join("\n"))
    }

    /// A program of the toolchain.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.sysroot.join("bin").join(name)
    }

    /// The source of std, as the toolchain's own panics name it.
    pub(super) fn source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    fn describe(&self) -> String {
        let std = if self.builds_std { "std compiled here from its source" } else { "std from rustup" };
        format!("rustc {VERSION} in {}, {std}", self.sysroot.display())
    }

    fn has_version(&self) -> bool {
        let printed = cmd::output(Command::new(self.program("rustc")).arg("-V"));
        printed.is_ok_and(|line| line.split(' ').nth(1) == Some(VERSION)) && cmd::is_executable(&self.program("cargo"))
    }
}

/// rustup's toolchain of the pinned version, with std for musl.
fn pinned(arches: &[Arch]) -> Result<Rust> {
    if cmd::find_in_path("rustup").is_none() {
        bail!("rustup is not installed");
    }
    let find = || {
        let mut which = Command::new("rustup");
        let rustc = cmd::output(which.args(["which", "rustc", "--toolchain", VERSION])).ok()?;
        let sysroot = Path::new(rustc.trim()).ancestors().nth(2)?.to_path_buf();
        let has_std = |arch: &Arch| sysroot.join("lib/rustlib").join(arch.triple()).join("lib").is_dir();
        arches.iter().all(has_std).then_some(Rust { sysroot, builds_std: false })
    };
    // Asking for a toolchain that is missing would make rustup install it, so the list is asked first.
    let listed = cmd::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    if listed.lines().any(|line| line.starts_with(&format!("{VERSION}-")))
        && let Some(rust) = find()
    {
        return Ok(rust);
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", VERSION, "--profile", "minimal", "--no-self-update"]);
    for arch in arches {
        install.args(["--target", arch.triple()]);
    }
    println!("rustup installs Rust {VERSION} beside your toolchains, which stay as they are");
    if cmd::run(&mut install).is_err() {
        bail!("rustup cannot install Rust {VERSION} (is its server out of reach?)");
    }
    match find() {
        Some(rust) if rust.has_version() => Ok(rust),
        _ => bail!("rustup's Rust {VERSION} has no std for musl"),
    }
}

/// Debian's toolchain, which compiles std for musl from Debian's package of its source.
fn debian(_: &[Arch]) -> Result<Rust> {
    let rust = Rust { sysroot: DEBIAN_SYSROOT.into(), builds_std: true };
    let is_there = || rust.has_version() && rust.source().join("library/std/src/lib.rs").is_file();
    if !is_there() {
        let package = DEBIAN_PACKAGES[0];
        let install = format!("apt-get install {}", DEBIAN_PACKAGES.join(" "));
        if !apt::is_here() {
            bail!("this is no Debian, whose {package} would do");
        }
        if !cmd::is_root() {
            bail!("Debian's {package} is not installed: as root, run `{install}`");
        }
        apt::ensure_lists()?;
        if apt::candidate(package) != Some(DEBIAN_VERSION) {
            bail!("Debian's {package} is not of version {VERSION} here (are the package lists old?)");
        }
        apt::install(&DEBIAN_PACKAGES.map(str::to_owned))?;
    }
    if !is_there() {
        bail!("{DEBIAN_SYSROOT}/bin/rustc is not Rust {VERSION} with cargo and its source");
    }
    Ok(rust)
}
