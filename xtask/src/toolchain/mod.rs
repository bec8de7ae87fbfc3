//! The toolchain of the kernel programs: a Rust compiler that has the source of `core`, and a bpf-linker that
//! understands its bitcode. Only who changes the programs needs it: the compiled object is committed.
//!
//! Invariants: a pair is used only after it has linked a program ([`probe`]); nothing of a toolchain that the user has is
//! changed; every source may fail, and then the next one is tried; the plan that is printed is the list that is tried.
//! What is decided is apart from the machine it is decided for ([`Machine`]), so that tests have other machines.

mod compiler;
mod linker;
mod machine;
mod probe;
mod sources;

#[cfg(test)]
mod tests;

use anyhow::{Result, bail};

pub(crate) use self::{
    compiler::Compiler,
    linker::Linker,
    machine::{Here, RUSTUP_HOME},
    sources::{Attempt, Step},
};

/// A compiler and a linker that work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

impl Toolchain {
    /// Whether it gives the bytes that are committed: the compiler's version, and the linker's with its LLVM, are those
    /// that the project has pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.compiler.is_pinned() && self.linker.is_pinned()
    }
}

/// [`Toolchain::is_pinned`] of the names in a manifest.
pub(crate) fn is_pinned(compiler: &str, linker: &str) -> bool {
    compiler::is_pinned(compiler) && linker::is_pinned(linker)
}

/// What is decided on: a machine, or a test's idea of one.
pub(crate) trait Machine {
    /// Whether packages can be installed.
    fn is_root(&self) -> bool;
    /// Whether there is a program of this name.
    fn has(&self, program: &str) -> bool;
    /// The compilers with the source of `core`, and new enough; in no order.
    fn compilers(&self) -> Result<Vec<Compiler>>;
    /// The linkers, best first.
    fn linkers(&self) -> Vec<Linker>;
    /// Whether the two link a program.
    fn links(&self, compiler: &Compiler, linker: &Linker) -> bool;
    /// Whether LLVM of this major version is installed, to compile against.
    fn has_llvm(&self, major: u32) -> bool;
    /// The version, as far as its second number, of a Debian package that could be installed.
    fn candidate(&self, package: &str) -> Option<(u32, u32)>;
    /// Does it.
    ///
    /// # Errors
    /// Whatever went wrong; what was done before stays.
    fn perform(&mut self, step: &Step) -> Result<()>;
}

/// The first pair that works: the pinned compiler before others, newer before older.
///
/// # Errors
/// When `SENSOR_BPF_RUSTC` names a compiler that cannot be used: an explicit choice is never replaced silently.
pub(crate) fn find(machine: &impl Machine) -> Result<Option<Toolchain>> {
    let linkers = machine.linkers();
    for compiler in compiler::by_preference(machine.compilers()?) {
        if let Some(linker) = linkers.iter().find(|linker| machine.links(&compiler, linker)) {
            return Ok(Some(Toolchain { linker: linker.clone(), compiler }));
        }
    }
    Ok(None)
}

/// Tries what [`plan`] lists, in its order, until a pair works.
///
/// # Errors
/// When nothing did; the message has what each attempt said.
pub(crate) fn obtain(machine: &mut impl Machine, plan: &[Attempt]) -> Result<Toolchain> {
    let mut failures = Vec::new();
    for attempt in plan {
        if let Err(error) = attempt.steps.iter().try_for_each(|step| machine.perform(step)) {
            println!("that did not work: {error:#}");
            failures.push(format!("{}: {error:#}", attempt.describe()));
            continue;
        }
        match find(machine)? {
            Some(toolchain) => return Ok(toolchain),
            None => {
                println!("that is not enough: no compiler and linker here link a program together");
                failures.push(format!("{}: done, but no compiler and linker link a program", attempt.describe()));
            }
        }
    }
    if failures.is_empty() {
        failures
            .push("there is nothing to try: no rustup, and no Debian packages that this user can install".to_owned());
    }
    bail!("no toolchain for the kernel programs could be had:\n  {}\n{HOW_TO_INSTALL}", failures.join("\n  "))
}

/// What would get a toolchain for `machine`, best first; empty where nothing can be done.
///
/// # Errors
/// As [`find`].
pub(crate) fn plan(machine: &impl Machine) -> Result<Vec<Attempt>> {
    sources::plan(machine)
}

/// The Debian packages of a toolchain.
pub(crate) const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];

/// How to get a toolchain by hand, for both kinds of machine.
pub(crate) const HOW_TO_INSTALL: &str = "\
By hand, on Debian 12 as root:
  apt-get update
  apt-get install -y --no-install-recommends rustc-web cargo-web rust-web-src llvm-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 PATH=/usr/lib/llvm-22/bin:$PATH cargo install bpf-linker --version 0.13.0 \
--locked --no-default-features --features llvm-22 --root target/tools
elsewhere, as an ordinary user with rustup:
  RUSTUP_HOME=target/tools/rustup rustup toolchain install 1.96.0 --profile minimal --component rust-src
  mkdir -p target/tools/bin && curl -fsSL https://github.com/aya-rs/bpf-linker/releases/download/v0.13.0/\
bpf-linker-$(uname -m)-unknown-linux-musl.tar.zst | tar --zstd -x -C target/tools/bin
or name a compiler that has rust-src in SENSOR_BPF_RUSTC, or an object to use as it is in SENSOR_EBPF_OBJECT.
To build the agent without changes of the programs, none of this is needed: restore sensor-ebpf/, sensor-common/ and
Cargo.lock as they are committed.";
