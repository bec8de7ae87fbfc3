//! Which Rust compiler builds the eBPF object.
//!
//! Invariant: a compiler is chosen because its sysroot holds the source of `core` (the BPF target ships no compiled
//! one), never because of its channel's name. Called by `ebpf`, `linker`, `lint` and `setup`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::cmd;

/// The oldest compiler the workspace builds with (`rust-version` in Cargo.toml).
const MIN_VERSION: (u32, u32) = (1, 95);

/// How to get a toolchain, for both kinds of machine; shown whenever none is found.
pub(crate) const HOW_TO_INSTALL: &str = "\
`cargo xtask setup` installs it. By hand, on Debian 12 as root:
  apt-get update
  apt-get install -y --no-install-recommends rustc-web cargo-web rust-web-src llvm-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 PATH=/usr/lib/llvm-22/bin:$PATH cargo install bpf-linker --version 0.13.0 \
--no-default-features --features llvm-22 --root target/tools
elsewhere, as an ordinary user with rustup:
  rustup toolchain install nightly --component rust-src
  mkdir -p target/tools/bin && curl -fsSL https://github.com/aya-rs/bpf-linker/releases/download/v0.13.0/\
bpf-linker-$(uname -m)-unknown-linux-musl.tar.zst | tar --zstd -x -C target/tools/bin
or set SENSOR_EBPF_OBJECT to a prebuilt object, or SENSOR_BPF_RUSTC to a rustc that has rust-src.";

/// Where a compiler was found; earlier is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// Named by `SENSOR_BPF_RUSTC`.
    Explicit,
    /// One of rustup's toolchains.
    Rustup,
    /// A rustc in PATH, or Debian's.
    System,
}

/// A Rust compiler that was asked who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The folder with `bin/rustc` and `lib/rustlib`.
    pub(crate) sysroot: PathBuf,
    /// Absolute path of the compiler (no rustup proxy).
    pub(crate) rustc: PathBuf,
    /// As rustc prints it, e.g. `1.97.0-nightly`.
    pub(crate) release: String,
    /// The major version of its LLVM: bpf-linker must understand that bitcode.
    pub(crate) llvm_major: u32,
    commit_date: String,
    has_source: bool,
    origin: Origin,
}

impl Toolchain {
    /// Whether `-Z` flags work without `RUSTC_BOOTSTRAP`.
    pub(crate) fn is_nightly(&self) -> bool {
        self.release.contains("nightly") || self.release.contains("dev")
    }

    /// Whether rustup manages it; the name rustup knows it by is then the last part of the sysroot.
    pub(crate) fn rustup_name(&self) -> Option<String> {
        let managed = rustup_toolchains_dir().is_some_and(|dir| self.sysroot.starts_with(dir));
        managed.then(|| self.sysroot.file_name().map(|name| name.to_string_lossy().into_owned())).flatten()
    }

    /// A program of the same toolchain, e.g. `cargo`.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        [self.sysroot.join("bin"), self.rustc.parent()?.to_path_buf()]
            .into_iter()
            .map(|dir| dir.join(name))
            .find(|file| cmd::is_executable(file))
    }

    /// A command of this toolchain with none of the host's choices: no rustup override, wrapper, flags or profile.
    ///
    /// # Errors
    /// When the toolchain lacks the program.
    pub(crate) fn command(&self, name: &str) -> Result<Command> {
        let program = self.program(name).with_context(|| {
            format!("{} has no {name} beside it; install the {name} of that toolchain", self.rustc.display())
        })?;
        let mut command = Command::new(program);
        for (key, _) in env::vars_os() {
            if key.to_str().is_some_and(steers_cargo) {
                command.env_remove(key);
            }
        }
        // Absolute, because a cargo outside rustup would otherwise run the rustup proxy found first in PATH. The empty
        // wrapper overrides one from the user's cargo configuration.
        command.env("RUSTC", &self.rustc).env("RUSTC_WRAPPER", "");
        if !self.is_nightly() {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(command)
    }
}

/// Finds the toolchain for the eBPF object; `None` when no compiler here has rust-src.
///
/// # Errors
/// When `SENSOR_BPF_RUSTC` names a compiler that cannot be used: an explicit choice is never replaced silently.
pub(crate) fn find() -> Result<Option<Toolchain>> {
    if let Some(path) = env::var_os("SENSOR_BPF_RUSTC") {
        let found = inspect(Path::new(&path), Origin::Explicit)
            .with_context(|| format!("SENSOR_BPF_RUSTC={} is not a usable rustc", path.display()))?;
        if !found.has_source {
            bail!(
                "SENSOR_BPF_RUSTC={} has no rust-src: {} is missing; add it or unset the variable",
                path.display(),
                source_dir(&found.sysroot).display()
            );
        }
        return Ok(Some(found));
    }
    let rustup = rustup_compilers().into_iter().map(|rustc| (rustc, Origin::Rustup));
    let system = cmd::all_in_path("rustc").into_iter().filter(|rustc| !is_rustup_proxy(rustc));
    let system = system.map(|rustc| (rustc, Origin::System));
    // One broken compiler somewhere in PATH must not stop a good one from being used.
    Ok(choose(rustup.chain(system).filter_map(|(rustc, origin)| inspect(&rustc, origin).ok())))
}

/// [`find`], where having none is an error that says how to get one.
///
/// # Errors
/// When there is none.
pub(crate) fn require() -> Result<Toolchain> {
    find()?.with_context(|| {
        format!(
            "no Rust compiler with rust-src (version {}.{} or newer) was found.\n{HOW_TO_INSTALL}",
            MIN_VERSION.0, MIN_VERSION.1
        )
    })
}

/// The order of choice: an explicit one, rustup's newest nightly, then any; only with rust-src and new enough.
fn choose(candidates: impl Iterator<Item = Toolchain>) -> Option<Toolchain> {
    let mut usable: Vec<_> =
        candidates.filter(|t| t.has_source && version(&t.release).is_some_and(|v| v >= MIN_VERSION)).collect();
    usable.sort_by(|a, b| {
        let rank =
            |t: &Toolchain| (t.origin != Origin::Explicit, !(t.origin == Origin::Rustup && t.is_nightly()), t.origin);
        rank(a).cmp(&rank(b)).then_with(|| b.commit_date.cmp(&a.commit_date))
    });
    usable.into_iter().next()
}

fn inspect(rustc: &Path, origin: Origin) -> Result<Toolchain> {
    let ask = |args: &[&str]| cmd::output(Command::new(rustc).args(args).env_remove("RUSTC_BOOTSTRAP"));
    let facts = ask(&["-vV"])?;
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    // Resolves a rustup proxy to the compiler behind it.
    let direct = sysroot.join("bin/rustc");
    let rustc = if cmd::is_executable(&direct) { direct } else { rustc.to_path_buf() };
    let has_source = source_dir(&sysroot).join("core/src/lib.rs").is_file();
    parse_facts(&facts, sysroot, rustc, has_source, origin)
}

fn parse_facts(facts: &str, sysroot: PathBuf, rustc: PathBuf, has_source: bool, origin: Origin) -> Result<Toolchain> {
    let field = |name: &str| {
        facts
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("`{} -vV` prints no \"{name}\"", rustc.display()))
    };
    let llvm = field("LLVM version")?;
    let llvm_major = llvm.split('.').next().and_then(|n| n.parse().ok());
    Ok(Toolchain {
        release: field("release")?.to_owned(),
        llvm_major: llvm_major.with_context(|| format!("LLVM version {llvm:?} is not a number"))?,
        commit_date: field("commit-date")?.to_owned(),
        sysroot,
        rustc,
        has_source,
        origin,
    })
}

fn source_dir(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn rustup_toolchains_dir() -> Option<PathBuf> {
    let home =
        env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    home.map(|home| home.join("toolchains"))
}

/// rustup's compilers that have rust-src; read from its folder, as starting each one takes time.
fn rustup_compilers() -> Vec<PathBuf> {
    let entries = rustup_toolchains_dir().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|dir| source_dir(dir).is_dir()).map(|dir| dir.join("bin/rustc")).collect()
}

/// Whether `rustc` is rustup's proxy (a link to, or copy of, the `rustup` beside it).
fn is_rustup_proxy(rustc: &Path) -> bool {
    rustc.with_file_name("rustup").exists()
}

/// Whether an environment variable would change what cargo builds. Network and registry settings are kept.
fn steers_cargo(key: &str) -> bool {
    let kept = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_BUILD_JOBS",
    ];
    let rust = ["RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
    (key.starts_with("CARGO") && !kept.iter().any(|p| key.starts_with(p))) || rust.iter().any(|p| key.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        commit-hash: ac68faa20\ncommit-date: 2026-05-25\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn toolchain(release: &str, commit_date: &str, has_source: bool, origin: Origin) -> Toolchain {
        Toolchain {
            sysroot: PathBuf::from("/t").join(release),
            rustc: PathBuf::from("/t").join(release).join("bin/rustc"),
            release: release.to_owned(),
            llvm_major: 22,
            commit_date: commit_date.to_owned(),
            has_source,
            origin,
        }
    }

    fn chosen(candidates: Vec<Toolchain>) -> Option<String> {
        choose(candidates.into_iter()).map(|t| t.release)
    }

    #[test]
    fn what_rustc_prints_is_understood() {
        let t = parse_facts(DEBIAN, "/usr".into(), "/usr/bin/rustc".into(), true, Origin::System).unwrap();
        assert_eq!((t.release.as_str(), t.llvm_major, t.is_nightly()), ("1.96.0", 22, false));
        let error = parse_facts("release: 1.96.0\n", "/".into(), "rustc".into(), true, Origin::System).unwrap_err();
        assert!(error.to_string().contains("LLVM version"), "{error}");
    }

    #[test]
    fn a_nightly_without_source_loses_to_any_compiler_with_it() {
        let nightly = toolchain("1.97.0-nightly", "2026-05-19", false, Origin::Rustup);
        let debian = toolchain("1.96.0", "2026-05-25", true, Origin::System);
        assert_eq!(chosen(vec![nightly.clone(), debian]).as_deref(), Some("1.96.0"));
        assert_eq!(chosen(vec![nightly]), None);
    }

    #[test]
    fn the_newest_rustup_nightly_is_preferred() {
        let old = toolchain("1.96.0-nightly", "2026-03-01", true, Origin::Rustup);
        let new = toolchain("1.97.0-nightly", "2026-05-19", true, Origin::Rustup);
        let stable = toolchain("1.98.0", "2026-08-01", true, Origin::Rustup);
        let debian = toolchain("1.96.0", "2026-05-25", true, Origin::System);
        assert_eq!(chosen(vec![debian.clone(), stable.clone(), old, new]).as_deref(), Some("1.97.0-nightly"));
        assert_eq!(chosen(vec![debian, stable]).as_deref(), Some("1.98.0"));
    }

    #[test]
    fn an_explicit_compiler_comes_first_and_an_old_one_never() {
        let explicit = toolchain("1.95.0", "2026-04-14", true, Origin::Explicit);
        let nightly = toolchain("1.97.0-nightly", "2026-05-19", true, Origin::Rustup);
        assert_eq!(chosen(vec![nightly, explicit]).as_deref(), Some("1.95.0"));
        assert_eq!(chosen(vec![toolchain("1.85.0", "2025-02-17", true, Origin::System)]), None);
    }

    #[test]
    fn host_choices_are_removed_and_network_settings_kept() {
        for key in
            ["CARGO", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR"]
        {
            assert!(steers_cargo(key), "{key}");
        }
        for key in
            ["CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_REGISTRIES_X_INDEX", "CARGO_TERM_COLOR", "RUST_BACKTRACE", "PATH"]
        {
            assert!(!steers_cargo(key), "{key}");
        }
    }
}
