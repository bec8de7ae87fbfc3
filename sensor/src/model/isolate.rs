//! The check of a model file in a process of its own.
//!
//! A crafted graph can make the runtime abort, overflow its stack, take all memory or never end, and nothing in the same
//! process can catch that. So the agent hands the file to a child, which is this program again with limits of memory and
//! CPU time and without capabilities, and loads the same bytes only after the child has done with them everything that
//! the agent will. The child is killed at a deadline, and dies with the thread that waits for it.
//!
//! Invariant: whatever the file holds, [`check`] returns within its time limit, and nothing but the child has suffered.
//! Called by the agent's loader and by `sensor model check`; the child's side is [`serve`].

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::check::{self, Report};
use super::file::File;
use super::problem::Problem;

/// The command of the child's side, hidden in the command line: `sensor model check-isolated MEMORY SECONDS MILLISECONDS`.
pub const COMMAND: [&str; 2] = ["model", "check-isolated"];
/// Stack of the thread that loads a model. Threads of the agent that load or run one have at least twice as much.
pub const STACK: usize = 8 << 20;
/// Largest report that is read from the child, in bytes.
const MAX_REPORT: u64 = 8 << 20;
/// What is kept of the child's messages, in bytes.
const MAX_MESSAGES: u64 = 64 << 10;

/// What a check may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Address space of the child, bytes.
    pub memory_bytes: u64,
    /// Wall-clock time, and CPU time rounded up to seconds.
    pub time: Duration,
}

/// Checks a file in a child of `program` (this program: `/proc/self/exe`). Each batch size is timed for `timed`.
///
/// # Errors
/// If no child can be made. A child that crashed, or was stopped by a limit, is a problem in the report.
pub fn check(program: &Path, file: &File, limits: Limits, timed: Duration) -> Result<Report> {
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(COMMAND)
        .args([limits.memory_bytes, limits.time.as_secs() + 1, timed.as_millis() as u64].map(|n| n.to_string()))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the process that checks a model")?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (status, report, messages) = std::thread::scope(|scope| {
        // A child that ended reads no more: the error of its status says why.
        scope.spawn(move || stdin.map(|stdin| file.encode(stdin)));
        let report = scope.spawn(move || drain(stdout, MAX_REPORT));
        let messages = scope.spawn(move || drain(stderr, MAX_MESSAGES));
        let status = wait(&mut child, begun + limits.time);
        // The pipes end with the child.
        (status, report.join().unwrap_or_default(), messages.join().unwrap_or_default())
    });
    let failed = match status {
        Some(status) if status.success() => match serde_json::from_slice::<Report>(&report) {
            Ok(report) => return Ok(report),
            Err(error) => format!("the process that checked it gave no report: {error}"),
        },
        Some(status) => died(status, &String::from_utf8_lossy(&messages), limits),
        None => format!("checking it took more than {} s, and was stopped", limits.time.as_secs_f64()),
    };
    let fix = "the file is broken, hostile or too large: compare it with its origin, export a smaller model, or raise \
               model.load_memory_mib and model.load_timeout";
    Ok(Report {
        ok: false,
        problems: vec![Problem::new("isolated check", failed, fix)],
        model: None,
        bytes: file.onnx.len() as u64,
        side_car: file.side_car.is_some(),
        load_seconds: begun.elapsed().as_secs_f64(),
        memory_bytes: None,
    })
}

fn drain(pipe: Option<impl Read>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(mut pipe) = pipe else { return bytes };
    // What was read before an error is all there is.
    let _ = (&mut pipe).take(limit).read_to_end(&mut bytes);
    // The child must not wait for a reader.
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    bytes
}

/// Waits until `deadline`; a child that runs on is killed, and gives `None`.
fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// What a status and the last message say.
fn died(status: ExitStatus, messages: &str, limits: Limits) -> String {
    use std::os::unix::process::ExitStatusExt;
    let message = messages.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let memory = limits.memory_bytes >> 20;
    let cause = match status.signal() {
        _ if message.contains("memory allocation of") => format!("needed more than {memory} MiB of memory"),
        Some(signal) if signal == Signal::XCPU.as_raw() => format!("took more than {:?} of CPU time", limits.time),
        Some(signal) if signal == Signal::KILL.as_raw() => {
            "was killed, as the kernel does when a control group or the host is out of memory".to_owned()
        }
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("failed ({status})"),
    };
    format!("the process that checked it {cause}{}{message}", if message.is_empty() { "" } else { ": " })
}

/// The child's side: limits itself, reads a [`File`] from `input`, writes a [`Report`] to `output`.
///
/// # Errors
/// If the limits cannot be set, or `input` holds no file.
pub fn serve(limits: Limits, timed: Duration, input: impl Read, mut output: impl Write) -> Result<()> {
    restrict(limits).context("cannot limit the process that checks a model")?;
    let file = File::decode(input).context("the model in the pipe")?;
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || check::check(&file, timed));
    let Ok(mut report) = thread.context("start a thread")?.join() else { anyhow::bail!("the check panicked") };
    report.memory_bytes = peak_bytes();
    serde_json::to_writer(&mut output, &report).context("write the report")
}

fn restrict(limits: Limits) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Where it cannot be set the limits below still hold. If the host runs out of memory, this process is to go, not the agent.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let limit = |resource, most: u64| {
        // Raising a hard limit takes a capability that the agent need not have.
        let most = Some(getrlimit(resource).maximum.map_or(most, |hard| hard.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })
    };
    limit(Resource::As, limits.memory_bytes)?;
    limit(Resource::Cpu, limits.time.as_secs().max(1))?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Largest resident memory of this process so far.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
