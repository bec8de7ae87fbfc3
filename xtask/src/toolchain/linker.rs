//! bpf-linker: the ones on this machine, and where one comes from.
//!
//! Whether one works with a compiler is found by trying ([`super::probe`]): a version number does not tell which LLVM it
//! was built with.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::compiler::PINNED_LLVM;
use crate::cmd;

/// The version that is installed, and the oldest that is accepted.
pub(super) const PINNED: &str = "0.13.0";
const MIN_VERSION: (u32, u32) = (0, 13);
/// LLVM majors which that version can be compiled against (its `llvm-*` features).
pub(super) const LLVM_FEATURES: std::ops::RangeInclusive<u32> = 21..=23;

/// A linker that was asked who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    version: String,
    /// Major version of the LLVM library it is linked with; `None`: it holds one, and nothing tells which.
    llvm: Option<u32>,
}

impl Linker {
    /// Whether it gives the bytes that the pinned one gives.
    pub(super) fn is_pinned(&self) -> bool {
        self.version == PINNED && self.llvm == Some(PINNED_LLVM)
    }

    /// Name, version and LLVM.
    pub(crate) fn name(&self) -> String {
        match self.llvm {
            Some(llvm) => format!("bpf-linker {} (LLVM {llvm})", self.version),
            None => format!("bpf-linker {} (an LLVM of its own)", self.version),
        }
    }

    /// The LLVM that a test's linker holds: its release's own is the newest.
    #[cfg(test)]
    pub(super) fn test_llvm(&self) -> u32 {
        self.llvm.unwrap_or(*LLVM_FEATURES.end())
    }

    /// One of a test's machine.
    #[cfg(test)]
    pub(super) fn test(llvm: Option<u32>) -> Linker {
        Linker { path: PathBuf::from("/t/bpf-linker"), version: PINNED.to_owned(), llvm }
    }
}

/// Whether [`Linker::name`] gives this for the pinned linker.
pub(super) fn is_pinned(name: &str) -> bool {
    let pinned = Linker { path: PathBuf::new(), version: PINNED.to_owned(), llvm: Some(PINNED_LLVM) };
    name == pinned.name()
}

/// Every bpf-linker that is new enough: the project's own before those in PATH.
pub(super) fn all() -> Vec<Linker> {
    let own = cmd::tools_root().join("bin/bpf-linker");
    let own = cmd::is_executable(&own).then_some(own);
    own.into_iter().chain(cmd::all_in_path("bpf-linker")).filter_map(inspect).collect()
}

fn inspect(path: PathBuf) -> Option<Linker> {
    let printed = cmd::output(Command::new(&path).arg("--version")).ok()?;
    let version = printed.trim().strip_prefix("bpf-linker ")?.to_owned();
    if numbers(&version)? < MIN_VERSION {
        return None;
    }
    let llvm = fs::read(&path).ok().and_then(|bytes| library(&bytes));
    Some(Linker { path, version, llvm })
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The major version of the libLLVM that a program names among the libraries it needs.
fn library(program: &[u8]) -> Option<u32> {
    const NAMES: [&[u8]; 2] = [b"libLLVM.so.", b"libLLVM-"];
    let after = |name: &[u8]| program.windows(name.len()).position(|bytes| bytes == name).map(|at| at + name.len());
    let digits = |at: usize| {
        let digits = program[at..].iter().take_while(|byte| byte.is_ascii_digit());
        String::from_utf8(digits.copied().collect()).ok()?.parse().ok()
    };
    NAMES.into_iter().filter_map(after).find_map(digits)
}

/// Compiles the pinned version into the project's tools folder, against an LLVM that is installed.
///
/// # Errors
/// When a download or the compilation fails.
pub(super) fn compile(llvm: u32) -> Result<()> {
    let prefix = llvm_prefix(llvm);
    // Without its own bin folder first, the linker's build finds another LLVM's llvm-config.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([prefix.join("bin")].into_iter().chain(env::split_paths(&path)));
    let mut install = cmd::cargo();
    install.args(["install", "bpf-linker", "--version", PINNED, "--locked", "--force", "--no-default-features"]);
    install.args(["--features", &format!("llvm-{llvm}"), "--root"]).arg(cmd::tools_root());
    // Its release profile has full debug information, which nobody reads here and which takes time.
    install.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    install.env("LLVM_PREFIX", &prefix).env("PATH", path.context("PATH cannot be extended")?);
    cmd::run(&mut install)
}

/// Downloads the static binary of the pinned version's own release into the project's tools folder.
///
/// # Errors
/// When the download fails.
pub(super) fn download() -> Result<()> {
    let root = cmd::tools_root();
    let bin = root.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let archive = root.join("bpf-linker.tar.zst");
    let name = format!("bpf-linker-{}-unknown-linux-musl.tar.zst", env::consts::ARCH);
    let url = format!("https://github.com/aya-rs/bpf-linker/releases/download/v{PINNED}/{name}");
    cmd::run(
        Command::new("curl").args(["-fsSL", "--retry", "2", "--connect-timeout", "20", "-o"]).arg(&archive).arg(url),
    )?;
    cmd::run(Command::new("tar").args(["--zstd", "-xf"]).arg(&archive).arg("-C").arg(&bin))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

/// Where Debian's and apt.llvm.org's packages put an LLVM.
fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// Whether LLVM of this version is installed, to compile against.
pub(super) fn has_llvm(major: u32) -> bool {
    let prefix = llvm_prefix(major);
    prefix.join("bin/llvm-config").exists() && prefix.join("lib/libLLVM.so").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_understood() {
        assert_eq!(numbers("0.13.0"), Some((0, 13)));
        assert_eq!(numbers("v1"), None);
    }

    #[test]
    fn the_llvm_is_read_from_the_libraries_that_are_needed() {
        assert_eq!(library(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(library(b"\0libLLVM-18.so.1\0"), Some(18));
        assert_eq!(library(b"\0libc.so.6\0"), None);
        assert_eq!(library(b"libLLVM.so."), None);
    }
}
