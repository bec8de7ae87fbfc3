//! `cargo xtask run`, `bench` and `parity`: build what is needed as the current user, then become the program, as root.

use anyhow::Result;
use clap::Args;

use crate::{cmd, ebpf, setup};

/// What to run, and its arguments.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Show the agent at work instead: network namespaces with ordinary and hostile traffic, no interface of yours
    #[arg(long)]
    pub(crate) demo: bool,
    /// Build with debug assertions and without optimisations
    #[arg(long)]
    pub(crate) debug: bool,
    /// Build everything at full speed, which takes about twice as long: without it, models that tract runs are slower
    #[arg(long, conflicts_with = "debug")]
    pub(crate) release: bool,
    /// Arguments of `sensor run` (or of the demo), e.g. `-i eth0 --mode observe`; see `sensor run --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
}

/// Which bench to run.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// `datapath`, `scaling`, `profile`, `cpus`, `poll`, `victim` or `reaction`, and arguments of it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "NAME")]
    args: Vec<String>,
}

/// `cargo xtask run`. Returns only on failure.
///
/// # Errors
/// When setup or a build fails, or the program cannot be started as root.
pub(crate) fn run(args: RunArgs) -> Result<()> {
    let RunArgs { demo, debug, release, mut args } = args;
    cmd::require_way_to_root()?;
    if demo {
        setup::ensure(setup::Options::TESTS)?;
    }
    ebpf::ready()?;
    let mut build = cmd::cargo();
    build.args(["build", "-p", "sensor", "--bin", "sensor"]);
    if demo {
        build.args(["-p", "sensor-tests", "--bin", "sensor-demo"]);
    }
    // The demo's numbers are of the agent as it is released.
    let profile = match (debug, release || demo) {
        (true, _) => "dev",
        (false, true) => "release",
        (false, false) => "quick",
    };
    cmd::run(build.args(["--profile", profile]))?;

    let profile_dir = if debug { "debug" } else { profile };
    if demo {
        return cmd::exec_as_root(&cmd::host_binary(profile_dir, "sensor-demo")?, &args);
    }
    args.insert(0, "run".to_owned());
    if !args.iter().any(|arg| arg == "--summary") {
        args.push("--summary".to_owned());
    }
    // The default model's path is relative, and this may be called from any folder of the workspace.
    let names = |flag: &str| args.iter().any(|arg| arg == flag || arg.starts_with(&format!("{flag}=")));
    if !names("--model") && !names("--config") {
        args.push(format!("--model={}", cmd::workspace_root().join("models/sensor.onnx").display()));
    }
    cmd::exec_as_root(&cmd::host_binary(profile_dir, "sensor")?, &args)
}

/// `cargo xtask bench`. Returns only on failure.
///
/// # Errors
/// As [`run`].
pub(crate) fn bench(args: BenchArgs) -> Result<()> {
    // The others drive real servers and load tools, and the agent beside them.
    let programs = ["datapath", "scaling", "profile", "cpus"];
    let tools = args.args.first().is_none_or(|name| !programs.contains(&name.as_str()));
    if tools {
        setup::ensure(setup::Options::TESTS)?;
    }
    ebpf::ready()?;
    ebpf::build_bench()?;
    let mut build = cmd::cargo();
    build.args(["build", "--release", "-p", "sensor-tests", "--features", "bench", "--bin", "sensor-bench"]);
    if tools {
        build.args(["-p", "sensor", "--bin", "sensor"]);
    }
    cmd::run(&mut build)?;
    cmd::exec_as_root(&cmd::host_binary("release", "sensor-bench")?, &args.args)
}

/// Captures to compare, and other arguments.
#[derive(Args)]
pub(crate) struct ParityArgs {
    /// Captures, or folders of captures [default: $SENSOR_CAPTURES, else ../shared/captures]; --verbose lists what was
    /// not compared
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CAPTURE")]
    args: Vec<String>,
}

/// `cargo xtask parity`. Returns only on failure.
///
/// # Errors
/// As [`run`].
pub(crate) fn parity(args: ParityArgs) -> Result<()> {
    ebpf::ready()?;
    // With debug assertions: a silent overflow would be a difference, too.
    cmd::run(cmd::cargo().args(["build", "-p", "sensor-tests", "--bin", "sensor-parity"]))?;
    cmd::exec_as_root(&cmd::host_binary("debug", "sensor-parity")?, &args.args)
}
