//! `cargo xtask setup`: makes this machine able to build the eBPF object and, on request, to run the tests and checks.
//!
//! Invariant: everything that will be installed is printed, with its reason, before the system is touched; what is
//! already there is not touched. Never calls sudo. Also called, as [`ensure`], by the commands that need its result.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{apt, cmd, linker, toolchain, toolchain::Toolchain};

/// What to install.
#[derive(Args, Default, Clone, Copy)]
pub(crate) struct Options {
    /// Do not ask; also the case when stdin is not a terminal
    #[arg(long)]
    yes: bool,
    /// Also install what the tests and the demo drive: nginx, wrk, nmap, Prometheus and others (Debian packages)
    #[arg(long)]
    tests: bool,
    /// Also install what `cargo xtask lint` runs: clippy for the BPF toolchain, and cargo-deny
    #[arg(long)]
    lint: bool,
    /// Only print what would be installed
    #[arg(long)]
    dry_run: bool,
    /// Only the Debian packages: what the command printed for sudo does, so that root writes nothing into target/
    #[arg(long, hide = true)]
    packages_only: bool,
}

impl Options {
    /// What building needs.
    pub(crate) const BUILD: Self = Self { yes: false, tests: false, lint: false, dry_run: false, packages_only: false };
    /// What running the tests or the demo needs.
    pub(crate) const TESTS: Self = Self { tests: true, ..Self::BUILD };
    /// What `cargo xtask lint` needs.
    pub(crate) const LINT: Self = Self { lint: true, ..Self::BUILD };
}

/// The Debian packages of the BPF toolchain. Their compiler and this LLVM belong together.
const DEBIAN_TOOLCHAIN: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];
const DEBIAN_LLVM_MAJOR: u32 = 22;

/// A Debian package that tests need, a program that shows it is there, and what tests use it for.
const TEST_TOOLS: [(&str, &str, &str); 17] = [
    ("nginx-light", "nginx", "an HTTP server to talk to"),
    ("curl", "curl", "ordinary requests, and /metrics"),
    ("wrk", "wrk", "HTTP load"),
    ("openssh-server", "sshd", "a login server; never started as a service"),
    ("openssh-client", "ssh", "interactive sessions"),
    ("dnsmasq-base", "dnsmasq", "a DNS server"),
    ("bind9-dnsutils", "dig", "DNS queries"),
    ("nmap", "nmap", "scans"),
    ("hping3", "hping3", "floods"),
    ("slowhttptest", "slowhttptest", "slow-request attacks"),
    ("hydra", "hydra", "password guessing"),
    ("iproute2", "tc", "namespaces, links, qdiscs"),
    ("nftables", "nft", "checks of marks set by the agent"),
    ("tcpdump", "tcpdump", "captures to compare with"),
    ("prometheus", "promtool", "scrapes, and checks of the exposition and rules"),
    ("iputils-ping", "ping", "reachability"),
    ("ethtool", "ethtool", "offloads of test links"),
];
/// Not a program in PATH, so looked for by importing it.
const PYTHON_VENV: (&str, &str) = ("python3-venv", "the model pipeline's environment");

/// One thing to install.
enum Step {
    Apt { package: String, why: &'static str },
    Rustup { args: Vec<String>, why: &'static str },
    BpfLinker,
    CargoDeny,
}

impl Step {
    fn describe(&self, linker: &str) -> String {
        match self {
            Self::Apt { package, why } => format!("Debian package {package}: {why}"),
            Self::Rustup { args, why } => format!("rustup {}: {why}", args.join(" ")),
            Self::BpfLinker => format!("bpf-linker in target/tools ({linker}): links the eBPF object"),
            Self::CargoDeny => {
                "cargo-deny in target/tools (compiled here, minutes): checks licences and sources".to_owned()
            }
        }
    }
}

/// `cargo xtask setup`.
///
/// # Errors
/// When something cannot be installed; the message says what to run instead.
pub(crate) fn setup(options: Options) -> Result<()> {
    if ensure(options)? {
        return Ok(());
    }
    let with = match env::var_os("SENSOR_EBPF_OBJECT") {
        Some(object) => format!("the eBPF object is {} (SENSOR_EBPF_OBJECT)", object.display()),
        None => toolchain::require()
            .map(|t| format!("the eBPF object is built by {} ({})", t.rustc.display(), t.release))?,
    };
    println!("nothing to install; {with}");
    Ok(())
}

/// Installs what is missing and says so; returns whether anything was missing.
///
/// # Errors
/// As [`setup`].
pub(crate) fn ensure(options: Options) -> Result<bool> {
    let prebuilt_object = env::var_os("SENSOR_EBPF_OBJECT").is_some();
    let found = toolchain::find()?;
    let mut steps = Vec::new();
    if !prebuilt_object {
        toolchain_steps(found.as_ref(), options, &mut steps)?;
    }
    if options.tests {
        test_tool_steps(&mut steps);
    }
    if options.lint {
        lint_steps(found.as_ref(), &mut steps);
    }
    if options.packages_only {
        steps.retain(|step| matches!(step, Step::Apt { .. }));
    }
    if steps.is_empty() {
        return Ok(false);
    }

    let linker = match &found {
        Some(toolchain) => linker::Source::choose(toolchain.llvm_major).describe(),
        None if steps.iter().any(|step| matches!(step, Step::Apt { .. })) => {
            format!("compiled here against LLVM {DEBIAN_LLVM_MAJOR}")
        }
        None => "for the toolchain above".to_owned(),
    };
    println!("setup installs:");
    for step in &steps {
        println!("  - {}", step.describe(&linker));
    }
    if options.dry_run {
        return Ok(true);
    }
    let packages = apt_packages(&steps);
    refuse_unless_root(&packages, options)?;
    if !options.yes && !cmd::confirm("Proceed?")? {
        bail!("nothing was installed, as you said no; `cargo xtask setup --dry-run` shows the list again");
    }

    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    for step in &steps {
        match step {
            Step::Apt { .. } => {}
            Step::Rustup { args, .. } => cmd::run(Command::new("rustup").args(args))?,
            Step::BpfLinker => install_linker()?,
            Step::CargoDeny => install_cargo_deny()?,
        }
    }
    Ok(true)
}

fn toolchain_steps(found: Option<&Toolchain>, options: Options, steps: &mut Vec<Step>) -> Result<()> {
    let Some(found) = found else {
        if !options.dry_run {
            apt::ensure_lists()?;
        }
        let debian = apt::candidate(DEBIAN_TOOLCHAIN[0]).is_some_and(|version| version >= (1, 95));
        if debian && (cmd::is_root() || cmd::find_in_path("rustup").is_none()) {
            let why = "compiles the eBPF object (a Rust toolchain with the source of core, and its LLVM)";
            steps.extend(DEBIAN_TOOLCHAIN.map(|package| Step::Apt { package: package.to_owned(), why }));
        } else if cmd::find_in_path("rustup").is_some() {
            let args = ["toolchain", "install", "nightly", "--component", "rust-src", "--no-self-update"];
            let why = "compiles the eBPF object, which needs the source of core; your default toolchain stays";
            steps.push(Step::Rustup { args: args.map(str::to_owned).into(), why });
        } else {
            bail!(
                "this machine has neither rustup nor a Debian with rustc-web 1.95 or newer.\n{}",
                toolchain::HOW_TO_INSTALL
            );
        }
        steps.push(Step::BpfLinker);
        return Ok(());
    };
    if linker::find(found)?.is_none() {
        steps.push(Step::BpfLinker);
    }
    Ok(())
}

fn test_tool_steps(steps: &mut Vec<Step>) {
    for (package, program, why) in TEST_TOOLS {
        if cmd::find_in_path(program).is_none() {
            steps.push(Step::Apt { package: package.to_owned(), why });
        }
    }
    if !cmd::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        let (package, why) = PYTHON_VENV;
        steps.push(Step::Apt { package: package.to_owned(), why });
    }
}

fn lint_steps(found: Option<&Toolchain>, steps: &mut Vec<Step>) {
    let why = "lints the eBPF crate with the compiler that builds it";
    match found {
        Some(toolchain) if toolchain.program("clippy-driver").is_none() => match toolchain.rustup_name() {
            Some(name) => {
                let args = ["component", "add", "clippy", "--toolchain", &name];
                steps.push(Step::Rustup { args: args.map(str::to_owned).into(), why });
            }
            None => steps.push(Step::Apt { package: "rust-web-clippy".to_owned(), why }),
        },
        // rustup's nightly, the other choice, comes with clippy.
        None if steps.iter().any(|step| matches!(step, Step::Apt { .. })) => {
            steps.push(Step::Apt { package: "rust-web-clippy".to_owned(), why });
        }
        _ => {}
    }
    if cargo_deny().is_none() {
        steps.push(Step::CargoDeny);
    }
}

/// cargo-deny: the project's own, else the one in PATH.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    let own = cmd::tools_root().join("bin/cargo-deny");
    if cmd::is_executable(&own) { Some(own) } else { cmd::find_in_path("cargo-deny") }
}

fn apt_packages(steps: &[Step]) -> Vec<String> {
    let package = |step: &Step| match step {
        Step::Apt { package, .. } => Some(package.clone()),
        _ => None,
    };
    steps.iter().filter_map(package).collect()
}

/// Packages need root and a machine with apt; anything else is told what to do, not done behind the user's back.
fn refuse_unless_root(packages: &[String], options: Options) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !apt::is_here() {
        bail!(
            "this machine has no apt-get; install the equivalents of: {}, then run the command again",
            packages.join(" ")
        );
    }
    if !cmd::is_root() {
        let program = env::current_exe().context("cannot find the path of the running xtask")?;
        let flags = [(options.tests, " --tests"), (options.lint, " --lint")];
        let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
        // HOME and PATH, so that root sees this user's rustup and does not install a second toolchain.
        bail!(
            "installing packages needs root. Run this, then the command again:\n  \
             sudo env \"HOME=$HOME\" \"PATH=$PATH\" {} setup --packages-only{flags}",
            program.display()
        );
    }
    apt::ensure_lists()
}

fn install_linker() -> Result<()> {
    let toolchain = toolchain::require()?;
    let source = linker::Source::choose(toolchain.llvm_major);
    source.install()?;
    linker::require(&toolchain).map(drop)
}

fn install_cargo_deny() -> Result<()> {
    cmd::run(cmd::cargo().args(["install", "--locked", "cargo-deny", "--root"]).arg(cmd::tools_root()))
}
