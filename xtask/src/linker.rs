//! bpf-linker: which one is used, whether it works with the chosen compiler, and where one comes from.
//!
//! Invariant: a linker counts as usable only after it turned bitcode of that very compiler into a BPF object, since a
//! version number does not tell which LLVM it was built with. Called by `setup` and `ebpf`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Result, bail};

use crate::{apt, cmd, toolchain::Toolchain};

/// The version that is installed, and the oldest that is accepted.
const VERSION: &str = "0.13.0";
const MIN_VERSION: (u32, u32) = (0, 13);
/// LLVM majors which that version can be compiled against (its `llvm-*` features).
const LLVM_FEATURES: std::ops::RangeInclusive<u32> = 21..=23;

/// Where a missing bpf-linker is taken from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Compiled from crates.io against `/usr/lib/llvm-<major>`; that LLVM's package comes first if it is not there.
    Compile { llvm_major: u32, package_missing: bool },
    /// The static binary of the bpf-linker project's own release.
    Prebuilt,
}

impl Source {
    /// Chooses for a compiler whose LLVM has this major version. LLVM reads older bitcode, never newer.
    pub(crate) fn choose(rustc_llvm_major: u32) -> Self {
        Self::choose_from(
            rustc_llvm_major,
            |major| llvm_prefix(major).join("lib/libLLVM.so").exists(),
            |major| cmd::is_root() && apt::candidate(&format!("llvm-{major}-dev")).is_some(),
        )
    }

    fn choose_from(wanted: u32, installed: impl Fn(u32) -> bool, installable: impl Fn(u32) -> bool) -> Self {
        let fitting = || LLVM_FEATURES.filter(|&major| major >= wanted);
        if let Some(llvm_major) = fitting().find(|&major| installed(major)) {
            return Self::Compile { llvm_major, package_missing: false };
        }
        match fitting().find(|&major| installable(major)) {
            Some(llvm_major) => Self::Compile { llvm_major, package_missing: true },
            None => Self::Prebuilt,
        }
    }

    /// What it is, in words for the plan that `setup` prints.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Compile { llvm_major, .. } => {
                format!("compiled here against LLVM {llvm_major}, about 1 to 2 minutes")
            }
            Self::Prebuilt => "the static binary of its own release on github.com".to_owned(),
        }
    }

    /// Installs into the project's tools folder.
    ///
    /// # Errors
    /// When a download or the compilation fails.
    pub(crate) fn install(&self) -> Result<()> {
        let root = cmd::tools_root();
        match self {
            Self::Compile { llvm_major, package_missing } => {
                if *package_missing {
                    apt::install(&[format!("llvm-{llvm_major}-dev")])?;
                }
                let prefix = llvm_prefix(*llvm_major);
                // Without its own bin folder first, the linker's build finds another LLVM's llvm-config.
                let path = env::var_os("PATH").unwrap_or_default();
                let path = env::join_paths([prefix.join("bin")].into_iter().chain(env::split_paths(&path)));
                let mut install = cmd::cargo();
                install.args([
                    "install",
                    "bpf-linker",
                    "--version",
                    VERSION,
                    "--locked",
                    "--force",
                    "--no-default-features",
                ]);
                install.args(["--features", &format!("llvm-{llvm_major}"), "--root"]).arg(&root);
                // Its release profile has full debug information, which nobody reads here and which takes time.
                install.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
                install.env("LLVM_PREFIX", &prefix).env("PATH", path.context("PATH cannot be extended")?);
                cmd::run(&mut install)
            }
            Self::Prebuilt => {
                let bin = root.join("bin");
                fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
                let archive = root.join("bpf-linker.tar.zst");
                let name = format!("bpf-linker-{}-unknown-linux-musl.tar.zst", env::consts::ARCH);
                let url = format!("https://github.com/aya-rs/bpf-linker/releases/download/v{VERSION}/{name}");
                cmd::run(Command::new("curl").args(["-fsSL", "--retry", "2", "-o"]).arg(&archive).arg(url))?;
                cmd::run(Command::new("tar").args(["--zstd", "-xf"]).arg(&archive).arg("-C").arg(&bin))?;
                fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
            }
        }
    }
}

/// The first bpf-linker, the project's own before those in PATH, that works with `toolchain`.
///
/// # Errors
/// When the compiler itself cannot make bitcode for the BPF target.
pub(crate) fn find(toolchain: &Toolchain) -> Result<Option<PathBuf>> {
    let own = cmd::tools_root().join("bin/bpf-linker");
    let own = cmd::is_executable(&own).then_some(own);
    let candidates: Vec<_> = own.into_iter().chain(cmd::all_in_path("bpf-linker")).filter(|l| new_enough(l)).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let probe = Probe::new(toolchain)?;
    Ok(candidates.into_iter().find(|linker| probe.accepts(linker)))
}

/// [`find`], where having none is an error that says how to get one.
///
/// # Errors
/// When there is none.
pub(crate) fn require(toolchain: &Toolchain) -> Result<PathBuf> {
    let Some(linker) = find(toolchain)? else {
        bail!(
            "no bpf-linker {}.{} or newer that understands LLVM {} (of {}) was found.\n{}",
            MIN_VERSION.0,
            MIN_VERSION.1,
            toolchain.llvm_major,
            toolchain.rustc.display(),
            crate::toolchain::HOW_TO_INSTALL
        );
    };
    Ok(linker)
}

/// Where Debian's and apt.llvm.org's packages put an LLVM.
pub(crate) fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

fn new_enough(linker: &Path) -> bool {
    let printed = cmd::output(Command::new(linker).arg("--version"));
    printed.ok().and_then(|line| version(&line)).is_some_and(|v| v >= MIN_VERSION)
}

fn version(line: &str) -> Option<(u32, u32)> {
    let mut parts = line.trim().strip_prefix("bpf-linker ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Bitcode of one compiler, in a folder that goes when this goes.
struct Probe {
    dir: PathBuf,
}

impl Probe {
    fn new(toolchain: &Toolchain) -> Result<Self> {
        let dir = env::temp_dir().join(format!("sensor-xtask-{}", process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let probe = Self { dir };
        // An empty crate without even `core`: enough to learn which bitcode this compiler writes.
        let source = probe.dir.join("probe.rs");
        fs::write(&source, "#![feature(no_core)]\n#![no_core]\n")
            .with_context(|| format!("cannot write {}", source.display()))?;
        let mut rustc = toolchain.command("rustc")?;
        rustc.args(["--target", "bpfel-unknown-none", "--crate-type", "lib", "--emit", "llvm-bc", "-o"]);
        cmd::output(rustc.arg(probe.dir.join("probe.bc")).arg(&source))
            .context("the chosen compiler cannot compile for bpfel-unknown-none")?;
        Ok(probe)
    }

    fn accepts(&self, linker: &Path) -> bool {
        let object = self.dir.join("probe.o");
        cmd::succeeds(Command::new(linker).arg(self.dir.join("probe.bc")).args(["--cpu", "v3", "-o"]).arg(object))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // A folder that stays in /tmp does no harm, and there is nobody to tell.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_llvm_that_is_there_is_used_before_one_is_installed() {
        let both = Source::choose_from(22, |major| major == 23, |major| major == 22);
        assert_eq!(both, Source::Compile { llvm_major: 23, package_missing: false });
        let none_there = Source::choose_from(22, |_| false, |major| major == 22);
        assert_eq!(none_there, Source::Compile { llvm_major: 22, package_missing: true });
    }

    #[test]
    fn an_older_llvm_never_serves_a_newer_compiler() {
        assert_eq!(Source::choose_from(23, |major| major <= 22, |major| major <= 22), Source::Prebuilt);
    }

    #[test]
    fn the_version_line_is_understood() {
        assert_eq!(version("bpf-linker 0.13.0\n"), Some((0, 13)));
        assert_eq!(version("bpf-linker v1\n"), None);
    }
}
