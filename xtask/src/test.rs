//! `cargo xtask test`: every test of the workspace, on a machine made ready for them first.
//!
//! Invariant: nothing is excluded, the Python part neither. The runner's own output goes straight to the terminal.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::{cmd, ebpf, python, setup};

/// Which tests to run.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Run only the tests that compare the programs of benches with the agent's; needs what compiles kernel programs
    #[arg(long)]
    benches: bool,
    /// Parts of test names, or other arguments for the runner (`cargo nextest run`, else `cargo test`); without any,
    /// all tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// `cargo xtask test`.
///
/// # Errors
/// When setup or a build fails, a test fails, or another user than root has no sudo.
pub(crate) fn test(args: TestArgs) -> Result<()> {
    cmd::require_way_to_root()?;
    setup::ensure(setup::Options::TESTS)?;
    ebpf::ready()?;
    if args.benches {
        ebpf::build_bench()?;
        become_able_to_attach()?;
        let mut programs = cmd::cargo();
        // Over the whole workspace, as above.
        programs.args(["test", "--workspace", "--features", "sensor-tests/bench", "--test", "programs", "bench::"]);
        return cmd::run(as_root(&mut programs));
    }
    // Over the whole workspace, so that dependencies get the same features as in the test build: built once.
    cmd::run(cmd::cargo().args(["build", "--workspace", "--bin", "sensor"]))?;
    become_able_to_attach()?;

    if cmd::succeeds(cmd::cargo().args(["nextest", "--version"])) {
        cmd::run(as_root(cmd::cargo().args(["nextest", "run", "--workspace"]).args(&args.filter)))?;
        if args.filter.is_empty() {
            // nextest runs no doctests; they attach nothing.
            cmd::run(cmd::cargo().args(["test", "--workspace", "--doc"]))?;
            python::test()?;
        }
        return Ok(());
    }
    println!("cargo-nextest is not installed: cargo test is used, which has no time limits");
    let mut parallel = cmd::cargo();
    parallel.args(["test", "--workspace", "--exclude", "sensor-tests", "--no-fail-fast"]);
    cmd::run(as_root(parallel.args(&args.filter)))?;
    // Whole-agent tests share the machine's kernel and its clocks; one at a time, as in .config/nextest.toml.
    let mut serial = cmd::cargo();
    serial.args(["test", "-p", "sensor-tests", "--no-fail-fast"]).args(&args.filter);
    if !args.filter.iter().any(|arg| arg == "--") {
        serial.arg("--");
    }
    cmd::run(as_root(serial.arg("--test-threads=1")))?;
    if args.filter.is_empty() { python::test() } else { Ok(()) }
}

/// How long, and which run.
#[derive(Args)]
pub(crate) struct ChaosArgs {
    /// Minutes that it lasts
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Repeat the deeds of the run that said it had this seed
    #[arg(long)]
    seed: Option<u64>,
}

/// `cargo xtask chaos`: the test of tests/break/chaos for longer than among all tests. It measures from outside that
/// nobody is worse off with an agent than without.
///
/// # Errors
/// As [`test`].
pub(crate) fn chaos(args: &ChaosArgs) -> Result<()> {
    cmd::require_way_to_root()?;
    setup::ensure(setup::Options::TESTS)?;
    ebpf::ready()?;
    cmd::run(cmd::cargo().args(["build", "--workspace", "--bin", "sensor"]))?;
    become_able_to_attach()?;
    let mut chaos = cmd::cargo();
    chaos.args(["test", "--workspace", "--test", "break", "--", "chaos::", "--nocapture"]);
    chaos.env("CHAOS_SECONDS", (args.minutes * 60).to_string());
    if let Some(seed) = args.seed {
        chaos.env("CHAOS_SEED", seed.to_string());
    }
    cmd::run(as_root(&mut chaos))
}

/// Makes sure, before minutes of tests, that test binaries can run as root.
fn become_able_to_attach() -> Result<()> {
    if cmd::is_root() {
        return Ok(());
    }
    let Some(sudo) = cmd::find_in_path("sudo") else {
        bail!(
            "the tests attach programs in network namespaces, which needs root, and there is no sudo here.\n\
             All is built; run `cargo xtask test` as root, or only the pure tests: cargo test -p sensor-common -p xtask"
        );
    };
    println!("the tests attach programs in network namespaces: their binaries (not cargo) run through sudo");
    cmd::run(Command::new(sudo).arg("-v"))
}

/// As another user than root, cargo builds as that user and starts each test binary through sudo.
fn as_root(command: &mut Command) -> &mut Command {
    if cmd::is_root() {
        return command;
    }
    let target = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_ascii_uppercase());
    command.env(target, "sudo --preserve-env --non-interactive")
}
