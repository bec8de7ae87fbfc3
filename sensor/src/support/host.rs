//! What this host tells: versions, the journal, the agent's process, interfaces.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::bpf::probe::{self, InterfaceCapabilities};
use crate::doctor::{self, Report};

/// Lines of the journal.
const JOURNAL_LINES: &str = "5000";
/// How long the journal may take.
const JOURNAL_LIMIT: Duration = Duration::from_secs(10);

/// Of this program, the kernel and the distribution.
pub(super) fn versions() -> String {
    let uname = rustix::system::uname();
    let words = [uname.sysname(), uname.release(), uname.version(), uname.machine()];
    let kernel: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(path).ok());
    format!(
        "sensor {}\nkernel {}\n\n{}",
        env!("CARGO_PKG_VERSION"),
        kernel.join(" "),
        release.unwrap_or_else(|| "no os-release\n".to_owned())
    )
}

/// The last lines of a unit's journal.
pub(super) fn journal(unit: &str) -> Result<String> {
    let mut output = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut errors = tempfile::tempfile().context("cannot make a temporary file")?;
    // Without the name of this host.
    let words = ["--no-pager", "--no-hostname", "-o", "short-iso", "-n", JOURNAL_LINES, "-u", unit];
    let mut child = Command::new("journalctl")
        .args(words)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(errors.try_clone()?)
        .spawn()
        .context("cannot run journalctl")?;
    let deadline = Instant::now() + JOURNAL_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().context("journalctl")? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = |file: &mut fs::File| -> Result<String> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (lines, said) = (text(&mut output)?, text(&mut errors)?);
    ensure!(status.is_some(), "journalctl did not end within {} s", JOURNAL_LIMIT.as_secs());
    let none = lines.trim().is_empty() || lines.trim() == "-- No entries --";
    ensure!(
        !none,
        "the journal has nothing of unit {unit}{}",
        said.trim().lines().map(|l| format!("; {l}")).collect::<String>()
    );
    Ok(lines)
}

/// What the kernel and these interfaces can do; without any, that of the default route.
pub(super) fn doctor(names: Vec<String>) -> (Report, Vec<InterfaceCapabilities>) {
    let names = if names.is_empty() { vec![probe::default_interface()] } else { names.into_iter().map(Ok).collect() };
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        match name.and_then(|name| probe::interface(&name)) {
            Ok(interface) => found.push(interface),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    let details = found.clone();
    (doctor::examine(probe::kernel(), found, errors), details)
}

/// Limits and usage of the agent's process, what its threads wait for, and its control group.
pub(super) fn process(pid: i32) -> Result<String> {
    let folder = format!("/proc/{pid}");
    let mut text = String::new();
    let mut add = |path: String| {
        // Writing to a string cannot fail.
        let _ = match fs::read_to_string(&path) {
            Ok(content) => writeln!(text, "== {path}\n{}", content.trim_end()),
            Err(error) => writeln!(text, "== {path}\n({error})"),
        };
    };
    for name in ["status", "limits", "cgroup", "schedstat"] {
        add(format!("{folder}/{name}"));
    }
    let threads = fs::read_dir(format!("{folder}/task")).into_iter().flatten().flatten();
    for thread in threads {
        let thread = thread.path().display().to_string();
        ["comm", "stat", "wchan"].iter().for_each(|name| add(format!("{thread}/{name}")));
    }
    let groups =
        fs::read_to_string(format!("{folder}/cgroup")).with_context(|| format!("cannot read {folder}/cgroup"))?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    for name in ["memory.max", "memory.high", "memory.current", "memory.events", "cpu.max", "cpu.stat", "pids.max"] {
        add(format!("/sys/fs/cgroup{group}/{name}").replace("//", "/"));
    }
    Ok(text)
}
