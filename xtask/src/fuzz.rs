//! `cargo xtask fuzz`: libFuzzer over the parser, the flow record and the capture reader, for a while; over the model
//! loader and the control socket when they are named, as the whole agent and the runtime, instrumented, take very long
//! to build.
//!
//! Invariant: works with any Rust toolchain. The instrumentation is one of LLVM's own passes, which stable rustc runs too;
//! no sanitizer is added, as what is fuzzed forbids `unsafe`. Only libFuzzer's C++ runtime needs a compiler. The targets
//! are laid out for cargo-fuzz as well (`cargo +nightly fuzz run parse`). The committed corpus (fuzz/corpus) is read; what
//! is found new stays in target/fuzz.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{apt, cmd, ebpf};

/// fuzz/fuzz_targets: the quick ones, which are the default, and [`OF_AGENT`].
const TARGETS: [&str; 5] = ["parse", "record", "capture", "model", "control"];
/// The targets that need the whole agent, and the feature that has it: fuzzed only when named.
const OF_AGENT: [&str; 2] = ["model", "control"];
const AGENT: &str = "agent";
/// What cargo-fuzz passes for libFuzzer, without a sanitizer.
const INSTRUMENT: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Add to the committed corpus what reaches more code than it does
    #[arg(long)]
    keep: bool,
    /// Targets [default: parse, record, capture]
    #[arg(value_name = "TARGET", value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    targets: Vec<String>,
}

/// `cargo xtask fuzz`.
///
/// # Errors
/// When a target finds something (the message names the input), or cannot be built.
pub(crate) fn fuzz(args: FuzzArgs) -> Result<()> {
    let FuzzArgs { seconds, keep, targets } = args;
    let targets = if targets.is_empty() {
        TARGETS.into_iter().filter(|target| !OF_AGENT.contains(target)).map(str::to_owned).collect()
    } else {
        targets
    };
    ensure_compiler()?;
    let agent = targets.iter().any(|target| OF_AGENT.contains(&target.as_str()));
    if agent {
        // The agent embeds the kernel programs.
        ebpf::ready()?;
    }
    let (sources, work) = (cmd::workspace_root().join("fuzz"), cmd::workspace_root().join("target/fuzz"));
    let host = host()?;
    let mut build = cmd::cargo();
    // A target triple, even the host's own, keeps build scripts and macros from being instrumented.
    build.args(["build", "--target", &host, "--target-dir"]).arg(&work).current_dir(&sources);
    if agent {
        build.args(["--features", AGENT]);
    }
    cmd::run(build.env("RUSTFLAGS", INSTRUMENT).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;

    let mut failed = Vec::new();
    for target in &targets {
        let program = work.join(&host).join("debug").join(target);
        let (found, kept) = (work.join("corpus").join(target), sources.join("corpus").join(target));
        if let Err(error) = one(&program, &work, target, seconds, [&found, &kept]) {
            eprintln!("fuzz: {target}: {error:#}");
            failed.push(target.as_str());
        } else if keep {
            cmd::run(Command::new(&program).arg("-merge=1").args([&kept, &found]))?;
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} found something. The input is in target/fuzz/artifacts; run the target with it as its only argument:\n  {}",
            failed.join(", "),
            work.join(&host).join("debug").join(failed[0]).display()
        );
    }
    println!("fuzz: {} targets, {seconds} s each, nothing found", targets.len());
    Ok(())
}

fn one(program: &Path, work: &Path, target: &str, seconds: u32, corpora: [&PathBuf; 2]) -> Result<()> {
    let artifacts = work.join("artifacts");
    for folder in [&artifacts, corpora[0]] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let prefix = format!("-artifact_prefix={}/{target}-", artifacts.display());
    let mut run = Command::new(program);
    // A slow input is a finding too, and so is one that takes memory.
    run.args([&format!("-max_total_time={seconds}"), "-max_len=4096", "-timeout=10"]);
    // The runtimes that these hold have a footprint of their own.
    run.arg(if OF_AGENT.contains(&target) { "-rss_limit_mb=2048" } else { "-rss_limit_mb=512" });
    cmd::run(run.args([prefix.as_str(), "-verbosity=0", "-print_final_stats=1"]).args(corpora))
}

/// The host's target triple.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = cmd::output(Command::new(rustc).arg("-vV").current_dir(cmd::workspace_root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// libFuzzer's runtime is C++.
fn ensure_compiler() -> Result<()> {
    if std::env::var_os("CXX").is_some()
        || ["c++", "g++", "clang++"].iter().any(|name| cmd::find_in_path(name).is_some())
    {
        return Ok(());
    }
    if !apt::is_here() || !cmd::is_root() {
        bail!("fuzzing needs a C++ compiler for libFuzzer's runtime: install g++, then run the command again");
    }
    println!("fuzzing installs:\n  - Debian package g++: compiles libFuzzer's runtime");
    apt::ensure_lists()?;
    apt::install(&["g++".to_owned()])
}
