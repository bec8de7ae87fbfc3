//! `cargo xtask setup`: makes this machine able to compile the kernel programs, and to run the tests and checks.
//!
//! Invariant: everything that will be installed is printed, with its reason, before the system is touched; what is
//! already there is not touched. Never calls sudo. Also called by the commands that need its result: [`ensure`] for
//! packages, [`toolchain`] for what compiles the kernel programs.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    apt, cmd,
    toolchain::{self, Attempt, Compiler, Here, RUSTUP_HOME, Toolchain},
};

/// What to install.
#[derive(Args, Default, Clone, Copy)]
pub(crate) struct Options {
    /// Do not ask; also the case when stdin is not a terminal
    #[arg(long)]
    yes: bool,
    /// What compiles the kernel programs: a Rust toolchain with rust-src, and bpf-linker. Only changes of sensor-ebpf or
    /// sensor-common need it
    #[arg(long)]
    ebpf: bool,
    /// Also install what the tests and the demo drive: nginx, wrk, nmap, Prometheus and others (Debian packages)
    #[arg(long)]
    tests: bool,
    /// Also install what `cargo xtask lint` runs: clippy for the BPF toolchain, and cargo-deny
    #[arg(long)]
    lint: bool,
    /// Also install what `cargo xtask packages` runs: debootstrap, systemd-nspawn, lintian
    #[arg(long)]
    packages: bool,
    /// Also install what `cargo xtask vm` runs: qemu, busybox, cpio
    #[arg(long)]
    vm: bool,
    /// Only print what would be installed
    #[arg(long)]
    dry_run: bool,
    /// Only the Debian packages: what the command printed for sudo does, so that root writes nothing into target/
    #[arg(long, hide = true)]
    packages_only: bool,
}

impl Options {
    /// What the build of the agent needs beyond Rust: nothing.
    pub(crate) const BUILD: Self = Self {
        yes: false,
        ebpf: false,
        tests: false,
        lint: false,
        packages: false,
        vm: false,
        dry_run: false,
        packages_only: false,
    };
    /// What running the tests or the demo needs.
    pub(crate) const TESTS: Self = Self { tests: true, ..Self::BUILD };
    /// What `cargo xtask lint` needs.
    pub(crate) const LINT: Self = Self { lint: true, ..Self::BUILD };
    /// What `cargo xtask packages` needs beyond the packages.
    pub(crate) const PACKAGES: Self = Self { packages: true, ..Self::BUILD };
    /// What `cargo xtask vm` needs beyond the binaries.
    pub(crate) const VM: Self = Self { vm: true, ..Self::BUILD };
}

/// A Debian package that tests need, a program that shows it is there, and what tests use it for.
const TEST_TOOLS: [(&str, &str, &str); 18] = [
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
    ("bpftool", "bpftool", "a tool that takes programs off interfaces"),
    ("nftables", "nft", "checks of marks set by the agent"),
    ("tcpdump", "tcpdump", "captures to compare with"),
    ("prometheus", "promtool", "scrapes, and checks of the exposition and rules"),
    ("iputils-ping", "ping", "reachability"),
    ("ethtool", "ethtool", "offloads of test links"),
];
/// The same for the tests of packages.
const PACKAGE_TOOLS: [(&str, &str, &str); 5] = [
    ("debootstrap", "debootstrap", "a Debian to install the package in"),
    ("systemd-container", "systemd-nspawn", "boots it"),
    ("lintian", "lintian", "looks at the package"),
    ("iproute2", "ip", "its network"),
    ("curl", "curl", "its metrics"),
];
/// The same for other kernels.
const VM_TOOLS: [(&str, &str, &str); 5] = [
    ("qemu-system-x86", "qemu-system-x86_64", "boots kernels for x86-64"),
    ("qemu-system-arm", "qemu-system-aarch64", "boots kernels for 64-bit Arm"),
    ("cpio", "cpio", "packs their initial RAM disk"),
    ("xz-utils", "xz", "unpacks their modules"),
    ("zstd", "zstd", "unpacks modules of newer ones"),
];
/// Not a program in PATH, so looked for by importing it.
const PYTHON_VENV: (&str, &str) = ("python3-venv", "the model pipeline's environment");

/// One thing to install.
enum Step {
    Apt { package: &'static str, why: &'static str },
    CargoDeny,
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Self::Apt { package, why } => format!("Debian package {package}: {why}"),
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
pub(crate) fn setup(mut options: Options) -> Result<()> {
    // Asked for by itself, the command gets what no other command needs unless the kernel programs were changed.
    options.ebpf |= !options.tests && !options.lint && !options.packages && !options.vm;
    let mut is_new = ensure(options)?;
    if options.ebpf && env::var_os("SENSOR_EBPF_OBJECT").is_none() && !options.packages_only {
        let found = toolchain::find(&Here)?.filter(is_wanted);
        is_new |= found.is_none();
        match found {
            Some(Toolchain { compiler, linker }) => println!("kernel programs: {}, {}", compiler.name(), linker.name()),
            None if options.dry_run => print_plan(&toolchain::plan(&Here)?),
            None => drop(self::toolchain(options)?),
        }
    }
    if !is_new {
        println!("nothing to install");
    }
    Ok(())
}

/// The toolchain of the kernel programs: the one that is here, else what can be had. The pinned one, if it can be had.
///
/// # Errors
/// When there is none, and every source of one failed; the message names each.
pub(crate) fn toolchain(options: Options) -> Result<Toolchain> {
    let found = toolchain::find(&Here)?;
    if let Some(found) = found.clone().filter(is_wanted) {
        return Ok(found);
    }
    let plan = toolchain::plan(&Here)?;
    print_plan(&plan);
    if !plan.is_empty() && !options.yes && !cmd::confirm("Proceed?")? {
        match found {
            Some(found) => return Ok(found),
            None => bail!("nothing was installed, as you said no.\n{}", toolchain::HOW_TO_INSTALL),
        }
    }
    match (toolchain::obtain(&mut Here, &plan), found) {
        (Ok(toolchain), _) => Ok(toolchain),
        (Err(error), Some(found)) => {
            println!("note: {} serves, which is not the pinned compiler: {error:#}", found.compiler.name());
            Ok(found)
        }
        // What the plan of an ordinary user cannot have.
        (Err(error), None) if !cmd::is_root() && apt::is_here() => {
            let program = env::current_exe().context("cannot find the path of the running xtask")?;
            bail!(
                "{error:#}\nOr let root install Debian's packages. Run this, then the command again:\n  \
                 sudo env \"HOME=$HOME\" \"PATH=$PATH\" {} setup --ebpf --packages-only",
                program.display()
            )
        }
        (Err(error), None) => Err(error),
    }
}

/// Whether nothing better needs to be looked for.
fn is_wanted(found: &Toolchain) -> bool {
    found.is_pinned() || env::var_os("SENSOR_BPF_RUSTC").is_some()
}

fn print_plan(plan: &[Attempt]) {
    println!("the kernel programs are compiled by a Rust compiler with rust-src, and by bpf-linker. What is tried:");
    for (number, attempt) in plan.iter().enumerate() {
        let otherwise = if number == 0 { "" } else { "if that fails: " };
        println!("  {}. {otherwise}{}", number + 1, attempt.describe());
    }
    if plan.is_empty() {
        println!("  (nothing: there is no rustup here, and no Debian packages that this user can install)");
    }
}

/// Installs the packages that are missing and says so; returns whether anything was missing.
///
/// # Errors
/// As [`setup`].
pub(crate) fn ensure(options: Options) -> Result<bool> {
    let mut steps = Vec::new();
    if options.ebpf && options.packages_only {
        let why = "compiles the kernel programs";
        let missing = toolchain::DEBIAN_PACKAGES.into_iter().filter(|package| !apt::is_installed(package));
        steps.extend(missing.map(|package| Step::Apt { package, why }));
    }
    if options.tests {
        tool_steps(&TEST_TOOLS, &mut steps);
        python_step(&mut steps);
    }
    if options.packages {
        tool_steps(&PACKAGE_TOOLS, &mut steps);
    }
    if options.vm {
        tool_steps(&VM_TOOLS, &mut steps);
    }
    if options.lint {
        lint_steps(&mut steps);
    }
    if options.packages_only {
        steps.retain(|step| matches!(step, Step::Apt { .. }));
    }
    if steps.is_empty() {
        return Ok(false);
    }
    println!("setup installs:");
    for step in &steps {
        println!("  - {}", step.describe());
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
    if steps.iter().any(|step| matches!(step, Step::CargoDeny)) {
        install_cargo_deny()?;
    }
    Ok(true)
}

fn tool_steps(tools: &[(&'static str, &str, &'static str)], steps: &mut Vec<Step>) {
    for (package, program, why) in tools {
        if cmd::find_in_path(program).is_none() {
            steps.push(Step::Apt { package, why });
        }
    }
}

fn python_step(steps: &mut Vec<Step>) {
    if !cmd::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        let (package, why) = PYTHON_VENV;
        steps.push(Step::Apt { package, why });
    }
}

fn lint_steps(steps: &mut Vec<Step>) {
    if cargo_deny().is_none() {
        steps.push(Step::CargoDeny);
    }
}

/// Gets clippy for the compiler of the kernel programs, which comes apart from it: rustup's into the project's own
/// toolchain, Debian's as a package. Returns whether it is there; a toolchain of the user's is not touched.
///
/// # Errors
/// When the download fails.
pub(crate) fn clippy(compiler: &Compiler) -> Result<bool> {
    let is_there = || compiler.program("cargo-clippy").is_some() && compiler.program("clippy-driver").is_some();
    if is_there() {
        return Ok(true);
    }
    match compiler.rustup() {
        Some((home, name)) if home.starts_with(cmd::tools_root()) => {
            let mut add = Command::new("rustup");
            cmd::run(add.args(["component", "add", "clippy", "--toolchain", &name]).env(RUSTUP_HOME, home))?;
        }
        None if cmd::is_root() && apt::is_here() => {
            println!("setup installs:\n  - Debian package rust-web-clippy: lints the kernel programs");
            apt::install(&["rust-web-clippy".to_owned()])?;
        }
        _ => {}
    }
    Ok(is_there())
}

/// cargo-deny: the project's own, else the one in PATH.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    let own = cmd::tools_root().join("bin/cargo-deny");
    if cmd::is_executable(&own) { Some(own) } else { cmd::find_in_path("cargo-deny") }
}

fn apt_packages(steps: &[Step]) -> Vec<String> {
    let package = |step: &Step| match step {
        Step::Apt { package, .. } => Some((*package).to_owned()),
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
        let flags = [
            (options.ebpf, " --ebpf"),
            (options.tests, " --tests"),
            (options.lint, " --lint"),
            (options.packages, " --packages"),
            (options.vm, " --vm"),
        ];
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

fn install_cargo_deny() -> Result<()> {
    cmd::run(cmd::cargo().args(["install", "--locked", "cargo-deny", "--root"]).arg(cmd::tools_root()))
}
