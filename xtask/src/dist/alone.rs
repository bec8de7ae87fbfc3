//! The test that a binary needs nothing but itself and the kernel: it runs where the root holds it, a model, a capture
//! and `/proc`, as every container has, and no more.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::empty;
use crate::cmd;

/// A capture of the tests.
const CAPTURE: &str = "tests/golden/captures/cic-01-bulk.pcap";
/// What is run, and a word that it prints when it did its work.
const RUNS: [(&[&str], &str); 4] = [
    (&["--version"], "sensor "),
    // In a process of its own, with limits of memory and time.
    (&["model", "check", "/sensor.onnx"], "sha256"),
    (&["extract", "/capture.pcap"], "duration"),
    // Reads the kernel's interfaces through netlink; whatever this one can do, it says so.
    (&["doctor", "-i", "lo"], "kernel"),
];

/// Runs `binary` in an empty root below `work`.
///
/// # Errors
/// When it does not run or does not do its work there, or nobody may change the root here.
pub(super) fn check(binary: &Path, work: &Path) -> Result<()> {
    let root = work.join("alone");
    empty(&root)?;
    let workspace = cmd::workspace_root();
    let files = [
        (binary.to_path_buf(), "sensor"),
        (workspace.join("models/sensor.onnx"), "sensor.onnx"),
        (workspace.join(CAPTURE), "capture.pcap"),
    ];
    for (from, to) in files {
        fs::copy(&from, root.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    empty(&root.join("proc"))?;
    for (args, word) in RUNS {
        let out = in_root(&root, args).output().context("cannot start unshare (util-linux)")?;
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        // `doctor` fails where the interface cannot be watched, which is no fault of the binary.
        if !(out.status.success() || args[0] == "doctor") || !text.contains(word) {
            bail!(
                "in an empty root, `sensor {}` did not say {word:?} ({}): {}",
                args.join(" "),
                out.status,
                text.trim()
            );
        }
    }
    println!("{} runs in an empty root", binary.display());
    Ok(())
}

/// `sensor` with these arguments and an empty environment. The mount is in a namespace of its own and ends with the process.
fn in_root(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !cmd::is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "sh",
        "-c",
        r#"mount --rbind /proc "$0/proc" && exec env -i "$(command -v chroot)" "$0" /sensor "$@""#,
    ]);
    command.arg(root).args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}
