//! `cargo xtask lint`: everything that can be said about the code without running it.
//!
//! Invariant: needs no network once its tools are there (security advisories, which do, are CI's part), and changes
//! no file of the project. All checks run even if one fails, so that one run shows everything.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, docs, ebpf, setup};

/// `cargo xtask lint`.
///
/// # Errors
/// Names the checks that failed; their own messages come before.
pub(crate) fn lint() -> Result<()> {
    setup::ensure(setup::Options::LINT)?;
    let built = ebpf::build(ebpf::Objects::All)?;
    let checks: [(&str, &dyn Fn() -> Result<()>); 8] = [
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
        ("clippy for BPF", &ebpf::clippy),
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

fn deny() -> Result<()> {
    let program = setup::cargo_deny().context("cargo-deny is missing after setup; run `cargo xtask setup --lint`")?;
    let mut deny = Command::new(program);
    deny.current_dir(cmd::workspace_root()).args(["--workspace", "check", "bans", "licenses", "sources"]);
    cmd::run(&mut deny)
}
