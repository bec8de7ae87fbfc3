//! Rust compilers on this machine that can build the eBPF object, and which of them is preferred.
//!
//! Invariant: a compiler counts because its sysroot holds the source of `core` (the BPF target ships no compiled one),
//! never because of its channel's name.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::cmd;

/// The version that compiles the committed object, and the commit it was built from. Its LLVM has this major version.
pub(super) const PINNED: &str = "1.96.0";
const PINNED_COMMIT: &str = "ac68faa20";
pub(super) const PINNED_LLVM: u32 = 22;
/// The oldest compiler the workspace builds with (`rust-version` in Cargo.toml).
pub(super) const MIN_VERSION: (u32, u32) = (1, 95);
/// Debian's packages of that version, the compiler's own first.
pub(super) const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Where a compiler was found; earlier is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// Named by `SENSOR_BPF_RUSTC`.
    Explicit,
    /// One of rustup's toolchains: the project's own in target/tools, or the user's.
    Rustup,
    /// A rustc in PATH, or Debian's.
    System,
}

/// A Rust compiler that was asked who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// The folder with `bin/rustc` and `lib/rustlib`.
    pub(crate) sysroot: PathBuf,
    /// Absolute path of the compiler (no rustup proxy).
    pub(crate) rustc: PathBuf,
    /// As rustc prints it, e.g. `1.97.0-nightly`.
    pub(crate) release: String,
    /// The major version of its LLVM: bpf-linker must understand that bitcode.
    pub(crate) llvm_major: u32,
    /// The commit it was built from, abbreviated as in `rustc --version`.
    commit: String,
    commit_date: String,
    has_source: bool,
    origin: Origin,
}

impl Compiler {
    /// Whether `-Z` flags work without `RUSTC_BOOTSTRAP`.
    pub(crate) fn is_nightly(&self) -> bool {
        self.release.contains("nightly") || self.release.contains("dev")
    }

    /// Whether it is the one that the project has pinned, from whatever source.
    pub(crate) fn is_pinned(&self) -> bool {
        self.release == PINNED && self.commit == PINNED_COMMIT
    }

    /// Whether the user named it.
    pub(super) fn is_chosen(&self) -> bool {
        self.origin == Origin::Explicit
    }

    /// As `rustc --version` names it, without a distribution's note.
    pub(crate) fn name(&self) -> String {
        format!("rustc {} ({} {})", self.release, self.commit, self.commit_date)
    }

    /// The RUSTUP_HOME that it is below, and the name rustup knows it by; `None`: rustup does not manage it.
    pub(crate) fn rustup(&self) -> Option<(PathBuf, String)> {
        let home = rustup_homes().into_iter().find(|home| self.sysroot.starts_with(home.join("toolchains")))?;
        Some((home, self.sysroot.file_name()?.to_string_lossy().into_owned()))
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

/// Every compiler with rust-src that is new enough, in no order; only the one that `SENSOR_BPF_RUSTC` names, if it does.
///
/// # Errors
/// When `SENSOR_BPF_RUSTC` names a compiler that cannot be used: an explicit choice is never replaced silently.
pub(super) fn all() -> Result<Vec<Compiler>> {
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
        return Ok(vec![found]);
    }
    let rustup = rustup_compilers().into_iter().map(|rustc| (rustc, Origin::Rustup));
    let system = cmd::all_in_path("rustc").into_iter().filter(|rustc| !is_rustup_proxy(rustc));
    let system = system.map(|rustc| (rustc, Origin::System));
    // One broken compiler somewhere in PATH must not stop a good one from being used.
    let found = rustup.chain(system).filter_map(|(rustc, origin)| inspect(&rustc, origin).ok());
    Ok(found.filter(|one| one.has_source && version(&one.release).is_some_and(|v| v >= MIN_VERSION)).collect())
}

/// The order of choice: an explicit one, the pinned version, then newer before older.
pub(super) fn by_preference(mut compilers: Vec<Compiler>) -> Vec<Compiler> {
    let rank = |one: &Compiler| (!one.is_chosen(), !one.is_pinned(), one.origin);
    compilers.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| b.commit_date.cmp(&a.commit_date)));
    compilers
}

/// Whether [`Compiler::name`] gives this for the pinned compiler.
pub(super) fn is_pinned(name: &str) -> bool {
    name.starts_with(&format!("rustc {PINNED} ({PINNED_COMMIT} "))
}

fn inspect(rustc: &Path, origin: Origin) -> Result<Compiler> {
    let ask = |args: &[&str]| cmd::output(Command::new(rustc).args(args).env_remove("RUSTC_BOOTSTRAP"));
    let facts = ask(&["-vV"])?;
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    // Resolves a rustup proxy to the compiler behind it.
    let direct = sysroot.join("bin/rustc");
    let rustc = if cmd::is_executable(&direct) { direct } else { rustc.to_path_buf() };
    let has_source = source_dir(&sysroot).join("core/src/lib.rs").is_file();
    parse_facts(&facts, sysroot, rustc, has_source, origin)
}

fn parse_facts(facts: &str, sysroot: PathBuf, rustc: PathBuf, has_source: bool, origin: Origin) -> Result<Compiler> {
    let field = |name: &str| {
        facts
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("`{} -vV` prints no \"{name}\"", rustc.display()))
    };
    let llvm = field("LLVM version")?;
    let llvm_major = llvm.split('.').next().and_then(|n| n.parse().ok());
    Ok(Compiler {
        release: field("release")?.to_owned(),
        llvm_major: llvm_major.with_context(|| format!("LLVM version {llvm:?} is not a number"))?,
        // Nine digits, as in the first line of what it prints; distributions give no more.
        commit: field("commit-hash")?.chars().take(9).collect(),
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

/// The project's own toolchains, and the user's.
fn rustup_homes() -> Vec<PathBuf> {
    let users =
        env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    [Some(super::machine::rustup_home()), users].into_iter().flatten().collect()
}

/// rustup's compilers that have rust-src; read from its folders, as starting each one takes time.
fn rustup_compilers() -> Vec<PathBuf> {
    let dirs = rustup_homes().into_iter().filter_map(|home| fs::read_dir(home.join("toolchains")).ok());
    let toolchains = dirs.flatten().flatten().map(|entry| entry.path());
    toolchains.filter(|dir| source_dir(dir).is_dir()).map(|dir| dir.join("bin/rustc")).collect()
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
impl Compiler {
    /// One of a test's machine.
    pub(super) fn test(release: &str, date: &str, llvm_major: u32, origin: Origin) -> Compiler {
        let sysroot = PathBuf::from("/t").join(release);
        let commit = if release == PINNED { PINNED_COMMIT } else { "0123456789" }.to_owned();
        let (rustc, release, commit_date) = (sysroot.join("bin/rustc"), release.to_owned(), date.to_owned());
        Compiler { sysroot, rustc, release, llvm_major, commit, commit_date, has_source: true, origin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        commit-hash: ac68faa20\ncommit-date: 2026-05-25\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn what_rustc_prints_is_understood() {
        let debian = parse_facts(DEBIAN, "/usr".into(), "/usr/bin/rustc".into(), true, Origin::System).unwrap();
        assert_eq!((debian.release.as_str(), debian.llvm_major, debian.is_nightly()), ("1.96.0", 22, false));
        assert!(debian.is_pinned());
        assert_eq!(debian.name(), "rustc 1.96.0 (ac68faa20 2026-05-25)");
        let upstream = DEBIAN.replace("hash: ac68faa20", "hash: ac68faa20c58cbccd01ee7208bf3b6e93a7d7f96");
        let upstream = parse_facts(&upstream, "/usr".into(), "/usr/bin/rustc".into(), true, Origin::Rustup).unwrap();
        assert!(upstream.is_pinned() && upstream.name() == debian.name());
        let error = parse_facts("release: 1.96.0\n", "/".into(), "rustc".into(), true, Origin::System).unwrap_err();
        assert!(error.to_string().contains("LLVM version"), "{error}");
    }

    #[test]
    fn the_pinned_version_is_preferred_and_an_explicit_choice_before_it() {
        let one = |release, date, origin| Compiler::test(release, date, 22, origin);
        let order = |compilers: Vec<Compiler>| -> Vec<String> {
            by_preference(compilers).into_iter().map(|one| one.release).collect()
        };
        let old = one("1.96.0-nightly", "2026-03-01", Origin::Rustup);
        let new = one("1.97.0-nightly", "2026-05-19", Origin::Rustup);
        let pinned = one("1.96.0", "2026-05-25", Origin::System);
        let explicit = one("1.95.0", "2026-04-14", Origin::Explicit);
        assert_eq!(
            order(vec![old.clone(), new.clone(), pinned.clone()]),
            ["1.96.0", "1.97.0-nightly", "1.96.0-nightly"]
        );
        assert_eq!(order(vec![pinned, explicit, new]), ["1.95.0", "1.96.0", "1.97.0-nightly"]);
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
