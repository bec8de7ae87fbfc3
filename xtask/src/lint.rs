//! `cargo xtask lint`: everything that can be said about the code without running it.
//!
//! Invariant: needs no network once its tools are there (security advisories, which do, are CI's part), and changes
//! no file of the project. All checks run even if one fails, so that one run shows everything.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, docs, ebpf, setup, toolchain::Toolchain};

/// `cargo xtask lint`.
///
/// # Errors
/// Names the checks that failed; their own messages come before.
pub(crate) fn lint() -> Result<()> {
    setup::ensure(setup::Options::LINT)?;
    let built = ebpf::ready()?;
    let toolchain = kernel_toolchain();
    let checks: [(&str, &dyn Fn() -> Result<()>); 9] = [
        ("format", &|| {
            cmd::run(cmd::cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all` to repair it")
        }),
        // A workspace of its own.
        ("format of the fuzz targets", &|| {
            cmd::run(cmd::cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
                .context("run `cargo fmt --manifest-path fuzz/Cargo.toml` to repair it")
        }),
        ("clippy", &|| cmd::run(cmd::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
        // The tests' crate switches on what benches need.
        ("clippy without benches", &|| {
            let of = ["clippy", "--workspace", "--exclude", "sensor-tests", "--all-targets", "--", "-D", "warnings"];
            cmd::run(cmd::cargo().args(of))
        }),
        ("committed eBPF object", &|| ebpf::check(toolchain.as_ref())),
        ("clippy for BPF", &|| clippy_for_bpf(toolchain.as_ref())),
        ("dependencies", &deny),
        ("documents", &|| docs::generate(true)),
        ("cost of the kernel programs", &|| ebpf::check_budget(&built)),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            eprintln!("lint: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    println!("lint: all checks passed");
    Ok(())
}

/// What compiles the kernel programs; a machine on which it cannot be had checks all but what needs it, and says so.
fn kernel_toolchain() -> Option<Toolchain> {
    setup::toolchain(setup::Options::LINT)
        .inspect_err(|error| println!("note: the kernel programs are not compiled and not linted here: {error:#}"))
        .ok()
}

fn clippy_for_bpf(toolchain: Option<&Toolchain>) -> Result<()> {
    let Some(toolchain) = toolchain else { return Ok(()) };
    if !setup::clippy(&toolchain.compiler)? {
        println!("note: {} has no clippy: the kernel programs are not linted", toolchain.compiler.rustc.display());
        return Ok(());
    }
    ebpf::clippy(toolchain)
}

fn deny() -> Result<()> {
    let program = setup::cargo_deny().context("cargo-deny is missing after setup; run `cargo xtask setup --lint`")?;
    let mut deny = Command::new(program);
    deny.current_dir(cmd::workspace_root()).args(["--workspace", "check", "bans", "licenses", "sources"]);
    cmd::run(&mut deny)
}
