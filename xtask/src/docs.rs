//! `cargo xtask docs`: the documents that the agent writes about itself.
//!
//! Invariant: a metric or feature is described once, in the code; these files never hold anything else.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cmd, ebpf};

/// File, and the arguments of `sensor` that print it.
const DOCUMENTS: [(&str, &[&str]); 4] = [
    ("docs/metrics.md", &["metrics", "--format", "markdown"]),
    ("docs/features.md", &["features", "--format", "markdown"]),
    ("docs/views/cicflowmeter.md", &["features", "--view", "cicflowmeter", "--format", "markdown"]),
    ("docs/views/nfstream.md", &["features", "--view", "nfstream", "--format", "markdown"]),
];

/// Write or compare.
#[derive(Args)]
pub(crate) struct DocsArgs {
    /// Write nothing; fail if a file differs from what the agent says
    #[arg(long)]
    check: bool,
}

/// `cargo xtask docs`.
///
/// # Errors
/// When the agent cannot be built or run, or (with `--check`) a document is out of date.
pub(crate) fn docs(args: DocsArgs) -> Result<()> {
    ebpf::ready()?;
    generate(args.check)
}

/// The same for a caller that has built the eBPF object already.
///
/// # Errors
/// As [`docs`].
pub(crate) fn generate(check: bool) -> Result<()> {
    cmd::run(cmd::cargo().args(["build", "--workspace", "--bin", "sensor"]))?;
    let sensor = cmd::host_binary("debug", "sensor")?;
    let mut outdated = Vec::new();
    for (file, args) in DOCUMENTS {
        let text = cmd::output(Command::new(&sensor).args(args).current_dir(cmd::workspace_root()))?;
        let path = cmd::workspace_root().join(file);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            println!("{file}: up to date");
        } else if check {
            outdated.push(file);
        } else {
            fs::create_dir_all(cmd::workspace_root().join("docs/views")).context("cannot create docs/views/")?;
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("{file}: written");
        }
    }
    if !outdated.is_empty() {
        bail!("{} differ from what the agent says; run `cargo xtask docs` and commit the result", outdated.join(", "));
    }
    Ok(())
}
